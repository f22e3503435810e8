"""The checker: histories that can have happened, and histories that cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs
import pytest

from dcache.testing.checker import check_available, check_linearizable, check_strict
from dcache.testing.history import WRITES, Call, Op, Violation
from tests.unit.history_kit import (
    DOUBT,
    FAILED,
    MISSED,
    OK,
    TORN,
    add,
    call,
    cas,
    counted,
    delete,
    fill,
    incr,
    load,
    read,
    replace,
    set_,
    touch,
)

Check = Callable[[Iterable[Call]], list[Violation]]


def rules(*history: Call, by: Check = check_linearizable) -> set[str]:
    return {violation.rule for violation in by(history)}


# -- one clock --------------------------------------------------------------------------------------------------------

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
    "a fill that is stored a while after it was computed": [
        set_(0, 5, "a"),
        fill(0, 1, 2, "f", OK),
        read(6, 7, "a"),
        read(8, 9, "f"),
    ],
    "a fill that a change overtook": [fill(0, 1, 9, "f"), delete(2, 3), read(10, 11, None)],
    "a fill that is read while the change is made": [fill(0, 1, 9, "f"), delete(2, 8), read(3, 7, "f")],
    "a computation that was let go of before it began": [fill(0, 6, 8, "f"), delete(1, 2), fill(3, 4, 9, "g")],
    "a computation that callers of one client share": [
        fill(0, 1, 9, "f"),
        attrs.evolve(delete(2, 3), client="another"),
        load(4, 9, "f"),
    ],
    "a counter": [incr(0, 1, "a+1"), incr(2, 5, "a+2", "b"), incr(3, 4, "a+3", "c"), counted(6, 7, "a+3")],
    "a counter that leaves one out": [incr(0, 1, "a+1"), incr(2, 3, None, "b", DOUBT), incr(4, 5, "a+3", "c")],
    "a counter that begins again": [incr(0, 1, "a+1"), incr(2, 3, "b+1", "b"), incr(4, 5, "b+2", "c")],
    "a counter whose beginning is in doubt": [incr(0, 1, None, "a", DOUBT), incr(2, 3, "a+2", "b")],
}

WRONG: dict[str, tuple[str, list[Call]]] = {
    "shared after a change": (
        "what was computed before its own client changed the key",
        [fill(0, 1, 9, "f"), delete(2, 3), load(4, 9, "f")],
    ),
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
    "comes before it was written": (
        "an older value after a newer one",
        [read(0, 9, "a"), set_(1, 2, "b"), set_(5, 6, "a", DOUBT), read(10, 11, "b")],
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


# -- any clocks -------------------------------------------------------------------------------------------------------

CANCELLED = {"outcome": FAILED, "cancelled": True}

RIGHT_STRICT: dict[str, list[Call]] = {
    **RIGHT,
    "a write that is seen twice, as it was made twice": [
        set_(0, 9, "a", version=3),
        read(1, 2, "a", version=1),
        set_(3, 4, "b", version=2),
        read(5, 6, "b"),
        read(7, 8, "a", version=3),
        read(10, 11, "a"),
    ],
    "a write in doubt that is seen twice": [
        set_(0, 1, "a", DOUBT),
        read(2, 3, "a", version=1),
        set_(4, 5, "b", version=2),
        read(6, 7, "a", version=3),
    ],
    "a read without a version of a write that may still be made again": [
        set_(0, 20, "a", version=5),
        read(1, 2, "a"),
        set_(3, 19, "b", version=4),
        read(5, 6, "b", version=4),
    ],
    "versions at the same time": [
        set_(0, 9, "a", version=2),
        set_(1, 8, "b", version=1),
        read(2, 12, "a", version=2),
        read(3, 11, "b", version=1),
    ],
    "a version that ends as another begins": [set_(0, 5, "a", version=2), set_(5, 6, "b", version=1)],
    "a higher version of what was touched": [
        set_(0, 1, "a", version=1),
        touch(2, 3),
        read(4, 5, "a", version=3),
        read(6, 7, "a"),
    ],
    "a touch that tells its version": [add(0, 1, "a"), touch(2, 3, version=2), read(4, 5, "a", version=2)],
    "a counter that was touched": [incr(0, 1, "a+1"), touch(2, 3), counted(4, 5, "a+1")],
    "a write in doubt, made with a higher version than it is known to have been": [
        set_(0, 1, "a", DOUBT, version=1),
        set_(2, 3, "b", version=2),
        read(4, 5, "a"),
    ],
    "a touch in doubt": [
        set_(0, 1, "a", version=1),
        touch(2, 3, DOUBT),
        read(4, 5, "a", version=3),
        read(6, 7, "a"),
    ],
    "forgotten, and added again": [add(0, 1, "a"), add(2, 3, "b"), read(4, 5, "b"), read(6, 7, None), add(8, 9, "c")],
    "two adds at once": [add(0, 9, "a"), add(1, 8, "b"), read(10, 11, "a")],
    "one cas of two": [
        set_(0, 1, "a", version=1),
        cas(2, 5, "b", 1),
        cas(3, 4, "c", 1, MISSED),
        read(6, 7, "b", version=2),
        cas(8, 9, "d", 2),
    ],
    "a cas at the same time as a read of what it replaces": [
        set_(0, 1, "a", version=1),
        cas(2, 5, "b", 1),
        read(4, 6, "a", version=1),
    ],
    "a cas in doubt, and one more": [set_(0, 1, "a", version=1), cas(2, 3, "b", 1, DOUBT), cas(4, 5, "c", 1)],
    "replaced before the delete was over": [set_(0, 1, "a"), delete(2, 5), replace(4, 6, "b"), read(7, 8, "b")],
    "replaced what is in doubt": [set_(0, 1, "a", DOUBT), delete(2, 3), replace(4, 5, "b")],
    "touched what was filled": [fill(0, 1, 2, "f"), delete(3, 4), fill(5, 6, 7, "g"), touch(8, 9)],
    "touched what another one replaced": [set_(0, 1, "a"), replace(2, 3, "b"), touch(4, 5), touch(6, 7)],
    "a computation that was touched": [fill(0, 1, 2, "f"), touch(4, 5), read(6, 7, "f")],
    "computations one after the other": [fill(0, 1, 4, "f"), fill(0, 4, 6, "g"), fill(3, 6, 7, "h")],
    "computations in two clients": [fill(0, 1, 4, "f"), fill(0, 2, 6, "g", client="other")],
    "a computation after a change by the same client": [fill(0, 1, 9, "f"), delete(2, 4), fill(5, 6, 8, "g")],
    "a computation after a change that failed": [fill(0, 1, 9, "f"), delete(2, 4, FAILED), fill(5, 6, 8, "g")],
    "a computation after a change while it was claimed": [fill(0, 4, 9, "f"), delete(1, 2), fill(5, 6, 8, "g")],
    "a computation while a cancelled one ends": [fill(0, 1, 5, "f", **CANCELLED), fill(2, 3, 9, "g")],
    "a computation cancelled as it began": [fill(0, 3, 9, "f"), fill(0, 3, 10, "g", **CANCELLED)],
    "a counter that was deleted": [incr(0, 1, "a+1"), delete(2, 3), incr(4, 5, "b+1", "b")],
    "a counter that was deleted meanwhile": [incr(0, 1, "a+1"), delete(2, 9), counted(4, 5, "a+1")],
    "versions of a counter": [incr(0, 1, "a+1"), counted(2, 3, "a+1", version=1), incr(4, 5, "a+2", "b")],
}

STALE, OVERWRITTEN = "an older version after a newer one", "a value that was overwritten"

WRONG_STRICT: dict[str, tuple[str, list[Call]]] = {
    "an old version, after a write": (
        STALE,
        [set_(0, 1, "a", version=1), set_(2, 3, "b", version=2), read(4, 5, "a", version=1)],
    ),
    "an old version, after a read": (
        STALE,
        [set_(0, 9, "a"), set_(1, 9, "b"), read(2, 3, "b", version=2), read(4, 5, "a", version=1)],
    ),
    "an old version, for another client": (
        STALE,
        [set_(0, 9, "a"), set_(1, 9, "b"), read(2, 3, "b", version=2), read(4, 5, "a", version=1, client="other")],
    ),
    "an old version that the read does not tell": (
        STALE,
        [set_(0, 9, "a", version=1), set_(1, 8, "b"), read(2, 3, "b", version=2), read(10, 11, "a")],
    ),
    "an old version that is touched later": (
        STALE,
        [set_(0, 9, "a", version=1), set_(1, 8, "b"), read(2, 3, "b", version=2), read(10, 11, "a"), touch(12, 13)],
    ),
    "an old version after one that was not told": (
        STALE,
        [set_(0, 1, "a", version=1), set_(2, 9, "b"), read(3, 4, "b"), read(5, 6, "a")],
    ),
    "a version that was deleted": (
        STALE,
        [set_(0, 9, "a"), read(1, 2, "a", version=1), delete(3, 4), read(5, 6, "a", version=1)],
    ),
    "an old version, touched before it was written": (
        STALE,
        [
            set_(0, 1, "z"),
            touch(2, 3),
            set_(4, 20, "b"),
            set_(5, 6, "a", version=1),
            read(7, 8, "b", version=2),
            read(9, 10, "a"),
        ],
    ),
    "a version that a touch gave, deleted": (
        STALE,
        [add(0, 1, "a"), touch(2, 3, version=2), delete(4, 5), cas(6, 7, "b", 2)],
    ),
    "a version that was touched": (
        STALE,
        [set_(0, 1, "a", version=1), touch(2, 3), read(4, 5, "a", version=1)],
    ),
    "a write below another one": (STALE, [set_(0, 1, "a", version=2), set_(2, 3, "b", version=1)]),
    "a write as high as another one": (STALE, [set_(0, 1, "a", version=2), set_(2, 3, "b", version=2)]),
    "a cas that did not hinder a read": (
        STALE,
        [set_(0, 1, "a", version=1), cas(2, 3, "b", 1), read(4, 5, "a", version=1)],
    ),
    "a cas of what was overwritten": (
        STALE,
        [set_(0, 1, "a", version=1), set_(2, 3, "b", version=2), cas(4, 5, "c", 1)],
    ),
    "a cas of what was deleted": (
        STALE,
        [set_(0, 9, "a"), read(1, 2, "a", version=1), delete(3, 4), cas(5, 6, "c", 1)],
    ),
    "an old version of a counter": (
        STALE,
        [incr(0, 9, "a+1"), counted(1, 2, "a+1", version=1), incr(3, 4, "a+2", "b"), counted(5, 6, "a+1", version=1)],
    ),
    "one version of two writes": (
        "two values of one version",
        [set_(0, 9, "a", version=1), set_(1, 8, "b", version=1)],
    ),
    "one version of two reads": (
        "two values of one version",
        [set_(0, 9, "a"), set_(1, 9, "b"), read(2, 5, "a", version=1), read(3, 4, "b", version=1)],
    ),
    "overwritten": (OVERWRITTEN, [set_(0, 1, "a"), set_(2, 3, "b"), read(4, 5, "a")]),
    "overwritten while another write was under way": (
        OVERWRITTEN,
        [set_(0, 1, "a"), set_(2, 20, "c"), set_(3, 4, "b"), read(5, 6, "a")],
    ),
    "overwritten by a cas": (OVERWRITTEN, [set_(0, 1, "a"), cas(2, 3, "b", 7), read(4, 5, "a")]),
    "overwritten by an add": (OVERWRITTEN, [set_(0, 1, "a"), add(2, 3, "b"), read(4, 5, "a")]),
    "deleted": (OVERWRITTEN, [set_(0, 1, "a"), delete(2, 3), read(4, 5, "a")]),
    "added in doubt, seen and deleted": (
        OVERWRITTEN,
        [add(0, 1, "a", DOUBT), read(2, 3, "a"), delete(4, 5), read(6, 7, "a")],
    ),
    "outlived an add": (
        "a fill that outlived a change of its key",
        [fill(0, 1, 4, "f"), add(2, 3, "b"), read(5, 6, "f")],
    ),
    "two cas of one version": (
        "a version that was replaced twice",
        [set_(0, 1, "a", version=1), cas(2, 5, "b", 1), cas(3, 4, "c", 1)],
    ),
    "a cas that was made twice": (
        "a change that was made twice",
        [set_(0, 1, "a", version=1), cas(2, 9, "b", 1), read(3, 4, "b", version=2), read(5, 6, "b", version=3)],
    ),
    "a fill that was made twice": (
        "a change that was made twice",
        [fill(0, 1, 2, "f"), read(3, 4, "f", version=2), read(5, 6, "f", version=3)],
    ),
    "replaced nothing": ("a change of something that was not there", [replace(0, 1, "a")]),
    "replaced what came later": ("a change of something that was not there", [replace(0, 1, "a"), set_(2, 3, "b")]),
    "replaced what was deleted": (
        "a change of something that was not there",
        [set_(0, 1, "a"), delete(2, 3), replace(4, 5, "b")],
    ),
    "replaced what was deleted while another delete was under way": (
        "a change of something that was not there",
        [delete(0, 8), set_(1, 2, "a"), delete(4, 6), replace(10, 11, "b")],
    ),
    "touched what was deleted": (
        "a change of something that was not there",
        [set_(0, 1, "a"), delete(2, 3), touch(4, 5), set_(6, 7, "b")],
    ),
    "a cas of something deleted": (
        "a change of something that was not there",
        [set_(0, 1, "a"), delete(2, 3), cas(4, 5, "b", 9)],
    ),
    "an add that failed its condition": (
        "a value whose write was certainly not made",
        [add(0, 1, "a", MISSED), read(2, 3, "a")],
    ),
    "read before it was computed": ("a value before it was written", [read(1, 2, "f"), fill(0, 3, 4, "f")]),
    "two computations": ("two computations at once", [fill(0, 1, 5, "f"), fill(0, 3, 4, "g")]),
    "two computations, after a change by another client": (
        "two computations at once",
        [fill(0, 1, 5, "f"), delete(1, 2, client="other"), fill(2, 3, 4, "g")],
    ),
    "two computations, after a change before both": (
        "two computations at once",
        [delete(0, 1), fill(2, 3, 5, "f"), fill(2, 4, 6, "g")],
    ),
    "two computations, before a change": (
        "two computations at once",
        [fill(0, 1, 5, "f"), fill(0, 3, 6, "g"), delete(4, 5)],
    ),
    "two computations, the later cancelled": (
        "two computations at once",
        [fill(0, 1, 5, "f"), fill(0, 3, 6, "g", **CANCELLED)],
    ),
    "three computations, of which the second was right": (
        "two computations at once",
        [fill(0, 1, 9, "f"), delete(2, 3), fill(4, 5, 8, "g"), fill(4, 6, 7, "h")],
    ),
    "a counter back from a delete": (
        "a counter that was forgotten came back",
        [incr(0, 1, "a+1"), delete(2, 3), incr(4, 5, "a+2", "b")],
    ),
    "a counter that was never begun": ("a counter that nobody began", [counted(0, 1, "a+1")]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_history_that_can_have_happened_is_let_pass(name: str) -> None:
    assert rules(*RIGHT[name]) == set()


@pytest.mark.parametrize("name", RIGHT_STRICT)
def test_a_history_that_can_have_happened_under_some_clocks_is_let_pass(name: str) -> None:
    assert rules(*RIGHT_STRICT[name], by=check_strict) == set()


@pytest.mark.parametrize("name", WRONG)
def test_a_history_that_cannot_have_happened_is_found(name: str) -> None:
    rule, history = WRONG[name]
    assert rule in rules(*history)
    assert rule in rules(*history, by=check_linearizable)


@pytest.mark.parametrize("name", WRONG_STRICT)
def test_a_history_that_cannot_have_happened_under_any_clocks_is_found(name: str) -> None:
    rule, history = WRONG_STRICT[name]
    assert rule in rules(*history, by=check_strict)
    assert check_linearizable(history) != []


@pytest.mark.parametrize(
    ("by", "name"), [(check_linearizable, name) for name in WRONG] + [(check_strict, name) for name in WRONG_STRICT]
)
def test_the_calls_that_show_a_violation_are_wrong_by_themselves(by: Check, name: str) -> None:
    """So that whoever reads a report need not look elsewhere."""
    rule, history = (WRONG if by is check_linearizable else WRONG_STRICT)[name]
    noise = [set_(at, at + 1, f"later{at}") for at in range(100, 140, 2)] + [read(200, 201, "later138")]
    if any(one.op in (Op.INCR, Op.COUNT) for one in history):
        noise = [incr(at, at + 1, f"n100+{at}", f"n{at}") for at in range(100, 140, 2)]
    (violation,) = [found for found in by([*history, *noise]) if found.rule == rule]
    writes = [one for one in history if one.op in WRITES | {Op.INCR} and one not in violation.calls]
    assert set(violation.calls) <= set(history)
    assert rule in rules(*violation.calls, *writes, by=by)


EVER_WRONG = {
    "torn": "a value that is not whole",
    "invented": "a value that was never written",
    "of another key": "a value that was never written",
    "from the future": "a value before it was written",
    "certainly not made": "a value whose write was certainly not made",
    "a counter from nowhere": "a counter that nobody began",
    "a counter from a failure": "a counter whose beginning was certainly not made",
    "a counter from the future": "a counter before it was begun",
    "an add that failed its condition": "a value whose write was certainly not made",
    "read before it was computed": "a value before it was written",
    "a counter that was never begun": "a counter that nobody began",
}


@pytest.mark.parametrize("name", WRONG | WRONG_STRICT)
def test_in_available_mode_old_values_are_right_and_invented_ones_are_not(name: str) -> None:
    rule, history = (WRONG | WRONG_STRICT)[name]
    always = {EVER_WRONG[name]} if name in EVER_WRONG else {rule} & {"two computations at once"}
    assert rules(*history, by=check_available) == always


def test_only_under_one_clock_an_older_value_tells_of_an_older_write() -> None:
    history = RIGHT_STRICT["a write that is seen twice, as it was made twice"]
    assert rules(*history, by=check_linearizable) == {"an older value after a newer one"}


@pytest.mark.parametrize(
    ("rule", "history"),
    [
        (
            "a counter that went back",
            [
                incr(0, 1, "a+1"),
                counted(2, 3, "a+1"),
                incr(4, 5, "a+2", "b"),
                counted(6, 7, "a+2"),
                counted(8, 9, "a+1"),
            ],
        ),
        (WRONG["certainly not made"][0], [set_(0, 1, "a"), set_(2, 3, "b", FAILED), read(4, 5, "b"), read(6, 7, "a")]),
    ],
)
def test_what_is_wrong_by_itself_is_told_once(rule: str, history: list[Call]) -> None:
    assert [violation.rule for violation in check_linearizable(history)] == [rule]


def test_keys_are_judged_one_by_one() -> None:
    right = [set_(0, 1, "a"), read(2, 3, "a")]
    wrong = [attrs.evolve(one, key="other") for one in WRONG["stale"][1]]
    assert {violation.key for violation in check_linearizable([*right, *wrong])} == {"other"}


def test_the_order_of_the_calls_in_a_history_does_not_matter() -> None:
    for rule, history in WRONG_STRICT.values():
        assert rule in rules(*reversed(history), by=check_strict)
