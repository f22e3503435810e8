"""What came of a load: how long operations took by kind, hits and misses, errors; as a whole and second by second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import attrs

from dcache.testing.load.histogram import Histogram

FILL = "fill"
"""The kind of what stores a key that was missing.  It belongs to the read that missed it, and is no operation."""

KINDS = ("read", "write", "insert", "update", FILL)


class Tally:
    """What one thread, or all tasks of a loop, have done.  Times are in nanoseconds.

    `hits` and `misses` are of keys, of which a batch has several; so is `stored`.  `errors` are counted by the name of
    the exception; how long the operation took counts all the same.
    """

    def __init__(self) -> None:
        self.latencies = {kind: Histogram() for kind in KINDS}
        self.hits = self.misses = self.stored = 0
        self.errors: Counter[str] = Counter()

    def add(self, other: Tally) -> None:
        for kind, histogram in other.latencies.items():
            self.latencies[kind].add(histogram)
        self.hits += other.hits
        self.misses += other.misses
        self.stored += other.stored
        self.errors += other.errors

    def operations(self) -> Histogram:
        """Of all kinds together."""
        return _sum(histogram for kind, histogram in self.latencies.items() if kind != FILL)


def total(tallies: Iterable[Tally]) -> Tally:
    made = Tally()
    for tally in tallies:
        made.add(tally)
    return made


def _sum(histograms: Iterable[Histogram]) -> Histogram:
    made = Histogram()
    for histogram in histograms:
        made.add(histogram)
    return made


def hit_rate(hits: int, misses: int) -> float | None:
    """None where nothing was read."""
    return hits / (hits + misses) if hits + misses else None


@attrs.frozen
class Interval:
    """What was done in about a second that ended so many seconds after the start; times in nanoseconds."""

    end: float
    seconds: float
    operations: int
    hit_rate: float | None
    p50: float
    p99: float
    errors: int

    @property
    def throughput(self) -> float:
        return self.operations / self.seconds


class Timeline:
    """The intervals of a run, each made by looking at all tallies; what is looked at while others count may be behind
    by a few operations, which are then in the next interval."""

    def __init__(self, tallies: Sequence[Tally], clock: Callable[[], int]) -> None:
        self.intervals: list[Interval] = []
        self._tallies, self._clock = tallies, clock
        self._start = self._last = clock()
        self._before, self._counted = Histogram(), (0, 0, 0)

    def look(self) -> Interval | None:
        """What was done since the last look; None if no time has passed."""
        now = self._clock()
        if now <= self._last:
            return None
        latencies = _sum(tally.operations() for tally in self._tallies)
        counted = (
            sum(tally.hits for tally in self._tallies),
            sum(tally.misses for tally in self._tallies),
            sum(tally.errors.total() for tally in self._tallies),
        )
        hits, misses, errors = (now - then for now, then in zip(counted, self._counted, strict=True))
        new = latencies.since(self._before)
        quantiles = new.quantiles((0.5, 0.99))
        seconds = (now - self._last) / 1e9
        made = Interval(
            *((now - self._start) / 1e9, seconds, new.count, hit_rate(hits, misses)),
            *(quantiles[0.5], quantiles[0.99], errors),
        )
        self._last, self._before, self._counted = now, latencies, counted
        self.intervals.append(made)
        return made
