"""Comparing, now and then, with the other owners of the slots that are complete, and tidying up what is in others.

    overview -> digests of the blocks that differ -> inventories of the slots that differ -> the records to take

Nodes only take; what they have to give is taken by the others when it is their turn.  What to take and to drop is
decided in `dcache.ops.compare`.

* Two equal nodes exchange a few kilobytes, others about as much as the slots hold that differ.  At the memory limit
  all slots differ, always, since nodes evict what they like; so a round looks at some slots only, and the next one at
  the next.  A node that is full takes what is newer than what it holds, and nothing else: to take more it would have
  to evict.
* What is held in slots that this node stopped owning, by a change it saw, is dropped: the owners have completed.
* What else is held in slots of others was written here in available mode.  It is sent to its owners, and dropped when
  so many have it, or something newer, that it is not needed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import attrs

from dcache.agent.completing import SLICE
from dcache.errors import ValueTooLarge
from dcache.membership import Member, MemberTable
from dcache.node.held import Entry
from dcache.node.service import Refusal, Service
from dcache.ops.compare import Inventory, reconcile
from dcache.ops.effects import Call, Op, Sleep, jittered
from dcache.ops.listing import BATCH, BLOCK, Asking, Heard, Others, Pace, to_bitmap
from dcache.ops.quorum import majority
from dcache.ring import SLOTS
from dcache.wire import Status

MOST = 1024
"""Differing slots looked at in a round."""

CHUNK = 64
"""Slots whose inventories are asked for at once."""

FULL = 0.98
"""A store that is filled to this part of its limit takes no more records from others."""

PIECE = 256 * 1024
"""Bytes of values sent home at once."""

PAUSE = 0.2
"""Seconds between two looks whether a round is due."""


class Membership(Protocol):
    """What is to be known of the node's agent."""

    me: Member
    table: MemberTable | None
    leftover: set[int]


@attrs.define
class Progress:
    """What repair did since the process started."""

    rounds: int = 0
    differing: int = 0  # slots, when last compared
    taken: int = 0
    dropped: int = 0
    sent_home: int = 0


