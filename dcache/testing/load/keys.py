"""Which key is asked for next, and what it is called.

A chooser gives the *rank* of a key, 0 for the one that is asked for most, from a random number: by inversion of the
distribution's table, which is exact for any skew (the table is 32 bytes per key and shared by all callers).  `Keys`
makes of a rank the number of a key, so that keys of neighbouring ranks are far from each other, and of that its name.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from itertools import count as counting

from dcache.testing.load.sizes import Sizes

Chooser = Callable[[float], int]
"""From a number in [0, 1) to a rank."""

KNOWN = 1_000_000
"""Of so many ranks, the hottest, the keys are kept: making a name would take longer than choosing it."""

GOLDEN = (math.sqrt(5) - 1) / 2


class Uniform:
    """Every key as often as any other."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, share: float) -> int:
        return int(share * self.count)


class Zipf:
    """The key of rank r, from 0, in proportion to `1 / (r + 1) ** skew`."""

    def __init__(self, count: int, skew: float) -> None:
        self._below = list(accumulate(rank**-skew for rank in range(1, count + 1)))
        self._total = self._below[-1]
        self._below[-1] = math.inf  # rounding may give the total itself, which is of the last rank

    def __call__(self, share: float) -> int:
        return bisect_right(self._below, share * self._total)


def stride(count: int) -> int:
    """A step through `count` places that comes to each of them once, and far from where it was the time before: about
    the golden section of them (Knuth, The Art of Computer Programming 3, 6.4: Fibonacci hashing)."""
    made = max(1, round(count * GOLDEN))
    while math.gcd(made, count) != 1:
        made += 1
    return made


class Keys:
    """The keys of a run: `count` of them that are there from the start, numbered from 0, and those that are inserted.

    A name is the number in decimal, with zeros in front to the size that the key has: the same each time, because it
    is drawn by the number.  Keys that are asked for only once have names that begin with an `x`.
    """

    def __init__(self, count: int, sizes: Sizes) -> None:
        self.count = count
        self.newest = count - 1
        self._stride = stride(count)
        self._sizes = [sizes((part + 0.5) / 1024) for part in range(1024)]
        self._numbers, self._once = counting(count), counting()
        self._ranked = [self._scattered(rank) for rank in range(min(count, KNOWN))]

    def scattered(self, rank: int) -> str:
        """The key of a rank."""
        return self._ranked[rank] if rank < KNOWN else self._scattered(rank)

    def _scattered(self, rank: int) -> str:
        return self.name(rank * self._stride % self.count)

    def latest(self, rank: int) -> str:
        """The key that was inserted as the newest but so many."""
        return self.name(self.newest - rank)

    def name(self, number: int) -> str:
        return str(number).zfill(self._sizes[number * 633 & 1023])  # 633: the golden section of 1024

    def new(self) -> int:
        """The number of a key to insert."""
        return next(self._numbers)

    def inserted(self, number: int) -> None:
        """The key of this number is there now."""
        self.newest = max(self.newest, number)  # of two threads at once one may not be noticed: the next one is

    def once(self) -> str:
        """A key that is not there and will not be asked for again."""
        number = next(self._once)
        return "x" + str(number).zfill(self._sizes[number * 633 & 1023] - 1)
