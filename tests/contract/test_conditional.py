"""add, replace, cas, incr, decr."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dcache import NotACounter


def test_add_stores_only_what_is_absent(cache: Any) -> None:
    assert cache.add("key", 1, ttl=100) is True
    assert cache.add("key", 2) is False
    assert cache.get("key") == 1
    assert cache.ttl("key") <= 100


def test_add_stores_after_a_deletion(cache: Any) -> None:
    cache.set("key", 1)
    cache.delete("key")
    assert cache.add("key", 2) is True
    assert cache.get("key") == 2


def test_replace_stores_only_over_what_is_there(cache: Any) -> None:
    assert cache.replace("key", 1) is False
    assert cache.get("key") is None
    cache.set("key", 1)
    assert cache.replace("key", 2, ttl=100) is True
    assert cache.get("key") == 2
    assert cache.ttl("key") <= 100


def test_cas_stores_while_the_version_is_the_same(cache: Any) -> None:
    first = cache.set("key", 1)
    assert cache.cas("key", 2, first) is True
    assert cache.cas("key", 3, first) is False
    assert cache.get("key") == 2
    assert cache.cas("key", 3, cache.gets("key").version) is True
    assert cache.get("key") == 3


def test_cas_does_not_store_what_is_absent(cache: Any) -> None:
    version = cache.set("key", 1)
    cache.delete("key")
    assert cache.cas("key", 2, version) is False
    assert cache.get("key") is None


@pytest.mark.parametrize("version", [None, 5, b"short", "0" * 12])
def test_what_is_no_version_is_a_type_error(cache: Any, version: Any) -> None:
    cache.set("key", 1)
    with pytest.raises(TypeError, match="version"):
        cache.cas("key", 2, version)
    assert cache.get("key") == 1


def test_a_counter_starts_at_its_initial_value(cache: Any) -> None:
    assert cache.incr("a") == 1
    assert cache.incr("a", 5) == 6
    assert cache.decr("a", 2) == 4
    assert cache.incr("b", 3, initial=10) == 13
    assert cache.decr("c") == -1
    assert cache.get("a") == 4


def test_set_and_get_speak_the_same_numbers_as_counters(cache: Any) -> None:
    """Integers have one form under every serializer."""
    cache.set("key", 5)
    assert cache.incr("key") == 6
    assert cache.with_options(serializer="json").get("key") == 6
    cache.with_options(serializer="json").set("key", 10)
    assert cache.incr("key", 2**70) == 10 + 2**70
    assert cache.get("key") == 10 + 2**70


def test_a_lifetime_is_for_a_counter_that_is_made_by_the_call(cache: Any) -> None:
    cache.incr("key", ttl=100)
    assert 90 < cache.ttl("key") <= 100
    cache.incr("key", ttl=10_000)
    assert cache.ttl("key") <= 100
    cache.set("lasting", 1)
    cache.incr("lasting", ttl=100)
    assert cache.ttl("lasting") == math.inf


@pytest.mark.parametrize("value", ["5", b"5", 5.0, True, None, [5]])
def test_only_an_integer_is_a_counter(cache: Any, value: Any) -> None:
    """The value stays as it is."""
    version = cache.set("key", value, ttl=1000)
    for call in (cache.incr, cache.decr):
        with pytest.raises(NotACounter):
            call("key")
    item = cache.gets("key")
    assert (item.value, item.version) == (value, version)
    assert item.ttl <= 1000


@pytest.mark.parametrize("number", [1.0, "1", None, True])
def test_a_step_that_is_no_integer_is_a_type_error(cache: Any, number: Any) -> None:
    for call in (lambda: cache.incr("key", number), lambda: cache.decr("key", number)):
        with pytest.raises(TypeError, match="delta"):
            call()
    with pytest.raises(TypeError, match="initial"):
        cache.incr("key", initial=number)
    assert cache.exists("key") is False


def test_increments_made_at_once_are_all_counted(front: Any, cache: Any) -> None:
    """Each returns another number."""
    sums = front.together([lambda: cache.incr("key")] * 12)
    assert sorted(sums) == list(range(1, 13))
    assert cache.get("key") == 12


def test_of_adds_made_at_once_one_succeeds(front: Any, cache: Any) -> None:
    added = front.together([lambda number=number: cache.add("key", number) for number in range(8)])
    assert added.count(True) == 1
    assert cache.get("key") == added.index(True)
