"""What makes a node a member: its row, the table it holds, and what it answers to other nodes.

Invariants:

* The table changes in one place (`_install`), which tells the service and the connected clients of it.
* A node is of one cluster for as long as its process lives.
* A process knows everything it ever acknowledged exactly when the cluster was founded with this process in it; one that
  comes later under the same name is a member that lost its memory, and its slots are not complete.

Decisions only: what is said to other nodes is in `formation` and `gossip`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from dcache.errors import ClusterMismatch, ProtocolError
from dcache.membership import Member, MemberTable, RingState, Settings, checked
from dcache.node.service import Refusal
from dcache.record import Version
from dcache.wire import Code

log = logging.getLogger("dcache.agent")


class CannotJoin(Exception):
    """This node cannot be of the cluster it was sent to; the message says what to change."""


@attrs.frozen
class Terms:
    """What a node's operator asked for; all that found a cluster together must agree in it."""

    replicas: int = 3
    vnodes: int = 150
    ring_seed: int = 0
    expect: int = 1


Ballot = tuple[tuple[str, str], ...]
"""Names and boot ids of all who are to found a cluster, sorted; the first is the founder."""


class Agent:
    """`publish(table)` is called with every new table, `complete()` when this process knows all of its slots."""

    def __init__(
        self, me: Member, terms: Terms, publish: Callable[[MemberTable], None], complete: Callable[[], None]
    ) -> None:
        self.me, self.terms = me, terms
        self.table: MemberTable | None = None
        self.candidates: dict[str, Member] = {}  # the others that are waiting for a cluster, as last heard
        self.trouble: CannotJoin | None = None
        self.own_addresses = {me.address}  # where this node was found when it asked its peers
        self._found_at: dict[str, str] = {}
        self._voted_for: tuple[str, str] | None = None
        self._publish, self._complete = publish, complete

    def methods(self) -> Mapping[str, Callable[..., Any]]:
        """What other nodes, and clients, may ask of this one."""
        return {"exchange": self.exchange, "offer": self.offer, "candidate": self.candidate, "vote": self.vote}

    # -- being asked --------------------------------------------------------------------------------------------------

    def exchange(self, digest: bytes) -> Any:
        """The table, or nil if its digest is `digest`."""
        if self.table is None:
            raise Refusal(Code.NOT_READY, "this node has not joined a cluster yet")
        return None if digest == self.table.digest else self.table.to_wire()

    def offer(self, data: Any) -> None:
        """Take in a table.

        A node that is of no cluster yet takes one only from the founder it voted for: an offer may have been under way
        for long, and its founder have started anew since.  All other tables it gets by asking for them.
        """
        try:
            table = MemberTable.from_wire(data)
            if self.table is None and not self._voted_for_founder_of(table):
                raise CannotJoin("this node did not vote for that cluster; it asks others for theirs itself")
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

    # -- before there is a cluster ------------------------------------------------------------------------------------

    def heard(self, row: Member, terms: Terms, at: str | None = None) -> None:
        """Another node is waiting for a cluster too; `at` is the address where it was asked.

        What is heard without asking may be old: it never displaces a later start of the same node.
        """
        if row.name == self.me.name:
            if row.boot_id != self.me.boot_id:
                log.error("another node is called %s too, at %s: give every node its own --name", row.name, row.address)
            elif at is not None:
                self.own_addresses.add(at)
            return
        if terms != self.terms:
            log.error("node %s has other settings (%s, here %s): start all alike", row.name, terms, self.terms)
            return
        if at is None and self.superseded(row):
            return
        self.candidates[row.name] = row
        if at is not None:
            self._found_at[at] = row.name

    def superseded(self, row: Member) -> bool:
        """Whether a later start of that node has introduced itself."""
        known = self.candidates.get(row.name)
        return known is not None and known.incarnation > row.incarnation

    def gone(self, at: str) -> None:
        """Nobody answers at this address now."""
        self.candidates.pop(self._found_at.pop(at, ""), None)

    def ballot(self) -> Ballot:
        """This node and the candidates, the founder first."""
        return tuple(sorted((row.name, row.boot_id) for row in (self.me, *self.candidates.values())))

    def may_found(self) -> bool:
        """Whether it is for this node to found a cluster of those that are there."""
        together = self.ballot()
        return len(together) == self.terms.expect and together[0][0] == self.me.name

    def found(self, cluster_id: str, version: Version) -> MemberTable:
        """Found a cluster of this node and the candidates."""
        rows = {row.name: row for row in (self.me, *self.candidates.values())}
        settings = Settings(cluster_id, self.terms.replicas, self.terms.vnodes, self.terms.ring_seed)
        placed = [row.placed() for _, row in sorted(rows.items())]
        table = MemberTable(settings, RingState(version, tuple(placed)), rows)
        self.adopt(table)
        return table

    # -- the table ----------------------------------------------------------------------------------------------------

    def adopt(self, table: MemberTable) -> None:
        """Take in a table: the first makes this node a member.  `CannotJoin`, `ClusterMismatch`."""
        if self.table is not None:
            self._install(self.table.merge(table))
            return
        self._check_joinable(table)
        heard = table.members.get(self.me.name)
        founding = heard is not None and heard.boot_id == self.me.boot_id
        self._install(table)
        if founding:
            self._complete()
        else:
            log.warning("this node is a member of cluster %s that lost its memory", table.settings.cluster_id)

    def _check_joinable(self, table: MemberTable) -> None:
        settings, terms = table.settings, self.terms
        for name in ("replicas", "vnodes", "ring_seed"):
            theirs, mine = getattr(settings, name), getattr(terms, name)
            if theirs != mine:
                self.trouble = CannotJoin(
                    f"cluster {settings.cluster_id} has {name} {theirs}, this node was started with {mine}: start it "
                    f"with the cluster's"
                )
        if self.me.name not in {place.name for place in table.ring_state.members}:
            self.trouble = CannotJoin(
                f"cluster {settings.cluster_id} has no member called {self.me.name}: nodes cannot yet join a cluster "
                f"that is running; start them all together with --expect"
            )
        if self.trouble is not None:
            raise self.trouble

    def _install(self, table: MemberTable) -> None:
        table, self.me = table.refuting(self.me)
        if table != self.table:
            self.table = table
            self._publish(table)


def member_to_wire(row: Member) -> tuple[Any, ...]:
    return (*attrs.astuple(row)[:6], int(row.health))


def member_from_wire(data: Any) -> Member:
    """`ValueError` or `TypeError` for what is no row."""
    row = checked(Member(*data))
    row.placed()  # its address makes sense
    return row


def terms_from_wire(data: Any) -> Terms:
    """`ValueError` or `TypeError` for what are no terms."""
    return checked(Terms(*data))
