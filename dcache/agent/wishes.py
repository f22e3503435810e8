"""What is asked of the cluster: that a node be let in, or that a member leave or be forgotten.

A wish is noted at the member that it was told to, and is soon forgotten: whoever wishes says it again and looks at the
table.  So nothing need be taken back when somebody dies, and no wish comes true long after it was given up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from dcache.agent.register import Proposal
from dcache.agent.terms import Terms, terms_from_wire
from dcache.membership import Member, MemberTable, RingState, member_from_wire
from dcache.node.refusal import Refusal
from dcache.wire import Code

LIFETIME = 10.0
"""Seconds that a wish is kept after it was last said."""

RENEW_EVERY = 1.0
"""Seconds between two times that it is said."""


@attrs.frozen
class Wish:
    """That `name` be on the ring, with the row `newcomer`, or not be on it; `dead` is the word that it is."""

    name: str
    newcomer: Member | None = None
    dead: bool = False

    def fulfilled(self, state: RingState) -> bool:
        """Whether the ring is as wished, or will be when the change under way is done.

        Who is on its way off the ring as one that leaves, and died, may have to be forgotten nevertheless.
        """
        if self.dead and self.name in state.going:
            return state.forgotten
        coming = state.members if state.next is None else state.next
        return (self.name in {node.name for node in coming}) == (self.newcomer is not None)

    def proposal(self, state: RingState) -> Proposal:
        """What is to follow `state`, a ring that is not changing."""
        staying = [node for node in state.members if node.name != self.name]
        new = [] if self.newcomer is None else [self.newcomer.placed()]
        coming = tuple(sorted((*staying, *new), key=lambda node: node.name))
        return Proposal(RingState(state.epoch + 1, state.members, coming, self.dead), self.newcomer)


class Wishes:
    """Those that this member was told, the oldest first."""

    def __init__(self, table: Callable[[], MemberTable | None]) -> None:
        self._table = table
        self._wishes: dict[str, Wish] = {}
        self._left: dict[str, float] = {}  # seconds

    # -- being asked --------------------------------------------------------------------------------------------------

    def join(self, row: Any, terms: Any) -> None:
        """A node wishes to be let in."""
        table, newcomer = self._known(), member_from_wire(row)
        check_terms(table, terms_from_wire(terms))
        self._check_name(table, newcomer)
        if newcomer.name not in table.ring_state.names:
            self._note(Wish(newcomer.name, newcomer))

    def leave(self, name: str) -> None:
        """A member that is there is to go; done already if there is none of that name."""
        table = self._known()
        if name not in table.ring_state.names:
            return
        if name in table.down:
            raise _refused(f"{name} is down and cannot hand over what it holds: forget it instead")
        self._check_leaves_some(table, [name])
        self._note(Wish(name))

    def forget(self, names: Sequence[str]) -> None:
        """Members that are down are to be taken off the ring, one after the other; some may be off it by now.

        It is the word of whoever asks that they are dead, and hold nothing that anybody will hear of again.
        """
        table = self._known()
        if not names or isinstance(names, str) or not all(type(name) is str for name in names):
            raise TypeError("forget takes an array of names")
        there = [name for name in names if name in table.members]
        if not there:
            raise _refused(f"there is no member called {', '.join(names)}")
        for name in there:
            if name not in table.down:
                raise _refused(f"{name} is not down: a member that answers can only leave")
        self._check_leaves_some(table, there)
        for name in there:
            self._note(Wish(name, dead=True))

    # -- being fulfilled ----------------------------------------------------------------------------------------------

    def age(self, seconds: float) -> None:
        """So much time has gone by."""
        for name in list(self._wishes):
            self._left[name] -= seconds
            if self._left[name] <= 0:
                self._drop(name)

    def next(self, table: MemberTable) -> Wish | None:
        """The oldest wish that is still to be fulfilled and may be; of a dead member first, for others may wait for it.

        No member is forgotten that answers again.
        """
        for name, wish in sorted(self._wishes.items(), key=lambda item: not item[1].dead):
            if wish.fulfilled(table.ring_state) or (wish.dead and name not in table.down):
                self._drop(name)
            elif wish.newcomer is not None or len(table.ring_state.members) > 1:
                return wish
        return None

    def _note(self, wish: Wish) -> None:
        self._wishes[wish.name] = wish
        self._left[wish.name] = LIFETIME

    def _drop(self, name: str) -> None:
        del self._wishes[name], self._left[name]

    # -- what is refused ----------------------------------------------------------------------------------------------

    def _known(self) -> MemberTable:
        table = self._table()
        if table is None:
            raise Refusal(Code.NOT_READY, "this node has not joined a cluster yet")
        return table

    def _check_name(self, table: MemberTable, newcomer: Member) -> None:
        known = table.members.get(newcomer.name)
        wish = self._wishes.get(newcomer.name)
        if known is None and wish is not None and wish.newcomer is not None:
            known = wish.newcomer
        if known is not None and known.boot_id != newcomer.boot_id and known.address != newcomer.address:
            raise _refused(name_taken(known))

    def _check_leaves_some(self, table: MemberTable, names: Sequence[str]) -> None:
        if {node.name for node in table.ring_state.members} <= set(names):
            raise _refused("the last member cannot go: stop it")


def check_terms(table: MemberTable, terms: Terms) -> None:
    """`Refusal` if a node with these terms cannot be of the cluster."""
    told = terms.differ_from(table.settings)
    if told is not None:
        raise Refusal(Code.CLUSTER_MISMATCH, told)


def name_taken(row: Member) -> str:
    return (
        f"the name {row.name} is taken by a live node at {row.address}: give this one another --name, or stop that one"
    )


def _refused(why: str) -> Refusal:
    return Refusal(Code.BAD_REQUEST, why)
