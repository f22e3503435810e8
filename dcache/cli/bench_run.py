"""One run of `dcache bench`: prepare the keys, warm up, measure, and look at the nodes before and after."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import attrs

from dcache.client.aio import AsyncClient
from dcache.client.session import Configuration
from dcache.client.sync import Client
from dcache.errors import DcacheError
from dcache.testing.load.caller import Caller, Load
from dcache.testing.load.keys import Keys
from dcache.testing.load.run import Tasks, Threads, async_calls_of, calls_of, idle_tasks, idle_threads, play
from dcache.testing.load.schedule import Schedule
from dcache.testing.load.tally import Interval, Tally, Timeline, total
from dcache.testing.load.workload import Workload

NAMESPACE = "dcache-bench"
SETTINGS = Configuration(namespace=NAMESPACE)
CLOCK = time.perf_counter_ns
CLEAR_WITHIN = 10.0  # seconds

Look = Callable[[Interval], None]


@attrs.frozen(kw_only=True)
class Plan:
    """What is to be run.  `callers` are threads or, with `tasks`, tasks; times in seconds, `rate` per second."""

    workload: Workload
    preset: str | None = None
    callers: int = 8
    tasks: bool = False
    uvloop: bool = False
    pipeline: int = 1
    batch: int = 1
    rate: float | None = None
    seconds: float | None = 10.0
    operations: int | None = None
    warm_up: float = 1.0
    preload: bool = True
    seed: int = 0
    settings: Configuration = SETTINGS

    def schedule(self, seconds: float | None, operations: int | None) -> Schedule:
        limits: dict[str, Any] = {"seconds": seconds, "operations": operations, "rate": self.rate}
        return Schedule(CLOCK, self.callers, width=self.pipeline, **limits)


@attrs.frozen(kw_only=True)
class Preloaded:
    """What was stored before the run: how many keys of how many, how long it took, what went wrong."""

    keys: int
    stored: int
    seconds: float
    errors: Mapping[str, int]


@attrs.frozen(kw_only=True)
class Outcome:
    """What came of a run.  `behind` are operations that should have begun and did not; `processor` and `overhead` are
    seconds of processor time, of this process in all, and of the callers for one operation without the operation."""

    plan: Plan
    replicas: int
    preloaded: Preloaded | None
    tally: Tally
    timeline: Sequence[Interval]
    seconds: float
    behind: int
    interrupted: bool
    processor: float
    overhead: float
    before: Mapping[str, Any]
    after: Mapping[str, Any]


class Crew(Protocol):
    """Those who run callers."""

    def run(self, callers: Sequence[Caller], schedule: Schedule, look: Callable[[], object]) -> None: ...


class ThreadCrew:
    def __init__(self, client: Client) -> None:
        self._calls = calls_of(client)

    def run(self, callers: Sequence[Caller], schedule: Schedule, look: Callable[[], object]) -> None:
        Threads(callers, self._calls, schedule).run(look)


class TaskCrew:
    """In one event loop for as long as it lives, for the client's connections belong to the loop."""

    def __init__(self, runner: asyncio.Runner, client: AsyncClient, pipeline: int) -> None:
        self._runner, self._calls, self._pipeline = runner, async_calls_of(client), pipeline

    def run(self, callers: Sequence[Caller], schedule: Schedule, look: Callable[[], object]) -> None:
        groups = [callers[first : first + self._pipeline] for first in range(0, len(callers), self._pipeline)]
        self._runner.run(Tasks(groups, self._calls, schedule).run(look))


@contextmanager
def crew(plan: Plan, client: Client, nodes: Sequence[str]) -> Iterator[Crew]:
    """Those who run the callers of a plan, and their connections."""
    if not plan.tasks:
        yield ThreadCrew(client)
        return
    with asyncio.Runner(loop_factory=_uvloop() if plan.uvloop else None) as runner:
        tasks_client = AsyncClient(nodes, **_settings(plan))
        try:
            yield TaskCrew(runner, tasks_client, plan.pipeline)
        finally:
            runner.run(tasks_client.close())


def _uvloop() -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop

    made: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return made


def _settings(plan: Plan) -> dict[str, Any]:
    """Enough connections for every thread to have one to each node."""
    made = attrs.evolve(plan.settings, max_connections=max(plan.settings.max_connections, plan.callers))
    return attrs.asdict(made, recurse=False)


def _stats(client: Client) -> Mapping[str, Any]:
    """What the nodes tell of themselves; nothing where no node is left."""
    try:
        nodes: Mapping[str, Any] = client.stats()["nodes"]
    except DcacheError:
        return {}
    return nodes