class Repair:
    """`now` gives the service's milliseconds, `interval` is in seconds, jittered by a fifth."""

    def __init__(
        self,
        agent: Membership,
        service: Service,
        now: Callable[[], int],
        random: Callable[[], float],
        pace: Pace,
        interval: float = 60.0,
    ) -> None:
        self._agent, self._service, self._store = agent, service, service.store
        self._now, self._random, self._pace, self._interval = now, random, pace, interval
        self._next = 0  # the slot to begin with
        self.wanted = False
        self.progress = Progress()

    def methods(self) -> Mapping[str, Callable[..., Any]]:
        return {"repair": self.ask}

    def ask(self) -> None:
        """Begin a round as soon as the present one, if any, is over."""
        self.wanted = True

    def statistics(self) -> dict[str, Any]:
        """For `stats`; `repair_bytes` are those of all traffic under this pace, that of completing among them."""
        done = {f"repair_{name}": value for name, value in attrs.asdict(self.progress).items()}
        return {**done, "repair_bytes": self._pace.bytes}

    def run(self) -> Op[None]:
        """For ever: a round every `interval`, after the node was completed, and when asked."""
        while True:
            yield from self._until_due()
            self.wanted = False
            table = self._agent.table
            if table is not None:
                yield from self._round(table)
                self.progress.rounds += 1

    def _until_due(self) -> Op[None]:
        due = self._now() + round(1000 * jittered(self._interval, self._random))
        complete = self._store.all_complete
        while not self.wanted and self._now() < due and not (self._store.all_complete and not complete):
            complete = self._store.all_complete
            yield Sleep(PAUSE)

    def _round(self, table: MemberTable) -> Op[None]:
        yield from self._drop_leftover()
        yield from self._send_home(table)
        others = Others(table.fingerprint, self._pace)
        differing = yield from self._differing(table, others)
        self.progress.differing = len({slot for slots in differing.values() for slot in slots})
        some = self._turn(differing)
        if some:
            yield from self._compare(table, others, some)

    # -- what differs -------------------------------------------------------------------------------------------------

    def _differing(self, table: MemberTable, others: Others) -> Op[dict[str, list[int]]]:
        """By other owner, the slots complete here and there whose digests differ."""
        shared = yield from self._shared(table)
        overviews = yield from others.overviews(shared)
        doubtful: dict[str, list[int]] = {}
        for name, theirs in overviews.items():
            mine = self._own_overview(table, shared[name])
            blocks = {at for at in range(SLOTS // BLOCK) if mine[8 * at : 8 * at + 8] != theirs[8 * at : 8 * at + 8]}
            doubtful[name] = [slot for slot in shared[name] if slot // BLOCK in blocks]
            yield Sleep(0)
        digests = yield from others.digests({name: slots for name, slots in doubtful.items() if slots})
        differing = {}
        for name, told in digests.items():
            mine_of = self._store.digests_of(told)
            differing[name] = [
                slot
                for (slot, (complete, digest)), mine_too in zip(told.items(), mine_of, strict=True)
                if complete and digest != mine_too
            ]
            yield Sleep(0)
        return {name: slots for name, slots in differing.items() if slots}

    def _shared(self, table: MemberTable) -> Op[dict[str, list[int]]]:
        """By other owner, the slots complete here that it owns too."""
        shared: dict[str, list[int]] = {}
        for at, slot in enumerate(self._store.owned):
            if at % SLICE == SLICE - 1:
                yield Sleep(0)
            if self._store.complete_bits[slot]:
                for name in dict.fromkeys(name for owners in table.owners(slot) for name in owners):
                    if name != self._agent.me.name:
                        shared.setdefault(name, []).append(slot)
        return shared

    def _own_overview(self, table: MemberTable, slots: Iterable[int]) -> bytes:
        try:
            overview: bytes = self._service.handle("overview", (table.fingerprint, to_bitmap(slots)))
        except Refusal:  # the ring has changed: the next requests are refused as well
            return bytes(8 * SLOTS // BLOCK)
        return overview

    def _turn(self, differing: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """As much of what differs as this round looks at, going on where the last one ended."""
        slots = sorted({slot for some in differing.values() for slot in some})
        if len(slots) > MOST:
            slots = sorted(slots, key=lambda slot: (slot < self._next, slot))[:MOST]
            self._next = slots[-1] + 1
        chosen = set(slots)
        return {name: [slot for slot in some if slot in chosen] for name, some in differing.items()}

    # -- taking and dropping ------------------------------------------------------------------------------------------

    def _compare(self, table: MemberTable, others: Others, differing: Mapping[str, Sequence[int]]) -> Op[None]:
        slots = sorted({slot for some in differing.values() for slot in some})
        keys = yield from self._keys(slots)
        indexes = yield from others.indexes({name: some for name, some in differing.items() if some})
        asked = {name: set(differing[name]) for name in indexes}
        for at in range(0, len(slots), CHUNK):
            chunk = slots[at : at + CHUNK]
            wanted = {name: [slot for slot in chunk if slot in some] for name, some in asked.items()}
            heard = yield from others.inventories(indexes, wanted)
            if self._agent.table is None or self._agent.table.fingerprint != table.fingerprint:
                return
            yield from self._reconcile(table, others, keys, chunk, heard)
        yield others.drop(indexes)

    def _reconcile(
        self,
        table: MemberTable,
        others: Others,
        keys: Mapping[int, Sequence[bytes]],
        chunk: Sequence[int],
        heard: Heard,
    ) -> Op[None]:
        wanted: dict[str, list[bytes]] = {name: [] for told in heard.by_slot.values() for name in told}
        for slot in chunk:
            inventories = heard.by_slot.get(slot, {})
            mine = self._inventory(slot, {*keys[slot], *(key for one in inventories.values() for key in one.versions)})
            made = reconcile(self._agent.me.name, mine, inventories, table.owners(slot))
            for key, (_, holders) in made.take.items():
                if key in mine.versions or not self._full():
                    wanted[min(holders, key=lambda name: len(wanted[name]))].append(key)
            for key, version in made.drop.items():
                self.progress.dropped += self._store.drop(key, version, self._now())
            yield Sleep(0)
        yield from others.fetch(wanted, self._put)

    def _inventory(self, slot: int, keys: Iterable[bytes]) -> Inventory:
        """What is held of the slot; of keys that came since they were listed only those that others hold too."""
        store, now = self._store, self._now()
        held = {key: entry.version for key in keys if (entry := store.peek(key, now)) is not None}
        return Inventory(bool(store.complete_bits[slot]), store.floors[slot], store.barrier(slot), held)

    def _full(self) -> bool:
        store = self._store
        if store.max_entries is not None and len(store) >= FULL * store.max_entries:
            return True
        return store.used >= FULL * store.memory_limit

    def _put(self, key: bytes, version: Any, value: bytes, flags: int, ttl: int | None) -> None:
        """Hold what another owner holds, if nothing has to go for it but an older version."""
        store, now = self._store, self._now()
        entry = store.peek(key, now)
        more = len(value) - entry.size if entry is not None else len(key) + len(value) + store.overhead
        if store.used + more > store.memory_limit or (entry is None and self._full()):
            return
        try:
            status, _ = store.set(key, version, value, flags, ttl, now)
        except ValueTooLarge:
            return
        self.progress.taken += status == Status.STORED

    def _keys(self, slots: Iterable[int]) -> Op[dict[int, list[bytes]]]:
        """The keys held in these slots, found in slices."""
        found: dict[int, list[bytes]] = {slot: [] for slot in slots}
        left = self._store.snapshot() if found else []
        slot_of = self._store.slot_of
        while left:
            for key in left[-SLICE:]:
                of_slot = found.get(slot_of(key))
                if of_slot is not None:
                    of_slot.append(key)
            del left[-SLICE:]
            yield Sleep(0)
        return found

    # -- what this node should not hold -------------------------------------------------------------------------------

    def _drop_leftover(self) -> Op[None]:
        leftover = set(self._agent.leftover)
        keys = yield from self._keys(self._holding(leftover))
        for slot, some in keys.items():
            for at in range(0, len(some), BATCH):
                if slot not in self._agent.leftover:
                    break  # it is owned again
                now = self._now()
                for key in some[at : at + BATCH]:
                    entry = self._store.peek(key, now)
                    if entry is not None:
                        self.progress.dropped += self._store.drop(key, entry.version, now)
                yield Sleep(0)
        self._agent.leftover -= leftover

    def _holding(self, slots: Iterable[int]) -> list[int]:
        """Those of the slots that hold anything."""
        slots = list(slots)
        return [slot for slot, digest in zip(slots, self._store.digests_of(slots), strict=True) if digest]

    def _send_home(self, table: MemberTable) -> Op[None]:
        """Send what was stranded here to its owners, those of one slot after those of another."""
        owned = set(self._store.owned)
        keys = yield from self._keys(self._holding(slot for slot in range(SLOTS) if slot not in owned))
        away: set[str] = set()  # that did not answer
        for slot, some in keys.items():
            rings = table.owners(slot)
            if any(sum(name not in away for name in owners) < majority(len(owners)) for owners in rings):
                continue
            for namespace, piece in self._pieces(some):
                failed = yield from self._send_piece(table, namespace, piece, rings)
                if failed is None:
                    return
                away |= failed

    def _pieces(self, keys: Iterable[bytes]) -> Iterable[tuple[bytes, dict[bytes, Entry]]]:
        """Records with their namespace, as many as go into one request; looked up as they are wanted."""
        piece: dict[bytes, Entry] = {}
        namespace, room = b"", PIECE
        for key in sorted(keys):
            entry = self._store.peek(key, self._now())
            if entry is None:
                continue
            own = key[: key.index(0)]
            room -= entry.size
            if piece and (own != namespace or room < 0 or len(piece) == BATCH):
                yield namespace, piece
                piece, room = {}, PIECE - entry.size
            namespace = own
            piece[key] = entry
        if piece:
            yield namespace, piece

    def _send_piece(
        self, table: MemberTable, namespace: bytes, piece: Mapping[bytes, Entry], rings: Sequence[Sequence[str]]
    ) -> Op[set[str] | None]:
        """Send records to all owners and drop those that enough of them have; who failed, None if the ring changed."""
        now, start = self._now(), len(namespace) + 1
        items = [(key[start:], one.version, one.value, one.flags, one.ttl(now)) for key, one in piece.items()]
        names = dict.fromkeys(name for owners in rings for name in owners)
        round_ = Asking(
            [Call(name, "copy_many", (table.fingerprint, namespace, items)) for name in names],
            lambda _, result: [_has(answer) for answer in result],
        )
        yield round_
        if self._agent.table is None or self._agent.table.fingerprint != table.fingerprint:
            return None
        for at, (key, entry) in enumerate(piece.items()):
            have = {name for name, answers in round_.answers.items() if at < len(answers) and answers[at]}
            if all(len(have.intersection(owners)) >= majority(len(owners)) for owners in rings):
                self.progress.sent_home += self._store.drop(key, entry.version, self._now())
        yield from self._pace.pay(len(names) * sum(len(key) + entry.size + 32 for key, entry in piece.items()))
        return {failure.node for failure in round_.failures}


def _has(answer: Any) -> bool:
    """Whether an answer to a copy says that this record or a newer one is there; a refused one says it not."""
    return len(answer) == 3 and type(answer[0]) is bool and answer[1] in (Status.STORED, Status.NEWER)
