"""A TCP proxy that misbehaves on request, to see what a program does when the network does.

Bytes that go from the client to the node travel "up", those that come back travel "down".  What holds:

* Within one direction of one connection nothing overtakes: bytes, the end of the stream and a reset keep their order.
* A fault has taken hold when the call that asks for it returns, for open and for new connections.  It meets all that
  is inside the proxy or still on its way to it; `wait_for_bytes` tells when something has arrived.
* All sockets belong to one background thread; every method may be called from any thread and from a running event
  loop.  After `close` there is no thread and no socket left.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import attrs

Direction = Literal["both", "up", "down"]
"""Client to node ("up"), node to client ("down"), or both."""

BUFFER_LIMIT = 1 << 20
"""Bytes kept back per direction of a connection before the proxy stops reading; one more read may go over it."""

READ_SIZE = 1 << 16
BACKLOG = 128
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for zero seconds

T = TypeVar("T")


class FaultProxy:
    """Forwards TCP connections to `target`, faithfully until told otherwise.

    `target` is `(host, port)` or `"host:port"`; `host` and `port` are where to listen (0: a free port).  Names are
    resolved to IPv4, IPv6 addresses are taken as they are.  Listening begins at once, in a thread of its own.  Use it
    as a context manager, or call `close`.  Raises `OSError` when it cannot listen, `ValueError` for a malformed
    target.

    A connection that the target does not accept is reset.  After `close` faults can no longer be asked for
    (`RuntimeError`).  A forked child that lives on holds copies of the proxy's sockets, so that `cut` and `refuse` show
    no effect before it ends; one started with `subprocess` does not.
    """

    def __init__(self, target: tuple[str, int] | str, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._target = _Target.of(target)
        self._counted = threading.Condition()
        self._lanes = {"up": _Lane(self._counted), "down": _Lane(self._counted)}
        self._links: set[_Link] = set()
        self._socket = _bound((host, port))
        self._listening = False
        self._host, self._port = host, int(self._socket.getsockname()[1])
        self._loop = asyncio.SelectorEventLoop()
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"FaultProxy {self.address}", daemon=True)
        self._thread.start()
        try:
            self._call(self._accept)
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Where the proxy listens, `"host:port"`; it stays the same through `refuse` and `accept`."""
        return _joined(self._host, self._port)

    @property
    def target(self) -> str:
        """Where connections lead, `"host:port"`.  Set it (also to a pair) and future connections lead there."""
        return self._target.name

    @target.setter
    def target(self, target: tuple[str, int] | str) -> None:
        self._target = _Target.of(target)

    @property
    def connections(self) -> int:
        """How many connections are open now.  One whose `connect` has returned is counted."""
        return self._call(self._count_connections)

    @property
    def bytes_up(self) -> int:
        """Bytes that have come from clients since the start, delivered or not."""
        return self._lanes["up"].total

    @property
    def bytes_down(self) -> int:
        """Bytes that have come from the target since the start, delivered or not."""
        return self._lanes["down"].total

    def wait_for_bytes(self, direction: Literal["up", "down"], count: int, timeout: float) -> int:
        """Block until `count` bytes in all have come to the proxy in `direction`; give how many have.

        They count on arrival, delivered or not, so this tells when something is held or was swallowed.  Raises
        `TimeoutError` after `timeout` seconds.  In asyncio use `await asyncio.to_thread(proxy.wait_for_bytes, ...)`.
        """
        if direction not in self._lanes:
            raise ValueError(f"direction is 'up' or 'down', not {direction!r}")
        lane = self._lanes[direction]
        with self._counted:
            if not self._counted.wait_for(lambda: lane.total >= count, timeout):
                raise TimeoutError(f"{lane.total} of {count} bytes came {direction} within {timeout} s")
            return lane.total

    def delay(self, seconds: float, direction: Direction = "both") -> None:
        """Deliver everything `seconds` after it arrived; 0 ends it.  What is under way is delayed as well.

        At most `BUFFER_LIMIT` bytes are under way at a time, so a long delay also narrows the line.
        """
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"a delay is a finite number of seconds, not below 0: {seconds!r}")
        self._change(direction, delay=seconds)

    def hold(self, direction: Direction = "both") -> None:
        """Keep back all that arrives, ends and resets of connections too, until `release` or `restore`.

        Up to `BUFFER_LIMIT` bytes are kept per connection and direction, then the sender is no longer read from.  A
        chunk whose delivery has begun is finished.
        """
        self._change(direction, held=True)

    def release(self, direction: Direction = "both") -> None:
        """End `hold`: what was kept back is delivered in order."""
        self._change(direction, held=False)

    def drop(self, direction: Direction = "both") -> None:
        """Swallow all bytes that arrive, until `restore`; the end of a connection is still passed on.

        A connection that lives on afterwards has a gap in its stream, which real networks never make: `cut` it unless
        the gap is what you want.
        """
        self._change(direction, dropping=True)

    def cut(self) -> None:
        """Reset all open connections (RST, to both sides); what was kept back or under way is lost."""
        self._call(self._cut)

    def refuse(self) -> None:
        """Stop listening: new connections are refused, open ones go on.  The port stays reserved."""
        self._call(self._refuse)

    def accept(self) -> None:
        """Listen again, on the same port."""
        self._call(self._accept)

    def restore(self) -> None:
        """End every fault: deliver what was kept back, delay and drop nothing, listen.  The target stays."""
        self._change("both", delay=0.0, held=False, dropping=False)
        self._call(self._accept)

    def close(self) -> None:
        """Reset all connections, stop listening, end the thread.  May be called again."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _change(self, direction: Direction, **settings: Any) -> None:
        if direction not in ("both", "up", "down"):
            raise ValueError(f"direction is 'both', 'up' or 'down', not {direction!r}")
        lanes = [lane for name, lane in self._lanes.items() if direction in (name, "both")]
        self._call(lambda: self._apply(lanes, settings))

    def _call(self, step: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `step` in the proxy's thread.  The lock keeps `close` from ending the loop in between."""
        with self._closing:
            if self._closed:
                raise RuntimeError("the proxy is closed")
            return asyncio.run_coroutine_threadsafe(step(), self._loop).result()

    # All below runs in the proxy's thread.

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            self._ignore_connects()
            self._loop.run_until_complete(self._cut())
        finally:
            self._socket.close()
            self._loop.close()

    async def _apply(self, lanes: list[_Lane], settings: dict[str, Any]) -> None:
        for lane in lanes:
            for name, value in settings.items():
                setattr(lane, name, value)
        for link in self._links:
            link.stir()

    async def _count_connections(self) -> int:
        self._take_connects()
        return len(self._links)

    async def _cut(self) -> None:
        self._take_connects()
        tasks = [link.task for link in self._links]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self) -> None:
        if not self._listening:
            self._socket.listen(BACKLOG)
            self._loop.add_reader(self._socket, self._take_connects)
            self._listening = True

    async def _refuse(self) -> None:
        if self._listening:
            self._take_connects()
            self._ignore_connects()
            self._socket.close()
            # Bound, but not listening: connects are refused, and nobody else is given the port meanwhile.
            self._socket = _bound((self._host, self._port))

    def _ignore_connects(self) -> None:
        if self._listening:
            self._loop.remove_reader(self._socket)
            self._listening = False

    def _take_connects(self) -> None:
        """Begin a link for each connection that the kernel has accepted for us."""
        while self._listening:
            try:
                client, _ = self._socket.accept()
            except OSError:  # none is waiting, or the one that did has gone
                return
            self._begin(client)

    def _begin(self, client: socket.socket) -> None:
        link = _Link(client, self._target, self._lanes)
        self._links.add(link)
        # A callback, because a task that is cancelled before its first step runs no `finally`.
        link.task.add_done_callback(lambda _: self._end(link))

    def _end(self, link: _Link) -> None:
        self._links.discard(link)
        link.close()


