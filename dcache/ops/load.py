"""Filling the cache: the read that may end in a computation, and storing what was computed.

The race that this avoids.  A reader misses and computes a value from the database.  Meanwhile somebody changes the
database and deletes the key.  Were the reader's value now stored by an ordinary set, it would be newer than the delete
and stay, stale, for its whole lifetime.

Therefore the read carries a version, the *claim*, and the owners that lack the key promise to refuse anything lower.
The fill is written with the claim's version where the promise still stands.  A set or delete made in between is above
the claim, whatever the clocks say, because the owners made it so; it voids the promise, and the fill is refused.
This needs promises of a majority, made before the computation began and by processes that still live: then every set
or delete meets one of them.  If the ring changed meanwhile, a majority is needed by the owners of now, on each ring.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from dcache.ops import prompt
from dcache.ops.context import DEFAULT, Context, Key, TtlOrDefault
from dcache.ops.effects import Op, Reply
from dcache.ops.mutate import prepared
from dcache.ops.quorum import HELD, WriteRound
from dcache.ops.read import Missed, decoded, read_record
from dcache.record import Record, Version


@attrs.frozen(eq=False)
class Claim:
    """Leave to store what is computed now for a key."""

    version: Version
    promises: tuple[Reply, ...]


@attrs.frozen
class Found:
    """What a loading read found: the value, and the bytes it was decoded from."""

    value: Any
    data: bytes
    flags: int


_NOTHING = object()


def hit(ctx: Context, key: Key, first: Sequence[str] = ()) -> Op[Found | None]:
    """The value of `key` if it is there: the way of most reads, which claims nothing.  `first` as for `read_record`."""
    record = yield from read_record(ctx, ctx.key(key), first=first)
    if isinstance(record, Missed):
        return None
    value = decoded(ctx, record, _NOTHING)
    return None if value is _NOTHING else Found(value, record.value, record.flags)


def found(ctx: Context, answer: prompt.Answer) -> Found | None:
    """As `hit`, from an answer that was agreed on."""
    if len(answer) != HELD:
        return None
    value = prompt.value(ctx, answer, _NOTHING)
    return None if value is _NOTHING else Found(value, answer[2], answer[3])


def lookup(ctx: Context, key: Key) -> Op[Found | Claim]:
    """The value of `key`, or a claim to fill it."""
    raw, version = ctx.key(key), ctx.shared.clock.stamp()
    found = yield from read_record(ctx, raw, claim=version)
    if isinstance(found, Missed) and version <= found.floor:  # forgotten by faster clocks: claim just above
        version = ctx.shared.clock.above(found.floor)
        found = yield from read_record(ctx, raw, claim=version)
    if isinstance(found, Record):
        value = decoded(ctx, found, _NOTHING)
        if value is not _NOTHING:
            return Found(value, found.value, found.flags)
        return (yield from reclaim(ctx, key))
    ctx.shared.counters.misses += 1
    return Claim(version, tuple(found.promises))


def reclaim(ctx: Context, key: Key) -> Op[Claim]:
    """A claim on a key that is held: for computing its value anew."""
    ballot, round_ = yield from prepared(ctx, ctx.key(key))
    return Claim(ballot, tuple(round_.granted()))


def fill(ctx: Context, key: Key, claim: Claim, data: bytes, flags: int, ttl: TtlOrDefault = DEFAULT) -> Op[bool]:
    """Store a computed value where the promises stand; whether it was.  A refused fill is not repeated."""
    raw, life, counters = ctx.key(key), ctx.ttl(ttl), ctx.shared.counters
    quorums = ctx.quorums(raw)
    needed = quorums.majority if ctx.strict else quorums.reads
    if not needed.met([promise for promise in claim.promises if promise.link.alive]):
        counters.fills_refused += 1
        return False
    calls = ctx.calls(ctx.writers(raw), "accept", raw, claim.version, data, flags, life)
    round_ = WriteRound(calls, quorums.writes)
    yield round_
    stored = round_.enough()
    counters.fills += stored
    counters.fills_refused += not stored
    return stored
