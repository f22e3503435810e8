"""What an owner that lost its memory takes over from the others, and what complete owners take over from each other.

The property is checked on a model of n owners of one slot: writes, deletes, fills and reads reach them one by one, with
others in between; they evict, they crash and settle again, any number of them at once.  After every step every majority
is read with the real rules of a read.  Each rule of settling has a mutation that takes it out, and the harm must be
found.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping

import attrs
import pytest

from dcache.ops.compare import Inventory, Settlement, enough, must_catch_up, reconcile, settle
from dcache.ops.effects import Reply
from dcache.ops.quorum import judge, majority
from dcache.record import ZERO, Version, make_version


def v(n: int) -> Version:
    return make_version(n, 0, 0)


KEYS = (b"j", b"k")
STEPS = 120


@attrs.define(eq=False)
class Owner:
    """One owner of the slot: a model of the store."""

    name: str
    alive: bool = True
    complete: bool = True
    floor: Version = ZERO
    held: dict[bytes, Version] = attrs.field(factory=dict)
    promised: dict[bytes, set[Version]] = attrs.field(factory=dict)

    def known(self, key: bytes) -> Version:
        return self.held.get(key, self.floor)

    def barrier(self) -> Version:
        return max((self.floor, *(version for promised in self.promised.values() for version in promised)))

    def write(self, key: bytes, version: Version, *, delete: bool = False) -> Version | None:
        """None if it was stored, or what is in its way."""
        top = max(self.known(key), max(self.promised.get(key, ()), default=ZERO))
        if version < top or (version == self.floor and key not in self.held):
            return top
        self.promised.pop(key, None)
        self.held[key] = version
        if delete:
            self.forget(key)
        return None

    def forget(self, key: bytes) -> None:
        self.floor = max(self.floor, self.held.pop(key))

    def claim(self, key: bytes, version: Version) -> bool:
        promises = self.complete and key not in self.held and version > self.floor
        if promises:
            self.promised.setdefault(key, set()).add(version)
        return promises

    def accept(self, key: bytes, version: Version) -> bool:
        if version not in self.promised.get(key, ()):
            return False
        self.promised[key].discard(version)
        if self.held.get(key, ZERO) < version:
            self.held[key] = version
        return True

    def answer(self, key: bytes) -> Reply:
        held = self.held.get(key)
        answer = (self.complete, self.floor, False) if held is None else (self.complete, held, b"", 0, None)
        return Reply(self.name, answer, self)

    def inventory(self, keys: list[bytes]) -> Inventory:
        """As made from an index of `keys`."""
        held = {key: self.held[key] for key in keys if key in self.held}
        return Inventory(self.complete, self.floor, self.barrier(), held)


@attrs.frozen
class Rules:
    """How an owner settles; the mutations are made of these."""

    needed: Callable[[int], int] = enough
    floor: Callable[[Settlement], Version] = lambda settlement: settlement.floor
    barrier: Callable[[Inventory], Version] = lambda inventory: inventory.barrier
    drops: bool = True
    looks_again: bool = True
    votes: bool = True


class World:
    """One run; all randomness comes from `seed`."""

    def __init__(self, seed: int, rules: Rules = Rules()) -> None:
        self.rng, self.rules = random.Random(seed), rules
        self.n = self.rng.choice((2, 3, 3, 3, 4, 5))
        self.w = majority(self.n)
        self.owners = {name: Owner(name) for name in "abcde"[: self.n]}
        self.doing: list[Iterator[None]] = []
        self.settling: dict[str, Iterator[None]] = {}
        self.low = dict.fromkeys(KEYS, ZERO)  # newest acknowledged or read
        self.serial = 0
        self.written = dict.fromkeys(KEYS, 0)  # when a write was last acknowledged
        self.computed: dict[Version, int] = {}  # when the computation of what a fill wrote began
        self.top = 100
        self.used: set[int] = set()
        self.settled = 0

    def run(self) -> str | None:
        """What harm was done."""
        for _ in range(STEPS):
            self.serial += 1
            self.step()
            harm = self.harm()
            if harm:
                return harm
        return None

    def step(self) -> None:
        match self.rng.randrange(16):
            case 0 | 1:
                self.doing.append(self.write(self.rng.choice(KEYS), self.rng.random() < 0.3))
            case 2:
                self.doing.append(self.fill(self.rng.choice(KEYS)))
            case 3:
                self.doing.append(self.read(self.rng.choice(KEYS)))
            case 4:
                self.crash(self.rng.choice(list(self.owners)))
            case 5:
                owner, key = self.rng.choice(list(self.owners.values())), self.rng.choice(KEYS)
                if key in owner.held:
                    owner.forget(key)
            case 6 | 7 | 8 | 9 | 10:
                self.settle_a_step()
            case _:
                self.go_on()

    def go_on(self) -> None:
        if self.doing:
            one = self.rng.choice(self.doing)
            if next(one, self) is self:
                self.doing.remove(one)

    def settle_a_step(self) -> None:
        lost = [name for name, owner in self.owners.items() if not owner.complete]
        if lost:
            name = self.rng.choice(lost)
            steps = self.settling.get(name) or self.settling.setdefault(name, self.settle(name))
            if next(steps, self) is self:
                del self.settling[name]

    def crash(self, name: str) -> None:
        self.owners[name].alive = False
        self.owners[name] = Owner(name, complete=False)
        self.settling.pop(name, None)

    def version(self) -> Version:
        """Of a writer whose clock may be behind."""
        self.top += 10
        number = self.top + self.rng.randrange(-60, 1)
        while number in self.used:
            number += 1
        self.used.add(number)
        return v(number)

    def above(self, version: Version) -> Version:
        number = int.from_bytes(version[:6], "big") + 1
        while number in self.used:
            number += 1
        self.used.add(number)
        return v(number)

    def shuffled(self) -> list[str]:
        return self.rng.sample(list(self.owners), self.rng.randint(1, self.n))

    # -- what clients do ----------------------------------------------------------------------------------------------

    def write(self, key: bytes, delete: bool) -> Iterator[None]:
        version = self.version()
        for _ in range(2):
            acknowledged: list[Owner] = []
            refused = []
            for name in self.shuffled():
                yield
                owner = self.owners[name]
                in_the_way = owner.write(key, version, delete=delete)
                if in_the_way is not None:
                    refused.append(in_the_way)
                elif owner.complete:
                    acknowledged.append(owner)
                if sum(owner.alive for owner in acknowledged) >= self.w:
                    self.low[key] = max(self.low[key], version)
                    self.written[key] = self.serial
                    return
            if refused:
                version = self.above(max(refused))

    def fill(self, key: bytes) -> Iterator[None]:
        version = self.version()
        promised = []
        for name in self.shuffled():
            yield
            owner = self.owners[name]
            if owner.claim(key, version):
                promised.append(owner)
        if len(promised) < self.w:
            return
        self.computed[version] = self.serial
        yield
        for owner in promised:
            yield
            if owner.alive:
                owner.accept(key, version)

    def read(self, key: bytes) -> Iterator[None]:
        """With write-back."""
        asked = [self.owners[name] for name in self.shuffled()]
        verdict = judge([owner.answer(key) for owner in asked])
        if verdict.candidate is None or len(verdict.voters) < self.w:
            return
        version = verdict.candidate[1]
        holding = [reply.link for reply in verdict.holders]
        for reply in verdict.behind:
            yield
            owner = reply.link
            assert isinstance(owner, Owner)
            if owner.alive and owner.write(key, version) is None and owner.complete:
                holding.append(owner)
        if sum(owner.alive for owner in holding) >= self.w:
            self.low[key] = max(self.low[key], version)

    # -- what is checked ----------------------------------------------------------------------------------------------

    def harm(self) -> str | None:
        for key, asked in itertools.product(KEYS, itertools.combinations(self.owners.values(), self.w)):
            verdict = judge([owner.answer(key) for owner in asked])
            if verdict.candidate is None or len(verdict.voters) < self.w:
                continue
            version = verdict.candidate[1]
            if version < self.low[key]:
                return "stale"
            if self.computed.get(version, self.serial) < self.written[key]:
                return "fill over a later write"
        return None

    # -- settling, as an agent does it --------------------------------------------------------------------------------

    def settle(self, name: str, after_the_first_look: Callable[[], object] = lambda: None) -> Iterator[None]:
        me = self.owners[name]
        others = [other for other, owner in self.owners.items() if other != name and owner.complete]
        others = self.rng.sample(others, self.rng.randint(min(len(others), enough(self.n)), len(others)))
        snapshots = {}
        for other in others:
            yield
            snapshots[other] = self.owners[other], list(self.owners[other].held)
        heard = {}
        for other, (owner, keys) in snapshots.items():
            yield
            if owner.alive:
                heard[other] = attrs.evolve(inventory := owner.inventory(keys), barrier=self.rules.barrier(inventory))
        first = self.decide(dict(me.held), heard)
        if first is None:
            return
        after_the_first_look()
        for key, (version, holders) in first.take.items():
            yield
            found = self.owners[self.rng.choice(holders)].held.get(key, ZERO)
            if found >= version:
                me.write(key, found)
        last = self.decide(dict(me.held), heard) if self.rules.looks_again else first
        assert last is not None
        self.finish(me, last)

    def decide(self, mine: Mapping[bytes, Version], heard: Mapping[str, Inventory]) -> Settlement | None:
        needed = self.rules.needed(self.n)
        settlement = settle(mine, heard, needed)
        if settlement is None or self.rules.votes:
            return settlement
        everybody = {name: attrs.evolve(one, floor=ZERO) for name, one in heard.items()}
        taken = settle(mine, everybody, needed)
        assert taken is not None
        return attrs.evolve(taken, floor=settlement.floor)

    def finish(self, me: Owner, last: Settlement) -> None:
        floor = self.rules.floor(last)
        for key, (version, _) in last.take.items():  # nobody had it any more
            if version > me.known(key):
                floor = max(floor, version)
                if key in me.held:
                    me.forget(key)
        for key in last.drop if self.rules.drops else ():
            if key in me.held:
                me.forget(key)
        me.floor = max(me.floor, floor)
        me.complete = True
        self.settled += 1


SEEDS = range(1500)


@pytest.mark.cluster
def test_no_majority_ever_returns_what_is_older_than_what_was_acknowledged_or_a_fill_that_was_overtaken() -> None:
    settled = 0
    for seed in SEEDS:
        world = World(seed)
        assert world.run() is None, f"seed {seed}"
        settled += world.settled
    assert settled > len(SEEDS)


MUTATIONS = {
    "one owner less is heard": Rules(needed=lambda n: max(1, enough(n) - 1)),
    "floors take no votes away": Rules(votes=False),
    "the floor is not raised": Rules(floor=lambda settlement: ZERO),
}


@pytest.mark.parametrize("rules", MUTATIONS.values(), ids=MUTATIONS)
def test_without_any_one_rule_there_is_harm(rules: Rules) -> None:
    assert any(World(seed, rules).run() for seed in SEEDS)


# -- the rules that only rare courses of events need, in such courses -------------------------------------------------


def three() -> tuple[World, Owner, Owner]:
    """Of three owners, the third has just lost its memory."""
    world = World(0)
    world.n, world.w = 3, 2
    world.owners = {name: Owner(name) for name in "abc"}
    return world, world.owners["a"], world.owners["b"]


def late_copy(rules: Rules, *, after_the_first_look: bool) -> str | None:
    """A delete was acknowledged by "a" and "c"; "c" loses its memory and is sent a copy of what "b" still holds."""
    world, a, b = three()
    a.write(b"k", v(10))
    b.write(b"k", v(10))
    a.write(b"k", v(20), delete=True)
    world.low[b"k"] = v(20)
    world.crash("c")
    world.rules = rules
    me = world.owners["c"]
    if not after_the_first_look:
        me.write(b"k", v(10))
    settling = world.settle("c", after_the_first_look=lambda: me.write(b"k", v(10)) if after_the_first_look else None)
    for _ in settling:
        pass
    assert me.complete
    return world.harm()


@pytest.mark.parametrize("after_the_first_look", [False, True])
def test_what_is_held_while_incomplete_counts_for_nothing(after_the_first_look: bool) -> None:
    assert late_copy(Rules(), after_the_first_look=after_the_first_look) is None
    assert late_copy(Rules(drops=False), after_the_first_look=after_the_first_look) == "stale"


def test_what_is_held_is_looked_at_in_the_last_step() -> None:
    assert late_copy(Rules(looks_again=False), after_the_first_look=True) == "stale"


def fill_and_delete(rules: Rules) -> str | None:
    """A fill is promised by "a" and "c"; "c" loses its memory; a delete below the promise comes to "b" and "c"; then
    the fill to whom it was promised."""
    world, a, b = three()
    assert a.claim(b"k", v(50))
    world.computed[v(50)] = 1
    world.crash("c")
    world.rules = rules
    for _ in world.settle("c"):
        pass
    c = world.owners["c"]
    if b.write(b"k", v(40), delete=True) is None and c.write(b"k", v(40), delete=True) is None:
        world.written[b"k"] = 2
    a.accept(b"k", v(50))
    return world.harm()


def test_promises_of_others_are_a_barrier() -> None:
    assert fill_and_delete(Rules()) is None
    assert fill_and_delete(Rules(barrier=lambda inventory: inventory.floor)) == "fill over a later write"


# -- what is taken and dropped ----------------------------------------------------------------------------------------


def holding(floor: int = 0, *, complete: bool = True, barrier: int = 0, **held: int) -> Inventory:
    versions = {key.encode(): v(number) for key, number in held.items()}
    return Inventory(complete, v(floor), v(max(floor, barrier)), versions)


@pytest.mark.parametrize(("n", "needed"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (7, 4)])
def test_how_many_have_one_among_them_that_knows(n: int, needed: int) -> None:
    assert enough(n) == needed
    assert n - majority(n) < needed


def test_too_few_complete_owners_settle_nothing() -> None:
    assert settle({}, {"b": holding(k=1), "c": holding(k=1, complete=False)}, 2) is None


def test_settling_takes_the_newest_and_keeps_what_nobody_denies() -> None:
    made = settle({b"mine": v(3), b"old": v(1)}, {"b": holding(5, old=9, k=7), "c": holding(2, old=9, k=6)}, 2)
    assert made is not None
    assert made.take == {b"old": (v(9), ["b", "c"]), b"k": (v(7), ["b"])}
    assert made.drop == {b"mine": v(3)}  # "b" may have forgotten something newer
    assert made.floor == v(5)


def test_reconciling_takes_what_is_newer_or_lacking_and_above_the_floor() -> None:
    made = reconcile("a", holding(5, j=3), {"b": holding(j=4, k=6, l=5)}, [("a", "b", "c")])
    assert made.take == {b"j": (v(4), ["b"]), b"k": (v(6), ["b"])}
    assert made.drop == {}


def test_reconciling_drops_what_too_few_can_vote_for() -> None:
    mine, denying = holding(k=3), holding(4)
    assert reconcile("a", mine, {"b": denying}, [("a", "b", "c")]).drop == {}
    assert reconcile("a", mine, {"b": denying, "c": denying}, [("a", "b", "c")]).drop == {b"k": v(3)}
    assert reconcile("a", mine, {"b": denying}, [("a", "b")]).drop == {b"k": v(3)}


def test_too_few_votes_on_either_ring_are_too_few() -> None:
    mine, denying = holding(k=3), holding(4)
    others = {"c": denying, "d": denying}
    assert reconcile("a", mine, others, [("a", "b", "c"), ("a", "c", "d")]).drop == {b"k": v(3)}
    assert reconcile("a", mine, others, [("a", "b", "c"), ("a", "b", "d")]).drop == {}


def test_owners_that_are_not_complete_are_not_heard_when_reconciling() -> None:
    made = reconcile("a", holding(), {"b": holding(k=6, complete=False)}, [("a", "b", "c")])
    assert made.take == {}


@pytest.mark.parametrize(
    ("before", "after", "needed"), [(3, 2, True), (5, 4, True), (2, 1, False), (4, 3, False), (3, 3, False)]
)
def test_owners_catch_up_where_those_that_stay_may_know_too_little(before: int, after: int, needed: bool) -> None:
    assert must_catch_up(before, after) == needed
