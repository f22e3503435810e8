"""Programs for simulated machines that do nothing but talk, and note what they hear."""

from __future__ import annotations

import asyncio
from typing import Any

from dcache.testing.sim.simulation import Host, Process, Simulation

PORT = 7


class Ear(asyncio.Protocol):
    """One end of a connection: what befell it, and when in virtual seconds."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.line: asyncio.Transport | None = None
        self.heard: list[tuple[float, bytes]] = []
        self.lost: list[Exception | None] = []
        self.told: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.line = transport

    def data_received(self, data: bytes) -> None:
        self.heard.append((self.sim.now, data))

    def connection_lost(self, exc: Exception | None) -> None:
        assert self.line is not None, "lost before it was made"
        self.lost.append(exc)

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    @property
    def text(self) -> bytes:
        return b"".join(data for _, data in self.heard)

    @property
    def broken(self) -> bool:
        return [type(error) for error in self.lost] == [ConnectionResetError]


class Echo(Ear):
    """Says what it hears."""

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        assert self.line is not None
        self.line.write(data)


class Talk:
    """A server and a client; `served` are the server's ends of their connections, in the order they were made."""

    def __init__(self, sim: Simulation, ear: type[Ear] = Ear) -> None:
        self.sim, self.ear = sim, ear
        self.served: list[Ear] = []
        self.server, self.client = sim.host("server"), sim.host("client")
        self.server.start(self.serve)
        self.client.start(idle)

    async def serve(self, process: Process) -> None:
        await process.loop.create_server(self._answered, None, PORT)
        await idle(process)

    def _answered(self) -> Ear:
        self.served.append(self.ear(self.sim))
        return self.served[-1]

    def dial(self, port: int = PORT, to: str = "server") -> asyncio.Task[Any]:
        """Begin to connect."""
        assert self.client.process is not None
        process = self.client.process
        return process.spawn(process.loop.create_connection(lambda: Ear(self.sim), to, port))

    def connect(self, within: float = 1.0) -> Ear:
        task = self.dial()
        assert self.sim.run_until(task.done, within), "not connected"
        ear = task.result()[1]
        assert isinstance(ear, Ear)
        return ear


async def idle(process: Process) -> None:
    await process.loop.create_future()


def say(ear: Ear, data: bytes) -> None:
    assert ear.line is not None
    ear.line.write(data)


def ran(host: Host, program: Any, seconds: float = 10.0) -> Any:
    """What a program without arguments returned, or raises what it raised."""
    process = host.start(lambda process: program())
    assert host.simulation.run_until(lambda: process.done, seconds), "it does not end"
    return process.result()
