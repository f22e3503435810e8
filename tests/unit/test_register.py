"""However messages are lost, late and doubled, and whoever dies and starts again: one state follows another."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcache.agent import register as rules
from dcache.agent.agent import Agent, Terms
from dcache.agent.register import (
    BALLOT_CEILING,
    Accepted,
    Acceptor,
    Attestation,
    Promise,
    Proposal,
    attestation_from_wire,
    attestation_to_wire,
    enough_witnesses,
    follows,
    promise_from_wire,
    promise_to_wire,
    proposal_from_wire,
    proposal_to_wire,
    propose,
    regain_vote,
    succeeding,
)
from dcache.errors import NodeError, ProtocolError
from dcache.membership import Member, MemberTable, RingState, Settings
from dcache.node.refusal import REFUSED, Refusal, as_refusal, refusal_to_wire
from dcache.ops.effects import Call, Detached, Op, Round
from dcache.record import Version, VersionClock, make_version
from dcache.ring import RingNode
from dcache.wire import Code, Decoder, encode_reply
from tests.unit.agents_kit import NoSlots

NAMES = "abcdefg"


def row(name: str, boot: int = 1) -> Member:
    return Member(name, f"{name}:7400", boot_id=f"{name}{boot}", incarnation=boot)


def ring(names: str) -> tuple[RingNode, ...]:
    return tuple(row(name).placed() for name in names)


def table_of(names: str, coming: str | None = None, epoch: int = 1) -> MemberTable:
    state = RingState(epoch, ring(names), None if coming is None else ring(coming))
    return MemberTable(Settings("c", 3, 8), state, {name: row(name) for name in {*names, *(coming or "")}})


def joining(table: MemberTable, name: str) -> Proposal:
    state = table.ring_state
    return Proposal(RingState(state.epoch + 1, state.members, (*state.members, row(name).placed())), row(name))


def ballot(n: int) -> Version:
    return make_version(n, 0, 1)


def over_the_wire(data: Any) -> Any:
    decoder = Decoder(1 << 20, 1024)
    decoder.feed(encode_reply(1, data))
    (message,) = decoder.messages()
    return message[3]


def member(name: str, table: MemberTable, boot: int = 1) -> Agent:
    agent = Agent(row(name, boot), Terms(3, 8), lambda table: None, NoSlots())
    agent.adopt(table)
    return agent


# -- one epoch, and everything that may happen in it ------------------------------------------------------------------


@attrs.define
class Link:
    alive: bool = True


@attrs.define(eq=False)
class Work:
    """An operation of a member's process, and the round that it waits for."""

    agent: Agent
    op: Op[bool]
    round: Round | None = None


