"""What a client knows of its cluster: the member table, the seeds, where each node is.

One table is in force at a time and replaced in one assignment.  News comes by push, with a refused request, from
asking a random node now and then; all of it is merged, so order does not matter.

A client stays with its cluster.  Nodes that say they are of another one are failures, until a majority of the ring says
the same other name: then the old cluster can never acknowledge anything again, and the client starts afresh.  Where the
others are gone for good there never is such a majority; so it does what its program would do when it is restarted, once
searches for so long found no node of its cluster, but one that is of another.

Where a majority of the ring refuses calls because it knows an earlier ring only, the client goes back to that: either
the later one has not got about yet, or all who agreed on it have lost their memory.  Nodes see to it that nobody reads
or writes under a ring that is not in force, so this does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

from dcache.errors import ClusterMismatch, ProtocolError
from dcache.membership import Health, Member, MemberTable, parse_address
from dcache.ops.quorum import majority
from dcache.wire import DEFAULT_PORT

REFRESH = 30.0
"""Seconds between two questions for news, give or take a half."""

GIVEN_UP_AFTER, GIVEN_UP_SEARCHES = 10.0, 5
"""A cluster is given up after so many seconds, and so many searches, without a sign of life, if one on its ring is of
another.  A search asks as many of the nodes as its time allows."""


class Topology:
    """Shared by all that a client does; every step is one assignment or dictionary operation, so it needs no lock."""

    def __init__(self, seeds: Sequence[str], random: Callable[[], float]) -> None:
        self.seeds = tuple(dict.fromkeys(seeds))
        if not self.seeds:
            raise ValueError('name at least one node, for instance Client(["cache1:7400"])')
        for seed in self.seeds:
            parse_address(seed, DEFAULT_PORT)
        self.table: MemberTable | None = None
        self.forsaken = False  # no member answered: ask the seeds again
        self._random = random
        self.signs_of_life = 0
        """How often a node was heard that is of this cluster, and gave its table or cannot be spoken with."""
        self._foreign: dict[str, str] = {}
        self._behind: frozenset[str] = frozenset()  # who refused calls, for they know an earlier ring
        self.due_at = 0.0
        self.on_return: Callable[[str], None] = lambda name: None
        """Called with the name of every member that is said to be there again, or elsewhere."""
        self.on_leave: Callable[[], None] = lambda: None
        """Called when this client has left its cluster."""

    def install(self, table: MemberTable) -> None:
        """Take in a table; one of another cluster is `ClusterMismatch`.  One of an earlier ring is no sign of life."""
        before = self.table
        self.table = table if before is None else before.merge(table)
        self.forsaken = False
        if before is None or table.ring_state.epoch >= before.ring_state.epoch:
            self.sign_of_life()
        if before is not None and self.table is not before:
            for name in returned(before, self.table):
                self.on_return(name)

    def offer(self, data: Any, source: str) -> MemberTable | None:
        """Take in what the node `source` sent as its table, and return it if it is one of this cluster.  One that makes
        no sense changes nothing, and another cluster's says which the node is of: it may have joined that after it
        said hello."""
        try:
            table = MemberTable.from_wire(data)
        except ProtocolError:
            return None
        if self.table is None:
            return None
        try:
            self.install(table)
        except ClusterMismatch:
            self.foreign(source, table.settings.cluster_id)
            return None
        return table

    def refused(self, data: Any, source: str) -> None:
        """The node `source` refused a call that was made under another ring than its own, and sent its table."""
        told, mine = self.offer(data, source), self.table
        if told is None or mine is None or told.ring_state.epoch >= mine.ring_state.epoch:
            return
        ring = frozenset(place.name for place in mine.ring_state.members)
        self._behind = (self._behind | {source}) & ring
        if len(self._behind) >= majority(len(ring)):
            self.table, self._behind = told, frozenset()

    def address(self, node: str) -> tuple[str, int]:
        """Where a member is, by its name; a seed is its own address."""
        row = None if self.table is None else self.table.members.get(node)
        return parse_address(node if row is None else row.address, DEFAULT_PORT)

    def cluster_id(self) -> str | None:
        return None if self.table is None else self.table.settings.cluster_id

    def is_member(self, node: str) -> bool:
        return self.table is not None and node in self.table.members

    def sources(self) -> list[str]:
        """Whom to ask for the table: the seeds and the members that are known, each in a random order, by turns."""
        members = [] if self.table is None else [row.address for row in self.table.members.values()]
        seeds, known = self._shuffled(self.seeds), self._shuffled(members)
        turns = (source for pair in zip_longest(seeds, known) for source in pair if source is not None)
        return list(dict.fromkeys(turns))

    def _shuffled(self, addresses: Sequence[str]) -> list[str]:
        return sorted(addresses, key=lambda _: self._random())

    def foreign(self, node: str, cluster_id: str) -> bool:
        """`node`, a name or an address, said that it is of another cluster; whether that makes this client leave its
        own."""
        table = self.table
        if table is None:
            return False
        for name, row in table.members.items():
            if node in (name, row.address):
                self._foreign[name] = cluster_id
        agreeing = sum(self._foreign.get(place.name) == cluster_id for place in table.ring_state.members)
        return agreeing >= majority(len(table.ring_state.members)) and self._leave()

    def sign_of_life(self) -> None:
        """The cluster is there: what others said before counts when they say it again."""
        self.signs_of_life += 1
        self._foreign, self._behind = {}, frozenset()

    def give_up(self) -> str | None:
        """No node of this cluster is found any more: leave it if one on its ring is of another, and tell which."""
        table = self.table
        if table is None:
            return None
        others = [self._foreign[place.name] for place in table.ring_state.members if place.name in self._foreign]
        return others[0] if others and self._leave() else None

    def _leave(self) -> bool:
        self.table = None
        self._foreign = {}
        self.on_leave()
        return True

    def due(self, now: float) -> bool:
        """Whether it is time to ask for news; says so once per period."""
        if now < self.due_at:
            return False
        first = self.due_at == 0.0
        self.due_at = now + REFRESH * (0.5 + self._random())
        return not first


def returned(before: MemberTable, after: MemberTable) -> list[str]:
    """The members that started anew, moved, or are up again: what a client met at them before says nothing now."""
    known = before.members
    return [
        name
        for name, row in after.members.items()
        if name in known and row.health is Health.UP and _place(row) != _place(known[name])
    ]


def _place(row: Member) -> tuple[str, str, Health]:
    return row.address, row.boot_id, row.health
