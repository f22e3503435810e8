"""The checker itself: histories that are right, histories that are wrong, and all orders tried one by one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.checker import CHANGES, Call, Op, Outcome, check
from tests.chaos.values import seal, unseal

DOUBT, FAILED, MISSED, TORN = Outcome.DOUBT, Outcome.FAILED, Outcome.MISSED, Outcome.TORN


def call(op: Op, start: int, end: int, value: str | None = None, outcome: Outcome = Outcome.OK, **more: Any) -> Call:
    more = {"client": "c", "key": "k", **more}
    return Call(op=op, start=start, end=end, value=value, outcome=outcome, **more)


def set_(start: int, end: int, value: str, outcome: Outcome = Outcome.OK) -> Call:
    return call(Op.SET, start, end, value, outcome)


def delete(start: int, end: int, outcome: Outcome = Outcome.OK) -> Call:
    return call(Op.DELETE, start, end, None, outcome)


def read(start: int, end: int, value: str | None, outcome: Outcome = Outcome.OK, **more: Any) -> Call:
    return call(Op.READ, start, end, value, MISSED if value is None else outcome, **more)


def fill(start: int, computed: int, end: int, value: str, client: str = "c") -> Call:
    return call(Op.FILL, start, end, value, DOUBT, computed=computed, client=client)


def load(start: int, end: int, value: str, client: str = "c") -> Call:
    return call(Op.LOAD, start, end, value, client=client)


def incr(start: int, end: int, value: str | None, life: str = "a", outcome: Outcome = Outcome.OK) -> Call:
    return call(Op.INCR, start, end, value, outcome, life=life)


def counted(start: int, end: int, value: str) -> Call:
    return call(Op.COUNT, start, end, value)


def rules(*history: Call) -> set[str]:
    return {violation.rule for violation in check(history)}


RIGHT: dict[str, list[Call]] = {
    "nothing": [],
    "misses at any time": [read(0, 1, None), set_(2, 3, "a"), read(4, 5, None), read(6, 7, "a"), read(8, 9, None)],
    "the last write": [set_(0, 1, "a"), set_(2, 3, "b"), read(4, 5, "b")],
    "a write that is under way": [set_(0, 9, "a"), read(1, 2, "a"), read(3, 4, "a")],
    "the value before a write that is under way": [set_(0, 1, "a"), set_(2, 9, "b"), read(3, 4, "a"), read(5, 6, "b")],
    "either of two writes at the same time": [set_(0, 9, "a"), set_(1, 8, "b"), read(10, 11, "a")],
    "a read that begins before the write ends": [set_(0, 1, "a"), set_(2, 4, "b"), read(3, 9, "a")],
    "two reads at the same time": [set_(0, 1, "a"), set_(2, 20, "b"), read(5, 9, "b"), read(6, 8, "a")],
    "a write in doubt that is never seen": [set_(0, 1, "a"), set_(2, 3, "b", DOUBT), read(4, 5, "a")],
    "a write in doubt that comes late": [
        set_(0, 1, "a"),
        set_(2, 3, "b", DOUBT),
        read(4, 5, "a"),
        read(6, 7, "b"),
        read(8, 9, "b"),
    ],
    "a write in doubt that comes after a later one": [
        set_(0, 1, "a", DOUBT),
        set_(2, 3, "b"),
        read(4, 5, "b"),
        read(6, 7, "a"),
    ],
    "a delete in doubt": [set_(0, 1, "a"), delete(2, 3, DOUBT), read(4, 5, None), read(6, 7, "a")],
    "a delete at the same time": [set_(0, 9, "a"), delete(1, 8), read(10, 11, "a")],
    "a failed read": [read(0, 1, "", FAILED)],
    "a failed write that is not seen": [set_(0, 1, "a"), set_(2, 3, "b", FAILED), read(4, 5, "a")],
    "a fill": [fill(0, 2, 5, "f"), read(6, 7, "f")],
    "a fill after a delete that was under way": [delete(0, 9), fill(1, 4, 6, "f"), read(10, 11, "f")],
    "a fill that a change overtook": [fill(0, 1, 9, "f"), delete(2, 3), read(10, 11, None)],
    "a fill that is read while the change is made": [fill(0, 1, 9, "f"), delete(2, 8), read(3, 7, "f")],
    "a computation that callers of one client share": [fill(0, 1, 9, "f"), delete(2, 3), load(4, 9, "f")],
    "a counter": [incr(0, 1, "a+1"), incr(2, 5, "a+2", "b"), incr(3, 4, "a+3", "c"), counted(6, 7, "a+3")],
    "a counter that leaves one out": [incr(0, 1, "a+1"), incr(2, 3, None, "b", DOUBT), incr(4, 5, "a+3", "c")],
    "a counter that begins again": [incr(0, 1, "a+1"), incr(2, 3, "b+1", "b"), incr(4, 5, "b+2", "c")],
    "a counter whose beginning is in doubt": [incr(0, 1, None, "a", DOUBT), incr(2, 3, "a+2", "b")],
}

WRONG: dict[str, tuple[str, list[Call]]] = {
    "torn": ("a value that is not whole", [set_(0, 1, "a"), read(2, 3, "", TORN)]),
    "invented": ("a value that was never written", [set_(0, 1, "a"), read(2, 3, "b")]),
    "of another key": (
        "a value that was never written",
        [set_(0, 1, "a"), call(Op.READ, 2, 3, "a", key="other")],
    ),
    "from the future": ("a value before it was written", [read(0, 1, "a"), set_(2, 3, "a")]),
    "certainly not made": ("a value whose write was certainly not made", [set_(0, 1, "a", FAILED), read(2, 3, "a")]),
    "stale": ("an older value after a newer one", [set_(0, 1, "a"), set_(2, 3, "b"), read(4, 5, "a")]),
    "deleted": ("an older value after a newer one", [set_(0, 1, "a"), delete(2, 3), read(4, 5, "a")]),
    "deleted, while it was in doubt": (
        "an older value after a newer one",
        [set_(0, 1, "a", DOUBT), read(2, 3, "a"), delete(4, 5), read(6, 7, "a")],
    ),
    "back, for one client": (
        "an older value after a newer one",
        [set_(0, 1, "a"), set_(2, 99, "b"), read(4, 5, "b"), read(6, 7, "a")],
    ),
    "back, for another client": (
        "an older value after a newer one",
        [set_(0, 1, "a"), set_(2, 99, "b"), read(4, 5, "b"), read(6, 7, "a", client="other")],
    ),
    "back and forth between writes at the same time": (
        "an older value after a newer one",
        [set_(0, 9, "a"), set_(1, 8, "b"), read(10, 11, "a"), read(12, 13, "b"), read(14, 15, "a")],
    ),
    "comes and goes": (
        "an older value after a newer one",
        [set_(0, 1, "a"), set_(2, 3, "b", DOUBT), read(4, 5, "b"), read(6, 7, "a")],
    ),
    "outlived, by a loader of another client": (
        "a fill that outlived a change of its key",
        [fill(0, 1, 9, "f"), delete(2, 3), load(4, 5, "f", client="other")],
    ),
    "a fill over an invalidation": (
        "a fill that outlived a change of its key",
        [fill(0, 1, 4, "f"), delete(2, 3), read(5, 6, "f")],
    ),
    "a fill over a set": (
        "a fill that outlived a change of its key",
        [fill(0, 1, 4, "f"), set_(2, 3, "a"), read(5, 6, "f")],
    ),
    "a fill that was seen before the change": (
        "an older value after a newer one",
        [fill(0, 1, 2, "f"), read(3, 4, "f"), delete(5, 6), read(7, 8, "f")],
    ),
    "counted twice": ("a number that was given twice", [incr(0, 3, "a+1"), incr(1, 2, "a+1", "b")]),
    "counted back": ("a counter that went back", [incr(0, 1, "a+1"), incr(2, 3, "a+2", "b"), counted(4, 5, "a+1")]),
    "a counter revived": (
        "a counter that was forgotten came back",
        [incr(0, 1, "a+1"), incr(2, 3, "b+1", "b"), incr(4, 5, "a+2", "c")],
    ),
    "a counter from nowhere": ("a counter that nobody began", [incr(0, 1, "z+1", "a")]),
    "a counter from a failure": (
        "a counter whose beginning was certainly not made",
        [incr(0, 1, None, "a", FAILED), incr(2, 3, "a+2", "b")],
    ),
    "a counter from the future": ("a counter before it was begun", [counted(0, 1, "a+1"), incr(2, 3, "a+1")]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_history_that_can_have_happened_is_let_pass(name: str) -> None:
    assert rules(*RIGHT[name]) == set()


@pytest.mark.parametrize("name", WRONG)
def test_a_history_that_cannot_have_happened_is_found(name: str) -> None:
    rule, history = WRONG[name]
    assert rule in rules(*history)


@pytest.mark.parametrize("name", WRONG)
def test_the_calls_that_show_a_violation_are_wrong_by_themselves(name: str) -> None:
    """So that whoever reads a report need not look elsewhere."""
    rule, history = WRONG[name]
    noise = [set_(at, at + 1, f"later{at}") for at in range(100, 140, 2)] + [read(200, 201, "later138")]
    if rule.startswith(("a counter", "a number")):
        noise = [incr(at, at + 1, f"n100+{at}", f"n{at}") for at in range(100, 140, 2)]
    (violation,) = [found for found in check([*history, *noise]) if found.rule == rule]
    writes = [one for one in history if one.op in (Op.SET, Op.FILL, Op.INCR) and one not in violation.calls]
    assert set(violation.calls) <= set(history)
    assert rule in rules(*violation.calls, *writes)


def test_keys_are_judged_one_by_one() -> None:
    right = [set_(0, 1, "a"), read(2, 3, "a")]
    wrong = [attrs.evolve(one, key="other") for one in WRONG["stale"][1]]
    assert {violation.key for violation in check([*right, *wrong])} == {"other"}


# -- compared with trying every order ---------------------------------------------------------------------------------


def possible(history: Sequence[Call]) -> bool:
    """Whether some order of the calls explains all that was read; tries them all.

    The register may forget, so misses and failed calls explain themselves.
    """
    seen = {one.value for one in history if one.op is Op.READ and one.outcome is Outcome.OK}
    calls = [
        one
        for one in history
        if one.outcome is Outcome.OK or (one.outcome is DOUBT and (one.value in seen or one.op is Op.DELETE))
    ]
    return _explained(frozenset(range(len(calls))), None, calls)


def _explained(left: frozenset[int], held: str | None, calls: Sequence[Call]) -> bool:
    if all(calls[index].outcome is DOUBT for index in left):
        return True
    latest = min(calls[index].end for index in left if calls[index].outcome is not DOUBT)
    for index in left:
        one = calls[index]
        if one.start > latest:
            continue  # another one was over before this one began
        if one.op is Op.READ and one.value != held:
            continue
        if _explained(left - {index}, one.value if one.op in CHANGES | {Op.READ} else held, calls):
            return True
    return False


@st.composite
def histories(draw: st.DrawFn) -> list[Call]:
    """Up to nine calls of one key at different instants: writes and deletes, some in doubt, and reads of any value."""
    size = draw(st.integers(1, 9))
    instants = iter(draw(st.permutations(range(2 * size))))
    ids = count()
    writes: list[Call] = []
    reads: list[tuple[int, int]] = []
    for _ in range(size):
        start, end = sorted((next(instants), next(instants)))
        outcome = draw(st.sampled_from([Outcome.OK, Outcome.OK, DOUBT]))
        kind = draw(st.sampled_from(["set", "delete", "read", "read"]))
        if kind == "read":
            reads.append((start, end))
        else:
            writes.append(set_(start, end, f"v{next(ids)}", outcome) if kind == "set" else delete(start, end, outcome))
    values = [one.value for one in writes if one.value is not None]
    answers = [read(start, end, draw(st.sampled_from([None, *values, *values]))) for start, end in reads]
    return [*writes, *answers]


@given(histories())
def test_the_verdict_is_that_of_trying_every_order(history: list[Call]) -> None:
    assert (not check(history)) == possible(history)


def test_the_histories_tried_are_both_right_and_wrong() -> None:
    verdicts = []

    @given(histories())
    def collect(history: list[Call]) -> None:
        verdicts.append((possible(history), sum(one.op is Op.READ and one.value is not None for one in history) > 1))

    collect()
    assert {(True, True), (False, True)} <= set(verdicts)


@st.composite
def atomic(draw: st.DrawFn) -> list[Call]:
    """What a perfect register gives: each call acts at one instant between its begin and its end."""
    order = draw(st.lists(st.sampled_from(["set", "delete", "read", "forget", "doubt"]), min_size=1, max_size=40))
    held: str | None = None
    history: list[Call] = []
    for number, kind in enumerate(order):
        at = 10 * number
        start, end = at - draw(st.integers(1, 60)), at + draw(st.integers(1, 60))
        if kind in ("set", "doubt"):
            held = f"v{number}"
            late = draw(st.integers(start + 1, end))  # one in doubt may end before it acts
            history.append(set_(start, end if kind == "set" else late, held, Outcome.OK if kind == "set" else DOUBT))
        elif kind == "delete":
            held = None
            history.append(delete(start, end))
        elif kind == "read":
            history.append(read(start, end, held))
        else:
            held = None
    return history


@given(atomic())
def test_no_false_alarm_for_a_perfect_register(history: list[Call]) -> None:
    assert check(history) == []


@given(atomic(), st.data())
def test_a_stale_read_is_found_in_a_long_history(history: list[Call], data: st.DataObject) -> None:
    """Two writes one after the other somewhere, and at the end a read of the first."""
    at = data.draw(st.integers(1000, 2000))
    wrong = [set_(at, at + 1, "old"), set_(at + 2, at + 3, "new"), read(at + 4, at + 5, "old")]
    assert rules(*history, *wrong) == {"an older value after a newer one"}


@given(st.permutations(range(1, 9)), st.integers(0, 7))
def test_numbers_in_any_order_of_calls_at_the_same_time_are_right(numbers: list[int], repeated: int) -> None:
    calls = [incr(0, 100 + index, f"0+{number}", str(index)) for index, number in enumerate(numbers)]
    assert rules(*calls) == set()
    calls.append(incr(0, 100, f"0+{numbers[repeated]}", "again"))
    assert rules(*calls) == {"a number that was given twice"}


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, 1, 4000])
def test_a_value_is_recognised_under_its_key_only(padding: int) -> None:
    value = seal("k", "id7", padding)
    assert unseal("k", value) == "id7"
    assert unseal("other", value) is None


@given(st.data())
def test_a_value_that_was_damaged_anywhere_is_not_recognised(data: st.DataObject) -> None:
    value = seal("k", "id7", 5)
    at = data.draw(st.integers(0, len(value) - 1))
    damaged = data.draw(st.sampled_from([value[:at], value[:at] + "~" + value[at + 1 :], value + value, None, 7]))
    assert unseal("k", damaged) is None
