"""A node's TCP side: bytes in, methods called, bytes out.  One loop, no thread; requests are handled as they are read.

Every limit protects the node from one connection, and harms that connection only:

* bad bytes close it, with an error frame first;
* of what it sent at once, `max_in_flight` requests (or some `HIGH_WATER` bytes of replies) are handled before the
  others have their turn;
* while it does not read its replies nothing more is read from it or done for it; after `slow_timeout` it is dropped;
* a frame begun is to be finished within `frame_timeout`; silence longer than `idle_timeout` closes.

A node that was stalled (stopped, swapped out) closes its client connections unread: what waits there was given up long
ago by those who asked, and must not be carried out now.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import attrs

from dcache.errors import ProtocolError
from dcache.node.service import Refusal, Service
from dcache.wire import REQUEST, Code, Decoder, encode_error, encode_notification, reply_head

log = logging.getLogger("dcache.node")

BEAT = 0.5  # seconds between two looks at the clock
HIGH_WATER = 1024 * 1024  # bytes of replies that may wait before a connection counts as a slow reader
SWEEP_SLICE = 2000  # entries looked at per slice of the sweeper: some 2 ms


@attrs.frozen
class ServerLimits:
    """Times in seconds, sizes in bytes."""

    max_connections: int = 1024
    max_in_flight: int = 128
    max_queued: int = 32 * 1024 * 1024
    """Replies and notifications waiting for a slow reader; more drops it at the next notification."""
    slow_timeout: float = 10.0
    frame_timeout: float = 10.0
    idle_timeout: float = 3600.0
    stall: float = 2.0


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, server: Server) -> None:
        self._server, self._service = server, server.service
        self._decoder = Decoder(self._service.limits.max_frame, self._service.limits.max_batch, maps=False)
        self._queued = False  # more has come than was handled in one turn
        self._paused = False  # nothing is read
        self._greeted = False
        self._silent = False  # nothing has come since `finish` was last called
        self._choked_at: float | None = None
        self._heard = self._begun = server.now()
        self.push = False
        self.expects: str | None = None  # the cluster that it came for
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are no instances of it
        if len(self._server.connections) >= self._server.limits.max_connections:
            self.transport.write(encode_error(None, Code.OVERLOADED, "this node has all the connections it may have"))
            self.transport.close()
            return
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        self._server.connections[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.pop(self, None)

    def data_received(self, data: bytes) -> None:
        server, decoder = self._server, self._decoder
        now = server.now()
        if now > server.stalled_at and server.stalled(now):
            return
        self._silent = False
        self._heard = now
        if not decoder.partial:
            self._begun = now
        try:
            decoder.feed(data)
            message = None if self._paused else decoder.next()  # what is paused waits for its turn
            if message is None:
                return
            if decoder.partial or message[0] != REQUEST:
                self._work(message)
                return
            # A request and nothing else, as mostly: it needs none of what keeps many at once in bounds.
            reply = self._handle(message[1], message[2], message[3])
        except ProtocolError as error:
            self._reject(error)
            return
        server.requests += 1
        self.transport.write(reply)

    def pause_writing(self) -> None:
        self._choked_at = self._server.now()
        self._pause()

    def resume_writing(self) -> None:
        self._choked_at = None
        self._begun = self._server.now()  # a frame cannot be finished while nobody reads it
        self._take_turn()

    def notify(self, frame: bytes) -> None:
        """Send a notification, unless too much waits to be sent already."""
        if self.transport.get_write_buffer_size() > self._server.limits.max_queued:
            self.drop("it does not read its replies")
        else:
            self.transport.write(frame)

    def finish(self, at_once: bool) -> None:
        """Close, as soon as all that came is answered: nothing more since the last call, or whatever it is `at_once`.

        To close a socket with bytes unread would reset it, and cost the client replies that are on their way.
        """
        idle = not self._queued and self._choked_at is None
        if (idle and self._silent) or (at_once and not self._queued):
            self.transport.close()
        self._silent = idle

    def _take_turn(self) -> None:
        """Go on with what could not be handled when it came."""
        if not self._server.stalled(self._server.now()):
            self._work()

    def _work(self, message: tuple[Any, ...] | None = None) -> None:
        """Handle what has been read, `message` first, but no more at once than is fair to the others."""
        if self._choked_at is not None or self.transport.is_closing():
            return
        decoder, most = self._decoder, self._server.limits.max_in_flight
        out: list[bytes] = []
        size = handled = 0
        try:
            while size <= HIGH_WATER and handled < most:
                message = message or decoder.next()
                if message is None:
                    break
                handled += 1
                if message[0] == REQUEST:
                    reply = self._handle(message[1], message[2], message[3])
                    out.append(reply)
                    size += len(reply)
                message = None
        except ProtocolError as error:
            self.transport.write(b"".join(out))
            self._reject(error)
            return
        self._queued = decoder.partial and (size > HIGH_WATER or handled == most)
        if out:
            self._begun = max(self._begun, self._heard)  # what follows those frames began later than they did
            self._server.requests += len(out)
            self.transport.write(b"".join(out))
        if self._queued or self._paused:
            self._go_on()

    def _go_on(self) -> None:
        if self._choked_at is not None:
            return
        if self._queued:
            self._pause()
            self._server.loop.call_soon(self._take_turn)
        else:
            self._paused = False
            self.transport.resume_reading()

    def _pause(self) -> None:
        self._paused = True
        self.transport.pause_reading()

    def _handle(self, message_id: int, method: str, params: tuple[Any, ...]) -> bytes:
        if not self._greeted and method != "hello":
            raise ProtocolError("the first request must be hello")
        try:
            reply = self._service.answer(reply_head(message_id), method, params)
        except Refusal as refusal:
            self._server.refusals += 1
            return encode_error(message_id, refusal.code, refusal.detail)
        except Exception:
            log.exception("internal error in %s", method)
            return encode_error(message_id, Code.INTERNAL)
        if method == "hello":
            self._greeted, self.expects, self.push = True, params[1], params[2] is True
        return reply

    def _reject(self, error: ProtocolError) -> None:
        log.warning("closing the connection of %s: %s", self._peer(), str(error))
        self._server.rejected += 1
        self._queued = False
        self.transport.write(encode_error(None, Code.BAD_REQUEST, str(error)))
        self.transport.close()

    def check_time(self, now: float) -> None:
        """Drop the connection if it is too slow in any way."""
        limits = self._server.limits
        if self._choked_at is not None:
            if now - self._choked_at > limits.slow_timeout:
                self.drop("it does not read its replies")
        elif not self._queued and self._decoder.partial and now - self._begun > limits.frame_timeout:
            self.drop("it does not finish the frame it began")
        elif now - self._heard > limits.idle_timeout:
            self.drop("it has been idle for long", level=logging.INFO)

    def drop(self, why: str, level: int = logging.WARNING) -> None:
        log.log(level, "closing the connection of %s: %s", self._peer(), why)
        self.transport.abort()

    def _peer(self) -> object:
        return self.transport.get_extra_info("peername")


class Server:
    """Serves one `Service`.  `now` gives seconds on a clock that never goes back."""

    def __init__(self, service: Service, now: Callable[[], float], limits: ServerLimits = ServerLimits()) -> None:
        self.service, self.now, self.limits = service, now, limits
        self.connections: dict[Connection, None] = {}  # a set in the order of their coming
        self.requests = self.refusals = self.rejected = self.stalls = 0
        self.loop: asyncio.AbstractEventLoop
        self._server: asyncio.Server | None = None
        self._mark_time(now())
        self._beat_timer: asyncio.TimerHandle | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        service.also_report(self._statistics)

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port, which the system chooses where `port` is 0."""
        self.loop = asyncio.get_running_loop()
        self._server = await self.loop.create_server(lambda: Connection(self), host, port, backlog=1024)
        self._mark_time(self.now())
        self._tick()
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    def push(self, method: str, params: tuple[Any, ...]) -> None:
        """Notify every client that asked for it.

        Whoever came for another cluster, before this node was of any, has to go: it would take for its own what it gets
        here.
        """
        cluster_id = self.service.view.cluster_id
        frame = encode_notification(method, params)
        for connection in list(self.connections):
            if connection.expects not in (None, cluster_id):
                connection.drop("it came for another cluster", logging.INFO)
            elif connection.push:
                connection.notify(frame)

    async def stop(self, grace: float) -> None:
        """Stop accepting, answer what has arrived, close; `grace` seconds later abort what is still open.

        Whoever goes on sending is answered for half of that time.
        """
        if self._server is not None:
            self._server.close()
        await asyncio.sleep(0.05)  # what the kernel has received by now is read and answered
        deadline = self.loop.time() + grace
        patience = deadline - grace / 2
        while self.connections and self.loop.time() < deadline:
            for connection in list(self.connections):
                connection.finish(at_once=self.loop.time() > patience)
            await asyncio.sleep(0.02)
        for timer in (self._beat_timer, self._sweep_timer):
            if timer is not None:
                timer.cancel()
        for connection in list(self.connections):
            connection.transport.abort()

    def stalled(self, now: float) -> bool:
        """Whether this process did not run for a while; if so, its clients' connections are closed now."""
        if now <= self.stalled_at:
            return False
        log.warning("stalled for %.1f s: closing all connections unread", now - self._beat)
        self._mark_time(now)
        self.stalls += 1
        for connection in list(self.connections):
            connection.transport.abort()
        return True

    def _mark_time(self, now: float) -> None:
        self._beat, self.stalled_at = now, now + self.limits.stall + BEAT

    def _tick(self) -> None:
        now = self.now()
        self.stalled(now)
        self._mark_time(now)
        for connection in list(self.connections):
            connection.check_time(now)
        self._beat_timer = self.loop.call_later(BEAT, self._tick)
        if self._sweep_timer is None:
            self._sweep()

    def _sweep(self) -> None:
        more = self.service.sweep(SWEEP_SLICE)
        self._sweep_timer = self.loop.call_later(0.005, self._sweep) if more else None

    def _statistics(self) -> dict[str, int]:
        counted = {"requests": self.requests, "refusals": self.refusals, "rejected": self.rejected}
        return {"connections": len(self.connections), "stalls": self.stalls, **counted}
