"""The operation behind `dcache ring KEY`, driven by hand: what each owner says, and who says nothing."""

from __future__ import annotations

from typing import Any

import pytest

from dcache.errors import NoNodesAvailable
from dcache.membership import Member, MemberTable, RingState, Settings
from dcache.ops.backoff import Backoff
from dcache.ops.cluster import Holding, holders
from dcache.ops.context import Context, Options, Shared
from dcache.ops.effects import Call, Round
from dcache.record import VersionClock, make_version

NEW, FLOOR = make_version(5000, 0, 1), make_version(4000, 0, 1)
MEMBERS = [Member(name, f"{name}:7400") for name in "abcde"]


class Alive:
    alive = True


def context() -> Context:
    ring = RingState(members=tuple(member.placed() for member in MEMBERS))
    table = MemberTable(Settings("c", replicas=4), ring, {member.name: member for member in MEMBERS})
    return Context(table, Options(), Shared(VersionClock(1, lambda: 0), lambda: 0.0, lambda: 0.5, Backoff(lambda: 0.5)))


def ask(ctx: Context, answers: list[Any]) -> tuple[list[Call], Any]:
    """Give the owners' answers, an exception being a failure, and return the calls that were made and the result."""
    operation = holders(ctx, "k")
    round_ = next(operation)
    assert isinstance(round_, Round)
    calls = list(round_.begin())
    for call, answer in zip(calls, answers, strict=True):
        if isinstance(answer, Exception):
            round_.failed(call, answer, False)
        else:
            round_.replied(call, answer, Alive())
    assert round_.over()
    with pytest.raises(StopIteration) as stop:
        next(operation)
    return calls, stop.value.value


def test_every_owner_is_asked_without_a_use_and_heard_in_order_of_preference() -> None:
    ctx = context()
    answers = [(True, NEW, b"", 0, 2500), (True, FLOOR, False), (False, NEW, b"", 0, None), OSError("refused")]
    calls, told = ask(ctx, answers)
    assert [(call.node, call.method) for call in calls] == [(owner, "peek") for owner in ctx.owners(b"k")]
    assert list(told) == list(ctx.owners(b"k"))
    assert list(told.values()) == [
        Holding(True, NEW, 2.5, True),
        Holding(False, FLOOR, None, True),
        Holding(True, NEW, None, False),
        Holding(error="refused"),
    ]


def test_an_answer_that_is_none_is_told_as_a_failure() -> None:
    _, told = ask(context(), [(True, NEW, b"", 0, None), "nonsense", (True,), TimeoutError()])
    assert [one.held for one in told.values()] == [True, False, False, False]
    errors = [one.error for one in told.values()]
    assert errors[0] is None
    assert all(errors[1:])


def test_where_no_owner_answers_each_reason_is_told() -> None:
    with pytest.raises(NoNodesAvailable) as raised:
        ask(context(), [OSError(f"reason {number}") for number in range(4)])
    assert sorted(raised.value.reasons.values()) == [f"reason {number}" for number in range(4)]
