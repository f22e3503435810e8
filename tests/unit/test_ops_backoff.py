"""Which nodes are left alone, for how long, and who probes them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.ops.backoff import Backoff

LONGEST = 0.999999


def backoff(random: Callable[[], float] = lambda: LONGEST, **options: float) -> Backoff:
    return Backoff(random, **options)


def wait_after(book: Backoff, node: str, now: float = 0.0) -> float:
    """How long `node` is left alone from `now` on, to a thousandth of a second."""
    return next(ms / 1000 for ms in range(10_000) if book.trouble(node, now + ms / 1000) < 2)


def test_a_node_that_nothing_is_known_of_may_be_called() -> None:
    book = backoff()
    assert book.allows("a", 0.0) is None
    book.failed("b", "refused", 0.0)
    assert book.allows("a", 0.0) is None


def test_a_node_that_failed_is_left_alone_and_it_is_said_why() -> None:
    book = backoff()
    book.failed("a", "connection refused", 0.0)
    assert book.allows("a", 0.05) == "left alone after: connection refused"


def test_the_wait_doubles_with_each_failure_up_to_the_longest() -> None:
    book, waits = backoff(), []
    for _ in range(8):
        book.failed("a", "refused", 0.0)
        waits.append(wait_after(book, "a"))
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0], abs=0.002)


def test_very_many_failures_do_not_overflow() -> None:
    book = backoff()
    for _ in range(3000):
        book.failed("a", "refused", 0.0)
    assert wait_after(book, "a") == pytest.approx(5.0, abs=0.002)


@given(jitter=st.floats(0, LONGEST), failures=st.integers(1, 10))
def test_a_wait_is_half_to_all_of_its_nominal_length(jitter: float, failures: int) -> None:
    book = backoff(lambda: jitter, first=1.0, most=64.0)
    for _ in range(failures):
        book.failed("a", "refused", 0.0)
    nominal = min(64.0, 2.0 ** (failures - 1))
    assert book.trouble("a", nominal * 0.499) == 2
    assert book.trouble("a", nominal) < 2
    wait = nominal * (0.5 + 0.5 * jitter)
    assert book.trouble("a", wait - 0.001) == 2
    assert book.trouble("a", wait + 0.001) < 2


def test_after_the_wait_one_caller_probes_and_the_others_keep_away() -> None:
    book = backoff()
    book.failed("a", "refused", 0.0)
    assert book.allows("a", 0.2) is None
    assert book.allows("a", 0.2) is not None
    assert book.allows("a", 0.29) is not None


def test_a_probe_that_never_comes_back_is_followed_by_another() -> None:
    book = backoff()
    book.failed("a", "refused", 0.0)
    assert book.allows("a", 0.2) is None
    assert book.allows("a", 0.31) is None


def test_a_node_that_answered_is_well_again_and_starts_over() -> None:
    book = backoff()
    book.failed("a", "refused", 0.0)
    book.failed("a", "refused", 0.0)
    book.answered("a")
    assert book.allows("a", 0.0) is None
    book.failed("a", "refused", 0.0)
    assert wait_after(book, "a") == pytest.approx(0.1, abs=0.002)


def test_the_answer_of_a_node_that_never_failed_changes_nothing() -> None:
    book = backoff()
    book.answered("a")
    book.failed("b", "refused", 0.0)
    book.answered("a")
    assert book.allows("b", 0.0) is not None


def test_a_slow_node_is_asked_last_but_is_asked() -> None:
    book = backoff()
    book.slow("a", 0.0)
    assert book.allows("a", 0.0) is None
    assert book.rank(("a", "b"), 0.0) == ["b", "a"]
    assert book.trouble("a", 0.0) == 1


def test_slowness_is_forgotten_after_a_while() -> None:
    book = backoff(lambda: 0.5)
    book.slow("a", 0.0)
    assert book.trouble("a", 2.5) == 1
    assert book.trouble("a", 2.61) == 0


def test_an_answer_ends_a_failure_and_leaves_slowness() -> None:
    book = backoff()
    book.failed("a", "refused", 0.0)
    book.slow("a", 0.0)
    book.answered("a")
    assert book.trouble("a", 0.0) == 1


def test_nodes_are_ranked_by_their_trouble_and_keep_their_order_otherwise() -> None:
    book = backoff()
    book.failed("a", "refused", 0.0)
    book.slow("b", 0.0)
    book.failed("d", "refused", -1.0)  # about to be probed
    assert book.rank("abcde", 0.0) == ["c", "e", "b", "d", "a"]


def test_without_trouble_the_order_is_the_given_one() -> None:
    nodes = ("b", "a")
    assert backoff().rank(nodes, 0.0) is nodes


def test_after_a_fork_nothing_is_held_against_anybody() -> None:
    book = backoff()
    book.failed("a", "refused", 0.0)
    book.slow("b", 0.0)
    book.reset()
    assert book.rank(("a", "b"), 0.0) == ("a", "b")
    assert book.allows("a", 0.0) is None


def test_a_node_rests_while_nobody_calls_it_and_not_while_it_is_probed() -> None:
    """So the calls that fail together on one broken connection count as one failure, and a failed probe as another."""
    book = backoff()
    assert not book.resting("a", 0.0)
    book.failed("a", "broken", 0.0)
    assert book.resting("a", 0.05)
    assert not book.resting("a", 0.2)
    assert book.allows("a", 0.2) is None
    assert not book.resting("a", 0.21), "the probe is under way"
    book.failed("a", "broken", 0.21)
    assert book.resting("a", 0.22)


def test_a_node_that_nobody_needs_after_its_wait_is_due_to_be_asked_until_somebody_does() -> None:
    book = backoff()
    assert not book.failures
    assert book.due(0.0) == []
    book.failed("a", "refused", 0.0)
    book.failed("b", "refused", 1.0)
    assert book.failures
    assert book.due(0.05) == []
    assert book.due(0.2) == ["a"]
    assert book.probed() == []
    assert book.allows("a", 0.2) is None
    assert book.due(0.2) == []
    assert book.probed() == ["a"]
    book.answered("a")
    assert book.probed() == []
    assert (book.failing("a"), book.failing("b")) == (False, True)
