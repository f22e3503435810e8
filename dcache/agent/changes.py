"""How the ring changes: who asks for it, who proposes it, who sees it through.

A change is of one member, and takes two agreed states: from a ring to that ring and the next one, both in force, and on
to the next one alone, once all of its members that are not down have completed their slots.  If the newcomer dies
meanwhile, back to the old one.

* Whoever wishes to be let in, or to leave, tells any member, and again every second until the table says so.
* Every member runs a `steward`.  Where no change is under way it proposes the oldest wish that it was told.  A change
  under way is the business of the first member by name that is not down; where nothing moves for long, the second steps
  in, and so on.  Two that propose at once do no harm: the register decides one state, and they pause at random.
* A member that is dead may be what a change waits for, since too few owners of some slots are left.  So once it is to
  be forgotten, a change that cannot go on is given up for that, by whoever knows of the wish.
* A node that finds itself on no ring without having seen itself go was forgotten while it was away.  It asks to be let
  in again; what it holds is in no slot of its own any more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

import attrs

from dcache.agent.agent import Agent
from dcache.agent.register import Proposal, Votes, propose, regain_vote
from dcache.agent.terms import CannotJoin
from dcache.agent.wishes import RENEW_EVERY, Wish
from dcache.errors import ClusterMismatch, NodeError, ProtocolError
from dcache.membership import MemberTable, RingState, member_to_wire
from dcache.ops.effects import Call, Detached, FirstOf, Gather, Op, Sleep, jittered
from dcache.ops.quorum import majority
from dcache.record import VersionClock
from dcache.ring import RingNode
from dcache.wire import Code

log = logging.getLogger("dcache.agent")

GIVE_UP_AFTER = 5.0
"""Intervals that a newcomer is down until the change is given up."""

SILENT_FOR = 15.0
"""The same for a newcomer that takes back that it is down, since it reaches others, and yet answers nothing."""

STEP_IN_AFTER = 10.0
"""Intervals without a new state after which the next member by name takes care of the change too."""

FINISH_AFTER = 10.0
"""Intervals after which what was accepted and not heard of again is proposed once more."""

MOST_PAUSE = 8.0
"""Intervals, at most, between two attempts that fail."""

TELL_AFTER = 30.0
"""Intervals after which the log is told what a change waits for."""

LOOK_EVERY = 0.2
"""Seconds between two looks of a node that waits to be let in, or to be let go."""

PREFERRED = 3
"""How many times likelier a member that is not down is asked than one that is."""

FATAL = frozenset({Code.CLUSTER_MISMATCH, Code.BAD_REQUEST})
"""What a wish is refused with for good."""


class Steward:
    """One member's care for the ring.  Times in seconds; `interval` is the pause between two looks.

    `clock` stamps ballots, `now` never goes back, `random` gives floats in [0, 1); `start_over` is how long a member
    that started again waits for enough others that remember what was agreed on.
    """

    def __init__(
        self,
        agent: Agent,
        clock: VersionClock,
        now: Callable[[], float],
        random: Callable[[], float],
        *,
        interval: float = 1.0,
        start_over: float = 30.0,
    ) -> None:
        self._agent, self._clock, self._now, self._random = agent, clock, now, random
        self._interval, self._start_over = interval, start_over
        self._looked = now()
        self._epoch = 0
        self._since = now()  # this epoch is known
        self._down_since: float | None = None  # the newcomer is
        self._heard_at = now()  # the newcomer answered
        self._voteless_since: float | None = None
        self._asked_at = float("-inf")
        self._told_awaited: tuple[object, ...] = ()  # the epoch, and for whom its change waits
        self._pause, self._not_before = 1.0, float("-inf")

    def work(self) -> Op[None]:
        """Until this node has left the cluster; `CannotJoin` if it cannot be of it any more."""
        agent = self._agent
        while not agent.left:
            yield Sleep(jittered(self._interval, self._random))
            if agent.trouble is not None:
                raise agent.trouble
            if agent.table is not None:
                yield from self.look(agent.table)

    def look(self, table: MemberTable) -> Op[None]:
        """See to what is to be done now."""
        self._note_time(table)
        agent, state = self._agent, table.ring_state
        if not agent.on_ring:
            yield from self._ask_to_be_let_in()
            return
        if not agent.register.acceptor.voter:
            yield from self._regain_vote()
        elif self._now() >= self._not_before and agent.me.name in names(state.members):
            proposal = yield from self._wanted(table)
            if proposal is not None and (yield from self._attempt(proposal)):
                yield from self._forget_at_once()

    def _note_time(self, table: MemberTable) -> None:
        now = self._now()
        self._agent.wishes.age(now - self._looked)
        self._looked = now
        state = table.ring_state
        if state.epoch != self._epoch:
            self._epoch, self._since, self._heard_at, self._pause = state.epoch, now, now, 1.0
        if not (names(state.next or ()) - names(state.members)) & table.down:
            self._down_since = None
        elif self._down_since is None:
            self._down_since = now

    def _intervals(self, since: float) -> float:
        """How many intervals have gone by."""
        return (self._now() - since) / self._interval

    # -- to be let in, and to vote ------------------------------------------------------------------------------------

    def _ask_to_be_let_in(self) -> Op[None]:
        """This member was forgotten while it was away."""
        if self._now() >= self._asked_at + RENEW_EVERY and not self._agent.left:
            self._asked_at = self._now()
            yield from ask_to_be_let_in(self._agent, self._random)

    def _regain_vote(self) -> Op[None]:
        if self._voteless_since is None:
            self._voteless_since = self._now()
        enough = self._now() - self._voteless_since >= self._start_over
        if (yield from regain_vote(self._agent.register, start_over=enough)):
            self._voteless_since = None

    # -- what is to follow --------------------------------------------------------------------------------------------

    def _wanted(self, table: MemberTable) -> Op[Proposal | None]:
        """The proposal that is this member's to make now."""
        state, accepted = table.ring_state, self._agent.register.acceptor.accepted
        if state.next is not None:
            return (yield from self._under_way(table))
        wish = self._agent.wishes.next(table)
        if wish is not None:
            return wish.proposal(state)
        unheard_of = accepted is not None and self._intervals(self._since) >= FINISH_AFTER
        return accepted.proposal if accepted is not None and unheard_of else None

    def _under_way(self, table: MemberTable) -> Op[Proposal | None]:
        state = table.ring_state
        if self._to_be_forgotten(table) is not None and (yield from stuck(table)):
            return Proposal(RingState(state.epoch + 1, state.members))
        if not self._is_in_charge(table):
            return None
        if self._down_since is not None:
            gone = self._intervals(self._down_since) >= GIVE_UP_AFTER
            return Proposal(RingState(state.epoch + 1, state.members)) if gone else None
        if (yield from self._is_silent(table)):
            return Proposal(RingState(state.epoch + 1, state.members))
        awaited = yield from not_ready(table)
        if state.next is not None and not awaited:
            return Proposal(RingState(state.epoch + 1, state.next))
        self._tell_awaited(state, awaited)
        return None

    def _tell_awaited(self, state: RingState, awaited: Mapping[str, str]) -> None:
        """Say what a change waits for that takes long: nobody else joins or leaves before it is over."""
        if self._intervals(self._since) >= TELL_AFTER and self._told_awaited != (state.epoch, *awaited):
            self._told_awaited = (state.epoch, *awaited)
            reasons = "; ".join(f"{name} {why}" for name, why in awaited.items())
            log.warning("%s: this takes long, and no other change can begin before: %s", told(state), reasons)

    def _is_silent(self, table: MemberTable) -> Op[bool]:
        """Whether the newcomer, if there is one, has not answered for long: nobody may be able to reach it."""
        coming = names(table.ring_state.next or ()) - names(table.ring_state.members)
        if not coming or (yield from _readiness(table, coming)):
            self._heard_at = self._now()
        return self._intervals(self._heard_at) >= SILENT_FOR

    def _to_be_forgotten(self, table: MemberTable) -> Wish | None:
        """The wish that comes before the change under way, if that is not such a wish fulfilled."""
        wish = None if table.ring_state.forgotten else self._agent.wishes.next(table)
        return wish if wish is not None and wish.dead else None

    def _forget_at_once(self) -> Op[None]:
        """Before anybody begins what had to be given up again."""
        table = self._agent.table
        wish = None if table is None or table.ring_state.next is not None else self._to_be_forgotten(table)
        if table is not None and wish is not None and self._agent.me.name in names(table.ring_state.members):
            yield from self._attempt(wish.proposal(table.ring_state))

    def _is_in_charge(self, table: MemberTable) -> bool:
        """Whether this member is the first that is there and stays, or those before it have had their time.

        Not who is leaving: it would end as soon as the next state is agreed on, and might be the only one to know.
        """
        me, state = self._agent.me.name, table.ring_state
        staying = names(state.members) & names(state.next or ())
        if me not in staying:
            return False
        before = [name for name in staying - table.down if name < me]
        return self._intervals(self._since) >= STEP_IN_AFTER * len(before)

    def _attempt(self, proposal: Proposal) -> Op[bool]:
        """Propose, and say whether a state was agreed on; if not, pause at random, the longer the more often."""
        agreed = yield from propose(self._agent.register, proposal, self._clock)
        if agreed:
            self._pause = 1.0
            table = self._agent.table
            assert table is not None
            log.info("agreed on: %s", told(table.ring_state))
        else:
            self._not_before = self._now() + self._interval * self._pause * self._random()
            self._pause = min(2 * self._pause, MOST_PAUSE)
        return agreed


