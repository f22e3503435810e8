"""What a front door hands to an operation: a snapshot of who owns what, the user's options, clocks and books.

A `Context` is frozen.  When the table or the options change a new one takes its place; an operation works from its
first to its last step with the one it was given, and every request on a key carries that one's ring fingerprint.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import attrs

from dcache.codec import Codec
from dcache.errors import InvalidKey
from dcache.membership import MemberTable
from dcache.ops.backoff import Backoff
from dcache.ops.effects import Call
from dcache.ops.quorum import (
    NOBODY,
    Quorum,
    QuorumSpec,
    check_quorum,
    is_single,
    majority,
    quorum_on,
    quorum_size,
)
from dcache.record import VersionClock
from dcache.ring import slot_of
from dcache.wire import Limits, check_key, storage_key


class Default(enum.Enum):
    """The type of `DEFAULT`, which stands for the client's `default_ttl`."""

    DEFAULT = "DEFAULT"

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT = Default.DEFAULT
Key = str | bytes
K = TypeVar("K", str, bytes, Key)
"""The keys of one call: a dict of `str` keys comes back as one."""

Ttl = float | timedelta | None
TtlOrDefault = Ttl | Default

LONGEST_TTL_MS = 1 << 48


def ttl_to_ms(ttl: TtlOrDefault, default: Ttl = None) -> int | None:
    """Seconds or a `timedelta` -> whole milliseconds, at least 1; None is no expiry.

    `ValueError` for 0, negative, NaN, inf and more than 8,900 years; `TypeError` for anything but numbers.
    """
    if ttl is DEFAULT:
        ttl = default
    if ttl is None:
        return None
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"ttl is seconds, a timedelta or None (no expiry), not {type(ttl).__name__}")
    if not (seconds > 0 and seconds != math.inf and seconds * 1000 < LONGEST_TTL_MS):
        raise ValueError(f"ttl must be more than 0 seconds and finite, not {ttl!r}; None means no expiry")
    return max(1, math.ceil(seconds * 1000))


def key_to_bytes(key: Key, limits: Limits) -> bytes:
    """The bytes of a key; `"a"` and `b"a"` are one key.  `TypeError` or `InvalidKey` for what is none."""
    if type(key) is str:
        try:
            raw = key.encode()
        except UnicodeEncodeError:
            raise InvalidKey(f"the key {key!r} is not encodable as UTF-8: use bytes for binary keys") from None
    elif type(key) is bytes:
        raw = key
    elif isinstance(key, (str, bytes)):
        return key_to_bytes(str.__str__(key) if isinstance(key, str) else bytes(key), limits)
    else:
        raise TypeError(f"a key is str or bytes, not {type(key).__name__}")
    if not 0 < len(raw) <= limits.max_key:
        check_key(raw, limits)
    return raw


def namespace_to_bytes(namespace: str, limits: Limits = Limits()) -> bytes:
    """The bytes of a namespace; `InvalidKey` for NUL characters or more than 255 bytes."""
    if not isinstance(namespace, str):
        raise TypeError(f"a namespace is a str, not {type(namespace).__name__}")
    try:
        raw = namespace.encode()
    except UnicodeEncodeError:
        raise InvalidKey(f"the namespace {namespace!r} is not encodable as UTF-8") from None
    if b"\0" in raw or len(raw) > limits.max_namespace:
        raise InvalidKey(f"a namespace has at most {limits.max_namespace} bytes and no NUL, not {namespace!r}")
    return raw


def _void(_: object) -> None:
    """Validators return nothing."""


CONSISTENCIES = ("quorums", "linearizable")
MAJORITIES = 'consistency="linearizable" needs majorities: leave read_quorum and write_quorum at "quorum", or more'


def _quorum(name: str) -> Callable[[Any, Any, object], None]:
    return lambda instance, attribute, value: _void(check_quorum(name, value))