@attrs.define(eq=False)
class _Lane:
    """The faults and the byte count of one direction, over all connections."""

    counted: threading.Condition  # guards `total`, which other threads read and wait for
    delay: float = 0.0
    held: bool = False
    dropping: bool = False
    total: int = 0

    def count(self, size: int) -> None:
        with self.counted:
            self.total += size
            self.counted.notify_all()


class _Link:
    """One client's connection and ours to the node.  It ends in resets, unless both directions came to their end."""

    def __init__(self, client: socket.socket, target: _Target, lanes: dict[str, _Lane]) -> None:
        self._target = target
        self._client, self._node = client, socket.socket(target.family, socket.SOCK_STREAM)
        for end in (self._client, self._node):
            end.setblocking(False)
            _set_option(end, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._up = _Pipe(self._client, self._node, lanes["up"])
        self._down = _Pipe(self._node, self._client, lanes["down"])
        self._up.back, self._down.back = self._down, self._up
        self._finished = False
        self.task = asyncio.get_running_loop().create_task(self._forward())

    def stir(self) -> None:
        for pipe in (self._up, self._down):
            pipe.stir()

    def close(self) -> None:
        """Close both sockets; called when the task is done, which it may be without ever having run."""
        for end in (self._client, self._node):
            if not self._finished:
                _set_option(end, socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            end.close()

    async def _forward(self) -> None:
        try:
            await asyncio.get_running_loop().sock_connect(self._node, self._target.address)
            async with asyncio.TaskGroup() as group:
                for step in (self._up.collect, self._up.deliver, self._down.collect, self._down.deliver):
                    group.create_task(step())
            self._finished = True
        except* OSError:
            pass  # not finished: `close` tells both sides


class _Mark(enum.Enum):
    """What may follow the bytes of a stream."""

    END = enum.auto()
    RESET = enum.auto()


class _Pipe:
    """One direction of one connection: `collect` reads from the source, `deliver` writes to the sink.

    Between them is a queue of `(when it arrived, bytes or mark)`; no bytes follow a mark.
    """

    back: _Pipe  # the other direction of the same connection

    def __init__(self, source: socket.socket, sink: socket.socket, lane: _Lane) -> None:
        self._source, self._sink, self._lane = source, sink, lane
        self._queue: deque[tuple[float, bytes | _Mark]] = deque()
        self._kept = 0  # bytes in the queue
        self._stirred = asyncio.Event()  # for `deliver`: the queue or the lane changed
        self._room = asyncio.Event()  # for `collect`: the queue got shorter
        self._ended = False

    def stir(self) -> None:
        self._stirred.set()

    async def collect(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while self._kept >= BUFFER_LIMIT:
                self._room.clear()
                await self._room.wait()
            try:
                data = await loop.sock_recv(self._source, READ_SIZE)
            except OSError:
                self._push(_Mark.RESET)
                return
            if not data:
                self._push(_Mark.END)
                return
            if not self._lane.dropping:
                self._push(data)
            self._lane.count(len(data))

    async def deliver(self) -> None:
        while self._queue or not self._ended:  # a reset may still come after the end
            item = await self._next()
            if item is _Mark.RESET:
                raise ConnectionResetError
            try:
                await self._hand_over(item)
            except OSError:
                self._give_up()
                return

    async def _next(self) -> bytes | _Mark:
        """The head of the queue, once it is there, no longer held, and as late as it should be."""
        while (pause := self._pause()) != 0:
            self._stirred.clear()
            try:
                async with asyncio.timeout(pause):
                    await self._stirred.wait()
            except TimeoutError:
                pass
        return self._queue[0][1]

    def _pause(self) -> float | None:
        """Seconds until the head of the queue is due; None: not before something changes."""
        if not self._queue or self._lane.held:
            return None
        return max(0.0, self._queue[0][0] + self._lane.delay - asyncio.get_running_loop().time())

    async def _hand_over(self, item: bytes | _Mark) -> None:
        if isinstance(item, bytes):
            await asyncio.get_running_loop().sock_sendall(self._sink, item)
            self._kept -= len(item)
            self._room.set()
        else:
            self._sink.shutdown(socket.SHUT_WR)
            self._ended = True
        self._queue.popleft()

    def _give_up(self) -> None:
        """The sink is gone.  The source is to learn it the way it would learn anything else: in order, after faults."""
        if self.back._ended:
            raise ConnectionResetError
        self.back._push(_Mark.RESET)

    def _push(self, item: bytes | _Mark) -> None:
        self._queue.append((asyncio.get_running_loop().time(), item))
        self._kept += len(item) if isinstance(item, bytes) else 0
        self._stirred.set()


@attrs.frozen
class _Target:
    """Where connections lead: as it was named, and resolved."""

    name: str
    family: socket.AddressFamily
    address: tuple[Any, ...]

    @classmethod
    def of(cls, target: tuple[str, int] | str) -> _Target:
        host, port = _split(target) if isinstance(target, str) else target
        family, _, _, _, address = socket.getaddrinfo(host, port, _family(host), socket.SOCK_STREAM)[0]
        return cls(_joined(host, port), family, address)


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit()):
        raise ValueError(f"an address is HOST:PORT, not {address!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _bound(address: tuple[str, int]) -> socket.socket:
    """A non-blocking socket bound to `address`, not yet listening."""
    bound = socket.socket(_family(address[0]), socket.SOCK_STREAM)
    try:
        bound.setblocking(False)
        if os.name == "posix":  # elsewhere this would let others take the port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound


def _set_option(end: socket.socket, level: int, option: int, value: int | bytes) -> None:
    with contextlib.suppress(OSError):  # some systems refuse when the peer has gone already
        end.setsockopt(level, option, value)
