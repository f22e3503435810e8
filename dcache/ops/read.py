"""Reading one key: get, gets, exists, ttl.  The rules are in `quorum`; here is what follows from a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs

from dcache.errors import DecodingError
from dcache.ops.context import Context, Key
from dcache.ops.effects import Call, Detached, Op, Reply
from dcache.ops.quorum import ReadRound, Verdict, WriteRound, explain_read, explain_write, quorum_error
from dcache.record import ZERO, Record, Version

ATTEMPTS = 3
"""How often a read starts over when the value changes under its hands; after that it is a miss."""


@attrs.frozen
class Item:
    """What `gets` returns: the value, its version for `cas`, the remaining life in seconds (None: no expiry)."""

    value: Any
    version: Version
    ttl: float | None


@attrs.frozen(eq=False)
class Missed:
    """There is nothing to return.  The owners that gave `promises` refuse anything lower than the claim of this
    read."""

    promises: Sequence[Reply] = ()
    floor: Version = ZERO


NEVER = Version(b"")  # below every version: hold nothing for absent


def read_record(
    ctx: Context, key: bytes, claim: Version | None = None, first: Sequence[str] = ()
) -> Op[Record | Missed]:
    """The newest record of `key`, once a majority holds it; `QuorumError` if too few complete owners answer.

    With a `claim` the owners that lack the key promise to refuse what is lower; those that hold only what nobody may
    return promise it too.  `first` are those that were asked before this began, by a read that was to be prompt.
    """
    hold = ctx.quorums(key).hold
    unreadable = NEVER
    for _ in range(ATTEMPTS):
        verdict = yield from _ask(ctx, key, claim, unreadable, first)
        first = ()
        if verdict.candidate is None:
            return Missed(verdict.promises, verdict.floor)
        if hold.met(verdict.holders):
            if verdict.behind:
                ctx.shared.counters.repairs += 1
                yield Detached(_copies(ctx, key, verdict))
            return verdict.record()
        if hold.met(verdict.voters):
            written, overtaken = yield from _write_back(ctx, key, verdict)
            if written:
                return verdict.record()
            if overtaken:
                continue
        if claim is None:
            break
        unreadable = verdict.candidate[1]
    return Missed()


def _ask(ctx: Context, key: bytes, claim: Version | None, unreadable: Version, first: Sequence[str]) -> Op[Verdict]:
    nodes = ctx.readers(key)
    if first:
        nodes = (*first, *(node for node in nodes if node not in first))
    calls = ctx.calls(nodes, "get", key) if claim is None else ctx.calls(nodes, "claim", key, claim, unreadable)
    verdict = yield from _settle(ctx, key, calls)
    if claim is not None and verdict.candidate is None:
        asked = {reply.node for reply in verdict.promises}
        yield Detached([call for call in calls[: len(ctx.owners(key))] if call.node not in asked])
    return verdict


def _settle(ctx: Context, key: bytes, calls: Sequence[Call]) -> Op[Verdict]:
    """Ask until there is a verdict; `QuorumError` if there can be none."""
    round_ = read_round(ctx, key, calls)
    yield round_
    return settled(ctx, "read", round_)


def read_round(ctx: Context, key: bytes, calls: Sequence[Call]) -> ReadRound:
    """The round that asks as many of those to be called as may be enough, the others where these are not."""
    quorums = ctx.quorums(key)
    first, spares = quorums.reads.split(calls)
    return ReadRound(first, spares, quorums.reads, quorums.hold, ctx.strict)


def settled(ctx: Context, what: str, round_: ReadRound) -> Verdict:
    """The verdict of a round that is over; `QuorumError` if too few were heard."""
    verdict = round_.verdict()
    if not round_.needed.met(verdict.heard) and (ctx.strict or not round_.replies):
        raise quorum_error(what, round_, round_.shortage(), in_doubt=False, explain=explain_read)
    return verdict


def _copies(ctx: Context, key: bytes, verdict: Verdict) -> list[Call]:
    return [copy_call(ctx, reply.node, key, verdict.record()) for reply in verdict.behind]


def copy_call(ctx: Context, node: str, key: bytes, record: Record) -> Call:
    """Write a record that others hold: like a set, but exempt from the check of the writer's clock."""
    return ctx.call(node, "copy", key, record.version, record.value, record.flags, record.ttl)


def _write_back(ctx: Context, key: bytes, verdict: Verdict) -> Op[tuple[bool, bool]]:
    """Have a majority hold the candidate before it is returned.  (Whether it does, whether something newer came.)

    An owner that was asked may refuse by now; then one that was not asked may take it.
    """
    asked = {reply.node for reply in (*verdict.holders, *verdict.behind)}
    record = verdict.record()
    others = [copy_call(ctx, node, key, record) for node in ctx.owners(key) if node not in asked]
    calls = _copies(ctx, key, verdict)
    round_ = WriteRound(calls, ctx.quorums(key).hold, spares=others, already=verdict.holders)
    ctx.shared.counters.repairs += 1
    yield round_
    check_in_time(round_)
    return round_.enough(), round_.highest_newer() is not None


def check_in_time(round_: WriteRound) -> None:
    """`DeadlineExceeded` if time ran out while the newest value was written back: that says nothing of a miss."""
    if round_.expired and not round_.enough():
        raise quorum_error("read", round_, round_.shortage(), in_doubt=False, explain=explain_write)


def get(ctx: Context, key: Key, default: Any = None, first: Sequence[str] = ()) -> Op[Any]:
    """The value of `key`, or `default`; `first` as for `read_record`."""
    found = yield from read_record(ctx, ctx.key(key), first=first)
    if isinstance(found, Missed):
        ctx.shared.counters.misses += 1
        return default
    return decoded(ctx, found, default)


def gets(ctx: Context, key: Key) -> Op[Item | None]:
    """The value with its version and remaining life."""
    found = yield from read_record(ctx, ctx.key(key))
    if isinstance(found, Missed):
        ctx.shared.counters.misses += 1
        return None
    value = decoded(ctx, found, _UNDECODABLE)
    ttl = None if found.ttl is None else found.ttl / 1000
    return None if value is _UNDECODABLE else Item(value, found.version, ttl)


_UNDECODABLE = object()


def decoded(ctx: Context, record: Record, default: Any) -> Any:
    """The value of a record that was found; what no longer decodes is a miss, counted as such."""
    counters = ctx.shared.counters
    try:
        value = ctx.options.codec.decode(record.value, record.flags)
    except DecodingError:
        counters.undecodable += 1
        counters.misses += 1
        return default
    counters.hits += 1
    return value


def ttl(ctx: Context, key: Key) -> Op[float | None]:
    """The remaining life in seconds, inf for no expiry, None where the key is absent."""
    raw = ctx.key(key)
    verdict = yield from _settle(ctx, raw, ctx.calls(ctx.readers(raw), "peek", raw))
    if verdict.candidate is not None and ctx.quorums(raw).hold.met(verdict.holders):
        remaining = verdict.record().ttl
    elif verdict.candidate is None:
        return None
    else:  # too few hold it to say so: a full read writes it back
        found = yield from read_record(ctx, raw)
        if isinstance(found, Missed):
            return None
        remaining = found.ttl
    return math.inf if remaining is None else remaining / 1000


def exists(ctx: Context, key: Key) -> Op[bool]:
    return (yield from ttl(ctx, key)) is not None
