"""How the members agree on the next ring state: one instance of Paxos per epoch (Lamport, "Paxos Made Simple", 2001).

The successor of a state is decided by a majority of that state's `members`, those that cannot be reached counted.
Every request carries the fingerprint of the state, so that answers are counted for one state only.  A proposer has a
ballot promised by a majority, proposes what is known to have been accepted with the highest ballot, its own wish where
nothing is, and has decided once a majority has accepted.  Whoever dies half-way is thus followed by anybody else.

Members keep nothing on disk, so one that starts again has forgotten what it promised and accepted.  This is what makes
up for it.  A *life* is a start of a member's process, by a number that rises from each to the next.

* A new life does not vote.  It asks others to *witness* it, and votes once so many voters have that every majority
  which its former life may have been part of has one among them; it takes over the highest of what they promised and
  accepted.
* Promises name the life that gave them.  A proposal is sent only to those whose promises it rests on, names them, and
  is refused by whoever has witnessed a later life of one of them.  So what a former life promised or accepted counts
  only together with acceptances that were given before the new life asked, and those it was told of.  This prevents:
  `a` promises a ballot and dies; its next life asks the others, who know nothing of that ballot, and helps to decide a
  lower one; only then do the others promise the higher one, which counts the promise of the former `a`.
* Who witnessed what is passed on to those that start again later.

All this holds from one epoch to the next, so a life that votes once votes for good.  For that, while the ring changes,
the witnesses are to be enough for either ring.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import attrs

from dcache.errors import ClusterMismatch, NodeError, ProtocolError
from dcache.membership import (
    Member,
    MemberTable,
    RingState,
    member_from_wire,
    member_to_wire,
    ring_state_from_wire,
    ring_state_to_wire,
)
from dcache.ops.effects import Call, Detached, Gather, Op, Round
from dcache.ops.quorum import majority
from dcache.record import ZERO, Version, VersionClock, version_milliseconds
from dcache.wire import Code

log = logging.getLogger("dcache.agent")

BALLOT_CEILING = 1 << 47
"""No ballot of so many milliseconds is promised: there must always be room for higher ones."""

LIFE_CEILING = 1 << 62


class Proposal(NamedTuple):
    """The state that is to follow, and the row of the member that comes with it, if one does."""

    state: RingState
    newcomer: Member | None = None


class Accepted(NamedTuple):
    ballot: Version
    proposal: Proposal


class Promise(NamedTuple):
    """An answer to `ring_prepare`: granted or not, by which life, its highest ballot, and what it accepted last."""

    granted: bool
    life: int
    promised: Version
    accepted: Accepted | None


class Attestation(NamedTuple):
    """An answer to `ring_witness`: what the new life's number must be above, and what the witness knows."""

    above: int
    voter: bool
    promised: Version
    accepted: Accepted | None
    lives: Mapping[str, int]


Quorum = Sequence[tuple[str, int]]
"""The members whose promises a proposal rests on, each with the life that gave it."""


# -- what may follow what ---------------------------------------------------------------------------------------------


def follows(state: RingState, proposal: Proposal) -> bool:
    """Whether `proposal` is one step from `state`."""
    then, row = proposal
    if then.epoch != state.epoch + 1:
        return False
    if then.forgotten and not then.going:
        return False
    if state.next is not None:
        return row is None and then.next is None and then.members in (state.next, state.members)
    if then.next is None or then.members != state.members or not then.next:
        return False
    old, new = set(state.members), set(then.next)
    if row is None:
        return new < old and len(old - new) == 1
    return old < new and new - old == {row.placed()} and row.name not in state.names


def succeeding(table: MemberTable, proposal: Proposal) -> MemberTable:
    """`table` after `proposal` was agreed on."""
    rows = dict(table.members)
    if proposal.newcomer is not None:
        rows[proposal.newcomer.name] = proposal.newcomer
    names = proposal.state.names
    return attrs.evolve(
        table, ring_state=proposal.state, members={name: row for name, row in rows.items() if name in names}
    )


# -- one member's part ------------------------------------------------------------------------------------------------


