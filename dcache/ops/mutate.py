"""Conditional changes: add, replace, cas, incr, touch.

CASPaxos on the owners of the key, with versions as ballots.  A majority promises to refuse what is lower and says
what it holds; the change is decided on the newest of that and written with the ballot, where the promises stand.
There is no leader.  What the newest is, the rules of a read decide: an owner that may have forgotten something newer
has no vote, and without a majority of votes the key counts as absent.

A ballot is left alone for its first moments, so of two changes at once one waits, by sleeping a short random while.
One that will not be used, for want of a majority or because nothing is to be changed, is given up at once.
Conditional changes always need a majority, also in available mode.

Source: Denis Rystsov, "CASPaxos: Replicated State Machines without logs" (2018).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import attrs

from dcache.ops.context import DEFAULT, Context, Key, TtlOrDefault
from dcache.ops.effects import Call, Detached, Op, Reply, Sleep
from dcache.ops.quorum import (
    Quorum,
    QuorumRound,
    WriteRound,
    check_ack,
    counts,
    explain_write,
    judge,
    quorum_error,
    read_wants,
    write_error,
)
from dcache.record import ZERO, Record, Version
from dcache.wire import Status

T = TypeVar("T")
FIRST_WAIT, LONGEST_WAIT = 0.001, 0.05


class PrepareRound(QuorumRound):
    """Promises of a majority, and enough of them voting for the newest record."""

    def __init__(self, calls: Sequence[Call], needed: Quorum) -> None:
        super().__init__(calls)
        self.needed = needed

    def check(self, call: Call, result: Any) -> None:
        check_ack(result)

    def granted(self) -> list[Reply]:
        return [reply for reply in self.live() if counts(reply.result)]

    def wanted(self) -> tuple[Quorum, Sequence[Reply]]:
        return read_wants(judge(_answers(self.granted())), self.needed, self.needed)

    def newest(self) -> Record | None:
        """The record that the promises vote for, None for absent."""
        verdict = judge(_answers(self.granted()))
        voted = verdict.candidate is not None and self.needed.met(verdict.voters)
        return verdict.record() if voted else None

    def highest(self) -> Version:
        """The highest version that those who promised hold or, lacking the key, may have forgotten."""
        return max((reply.result[2] for reply in self.granted()), default=ZERO)

    def highest_newer(self) -> Version | None:
        return max((reply.result[2] for reply in self.replies if reply.result[1] == Status.NEWER), default=None)


def _answers(granted: Sequence[Reply]) -> list[Reply]:
    """Promises, put as the answers of a read."""
    made = []
    for reply in granted:
        complete, _, version, record = reply.result
        made.append(reply._replace(result=(complete, version, True) if record is None else (complete, *record)))
    return made


@attrs.frozen
class Change(Generic[T]):
    """What a conditional change decided: the bytes to write, or None to leave all as it is, and what to return."""

    result: T
    record: tuple[bytes, int, int | None] | None = None  # value, flags, ttl in ms


def prepared(ctx: Context, key: bytes, *, above: Version | None = None) -> Op[tuple[Version, PrepareRound]]:
    """A ballot that a majority has promised, however often it takes within the deadline.  It is `above` a version or,
    by default, of now."""
    clock, needed, wait = ctx.shared.clock, ctx.quorums(key).majority, FIRST_WAIT
    ballot = clock.stamp() if above is None else clock.above(above)
    while True:
        round_ = PrepareRound(ctx.calls(ctx.owners(key), "prepare", key, ballot), needed)
        yield round_
        if needed.met(round_.granted()):
            return ballot, round_
        yield release(ctx, key, ballot)
        newer = round_.highest_newer()
        if newer is None or round_.expired:
            raise quorum_error("prepare", round_, round_.shortage(), in_doubt=False, explain=explain_write)
        yield Sleep(wait * (0.5 + ctx.shared.random()))
        wait = min(LONGEST_WAIT, wait * 2)
        ballot = clock.above(max(newer, ballot))


def release(ctx: Context, key: bytes, ballot: Version) -> Detached:
    """Give up a ballot with which nothing will be written."""
    return Detached(ctx.calls(ctx.owners(key), "release", key, ballot))


def change(ctx: Context, what: str, key: bytes, decide: Callable[[Record | None], Change[T]]) -> Op[T]:
    """Change `key` by what `decide` makes of its newest record; what `decide` raises changes nothing."""
    ballot, round_ = yield from prepared(ctx, key)
    decided: Change[T] | None = None
    try:
        decided = decide(round_.newest())
    finally:
        if decided is None or decided.record is None:
            yield release(ctx, key, ballot)
    if decided.record is None:
        return decided.result
    calls = [ctx.call(call.node, "accept", key, ballot, *decided.record) for call in round_.calls]
    accepting = WriteRound(calls, round_.needed)
    yield accepting
    if not accepting.enough():
        raise write_error(what, [accepting])
    return decided.result


def check_version(version: object) -> None:
    """`TypeError` unless it is one."""
    if not isinstance(version, bytes) or len(version) != len(ZERO):
        raise TypeError("a version is what gets() and set() return: 12 bytes")


def add(ctx: Context, key: Key, value: Any, ttl: TtlOrDefault = DEFAULT) -> Op[bool]:
    """Store `value` if the key is absent; whether it was."""
    raw, life = ctx.key(key), ctx.ttl(ttl)
    data, flags = ctx.options.codec.encode(value)

    def decide(held: Record | None) -> Change[bool]:
        return Change(True, (data, flags, life)) if held is None else Change(False)

    return (yield from change(ctx, "add", raw, decide))


def replace(ctx: Context, key: Key, value: Any, ttl: TtlOrDefault = DEFAULT) -> Op[bool]:
    """Store `value` if the key is there; whether it was."""
    raw, life = ctx.key(key), ctx.ttl(ttl)
    data, flags = ctx.options.codec.encode(value)

    def decide(held: Record | None) -> Change[bool]:
        return Change(False) if held is None else Change(True, (data, flags, life))

    return (yield from change(ctx, "replace", raw, decide))


def cas(ctx: Context, key: Key, value: Any, version: Version, ttl: TtlOrDefault = DEFAULT) -> Op[bool]:
    """Store `value` if the key still has `version`; whether it had."""
    check_version(version)
    raw, life = ctx.key(key), ctx.ttl(ttl)
    data, flags = ctx.options.codec.encode(value)

    def decide(held: Record | None) -> Change[bool]:
        return Change(True, (data, flags, life)) if held is not None and held.version == version else Change(False)

    return (yield from change(ctx, "cas", raw, decide))


def incr(ctx: Context, key: Key, delta: int = 1, *, initial: int = 0, ttl: TtlOrDefault = DEFAULT) -> Op[int]:
    """Add `delta` to a counter; an absent one counts as `initial`.  `ttl` applies where the counter is made anew."""
    for name, number in (("delta", delta), ("initial", initial)):
        if type(number) is not int:
            raise TypeError(f"{name} is an int, not {type(number).__name__}")
    raw, life, codec = ctx.key(key), ctx.ttl(ttl), ctx.options.codec

    def decide(held: Record | None) -> Change[int]:
        number = (initial if held is None else codec.decode_counter(held.value, held.flags)) + delta
        data, flags = codec.encode_counter(number)
        return Change(number, (data, flags, life if held is None else held.ttl))

    return (yield from change(ctx, "incr", raw, decide))


def decr(ctx: Context, key: Key, delta: int = 1, *, initial: int = 0, ttl: TtlOrDefault = DEFAULT) -> Op[int]:
    """As `incr`, subtracting."""
    if type(delta) is not int:
        raise TypeError(f"delta is an int, not {type(delta).__name__}")
    return (yield from incr(ctx, key, -delta, initial=initial, ttl=ttl))


def touch(ctx: Context, key: Key, ttl: TtlOrDefault = DEFAULT) -> Op[bool]:
    """Give the key a new lifetime; whether it is there."""
    raw, life = ctx.key(key), ctx.ttl(ttl)

    def decide(held: Record | None) -> Change[bool]:
        return Change(False) if held is None else Change(True, (held.value, held.flags, life))

    return (yield from change(ctx, "touch", raw, decide))
