"""The network between simulated hosts: connections that behave like TCP, over paths that can be made to misbehave.

A path leads from one host to another, one way.  What is written to a connection arrives in order or not at all; on
different connections it may overtake.  A lost packet is sent again, so that loss is delay.  On a path that is cut
nothing gets through, and what was written meanwhile arrives some time after it is healed, even if the writer has given
up by then; a path that is held lets go of everything at once.  A process that is killed has its connections reset; one
whose host lost its power answers nothing until the host is up again, which then resets what it does not know.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, cast

import attrs

from dcache.testing.sim.loop import Event

if TYPE_CHECKING:
    from dcache.testing.sim.simulation import Host, Process, Simulation

KERNEL_BUFFER = 64 * 1024
"""Bytes on their way that a writer does not see as waiting."""

RESEND_MS = 200
"""After which a lost packet is sent again; each time after twice as long."""

SYN, ACCEPTED, REFUSED, DATA, FIN, RESET = "syn", "accepted", "refused", "data", "fin", "reset"
Packet = tuple[str, bytes]


@attrs.define(eq=False)
class Path:
    """How packets travel from one host to another.  `delay` is the least and the most, in ms; `loss` a chance."""

    delay: tuple[float, float] = (0.1, 1.0)
    loss: float = 0.0
    cut_at: int | None = None
    held: bool = False
    waiting: dict[End, None] = attrs.field(factory=dict, repr=False)


class End(asyncio.Transport):
    """One end of a connection, as the transport of the process that has it."""

    def __init__(self, network: Network, process: Process | None, here: Host, there: Host, name: str) -> None:
        super().__init__()
        self.network, self.process, self.here, self.there, self.name = network, process, here, there, name
        self.peer: End | None = None
        self.protocol: Any = None
        self.connected: asyncio.Future[None] | None = None
        self.out: deque[Packet] = deque()  # what a blocked path keeps back
        self.last_arrival = 0
        self.in_flight = 0
        self._high = KERNEL_BUFFER
        self._open = self._choked = self._closing = self._lost = self._deaf = False
        self._unread: list[Packet] = []

    # -- what the process does with it --------------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        if self._closing or not data:
            return
        self.in_flight += len(data)
        self.network.send(self, (DATA, bytes(data)))
        if not self._choked and self.get_write_buffer_size() > self._high:
            self._choked = True
            self.protocol.pause_writing()

    def close(self) -> None:
        self._end(FIN, None)

    def abort(self) -> None:
        self._end(RESET, None)

    def _end(self, how: str, error: Exception | None) -> None:
        if not self._closing:
            self._closing = True
            self.network.send(self, (how, b""))
            self._call_soon(self._lose, error)

    def _lose(self, error: Exception | None) -> None:
        if not self._lost and self.process is not None:
            self._closing = self._lost = True
            self.process.ends.pop(self, None)
            if self._open:
                self.protocol.connection_lost(error)
            elif self.connected is not None and not self.connected.done():
                self.connected.set_exception(error or ConnectionAbortedError("the connection was given up"))

    def open(self) -> None:
        """Tell the protocol that it is connected."""
        self._open = True
        self.protocol.connection_made(self)

    def is_closing(self) -> bool:
        return self._closing

    def can_write_eof(self) -> bool:
        return False  # both directions of a connection end together here

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self.there.name, 0) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = KERNEL_BUFFER if high is None else high

    def get_write_buffer_size(self) -> int:
        return max(0, self.in_flight - KERNEL_BUFFER)

    def pause_reading(self) -> None:
        self._deaf = True

    def resume_reading(self) -> None:
        self._deaf = False
        unread, self._unread = self._unread, []
        for packet in unread:
            self._call_soon(self.receive, packet)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast("asyncio.BaseProtocol", self.protocol)

    def drop(self) -> None:
        """Its process has ended: what was written still goes out, and then the end of it."""
        if not self._closing:
            self._closing = self._lost = True
            self.network.send(self, (RESET, b""))

    def _call_soon(self, callback: Callable[..., object], *args: Any) -> None:
        if self.process is not None:
            self.process.loop.call_soon(callback, *args)

    # -- what the network does with it --------------------------------------------------------------------------------

    def receive(self, packet: Packet) -> None:
        """A packet has come to the process."""
        kind, data = packet
        if self._deaf and kind in (DATA, FIN):
            self._unread.append(packet)
        elif self._closing:
            if kind in (DATA, ACCEPTED) and self._lost:
                self.network.send(self, (RESET, b""))
        elif kind is DATA:
            self._taken(len(data))
            self.protocol.data_received(data)
        elif kind is FIN:
            if not self.protocol.eof_received():
                self.close()
        elif kind is RESET:
            self._lose(ConnectionResetError("the connection was reset"))
        else:
            self._answered(kind)

    def _taken(self, size: int) -> None:
        sender = self.peer
        if sender is not None:
            sender.in_flight -= size
            if sender._choked and sender.in_flight <= KERNEL_BUFFER:
                sender._choked = False
                sender._call_soon(sender.protocol.resume_writing)

    def _answered(self, kind: str) -> None:
        """To the attempt to connect."""
        assert self.connected is not None
        if kind is REFUSED:
            self._closing = self._lost = True
            if not self.connected.done():
                self.connected.set_exception(ConnectionRefusedError(f"{self.there.name} refused the connection"))
        elif self.connected.done():
            self.abort()
        else:
            self.connected.set_result(None)
            self.open()


class Network:
    """All paths and connections.  `default` is how packets travel where no path was asked for.

    `messages` and `bytes` count what was sent by processes.
    """

    def __init__(self, simulation: Simulation, random: Random) -> None:
        self.simulation, self._random = simulation, random
        self.default = Path()
        self.messages = self.bytes = 0
        self._paths: dict[tuple[str, str], Path] = {}
        self._opened = 0

    # -- the paths ----------------------------------------------------------------------------------------------------

    def path(self, here: str, there: str) -> Path:
        """The path from one host to another, by name, to be changed."""
        path = self._paths.get((here, there))
        if path is None:
            path = self._paths[here, there] = Path(self.default.delay, self.default.loss)
        return path

    def cut(self, here: str, there: str) -> None:
        """Let nothing through, one way."""
        path = self.path(here, there)
        if path.cut_at is None:
            path.cut_at = self.simulation.now_us

    def hold(self, here: str, there: str) -> None:
        """Keep everything back, one way."""
        self.path(here, there).held = True

    def heal(self, here: str, there: str) -> None:
        """End a cut and a hold.  What was sent into a cut is sent again when the sender's timer next strikes, which has
        backed off for up to as long as the cut lasted."""
        path = self.path(here, there)
        cut_for = 0 if path.cut_at is None else self.simulation.now_us - path.cut_at
        path.cut_at, path.held = None, False
        waiting, path.waiting = path.waiting, {}
        for end in waiting:
            resend = int(self._random.random() * min(cut_for, 5_000_000))
            packets, end.out = end.out, deque()
            for packet in packets:
                self._travel(path, end, packet, resend)

    def heal_all(self) -> None:
        for here, there in self._paths:
            self.heal(here, there)

    def calm(self) -> None:
        """End all that is wrong with any path: cuts, holds, losses and delays of its own."""
        self.heal_all()
        self.default.loss = 0.0
        for path in self._paths.values():
            path.loss, path.delay = 0.0, self.default.delay

    def reset(self, one: str, other: str) -> None:
        """Break all connections between two hosts."""
        for here, there in ((one, other), (other, one)):
            process = self.simulation.hosts[here].process
            for end in [] if process is None else list(process.ends):
                if end.there.name == there:
                    end._call_soon(end._lose, ConnectionResetError("the connection broke"))

    # -- packets ------------------------------------------------------------------------------------------------------

    def send(self, end: End, packet: Packet) -> None:
        self.messages += 1
        self.bytes += len(packet[1])
        path = self._paths.get((end.here.name, end.there.name), self.default)
        if path.held or path.cut_at is not None:
            path.waiting[end] = None
            end.out.append(packet)
        else:
            self._travel(path, end, packet)

    def _travel(self, path: Path, end: End, packet: Packet, extra: int = 0) -> None:
        random = self._random.random
        least, most = path.delay
        delay, again = int((least + (most - least) * random()) * 1000) + extra, RESEND_MS * 1000
        while path.loss and random() < path.loss:
            delay += again
            again *= 2
        arrival = max(self.simulation.now_us + delay, end.last_arrival)
        end.last_arrival = arrival
        self.simulation.later(arrival, self._arrive, end, packet)

    def _arrive(self, sender: End, packet: Packet) -> None:
        """At the kernel of the other host."""
        host = sender.there
        if host.off:
            return
        kind, data = packet
        self.simulation.mark(f"{sender.name} {kind}", data)
        if kind is SYN:
            self._accept(sender, host, int.from_bytes(data, "big"))
            return
        end = sender.peer
        if end is not None and end.process is not None and end.process.alive:
            self.simulation.happen(Event(end.process, end.receive, (packet,)))
        elif kind in (DATA, ACCEPTED):
            self._bounce(sender)

    def _bounce(self, sender: End) -> None:
        """The host knows of no such connection any more, and says so."""
        stranger = End(self, None, sender.there, sender.here, f"{sender.name} back")
        stranger.peer = sender
        self.send(stranger, (RESET, b""))

    async def connect(
        self, process: Process, host: str, port: int, factory: Callable[[], asyncio.BaseProtocol]
    ) -> tuple[End, asyncio.BaseProtocol]:
        there = self.simulation.hosts.get(host)
        if there is None:
            raise OSError(f"no host is called {host}")
        self._opened += 1
        end = End(self, process, process.host, there, f"{process.host.name}>{host}:{port} {self._opened}")
        end.connected = process.loop.create_future()
        end.protocol = factory()
        process.ends[end] = None
        self.send(end, (SYN, port.to_bytes(2, "big")))
        try:
            await end.connected
        except BaseException:
            end._closing = end._lost = True  # if it is accepted after all, it will be reset
            process.ends.pop(end, None)
            raise
        return end, end.protocol

    def _accept(self, client: End, host: Host, port: int) -> None:
        """A kernel does so on its own, also for a process that is stopped."""
        listener = host.listeners.get(port)
        end = End(self, None if listener is None else listener.process, host, client.here, f"{client.name} back")
        end.peer = client
        if listener is None:
            self.send(end, (REFUSED, b""))
        else:
            client.peer = end
            listener.process.ends[end] = None
            self.send(end, (ACCEPTED, b""))
            self.simulation.happen(Event(listener.process, _made, (end, listener.factory)))


def _made(end: End, factory: Callable[[], asyncio.BaseProtocol]) -> None:
    end.protocol = factory()
    end.open()
