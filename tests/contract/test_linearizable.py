"""The linearizable mode: the same methods, and what they promise beside."""

from __future__ import annotations

from typing import Any

import pytest

from dcache import Client
from dcache.testing import LocalCluster
from tests.fronts import UNHURRIED


@pytest.fixture
def linear(cache: Any) -> Any:
    return cache.with_options(consistency="linearizable")


def test_what_is_written_is_read_and_forgotten(linear: Any) -> None:
    linear.set("key", 1)
    linear.set("key", 2, ttl=60)
    assert linear.get("key") == 2
    assert 50 < linear.ttl("key") <= 60
    assert linear.delete("key") is True
    assert linear.delete("key") is False
    assert linear.get("key") is None


def test_many_keys_are_written_and_forgotten(linear: Any) -> None:
    values = {f"key{number}": number for number in range(300)}
    assert linear.set_many(values) == {}
    assert linear.get_many(values) == values
    assert linear.delete_many(["key1", b"key1", "key2", "absent"]) == 2
    assert set(linear.get_many(values)) == set(values) - {"key1", "key2"}
    linear.clear()
    assert linear.get_many(values) == {}


def test_versions_rise_without_a_clock(linear: Any) -> None:
    """A key that was never written begins above what was forgotten in its slot, here perhaps nothing."""
    versions = [linear.set("key", number) for number in range(5)]
    assert versions == sorted(set(versions))
    assert linear.cas("key", "changed", versions[-1]) is True
    changed = linear.gets("key").version
    assert linear.set("key", "set") > changed > versions[-1]


def test_changes_and_computations_go_on_above_what_was_set(linear: Any) -> None:
    linear.set("n", 5)
    assert linear.incr("n") == 6
    linear.set("n", 1)
    assert linear.incr("n") == 2
    assert linear.get_or_set("computed", lambda: "value") == "value"
    linear.delete("computed")
    assert linear.get_or_set("computed", lambda: "anew") == "anew"
    assert linear.get("computed") == "anew"


def test_a_computation_does_not_bury_a_delete_made_meanwhile(cache: Any, linear: Any) -> None:
    deleting = cache.session.topology.sources()

    def compute() -> str:
        with Client(deleting, namespace=cache.options.namespace, consistency="linearizable", **UNHURRIED) as another:
            another.delete("key")
        return "old"

    assert linear.get_or_set("key", compute) == "old"
    assert linear.get("key") is None


def test_strict_clients_of_the_same_keys_see_and_overwrite_it(cache: Any, linear: Any) -> None:
    cache.set("key", "strict")
    linear.set("key", "linearizable")
    assert cache.get("key") == "linearizable"
    cache.set("key", "strict again")
    assert linear.get("key") == "strict again"


def test_of_many_who_write_one_key_at_once_one_wins_for_all(front: Any, linear: Any) -> None:
    front.together([lambda number=number: linear.set("key", number) for number in range(8)])
    found = linear.get("key")
    assert found in range(8)
    assert linear.with_options(read_quorum="all").get("key") == found


def test_it_can_be_asked_for_when_a_client_is_made_and_in_a_url(front: Any, dcache_cluster: LocalCluster) -> None:
    made = front.client(dcache_cluster.addresses, consistency="linearizable", **UNHURRIED)
    nodes = ",".join(dcache_cluster.addresses)
    from_url = front.from_url(f"dcache://{nodes}/linear?consistency=linearizable", **UNHURRIED)
    for client in (made, from_url):
        assert client.options.consistency == "linearizable"
        client.set("contract-linearizable", 1)


@pytest.mark.parametrize("quorums", [{"read_quorum": "one"}, {"write_quorum": "one"}, {"read_quorum": 1}])
def test_it_needs_majorities(front: Any, cache: Any, quorums: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs majorities"):
        front.client("localhost", consistency="linearizable", **quorums)
    with pytest.raises(ValueError, match="needs majorities"):
        cache.with_options(**quorums).with_options(consistency="linearizable")


def test_other_words_are_refused(front: Any) -> None:
    with pytest.raises(ValueError, match="consistency"):
        front.client("localhost", consistency="strong")
