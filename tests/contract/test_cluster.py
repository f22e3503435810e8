"""scan, clear, ping, stats, members, wait_ready: the namespace and the cluster as a whole."""

from __future__ import annotations

from typing import Any

from dcache.testing import LocalCluster


def test_scan_gives_every_key_of_the_namespace_once(cache: Any, namespace: str) -> None:
    """More than fit one page, and none of other namespaces."""
    keys = {f"key{number}" for number in range(2500)}
    cache.set_many(dict.fromkeys(keys, 1))
    cache.with_options(namespace=namespace + "x").set("elsewhere", 1)
    found = list(cache.scan())
    assert len(found) == 2500
    assert set(found) == keys


def test_scan_can_be_given_a_prefix(cache: Any) -> None:
    cache.set_many({"user:1": 1, "user:2": 2, "shop:1": 3, b"user:\xff": 4})
    assert set(cache.scan("user:")) == {"user:1", "user:2", b"user:\xff"}
    assert set(cache.scan(b"shop")) == {"shop:1"}
    assert list(cache.scan("nothing")) == []


def test_scan_shows_neither_deleted_nor_expired_keys(cache: Any) -> None:
    cache.set_many({"a": 1, "b": 2})
    cache.delete("a")
    assert list(cache.scan()) == ["b"]


def test_clear_forgets_the_namespace_and_no_other(cache: Any, namespace: str) -> None:
    other = cache.with_options(namespace=namespace + "x")
    other.set("key", 1)
    keys = {f"key{number}": number for number in range(300)}
    cache.set_many(keys)
    cache.clear()
    assert cache.get_many(keys) == {}
    assert list(cache.scan()) == []
    assert other.get("key") == 1


def test_what_is_written_after_a_clear_stays(cache: Any) -> None:
    for number in range(5):
        cache.set("key", number)
        cache.clear()
        assert cache.get("key") is None
        cache.set("key", number)
        assert cache.get("key") == number
        assert cache.get_or_set("other", lambda number=number: number) == number


def test_ping_times_every_node(cache: Any, dcache_cluster: LocalCluster) -> None:
    times = cache.ping()
    assert set(times) == set(dcache_cluster.addresses)
    assert all(0 < seconds < 10 for seconds in times.values())


def test_members_are_told_with_name_and_address(cache: Any, dcache_cluster: LocalCluster) -> None:
    members = cache.members()
    assert [member.name for member in members] == sorted(dcache_cluster.addresses)
    assert all(member.address == member.name and member.boot_id for member in members)


def test_stats_are_those_of_the_client_and_of_every_node(cache: Any, dcache_cluster: LocalCluster) -> None:
    cache.set("key", 1)
    cache.get("key")
    cache.get("missing")
    stats = cache.stats()
    assert (stats["client"]["hits"], stats["client"]["misses"]) == (1, 1)
    assert set(stats["nodes"]) == set(dcache_cluster.addresses)
    for node in stats["nodes"].values():
        assert node["entries"] >= 1
        assert 0 < node["bytes"] <= node["memory_limit"]
        assert node["complete"] is True


def test_wait_ready_returns_once_the_cluster_is(cache: Any) -> None:
    cache.wait_ready(30)
    cache.wait_ready()
