"""Looking at a cluster from outside while its ring changes, and asking for a change of it.

A wish (`leave`, `forget`) is told to one member, which notes it for some seconds; the members agree on what follows.
Whoever wishes says it again now and then, and looks at the table to see it fulfilled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import attrs

from dcache.errors import ClusterMismatch, NodeError, NoNodesAvailable, ProtocolError
from dcache.membership import MemberTable
from dcache.ops.context import Context
from dcache.ops.effects import Call, FirstOf, Gather, Op, Round
from dcache.ops.quorum import majority


@attrs.frozen
class Survey:
    """The newest of all members' tables, and by name what each member that answered says in `stats`."""

    table: MemberTable
    stats: Mapping[str, Mapping[str, Any]]

    @property
    def changing(self) -> bool:
        return self.table.ring_state.next is not None

    @property
    def members(self) -> frozenset[str]:
        """Who is on the ring now."""
        return frozenset(place.name for place in self.table.ring_state.members)

    @property
    def waited_for(self) -> tuple[str, ...]:
        """Those for whom a change of the ring waits: they stay, or come, and have yet to complete their slots, or do
        not answer.  Who is down is not waited for."""
        state = self.table.ring_state
        staying = {place.name for place in (state.members if state.next is None else state.next)} - self.table.down
        return tuple(name for name in sorted(staying) if not _complete(self.stats.get(name)))

    def enough(self) -> bool:
        """Whether so many members answer that they can agree on another ring."""
        return len(self.members & set(self.stats)) >= majority(len(self.members))


def _complete(about: Mapping[str, Any] | None) -> bool:
    return about is not None and about.get("slots_complete", 0) >= about.get("slots", 0)


class _Census(Gather):
    """Table and statistics of everyone who is of this cluster and answers."""

    def __init__(self, ctx: Context) -> None:
        names = sorted(ctx.table.members)
        super().__init__([Call(name, method, ()) for method in ("table", "stats") for name in names])
        self.newest = ctx.table
        self.stats: dict[str, Mapping[str, Any]] = {}

    def check(self, call: Call, result: Any) -> None:
        try:
            if call.method == "table":
                self.newest = self.newest.merge(MemberTable.from_wire(result))
            else:
                self.stats[call.node] = dict(result)
        except (ClusterMismatch, TypeError, ValueError) as error:
            raise ProtocolError(f"nothing that a member of this cluster says: {error}") from None


def survey(ctx: Context) -> Op[Survey]:
    """What all known members say now; `NoNodesAvailable` if none answers."""
    round_ = _Census(ctx)
    yield round_
    if not round_.replies:
        raise _nobody(round_)
    return Survey(round_.newest, round_.stats)


def wish(ctx: Context, method: str, *params: Any) -> Op[None]:
    """Tell a wish to one member that takes it; `NodeError` if one refuses it and none takes it.

    To one that is on the ring already, if one is up: who is on its way there has no say yet.
    """
    there = {node.name for node in ctx.table.ring_state.members} - ctx.table.down
    names = sorted(ctx.table.members, key=lambda name: (name not in there, name))
    calls = [Call(name, method, params) for name in names]
    round_ = FirstOf(calls[:1], calls[1:])
    yield round_
    if round_.replies:
        return
    for failure in round_.failures:
        if isinstance(failure.error, NodeError):
            raise failure.error
    raise _nobody(round_)


def everybody(ctx: Context, method: str, *params: Any) -> Op[frozenset[str]]:
    """Tell all members something; the names of those that answered."""
    round_ = Gather([Call(name, method, params) for name in sorted(ctx.table.members)])
    yield round_
    if not round_.replies:
        raise _nobody(round_)
    return frozenset(reply.node for reply in round_.replies)


def off_the_ring(table: MemberTable, names: Collection[str]) -> bool:
    """Whether none of `names` is on any ring in force."""
    return table.ring_state.names.isdisjoint(names)


def going(table: MemberTable, names: Collection[str]) -> bool:
    """Whether none of `names` will be on the ring once the change under way, if any, is done."""
    state = table.ring_state
    coming = state.members if state.next is None else state.next
    return {place.name for place in coming}.isdisjoint(names)


def _nobody(round_: Round) -> NoNodesAvailable:
    return NoNodesAvailable({failure.node: str(failure.error) for failure in round_.failures})
