"""What goes wrong in a simulated cluster: one thing, or several at once, chosen at random from those of a profile.

Every trouble is a method that says whether it could be made now.  They begin something and return; `mend` ends it all.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from signal import SIGTERM

from dcache.node.refusal import Refusal
from dcache.testing.sim.cluster import Cluster, NodeHost

MOST_NODES = 5
HEALED = 0.4
TOLERATED_MS = 12_000
"""How far a clock may be off that nobody sets right: less than half of what clients and nodes tolerate."""


class Nemesis:
    """Makes trouble of these `kinds`; `skew_ms` is how far a clock may be set off."""

    def __init__(self, cluster: Cluster, random: Random, kinds: Sequence[str], skew_ms: int) -> None:
        self.cluster, self.kinds, self.skew_ms = cluster, kinds, skew_ms
        self.made: dict[str, int] = {}
        self._told: set[str] = set()  # to leave, and not readmitted since
        self._skewed = False  # whether the clock of a node was ever further off than nodes tolerate
        self.blackouts: list[int] = []  # when, in microseconds
        self._sim, self._network, self._random = cluster.simulation, cluster.simulation.network, random

    def strike(self) -> None:
        """One to three troubles at once, often in a network that is well otherwise."""
        if self._random.random() < HEALED:
            self.heal()
        for _ in range(self._random.choice((1, 1, 2, 3))):
            kind = self._random.choice(self.kinds)
            if getattr(self, kind)():
                self.made[kind] = self.made.get(kind, 0) + 1

    def mend(self) -> None:
        """End what can be ended: the network is well, nobody stands still, and whoever is on the ring runs."""
        self._say("all is mended")
        self._network.calm()
        for host in self._sim.hosts.values():
            host.resume()
            if abs(host.clock.offset_ms) > TOLERATED_MS:
                host.step_clock(-host.clock.offset_ms)
        on_the_ring = self.cluster.newest_names()
        for node in self.cluster.nodes.values():
            if not node.running and node.name in on_the_ring:
                node.start()

    def _say(self, what: str) -> bool:
        self._sim.tell("nemesis", what)
        return True

    # -- nodes --------------------------------------------------------------------------------------------------------

    def kill(self) -> bool:
        node = self._one(self._expendable())
        if node is None:
            return False
        node.host.kill()
        return self._say(f"kills {node.name}")

    def power_off(self) -> bool:
        node = self._one(self._expendable())
        if node is None:
            return False
        node.host.power_off()
        return self._say(f"switches {node.name} off")

    def bounce(self) -> bool:
        """A node loses its memory, and is back at once."""
        node = self._one(self._expendable())
        if node is None:
            return False
        node.host.kill()
        node.start()
        return self._say(f"restarts {node.name}")

    def revive(self) -> bool:
        node = self._one([node for node in self.cluster.nodes.values() if not node.running and not node.ended])
        if node is None:
            return False
        node.start()
        return self._say(f"starts {node.name} again")

    def blackout(self) -> bool:
        """All nodes lose power, and start again after a while."""
        self.blackouts.append(self._sim.now_us)
        for node in self.cluster.running():
            node.host.power_off()
            self._sim.later(self._sim.now_us + self._random.randrange(3_000_000), self._revive, node)
        return self._say("switches all nodes off for a moment")

    def _revive(self, node: NodeHost) -> None:
        if not node.running:
            node.start()

    def pause(self) -> bool:
        node = self._one([node for node in self.cluster.running() if not node.paused])
        if node is None:
            return False
        node.host.pause()
        return self._say(f"stops {node.name}")

    def resume(self) -> bool:
        paused = [node for node in self.cluster.running() if node.paused]
        for node in paused:
            node.host.resume()
        return bool(paused) and self._say("lets those that were stopped go on")

    def stall_client(self) -> bool:
        client = self._random.choice(list(self.cluster.clients.values()))
        client.host.pause()
        self._sim.later(self._sim.now_us + self._random.randrange(4_000_000), client.host.resume)
        return self._say(f"stops {client.host.name} for a moment")

    def evict(self) -> bool:
        """A node forgets a few keys, as one that is short of room."""
        node = self._one([node for node in self.cluster.running() if node.node is not None and len(node.store)])
        if node is None:
            return False
        now = int(node.host.monotonic() * 1000)
        keys = sorted(node.store.keys())
        for key in self._random.sample(keys, self._random.randint(1, len(keys))):
            entry = node.store.peek(key, now)
            if entry is not None:
                node.store.drop(key, entry.version, now)
        return self._say(f"makes {node.name} forget some keys")

    def step_clock(self) -> bool:
        host = self._random.choice(list(self._sim.hosts.values()))
        most = self._random.choice((0, min(self.skew_ms, 12_000), self.skew_ms))
        wanted = self._random.randint(-most, most)
        self._skewed |= abs(wanted) > TOLERATED_MS and host.name in self.cluster.nodes
        host.step_clock(wanted - host.clock.offset_ms)
        return self._say(f"sets the clock of {host.name} {wanted:+d} ms off")

    def _expendable(self) -> list[NodeHost]:
        """Those without whom there is still a member who knows the newest ring state: were all who know it to forget
        it, they would form another cluster, which is `blackout`.  Who is coming has no say in what follows, but can
        call the only member back to its cluster if that is started again, unless it stands still or is cut off.

        What is started over goes by clocks.  Where those may have been far off nobody ends while another member has
        not completed: then nothing is started over for want of owners that remember."""
        running = self.cluster.running()
        newest = max((node.epoch for node in running), default=0)
        knowing = [
            node
            for node in running
            if node.epoch == newest and node.agent is not None and node.agent.on_ring and node.name not in self._told
        ]
        return [
            node
            for node in running
            if any(one is not node and (_is_member(one) or self._can_call(one, node)) for one in knowing)
            and (not self._skewed or self._others_remember(node))
        ]

    def _others_remember(self, node: NodeHost) -> bool:
        others = [self.cluster.nodes[name] for name in self.cluster.newest_names() if name != node.name]
        return all(one.running and one.node is not None and one.store.all_complete for one in others)

    def _can_call(self, one: NodeHost, other: NodeHost) -> bool:
        ways = ((one.name, other.name), (other.name, one.name))
        paths = [self._network.path(here, there) for here, there in ways]
        return not one.paused and all(path.cut_at is None and not path.held for path in paths)

    def _one(self, nodes: Sequence[NodeHost]) -> NodeHost | None:
        return self._random.choice(nodes) if nodes else None

    # -- the ring -----------------------------------------------------------------------------------------------------

    def join(self) -> bool:
        away = [node for node in self.cluster.nodes.values() if node.ended]
        if away:
            self.cluster.readmit(away[0])
            self._told.discard(away[0].name)
        elif len(self.cluster.nodes) < MOST_NODES:
            self.cluster.add()
        else:
            return False
        return self._say("lets a node join")

    def leave(self) -> bool:
        """An operator ends a node that is to leave the cluster first."""
        staying = [
            node
            for node in self.cluster.running()
            if node.agent is not None and node.agent.on_ring and node.name not in self._told
        ]
        node = self._one([node for node in staying if not node.paused])
        if node is None or len(staying) < 2:
            return False
        self._told.add(node.name)  # told twice, it would stop at once
        node.host.signal(SIGTERM)
        return self._say(f"tells {node.name} to leave")

    def forget(self) -> bool:
        """An operator has a dead member forgotten."""
        node = self._one([node for node in self.cluster.running() if node.table is not None and not node.paused])
        if node is None or node.agent is None or node.table is None:
            return False
        dead = [name for name in sorted(node.table.down) if not self.cluster.nodes[name].running]
        if not dead:
            return False
        try:
            node.agent.wishes.forget(dead[:1])
        except Refusal as refusal:
            return self._say(f"asks {node.name} to forget {dead[0]}: refused, {refusal.detail}")
        return self._say(f"asks {node.name} to forget {dead[0]}")

    # -- the network --------------------------------------------------------------------------------------------------

    def isolate(self) -> bool:
        lone = self._random.choice(list(self.cluster.nodes))
        for other in self._others(lone):
            self._network.cut(lone, other)
            self._network.cut(other, lone)
        return self._say(f"cuts {lone} off")

    def isolate_one_way(self) -> bool:
        lone = self._random.choice(list(self.cluster.nodes))
        speaks = self._random.random() < 0.5
        for other in self._others(lone):
            self._network.cut(*((lone, other) if speaks else (other, lone)))
        return self._say(f"lets {lone} only {'hear' if speaks else 'speak'}")

    def cut_links(self) -> bool:
        pairs = self._pairs(3)
        for here, there in pairs:
            self._network.cut(here, there)
        return self._say(f"cuts {_shown(pairs)}")

    def swizzle(self) -> bool:
        """Cut some links one by one, and heal them one by one in another order."""
        pairs = self._pairs(self._random.randint(2, 8))
        at = self._sim.now_us
        for happen in (self._network.cut, self._network.heal):
            self._random.shuffle(pairs)
            for pair in pairs:
                at += self._random.randrange(800_000)
                self._sim.later(at, happen, *pair)
        return self._say(f"cuts and heals one by one {_shown(pairs)}")

    def hold(self) -> bool:
        pairs = self._pairs(2)
        for here, there in pairs:
            self._network.hold(here, there)
        return self._say(f"holds {_shown(pairs)}")

    def reset(self) -> bool:
        one, other = self._pairs(1)[0]
        self._network.reset(one, other)
        return self._say(f"breaks the connections of {one} and {other}")

    def slow(self) -> bool:
        here, there = self._pairs(1)[0]
        self._network.path(here, there).delay = (1.0, self._random.choice((50.0, 200.0, 600.0)))
        return self._say(f"slows {here}>{there} down")

    def lossy(self) -> bool:
        here, there = self._pairs(1)[0]
        self._network.path(here, there).loss = self._random.choice((0.05, 0.3))
        return self._say(f"loses packets of {here}>{there}")

    def heal(self) -> bool:
        self._network.calm()
        return self._say("heals the network")

    def _others(self, name: str) -> list[str]:
        return [other for other in self._sim.hosts if other != name]

    def _pairs(self, number: int) -> list[tuple[str, str]]:
        hosts = list(self._sim.hosts)
        return [(one, other) for one, other in (self._random.sample(hosts, 2) for _ in range(number))]


def _is_member(node: NodeHost) -> bool:
    return node.table is not None and node.name in {member.name for member in node.table.ring_state.members}


def _shown(pairs: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{here}>{there}" for here, there in pairs)
