"""Starting slots over where so many owners that know them cannot be had for long: with misses, and no old values.

The floor of such a slot is raised above all that can have been written, so nothing that may have been acknowledged is
left.  Owners that are complete keep what they hold: they know what it is worth, and others who return may vote for it.

* It takes all owners of a slot, or after a stated time a majority of them: lest a few that were cut off give up what
  the others still know.
* While a member is forgotten, those that are down are not waited for.  Of all that owners have to know, a newcomer to a
  slot stands in for the forgotten one alone: it has to know what that one helped to acknowledge, which is over and far
  below the floor.  An owner that lost its memory has to know what it helped to acknowledge itself: the same.  So it
  does not take a majority then.  Where all that are left were heard, waiting for more is in vain.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Protocol

from dcache.membership import Member, MemberTable
from dcache.node.service import Refusal, Service
from dcache.ops.effects import Op
from dcache.ops.listing import Digests, Others, to_bitmap
from dcache.ops.quorum import majority
from dcache.record import ZERO, Version, make_version, version_milliseconds

log = logging.getLogger("dcache.agent")

MARGIN = 1_000
"""Milliseconds that a slot started over begins above all that can have been written."""

Owners = Mapping[int, Sequence[str]]
"""By slot."""


class Membership(Protocol):
    """What is to be known of the node's agent."""

    me: Member
    table: MemberTable | None


class Moved(Exception):
    """The ring changed meanwhile: what was asked under the one before does not count."""


class StartingOver:
    """The slots of which too few owners can be heard, and what becomes of them.  `now` gives the service's
    milliseconds, `after` is how many seconds owners are waited for."""

    def __init__(self, agent: Membership, service: Service, now: Callable[[], int], after: float) -> None:
        self._agent, self._service, self._store = agent, service, service.store
        self._now, self._after = now, round(after * 1000)
        self._lacking: dict[int, int] = {}  # since when
        self._stuck_under = b""  # the fingerprint under which they could not be started over either

    def lacking(self, slots: Iterable[int]) -> None:
        """Of exactly these slots too few owners can be heard now."""
        now = self._now()
        self._lacking = {slot: self._lacking.get(slot, now) for slot in slots}

    def stuck(self, fingerprint: bytes) -> bool:
        """Whether, under that ring, owners were waited for in vain, and too few answer to start over."""
        return self._stuck_under == fingerprint

    def see_to(self, table: MemberTable, others: Others, owners: Owners, digests: Mapping[str, Digests]) -> Op[int]:
        """Start over what is overdue; how many slots that was done for.  `digests` is what others have said, `Moved` is
        raised where the ring has changed since."""
        overdue = self._overdue(table, owners, digests)
        started = (yield from self._start_over(table, others, overdue, digests)) if overdue else 0
        self._note_stuck(table, owners, digests)
        return started

    def alone(self, table: MemberTable, slots: Collection[int]) -> None:
        """Be complete in slots that nobody else owns, or nobody any more: whoever knew of what was acknowledged there
        before has lost it.

        Only where the cluster is to have several copies is nothing taken any more that may be older than that.  With
        one copy each, what comes home was written while its owner was away, and is older than no more than a miss.
        """
        if slots and table.settings.replicas > 1:
            floor = _above([self._here(table, (), ZERO)])
            for slot in slots:
                self._store.raise_floor(slot, floor)
        self._store.complete(slots)

    def _note_stuck(self, table: MemberTable, owners: Owners, heard: Collection[str]) -> None:
        waited = [slot for slot in self._lacking if self._waited(slot)]
        before, self._stuck_under = self._stuck_under, table.fingerprint if waited else b""
        if waited and before != table.fingerprint:
            silent = {name for slot in waited for name in owners[slot]} - {self._agent.me.name, *heard}
            log.warning(
                "%d slots cannot be completed: too few of their owners are there (no answer from %s); until they are, "
                "or are forgotten, this node has no vote in these slots, and nobody can join or leave",
                len(waited),
                ", ".join(sorted(silent)) or "enough to start over",
            )

    def _waited(self, slot: int) -> bool:
        """Whether the slot has lacked owners for so long that it is started over."""
        now = self._now()
        return self._lacking.get(slot, now) <= now - self._after

    def _overdue(self, table: MemberTable, owners: Owners, heard: Iterable[str]) -> Owners:
        """The slots to be started over: owners were waited for, or nobody is left to be waited for."""
        gone = forgotten(table)
        there = {self._agent.me.name, *heard, *gone}
        in_vain = {slot for slot in self._lacking if gone and there.issuperset(owners[slot])}
        return {slot: owners[slot] for slot in self._lacking if slot in in_vain or self._waited(slot)}

    def _start_over(
        self, table: MemberTable, others: Others, owners: Owners, digests: Mapping[str, Digests]
    ) -> Op[int]:
        """Start slots over at all owners that are not complete, if enough of them answer."""
        me = self._agent.me.name
        asked: dict[str, list[int]] = {}
        for slot, names in owners.items():
            if not self._store.complete_bits[slot]:
                for name in names:
                    asked.setdefault(name, []).append(slot)
        heights = yield from others.start_over({name: some for name, some in asked.items() if name != me}, ZERO)
        check_same_ring(self._agent, table)
        heights[me] = self._here(table, (), ZERO)
        answered = self._answered(table, owners, heights)
        if not answered:
            return 0
        floor = _above(heights.values())
        elsewhere = {
            name: [slot for slot in asked[name] if slot in answered]
            for name in digests
            if name in heights and name in asked
        }
        self._here(table, answered, floor)
        for slot in answered:
            self._lacking.pop(slot, None)
        log.warning(
            "%d slots are started over: too many owners are gone or lost their memory; old values are misses now",
            len(answered),
        )
        yield from others.start_over(elsewhere, floor)
        return len(answered)

    def _answered(self, table: MemberTable, owners: Owners, heights: Mapping[str, object]) -> Collection[int]:
        """The slots of which all owners answer or, after the wait, a majority."""
        settled = heights.keys() | (table.down if table.ring_state.forgotten else frozenset())
        return {
            slot
            for slot, names in owners.items()
            if not self._store.complete_bits[slot]
            and (
                settled.issuperset(names)
                or (self._waited(slot) and sum(name in settled for name in names) >= majority(len(names)))
            )
        }

    def _here(self, table: MemberTable, slots: Iterable[int], floor: Version) -> tuple[int, Version]:
        try:
            answer: tuple[int, Version] = self._service.handle(
                "start_over", (table.fingerprint, to_bitmap(slots), floor)
            )
        except Refusal as refusal:
            raise Moved from refusal
        return answer


def _above(heights: Iterable[tuple[int, Version]]) -> Version:
    """A floor above all that can have been acknowledged, by what nodes answer to `start_over`."""
    top = max(max(latest, version_milliseconds(newest)) for latest, newest in heights)
    return make_version(top + MARGIN, 0, 0)


def check_same_ring(agent: Membership, table: MemberTable) -> None:
    """`Moved` if another ring is in force than that of `table`."""
    if agent.table is None or agent.table.fingerprint != table.fingerprint:
        raise Moved


def forgotten(table: MemberTable) -> frozenset[str]:
    """The member that is being forgotten, unless it answers all the same."""
    return table.ring_state.going & table.down if table.ring_state.forgotten else frozenset()
