"""The figures that are to be held: what was measured, what must be reached, what is aimed at."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import attrs

from tests.benchmarks import ring
from tests.benchmarks.side_by_side.alone import NODE
from tests.benchmarks.side_by_side.floors import C_ECHO
from tests.benchmarks.side_by_side.race import Job, Race, reason
from tests.benchmarks.side_by_side.servers import MEMCACHED, ONE, ROOT, THREE

GET = Job("threads", "get", 100, 1)
GET_ASYNC = Job("uvloop", "get", 100, 50)
GET_MANY = Job("threads", "get_many", 100, 1)
ALONE = Job("node", "get", 100, 50)
JOBS = (GET, GET_ASYNC, GET_MANY, ALONE)
"""The races that the targets are about."""

REDIS_PY, PYMEMCACHE = "redis-py", "pymemcache"
ASYNC_RIVALS = ("aiomcache", "emcache", "redis.asyncio", "coredis", "valkey-glide")
IMPORT = "import time; start = time.perf_counter(); import dcache; print(time.perf_counter() - start)"


@attrs.frozen
class Target:
    """What is wanted of `work`: a multiple of what `against` does, or at most so many of a `unit`.

    `must` or `aim` may be None: then there is only the other.
    """

    work: str
    against: str
    must: float | None
    aim: float | None = None
    unit: str = ""

    def reached(self, measured: float, wanted: float | None) -> bool:
        if wanted is None:
            return False
        return measured <= wanted if self.unit else measured >= wanted

    def verdict(self, measured: float) -> str:
        if self.reached(measured, self.aim):
            return "aim met"
        if self.must is None:
            return "aim not met"
        return "met" if self.reached(measured, self.must) else "NOT MET"

    def number(self, number: float | None) -> str:
        if number is None:
            return "-"
        return f"{number:,.3g} {self.unit}" if self.unit else f"{number:.2f} x"


@attrs.frozen
class Outcome:
    """A target and what was measured; without a measurement, why there is none."""

    target: Target
    measured: float | None = None
    quartiles: tuple[float, float] | None = None
    against: str = ""  # who it was, where that turns out only in the end
    why: str = ""

    def row(self) -> list[str]:
        target = self.target
        around = "" if self.quartiles is None else f" ({self.quartiles[0]:.2f}-{self.quartiles[1]:.2f})"
        verdict = f"not measured: {self.why}" if self.measured is None else target.verdict(self.measured)
        wanted = [target.number(target.must), target.number(target.aim)]
        against = f"{target.against}: {self.against}" if self.against else target.against
        return [target.work, against, f"{target.number(self.measured)}{around}", *wanted, verdict]


HEADER = ("work", "against", "measured (quartiles)", "must", "aim", "")
FASTEST = "the fastest"
RATIOS: tuple[tuple[Job, str, str, Target], ...] = (
    (GET, ONE, REDIS_PY, Target("Client.get, one thread", "redis-py with hiredis", 1.15)),
    (GET, ONE, C_ECHO, Target("Client.get, one thread", "C echo", 0.65, 0.8)),
    (GET, ONE, PYMEMCACHE, Target("Client.get, one thread", "pymemcache", None, 1.0)),
    (GET, THREE, REDIS_PY, Target("Client.get, R=3, Q=2", "redis-py reading one copy", 0.9, 1.1)),
    (GET_ASYNC, ONE, FASTEST, Target("AsyncClient.get, 50 tasks, uvloop", "the fastest asyncio client", 2.5, 5.0)),
    (GET_MANY, ONE, PYMEMCACHE, Target("get_many of 100, values decoded", "pymemcache", 1.5)),
    (GET_MANY, ONE, REDIS_PY, Target("get_many of 100, values decoded", "redis-py mget", 0.8, 1.0)),
    (ALONE, NODE, MEMCACHED, Target("node, 50 connections, one request each", "one memcached thread", 0.6, 0.8)),
)
"""The job, who of it is compared with whom, and what is wanted."""

MEMORY = Target("memory, per entry at 100-byte values", "", 400, 300, unit="bytes")
LOOKUP = Target("HashRing.lookup, 10 nodes of 150 points", "", 1.0, unit="µs")
IMPORTED = Target("import of dcache", "", 100, unit="ms")


def outcomes(races: Sequence[Race]) -> list[Outcome]:
    """All targets, by what these races say; what no race says is measured here, in some 20 seconds."""
    by_job = {race.job: race for race in races}
    compared = [_compared(by_job.get(job), mine, other, target) for job, mine, other, target in RATIOS]
    return [*compared, *_by_themselves()]


def _compared(race: Race | None, mine: str, other: str, target: Target) -> Outcome:
    if race is None:
        return Outcome(target, why="not run")
    rival = fastest(race) if other == FASTEST else other
    for name in (mine, rival):
        if name not in race.rounds:
            return Outcome(target, why=f"{name or 'every other'} did not take part")
    ratio = race.ratio(mine, rival)
    return Outcome(target, ratio.median, (ratio.low, ratio.high), rival if other == FASTEST else "")


def fastest(race: Race) -> str:
    """Of the asyncio clients that are compared with, "" if none took part."""
    there = [name for name in ASYNC_RIVALS if name in race.rounds]
    return max(there, key=lambda name: race.rate(name).median, default="")


def _by_themselves() -> Iterator[Outcome]:
    measures: tuple[tuple[Target, Callable[[], float]], ...] = (
        (MEMORY, bytes_per_entry),
        (LOOKUP, lookup_us),
        (IMPORTED, import_ms),
    )
    for target, measure in measures:
        try:
            yield Outcome(target, measure())
        except Exception as error:  # noqa: BLE001  # it is said, and the others are measured
            yield Outcome(target, why=reason(error))


def bytes_per_entry() -> float:
    from tests.benchmarks.memory import bytes_per_entry as measured

    return measured()


def lookup_us() -> float:
    """Of a ring that has been used for a while."""
    rng = random.Random(1)
    keys = [rng.randbytes(16) for _ in range(ring.KEYS)]
    return ring.warm_lookup(ring.build(ring.NODES * 150), keys) * 1e6


def import_ms(times: int = 15) -> float:
    """The median of new processes, after one that compiles what is not compiled yet."""

    def once() -> float:
        done = subprocess.run([sys.executable, "-c", IMPORT], cwd=ROOT, check=True, capture_output=True)
        return float(done.stdout) * 1000

    once()
    return statistics.median(once() for _ in range(times))
