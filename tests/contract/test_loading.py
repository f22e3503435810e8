"""get_or_set and cached: look, compute what is missing, store it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from dcache import SerializationError
from dcache.client import async_engine, engine
from dcache.client.loading import Loaded
from dcache.testing import LocalCluster
from dcache.testing.cluster import free_port
from tests.fronts import UNHURRIED, as_coroutine


class Counting:
    """A computation that counts how often it ran."""

    def __init__(self, result: Any) -> None:
        self.result, self.runs = result, 0

    def __call__(self) -> Any:
        self.runs += 1
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_what_is_missing_is_computed_once_and_stored(cache: Any) -> None:
    work = Counting({"a": (1,)})
    assert [cache.get_or_set("key", work, ttl=100) for _ in range(3)] == [{"a": (1,)}] * 3
    assert work.runs == 1
    assert cache.get("key") == {"a": (1,)}
    assert 90 < cache.ttl("key") <= 100


def test_what_is_there_is_not_computed(cache: Any) -> None:
    cache.set("key", 1)
    work = Counting(2)
    assert cache.get_or_set("key", work) == 1
    assert work.runs == 0


def test_none_is_remembered_too(cache: Any) -> None:
    work = Counting(None)
    assert [cache.get_or_set("key", work) for _ in range(2)] == [None, None]
    assert work.runs == 1


def test_a_deleted_value_is_computed_anew(cache: Any) -> None:
    cache.set("key", 1)
    cache.delete("key")
    assert cache.get_or_set("key", lambda: 2) == 2
    assert cache.get("key") == 2


def test_an_error_goes_to_the_caller_and_nothing_is_stored(cache: Any) -> None:
    work = Counting(LookupError("no such thing"))
    for _ in range(2):
        with pytest.raises(LookupError, match="no such thing"):
            cache.get_or_set("key", work)
    assert work.runs == 2
    assert cache.exists("key") is False
    assert cache.get_or_set("key", lambda: 1) == 1


def test_a_value_that_is_not_worth_it_is_returned_and_not_stored(cache: Any) -> None:
    assert cache.get_or_set("key", list, store_if=bool) == []
    assert cache.exists("key") is False
    assert cache.get_or_set("key", lambda: [1], store_if=bool) == [1]
    assert cache.get("key") == [1]


def test_a_value_that_is_too_large_is_returned_and_not_stored(cache: Any) -> None:
    view = cache.with_options(max_value=100)
    assert view.get_or_set("key", lambda: "x" * 1000) == "x" * 1000
    assert cache.exists("key") is False


def test_a_value_that_cannot_be_stored_for_its_type_is_a_mistake_that_is_told(cache: Any) -> None:
    with pytest.raises(SerializationError, match="object"):
        cache.get_or_set("key", object)


@pytest.mark.parametrize("change", ["set", "delete"])
def test_a_change_made_during_the_computation_wins(front: Any, cache: Any, change: str) -> None:
    """The computed value goes to its caller and is not stored: it may be older than the change."""
    other = front.client(list(cache.session.topology.seeds), namespace=cache.options.namespace, **UNHURRIED)

    def meanwhile() -> Any:
        return other.set("key", "newer") if change == "set" else other.delete("key")

    assert computed_while(front, cache, "key", "older", meanwhile) == "older"
    assert cache.get("key") == ("newer" if change == "set" else None)


def computed_while(front: Any, cache: Any, key: str, value: Any, meanwhile: Any) -> Any:
    """get_or_set with a computation in which another client acts."""
    if not cache.is_async:

        def factory() -> Any:
            meanwhile()
            return value

        return cache.get_or_set(key, factory)

    async def slow() -> Any:
        running, front.run = front.run, lambda coroutine: coroutine
        try:
            await meanwhile()
        finally:
            front.run = running
        return value

    return front.run(cache.inner.get_or_set(key, slow))


def test_of_callers_at_the_same_time_one_computes(front: Any, cache: Any) -> None:
    """All get equal results, and no two the same object to change."""
    runs: list[int] = []

    def compute() -> list[int]:
        runs.append(1)
        return [1, 2]

    results = front.together([lambda: cache.get_or_set("key", compute)] * 10)
    assert results == [[1, 2]] * 10
    assert len({id(result) for result in results}) == 10
    assert len(runs) == 1


@pytest.mark.parametrize("there", [None, "new"])
def test_what_another_caller_found_may_be_older_than_the_call(
    front: Any, cache: Any, dcache_cluster: LocalCluster, there: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was to compute it had asked before, found it after all, and it was changed since: look again."""
    module, name = (async_engine, "run_async") if front.kind.is_async else (engine, "run_sync")
    share, found = getattr(module, name), [Loaded("old", True, b"\xa3old", 2)]

    def found_by_another(*about: Any) -> Any:
        if not found:
            return share(*about)
        if there is not None:
            with dcache_cluster.client(namespace=cache.options.namespace, **UNHURRIED) as other:
                other.set("key", there)
        result = found.pop(), False
        return as_coroutine(lambda: result)() if front.kind.is_async else result

    monkeypatch.setattr(module, name, found_by_another)
    assert cache.get_or_set("key", lambda: "computed") == (there or "computed")
    assert not found


