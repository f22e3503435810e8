"""Where values come from, and what must have buried them.  These rules go by real time alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from dcache.testing.history import CONDITIONAL, READS, Call, Op, Outcome, Violation
from dcache.testing.rules.story import Soonest, Story, end_of, latest_of, start_of


def origins(story: Story) -> Iterator[Violation]:
    """Every value that is returned was written, whole, to this key, by a write that may have been made by then.

    It holds in every mode: not even a cache that may answer with old values invents them.
    """
    for read in story.calls:
        if read.op in READS:
            wrong = _origin(read, story.writes.get(read.value))
            if wrong is not None:
                yield wrong


def _origin(read: Call, write: Call | None) -> Violation | None:
    """What is wrong with where the value of `read` came from."""
    if read.outcome is Outcome.TORN:
        return Violation("a value that is not whole", read.key, (read,))
    if read.outcome is not Outcome.OK:
        return None
    if write is None:
        return Violation("a value that was never written", read.key, (read,))
    if write.outcome not in (Outcome.OK, Outcome.DOUBT):
        return Violation("a value whose write was certainly not made", read.key, (write, read))
    if read.end < write.earliest:
        return Violation("a value before it was written", read.key, (read, write))
    return None


def overwritten(story: Story) -> Iterator[Violation]:
    """No value is returned after a change that began when its write was over: the change has the higher version.

    It holds under any clocks.  A write is over when it was acknowledged; one that is made at most once also when its
    value was returned.  A plain set in doubt is not over then, as it may still be made a second time.
    """
    changes = Soonest(story.changes(), at=start_of, by=end_of)
    for write, reads in _returned(story):
        once = write.op in CONDITIONAL
        over = min([write, *(reads if once else ())], key=latest_of)
        change, last = changes.since(over.latest + 1), max(reads, key=start_of)
        if change is not None and change.end < last.start:
            proof = dict.fromkeys((write, over, change, last))
            yield Violation("a value that was overwritten", story.key, tuple(proof))


def fills(story: Story) -> Iterator[Violation]:
    """No fill survives a change which began after its computation did: the change voids the promise, or is above it.

    It holds under any clocks.  A change that began before the computation may have been made before it; that one the
    order decides.
    """
    changes = Soonest(story.changes(), at=start_of, by=end_of)
    for fill, reads in _returned(story):
        if fill.op is not Op.FILL:
            continue
        change, last = changes.since(fill.earliest + 1), max(reads, key=start_of)
        if change is not None and change.end < last.start:
            yield Violation("a fill that outlived a change of its key", story.key, (fill, change, last))


def _returned(story: Story) -> Iterator[tuple[Call, list[Call]]]:
    """Each write whose value was returned, with the reads that did."""
    by_value: defaultdict[str | None, list[Call]] = defaultdict(list)
    for read in story.reads:
        by_value[read.value].append(read)
    return ((story.writes[value], reads) for value, reads in by_value.items() if value in story.writes)
