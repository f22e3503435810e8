"""Asking other nodes what they hold: what is sent, what is made of answers, and how fast."""

from __future__ import annotations

from typing import Any

import pytest

from dcache.ops.effects import Call, Op, Round, Sleep
from dcache.ops.listing import FETCH, Others, Pace, from_bitmap, to_bitmap
from dcache.record import ZERO
from dcache.ring import SLOTS
from dcache.wire import Limits
from tests.unit.ops_kit import FakeLink, v


def driven(op: Op[Any], answer: Any, sent: list[Call]) -> Any:
    """Run `op`; every call is answered with what `answer(call)` gives."""
    while True:
        try:
            effect = next(op)
        except StopIteration as stop:
            return stop.value
        if isinstance(effect, Round):
            for call in list(effect.begin()):
                sent.append(call)
                effect.replied(call, answer(call), FakeLink())


def others() -> Others:
    return Others(b"f" * 8, Pace(1e9))


def test_slots_travel_as_a_bitmap() -> None:
    assert to_bitmap([0, 9])[:2] == b"\x01\x02"
    assert len(to_bitmap([])) == SLOTS // 8
    assert from_bitmap(to_bitmap([3, 77, SLOTS - 1])) == [3, 77, SLOTS - 1]


def test_no_request_holds_more_keys_than_a_node_takes() -> None:
    sent: list[Call] = []
    keys = [b"\0%d" % n for n in range(3000)]
    got: list[bytes] = []

    def answer(call: Call) -> Any:
        return tuple((v(1), b"x", 0, None) for _ in call.params[1][:700])

    unanswered = driven(others().fetch({"a": keys}, lambda key, *record: got.append(key)), answer, sent)
    assert got == keys
    assert unanswered == []
    assert Limits().max_batch >= FETCH
    assert all(len(call.params[1]) <= Limits().max_batch for call in sent)


def test_the_slots_of_an_index_are_told_once() -> None:
    sent: list[Call] = []
    indexes = driven(others().indexes({"a": [1, 2]}), lambda call: (7, len(sent) == 5), sent)
    assert indexes == {"a": 7}
    assert [len(call.params[1]) for call in sent] == [SLOTS // 8, 0, 0, 0, 0]


def test_an_inventory_is_asked_for_until_all_slots_are_in() -> None:
    sent: list[Call] = []
    part = ((b"\0a", v(1)),), ((b"\0b", v(2)),)
    heard = driven(others().inventories({"a": 7}, {"a": [1, 2, 3]}), lambda call: ((True, ZERO, v(9), *part),), sent)
    assert [call.params[2] for call in sent] == [[1, 2, 3], [2, 3], [3]]
    assert heard.rounds == 3
    assert heard.by_slot[3]["a"].versions == {b"\0a": v(1), b"\0b": v(2)}
    assert heard.by_slot[3]["a"].barrier == v(9)


GARBAGE = [
    None,
    7,
    b"",
    (),
    "text",
    (1, 2, 3),
    ((1,),),
    ((True, b"", b"", 5),),
    ((True, 1, 2, ()),),
    ((1, 2, 3, 4),) * 99,
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=repr)
def test_a_node_that_answers_garbage_is_left_out(garbage: Any) -> None:
    asked, sent = others(), []  # type: ignore[var-annotated]
    assert driven(asked.overviews({"a": [1]}), lambda call: garbage, sent) == {}
    assert driven(asked.digests({"a": [1]}), lambda call: garbage, sent) == {}
    assert driven(asked.inventories({"a": 7}, {"a": [1]}), lambda call: garbage, sent).by_slot == {}
    assert driven(asked.fetch({"a": [b"k"]}, lambda *record: None), lambda call: garbage, sent) == [b"k"]


def test_bytes_are_paid_for_with_sleep() -> None:
    pace = Pace(1000.0)
    slept = [effect.seconds for size in (100, 2, 2, 3) for effect in pace.pay(size) if isinstance(effect, Sleep)]
    assert slept == pytest.approx([0.1, 0.0, 0.0, 0.007])
    assert pace.bytes == 107
