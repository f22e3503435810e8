"""What makes a node a member: its row, the table it holds, and what it answers to other nodes.

Invariants:

* The table changes in one place (`_install`).  In the same step the node learns which slots it owns now and whether it
  is to doubt what it holds, and then the service and the connected clients learn of the table: no request is answered
  under a fingerprint with the complete bits of another.
* A node is of one cluster for as long as its process lives.
* A process knows everything it ever acknowledged exactly when the cluster was founded with this process in it; one that
  comes later, under an old name or a new one, has yet to complete its slots.
* Who missed a ring state cannot tell whose its slots were in it, and doubts all that it holds.

Decisions only: what is said to other nodes is in `formation`, `detector`, `register` and `changes`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import attrs

from dcache.agent.register import (
    Register,
    attestation_to_wire,
    ballot_from_wire,
    follows,
    life_from_wire,
    promise_to_wire,
    proposal_from_wire,
    quorum_from_wire,
)
from dcache.agent.terms import CannotJoin, Terms, terms_from_wire
from dcache.agent.wishes import Wishes, name_taken
from dcache.errors import ClusterMismatch, ProtocolError
from dcache.membership import Member, MemberTable, RingState, Settings, member_from_wire, member_to_wire
from dcache.node.refusal import Refusal
from dcache.ops.quorum import majority
from dcache.wire import Code

__all__ = ["Agent", "Ballot", "CannotJoin", "Holdings", "Terms", "terms_from_wire"]

log = logging.getLogger("dcache.agent")

FOUNDED = 1
"""The epoch of the ring state that a cluster is founded with."""

Ballot = tuple[tuple[str, str], ...]
"""Names and boot ids of all who are to found a cluster, sorted; the first is the founder."""


class Holdings(Protocol):
    """What an agent tells of slots to the store of its node."""

    def own(self, slots: Sequence[int]) -> None:
        """The node owns exactly these now."""

    def doubt(self) -> None:
        """No slot is complete."""

    def complete(self, slots: Sequence[int]) -> None:
        """All that was acknowledged for these is known."""


class Agent:
    """`publish(table)` is called with every new table, `holdings` told what follows from it for the node's slots.

    `leftover` are slots that this node owned and does not any more: what it holds there may be dropped.  `regained` are
    those that it owns again before that was done: it may hold there what others have overwritten since.
    """

    def __init__(self, me: Member, terms: Terms, publish: Callable[[MemberTable], None], holdings: Holdings) -> None:
        self.me, self.terms = me, terms
        self.table: MemberTable | None = None
        self.candidates: dict[str, Member] = {}  # the others that are waiting for a cluster, as last heard
        self.unlike: dict[str, int] = {}  # those that wait too and expect so many nodes, not as many as this one
        self.trouble: CannotJoin | None = None
        self.own_addresses = {me.address}  # where this node was found when it asked its peers
        self.peers: Sequence[str] = ()  # addresses that this node was sent to
        self.elsewhere: dict[str, str] = {}  # members that answer as nodes of another cluster, and of which
        self.called_by: frozenset[str] = frozenset()  # addresses of a cluster that takes this node for a member
        self.leftover: set[int] = set()
        self.regained: set[int] = set()
        self.behind: Callable[[MemberTable, MemberTable], bool] = lambda previous, table: False  # see `completing`
        self.resigned = self.leaving = self.left = False  # wants to go; is seen on its way; is gone
        self.register = Register(me, lambda: self.table, self.adopt)
        self.wishes = Wishes(lambda: self.table)
        self._owned: frozenset[int] = frozenset()
        self._found_at: dict[str, str] = {}
        self._voted_for: tuple[str, str] | None = None
        self._told: set[tuple[str, ...]] = set()  # what was logged, and is not again
        self._publish, self._holdings = publish, holdings

    def methods(self) -> Mapping[str, Callable[..., Any]]:
        """What other nodes, and clients, may ask of this one."""
        return {
            "exchange": self.exchange,
            "offer": self.offer,
            "candidate": self.candidate,
            "vote": self.vote,
            "ring_prepare": self.ring_prepare,
            "ring_accept": self.ring_accept,
            "ring_witness": self.ring_witness,
            "join": self.wishes.join,
            "leave": self.wishes.leave,
            "forget": self.wishes.forget,
        }

    @property
    def on_ring(self) -> bool:
        """Whether this node is on a ring in force."""
        return self.table is not None and self.me.name in self.table.ring_state.names

    # -- being asked --------------------------------------------------------------------------------------------------

    def exchange(self, digest: bytes) -> Any:
        """The table, or nil if its digest is `digest`."""
        if self.table is None:
            raise Refusal(Code.NOT_READY, "this node has not joined a cluster yet")
        return None if digest == self.table.digest else self.table.to_wire()

    def offer(self, data: Any) -> None:
        """Take in a table.

        A node that is of no cluster yet takes one only from the founder it voted for: an offer may have been under way
        for long, and its founder have started anew since.  All other tables it gets by asking for them; if it is called
        a member of that cluster, it will ask there.
        """
        try:
            table = MemberTable.from_wire(data)
            if self.table is None and not self._voted_for_founder_of(table):
                self._called_by(table)
                raise CannotJoin("this node did not vote for that cluster; it asks others for theirs itself")
            self._check_not_a_second(table)
            self.adopt(table)
        except ProtocolError as error:
            raise Refusal(Code.BAD_REQUEST, str(error)) from None
        except (ClusterMismatch, CannotJoin) as error:
            raise Refusal(Code.CLUSTER_MISMATCH, str(error)) from None

    def candidate(self, row: Any, terms: Any) -> tuple[Any, Any, Any]:
        """Another node introduces itself: (this node's row, its terms, its table or nil)."""
        if self.table is None:
            self.heard(member_from_wire(row), terms_from_wire(terms))
        table = None if self.table is None else self.table.to_wire()
        return member_to_wire(self.me), attrs.astuple(self.terms), table

    def vote(self, ballot: Any) -> bool:
        """Whether this node lets the first of `ballot` found a cluster of exactly those on it.

        It says so to one founder only, and takes that back only when the founder is known to have started anew.
        """
        wanted: Ballot = tuple((str(name), str(boot)) for name, boot in ballot)
        if self.table is not None or wanted != self.ballot():
            return False
        founder = wanted[0]
        if self._voted_for is not None and self._voted_for != founder and self._voted_for[0] != founder[0]:
            log.warning("not voting for %s: this node voted for %s before", founder[0], self._voted_for[0])
            return False
        self._voted_for = founder
        return True

    def _voted_for_founder_of(self, table: MemberTable) -> bool:
        if self._voted_for is None or not table.members:
            return False
        name, boot_id = self._voted_for
        return min(table.members) == name and table.members[name].boot_id == boot_id

    def _called_by(self, table: MemberTable) -> None:
        if self.me.name in table.members:
            self.called_by = frozenset(row.address for row in table.members.values()) - self.own_addresses

    def _check_not_a_second(self, table: MemberTable) -> None:
        """Nodes that founded a cluster while they are members of another that could not reach them in time must not go
        on, unless they are so many that the other one cannot: clients of both know their addresses.

        Who judges the same by `compare_with` at the other side comes to the opposite: of two clusters one gives way.
        """
        mine = self.table
        if mine is None or mine.settings.cluster_id == table.settings.cluster_id:
            return
        name, state = self.me.name, table.ring_state
        alone = _is_as_founded_alone(mine) and state.names != {name} and name in table.members
        if alone or (name in state.names and _can_agree(state, table.down | mine.ring_state.names)):
            self.trouble = CannotJoin(
                f"cluster {table.settings.cluster_id} has {self.me.name} for a member and reaches it here, but this "
                f"process is of cluster {mine.settings.cluster_id}: start it again, with --join and the address of "
                f"another member"
            )

    def note_elsewhere(self, name: str, error: Exception) -> None:
        """Note if a member answered as a node of another cluster.  Once most of them have, this node gives up: they
        lost their memory, all at once, and began anew.  For a node that waits to be let in it is enough that those who
        are left can agree on nothing."""
        if self.table is None or not isinstance(error, ClusterMismatch) or not error.cluster_id:
            return
        self.elsewhere[name] = error.cluster_id
        state, gone = self.table.ring_state, self._gone_to(error.cluster_id)
        if len(gone) >= majority(len(state.names)) or not (self.on_ring or _can_agree(state, gone)):
            self._give_up(error.cluster_id, gone)

    def compare_with(self, other: MemberTable) -> None:
        """A cluster that members of this one are of now looks like this.

        If it goes on, this node gives up as soon as those who are left can agree on nothing.  One that is still as its
        only member founded it will not go on, see `_check_not_a_second`.
        """
        gone = self._gone_to(other.settings.cluster_id)
        if self.table is not None and not _is_as_founded_alone(other) and not _can_agree(self.table.ring_state, gone):
            self._give_up(other.settings.cluster_id, gone)

    def _gone_to(self, cluster_id: str) -> Collection[str]:
        ring = self.table.ring_state.names if self.table is not None else ()
        return {name for name in ring if self.elsewhere.get(name) == cluster_id}

    def _give_up(self, cluster_id: str, gone: Collection[str]) -> None:
        assert self.table is not None
        self.trouble = CannotJoin(
            f"cluster {self.table.settings.cluster_id} is no more: {', '.join(sorted(gone))}, without whom its members "
            f"can agree on nothing, are of cluster {cluster_id} now: start this node again, with --join and the "
            f"address of one of them"
        )

    # -- the ring's register ------------------------------------------------------------------------------------------

    def ring_prepare(self, fingerprint: bytes, ballot: bytes) -> Any:
        """Phase one of the agreement on what follows the state of this fingerprint; see `register`."""
        self._at(fingerprint)
        return promise_to_wire(self.register.acceptor.prepare(ballot_from_wire(ballot)))

    def ring_accept(self, fingerprint: bytes, ballot: bytes, proposal: Any, quorum: Any) -> bool:
        """Phase two."""
        table, wanted = self._at(fingerprint), proposal_from_wire(proposal)
        if not follows(table.ring_state, wanted):
            raise ValueError("the proposed ring state is not one step from the one in force")
        return self.register.acceptor.accept(ballot_from_wire(ballot), wanted, quorum_from_wire(quorum))

    def ring_witness(self, fingerprint: bytes, name: str, boot_id: str, life: int) -> Any:
        """A member that started again wants to vote again."""
        row = self._at(fingerprint).members.get(name)
        if row is None or type(boot_id) is not str:
            raise ValueError("there is no member of that name")
        former = row.incarnation if row.boot_id != boot_id else 0
        told = self.register.acceptor.witness(name, boot_id, life_from_wire(life), former)
        return attestation_to_wire(told)

    def _at(self, fingerprint: bytes) -> MemberTable:
        """The table, if it is of this fingerprint."""
        if self.table is None:
            raise Refusal(Code.NOT_READY, "this node has not joined a cluster yet")
        if fingerprint != self.table.fingerprint:
            raise Refusal(Code.WRONG_RING, self.table.to_wire())
        return self.table

    # -- before there is a cluster ------------------------------------------------------------------------------------

    def heard(self, row: Member, terms: Terms, at: str | None = None) -> None:
        """Another node is waiting for a cluster too; `at` is the address where it was asked.

        What is heard without asking may be old: it never displaces a later start of the same node.
        """
        if row.name == self.me.name:
            if row.boot_id != self.me.boot_id:
                self.tell_once(
                    "another node is called %s too, at %s: give every node its own --name", row.name, row.address
                )
            elif at is not None:
                self.own_addresses.add(at)
            return
        if at is not None:
            self._found_at[at] = row.name
        if terms != self.terms:
            self._note_unlike(row, terms)
        elif at is not None or not self.superseded(row):
            self.candidates[row.name] = row
            self.unlike.pop(row.name, None)

    def _note_unlike(self, row: Member, terms: Terms) -> None:
        """It is no candidate.  Who expects nobody only waits to be let in once there is a cluster, and may do so."""
        if attrs.evolve(terms, expect=self.terms.expect) == self.terms:
            self.unlike[row.name] = terms.expect
            if 1 in (terms.expect, self.terms.expect):
                return
        self.tell_once(
            "node %s has other settings (%s, here %s): start all alike", row.name, str(terms), str(self.terms)
        )

    def tell_once(self, message: str, *about: str) -> None:
        """Log an error that would come up again and again."""
        if (message, *about) not in self._told:
            self._told.add((message, *about))
            log.error(message, *about)

    def superseded(self, row: Member) -> bool:
        """Whether a later start of that node has introduced itself."""
        known = self.candidates.get(row.name)
        return known is not None and known.incarnation > row.incarnation

    def gone(self, at: str) -> None:
        """Nobody answers at this address now."""
        name = self._found_at.pop(at, "")
        self.candidates.pop(name, None)
        self.unlike.pop(name, None)

    def ballot(self) -> Ballot:
        """This node and the candidates, the founder first."""
        return tuple(sorted((row.name, row.boot_id) for row in (self.me, *self.candidates.values())))

    def may_found(self) -> bool:
        """Whether it is for this node to found a cluster of those that are there."""
        together = self.ballot()
        return len(together) == self.terms.expect and together[0][0] == self.me.name

    def found(self, cluster_id: str) -> MemberTable:
        """Found a cluster of this node and the candidates."""
        rows = {row.name: row for row in (self.me, *self.candidates.values())}
        settings = Settings(cluster_id, self.terms.replicas, self.terms.vnodes, self.terms.ring_seed)
        placed = [row.placed() for _, row in sorted(rows.items())]
        table = MemberTable(settings, RingState(FOUNDED, tuple(placed)), rows)
        self.adopt(table)
        return table

    # -- the table ----------------------------------------------------------------------------------------------------

    def adopt(self, table: MemberTable) -> None:
        """Take in a table: the first makes this node one of the cluster, on the ring or waiting to be let in.
        `CannotJoin`, `ClusterMismatch`."""
        if self.table is not None:
            self._install(self.table.merge(table))
            return
        self._check_joinable(table)
        heard = table.members.get(self.me.name)
        founding = heard is not None and heard.boot_id == self.me.boot_id and table.ring_state.epoch == FOUNDED
        cluster_id = table.settings.cluster_id
        self._install(table)
        if founding:
            self.register.acceptor.voter = True
            self._holdings.complete(sorted(self._owned))
        elif heard is not None:
            log.warning("this node is a member of cluster %s that lost its memory", cluster_id)
        else:
            log.info("this node asks to join cluster %s", cluster_id)

    def _check_joinable(self, table: MemberTable) -> None:
        told = self.terms.differ_from(table.settings)
        if told is not None:
            self.trouble = CannotJoin(told)
            raise self.trouble
        if self._voted_for is not None and self.me.name not in table.ring_state.names:
            # It may have been founded with by now, and must not be of two clusters.
            cluster_id = table.settings.cluster_id
            self.tell_once("not joining cluster %s: this node voted for the founder of another before", cluster_id)
            raise CannotJoin(f"this node voted before it met cluster {cluster_id}")

    def _install(self, table: MemberTable) -> None:
        previous, heard = self.table, table.members.get(self.me.name)
        if previous is not None and heard is not None:
            self._look_for_namesake(previous, heard)
        table, self.me = table.refuting(self.me)
        if table == previous:
            return
        self.table = table
        if previous is None or table.fingerprint != previous.fingerprint:
            self._follow(previous, table)
        self._publish(table)

    def _look_for_namesake(self, previous: MemberTable, heard: Member) -> None:
        """Whether `heard`, this member's row, is that of another process elsewhere that goes by the same name."""
        if heard.boot_id == self.me.boot_id or heard.address in self.own_addresses or heard.rank() <= self.me.rank():
            return
        if self.me.name not in previous.ring_state.names:  # it was let in, and this one was not
            self.trouble = CannotJoin(name_taken(heard))
            return
        self.tell_once(
            "another node is called %s too, at %s: give every node its own --name", heard.name, heard.address
        )

    def _follow(self, previous: MemberTable | None, table: MemberTable) -> None:
        """Own what the ring state in force says, and doubt what it was before if states were missed."""
        state = table.ring_state
        self.register.acceptor.enter(state)
        owned = frozenset(table.slots_of(self.me.name))
        if previous is None or state.epoch != previous.ring_state.epoch + 1 or self.behind(previous, table):
            self._holdings.doubt()
        self._holdings.own(sorted(owned))
        self.regained = (self.regained | self.leftover) & owned
        self.leftover = (self.leftover | (self._owned - owned)) - owned
        self._owned = owned
        self._note_leaving(state)

    def _note_leaving(self, state: RingState) -> None:
        """Whoever has seen itself on its way off the ring has left once it is off."""
        name = self.me.name
        if (self.leaving or self.resigned) and name not in state.names:
            self.left = True
            log.info("this node has left the cluster")
        elif state.next is not None:
            self.leaving = name in state.names and name not in {node.name for node in state.next}
        else:
            self.leaving = False


def _can_agree(state: RingState, gone: Collection[str]) -> bool:
    """Whether the members can agree on a next ring state without those who are `gone`."""
    members = {node.name for node in state.members}
    return len(members.difference(gone)) >= majority(len(members))


def _is_as_founded_alone(table: MemberTable) -> bool:
    """Whether it is of a cluster of one node that nobody has come to yet.  Once it is not, it will never be again."""
    return table.ring_state.epoch == FOUNDED and len(table.ring_state.names) == 1
