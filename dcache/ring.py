"""The consistent-hash ring: key -> slot -> owners.

Positions are [0, 2**32).  A node has `vnodes` x weight points on it, each the MurmurHash3 of its name and a fixed-width
index (so that no two names can share the bytes hashed), moved up to the boundary of its slot: the ring is cut into
2**14 equal slots, and all keys of a slot belong to the first point at or after them.  Points in one slot are told apart
by their full hash, then by name, so the order of joining never matters.

The preference list of a slot walks clockwise and takes the first node of every zone, then the first of every host, then
the rest.  Because a host counts within its zone, one node more or less changes the *set* of the first n by at most one
in and one out: the node that is promoted into a vacated place is always the one that the walk meets next.

Source: Karger et al., "Consistent Hashing and Random Trees" (1997); the preference list is that of Dynamo (2007).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise

import attrs
import mmh3

SLOT_BITS = 14
SLOTS = 1 << SLOT_BITS
"""The number of slots: the unit of ownership, floors, comparison, repair and statistics."""

_SHIFT = 32 - SLOT_BITS
DEFAULT_VNODES = 150
MAX_VNODES = 10_000
MAX_WEIGHT = 1000.0
"""What a ring may be asked to build: more is a mistake, and to build it for a peer's mistake would hang the node."""

_hash = mmh3.hash
Point = tuple[int, int, str]  # slot, full hash, name

# A placed point is one number, its hash above its node's place in the order of names: numbers sort as points do, and an
# array of them is a fifteenth of the memory of as many tuples, of which a ring of 1,000 nodes has 150,000.
_RANK_BITS = 32
_RANKS = (1 << _RANK_BITS) - 1


def slot_of(key: bytes, seed: int = 0) -> int:
    """The slot of a storage key, in [0, SLOTS)."""
    return _hash(key, seed, False) >> _SHIFT


def check_weight(_instance: object, _attribute: object, weight: float) -> None:
    """The validator of weights: `ValueError` unless positive and at most `MAX_WEIGHT`."""
    if not 0 < weight <= MAX_WEIGHT:
        raise ValueError(f"a weight is more than 0 and at most {MAX_WEIGHT:g}, not {weight!r}")


def check_vnodes(_instance: object, _attribute: object, vnodes: int) -> None:
    """The validator of points per unit of weight: `ValueError` unless from 1 to `MAX_VNODES`."""
    if not 1 <= vnodes <= MAX_VNODES:
        raise ValueError(f"vnodes is from 1 to {MAX_VNODES}, not {vnodes!r}")


@attrs.frozen
class RingNode:
    """A node's place on the ring: all that decides what it owns.  `weight` 2.0 owns twice the share of 1.0."""

    name: str = attrs.field(validator=attrs.validators.min_len(1))
    weight: float = attrs.field(default=1.0, converter=float, validator=check_weight)
    zone: str = ""
    host: str = ""


def _as_nodes(nodes: Iterable[str | RingNode]) -> tuple[RingNode, ...]:
    made = sorted(
        (node if isinstance(node, RingNode) else RingNode(node) for node in nodes), key=lambda node: node.name
    )
    for left, right in pairwise(made):
        if left.name == right.name:
            raise ValueError(f"two ring nodes are called {left.name!r}; names must be unique")
    return tuple(made)