def names(ring: Iterable[RingNode]) -> set[str]:
    return {node.name for node in ring}


def told(state: RingState) -> str:
    """A ring state for people."""
    now = f"ring {state.epoch} of {', '.join(sorted(names(state.members)))}"
    if state.next is None:
        return now
    came, went = names(state.next) - names(state.members), names(state.members) - names(state.next)
    changes = [f"{name} is coming" for name in sorted(came)] + [f"{name} is going" for name in sorted(went)]
    return f"{now}; {', '.join(changes)}"


def not_ready(table: MemberTable) -> Op[dict[str, str]]:
    """For whom the next ring has to wait, and why: until all of it that are not down have completed their slots, and
    who is leaving knows of it.

    Also where too few of the next ring are there to agree on what follows: it could not even forget the others.
    """
    coming, there = names(table.ring_state.next or ()), table.ring_state.names - table.down
    if lacks_majority(table):
        return dict.fromkeys(sorted(coming & table.down), "is down, and the next ring would have no majority")
    answers = yield from _readiness(table, there)
    waiting = {name: "does not answer" for name in sorted(there) if name not in answers}
    for name in sorted(coming & answers.keys()):
        if answers[name] is not True:
            waiting[name] = "cannot complete its slots" if answers[name] is None else "has yet to complete its slots"
    return waiting


