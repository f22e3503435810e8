"""Writing one key: set and delete.

A write goes to all owners and is done when W of them acknowledge it.  Where something newer is in the way of that, the
write is made again with a version just above, and being beaten to it then counts as done: it was overtaken.

That holds only if the version is above all that was acknowledged before the write began; else what beats it may be the
very value that it is to replace.  So it is made from the answers of a majority (`Quorums.hold`), which meets every
acknowledged write; made from fewer, being beaten to it does not count.  Nor does being refused for a promise: what was
promised may have been computed before this write began, or may never be stored.  Then the write is made again.

Clients that ask for linearizability write by the rules in `linearizable` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dcache.ops import linearizable
from dcache.ops.context import DEFAULT, Context, Key, Quorums, TtlOrDefault
from dcache.ops.effects import Call, Op
from dcache.ops.quorum import NOBODY, WriteRound, write_error
from dcache.record import Version

ATTEMPTS = 5
"""How often a write is made, each time above all that was in its way before."""


def write(ctx: Context, what: str, key: bytes, call: Callable[[str, Version], Call]) -> Op[tuple[Version, WriteRound]]:
    """Make the write `call(node, version)` at the owners of `key`; `QuorumError` if too few acknowledge."""
    if ctx.options.linearizable:
        version, rounds = yield from linearizable.write(ctx, what, key, call)
    else:
        version, rounds = yield from _stamped(ctx, key, call)
    if not rounds[-1].enough():
        raise write_error(what, rounds)
    return version, rounds[-1]


def _stamped(ctx: Context, key: bytes, call: Callable[[str, Version], Call]) -> Op[tuple[Version, list[WriteRound]]]:
    """A write with a version of this client's clock: the version that it was made with at last, and its rounds."""
    owners, quorums, others = ctx.writers(key), ctx.quorums(key), ctx.stand_ins(key)
    rounds: list[WriteRound] = []
    version = ctx.shared.clock.stamp()
    while True:
        spares = [call(node, version) for node in others]
        rounds.append(attempt(quorums, [call(node, version) for node in owners], rounds, spares))
        yield rounds[-1]
        higher = next_version(ctx, rounds)
        if higher is None:
            return version, rounds
        version = higher


def attempt(
    quorums: Quorums, calls: Sequence[Call], before: Sequence[WriteRound], spares: Sequence[Call] = ()
) -> WriteRound:
    """The round of a write that was attempted `before`."""
    overtaken = bool(before) and any(quorums.hold.met(round_.heard()) for round_ in before)
    hear = NOBODY if overtaken else quorums.hold
    return WriteRound(calls, quorums.writes, spares=spares, overtaken=overtaken, hear=hear)


def next_version(ctx: Context, rounds: Sequence[WriteRound]) -> Version | None:
    """What to make a write with once more; None where that is not needed or would not help."""
    last = rounds[-1]
    newer = last.highest_newer()
    if newer is None or last.enough() or last.expired:
        return None
    again = len(rounds) == 1 or (last.met_promise() and len(rounds) < ATTEMPTS)
    return ctx.shared.clock.above(newer) if again else None


def set(ctx: Context, key: Key, value: Any, ttl: TtlOrDefault = DEFAULT) -> Op[Version]:
    """Store `value`; returns the version it was written with."""
    raw, life = ctx.key(key), ctx.ttl(ttl)
    data, flags = ctx.options.codec.encode(value)
    version, _ = yield from write(
        ctx, "set", raw, lambda node, version: ctx.call(node, "set", raw, version, data, flags, life)
    )
    return version


def delete(ctx: Context, key: Key) -> Op[bool]:
    """Forget `key`; whether an owner that acknowledged held it."""
    raw = ctx.key(key)
    _, round_ = yield from write(ctx, "delete", raw, lambda node, version: ctx.call(node, "delete", raw, version))
    return any(len(reply.result) > 3 and bool(reply.result[3]) for reply in round_.replies)
