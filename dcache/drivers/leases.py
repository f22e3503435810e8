"""The connections that one operation has, from when it takes them to when it gives them back.

What a connection brings for calls that are not waited for any more is dropped when it is read, at the latest by the
next operation that uses it.

A connection is closed instead of given back when its last frame could not be sent whole, or when its operation was
interrupted by anything but an error of ours (Ctrl-C), so that nobody ever meets half a frame or a foreign reply.

Ctrl-C strikes between any two calls, so at each such moment a connection belongs to somebody who will look after it: it
is written into the operation's book of leases before it is taken out of the pool, and out of it before it goes back.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from dcache.drivers.channel import Channel, Unanswered, Waiter
from dcache.drivers.driver import Books, Execution, Probe, TableWaiter
from dcache.drivers.pool import CHUNK, PROMPT, RECENT, Connection, Held, ready
from dcache.drivers.prompt import Asked, Sent
from dcache.errors import DcacheError
from dcache.ops.effects import Call

if TYPE_CHECKING:
    from dcache.drivers.blocking import BlockingDriver


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

    def begin(self, calls: Sequence[Call], since: float, patience: float, *, raced: bool) -> list[Asked]:
        """Make `calls`, if for all of their nodes connections are at hand that nothing is under way on; else none."""
        held, driver = self._held, self._driver
        connections: list[Connection] = []
        for node, _, _ in calls:
            connection = held.get(node)
            if connection is None:
                pool = driver.pools.get(node)
                connection = None if pool is None else pool.borrow(held)
                if connection is None or (since >= connection.quiet_until and not self._at_hand(connection, since)):
                    self.give_back(0.0)
                    return []
            connections.append(connection)
        if raced:
            self._books.raceable(calls, patience, since)
        asked: list[Asked] = []
        for connection, (_, method, params) in zip(connections, calls, strict=True):
            try:
                asked.append((connection, connection.ask(method, params), None))
            except OSError as error:
                asked.append((connection, next(connection.channel.ids), error))
        return asked

    def _at_hand(self, connection: Connection, now: float) -> bool:
        """Whether a connection that may not have been quiet is so by now.  One of no more use is closed."""
        fault = self._fault(connection)
        if fault is None:
            connection.rest(now)
            return now < connection.quiet_until
        if isinstance(fault, TimeoutError):
            self._books.failed(connection.node, fault)
        self._discard(connection)
        return False

    def drop_broken(self, begun: Sequence[Sent]) -> None:
        """The calls on connections that broke have been taken over: now it is time to make them anew."""
        for one in begun:
            if one.fault is not None and one.connection.opened:
                self._lost(one.connection, one.fault)

    def wait(self, seconds: float) -> None:
        """Wait until something happened at any connection, at most so long, and deal with all that happened."""
        connections = list(self._held.values())
        if len(connections) == 1 and PROMPT and seconds > 0.0 and not connections[0].unfinished():
            self._wait_alone(connections[0], seconds)
            return
        unready = [connection for connection in connections if not connection.channel.ready]
        if unready:
            first = min(connection.deadline for connection in unready)
            seconds = min(seconds, max(0.0, first - time.monotonic()))
        for connection, readable, writable in ready(connections, seconds):
            if not connection.channel.alive:
                continue  # it was lost over a call that followed from another one's answer, and may be replaced by now
            try:
                self._go_on(connection, readable, writable)
            except (OSError, DcacheError) as error:
                self._lost(connection, error)
        for connection in unready:
            if connection.channel.alive and connection.overdue(time.monotonic()):
                self._lost(connection, TimeoutError("no connection within connect_timeout"))

    def _wait_alone(self, connection: Connection, seconds: float) -> None:
        """As `wait`, for the only connection there is: in the call that reads."""
        try:
            data = connection.await_bytes(seconds)
            connection.channel.receive(data)
            if len(data) == CHUNK:
                connection.readable()
        except BlockingIOError:
            pass
        except (OSError, DcacheError) as error:
            self._lost(connection, error)

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

    def end_promptly(self, asked: Sequence[Asked], now: float, grace: float) -> None:
        """As `end`, where all that was asked was answered."""
        books, held, driver = self._books, self._held, self._driver
        if now >= books.topology.due_at or books.backoff.failures or len(asked) > len(held):
            self.end(grace)
            return
        for connection, _, _ in asked:
            connection.fresh = False
            if connection.quiet_until:
                connection.quiet_until = now + RECENT
            else:
                connection.rest(now)
            pool = driver.pools.get(connection.node)
            if pool is None or not pool.give(held, connection):
                self._discard(connection)

    def end(self, grace: float) -> None:
        """The operation is done: see to what is to be done now and then, and `give_back` with that `grace`."""
        self.ask_for_news(time.monotonic())
        self.probe()
        self.give_back(grace)

    def probe(self) -> None:
        """See to the nodes that are being left alone, without waiting for them: ask those that it is time to ask, and
        take in what others have answered meanwhile."""
        backoff = self._books.backoff
        if not backoff.failures:
            return
        for node in backoff.probed():
            self._look_at(node)
        for call in self._books.probes():
            self.send(call, Probe(self._books))

    def _look_at(self, node: str) -> None:
        pool = self._driver.pools.get(node)
        connection = None if pool is None or node in self._held else pool.borrow(self._held)
        if connection is None:
            return
        fault = self._fault(connection)
        if fault is not None:
            self._books.failed(node, fault)
            self._discard(connection)

    def ask_for_news(self, now: float) -> None:
        """Now and then, have some node say whether the table has changed; its answer is read in passing."""
        topology = self._books.topology
        if self._held and topology.table is not None and topology.due(now):
            node = next(iter(self._held))
            self.send(Call(node, "exchange", (topology.table.digest,)), TableWaiter(topology))

    def give_back(self, grace: float) -> None:
        """Return what is fit for further use.

        Connections that are not made yet, or have frames not yet sent whole, get `grace` seconds: closing that of the
        owner that was not waited for would cost it the write.  A node that needs longer is in trouble; were it not
        said so here, every operation would wait for it.  With a node that is in trouble already nobody waits: its
        connection goes on being made when somebody looks at it again.
        """
        for connection in self._held.values():
            if connection.unfinished():
                self._let_finish(grace)
                break
        now = time.monotonic()
        for connection in list(self._held.values()):
            parked = late = False
            if connection.unfinished():
                parked = self._failing(connection)
                late = not parked
            if late and grace:
                self._books.failed(connection.node, TimeoutError("neither connected nor read in good time"))
            connection.fresh = parked and connection.fresh
            connection.rest(now)
            if late or not self._driver.give(self._held, connection):
                self._discard(connection)

    def _let_finish(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while any(connection.unfinished() and not self._failing(connection) for connection in self._held.values()):
            left = until - time.monotonic()
            if left <= 0:
                return
            self.wait(left)

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
        if now < connection.quiet_until:
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
