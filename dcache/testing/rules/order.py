"""Whether one order of all writes explains what was read.

It is that of a register which may forget: there is one order of all writes of a key such that

* a write stands between the begin and the end of its call, or anywhere after its begin if it is in doubt;
* a read returns the write that is newest at some instant of its call, or misses.  A miss says nothing.

Take each value with all calls that wrote or returned it as one *group*.  If a call of group A ended before a call of
group B began, A's write is the older one.  So two groups contradict each other if each has a call that ended before
one of the other began.  That such pairs are all that can be wrong (there are no longer circles) is the theorem of
Gibbons and Korach, "Testing shared memories", 1997; a test compares it with trying all orders.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import attrs

from dcache.testing.history import NEVER, WRITES, Call, Op, Outcome, Violation
from dcache.testing.rules.story import Story


@attrs.define(eq=False)
class Group:
    """All calls that wrote or returned one value.  Its *zone* is the time between its first end and its last begin."""

    calls: list[Call] = attrs.Factory(list)
    first_end: int = NEVER
    last_start: int = 0

    def add(self, call: Call) -> None:
        """A write in doubt counts as never ended: it may be made at any time."""
        self.calls.append(call)
        self.first_end = min(self.first_end, call.latest)
        self.last_start = max(self.last_start, call.earliest)

    @property
    def lasts(self) -> bool:
        """Whether the value was certainly there from the first end to the last begin; else somewhere between them."""
        return self.first_end < self.last_start


def group(calls: Iterable[Call]) -> Group:
    made = Group()
    for call in calls:
        made.add(call)
    return made


def order(story: Story) -> Iterator[Violation]:
    """No two values each of which would have to be older than the other.

    It holds where every write is made once: in linearizable mode, and in strict mode if all clocks agree.  A strict
    writer whose clock is behind may make a write twice, and others see its value, another one, and its value again.
    """
    for one, other in contradictions(_groups(story)):
        yield Violation("an older value after a newer one", story.key, proof(one, other))


def _groups(story: Story) -> list[Group]:
    """Acknowledged changes and what was read; a change in doubt that nobody read need not have been made."""
    groups: defaultdict[object, Group] = defaultdict(Group)
    reads = [read for read in story.reads if read.value in story.writes]
    seen = {read.value for read in reads}
    for read in reads:
        groups[read.value].add(read)
    for call in story.calls:
        if call.op is Op.DELETE and call.outcome is Outcome.OK:
            groups[call].add(call)
        elif call.op in WRITES and (call.outcome is Outcome.OK or call.value in seen):
            groups[call.value].add(call)
    return list(groups.values())


def contradictions(groups: Iterable[Group]) -> Iterator[tuple[Group, Group]]:
    """Groups each of which has a call that ended before one of the other began; for each group at most one other.

    One of the two lasts, and its zone either overlaps that of another that lasts or contains all of one that does not.
    So it is enough to go through them as their zones begin and to keep the one that was returned, or written, last.
    """
    longest: Group | None = None  # one that does not last is over before the next zone begins: no need to leave it out
    for one in sorted(groups, key=_zone):
        if longest is not None and one.first_end < longest.last_start:
            yield longest, one
        if longest is None or one.last_start > longest.last_start:
            longest = one


def _zone(group: Group) -> tuple[int, bool]:
    """When the zone begins; at the same instant those that do not last come first, as they are not contained."""
    return min(group.first_end, group.last_start), group.lasts


def proof(one: Group, other: Group) -> tuple[Call, ...]:
    """The four calls that show it, each once, as they began."""
    edges = {
        id(call): call
        for group in (one, other)
        for call in (min(group.calls, key=lambda call: call.latest), max(group.calls, key=lambda call: call.earliest))
    }
    return tuple(sorted(edges.values(), key=lambda call: call.start))
