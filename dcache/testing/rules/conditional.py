"""Conditional changes: they are decided on what is there, and made at most once, under any clocks.

Forgetting is allowed: any number of `add` may succeed, one after the other or at once, and none needs to.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator

from dcache.testing.history import CONDITIONAL, WRITES, Call, Op, Outcome, Violation
from dcache.testing.rules.story import Soonest, Story


def decided_once(story: Story) -> Iterator[Violation]:
    """Of all `cas` that expect one version at most one succeeds: a version that was replaced does not come back."""
    winners: dict[bytes, Call] = {}
    for call in story.done(Op.CAS):
        if call.expected is not None:
            first = winners.setdefault(call.expected, call)
            if first is not call:
                yield Violation("a version that was replaced twice", story.key, (first, call))


def made_once(story: Story) -> Iterator[Violation]:
    """The value of a conditional change, or of a fill, has one version, as the change is never made again.

    A `touch` gives a value another one, so keys with any are left out.
    """
    if story.touches():
        return
    told: defaultdict[str | None, list[Call]] = defaultdict(list)
    for call in (*story.done(*CONDITIONAL), *story.reads):
        write = story.writes.get(call.value)
        if call.version is not None and write is not None and write.op in CONDITIONAL | {Op.FILL}:
            told[call.value].append(call)
    for value, calls in told.items():
        other = next((call for call in calls if call.version != calls[0].version), None)
        if other is not None:
            proof = dict.fromkeys((story.writes[value], calls[0], other))
            yield Violation("a change that was made twice", story.key, tuple(proof))


def present(story: Story) -> Iterator[Violation]:
    """A `replace`, `touch` or `cas` succeeds only where something is there: written, and not deleted since.

    So another write began before the change ended, and was not over when the last delete before the change began.
    """
    tried = (Outcome.OK, Outcome.DOUBT)
    writes = [call for call in story.calls if call.op in WRITES | {Op.INCR} and call.outcome in tried]
    begins, ends = sorted(call.earliest for call in writes), sorted(call.latest for call in writes)
    deletes = Soonest(story.done(Op.DELETE), at=lambda call: -call.end, by=lambda call: -call.start)
    for change in story.done(Op.REPLACE, Op.TOUCH, Op.CAS):
        delete = deletes.since(1 - change.start)
        over = 0 if delete is None else bisect_left(ends, delete.start)
        others = bisect_right(begins, change.end) - over - (change.op in WRITES)
        if others <= 0:
            proof = [change] if delete is None else [delete, change]
            yield Violation("a change of something that was not there", story.key, tuple(proof))
