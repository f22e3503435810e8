"""Whom one member probes next, and which misses count."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from dcache.agent.suspicions import ALONE, HELPERS, MISSES, MOST_WATCHED, WATCH, Suspicions
from dcache.membership import Member

NAMES = [f"n{number}" for number in range(10)]


def suspicions(seed: int = 0) -> Suspicions:
    return Suspicions(random.Random(seed).random)


def row(incarnation: int = 1) -> Member:
    return Member("x", "x:7400", incarnation=incarnation)


def miss(doubts: Suspicions, begun: int, *, incarnation: int = 1, vouched: bool = False, weight: float = 1.0) -> bool:
    """A probe of x is not answered; whether x is down."""
    doubts.missed(row(incarnation), begun)
    return doubts.is_down("x", vouched=vouched, weight=weight)


# Whom to probe


def test_everybody_is_probed_once_in_a_round_and_rounds_differ() -> None:
    doubts = suspicions()
    rounds = [[doubts.due(NAMES, [], 1)[0] for _ in NAMES] for _ in range(4)]
    assert all(sorted(names) == NAMES for names in rounds)
    assert len(set(map(tuple, rounds))) == 4


@pytest.mark.parametrize(("members", "most"), [(10, 3), (2, 2), (1, 1), (0, 0)])
def test_several_may_have_their_turn_at_once_but_none_twice(members: int, most: int) -> None:
    doubts = suspicions()
    for _ in range(20):
        chosen = doubts.due(NAMES[:members], [], 3)
        assert len(chosen) == len(set(chosen)) == most


def test_who_is_down_or_gone_since_the_round_began_is_passed_over() -> None:
    doubts = suspicions()
    doubts.due(NAMES, [], 1)
    left = NAMES[:3]
    assert {doubts.due(left, [], 1)[0] for _ in range(3)} == set(left)


def test_whoever_missed_is_probed_every_time_until_it_answers() -> None:
    doubts = suspicions()
    miss(doubts, 0)
    assert all("x" in doubts.due([*NAMES, "x"], [], 1) for _ in range(5))
    doubts.answered("x", 1)
    assert "x" not in doubts.due([*NAMES, "x"], [], 0)


def test_whoever_was_asked_about_is_probed_a_few_times() -> None:
    doubts = suspicions()
    doubts.watch("x")
    assert [doubts.due(["x"], [], 0) for _ in range(WATCH + 1)] == [["x"]] * WATCH + [[]]


def test_not_too_many_are_watched_at_once_and_the_others_have_their_turn_after_them() -> None:
    doubts = suspicions()
    for name in NAMES:
        doubts.watch(name)
    probed = Counter(name for _ in range(2 * WATCH) for name in doubts.due(NAMES, [], 0))
    assert len(NAMES) > MOST_WATCHED
    assert probed == dict.fromkeys(NAMES, WATCH)


def test_all_together_probe_one_that_is_down_about_three_times_an_interval() -> None:
    members = [suspicions(seed) for seed in range(100)]
    others = [f"n{number}" for number in range(98)]
    asked = [sum("x" in doubts.due(others, ["x"], 1) for doubts in members) for _ in range(50)]
    assert 2 < sum(asked) / 50 < 4


def test_in_a_small_cluster_everybody_probes_who_is_down_every_time() -> None:
    doubts = suspicions()
    assert all("x" in doubts.due(["y"], ["x"], 1) for _ in range(20))


# Which misses count


def test_three_misses_in_a_row_are_enough_and_two_are_not() -> None:
    doubts = suspicions()
    assert [miss(doubts, begun) for begun in (0, 1000, 2000)] == [False, False, True]
    assert MISSES == 3


def test_an_answer_ends_the_row() -> None:
    doubts = suspicions()
    miss(doubts, 0)
    miss(doubts, 1000)
    doubts.answered("x", 2000)
    assert [miss(doubts, begun) for begun in (3000, 4000, 5000)] == [False, False, True]


def test_what_somebody_vouches_for_is_no_miss_and_voids_those_before() -> None:
    doubts = suspicions()
    miss(doubts, 0)
    miss(doubts, 1000)
    assert not miss(doubts, 2000, vouched=True)
    assert [miss(doubts, begun) for begun in (3000, 4000, 5000)] == [False, False, True]


def test_misses_of_an_earlier_incarnation_say_nothing_of_the_next() -> None:
    doubts = suspicions()
    miss(doubts, 0)
    miss(doubts, 1000)
    assert [miss(doubts, begun, incarnation=2) for begun in (2000, 3000, 4000)] == [False, False, True]


def test_misses_that_nobody_answers_questions_about_weigh_less() -> None:
    doubts = suspicions()
    needed = round(MISSES / ALONE)
    assert [miss(doubts, begun, weight=ALONE) for begun in range(needed)] == [False] * (needed - 1) + [True]


def test_an_answer_to_others_counts_since_the_last_probe_but_two() -> None:
    """Those who were asked probe once between any two of the asker's probes but one, so one of them must have heard."""
    doubts = suspicions()
    assert [doubts.missed(row(), begun) for begun in (10, 20, 30, 40, 50)] == [10, 10, 10, 20, 30]


# Who is asked


def test_a_few_are_asked_and_not_always_the_same() -> None:
    doubts = suspicions()
    asked = [tuple(doubts.helpers(NAMES)) for _ in range(20)]
    assert {len(helpers) for helpers in asked} == {HELPERS}
    assert {name for helpers in asked for name in helpers} == set(NAMES)


def test_those_that_miss_answers_themselves_are_not_asked() -> None:
    doubts = suspicions()
    miss(doubts, 0)
    assert doubts.helpers(["x", "y"]) == ["y"]


def test_it_is_known_how_long_ago_a_member_answered() -> None:
    doubts = suspicions()
    assert doubts.age("x", 500) is None
    doubts.answered("x", 1000)
    assert doubts.age("x", 1500) == 500


def test_nothing_is_kept_of_those_that_are_no_members_any_more() -> None:
    doubts = suspicions()
    doubts.answered("x", 0)
    doubts.watch("x")
    doubts.due(["y"], [], 1)
    assert doubts.age("x", 0) is None
    assert doubts.due(["x"], [], 0) == []
