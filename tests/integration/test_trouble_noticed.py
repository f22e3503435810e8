"""What clients make of nodes that are slow, lost, back again or elsewhere: they wait little, and ask little.

How much is counted, in operations that took as long as only waiting for a lost node takes; how long any of them takes
is up to the machine.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from dcache import Client, NoNodesAvailable, QuorumError
from dcache.drivers.channel import Channel
from dcache.membership import MemberTable
from dcache.ops.effects import Call, FirstOf, Op
from dcache.testing import LocalCluster
from dcache.testing.cluster import free_port, table_of
from tests.fronts import UNHURRIED, until
from tests.integration.proxied import ProxiedCluster

KEYS = [f"key{number}" for number in range(60)]
TIMEOUT = 4.0


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(3) as made:
        yield made


@pytest.fixture
def proxied() -> Iterator[ProxiedCluster]:
    with ProxiedCluster(3) as made:
        yield made


def failures(cache: Any, node: str) -> int:
    """How often in a row a node failed, as the client sees it."""
    trouble = cache.session.shared.backoff.failures.get(node)
    return 0 if trouble is None else trouble.failures


class Stopwatch:
    """Counts calls by how much of the timeout they took."""

    def __init__(self) -> None:
        self.calls = self.noticeable = self.long = 0

    def time(self, call: Callable[[], Any]) -> Any:
        start = time.monotonic()
        result = call()
        took = time.monotonic() - start
        self.calls += 1
        self.noticeable += took > TIMEOUT / 8  # half of what a call waits before it turns to others
        self.long += took > TIMEOUT / 2
        return result


# -- lost nodes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "paused"])
def test_a_lost_node_costs_a_client_one_timeout_at_most(front: Any, cluster: LocalCluster, how: str) -> None:
    """Also those calls are not delayed that find out, again and again, that it is still lost."""
    cache = front.client(cluster.addresses, timeout=TIMEOUT, connect_timeout=TIMEOUT / 5)
    assert cache.set_many(dict.fromkeys(KEYS, 0)) == {}
    for key in KEYS * 5:  # learns how long answers take
        cache.get(key)
    lost, watch = cluster.addresses[0], Stopwatch()
    cluster.kill(0) if how == "killed" else cluster.pause(0)

    def round_() -> bool:
        for number, key in enumerate(KEYS):
            watch.time(lambda key=key, number=number: cache.set(key, number))
            assert watch.time(lambda key=key: cache.get(key)) == number
        assert len(watch.time(lambda: cache.get_many(KEYS))) == len(KEYS)
        assert watch.time(lambda: cache.set_many(dict.fromkeys(KEYS, 0))) == {}
        watch.time(lambda: cache.incr("counter"))
        return failures(cache, lost) >= 6

    until(round_, "six probes that fail")
    assert watch.long <= 1
    assert watch.noticeable <= 3, f"of {watch.calls} calls"


@pytest.mark.parametrize("how", ["killed", "paused"])
def test_a_node_that_returns_is_used_again_by_a_client_that_only_reads(
    front: Any, cluster: LocalCluster, how: str
) -> None:
    """Nobody needs it meanwhile, so it is asked on the side."""
    cache = front.client(cluster.addresses, timeout=TIMEOUT)
    cache.set_many(dict.fromkeys(KEYS, 0))
    lost = cluster.addresses[0]
    cluster.kill(0) if how == "killed" else cluster.pause(0)
    until(lambda: cache.set("key", 1) and failures(cache, lost) >= 2, "the loss to be noticed")
    cluster.restart(0) if how == "killed" else cluster.resume(0)
    cluster.wait_until_complete()
    until(lambda: cache.get(KEYS[0]) == 0 and not failures(cache, lost), "the node to be used again")


def test_two_lost_nodes_that_return_are_found_by_calls_that_fail(front: Any, cluster: LocalCluster) -> None:
    """No call is made that could not succeed; whether that is so any more is found out all the same."""
    cache = front.client(cluster.addresses, timeout=0.5)
    for index in (0, 1):
        cluster.pause(index)

    def noticed() -> bool:
        with pytest.raises((QuorumError, NoNodesAvailable)):
            cache.get("key")
        return all(failures(cache, node) >= 2 for node in cluster.addresses[:2])

    until(noticed, "both to be left alone")
    for index in (0, 1):
        cluster.resume(index)

    def works() -> bool:
        try:
            cache.set("key", 1)
        except (QuorumError, NoNodesAvailable):
            return False
        return True

    until(works, "writes to succeed again")


# -- slow nodes -------------------------------------------------------------------------------------------------------


def test_reads_of_a_slow_node_are_raced_by_another(front: Any, proxied: ProxiedCluster) -> None:
    """Not more than five calls in a hundred are made for that."""
    cache = front.client(proxied.addresses, **UNHURRIED)
    cache.set_many(dict.fromkeys(KEYS, 0))
    reads = 0
    for key in KEYS * 15:  # learns how long answers take, and earns extra calls
        cache.get(key)
        reads += 1
    delay = UNHURRIED["timeout"] / 8  # half of what turns a call to others without a race
    proxied.proxies[0].delay(delay, "down")
    slow = 0
    before = cache.stats()["client"]["hedges"]
    for key in KEYS:
        start = time.monotonic()
        assert cache.get(key) == 0
        reads += 1
        slow += time.monotonic() - start >= delay
    made = cache.stats()["client"]["hedges"]
    assert slow <= 3
    assert made > before
    assert made <= 0.05 * (2 * reads + made)


# -- available mode ---------------------------------------------------------------------------------------------------


def test_the_keys_of_a_lost_single_copy_go_to_the_next_node_and_come_back(front: Any) -> None:
    """Every key can be read and written at once; when its owner is back it has them as before."""
    with LocalCluster(3, replicas=1) as cluster:
        cache = front.client(cluster.addresses, timeout=TIMEOUT, read_quorum="one", write_quorum="one")
        assert cache.set_many(dict.fromkeys(KEYS, 0)) == {}
        before = entries(cache)
        assert all(before.values())
        cluster.kill(0)
        watch = Stopwatch()
        for number, key in enumerate(KEYS):
            watch.time(lambda key=key, number=number: cache.set(key, number))
            assert watch.time(lambda key=key: cache.get(key)) == number
        assert watch.time(lambda: cache.get_many(KEYS)) == {key: number for number, key in enumerate(KEYS)}
        assert watch.noticeable == 0
        cluster.restart(0)
        cluster.wait_until_stable()
        lost = cluster.addresses[0]
        until(lambda: cache.get("key") is None and not failures(cache, lost), "the node to be used again")
        until(lambda: not cache.session.topology.table.down, "the news that it is up")
        for key in KEYS:
            cache.set(key, "back")
        assert entries(cache)[lost] == before[lost]
        assert cache.get_many(KEYS) == dict.fromkeys(KEYS, "back")


def entries(cache: Any) -> dict[str, int]:
    """How many records each node holds."""
    return {node: told["entries"] for node, told in cache.stats()["nodes"].items()}


# -- news -------------------------------------------------------------------------------------------------------------


def offer(node: str, table: MemberTable) -> Op[None]:
    round_ = FirstOf([Call(node, "offer", (table.to_wire(),))])
    yield round_
    assert round_.replies, round_.failures


def test_a_client_whose_connections_broke_learns_what_it_missed_from_new_ones(
    front: Any, proxied: ProxiedCluster
) -> None:
    """Such a change was pushed to others, and is not pushed again."""
    cache = front.client(proxied.addresses, **UNHURRIED)
    cache.set("key", 1)
    proxied.each(lambda proxy: proxy.refuse())
    proxied.each(lambda proxy: proxy.cut())
    changed, told = proxied.nodes[0].name, proxied.nodes[1].address
    table = table_of(told)
    assert table is not None
    row = table.members[changed]
    news = table.with_member(attrs.evolve(row, incarnation=row.incarnation + 1))
    with Client([told], **UNHURRIED) as other:
        other.engine.driver.run(offer(told, news), time.monotonic() + 10, 10)

    def spread() -> bool:
        tables = [table_of(node.address) for node in proxied.nodes]
        return all(table is not None and table.members[changed].incarnation > row.incarnation for table in tables)

    proxied.each(lambda proxy: proxy.accept())
    until(spread, "all nodes to hold the new row")

    def known() -> bool:
        cache.with_options(on_error="miss").get("key")
        return bool(cache.session.topology.table.members[changed].incarnation > row.incarnation)

    until(known, "the news", patience=10.0)


def test_a_ring_that_changes_is_not_noticed_by_those_who_read_and_write(front: Any, cluster: LocalCluster) -> None:
    """Some nodes know sooner than others, and than the client; what they refuse is asked again."""
    cache = front.client(cluster.addresses, **UNHURRIED)
    cache.set_many(dict.fromkeys(KEYS, 0))
    first = cache.session.topology.table.ring_state.epoch
    changes = threading.Thread(target=lambda: cluster.leave(cluster.add()))
    changes.start()
    rounds = 0
    while changes.is_alive():
        rounds += 1
        for key in KEYS[::6]:
            cache.set(key, rounds)
            assert cache.get(key) == rounds
        assert cache.set_many(dict.fromkeys(KEYS, rounds)) == {}
        assert cache.get_many(KEYS) == dict.fromkeys(KEYS, rounds)
        cache.delete(KEYS[0])
        assert cache.delete_many(KEYS[:6]) >= 0
    changes.join()
    assert cache.get(KEYS[-1]) == rounds
    agreed = table_of(cluster.addresses[0])
    assert agreed is not None
    assert agreed.ring_state.epoch >= first + 4
    until(lambda: cache.set("key", 1) and cache.session.topology.table.ring_state == agreed.ring_state, "the last news")


# -- nodes that are elsewhere -----------------------------------------------------------------------------------------


@pytest.fixture
def asked_for_table(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often nodes were asked for the table, and anything else."""
    asked: Counter[str] = Counter()
    request = Channel.request

    def counted(self: Channel, call: Call, *args: Any) -> None:
        asked[call.method] += 1
        request(self, call, *args)

    monkeypatch.setattr(Channel, "request", counted)
    return asked


