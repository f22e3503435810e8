"""Interleaved rounds: in every round each contestant has its turn, in an order that is drawn anew.

A machine that gets slower or faster meanwhile does so for all alike, and a ratio within a round does not see it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import attrs

from tests.benchmarks.side_by_side.figures import Spent, Spread, next_trial, operations_for, rate, ratio, whole_units


@attrs.frozen
class Job:
    """One kind of work: the operation, on values of `size` bytes, by `workers` threads, tasks or connections.

    `front` is what works: threads, tasks of one of two event loops, or the load generator on one node.
    """

    front: str
    kind: str
    size: int
    workers: int

    def __str__(self) -> str:
        noun, loop = _WORKERS.get(self.front, ("task", f" of {self.front}"))
        plural = "" if self.workers == 1 else "s"
        return f"{self.kind}, {bytes_named(self.size)}, {self.workers} {noun}{plural}{loop}"


_WORKERS = {"threads": ("thread", ""), "node": ("connection", "")}


def bytes_named(size: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


@attrs.frozen
class Contestant:
    """`run(n)` does n operations, n a multiple of `unit`; `close` lets go of all it holds."""

    name: str
    run: Callable[[int], Spent]
    close: Callable[[], object] = lambda: None
    unit: int = 1


@attrs.frozen
class Race:
    """What came of a job: the rounds of each contestant, and why others did not take part."""

    job: Job
    rounds: dict[str, list[Spent]]
    skipped: dict[str, str]
    reference: str | None = None

    def rate(self, name: str) -> Spread:
        return rate(self.rounds[name])

    def ratio(self, name: str, to: str) -> Spread:
        return ratio(self.rounds[name], self.rounds[to])


STALLED = 10
"""How many times its share of a round a contestant may take before it is given less to do: there are clients that come
to wait for a timer with every batch, and everybody else would wait for them."""


@attrs.frozen
class Pace:
    """How many rounds, how many seconds a contestant has in each, and what draws their order."""

    rounds: int
    seconds: float
    rng: random.Random


def race(job: Job, contestants: Iterable[Contestant], skipped: dict[str, str], pace: Pace, reference: str) -> Race:
    """Let them run; who fails is taken out, with the reason.  The reference is the first there is if `reference` is
    not."""
    counts: dict[str, int] = {}
    running = {contestant.name: contestant for contestant in contestants}
    rounds: dict[str, list[Spent]] = {name: [] for name in running}
    skipped = dict(skipped)

    def attempt(name: str, turn: Callable[[Contestant], None]) -> None:
        try:
            turn(running[name])
        except Exception as error:  # noqa: BLE001  # whatever it is, the others go on
            skipped[name] = reason(error)
            rounds.pop(name)
            let_go(running.pop(name))

    def calibrate(contestant: Contestant) -> None:
        counts[contestant.name] = calibrated(contestant, pace.seconds)

    def turn(contestant: Contestant) -> None:
        spent = contestant.run(counts[contestant.name])
        rounds[contestant.name].append(spent)
        if spent.seconds > STALLED * pace.seconds:
            counts[contestant.name] = operations_for(spent, pace.seconds, contestant.unit)

    for name in list(running):
        attempt(name, calibrate)
    for _ in range(pace.rounds):
        for name in shuffled(list(running), pace.rng):
            attempt(name, turn)
    for contestant in running.values():
        let_go(contestant)
    return Race(job, rounds, skipped, reference if reference in rounds else next(iter(rounds), None))


def let_go(contestant: Contestant) -> None:
    with suppress(Exception):  # it has nothing more to give, and must not keep others from running
        contestant.close()


def calibrated(contestant: Contestant, seconds: float) -> int:
    """How many operations take it so many seconds; finding out warms it up."""
    count: int | None = whole_units(1, contestant.unit)
    while True:
        assert count is not None
        spent = contestant.run(count)
        count = next_trial(spent, seconds, contestant.unit)
        if count is None:
            return operations_for(spent, seconds, contestant.unit)


def shuffled(names: Sequence[str], rng: random.Random) -> list[str]:
    return rng.sample(names, len(names))


class Missing(Exception):
    """Something is not there; the message says what."""


def reason(error: BaseException) -> str:
    """One line of why something does not take part."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, Missing):
        return str(error)
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:160] if first else type(error).__name__
