"""What must hold for a counter.

It may be forgotten; then it begins again.  So that this can be told from an error, every `incr` has an initial value
of its own, the counter's *life* is named after the call that began it, and a value is written "life+number".  Then no
value is ever given twice; within a life they rise; and a life that another one, or a delete, followed does not come
back.  Numbers may be left out: an `incr` in doubt may have counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from dcache.testing.history import Call, Op, Outcome, Violation
from dcache.testing.rules.order import contradictions, group, proof
from dcache.testing.rules.story import Story

SEEN = (Op.INCR, Op.COUNT)


def beginnings(story: Story) -> Iterator[Violation]:
    """Every life was begun by an `incr` that may have been made by then; in every mode."""
    begun = {call.life: call for call in story.calls if call.op is Op.INCR}
    for call in story.done(*SEEN):
        wrong = _beginning(call, begun.get(_life(call)))
        if wrong is not None:
            yield wrong


def _beginning(seen: Call, beginner: Call | None) -> Violation | None:
    """What is wrong with where the life of `seen` came from."""
    if beginner is None:
        return Violation("a counter that nobody began", seen.key, (seen,))
    if beginner.outcome is Outcome.FAILED:
        return Violation("a counter whose beginning was certainly not made", seen.key, (beginner, seen))
    if seen.end < beginner.start:
        return Violation("a counter before it was begun", seen.key, (seen, beginner))
    return None


def counting(story: Story) -> Iterator[Violation]:
    """No number is given twice, none is lower than one before it, and no life comes back."""
    lives: defaultdict[str, list[Call]] = defaultdict(list)
    for call in story.done(*SEEN):
        lives[_life(call)].append(call)
    for life in lives.values():
        yield from _given_twice(life)
        yield from _rising(life)
    deletes = [group([call]) for call in story.done(Op.DELETE)]
    for one, other in contradictions([*map(group, lives.values()), *deletes]):
        yield Violation("a counter that was forgotten came back", story.key, proof(one, other))


def _life(call: Call) -> str:
    return str(call.value).partition("+")[0]


def _number(call: Call) -> int:
    return int(str(call.value).partition("+")[2])


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
