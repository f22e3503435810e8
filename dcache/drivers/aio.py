"""Runs operations on an asyncio loop: one connection per node, shared by all tasks.

Calls made in one tick of the loop leave in one write, and reads that are to be prompt in one request.  A task that is
cancelled stops waiting and nothing more: its frames leave whole, its replies are dropped when they come.  Every round
has one timer.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TypeVar, cast

from dcache.drivers.channel import Channel, Waiter
from dcache.drivers.driver import PATIENCE, Books, Execution, Probe, TableWaiter
from dcache.drivers.prompt_aio import TICK, PromptReads
from dcache.drivers.prompt_groups import Share, TakeOver
from dcache.errors import ClientClosed, DcacheError
from dcache.ops.effects import Call, Detached, Op, Round

T = TypeVar("T")
WRITE_BUFFER_MAX = 64 * 1024 * 1024
"""A node that leaves more than this unread is treated as broken off."""


class Connection(asyncio.Protocol):
    """The connection to a node: being made, in use, or over."""

    def __init__(self, driver: AsyncDriver, node: str) -> None:
        self.driver, self.node = driver, node
        self.channel = Channel(driver.books.handshake(node), partial(driver.books.topology.offer, source=node))
        self._loop = driver.loop
        self._transport: asyncio.Transport | None = None
        self._flushing = False
        self._heard = self._loop.time()
        self._greeted = self._loop.create_future()
        self._making = self._loop.create_task(self._make())
        driver.making[self._making] = None
        self._making.add_done_callback(lambda made: driver.making.pop(made, None))

    async def _make(self) -> None:
        settings = self.driver.books.settings
        try:
            async with asyncio.timeout(settings.connect_timeout):
                host, port = self.driver.books.topology.address(self.node)
                await self._loop.create_connection(lambda: self, host, port)
                await self._greeted
        except TimeoutError:
            self.broke(TimeoutError("no connection within connect_timeout"))
        except (OSError, DcacheError, ValueError) as error:
            self.broke(error)

    def request(self, call: Call, waiter: Waiter | None) -> None:
        self.channel.request(call, waiter, self._loop.time())
        if not self._flushing and self.channel.ready:
            self._flushing = True
            self.driver.flush_soon(self)

    def flush(self) -> None:
        self._flushing = False
        if self._transport is None or not self.channel.alive:
            return
        if self._transport.get_write_buffer_size() > WRITE_BUFFER_MAX or self._stalled():
            self.broke(TimeoutError("does not read, or does not answer"))
            return
        self._transport.write(self.channel.take())

    def _stalled(self) -> bool:
        """Whether it owes answers and has said nothing for too long; who has much to answer may take long over it."""
        since = self.channel.waiting_since()
        return since is not None and self._loop.time() - max(since, self._heard) > self.driver.books.settings.stall

    # -- what the loop says -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = stream = cast("asyncio.Transport", transport)  # uvloop's are no instances of it
        if not self.channel.alive:
            stream.abort()
            return
        stream.write(self.channel.take())

    def data_received(self, data: bytes) -> None:
        if not self.channel.alive:
            return
        self._heard = self._loop.time()
        greeted = self.channel.ready
        try:
            self.channel.receive(data)
        except DcacheError as error:
            self.broke(error)
            return
        if not greeted and self.channel.ready:
            self._made()

    def _made(self) -> None:
        """Hello was answered.  Whatever the table became before this connection could bring the news is asked for."""
        if not self._greeted.done():
            self._greeted.set_result(None)
        news = self.driver.books.news(self.node, self.channel.digest)
        if news is not None:
            self.channel.request(news, TableWaiter(self.driver.books.topology), self._loop.time())
        self.flush()

    def eof_received(self) -> None:
        self.broke(ConnectionError("the node closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.broke(exc or ConnectionError("the connection broke"))

    # -- the end ------------------------------------------------------------------------------------------------------

    def broke(self, error: Exception) -> None:
        """The connection is over: all that wait are told."""
        if not self.channel.alive:
            return
        unanswered = self.channel.close()
        self.driver.drop(self)
        if not self._greeted.done():
            self._greeted.set_exception(error)
            self._greeted.exception()  # looked at: the maker may be past waiting for it
        if self._transport is not None:
            self._transport.abort()
        for call, waiter, sent in unanswered:
            waiter.failed(call, error, sent)


class AsyncDriver:
    """All connections of a client in one event loop."""

    def __init__(self, books: Books, loop: asyncio.AbstractEventLoop) -> None:
        self.books, self.loop = books, loop
        self._connections: dict[str, Connection] = {}
        self.making: dict[asyncio.Task[None], None] = {}  # a set with an order
        self._news = TableWaiter(books.topology)
        self.prompt = PromptReads(books, loop, self.send, self.wake)
        self._awake = False
        self._to_flush: list[Connection] = []
        self.closed = False

    def send(self, call: Call, waiter: Waiter | None) -> None:
        """Send `call`, or tell its waiter why not."""
        if self.closed:
            if waiter is not None:
                waiter.failed(call, ClientClosed("the client was closed"), False)
            return
        connection = self._connections.get(call.node)
        if connection is None:
            connection = self._connections[call.node] = Connection(self, call.node)
        connection.request(call, waiter)

    def flush_soon(self, connection: Connection) -> None:
        self._to_flush.append(connection)
        self.wake()

    def wake(self) -> None:
        """At the end of this tick there is something to send."""
        if not self._awake:
            self._awake = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        try:
            if self.prompt.gathered:
                self._ask_for_news()
                self.prompt.flush()
                self._probe()
        finally:
            self._awake = False
        while self._to_flush:
            self._to_flush.pop(0).flush()

    def drop(self, connection: Connection) -> None:
        """A connection is over; the next call to its node makes another."""
        if self._connections.get(connection.node) is connection:
            del self._connections[connection.node]

    async def run(self, operation: Op[T], deadline: float | None, timeout: float, share: Share | None = None) -> T:
        """Run `operation`, whose whole time is `timeout` seconds, until `deadline` on the loop's clock.

        With no deadline the operation goes on for as long as it likes, and each of its rounds has `timeout` seconds.
        Its first round takes over what was asked for that `share`.
        """
        if self.closed:
            raise ClientClosed("the client was closed")
        self._ask_for_news()
        try:
            while True:
                effect = next(operation)
                if isinstance(effect, Round):
                    ends = self.loop.time() + timeout if deadline is None else deadline
                    await self._round(effect, ends, timeout * PATIENCE, share)
                    share = None
                elif isinstance(effect, Detached):
                    for call in effect.calls:
                        if self.books.keep_away(call) is None:
                            self.send(call, None)
                else:
                    left = effect.seconds if deadline is None else deadline - self.loop.time()
                    await asyncio.sleep(max(0.0, min(effect.seconds, left)))
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            self._probe()

    async def _round(self, round_: Round, deadline: float, patience: float, share: Share | None) -> None:
        waiting = _Waiting(self, round_, deadline, patience, share)
        try:
            while not (round_.over() or round_.expired):
                if round_.pending:
                    await waiting.event()
                else:
                    waiting.reinforce()
        finally:
            waiting.close()
        if round_.failures and self.loop.time() >= deadline:
            round_.expired = True  # calls that fail at once never meet the deadline, and who tries again must

    def _probe(self) -> None:
        """Ask the nodes that it is time to ask whether they are well; nobody waits for it."""
        if self.closed:
            return
        for call in self.books.probes():
            self.send(call, Probe(self.books))

    def _ask_for_news(self) -> None:
        topology = self.books.topology
        if self._connections and topology.table is not None and topology.due(self.loop.time()):
            node = next(iter(self._connections))
            self.send(Call(node, "exchange", (topology.table.digest,)), self._news)

    async def close(self) -> None:
        self.closed = True
        self.prompt.close()
        for connection in list(self._connections.values()):
            connection.broke(ClientClosed("the client was closed"))
        for task in self.making:
            task.cancel()
        await asyncio.gather(*self.making, asyncio.sleep(0), return_exceptions=True)


class _Waiting:
    """A round being waited for: its execution, its timer, and the future that wakes the waiting task.

    The task looks again whether the round is over when it wakes.  A reply may have sufficed when it came, and then its
    connection, or that of an earlier reply, may have been found broken in the same tick of the loop.
    """

    def __init__(
        self, driver: AsyncDriver, round_: Round, deadline: float, patience: float, share: Share | None
    ) -> None:
        self._loop, self._round = driver.loop, round_
        self._deadline, self._patience = deadline, patience
        self._future: asyncio.Future[None] | None = None
        if share is None:
            self._late = self._loop.time() + patience
            self._execution = Execution(round_, driver.books, driver.send, self._wake, patience)
            self._execution.start()
        else:
            self._late = share.group.since + patience
            self._execution = taking = TakeOver(round_, driver.books, driver.send, self._wake, patience, share)
            taking.go_on()
        self._timer = self._loop.call_at(min(deadline, self._late, self._execution.hedge_at()), self._tick)

    async def event(self) -> None:
        self._future = self._loop.create_future()
        await self._future

    def reinforce(self) -> None:
        """What had sufficed has broken off, and nobody is left to wait for: ask others at once."""
        self._execution.late()

    def _wake(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def _tick(self) -> None:
        now = self._loop.time()
        if now >= self._deadline:
            self._execution.expire()
            return
        if now >= self._late:
            self._late = now + self._patience
            self._execution.late()
        self._execution.hedge()
        hedge_at = max(self._execution.hedge_at(), now + TICK)
        self._timer = self._loop.call_at(min(self._deadline, self._late, hedge_at), self._tick)

    def close(self) -> None:
        self._timer.cancel()
        self._execution.close()
