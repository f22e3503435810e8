"""Becoming complete again: taking over, slot by slot, what the other owners know.

The rules and why they are right stand in `dcache.ops.compare`.  Here is what to do about it, over and over until
nothing is left to be done: ask the other owners which slots are complete there, have them make indexes, and go through
the slots in chunks.  Each slot is settled twice: once to see what is to be fetched, and once more, when that is there
and in one step with declaring the slot complete, since anything may have come in between.

* Only the owners on the current ring are heard, also while a next ring is in force beside it: all that was acknowledged
  before is known to them.  Everything is asked under one ring, and nothing is declared under another.
* What this node holds of a slot is listed anew each time; for that the store notes what comes to be held.
* Where so many complete owners cannot be had for long, the slots are started over; see `starting_over`.
* A member that is forgotten may have been the only owner of a slot.  What its heir holds there by then was written in
  its absence, by clients in available mode, and is kept, except for leftovers from a time when it owned the slot
  before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import attrs

from dcache.agent import starting_over
from dcache.agent.starting_over import Moved, StartingOver, check_same_ring, forgotten
from dcache.errors import ValueTooLarge
from dcache.membership import MemberTable
from dcache.node.service import Service
from dcache.node.store import Store
from dcache.ops.compare import Inventory, Settlement, Versions, enough, must_catch_up, settle
from dcache.ops.effects import Op, Sleep, jittered
from dcache.ops.listing import BATCH, Digests, Heard, Others, Pace
from dcache.record import Version

log = logging.getLogger("dcache.agent")

PAUSE = 0.2
"""Seconds between two looks whether there is anything to do, some 0.8 to 1.2 of that."""

VAIN_PAUSE = 1.0
"""The same after a round in which nothing could be done."""

CHUNK = 128
"""Slots settled together at most; fewer where an inventory of so many does not fit one answer."""

SLICE = 2048
"""Keys or slots gone through between two moments at which others may run: some 1 or 2 ms."""

SPARE = 64
"""Keys of a slot noted before it is worth looking which of them are still held."""


class Membership(starting_over.Membership, Protocol):
    """What is to be known of the node's agent."""

    regained: set[int]


@attrs.define
class Progress:
    """What completing did since the process started."""

    records: int = 0
    bytes: int = 0
    settled: int = 0
    started_over: int = 0


class Held:
    """What the node holds of some slots, while it lasts: an index, and what has come since it was begun.

    Keys that come and go again are not kept for long, however many: of a slot there are at most twice as many as it
    holds, and `SPARE` more.
    """

    def __init__(self, store: Store, slots: Iterable[int], now: Callable[[], int]) -> None:
        self._store, self._now = store, now
        self._keys: dict[int, list[bytes]] = {slot: [] for slot in slots}
        self._most: dict[int, int] = {}  # so many keys of a slot before it is tidied
        store.arrived = self._note
        self._left = store.snapshot() if len(store) else []

    def __len__(self) -> int:
        """How many keys are kept here."""
        return len(self._left) + sum(map(len, self._keys.values()))

    def build(self) -> Op[None]:
        """Find the keys, in slices."""
        slot_of, found = self._store.slot_of, self._keys
        while self._left:
            for key in self._left[-SLICE:]:
                of_slot = found.get(slot_of(key))
                if of_slot is not None:
                    of_slot.append(key)
            del self._left[-SLICE:]
            yield Sleep(0)

    def versions(self, slot: int) -> Versions:
        """What is held of `slot` at this moment."""
        now, peek = self._now(), self._store.peek
        return {key: entry.version for key in self._keys[slot] if (entry := peek(key, now)) is not None}

    def done_with(self, slot: int) -> None:
        del self._keys[slot]

    def close(self) -> None:
        self._store.arrived = None

    def _note(self, slot: int, key: bytes) -> None:
        of_slot = self._keys.get(slot)
        if of_slot is not None:
            of_slot.append(key)
            if len(of_slot) > self._most.get(slot, SPARE):
                kept = self._keys[slot] = list(self.versions(slot))
                self._most[slot] = 2 * len(kept) + SPARE


