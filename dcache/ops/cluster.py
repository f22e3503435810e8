"""What concerns nodes rather than keys: finding the cluster, its members, whether it is ready, clear, scan,
statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from dcache.errors import ClockSkew, ClusterMismatch, NodeError, NoNodesAvailable, ProtocolError
from dcache.membership import Member, MemberTable
from dcache.ops.context import Context, Key
from dcache.ops.effects import Call, FirstOf, Gather, Link, Op, Reply, Sleep
from dcache.ops.linearizable import TopRound
from dcache.ops.quorum import Quorum, check_answer, explain_read, majority, quorum_error
from dcache.record import ZERO, Version
from dcache.wire import Code

READY_PAUSE = 0.05


class _TableRound(FirstOf):
    """The member table from any one node; a node that is in no cluster yet has none."""

    def check(self, call: Call, result: Any) -> None:
        MemberTable.from_wire(result)


def discover(addresses: Sequence[str]) -> Op[tuple[MemberTable, str]]:
    """The member table, from any of `addresses` (in the order to try), and who gave it; `NoNodesAvailable` says why of
    each."""
    calls = [Call(address, "table", ()) for address in addresses]
    round_ = _TableRound(calls[:1], calls[1:])
    yield round_
    if round_.replies:
        return _told(round_)
    for kind in (ClockSkew, ClusterMismatch):
        told = [failure.error for failure in round_.failures if isinstance(failure.error, kind)]
        if told and len(told) == len(round_.failures):
            raise told[0]
    reasons = {call.node: "not asked: the time was over" for call in round_.spares}
    reasons |= {failure.node: str(failure.error) or type(failure.error).__name__ for failure in round_.failures}
    raise NoNodesAvailable(reasons)


def _told(round_: _TableRound) -> tuple[MemberTable, str]:
    reply = round_.replies[0]
    return MemberTable.from_wire(reply.result), reply.node


def await_table(addresses: Sequence[str]) -> Op[tuple[MemberTable, str]]:
    """As `discover`, for as long as the operation's time lasts: the nodes may still be starting."""
    while True:
        round_ = _TableRound([Call(address, "table", ()) for address in addresses])
        yield round_
        if round_.replies:
            return _told(round_)
        if round_.expired:
            raise NoNodesAvailable({failure.node: str(failure.error) for failure in round_.failures})
        yield Sleep(READY_PAUSE)


def members(ctx: Context) -> Op[tuple[Member, ...]]:
    """The rows of the member table as one of the nodes has it now, by name."""
    round_ = _TableRound(*_one_after_another(ctx, "table"))
    yield round_
    if not round_.replies:
        raise NoNodesAvailable({failure.node: str(failure.error) for failure in round_.failures})
    rows = MemberTable.from_wire(round_.replies[0].result).members
    return tuple(row for _, row in sorted(rows.items()))


def _one_after_another(ctx: Context, method: str) -> tuple[list[Call], list[Call]]:
    calls = [Call(node, method, ()) for node in ctx.nodes]
    turn = next(ctx.shared.turn) % len(calls)
    calls = calls[turn:] + calls[:turn]
    return calls[:1], calls[1:]


class _TimedGather(Gather):
    """Everybody's answer, with the seconds that each took."""

    def __init__(self, ctx: Context, method: str) -> None:
        super().__init__([Call(node, method, ()) for node in ctx.nodes])
        self._clock = ctx.shared.monotonic
        self._start = self._clock()
        self.seconds: dict[str, float] = {}

    def replied(self, call: Call, result: Any, link: Link) -> Sequence[Call]:
        self.seconds[call.node] = self._clock() - self._start
        return super().replied(call, result, link)


def ping(ctx: Context) -> Op[dict[str, float]]:
    """The round trip of every member that answers, in seconds; `NoNodesAvailable` if none does."""
    round_ = _TimedGather(ctx, "ping")
    yield round_
    if not round_.seconds:
        raise NoNodesAvailable({failure.node: str(failure.error) for failure in round_.failures})
    return round_.seconds


def stats(ctx: Context) -> Op[dict[str, Any]]:
    """{"client": counters of this client, "nodes": {name: the node's statistics, or {"error": why not}}}."""
    round_ = Gather([Call(node, "stats", ()) for node in ctx.nodes])
    yield round_
    nodes: dict[str, Any] = {failure.node: {"error": str(failure.error)} for failure in round_.failures}
    nodes.update({reply.node: dict(reply.result) for reply in round_.replies})
    return {"client": attrs.asdict(ctx.shared.counters), "nodes": dict(sorted(nodes.items()))}


def wait_ready(ctx: Context) -> Op[None]:
    """Until so many members answer, and know their slots, that every key can be read and written."""
    needed = ctx.everywhere(lambda n: max(ctx.reads(n), ctx.writes(n)))
    while True:
        round_ = Gather([Call(node, "ready", (ctx.fingerprint,)) for node in ctx.nodes])
        yield round_
        ready = [reply for reply in round_.replies if reply.result is True]
        if needed.met(ready):
            return
        if round_.expired:
            shortage = needed.shortage(ready)
            raise quorum_error("wait_ready", round_, shortage, in_doubt=False, explain=_explain_ready)
        yield Sleep(READY_PAUSE)


