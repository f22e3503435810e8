"""What a front door hands to an operation: a snapshot of who owns what, the user's options, clocks and books.

A `Context` is frozen.  When the table or the options change a new one takes its place; an operation works from its
first to its last step with the one it was given, and every request on a key carries that one's ring fingerprint.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import attrs

from dcache.codec import Codec
from dcache.errors import InvalidKey
from dcache.membership import MemberTable
from dcache.ops.backoff import Backoff
from dcache.ops.effects import Call
from dcache.ops.quorum import QuorumSpec, check_quorum, majority, quorum_size
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
    prefix: bytes = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "prefix", namespace_to_bytes(self.namespace))
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


@attrs.frozen(eq=False, slots=False)
class Context:
    """See the module.  `needs` and the like take the number of owners from the ring."""

    table: MemberTable
    options: Options
    shared: Shared
    fingerprint: bytes = attrs.field(init=False)
    owner_count: int = attrs.field(init=False)
    reads: int = attrs.field(init=False)
    writes: int = attrs.field(init=False)
    strict: bool = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        n = min(self.table.settings.replicas, len(self.table.ring))
        reads, writes = quorum_size(self.options.read_quorum, n), quorum_size(self.options.write_quorum, n)
        derived = {"fingerprint": self.table.fingerprint, "owner_count": n, "reads": reads, "writes": writes}
        derived["strict"] = reads >= majority(n) and writes >= majority(n)
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def hold(self) -> int:
        """How many owners must hold what a read returns."""
        return majority(self.owner_count) if self.strict else 0

    def key(self, key: Key) -> bytes:
        return key_to_bytes(key, self.shared.limits)

    def ttl(self, ttl: TtlOrDefault) -> int | None:
        return ttl_to_ms(ttl, self.options.default_ttl)

    def owners(self, key: bytes) -> Sequence[str]:
        """The owners of a key's bytes in preference order."""
        return self.table.ring.slot_owners(self._slot(key), self.owner_count)

    def writers(self, key: bytes) -> Sequence[str]:
        """The nodes a write of `key` goes to: its owners; in available mode the next nodes replace those in trouble."""
        return self.owners(key) if self.strict else self._everyone(key)[: self.owner_count]

    def readers(self, key: bytes) -> Sequence[str]:
        """The nodes to ask about `key`, the next to ask first: owners take turns, those in trouble come last."""
        if not self.strict:
            return self._everyone(key)
        owners = self.owners(key)
        turn = next(self.shared.turn) % self.owner_count
        rotated = (*owners[turn:], *owners[:turn]) if turn else owners
        return self.shared.backoff.rank(rotated, self.shared.monotonic())

    def _everyone(self, key: bytes) -> Sequence[str]:
        ring = self.table.ring
        return self.shared.backoff.rank(ring.slot_owners(self._slot(key), len(ring)), self.shared.monotonic())

    def _slot(self, key: bytes) -> int:
        return slot_of(storage_key(self.options.prefix, key), self.table.settings.ring_seed)

    def call(self, node: str, method: str, *params: Any) -> Call:
        """A request on a key: it carries the ring's fingerprint and the namespace."""
        return Call(node, method, (self.fingerprint, self.options.prefix, *params))
