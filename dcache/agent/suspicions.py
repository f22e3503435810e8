"""What one member makes of who answered it when: whom to probe next, and who is down.  Decisions only.

Three counted misses in a row make a member down.  The rules of counting:

* Who misses an answer asks up to three others when they last heard one.  They put the silent member on their watch
  list, as the asker does: it is probed every interval from then on.  So those who reach it will know by the next probe
  but one, and a link that is broken between two never makes three misses.
* A miss does not count, and what was counted before is void, if one of them heard an answer since the last probe but
  two of this streak, or its first, began.
* Those that miss answers themselves are not asked.  If nobody answers that was asked, it may well be the asker who is
  cut off: the miss weighs a quarter.
* Misses belong to an incarnation: what is known of an earlier one says nothing of the next.

All times are milliseconds that never go back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import attrs

from dcache.membership import Member

T = TypeVar("T")

MISSES = 3
ALONE = 0.25
"""What a miss weighs that nobody answers questions about, though there are others."""

HELPERS = 3
REMINDERS = 3.0
"""How often each member that is down is probed in an interval, by all together."""

WATCH = 3
"""Probes for which a member is watched after somebody asked about it."""

MOST_WATCHED = 8
"""Probes of watched members in one interval."""


@attrs.define
class Streak:
    """Probes in a row that one incarnation of a member did not answer; `begun` are the times of the latest."""

    incarnation: int
    misses: float = 0.0
    begun: deque[int] = attrs.field(factory=lambda: deque(maxlen=3))


class Suspicions:
    """`random` gives floats in [0, 1)."""

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._round: list[str] = []  # whom to probe next, the last first
        self._watched: dict[str, int] = {}  # for how many more probes
        self._streaks: dict[str, Streak] = {}
        self._heard: dict[str, int] = {}

    # -- whom to probe ------------------------------------------------------------------------------------------------

    def due(self, up: Sequence[str], down: Sequence[str], count: int) -> list[str]:
        """Whom of the others to probe now: the next `count` of the round, who is watched, perhaps some that are down.

        A round is over when all that are up had their turn; the next one has another order.
        """
        self._forget_all_but(up, down)
        share = REMINDERS / (len(up) + len(down) + 1)
        chosen = [*self._next(up, count), *self._watch(), *(name for name in down if self._random() < share)]
        return list(dict.fromkeys(chosen))

    def _next(self, up: Sequence[str], count: int) -> list[str]:
        chosen: list[str] = []
        while len(chosen) < min(count, len(up)):
            if not self._round:
                self._round = self._shuffled(up)
            name = self._round.pop()
            if name in up and name not in chosen:
                chosen.append(name)
        return chosen

    def _watch(self) -> list[str]:
        chosen = list(dict.fromkeys((*self._streaks, *self._watched)))[:MOST_WATCHED]
        left = {name: probes - (name in chosen) for name, probes in self._watched.items()}
        self._watched = {name: probes for name, probes in left.items() if probes}
        return chosen

    def watch(self, name: str) -> None:
        """Somebody asked about this member."""
        self._watched[name] = WATCH

    def _forget_all_but(self, up: Sequence[str], down: Sequence[str]) -> None:
        _keep(self._streaks, up)
        _keep(self._watched, up)
        _keep(self._heard, (*up, *down))

    def _shuffled(self, names: Sequence[str]) -> list[str]:
        return sorted(names, key=lambda _: self._random())

    # -- who answered -------------------------------------------------------------------------------------------------

    def answered(self, name: str, now: int) -> None:
        self._heard[name] = now
        self._streaks.pop(name, None)

    def age(self, name: str, now: int) -> int | None:
        """How long ago `name` last answered, None for never."""
        heard = self._heard.get(name)
        return None if heard is None else now - heard

    # -- who did not --------------------------------------------------------------------------------------------------

    def missed(self, row: Member, begun: int) -> int:
        """A probe that began at `begun` was not answered.  Returns since when an answer to another makes up for it."""
        streak = self._streaks.get(row.name)
        if streak is None or streak.incarnation != row.incarnation:
            streak = self._streaks[row.name] = Streak(row.incarnation)
        streak.begun.append(begun)
        return streak.begun[0]

    def helpers(self, up: Sequence[str]) -> list[str]:
        """Whom to ask about those that miss."""
        return self._shuffled([name for name in up if name not in self._streaks])[:HELPERS]

    def is_down(self, name: str, *, vouched: bool, weight: float) -> bool:
        """Count the last miss of `name`, now that others were asked about it; whether that makes it down."""
        streak = self._streaks[name]
        streak.misses = 0.0 if vouched else streak.misses + weight
        return streak.misses >= MISSES


def _keep(entries: dict[str, T], names: Sequence[str]) -> None:
    """Only those of `names`."""
    if entries:
        wanted = set(names)
        for name in [name for name in entries if name not in wanted]:
            del entries[name]