class World:
    """Members of one ring in one epoch, each message a thing of its own: any may be next, never come, or come twice."""

    def __init__(self, seed: int, size: int) -> None:
        self.random = random.Random(seed)
        self.table = table_of(NAMES[:size])
        self.decided: set[RingState] = set()
        self.boots = dict.fromkeys(NAMES[:size], 0)
        self.agents: dict[str, Agent] = {}
        self.pool: list[Callable[[], None]] = []
        self.wall = 1000
        for name in self.boots:
            self.boot(name)
        self.loss, self.deaths = self.random.choice([0.0, 0.1, 0.3]), self.random.choice([0.0, 0.02, 0.06])

    def boot(self, name: str) -> None:
        """The process of a member begins, or begins anew; whatever its former life was doing is not gone on with."""
        self.boots[name] += 1
        agent = self.agents[name] = Agent(row(name, self.boots[name]), Terms(3, 8), lambda table: None, NoSlots())
        agent.table = self.table
        agent.register.acceptor.enter(self.table.ring_state)
        agent.register.acceptor.voter = self.boots[name] == 1
        agent.register.adopt = lambda table: self.decided.add(table.ring_state)  # and on with this epoch

    def run(self, steps: int) -> None:
        for _ in range(steps):
            chance = self.random.random()
            if chance < self.deaths:
                self.boot(self.random.choice(list(self.boots)))
            elif chance < 0.12 or not self.pool:
                self._begin(self.random.choice(list(self.agents.values())))
            else:
                self._something_arrives()
            if len(self.decided) > 1:
                return

    def _begin(self, agent: Agent) -> None:
        if not agent.register.acceptor.voter:
            self._go_on(Work(agent, regain_vote(agent.register, start_over=False)))
        else:
            coming = self.random.choice("hijklmnop")
            clock = VersionClock(self.random.getrandbits(32), lambda: self.wall + self.random.randrange(20))
            self._go_on(Work(agent, propose(agent.register, joining(self.table, coming), clock)))

    def _something_arrives(self) -> None:
        index = self.random.randrange(len(self.pool))
        if self.random.random() < self.loss:
            self.pool.pop(index)
        elif self.random.random() < 0.1:
            self.pool[index]()  # and once more later
        else:
            self.pool.pop(index)()

    def _go_on(self, work: Work) -> None:
        """Until there is something to be waited for."""
        work.round = None
        for effect in work.op:
            if isinstance(effect, Round):
                self._send(work, effect)
                if not effect.over():
                    return

    def _send(self, work: Work, round_: Round) -> None:
        work.round = round_
        for call in round_.begin():
            self.pool.append(partial(self._request, work, round_, call))
        self.pool.append(lambda: self._expire(work, round_))

    def _request(self, work: Work, round_: Round, call: Call) -> None:
        try:
            result = self.agents[call.node].methods()[call.method](*over_the_wire(call.params))
        except Refusal as refusal:
            error = NodeError(*refusal_to_wire(refusal))
            self.pool.append(lambda: self._end(work, round_, call, lambda: round_.failed(call, error, True)))
        else:
            reply = over_the_wire(result)
            self.pool.append(lambda: self._end(work, round_, call, lambda: round_.replied(call, reply, Link())))

    def _end(self, work: Work, round_: Round, call: Call, how: Callable[[], object]) -> None:
        if self._waits(work, round_) and call in round_.pending:
            how()
            if round_.over():
                self._go_on(work)

    def _expire(self, work: Work, round_: Round) -> None:
        if self._waits(work, round_):
            round_.expire()
            self._go_on(work)

    def _waits(self, work: Work, round_: Round) -> bool:
        return work.round is round_ and self.agents[work.agent.me.name] is work.agent


@pytest.mark.cluster
@settings(max_examples=300)
@given(st.integers(0, 2**32), st.integers(2, 7))
def test_one_state_at_most_follows_another(seed: int, size: int) -> None:
    world = World(seed, size)
    world.run(600)
    assert len(world.decided) <= 1


def harmful(seeds: range) -> bool:
    """Whether two states followed one in one of these worlds."""
    for seed in seeds:
        world = World(seed, 2 + seed % 3)
        world.run(600)
        if len(world.decided) > 1:
            return True
    return False


def test_without_majorities_two_states_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "majority", lambda n: max(1, n // 2))
    assert harmful(range(100))


def test_with_members_that_vote_although_they_forgot_two_states_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    boot = World.boot

    def booted(world: World, name: str) -> None:
        boot(world, name)
        world.agents[name].register.acceptor.voter = True

    monkeypatch.setattr(World, "boot", booted)
    assert harmful(range(300))


def test_with_fewer_witnesses_two_states_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "enough_witnesses", lambda state, me, voters: bool(list(voters)) or len(state.names) < 3)
    assert harmful(range(300))


def test_without_proposing_again_what_was_accepted_two_states_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Acceptor.prepare

    def silent(acceptor: Acceptor, ballot: Version) -> Promise:
        return prepare(acceptor, ballot)._replace(accepted=None)

    monkeypatch.setattr(Acceptor, "prepare", silent)
    assert harmful(range(200))


# -- the promise of a life that is over -------------------------------------------------------------------------------


def quorum_of(**promises: Promise) -> list[tuple[str, int]]:
    assert all(promise.granted for promise in promises.values())
    return [(name, promise.life) for name, promise in promises.items()]


def test_a_promise_of_a_life_that_is_over_counts_no_more_once_the_next_life_was_witnessed() -> None:
    """a promises ballot 9 to e and dies.  Its next life asks b, c and d, who know nothing of that, and helps c and d to
    decide ballot 5.  Then b promises 9, and e has a majority, the former a in it, of members that accepted nothing."""
    a, b, c, d, e = (Acceptor(name, 1) for name in "abcde")
    for one in (a, b, c, d, e):
        one.voter = True
    table = table_of("abcde")
    first, second = joining(table, "f"), joining(table, "g")
    nine = {"a": a.prepare(ballot(9)), "e": e.prepare(ballot(9))}

    a = Acceptor("a", 2)
    a.take_over([one.witness("a", "a2", 2, 1) for one in (b, c, d)])
    five = quorum_of(a=a.prepare(ballot(5)), c=c.prepare(ballot(5)), d=d.prepare(ballot(5)))
    assert all(one.accept(ballot(5), first, five) for one in (a, c, d)), "decided"

    nine["b"] = b.prepare(ballot(9))
    assert [promise.accepted for promise in nine.values()] == [None, None, None]
    rests_on = quorum_of(**nine)
    assert e.accept(ballot(9), second, rests_on)
    assert not any(one.accept(ballot(9), second, rests_on) for one in (a, b, c, d))