class Acceptor:
    """What one member has promised and accepted in the epoch that it is in, and whose lives it knows of."""

    def __init__(self, name: str, life: int) -> None:
        self.name, self.life = name, life
        self.voter = False
        self.epoch = 0
        self.promised: Version = ZERO
        self.accepted: Accepted | None = None
        self.lives: dict[str, int] = {}  # of those whose new life was witnessed, here or by others
        self._seen: dict[str, str] = {}  # the boot ids of those that were witnessed here

    def enter(self, state: RingState) -> None:
        """The table moved to this state.  What lives those had who are gone matters no more: it is in no promise."""
        if state.epoch != self.epoch:
            self.epoch, self.promised, self.accepted = state.epoch, ZERO, None
            self.lives = {name: life for name, life in self.lives.items() if name in state.names}
            self._seen = {name: boot_id for name, boot_id in self._seen.items() if name in state.names}

    def prepare(self, ballot: Version) -> Promise:
        """Promise to accept nothing of a lower ballot."""
        granted = self.voter and ballot >= self.promised
        if granted:
            self.promised = ballot
        return Promise(granted, self.life, self.promised, self.accepted)

    def accept(self, ballot: Version, proposal: Proposal, quorum: Quorum) -> bool:
        """Accept, if the promise was given in this life and those of the others were given in lives that last."""
        own = (self.name, self.life) in quorum
        stale = any(self.lives.get(name, 0) > life for name, life in quorum)
        if not self.voter or ballot != self.promised or not own or stale:
            return False
        self.accepted = Accepted(ballot, proposal)
        return True

    def witness(self, name: str, boot_id: str, life: int, former: int) -> Attestation:
        """Take note of a new life of `name`, whose former one had a number up to `former`."""
        above = former if self._seen.get(name) == boot_id else max(former, self.lives.get(name, 0))
        if life > above:
            self.lives[name], self._seen[name] = life, boot_id
        return Attestation(above, self.voter, self.promised, self.accepted, dict(self.lives))

    def take_over(self, attestations: Iterable[Attestation]) -> None:
        """Become a voter that knows what these know."""
        for told in attestations:
            self.promised = max(self.promised, told.promised)
            if told.accepted is not None and (self.accepted is None or told.accepted.ballot > self.accepted.ballot):
                self.accepted = told.accepted
            for name, life in told.lives.items():
                self.lives[name] = max(life, self.lives.get(name, 0))
        self.voter = True


def enough_witnesses(state: RingState, me: str, voters: Iterable[str]) -> bool:
    """Whether every majority that `me` may have been part of, on any ring in force, has one of these voters in it."""
    for ring in (state.members, state.next or ()):
        names = {node.name for node in ring}
        others = names - {me}
        if me in names and others and len(others & set(voters)) < len(names) - majority(len(names)) + 1:
            return False
    return True


# -- being asked, and asking ------------------------------------------------------------------------------------------


class Register:
    """One member's acceptor, and what its proposers need: the table in force and where to put the next one."""

    def __init__(
        self, me: Member, table: Callable[[], MemberTable | None], adopt: Callable[[MemberTable], None]
    ) -> None:
        self.name, self.boot_id = me.name, me.boot_id
        self.acceptor = Acceptor(me.name, me.incarnation)
        self.table, self.adopt = table, adopt
        self._highest: Version = ZERO  # of the ballots that were in the way of this member's

    def learn(self, round_: Round) -> Op[None]:
        """From who is at another state take the table, or give this one to whom it is news."""
        behind: list[str] = []
        for failure in round_.failures:
            theirs = _table_of(failure.error)
            mine = self.table()
            if theirs is None or mine is None:
                continue
            try:
                self.adopt(theirs)
            except ClusterMismatch as error:
                log.warning("what %s holds for the table is none of this cluster: %s", failure.node, error)
                continue
            if theirs.ring_state.rank() < mine.ring_state.rank():
                behind.append(failure.node)
        table = self.table()
        if behind and table is not None:
            yield Detached([Call(node, "offer", (table.to_wire(),)) for node in behind])

    def stamp(self, clock: VersionClock) -> Version:
        """A ballot above what this member has promised, and what has refused its last."""
        ballot, known = clock.stamp(), max(self._highest, self.acceptor.promised)
        return ballot if ballot > known else clock.above(known)

    def refused(self, ballot: Version) -> None:
        """Somebody has promised `ballot`."""
        self._highest = max(self._highest, ballot)

    def others(self, names: Iterable[str]) -> list[str]:
        return sorted(set(names) - {self.name})


