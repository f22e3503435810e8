"""Writes whose order no clock decides: sets and deletes of a client with `consistency="linearizable"`.

A write goes in two rounds.  The first asks a read quorum of the owners for the *top* of the key: the highest version
held, forgotten or promised that they know of.  The second writes to all owners with the version just above the highest
top, and is done when W of them answer `STORED` or `NEWER`.  No clock is asked, and nothing is applied twice.

Why that is linearizable, forgetting apart.  Take all writes, and the reads beside the writes they return, in the order
of their versions.  It has to agree with real time:

* An owner that answered `STORED` or `NEWER` to version v holds v or something higher from then on, or lacks the key
  with a floor that is not lower (the floor itself is what `NEWER` told of, or the version of a delete).  So after a
  write was acknowledged a majority knows v or higher, and after a read returned v a majority holds it.
* A write that begins later asks one of these, and gets a higher version.
* A read that begins later asks one of these: below v it finds no majority of votes.  It returns v, something higher, or
  a miss.

Being beaten thus needs no second try: what beat the write has a higher version, so the write that made it was not
acknowledged, nor returned by a read, when this one asked for the top; the two were made at the same time, or that one
failed, in doubt.  If it was a floor, the value was stored and at once forgotten, as if there had been no room.

Conditional changes have a place in that order too, but must come right after what they looked at.  One that looked at
something older than v, and got a ballot above v, has the promise of a majority; one of these acknowledged v.  It did so
before it promised, or the change would have seen v (or a floor, and no vote for anything older).  After it promised, it
answers `PROMISED`, and goes on doing so to what is below whatever it has promised in that slot: that does not count.

So the promises of others can keep a write out: of a change, or of a computation that began after the tops were asked
for.  Then the write is *settled* with a ballot of its own, like a conditional change.  With a majority of promises
nothing else gets in below that ballot.  Where none of that majority knows of anything above v, none was acknowledged or
returned by a read, nor will be: the write made again, with the ballot, is the same write still.  (It was not applied
twice: nothing can come between the two.)  Otherwise something may have come after v was seen, and the write is in
doubt, unless it is certain that v was stored nowhere.

What may have been stored is not made again for any other reason either: not with a third version, and not when the ring
changes (see `reruns`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dcache.errors import DcacheError, ProtocolError
from dcache.ops.context import Context
from dcache.ops.effects import Call, Op, Reply
from dcache.ops.mutate import prepared, release
from dcache.ops.quorum import Quorum, QuorumRound, WriteRound, explain_read, quorum_error
from dcache.record import ZERO, Version

Caller = Callable[[str, Version], Call]
"""The call that makes a write at a node, with a version."""


class TopRound(QuorumRound):
    """Asks until so many complete owners as are `needed` have told a version each."""

    reserved = 0

    def __init__(self, calls: Sequence[Call], needed: Quorum, spares: Sequence[Call] = ()) -> None:
        super().__init__(calls, spares)
        self.needed = needed

    def check(self, call: Call, result: Any) -> None:
        if type(result) is not tuple or len(result) != 2 or type(result[1]) is not bytes:
            raise ProtocolError("an answer about versions is whether it counts, and a version")

    def wanted(self) -> tuple[Quorum, Sequence[Reply]]:
        return self.needed, [reply for reply in self.live() if reply.result[0] is True]

    def highest(self) -> Version:
        """The highest version told, also by those that do not count."""
        return max((Version(reply.result[1]) for reply in self.replies), default=ZERO)


def top_round(ctx: Context, key: bytes) -> TopRound:
    """The first round of a write of `key`: as many owners are asked as a read asks."""
    reads = ctx.quorums(key).reads
    first, spares = reads.split(ctx.calls(ctx.readers(key), "top", key))
    return TopRound(first, reads, spares)


def version_above(ctx: Context, asked: TopRound) -> Version:
    """The version to write with, after the first round."""
    return ctx.shared.clock.above(asked.highest())


def top_error(what: str, round_: TopRound) -> DcacheError:
    """The error of a write whose first round brought too little: nothing was written."""
    return quorum_error(what, round_, round_.shortage(), in_doubt=False, explain=explain_read)


def write_round(ctx: Context, key: bytes, calls: Sequence[Call]) -> WriteRound:
    """The second round."""
    return WriteRound(calls, ctx.quorums(key).writes, overtaken=True)


def write(ctx: Context, what: str, key: bytes, call: Caller) -> Op[tuple[Version, list[WriteRound]]]:
    """Make a write; its version, and the rounds that wrote.  Whether the last was enough is for the caller to see."""
    asked = top_round(ctx, key)
    yield asked
    if not asked.enough():
        raise top_error(what, asked)
    version = version_above(ctx, asked)
    round_ = write_round(ctx, key, [call(node, version) for node in ctx.owners(key)])
    yield round_
    return (yield from settle(ctx, key, version, round_, call))


def settle(
    ctx: Context, key: bytes, version: Version, round_: WriteRound, call: Caller
) -> Op[tuple[Version, list[WriteRound]]]:
    """What `write` returns, after its second round: where promises kept the write out, one more with a ballot."""
    if round_.enough() or round_.expired or not round_.met_promise():
        return version, [round_]
    try:
        ballot, promised = yield from prepared(ctx, key, above=max(version, round_.highest_newer() or ZERO))
    except DcacheError:  # no more than the write itself did
        return version, [round_]
    if round_.in_doubt() and promised.highest() > version:
        yield release(ctx, key, ballot)
        return version, [round_]
    final = WriteRound([_with_promise(call(node, ballot)) for node in ctx.owners(key)], ctx.quorums(key).writes)
    yield final
    return ballot, [round_, final]


def _with_promise(call: Call) -> Call:
    """A set is made only where the promise stands.  A delete elsewhere forgets, which is always allowed."""
    return call._replace(method="accept") if call.method == "set" else call
