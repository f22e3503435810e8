"""Which keys are chosen how often, what they are called, and how long keys and values are."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.testing.load.keys import Keys, Uniform, Zipf, stride
from dcache.testing.load.sizes import Fixed, GeneralizedExtremeValue, GeneralizedPareto, Table

SHARES = st.floats(0, 1, exclude_max=True)
LAST = 1 - 2**-53  # the largest random number
DRAWS = 40_000


def law(count: int, skew: float) -> list[float]:
    """Zipf's law, by its definition."""
    weights = [(rank + 1) ** -skew for rank in range(count)]
    return [weight / math.fsum(weights) for weight in weights]


def chi_square(found: Counter[int], expected: Sequence[float]) -> float:
    return sum((found[rank] - DRAWS * share) ** 2 / (DRAWS * share) for rank, share in enumerate(expected))


def critical(freedom: int) -> float:
    """What chi-square exceeds once in a thousand times (Wilson and Hilferty's approximation)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize("skew", [0.0, 0.5, 0.99, 1.0, 1.2468])
@pytest.mark.parametrize("count", [2, 10, 200])
def test_zipf_draws_each_rank_as_often_as_the_law_says(count: int, skew: float) -> None:
    draw, zipf = random.Random(7), Zipf(count, skew)
    found = Counter(zipf(draw.random()) for _ in range(DRAWS))
    assert chi_square(found, law(count, skew)) < critical(count - 1)


def test_the_test_of_the_distribution_would_notice_another_skew() -> None:
    draw, zipf = random.Random(7), Zipf(200, 1.05)
    found = Counter(zipf(draw.random()) for _ in range(DRAWS))
    assert chi_square(found, law(200, 0.99)) > critical(199)


@given(st.integers(1, 300), st.floats(0, 4), SHARES)
def test_a_rank_is_where_the_cumulative_law_passes_the_random_number(count: int, skew: float, share: float) -> None:
    rank, below = Zipf(count, skew)(share), law(count, skew)
    assert math.fsum(below[:rank]) <= share + 1e-9
    assert share <= math.fsum(below[: rank + 1]) + 1e-9


@pytest.mark.parametrize("skew", [0.0, 0.99, 3.0])
def test_the_ends_of_the_random_numbers_give_the_first_and_the_last_rank(skew: float) -> None:
    zipf = Zipf(50, skew)
    assert (zipf(0.0), zipf(LAST)) == (0, 49)
    assert (Uniform(50)(0.0), Uniform(50)(LAST)) == (0, 49)


@given(st.integers(1, 10**6), SHARES)
def test_uniform_gives_every_rank_the_same_room(count: int, share: float) -> None:
    rank = Uniform(count)(share)
    assert rank <= share * count < rank + 1


# -- names ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3000))
def test_scattering_gives_each_rank_a_key_of_its_own(count: int) -> None:
    keys = Keys(count, Fixed(8))
    assert {keys.scattered(rank) for rank in range(count)} == {keys.name(number) for number in range(count)}


@given(st.integers(10_000, 10**6))
def test_the_hottest_keys_are_far_from_each_other(count: int) -> None:
    places = sorted(rank * stride(count) % count for rank in range(10))
    gaps = [(after - place) % count for place, after in zip(places, places[1:] + places[:1], strict=True)]
    assert min(gaps) >= count / 50
    assert count / 4 < stride(count) < 3 * count / 4


def test_the_newest_key_is_the_last_one_that_was_inserted() -> None:
    keys = Keys(10, Fixed(4))
    assert keys.latest(0) == "0009"
    first, second = keys.new(), keys.new()
    assert (first, second, keys.latest(0)) == (10, 11, "0009")
    keys.inserted(first)
    assert (keys.latest(0), keys.latest(10)) == ("0010", "0000")
    keys.inserted(second)
    keys.inserted(first)  # late
    assert keys.latest(0) == "0011"


def test_keys_that_are_asked_for_once_are_all_different_and_none_of_the_others() -> None:
    keys = Keys(100, Fixed(6))
    once = [keys.once() for _ in range(100)]
    assert len({*once, *(keys.name(number) for number in range(100))}) == 200
    assert {len(key) for key in once} == {6}


def test_the_name_of_a_key_is_always_the_same_and_has_its_size() -> None:
    sizes = GeneralizedExtremeValue(30.7984, 8.20449, 0.078688)
    keys, again = Keys(2048, sizes), Keys(2048, sizes)
    names = [keys.name(number) for number in range(2048)]
    assert names == [again.name(number) for number in range(2048)]
    expected = sorted(max(4, sizes((part + 0.5) / 1024)) for part in range(1024))
    assert sorted(len(name) for name in names) == sorted(expected * 2)


# -- sizes ------------------------------------------------------------------------------------------------------------


@given(SHARES)
def test_a_generalized_pareto_size_is_the_quantile_of_its_distribution(share: float) -> None:
    sizes = GeneralizedPareto(15, 214.476, 0.348238, largest=10**15)
    size = sizes(share)

    def below(value: float) -> float:
        return 1 - (1 + 0.348238 * max(0.0, value - 15) / 214.476) ** (-1 / 0.348238)

    assert below(size - 0.5) <= share + 1e-9
    assert share <= below(size + 0.5) + 1e-9


@given(st.floats(1e-6, 1 - 1e-6))
def test_a_generalized_extreme_value_size_is_the_quantile_of_its_distribution(share: float) -> None:
    size = GeneralizedExtremeValue(30.7984, 8.20449, 0.078688, least=-1000, largest=10**9)(share)

    def below(value: float) -> float:
        return math.exp(-((1 + 0.078688 * (value - 30.7984) / 8.20449) ** (-1 / 0.078688)))

    assert below(size - 0.5) <= share + 1e-9
    assert share <= below(size + 0.5) + 1e-9


def test_sizes_are_kept_within_their_limits() -> None:
    assert GeneralizedPareto(15, 214.476, 0.348238, largest=1000)(LAST) == 1000
    bounded = GeneralizedExtremeValue(30.7984, 8.20449, 0.078688, least=5, largest=250)
    assert (bounded(0.0), bounded(LAST)) == (5, 250)


@given(SHARES)
def test_a_table_gives_its_sizes_as_often_as_it_says_and_then_those_of_the_other(share: float) -> None:
    size = Table({0: 0.25, 3: 0.25, 7: 0.1}, Fixed(99))(share)
    assert size == (0, 3, 7, 99)[bisect_right([0.25, 0.5, 0.6], share)]


def test_the_rest_of_a_table_has_all_of_the_other_distribution() -> None:
    pareto = GeneralizedPareto(15, 214.476, 0.348238)
    table = Table({0: 0.5}, pareto)
    assert [table(0.5 + share / 2) for share in (0.0, 0.5, 0.99)] == [pareto(share) for share in (0.0, 0.5, 0.99)]
