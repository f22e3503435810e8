"""Linearizable writes under everything that may happen between messages, with clocks that are hours apart.

The scheduler, the nodes and all that befalls them are those of `test_rules_at_random`.  The clients are in linearizable
mode, and neither their clocks nor those of the nodes mean anything.  Checked are

* what `dcache.testing.checker` says of histories in linearizable mode, by real time and unique values;
* that a conditional change comes right after what it looked at: no acknowledged set or delete has a version in between.

Every rule has a mutation that takes it out: the harm must be found, or the test would be no test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dcache.errors import DcacheError, QuorumError
from dcache.node.service import Service
from dcache.ops import batch, cluster, linearizable, load, mutate, read, write
from dcache.ops.backoff import Backoff
from dcache.ops.context import Context, Options, Shared
from dcache.ops.effects import Op as Operation
from dcache.record import Version, VersionClock
from dcache.testing.checker import check_linearizable
from dcache.testing.history import Call, Op, Outcome
from dcache.wire import Status
from tests.unit.test_rules_at_random import COMPUTED, TABLE, VALUES, WALL, Computing, Task, World

pytestmark = pytest.mark.cluster

HOUR = 3_600_000
KEYS = (*VALUES, *COMPUTED)
FAR_OFF = (-3 * HOUR, -HOUR, -90_000, 0, 0, 45_000, 2 * HOUR)


class HistoryWorld(World):
    """One run; what the clients saw is in `history`, in the order in which it was seen."""

    def __init__(self, seed: int, *, trace: bool = False, plan: Any = None) -> None:
        super().__init__(seed, trace=trace)
        self.plan = plan or self.rng.choice(HISTORY_PLANS)
        self.history: list[Call] = []
        self.changed: list[tuple[str, Version, Version]] = []  # by conditional changes: key, from, to
        self.acknowledged_versions: list[tuple[str, Version]] = []
        self.open: dict[tuple[int, str], dict[str, Any]] = {}  # writes that have begun, by task and key
        self.moment = 0

    def wall(self, name: str) -> Callable[[], int]:
        skew = self.rng.choice(FAR_OFF) if self.rng.random() < 0.3 else 0
        return lambda: WALL + self.now + skew

    def context(self, client: int) -> Context:
        skew = self.rng.choice(FAR_OFF)
        clock = VersionClock(client * 100_000, lambda: WALL + self.now + skew)
        turns = iter(lambda: self.rng.randrange(3), None)
        shared = Shared(clock, lambda: self.now / 1000, self.rng.random, Backoff(self.rng.random), turn=turns)
        return Context(TABLE, Options(consistency="linearizable"), shared)

    def run(self) -> None:
        super().run()
        for (_, key), call in self.open.items():
            self.history.append(Call(key=key, end=self.tick(), outcome=Outcome.DOUBT, **call))
        self.violations += [f"{wrong.key}: {wrong.rule}" for wrong in check_linearizable(self.history)]
        for key, old, new in self.changed:
            for other, version in self.acknowledged_versions:
                if other == key and old < version < new:
                    self.bad(f"{key}: changed from {old.hex()} to {new.hex()}, over {version.hex()}")

    def tick(self) -> int:
        self.moment += 1
        return self.moment

    def begin(self, task: Task, op: Op, key: str, **more: Any) -> int:
        """A write begins; where the run ends before it does, it is in doubt."""
        start = self.tick()
        self.open[task.name, key] = {"client": str(task.name), "op": op, "start": start, **more}
        return start

    def seen(self, task: Task, op: Op, key: str, start: int, outcome: Outcome, **more: Any) -> None:
        name = str(task.name)
        self.open.pop((task.name, key), None)
        self.history.append(Call(client=name, op=op, key=key, start=start, end=self.tick(), outcome=outcome, **more))
        self.note(f"{name} {op.value} {key}: {outcome.value} {more}")
        if outcome is Outcome.OK:
            self.count(op.value)

    def wrote(self, task: Task, op: Op, key: str, start: int, **more: Any) -> None:
        self.acknowledged_versions.append((key, task.versions[key]))
        self.seen(task, op, key, start, Outcome.OK, **more)

    # -- what clients do ----------------------------------------------------------------------------------------------

    def put_one(self, task: Task, ctx: Context, key: str) -> Operation[None]:
        value = self.value(key)
        start = self.begin(task, Op.SET, key, value=value)
        try:
            version = yield from write.set(ctx, key, value, self.ttl())
        except DcacheError as error:
            self.seen(task, Op.SET, key, start, outcome_of(error), value=value)
        else:
            self.wrote(task, Op.SET, key, start, value=value, version=version)

    def put_many(self, task: Task, ctx: Context, _: str) -> Operation[None]:
        values = {key: self.value(key) for key in KEYS}
        start = max([self.begin(task, Op.SET, key, value=value) for key, value in values.items()])
        errors = yield from batch.set_many(ctx, values, self.ttl())
        for key, value in values.items():
            if key in errors:
                self.seen(task, Op.SET, key, start, outcome_of(errors[key]), value=value)
            else:
                self.wrote(task, Op.SET, key, start, value=value)

    def delete_one(self, task: Task, ctx: Context, key: str) -> Operation[None]:
        yield from self.deleting(task, write.delete(ctx, key), (key,))

    def delete_many(self, task: Task, ctx: Context, _: str) -> Operation[None]:
        yield from self.deleting(task, batch.delete_many(ctx, KEYS), KEYS)

    def clear_all(self, task: Task, ctx: Context, _: str) -> Operation[None]:
        yield from self.deleting(task, cluster.clear(ctx), KEYS, atomic=False)

    def deleting(
        self, task: Task, operation: Operation[Any], keys: Sequence[str], *, atomic: bool = True
    ) -> Operation[None]:
        start = max([self.begin(task, Op.DELETE, key) for key in keys])
        try:
            yield from operation
        except DcacheError as error:
            for key in keys:
                self.seen(task, Op.DELETE, key, start, outcome_of(error))
        else:
            for key in keys:
                if atomic:
                    self.acknowledged_versions.append((key, task.versions[key]))
                self.seen(task, Op.DELETE, key, start, Outcome.OK)

    def get_one(self, task: Task, ctx: Context, key: str) -> Operation[None]:
        start = self.tick()
        try:
            item = yield from read.gets(ctx, key)
        except DcacheError:
            return
        if item is not None:
            self.seen(task, Op.READ, key, start, Outcome.OK, value=item.value, version=item.version)

    def get_many(self, task: Task, ctx: Context, _: str) -> Operation[None]:
        start = self.tick()
        try:
            found = yield from batch.get_many(ctx, KEYS)
        except DcacheError:
            return
        for key, value in found.items():
            self.seen(task, Op.READ, key, start, Outcome.OK, value=value)

    def get_or_set(self, task: Task, ctx: Context, key: str) -> Operation[None]:
        start = self.tick()
        try:
            found = yield from load.lookup(ctx, key)
        except DcacheError:
            return
        if isinstance(found, load.Found):
            self.seen(task, Op.LOAD, key, start, Outcome.OK, value=found.value)
            return
        computed, value = self.tick(), self.value(key, "fill")
        data, flags = ctx.options.codec.encode(value)
        yield Computing()  # type: ignore[misc]
        self.seen(task, Op.FILL, key, start, Outcome.DOUBT, value=value, computed=computed)
        if (yield from load.fill(ctx, key, found, data, flags, self.ttl())):
            self.count("filled")

    def cas_one(self, task: Task, ctx: Context, key: str) -> Operation[None]:
        try:
            item = yield from read.gets(ctx, key)
            if item is None:
                return
            value = self.value(key)
            start = self.begin(task, Op.CAS, key, value=value, expected=item.version)
            changed = yield from mutate.cas(ctx, key, value, item.version, self.ttl())
        except DcacheError as error:
            if (task.name, key) in self.open:
                self.seen(task, Op.CAS, key, start, outcome_of(error), value=value, expected=item.version)
            return
        if not changed:
            del self.open[task.name, key]
        else:
            self.changed.append((key, item.version, task.versions[key]))
            self.wrote(task, Op.CAS, key, start, value=value, expected=item.version)

    def replace_one(self, task: Task, ctx: Context, key: str) -> Operation[None]:
        value = self.value(key)
        start = self.begin(task, Op.REPLACE, key, value=value)
        try:
            changed = yield from mutate.replace(ctx, key, value)
        except DcacheError as error:
            self.seen(task, Op.REPLACE, key, start, outcome_of(error), value=value)
            return
        if not changed:
            del self.open[task.name, key]
        else:
            self.wrote(task, Op.REPLACE, key, start, value=value)


def outcome_of(error: DcacheError) -> Outcome:
    """Of two refusals for the clock a third owner, not waited for, may know nothing."""
    return Outcome.FAILED if isinstance(error, QuorumError) and not error.in_doubt else Outcome.DOUBT


Kind = Callable[[HistoryWorld, Task, Context, str], Operation[None]]
WEIGHTS: list[tuple[int, Kind, tuple[str, ...]]] = [
    (5, HistoryWorld.put_one, KEYS),
    (2, HistoryWorld.delete_one, KEYS),
    (6, HistoryWorld.get_one, KEYS),
    (4, HistoryWorld.get_or_set, COMPUTED),
    (3, HistoryWorld.cas_one, VALUES),
    (1, HistoryWorld.replace_one, VALUES),
    (2, HistoryWorld.put_many, ("",)),
    (1, HistoryWorld.delete_many, ("",)),
    (4, HistoryWorld.get_many, ("",)),
]
HISTORY_PLAN: list[Any] = [(kind, key) for weight, kind, keys in WEIGHTS for key in keys for _ in range(weight)]
HISTORY_PLAN.append((HistoryWorld.clear_all, ""))
PLAIN = (HistoryWorld.put_one, HistoryWorld.get_one)
HISTORY_PLANS: list[Any] = [
    HISTORY_PLAN,
    *([(kind, key) for kind, key in HISTORY_PLAN if key in keys] for keys in ("a", "f", "ab", "af")),
    [(kind, key) for kind, key in HISTORY_PLAN if kind in PLAIN and key == "a"],
]
"""Everything at once, or a few keys under more pressure."""


def first_violation(seeds: range) -> tuple[int, str] | None:
    for seed in seeds:
        world = HistoryWorld(seed)
        world.run()
        if world.violations:
            return seed, world.violations[0]
    return None


# -- the rules, taken out one by one ----------------------------------------------------------------------------------

Patch = pytest.MonkeyPatch


def with_the_clock(patch: Patch) -> None:
    """The version is that of the writer's clock, whatever the first round told."""
    patch.setattr(linearizable, "version_above", lambda ctx, asked: ctx.shared.clock.stamp())


