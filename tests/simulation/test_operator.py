"""What the simulator knows of nodes that somebody has to look after, and what it does not do to a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from signal import SIGTERM

import attrs
import pytest

from dcache.testing.sim import Cluster, Simulation, few_slots
from dcache.testing.sim.nemesis import Nemesis

SETTINGS = {"vnodes": 4, "probe_interval": 0.5, "start_over_after": 4.0, "leave": True}


@pytest.fixture
def simulation() -> Iterator[Simulation]:
    with few_slots(), Simulation(1) as simulation:
        yield simulation


def test_who_was_forgotten_and_knows_only_nodes_that_have_left_waits_in_vain(simulation: Simulation) -> None:
    """Nobody calls it, and it cannot know who came later: that is for who starts it again to say."""
    cluster = Cluster(simulation, 2, **SETTINGS)
    cluster.wait_ready()
    newcomer = cluster.add()
    assert simulation.run_until(lambda: len(cluster.newest_names()) == 3 and cluster.in_order(), 60)
    lost = cluster.nodes["n2"]
    lost.host.kill()
    assert not lost.gave_up
    assert simulation.run_until(lambda: newcomer.table is not None and newcomer.table.down == {"n2"}, 60)
    assert newcomer.agent is not None
    newcomer.agent.wishes.forget(["n2"])
    assert simulation.run_until(lambda: cluster.newest_names() == {"n1", "n3"} and cluster.in_order(), 60)
    lost.start()
    assert simulation.run_until(lambda: lost.table is not None, 60), "n1 answers it"
    assert not lost.waits_in_vain
    lost.host.kill()
    cluster.nodes["n1"].host.kill()
    lost.start()
    simulation.run(5.0)
    assert lost.table is None
    assert lost.waits_in_vain


def test_who_ends_because_it_cannot_be_of_the_cluster_gave_up_and_who_leaves_did_not(simulation: Simulation) -> None:
    cluster = Cluster(simulation, 3, **SETTINGS)
    cluster.wait_ready()
    stranger, leaver = cluster.nodes["n2"], cluster.nodes["n3"]
    leaver.host.signal(SIGTERM)
    assert simulation.run_until(lambda: leaver.ended, 60)
    assert not leaver.gave_up
    stranger.settings = attrs.evolve(stranger.settings, vnodes=8)
    stranger.host.kill()
    stranger.start()
    assert simulation.run_until(lambda: stranger.ended, 60)
    assert stranger.gave_up


@pytest.mark.parametrize("kind", ["kill", "bounce", "power_off"])
@pytest.mark.parametrize("trouble", ["none", "pause", "cut", "hold"])
def test_the_only_member_is_spared_while_the_newcomer_on_its_way_could_not_call_it_back(
    simulation: Simulation, kind: str, trouble: str
) -> None:
    """It would found another cluster, and those who judge take that for one and the same."""
    cluster = Cluster(simulation, 1, **SETTINGS)
    cluster.wait_ready()
    nemesis = Nemesis(cluster, Random(1), (kind,), 0)
    newcomer = cluster.add()
    assert simulation.run_until(lambda: newcomer.epoch == 2, 60, every=0.01)
    state = newcomer.table and newcomer.table.ring_state
    assert state is not None
    assert state.next is not None
    if trouble == "pause":
        newcomer.host.pause()
    elif trouble != "none":
        getattr(simulation.network, trouble)("n2", "n1")
    for _ in range(20):
        getattr(nemesis, kind)()
    spared = cluster.nodes["n1"].running and len(cluster.nodes["n1"].starts) == 1
    assert spared == (trouble != "none")