def test_who_starts_again_hears_of_the_lives_that_others_witnessed() -> None:
    b, c = Acceptor("b", 1), Acceptor("c", 1)
    b.voter = c.voter = True
    b.witness("a", "a2", 7, 1)
    again = Acceptor("c", 2)
    again.take_over([b.witness("c", "c2", 2, 1)])
    again.prepare(ballot(1))
    assert not again.accept(ballot(1), joining(table_of("abc"), "d"), [("a", 6), ("c", 2)])
    assert again.accept(ballot(1), joining(table_of("abc"), "d"), [("a", 7), ("c", 2)])


def test_a_new_life_takes_over_the_highest_of_what_others_promised_and_accepted() -> None:
    table, one = table_of("abc"), Acceptor("a", 2)
    low, high = (Accepted(ballot(n), joining(table, name)) for n, name in ((3, "d"), (5, "e")))
    one.take_over([Attestation(0, True, ballot(8), low, {}), Attestation(0, True, ballot(6), high, {})])
    assert (one.voter, one.promised, one.accepted) == (True, ballot(8), high)


def test_the_number_of_a_new_life_is_to_be_above_those_of_all_former_ones() -> None:
    one = Acceptor("b", 1)
    assert one.witness("a", "a2", 5, 5).above == 5, "as high as the row of the former life"
    assert one.lives == {}
    assert one.witness("a", "a2", 6, 5).above == 5
    assert one.witness("a", "a2", 6, 5).above == 5, "asked again"
    assert one.witness("a", "a3", 6, 5).above == 6, "another life"
    assert one.lives == {"a": 6}


# -- one acceptor -----------------------------------------------------------------------------------------------------


def test_who_does_not_vote_promises_and_accepts_nothing() -> None:
    one = Acceptor("a", 1)
    assert not one.prepare(ballot(1)).granted
    assert not one.accept(ballot(1), joining(table_of("a"), "b"), [("a", 1)])


def test_a_lower_ballot_than_the_promised_one_is_refused_and_told_why() -> None:
    one = Acceptor("a", 1)
    one.voter = True
    assert one.prepare(ballot(5)).granted
    assert one.prepare(ballot(4)) == Promise(False, 1, ballot(5), None)
    assert one.prepare(ballot(5)).granted, "asked again"


def test_what_was_promised_to_nobody_in_this_life_is_not_accepted() -> None:
    table, one = table_of("ab"), Acceptor("a", 2)
    one.take_over([Attestation(0, True, ballot(5), None, {})])
    assert not one.accept(ballot(5), joining(table, "c"), [("a", 1), ("b", 1)])
    assert not one.accept(ballot(6), joining(table, "c"), [("a", 2), ("b", 1)])


def test_a_later_epoch_begins_with_nothing_promised() -> None:
    one = Acceptor("a", 1)
    one.voter = True
    one.prepare(ballot(5))
    one.accept(ballot(5), joining(table_of("a"), "b"), [("a", 1)])
    one.enter(RingState(2))
    assert (one.promised, one.accepted, one.voter) == (bytes(12), None, True)


def test_the_lives_of_those_that_are_gone_are_not_kept() -> None:
    """Else the answers to whoever starts again would become too long, one day, to be read."""
    one, table = Acceptor("a", 1), table_of("ab")
    one.witness("b", "b-2", 2, 1)
    one.witness("c", "c-1", 1, 0)
    one.enter(table.ring_state)
    assert one.witness("b", "b-2", 2, 1).lives == {"b": 2}


@pytest.mark.parametrize(
    ("members", "coming", "me", "voters", "enough"),
    [
        ("a", None, "a", "", True),
        ("ab", None, "a", "", False),
        ("ab", None, "a", "b", True),
        ("abc", None, "a", "b", False),
        ("abc", None, "a", "bc", True),
        ("abc", None, "a", "bd", False),
        ("abcd", None, "a", "bc", True),
        ("abcde", None, "a", "bc", False),
        ("abcde", None, "a", "bcd", True),
        ("ab", "abc", "a", "b", False),
        ("ab", "abc", "a", "bc", True),
        ("ab", "abc", "c", "a", False),
        ("ab", "abc", "c", "ab", True),
        ("abc", "ab", "a", "bc", True),
    ],
)
def test_every_majority_of_either_ring_is_to_have_a_witness(
    members: str, coming: str | None, me: str, voters: str, enough: bool
) -> None:
    assert enough_witnesses(table_of(members, coming).ring_state, me, voters) is enough


