"""What stands behind `dcache members`, `leave`, `forget` and `repair`: looking at a cluster from outside, and judging
how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import pytest

from dcache.cli.changes import percent
from dcache.cli.cluster import place
from dcache.cli.repairs import standing
from dcache.errors import NodeError, NoNodesAvailable
from dcache.membership import Health, Member, MemberTable, RingState, Settings
from dcache.ops.backoff import Backoff
from dcache.ops.context import Context, Options, Shared
from dcache.ops.effects import Call, Op, Round
from dcache.ops.survey import Survey, everybody, going, off_the_ring, survey, wish
from dcache.record import VersionClock
from dcache.wire import Code

ROWS = {name: Member(name, f"{name}:7400") for name in "abcd"}
SETTINGS = Settings("c")


def table_of(members: str, coming: str | None = None, epoch: int = 1, down: str = "") -> MemberTable:
    placed = tuple(ROWS[name].placed() for name in members)
    following = None if coming is None else tuple(ROWS[name].placed() for name in coming)
    rows = {
        name: attrs.evolve(row, health=Health.DOWN if name in down else Health.UP)
        for name, row in ROWS.items()
        if name in members + (coming or "")
    }
    return MemberTable(SETTINGS, RingState(epoch, placed, following), rows)


def context(table: MemberTable) -> Context:
    return Context(table, Options(), Shared(VersionClock(1, lambda: 0), lambda: 0.0, lambda: 0.5, Backoff(lambda: 0.5)))


class Alive:
    alive = True


def drive(operation: Op[Any], answers: Mapping[tuple[str, str], Any]) -> tuple[list[tuple[str, str]], Any]:
    """The calls that an operation of one round makes, as (node, method), and its result; what is an exception, or has
    no answer, fails."""
    made: list[tuple[str, str]] = []
    round_ = next(operation)
    assert isinstance(round_, Round)
    queue: list[Call] = list(round_.begin())
    for call in queue:
        made.append((call.node, call.method))
        answer = answers.get(made[-1], OSError("refused"))
        if isinstance(answer, Exception):
            queue.extend(round_.failed(call, answer, False))
        else:
            queue.extend(round_.replied(call, answer, Alive()))
    assert round_.over()
    with pytest.raises(StopIteration) as stop:
        next(operation)
    return made, stop.value.value


# -- looking ----------------------------------------------------------------------------------------------------------


def test_a_survey_has_the_newest_table_and_the_statistics_of_all_that_answer() -> None:
    old, new = table_of("abc"), table_of("abc", "ab", epoch=2)
    answers = {
        ("a", "table"): old.to_wire(),
        ("b", "table"): new.to_wire(),
        ("a", "stats"): {"entries": 1},
        ("b", "stats"): {"entries": 2},
    }
    made, seen = drive(survey(context(old)), answers)
    assert sorted(made) == sorted((name, method) for name in "abc" for method in ("table", "stats"))
    assert seen.table == new
    assert seen.changing
    assert seen.stats == {"a": {"entries": 1}, "b": {"entries": 2}}


def test_a_table_of_another_cluster_and_garbage_do_not_count() -> None:
    mine = table_of("ab")
    foreign = attrs.evolve(table_of("ab", epoch=9), settings=Settings("another"))
    answers = {("a", "table"): foreign.to_wire(), ("b", "table"): 5, ("b", "stats"): {}}
    _, seen = drive(survey(context(mine)), answers)
    assert seen.table == mine


def test_a_survey_tells_for_whom_a_change_waits() -> None:
    full, lacking = {"slots": 9, "slots_complete": 9}, {"slots": 9, "slots_complete": 8}
    seen = Survey(table_of("abc", "abcd", down="c"), {"a": full, "b": lacking})
    assert seen.waited_for == ("b", "d")
    assert Survey(table_of("abc", "ab"), {"a": full, "b": full}).waited_for == ()
    assert Survey(table_of("ab"), {"a": full, "b": lacking}).waited_for == ("b",)


def test_a_survey_of_nobody_says_so() -> None:
    with pytest.raises(NoNodesAvailable):
        drive(survey(context(table_of("ab"))), {})


@pytest.mark.parametrize(
    ("members", "answering", "enough"),
    [("a", "a", True), ("ab", "a", False), ("abc", "bc", True), ("abcd", "ab", False), ("abc", "ad", False)],
)
def test_a_majority_of_those_on_the_ring_can_change_it(members: str, answering: str, enough: bool) -> None:
    seen = Survey(table_of(members, "abcd"), {name: {} for name in answering})
    assert seen.enough() is enough


# -- wishing ----------------------------------------------------------------------------------------------------------


def test_a_wish_is_told_to_one_that_is_up_and_takes_it() -> None:
    made, _ = drive(wish(context(table_of("abc", down="a")), "leave", "c"), {("b", "leave"): None})
    assert made == [("b", "leave")]


def test_a_wish_is_told_to_one_on_the_ring_rather_than_to_one_that_is_on_its_way() -> None:
    made, _ = drive(wish(context(table_of("bcd", coming="abcd", down="bd")), "forget", ["d"]), {("c", "forget"): None})
    assert made == [("c", "forget")]


def test_a_wish_that_one_refuses_may_be_taken_by_another_that_knows_more() -> None:
    refused = NodeError(Code.BAD_REQUEST, "bad", "c is not down")
    answers: dict[tuple[str, str], Any] = {("a", "forget"): refused, ("b", "forget"): None}
    made, _ = drive(wish(context(table_of("abc")), "forget", ["c"]), answers)
    assert made == [("a", "forget"), ("b", "forget")]


def test_a_wish_that_nobody_takes_is_refused_for_the_reason_that_was_given() -> None:
    refused = NodeError(Code.BAD_REQUEST, "bad", "c is not down")
    with pytest.raises(NodeError) as raised:
        drive(wish(context(table_of("abc")), "forget", ["c"]), {("b", "forget"): refused})
    assert raised.value.detail == "c is not down"
    with pytest.raises(NoNodesAvailable):
        drive(wish(context(table_of("abc")), "forget", ["c"]), {})


def test_everybody_is_told_and_those_that_heard_it_are_named() -> None:
    made, told = drive(everybody(context(table_of("abc")), "repair"), {("a", "repair"): None, ("c", "repair"): None})
    assert made == [("a", "repair"), ("b", "repair"), ("c", "repair")]
    assert told == {"a", "c"}
    with pytest.raises(NoNodesAvailable):
        drive(everybody(context(table_of("abc")), "repair"), {})


@pytest.mark.parametrize(
    ("members", "coming", "off", "is_going"),
    [("abc", None, False, False), ("abc", "ab", False, True), ("ab", None, True, True), ("ab", "abc", False, False)],
)
def test_a_member_is_off_the_ring_when_it_is_on_neither(
    members: str, coming: str | None, off: bool, is_going: bool
) -> None:
    table = table_of(members, coming)
    assert (off_the_ring(table, "c"), going(table, "c")) == (off, is_going)


# -- telling ----------------------------------------------------------------------------------------------------------


def test_the_place_of_a_member_is_told_for_now_and_after_the_change() -> None:
    seen = Survey(table_of("abc", "abd"), {})
    assert [place(seen, name) for name in "acd"] == ["yes", "leaving", "joining"]
    assert place(Survey(table_of("abc"), {}), "a") == "yes"


@pytest.mark.parametrize(
    ("part", "whole", "text"), [(0, 0, "100 %"), (5, 5, "100 %"), (0, 5, "0.0 %"), (99_999, 100_000, "99.9 %")]
)
def test_less_than_all_is_never_called_all(part: int, whole: int, text: str) -> None:
    assert percent(part, whole) == text


def work(owned: int, complete: int, rounds: int, copied: int) -> dict[str, int]:
    return {"slots": owned, "slots_complete": complete, "repair_rounds": rounds, "repair_bytes": copied}


def test_a_repair_is_over_when_all_are_complete_and_have_compared_since() -> None:
    before = {"a": work(10, 10, 3, 100), "b": work(10, 4, 1, 50)}
    for after, over in (
        ({"a": work(10, 10, 4, 100), "b": work(10, 9, 2, 90)}, False),
        ({"a": work(10, 10, 3, 100), "b": work(10, 10, 2, 90)}, False),
        ({"a": work(10, 10, 4, 110), "b": work(10, 10, 2, 90)}, True),
    ):
        assert standing(before, Survey(table_of("ab"), after)).over is over
    done = standing(before, Survey(table_of("ab"), {"a": work(10, 10, 4, 110), "b": work(10, 10, 2, 90)}))
    assert (done.owned, done.complete, done.copied) == (20, 20, 50)
    assert not standing(before, Survey(table_of("ab", "a"), {"a": work(10, 10, 4, 110)})).over


def test_a_node_that_no_longer_answers_is_not_waited_for() -> None:
    before = {"a": work(10, 10, 3, 100), "b": work(10, 4, 1, 50)}
    assert standing(before, Survey(table_of("ab"), {"a": work(10, 10, 4, 100)})).over
