"""A whole cluster under everything at once: nodes die, hang, come back empty, join, leave, are forgotten and cut off,
while clients read and write.

The real operations, services, stores and agents run on the virtual time of `agents_kit`; a seeded nemesis does the
harm.  What is checked, per key:

* no strict read returns what is older than a write acknowledged, or a read returned, before it began;
* nothing computed before an acknowledged invalidation is read after it;
* no two ring states that anybody holds have the same epoch and differ.

And when the trouble is over: every change of the ring ends, every node completes its slots, all hold the same table and
all owners of a key the same record, and every key can be written.

Every safeguard has a mutation that takes it out: the harm must be found, or the test would be no test.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from dcache import ring
from dcache.agent import register, repair
from dcache.agent.agent import Agent, Terms
from dcache.agent.changes import Steward, join, leave
from dcache.agent.completing import Completing
from dcache.agent.detector import Detector
from dcache.errors import NodeError, QuorumError
from dcache.membership import Member, MemberTable, RingState, Settings
from dcache.node.service import Identity, Refusal, Service, View
from dcache.node.store import Store
from dcache.ops import listing, load, read, write
from dcache.ops.backoff import Backoff
from dcache.ops.context import Context, Options, Shared
from dcache.ops.effects import Effect, Op, Round
from dcache.ops.listing import Pace
from dcache.record import ZERO, Version, VersionClock
from dcache.ring import slot_of
from dcache.wire import Code
from tests.unit.agents_kit import Host, Network

pytestmark = pytest.mark.cluster

VALUES = ("a", "b", "c", "d")
COMPUTED = ("f", "g")
KEYS = (*VALUES, *COMPUTED)
INTERVAL = 1.0
START_OVER = 8.0
FOUNDERS = ("n1", "n2", "n3")
OTHERS = ("n4", "n5")
CLIENTS = ("c1", "c2", "c3")
ROUNDS = 30
ALL = ("crash", "bounce", "revive", "pause", "resume", "cut", "heal", "heal", "join", "leave", "forget_down", "evict")
TROUBLES = (
    ALL,
    ("bounce", "evict", "cut", "heal"),
    ("join", "leave", "evict", "cut", "heal"),
    ("pause", "resume", "join", "leave", "evict"),
    ("crash", "revive", "forget_down", "join"),
)
"""What the nemesis of a run chooses from."""


SLOTS = 128


@pytest.fixture(autouse=True)
def few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings of 128 slots instead of 16,384, so that a cluster does in a moment what takes it a second."""
    make_few_slots(monkeypatch.setattr)