# -- what may follow what ---------------------------------------------------------------------------------------------


def state(members: str, coming: str | None = None, epoch: int = 2, *, forgotten: bool = False) -> RingState:
    return RingState(epoch, ring(members), None if coming is None else ring(coming), forgotten)


@pytest.mark.parametrize(
    ("now", "then", "newcomer", "may"),
    [
        pytest.param(state("ab", epoch=1), state("ab", "abc"), "c", True, id="one more"),
        pytest.param(state("ab", epoch=1), state("ab", "a"), None, True, id="one less"),
        pytest.param(state("ab", epoch=1), state("ab", "a", forgotten=True), None, True, id="one forgotten"),
        pytest.param(
            state("ab", epoch=1), state("ab", "abc", forgotten=True), "c", False, id="one forgotten who comes"
        ),
        pytest.param(state("ab", "a", 1, forgotten=True), state("a"), None, True, id="forgotten"),
        pytest.param(
            state("ab", "a", 1, forgotten=True), state("a", forgotten=True), None, False, id="still forgotten"
        ),
        pytest.param(state("ab", "abc", 1), state("abc"), None, True, id="taken over"),
        pytest.param(state("ab", "abc", 1), state("ab"), None, True, id="given up"),
        pytest.param(state("ab", epoch=1), state("ab", "abc", epoch=3), "c", False, id="an epoch left out"),
        pytest.param(state("ab", epoch=1), state("ab", "abc"), None, False, id="no row"),
        pytest.param(state("ab", epoch=1), state("ab", "abc"), "d", False, id="the row of another"),
        pytest.param(state("ab", epoch=1), state("ab", "abcd"), "c", False, id="two more"),
        pytest.param(state("abc", epoch=1), state("abc", "a"), None, False, id="two less"),
        pytest.param(state("ab", epoch=1), state("ab", "ac"), "c", False, id="one for another"),
        pytest.param(state("a", epoch=1), state("a", ""), None, False, id="nobody left"),
        pytest.param(state("ab", epoch=1), state("abc"), "c", False, id="one more at once"),
        pytest.param(state("ab", epoch=1), state("ab"), None, False, id="nothing changed"),
        pytest.param(state("ab", epoch=1), state("a", "ab"), None, False, id="other members"),
        pytest.param(state("ab", "abc", 1), state("abd"), None, False, id="another ring than the next"),
        pytest.param(state("ab", "abc", 1), state("ab", "abd"), None, False, id="another change"),
        pytest.param(state("ab", "abc", 1), state("abc"), "c", False, id="a row that comes too late"),
    ],
)
def test_a_state_follows_another_by_one_step(now: RingState, then: RingState, newcomer: str | None, may: bool) -> None:
    assert follows(now, Proposal(then, None if newcomer is None else row(newcomer))) is may


def test_the_newcomer_brings_its_row_and_who_went_takes_it_along() -> None:
    table = table_of("ab")
    both = succeeding(table, joining(table, "c"))
    assert sorted(both.members) == ["a", "b", "c"]
    after = succeeding(both, Proposal(RingState(3, ring("ab"))))
    assert sorted(after.members) == ["a", "b"]


# -- being asked ------------------------------------------------------------------------------------------------------


def refusal(agent: Agent, method: str, *params: Any) -> Refusal:
    with pytest.raises((Refusal, *REFUSED)) as caught:
        agent.methods()[method](*params)
    return as_refusal(caught.value)