@attrs.frozen
class Options:
    """What a user may set per client or, through `with_options`, per call.  Times in seconds, sizes in bytes."""

    write_quorum: QuorumSpec = attrs.field(default="quorum", validator=_quorum("write_quorum"))
    read_quorum: QuorumSpec = attrs.field(default="quorum", validator=_quorum("read_quorum"))
    namespace: str = ""
    default_ttl: Ttl = None
    timeout: float = 0.5
    on_error: str = attrs.field(default="raise", validator=attrs.validators.in_(("raise", "miss")))
    codec: Codec = attrs.field(factory=Codec)
    consistency: str = attrs.field(default="quorums", validator=attrs.validators.in_(CONSISTENCIES))
    linearizable: bool = attrs.field(init=False)
    prefix: bytes = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "prefix", namespace_to_bytes(self.namespace))
        object.__setattr__(self, "linearizable", self.consistency == "linearizable")
        if self.linearizable and (is_single(self.read_quorum) or is_single(self.write_quorum)):
            raise ValueError(MAJORITIES)
        ttl_to_ms(self.default_ttl)
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"timeout must be a positive number of seconds, not {self.timeout!r}")


@attrs.define
class Counters:
    """What a client counted.  Under threads the counts may miss a few."""

    hits: int = 0
    misses: int = 0
    undecodable: int = 0
    errors: int = 0
    repairs: int = 0
    fills: int = 0
    fills_refused: int = 0
    computed_without_cache: int = 0
    hedges: int = 0
    reruns: int = 0


@attrs.frozen(eq=False)
class Shared:
    """What all contexts of one client share; each part is safe to share between threads."""

    clock: VersionClock
    monotonic: Callable[[], float]
    random: Callable[[], float]
    backoff: Backoff
    limits: Limits = Limits()
    counters: Counters = attrs.field(factory=Counters)
    turn: Iterator[int] = attrs.field(factory=itertools.count)


@attrs.frozen(eq=False)
class Quorums:
    """What is enough for a key: to be heard by a read, to acknowledge a write, to `hold` what a read returns, and to be
    a majority of its owners."""

    reads: Quorum
    writes: Quorum
    hold: Quorum
    majority: Quorum


@attrs.frozen(eq=False)
class Placement:
    """Who owns the keys of a slot, and what is enough of them.  The first `both` of the owners own it on both rings."""

    owners: tuple[str, ...]
    both: int
    quorums: Quorums


_call: Callable[[tuple[str, str, tuple[Any, ...]]], Call] = partial(tuple.__new__, Call)
"""`Call` of a tuple: what `Call(...)` comes to, in half the time."""

Sizes = Callable[[int], int]  # for so many owners, how many are enough
Ways = tuple[tuple[str, ...], ...]