def stuck(table: MemberTable) -> Op[bool]:
    """Whether the next ring could not agree on anything, or somebody on it has found too few owners to ask for long,
    and so cannot complete its slots."""
    coming = names(table.ring_state.next or ())
    if lacks_majority(table):
        return True
    answers = yield from _readiness(table, coming - table.down)
    return None in answers.values()


def lacks_majority(table: MemberTable) -> bool:
    """Whether too few of the next ring are not down."""
    coming = names(table.ring_state.next or ())
    return len(coming - table.down) < majority(len(coming))


def _readiness(table: MemberTable, asked: Iterable[str]) -> Op[dict[str, object]]:
    calls = [Call(name, "ready", (table.fingerprint,)) for name in sorted(asked)]
    round_ = Votes(calls, len(calls), _as_is, lambda answer: True)
    yield round_
    return round_.answers


def _as_is(answer: object) -> object:
    return answer


# -- from outside the ring --------------------------------------------------------------------------------------------


def join(agent: Agent, random: Callable[[], float], now: Callable[[], float]) -> Op[None]:
    """Until this node is on the ring, or on its way there; `CannotJoin`.  `now` in seconds."""
    asked_at = float("-inf")
    while not agent.on_ring:
        if agent.trouble is not None:
            raise agent.trouble
        if now() >= asked_at + RENEW_EVERY:
            asked_at = now()
            yield from ask_to_be_let_in(agent, random)
        else:
            yield from look_for_news(agent, random)
        if not agent.on_ring:
            yield Sleep(LOOK_EVERY)


