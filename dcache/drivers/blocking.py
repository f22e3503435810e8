"""Runs operations on blocking threads: one poll over all connections of an operation.

No hidden thread, no loop: an operation leases a connection per node, writes to all, waits for all together, always
reading while writing, and gives the connections back.  Never node after node: connecting, too, goes on at all nodes at
once.  What a connection brings for calls that are not waited for any more is dropped when it is read, at the latest by
the next operation that uses it.

A connection is closed instead of given back when its last frame could not be sent whole, or when its operation was
interrupted by anything but an error of ours (Ctrl-C), so that nobody ever meets half a frame or a foreign reply.

Ctrl-C strikes between any two calls, so at each such moment a connection belongs to somebody who will look after it: it
is written into the operation's book of leases before it is taken out of the pool, and out of it before it goes back.
"""

from __future__ import annotations

import socket
import threading
import time
import weakref
from collections.abc import Iterable
from functools import partial
from typing import TypeVar

from dcache.drivers.channel import Channel, Unanswered, Waiter
from dcache.drivers.driver import PATIENCE, Books, Execution, Probe, TableWaiter
from dcache.drivers.pool import Connection, Held, Pool, ready
from dcache.errors import ClientClosed, DcacheError
from dcache.ops.effects import Call, Detached, Op, Round

T = TypeVar("T")


class BlockingDriver:
    """Shared by all threads of a client."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self.reset()

    def reset(self) -> None:
        """Start with no connections: at the beginning, and in a forked child, which must leave its parent's alone."""
        self._most = self._books.settings.max_connections
        self._pools: dict[str, Pool] = {}
        self._lock = threading.Lock()  # guards the making of pools
        self.connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self.closed = False

    def abandon(self) -> None:
        """Close this process's copies of the sockets, saying nothing to the nodes.  For a forked child."""
        for connection in list(self.connections):
            connection.close()
        self.reset()

    def close(self) -> None:
        with self._lock:
            self.closed = True
            pools = list(self._pools.values())
        for pool in pools:
            for connection in pool.drain():
                connection.close()

    def pool(self, node: str) -> Pool:
        with self._lock:
            if self.closed:
                raise ClientClosed("the client was closed")
            pool = self._pools.get(node)
            if pool is None:
                pool = self._pools[node] = Pool(node, self._most)
            return pool

    def existing_pool(self, node: str) -> Pool | None:
        """There is none in a child that was forked meanwhile."""
        return self._pools.get(node)

    def give(self, held: Held, connection: Connection) -> bool:
        """See `Pool.give`."""
        pool = self.existing_pool(connection.node)
        return pool is not None and pool.give(held, connection)

    def forget(self, connection: Connection) -> None:
        """See `Pool.forget`."""
        pool = self.existing_pool(connection.node)
        if pool is not None:
            pool.forget(connection)

    def run(self, operation: Op[T], deadline: float, timeout: float) -> T:
        """Run `operation`, whose whole time is `timeout` seconds, until `deadline` on the monotonic clock."""
        leases = Leases(self, self._books, deadline)
        try:
            return self._drive(operation, leases, deadline, timeout)
        except BaseException:
            leases.close()  # what was not given back before
            raise

    def _drive(self, operation: Op[T], leases: Leases, deadline: float, timeout: float) -> T:
        try:
            while True:
                effect = next(operation)
                if isinstance(effect, Round):
                    self._round(effect, leases, deadline, timeout)
                elif isinstance(effect, Detached):
                    for call in effect.calls:
                        if self._books.keep_away(call) is None:
                            leases.send(call, None)
                else:
                    time.sleep(max(0.0, min(effect.seconds, deadline - time.monotonic())))
        except StopIteration as stop:
            leases.ask_for_news()
            leases.probe()
            leases.give_back(timeout * PATIENCE)
            result: T = stop.value
            return result
        except (DcacheError, ValueError, TypeError):
            leases.probe()
            leases.give_back(0.0)
            raise

    def _round(self, round_: Round, leases: Leases, deadline: float, timeout: float) -> None:
        patience = timeout * PATIENCE
        execution = Execution(round_, self._books, leases.send, _nothing, patience)
        execution.start()
        late = time.monotonic() + patience
        while not round_.over():
            if not round_.pending:  # what had sufficed has broken off since: ask others at once
                execution.late()
                continue
            now = time.monotonic()
            hedge_at = execution.hedge_at()
            leases.wait(max(0.0, min(deadline, late, hedge_at) - now))
            if round_.over():
                break
            now = time.monotonic()
            if now >= deadline:
                leases.give_up(call.node for call in round_.pending)
                execution.expire()
                break
            if now >= late:
                late = now + patience
                execution.late()
            if now >= hedge_at:
                execution.hedge()
        execution.close()
        if round_.failures and time.monotonic() >= deadline:
            round_.expired = True  # calls that fail at once never meet the deadline, and who tries again must