def moved_away(cache: Any, cluster: LocalCluster) -> None:
    """Make the client know only where the members once were: nobody is there now."""
    table = table_of(cluster.addresses[0])
    assert table is not None
    rows = {
        name: attrs.evolve(row, address=f"127.0.0.1:{free_port()}", incarnation=0)
        for name, row in table.members.items()
    }
    cache.session.discovered(attrs.evolve(table, members=rows), "a")
    cache.session._search_again = 0.0


def test_a_client_whose_nodes_are_all_gone_asks_its_seeds_and_resolves_their_names_anew(
    front: Any, dcache_cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    lookups: list[str] = []
    present = ["127.0.0.2"]  # nobody listens there
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kw: Any) -> Any:
        if host == "seed.test":
            lookups.append(present[0])
            host = present[0]
        return resolve(host, *args, **kw)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    port = dcache_cluster.addresses[0].rpartition(":")[2]
    cache = front.client(f"seed.test:{port}", namespace="elsewhere", **UNHURRIED)
    moved_away(cache, dcache_cluster)
    with pytest.raises(QuorumError):
        cache.get("key")
    with pytest.raises(NoNodesAvailable):
        cache.get("key")
    present[0] = "127.0.0.1"

    def works() -> bool:
        try:
            return cache.get("key") is None
        except (QuorumError, NoNodesAvailable):
            return False

    until(works, "the client to find the nodes where they are now")
    assert set(lookups) == {"127.0.0.2", "127.0.0.1"}


