"""How members find out that one of them does not answer, and how they come to hold the same table.

Every interval each member probes another: the next of a shuffled round of all, so that nobody is left out for long
(Das, Gupta, Motivala: "SWIM", 2002).  A probe carries the digest of the table; where the tables differ, both sides get
what both together say.  So a change reaches n members in some log(n) intervals, and in between nothing but digests
travels (Demers et al., "Epidemic Algorithms for Replicated Database Maintenance", 1987).

A probe that is not answered is a miss, and others are asked (`vouch`) before it counts; see `suspicions`.  Three in a
row make `DOWN`.  Nobody but the member itself takes that back, by a higher incarnation (`MemberTable.refuting`).  So
that it hears what is said of it, those that are down are still probed now and then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any

import attrs

from dcache.agent.agent import Agent
from dcache.agent.suspicions import ALONE, MISSES, Suspicions
from dcache.errors import ClusterMismatch, NodeError, ProtocolError
from dcache.membership import Health, Member, MemberTable
from dcache.ops.effects import Call, Detached, Failure, Gather, Link, Op, Reply, Sleep, jittered
from dcache.wire import Code

log = logging.getLogger("dcache.agent")

NEWS_TO = 3
"""How many are probed at once by who has news to tell."""

PATIENCE = 1.0  # seconds that a probe may take, or the interval if that is shorter
SKEW = 30_000  # milliseconds that two clocks may differ before it is worth a line of log


class Probes(Gather):
    """A round that notes an answer when it comes, not when the slowest has come."""

    def __init__(self, calls: Sequence[Call], answered: Callable[[str], None]) -> None:
        super().__init__(calls)
        self._answered = answered

    def replied(self, call: Call, result: Any, link: Link) -> Sequence[Call]:
        self._answered(call.node)
        return super().replied(call, result, link)


class Detector:
    """The failure detector of one member.

    `interval` is seconds between two probes, `now` gives milliseconds that never go back, `wall` milliseconds since
    1970, `random` floats in [0, 1).  The driver is to give each round of `detect` `timeout` seconds.
    """

    def __init__(
        self,
        agent: Agent,
        interval: float,
        now: Callable[[], int],
        wall: Callable[[], int],
        random: Callable[[], float],
    ) -> None:
        self._agent, self._interval = agent, interval
        self._now, self._wall, self._random = now, wall, random
        self.timeout = min(PATIENCE, interval)
        self.suspicions = Suspicions(random)
        self._told: set[tuple[str, str]] = set()  # what was logged, and is not again
        self._told_down: frozenset[str] = frozenset()
        self._known = b""  # the digest of the table as last told to others

    def methods(self) -> Mapping[str, Callable[..., Any]]:
        """What other nodes may ask of this one."""
        return {"probe": self.probe, "vouch": self.vouch}

    # -- being asked --------------------------------------------------------------------------------------------------

    def probe(self, digest: bytes) -> tuple[int, Any]:
        """This node's clock, and the table, or nil if its digest is `digest`."""
        return self._wall(), self._agent.exchange(digest)

    def vouch(self, names: Sequence[str]) -> list[int | None]:
        """How many ms ago each of these members last answered this one, nil for never; they are watched from now on."""
        members = {} if self._agent.table is None else self._agent.table.members
        for name in names:
            if name in members and name != self._agent.me.name:
                self.suspicions.watch(name)
        now = self._now()
        return [self.suspicions.age(name, now) for name in names]

    # -- asking -------------------------------------------------------------------------------------------------------

    def detect(self) -> Op[None]:
        """For ever: probe, then sleep, so that intervals are 0.8 to 1.2 of the nominal one."""
        yield Sleep(self._interval * self._random())
        while True:
            begun = self._now()
            judged = yield from self.look_around()
            if not judged:  # else tell at once
                pause = jittered(self._interval, self._random) - (self._now() - begun) / 1000
                yield Sleep(max(pause, 0.1 * self._interval))

    def look_around(self) -> Op[bool]:
        """Probe once, and ask others about those that did not answer; whether this node found somebody to be down."""
        table = self._agent.table
        if table is None:
            return False
        self._tell_changes(table)
        begun, wall = self._now(), self._wall()
        round_ = Probes([Call(name, "probe", (table.digest,)) for name in self._due(table)], self._answered)
        yield round_
        digests = {reply.node: self._take_in(reply, wall) for reply in round_.replies}
        digests |= {failure.node: b"" for failure in round_.failures if _has_no_table(failure)}
        yield from self._offer(digests)
        missed = [failure.node for failure in round_.failures if not self._is_answer(failure)]
        return (yield from self._ask_others(missed, begun))

    def _due(self, table: MemberTable) -> list[str]:
        up, down = self._others(table)
        news, self._known = table.digest != self._known, table.digest
        return self.suspicions.due(up, down, NEWS_TO if news else 1)

    def _others(self, table: MemberTable) -> tuple[list[str], list[str]]:
        """The other members that are up, and those that are down."""
        others = sorted(table.members.keys() - {self._agent.me.name})
        return [name for name in others if name not in table.down], [name for name in others if name in table.down]

    def _answered(self, name: str) -> None:
        self._agent.elsewhere.pop(name, None)
        self.suspicions.answered(name, self._now())

    def _take_in(self, reply: Reply, before: int) -> bytes | None:
        """Take in the answer to a probe that was sent when this node's clock showed `before`; the digest of the table
        that came with it, None for none."""
        try:
            wall, data = reply.result
            self._compare_clocks(reply.node, wall, before)
            theirs = None if data is None else MemberTable.from_wire(data)
        except (TypeError, ValueError, ProtocolError) as error:
            self._complain(reply.node, error)
            return None
        if theirs is None:
            return None
        try:
            self._agent.adopt(theirs)
        except ClusterMismatch as error:
            self._complain(reply.node, error)
            return None
        return theirs.digest

    def _offer(self, digests: Mapping[str, bytes | None]) -> Op[None]:
        """Tell those whose tables, of these digests, lack something that this node's has."""
        table = self._agent.table
        if table is not None:
            behind = [name for name, digest in digests.items() if digest not in (None, table.digest)]
            if behind:
                wire = table.to_wire()
                yield Detached([Call(name, "offer", (wire,)) for name in behind])

    def _is_answer(self, failure: Failure) -> bool:
        """Whether what is no result shows all the same that the node is there."""
        if isinstance(failure.error, ProtocolError | ClusterMismatch):
            self._complain(failure.node, failure.error)
        if not isinstance(failure.error, NodeError) or _has_no_table(failure):
            return False
        self._complain(failure.node, failure.error)
        self._answered(failure.node)
        return True

    # -- who is down --------------------------------------------------------------------------------------------------

    def _ask_others(self, missed: Sequence[str], begun: int) -> Op[bool]:
        """`missed` have not answered the probes of a round that began at `begun`."""
        table = self._agent.table
        if table is None:
            return False
        up, _ = self._others(table)
        since = {name: self.suspicions.missed(table.members[name], begun) for name in up if name in missed}
        if not since:
            return False
        asked = self._now()
        round_ = Gather([Call(name, "vouch", (tuple(since),)) for name in self.suspicions.helpers(up)])
        yield round_
        ages = [self._ages(reply, len(since)) for reply in round_.replies]
        # Nobody answered, though there is somebody else: this node may be cut off itself.
        weight = ALONE if not ages and len(up) > 1 else 1.0
        judged = False
        for name, *heard in zip(since, *ages, strict=True):
            vouched = any(age is not None and age < asked - since[name] for age in heard)
            judged |= self.suspicions.is_down(name, vouched=vouched, weight=weight) and self._put_down(
                table.members[name]
            )
        return judged

    def _ages(self, reply: Reply, count: int) -> Sequence[int | None]:
        """What a helper says, with garbage for nothing said."""
        ages = reply.result
        if not isinstance(ages, tuple) or len(ages) != count or any(type(a) not in (int, NoneType) for a in ages):
            self._complain(reply.node, ProtocolError(f"{ages!r} does not say when members answered"))
            return (None,) * count
        return ages

    def _put_down(self, row: Member) -> bool:
        """Put `DOWN` into the row that was probed, unless a later one has come."""
        table = self._agent.table
        if table is None or table.members.get(row.name) != row:
            return False
        log.info("%s has not answered %d probes in a row, here or elsewhere", row.name, MISSES)
        self._agent.adopt(table.with_member(attrs.evolve(row, health=Health.DOWN)))
        return True

    # -- what the log is told -----------------------------------------------------------------------------------------

    def _tell_changes(self, table: MemberTable) -> None:
        for name in sorted(table.down - self._told_down):
            log.warning("%s is down", name)
        for name in sorted((self._told_down - table.down) & table.members.keys()):
            log.info("%s is up again", name)
        self._told_down = table.down

    def _compare_clocks(self, node: str, theirs: int, before: int) -> None:
        """A clock that is right shows something between `before` and now."""
        now = self._wall()
        if not before - SKEW <= theirs <= now + SKEW:
            self._warn(
                node,
                "clock",
                f"the clock of {node} and this machine's differ by {(theirs - now) / 1000:+.0f} s: "
                "set the one that is wrong (NTP)",
            )

    def _complain(self, node: str, error: Exception) -> None:
        self._agent.note_elsewhere(node, error)
        self._warn(node, type(error).__name__, f"{node} does not answer as a member of this cluster: {error}")

    def _warn(self, node: str, kind: str, line: str) -> None:
        """Once for each node and kind: whoever talks nonsense does it every second."""
        if (node, kind) not in self._told:
            self._told.add((node, kind))
            log.warning("%s", line)


def _has_no_table(failure: Failure) -> bool:
    """Whether the node is of no cluster yet: it started anew, and is no member before it has the table."""
    return isinstance(failure.error, NodeError) and failure.error.code == Code.NOT_READY
