"""The expiry wheel: a key leaves within a second of its deadline, and a tick looks at nothing else."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from dcache.node.wheel import ExpiryWheel

KEYS = [bytes([letter]) for letter in b"abcdef"]


def wheel_of(deadlines: Iterable[tuple[bytes, int]]) -> ExpiryWheel:
    wheel = ExpiryWheel()
    for key, deadline in deadlines:
        wheel.add(key, deadline)
    return wheel


def test_an_empty_wheel_has_nothing_due() -> None:
    assert ExpiryWheel().due(10**9, 10) == []


def test_a_key_is_due_once_the_whole_second_of_its_deadline_has_passed() -> None:
    wheel = wheel_of([(b"a", 5_001), (b"b", 5_999)])
    assert wheel.due(5_999, 10) == []
    assert sorted(wheel.due(6_000, 10)) == [b"a", b"b"]


def test_a_key_on_the_boundary_belongs_to_the_second_that_begins() -> None:
    wheel = wheel_of([(b"a", 5_000)])
    assert wheel.due(5_999, 10) == []
    assert wheel.due(6_000, 10) == [b"a"]


def test_what_is_due_is_given_out_once() -> None:
    wheel = wheel_of([(b"a", 1)])
    assert wheel.due(1_000, 10) == [b"a"]
    assert wheel.due(9_000, 10) == []
    assert len(wheel) == 0


def test_a_tick_gives_out_no_more_than_asked_for_and_the_next_goes_on() -> None:
    wheel = wheel_of((bytes([n]), n * 100) for n in range(50))
    found: list[bytes] = []
    for _ in range(8):
        some = wheel.due(10_000, 7)
        assert len(some) <= 7
        found += some
    assert sorted(found) == [bytes([n]) for n in range(50)]


def test_the_earliest_second_goes_first() -> None:
    wheel = wheel_of([(b"late", 9_000), (b"early", 1_000), (b"middle", 5_000)])
    assert wheel.due(20_000, 2) == [b"early", b"middle"]


def test_what_was_taken_out_again_is_never_due() -> None:
    wheel = wheel_of([(b"a", 1_000), (b"b", 1_500)])
    wheel.discard(b"a", 1_000)
    assert wheel.due(9_000, 10) == [b"b"]


def test_taking_out_what_is_not_there_changes_nothing() -> None:
    wheel = wheel_of([(b"a", 1_000)])
    wheel.discard(b"a", 7_000)
    wheel.discard(b"b", 1_000)
    assert wheel.due(9_000, 10) == [b"a"]


def test_a_second_with_nothing_left_costs_nothing() -> None:
    """No empty buckets stay behind, however many seconds were ever used."""
    wheel = ExpiryWheel()
    for second in range(1_000):
        wheel.add(b"a", second * 1_000)
        wheel.discard(b"a", second * 1_000)
    assert len(wheel._buckets) == 0


def test_asking_for_none_gives_none() -> None:
    wheel = wheel_of([(b"a", 1)])
    assert wheel.due(9_000, 0) == []
    assert len(wheel) == 1


@given(st.dictionaries(st.sampled_from(KEYS), st.integers(0, 8_000)), st.integers(0, 12_000), st.integers(0, 8))
def test_a_tick_finds_exactly_what_has_been_over_for_its_whole_second(
    deadlines: dict[bytes, int], now: int, most: int
) -> None:
    wheel = wheel_of(deadlines.items())
    over = {key for key, deadline in deadlines.items() if deadline // 1_000 < now // 1_000}
    found = wheel.due(now, most)
    assert len(found) == len(set(found)) == min(most, len(over))
    assert set(found) <= over
    assert len(wheel) == len(deadlines) - len(found)
