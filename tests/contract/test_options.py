"""What a client can be told: namespaces, lifetimes, serializers, quorums, views, URLs, and what happens when closed."""

from __future__ import annotations

import json
import math
from typing import Any
from urllib.parse import quote

import pytest

from dcache import ClientClosed, NoNodesAvailable, SerializationError, Version
from dcache.testing import LocalCluster
from dcache.testing.cluster import free_port
from tests.fronts import UNHURRIED


def undecodable(cache: Any) -> int:
    return int(cache.stats()["client"]["undecodable"])


# -- making one -------------------------------------------------------------------------------------------------------


def test_making_a_client_never_connects(front: Any) -> None:
    front.client(["192.0.2.1:1", "no.such.host.invalid"])


@pytest.mark.parametrize(
    "settings",
    [
        {"write_quorum": 0},
        {"write_quorum": "most"},
        {"read_quorum": -1},
        {"read_quorum": True},
        {"default_ttl": 0},
        {"default_ttl": math.nan},
        {"timeout": 0},
        {"timeout": math.inf},
        {"connect_timeout": 0},
        {"max_connections": 0},
        {"serializer": "yaml"},
        {"compression": "rar"},
        {"on_error": "ignore"},
        {"namespace": "a\0b"},
        {"namespace": "x" * 256},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused_at_once(front: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        front.client(["localhost"], **settings)


@pytest.mark.parametrize("nodes", [[], "", ["host:99999"], ["host:port"]])
def test_addresses_that_make_no_sense_are_refused_at_once(front: Any, nodes: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        front.client(nodes)


def test_one_address_is_enough_to_find_all_members(front: Any, dcache_cluster: LocalCluster, namespace: str) -> None:
    cache = front.client(dcache_cluster.addresses[1], namespace=namespace, **UNHURRIED)
    assert {member.address for member in cache.members()} == set(dcache_cluster.addresses)


def test_a_url_carries_nodes_namespace_and_settings(front: Any, dcache_cluster: LocalCluster, namespace: str) -> None:
    nodes = ",".join(dcache_cluster.addresses)
    odd = namespace + "/ü"
    url = f"dcache://{nodes}/{quote(odd)}?timeout=10&connect_timeout=5&default_ttl=100&write_quorum=3&serializer=json"
    cache = front.from_url(url)
    cache.set("key", [1])
    assert cache.ttl("key") <= 100
    assert cache.options.write_quorum == 3
    plain = front.client(dcache_cluster.addresses, namespace=odd, **UNHURRIED)
    assert plain.get("key") == [1]
    assert front.from_url(url, namespace=namespace).get("key") is None


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "dcache://",
        "localhost:7400",
        "dcache://user:secret@localhost",
        "dcache://localhost?color=red",
        "dcache://localhost?timeout=soon",
        "dcache://localhost?timeout",
        "dcache://localhost#part",
    ],
)
def test_a_url_that_makes_no_sense_is_a_value_error(front: Any, url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        front.from_url(url)


# -- views ------------------------------------------------------------------------------------------------------------


def test_namespaces_do_not_meet(cache: Any, namespace: str) -> None:
    other = cache.with_options(namespace=namespace + "-other")
    cache.set("key", 1)
    assert other.get("key") is None
    other.set("key", 2)
    assert (cache.get("key"), other.get("key")) == (1, 2)
    other.delete("key")
    assert cache.get("key") == 1


def test_the_empty_namespace_is_one_too(cache: Any, namespace: str) -> None:
    nameless = cache.with_options(namespace="")
    nameless.set(namespace, 1)
    assert cache.get(namespace) is None
    assert nameless.delete(namespace) is True


def test_the_default_lifetime_is_for_writes_that_name_none(cache: Any) -> None:
    brief = cache.with_options(default_ttl=100)
    brief.set("set", 1)
    brief.set_many({"set_many": 1})
    brief.add("add", 1)
    brief.incr("incr")
    brief.get_or_set("get_or_set", lambda: 1)
    for key in ("set", "set_many", "add", "incr", "get_or_set"):
        assert 90 < brief.ttl(key) <= 100, key
    brief.set("set", 1, ttl=None)
    assert brief.ttl("set") == math.inf


def test_a_view_leaves_its_origin_as_it_was(cache: Any) -> None:
    view = cache.with_options(default_ttl=5, timeout=3.0).with_options(read_quorum="all")
    assert (view.options.default_ttl, view.options.timeout, view.options.read_quorum) == (5, 3.0, "all")
    assert (cache.options.default_ttl, cache.options.timeout) == (None, UNHURRIED["timeout"])


@pytest.mark.parametrize("change", [{"connect_timeout": 1}, {"max_connections": 2}, {"color": "red"}, {"nodes": []}])
def test_a_view_cannot_change_what_it_shares(cache: Any, change: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(change))):
        cache.with_options(**change)


@pytest.mark.parametrize("spec", ["one", "quorum", "all", 1, 2, 3, 7])
def test_any_quorums_read_and_write_while_all_nodes_are_there(cache: Any, spec: Any) -> None:
    """More than there are owners is all of them."""
    view = cache.with_options(write_quorum=spec, read_quorum=spec)
    view.set("key", 1)
    assert view.set_many({"a": 1, "b": 2}) == {}
    assert cache.with_options(read_quorum="all").get("key") == 1
    assert view.with_options(read_quorum="all").get_many(["a", "b"]) == {"a": 1, "b": 2}
    assert view.incr("n") == 1
    assert cache.delete("key") is True


# -- how values are written -------------------------------------------------------------------------------------------


class Reversed:
    """A serializer of the user's own."""

    def dumps(self, value: Any) -> bytes:
        return json.dumps(value).encode()[::-1]

    def loads(self, data: bytes) -> Any:
        return json.loads(data[::-1])


@pytest.mark.parametrize(
    ("serializer", "value"),
    [
        ("msgpack", {"a": (1, {2})}),
        ("json", {"a": [1, None, "x"]}),
        ("raw", b"\0bytes"),
        ("pickle", {"a": range(3), "b": Version}),
        (Reversed(), {"a": [1.5]}),
    ],
    ids=["msgpack", "json", "raw", "pickle", "custom"],
)
def test_every_serializer_brings_back_its_values(cache: Any, serializer: Any, value: Any) -> None:
    view = cache.with_options(serializer=serializer)
    view.set("key", value)
    assert view.set_many({"other": value}) == {}
    assert view.get("key") == value
    assert view.get_many(["key", "other"]) == {"key": value, "other": value}
    assert view.get_or_set("loaded", lambda: value) == value
    assert view.get("loaded") == value
    view.set("number", 5)
    assert view.incr("number") == 6
    assert view.get("number") == 6


def test_readers_need_not_know_how_a_value_was_written(cache: Any) -> None:
    cache.with_options(serializer="json").set("json", [1])
    cache.with_options(serializer="raw").set("raw", b"x")
    cache.set("msgpack", (1,))
    for reader in ("msgpack", "json", "raw"):
        view = cache.with_options(serializer=reader)
        assert view.get_many(["json", "raw", "msgpack"]) == {"json": [1], "raw": b"x", "msgpack": (1,)}


def test_pickles_are_read_only_where_pickle_is_named(cache: Any) -> None:
    """For all others they no longer decode: misses, counted."""
    cache.with_options(serializer="pickle").set("key", range(3))
    before = undecodable(cache)
    assert cache.get("key", "default") == "default"
    assert cache.gets("key") is None
    assert cache.get_many(["key"]) == {}
    assert undecodable(cache) == before + 3
    assert cache.exists("key") is True


def test_what_no_longer_decodes_is_computed_anew(cache: Any) -> None:
    cache.with_options(serializer="pickle").set("key", range(3))
    before = undecodable(cache)
    assert cache.get_or_set("key", lambda: [1]) == [1]
    assert undecodable(cache) > before
    assert cache.get("key") == [1]


def test_what_a_users_serializer_cannot_read_is_a_counted_miss(cache: Any) -> None:
    class Broken(Reversed):
        def loads(self, data: bytes) -> Any:
            raise RuntimeError("of another age")

    cache.with_options(serializer=Reversed()).set("key", 1.5)
    view = cache.with_options(serializer=Broken())
    before = undecodable(view)
    assert view.get("key") is None
    assert undecodable(view) == before + 1


def test_what_a_serializer_does_not_take_is_a_serialization_error(cache: Any) -> None:
    for serializer, value, name in (("raw", "text", "str"), ("json", {1, 2}, "set"), ("msgpack", object(), "object")):
        with pytest.raises(SerializationError, match=name):
            cache.with_options(serializer=serializer).set("key", value)
    assert cache.get("key") is None


@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_readers_need_not_know_that_a_value_was_compressed(cache: Any, method: str) -> None:
    if method == "zstd":
        pytest.importorskip("zstandard")
    view = cache.with_options(compression=method, compress_above=100)
    view.set("large", "x" * 100_000)
    view.set("small", "x")
    assert view.set_many({"many": "y" * 100_000}) == {}
    assert cache.get_many(["large", "small", "many"]) == {"large": "x" * 100_000, "small": "x", "many": "y" * 100_000}


# -- without a cluster ------------------------------------------------------------------------------------------------


@pytest.fixture
def lost(front: Any) -> Any:
    """A client whose only seed does not listen."""
    return front.client(f"127.0.0.1:{free_port()}", **UNHURRIED)


def test_plain_calls_raise_when_no_node_can_be_reached(lost: Any) -> None:
    for call in (
        lambda: lost.get("key"),
        lambda: lost.set("key", 1),
        lambda: lost.delete("key"),
        lambda: lost.get_many(["key"]),
        lambda: lost.set_many({"key": 1}),
        lambda: lost.delete_many(["key"]),
        lambda: list(lost.scan()),
        lost.clear,
        lost.ping,
        lost.stats,
        lost.members,
        lambda: lost.with_options(timeout=0.2).wait_ready(0.2),
    ):
        with pytest.raises(NoNodesAvailable):
            call()


def test_with_on_error_miss_an_unreachable_cluster_is_a_counted_miss(lost: Any) -> None:
    view = lost.with_options(on_error="miss")
    before = view.session.counters.errors
    assert view.get("key", "default") == "default"
    assert view.gets("key") is None
    assert view.exists("key") is False
    assert view.ttl("key") is None
    assert len(view.set("key", 1)) == 12
    assert view.delete("key") is False
    assert view.get_many(["key"]) == {}
    assert view.delete_many(["key"]) == 0
    view.set_many({"key": 1})
    assert view.session.counters.errors == before + 9


def test_conditional_changes_raise_all_the_same(lost: Any) -> None:
    """To say that nothing was changed would be a lie."""
    view = lost.with_options(on_error="miss")
    for call in (
        lambda: view.add("key", 1),
        lambda: view.replace("key", 1),
        lambda: view.cas("key", 1, Version(b"0" * 12)),
        lambda: view.incr("key"),
        lambda: view.decr("key"),
        lambda: view.touch("key", 1),
    ):
        with pytest.raises(NoNodesAvailable):
            call()


# -- closed -----------------------------------------------------------------------------------------------------------


def test_a_closed_client_refuses_everything(cache: Any) -> None:
    """Its views too, and closing again does nothing."""
    cache.set("key", 1)
    view = cache.with_options(on_error="miss")
    cache.close()
    cache.close()
    for client in (cache, view):
        for call in (
            lambda client=client: client.get("key"),
            lambda client=client: client.gets("key"),
            lambda client=client: client.exists("key"),
            lambda client=client: client.ttl("key"),
            lambda client=client: client.set("key", 1),
            lambda client=client: client.delete("key"),
            lambda client=client: client.add("key", 1),
            lambda client=client: client.replace("key", 1),
            lambda client=client: client.cas("key", 1, Version(b"0" * 12)),
            lambda client=client: client.incr("key"),
            lambda client=client: client.decr("key"),
            lambda client=client: client.touch("key", 1),
            lambda client=client: client.get_many(["key"]),
            lambda client=client: client.set_many({"key": 1}),
            lambda client=client: client.delete_many(["key"]),
            lambda client=client: client.get_or_set("key", lambda: 1),
            lambda client=client: list(client.scan()),
            lambda client=client: client.clear(),
            lambda client=client: client.ping(),
            lambda client=client: client.stats(),
            lambda client=client: client.members(),
            lambda client=client: client.wait_ready(1),
        ):
            with pytest.raises(ClientClosed):
                call()


def test_a_client_that_was_never_used_can_be_closed(front: Any) -> None:
    cache = front.client(["192.0.2.1:1"])
    cache.close()
    with pytest.raises(ClientClosed):
        cache.get("key")
