"""Versions sort as bytes, and no clock ever gives one out twice or goes back."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.record import (
    COUNTER_MAX,
    SET_BACK,
    WRITERS,
    ZERO,
    Record,
    Version,
    VersionClock,
    make_version,
    version_milliseconds,
)

NOW = 1_700_000_000_000

milliseconds = st.integers(0, 2**48 - 2)
counters = st.integers(0, COUNTER_MAX)
writers = st.integers(0, WRITERS - 1)
parts = st.tuples(milliseconds, counters, writers)


def clock_at(now: int, writer: int = 7) -> VersionClock:
    return VersionClock(writer, lambda: now)


def split(version: bytes) -> tuple[int, int, int]:
    return version_milliseconds(version), int.from_bytes(version[6:8], "big"), int.from_bytes(version[8:], "big")


@given(parts, parts)
def test_versions_sort_as_bytes_as_their_parts_sort(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    assert (make_version(*one) < make_version(*other)) == (one < other)
    assert (make_version(*one) == make_version(*other)) == (one == other)


@given(parts)
def test_a_version_is_twelve_bytes_that_carry_its_parts(three: tuple[int, int, int]) -> None:
    version = make_version(*three)
    assert len(version) == 12
    assert split(version) == three


@given(parts)
def test_nothing_is_below_zero(three: tuple[int, int, int]) -> None:
    assert make_version(*three) >= ZERO


def test_a_stamp_carries_the_wall_clock_and_the_writer() -> None:
    assert split(clock_at(NOW, writer=7).stamp()) == (NOW, 0, 7)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_stamps_only_grow_whatever_the_wall_clock_does(walls: list[int]) -> None:
    times = iter(walls)
    clock = VersionClock(7, lambda: next(times))
    stamps = [clock.stamp() for _ in walls]
    assert all(earlier < later for earlier, later in itertools.pairwise(stamps))
    assert all(version_milliseconds(stamp) >= wall for stamp, wall in zip(stamps, walls, strict=True))


def test_stamps_made_together_are_those_made_one_by_one() -> None:
    one, other = clock_at(NOW, writer=7), clock_at(NOW, writer=7)
    together = [one.stamp(), *one.stamps(70_000), one.stamp()]
    assert together == [other.stamp() for _ in range(70_002)]


def test_a_wall_clock_that_goes_back_is_waited_for() -> None:
    """Until it has caught up, stamps stay in the millisecond that was reached before."""
    times = iter([NOW, NOW - SET_BACK, NOW - 1, NOW, NOW + 1])
    clock = VersionClock(7, lambda: next(times))
    assert [split(clock.stamp())[:2] for _ in range(5)] == [(NOW, 0), (NOW, 1), (NOW, 2), (NOW, 3), (NOW + 1, 0)]


def test_a_wall_clock_that_was_set_right_is_followed_by_another_writer() -> None:
    """Else a clock that was hours ahead for a moment would keep its client from writing for hours."""
    times = iter([NOW + 3_600_000, NOW, NOW, NOW + 1, NOW - 3_600_000])
    clock = VersionClock(7, lambda: next(times))
    stamps = [split(clock.stamp()) for _ in range(5)]
    assert [stamp[:2] for stamp in stamps] == [
        (NOW + 3_600_000, 0),
        (NOW, 0),
        (NOW, 1),
        (NOW + 1, 0),
        (NOW - 3_600_000, 0),
    ]
    writers = [stamp[2] for stamp in stamps]
    assert writers[0] == 7
    assert len(set(writers)) == 3


@given(st.lists(st.integers(0, 20).map(lambda hours: NOW + hours * 3_600_000), max_size=40))
def test_a_clock_that_is_set_to_and_fro_stamps_nothing_twice(walls: list[int]) -> None:
    times = iter(walls)
    clock = VersionClock(7, lambda: next(times))
    stamps = [version for _ in walls for version in (clock.stamp(), clock.above(ZERO))]
    assert len(set(stamps)) == len(stamps)


def test_more_stamps_than_a_millisecond_holds_borrow_from_the_next() -> None:
    clock = clock_at(NOW)
    stamps = [clock.stamp() for _ in range(COUNTER_MAX + 2)]
    assert stamps == sorted(set(stamps))
    assert split(stamps[-2]) == (NOW, COUNTER_MAX, 7)
    assert split(stamps[-1]) == (NOW + 1, 0, 7)


def test_a_borrowed_millisecond_is_not_given_out_again() -> None:
    times = [NOW] * (COUNTER_MAX + 2) + [NOW + 1]
    clock = VersionClock(7, iter(times).__next__)
    stamps = [clock.stamp() for _ in times]
    assert split(stamps[-1]) == (NOW + 1, 1, 7)


@given(parts, writers)
def test_above_is_the_next_count_after_a_version(three: tuple[int, int, int], writer: int) -> None:
    """Above it, and no further than one step of the counter: another machine's fast clock is not overtaken."""
    above = clock_at(NOW, writer).above(make_version(*three))
    assert above > make_version(*three)
    assert (int.from_bytes(above[:8], "big") - int.from_bytes(make_version(*three)[:8], "big")) == 1