def test_without_a_cluster_values_are_computed_all_the_same(front: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Counted each time, logged once."""
    lost = front.client(f"127.0.0.1:{free_port()}", **UNHURRIED)
    cached = lost.cached()(doubled)
    with caplog.at_level(logging.WARNING, "dcache.client"):
        assert [lost.get_or_set("key", lambda number=number: number) for number in range(3)] == [0, 1, 2]
        assert cached(4) == 8
    assert lost.session.counters.computed_without_cache >= 4
    assert len(caplog.records) == 1


def doubled(number: int) -> int:
    """Twice as much."""
    return number * 2


def test_a_cached_function_computes_once_for_equal_arguments(cache: Any) -> None:
    runs: list[tuple[int, int]] = []

    @cache.cached(ttl=100)
    def add(a: int, b: int = 2) -> int:
        runs.append((a, b))
        return a + b

    assert [add(1), add(1, 2), add(a=1, b=2), add(2)] == [3, 3, 3, 4]
    assert runs == [(1, 2), (2, 2)]
    info = add.cache_info()
    assert (info.hits, info.misses) == (2, 2)


def test_a_cached_function_can_be_told_to_forget_and_to_renew(cache: Any) -> None:
    numbers = iter(range(100))

    @cache.cached()
    def current(name: str) -> tuple[str, int]:
        return name, next(numbers)

    assert [current("a"), current("a"), current("b")] == [("a", 0), ("a", 0), ("b", 1)]
    assert current.invalidate("a") is True
    assert current.invalidate("a") is False
    assert current("a") == ("a", 2)
    assert current.refresh("a") == ("a", 3)
    assert current("a") == ("a", 3)
    current.cache_clear()
    assert [current("a"), current("b")] == [("a", 4), ("b", 5)]


def test_a_cached_function_shows_what_it_wraps(cache: Any) -> None:
    cached = cache.cached()(doubled)
    cached = cached.inner if cache.is_async else cached
    assert (cached.__name__, cached.__doc__) == ("doubled", "Twice as much.")
    assert cached.__wrapped__.__qualname__ == "doubled"
    assert cached.key(1) == cached.key(number=1) != cached.key(2)


def test_a_template_is_the_key_itself(cache: Any) -> None:
    """In the client's own namespace, so that plain calls are about it."""
    cached = cache.cached(key="double:{number}")(doubled)
    assert cached.key(5) == "double:5"
    assert cached(5) == 10
    assert cache.get("double:5") == 10
    cache.set("double:5", 11)
    assert cached(5) == 11


def test_methods_are_cached_per_object(cache: Any) -> None:
    class Shop:
        def __init__(self, city: str) -> None:
            self.city = city

        @cache.cached(key="price:{self.city}:{item}")
        def price(self, item: str) -> str:
            return f"{item} in {self.city}"

    made = Shop.__dict__["price"]
    price = made if not cache.is_async else made.inner
    here, there = Shop("Here"), Shop("There")
    for shop in (here, there):
        bound = price.__get__(shop, Shop)
        result = bound("tea") if not cache.is_async else made._front.run(bound("tea"))
        assert result == f"tea in {shop.city}"
        assert cache.get(f"price:{shop.city}:tea") == result


def test_functions_of_the_other_kind_are_refused(cache: Any) -> None:
    async def coroutine() -> None: ...

    def plain() -> None: ...

    client = cache.inner if cache.is_async else cache
    with pytest.raises(TypeError, match="AsyncClient"):
        client.cached()(plain if cache.is_async else coroutine)
