"""The map of a node: keys to records, within a budget, and what it knows of what it no longer holds.

Invariants, all kept in O(1) per operation:

* `used` is exactly the sum of len(key) + len(value) + `overhead` over the entries held, and never above `memory_limit`.
* **Floors.**  For every slot, the highest version forgotten for any reason but replacement: delete, expiry, eviction,
  clear, refused for room.  A key that is absent is written only above the floor of its slot, so nothing forgotten
  returns.
* **Complete.**  One bit per slot: whether this process knows of every write acknowledged for it.  Only for slots that
  it owns.  Kept here, set from outside, reported with every answer.
* **Promises** on keys (see `promises`), in complete slots only.  While one stands, this node knows that no write of the
  key came in between; that is more exact than the floor, which other keys of the slot raise too, so an accepted value
  need not be above the floor.  That knowledge ends when the bit is cleared: what was promised before a slot was
  completed is void, and so is what was promised before it was started over.
* **Barriers.**  For every slot, the highest version that was ever forgotten or promised.
* **Digests.**  For every slot, the xor of a hash of key and version over its entries.  Those that are hidden and not
  yet swept away are still in it; meanwhile what is told of it (`digests_of`) is made different.

Versions and floors are the only notion of newer; time (`now`, milliseconds on any clock that never goes back) only
measures lifetimes and comes in as an argument.  Keys are storage keys: namespace, NUL, key.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from operator import and_
from typing import NamedTuple

import attrs
import mmh3

from dcache.errors import ValueTooLarge
from dcache.node.promises import Promises
from dcache.node.wheel import ExpiryWheel
from dcache.record import ZERO, Version
from dcache.wire import Status

ENTRY_OVERHEAD = 64


class Entry(NamedTuple):
    """A record as it is held now: `deadline` is on the store's clock in ms, None for no expiry."""

    value: bytes
    version: Version
    flags: int
    deadline: int | None

    def ttl(self, now: int) -> int | None:
        """The remaining life in ms, at least 1."""
        return None if self.deadline is None else max(1, self.deadline - now)


_ENTRY = tuple.__new__  # the quickest way to make one of what is kept

Held = tuple[bytes, Version, int, int | None]
"""An entry as it is kept.  Python's garbage collector soon stops looking at plain tuples of such things; a million
objects of any class it would go through again and again, for some 0.1 s each time."""


@attrs.define
class Counters:
    """What the store did since it started."""

    hits: int = 0
    misses: int = 0
    writes: int = 0
    refused: int = 0
    deletes: int = 0
    evictions: int = 0
    expirations: int = 0


Answer = tuple[Status, Version]


