"""What becomes of measurements: how many operations make a round, medians, quartiles, ratios of rounds.  Nothing here
measures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Spent(NamedTuple):
    """One round of one contestant: so many operations, in so many seconds, and the CPU seconds that they cost.

    `client` is None where what asked cannot tell, `server` where what answered cannot.
    """

    operations: int
    seconds: float
    client: float | None = None
    server: float | None = None

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.operations / self.seconds


class Spread(NamedTuple):
    """The median of some numbers, and the quartiles around it."""

    median: float
    low: float
    high: float


def spread(numbers: Sequence[float]) -> Spread:
    """Quartiles are those of the numbers themselves, taken as all there are; one number is its own quartiles."""
    if len(numbers) == 1:
        return Spread(numbers[0], numbers[0], numbers[0])
    low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return Spread(median, low, high)


def rate(rounds: Sequence[Spent]) -> Spread:
    """Operations per second."""
    return spread([spent.rate for spent in rounds])


def ratio(rounds: Sequence[Spent], reference: Sequence[Spent]) -> Spread:
    """How many times as fast as `reference`: a ratio for each round, so that what slows a whole round cancels out."""
    return spread([mine.rate / other.rate for mine, other in zip(rounds, reference, strict=True)])


def client_cpu(rounds: Sequence[Spent]) -> float | None:
    """CPU microseconds per operation of what asked, over all rounds."""
    return _per_operation(rounds, [spent.client for spent in rounds])


def server_cpu(rounds: Sequence[Spent]) -> float | None:
    """CPU microseconds per operation of what answered, over all rounds."""
    return _per_operation(rounds, [spent.server for spent in rounds])


def _per_operation(rounds: Sequence[Spent], seconds: Sequence[float | None]) -> float | None:
    told = [some for some in seconds if some is not None]
    if len(told) < len(rounds):
        return None
    return sum(told) / sum(spent.operations for spent in rounds) * 1e6


def whole_units(operations: float, unit: int) -> int:
    """So many operations, or more, that each of `unit` threads or tasks has the same number of them, at least one."""
    return max(1, math.ceil(operations / unit)) * unit


def next_trial(spent: Spent, wanted: float, unit: int) -> int | None:
    """How many operations to try next, to find out how many take `wanted` seconds; None if this trial tells.

    A trial tells once it took a fifth of that: a shorter one has too much of what is done only once in it.
    """
    if spent.seconds >= wanted / 5:
        return None
    growth = wanted / 2 / max(spent.seconds, wanted / 1000)
    return whole_units(spent.operations * min(10.0, max(2.0, growth)), unit)


def operations_for(spent: Spent, wanted: float, unit: int) -> int:
    """How many operations take `wanted` seconds, going by a trial."""
    return whole_units(spent.rate * wanted, unit)
