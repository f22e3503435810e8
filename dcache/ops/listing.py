"""Asking other nodes what they hold of some slots, shorter answers first: overviews, digests, inventories, records.

The keys of a slot are found by an index that a node makes when asked to, of a snapshot of its keys.  So an inventory
may lack what came since; it never says that something is there that is not, or was not forgotten.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Generic, TypeVar

import attrs

from dcache.errors import ProtocolError
from dcache.ops.compare import Inventory
from dcache.ops.effects import Call, Detached, Gather, Op, Sleep
from dcache.record import Version
from dcache.ring import SLOTS
from dcache.wire import Limits

T = TypeVar("T")

BLOCK = 128
"""Slots per block of an overview."""

BLOCKS = SLOTS // BLOCK

BATCH = 256
"""Records or keys handled between two moments at which others may run: some 1 ms."""


def to_bitmap(slots: Iterable[int]) -> bytes:
    """Slot s is bit `s & 7` of byte `s >> 3`."""
    bits = bytearray(SLOTS // 8)
    for slot in slots:
        bits[slot >> 3] |= 1 << (slot & 7)
    return bytes(bits)


def from_bitmap(bits: bytes) -> list[int]:
    """The slots in a bitmap, ascending."""
    return [slot for slot in range(len(bits) * 8) if bits[slot >> 3] >> (slot & 7) & 1]


class Pace:
    """Keeps traffic to `rate` bytes per second, by sleeping for each piece as long as it may take."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.bytes = 0
        self._owed = 0.0

    def pay(self, size: int) -> Op[None]:
        """Account for `size` bytes, and let others run."""
        self.bytes += size
        self._owed += size / self.rate
        pause, self._owed = (self._owed, 0.0) if self._owed >= SHORTEST_PAUSE else (0.0, self._owed)
        yield Sleep(pause)


SHORTEST_PAUSE = 0.005
"""Seconds; shorter ones are saved up: timers are not that exact."""


class Asking(Gather, Generic[T]):
    """Everybody's answer, as far as it comes and `read` can read it; `answers` are what it made of them, by node."""

    def __init__(self, calls: Sequence[Call], read: Callable[[Call, Any], T]) -> None:
        super().__init__(calls)
        self._read = read
        self.answers: dict[str, T] = {}

    def check(self, call: Call, result: Any) -> None:
        try:
            self.answers[call.node] = self._read(call, result)
        except (TypeError, ValueError) as error:
            raise ProtocolError(f"{call.method} is answered in another form: {error}") from None


Digests = dict[int, tuple[bool, int]]
"""By slot: whether it is complete, and the digest of what is held there."""

Deliver = Callable[[bytes, Version, bytes, int, int | None], object]
"""Is handed a record: key, version, value, flags, remaining life in ms."""

FETCH = Limits().max_batch
"""Keys asked for at a time, which is what one request may hold: a node answers for as many of them as some 256 KiB
hold."""


@attrs.define(eq=False)
class Heard:
    """Inventories by slot and node; how many rounds it took to get them."""

    by_slot: dict[int, dict[str, Inventory]]
    rounds: int = 0


