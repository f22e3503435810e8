"""Who is in the cluster: settings, ring state and a row per member, and how two such tables merge.

Merging is a join: commutative, associative, idempotent.  So tables may be exchanged in any order, any number of times,
and all who have heard the same things hold the same table.

* Settings never change; tables with other settings do not merge (`ClusterMismatch`).
* Of two ring states the one of the later epoch stands; it changes by agreement only, never by merging.
* Of two rows for one name the higher incarnation stands, at equal incarnation the graver health, then the larger rest,
  which only makes the outcome independent of order.
* There are rows for those on the ring, and on the next ring while it changes, and for nobody else.  So the order of
  merging matters in one case: of a member that went and came back a former row may be heard again.  It puts that right,
  as it does whatever is said of it.

Rows carry what may change at any time (address, health).  What decides ownership is copied into the ring state, so that
the fingerprint of settings and ring state says all there is to say about who owns what.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import attrs
import mmh3

from dcache.errors import ClusterMismatch, ProtocolError
from dcache.ring import DEFAULT_VNODES, HashRing, RingNode, check_vnodes, check_weight
from dcache.wire import pack

T = TypeVar("T", bound=attrs.AttrsInstance)


INCARNATION_CEILING = 1 << 62
"""No row is believed that could not be refuted with a higher incarnation, many times over."""


class Health(enum.IntEnum):
    """A hint about whom to ask first; the graver is the larger.  It never changes who owns what."""

    UP = 0
    DOWN = 1


@attrs.frozen
class Settings:
    """What all members and clients of one cluster share for as long as it lives."""

    cluster_id: str
    replicas: int = attrs.field(default=3, validator=attrs.validators.ge(1))
    vnodes: int = attrs.field(default=DEFAULT_VNODES, validator=check_vnodes)
    ring_seed: int = attrs.field(default=0, validator=[attrs.validators.ge(0), attrs.validators.lt(1 << 32)])


@attrs.frozen
class Member:
    """A row of the table.  `address` is "host:port"; `boot_id` is new for every start of the process."""

    name: str = attrs.field(validator=attrs.validators.min_len(1))
    address: str
    zone: str = ""
    weight: float = attrs.field(default=1.0, converter=float, validator=check_weight)
    boot_id: str = ""
    incarnation: int = attrs.field(
        default=0, validator=[attrs.validators.ge(0), attrs.validators.lt(INCARNATION_CEILING)]
    )
    health: Health = attrs.field(default=Health.UP, converter=Health)

    def rank(self) -> tuple[Any, ...]:
        """Of two rows with one name, the one of higher rank stands."""
        return self.incarnation, self.health, self.boot_id, self.address, self.zone, self.weight

    def placed(self) -> RingNode:
        """This member's place on a ring."""
        return RingNode(self.name, self.weight, self.zone, parse_address(self.address)[0])


@attrs.frozen
class RingState:
    """Who is on the ring and, while it changes, who will be.

    `epoch` counts the states that were agreed on: no two agreed states have the same.  Consecutive states differ by one
    step: a next ring with one member more or less is begun, taken over, or given up.

    `forgotten` is somebody's word that the member that goes with this change is dead: it will not act under the ring
    before any more, and need not be waited for.
    """

    epoch: int = attrs.field(default=0, validator=[attrs.validators.ge(0), attrs.validators.lt(1 << 62)])
    members: tuple[RingNode, ...] = ()
    next: tuple[RingNode, ...] | None = None
    forgotten: bool = False

    @property
    def names(self) -> frozenset[str]:
        """All who are on the ring or the next one."""
        return frozenset(node.name for node in (*self.members, *(self.next or ())))

    @property
    def going(self) -> frozenset[str]:
        """Who is on the ring and not on the next one, while it changes."""
        following = self.members if self.next is None else self.next
        return frozenset(node.name for node in self.members) - {node.name for node in following}

    def rank(self) -> tuple[int, bytes]:
        """Of two states the one of higher rank stands; the bytes only make the outcome independent of order."""
        return self.epoch, pack(ring_state_to_wire(self))