def test_requests_under_another_state_are_refused_with_the_table() -> None:
    table, later = table_of("abc"), table_of("abc", epoch=2)
    agent = member("a", later)
    requests = [("ring_prepare", (ballot(1),)), ("ring_accept", (ballot(1), (), ())), ("ring_witness", ("b", "b2", 2))]
    for method, params in requests:
        refused = refusal(agent, method, table.fingerprint, *params)
        assert refused.code == Code.WRONG_RING
        assert MemberTable.from_wire(over_the_wire(refused.detail)) == later


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("ring_prepare", (b"short",)),
        ("ring_prepare", ("a" * 12,)),
        ("ring_prepare", (make_version(BALLOT_CEILING, 0, 0),)),
        ("ring_accept", (ballot(1), None, ())),
        ("ring_accept", (ballot(1), proposal_to_wire(Proposal(state("abc", "abcd", 9), row("d"))), [("a", 1)])),
        ("ring_accept", (ballot(1), proposal_to_wire(Proposal(state("abc", "abcd"), row("d"))), [("a", -1)])),
        ("ring_accept", (ballot(1), proposal_to_wire(Proposal(state("abc", "abcd"), row("d"))), [("a",)])),
        ("ring_witness", ("z", "z1", 1)),
        ("ring_witness", ("b", 1, 1)),
        ("ring_witness", ("b", "b2", "2")),
        ("ring_witness", ("b", "b2", 1 << 62)),
    ],
)
def test_garbage_is_a_bad_request_and_leaves_no_trace(method: str, params: tuple[Any, ...]) -> None:
    table = table_of("abc")
    agent = member("a", table)
    assert refusal(agent, method, table.fingerprint, *params).code == Code.BAD_REQUEST
    acceptor = agent.register.acceptor
    assert (acceptor.promised, acceptor.accepted, acceptor.lives) == (bytes(12), None, {})


def test_founders_vote_and_those_that_come_later_do_not() -> None:
    assert member("a", table_of("abc")).register.acceptor.voter
    assert not member("a", table_of("abc"), boot=2).register.acceptor.voter
    assert not member("d", table_of("abc")).register.acceptor.voter


@pytest.mark.parametrize(
    "answer", [None, (), (1, 1, ballot(1), None), (True, "1", ballot(1), None), (True, 1, b"", None)]
)
def test_an_answer_that_is_no_promise_says_so(answer: Any) -> None:
    with pytest.raises(ProtocolError, match=r"ring_prepare|neither true nor false"):
        promise_from_wire(answer)


@pytest.mark.parametrize("answer", [None, (0, True, ballot(1), None), (0, True, ballot(1), None, [("a", "b")])])
def test_an_answer_that_is_no_attestation_says_so(answer: Any) -> None:
    with pytest.raises(ProtocolError, match="ring_witness"):
        attestation_from_wire(answer)


def test_all_that_is_said_survives_the_wire() -> None:
    proposal = joining(table_of("ab"), "c")
    accepted = Accepted(ballot(2), proposal)
    assert proposal_from_wire(over_the_wire(proposal_to_wire(proposal))) == proposal
    promise = Promise(True, 7, ballot(3), accepted)
    assert promise_from_wire(over_the_wire(promise_to_wire(promise))) == promise
    told = Attestation(4, True, ballot(3), accepted, {"a": 4})
    assert attestation_from_wire(over_the_wire(attestation_to_wire(told))) == told


# -- asking -----------------------------------------------------------------------------------------------------------


def answered(op: Op[bool], agents: dict[str, Agent]) -> tuple[bool, list[Call]]:
    """Run an operation at once; who is not among `agents` does not answer.  What was sent without waiting."""
    sent: list[Call] = []
    try:
        while True:
            effect = next(op)
            if isinstance(effect, Detached):
                sent.extend(effect.calls)
            elif isinstance(effect, Round):
                _answer(effect, agents)
    except StopIteration as stop:
        return stop.value, sent


def _answer(round_: Round, agents: dict[str, Agent]) -> None:
    for call in round_.begin():
        if call.node not in agents:
            round_.failed(call, ConnectionError("nobody is there"), False)
            continue
        try:
            result = agents[call.node].methods()[call.method](*over_the_wire(call.params))
        except Refusal as refused:
            round_.failed(call, NodeError(*over_the_wire(refusal_to_wire(refused))), True)
        else:
            round_.replied(call, over_the_wire(result), Link())


CLOCK = VersionClock(1, lambda: 1000)


def test_what_is_agreed_on_is_in_force_at_the_proposer_and_told_to_all_others() -> None:
    table = table_of("abc")
    agents = {name: member(name, table) for name in "abc"}
    agreed, sent = answered(propose(agents["a"].register, joining(table, "d"), CLOCK), agents)
    assert agreed
    assert agents["a"].table == succeeding(table, joining(table, "d"))
    assert [(call.node, call.method) for call in sent] == [("b", "offer"), ("c", "offer"), ("d", "offer")]


