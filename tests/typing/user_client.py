"""User code with `Client`: what each operation takes and gives, as a strict type checker sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, assert_type

from dcache import (
    DEFAULT,
    Client,
    DcacheError,
    DeadlineExceeded,
    InvalidKey,
    Item,
    Member,
    NodeError,
    NoNodesAvailable,
    QuorumError,
    ValueTooLarge,
    Version,
)


def make() -> Client:
    Client("cache1:7400")
    Client(["cache1", "cache2"], write_quorum=2, read_quorum="one", namespace="app", default_ttl=timedelta(hours=1))
    Client(("cache1",), serializer="json", compression="zlib", max_value=10_000, on_error="miss", max_connections=4)
    Client("cache1", consistency="linearizable").with_options(consistency="quorums")
    Client(7400)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Client("cache1", timeout="soon")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Client("cache1", "cache2")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Client("cache1", colour="red")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    return Client.from_url("dcache://cache1,cache2/app?timeout=1", namespace="other")


def single_keys(cache: Client) -> None:
    assert_type(cache.set("key", {"any": [b"value"]}), Version)
    assert_type(cache.set(b"key", 1, 60), Version)
    cache.set("key", 1, ttl=0.5)
    cache.set("key", 1, timedelta(minutes=1))
    cache.set("key", 1, None)
    cache.set("key", 1, DEFAULT)
    assert_type(cache.get("key"), Any)
    assert_type(cache.get("key", "default"), Any)
    assert_type(cache.exists("key"), bool)
    assert_type(cache.ttl("key"), float | None)
    assert_type(cache.delete("key"), bool)
    cache.get(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    cache.set("key", 1, "60")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    cache.set("key")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def conditional_changes(cache: Client) -> None:
    item = cache.gets("key")
    item.value  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    if item is not None:
        assert_type(item, Item)
        assert_type(item.version, Version)
        assert_type(item.ttl, float | None)
        assert_type(cache.cas("key", item.value, item.version, ttl=5), bool)
    assert_type(cache.add("key", 1), bool)
    assert_type(cache.replace("key", 1, 60), bool)
    assert_type(cache.incr("key"), int)
    assert_type(cache.decr("key", 2, initial=10, ttl=60), int)
    assert_type(cache.touch("key", 60), bool)
    cache.cas("key", 1, b"bytes are no version")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    cache.incr("key", 1, 10)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    cache.incr("key", 0.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def many_keys(cache: Client, values: Mapping[str | bytes, float]) -> None:
    mixed: list[str | bytes] = ["a", b"b"]
    assert_type(cache.get_many(mixed), dict[str | bytes, Any])
    assert_type(cache.get_many(key for key in ("a", "b")), dict[str, Any])
    assert_type(cache.set_many({"a": 1, "b": "x"}, ttl=60), dict[str, DcacheError])
    cache.set_many(values)
    assert_type(cache.delete_many({"a", "b"}), int)
    cache.get_many([1, 2])  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]


def computing(cache: Client) -> None:
    def load() -> list[int]:
        return [1]

    assert_type(cache.get_or_set("key", load), list[int])
    assert_type(cache.get_or_set("key", lambda: "text", 60), str)
    assert_type(cache.get_or_set("key", load, timedelta(1), store_if=lambda value: len(value) > 0), list[int])
    cache.get_or_set("key", [1])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    cache.get_or_set("key", load, 60, bool)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def cluster(cache: Client) -> None:
    assert_type(cache.scan("prefix"), Iterator[str | bytes])
    assert_type(cache.ping(), dict[str, float])
    assert_type(cache.members(), tuple[Member, ...])
    assert_type(cache.stats(), dict[str, Any])
    cache.wait_ready(timeout=5)
    cache.clear()
    with cache as same:
        assert_type(same, Client)
    assert_type(cache.with_options(timeout=2, namespace="other"), Client)
    assert_type(cache.members()[0].address, str)


class OwnClient(Client):
    """Views of a subclass are of the subclass."""

    def hello(self) -> str:
        return "hello"


def subclasses(cache: OwnClient) -> None:
    assert_type(cache.with_options(timeout=2).hello(), str)
    assert_type(OwnClient.from_url("dcache://h").hello(), str)


def errors(cache: Client) -> int:
    try:
        cache.set("key", 1)
    except DeadlineExceeded as error:
        also_a_timeout: TimeoutError = error
        raise also_a_timeout from None
    except QuorumError as error:
        assert_type(error.in_doubt, bool)
        assert_type(error.reasons, dict[str, str])
        return error.needed - error.got
    except NoNodesAvailable as error:
        assert_type(error.reasons, dict[str, str])
    except NodeError as error:
        assert_type(error.code, int)
    except ValueTooLarge as error:
        assert_type(error.size - error.limit, int)
        also_a_value_error: ValueError = error
        raise also_a_value_error from None
    except (InvalidKey, DcacheError):
        pass
    return 0
