"""Epoch after epoch: members come and go by agreement, die and start again with an old table, and no epoch ever has two
states."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcache.agent.agent import Agent, Terms
from dcache.agent.register import Proposal, propose, regain_vote
from dcache.membership import Member, MemberTable, RingState, Settings
from dcache.ops.effects import Op, Sleep
from dcache.record import VersionClock
from tests.unit.agents_kit import Network, NoSlots

pytestmark = pytest.mark.cluster

NAMES = "abcdef"


@pytest.fixture(autouse=True, scope="module")
def no_slots() -> Generator[None]:
    """Who owns what, which takes long to find out, is not at stake here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemberTable, "slots_of", lambda table, name: [])
        yield


class World:
    """Nodes that all propose whatever may follow, in a bad network."""

    def __init__(self, seed: int, size: int) -> None:
        self.net = Network(seed)
        self.random = self.net.random
        self.agreed: defaultdict[int, set[RingState]] = defaultdict(set)
        self.boots = dict.fromkeys(NAMES, 0)
        self.agents: dict[str, Agent] = {}
        for name in NAMES:
            self.net.host(name, clock=self.random.choice([0, 0, -50, 50, 5000]))
        rows = {name: self.row(name, 1) for name in NAMES[:size]}
        placed = tuple(row.placed() for row in rows.values())
        for name in NAMES:
            self.boot(name, MemberTable(Settings("c", 3, 8), RingState(1, placed), rows))

    def row(self, name: str, boot: int) -> Member:
        return Member(name, f"{name}:7400", boot_id=f"{name}{boot}", incarnation=boot)

    def boot(self, name: str, table: MemberTable) -> None:
        """Start a node, anew if it was there; it has this table from another one, and it may be an old one."""
        self.boots[name] += 1
        host = self.net.hosts[f"{name}:7400"]
        host.crash(silent=self.random.random() < 0.5)
        agent = self.agents[name] = Agent(self.row(name, self.boots[name]), Terms(3, 8), self._publish, NoSlots())
        host.boot(agent.methods())
        agent.adopt(table)
        host.run(self._live(agent, VersionClock(self.random.getrandbits(32), host.wall)))

    def _publish(self, table: MemberTable) -> None:
        self.agreed[table.ring_state.epoch].add(table.ring_state)

    def _live(self, agent: Agent, clock: VersionClock) -> Op[None]:
        while True:
            yield Sleep(self.random.random() * self.random.choice([0.02, 0.5]))
            table = agent.table
            if table is None or not agent.on_ring:
                continue
            if not agent.register.acceptor.voter:
                yield from regain_vote(agent.register, start_over=False)
            elif any(node.name == agent.me.name for node in table.ring_state.members) and self.random.random() < 0.6:
                yield from propose(agent.register, self._wanted(table.ring_state), clock)

    def _wanted(self, state: RingState) -> Proposal:
        """Any step from `state`."""
        if state.next is not None:
            return Proposal(RingState(state.epoch + 1, self.random.choice([state.next, state.members])))
        outside = sorted(set(NAMES) - state.names)
        if outside and (len(state.members) < 3 or self.random.random() < 0.5):
            name = self.random.choice(outside)
            newcomer = self.row(name, self.boots[name])
            return Proposal(RingState(state.epoch + 1, state.members, (*state.members, newcomer.placed())), newcomer)
        going = self.random.choice(state.members)
        return Proposal(RingState(state.epoch + 1, state.members, tuple(n for n in state.members if n != going)))

    def run(self, seconds: float) -> None:
        path, deaths = self.net.default, self.random.choice([0.0, 0.04, 0.1, 0.2])
        path.delay = self.random.choice([(1, 5), (1, 100), (1, 600)])
        path.loss, path.twice = self.random.choice([0.0, 0.1, 0.3]), self.random.choice([0.0, 0.2])
        while self.net.ms < seconds * 1000:
            self.net.run(0.05)
            if self.random.random() < deaths:
                table = self.random.choice(list(self.agents.values())).table
                assert table is not None
                self.boot(self.random.choice(NAMES), table)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_no_epoch_has_two_states_whoever_comes_goes_and_dies(seed: int, size: int) -> None:
    world = World(seed, size)
    world.run(3.0)
    assert [epoch for epoch, states in world.agreed.items() if len(states) > 1] == []


def test_states_do_follow_one_another() -> None:
    world = World(1, 4)
    world.net.default.delay = (1, 5)
    world.net.run(5.0)
    assert max(world.agreed) > 5