def test_who_leaves_is_told_that_it_has_left() -> None:
    """It is in the table no more, so it is reached at its address."""
    table = table_of("abc", "ab", epoch=2)
    agents = {name: member(name, table) for name in "abc"}
    for agent in agents.values():
        agent.register.acceptor.voter = True
    agreed, sent = answered(propose(agents["a"].register, Proposal(RingState(3, ring("ab"))), CLOCK), agents)
    assert agreed
    assert [(call.node, call.method) for call in sent] == [("b", "offer"), ("c:7400", "offer")]


def test_a_minority_agrees_on_nothing() -> None:
    table = table_of("abcd")
    agents = {name: member(name, table) for name in "ab"}
    agreed, _ = answered(propose(agents["a"].register, joining(table, "e"), CLOCK), agents)
    assert not agreed
    assert agents["a"].table == table


def test_what_somebody_accepted_is_finished_before_anything_else() -> None:
    table = table_of("abc")
    agents = {name: member(name, table) for name in "abc"}
    begun, accepting = joining(table, "d"), agents["b"].register.acceptor
    accepting.prepare(ballot(5))
    accepting.accept(ballot(5), begun, [("b", 1), ("c", 1)])
    del agents["c"]
    agreed, _ = answered(propose(agents["a"].register, joining(table, "e"), CLOCK), agents)
    assert agreed
    assert agents["a"].table == succeeding(table, begun)


def test_the_next_ballot_goes_above_the_one_that_was_in_the_way() -> None:
    table = table_of("abc")
    agents = {name: member(name, table) for name in "abc"}
    for name in "bc":
        agents[name].register.acceptor.prepare(ballot(50_000))
    tries = [answered(propose(agents["a"].register, joining(table, "d"), CLOCK), agents)[0] for _ in range(2)]
    assert tries == [False, True]


def test_who_missed_states_learns_of_them_by_asking() -> None:
    table = table_of("abc")
    later = succeeding(table, joining(table, "d"))
    agents = {"a": member("a", table), "b": member("b", later), "c": member("c", later)}
    agreed, _ = answered(propose(agents["a"].register, joining(table, "e"), CLOCK), agents)
    assert not agreed
    assert agents["a"].table == later


def test_who_asks_tells_those_that_missed_states() -> None:
    table = table_of("abc")
    later = table_of("abc", epoch=2)
    agents = {"a": member("a", later), "b": member("b", table), "c": member("c", table)}
    agents["a"].register.acceptor.voter = True
    agreed, sent = answered(propose(agents["a"].register, joining(later, "d"), CLOCK), agents)
    assert not agreed
    assert [call.node for call in sent] == ["b", "c"]
    assert all(MemberTable.from_wire(call.params[0]) == later for call in sent)


def test_a_member_that_started_again_votes_once_enough_others_have_witnessed_it() -> None:
    table = table_of("abc")
    agents = {"a": member("a", table, boot=2), "b": member("b", table)}
    assert not answered(regain_vote(agents["a"].register, start_over=False), agents)[0]
    agents["c"] = member("c", table)
    assert answered(regain_vote(agents["a"].register, start_over=False), agents)[0]
    assert agents["a"].register.acceptor.voter
    assert agents["b"].register.acceptor.lives == {"a": 2}


def test_a_life_whose_clock_stands_behind_that_of_the_former_gets_a_higher_number() -> None:
    table = table_of("abc").with_member(attrs.evolve(row("a"), incarnation=900))
    agents = {"a": member("a", table, boot=2), "b": member("b", table), "c": member("c", table)}
    tries = [answered(regain_vote(agents["a"].register, start_over=False), agents)[0] for _ in range(2)]
    assert tries == [False, True]
    assert agents["a"].register.acceptor.life == 901


def test_where_too_many_forgot_a_majority_starts_over_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    table = table_of("abc")
    agents = {"a": member("a", table, boot=2), "b": member("b", table, boot=2)}
    assert not answered(regain_vote(agents["a"].register, start_over=False), agents)[0]
    assert answered(regain_vote(agents["a"].register, start_over=True), agents)[0]
    assert "too few members remember what was agreed on" in caplog.text


def test_a_minority_does_not_start_over() -> None:
    table = table_of("abc")
    agents = {"a": member("a", table, boot=2)}
    assert not answered(regain_vote(agents["a"].register, start_over=True), agents)[0]


def test_who_is_alone_on_the_ring_votes_at_once() -> None:
    agents = {"a": member("a", table_of("a"), boot=2)}
    assert answered(regain_vote(agents["a"].register, start_over=False), agents)[0]
