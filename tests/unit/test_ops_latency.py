"""How long a node usually takes, and how many extra calls that is worth."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from dcache.ops.context import Counters
from dcache.ops.latency import FLOOR, MOST_SAVED, WARM_UP, Hedging


def hedging() -> Hedging:
    return Hedging(Counters())


def answers(book: Hedging, draw: Callable[[], float], number: int, node: str = "a") -> None:
    for _ in range(number):
        book.took(node, draw())


def test_a_node_of_which_little_is_known_is_never_raced() -> None:
    book = hedging()
    assert book.patience("a") == math.inf
    answers(book, lambda: 0.01, WARM_UP - 1)
    assert book.patience("a") == math.inf
    answers(book, lambda: 0.01, 1)
    assert book.patience("a") == 0.01


def test_one_slow_answer_while_warming_up_does_not_count() -> None:
    """The first one brings its connection with it."""
    book = hedging()
    book.took("a", 3.0)
    answers(book, lambda: 0.01, WARM_UP)
    assert book.patience("a") == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: rng.uniform(0.01, 0.02),
        lambda rng: rng.expovariate(100.0) + 0.003,
        lambda rng: 0.1 if rng.random() < 0.2 else 0.01 * (1 + rng.random()),
    ],
    ids=["even", "long tail", "two humps"],
)
@pytest.mark.parametrize("seed", range(3))
def test_about_one_answer_in_twenty_takes_longer_than_usual(draw: Callable[[random.Random], float], seed: int) -> None:
    rng, book = random.Random(seed), hedging()
    answers(book, lambda: draw(rng), 2000)
    longer = 0
    for _ in range(10_000):
        seconds = draw(rng)
        longer += seconds > book.patience("a")
        book.took("a", seconds)
    assert 400 <= longer <= 600


def test_the_usual_time_follows_the_node_both_ways() -> None:
    rng, book = random.Random(1), hedging()
    answers(book, lambda: rng.uniform(0.009, 0.01), 1000)
    answers(book, lambda: rng.uniform(0.09, 0.1), 200)
    assert 0.08 < book.patience("a") < 0.12
    answers(book, lambda: rng.uniform(0.009, 0.01), 3000)
    assert 0.009 < book.patience("a") < 0.012


def test_every_node_has_its_own_usual_time_but_none_less_than_the_floor() -> None:
    book = hedging()
    answers(book, lambda: 0.05, WARM_UP, "far")
    answers(book, lambda: 0.0001, WARM_UP, "near")
    assert book.patience("far") == 0.05
    assert book.patience("near") == FLOOR


def test_an_answer_that_never_came_counts_once_it_was_waited_for_long_enough() -> None:
    book = hedging()
    answers(book, lambda: 0.01, WARM_UP)
    book.unanswered("a", 1.0, 1.005)
    assert book.patience("a") == 0.01
    for _ in range(50):
        book.unanswered("a", 1.0, 1.2)
    assert book.patience("a") > 0.05


@pytest.mark.parametrize("calls", [0, 19, 20, 399, 1000])
def test_there_are_at_most_five_extra_calls_in_a_hundred(calls: int) -> None:
    book, extra = hedging(), 0
    for _ in range(calls):
        book.called()
        extra += book.take()
    assert extra == calls // 20 or extra == calls // 20 - 1  # what is earned in twentieths may lack a hair


def test_a_calm_time_leaves_some_for_a_bad_one_but_not_for_ever() -> None:
    counters = Counters()
    book = Hedging(counters)
    for _ in range(100_000):
        book.called()
    extra = sum(book.take() for _ in range(10_000))
    assert MOST_SAVED - 1 <= extra <= MOST_SAVED + 1
    assert counters.hedges == extra


def test_a_node_that_owes_an_answer_for_long_is_overdue_once_and_not_if_it_answers() -> None:
    book = hedging()
    assert not book.overdue("a", 0.1, 5.0)
    book.unanswered("a", 1.0, 1.01)
    book.unanswered("a", 1.08, 1.09)
    assert not book.overdue("b", 0.1, 1.2)
    assert not book.overdue("a", 0.1, 1.09)
    assert book.overdue("a", 0.1, 1.11)
    assert not book.overdue("a", 0.1, 1.12)
    book.unanswered("a", 2.0, 2.01)
    book.answered("a")
    assert not book.overdue("a", 0.1, 3.0)
