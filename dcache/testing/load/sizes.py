"""How long keys and values are: distributions, each given by its quantiles.

To draw from one, ask for the quantile of a random number (inversion, which is exact).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from itertools import accumulate

import attrs

Sizes = Callable[[float], int]
"""From a number in [0, 1) to a size in bytes, ascending."""


@attrs.frozen
class Fixed:
    """Always the same."""

    size: int

    def __call__(self, share: float) -> int:
        return self.size

    def __str__(self) -> str:
        return f"{self.size} B"


@attrs.frozen
class GeneralizedPareto:
    """`location + scale * ((1 - u) ** -shape - 1) / shape`, up to `largest`."""

    location: float
    scale: float
    shape: float
    largest: int = 1_000_000

    def __call__(self, share: float) -> int:
        size: float = self.location + self.scale * ((1 - share) ** -self.shape - 1) / self.shape
        return min(round(size), self.largest)

    def __str__(self) -> str:
        return f"generalized Pareto ({self.location:.4g}, {self.scale:.4g}, {self.shape:.2g})"


@attrs.frozen
class GeneralizedExtremeValue:
    """`location + scale * ((-log u) ** -shape - 1) / shape`, from `least` to `largest`."""

    location: float
    scale: float
    shape: float
    least: int = 1
    largest: int = 250

    def __call__(self, share: float) -> int:
        if share <= 0:
            return self.least
        size: float = self.location + self.scale * ((-math.log(share)) ** -self.shape - 1) / self.shape
        return min(max(round(size), self.least), self.largest)

    def __str__(self) -> str:
        return f"generalized extreme value ({self.location:.4g}, {self.scale:.4g}, {self.shape:.2g})"


class Table:
    """Some sizes, each with its probability; with what remains, those of another distribution."""

    def __init__(self, probabilities: Mapping[int, float], otherwise: Sizes) -> None:
        self._sizes = sorted(probabilities)
        self._below = list(accumulate(probabilities[size] for size in self._sizes))
        self._otherwise = otherwise

    def __call__(self, share: float) -> int:
        tabled = self._below[-1]
        if share >= tabled:
            return self._otherwise((share - tabled) / (1 - tabled))
        return self._sizes[bisect_right(self._below, share)]

    def __str__(self) -> str:
        return f"{self._sizes[0]} to {self._sizes[-1]} B by table, else {self._otherwise}"
