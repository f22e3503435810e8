"""When to race a node that takes long, and how many extra calls that may cost.

A call is raced once it has taken longer than 95 of 100 answers of its node did.  That percentile is estimated without
keeping the answers: each one that took longer raises the estimate by a small part, each other one lowers it by a
nineteenth of that, so it rests where one in twenty takes longer.  All that counts is whether an answer took longer; so
one that nobody waits for any more counts too, if it had taken longer by then.

Every call that may be raced earns a twentieth of an extra call, so there are never more than 5 % of them: where
everything is slow, calling twice as much would make it slower.

Sources: Herbert Robbins and Sutton Monro, "A Stochastic Approximation Method" (1951); Jeffrey Dean and Luiz André
Barroso, "The Tail at Scale" (2013).
"""

from __future__ import annotations

import math

import attrs

from dcache.ops.context import Counters

QUANTILE = 0.95
STEP = 0.05
"""The part of itself by which the estimate could change, were the quantile all or nothing."""

WARM_UP = 20
"""Answers of a node that are needed before its calls are raced."""

FLOOR = 0.002
"""Seconds that every node gets."""

SHARE = 0.05
"""Extra calls per call."""

MOST_SAVED = 100.0
"""Extra calls that a calm time leaves for a bad one."""


@attrs.define
class Estimate:
    """Of the time that one node takes, in seconds.  `patience` is how long a call may take before it is raced; inf
    while too little is known of the node."""

    first: list[float]
    seconds: float = math.inf
    patience: float = math.inf

    def add(self, seconds: float) -> None:
        """An answer took so long."""
        if self.seconds == math.inf:
            self.first.append(seconds)
            if len(self.first) >= WARM_UP:
                self.seconds = sorted(self.first)[math.ceil(QUANTILE * WARM_UP) - 1]
        elif seconds > self.seconds:
            self.seconds *= 1.0 + STEP * QUANTILE
        else:
            self.seconds *= 1.0 - STEP * (1.0 - QUANTILE)
        self.patience = max(FLOOR, self.seconds)


class Hedging:
    """The usual time of each node, by name, in seconds, and the extra calls that were earned and made.

    Shared between threads without a lock: what is lost in between is an answer not counted or an extra call not earned.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._estimates: dict[str, Estimate] = {}
        self.owed: dict[str, float] = {}
        """Since when a node owes an answer that was not waited for."""
        self._earned = 0.0

    def of(self, node: str) -> Estimate:
        estimate = self._estimates.get(node)
        if estimate is None:
            estimate = self._estimates[node] = Estimate([])
        return estimate

    def patience(self, node: str) -> float:
        """How long a call to `node` may take before it is raced."""
        return self.of(node).patience

    def called(self, calls: int = 1) -> None:
        """So many calls were made that may be raced."""
        if self._earned - self._counters.hedges < MOST_SAVED:
            self._earned += SHARE * calls

    def left(self) -> float:
        """How many extra calls may be made."""
        return self._earned - self._counters.hedges

    def take(self) -> bool:
        """Whether one more extra call may be made, which is then counted."""
        if self._earned - self._counters.hedges < 1.0:
            return False
        self._counters.hedges += 1
        return True

    def took(self, node: str, seconds: float) -> None:
        """An answer of `node` took so long."""
        self.of(node).add(seconds)

    def unanswered(self, node: str, since: float, now: float) -> None:
        """What `node` was asked at `since` is waited for no longer."""
        if now - since > self.patience(node):
            self.took(node, now - since)
        self.owed.setdefault(node, since)

    def answered(self, node: str) -> None:
        if self.owed:
            self.owed.pop(node, None)

    def overdue(self, node: str, patience: float, now: float) -> bool:
        """Whether `node` has answered nothing since an answer became due `patience` ago; says so once."""
        if now - self.owed.get(node, now) <= patience:
            return False
        self.owed.pop(node, None)
        return True