@attrs.frozen
class HashRing:
    """An immutable ring.  `nodes` are names or `RingNode`s in any order; `seed` is the hash seed, 32 bits.

    Empty rings are allowed and own nothing: `lookup` then raises `LookupError`, `owners` gives `()`.
    """

    nodes: tuple[RingNode, ...] = attrs.field(default=(), converter=_as_nodes)
    vnodes: int = attrs.field(default=DEFAULT_VNODES, validator=check_vnodes)
    seed: int = attrs.field(default=0, validator=[attrs.validators.ge(0), attrs.validators.lt(1 << 32)])
    _placed: array[int] = attrs.field(init=False, repr=False, eq=False)
    _by_name: dict[str, RingNode] = attrs.field(init=False, repr=False, eq=False)
    _tables: dict[int, list[tuple[str, ...] | None]] = attrs.field(init=False, repr=False, eq=False, factory=dict)
    _lists: dict[tuple[str, ...], tuple[str, ...]] = attrs.field(init=False, repr=False, eq=False, factory=dict)
    _spread: tuple[int, int] = attrs.field(init=False, repr=False, eq=False)  # how many zones, hosts

    def __attrs_post_init__(self) -> None:
        placed = sorted(chain.from_iterable(map(self._place, range(len(self.nodes)))))
        object.__setattr__(self, "_placed", array("Q", placed))
        object.__setattr__(self, "_by_name", {node.name: node for node in self.nodes})
        zones = {node.zone for node in self.nodes}
        hosts = {(node.zone, node.host) for node in self.nodes}
        object.__setattr__(self, "_spread", (len(zones), len(hosts)))

    def _place(self, rank: int) -> list[int]:
        """The points of the node of that rank, as they are kept."""
        node, seed, hashed = self.nodes[rank], self.seed, _hash
        name = node.name.encode()
        count = max(1, round(self.vnodes * node.weight))
        return [hashed(name + index.to_bytes(4, "big"), seed, False) << _RANK_BITS | rank for index in range(count)]

    @property
    def points(self) -> tuple[Point, ...]:
        """All points in their order, made on each asking: what a ring decides is looked up, not searched here."""
        names, slot_shift = [node.name for node in self.nodes], _SHIFT + _RANK_BITS
        return tuple((point >> slot_shift, point >> _RANK_BITS, names[point & _RANKS]) for point in self._placed)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __len__(self) -> int:
        return len(self.nodes)

    def add_node(self, name: str | RingNode, *, weight: float = 1.0, zone: str = "", host: str = "") -> HashRing:
        """A new ring with one node more; `ValueError` if the name is on it already."""
        node = name if isinstance(name, RingNode) else RingNode(name, weight, zone, host)
        return attrs.evolve(self, nodes=(*self.nodes, node))

    def remove_node(self, name: str) -> HashRing:
        """A new ring with one node less; `KeyError` if it is not on this one."""
        if name not in self._by_name:
            raise KeyError(name)
        return attrs.evolve(self, nodes=tuple(node for node in self.nodes if node.name != name))

    def slot(self, key: str | bytes) -> int:
        """The slot of `key`, in [0, SLOTS)."""
        return slot_of(key.encode() if isinstance(key, str) else key, self.seed)

    def lookup(self, key: str | bytes) -> str:
        """The name of the first owner of `key`; `LookupError` on an empty ring."""
        table = self._tables.get(1) or self._table(1)
        found = table[_hash(key, self.seed, False) >> _SHIFT]
        if found is None:
            found = self.slot_owners(self.slot(key), 1)
        if not found:
            raise LookupError("the ring is empty")
        return found[0]

    def owners(self, key: str | bytes, n: int) -> tuple[str, ...]:
        """The names of the first `n` distinct nodes for `key`, most preferred first; fewer if the ring has fewer."""
        return self.slot_owners(self.slot(key), n)

    def slot_owners(self, slot: int, n: int) -> tuple[str, ...]:
        """As `owners`, for a slot.  Worked out once per point and `n`, then an index into a table."""
        table = self._tables.get(n) or self._table(n)
        return table[slot] or self._fill(table, slot, n)

    def slots_of(self, name: str, n: int) -> list[int]:
        """The slots that `name` is among the first `n` owners of, ascending."""
        if name not in self._by_name:
            return []
        return [slot for slot in range(SLOTS) if name in self.slot_owners(slot, n)]

    def shares(self, n: int = 1) -> dict[str, float]:
        """For every node, the fraction of slots that it is among the first `n` owners of."""
        counts = dict.fromkeys(self._by_name, 0)
        for slot in range(SLOTS):
            for name in self.slot_owners(slot, n):
                counts[name] += 1
        return {name: count / SLOTS for name, count in counts.items()}

    def _table(self, n: int) -> list[tuple[str, ...] | None]:
        return self._tables.setdefault(n, [None] * SLOTS)

    def _fill(self, table: list[tuple[str, ...] | None], slot: int, n: int) -> tuple[str, ...]:
        """Enter the owners of `slot` in the table, for all slots that belong to the same point.

        Equal lists are one tuple: there are far fewer of them than points.
        """
        placed, slot_shift = self._placed, _SHIFT + _RANK_BITS
        start = bisect_left(placed, slot << slot_shift)
        owners = self._walk(start, n)
        owners = self._lists.setdefault(owners, owners)
        first = (placed[start - 1] >> slot_shift) + 1 if start else 0
        last = placed[start] >> slot_shift if start < len(placed) else SLOTS - 1
        table[first : last + 1] = [owners] * (last + 1 - first)
        return owners

    def _walk(self, start: int, n: int) -> tuple[str, ...]:
        by_zone: dict[str, str] = {}
        by_host: dict[tuple[str, str], str] = {}
        seen: dict[str, None] = {}
        for node in self._clockwise(start):
            name = node.name
            if name in seen:
                continue
            seen[name] = None
            by_zone.setdefault(node.zone, name)
            by_host.setdefault((node.zone, node.host), name)
            if self._settled(n, len(by_zone), len(by_host), len(seen)):
                break
        ranked = dict.fromkeys((*by_zone.values(), *by_host.values(), *seen))
        return tuple(ranked)[:n]

    def _clockwise(self, start: int) -> Iterator[RingNode]:
        nodes, placed = self.nodes, self._placed
        for index in range(start, len(placed)):
            yield nodes[placed[index] & _RANKS]
        for index in range(start):
            yield nodes[placed[index] & _RANKS]

    def _settled(self, n: int, zones: int, hosts: int, nodes: int) -> bool:
        """Whether what the walk has yet to meet can no longer come before the first `n`."""
        all_zones, all_hosts = self._spread
        if zones >= n:
            return True
        if zones < all_zones:
            return False
        return hosts >= n or (hosts == all_hosts and nodes >= n)
