"""What versions tell: reads never go back.  All of it holds in strict mode, under any clocks.

Of two writes of which one began when the other was acknowledged the later has the higher version; a read returns the
highest that was acknowledged, or returned, before it began, or one still higher.  Of calls at the same time nothing is
assumed.  Neither is anything assumed of who asks, so what one client sees never goes back either.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from dcache.testing.history import CONDITIONAL, Call, Op, Outcome, Violation
from dcache.testing.rules.story import Soonest, Story, latest_of, start_of

ALTERING = (Op.SET, Op.DELETE, *sorted(CONDITIONAL, key=lambda op: op.value), Op.TOUCH, Op.INCR)
"""What writes a version of its own, above all that was acknowledged before it began."""


@attrs.frozen
class Bound:
    """From now on versions are not below `version`, and none is the same if it is `passed`; `calls` show it."""

    version: bytes = b""
    passed: bool = False
    calls: tuple[Call, ...] = ()

    def above(self, other: Bound) -> bool:
        return (self.version, self.passed) > (other.version, other.passed)


def staleness(story: Story) -> Iterator[Violation]:
    """No call returns, or is made on, a version below one that anybody was given before the call began.

    A successful `cas` counts as a read of the version that it expected, and passes it: nobody gets that afterwards.
    The version of a read that tells none is that of the write of its value, or lower (the write may have been made
    twice); where that is not known the read is not judged.
    """
    known = Known(story)
    bound, before = Bound(), dict[Call, Bound]()
    for call, ends in _moments(story):
        if ends:
            given = known.given(call, before[call])
            bound = given if given.above(bound) else bound
        else:
            before[call] = bound
            if known.below(call, bound):
                yield Violation("an older version after a newer one", story.key, known.proof(call, bound))


def _moments(story: Story) -> Iterator[tuple[Call, bool]]:
    """Begins and ends as they came; what ends at the instant at which another begins is at the same time."""
    calls = [*story.reads, *story.done(*ALTERING)]
    moments = [(call.start, False, call) for call in calls] + [(call.end, True, call) for call in calls]
    for _, ends, call in sorted(moments, key=lambda moment: moment[:2]):
        yield call, ends


class Known:
    """Which versions the calls of a key tell of."""

    def __init__(self, story: Story) -> None:
        self._writes = story.writes
        self._touches = Soonest(story.touches(), at=latest_of, by=start_of)
        self._values = {call.version: call.value for call in _telling(story)}

    def below(self, call: Call, bound: Bound) -> bool:
        """Whether what `call` returned, or was made on, is too low."""
        if call.op is Op.CAS and call.expected is not None and bound.above(Bound(call.expected)):
            return True
        if call.op in ALTERING:
            return call.version is not None and call.version <= bound.version
        highest = self._highest(call)
        return highest is not None and bound.above(Bound(highest))

    def given(self, call: Call, before: Bound) -> Bound:
        """What holds after `call`, before which `before` did."""
        if call.version is not None:
            return Bound(call.version, False, (call,))
        if call.op is Op.CAS and call.expected is not None:
            return Bound(call.expected, True, (call,))
        passes = call.op in ALTERING or self._values.get(before.version, call.value) != call.value
        return Bound(before.version, True, (*before.calls, call)) if passes else before

    def proof(self, call: Call, bound: Bound) -> tuple[Call, ...]:
        write = self._writes.get(call.value)
        return tuple(dict.fromkeys((*bound.calls, *([] if write is None else [write]), call)))

    def _highest(self, read: Call) -> bytes | None:
        """The highest version that `read` may have returned, None if nobody knows."""
        if read.version is not None:
            return read.version
        write = self._writes.get(read.value)
        if write is None or write.outcome is not Outcome.OK:
            return None
        touch = self._touches.since(write.start)
        return write.version if touch is None or touch.start > read.end else None


def versions(story: Story) -> Iterator[Violation]:
    """A version belongs to one value: no two writes ever share one, whatever their clocks say."""
    first: dict[bytes, Call] = {}
    for version, call in ((call.version, call) for call in _telling(story) if call.version is not None):
        other = first.setdefault(version, call)
        if other.value != call.value:
            yield Violation("two values of one version", story.key, (other, call))


def _telling(story: Story) -> list[Call]:
    """The calls that tell the version of a value."""
    calls = [*story.done(*ALTERING), *story.reads]
    return [call for call in calls if call.version is not None and call.value is not None]
