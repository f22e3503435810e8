"""Every operation of the store in any order, against a model too plain to be wrong.

The model has no wheel, no running sums and no cleverness: a dict, a list for the order of use, a log of all that was
ever forgotten, promises as sets.  What it recomputes the long way after each step, the store must have kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs
import mmh3
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dcache.errors import ValueTooLarge
from dcache.node.held import Entry
from dcache.node.promises import Promises
from dcache.node.store import Store
from dcache.record import ZERO, Version, make_version
from dcache.wire import Status

STORED, NEWER = Status.STORED, Status.NEWER
SLOTS, OVERHEAD, LIMIT = 3, 8, 90
PROMISES, LIFE, PATIENCE = 3, 3_000, 250
NAMESPACES = (b"a\0", b"ab\0", b"\0")
KEYS = [namespace + name for namespace in NAMESPACES for name in (b"0", b"1", b"3")]


def v(n: int) -> Version:
    return make_version(n, 0, 1)


def slot_of(key: bytes) -> int:
    return key[-1] % SLOTS


@attrs.define
class Held:
    value: bytes
    version: Version
    flags: int
    deadline: int | None
    hidden: bool = False  # by a clear or a start over; still there until looked at or swept


@attrs.define
class Promised:
    versions: set[Version]
    ballot: bool
    since: int


class Model:
    """What a store is, said as plainly as possible."""

    def __init__(self, max_entries: int | None) -> None:
        self.max_entries = max_entries
        self.held: dict[bytes, Held] = {}
        self.order: list[bytes] = []  # least recently used first
        self.forgotten: list[tuple[int, Version]] = []  # everything, ever
        self.promised: dict[bytes, Promised] = {}  # oldest first
        self.met: set[Version] = {ZERO}
        self.owned: set[int] = set()
        self.completed: set[int] = set()
        self.ever_promised: list[tuple[int, Version]] = []
        self.void: list[tuple[int, Version]] = []  # promised before the slot was last completed or started over

    # -- what follows from the above

    def cost(self, key: bytes) -> int:
        return len(key) + len(self.held[key].value) + OVERHEAD

    def used(self) -> int:
        return sum(self.cost(key) for key in self.held)

    def floor(self, slot: int) -> Version:
        return max((version for where, version in self.forgotten if where == slot), default=ZERO)

    def digest(self, slot: int) -> int:
        digest = 0
        for key, held in self.held.items():
            if slot_of(key) == slot:
                digest ^= mmh3.hash64(key + held.version, signed=False)[0]
        return digest

    def known(self, key: bytes) -> Version:
        return self.held[key].version if key in self.held else self.floor(slot_of(key))

    def counts(self, key: bytes) -> bool:
        """Whether its word on `key` does."""
        return slot_of(key) in self.completed or bool(self.owned and self.completed == self.owned)

    def is_void(self, key: bytes, version: Version) -> bool:
        return version <= self.void_up_to(key)

    def void_up_to(self, key: bytes) -> Version:
        return max((version for where, version in self.void if where == slot_of(key)), default=ZERO)

    def end_promises(self, slot: int) -> None:
        """None made so far will be redeemed; what they kept out stays out."""
        ended = [(where, version) for where, version in self.ever_promised if where == slot]
        self.void += ended
        self.forgotten += ended

    def complete(self, slots: Iterable[int]) -> None:
        for slot in (self.owned - self.completed).intersection(slots):
            self.completed.add(slot)
            self.end_promises(slot)

    def top(self, key: bytes) -> Version:
        return max(self.promised[key].versions) if key in self.promised else ZERO

    # -- steps

    def remove(self, key: bytes) -> None:
        del self.held[key]
        self.order.remove(key)

    def forget(self, key: bytes) -> None:
        self.forgotten.append((slot_of(key), self.held[key].version))
        self.remove(key)

    def look(self, key: bytes, now: int) -> Held | None:
        """What happens first in every operation: what is over or hidden is dropped."""
        held = self.held.get(key)
        if held is not None and held.deadline is not None and now >= held.deadline:
            self.forget(key)
        elif held is not None and held.hidden:
            self.remove(key)
        return self.held.get(key)

    def drop_old_promises(self, now: int) -> None:
        for key in [key for key, promise in self.promised.items() if now >= promise.since + LIFE]:
            self.drop_promise(key)

    def drop_promise(self, key: bytes) -> None:
        """For want of time or room, or cleared away: its barrier stays."""
        self.forgotten.append((slot_of(key), self.top(key)))
        del self.promised[key]

    def put(self, key: bytes, held: Held) -> bool:
        """Whether there was room."""
        if key in self.held:
            self.remove(key)
        self.met.add(held.version)
        if len(key) + len(held.value) + OVERHEAD > LIMIT:
            self.forgotten.append((slot_of(key), held.version))
            return False
        self.held[key] = held
        while self.used() > LIMIT or (self.max_entries is not None and len(self.held) > self.max_entries):
            self.forget(self.order[0])
        self.order.append(key)
        return True

    def promise(self, key: bytes, promised: Promised) -> None:
        self.promised.pop(key, None)
        self.promised[key] = promised
        while len(self.promised) > PROMISES:
            self.drop_promise(next(iter(self.promised)))

    def promised_one(self, key: bytes, version: Version) -> None:
        """What is told of every promise, also of one made again."""
        self.met.add(version)
        self.ever_promised.append((slot_of(key), version))

    def in_the_way(self, key: bytes, version: Version) -> tuple[Status, Version] | None:
        """Of a set or delete."""
        highest = max(self.known(key), self.top(key))
        if version >= highest:
            return None
        return (Status.PROMISED if key in self.promised else Status.NEWER), highest


versions_away = st.integers(-6, 4)
lifetimes = st.sampled_from([None, None, 1, 700, 1_500, 5_000])
keys = st.sampled_from(KEYS)
values = st.integers(0, 95).map(bytes)  # the largest have no room even in an empty store
slots = st.sets(st.integers(0, SLOTS - 1))
all_slots = st.just(set(range(SLOTS)))
small_values = st.integers(0, 20).map(bytes)


class StoreMachine(RuleBasedStateMachine):
    """Runs both side by side.  Each write is sent twice: a retry is answered alike and changes nothing."""

    @initialize(max_entries=st.sampled_from([None, 1, 3]), now=st.integers(0, 5_000))
    def start(self, max_entries: int | None, now: int) -> None:
        self.now, self.highest = now, 10
        self.model = Model(max_entries)
        promises = Promises(PROMISES, LIFE, PATIENCE)
        self.store = Store(LIMIT, slot_of, SLOTS, max_entries=max_entries, overhead=OVERHEAD, promises=promises)

    # -- helpers

    def version(self, away: int) -> Version:
        """Mostly new ones, some used before, some older than all that is held."""
        number = max(1, self.highest + away)
        self.highest = max(self.highest, number)
        return v(number)

    def same(self, entry: Entry | None, held: Held | None) -> None:
        if held is None or entry is None:
            assert entry is held is None
        else:
            found = (entry.value, entry.version, entry.flags, entry.deadline)
            assert found == (held.value, held.version, held.flags, held.deadline)

    def twice(self, operation: Callable[[], Any]) -> Any:
        """What `operation` answers, having made sure that a retry answers alike and changes nothing."""
        answer = operation()
        before = self.books()
        assert operation() == answer
        assert self.books() == before
        return answer

    def books(self) -> tuple[object, ...]:
        store = self.store
        return store.keys(), store.used, store.newest, list(store.floors), list(store._digests), len(store.promises)

    def expect_write(self, key: bytes, held: Held, write: Callable[[], Any]) -> None:
        if self.model.put(key, held):
            assert self.twice(write) == (STORED, held.version)
        else:
            with pytest.raises(ValueTooLarge):
                write()

    # -- reading

    @rule(key=keys)
    def get(self, key: bytes) -> None:
        held = self.model.look(key, self.now)
        self.same(self.store.get(key, self.now), held)
        if held is not None:
            self.model.order.remove(key)
            self.model.order.append(key)

    @rule(key=keys)
    def peek(self, key: bytes) -> None:
        held = self.model.look(key, self.now)
        self.same(self.store.peek(key, self.now), held)

    @rule(key=keys)
    def known(self, key: bytes) -> None:
        self.model.look(key, self.now)
        assert self.store.known(key, self.now) == self.model.known(key)

    @rule(key=keys)
    def find_promise(self, key: bytes) -> None:
        self.model.look(key, self.now)
        self.store.peek(key, self.now)
        promise, promised = self.store.promises.find(key, self.now), self.model.promised.get(key)
        if promise is None or promised is None:
            assert promise is promised is None
        else:
            found = (set(promise.standing), promise.top, promise.ballot)
            assert found == (promised.versions, max(promised.versions), promised.ballot)

    # -- writing

    @rule(key=keys, away=versions_away, value=values | small_values, flags=st.integers(0, 3), ttl=lifetimes)
    def set(self, key: bytes, away: int, value: bytes, flags: int, ttl: int | None) -> None:
        version, model = self.version(away), self.model
        held, deadline = model.look(key, self.now), None if ttl is None else self.now + ttl

        def write() -> Any:
            return self.store.set(key, version, value, flags, ttl, self.now)

        if held is not None and held.version == version:
            held.deadline = min((end for end in (held.deadline, deadline) if end is not None), default=None)
            assert self.twice(write) == (STORED, version)
        elif (blocking := model.in_the_way(key, version)) is not None:
            assert self.twice(write) == blocking
        elif held is None and version == model.known(key):
            assert self.twice(write) == (NEWER, version)
        else:
            model.promised.pop(key, None)
            self.expect_write(key, Held(value, version, flags, deadline), write)

    @rule(key=keys, away=versions_away)
    def delete(self, key: bytes, away: int) -> None:
        version, model = self.version(away), self.model
        held = model.look(key, self.now)
        blocking = model.in_the_way(key, version)
        if blocking is None:
            model.promised.pop(key, None)
            if held is not None:
                model.remove(key)
            model.forgotten.append((slot_of(key), version))
            model.met.add(version)
            assert self.store.delete(key, version, self.now) == (STORED, version, held is not None)
            blocking = model.in_the_way(key, version)  # of a retry: the key is gone, the slot may have forgotten more
        expected = (STORED, version, False) if blocking is None else (*blocking, False)
        assert self.twice(lambda: self.store.delete(key, version, self.now)) == expected

    @rule(key=keys, away=versions_away, value=values | small_values, ttl=lifetimes, data=st.data())
    def accept(self, key: bytes, away: int, value: bytes, ttl: int | None, data: st.DataObject) -> None:
        version, model = self.version(away), self.model
        held = model.look(key, self.now)
        if key in model.promised and data.draw(st.booleans(), label="a promised version"):
            version = data.draw(st.sampled_from(sorted(model.promised[key].versions)))

        def write() -> Any:
            return self.store.accept(key, version, value, 1, ttl, self.now)

        if held is not None and held.version == version:
            assert self.twice(write) == (STORED, version)
        elif key in model.promised and version in model.promised[key].versions and not model.is_void(key, version):
            model.promised[key].versions -= {lower for lower in model.promised[key].versions if lower <= version}
            if not model.promised[key].versions:
                del model.promised[key]
            self.expect_write(key, Held(value, version, 1, None if ttl is None else self.now + ttl), write)
        else:
            assert self.twice(write) == (NEWER, max(model.top(key), model.known(key)))

    @precondition(lambda self: self.model.promised)
    @rule(value=small_values, data=st.data())
    def accept_what_was_promised(self, value: bytes, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.model.promised)))
        self.accept(key, 0, value, None, data)

    @rule(key=keys, away=versions_away, unreadable=st.sampled_from(["nothing", "what is held", "newer"]))
    def claim(self, key: bytes, away: int, unreadable: str) -> None:
        version, model = self.version(away), self.model
        held = model.look(key, self.now)
        held_version = ZERO if held is None else held.version
        limit = {"nothing": ZERO, "what is held": held_version, "newer": v(self.highest + 1)}[unreadable]
        if held is not None:
            model.order.remove(key)
            model.order.append(key)
        standing, promised = model.promised.get(key), False
        readable = held if held_version > limit else None
        stands = standing is not None and version in standing.versions
        may = model.counts(key) and not model.is_void(key, version)
        if readable is None and may and (version > model.known(key) or stands):
            old = standing is not None and self.now >= standing.since + PATIENCE
            if standing is None or (standing.ballot and old and version > max(standing.versions)):
                model.promise(key, Promised({version}, False, self.now))
                promised = True
            elif not standing.ballot:
                promised = True
                if version not in standing.versions:
                    model.promise(key, Promised(standing.versions | {version}, False, self.now))
        if promised:
            model.promised_one(key, version)
        entry, answer = self.twice(lambda: self.store.claim(key, version, limit, self.now))
        self.same(entry, readable)
        assert answer == promised

    @rule(key=keys, away=versions_away)
    def prepare(self, key: bytes, away: int) -> None:
        version, model = self.version(away), self.model
        held, standing = model.look(key, self.now), model.promised.get(key)
        status, known, entry = self.twice(lambda: self.store.prepare(key, version, self.now))
        if not model.counts(key):
            assert (status, known) == (STORED, model.known(key))
            self.same(entry, held)
            return
        stands = standing is not None and version in standing.versions
        if model.is_void(key, version) or (version <= model.known(key) and not stands):
            assert (status, known, entry) == (NEWER, max(model.known(key), model.void_up_to(key)), None)
            return
        if standing is not None and not (standing.ballot and standing.versions == {version}):
            young_ballot = standing.ballot and self.now < standing.since + PATIENCE
            if version < max(standing.versions) or young_ballot:
                assert (status, known, entry) == (NEWER, max(standing.versions), None)
                return
        if standing is None or not standing.ballot or standing.versions != {version}:
            model.promise(key, Promised({version}, True, self.now))
        model.promised_one(key, version)
        assert (status, known) == (STORED, model.known(key))
        self.same(entry, held)

    @rule(prefix=st.sampled_from(NAMESPACES), away=versions_away)
    def clear(self, prefix: bytes, away: int) -> None:
        version, model = self.version(away), self.model
        for key in [key for key in model.promised if key.startswith(prefix)]:
            model.drop_promise(key)
        for key, held in model.held.items():
            held.hidden = held.hidden or (key.startswith(prefix) and held.version <= version)
        model.forgotten += [(slot, version) for slot in range(SLOTS)]
        model.met.add(version)
        self.twice(lambda: self.store.clear(prefix, version, self.now))

    @rule(key=keys, away=versions_away)
    def drop(self, key: bytes, away: int) -> None:
        version, model = self.version(away), self.model
        held = model.look(key, self.now)
        dropped = held is not None and held.version <= version
        if dropped:
            model.forget(key)
        assert self.store.drop(key, version, self.now) == dropped
        assert not self.store.drop(key, version, self.now)

    # -- what is known of the slots

    @rule(slots=slots)
    def own(self, slots: Any) -> None:
        self.model.owned = slots
        self.model.completed = self.model.completed & slots
        self.twice(lambda: self.store.own(slots))

    @rule(slots=slots | all_slots)
    def complete(self, slots: Any) -> None:
        self.model.complete(slots)
        self.twice(lambda: self.store.complete(slots))

    @rule()
    def own_and_complete_all(self) -> None:
        """Else too few promises would ever be made."""
        self.own(set(range(SLOTS)))
        self.complete(set(range(SLOTS)))

    @rule()
    def doubt(self) -> None:
        self.model.completed = set()
        self.twice(self.store.doubt)

    @rule(slot=st.integers(0, SLOTS - 1), away=versions_away)
    def raise_floor(self, slot: int, away: int) -> None:
        version = self.version(away)
        self.model.forgotten.append((slot, version))
        self.model.met.add(version)
        self.twice(lambda: self.store.raise_floor(slot, version))

    @rule(slots=slots, away=versions_away)
    def start_over(self, slots: Any, away: int) -> None:
        version, model = self.version(away), self.model
        for key, held in model.held.items():
            held.hidden = held.hidden or (slot_of(key) in slots and held.version <= version)
        for slot in slots:
            model.forgotten.append((slot, version))
            model.met.add(version)
            model.end_promises(slot)
        model.complete(slots)
        self.twice(lambda: self.store.start_over(slots, version))

    # -- time

    @rule(milliseconds=st.sampled_from([1, 100, 250, 999, 1_000, 3_000]))
    def time_passes(self, milliseconds: int) -> None:
        self.now += milliseconds
        self.store.promises.expire(self.now)
        self.model.drop_old_promises(self.now)

    @rule(most=st.integers(1, 5))
    def sweep(self, most: int) -> None:
        """Which keys go first is the store's affair; how many, and that all of them had to go, is not."""
        overdue = self.overdue()
        before = self.store.keys()
        more = self.store.sweep(self.now, most)
        gone = set(before) - set(self.store.keys())
        assert len(gone) <= 2 * most
        assert len(gone & overdue) >= min(most, len(overdue))
        for key in gone:
            assert self.model.look(key, self.now) is None
        if not more:
            assert not self.overdue()
            assert not any(held.hidden for held in self.model.held.values())

    @rule(most=st.integers(1, 5))
    def sweep_until_done(self, most: int) -> None:
        rounds = 0
        while self.store.sweep(self.now, most):
            rounds += 1
            assert rounds <= len(self.model.held) + 1
        for key in set(self.model.held) - set(self.store.keys()):
            assert self.model.look(key, self.now) is None
        assert not self.overdue()
        assert not any(held.hidden for held in self.model.held.values())
        assert not self.store._hiding

    def overdue(self) -> Any:
        """The keys whose deadline lies in a second that is over."""
        ends = {key: held.deadline for key, held in self.model.held.items() if held.deadline is not None}
        return {key for key, end in ends.items() if end // 1_000 < self.now // 1_000}

    # -- what must hold after every step

    @invariant()
    def the_order_of_use_is_kept(self) -> None:
        assert self.store.keys() == self.model.order

    @invariant()
    def the_accounts_are_exact_and_within_the_limits(self) -> None:
        assert self.store.used == self.model.used() <= LIMIT
        assert len(self.store) == len(self.model.held) <= (self.model.max_entries or len(KEYS))

    @invariant()
    def floors_are_the_highest_version_forgotten(self) -> None:
        assert self.store.floors == [self.model.floor(slot) for slot in range(SLOTS)]
        assert [self.store.floor(key) for key in KEYS] == [self.model.floor(slot_of(key)) for key in KEYS]

    @invariant()
    def barriers_are_the_highest_version_forgotten_or_promised(self) -> None:
        for slot in range(SLOTS):
            promised = [version for where, version in self.model.ever_promised if where == slot]
            assert self.store.barrier(slot) == max([self.model.floor(slot), *promised])

    @invariant()
    def digests_are_the_xor_over_all_entries(self) -> None:
        digests = [self.model.digest(slot) for slot in range(SLOTS)]
        assert list(self.store._digests) == digests
        if not self.store._hiding:
            assert self.store.digests_of(range(SLOTS)) == digests

    @invariant()
    def newest_is_the_highest_version_met(self) -> None:
        assert self.store.newest == max(self.model.met)

    @invariant()
    def promises_are_bounded(self) -> None:
        assert len(self.store.promises) <= PROMISES

    @invariant()
    def complete_bits_are_as_set(self) -> None:
        owned, completed = self.model.owned, self.model.completed
        assert [self.store.is_complete(key) for key in KEYS] == [self.model.counts(key) for key in KEYS]
        assert self.store.all_complete == bool(owned and completed == owned)
        assert {slot for slot in range(SLOTS) if self.store.complete_bits[slot]} == completed
        assert (set(self.store.owned), set(self.store.incomplete())) == (owned, owned - completed)
        assert self.store.progress() == (len(completed), len(owned))

    @invariant()
    def the_wheel_holds_what_will_expire(self) -> None:
        assert len(self.store._wheel) == sum(held.deadline is not None for held in self.model.held.values())

    def teardown(self) -> None:
        """At the end, look at everything: what no rule happened to ask for must be right too."""
        if hasattr(self, "store"):
            for key in KEYS:
                self.find_promise(key)
                self.peek(key)
            self.sweep_until_done(2)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=150, stateful_step_count=50)
