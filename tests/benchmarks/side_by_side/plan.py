"""Which jobs there are, and how one is run from beginning to end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.benchmarks.side_by_side import alone, clients, clients_async, floors
from tests.benchmarks.side_by_side.clients import KINDS, Rival
from tests.benchmarks.side_by_side.race import Contestant, Job, Pace, Race, race, reason
from tests.benchmarks.side_by_side.servers import Servers
from tests.benchmarks.side_by_side.targets import GET, GET_MANY
from tests.benchmarks.side_by_side.work import LoopFactory, MiB, contestants, with_tasks, with_threads

SIZES = (100, 10 << 10, MiB)
THREADS = (1, 8)
TASKS = (1, 50, 500)
CONNECTIONS = (1, 10, 50, 200)
REFERENCES = {"threads": "redis-py", "asyncio": "redis.asyncio", "uvloop": "redis.asyncio", "node": "memcached"}


def all_jobs() -> list[Job]:
    threads = [Job("threads", kind, size, n) for size in SIZES for kind in KINDS for n in THREADS]
    tasks = [
        Job(loop, kind, size, n)
        for size in SIZES
        for kind in KINDS
        for n in TASKS
        for loop in ("asyncio", "uvloop")
        if in_flight(kind, size, n) <= 64 * MiB
    ]
    return [*threads, *tasks, *(Job("node", "get", 100, n) for n in CONNECTIONS)]


def in_flight(kind: str, size: int, tasks: int) -> int:
    """Bytes of the values that are under way at once: more than 64 MiB is a test of memory, not of clients."""
    return size * tasks * (1 if kind in ("get", "set") else 8 if size >= MiB else 100)


class Plan:
    """Runs jobs against these servers with all clients whose name has one of `wanted` in it."""

    def __init__(self, servers: Servers, pace: Pace, wanted: Sequence[str] = ()) -> None:
        self._servers, self._pace, self._wanted = servers, pace, wanted

    def run(self, job: Job) -> Race:
        with ThreadPoolExecutor(max(THREADS)) as crew:
            ready, skipped = self._contestants(job, crew)
            return race(job, ready, skipped, self._pace, REFERENCES[job.front])

    def _contestants(self, job: Job, crew: ThreadPoolExecutor) -> tuple[list[Contestant], dict[str, str]]:
        if job.front == "node":
            return alone.under_load(job, self._servers)
        if job.front == "threads":
            ready, skipped = contestants(
                job, self._chosen(clients.RIVALS), self._servers, with_threads(job, self._servers, crew)
            )
            self._add_floors(job, ready, skipped)
            return ready, skipped
        try:
            loop_factory = loop_of(job.front)
        except ImportError as error:
            return [], {job.front: reason(error)}
        prepare = with_tasks(job, self._servers, loop_factory)
        return contestants(job, self._chosen(clients_async.RIVALS), self._servers, prepare)

    def _add_floors(self, job: Job, ready: list[Contestant], skipped: dict[str, str]) -> None:
        made = {GET: floors.of_get, GET_MANY: floors.of_batch}.get(job)
        for name, make in made(self._servers).items() if made else ():
            try:
                ready.append(make())
            except Exception as error:  # noqa: BLE001  # it is said, and the others go on
                skipped[name] = reason(error)

    def _chosen(self, rivals: Sequence[Rival]) -> list[Rival]:
        return [rival for rival in rivals if not self._wanted or any(part in rival.name for part in self._wanted)]


def loop_of(front: str) -> LoopFactory | None:
    if front == "asyncio":
        return asyncio.SelectorEventLoop
    import uvloop

    factory: LoopFactory = uvloop.new_event_loop
    return factory