def in_crowd(front: Any, call: Callable[[], Any]) -> list[Any]:
    """Make 1,000 calls as tasks, or 50 in threads, at once; their results or errors."""
    if front.kind is Client:

        def outcome() -> Any:
            try:
                return call()
            except (QuorumError, NoNodesAvailable) as error:
                return error

        return list(front.together([outcome] * 50))

    async def awaited() -> Any:
        try:
            return await call()
        except (QuorumError, NoNodesAvailable) as error:
            return error

    return list(front.together([awaited] * 1000))


def test_of_all_that_fail_at_once_one_asks_where_the_nodes_are_now(
    front: Any, dcache_cluster: LocalCluster, asked_for_table: Counter[str]
) -> None:
    seeds = [address.replace("127.0.0.1", "localhost") for address in dcache_cluster.addresses]
    cache = front.client(seeds, namespace="elsewhere", **UNHURRIED)
    moved_away(cache, dcache_cluster)
    asked_for_table.clear()
    failed = in_crowd(front, lambda: cache.get("key"))
    assert any(isinstance(outcome, QuorumError) for outcome in failed)
    assert set(in_crowd(front, lambda: cache.get("key"))) == {None}
    assert asked_for_table["table"] == 1


def test_of_all_that_fail_at_once_one_finds_out_that_nobody_is_anywhere(
    front: Any, asked_for_table: Counter[str]
) -> None:
    nowhere = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    cache = front.client(nowhere, **UNHURRIED)
    outcomes = in_crowd(front, lambda: cache.get("key"))
    assert all(isinstance(outcome, NoNodesAvailable) for outcome in outcomes)
    assert asked_for_table["table"] <= 2 * len(nowhere)
