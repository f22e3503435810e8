"""Request collapsing: of any number of callers of one client that want one key, one computes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from dcache.testing.history import CHANGES, Call, Op, Outcome, Violation
from dcache.testing.rules.story import Soonest, Story, end_of, start_of

DETACHING = CHANGES | {Op.INCR}
"""After a client made one of these, or tried to, its callers no longer join a computation that is under way."""


def computed_once(story: Story) -> Iterator[Violation]:
    """No two computations of a key run at the same time in one client; in every mode.

    Two may if the client itself changed the key after the first was asked for, or if the first was cancelled, which it
    need not notice at once.  Computations that ask for their own key, or are made by `refresh`, do not belong into a
    history.
    """
    computations: defaultdict[str, list[Call]] = defaultdict(list)
    changes: defaultdict[str, list[Call]] = defaultdict(list)
    for call in story.calls:
        if call.op is Op.FILL:
            computations[call.client].append(call)
        elif call.op in DETACHING:
            changes[call.client].append(call)
    for client, made in computations.items():
        yield from _overlaps(story.key, made, Soonest(changes[client], at=end_of, by=start_of))


def detached(story: Story) -> Iterator[Violation]:
    """Nobody gets what its own client computed from before that client changed the key: a change lets go of what is
    being computed, and keeps it from being stored."""
    changes: defaultdict[str, list[Call]] = defaultdict(list)
    for call in story.changes():
        changes[call.client].append(call)
    for load in story.calls:
        fill = story.writes.get(load.value)
        if load.op is not Op.LOAD or load.outcome is not Outcome.OK or fill is None or fill.client != load.client:
            continue
        for change in changes[load.client]:
            if fill.op is Op.FILL and fill.earliest < change.start and change.end < load.start:
                yield Violation(
                    "what was computed before its own client changed the key", story.key, (fill, change, load)
                )
                break


def _overlaps(key: str, computations: Sequence[Call], changes: Soonest) -> Iterator[Violation]:
    """Each computation and the next: of three that overlap the second is no less wrong than the third."""
    ordered = sorted(computations, key=lambda call: (call.earliest, call.end))
    for former, later in pairwise(ordered):
        if former.end > later.earliest and not _apart(former, later, changes):
            yield Violation("two computations at once", key, (former, later))


def _apart(former: Call, later: Call, changes: Soonest) -> bool:
    """Whether a caller that wanted `later` could not join `former`.

    A change lets go of what is computed when it ends, which may be a bit before its end was noted.
    """
    if former.cancelled or (later.cancelled and later.earliest == former.earliest):
        return True
    change = changes.since(min(former.start, later.start))  # who was asked for first may begin last
    return change is not None and change.start <= later.earliest
