"""Nodes that founded a cluster and are started again, all at once, with their first command lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from dcache.testing.sim import Cluster, Simulation, few_slots

SETTINGS = {"vnodes": 4, "probe_interval": 2.0, "start_over_after": 10.0}


@pytest.fixture
def simulation(seed: int) -> Iterator[Simulation]:
    with few_slots(), Simulation(seed) as simulation:
        yield simulation


def grown(simulation: Simulation, founders: int, members: int) -> Cluster:
    cluster = Cluster(simulation, founders, **SETTINGS)
    cluster.wait_ready()
    for _ in range(members - founders):
        cluster.add()
    assert simulation.run_until(lambda: len(cluster.newest_names()) == members and cluster.in_order(), 60)
    return cluster


def clusters(cluster: Cluster) -> set[str]:
    """The ids of all clusters that nodes are of."""
    return {node.table.settings.cluster_id for node in cluster.running() if node.table is not None}


def restart(cluster: Cluster, *names: str, after: float = 0.0) -> None:
    for name in names:
        cluster.nodes[name].host.kill()
    cluster.simulation.run(after)
    for name in names:
        cluster.nodes[name].start()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("after", [0.0, 10.0], ids=["at once", "later"])
def test_they_come_back_to_a_cluster_that_has_grown_in_the_meantime(simulation: Simulation, after: float) -> None:
    """They know of each other only, and would be enough to found another."""
    cluster = grown(simulation, 3, 7)
    before = clusters(cluster)
    restart(cluster, "n1", "n2", "n3", after=after)
    cluster.wait_ready(120.0)
    assert clusters(cluster) == before
    assert len(cluster.running()) == 7
    assert cluster.newest_names() == {f"n{number}" for number in range(1, 8)}


@pytest.mark.parametrize("seed", range(2))
def test_who_is_left_of_a_cluster_that_they_began_anew_says_so_and_ends(
    simulation: Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = grown(simulation, 2, 3)
    for name in ("n1", "n2"):  # nobody calls them in time
        simulation.network.cut("n3", name)
    restart(cluster, "n1", "n2")
    simulation.run(10.0)
    simulation.network.heal_all()
    with caplog.at_level(logging.ERROR, "dcache"):
        assert simulation.run_until(lambda: cluster.nodes["n3"].ended, 60)
    assert "n1, n2, without whom its members can agree on nothing, are of cluster" in caplog.text
    cluster.readmit(cluster.nodes["n3"])
    assert simulation.run_until(lambda: len(cluster.newest_names()) == 3 and cluster.in_order(), 60)
    assert len(clusters(cluster)) == 1
