"""What a node answers to other owners of its slots, who compare what they hold with what it holds.

From coarse to fine: an **overview** sums up the digests of many slots, **digests** tell the slots that differ, an
**inventory** lists what a slot holds, **fetch** gets the records.  `start_over` is for owners who know too little.

* Every call is a slice of some 2 to 4 ms at most, and may be repeated: none uses up what it answers.  Only to list a
  million keys, with which an index begins, takes some 10 to 20.
* The keys of a slot are found by walking over all keys once, for all slots wanted, in slices: an **index**.  It holds
  what was there when it was begun: what came later is not listed.  It is good under one ring only, for what was
  acknowledged under the ring before may have come later.
* Of a slot everything is told as of one instant.  Expired and hidden entries are forgotten first, so that the floor is
  that of what is listed.

What the answers mean is for whoever asked: this module decides nothing.
"""

from __future__ import annotations

import itertools
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import mmh3

from dcache.node.refusal import Refusal, version_from_wire
from dcache.node.store import Store
from dcache.record import ZERO, Version, version_milliseconds
from dcache.wire import Code

BLOCK = 128  # slots summed up together in an overview
INDEX_CHUNK = 4096  # keys looked at per call: some 2 ms
INDEXES_AT_ONCE = 8
INDEX_LIFE = 60_000  # ms after which nobody will ask for it again
INDEX_IDLE = 5_000  # ms after which it gives way to another
INVENTORY_ROOM = 32 * 1024  # bytes: some 1000 records, 2 ms
FETCH_ROOM = 256 * 1024  # bytes
RECORD_FRAME = 20  # bytes, roughly, of what is told of a record beside its key or value

_BITS = [[bit for bit in range(8) if byte >> bit & 1] for byte in range(256)]


@attrs.define(eq=False)
class Index:
    """The keys of some slots.  `left` are those that were not looked at yet."""

    fingerprint: bytes
    by_slot: dict[int, list[bytes]]
    left: list[bytes]
    used: int

    def build(self, slot_of: Callable[[bytes], int], most: int) -> None:
        """Look at up to `most` keys."""
        by_slot = self.by_slot
        for key in self.left[-most:]:
            found = by_slot.get(slot_of(key))
            if found is not None:
                found.append(key)
        del self.left[-most:]

    def give_up(self, most: int) -> int:
        """Let go of some `most` keys; how many were.  Of an index of a million, all at once would take some 20 ms."""
        let_go = min(most, len(self.left))
        del self.left[len(self.left) - let_go :]
        while self.by_slot and let_go < most:
            let_go += len(self.by_slot.popitem()[1]) + 1
        return let_go

    def keys_of(self, slot: int) -> list[bytes]:
        found = self.by_slot.get(slot)
        if found is None or self.left:
            raise ValueError(f"slot {slot} is not in this index, or the index is not finished")
        return found


