"""The calls of one key, sorted out once for all rules."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from dcache.testing.history import CHANGES, READS, WRITES, Call, Op, Outcome

Writes = Mapping[str | None, Call]
"""The call that wrote a value, by the value."""


@attrs.frozen
class Story:
    """One key's history.  `reads` are those that found a value whose origin is right, see `values.origins`."""

    key: str
    calls: Sequence[Call]
    writes: Writes
    """Of a counter there are none: its values tell by themselves where they come from."""
    reads: Sequence[Call]

    def done(self, *ops: Op) -> list[Call]:
        """The calls of these kinds that succeeded."""
        return [call for call in self.calls if call.op in ops and call.outcome is Outcome.OK]

    def changes(self) -> list[Call]:
        return self.done(*CHANGES)

    def touches(self) -> list[Call]:
        """Those that may have given the value that was there another version."""
        tried = (Outcome.OK, Outcome.DOUBT)
        return [call for call in self.calls if call.op is Op.TOUCH and call.outcome in tried]


def story(key: str, calls: Sequence[Call]) -> Story:
    """The story of `key`, with every read believed that can be."""
    if any(call.op is Op.INCR for call in calls):
        return Story(key, calls, {}, [call for call in calls if call.op is Op.COUNT and call.outcome is Outcome.OK])
    writes: Writes = {call.value: call for call in calls if call.op in WRITES and call.value is not None}
    reads = [call for call in calls if call.op in READS and believed(call, writes)]
    return Story(key, calls, writes, reads)


def believed(read: Call, writes: Writes) -> bool:
    """Whether `read` found a value that it can have found, in the cache.

    What another caller in the same client computed, and this one awaited, says nothing about the cache.
    """
    write = writes.get(read.value)
    if read.outcome is not Outcome.OK or write is None or not may_return(read, write):
        return False
    return not (read.op is Op.LOAD and write.op is Op.FILL and write.client == read.client)


def may_return(read: Call, write: Call) -> bool:
    """Whether `write` may have been made, and before `read` was over."""
    return write.outcome in (Outcome.OK, Outcome.DOUBT) and read.end >= write.earliest


class Soonest:
    """Of calls laid out by one time, the one that is first by another: among those from an instant on."""

    def __init__(self, calls: Iterable[Call], at: Callable[[Call], int], by: Callable[[Call], int]) -> None:
        ordered = sorted(calls, key=at)
        self._times = [at(call) for call in ordered]
        self._best = ordered
        for index in range(len(ordered) - 2, -1, -1):
            self._best[index] = min(ordered[index], self._best[index + 1], key=by)

    def since(self, instant: int) -> Call | None:
        """The first one of those at `instant` or later."""
        index = bisect_left(self._times, instant)
        return self._best[index] if index < len(self._best) else None


def start_of(call: Call) -> int:
    return call.start


def end_of(call: Call) -> int:
    return call.end


def latest_of(call: Call) -> int:
    return call.latest