def _nothing() -> None:
    """The blocking driver looks for itself whether a round is over."""


class Leases:
    """The connections of one operation, by node, until it ends."""

    def __init__(self, driver: BlockingDriver, books: Books, deadline: float) -> None:
        self._driver, self._books, self._deadline = driver, books, deadline
        self._held: Held = {}

    def send(self, call: Call, waiter: Waiter | None) -> None:
        """Send `call`, or tell its waiter why not."""
        try:
            connection = self._lease(call.node)
        except (OSError, DcacheError) as error:
            if waiter is not None:
                waiter.failed(call, error, False)
            return
        connection.channel.request(call, waiter, time.monotonic())
        try:
            connection.flush()
        except OSError as error:
            self._lost(connection, error)

    def wait(self, seconds: float) -> None:
        """Wait until something happened at any connection, at most so long, and deal with all that happened."""
        connections = list(self._held.values())
        now = time.monotonic()
        for connection in connections:
            if not connection.channel.ready:
                seconds = min(seconds, max(0.0, connection.deadline - now))
        for connection, readable, writable in ready(connections, seconds):
            if not connection.channel.alive:
                continue  # it was lost over a call that followed from another one's answer, and may be replaced by now
            try:
                self._go_on(connection, readable, writable)
            except (OSError, DcacheError) as error:
                self._lost(connection, error)
        now = time.monotonic()
        for connection in connections:
            if connection.channel.alive and connection.overdue(now):
                self._lost(connection, TimeoutError("no connection within connect_timeout"))

    def give_up(self, nodes: Iterable[str]) -> None:
        """These nodes did not answer in time: their connections are closed."""
        for node in nodes:
            if node in self._held:
                self._discard(self._held[node])

    def _go_on(self, connection: Connection, readable: bool, writable: bool) -> None:
        """Write and read what can be; `OSError` or `DcacheError` if the connection is of no more use."""
        channel = connection.channel
        if writable:
            connection.writable()
        if readable:
            greeted = channel.ready
            connection.readable()
            if channel.ready and not greeted:
                # Whatever the table became before this connection could bring the news is asked for.
                news = self._books.news(connection.node, channel.digest)
                if news is not None:
                    channel.request(news, TableWaiter(self._books.topology), time.monotonic())
        connection.flush()

    def probe(self) -> None:
        """See to the nodes that are being left alone, without waiting for them: ask those that it is time to ask, and
        take in what others have answered meanwhile."""
        backoff = self._books.backoff
        for node in backoff.probed():
            self._look_at(node)
        for call in self._books.probes():
            self.send(call, Probe(self._books))

    def _look_at(self, node: str) -> None:
        pool = self._driver.existing_pool(node)
        connection = None if pool is None or node in self._held else pool.borrow(self._held)
        if connection is None:
            return
        fault = self._fault(connection)
        if fault is not None:
            self._books.failed(node, fault)
            self._discard(connection)

    def ask_for_news(self) -> None:
        """Now and then, have some node say whether the table has changed; its answer is read in passing."""
        topology = self._books.topology
        if self._held and topology.table is not None and topology.due(time.monotonic()):
            node = next(iter(self._held))
            self.send(Call(node, "exchange", (topology.table.digest,)), TableWaiter(topology))

    def give_back(self, grace: float) -> None:
        """Return what is fit for further use.

        Connections that are not made yet, or have frames not yet sent whole, get `grace` seconds: closing that of the
        owner that was not waited for would cost it the write.  A node that needs longer is in trouble; were it not
        said so here, every operation would wait for it.  With a node that is in trouble already nobody waits: its
        connection goes on being made when somebody looks at it again.
        """
        until = time.monotonic() + grace
        while any(connection.unfinished() and not self._failing(connection) for connection in self._held.values()):
            left = until - time.monotonic()
            if left <= 0:
                break
            self.wait(left)
        now = time.monotonic()
        for connection in list(self._held.values()):
            parked = connection.unfinished() and self._failing(connection)
            late = connection.unfinished() and not parked
            if late and grace:
                self._books.failed(connection.node, TimeoutError("neither connected nor read in good time"))
            connection.fresh, connection.used = parked and connection.fresh, now
            if late or not self._driver.give(self._held, connection):
                self._discard(connection)

    def _failing(self, connection: Connection) -> bool:
        return self._books.backoff.failing(connection.node)

    def close(self) -> None:
        """Something unforeseen came in between: no connection is trusted any more."""
        for connection in list(self._held.values()):
            self._discard(connection)

    def _lease(self, node: str) -> Connection:
        connection = self._held.get(node)
        if connection is not None:
            return connection
        wait = None if self._held else max(0.0, self._deadline - time.monotonic())
        connection = self._driver.pool(node).take(self._held, wait)
        if connection.opened:
            self._check(connection)
        if not connection.opened:
            self._open(connection)
        return connection

    def _check(self, connection: Connection) -> None:
        """Close a connection that is of no more use; `TimeoutError` if another would not be of any either."""
        fault = self._fault(connection)
        if isinstance(fault, TimeoutError):
            self._books.failed(connection.node, fault)
            self._discard(connection)
            raise fault
        if fault is not None:
            connection.close()

    def _fault(self, connection: Connection) -> Exception | None:
        """Read what came for earlier operations; why the connection is of no more use, if it is not.  A `TimeoutError`
        says that the node has owed an answer, or the connection itself, for too long."""
        now = time.monotonic()
        since = connection.channel.waiting_since()
        if since is None and now - connection.used < 1.0:
            return None
        try:
            if connection.unfinished():
                for _, readable, writable in ready([connection], 0.0):
                    self._go_on(connection, readable, writable)
            else:
                connection.readable()
        except (OSError, DcacheError) as error:
            return error
        if connection.overdue(now):
            return TimeoutError("no connection within connect_timeout")
        since = connection.channel.waiting_since()
        if since is not None and now - since > self._books.settings.stall:
            return TimeoutError(f"no answer for {now - since:.1f} s")
        return None

    def _open(self, connection: Connection) -> None:
        settings, topology, node = self._books.settings, self._books.topology, connection.node
        try:
            host, port = topology.address(node)
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            channel = Channel(self._books.handshake(node), partial(topology.offer, source=node))
            self._driver.connections.add(connection)
            connection.open(addresses, channel, time.monotonic() + settings.connect_timeout)
        except BaseException:
            self._discard(connection)
            raise

    def _lost(self, connection: Connection, error: Exception) -> None:
        """A connection broke.  One that had been idle may have been closed for that, so its calls get a new one."""
        stale = not connection.fresh and isinstance(error, OSError)
        for call, waiter, sent in self._discard(connection):
            if stale and isinstance(waiter, Execution) and not waiter.closed:
                self.send(call, waiter)
            else:
                waiter.failed(call, error, sent)

    def _discard(self, connection: Connection) -> list[Unanswered]:
        unanswered = connection.close()
        self._driver.forget(connection)
        self._driver.connections.discard(connection)
        self._held.pop(connection.node, None)
        return unanswered