@attrs.frozen(eq=False, slots=False)
class Context:
    """See the module.

    `strict` is whether reads and writes take a majority, and neither was asked for as a single one; `ValueError` if
    they do not and are to be linearizable.  `raced` is whether a read leaves owners out that a slow one can be raced
    with, as long as the ring does not change.  While it
    changes, quorums are to be had on each of the two rings; slots whose owners are the same on both go by one.
    """

    table: MemberTable
    options: Options
    shared: Shared
    fingerprint: bytes = attrs.field(init=False)
    strict: bool = attrs.field(init=False)
    raced: bool = attrs.field(init=False)
    nodes: tuple[str, ...] = attrs.field(init=False)
    _copies: tuple[int, ...] = attrs.field(init=False)  # how many owners a slot has, on each ring
    _quorums: Quorums = attrs.field(init=False)  # of a slot with one set of owners
    _down: frozenset[str] = attrs.field(init=False)
    _placements: dict[int, Placement] | None = attrs.field(init=False)  # by slot; None with one ring
    _ways: dict[Sequence[str], Ways] = attrs.field(init=False, factory=dict)  # by the nodes in order of preference
    any_way: Ways | None = attrs.field(init=False)  # the ways of every key, where they are the same for all

    def __attrs_post_init__(self) -> None:
        table, rings = self.table, self.table.rings
        copies = tuple(min(table.settings.replicas, len(ring)) for ring in rings)
        derived = {
            "fingerprint": table.fingerprint,
            "strict": all(self._takes_majorities(n) for n in copies),
            "nodes": tuple(sorted({node.name for ring in rings for node in ring.nodes})),
            "_copies": copies,
            "_down": table.down,
            "_placements": None if len(rings) == 1 else {},
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        if self.options.linearizable and not self.strict:
            raise ValueError(f"{MAJORITIES}; keys have {max(copies)} owners")
        object.__setattr__(self, "_quorums", self._quorums_of([(frozenset(), copies[0])]))
        object.__setattr__(self, "raced", self.strict and self._quorums.reads.size < copies[0])
        object.__setattr__(self, "any_way", self._ways_of_all())

    def _takes_majorities(self, n: int) -> bool:
        specs = self.options.read_quorum, self.options.write_quorum
        return not any(is_single(spec) or quorum_size(spec, n) < majority(n) for spec in specs)

    def _quorums_of(self, rings: Sequence[tuple[frozenset[str], int]]) -> Quorums:
        """For the sets of owners on each ring, with their sizes.  In available mode any nodes count."""

        def on_each(sizes: Sizes) -> Quorum:
            return quorum_on([(owners, sizes(n)) for owners, n in rings])

        def of_any(sizes: Sizes) -> Quorum:
            return Quorum(max(sizes(n) for _, n in rings))

        wanted = on_each if self.strict else of_any
        majorities = on_each(majority)
        return Quorums(
            reads=wanted(self.reads),
            writes=wanted(self.writes),
            hold=majorities if self.strict else NOBODY,
            majority=majorities,
        )

    def reads(self, n: int) -> int:
        """How many of `n` owners a read is to hear."""
        return quorum_size(self.options.read_quorum, n)

    def writes(self, n: int) -> int:
        """How many of `n` owners are to acknowledge a write."""
        return quorum_size(self.options.write_quorum, n)

    def everywhere(self, sizes: Sizes) -> Quorum:
        """So many of `nodes` that every slot has `sizes(n)` of its n owners among them, on each ring.

        Any set of owners lacks at most the nodes that are missing altogether.
        """
        return quorum_on(
            [
                (frozenset(node.name for node in ring.nodes), len(ring) - n + sizes(n))
                for ring, n in zip(self.table.rings, self._copies, strict=True)
            ]
        )

    def key(self, key: Key) -> bytes:
        return key_to_bytes(key, self.shared.limits)

    def keys(self, keys: Iterable[K]) -> dict[K, bytes]:
        """The bytes of each key, by the key as given."""
        raws: dict[K, bytes] = {}
        given: list[Any] = list(keys)
        if {*map(type, given)} == {str}:  # all at once: whatever is unusual is looked at key by key
            with suppress(UnicodeEncodeError):
                raws = {key: key.encode() for key in given}
            sizes = {*map(len, raws.values())}
            if sizes and min(sizes) > 0 and max(sizes) <= self.shared.limits.max_key:
                return raws
        return {key: self.key(key) for key in given}

    def ttl(self, ttl: TtlOrDefault) -> int | None:
        return ttl_to_ms(ttl, self.options.default_ttl)

    def quorums(self, key: bytes) -> Quorums:
        """What is enough for a key's bytes."""
        if self._placements is None:
            return self._quorums
        return self._placement(self._slot(key), self._placements).quorums

    def owners(self, key: bytes) -> Sequence[str]:
        """The owners of a key's bytes in preference order; while the ring changes those on both rings first."""
        return self._owners(self._slot(key))[0]

    def owners_alike(self) -> bool:
        """Whether all keys have the same owners, if not in the same order, and none but owners are written to."""
        return self.strict and self._placements is None and self._copies[0] == len(self.nodes)

    def writers(self, key: bytes) -> Sequence[str]:
        """The nodes a write of `key` goes to: its owners; in available mode the next nodes replace those in trouble."""
        slot = self._slot(key)
        owners = self._owners(slot)[0]
        return owners if self.strict else self._everyone(slot)[: len(owners)]

    def stand_ins(self, key: bytes) -> Sequence[str]:
        """The nodes a write goes to where it fails at a writer: in available mode the next ones, else none."""
        if self.strict:
            return ()
        slot = self._slot(key)
        return self._everyone(slot)[len(self._owners(slot)[0]) :]

    def readers(self, key: bytes) -> Sequence[str]:
        """The nodes to ask about `key`, the next to ask first: owners take turns, those in trouble come last."""
        slot = self._slot(key)
        if not self.strict:
            return self._everyone(slot)
        owners, both = self._owners(slot)
        turn = next(self.shared.turn) % (both or 1)
        return self._ranked((*owners[turn:both], *owners[:turn], *owners[both:]) if turn else owners)

    def ways(self, key: bytes) -> Ways:
        """The sets of nodes that a read of a key's bytes may do with, by turns; none while the ring changes.

        A node that is said to be down is in none of them.
        """
        if self.any_way is not None:
            return self.any_way
        ring = self.table.ring
        order = ring.slot_owners(self._slot(key), self._copies[0] if self.strict else len(ring))
        return self._ways.get(order) or self._find_ways(order)

    def _find_ways(self, order: Sequence[str]) -> Ways:
        turns = len(order) if self.strict else 1
        enough, up = self._quorums.reads.size, [node for node in order if node not in self._down]
        turned = [tuple(order[turn:]) + tuple(order[:turn]) for turn in range(turns)]
        found = self._ways[order] = tuple(
            tuple([node for node in nodes if node in up][:enough]) for nodes in turned if len(up) >= enough
        )
        return found

    def _ways_of_all(self) -> Ways | None:
        """The ways of every key, where all nodes own all keys and none of them comes first."""
        if self._placements is not None:
            return ()
        same = len(self.table.ring) == self._copies[0] and (self.strict or len(self.nodes) == 1)
        return self._find_ways(self.nodes) if same else None

    def _owners(self, slot: int) -> tuple[tuple[str, ...], int]:
        """The owners, and how many of them are the same on all rings."""
        if self._placements is None:
            n = self._copies[0]
            return self.table.ring.slot_owners(slot, n), n
        placement = self._placement(slot, self._placements)
        return placement.owners, placement.both

    def _placement(self, slot: int, known: dict[int, Placement]) -> Placement:
        """Where a slot's keys are while the ring changes."""
        placement = known.get(slot)
        if placement is None:
            old, following = self.table.owners(slot)
            both = tuple(node for node in old if node in following)
            owners = tuple(dict.fromkeys((*both, *old, *following)))
            sets = [(frozenset(some), len(some)) for some in (old, following)]
            quorums = self._quorums if len(both) == len(owners) else self._quorums_of(sets)
            placement = known[slot] = Placement(owners, len(both), quorums)
        return placement

    def _everyone(self, slot: int) -> Sequence[str]:
        orders = [ring.slot_owners(slot, len(ring)) for ring in self.table.rings]
        if len(orders) == 1:
            return self._ranked(orders[0])
        owners, _ = self._owners(slot)
        return self._ranked(tuple(dict.fromkeys((*owners, *orders[0], *orders[1]))))

    def _ranked(self, nodes: Sequence[str]) -> Sequence[str]:
        """`nodes` in the same order, those last that are in trouble or said to be down."""
        backoff, now, down = self.shared.backoff, self.shared.monotonic(), self._down
        if not down:
            return backoff.rank(nodes, now)
        return sorted(nodes, key=lambda node: 2 if node in down else backoff.trouble(node, now))

    def _slot(self, key: bytes) -> int:
        return slot_of(storage_key(self.options.prefix, key), self.table.settings.ring_seed)

    def call(self, node: str, method: str, *params: Any) -> Call:
        """A request on a key: it carries the ring's fingerprint and the namespace."""
        return Call(node, method, (self.fingerprint, self.options.prefix, *params))

    def calls(self, nodes: Iterable[str], method: str, *params: Any) -> list[Call]:
        """The same request to each of `nodes`."""
        given = (self.fingerprint, self.options.prefix, *params)
        return [_call((node, method, given)) for node in nodes]