class Completing:
    """`now` gives the service's milliseconds; `start_over` is after how many seconds slots are started over."""

    def __init__(
        self,
        agent: Membership,
        service: Service,
        now: Callable[[], int],
        random: Callable[[], float],
        pace: Pace,
        start_over: float = 30.0,
    ) -> None:
        self._agent, self._service, self._store = agent, service, service.store
        self._now, self._random, self._pace = now, random, pace
        self._starting_over = StartingOver(agent, service, now, start_over)
        self._caught_up: tuple[bytes, set[int]] = b"", set()  # of which ring, and in which slots
        self.progress = Progress()

    def run(self) -> Op[None]:
        """For ever: complete what is not complete."""
        while True:
            table, settled, pause = self._agent.table, self.progress.settled, PAUSE
            if table is not None and not self.finished(table):
                try:
                    yield from self._round(table)
                except Moved:
                    log.debug("the ring changed: completing begins again")
                pause = PAUSE if self.progress.settled != settled else VAIN_PAUSE
            yield Sleep(jittered(pause, self._random))

    def finished(self, table: MemberTable) -> bool:
        """Whether this node has done all that it has to before the next ring of `table`, if any, takes over."""
        complete, owned = self._store.progress()
        return complete == owned and not self._to_catch_up(table)

    def methods(self) -> Mapping[str, Callable[..., Any]]:
        return {"ready": self.ready}

    def ready(self, fingerprint: bytes) -> bool | None:
        """Whether this node votes for all of its slots, and the next ring may take over as far as it is concerned; None
        if it does not and has found too few others to ask for long."""
        table = self._agent.table
        if self._service.ready(fingerprint) and table is not None and self.finished(table):
            return True
        return None if self._starting_over.stuck(fingerprint) else False

    def behind(self, previous: MemberTable, table: MemberTable) -> bool:
        """Whether the ring of `table` takes over before this node has caught up: then it is to doubt what it holds."""
        took_over = previous.ring_state.next == table.ring_state.members
        return took_over and bool(self._to_catch_up(previous))

    def statistics(self) -> dict[str, Any]:
        return {f"completing_{name}": value for name, value in attrs.asdict(self.progress).items()}

    # -- one round ----------------------------------------------------------------------------------------------------

    def _round(self, table: MemberTable) -> Op[None]:
        plan = yield from self._plan(table)
        others = Others(table.fingerprint, self._pace)
        digests = yield from others.digests(plan.asked)
        check_same_ring(self._agent, table)
        groups = yield from self._groups(plan, digests)
        if groups:
            yield from self._settle_all(table, others, groups, plan.owners)
        self.progress.started_over += yield from self._starting_over.see_to(table, others, plan.owners, digests)

    def _groups(self, plan: _Plan, digests: Mapping[str, Digests]) -> Op[dict[tuple[str, ...], list[int]]]:
        """The slots that can be settled, by the owners to be heard.  Those of which too few owners are complete are
        lacking."""
        groups: dict[tuple[str, ...], list[int]] = {}
        lacking: list[int] = []
        for at, (slot, owners) in enumerate(plan.owners.items()):
            if at % SLICE == SLICE - 1:
                yield Sleep(0)
            there = tuple(name for name in owners if name in digests and digests[name][slot][0])
            if len(there) + self._hears_itself(slot, owners) >= enough(len(owners)):
                groups.setdefault(there, []).append(slot)
            else:
                lacking.append(slot)
        self._starting_over.lacking(lacking)
        return groups

    def _plan(self, table: MemberTable) -> Op[_Plan]:
        """What is to be asked of whom.  Slots are complete at once that nobody else owns, or nobody any more."""
        me, ring = self._agent.me.name, table.ring
        n = min(table.settings.replicas, len(ring))
        plan, alone, gone = _Plan({}, {}), [], forgotten(table)
        wanted = sorted({*self._store.incomplete(), *self._to_catch_up(table)})
        for at, slot in enumerate(wanted):
            if at % SLICE == SLICE - 1:
                yield Sleep(0)
            owners = ring.slot_owners(slot, n)
            if owners == (me,) or (n == 1 and owners[0] in gone and slot not in self._agent.regained):
                alone.append(slot)
                continue
            plan.owners[slot] = owners
            for name in owners:
                if name != me:
                    plan.asked.setdefault(name, []).append(slot)
        check_same_ring(self._agent, table)
        self._starting_over.alone(table, alone)
        return plan

    # -- settling -----------------------------------------------------------------------------------------------------

    def _settle_all(
        self,
        table: MemberTable,
        others: Others,
        groups: Mapping[tuple[str, ...], list[int]],
        owners: Mapping[int, Sequence[str]],
    ) -> Op[None]:
        """Settle slots, grouped by those that are to be heard."""
        asked: dict[str, list[int]] = {}
        for names, slots in groups.items():
            for name in names:
                asked.setdefault(name, []).extend(slots)
        held = Held(self._store, owners, self._now)
        try:
            yield from held.build()
            indexes = yield from others.indexes(asked)
            for names, slots in groups.items():
                there = [name for name in names if name in indexes]
                settling = _Settling(self, table, others, held, indexes, there)
                yield from settling.run(slots, owners)
            yield others.drop(indexes)
        finally:
            held.close()

    def _hears_itself(self, slot: int, owners: Sequence[str]) -> bool:
        """An owner that is complete, and only has to catch up, counts among those heard."""
        return bool(self._store.complete_bits[slot]) and self._agent.me.name in owners

    def decide(
        self, table: MemberTable, slot: int, heard: Mapping[str, Inventory], held: Held, n: int
    ) -> Settlement | None:
        """What settling the slot takes, as of now; None if too few were heard."""
        mine = held.versions(slot)
        if self._hears_itself(slot, table.ring.slot_owners(slot, n)):
            me = Inventory(True, self._store.floors[slot], self._store.barrier(slot), mine)
            heard = {**heard, self._agent.me.name: me}
        return settle(mine, heard, enough(n))

    def slot_of(self, key: bytes) -> int:
        return self._store.slot_of(key)

    def put(self, key: bytes, version: Version, value: bytes, flags: int, ttl: int | None) -> None:
        """Hold what another owner holds, unless something newer is here, or is known to have been."""
        self.progress.records += 1
        self.progress.bytes += len(key) + len(value)
        try:
            self._store.take_over(key, version, value, flags, ttl, self._now())
        except ValueTooLarge:  # and is now below the floor
            log.debug("a record of %d bytes has no room here", len(value))

    def finish(self, table: MemberTable, slot: int, heard: Mapping[str, Inventory], held: Held, n: int) -> bool:
        """Make the slot what it has to be, and declare it complete, in one step.  Whether enough were heard."""
        check_same_ring(self._agent, table)
        settlement = self.decide(table, slot, heard, held, n)
        if settlement is None:
            return False
        self.conclude(table, slot, settlement, held)
        return True

    def first_look(
        self, table: MemberTable, slot: int, heard: Mapping[str, Inventory], held: Held, n: int
    ) -> Settlement | None:
        """What settling the slot takes.  Where nothing is to be fetched, it is done in the same step."""
        check_same_ring(self._agent, table)
        settlement = self.decide(table, slot, heard, held, n)
        if settlement is not None and not settlement.take:
            self.conclude(table, slot, settlement, held)
        return settlement

    def conclude(self, table: MemberTable, slot: int, settlement: Settlement, held: Held) -> None:
        """Do what was decided in this very step, and declare the slot complete."""
        store, now = self._store, self._now()
        for key, (version, _) in settlement.take.items():  # nobody had it any more: it was forgotten
            store.drop(key, version, now)
            store.raise_floor(slot, version)
        for key, version in settlement.drop.items():
            store.drop(key, version, now)
        store.raise_floor(slot, settlement.floor)
        store.complete((slot,))
        held.done_with(slot)
        self._note_caught_up(table, slot)
        self.progress.settled += 1

    # -- catching up before there are fewer owners --------------------------------------------------------------------

    def _to_catch_up(self, table: MemberTable) -> set[int]:
        """The slots in which this node has to know more before the next ring takes over.

        Also those that were completed under the ring before: what they need not know then they must know later.
        """
        state, replicas = table.ring_state, table.settings.replicas
        if state.next is None or not must_catch_up(min(replicas, len(state.members)), min(replicas, len(state.next))):
            return set()
        fingerprint, done = self._caught_up
        stays = self._agent.me.name in table.ring and self._agent.me.name in table.rings[1]
        if not stays or (fingerprint == table.fingerprint and len(done) == len(self._store.owned)):
            return set()
        return set(self._store.owned) - (done if fingerprint == table.fingerprint else set())

    def _note_caught_up(self, table: MemberTable, slot: int) -> None:
        if self._caught_up[0] != table.fingerprint:
            self._caught_up = table.fingerprint, set()
        self._caught_up[1].add(slot)


