"""A cluster of real processes while nodes join, leave, die, are forgotten, and come back empty."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

import pytest

from dcache import Client, DcacheError
from dcache.testing import LocalCluster, NodeFailed
from dcache.testing.cluster import asked, table_of, wait_for

COUNT = 2_000
PATIENCE = 60.0
PATIENT: dict[str, Any] = {"timeout": 10.0, "connect_timeout": 5.0}
"""Settings of clients that wait however busy this machine is."""

UNDER_WAY = 1.5
"""Seconds after which nothing is under way any more to a node that does not answer."""


class Traffic:
    """A thread that writes and reads keys through a client of its own until it is ended, and checks what it reads.

    No read may return less than was acknowledged before.
    """

    def __init__(self, cluster: LocalCluster, keys: int = 200) -> None:
        self._client = cluster.client(**PATIENT)
        self._keys, self._stop = keys, threading.Event()
        self.acknowledged: dict[str, int] = {}
        self.errors: list[str] = []
        self.stale: list[str] = []
        self.calls = 0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            try:
                self._write(f"key{number % self._keys}", number)
                self._read(f"key{number * 7 % self._keys}")
            except DcacheError as error:
                self.errors.append(str(error))
            self.calls += 2

    def _write(self, key: str, number: int) -> None:
        self._client.set(key, number)
        self.acknowledged[key] = number

    def _read(self, key: str) -> None:
        least = self.acknowledged.get(key)
        found = self._client.get(key)
        if least is not None and (found is None or found < least):
            self.stale.append(f"{key} was acknowledged with {least} and read as {found}")

    def settle(self, more: int = 200) -> None:
        """Wait for so many calls more."""
        until = self.calls + more
        wait_for(lambda: self.calls >= until, "more calls", lambda: "")

    def __enter__(self) -> Self:
        self._thread.start()
        self.settle()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()

    def check(self) -> None:
        assert self.errors == []
        assert self.stale == []


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(3) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with cluster.client(**PATIENT) as client:
        client.wait_ready()
        yield client


def fill(client: Client, count: int = COUNT) -> None:
    assert client.set_many({f"entry{number}": number for number in range(count)}) == {}


def lost(client: Client, count: int = COUNT) -> int:
    """How many of what `fill` wrote are not read any more."""
    found = client.get_many([f"entry{number}" for number in range(count)])
    assert all(found[key] == int(key.removeprefix("entry")) for key in found)
    return count - len(found)


def names(cluster: LocalCluster, index: int = 0) -> set[str]:
    """Who is on the ring, as this node says."""
    table = table_of(cluster.addresses[index])
    assert table is not None
    return {node.name for node in table.ring.nodes}


def entries(cluster: LocalCluster, index: int) -> int:
    found: int = asked(cluster.addresses[index], "stats")["entries"]
    return found


# -- joining ----------------------------------------------------------------------------------------------------------


def test_a_node_joins_while_clients_read_and_write_without_a_single_error(
    cluster: LocalCluster, client: Client
) -> None:
    fill(client)
    with Traffic(cluster) as traffic:
        added = cluster.add()
        traffic.settle()
    traffic.check()
    assert added == 3
    assert names(cluster) == set(cluster.addresses)
    cluster.wait_until_complete(PATIENCE)
    assert 0 < entries(cluster, added) < COUNT + 200
    assert lost(client) == 0


def test_a_node_that_joins_is_ready_when_it_is_on_the_ring_and_counts(cluster: LocalCluster, client: Client) -> None:
    """With it, the others bear the loss of one more than they could without it."""
    fill(client)
    cluster.add()
    cluster.wait_until_complete(PATIENCE)
    cluster.kill(0)
    assert lost(client) == 0


def test_two_nodes_that_join_at_once_do_so_one_after_the_other(cluster: LocalCluster, client: Client) -> None:
    fill(client)
    adding = [threading.Thread(target=cluster.add) for _ in range(2)]
    for thread in adding:
        thread.start()
    for thread in adding:
        thread.join()
    cluster.wait_until_complete(PATIENCE)
    assert names(cluster) == set(cluster.addresses)
    assert len(cluster.addresses) == 5
    assert lost(client) == 0


def test_a_cluster_of_one_grows() -> None:
    with LocalCluster(1) as cluster, cluster.client(**PATIENT) as client:
        client.wait_ready()
        fill(client)
        for _ in range(2):
            cluster.add()
        cluster.wait_until_complete(PATIENCE)
        assert lost(client) == 0
        cluster.kill(0)
        assert lost(client) == 0


# -- who cannot join --------------------------------------------------------------------------------------------------


def test_a_node_with_other_settings_cannot_join_and_says_why(cluster: LocalCluster) -> None:
    with pytest.raises(NodeFailed, match="has replicas 3, this node was started with 2: start it with the cluster's"):
        cluster.add(replicas=2)
    assert cluster.nodes[-1].wait() == 1
    assert names(cluster) == set(cluster.addresses[:3])


def test_a_name_that_a_live_node_has_is_taken(cluster: LocalCluster) -> None:
    """It has no effect on the one that has it."""
    taken = cluster.addresses[1]
    with pytest.raises(NodeFailed, match=f"name {taken} is taken by a live node"):
        cluster.add(name=taken)
    assert cluster.nodes[-1].wait() == 1
    assert names(cluster) == set(cluster.addresses[:3])
    table = table_of(cluster.addresses[0])
    assert table is not None
    assert table.members[taken].address == taken
    cluster.wait_until_complete()


# -- leaving ----------------------------------------------------------------------------------------------------------


def test_a_node_leaves_while_clients_read_and_write_without_a_single_error(
    cluster: LocalCluster, client: Client
) -> None:
    cluster.add()
    fill(client)
    with Traffic(cluster) as traffic:
        assert cluster.leave(1) == 0
        traffic.settle()
    traffic.check()
    assert names(cluster) == set(cluster.addresses) - {cluster.addresses[1]}
    assert "has left" in cluster.nodes[1].tail()
    cluster.wait_until_complete(PATIENCE)
    cluster.kill(0)
    assert lost(client) == 0, "the others hold all that it held"


def test_with_leave_sigterm_makes_a_node_leave_first(client: Client, cluster: LocalCluster) -> None:
    index = cluster.add(leave=True)
    fill(client)
    assert cluster.stop(index) == 0
    wait_for(lambda: names(cluster) == set(cluster.addresses[:3]), "it to be off the ring", lambda: "")
    assert lost(client) == 0


def test_a_second_sigterm_stops_a_node_at_once() -> None:
    """One that cannot leave, because no majority is there to agree."""
    with LocalCluster(3, leave=True) as cluster:
        cluster.kill(0)
        cluster.kill(1)
        node = cluster.nodes[2]
        node.send(signal.SIGTERM)
        wait_for(lambda: "leaving" in node.tail(), "it to say so", node.tail)
        node.send(signal.SIGTERM)
        assert node.wait(10.0) == 0


def test_a_node_that_left_can_join_again(cluster: LocalCluster, client: Client) -> None:
    fill(client)
    cluster.add()
    assert cluster.leave(3) == 0
    cluster.restart(3)
    cluster.wait_until_complete(PATIENCE)
    assert names(cluster) == set(cluster.addresses)
    assert lost(client) == 0


# -- the dead ---------------------------------------------------------------------------------------------------------


def test_a_dead_node_is_forgotten_and_its_slots_are_filled_up(cluster: LocalCluster, client: Client) -> None:
    cluster.add()
    fill(client)
    cluster.kill(1)
    cluster.forget(1, PATIENCE)
    cluster.wait_until_complete(PATIENCE)
    assert names(cluster) == set(cluster.addresses) - {cluster.addresses[1]}
    cluster.kill(0)
    assert lost(client) == 0


def test_a_dead_node_is_replaced_under_another_name_at_its_address(cluster: LocalCluster, client: Client) -> None:
    fill(client)
    old = cluster.nodes[1].name
    cluster.kill(1)
    cluster.restart(1, name="other")
    index = 1
    table = table_of(cluster.addresses[0])
    assert table is not None
    assert table.members["other"].address == cluster.addresses[index]
    wish = lambda: asked(cluster.addresses[0], "forget", [old]) is None and old not in names(cluster)  # noqa: E731
    wait_for(wish, "the old name to be forgotten", lambda: "", PATIENCE)
    cluster.wait_until_complete(PATIENCE)
    assert names(cluster) == {"other", cluster.addresses[0], cluster.addresses[2]}
    cluster.kill(0)
    assert lost(client) == 0


def test_a_forgotten_node_that_comes_back_joins_anew(cluster: LocalCluster, client: Client) -> None:
    fill(client)
    cluster.add()
    cluster.kill(3)
    cluster.forget(3, PATIENCE)
    cluster.restart(3)
    cluster.wait_until_complete(PATIENCE)
    assert names(cluster) == set(cluster.addresses)
    assert lost(client) == 0


def test_a_forgotten_node_that_was_not_dead_drops_what_it_held_and_joins_anew(
    cluster: LocalCluster, client: Client
) -> None:
    fill(client)
    cluster.add()
    cluster.wait_until_complete(PATIENCE)
    gone = cluster.addresses[3]
    cluster.pause(3)
    wait_for(
        lambda: asked(cluster.addresses[0], "forget", [gone]) is None and gone not in names(cluster),
        "it to be forgotten",
        lambda: "",
        PATIENCE,
    )
    threading.Event().wait(
        UNDER_WAY
    )  # had it heard of the change before it was over, it would take it for its own leave
    cluster.resume(3)
    wait_for(lambda: names(cluster) == set(cluster.addresses), "it to be back", cluster.nodes[3].tail, PATIENCE)
    cluster.wait_until_complete(PATIENCE)
    assert lost(client) == 0


# -- coming back empty ------------------------------------------------------------------------------------------------


def test_a_node_that_came_back_empty_is_filled_up_and_the_loss_of_another_is_borne(
    cluster: LocalCluster, client: Client
) -> None:
    fill(client)
    cluster.kill(0)
    cluster.restart(0)
    cluster.wait_until_complete(PATIENCE)
    assert entries(cluster, 0) == COUNT
    cluster.kill(1)
    assert lost(client) == 0


def test_all_nodes_are_restarted_one_after_the_other_and_nothing_acknowledged_is_lost(
    cluster: LocalCluster, client: Client
) -> None:
    fill(client)
    with Traffic(cluster) as traffic:
        for index in range(3):
            assert cluster.stop(index) == 0
            cluster.restart(index)
            cluster.wait_until_complete(PATIENCE)
        traffic.settle()
    assert traffic.stale == []
    assert lost(client) == 0


def test_slots_of_which_too_few_know_are_started_over_after_the_stated_time() -> None:
    """Two of three lost their memory.  What is left is misses, never old values, and all can be written again."""
    with LocalCluster(3, start_over_after=2) as cluster, cluster.client(**PATIENT) as client:
        client.wait_ready()
        fill(client)
        cluster.kill(0)
        cluster.kill(1)
        started = time.monotonic()
        cluster.restart(0)
        cluster.restart(1)
        cluster.wait_until_complete(PATIENCE)
        assert time.monotonic() - started >= 2.0
        assert lost(client) == COUNT
        fill(client)
        assert lost(client) == 0
        assert "start" in cluster.nodes[0].tail() + cluster.nodes[1].tail() + cluster.nodes[2].tail()


# -- the first node ---------------------------------------------------------------------------------------------------


def test_a_first_node_that_is_restarted_with_its_command_line_comes_back_as_a_member() -> None:
    """It names nobody to join, and must not become a second cluster."""
    with LocalCluster(1) as cluster, cluster.client(**PATIENT) as client:
        client.wait_ready()
        cluster.add()
        cluster.add()
        cluster.wait_until_complete(PATIENCE)
        fill(client)
        before = table_of(cluster.addresses[1])
        cluster.kill(0)
        cluster.restart(0)
        cluster.wait_until_complete(PATIENCE)
        after = table_of(cluster.addresses[0])
        assert before is not None
        assert after is not None
        assert after.settings == before.settings
        assert names(cluster) == set(cluster.addresses)
        assert lost(client) == 0
