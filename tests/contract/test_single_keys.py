"""get, gets, set, delete, exists, ttl and touch of one key."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from dcache import InvalidKey
from tests.fronts import until

VALUES = [
    None,
    True,
    0,
    -(2**70),
    1.5,
    "text",
    "",
    b"\0bytes",
    [1, [2, "x"]],
    {"a": 1, 2: None},
    (1, (2,)),
    {1, 2},
    datetime(2024, 5, 6, 7, 8, 9, 10, tzinfo=UTC),
    date(2024, 5, 6),
    timedelta(days=1, microseconds=5),
    Decimal("1.10"),
    UUID(int=7),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}-{value}"[:30])
def test_a_value_comes_back_as_it_was(cache: Any, value: Any) -> None:
    cache.set("key", value)
    found = cache.get("key", "a default")
    assert found == value
    assert type(found) is type(value)


def test_a_key_that_is_absent_gives_the_default(cache: Any) -> None:
    """None unless another default is given."""
    assert cache.get("nothing") is None
    assert cache.get("nothing", 5) == 5
    assert cache.gets("nothing") is None
    assert cache.exists("nothing") is False
    assert cache.ttl("nothing") is None


def test_none_is_a_value_like_any_other(cache: Any) -> None:
    cache.set("key", None)
    assert cache.get("key", "default") is None
    assert cache.exists("key") is True
    assert cache.gets("key").value is None


def test_the_last_of_many_writes_is_read(cache: Any) -> None:
    """Whichever owners answer."""
    for number in range(50):
        cache.set("key", number)
        assert cache.get("key") == number


def test_delete_tells_whether_the_key_was_there(cache: Any) -> None:
    cache.set("key", 1)
    assert cache.delete("key") is True
    assert cache.get("key") is None
    assert cache.delete("key") is False


def test_a_key_can_be_written_again_after_its_deletion(cache: Any) -> None:
    cache.set("key", 1)
    cache.delete("key")
    cache.set("key", 2)
    assert cache.get("key") == 2


def test_set_returns_the_version_that_gets_shows(cache: Any) -> None:
    version = cache.set("key", "value", ttl=100)
    item = cache.gets("key")
    assert (item.value, item.version) == ("value", version)
    assert 0 < item.ttl <= 100
    assert cache.set("key", "value") > version
    assert cache.gets("key").ttl is None


def test_text_and_its_utf8_bytes_are_one_key(cache: Any) -> None:
    cache.set("grün", 1)
    assert cache.get("grün".encode()) == 1
    cache.set(b"\xff\x00binary", 2)
    assert cache.get(b"\xff\x00binary") == 2


def test_subclasses_of_str_and_bytes_are_keys(cache: Any) -> None:
    class Name(str):
        __slots__ = ()

        def encode(self, *_: object) -> bytes:
            return b"something else"

    cache.set(Name("key"), 1)
    assert cache.get("key") == 1


def test_a_key_may_have_1024_bytes(cache: Any) -> None:
    cache.set("é" * 512, 1)
    assert cache.get("é" * 512) == 1


BAD_KEYS = [("", InvalidKey), (b"", InvalidKey), ("x" * 1025, InvalidKey), ("é" * 513, InvalidKey)]
BAD_KEYS += [
    ("\ud800", InvalidKey),
    (5, TypeError),
    (None, TypeError),
    (("a",), TypeError),
    (bytearray(b"a"), TypeError),
]
CALLS: list[Any] = [
    lambda cache, key: cache.get(key),
    lambda cache, key: cache.gets(key),
    lambda cache, key: cache.exists(key),
    lambda cache, key: cache.ttl(key),
    lambda cache, key: cache.set(key, 1),
    lambda cache, key: cache.delete(key),
    lambda cache, key: cache.add(key, 1),
    lambda cache, key: cache.replace(key, 1),
    lambda cache, key: cache.cas(key, 1, b"0" * 12),
    lambda cache, key: cache.incr(key),
    lambda cache, key: cache.decr(key),
    lambda cache, key: cache.touch(key, 1),
    lambda cache, key: cache.get_many(["fine", key]),
    lambda cache, key: cache.set_many({"fine": 1, key: 1} if key.__hash__ else {"fine": 1, None: 1}),
    lambda cache, key: cache.delete_many(["fine", key]),
    lambda cache, key: cache.get_or_set(key, lambda: 1),
]


@pytest.mark.parametrize(("key", "error"), BAD_KEYS, ids=lambda value: repr(value)[:12])
def test_what_is_no_key_is_refused_by_every_method(cache: Any, key: Any, error: type[Exception]) -> None:
    """Also with `on_error="miss"`: that is about the network, not about mistakes.  Nothing else of a batch is done."""
    for view in (cache, cache.with_options(on_error="miss")):
        for call in CALLS:
            with pytest.raises(error):
                call(view, key)
    assert cache.get("fine") is None


def test_a_lifetime_ends(cache: Any) -> None:
    cache.set("key", 1, ttl=0.05)
    until(lambda: cache.get("key") is None, "the value to expire")
    assert cache.exists("key") is False
    assert cache.ttl("key") is None


def test_a_lifetime_is_seconds_a_timedelta_or_none(cache: Any) -> None:
    cache.set("seconds", 1, ttl=100)
    assert 90 < cache.ttl("seconds") <= 100
    cache.set("timedelta", 1, ttl=timedelta(minutes=2))
    assert 110 < cache.ttl("timedelta") <= 120
    cache.set("none", 1, ttl=None)
    assert cache.ttl("none") == math.inf


def test_a_new_value_has_its_own_lifetime(cache: Any) -> None:
    cache.set("key", 1, ttl=100)
    cache.set("key", 2)
    assert cache.ttl("key") == math.inf


@pytest.mark.parametrize("ttl", [0, -1, -0.5, math.nan, math.inf, -math.inf, timedelta(0), timedelta(seconds=-1)])
def test_what_is_no_lifetime_is_a_value_error(cache: Any, ttl: Any) -> None:
    calls: list[Any] = [
        lambda: cache.set("key", 1, ttl=ttl),
        lambda: cache.set_many({"key": 1}, ttl=ttl),
        lambda: cache.add("key", 1, ttl=ttl),
        lambda: cache.replace("key", 1, ttl=ttl),
        lambda: cache.cas("key", 1, b"0" * 12, ttl=ttl),
        lambda: cache.incr("key", ttl=ttl),
        lambda: cache.decr("key", ttl=ttl),
        lambda: cache.touch("key", ttl),
        lambda: cache.get_or_set("key", lambda: 1, ttl=ttl),
        lambda: cache.with_options(default_ttl=ttl),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="ttl"):
            call()
    assert cache.get("key") is None


@pytest.mark.parametrize("ttl", ["60", True, b"1", [1]])
def test_a_lifetime_of_another_type_is_a_type_error(cache: Any, ttl: Any) -> None:
    with pytest.raises(TypeError, match="ttl"):
        cache.set("key", 1, ttl=ttl)
    assert cache.get("key") is None


def test_touch_gives_another_lifetime_and_keeps_the_value(cache: Any) -> None:
    cache.set("key", "value", ttl=10)
    assert cache.touch("key", 1000) is True
    assert 900 < cache.ttl("key") <= 1000
    assert cache.touch("key", None) is True
    assert cache.ttl("key") == math.inf
    assert cache.get("key") == "value"


def test_touch_tells_that_a_key_is_absent_and_makes_none(cache: Any) -> None:
    assert cache.touch("key", 1000) is False
    assert cache.exists("key") is False