class Votes(Round):
    """A round that is over with `needed` answers that `count`, or when they cannot be had."""

    def __init__(
        self, calls: Sequence[Call], needed: int, read: Callable[[Any], Any], count: Callable[[Any], bool]
    ) -> None:
        super().__init__(calls)
        self.needed = needed
        self.answers: dict[str, Any] = {}
        self._read, self._count = read, count

    def check(self, call: Call, result: Any) -> None:
        self.answers[call.node] = self._read(result)

    def missing(self) -> int:
        return self.needed - sum(map(self._count, self.answers.values()))


def propose(register: Register, wanted: Proposal, clock: VersionClock) -> Op[bool]:
    """One attempt to have `wanted` follow the state in force.

    Whether a state was agreed on; it is another one if somebody's proposal had to be finished.
    """
    table = register.table()
    assert table is not None
    promises = yield from _prepare(register, table, register.stamp(clock))
    if promises is None:
        return False
    ballot, granted = promises
    found = [promise.accepted for promise in granted.values() if promise.accepted is not None]
    proposal = max(found, key=lambda accepted: accepted.ballot).proposal if found else wanted
    if not follows(table.ring_state, proposal):
        log.error("a proposal does not follow the ring state in force: %s", proposal.state)
        return False
    quorum = tuple((name, promise.life) for name, promise in sorted(granted.items()))
    if not (yield from _accept(register, table, ballot, proposal, quorum)):
        return False
    yield from _announce(register, table, succeeding(table, proposal))
    return True


def _prepare(register: Register, table: MemberTable, ballot: Version) -> Op[tuple[Version, dict[str, Promise]] | None]:
    """The promises of a majority of the members, by name, or None."""
    members = [node.name for node in table.ring_state.members]
    needed = majority(len(members))
    granted: dict[str, Promise] = {}
    if register.name in members:
        granted[register.name] = register.acceptor.prepare(ballot)
    calls = [Call(name, "ring_prepare", (table.fingerprint, ballot)) for name in register.others(members)]
    round_ = Votes(calls, needed - sum(p.granted for p in granted.values()), promise_from_wire, lambda p: p.granted)
    yield round_
    yield from register.learn(round_)
    for promise in round_.answers.values():
        register.refused(promise.promised)
    granted = {name: promise for name, promise in (granted | round_.answers).items() if promise.granted}
    return (ballot, granted) if len(granted) >= needed else None


def _accept(register: Register, table: MemberTable, ballot: Version, proposal: Proposal, quorum: Quorum) -> Op[bool]:
    """Whether a majority of the members accepted."""
    needed, current = majority(len(table.ring_state.members)), register.table()
    if current is None or current.fingerprint != table.fingerprint:
        return False
    own = register.acceptor.accept(ballot, proposal, quorum)
    params = (table.fingerprint, ballot, proposal_to_wire(proposal), quorum)
    calls = [Call(name, "ring_accept", params) for name in register.others(name for name, _ in quorum)]
    round_ = Votes(calls, needed - own, _boolean, lambda accepted: accepted)
    yield round_
    yield from register.learn(round_)
    return round_.missing() <= 0


def _announce(register: Register, before: MemberTable, decided: MemberTable) -> Op[None]:
    """Everybody of the old and the new state is told at once; those that miss it hear of it from each other."""
    register.adopt(decided)
    table = register.table()
    assert table is not None
    rows = {**before.members, **decided.members}
    wire = table.to_wire()
    others = register.others(rows)
    if others:
        # Whoever is of the table no more is known by its address alone.
        names = [name if name in table.members else rows[name].address for name in others]
        yield Detached([Call(name, "offer", (wire,)) for name in names])


