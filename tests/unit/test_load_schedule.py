"""When operations begin: at once, or at their moments; and that those which could not are not passed over."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.testing.load.schedule import Schedule

SECOND = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 5 * SECOND

    def __call__(self) -> int:
        return self.now


@given(st.integers(1, 20), st.integers(1, 5), st.floats(1, 10_000))
def test_all_lanes_together_begin_at_the_rate_and_evenly(lanes: int, width: int, rate: float) -> None:
    clock = Clock()
    schedule = Schedule(clock, lanes, width=width, rate=rate)
    moments = sorted(
        moment for lane in range(lanes) for moment, _ in islice(schedule.starts(lane), 10) if moment is not None
    )
    apart = width * SECOND / rate
    for number, moment in enumerate(moments):
        assert moment == pytest.approx(clock.now + number * apart, abs=2)


def test_a_closed_loop_begins_at_once_until_the_end() -> None:
    clock = Clock()
    starts = Schedule(clock, 1, seconds=2.0).starts(0)
    assert next(starts) == (None, 1)
    clock.now += 2 * SECOND - 1
    assert next(starts) == (None, 1)
    clock.now += 1
    assert list(starts) == []


def test_operations_are_shared_by_all_lanes_whoever_is_faster() -> None:
    schedule = Schedule(Clock(), 3, operations=100)
    slow = schedule.starts(0)
    next(slow)
    assert sum(1 for _ in schedule.starts(1)) == 99
    assert list(slow) == []


@given(st.integers(1, 7), st.integers(1, 50))
def test_the_last_of_several_at_a_time_are_as_few_as_are_left(width: int, operations: int) -> None:
    widths = [found for _, found in Schedule(Clock(), 1, width=width, operations=operations).starts(0)]
    assert sum(widths) == operations
    assert set(widths[:-1]) <= {width}


def test_a_lane_that_was_held_up_begins_late_but_keeps_its_moments() -> None:
    clock = Clock()
    starts = Schedule(clock, 1, seconds=10.0, rate=10.0).starts(0)
    assert next(starts)[0] == clock.now
    began, clock.now = clock.now, clock.now + SECOND
    assert [moment for moment, _ in islice(starts, 3)] == [began + SECOND * tenths // 10 for tenths in (1, 2, 3)]


def test_what_should_have_begun_and_did_not_is_counted() -> None:
    clock = Clock()
    schedule = Schedule(clock, 2, seconds=1.0, rate=10.0)
    starts = schedule.starts(0)
    next(starts)
    clock.now += SECOND
    assert list(starts) == []
    assert schedule.behind == 4  # of the five of this lane
    assert list(schedule.starts(1)) == []
    assert schedule.behind == 9


def test_at_the_end_nothing_is_behind_if_all_moments_were_kept() -> None:
    clock = Clock()
    schedule, begin, begun = Schedule(clock, 1, seconds=1.0, rate=10.0), clock.now, 0
    for moment, _ in schedule.starts(0):
        assert moment is not None
        clock.now = max(clock.now, moment)
        begun += 1
    assert (begun, schedule.behind) == (10, 0)
    assert clock.now < begin + SECOND


def test_stopping_ends_all_lanes_and_blames_nobody_for_what_was_still_to_come() -> None:
    clock = Clock()
    schedule = Schedule(clock, 1, seconds=100.0, rate=1.0)
    starts = schedule.starts(0)
    next(starts)
    schedule.stop()
    assert list(starts) == []
    assert (schedule.stopped, schedule.behind) == (True, 0)
