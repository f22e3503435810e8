"""How soon clients of asyncio learn of a changed table: by push, on virtual time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dcache.testing.sim import Cluster, Simulation, few_slots
from dcache.testing.sim.cluster import ClientHost

SOON = 0.1  # seconds


@pytest.fixture
def simulation() -> Iterator[Simulation]:
    with few_slots(), Simulation(seed=1) as simulation:
        yield simulation


def epoch(client: ClientHost) -> int:
    table = client.cache.session.topology.table
    return 0 if table is None else table.ring_state.epoch


def test_an_idle_client_knows_of_a_new_ring_within_a_tenth_of_a_second(simulation: Simulation) -> None:
    cluster = Cluster(simulation, 3, vnodes=4)
    cluster.wait_ready()
    client = cluster.client("web1")
    client.run(client.cache.set_many({f"key{number}": number for number in range(50)}))  # connects it to all
    before = epoch(client)
    cluster.add()
    for expected in (before + 1, before + 2):  # both rings, then the new one
        nodes = cluster.running()[:3]
        assert simulation.run_until(lambda: any(node.epoch >= expected for node in nodes), 60, every=0.001)  # noqa: B023
        assert simulation.run_until(lambda: epoch(client) >= expected, SOON, every=0.001)  # noqa: B023