class Bench:
    """A plan and the cluster that it is run on."""

    def __init__(self, plan: Plan, nodes: Sequence[str]) -> None:
        self.plan, self._nodes = plan, nodes
        self._load = Load.of(plan.workload, plan.batch, plan.seed, CLOCK)

    def run(self, ready_within: float, advance: Callable[[int], None], look: Look) -> Outcome:
        """`advance` is told how many keys are stored, `look` what was done in every second.

        Raises what the client raises if there is no cluster; what happens later is counted.
        """
        with Client(self._nodes, **_settings(self.plan)) as client:
            client.wait_ready(ready_within)
            try:
                self._clear(client)
                preloaded = self._preload(client, advance) if self.plan.preload else None
                with crew(self.plan, client, self._nodes) as workers:
                    overhead = self._overhead()
                    if self.plan.warm_up:
                        self._warm_up(workers)
                    return self._measured(client, workers, preloaded, overhead, look)
            finally:
                with suppress(DcacheError):  # if they are gone, so are the keys
                    self._clear(client)

    def _measured(
        self, client: Client, workers: Crew, preloaded: Preloaded | None, overhead: float, look: Look
    ) -> Outcome:
        before, processor, begun = _stats(client), time.process_time(), CLOCK()
        schedule = self.plan.schedule(self.plan.seconds, self.plan.operations)
        tally, timeline = self._round(workers, schedule, look)
        seconds, processor = (CLOCK() - begun) / 1e9, time.process_time() - processor
        table = client.session.topology.table
        return Outcome(
            plan=self.plan,
            replicas=0 if table is None else table.settings.replicas,
            preloaded=preloaded,
            tally=tally,
            timeline=timeline,
            seconds=seconds,
            behind=schedule.behind,
            interrupted=schedule.stopped,
            processor=processor,
            overhead=overhead,
            before=before,
            after=_stats(client),
        )

    def _warm_up(self, workers: Crew) -> None:
        schedule = self.plan.schedule(self.plan.warm_up, None)
        self._round(workers, schedule, lambda interval: None)
        if schedule.stopped:  # nothing was measured that could be told
            raise KeyboardInterrupt

    def _round(self, workers: Crew, schedule: Schedule, look: Look) -> tuple[Tally, Sequence[Interval]]:
        """All callers until the schedule ends."""
        tallies = [Tally()] if self.plan.tasks else [Tally() for _ in range(self.plan.callers)]
        count = self.plan.callers * self.plan.pipeline
        callers = [self._caller(number, tallies[number % len(tallies)]) for number in range(count)]
        timeline = Timeline(tallies, CLOCK)

        def told() -> None:
            interval = timeline.look()
            if interval is not None:
                look(interval)

        workers.run(callers, schedule, told)
        timeline.look()
        return total(tallies), timeline.intervals

    def _caller(self, number: int, tally: Tally) -> Caller:
        return Caller(self._load, tally, random.Random((self.plan.seed << 32) + number))

    def _preload(self, client: Client, advance: Callable[[int], None]) -> Preloaded:
        """Store every key once, in batches of some hundred kilobytes."""
        tally, begun = Tally(), CLOCK()
        caller, calls, count = self._caller(-1, tally), calls_of(client), self.plan.workload.keys
        step = min(100, max(1, (1 << 19) // max(1, self.plan.workload.value_sizes(0.5))))
        for first in range(0, count, step):
            play(caller.preload(range(first, min(first + step, count))), calls)
            advance(min(first + step, count))
        seconds = (CLOCK() - begun) / 1e9
        return Preloaded(keys=count, stored=tally.stored, seconds=seconds, errors=tally.errors)

    def _overhead(self) -> float:
        """What is inserted for this is inserted nowhere, so it has keys of its own."""
        workload = self.plan.workload
        load = attrs.evolve(self._load, keys=Keys(workload.keys, workload.key_sizes))
        caller, idle = (
            Caller(load, Tally(), random.Random(self.plan.seed)),
            idle_tasks if self.plan.tasks else idle_threads,
        )
        return min(idle(caller) for _ in range(3))

    def _clear(self, client: Client) -> None:
        """Leave nothing behind, nor start with what another run has left; a namespace that was named is left alone."""
        if self.plan.settings.namespace == NAMESPACE:
            client.with_options(timeout=max(CLEAR_WITHIN, self.plan.settings.timeout)).clear()
