"""Decides whether what clients saw can have happened, if the cache keeps its promise; pure.

A *history* is the list of all calls, each with when it began and ended on one clock.  Calls are judged key by key, by
real time alone; versions play no part.  What must hold is that of a register which may forget: there is one order of
all writes of a key such that

* a write stands between the begin and the end of its call, or anywhere after its begin if it is in doubt;
* a read returns the write that is newest at some instant of its call, or misses.  A miss says nothing.

Take each value with all calls that wrote or returned it as one *group*.  If a call of group A ended before a call of
group B began, A's write is the older one.  So two groups contradict each other if each has a call that ended before
one of the other began.  That such pairs are all that can be wrong (there are no longer circles) is the theorem of
Gibbons and Korach, "Testing shared memories", 1997; a test compares it with trying all orders.

No assumption is made where the promise makes none: a write in doubt may come true late, unless something newer was
seen before it; calls at the same time may have any order.

Fills have a rule of their own: a value whose computation began before a change of the key did is not returned by a
read that began after the change was acknowledged.  Counters too, see `_counter`.
"""

from __future__ import annotations

import enum
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import attrs

NEVER = 1 << 62
"""Later than any call."""


class Outcome(enum.Enum):
    OK = "ok"
    MISSED = "missed"
    TORN = "torn"  # a value that is not whole, or that belongs to another key
    DOUBT = "in doubt"  # a change of which nobody knows whether it was made
    FAILED = "failed"  # an error; a change was certainly not made


class Op(enum.Enum):
    SET = "set"
    DELETE = "delete"
    FILL = "fill"  # the value that a get_or_set computed: it may be stored, nobody is told
    READ = "read"
    LOAD = "load"  # what a get_or_set returned and had not computed itself
    INCR = "incr"
    COUNT = "count"  # a read of a counter


CHANGES = frozenset({Op.SET, Op.DELETE})
READS = frozenset({Op.READ, Op.LOAD})


@attrs.frozen(eq=False, kw_only=True)
class Call:
    """One key in one call.  Times are of one clock, in any unit.

    `value` is the id of the value that was written or returned; for counters see `_counter`.  `client` is who made the
    call: callers that share computations share the name.  `computed` is when the computation of a fill began; `life` is
    what an `incr` would begin.  `how` is the method that was called and `error` what it raised, for reports.
    """

    client: str
    op: Op
    key: str
    start: int
    end: int
    outcome: Outcome
    value: str | None = None
    computed: int | None = None
    life: str = ""
    how: str = ""
    error: str = ""


Writes = dict[str | None, Call]
"""The call that wrote a value, by the value."""


@attrs.frozen
class Violation:
    """What cannot have happened: the rule that was broken, and the calls that show it."""

    rule: str
    key: str
    calls: tuple[Call, ...]


def check(history: Iterable[Call]) -> list[Violation]:
    """All that is wrong with `history`; empty if it can have happened."""
    by_key: defaultdict[str, list[Call]] = defaultdict(list)
    for call in history:
        by_key[call.key].append(call)
    return [violation for key in sorted(by_key) for violation in _check_key(by_key[key])]


def _check_key(calls: Sequence[Call]) -> Iterator[Violation]:
    if any(call.op is Op.INCR for call in calls):
        yield from _counter(calls)
    else:
        yield from _register(calls)


# -- values -----------------------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Group:
    """All calls that wrote or returned one value."""

    calls: list[Call] = attrs.Factory(list)
    first_end: int = NEVER
    last_start: int = 0

    def add(self, call: Call) -> None:
        """A write in doubt counts as never ended: it may be made at any time."""
        self.calls.append(call)
        self.first_end = min(self.first_end, _end(call))
        self.last_start = max(self.last_start, call.start)


def _end(call: Call) -> int:
    return NEVER if call.outcome is Outcome.DOUBT else call.end


def _register(calls: Sequence[Call]) -> Iterator[Violation]:
    writes: Writes = {call.value: call for call in calls if call.op in (Op.SET, Op.FILL) and call.value is not None}
    reads = [call for call in calls if call.op in READS and call.outcome is not Outcome.MISSED]
    believed = []
    for read in reads:
        wrong = _origin(read, writes)
        if wrong is not None:
            yield wrong
        elif read.outcome is Outcome.OK and not _shared(read, writes):
            believed.append(read)
    yield from _order(calls, believed)
    yield from _fills(calls, believed, writes)


def _origin(read: Call, writes: Writes) -> Violation | None:
    """What is wrong with where the value of `read` came from."""
    if read.outcome is Outcome.TORN:
        return Violation("a value that is not whole", read.key, (read,))
    if read.outcome is not Outcome.OK:
        return None
    write = writes.get(read.value)
    if write is None:
        return Violation("a value that was never written", read.key, (read,))
    if write.outcome is Outcome.FAILED:
        return Violation("a value whose write was certainly not made", read.key, (write, read))
    if read.end < write.start:
        return Violation("a value before it was written", read.key, (read, write))
    return None


def _shared(read: Call, writes: Writes) -> bool:
    """Whether this may be no read of the cache, but another caller's computation, awaited within one client."""
    write = writes[read.value]
    return read.op is Op.LOAD and write.op is Op.FILL and write.client == read.client


