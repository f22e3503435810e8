"""How long things took: counts in log-linear buckets, of bounded size and error, which can be added up.

As in HdrHistogram (Gil Tene), each power of two is divided into equal parts, here 64 of them.  A bucket is at most 1/64
as wide as what is in it, and stands for its middle, so what is told differs from what was recorded by less than 0.8 %.
The largest value is kept as it was.

The package `hdrhistogram` does the same and is kept well.  It is not used because recording with it takes five times as
long (1.2 microseconds, measured on one machine), in the very loop whose own time must not count; it has no types, and
brings setuptools along to run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Self

PARTS_BITS = 6
PARTS = 1 << PARTS_BITS
"""Parts of each power of two."""

ERROR = 1 / (2 * PARTS)
"""The most by which a value may differ from the middle of its bucket, relative to the value."""

LARGEST = (1 << 44) - 1
"""The largest value that has a bucket of its own kind; as nanoseconds, almost five hours.  Larger ones count as it."""

_EXACT = PARTS_BITS + 1  # values of so many bits have a bucket each
BUCKETS = (LARGEST.bit_length() - _EXACT + 2) * PARTS


def bucket_of(value: int) -> int:
    """The bucket of a value from 0 to LARGEST."""
    shift = value.bit_length() - _EXACT
    return (shift << PARTS_BITS) + (value >> shift) if shift > 0 else value


def bounds(bucket: int) -> tuple[int, int]:
    """The smallest and the largest value of a bucket."""
    shift = max(0, (bucket >> PARTS_BITS) - 1)
    least = (bucket - (shift << PARTS_BITS)) << shift
    return least, least + (1 << shift) - 1


class Histogram:
    """Counts of whole numbers from 0 on, such as nanoseconds.  One thread records; others may look meanwhile."""

    __slots__ = ("counts", "largest", "sum")

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self.largest = 0
        self.sum = 0

    def record(self, value: int) -> None:
        """Count a value; a negative one counts as 0."""
        if value > self.largest:
            self.largest = value
            value = min(value, LARGEST)
        elif value < 0:
            value = 0
        self.sum += value
        shift = value.bit_length() - _EXACT  # as in `bucket_of`, without a call
        self.counts[(shift << PARTS_BITS) + (value >> shift) if shift > 0 else value] += 1

    def add(self, other: Histogram) -> None:
        """Count all that `other` has counted."""
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.largest = max(self.largest, other.largest)
        self.sum += other.sum

    def since(self, before: Histogram) -> Self:
        """What was counted after `before`, which was this one at an earlier time.  The largest is then that of its
        bucket."""
        made = type(self)()
        made.counts = [now - then for now, then in zip(self.counts, before.counts, strict=True)]
        made.sum = self.sum - before.sum
        last = max((bucket for bucket, count in enumerate(made.counts) if count), default=0)
        made.largest = min(self.largest, bounds(last)[1]) if made.count else 0
        return made

    @property
    def count(self) -> int:
        return sum(self.counts)

    @property
    def mean(self) -> float:
        """Of the values as they were; 0 if there are none."""
        count = self.count
        return self.sum / count if count else 0.0

    def quantile(self, share: float) -> float:
        """The smallest value that at least this share, from 0 to 1, of all values do not exceed; 0 if there are none.

        That of rank ceil(share * count), within ERROR.
        """
        return self.quantiles((share,))[share]

    def quantiles(self, shares: tuple[float, ...]) -> Mapping[float, float]:
        """Several of them in one go."""
        count, found, below = self.count, dict.fromkeys(shares, 0.0), 0
        waiting = sorted((max(1, math.ceil(share * count)), share) for share in found) if count else []
        for value, inside in self._filled():
            below += inside
            while waiting and waiting[0][0] <= below:
                rank, share = waiting.pop(0)
                found[share] = float(self.largest) if rank == count else value
        return found

    def distribution(self) -> Iterator[tuple[float, float]]:
        """Pairs of a value and the share of all that do not exceed it, ascending; the last is (largest, 1)."""
        count, below = self.count, 0
        for value, inside in self._filled():
            below += inside
            yield (float(self.largest) if below == count else value), below / count

    def _filled(self) -> Iterator[tuple[float, int]]:
        """The middle and the count of each bucket with something in it."""
        for bucket, inside in enumerate(self.counts):
            if inside:
                least, most = bounds(bucket)
                yield min((least + most) / 2, self.largest), inside
