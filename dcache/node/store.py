"""The map of a node: keys to records, within a budget, and what it knows of what it no longer holds.

Invariants, all kept in O(1) per operation:

* `used` is exactly the sum of len(key) + len(value) + `overhead` over the entries held, and never above `memory_limit`.
* **Floors.**  For every slot, the highest version forgotten for any reason but replacement: delete, expiry, eviction,
  clear, refused for room.  A key that is absent is written only above the floor of its slot, so nothing forgotten
  returns.
* **Promises** on keys (see `promises`).  While one stands, this node knows that no write of the key came in between;
  that is more exact than the floor, which other keys of the slot raise too, so an accepted value need not be above
  the floor.
* **Complete.**  One bit per slot: whether this process knows of every write acknowledged for it.  Kept here, set from
  outside, reported with every answer.
* **Digests.**  For every slot, the xor of a hash of key and version over its entries.

Versions and floors are the only notion of newer; time (`now`, milliseconds on any clock that never goes back) only
measures lifetimes and comes in as an argument.  Keys are storage keys: namespace, NUL, key.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable

import attrs
import mmh3

from dcache.errors import ValueTooLarge
from dcache.node.promises import Promises
from dcache.node.wheel import ExpiryWheel
from dcache.record import ZERO, Version
from dcache.wire import Status

ENTRY_OVERHEAD = 64


@attrs.define(eq=False)
class Entry:
    """A record as held: `deadline` is on the store's clock in ms, None for no expiry."""

    value: bytes
    version: Version
    flags: int
    deadline: int | None

    def ttl(self, now: int) -> int | None:
        """The remaining life in ms, at least 1."""
        return None if self.deadline is None else max(1, self.deadline - now)


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
        self.promises.forgotten = lambda key, top: self._raise_floor(self._slot_of(key), top)
        self.floors: list[Version] = [ZERO] * slots
        self.digests = array("Q", bytes(8 * slots))
        self._slot_of = slot_of
        self._complete = bytearray(slots)
        self.all_complete = False
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()  # least recently used first
        self._wheel = ExpiryWheel()
        self._cleared: dict[bytes, Version] = {}  # namespace prefixes not yet swept -> cleared up to
        self._unswept: list[bytes] = []

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
        return self.floors[self._slot_of(key)]

    def known(self, key: bytes, now: int) -> Version:
        """The newest version held or possibly forgotten of `key`."""
        entry = self._live(key, now)
        return self.floor(key) if entry is None else entry.version

    def is_complete(self, key: bytes) -> bool:
        return self.all_complete or bool(self._complete[self._slot_of(key)])

    def keys(self) -> list[bytes]:
        """A snapshot of the keys held, least recently used first."""
        return list(self._entries)

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
        self._raise_floor(self._slot_of(key), version)
        return Status.STORED, version, entry is not None

    def accept(self, key: bytes, version: Version, value: bytes, flags: int, ttl: int | None, now: int) -> Answer:
        """As `set`, for a version that was promised: refused unless the promise still stands."""
        entry = self._live(key, now)
        if entry is not None and entry.version == version:
            return Status.STORED, version
        promise = self.promises.find(key, now)
        if promise is None or version not in promise.standing:
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
        """
        entry = self.get(key, now)
        if entry is not None and entry.version > unreadable:
            return entry, False
        if version <= self.known(key, now) and not self.promises.stands(key, version, now):
            return None, False
        promised = self.promises.claim(key, version, now)
        if promised:
            self._saw(version)
        return None, promised

    def prepare(self, key: bytes, ballot: Version, now: int) -> tuple[Status, Version, Entry | None]:
        """Promise `ballot` and return what is held, with the floor where nothing is; or refuse, with what is in its
        way."""
        entry = self._live(key, now)
        known = self.floor(key) if entry is None else entry.version
        if ballot <= known and not self.promises.stands(key, ballot, now):
            return *self._refuse(known), None
        blocking = self.promises.ballot(key, ballot, now)
        if blocking is not None:
            return *self._refuse(blocking), None
        self._saw(ballot)
        return Status.STORED, self.floor(key) if entry is None else entry.version, entry

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
        self._unswept = list(self._entries)

    def complete(self, slots: Iterable[int]) -> None:
        """This process now knows of every write acknowledged for these slots.

        What it promised in them before, it promised without that knowledge.
        """
        for slot in slots:
            self._complete[slot] = 1
        self.all_complete = 0 not in self._complete
        self.promises.void_prefix(b"")

    # -- forgetting ---------------------------------------------------------------------------------------------------

    def sweep(self, now: int, most: int) -> bool:
        """Drop up to `most` expired, and look at up to `most` possibly cleared entries.  Whether there may be more."""
        due = self._wheel.due(now, most)
        for key in due:
            self._expire(key, self._entries[key])
        for _ in range(min(most, len(self._unswept))):
            self._live(self._unswept.pop(), now)
        if not self._unswept:
            self._cleared.clear()
        self.promises.expire(now)
        return len(due) == most or bool(self._unswept)

    def _live(self, key: bytes, now: int) -> Entry | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.deadline is not None and entry.deadline <= now:
            self._expire(key, entry)
            return None
        if self._cleared and entry.version <= self._cleared.get(key[: key.index(0) + 1], ZERO):
            self._drop(key, entry)
            return None
        return entry

    def _expire(self, key: bytes, entry: Entry) -> None:
        self.counters.expirations += 1
        self._forget(key, entry)

    def _forget(self, key: bytes, entry: Entry) -> None:
        self._drop(key, entry)
        self._raise_floor(self._slot_of(key), entry.version)

    def _raise_floor(self, slot: int, version: Version) -> None:
        self._saw(version)
        if version > self.floors[slot]:
            self.floors[slot] = version

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
            entry.deadline = now + ttl
            self._wheel.add(key, entry.deadline)

    def _put(self, key: bytes, old: Entry | None, entry: Entry) -> None:
        cost = self._cost(key, entry)
        if old is not None:
            self._drop(key, old)
        if cost > self.memory_limit:
            self._raise_floor(self._slot_of(key), entry.version)
            raise ValueTooLarge(cost, self.memory_limit)
        self._make_room(cost)
        self._entries[key] = entry
        self.used += cost
        self.counters.writes += 1
        self._saw(entry.version)
        if entry.deadline is not None:
            self._wheel.add(key, entry.deadline)
        self.digests[self._slot_of(key)] ^= _fingerprint(key, entry.version)

    def _make_room(self, cost: int) -> None:
        most = self.max_entries
        while self.used + cost > self.memory_limit or (most is not None and len(self._entries) >= most):
            key, entry = next(iter(self._entries.items()))
            self.counters.evictions += 1
            self._forget(key, entry)

    def _drop(self, key: bytes, entry: Entry) -> None:
        del self._entries[key]
        self.used -= self._cost(key, entry)
        if entry.deadline is not None:
            self._wheel.discard(key, entry.deadline)
        self.digests[self._slot_of(key)] ^= _fingerprint(key, entry.version)

    def _cost(self, key: bytes, entry: Entry) -> int:
        return len(key) + len(entry.value) + self.overhead


def _fingerprint(key: bytes, version: Version) -> int:
    return int(mmh3.hash64(key + version, signed=False)[0])
