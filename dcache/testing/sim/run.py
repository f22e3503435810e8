"""One run: a cluster and its callers in the simulator, trouble, the end of all trouble, and what must be so then.

    report = run("crashes", seed=17)
    report.violations        # what broke the promise; empty if nothing did
    run("crashes", seed=17, story=print)        # tells what happened

While there is trouble, only what was promised is checked, by the history of all calls; and that every call ends in
time, and no node takes more memory than it may.  When it is over, the cluster must come to order: no change of the ring
under way, one table everywhere, every slot complete, all owners of a key holding the same; and every call must succeed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random

import attrs

from dcache.membership import MemberTable, RingState
from dcache.ring import slot_of
from dcache.testing.history import CHANGES, NEVER, Call, Op, Outcome, Violation
from dcache.testing.sim.cluster import ClientHost, Cluster, few_slots
from dcache.testing.sim.nemesis import Nemesis
from dcache.testing.sim.profiles import AMPLE, PROFILES, Profile
from dcache.testing.sim.simulation import Clock, Simulation
from dcache.testing.workload import Actor, Answer, Ask, History, Keys, Steps, made_async
from dcache.wire import storage_key

CLIENTS = 3
CALLERS: Sequence[int] = (1, 2, 4)  # of each client, one of these
TIMEOUT = 0.5
KEPT = 6  # weight of setting a key that should last, among all that callers do
GIVEN_UP = 0.05  # chance that a caller stops waiting for its call
STRIKES = (4, 8, 12)
ORDER_WITHIN = 120.0  # virtual seconds
WELL_WITHIN = 15
LOOK_EVERY = 0.05
COMPLETING = 10  # virtual seconds after its start for which an owner may be no help yet
PATIENCE = 3 * TIMEOUT + 0.2
"""How long a call may take: a `get_or_set` looks, claims and fills, each within the timeout, and computes 0.1 s."""

SETTINGS = {"vnodes": 4, "probe_interval": 0.5, "start_over_after": 4.0, "repair_interval": 3.0, "leave": True}


@attrs.frozen
class Report:
    """What came of a run.  `seconds` are virtual, `counts` how often what happened."""

    profile: str
    seed: int
    violations: tuple[str, ...]
    seconds: float
    events: int
    digest: str
    counts: Counter[str]


def run(profile: str, seed: int, story: Callable[[str], None] | None = None) -> Report:
    """Make one run.  The same profile and seed give the same report, with the same code."""
    with few_slots(), _logged(story), Simulation(seed, story) as simulation:
        trial = Trial(simulation, PROFILES[profile])
        violations = trial.run()
        counts = trial.counts()
        return Report(profile, seed, tuple(violations), simulation.now, simulation.events, simulation.digest, counts)


class Trial:
    """The cluster of one run, its callers and its trouble."""

    def __init__(self, simulation: Simulation, profile: Profile) -> None:
        self.simulation, self.profile = simulation, profile
        self.random = simulation.stream("trial")
        choose = self.random.choice
        simulation.network.default.delay = choose(((0.1, 1.0), (0.1, 10.0), (1.0, 30.0)))
        simulation.network.default.loss = choose((0.0, 0.0, 0.02))
        self.memory = choose(profile.memory)
        self.replicas = choose(profile.replicas)
        clocks = simulation.stream("clocks")
        self.cluster = Cluster(
            simulation,
            choose(profile.nodes),
            lambda name: Clock(clocks.randint(-profile.skew_ms, profile.skew_ms), clocks.uniform(-1e-3, 1e-3)),
            replicas=self.replicas,
            memory_limit=self.memory,
            **SETTINGS,
        )
        many = choose(((6, 2, 1), (2, 1, 1), (1, 0, 0), (0, 1, 0), (2, 0, 2)))
        self.keys = Keys(*([f"{kind}{n}" for n in range(most)] for kind, most in zip("vfc", many, strict=True)))
        self.mix = {what: weight for what, weight in profile.mix.items() if self._has_keys_for(what)} | {"keep": KEPT}
        self.history = History(lambda: simulation.now_us)
        self.pause = choose((0.05, 0.1, 0.3))
        self.callers_each = choose(CALLERS)
        self.over = False
        self.seen: list[str] = []  # what was wrong meanwhile
        self.states: dict[tuple[str, int], RingState] = {}
        self.lost: Counter[str] = Counter()
        self.callers: list[asyncio.Task[None]] = []
        self.nemesis = Nemesis(self.cluster, simulation.stream("nemesis"), profile.troubles, profile.steps_ms)

    def _has_keys_for(self, what: str) -> bool:
        if what in ("incr", "count"):
            return bool(self.keys.counters)
        if what in ("get_or_set", "invalidate", "overwrite", "peek"):
            return bool(self.keys.loaded)
        return bool(self.keys.plain) or what == "clear"

    def run(self) -> list[str]:
        """What went wrong."""
        if not self.simulation.run_until(self.cluster.in_order, ORDER_WITHIN, every=0.2):
            return [f"the cluster did not form: {self.cluster.disorder()}"]
        for number in range(1, CLIENTS + 1):
            self._begin(self.cluster.client(f"c{number}", timeout=TIMEOUT, **self.profile.client))
        for _ in range(self.random.choice(STRIKES)):
            self._pass(self.random.choice((0.05, 0.3, 1.0, 2.5)))
            self.nemesis.strike()
            wrong = self._now()
            if wrong:
                return wrong
        self._pass(1.0)
        return self._end() or self._judge()

    def _pass(self, seconds: float) -> None:
        """Let time pass, and look at the ring states that nodes hold meanwhile."""
        left = seconds
        while left > 0:
            self.simulation.run(min(LOOK_EVERY, left))
            left -= LOOK_EVERY
            self._compare_states()

    def _compare_states(self) -> None:
        """Of each epoch of a cluster there is one ring state."""
        for node in self.cluster.running():
            table = node.table
            if table is not None:
                key = table.settings.cluster_id, table.ring_state.epoch
                known = self.states.setdefault(key, table.ring_state)
                if known is not table.ring_state and known != table.ring_state:
                    self.seen.append(f"{node.name} holds another ring state of epoch {key[1]} than others did")

    # -- the callers --------------------------------------------------------------------------------------------------

    def _begin(self, client: ClientHost) -> None:
        for number in range(self.callers_each):
            random = self.simulation.stream(f"caller {client.host.name} {number}")
            actor = Actor(self.history, client.host.name, random, self.keys, self.mix)
            self.callers.append(client.spawn(self._call(client, actor.steps(), random)))

    async def _call(self, client: ClientHost, steps: Steps, random: Random) -> None:
        ask = next(steps)
        while not self.over:
            patience = random.uniform(0, 0.02) if random.random() < GIVEN_UP else None
            ask = steps.send(await self._made(client, ask, patience))
            await asyncio.sleep(random.expovariate(1 / self.pause))

    async def _made(self, client: ClientHost, ask: Ask, patience: float | None) -> Answer:
        slept = client.host.slept_us
        answer = await made_async(client.cache, ask, self.history, patience)
        took = answer.end - answer.start - (client.host.slept_us - slept)
        if took > PATIENCE * 1e6:
            self.seen.append(f"{client.host.name}: {ask.method} took {took / 1e6:.1f} s")
        outcome = answer.error if answer.error is not None else answer.result
        self.simulation.tell(client.host.name, f"{ask.method} {_shown(ask)} -> {outcome!r}"[:200])
        return answer

    def _all(self, client: ClientHost, steps: Steps) -> list[str]:
        """Have all these calls made; what failed."""
        failed: list[str] = []

        async def work() -> None:
            try:
                ask = next(steps)
                while True:
                    answer = await self._made(client, ask, None)
                    if answer.error is not None:
                        failed.append(f"{client.host.name}: {ask.method} {_shown(ask)}: {answer.error}")
                    ask = steps.send(answer)
            except StopIteration:
                return

        client.run(work())
        return failed

    # -- what must be so ----------------------------------------------------------------------------------------------

    def _now(self) -> list[str]:
        """What is wrong at this moment, whatever the trouble."""
        wrong = [f"{who}: {type(error).__name__}: {error}" for who, error in self.simulation.complaints]
        wrong += [
            f"{node.name} takes {node.store.used} bytes of {self.memory}"
            for node in self.cluster.running()
            if node.node is not None and node.store.used > self.memory
        ]
        return wrong + self.seen

    def _end(self) -> list[str]:
        """The trouble is over: what is wrong then, after a while."""
        self.nemesis.mend()
        self.over = True
        run_until = self.simulation.run_until
        if not run_until(lambda: all(task.done() for task in self.callers), 10.0):
            return ["calls do not end though all is mended"]
        if not run_until(self._in_order, ORDER_WITHIN, every=0.5):
            return [f"not in order {ORDER_WITHIN:.0f} s after all was mended: {self.cluster.disorder()}"]
        self._count_the_lost()
        failed = self._use_everything()
        if failed and self.memory == AMPLE:
            return [f"calls fail {WELL_WITHIN} s after the cluster came to order: {failed}"]
        if self.memory == AMPLE and not run_until(lambda: not self._differing(), ORDER_WITHIN, every=0.5):
            return [f"owners differ {ORDER_WITHIN:.0f} s after all was mended: {self._differing()}"]
        return self._now()

    def _use_everything(self) -> str:
        """Have every client write or read every key, again and again until all goes well; empty when it does."""
        failed: list[str] = []
        for _ in range(WELL_WITHIN):
            failed = []
            for client in self.cluster.clients.values():
                actor = Actor(self.history, client.host.name, self.random, self.keys)
                failed += self._all(client, self.random.choice((actor.write, actor.look))())
            if not failed:
                return ""
            self.simulation.run(1.0)
        return failed[0]

    def _in_order(self) -> bool:
        self._look_after()
        return self.cluster.in_order()

    def _look_after(self) -> None:
        """As an operator, who starts again what ended though it is on the ring, and who does what the log says: sends
        to others who gave up, or who waits for nodes that are gone for good.  (A member that was forgotten, and started
        with its first command line, knows of those alone that it founded the cluster with, and all may have left.)
        """
        names = self.cluster.newest_names()
        for node in self.cluster.nodes.values():
            if node.name in names:
                if not node.running:
                    node.start()
            elif node.gave_up or node.waits_in_vain:
                self.simulation.tell("operator", f"starts {node.name} to join the others")
                node.host.kill()
                self.cluster.readmit(node)

    def _differing(self) -> str:
        """A key of which an owner holds less than another, without having forgotten it; empty if there is none."""
        for key in self.keys.all():
            wrong = self._differs(key, self._table())
            if wrong:
                return wrong
        return ""

    def _table(self) -> MemberTable:
        """That all have, when they are in order."""
        return next(node.table for node in self.cluster.running() if node.table is not None)

    def _differs(self, key: str, table: MemberTable) -> str:
        full = storage_key(b"", key.encode())
        slot = slot_of(full, table.settings.ring_seed)
        owners = [self.cluster.nodes[name] for name in table.owners(slot)[0]]
        held = {}
        for node in owners:
            entry = node.store.peek(full, int(node.host.monotonic() * 1000))
            held[node.name] = (b"", node.store.floor(full)) if entry is None else (entry.version, entry.version)
        newest = max(version for version, _ in held.values())
        behind = {name: has[0].hex() for name, has in held.items() if has[1] < newest}
        return f"{key} is {newest.hex()}, and {behind}" if behind else ""

    def _judge(self) -> list[str]:
        parts = segments(self.history.all(), self.nemesis.blackouts)
        return [_told(violation) for part in parts for violation in self.profile.judge(part)]

    # -- what it was worth --------------------------------------------------------------------------------------------

    def _count_the_lost(self) -> None:
        """How many of the values that nobody changed are there, how many are gone, and how many of these although
        nothing is known that explains it: scarce memory, or that as many owners ended since as acknowledge a write."""
        client, table = next(iter(self.cluster.clients.values())), self._table()
        calls = self.history.calls
        cleared = max((call.end for call in calls if call.how == "clear"), default=0)
        kept = [one for one in calls if one.how == "keep" and one.outcome is Outcome.OK and one.start > cleared]
        for call in kept:
            self._all(client, Actor(self.history, client.host.name, self.random, Keys((call.key,), (), ())).look())
            gone = self.history.calls[-1].outcome is Outcome.MISSED
            self.lost["forgotten" if gone else "kept"] += 1
            if not gone:
                continue
            owners = table.owners(slot_of(storage_key(b"", call.key.encode()), table.settings.ring_seed))[0]
            since = call.start - COMPLETING * 1_000_000
            ended = sum(start > since for name in owners for start in self.cluster.nodes[name].starts[1:])
            if self.memory == AMPLE and not self.nemesis.made.get("evict") and ended < len(owners) // 2 + 1:
                self.lost["forgotten unexplained"] += 1
                self.simulation.tell("judge", f"nothing explains why {call.key} is gone")

    def counts(self) -> Counter[str]:
        counts = Counter(self.nemesis.made) + self.lost
        counts.update(f"{call.how} {call.outcome.value}" for call in self.history.calls)
        return counts


def segments(calls: Sequence[Call], blackouts: Sequence[int]) -> Iterator[list[Call]]:
    """What was called between two blackouts, each of which begins a cluster anew: versions are not compared over them,
    and a value from before would be one that was never written.  What was on its way is in doubt on both sides."""
    for begin, end in itertools.pairwise((0, *blackouts, NEVER)):
        there = (call for call in calls if call.start < end and _acted_by(call) >= begin)
        yield [
            call if _within(call, begin, end) else _interrupted(call)
            for call in there
            if _within(call, begin, end) or call.op in CHANGING
        ]


CHANGING = CHANGES | {Op.FILL, Op.INCR}


def _within(call: Call, begin: int, end: int) -> bool:
    return begin <= call.start and _acted_by(call) < end


def _acted_by(call: Call) -> int:
    """Until when a call may do something: what was computed is stored after that."""
    return call.end + int(PATIENCE * 1e6) if call.op is Op.FILL else call.end


def _interrupted(call: Call) -> Call:
    return attrs.evolve(call, outcome=Outcome.DOUBT, cancelled=call.op is Op.FILL)


def _told(violation: Violation) -> str:
    calls = "; ".join(
        f"{call.client} {call.how} {call.value or ''} {call.start / 1e6:.4f}-{call.end / 1e6:.4f} {call.outcome.value}"
        for call in violation.calls
    )
    return f"{violation.key}: {violation.rule}: {calls}"


def _shown(ask: Ask) -> str:
    return ", ".join(str(argument)[:60] for argument in ask.args)


@contextmanager
def _logged(story: Callable[[str], None] | None) -> Iterator[None]:
    """What dcache logs becomes part of the story, or is not said."""
    logger = logging.getLogger("dcache")
    level, logger.propagate = logger.level, False
    handler = _Storyteller(story)
    logger.addHandler(handler)
    logger.setLevel(logging.CRITICAL + 1 if story is None else logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        logger.propagate = True


class _Storyteller(logging.Handler):
    """Says of each record which process logged it, and when."""

    def __init__(self, story: Callable[[str], None] | None) -> None:
        super().__init__()
        self._story = story

    def emit(self, record: logging.LogRecord) -> None:
        loop = asyncio._get_running_loop()
        if self._story is not None and loop is not None:
            name = getattr(loop, "name", "?")
            self._story(f"{loop.time():10.4f} {name} logs: {record.getMessage()}")
