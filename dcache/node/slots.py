"""What a node knows of its slots, beside what it holds in them.

* **Floors.**  For every slot, the highest version forgotten for any reason but replacement: delete, expiry, eviction,
  clear, refused for room.  A key that is absent is written only above the floor of its slot, so nothing forgotten
  returns.
* **Complete.**  One bit per slot: whether this process knows of every write acknowledged for it.  Only for slots that
  it owns.  Kept here, set from outside, reported with every answer.
* **Barriers.**  For every slot, the highest version that was ever forgotten or promised.
* What was promised before a slot was completed is void, and so is what was promised before it was started over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import and_

from dcache.record import ZERO, Version


class Slots:
    """`slot_of` maps a storage key to one of `slots` slots."""

    def __init__(self, slot_of: Callable[[bytes], int], slots: int) -> None:
        self.slot_of = slot_of
        self.newest: Version = ZERO  # of all that was ever held, forgotten or promised here
        self.floors: list[Version] = [ZERO] * slots
        self.complete_bits = bytearray(slots)
        self.all_complete = False  # all slots owned, and there are some
        self._owned = bytearray(slots)
        self._promised: list[Version] = [ZERO] * slots  # the highest ever
        self._void: list[Version] = [ZERO] * slots  # what was promised up to here will not be accepted

    # -- versions -----------------------------------------------------------------------------------------------------

    def floor(self, key: bytes) -> Version:
        return self.floors[self.slot_of(key)]

    def barrier(self, slot: int) -> Version:
        """The highest version that was ever forgotten or promised in the slot."""
        return max(self.floors[slot], self._promised[slot])

    def promised(self, key: bytes) -> Version:
        """The highest version that was ever promised in the slot of `key`."""
        return self._promised[self.slot_of(key)]

    def raise_floor(self, slot: int, version: Version) -> None:
        """Take no write of an absent key of the slot any more up to `version`.  What is held stays."""
        self._saw(version)
        if version > self.floors[slot]:
            self.floors[slot] = version

    def expect(self, slots: Iterable[int], version: Version) -> None:
        """There may be writes above `version` in these slots soon, whatever the clocks say."""
        for slot in slots:
            self._promise(slot, version)

    def _promise(self, slot: int, version: Version) -> None:
        self._saw(version)
        if version > self._promised[slot]:
            self._promised[slot] = version

    def _void_promises(self, slot: int) -> None:
        """Nothing that was promised in the slot will be accepted; what a promise kept out stays out."""
        self._void[slot] = self._promised[slot]
        self.raise_floor(slot, self._promised[slot])

    def _saw(self, version: Version) -> None:
        if version > self.newest:
            self.newest = version

    # -- what this process knows --------------------------------------------------------------------------------------

    def is_complete(self, key: bytes) -> bool:
        """Whether this node's word on `key` counts.

        A node that is complete in all slots it owns says yes of the others as well.  Only clients in available mode ask
        for those, of a node that stands in for an owner: its word is then as good as any, and they need not go on
        to ask all others.
        """
        return self.all_complete or bool(self.complete_bits[self.slot_of(key)])

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

    def _count_complete(self) -> None:
        self.all_complete = self.complete_bits == self._owned and 1 in self._owned