@attrs.frozen(eq=False)
class Others:
    """Asks other nodes to compare, under one ring.  Whoever fails is left out of the answer."""

    fingerprint: bytes
    pace: Pace

    def overviews(self, slots: Mapping[str, Iterable[int]]) -> Op[dict[str, bytes]]:
        """By node: 8 bytes for every block of slots, which sum up the digests of those asked for."""
        calls = [Call(node, "overview", (self.fingerprint, to_bitmap(wanted))) for node, wanted in slots.items()]
        round_ = Asking(calls, _overview)
        yield round_
        yield from self.pace.pay(len(calls) * (8 * BLOCKS + SLOTS // 8))
        return round_.answers

    def digests(self, slots: Mapping[str, Iterable[int]]) -> Op[dict[str, Digests]]:
        """By node, what is to be said of these slots in short."""
        wanted = {node: sorted(some) for node, some in slots.items()}
        calls = [Call(node, "digests", (self.fingerprint, to_bitmap(some))) for node, some in wanted.items()]
        round_ = Asking(calls, lambda call, result: _digests(wanted[call.node], result))
        yield round_
        yield from self.pace.pay(sum(9 * len(some) + SLOTS // 8 for some in wanted.values()))
        return round_.answers

    def indexes(self, slots: Mapping[str, Iterable[int]]) -> Op[dict[str, Any]]:
        """Have the nodes make indexes of what they hold of these slots; by node, what to ask inventories with."""
        bitmaps = {node: to_bitmap(some) for node, some in slots.items()}
        building: dict[str, Any] = dict.fromkeys(bitmaps)
        built: dict[str, Any] = {}
        while building:
            calls = [
                Call(node, "index", (self.fingerprint, bitmaps[node] if at is None else b"", at))
                for node, at in building.items()
            ]
            round_ = Asking(calls, _index)
            yield round_
            building = {node: at for node, (at, done) in round_.answers.items() if not done}
            built.update((node, at) for node, (at, done) in round_.answers.items() if done)
            yield from self.pace.pay(64 * len(calls))
        return built

    def start_over(self, slots: Mapping[str, Iterable[int]], floor: Version) -> Op[dict[str, tuple[int, Version]]]:
        """Have the nodes start these slots over; by node, up to which ms since 1970 versions are taken there, and the
        highest that it ever heard of.  The floor `ZERO` only asks for that."""
        calls = [
            Call(node, "start_over", (self.fingerprint, to_bitmap(some), floor)) for node, some in slots.items() if some
        ]
        round_ = Asking(calls, _heights)
        yield round_
        return round_.answers

    def drop(self, indexes: Mapping[str, Any]) -> Detached:
        """The nodes need not keep these indexes."""
        return Detached([Call(node, "close_index", (self.fingerprint, index)) for node, index in indexes.items()])

    def inventories(self, indexes: Mapping[str, Any], slots: Mapping[str, Sequence[int]]) -> Op[Heard]:
        """What the nodes hold of these slots."""
        heard, left = Heard({}), {node: list(some) for node, some in slots.items() if some}
        while left:
            calls = [Call(node, "inventory", (self.fingerprint, indexes[node], some)) for node, some in left.items()]
            round_ = Asking(calls, _inventories)
            yield round_
            for node, answer in round_.answers.items():
                for slot, inventory in zip(left[node], answer, strict=False):
                    heard.by_slot.setdefault(slot, {})[node] = inventory
                yield from self.pace.pay(sum(map(_size, answer)))
            heard.rounds += 1
            left = _rest(left, round_.answers)
        return heard

    def fetch(self, keys: Mapping[str, Sequence[bytes]], deliver: Deliver) -> Op[list[bytes]]:
        """Hand the records of these storage keys to `deliver`, as they come; those that are gone by now are not.
        Returns the keys about which no answer came."""
        unanswered: list[bytes] = []
        left = {node: list(some) for node, some in keys.items() if some}
        while left:
            calls = [Call(node, "fetch", (self.fingerprint, some[:FETCH])) for node, some in left.items()]
            round_ = Asking(calls, _records)
            yield round_
            for node, answer in round_.answers.items():
                yield from self._deliver(left[node], answer, deliver)
            unanswered.extend(key for node, some in left.items() if node not in round_.answers for key in some)
            left = _rest(left, round_.answers)
        return unanswered

    def _deliver(self, keys: Sequence[bytes], records: Sequence[Any], deliver: Deliver) -> Op[None]:
        for start in range(0, len(records), BATCH):
            size = 0
            for key, record in zip(keys[start : start + BATCH], records[start : start + BATCH], strict=False):
                size += 2 * len(key) + 32
                if record is not None:
                    size += len(record[1])
                    deliver(key, *record)
            yield from self.pace.pay(size)


def _rest(left: Mapping[str, list[Any]], answers: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """What is still to be asked of whom: a node answers for the first few, and one that failed not at all."""
    rest = {node: left[node][len(answer) :] for node, answer in answers.items()}
    return {node: some for node, some in rest.items() if some}


# -- reading answers: `TypeError` or `ValueError` for what is none ----------------------------------------------------


def _overview(_: Call, result: Any) -> bytes:
    if type(result) is not bytes or len(result) != 8 * BLOCKS:
        raise ValueError("not one sum for each block")
    return result


def _digests(slots: Sequence[int], result: Any) -> Digests:
    if type(result) is not bytes or len(result) != 9 * len(slots):
        raise ValueError("not one digest for each slot")
    return {slot: (bool(flag), digest) for slot, (flag, digest) in zip(slots, _DIGEST.iter_unpack(result), strict=True)}


_DIGEST = struct.Struct(">BQ")


def _heights(_: Call, result: Any) -> tuple[int, Version]:
    latest, newest = result
    if type(latest) is not int or type(newest) is not bytes:
        raise ValueError("not a time and a version")
    return latest, Version(newest)


def _index(_: Call, result: Any) -> tuple[Any, bool]:
    cursor, done = result
    return cursor, bool(done)


def _inventories(call: Call, result: Any) -> list[Inventory]:
    return [_inventory(*found) for found in _some(call.params[2], result)]


def _inventory(complete: bool, floor: bytes, barrier: bytes, *parts: Any) -> Inventory:
    versions = dict(chain.from_iterable(parts))
    if not all(type(version) is bytes for version in (floor, barrier, *versions, *versions.values())):
        raise ValueError("keys and versions are binary")
    return Inventory(bool(complete), Version(floor), Version(barrier), versions)


def _records(call: Call, result: Any) -> list[Any]:
    for record in _some(call.params[1], result):
        if record is not None:
            version, value, flags, ttl = record
            binary = type(version) is bytes and type(value) is bytes
            if not binary or type(flags) is not int or not (ttl is None or type(ttl) is int):
                raise ValueError("no record")
    return list(result)


def _some(asked: Sequence[Any], result: Any) -> Sequence[Any]:
    """The answers to a few of what was asked, the first at least."""
    if type(result) is not tuple or not 0 < len(result) <= len(asked):
        raise ValueError("not an answer to each of a few")
    return result


def _size(inventory: Inventory) -> int:
    return 32 + sum(map(len, inventory.versions)) + 16 * len(inventory.versions)
