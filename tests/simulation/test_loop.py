"""asyncio programs run in the simulator as they are."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Iterator
from contextvars import Context, ContextVar
from typing import Any

import pytest

from dcache.testing.sim import Process, Simulation
from tests.simulation.ears import idle, ran


@pytest.fixture
def sim() -> Iterator[Simulation]:
    with Simulation(seed=1) as simulation:
        yield simulation


def test_sleepers_wake_in_the_order_of_their_times(sim: Simulation) -> None:
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append((name, round(sim.now, 3)))

    async def program() -> None:
        await asyncio.gather(sleeper("late", 3600), sleeper("soon", 0.5), sleeper("at once", 0))

    ran(sim.host("h"), program, 4000)
    assert woken == [("at once", 0.0), ("soon", 0.5), ("late", 3600.0)]


def test_a_timeout_cancels_what_takes_longer(sim: Simulation) -> None:
    async def program() -> list[str]:
        said = []
        try:
            async with asyncio.timeout(1.5):
                await asyncio.sleep(10)
        except TimeoutError:
            said.append(f"over at {sim.now:.1f}")
        async with asyncio.timeout(1.5):
            await asyncio.sleep(1)
        said.append(f"done at {sim.now:.1f}")
        return said

    assert ran(sim.host("h"), program) == ["over at 1.5", "done at 2.5"]


def test_a_task_stays_in_its_own_context_though_nothing_is_set_in_it(sim: Simulation) -> None:
    """A context without variables is false; who took that for none would go on in the context of whoever woke it."""
    caller: ContextVar[str] = ContextVar("caller", default="nobody")

    async def program() -> str:
        woken = asyncio.Event()

        async def waits() -> str:
            await woken.wait()
            return caller.get()

        async def wakes() -> None:
            caller.set("who wakes the other")
            woken.set()

        waiting = asyncio.create_task(waits(), context=Context())
        await asyncio.sleep(0)
        await asyncio.create_task(wakes(), context=Context())
        return await waiting

    assert ran(sim.host("h"), program) == "nobody"


def test_a_cancelled_task_cleans_up_and_is_cancelled(sim: Simulation) -> None:
    said: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(1)
            said.append(f"cleaned up at {sim.now:.1f}")

    async def program() -> bool:
        task = asyncio.create_task(work())
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert ran(sim.host("h"), program)
    assert said == ["cleaned up at 1.5"]


def test_events_locks_and_queues_work(sim: Simulation) -> None:
    async def program() -> list[str]:
        said: list[str] = []
        lock, event, queue = asyncio.Lock(), asyncio.Event(), asyncio.Queue[int](1)

        async def worker(name: str) -> None:
            await event.wait()
            async with lock:
                said.append(f"{name} in")
                await asyncio.sleep(1)
                said.append(f"{name} out")
            await queue.put(len(said))

        tasks = [asyncio.create_task(worker(name)) for name in ("a", "b")]
        event.set()
        said.append(str([await queue.get(), await queue.get()]))
        await asyncio.gather(*tasks)
        return said

    assert ran(sim.host("h"), program) == ["a in", "a out", "b in", "b out", "[2, 4]"]


def test_a_task_group_cancels_the_rest_when_one_fails(sim: Simulation) -> None:
    async def fail() -> None:
        await asyncio.sleep(1)
        raise LookupError("nothing there")

    async def program() -> Any:
        tasks: list[asyncio.Task[None]] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks += [group.create_task(fail()), group.create_task(asyncio.sleep(100))]
        except* LookupError:
            pass
        return sim.now, tasks[1].cancelled()

    assert ran(sim.host("h"), program) == (1.0, True)
    assert sim.complaints == []


def test_streams_run_as_they_are(sim: Simulation) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def serve(process: Process) -> None:
        async with await asyncio.start_server(answer, port=80) as server:
            await server.serve_forever()

    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection("server", 80)
        writer.write(b"hello\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    sim.host("server").start(serve)
    assert ran(sim.host("client"), ask) == b"HELLO\n"
    assert sim.complaints == []


def test_port_0_is_any_free_one(sim: Simulation) -> None:
    async def program() -> set[int]:
        loop = asyncio.get_running_loop()
        servers = [await loop.create_server(asyncio.Protocol, port=0) for _ in range(3)]
        return {server.sockets[0].getsockname()[1] for server in servers}

    ports = ran(sim.host("h"), program)
    assert len(ports) == 3
    assert 0 not in ports


def test_a_port_is_taken_until_its_server_is_closed(sim: Simulation) -> None:
    async def program() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(asyncio.Protocol, port=80)
        with pytest.raises(OSError, match="taken"):
            await loop.create_server(asyncio.Protocol, port=80)
        server.close()
        await loop.create_server(asyncio.Protocol, port=80)

    ran(sim.host("h"), program)


@pytest.mark.parametrize(
    "leave",
    [
        lambda loop: asyncio.to_thread(print),
        lambda loop: asyncio.create_subprocess_exec("true"),
        lambda loop: loop.create_connection(asyncio.Protocol, "h", 80, ssl=True),
    ],
    ids=["threads", "subprocesses", "TLS"],
)
def test_what_would_leave_the_simulation_is_refused(sim: Simulation, leave: Any) -> None:
    async def program() -> None:
        with pytest.raises(NotImplementedError):
            await leave(asyncio.get_running_loop())

    ran(sim.host("h"), program)


# -- errors -----------------------------------------------------------------------------------------------------------


def complaints(sim: Simulation) -> list[tuple[str, str]]:
    return [(who, str(error)) for who, error in sim.complaints]


def test_an_error_that_ends_a_program_is_complained_of(sim: Simulation) -> None:
    async def program(process: Process) -> None:
        raise LookupError("nothing there")

    process = sim.host("h").start(program)
    sim.run(1)
    assert complaints(sim) == [("h#1", "nothing there")]
    assert not process.alive


def test_an_error_that_nobody_asks_for_is_complained_of(sim: Simulation) -> None:
    async def fail() -> None:
        raise LookupError("nothing there")

    async def program(process: Process) -> None:
        task = process.loop.create_task(fail())
        await asyncio.sleep(1)
        del task
        await idle(process)

    sim.host("h").start(program)
    sim.run(2)
    gc.collect()
    assert complaints(sim) == [("h#1", "nothing there")]


def test_an_error_in_a_callback_is_complained_of_and_the_process_goes_on(sim: Simulation) -> None:
    async def program() -> str:
        loop = asyncio.get_running_loop()
        cancelled = loop.create_future()
        cancelled.cancel()
        loop.call_soon(int, "x")
        loop.call_soon(cancelled.result)
        await asyncio.sleep(1)
        return "still there"

    assert ran(sim.host("h"), program) == "still there"
    assert [type(error) for _, error in sim.complaints] == [ValueError, asyncio.CancelledError]


def test_an_interruption_ends_the_simulation(sim: Simulation) -> None:
    """Ctrl-C is for who simulates, not for a simulated program."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    async def program(process: Process) -> None:
        process.loop.call_soon(interrupt)
        await idle(process)

    sim.host("h").start(program)
    with pytest.raises(KeyboardInterrupt):
        sim.run(1)


def test_a_signal_has_its_handler_called_or_ends_the_process(sim: Simulation) -> None:
    told: list[str] = []

    async def program(process: Process) -> None:
        process.loop.add_signal_handler(signal.SIGTERM, told.append, "terminate")
        await idle(process)

    host = sim.host("h")
    host.start(program)
    sim.run(1)
    host.signal(signal.SIGTERM)
    sim.run(1)
    assert told == ["terminate"]
    assert host.running
    host.signal(signal.SIGINT)
    assert not host.running