def with_one_top(patch: Patch) -> None:
    """The newest version is asked of a single owner."""
    wanted = linearizable.TopRound.wanted

    def twice(round_: linearizable.TopRound) -> Any:
        needed, counted = wanted(round_)
        return needed, 2 * counted

    patch.setattr(linearizable.TopRound, "wanted", twice)


def with_a_second_version(patch: Patch) -> None:
    """A write in doubt is made anew, as a strict one is when the ring changes."""
    written = linearizable.write

    def twice(ctx: Context, what: str, key: bytes, call: Any) -> Operation[Any]:
        version, rounds = yield from written(ctx, what, key, call)
        if rounds[-1].enough():
            return version, rounds
        try:
            version, again = yield from written(ctx, what, key, call)
        except DcacheError:
            return version, rounds
        return version, [*rounds, *again]

    patch.setattr(linearizable, "write", twice)


def overtaken_by_promises(patch: Patch) -> None:
    """A write is done where what was promised above it has been stored meanwhile, by those who had not seen it."""
    patch.setattr(Service, "_told_of_promises", lambda service, full, version, answer: answer)


def with_promises_for_writes(patch: Patch) -> None:
    """A write is done where something above it was promised."""

    def newer(service: Service, full: bytes, version: bytes, answer: Any) -> Any:
        return (Status.NEWER, *answer[1:]) if answer[0] == Status.PROMISED else answer

    patch.setattr(Service, "_told_of_promises", newer)


