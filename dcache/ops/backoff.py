"""Which nodes to leave alone for a while.

Two degrees.  A node that *failed* (refused, broke off, answered nothing before the deadline) is left alone for a
short time that doubles with each further failure; when it is over one caller probes, and all others keep away until
the probe has come back.  Where no caller needs the node then, it is asked on the side (`due`).  A node that was merely
*slow* is asked last, but is asked: were slowness enough to be left alone, one busy moment would take a whole cluster
away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs


@attrs.define
class _Trouble:
    failures: int
    until: float
    reason: str
    probing: bool = False


class Backoff:
    """The trouble of each node, by name.  `first` and `most` are seconds; a wait is 0.5 to 1 times its nominal length.

    `now` is seconds on any steady clock; `random` gives floats in [0, 1).  Shared between threads without a lock: every
    step is a single dictionary operation, and that two callers may happen to probe at once does no harm.
    """

    def __init__(self, random: Callable[[], float], *, first: float = 0.1, most: float = 5.0) -> None:
        self._random, self._first, self._most = random, first, most
        self.failures: dict[str, _Trouble] = {}
        """Of the nodes that have failed and not answered since; to be looked at only."""
        self.slowed: dict[str, float] = {}
        """Until when each node that was slow is taken to be so; to be looked at only."""

    def reset(self) -> None:
        """Forget everything: after a fork."""
        self.failures, self.slowed = {}, {}

    def allows(self, node: str, now: float) -> str | None:
        """None if `node` may be called, else why not.  The first to ask after the wait is the one who probes."""
        if not self.failures:
            return None
        trouble = self.failures.get(node)
        if trouble is None:
            return None
        if now < trouble.until:
            return f"left alone after: {trouble.reason}"
        trouble.until = now + self._wait(trouble.failures)
        trouble.probing = True
        return None

    def failed(self, node: str, reason: str, now: float) -> None:
        before = self.failures.get(node)
        failures = 1 if before is None else before.failures + 1
        self.failures[node] = _Trouble(failures, now + self._wait(failures), reason)

    def resting(self, node: str, now: float) -> bool:
        """Whether `node` is being left alone by all, also by a probe: what fails now was called before it failed."""
        trouble = self.failures.get(node)
        return trouble is not None and now < trouble.until and not trouble.probing

    def undisturbed(self, now: float) -> bool:
        """Whether no node is in trouble of any degree: so as long as neither `failures` nor `slowed` has any."""
        if self.slowed:
            self.slowed = {node: until for node, until in list(self.slowed.items()) if now < until}
        return not self.failures and not self.slowed

    def due(self, now: float) -> list[str]:
        """The nodes that have been left alone for long enough."""
        return [node for node, trouble in list(self.failures.items()) if now >= trouble.until]

    def probed(self) -> list[str]:
        """The nodes with a probe under way."""
        return [node for node, trouble in list(self.failures.items()) if trouble.probing]

    def failing(self, node: str) -> bool:
        """Whether `node` has failed and not answered since."""
        return node in self.failures

    def slow(self, node: str, now: float) -> None:
        self.slowed[node] = now + self._first + self._random() * self._most

    def answered(self, node: str) -> None:
        """`node` is well again."""
        if self.failures:
            self.failures.pop(node, None)

    def rank(self, nodes: Sequence[str], now: float) -> Sequence[str]:
        """`nodes` in the same order, those in trouble last."""
        if not self.failures and not self.slowed:
            return nodes
        return sorted(nodes, key=lambda node: self.trouble(node, now))

    def trouble(self, node: str, now: float) -> int:
        """0 none, 1 slow or about to be probed, 2 left alone."""
        trouble = self.failures.get(node)
        if trouble is not None:
            return 2 if now < trouble.until else 1
        return 1 if now < self.slowed.get(node, now) else 0

    def _wait(self, failures: int) -> float:
        nominal = min(self._most, self._first * 2.0 ** min(failures - 1, 20))
        return nominal * (0.5 + 0.5 * self._random())