def test_above_the_last_count_of_a_millisecond_is_the_next_millisecond() -> None:
    assert split(clock_at(NOW).above(make_version(5, COUNTER_MAX, WRITERS - 1)))[:2] == (6, 0)


def test_a_version_made_above_does_not_move_the_clock() -> None:
    """Otherwise one machine with a fast clock would drag all others along."""
    clock = clock_at(NOW)
    clock.above(make_version(NOW + 10**9, 0, 1))
    assert split(clock.stamp()) == (NOW, 0, 7)


@given(writers)
def test_versions_above_the_same_one_differ_from_each_other_and_never_carry_the_clocks_own_writer(writer: int) -> None:
    clock = clock_at(NOW, writer)
    stamp = clock.stamp()
    above = [clock.above(stamp) for _ in range(20)]
    assert len(set(above)) == 20
    assert writer not in {split(version)[2] for version in above}


def test_writers_of_versions_above_skip_the_own_one_when_they_have_gone_round() -> None:
    clock = clock_at(NOW, writer=0)
    clock._other = WRITERS - 1  # as after all the others
    assert split(clock.above(ZERO))[2] == 1


def test_a_writer_id_is_cut_to_32_bits() -> None:
    assert split(clock_at(NOW, writer=WRITERS + 3).stamp()) == (NOW, 0, 3)


def test_a_reset_clock_stamps_as_another_writer_from_now_on() -> None:
    times = iter([NOW + 5, NOW])
    clock = VersionClock(7, lambda: next(times))
    parents = clock.stamp()
    clock.reset(8)
    assert split(clock.stamp()) == (NOW, 0, 8)
    assert split(clock.above(parents))[2] not in {7, 8}


def test_a_reset_frees_a_clock_whose_lock_was_held_when_the_process_forked() -> None:
    clock = clock_at(NOW)
    clock._lock.acquire()  # by a thread that does not exist in the child
    clock.reset(8)
    assert split(clock.stamp()) == (NOW, 0, 8)


class Yielding(int):
    """A number that lets other threads run in the middle of whatever is computed or compared with it."""

    def __add__(self, other: int) -> Yielding:
        time.sleep(0)
        return Yielding(int(self) + other)

    def __mod__(self, other: int) -> Yielding:
        time.sleep(0)
        return Yielding(int(self) % other)

    def __gt__(self, other: int) -> bool:
        greater = int(self) > other
        time.sleep(0)
        return greater


def in_threads(work: Callable[[], list[Version]], threads: int) -> list[list[Version]]:
    """What each of `threads` threads returned that did this at once."""
    results: list[list[Version]] = []
    start = threading.Barrier(threads)

    def run() -> None:
        start.wait()
        results.append(work())

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return results


def test_no_version_is_given_out_twice_by_threads_that_stamp_and_overtake_at_once() -> None:
    walls = iter(range(NOW, NOW + 10**6))
    clock = VersionClock(Yielding(WRITERS - 40), lambda: Yielding(next(walls) // 50))
    common = make_version(NOW // 50, 0, 0)  # what all overtake: only the writer can tell the results apart

    def work() -> list[Version]:
        return [version for _ in range(200) for version in (clock.stamp(), clock.above(common))]

    results = in_threads(work, 8)
    everything = [version for result in results for version in result]
    assert len(set(everything)) == len(everything) == 8 * 400
    for result in results:
        stamps = result[::2]
        assert stamps == sorted(stamps)


@pytest.mark.parametrize(("field", "default"), [("ttl", None), ("flags", 0)])
def test_a_record_lives_for_ever_and_has_no_flags_unless_told(field: str, default: Any) -> None:
    assert getattr(Record(b"x", ZERO), field) == default


def test_records_compare_by_content_and_cannot_be_changed() -> None:
    assert Record(b"x", ZERO, 5) == Record(b"x", ZERO, 5) != Record(b"x", ZERO, 6)
    with pytest.raises(AttributeError):
        Record(b"x", ZERO).value = b"y"  # type: ignore[misc]