def regain_vote(register: Register, *, start_over: bool) -> Op[bool]:
    """One attempt of a member that started again to vote; whether it does now.

    With `start_over` a majority of members that answer is enough, though they may know too little.
    """
    table, acceptor = register.table(), register.acceptor
    if table is None or register.name not in table.ring_state.names:
        return False
    told = yield from _attestations(register, table)
    current = register.table()
    if current is None or current.fingerprint != table.fingerprint:
        return False
    too_low = [attestation.above for attestation in told.values() if attestation.above >= acceptor.life]
    if too_low:
        acceptor.life = max(too_low) + 1
        return False
    state, voters = table.ring_state, [name for name, attestation in told.items() if attestation.voter]
    if not enough_witnesses(state, register.name, voters):
        members = {node.name for node in state.members}
        if not start_over or len(members & {*told, register.name}) < majority(len(members)):
            return False
        log.warning("too few members remember what was agreed on, so the ring state in force now is taken for it")
    acceptor.take_over(told.values())
    return True


def _attestations(register: Register, table: MemberTable) -> Op[dict[str, Attestation]]:
    others = register.others(table.ring_state.names)
    params = (table.fingerprint, register.name, register.boot_id, register.acceptor.life)
    round_ = Gather([Call(name, "ring_witness", params) for name in others])
    yield round_
    yield from register.learn(round_)
    told: dict[str, Attestation] = {}
    for reply in round_.replies:
        try:
            told[reply.node] = attestation_from_wire(reply.result)
        except ProtocolError as error:
            log.error("%s: %s", reply.node, error)
    return told


# -- the wire ---------------------------------------------------------------------------------------------------------


def ballot_from_wire(data: Any) -> Version:
    """`ValueError` for what is no ballot that could be exceeded."""
    if type(data) is not bytes or len(data) != len(ZERO) or version_milliseconds(data) >= BALLOT_CEILING:
        raise ValueError("a ballot has 12 bytes, with milliseconds that leave room for higher ones")
    return Version(data)


def life_from_wire(data: Any) -> int:
    if type(data) is not int or not 0 <= data < LIFE_CEILING:
        raise ValueError("the number of a life is neither negative nor beyond all clocks")
    return data


def proposal_to_wire(proposal: Proposal) -> tuple[Any, Any]:
    row = proposal.newcomer
    return ring_state_to_wire(proposal.state), None if row is None else member_to_wire(row)


def proposal_from_wire(data: Any) -> Proposal:
    """`ValueError` or `TypeError` for what is none."""
    state, row = data
    return Proposal(ring_state_from_wire(state), None if row is None else member_from_wire(row))


def quorum_from_wire(data: Any) -> Quorum:
    return [(str(name), life_from_wire(life)) for name, life in data]


def _accepted_to_wire(accepted: Accepted | None) -> Any:
    return None if accepted is None else (accepted.ballot, proposal_to_wire(accepted.proposal))


def _accepted_from_wire(data: Any) -> Accepted | None:
    if data is None:
        return None
    ballot, proposal = data
    return Accepted(ballot_from_wire(ballot), proposal_from_wire(proposal))


def promise_to_wire(promise: Promise) -> tuple[Any, ...]:
    return promise.granted, promise.life, promise.promised, _accepted_to_wire(promise.accepted)


def promise_from_wire(data: Any) -> Promise:
    """`ProtocolError` for what is none."""
    try:
        granted, life, promised, accepted = data
        return Promise(
            _boolean(granted), life_from_wire(life), ballot_from_wire(promised), _accepted_from_wire(accepted)
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"not an answer to ring_prepare: {error}") from error


def attestation_to_wire(told: Attestation) -> tuple[Any, ...]:
    accepted = _accepted_to_wire(told.accepted)
    return told.above, told.voter, told.promised, accepted, sorted(told.lives.items())


def attestation_from_wire(data: Any) -> Attestation:
    """`ProtocolError` for what is none."""
    try:
        above, voter, promised, accepted, lives = data
        return Attestation(
            life_from_wire(above),
            _boolean(voter),
            ballot_from_wire(promised),
            _accepted_from_wire(accepted),
            dict(quorum_from_wire(lives)),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise ProtocolError(f"not an answer to ring_witness: {error}") from error


def _boolean(data: Any) -> bool:
    if type(data) is not bool:
        raise ProtocolError(f"{data!r} is neither true nor false")
    return data


def _table_of(error: Exception) -> MemberTable | None:
    """The table that came with a refusal."""
    if not isinstance(error, NodeError) or error.code != Code.WRONG_RING:
        return None
    try:
        return MemberTable.from_wire(error.detail)
    except ProtocolError:
        return None