def ask_to_be_let_in(agent: Agent, random: Callable[[], float]) -> Op[None]:
    """Tell a random member of the wish, and hear whether it is fulfilled."""
    member = _some_member(agent, random)
    if member is None:
        return
    round_ = FirstOf([Call(member, "join", (member_to_wire(agent.me), attrs.astuple(agent.terms)))])
    yield round_
    for failure in round_.failures:
        agent.note_elsewhere(member, failure.error)
        if isinstance(failure.error, NodeError) and failure.error.code in FATAL:
            agent.trouble = CannotJoin(str(failure.error.detail))
            raise agent.trouble
    yield from look_for_news(agent, random)


def look_for_news(agent: Agent, random: Callable[[], float]) -> Op[None]:
    """Ask a random member for its table: nobody sends it to a node that is on no ring."""
    member, table = _some_member(agent, random), agent.table
    if member is None or table is None:
        return
    round_ = FirstOf([Call(member, "exchange", (table.digest,))])
    yield round_
    for failure in round_.failures:
        agent.note_elsewhere(member, failure.error)
    for reply in round_.replies:
        try:
            if reply.result is not None:
                agent.adopt(MemberTable.from_wire(reply.result))
        except (ProtocolError, ClusterMismatch) as error:
            agent.note_elsewhere(member, error)
            agent.tell_once("what %s holds for the table is none of this cluster: %s", member, str(error))


def leave(agent: Agent, random: Callable[[], float]) -> Op[None]:
    """Ask to be let go until it is so; at once for a node that is on no ring, or the last one."""
    agent.resigned = True
    while agent.on_ring and not _alone(agent):
        member = _some_member(agent, random)
        if member is not None:
            round_ = FirstOf([Call(member, "leave", (agent.me.name,))])
            yield round_
        for _ in range(round(RENEW_EVERY / LOOK_EVERY)):
            if agent.on_ring:
                yield Sleep(LOOK_EVERY)


def _alone(agent: Agent) -> bool:
    return agent.table is None or agent.table.ring_state.names == {agent.me.name}


def _some_member(agent: Agent, random: Callable[[], float]) -> str | None:
    """Any other member, by name, or a node that this one was sent to, by address: all members that it knows of may have
    left since it last heard of them.  Seldom one that is said to be down: it may be up again, and the only one left."""
    table = agent.table
    if table is None:
        return None
    others = sorted(table.ring_state.names - {agent.me.name})
    known = {table.members[name].address for name in others}
    there = [name for name in others if name not in table.down]
    there += [peer for peer in agent.peers if peer not in known]
    lots = [name for name in there for _ in range(PREFERRED)] + [name for name in others if name in table.down]
    return lots[int(random() * len(lots))] if lots else None


# -- a first node that was started again ------------------------------------------------------------------------------


def recall(agent: Agent, random: Callable[[], float], interval: float) -> Op[None]:
    """For ever: now and then tell members that are down what they are members of, wherever they may think they are.

    To be run by a driver that knows no cluster, for one that does refuses to talk to nodes of another.  A first node
    that was started again with its first command line founds another cluster if nobody calls it in time; it must be
    told, and then it ends.  Unless others are of that cluster by now: then it may be this node that has to give up.
    """
    while True:
        yield Sleep(jittered(interval, random))
        table = agent.table
        if table is None or not agent.on_ring:
            continue
        share = 3.0 / (len(table.members) + 1)
        lost = [table.members[name].address for name in sorted(table.down) if random() < share]
        if lost:
            yield Detached([Call(address, "offer", (table.to_wire(),)) for address in lost])
        yield from _look_elsewhere(agent, table)


def _look_elsewhere(agent: Agent, table: MemberTable) -> Op[None]:
    """Hear from members that are of another cluster now what that looks like."""
    gone = [table.members[name].address for name in sorted(agent.elsewhere.keys() & table.members.keys())]
    if not gone:
        return
    round_ = Gather([Call(address, "exchange", (b"",)) for address in gone])
    yield round_
    for reply in round_.replies:
        try:
            agent.compare_with(MemberTable.from_wire(reply.result))
        except ProtocolError as error:
            agent.tell_once("%s does not answer as a node of another cluster: %s", reply.node, str(error))
