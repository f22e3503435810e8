"""The histogram of latencies: what it counts, how far it may be off, and that parts add up to the whole."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.testing.load.histogram import BUCKETS, ERROR, LARGEST, Histogram, bounds, bucket_of

VALUES = st.one_of(st.integers(0, 1000), st.integers(0, 10**7), st.integers(0, LARGEST))
LISTS = st.lists(VALUES, max_size=60)


def counted(values: list[int]) -> Histogram:
    made = Histogram()
    for value in values:
        made.record(value)
    return made


def ranked(values: list[int], share: float) -> int:
    """The quantile, by its definition."""
    return sorted(values)[max(1, math.ceil(share * len(values))) - 1]


@given(VALUES)
def test_a_value_lies_within_the_bounds_of_its_bucket(value: int) -> None:
    least, most = bounds(bucket_of(value))
    assert least <= value <= most
    assert abs((least + most) / 2 - value) <= ERROR * value


def test_buckets_follow_each_other_without_a_gap_up_to_the_largest_value() -> None:
    for bucket, after in pairwise(range(BUCKETS)):
        assert bounds(bucket)[1] + 1 == bounds(after)[0]
    assert bounds(0) == (0, 0)
    assert bounds(BUCKETS - 1)[1] == LARGEST


@given(VALUES)
def test_recording_counts_in_the_bucket_of_the_value(value: int) -> None:
    assert counted([value]).counts.index(1) == bucket_of(value)


@given(LISTS.filter(bool), st.floats(0, 1))
def test_a_quantile_is_the_value_of_its_rank_within_the_stated_error(values: list[int], share: float) -> None:
    wanted = ranked(values, share)
    assert counted(values).quantile(share) == pytest.approx(wanted, rel=ERROR, abs=1e-9)
    assert ERROR < 0.01


@given(LISTS.filter(bool))
def test_count_mean_and_largest_are_exact(values: list[int]) -> None:
    made = counted(values)
    assert (made.count, made.largest) == (len(values), max(values))
    assert made.mean == pytest.approx(sum(values) / len(values))
    assert made.quantile(1.0) == max(values)


@given(LISTS, LISTS)
def test_adding_is_the_same_as_having_counted_all(one: list[int], other: list[int]) -> None:
    both, whole = counted(one), counted(one + other)
    both.add(counted(other))
    assert (both.counts, both.largest, both.sum) == (whole.counts, whole.largest, whole.sum)


@given(LISTS, LISTS)
def test_what_came_since_is_what_was_counted_since(before: list[int], after: list[int]) -> None:
    earlier, later = counted(before), counted(before + after)
    new = later.since(earlier)
    assert (new.counts, new.sum) == (counted(after).counts, sum(after))
    assert new.largest == pytest.approx(max(after, default=0), rel=2 * ERROR)


@given(LISTS.filter(bool))
def test_the_distribution_ascends_to_the_largest_value(values: list[int]) -> None:
    points = list(counted(values).distribution())
    assert points == sorted(points)
    assert points[-1] == (max(values), 1.0)


def test_values_out_of_range_count_as_the_nearest_and_the_largest_stays_what_it_was() -> None:
    made = counted([-5, LARGEST + 10**6, 7])
    assert made.count == 3
    assert made.counts[0] == made.counts[BUCKETS - 1] == 1
    assert made.quantile(1.0) == LARGEST + 10**6


def test_where_nothing_was_counted_everything_is_zero() -> None:
    made = Histogram()
    assert (made.count, made.mean, made.quantile(0.99), list(made.distribution())) == (0, 0.0, 0.0, [])
