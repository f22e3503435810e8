"""The map of a node: keys to records, within a budget.  What it knows of what it no longer holds is in `slots`.

Invariants, all kept in O(1) per operation:

* `used` is exactly the sum of len(key) + len(value) + `overhead` over the entries held, and never above `memory_limit`.
* **Promises** on keys (see `promises`), in complete slots only.  While one stands, this node knows that no write of the
  key came in between; that is more exact than the floor, which other keys of the slot raise too, so an accepted value
  need not be above the floor.  That knowledge ends when the bit is cleared: see `slots`.
* **Digests.**  For every slot, the xor of a hash of key and version over its entries.  Those that are hidden and not
  yet swept away are still in it; meanwhile what is told of it (`digests_of`) is made different.

Versions and floors are the only notion of newer; time (`now`, milliseconds on any clock that never goes back) only
measures lifetimes and comes in as an argument.  Keys are storage keys: namespace, NUL, key.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence

import attrs
from mmh3 import hash64

from dcache.errors import ValueTooLarge
from dcache.node import held as records
from dcache.node.held import Entry, deadline_of, ends_at, value_size, version_of
from dcache.node.promises import Promise, Promises
from dcache.node.slots import Slots
from dcache.node.wheel import ExpiryWheel
from dcache.record import ZERO, Version
from dcache.wire import Status

ENTRY_OVERHEAD = 256
"""Bytes that an entry takes beside its key and value: 33 each as Python objects, 20 of version and form, 130 to
210 in the ordered dictionary, and rounding.  tests/benchmarks/memory.py measures what it leaves out."""
ANSWER_FRAME = 64  # bytes, roughly and at most, of an answer in a batch beside the value


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


STORED, NEWER, PROMISED = Status.STORED, Status.NEWER, Status.PROMISED  # by way of the class: 0.1 us in Python 3.11
Answer = tuple[Status, Version]


class Store(Slots):
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
        super().__init__(slot_of, slots)
        self.memory_limit, self.max_entries, self.overhead = memory_limit, max_entries, overhead
        self.used = 0
        self.counters = Counters()
        self.promises = Promises(65_536, 60_000, 250) if promises is None else promises
        self.promises.forgotten = lambda key, top: self.raise_floor(self.slot_of(key), top)
        self._digests = array("Q", bytes(8 * slots))
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()  # see `held`; least recently used first
        self.arrived: Callable[[int, bytes], object] | None = None  # told of slot and key of what comes to be held
        self._wheel = ExpiryWheel()
        self._hiding = False  # whether one of these two is not empty
        self._cleared: dict[bytes, Version] = {}  # namespace prefixes not yet swept -> cleared up to
        self._started_over: dict[int, Version] = {}  # slots not yet swept -> dropped up to
        self._unswept: list[bytes] | None = []  # None before they are listed

    def __len__(self) -> int:
        return len(self._entries)

    # -- reading ------------------------------------------------------------------------------------------------------

    def answer(self, key: bytes, clock: Callable[[], int]) -> bytes | None:
        """As `get`, the answer already encoded; None where there is none at hand, and `get` has to say.

        For what is held, not hidden, and in a slot where this node's word counts.
        """
        held = self._entries.get(key)
        if held is None or self._hiding or not (self.all_complete or self.is_complete(key)):
            return None
        if not held[0]:  # it has a lifetime
            held = records.answer(held, clock())
            if held is None:
                return None
        self._entries.move_to_end(key)
        self.counters.hits += 1
        return held

    def answers(self, keys: Sequence[bytes], room: int, now: int) -> list[bytes | None] | None:
        """`answer` for the first of the keys, as many as have room; None where it takes a closer look at them all."""
        if self._hiding or not self.all_complete:
            return None
        found: list[bytes | None] = list(map(self._entries.get, keys))
        if sum(map(len, filter(None, found))) + len(found) * ANSWER_FRAME > room:
            del found[_fitting(found, room) :]
        use, hits = self._entries.move_to_end, 0
        for at, held in enumerate(found):
            if held is None:
                continue
            if not held[0]:
                found[at] = held = records.answer(held, now)
                if held is None:
                    continue
            use(keys[at])
            hits += 1
        self.counters.hits += hits
        return found

    def get(self, key: bytes, now: int) -> Entry | None:
        """The entry of `key`, now the most recently used, or None."""
        held = self._live(key, now)
        if held is None:
            self.counters.misses += 1
            return None
        self._entries.move_to_end(key)
        self.counters.hits += 1
        return Entry(held)

    def peek(self, key: bytes, now: int) -> Entry | None:
        """As `get`, without counting as a use."""
        held = self._live(key, now)
        return None if held is None else Entry(held)

    def known(self, key: bytes, now: int) -> Version:
        """The newest version held or possibly forgotten of `key`."""
        held = self._live(key, now)
        return self.floor(key) if held is None else version_of(held)

    def top(self, key: bytes, now: int) -> Version:
        """What a write of `key` has to be above, so that nothing of what this node knows is in its way."""
        return max(self.known(key, now), self.barrier(self.slot_of(key)))

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
        held, slot = self._live(key, now), self.slot_of(key)
        known = None if held is None else version_of(held)
        if held is not None and version == known:
            self._shorten(key, held, ttl, now)
            return STORED, version
        promise = self.promises.find(key, now)
        if known is None:
            known = self.floors[slot]  # not before: a promise that ends raises it
        if version < known or promise is not None:
            barrier = self._barrier(version, known, promise)
            if barrier is not None:
                return barrier
            self.promises.void(key)
        if version == known:
            return self._refuse(version)  # written before and forgotten since
        self._put(slot, key, held, version, value, flags, None if ttl is None else now + ttl)
        return STORED, version

    def take_over(self, key: bytes, version: Version, value: bytes, flags: int, ttl: int | None, now: int) -> None:
        """Hold what others hold.  Where the slot is not complete its floor is no bar: all that raised it meanwhile, for
        this key or another, was acknowledged without this node."""
        held, slot = self._live(key, now), self.slot_of(key)
        if self.complete_bits[slot] or (held is not None and version_of(held) >= version):
            self.set(key, version, value, flags, ttl, now)
        else:
            self._put(slot, key, held, version, value, flags, None if ttl is None else now + ttl)

    def delete(self, key: bytes, version: Version, now: int) -> tuple[Status, Version, bool]:
        """Forget `key` up to `version`; the last of the three says whether it was held."""
        held, slot = self._live(key, now), self.slot_of(key)
        promise = self.promises.find(key, now)
        barrier = self._barrier(version, self.floors[slot] if held is None else version_of(held), promise)
        if barrier is not None:
            return *barrier, False
        if promise is not None:
            self.promises.void(key)
        self.counters.deletes += 1
        if held is not None:
            self._drop(slot, key, held)
        self.raise_floor(slot, version)
        return STORED, version, held is not None

    def accept(self, key: bytes, version: Version, value: bytes, flags: int, ttl: int | None, now: int) -> Answer:
        """As `set`, for a version that was promised: refused unless the promise still stands."""
        held, slot = self._live(key, now), self.slot_of(key)
        if held is not None and version_of(held) == version:
            return STORED, version
        promise = self.promises.find(key, now)
        if promise is None or version not in promise.standing or version <= self._void[slot]:
            top = ZERO if promise is None else promise.top
            return self._refuse(max(top, self.known(key, now)))
        if held is not None and version_of(held) > version:
            return self._refuse(version_of(held))
        self.promises.redeemed(key, version)
        self._put(slot, key, held, version, value, flags, None if ttl is None else now + ttl)
        return STORED, version

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
        entry, slot = self.peek(key, now), self.slot_of(key)
        known = self.floors[slot] if entry is None else entry.version
        if not (self.all_complete or self.complete_bits[slot]):
            return STORED, known, entry
        if not self._may_promise(slot, key, ballot, known, now):
            return *self._refuse(max(known, self._void[slot])), None
        blocking = self.promises.ballot(key, ballot, now)
        if blocking is not None:
            return *self._refuse(blocking), None
        self._promise(slot, ballot)
        return STORED, self.floors[slot] if entry is None else entry.version, entry

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

    # -- forgetting ---------------------------------------------------------------------------------------------------

    def sweep(self, now: int, most: int) -> bool:
        """Drop up to `most` expired, and look at up to `most` possibly hidden entries.  Whether there may be more."""
        due = self._wheel.due(now, most)
        for key in due:
            self._expire(key, self._entries[key])
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

    def _live(self, key: bytes, now: int) -> bytes | None:
        """What is held of `key`, once what is over or hidden has gone."""
        held = self._entries.get(key)
        if held is None:
            return None
        if not held[0] and ends_at(held) <= now:
            self._expire(key, held)
            return None
        if self._hiding and version_of(held) <= self._hidden_up_to(key):
            self._drop(self.slot_of(key), key, held)
            return None
        return held

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
        held = self._live(key, now)
        if held is None or version_of(held) > version:
            return False
        self._forget(key, held)
        return True

    def _expire(self, key: bytes, held: bytes) -> None:
        self.counters.expirations += 1
        self._forget(key, held)

    def _forget(self, key: bytes, held: bytes) -> None:
        slot = self.slot_of(key)
        self._drop(slot, key, held)
        self.raise_floor(slot, version_of(held))

    # -- promising ----------------------------------------------------------------------------------------------------

    def _may_promise(self, slot: int, key: bytes, version: Version, known: Version, now: int) -> bool:
        """Whether nothing that was written or may have been forgotten is in the way; or it was promised before."""
        if version <= self._void[slot] or not (self.all_complete or self.complete_bits[slot]):
            return False
        return version > known or self.promises.stands(key, version, now)

    # -- keeping the books --------------------------------------------------------------------------------------------

    def _barrier(self, version: Version, known: Version, promise: Promise | None) -> Answer | None:
        """What keeps a set or delete of `version` out, if anything does.

        The highest of all that does: the writer goes above it, and being refused again takes itself to be overtaken.
        But not by a promise: that is no write yet, and may be one that was computed before.
        """
        if promise is None:
            return self._refuse(known) if version < known else None
        top = max(known, promise.top)
        return (PROMISED, self._refuse(top)[1]) if version < top else None

    def _refuse(self, version: Version) -> Answer:
        self.counters.refused += 1
        return NEWER, version

    def _shorten(self, key: bytes, held: bytes, ttl: int | None, now: int) -> None:
        """Of two copies of one version the shorter remaining life stands."""
        deadline = deadline_of(held)
        if ttl is not None and (deadline is None or now + ttl < deadline):
            if deadline is not None:
                self._wheel.discard(key, deadline)
            self._entries[key] = records.shortened(held, now + ttl)
            self._wheel.add(key, now + ttl)

    def _put(
        self, slot: int, key: bytes, old: bytes | None, version: Version, value: bytes, flags: int, deadline: int | None
    ) -> None:
        if old is not None:
            self._drop(slot, key, old)
        cost = len(key) + len(value) + self.overhead
        if cost > self.memory_limit:
            self.raise_floor(slot, version)
            raise ValueTooLarge(cost, self.memory_limit)
        if self.used + cost > self.memory_limit or self.max_entries is not None:
            self._make_room(cost)
        self._entries[key] = records.hold(version, value, flags, deadline)
        self.used += cost
        self.counters.writes += 1
        if version > self.newest:
            self.newest = version
        if deadline is not None:
            self._wheel.add(key, deadline)
        self._digests[slot] ^= hash64(key + version, signed=False)[0]
        if old is None and self.arrived is not None:
            self.arrived(slot, key)

    def _make_room(self, cost: int) -> None:
        most = self.max_entries
        while self.used + cost > self.memory_limit or (most is not None and len(self._entries) >= most):
            key, held = next(iter(self._entries.items()))
            self.counters.evictions += 1
            self._forget(key, held)

    def _drop(self, slot: int, key: bytes, held: bytes) -> None:
        del self._entries[key]
        self.used -= len(key) + value_size(held) + self.overhead
        if not held[0]:
            self._wheel.discard(key, ends_at(held))
        self._digests[slot] ^= hash64(key + version_of(held), signed=False)[0]


def _fitting(found: Sequence[bytes | None], room: int) -> int:
    """How many answers have room: one at least."""
    for at, held in enumerate(found):
        room -= ANSWER_FRAME if held is None else ANSWER_FRAME + value_size(held)
        if room < 0 and at:
            return at
    return len(found)


def _fingerprint(key: bytes, version: bytes) -> int:
    fingerprint: int = hash64(key + version, signed=False)[0]
    return fingerprint