class Comparison:
    """`fence` refuses fingerprints; `now` gives ms that never go back; `latest` the ms since 1970 up to which versions
    are taken at present."""

    def __init__(
        self,
        store: Store,
        fence: Callable[[bytes], None],
        now: Callable[[], int],
        latest: Callable[[], int],
        max_batch: int,
    ) -> None:
        self._store, self._fence, self._now, self._latest, self._max_batch = store, fence, now, latest, max_batch
        self._indexes: OrderedDict[int, Index] = OrderedDict()  # oldest first
        self._given_up: list[Index] = []
        self._ids = itertools.count(1)

    def methods(self) -> Mapping[str, Callable[..., Any]]:
        return {
            "overview": self.overview,
            "digests": self.digests,
            "index": self.index,
            "close_index": self.close_index,
            "inventory": self.inventory,
            "fetch": self.fetch,
            "start_over": self.start_over,
        }

    # -- in short -----------------------------------------------------------------------------------------------------

    def overview(self, fingerprint: bytes, slots: bytes) -> bytes:
        """Eight bytes per block of slots: a hash of the digests of those wanted."""
        self._fence(fingerprint)
        digests = iter(self._store.digests_of(self._wanted(slots)))
        blocks = [slots[at : at + BLOCK // 8] for at in range(0, len(slots), BLOCK // 8)]
        wanted = [int.from_bytes(block, "little").bit_count() for block in blocks]
        return b"".join(_sum(list(itertools.islice(digests, count))) for count in wanted)

    def digests(self, fingerprint: bytes, slots: bytes) -> bytes:
        """Nine bytes per slot wanted, ascending: whether it is complete, and its digest."""
        self._fence(fingerprint)
        store, wanted = self._store, self._wanted(slots)
        packed = struct.pack(f">{len(wanted)}Q", *store.digests_of(wanted))
        answer = bytearray(9 * len(wanted))
        answer[0::9] = bytes([store.complete_bits[slot] for slot in wanted])
        for at in range(8):
            answer[at + 1 :: 9] = packed[at::8]
        return bytes(answer)

    # -- in full ------------------------------------------------------------------------------------------------------

    def index(self, fingerprint: bytes, slots: bytes, cursor: int | None) -> tuple[int, bool]:
        """A slice of finding the keys of these slots: what to go on with, and whether all are found.

        The cursor nil begins, and does no more than that; after it `slots` are not looked at.
        """
        self._fence(fingerprint)
        if cursor is None:
            cursor = self._begin(fingerprint, self._wanted(slots))
            return cursor, not self._indexes[cursor].left
        index = self._index(fingerprint, cursor)
        index.build(self._store.slot_of, INDEX_CHUNK)
        return cursor, not index.left

    def close_index(self, fingerprint: bytes, cursor: int) -> None:
        """Nobody will ask for it again."""
        self._fence(fingerprint)
        if cursor in self._indexes:
            self._given_up.append(self._indexes.pop(cursor))

    def inventory(self, fingerprint: bytes, cursor: int, slots: Sequence[int]) -> list[Any]:
        """For the first of these slots, as many as some `INVENTORY_ROOM` bytes hold, `(complete, floor, barrier,
        [(storage key, version), ...])`; of more than an array may hold, the rest follows in further arrays."""
        self._fence(fingerprint)
        index, room, now = self._index(fingerprint, cursor), INVENTORY_ROOM, self._now()
        answers: list[Any] = []
        for slot in slots:
            held = self._held(index.keys_of(slot), now)
            room -= sum(len(key) for key, _ in held) + RECORD_FRAME * (len(held) + 1)
            if room < 0 and answers:
                break
            answers.append(self._listed(slot, held))
        return answers

    def fetch(self, fingerprint: bytes, keys: Sequence[bytes]) -> list[Any]:
        """For the first of these storage keys, as many as some `FETCH_ROOM` bytes hold, `(version, value, flags, ttl)`
        or None."""
        self._fence(fingerprint)
        room, now = FETCH_ROOM, self._now()
        records: list[Any] = []
        for key in keys:
            if type(key) is not bytes:
                raise TypeError("a storage key is binary")
            entry = self._store.peek(key, now)
            room -= RECORD_FRAME + (0 if entry is None else entry.size)
            if room < 0 and records:
                break
            records.append(None if entry is None else (entry.version, entry.value, entry.flags, entry.ttl(now)))
        return records

    # -- too little is known ------------------------------------------------------------------------------------------

    def start_over(self, fingerprint: bytes, slots: bytes, floor: bytes) -> tuple[int, Version]:
        """Drop what is held in these slots up to `floor`, take nothing up to there any more, and be complete in those
        that this node owns.  Slots that it is complete in already stay as they are.

        Answers the ms up to which versions are taken here at present, and the highest version that was ever held,
        forgotten or promised.

        The floor must be above all that can have been acknowledged, that is above what is taken at present: else it
        was made too long ago, and this node, having completed and lost its memory again since, may have acknowledged
        something above it.  A floor of zero bytes only asks.
        """
        self._fence(fingerprint)
        wanted, stamped, latest = self._wanted(slots), version_from_wire(floor), self._latest()
        if stamped != ZERO:
            if version_milliseconds(stamped) < latest:
                raise Refusal(Code.CLOCK_SKEW, (version_milliseconds(stamped), latest))
            known = self._store.complete_bits
            self._store.expect([slot for slot in wanted if known[slot]], stamped)
            self._store.start_over([slot for slot in wanted if not known[slot]], stamped)
        return latest, self._store.newest

    # -- what they share ----------------------------------------------------------------------------------------------

    def sweep(self, most: int) -> bool:
        """Let go of up to some `most` keys of indexes that are not wanted any more, those among them that nobody asked
        for in a while: they keep keys in memory that may be long gone.  Whether there may be more."""
        now = self._now()
        for cursor in [cursor for cursor, index in self._indexes.items() if now - index.used >= INDEX_LIFE]:
            self._given_up.append(self._indexes.pop(cursor))
        while self._given_up and most > 0:
            let_go = self._given_up[-1].give_up(most)
            if let_go < most:
                self._given_up.pop()
            most -= let_go
        return bool(self._given_up)

    def _wanted(self, slots: bytes) -> list[int]:
        """The slots of a bitmap, ascending: slot s is bit `s & 7` of byte `s >> 3`."""
        count = len(self._store.floors)
        if type(slots) is not bytes or len(slots) != (count + 7) // 8 or int.from_bytes(slots, "little") >> count:
            raise TypeError(f"slots are told as a bitmap of {count} bits")
        return [8 * at + bit for at, byte in enumerate(slots) if byte for bit in _BITS[byte]]

    def _begin(self, fingerprint: bytes, wanted: Iterable[int]) -> int:
        while len(self._indexes) >= INDEXES_AT_ONCE:
            cursor, idle = min(self._indexes.items(), key=lambda item: item[1].used)
            if self._now() - idle.used < INDEX_IDLE:  # were it dropped, of many who ask at once none would finish
                raise Refusal(Code.UNKNOWN_CURSOR)
            self._given_up.append(self._indexes.pop(cursor))
        by_slot: dict[int, list[bytes]] = {slot: [] for slot in wanted}
        cursor = next(self._ids)
        self._indexes[cursor] = Index(fingerprint, by_slot, self._store.snapshot() if by_slot else [], self._now())
        return cursor

    def _index(self, fingerprint: bytes, cursor: int) -> Index:
        if type(cursor) is not int:
            raise TypeError("an index is told by a number")
        index = self._indexes.get(cursor)
        if index is None or index.fingerprint != fingerprint:
            raise Refusal(Code.UNKNOWN_CURSOR)
        index.used = self._now()
        return index

    def _held(self, keys: Iterable[bytes], now: int) -> list[tuple[bytes, Version]]:
        peek = self._store.peek
        return [(key, entry.version) for key in keys if (entry := peek(key, now)) is not None]

    def _listed(self, slot: int, held: list[tuple[bytes, Version]]) -> tuple[Any, ...]:
        store, most = self._store, self._max_batch
        parts = [held[at : at + most] for at in range(0, len(held), most)] or [[]]
        return bool(store.complete_bits[slot]), store.floors[slot], store.barrier(slot), *parts


def _sum(digests: Sequence[int]) -> bytes:
    return int(mmh3.hash64(struct.pack(f">{len(digests)}Q", *digests), signed=False)[0]).to_bytes(8, "big")