def _explain_ready(reply: Reply) -> str | None:
    return None if reply.result is True else "has not completed its slots since it started"


def clear(ctx: Context) -> Op[None]:
    """Forget the whole namespace: first the highest version anywhere, then a floor one above it everywhere.

    Where something higher came in between it is done once more, above that: a conditional change or a fill that was
    promised its version before goes by what it read before, and would bring that back.  One that is promised later, by
    an owner that forgot, meets an owner that no longer vouches for what is forgotten.
    """
    highest = yield from _everywhere(ctx, "newest", (), in_doubt=False)
    clock = ctx.shared.clock
    version = clock.above(highest if ctx.options.linearizable else max(highest, clock.stamp()))
    highest = yield from _everywhere(ctx, "clear", (version,), in_doubt=True)
    if highest > version:
        yield from _everywhere(ctx, "clear", (clock.above(highest),), in_doubt=True)


def _everywhere(ctx: Context, method: str, params: tuple[Any, ...], in_doubt: bool) -> Op[Version]:
    """The highest version told by the nodes, of which every slot has enough among those that answered."""
    needed = ctx.everywhere(lambda n: max(ctx.writes(n), majority(n)) if ctx.strict else 1)
    round_ = TopRound(ctx.calls(ctx.nodes, method, *params), needed)
    yield round_
    if not round_.enough():
        raise quorum_error(method, round_, round_.shortage(), in_doubt=in_doubt, explain=explain_read)
    return round_.highest()


@attrs.frozen
class ScanState:
    """How far a scan has come under one ring: the cursor at each node that has more, and the nodes that are away."""

    fingerprint: bytes
    cursors: Mapping[str, tuple[int, int] | None]
    away: frozenset[str] = frozenset()


class _ScanRound(Gather):
    """A page from every node that has more."""

    def check(self, call: Call, result: Any) -> None:
        if type(result) is not tuple or len(result) != 2 or type(result[1]) is not tuple:
            raise ProtocolError("a page of a scan has a cursor and keys")


def scan_page(ctx: Context, prefix: bytes, state: ScanState | None) -> Op[tuple[list[bytes], ScanState | None]]:
    """The next keys, and the state to go on with or None at the end.  A key may come more than once.

    When the ring has changed the scan begins anew: what it has not seen may have moved to where it has been.
    `QuorumError` if so many nodes are away that some keys might not be seen at all; in available mode if all are.
    """
    if state is None or state.fingerprint != ctx.fingerprint:
        state = ScanState(ctx.fingerprint, dict.fromkeys(ctx.nodes))
    round_ = _ScanRound([ctx.call(node, "scan", prefix, cursor) for node, cursor in state.cursors.items()])
    yield round_
    cursors = {reply.node: reply.result[0] for reply in round_.replies if reply.result[0] is not None}
    restarted = dict.fromkeys(failure.node for failure in round_.failures if _cursor_lost(failure.error))
    cursors.update(restarted)
    away = state.away | {failure.node for failure in round_.failures} - restarted.keys()
    needed = ctx.everywhere(majority) if ctx.strict else Quorum(1)
    there = [Call(node, "scan", ()) for node in ctx.nodes if node not in away]
    if not needed.met(there):
        raise quorum_error("scan", round_, needed.shortage(there), in_doubt=False, explain=lambda reply: None)
    keys = [key for reply in round_.replies for key in reply.result[1]]
    return keys, ScanState(ctx.fingerprint, cursors, away) if cursors else None


def _cursor_lost(error: Exception) -> bool:
    return isinstance(error, NodeError) and error.code == Code.UNKNOWN_CURSOR


@attrs.frozen
class Holding:
    """What one owner says of a key.  `version` is that of the record or, where it is absent, the floor of its slot;
    `ttl` is in seconds, None for no expiry.  With an `error` the owner said nothing."""

    held: bool = False
    version: Version = ZERO
    ttl: float | None = None
    complete: bool = False
    error: str | None = None


class _PeekRound(Gather):
    def check(self, call: Call, result: Any) -> None:
        check_answer(result)


def holders(ctx: Context, key: Key) -> Op[dict[str, Holding]]:
    """What every owner of `key` says of it, in preference order; counts as no use.  `NoNodesAvailable` if none
    answers."""
    raw = ctx.key(key)
    owners = ctx.owners(raw)
    round_ = _PeekRound(ctx.calls(owners, "peek", raw))
    yield round_
    reasons = {failure.node: str(failure.error) or type(failure.error).__name__ for failure in round_.failures}
    if not round_.replies:
        raise NoNodesAvailable(reasons)
    told = {node: Holding(error=reason) for node, reason in reasons.items()}
    told |= {reply.node: _holding(*reply.result) for reply in round_.replies}
    return {node: told[node] for node in owners}


def _holding(complete: bool, version: bytes, *rest: Any) -> Holding:
    if len(rest) == 1:
        return Holding(False, Version(version), complete=complete)
    ttl = rest[2]
    return Holding(True, Version(version), None if ttl is None else ttl / 1000, complete)