@attrs.frozen(eq=False)
class _Plan:
    """For each slot that is to be completed its owners, and for each other owner the slots to ask about."""

    owners: dict[int, Sequence[str]]
    asked: dict[str, list[int]]


@attrs.define(eq=False)
class _Settling:
    """Goes through slots of which the same nodes are heard."""

    completing: Completing
    table: MemberTable
    others: Others
    held: Held
    indexes: Mapping[str, Any]
    names: Sequence[str]
    step: int = 8

    def run(self, slots: Sequence[int], owners: Mapping[int, Sequence[str]]) -> Op[None]:
        at = 0
        while at < len(slots):
            chunk = slots[at : at + self.step]
            heard = yield from self.others.inventories(self.indexes, dict.fromkeys(self.names, chunk))
            yield from self._settle(chunk, heard, owners)
            at += len(chunk)
            self.step = min(CHUNK, 2 * self.step) if heard.rounds == 1 else max(1, self.step // 2)

    def _settle(self, chunk: Sequence[int], heard: Heard, owners: Mapping[int, Sequence[str]]) -> Op[None]:
        wanted: dict[str, list[bytes]] = {name: [] for name in self.names}
        seen, left = 0, []
        for slot in chunk:
            inventories, n = heard.by_slot.get(slot, {}), len(owners[slot])
            settlement = self.completing.first_look(self.table, slot, inventories, self.held, n)
            if settlement is not None and settlement.take:
                left.append(slot)
                for key, (_, holders) in settlement.take.items():
                    wanted[min(holders, key=lambda name: len(wanted[name]))].append(key)
            seen += sum(len(inventory.versions) for inventory in inventories.values())
            if seen > 2 * BATCH:
                seen = 0
                yield Sleep(0)
        unanswered = yield from self.others.fetch(wanted, self.completing.put)
        again = {self.completing.slot_of(key) for key in unanswered}
        for slot in left:
            if slot in again:
                continue  # it was not forgotten, for all that is known
            inventories, n = heard.by_slot.get(slot, {}), len(owners[slot])
            self.completing.finish(self.table, slot, inventories, self.held, n)
            seen += sum(len(inventory.versions) for inventory in inventories.values())
            if seen > 2 * BATCH:
                seen = 0
                yield Sleep(0)