# That a write is settled without looking what came after it is not among these: found too rarely, and tested by hand
# in test_ops_linearizable.
MUTATIONS = [
    (with_the_clock, 50),
    (with_one_top, 100),
    (with_a_second_version, 1300),
    (overtaken_by_promises, 300),
    (with_promises_for_writes, 300),
]
"""Each rule, and within how many seeds the harm of its absence is found: three times as many as it takes, or more."""


@pytest.mark.parametrize(("take_out", "seeds"), MUTATIONS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_the_harm_is_found_when_a_rule_is_taken_out(
    take_out: Callable[[Patch], None], seeds: int, monkeypatch: Patch
) -> None:
    take_out(monkeypatch)
    assert first_violation(range(seeds)) is not None, "the rule may go, or the test sees too little"


def test_runs_are_worth_something() -> None:
    """Sets, reads, changes and fills succeed in them, though clocks are hours apart."""
    tally: dict[str, int] = {}
    for seed in range(40):
        world = HistoryWorld(seed)
        world.run()
        for what, number in world.tally.items():
            tally[what] = tally.get(what, 0) + number
    assert all(tally[what] > 10 for what in ("set", "delete", "read", "load", "cas", "filled"))


@pytest.mark.parametrize("first", range(0, 400, 100))
def test_what_clients_saw_can_have_happened_in_one_order(first: int) -> None:
    """On failure the seed and what went wrong are shown; `HistoryWorld(seed, trace=True)` tells the whole story."""
    assert first_violation(range(first, first + 100)) is None