def make_few_slots(put: Callable[[Any, str, Any], None]) -> None:
    put(ring, "_SHIFT", 25)
    put(listing, "BLOCKS", SLOTS // listing.BLOCK)
    for module in (ring, listing, repair):
        put(module, "SLOTS", SLOTS)


# -- nodes ------------------------------------------------------------------------------------------------------------


class Node:
    """One node: a host, and what its present process consists of."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.host = world.net.host(name, clock=world.rng.randrange(-20_000, 20_000))
        self.host.table = lambda: None if self.agent is None else self.agent.table
        self.agent: Agent | None = None
        self.paused = False
        self.boots = 0

    @property
    def running(self) -> bool:
        return self.host.process is not None

    def boot(self) -> Member:
        """A new process, empty; its row."""
        world, host, random = self.world, self.host, self.world.rng.random
        self.boots += 1
        self.paused = False
        self.store = Store(world.memory, lambda key: slot_of(key, 0), SLOTS)
        self.service = Service(
            self.store, Identity(self.name, f"{self.name}-{self.boots}"), lambda: host.net.ms, host.wall
        )
        me = Member(self.name, host.address, boot_id=f"{self.name}-{self.boots}", incarnation=host.wall())
        self.agent = Agent(me, Terms(vnodes=4), self._publish, self.store)
        self.detector = Detector(self.agent, INTERVAL, host.now, host.wall, random)
        clock = VersionClock(world.rng.randrange(1 << 32), host.wall)
        self.steward = Steward(self.agent, clock, self._seconds, random, interval=INTERVAL, start_over=START_OVER)
        pace = Pace(1e9)
        self.completing = Completing(self.agent, self.service, host.now, random, pace, START_OVER)
        self.repair = repair.Repair(self.agent, self.service, host.now, random, pace, 10.0)
        self.agent.behind = self.completing.behind
        for part in (self.agent, self.detector, self.completing):
            self.service.methods.update(part.methods())
        host.boot(self.service.methods)
        return me

    def _seconds(self) -> float:
        return self.host.net.ms / 1000

    def _publish(self, table: MemberTable) -> None:
        self.service.view = View(table.settings.cluster_id, table.fingerprint, table.to_wire())
        self.world.saw(table)

    def live(self) -> None:
        """Do what a member does for as long as its process lives."""
        assert self.agent is not None
        task = self.host.run(join(self.agent, self.world.rng.random, self._seconds))
        for op, timeout in (
            (self.steward.work(), 1.0),
            (self.detector.detect(), self.detector.timeout),
            (self.completing.run(), 1.0),
            (self.repair.run(), 1.0),
        ):
            self.host.run(op, timeout)
        self.joining = task

    def restart(self) -> None:
        """Start anew, empty, and find the cluster."""
        self.boot()
        agent, world = self.agent, self.world
        assert agent is not None
        found = world.newest()
        agent.adopt(found)
        self.live()

    def crash(self) -> None:
        self.host.crash(silent=self.world.rng.random() < 0.3)
        self.paused = False

    def pause(self) -> None:
        self.host.pause()
        self.paused = True

    def resume(self) -> None:
        self.host.resume()
        self.paused = False


# -- clients ----------------------------------------------------------------------------------------------------------


class Client:
    """One strict client: its table, its clock, and operations that are run anew when the ring has changed."""

    def __init__(self, world: World, name: str, number: int) -> None:
        self.world, self.name = world, name
        self.host = world.net.host(name, clock=world.rng.randrange(-20_000, 20_000))
        self.host.boot({})
        self.table: MemberTable = world.first
        self.host.table = lambda: self.table
        backoff = Backoff(world.rng.random, first=0.0, most=0.0)
        turn = iter(lambda: world.rng.randrange(6), None)
        clock = VersionClock(number << 20, self.host.wall)
        self.shared = Shared(clock, lambda: world.net.ms / 1000, world.rng.random, backoff, turn=turn)
        self.written: Version = ZERO

    def run(self, operation: Callable[..., Op[Any]], *args: Any, again: bool = True) -> Op[Any]:
        """The operation under the table in force; anew, `again` also in doubt, under a newer one."""
        for attempt in itertools.count():
            table = self.table
            ctx = Context(table, Options(), self.shared)
            try:
                return (yield from self._learning(operation(ctx, *args)))
            except QuorumError as error:
                moved = self.table.fingerprint != table.fingerprint
                if attempt > 3 or not moved or (error.in_doubt and not again):
                    raise

    def _learning(self, op: Op[Any]) -> Iterator[Effect]:
        """As `op`, taking in the tables that come with refusals and noting what is written."""
        value = None
        while True:
            try:
                effect = op.send(value)
            except StopIteration as stop:
                return stop.value
            if isinstance(effect, Round):
                for call in effect.calls:
                    if call.method in ("set", "delete", "accept"):
                        self.written = call.params[3]
            yield effect
            for failure in getattr(effect, "failures", ()):
                error = failure.error
                if isinstance(error, NodeError) and error.code == Code.WRONG_RING:
                    self.table = self.table.merge(MemberTable.from_wire(error.detail))


# -- the world --------------------------------------------------------------------------------------------------------


@attrs.define
class Known:
    """Of one key: the newest version that was acknowledged or read, and how often its source changed."""

    low: Version = ZERO
    changes: int = 0
    invalidated: int = 0


class World:
    """One run.  All randomness comes from `seed`."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.seed, self.rng = seed, random.Random(seed)
        self.trace: list[str] | None = [] if trace else None
        self.net = Network(seed)
        self.net.default.delay = self.rng.choice(((1, 1), (1, 20), (1, 200)))
        self.net.default.loss = self.rng.choice((0.0, 0.0, 0.02, 0.1))
        self.memory = self.rng.choice((1 << 20, 1 << 20, 400))
        self.known = {key: Known() for key in KEYS}
        self.states: dict[int, RingState] = {}
        self.violations: list[str] = []
        self.tally: dict[str, int] = {}
        self.serial = 0
        self.nodes = {name: Node(self, name) for name in (*FOUNDERS, *OTHERS)}
        self.found()
        self.clients = [Client(self, name, number) for number, name in enumerate(CLIENTS, 1)]
        self.cuts: set[tuple[str, str]] = set()
        self.keys = self.rng.choice((KEYS, KEYS[:1], KEYS[:2], KEYS[-1:], KEYS[3:5]))
        self.troubles = self.rng.choice(TROUBLES)

    def found(self) -> None:
        nodes = [self.nodes[name] for name in FOUNDERS]
        rows = {node.name: node.boot() for node in nodes}
        placed = tuple(row.placed() for _, row in sorted(rows.items()))
        self.first = MemberTable(Settings("c", 3, 4, 0), RingState(1, placed), rows)
        for node in nodes:
            assert node.agent is not None
            node.agent.adopt(self.first)
            node.live()

    def newest(self) -> MemberTable:
        """The newest table of a process that runs, or the first."""
        tables = [self.first]
        tables += [node.agent.table for node in self.nodes.values() if node.running and node.agent and node.agent.table]
        return functools.reduce(MemberTable.merge, tables)

    def note(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.net.ms}: {text}")

    def bad(self, text: str) -> None:
        self.note(f"VIOLATION {text}")
        self.violations.append(text)

    def count(self, what: str) -> None:
        self.tally[what] = self.tally.get(what, 0) + 1

    def saw(self, table: MemberTable) -> None:
        """A node holds this table now."""
        state = table.ring_state
        self.note(f"table {state.epoch}: {[n.name for n in state.members]} {[n.name for n in state.next or ()]}")
        before = self.states.setdefault(state.epoch, state)
        if before != state:
            self.bad(f"two states of epoch {state.epoch}: {before} and {state}")

    # -- what clients do ----------------------------------------------------------------------------------------------

    def spawn(self) -> None:
        client = self.rng.choice(self.clients)
        key = self.rng.choice(self.keys)
        kinds = (self.get, self.get, self.put, self.forget) if key in VALUES else (self.fill, self.fill, self.forget)
        client.host.run(self.rng.choice(kinds)(client, key), timeout=self.rng.choice((0.3, 1.0)))

    def value(self, key: str, kind: str) -> str:
        self.serial += 1
        return f"{kind}:{self.known[key].changes}:{key}{self.serial}"

    def acknowledged(self, key: str, version: Version, what: str) -> None:
        self.count(what)
        self.note(f"acknowledged {what} {key} {version.hex()}")
        self.known[key].low = max(self.known[key].low, version)

    def returned(self, key: str, value: str, version: Version | None, low: Version, invalidated: int) -> None:
        self.count("hit")
        if version is not None:
            self.note(f"read {key} {value} {version.hex()} low {low.hex()}")
            if version < low:
                self.bad(f"{key}: stale, {version.hex()} was returned after {low.hex()}")
            self.known[key].low = max(self.known[key].low, version)
        kind, changes, _ = value.split(":")
        if kind == "fill" and int(changes) < invalidated:
            self.bad(f"{key}: {value} outlived invalidation {invalidated}")

    def get(self, client: Client, key: str) -> Op[None]:
        known = self.known[key]
        low, invalidated = known.low, known.invalidated
        try:
            item = yield from client.run(read.gets, key)
        except QuorumError as error:
            self.failed(error)
            return
        self.count("read")
        if item is not None:
            self.returned(key, item.value, item.version, low, invalidated)

    def put(self, client: Client, key: str) -> Op[None]:
        try:
            version = yield from client.run(write.set, key, self.value(key, "set"))
        except QuorumError as error:
            self.failed(error)
            return
        self.acknowledged(key, version, "set")

    def forget(self, client: Client, key: str) -> Op[None]:
        known = self.known[key]
        known.changes += 1
        number = known.changes
        versions: list[Version] = []

        def deleting(ctx: Context) -> Op[None]:
            version, _ = yield from write.write(
                ctx, "delete", key.encode(), lambda node, version: ctx.call(node, "delete", key.encode(), version)
            )
            versions.append(version)

        try:
            yield from client.run(deleting)
        except QuorumError as error:
            self.failed(error)
            return
        self.acknowledged(key, versions[-1], "delete")
        known.invalidated = max(known.invalidated, number)

    def fill(self, client: Client, key: str) -> Op[None]:
        known = self.known[key]
        low, invalidated = known.low, known.invalidated
        try:
            found = yield from client.run(load.lookup, key)
            if isinstance(found, load.Found):
                self.count("read")
                self.returned(key, found.value, None, low, invalidated)
                return
            value = self.value(key, "fill")
            data, flags = Options().codec.encode(value)
            if (yield from client.run(load.fill, key, found, data, flags, again=False)):
                self.acknowledged(key, found.version, "fill")
        except QuorumError as error:
            self.failed(error)

    def failed(self, error: QuorumError) -> None:
        self.note(f"failed: {error}")
        self.count("failed")

    # -- what the nemesis does ----------------------------------------------------------------------------------------

    def trouble(self) -> None:
        """One thing that happens to the cluster, if it can happen now."""
        kind = self.rng.choice(self.troubles)
        node = self.rng.choice(list(self.nodes.values()))
        if getattr(self, kind)(node) is not False:
            self.note(f"{kind} {node.name}")
            self.count(kind)

    def crash(self, node: Node) -> bool | None:
        if not node.running or not self.can_spare(node):
            return False
        node.crash()
        return None

    def can_spare(self, node: Node) -> bool:
        """Whether somebody else runs who knows the newest ring state: were all to forget it, it would be another
        cluster that they form."""
        others = [one.agent for one in self.nodes.values() if one.running and one is not node and one.agent]
        latest = max(self.states)
        return any(agent.table is not None and agent.table.ring_state.epoch == latest for agent in others)

    def bounce(self, node: Node) -> bool | None:
        """A node loses its memory."""
        if not node.running or not self.can_spare(node):
            return False
        node.crash()
        node.restart()
        return None

    def revive(self, node: Node) -> bool | None:
        gone = [one for one in self.nodes.values() if not one.running and one.agent is not None]
        if not gone:
            return False
        gone[0].restart()
        return None

    def pause(self, node: Node) -> bool | None:
        if not node.running or node.paused:
            return False
        node.pause()
        return None

    def resume(self, node: Node) -> bool | None:
        paused = [one for one in self.nodes.values() if one.running and one.paused]
        for one in paused:
            one.resume()
        return bool(paused)

    def join(self, node: Node) -> bool | None:
        away = [one for one in self.nodes.values() if one.agent is None]
        if not away:
            return False
        away[0].restart()
        return None

    def leave(self, node: Node) -> bool | None:
        if not node.running or node.paused or node.agent is None or not node.agent.on_ring:
            return False
        node.host.run(leave(node.agent, self.rng.random))
        return None

    def evict(self, node: Node) -> bool | None:
        """A node is short of room and forgets a few keys."""
        if not node.running or not len(node.store):
            return False
        for key in self.rng.sample(node.store.keys(), self.rng.randrange(1, len(node.store) + 1)):
            entry = node.store.peek(key, self.net.ms)
            if entry is not None:
                node.store.drop(key, entry.version, self.net.ms)
        return None

    def cut(self, node: Node) -> None:
        everybody = [*self.nodes, *CLIENTS]
        if self.rng.random() < 0.5:  # one node alone
            lone = self.rng.choice(list(self.nodes))
            pairs = [(lone, other) for other in everybody if other != lone]
            pairs += [(other, lone) for other, lone in ((b, a) for a, b in pairs)]
            if self.rng.random() < 0.4:
                pairs = pairs[: len(pairs) // 2]  # one way
        else:
            pairs = [tuple(self.rng.sample(everybody, 2)) for _ in range(3)]  # type: ignore[misc]
        for here, there in pairs:
            self.cuts.add((here, there))
            self.net.cut(here, there)

    def heal(self, node: Node | None = None) -> None:
        for here, there in sorted(self.cuts):
            self.net.heal(here, there)
        self.cuts.clear()

    def forget_down(self, node: Node) -> bool | None:
        agent = node.agent
        if agent is None or agent.table is None or not node.running or node.paused or not agent.table.down:
            return False
        for name in sorted(agent.table.down)[:1]:
            if name in agent.table.ring_state.names and not self.nodes[name].running:
                self.note(f"forget {name} at {node.name}")
                try:
                    agent.wishes.forget([name])
                except Refusal as error:
                    self.note(f"refused: {error.detail}")
        return None

    def look_after_the_gone(self) -> None:
        """A node that has left ends; those that were told what they cannot be end too."""
        for node in self.nodes.values():
            if node.running and node.agent is not None and (node.agent.left or node.agent.trouble):
                self.note(f"{node.name} ends: {node.agent.trouble or 'left'}")
                self.count("left")
                node.host.crash()
                node.agent = None

    # -- a run --------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        for _ in range(ROUNDS):
            if self.rng.random() < 0.8:
                self.trouble()
            for _ in range(self.rng.randrange(30)):
                self.spawn()
                self.net.run(self.rng.choice((0.0, 0.005, 0.05)))
            self.net.run(self.rng.choice((0.0, 0.05, 0.5, 2.0, 6.0)))
            self.look_after_the_gone()
            if self.violations:
                return
        self.end()

    def end(self) -> None:
        """The trouble is over: what is there must be in order before long."""
        self.heal()
        self.net.default.loss = 0.0
        for path in self.net._paths.values():
            path.loss = 0.0
        for node in self.nodes.values():
            if node.running and node.paused:
                node.resume()
        for node in self.nodes.values():
            on_the_ring = node.name in self.newest().ring_state.names
            if not node.running and on_the_ring:
                if node.agent is None:
                    node.agent = object.__new__(Agent)
                node.restart()
        for _ in range(240):
            self.net.run(1.0)
            self.look_after_the_gone()
            if self.violations or self.in_order():
                break
        else:
            self.bad(f"not in order: {self.disorder()}")
        self.write_everything()  # which meets connections that broke long ago
        failed = self.tally.get("failed", 0)
        self.write_everything()
        if self.tally.get("failed", 0) > failed:
            self.bad("writes fail though all is well")

    def write_everything(self) -> None:
        for client in self.clients:
            client.table = self.newest()
            for key in KEYS:
                client.host.run(self.put(client, key) if key in VALUES else self.fill(client, key))
                self.net.run(0.5)
        self.net.run(5.0)

    def in_order(self) -> bool:
        return not self.disorder()

    def disorder(self) -> str:
        nodes = [node for node in self.nodes.values() if node.running and node.agent is not None]
        tables = [node.agent.table for node in nodes if node.agent is not None and node.agent.table is not None]
        if len(tables) < len(nodes) or len({table.digest for table in tables}) != 1:
            return f"tables differ: {[(t.ring_state.epoch, sorted(t.down)) for t in tables]}"
        state = tables[0].ring_state
        if state.next is not None:
            return f"a change goes on: {state}"
        if tables[0].down:
            return f"said to be down: {tables[0].down}"
        lacking = [node.name for node in nodes if not node.store.all_complete]
        return f"not complete: {lacking}" if lacking else ""


def first_violation(seeds: range) -> tuple[int, str] | None:
    for seed in seeds:
        world = World(seed)
        world.run()
        if world.violations:
            return seed, world.violations[0]
    return None


# -- the safeguards, taken out one by one -----------------------------------------------------------------------------

Put = Callable[[Any, str, Any], None]


def without_the_fence(put: Put) -> None:
    put(Service, "_fence", lambda service, fingerprint: None)


def with_any_vote(put: Put) -> None:
    """One member alone decides what the next ring is."""
    put(register, "majority", lambda n: 1)


def without_refutation(put: Put) -> None:
    put(MemberTable, "refuting", lambda table, me: (table, me))


# The others are taken out where less happens and it is found sooner: floors, votes, write-backs, promises and complete
# bits in test_rules_at_random, quorums on one ring only in test_ops_changing, doubts in test_agent, witnesses in
# test_register_at_random, what is settled in test_compare.
MUTATIONS = [
    (without_the_fence, 300),
    (with_any_vote, 300),
    (without_refutation, 100),
]
"""Each safeguard, and within how many seeds the harm of its absence is found."""


@pytest.mark.parametrize(("take_out", "seeds"), MUTATIONS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_the_harm_is_found_when_a_safeguard_is_taken_out(
    take_out: Callable[[Put], None], seeds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_out(monkeypatch.setattr)
    assert first_violation(range(seeds)) is not None, "the safeguard may go, or the test sees too little"


def test_runs_are_worth_something() -> None:
    """Everything that they are about does happen in them."""
    tally: dict[str, int] = {}
    for seed in range(20):
        world = World(seed)
        world.run()
        for what, number in world.tally.items():
            tally[what] = tally.get(what, 0) + number
    for what in ("hit", "set", "delete", "fill", "join", "left", "crash", "bounce", "pause", "evict", "cut"):
        assert tally.get(what, 0) > 3, f"{what}: {tally}"


def story(seed: int) -> list[str]:
    """All that happens in a run, every message among it."""
    world = World(seed, trace=True)
    travel = world.net.travel

    def noting(here: Host, there: Host, *rest: Any) -> None:
        world.note(f"{here.name} to {there.name}")
        travel(here, there, *rest)

    world.net.travel = noting  # type: ignore[method-assign, assignment]
    world.run()
    assert world.trace is not None
    return world.trace


TELL = """
from tests.unit import test_changes_at_random as runs
runs.make_few_slots(setattr)
for seed in range(4):
    print(*runs.story(seed), sep="\\n")
"""


def test_a_seed_tells_the_same_story_whatever_strings_hash_to() -> None:
    """Nothing is said or chosen in the order of a set, which is another in every process."""
    stories = []
    for hash_seed in "012":
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", TELL], capture_output=True, text=True, env=environment, check=True)
        stories.append(done.stdout.splitlines())
    assert len(stories[0]) > 10_000
    for other in stories[1:]:
        differing = next((pair for pair in zip(stories[0], other, strict=False) if pair[0] != pair[1]), None)
        assert differing is None
        assert len(other) == len(stories[0])


@pytest.mark.parametrize("first", range(0, 100, 20))
def test_no_rule_is_broken(first: int) -> None:
    """On failure the seed and what went wrong are shown; `World(seed, trace=True).run()` tells the whole story."""
    assert first_violation(range(first, first + 20)) is None
