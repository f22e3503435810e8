"""get_many, set_many, delete_many: keys as given, any number and size, each key's trouble its own."""

from __future__ import annotations

from typing import Any

import pytest

from dcache import SerializationError, ValueTooLarge

MIB = 1024 * 1024


def evictions(cache: Any) -> int:
    return sum(node["evictions"] for node in cache.stats()["nodes"].values())


def test_only_hits_are_returned_under_the_keys_as_given(cache: Any) -> None:
    assert cache.set_many({"a": 1, b"b": None}) == {}
    assert cache.get_many(["a", b"a", "b", "missing"]) == {"a": 1, b"a": 1, "b": None}


def test_nothing_is_asked_for_nothing(cache: Any) -> None:
    assert cache.get_many([]) == {}
    assert cache.set_many({}) == {}
    assert cache.delete_many([]) == 0


def test_any_iterable_gives_keys(cache: Any) -> None:
    cache.set_many({"a": 1, "b": 2})
    assert cache.get_many(key for key in "ab") == {"a": 1, "b": 2}
    assert cache.delete_many(key for key in "ab") == 2


def test_delete_many_counts_what_was_there(cache: Any) -> None:
    cache.set_many({"a": 1, "b": 2, "c": 3})
    assert cache.delete_many(["a", "b", "a", "missing"]) == 2
    assert cache.get_many(["a", "b", "c"]) == {"c": 3}


def test_set_many_gives_all_the_same_lifetime(cache: Any) -> None:
    cache.set_many({"a": 1, "b": 2}, ttl=100)
    assert 90 < cache.ttl("a") <= 100
    assert 90 < cache.ttl("b") <= 100


def test_a_batch_may_have_more_items_than_a_request(cache: Any) -> None:
    """1024 items go in one request."""
    values = {f"key{number}": number for number in range(3000)}
    assert cache.set_many(values) == {}
    assert cache.get_many(values) == values
    assert cache.delete_many(values) == 3000
    assert cache.get_many(values) == {}


def test_a_batch_may_be_larger_than_a_frame(cache: Any) -> None:
    """A frame holds eight values of the largest size."""
    values = {f"key{number}": bytes([number]) * (MIB - 16) for number in range(20)}
    assert cache.set_many(values) == {}
    assert cache.get_many(values) == values
    assert cache.delete_many(values) == 20


def test_a_value_of_the_largest_size_can_be_stored(cache: Any) -> None:
    raw = cache.with_options(serializer="raw")
    raw.set("key", b"x" * MIB)
    assert raw.get("key") == b"x" * MIB
    with pytest.raises(ValueTooLarge):
        raw.set("key", b"x" * (MIB + 1))
    assert len(raw.get("key")) == MIB


def test_a_value_too_large_is_told_with_both_sizes(cache: Any) -> None:
    """Nothing is evicted for it, and the value before stays."""
    before = evictions(cache)
    cache.set("key", "before")
    with pytest.raises(ValueTooLarge, match=f"the limit is {MIB}") as caught:
        cache.set("key", b"x" * (2 * MIB))
    assert (caught.value.limit, caught.value.size >= 2 * MIB) == (MIB, True)
    assert str(caught.value.size) in str(caught.value)
    assert cache.get("key") == "before"
    assert evictions(cache) == before


def test_what_a_node_finds_too_large_is_told_with_both_sizes(cache: Any) -> None:
    """A client that allows more than its nodes: they have the last word."""
    generous = cache.with_options(max_value=4 * MIB, serializer="raw")
    with pytest.raises(ValueTooLarge) as caught:
        generous.set("key", b"x" * (2 * MIB))
    assert (caught.value.size, caught.value.limit) == (2 * MIB, MIB)
    errors = generous.set_many({"key": b"x" * (2 * MIB), "other": b"y"})
    assert list(errors) == ["key"]
    assert isinstance(errors["key"], ValueTooLarge)
    assert generous.get_many(["key", "other"]) == {"other": b"y"}


def test_the_limit_of_a_client_may_be_lower_than_the_nodes(cache: Any) -> None:
    with pytest.raises(ValueTooLarge, match="limit is 10"):
        cache.with_options(max_value=10).set("key", "x" * 20)


class Unknown:
    pass


def test_what_cannot_be_serialized_is_named_by_its_type(cache: Any) -> None:
    for call in (cache.set, cache.add, cache.replace):
        with pytest.raises(SerializationError, match="Unknown"):
            call("key", [1, {"deep": Unknown()}])
    assert cache.get("key") is None


def test_a_value_that_cannot_be_stored_leaves_the_others_alone(cache: Any) -> None:
    before = evictions(cache)
    errors = cache.set_many({"a": 1, b"large": b"x" * (2 * MIB), "odd": Unknown(), "z": 2})
    assert set(errors) == {b"large", "odd"}
    assert isinstance(errors[b"large"], ValueTooLarge)
    assert isinstance(errors["odd"], SerializationError)
    assert cache.get_many(["a", "large", "odd", "z"]) == {"a": 1, "z": 2}
    assert evictions(cache) == before