class Store:
    """`slot_of` maps a storage key to one of `slots` slots; `max_entries` None means bounded by bytes alone.

    A write answers `(Status.STORED, its version)` or `(Status.NEWER or Status.PROMISED, what is in its way)`.
    """

    def __init__(
        self,
        memory_limit: int,
        slot_of: Callable[[bytes], int],
        slots: int,
        *,
        max_entries: int | None = None,
        overhead: int = ENTRY_OVERHEAD,
        promises: Promises | None = None,
    ) -> None:
        self.memory_limit, self.max_entries, self.overhead = memory_limit, max_entries, overhead
        self.used = 0
        self.counters = Counters()
        self.newest: Version = ZERO  # of all that was ever held, forgotten or promised here
        self.promises = Promises(65_536, 60_000, 250) if promises is None else promises
        self.promises.forgotten = lambda key, top: self.raise_floor(self.slot_of(key), top)
        self.floors: list[Version] = [ZERO] * slots
        self._digests = array("Q", bytes(8 * slots))
        self.slot_of = slot_of
        self.complete_bits = bytearray(slots)
        self.all_complete = False  # all slots owned, and there are some
        self._owned = bytearray(slots)
        self._promised: list[Version] = [ZERO] * slots  # the highest ever
        self._void: list[Version] = [ZERO] * slots  # what was promised up to here will not be accepted
        self._entries: OrderedDict[bytes, Held] = OrderedDict()  # least recently used first
        self.arrived: Callable[[int, bytes], object] | None = None  # told of slot and key of what comes to be held
        self._wheel = ExpiryWheel()
        self._hiding = False  # whether one of these two is not empty
        self._cleared: dict[bytes, Version] = {}  # namespace prefixes not yet swept -> cleared up to
        self._started_over: dict[int, Version] = {}  # slots not yet swept -> dropped up to
        self._unswept: list[bytes] | None = []  # None before they are listed

    def __len__(self) -> int:
        return len(self._entries)

    # -- reading ------------------------------------------------------------------------------------------------------

    def get(self, key: bytes, now: int) -> Entry | None:
        """The entry of `key`, now the most recently used, or None."""
        entry = self._live(key, now)
        if entry is None:
            self.counters.misses += 1
            return None
        self._entries.move_to_end(key)
        self.counters.hits += 1
        return entry

    def peek(self, key: bytes, now: int) -> Entry | None:
        """As `get`, without counting as a use."""
        return self._live(key, now)

    def floor(self, key: bytes) -> Version:
        return self.floors[self.slot_of(key)]

    def known(self, key: bytes, now: int) -> Version:
        """The newest version held or possibly forgotten of `key`."""
        entry = self._live(key, now)
        return self.floor(key) if entry is None else entry.version

    def barrier(self, slot: int) -> Version:
        """The highest version that was ever forgotten or promised in the slot."""
        return max(self.floors[slot], self._promised[slot])

    def top(self, key: bytes, now: int) -> Version:
        """What a write of `key` has to be above, so that nothing of what this node knows is in its way."""
        return max(self.known(key, now), self.barrier(self.slot_of(key)))

    def promised(self, key: bytes) -> Version:
        """The highest version that was ever promised in the slot of `key`."""
        return self._promised[self.slot_of(key)]

    def digests_of(self, slots: Iterable[int]) -> list[int]:
        """What sums up the entries of each of these slots: two stores that tell the same hold, and hide, the same.

        Were what is hidden not told, a node that has cleared a namespace and not swept yet would seem to hold what one
        holds that has not heard of the clear.
        """
        digests = self._digests
        if not self._hiding:
            return [digests[slot] for slot in slots]
        cleared = b"".join(prefix + version for prefix, version in sorted(self._cleared.items()))
        started = self._started_over
        marks = {version: _fingerprint(cleared, version) for version in {ZERO, *started.values()}}
        return [digests[slot] ^ marks[started.get(slot, ZERO)] for slot in slots]

    def is_complete(self, key: bytes) -> bool:
        """Whether this node's word on `key` counts.

        A node that is complete in all slots it owns says yes of the others as well.  Only clients in available mode ask
        for those, of a node that stands in for an owner: its word is then as good as any, and they need not go on
        to ask all others.
        """
        return self.all_complete or bool(self.complete_bits[self.slot_of(key)])

    def keys(self) -> list[bytes]:
        """A snapshot of the keys held, least recently used first."""
        return list(self._entries)

    def snapshot(self) -> list[bytes]:
        """The keys held, in no order that means anything: of a million in some 20 ms, where `keys` takes half a
        second to follow the order of use."""
        return list(dict.keys(self._entries))

    # -- writing ------------------------------------------------------------------------------------------------------

    def set(self, key: bytes, version: Version, value: bytes, flags: int, ttl: int | None, now: int) -> Answer:
        """Hold this record, if nothing newer is held, forgotten or promised.  `ttl` in ms.  `ValueTooLarge` if it has
        no room even in an empty store."""
        entry = self._live(key, now)
        if entry is not None and entry.version == version:
            self._shorten(key, entry, ttl, now)
            return Status.STORED, version
        barrier = self._barrier(key, version, entry, now)
        if barrier is not None:
            return barrier
        if entry is None and version == self.floor(key):
            return self._refuse(version)  # written before and forgotten since
        self.promises.void(key)
        self._put(key, entry, Entry(value, version, flags, None if ttl is None else now + ttl))
        return Status.STORED, version

    def take_over(self, key: bytes, version: Version, value: bytes, flags: int, ttl: int | None, now: int) -> None:
        """Hold what others hold.  Where the slot is not complete its floor is no bar: all that raised it meanwhile, for
        this key or another, was acknowledged without this node."""
        entry = self._live(key, now)
        if self.complete_bits[self.slot_of(key)] or (entry is not None and entry.version >= version):
            self.set(key, version, value, flags, ttl, now)
        else:
            self._put(key, entry, Entry(value, version, flags, None if ttl is None else now + ttl))

    def delete(self, key: bytes, version: Version, now: int) -> tuple[Status, Version, bool]:
        """Forget `key` up to `version`; the last of the three says whether it was held."""
        entry = self._live(key, now)
        barrier = self._barrier(key, version, entry, now)
        if barrier is not None:
            return *barrier, False
        self.promises.void(key)
        self.counters.deletes += 1
        if entry is not None:
            self._drop(key, entry)
        self.raise_floor(self.slot_of(key), version)
        return Status.STORED, version, entry is not None

    def accept(self, key: bytes, version: Version, value: bytes, flags: int, ttl: int | None, now: int) -> Answer:
        """As `set`, for a version that was promised: refused unless the promise still stands."""
        entry = self._live(key, now)
        if entry is not None and entry.version == version:
            return Status.STORED, version
        promise = self.promises.find(key, now)
        if promise is None or version not in promise.standing or version <= self._void[self.slot_of(key)]:
            top = ZERO if promise is None else promise.top
            return self._refuse(max(top, self.known(key, now)))
        if entry is not None and entry.version > version:
            return self._refuse(entry.version)
        self.promises.redeemed(key, version)
        self._put(key, entry, Entry(value, version, flags, None if ttl is None else now + ttl))
        return Status.STORED, version

    def claim(self, key: bytes, version: Version, unreadable: Version, now: int) -> tuple[Entry | None, bool]:
        """Read `key` and, where it is absent and nothing newer may have been forgotten, promise `version`.

        What is held up to version `unreadable` counts as absent: too few others hold it for anyone to return it.
        Where the slot is not complete nothing is promised.
        """
        entry = self.get(key, now)
        if entry is not None and entry.version > unreadable:
            return entry, False
        slot = self.slot_of(key)
        known = self.floors[slot] if entry is None else entry.version
        if not self._may_promise(slot, key, version, known, now):
            return None, False
        promised = self.promises.claim(key, version, now)
        if promised:
            self._promise(slot, version)
        return None, promised

    def prepare(self, key: bytes, ballot: Version, now: int) -> tuple[Status, Version, Entry | None]:
        """Promise `ballot` and return what is held, with the floor where nothing is; or refuse, with what is in its
        way.  Where the slot is not complete nothing is promised, and the answer does not count."""
        entry = self._live(key, now)
        slot = self.slot_of(key)
        known = self.floors[slot] if entry is None else entry.version
        if not (self.all_complete or self.complete_bits[slot]):
            return Status.STORED, known, entry
        if not self._may_promise(slot, key, ballot, known, now):
            return *self._refuse(max(known, self._void[slot])), None
        blocking = self.promises.ballot(key, ballot, now)
        if blocking is not None:
            return *self._refuse(blocking), None
        self._promise(slot, ballot)
        return Status.STORED, self.floors[slot] if entry is None else entry.version, entry

    def clear(self, prefix: bytes, version: Version, now: int) -> None:
        """Forget every key that starts with `prefix` (a namespace and its NUL) and raise every floor to `version`.

        The entries are hidden at once and swept away in slices by `sweep`.
        """
        self.promises.void_prefix(prefix)
        for slot, floor in enumerate(self.floors):
            if floor < version:
                self.floors[slot] = version
        self._saw(version)
        self._cleared[prefix] = max(version, self._cleared.get(prefix, ZERO))
        self._hide()

    # -- what this process knows --------------------------------------------------------------------------------------

    @property
    def owned(self) -> list[int]:
        """The slots owned, ascending."""
        return [slot for slot, owned in enumerate(self._owned) if owned]

    def incomplete(self) -> list[int]:
        """The slots that are owned and not complete, ascending."""
        return [slot for slot, owned in enumerate(self._owned) if owned and not self.complete_bits[slot]]

    def progress(self) -> tuple[int, int]:
        """How many slots are complete, of how many owned."""
        return self.complete_bits.count(1), self._owned.count(1)

    def own(self, slots: Iterable[int]) -> None:
        """From now on this node owns exactly these; nothing is known of those that it owns no more.

        To be called before anybody hears of the ring that makes it so.
        """
        owned = bytearray(len(self._owned))
        for slot in slots:
            owned[slot] = 1
        self._owned = owned
        self.complete_bits = bytearray(map(and_, self.complete_bits, owned))
        self._count_complete()

    def complete(self, slots: Iterable[int]) -> None:
        """This process now knows of every write acknowledged for those of these slots that it owns.

        What it promised in them before, it promised without that knowledge, or has missed writes since.
        """
        owned, bits = self._owned, self.complete_bits
        news = [slot for slot in slots if owned[slot] and not bits[slot]]
        for slot in news:
            bits[slot] = 1
        if self.newest > ZERO:  # else nothing was ever promised
            for slot in news:
                self._void_promises(slot)
        self._count_complete()

    def doubt(self) -> None:
        """There may have been writes that this process does not know of, anywhere."""
        self.complete_bits = bytearray(len(self._owned))
        self._count_complete()

    def start_over(self, slots: Collection[int], floor: Version) -> None:
        """Forget all that these slots hold up to `floor`, and be complete in those that are owned.

        The caller answers for it that no write above `floor` was acknowledged.  The entries are hidden at once, as by
        `clear`.
        """
        for slot in slots:
            self.raise_floor(slot, floor)
            self._void_promises(slot)
            self._started_over[slot] = max(floor, self._started_over.get(slot, ZERO))
        self._hide()
        self.complete(slots)

    def expect(self, slots: Iterable[int], version: Version) -> None:
        """There may be writes above `version` in these slots soon, whatever the clocks say."""
        for slot in slots:
            self._promise(slot, version)

    def _count_complete(self) -> None:
        self.all_complete = self.complete_bits == self._owned and 1 in self._owned

    def _void_promises(self, slot: int) -> None:
        """Nothing that was promised in the slot will be accepted; what a promise kept out stays out."""
        self._void[slot] = self._promised[slot]
        self.raise_floor(slot, self._promised[slot])

    # -- forgetting ---------------------------------------------------------------------------------------------------

    def sweep(self, now: int, most: int) -> bool:
        """Drop up to `most` expired, and look at up to `most` possibly hidden entries.  Whether there may be more."""
        due = self._wheel.due(now, most)
        for key in due:
            self._expire(key, _ENTRY(Entry, self._entries[key]))
        hidden = self._sweep_hidden(now, most)
        self.promises.expire(now)
        return len(due) == most or hidden

    def _sweep_hidden(self, now: int, most: int) -> bool:
        """Look at up to `most` possibly hidden entries; whether there may be more."""
        if self._unswept is None:
            self._unswept = self.snapshot()
        for _ in range(min(most, len(self._unswept))):
            self._live(self._unswept.pop(), now)
        if self._hiding and not self._unswept:
            self._cleared.clear()
            self._started_over.clear()
            self._hiding = False
        return bool(self._unswept)

    def _live(self, key: bytes, now: int) -> Entry | None:
        held = self._entries.get(key)
        if held is None:
            return None
        entry = _ENTRY(Entry, held)
        if entry.deadline is not None and entry.deadline <= now:
            self._expire(key, entry)
            return None
        if self._hiding and entry.version <= self._hidden_up_to(key):
            self._drop(key, entry)
            return None
        return entry

    def _hide(self) -> None:
        """Entries have become hidden: all are to be looked at.  Which these are is listed when sweeping begins, so
        that no request waits for that too."""
        self._hiding = True
        self._unswept = None

    def _hidden_up_to(self, key: bytes) -> Version:
        cleared = self._cleared.get(key[: key.index(0) + 1], ZERO)
        if not self._started_over:
            return cleared
        return max(cleared, self._started_over.get(self.slot_of(key), ZERO))

    def drop(self, key: bytes, version: Version, now: int) -> bool:
        """Forget `key` if it is held up to `version`; whether it was.  No write: promises stand."""
        entry = self._live(key, now)
        if entry is None or entry.version > version:
            return False
        self._forget(key, entry)
        return True

    def raise_floor(self, slot: int, version: Version) -> None:
        """Take no write of an absent key of the slot any more up to `version`.  What is held stays."""
        self._saw(version)
        if version > self.floors[slot]:
            self.floors[slot] = version

    def _expire(self, key: bytes, entry: Entry) -> None:
        self.counters.expirations += 1
        self._forget(key, entry)

    def _forget(self, key: bytes, entry: Entry) -> None:
        self._drop(key, entry)
        self.raise_floor(self.slot_of(key), entry.version)

    # -- promising ----------------------------------------------------------------------------------------------------

    def _may_promise(self, slot: int, key: bytes, version: Version, known: Version, now: int) -> bool:
        """Whether nothing that was written or may have been forgotten is in the way; or it was promised before."""
        if version <= self._void[slot] or not (self.all_complete or self.complete_bits[slot]):
            return False
        return version > known or self.promises.stands(key, version, now)

    def _promise(self, slot: int, version: Version) -> None:
        self._saw(version)
        if version > self._promised[slot]:
            self._promised[slot] = version

    # -- keeping the books --------------------------------------------------------------------------------------------

    def _barrier(self, key: bytes, version: Version, entry: Entry | None, now: int) -> Answer | None:
        """What keeps a set or delete of `version` out, if anything does.

        The highest of all that does: the writer goes above it, and being refused again takes itself to be overtaken.
        But not by a promise: that is no write yet, and may be one that was computed before.
        """
        promise = self.promises.find(key, now)
        top = self.floor(key) if entry is None else entry.version
        if promise is None:
            return self._refuse(top) if version < top else None
        top = max(top, promise.top)
        return (Status.PROMISED, self._refuse(top)[1]) if version < top else None

    def _refuse(self, version: Version) -> Answer:
        self.counters.refused += 1
        return Status.NEWER, version

    def _saw(self, version: Version) -> None:
        if version > self.newest:
            self.newest = version

    def _shorten(self, key: bytes, entry: Entry, ttl: int | None, now: int) -> None:
        """Of two copies of one version the shorter remaining life stands."""
        if ttl is not None and (entry.deadline is None or now + ttl < entry.deadline):
            if entry.deadline is not None:
                self._wheel.discard(key, entry.deadline)
            self._entries[key] = *entry[:3], now + ttl
            self._wheel.add(key, now + ttl)

    def _put(self, key: bytes, old: Entry | None, entry: Entry) -> None:
        cost = self._cost(key, entry)
        if old is not None:
            self._drop(key, old)
        if cost > self.memory_limit:
            self.raise_floor(self.slot_of(key), entry.version)
            raise ValueTooLarge(cost, self.memory_limit)
        self._make_room(cost)
        self._entries[key] = entry[:]
        self.used += cost
        self.counters.writes += 1
        self._saw(entry.version)
        if entry.deadline is not None:
            self._wheel.add(key, entry.deadline)
        slot = self.slot_of(key)
        self._digests[slot] ^= _fingerprint(key, entry.version)
        if old is None and self.arrived is not None:
            self.arrived(slot, key)

    def _make_room(self, cost: int) -> None:
        most = self.max_entries
        while self.used + cost > self.memory_limit or (most is not None and len(self._entries) >= most):
            key, held = next(iter(self._entries.items()))
            self.counters.evictions += 1
            self._forget(key, _ENTRY(Entry, held))

    def _drop(self, key: bytes, entry: Entry) -> None:
        del self._entries[key]
        self.used -= self._cost(key, entry)
        if entry.deadline is not None:
            self._wheel.discard(key, entry.deadline)
        self._digests[self.slot_of(key)] ^= _fingerprint(key, entry.version)

    def _cost(self, key: bytes, entry: Entry) -> int:
        return len(key) + len(entry.value) + self.overhead


def _fingerprint(key: bytes, version: Version) -> int:
    return int(mmh3.hash64(key + version, signed=False)[0])