def _order(calls: Sequence[Call], reads: Sequence[Call]) -> Iterator[Violation]:
    """Pairs of groups of which each would have to be older than the other."""
    for one, other in contradictions(_groups(calls, reads)):
        yield Violation("an older value after a newer one", one.calls[0].key, _proof(one, other))


def _groups(calls: Sequence[Call], reads: Sequence[Call]) -> list[Group]:
    """Acknowledged changes and what was read; a change in doubt that nobody read need not have been made."""
    groups: defaultdict[object, Group] = defaultdict(Group)
    seen = {read.value for read in reads}
    for read in reads:
        groups[read.value].add(read)
    for call in calls:
        if call.op is Op.DELETE and call.outcome is Outcome.OK:
            groups[call].add(call)
        elif call.op in (Op.SET, Op.FILL) and (call.outcome is Outcome.OK or call.value in seen):
            groups[call.value].add(call)
    return list(groups.values())


def contradictions(groups: Iterable[Group]) -> Iterator[tuple[Group, Group]]:
    """Pairs of groups each of which has a call that ended before one of the other began."""
    groups = sorted(groups, key=lambda group: group.first_end)
    for index, one in enumerate(groups):
        for other in groups[index + 1 :]:
            if other.first_end >= one.last_start:
                break  # nor does any later group end before this one's last call begins
            if one.first_end < other.last_start:
                yield one, other


def _proof(one: Group, other: Group) -> tuple[Call, ...]:
    """The four calls that show it, each once, as they began."""
    edges = {
        id(call): call
        for group in (one, other)
        for call in (min(group.calls, key=_end), max(group.calls, key=lambda call: call.start))
    }
    return tuple(sorted(edges.values(), key=lambda call: call.start))


def _fills(calls: Sequence[Call], reads: Sequence[Call], writes: Writes) -> Iterator[Violation]:
    """Fills that survived a change which began after their computation did.

    A change that began before the computation may have been made before it; that one the order decides.
    """
    changes = [call for call in calls if call.op in CHANGES and call.outcome is Outcome.OK]
    last = {read.value: read for read in sorted(reads, key=lambda read: read.start)}
    for value, read in last.items():
        fill = writes[value]
        if fill.computed is None:
            continue
        for change in changes:
            if fill.computed < change.start and change.end < read.start:
                yield Violation("a fill that outlived a change of its key", read.key, (fill, change, read))
                break


# -- counters ---------------------------------------------------------------------------------------------------------


def _counter(calls: Sequence[Call]) -> Iterator[Violation]:
    """What must hold for a counter.

    It may be forgotten; then it begins again.  So that this can be told from an error, every `incr` has an initial
    value of its own, the counter's *life* is named after the call that began it, and a value is written "life+number".
    Then no value is ever given twice; within a life they rise; and a life that another one followed does not come back.
    Numbers may be left out: an `incr` in doubt may have counted.
    """
    begun = {call.life: call for call in calls if call.op is Op.INCR}
    lives: defaultdict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.op in (Op.INCR, Op.COUNT) and call.outcome is Outcome.OK:
            wrong = _beginning(call, begun.get(_life(call)))
            if wrong is not None:
                yield wrong
            lives[_life(call)].append(call)
    for life in lives.values():
        yield from _given_twice(life)
        yield from _rising(life)
    for one, other in contradictions(_group(life) for life in lives.values()):
        yield Violation("a counter that was forgotten came back", one.calls[0].key, _proof(one, other))


def _life(call: Call) -> str:
    return str(call.value).partition("+")[0]


def _number(call: Call) -> int:
    return int(str(call.value).partition("+")[2])


def _group(calls: Iterable[Call]) -> Group:
    made = Group()
    for call in calls:
        made.add(call)
    return made


def _beginning(seen: Call, beginner: Call | None) -> Violation | None:
    """What is wrong with where the life of `seen` came from."""
    if beginner is None:
        return Violation("a counter that nobody began", seen.key, (seen,))
    if beginner.outcome is Outcome.FAILED:
        return Violation("a counter whose beginning was certainly not made", seen.key, (beginner, seen))
    if seen.end < beginner.start:
        return Violation("a counter before it was begun", seen.key, (seen, beginner))
    return None


def _given_twice(life: Sequence[Call]) -> Iterator[Violation]:
    given: dict[int, Call] = {}
    for call in life:
        if call.op is Op.INCR:
            first = given.setdefault(_number(call), call)
            if first is not call:
                yield Violation("a number that was given twice", call.key, (first, call))


def _rising(life: Sequence[Call]) -> Iterator[Violation]:
    """Of each call, whether an earlier one saw more; going by ends and begins in order of time."""
    ended = sorted(life, key=lambda call: call.end)
    highest: Call | None = None
    position = 0
    for call in sorted(life, key=lambda call: call.start):
        while position < len(ended) and ended[position].end < call.start:
            if highest is None or _number(ended[position]) > _number(highest):
                highest = ended[position]
            position += 1
        if highest is not None and _number(call) < _number(highest):
            yield Violation("a counter that went back", call.key, (highest, call))
