"""Contestants: clients at one job, with all that they need opened, filled and checked before the clock runs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from itertools import cycle, islice
from typing import Any

import attrs

from tests.benchmarks.side_by_side.clients import Calls, Rival
from tests.benchmarks.side_by_side.figures import Spent
from tests.benchmarks.side_by_side.race import Contestant, Job, Missing, reason
from tests.benchmarks.side_by_side.servers import Servers, cpu_seconds

MiB = 1 << 20
Arguments = Sequence[tuple[Any, ...]]
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


@attrs.frozen
class Data:
    """Keys, the one value they all have, and how many make a batch."""

    keys: Sequence[str] | Sequence[bytes]
    value: bytes
    batch: int

    @classmethod
    def of(cls, tag: str, size: int, binary: bool = False) -> Data:
        """1,000 keys of 100 bytes, 200 of 10 KiB, 16 of 1 MiB; `tag`, two letters, sets clients of one server apart,
        for not all can read what another stored."""
        count = 1000 if size < 1024 else 200 if size < MiB else 16
        keys = [f"{tag}:key:{number:04}" for number in range(count)]
        value = (bytes(range(256)) * (size // 256 + 1))[:size]
        return cls([key.encode() for key in keys] if binary else keys, value, min(100, count // 2))

    def arguments(self, kind: str) -> Arguments:
        """What a call of this kind is given, again and again."""
        if kind == "get":
            return [(key,) for key in self.keys]
        if kind == "set":
            return [(key, self.value) for key in self.keys]
        batches = [list(self.keys[first : first + self.batch]) for first in range(0, len(self.keys), self.batch)]
        if kind == "get_many":
            return [(batch,) for batch in batches]
        return [(dict.fromkeys(batch, self.value),) for batch in batches]


def check(found: Any, value: bytes) -> None:
    if found != value:
        raise Missing(f"it reads {found!r:.40} where {value!r:.40} was set")


def contestants(
    job: Job, rivals: Iterable[Rival], servers: Servers, prepare: Callable[[Rival, Data], Contestant]
) -> tuple[list[Contestant], dict[str, str]]:
    """Those that are ready to run, and why the others are not."""
    ready, skipped = [], {}
    for number, rival in enumerate(rivals):
        if job.kind not in rival.only:
            continue
        data = Data.of(f"k{chr(ord('a') + number)}", job.size, rival.binary)
        try:
            servers.pids(rival.server)
            if why := rival.missing():
                raise Missing(why)
            ready.append(prepare(rival, data))
        except Exception as error:  # noqa: BLE001  # whatever is wrong with it, the others go on
            skipped[rival.name] = reason(error)
    return ready, skipped


# -- threads ----------------------------------------------------------------------------------------------------------


def with_threads(job: Job, servers: Servers, crew: ThreadPoolExecutor) -> Callable[[Rival, Data], Contestant]:
    """`crew` has as many threads as any job wants."""

    def prepare(rival: Rival, data: Data) -> Contestant:
        with ExitStack() as stack:
            opened = [stack.enter_context(rival.opened(servers)) for _ in range(1 if rival.shared else job.workers)]
            fill(opened[0], data)
            run = threaded([getattr(calls, job.kind) for calls in opened], job.workers, data.arguments(job.kind), crew)
            return Contestant(rival.name, with_cpu(run, servers.pids(rival.server)), stack.pop_all().close, job.workers)

    return prepare


def fill(calls: Calls, data: Data) -> None:
    """Sets first, then gets: a get right behind a set that is not answered can wait 40 ms for Nagle's algorithm."""
    for key in data.keys:
        calls.set(key, data.value)
    for key in data.keys:
        check(calls.get(key), data.value)


def threaded(
    calls: Sequence[Callable[..., Any]], workers: int, arguments: Arguments, crew: ThreadPoolExecutor
) -> Callable[[int], float]:
    """What does n calls and tells the seconds; one worker works in the thread that asks."""

    def work(call: Callable[..., Any], todo: Iterator[tuple[Any, ...]]) -> None:
        for given in todo:
            call(*given)

    def alone(count: int) -> float:
        todo = islice(cycle(arguments), count)
        start = time.perf_counter()
        work(calls[0], todo)
        return time.perf_counter() - start

    def together(count: int) -> float:
        gate = threading.Barrier(workers + 1)

        def one(number: int) -> None:
            first = number * len(arguments) // workers
            todo = islice(cycle(arguments), first, first + count // workers)
            gate.wait()
            work(calls[number % len(calls)], todo)

        done = [crew.submit(one, number) for number in range(workers)]
        gate.wait()
        start = time.perf_counter()
        for future in done:
            future.result()
        return time.perf_counter() - start

    return alone if workers == 1 else together


def with_cpu(run: Callable[[int], float], pids: Sequence[int]) -> Callable[[int], Spent]:
    """The same, with the CPU seconds of this process and of those."""

    def measured(count: int) -> Spent:
        server, client = cpu_seconds(pids), time.process_time()
        seconds = run(count)
        client, after = time.process_time() - client, cpu_seconds(pids)
        return Spent(count, seconds, client, None if server is None or after is None else after - server)

    return measured


# -- tasks ------------------------------------------------------------------------------------------------------------


def with_tasks(job: Job, servers: Servers, loop_factory: LoopFactory | None) -> Callable[[Rival, Data], Contestant]:
    """Each client has an event loop of its own, which stands still while it is not its turn."""

    def prepare(rival: Rival, data: Data) -> Contestant:
        with ExitStack() as stack:
            runner = stack.enter_context(asyncio.Runner(loop_factory=loop_factory))
            held = runner.run(Held.open(rival, servers))
            stack.callback(lambda: runner.run(held.close()))
            runner.run(fill_async(held.calls, data))
            call, arguments = getattr(held.calls, job.kind), data.arguments(job.kind)

            def run(count: int) -> float:
                return runner.run(tasks(call, arguments, job.workers, count))

            return Contestant(rival.name, with_cpu(run, servers.pids(rival.server)), stack.pop_all().close, job.workers)

    return prepare


class Held:
    """A client that one task opens and will close, as some clients ask for, while others use it."""

    def __init__(self, calls: Calls, stop: asyncio.Event, holder: asyncio.Task[None]) -> None:
        self.calls, self._stop, self._holder = calls, stop, holder

    @classmethod
    async def open(cls, rival: Rival, servers: Servers) -> Held:
        stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()

        async def hold() -> None:
            async with AsyncExitStack() as stack:
                ready.set_result(await stack.enter_async_context(rival.opened(servers)))
                await stop.wait()

        holder = asyncio.create_task(hold())
        await asyncio.wait((ready, holder), return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await holder  # which raises
        return cls(ready.result(), stop, holder)

    async def close(self) -> None:
        self._stop.set()
        await self._holder


async def fill_async(calls: Calls, data: Data) -> None:
    for key in data.keys:
        await calls.set(key, data.value)
    for key in data.keys:
        check(await calls.get(key), data.value)


async def tasks(call: Callable[..., Any], arguments: Arguments, workers: int, count: int) -> float:
    todo = islice(cycle(arguments), count)

    async def work() -> None:
        for given in todo:
            await call(*given)

    async with asyncio.TaskGroup() as group:
        start = time.perf_counter()
        for _ in range(workers):
            group.create_task(work())
    return time.perf_counter() - start