@attrs.frozen(slots=False)
class MemberTable:
    """One cluster's table; immutable.  `members` maps names to rows."""

    settings: Settings
    ring_state: RingState = RingState()
    members: Mapping[str, Member] = attrs.field(factory=dict)

    @cached_property
    def fingerprint(self) -> bytes:
        """Eight bytes that differ whenever ownership may: every request on a key carries them."""
        ownership = (attrs.astuple(self.settings), ring_state_to_wire(self.ring_state))
        return mmh3.hash_bytes(pack(ownership))[:8]

    @cached_property
    def digest(self) -> bytes:
        """Sixteen bytes that are equal exactly when two tables are."""
        return mmh3.hash_bytes(pack(self.to_wire()))

    @cached_property
    def ring(self) -> HashRing:
        return ring_of(self.ring_state.members, self.settings.vnodes, self.settings.ring_seed)

    @cached_property
    def rings(self) -> tuple[HashRing, ...]:
        """The rings in force: one, and the next one beside it while the ring changes."""
        if self.ring_state.next is None:
            return (self.ring,)
        return self.ring, ring_of(self.ring_state.next, self.settings.vnodes, self.settings.ring_seed)

    @cached_property
    def down(self) -> frozenset[str]:
        """The names of those whose health is `DOWN`."""
        return frozenset(row.name for row in self.members.values() if row.health is Health.DOWN)

    def owners(self, slot: int) -> tuple[tuple[str, ...], ...]:
        """The owners of `slot` on each ring in force, in preference order."""
        return tuple(ring.slot_owners(slot, min(self.settings.replicas, len(ring))) for ring in self.rings)

    def slots_of(self, name: str) -> list[int]:
        """The slots that `name` owns on any ring in force, ascending."""
        owned = (ring.slots_of(name, min(self.settings.replicas, len(ring))) for ring in self.rings)
        return sorted(set().union(*owned))

    def merge(self, other: MemberTable) -> MemberTable:
        """What both tables together say; `ClusterMismatch` if they are of different clusters."""
        check_settings(self.settings, other.settings)
        rows = dict(self.members)
        for name, row in other.members.items():
            rows[name] = max(rows.get(name, row), row, key=Member.rank)
        state = max(self.ring_state, other.ring_state, key=RingState.rank)
        merged = MemberTable(self.settings, state, _placed(rows, state))
        return self if merged == self else merged

    def with_member(self, row: Member) -> MemberTable:
        """This table with `row` put in the place of the one with its name."""
        return attrs.evolve(self, members={**self.members, row.name: row})

    def refuting(self, me: Member) -> tuple[MemberTable, Member]:
        """The table with `me` as it says of itself, raised above whatever the table says of it.

        Whoever is on no ring has no row, and nothing outranks a row just below the ceiling.
        """
        heard = self.members.get(me.name)
        if me.name not in self.ring_state.names:
            return self, me
        if heard == me:
            return self, me
        if heard is not None and heard.rank() > me.rank():
            if heard.incarnation + 1 >= INCARNATION_CEILING:
                return self, me
            me = attrs.evolve(me, incarnation=heard.incarnation + 1)
        return self.with_member(me), me

    def to_wire(self) -> tuple[Any, ...]:
        rows = [member_to_wire(row) for _, row in sorted(self.members.items())]
        return attrs.astuple(self.settings), ring_state_to_wire(self.ring_state), rows

    @classmethod
    def from_wire(cls, data: Any) -> MemberTable:
        """Read what `to_wire` gave; `ProtocolError` for anything else."""
        try:
            settings, state, rows = data
            ring_state = ring_state_from_wire(state)
            members = {row.name: row for row in map(member_from_wire, rows)}
            return cls(checked(Settings(*settings)), ring_state, _placed(members, ring_state))
        except (TypeError, ValueError, OverflowError) as error:
            raise ProtocolError(f"not a member table: {error}") from error


@lru_cache(maxsize=16)
def ring_of(nodes: tuple[RingNode, ...], vnodes: int, seed: int) -> HashRing:
    """The ring of these: tables change more often than rings do, and a ring knows whom it has looked up."""
    return HashRing(nodes, vnodes, seed)


def check_settings(mine: Settings, theirs: Settings) -> None:
    """`ClusterMismatch` that names what differs, or nothing."""
    for field in attrs.fields(Settings):
        ours, other = getattr(mine, field.name), getattr(theirs, field.name)
        if ours != other:
            raise ClusterMismatch(
                f"another cluster: {field.name} is {other!r} there and {ours!r} here",
                theirs.cluster_id if theirs.cluster_id != mine.cluster_id else "",
            )


def parse_address(text: str, default_port: int | None = None) -> tuple[str, int]:
    """ "host:port", "[v6]:port" or, with a default port, "host" -> (host, port); `ValueError` for anything else."""
    host, colon, port = text.strip().rpartition(":")
    if not colon or (port.endswith("]") and host.startswith("[")) or (":" in host and not host.startswith("[")):
        host, port = text.strip(), "" if default_port is None else str(default_port)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or "[" in host or "]" in host or not (port.isascii() and port.isdigit()) or not 0 <= int(port) < 65536:
        raise ValueError(f"{text!r} is no address: write HOST:PORT, for instance cache1:7400 or [::1]:7400")
    return host, int(port)


def format_address(host: str, port: int) -> str:
    """The inverse of `parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def ring_state_to_wire(state: RingState) -> tuple[Any, ...]:
    following = None if state.next is None else [attrs.astuple(node) for node in state.next]
    return state.epoch, [attrs.astuple(node) for node in state.members], following, state.forgotten


def ring_state_from_wire(data: Any) -> RingState:
    """Read what `ring_state_to_wire` gave; `ValueError` or `TypeError` for anything else."""
    epoch, members, following, forgotten = data
    placed = tuple(checked(RingNode(*node)) for node in members)
    coming = None if following is None else tuple(checked(RingNode(*node)) for node in following)
    for ring in (placed, coming or ()):
        if len({node.name for node in ring}) != len(ring):
            raise ValueError("a ring has two nodes of one name")
    if type(epoch) is not int:
        raise ValueError("a ring state's epoch is a number")
    state = RingState(epoch, placed, coming, forgotten)
    if type(forgotten) is not bool or (forgotten and not state.going):
        raise ValueError("only who is going can be forgotten")
    return state


def member_to_wire(row: Member) -> tuple[Any, ...]:
    return (*attrs.astuple(row)[:6], int(row.health))


def member_from_wire(data: Any) -> Member:
    """Read what `member_to_wire` gave; `ValueError` or `TypeError` for anything else."""
    row = checked(Member(*data))
    row.placed()  # its address makes sense
    return row


def _placed(rows: Mapping[str, Member], state: RingState) -> dict[str, Member]:
    """The rows of those that are on a ring of `state`."""
    names = state.names
    return {name: row for name, row in rows.items() if name in names}


def checked(value: T) -> T:
    """`value`, if every field has the type that its class says; what comes from a peer may be anything."""
    for field in attrs.fields(type(value)):
        found = getattr(value, field.name)
        if type(found).__name__ != field.type:
            raise ValueError(f"{field.name} is {found!r}")
    return value
