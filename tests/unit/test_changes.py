"""Nodes come, go and die, and the ring follows, by agreement of a majority and one member at a time."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import pytest

from dcache.agent.agent import Agent, CannotJoin, Terms
from dcache.agent.changes import Steward, ask_to_be_let_in, join, leave, look_for_news, recall
from dcache.agent.detector import Detector
from dcache.agent.formation import form
from dcache.agent.register import Proposal
from dcache.membership import Health, Member, MemberTable, RingState, Settings, member_to_wire
from dcache.node.refusal import Refusal
from dcache.ops.effects import Detached, Op, Round, Sleep
from dcache.record import VersionClock, make_version
from dcache.wire import Code
from tests.unit.agents_kit import Network, Task

pytestmark = pytest.mark.cluster

INTERVAL = 1.0
TERMS = Terms(replicas=3, vnodes=4)


class Slots:
    """A store that completes what it owns at once, unless it is told to wait."""

    def __init__(self) -> None:
        self.complete_at_once = True
        self.ready: Callable[[], bool | None] = lambda: self.complete_at_once

    def own(self, slots: object) -> None: ...
    def doubt(self) -> None: ...
    def complete(self, slots: object) -> None: ...


class Node:
    """The process of a node: its agent, and all that the agent does."""

    def __init__(self, cluster: Cluster, name: str, table: MemberTable | None, terms: Terms, address: str = "") -> None:
        net = cluster.net
        self.cluster, self.name, self.slots = cluster, name, Slots()
        host = net.hosts.get(address or f"{name}:7400")
        self.host = net.host(name, address or None) if host is None or host.name != name else host
        cluster.boots += 1
        boot_id, incarnation = f"{name}-{cluster.boots}", self.host.wall() + cluster.boots
        if table is not None:
            boot_id, incarnation = table.members[name].boot_id, table.members[name].incarnation
        me = Member(name, self.host.address, boot_id=boot_id, incarnation=incarnation)
        self.agent = Agent(me, terms, lambda table: None, self.slots)
        if table is not None:
            self.agent.adopt(table)
        clock = VersionClock(net.random.getrandbits(32), self.host.wall)
        detector = Detector(self.agent, INTERVAL, self.host.now, self.host.wall, net.random.random)
        self.steward = Steward(self.agent, clock, self.seconds, net.random.random, interval=INTERVAL, start_over=20.0)
        self.host.boot(self.agent.methods(), detector.methods(), {"ready": self.ready})
        self.host.table = lambda: self.agent.table
        self.work = self.host.run(self._live())
        self.host.run(detector.detect())

    def _live(self) -> Op[None]:
        yield from form(self.agent, self.cluster.addresses, f"cluster-of-{self.agent.me.boot_id}")
        yield from join(self.agent, self.cluster.net.random.random, self.seconds)
        yield from self.steward.work()

    def seconds(self) -> float:
        return self.host.now() / 1000

    def ready(self, fingerprint: bytes) -> bool | None:
        table = self.agent.table
        if table is None or fingerprint != table.fingerprint:
            raise Refusal(Code.WRONG_RING, None if table is None else table.to_wire())
        return self.slots.ready()

    @property
    def ring(self) -> str:
        table = self.agent.table
        return "" if table is None else told(table.ring_state)

    @property
    def forgotten(self) -> bool:
        assert self.agent.table is not None
        return self.agent.table.ring_state.forgotten

    @property
    def down(self) -> frozenset[str]:
        return frozenset() if self.agent.table is None else self.agent.table.down

    @property
    def epoch(self) -> int:
        assert self.agent.table is not None
        return self.agent.table.ring_state.epoch


def told(state: RingState) -> str:
    now = "".join(node.name for node in state.members)
    return now if state.next is None else now + ">" + "".join(node.name for node in state.next)


class Cluster:
    """Nodes that founded a cluster together, and those that come later."""

    def __init__(self, names: str, seed: int = 1) -> None:
        self.net = Network(seed)
        self.boots = 0
        self.addresses = [f"{name}:7400" for name in names]
        rows = {name: Member(name, f"{name}:7400", boot_id=f"{name}-0", incarnation=1) for name in names}
        placed = tuple(row.placed() for row in rows.values())
        table = MemberTable(Settings("cluster-1", 3, 4), RingState(1, placed), rows)
        self.nodes = {name: Node(self, name, table, TERMS) for name in names}

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def start(self, name: str, terms: Terms = TERMS, address: str = "") -> Node:
        """Start a node, anew if it was there."""
        self.nodes[name] = Node(self, name, None, terms, address)
        return self.nodes[name]

    def crash(self, names: str) -> None:
        for name in names:
            self.nodes.pop(name).host.crash()

    def until(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        self.net.run_until(condition, seconds, every=0.05)

    def until_done(self, task: Task) -> None:
        self.until(lambda: task.done)

    def until_ring(self, ring: str, seconds: float = 60.0) -> None:
        """All nodes hold this ring."""
        self.until(lambda: all(node.ring == ring for node in self.nodes.values()), seconds)

    def until_down(self, name: str) -> None:
        self.until(lambda: all(name in node.down for node in self.nodes.values()))

    def split(self, one: str, other: str) -> None:
        for here in one:
            for there in other:
                self.net.cut(here, there)
                self.net.cut(there, here)

    def heal(self, one: str, other: str) -> None:
        for here in one:
            for there in other:
                self.net.heal(here, there)
                self.net.heal(there, here)

    def wish(self, at: str, method: str, *params: Any) -> Task:
        """Say a wish at a member again and again."""

        def saying() -> Op[None]:
            with contextlib.suppress(Refusal):  # there is nothing left to wish for
                while True:
                    self.nodes[at].agent.methods()[method](*params)
                    yield Sleep(1.0)

        return self.nodes[at].host.run(saying())


# -- joining ----------------------------------------------------------------------------------------------------------


def test_a_node_that_finds_a_cluster_is_let_in() -> None:
    cluster = Cluster("abc")
    cluster.start("d")
    cluster.until_ring("abcd", 10)
    assert {node.epoch for node in cluster.nodes.values()} == {3}


def test_a_node_joins_one_that_is_alone() -> None:
    cluster = Cluster("a")
    cluster.start("b")
    cluster.until_ring("ab", 10)


def test_a_newcomer_is_taken_over_only_once_all_have_completed_their_slots() -> None:
    cluster = Cluster("abc")
    cluster["b"].slots.complete_at_once = False
    cluster.start("d")
    cluster.until_ring("abc>abcd")
    cluster.net.run(20)
    assert {node.ring for node in cluster.nodes.values()} == {"abc>abcd"}
    cluster["b"].slots.complete_at_once = True
    cluster.until_ring("abcd", 5)


@pytest.mark.parametrize(
    ("answer", "told"), [(False, "b has yet to complete its slots"), (None, "b cannot complete its slots")]
)
def test_a_change_that_takes_long_says_for_whom_it_waits(
    answer: bool | None, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody else can join or leave before."""
    cluster = Cluster("abc")
    cluster["b"].slots.ready = lambda: answer
    cluster.start("d")
    cluster.net.run(25)
    assert "this takes long" not in caplog.text
    cluster.net.run(35)
    assert f"d is coming: this takes long, and no other change can begin before: {told}" in caplog.text
    assert caplog.text.count("this takes long") == 3  # each of the three that look after it, once


def test_a_member_that_is_down_is_not_waited_for() -> None:
    cluster = Cluster("abc")
    cluster.crash("c")
    cluster.until_down("c")
    cluster.start("d")
    cluster.until_ring("abcd")


@pytest.mark.parametrize("seed", range(5))
def test_two_that_come_at_once_are_let_in_one_after_the_other(seed: int) -> None:
    cluster = Cluster("abc", seed)
    cluster.start("d")
    cluster.start("e")
    cluster.until(lambda: set("abcde") == set(cluster["a"].ring))
    cluster.until_ring(cluster["a"].ring)
    assert cluster["a"].epoch == 5


def test_members_that_joined_vote_on_who_comes_next() -> None:
    cluster = Cluster("a")
    for name, ring in (("b", "ab"), ("c", "abc"), ("d", "abcd")):
        cluster.start(name)
        cluster.until_ring(ring)
    cluster.crash("a")
    cluster.until_down("a")
    cluster.addresses = ["b:7400"]
    cluster.start("e")
    cluster.until_ring("abcde")


def test_a_node_with_other_settings_is_not_let_in() -> None:
    cluster = Cluster("abc")
    node = cluster.start("d", Terms(replicas=2, vnodes=4))
    cluster.until(lambda: node.work.done, 5)
    with pytest.raises(CannotJoin, match="has replicas 3, this node was started with 2"):
        node.work.result()


def test_a_second_node_of_a_name_is_not_let_in() -> None:
    cluster = Cluster("abc")
    node = cluster.start("c", address="elsewhere:1")
    cluster.until(lambda: node.work.done, 5)
    with pytest.raises(CannotJoin, match="the name c is taken by a live node at c:7400"):
        node.work.result()


def test_a_newcomer_that_dies_half_way_is_given_up() -> None:
    cluster = Cluster("abc")
    cluster.start("d").slots.complete_at_once = False
    cluster.until_ring("abc>abcd")
    cluster.crash("d")
    cluster.until_ring("abc")
    assert cluster["a"].epoch == 3


def test_a_newcomer_that_cannot_be_reached_does_not_keep_others_from_changing_the_ring() -> None:
    """It reaches the members, and takes back that it is down whenever they say so."""
    cluster = Cluster("abc")
    node = cluster.start("d")
    node.agent.me = attrs.evolve(node.agent.me, address="nowhere:7400")
    cluster.until(lambda: cluster["a"].ring == "abc>abcd")
    cluster.wish("a", "leave", "c")
    cluster.until(lambda: cluster["c"].agent.left, 120)


def test_a_newcomer_that_dies_half_way_and_returns_at_once_is_let_in() -> None:
    cluster = Cluster("abc")
    cluster.start("d").slots.complete_at_once = False
    cluster.until_ring("abc>abcd")
    cluster.start("d")
    cluster.until_ring("abcd")
    assert cluster["a"].epoch == 3


# -- whoever proposes may die -----------------------------------------------------------------------------------------


def test_a_change_whose_proposer_died_is_finished_by_another() -> None:
    cluster = Cluster("abc")
    cluster["b"].slots.complete_at_once = False
    cluster.start("d")
    cluster.until_ring("abc>abcd")
    cluster.crash("a")
    cluster["b"].slots.complete_at_once = True
    cluster.until_ring("abcd")


def test_a_change_is_seen_through_though_the_first_member_hangs_and_nobody_notices() -> None:
    """It answers probes, and does nothing else."""
    cluster = Cluster("abc")
    cluster["a"].work.stop()
    cluster.start("d")
    cluster.until_ring("abcd")


def test_what_was_accepted_by_some_and_never_heard_of_again_is_finished() -> None:
    cluster = Cluster("abc")
    newcomer = Member("d", "d:7400", boot_id="d-1", incarnation=1)
    table = cluster["b"].agent.table
    assert table is not None
    members = table.ring_state.members
    proposal = Proposal(RingState(2, members, (*members, newcomer.placed())), newcomer)
    quorum = [(name, cluster[name].agent.register.acceptor.life) for name in "bc"]
    for name in "bc":
        acceptor = cluster[name].agent.register.acceptor
        assert acceptor.prepare(make_version(1, 0, 1)).granted
    assert cluster["b"].agent.register.acceptor.accept(make_version(1, 0, 1), proposal, quorum)
    cluster.until_ring("abc>abcd")


def test_a_proposer_that_finds_another_proposal_accepted_finishes_that_and_then_makes_its_own() -> None:
    cluster = Cluster("abc")
    cluster.crash("c")
    cluster.until_down("c")
    cluster.start("d")
    cluster.until_ring("abcd")
    cluster.wish("b", "forget", ["c"])
    cluster.until_ring("abd")


@pytest.mark.parametrize("seed", range(10))
def test_changes_come_about_though_messages_are_lost_late_and_doubled(seed: int) -> None:
    cluster = Cluster("abc", seed)
    cluster.net.default.delay, cluster.net.default.loss, cluster.net.default.twice = (1, 300), 0.05, 0.1
    cluster.start("d")
    cluster.start("e")
    cluster.wish("a", "leave", "b")
    cluster.until(lambda: cluster["b"].agent.left, 200)
    cluster.nodes.pop("b")
    cluster.until(lambda: all(set(node.ring) == set("acde") for node in cluster.nodes.values()), 200)


# -- leaving ----------------------------------------------------------------------------------------------------------


def test_a_member_that_is_told_to_leave_goes_and_ends() -> None:
    cluster = Cluster("abc")
    cluster.wish("a", "leave", "c")
    cluster.until(lambda: cluster["c"].work.done)
    assert cluster["c"].agent.left
    cluster["c"].work.result()
    cluster.crash("c")
    cluster.until_ring("ab", 5)


def test_a_member_that_wants_to_leave_knows_when_it_has() -> None:
    cluster = Cluster("abc")
    leaving = cluster["a"].host.run(leave(cluster["a"].agent, cluster.net.random.random))
    cluster.until(lambda: leaving.done)
    assert cluster["a"].agent.left
    cluster.crash("a")
    cluster.until_ring("bc", 5)


def test_of_two_members_one_can_leave_and_the_last_has_nothing_to_leave() -> None:
    cluster = Cluster("ab")
    for name in "ab":
        cluster.until_done(cluster[name].host.run(leave(cluster[name].agent, cluster.net.random.random)))
    assert cluster["b"].ring == "b"


def test_who_leaves_hands_over_before_it_goes() -> None:
    cluster = Cluster("abcd")
    cluster["b"].slots.complete_at_once = False
    cluster.wish("a", "leave", "d")
    cluster.until_ring("abcd>abc")
    cluster.net.run(20)
    assert not cluster["d"].agent.left
    cluster["b"].slots.complete_at_once = True
    cluster.until(lambda: cluster["d"].agent.left)


# -- forgetting -------------------------------------------------------------------------------------------------------


def refusal(node: Node, method: str, *params: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        node.agent.methods()[method](*params)
    return caught.value


def test_a_dead_member_is_forgotten_when_asked_for_and_not_before() -> None:
    cluster = Cluster("abc")
    cluster.crash("c")
    cluster.until_down("c")
    cluster.net.run(60)
    assert {node.ring for node in cluster.nodes.values()} == {"abc"}
    cluster.wish("b", "forget", ["c"])
    cluster.until_ring("ab")


def test_who_leaves_stays_while_those_that_remain_could_not_agree_without_it() -> None:
    cluster = Cluster("abc")
    cluster.crash("c")
    cluster.until_down("c")
    cluster.wish("b", "leave", "b")
    cluster.net.run(30)
    assert cluster["a"].ring == "abc>ac", "of a and c alone, c being dead, there would be no majority ever again"
    cluster.wish("a", "forget", ["c"])
    cluster.until(lambda: cluster["b"].work.done)
    cluster.crash("b")
    cluster.until_ring("a")


def test_several_dead_members_are_forgotten_one_after_the_other() -> None:
    cluster = Cluster("abcde")
    cluster.crash("de")
    cluster.until_down("d")
    cluster.until_down("e")
    cluster["a"].agent.methods()["forget"](["d", "e"])
    cluster.until_ring("abc")
    assert cluster["a"].epoch == 5


def test_a_dead_member_is_replaced_under_another_name() -> None:
    cluster = Cluster("abc")
    cluster.crash("c")
    cluster.until_down("c")
    cluster.wish("a", "forget", ["c"])
    cluster.start("d")
    cluster.until_ring("abd")


def test_the_ring_state_carries_the_word_that_a_member_is_dead_for_as_long_as_it_goes() -> None:
    cluster = Cluster("abc")
    cluster.crash("c")
    cluster.until_down("c")
    cluster["b"].slots.complete_at_once = False
    cluster.wish("b", "forget", ["c"])
    cluster.until_ring("abc>ab")
    assert {cluster[name].forgotten for name in "ab"} == {True}
    cluster["b"].slots.complete_at_once = True
    cluster.until_ring("ab")
    assert {cluster[name].forgotten for name in "ab"} == {False}


def test_who_leaves_is_not_taken_for_dead() -> None:
    cluster = Cluster("abc")
    cluster["b"].slots.complete_at_once = False
    cluster.wish("b", "leave", "c")
    cluster.until_ring("abc>ab")
    assert {node.forgotten for node in cluster.nodes.values()} == {False}


def test_a_member_that_answers_again_is_not_forgotten() -> None:
    cluster = Cluster("abc")
    cluster.crash("c")
    cluster.until_down("c")
    wishes, table = cluster["a"].agent.wishes, cluster["a"].agent.table
    assert table is not None
    wishes.forget(["c"])
    assert wishes.next(table) is not None
    assert wishes.next(table.with_member(attrs.evolve(table.members["c"], health=Health.UP))) is None
    assert wishes.next(table) is None  # nor when it is down once more


def test_a_forget_is_seen_through_though_another_is_down() -> None:
    cluster = Cluster("abcde")
    cluster.crash("bd")
    cluster.until_down("b")
    cluster.until_down("d")
    cluster.wish("c", "forget", ["d"])
    cluster.until_ring("abce")
    assert {node.down for node in cluster.nodes.values()} == {frozenset("b")}


@pytest.mark.parametrize("seed", range(5))
def test_a_newcomer_that_waits_for_a_dead_member_gives_way_until_that_is_forgotten(seed: int) -> None:
    cluster = Cluster("abcd", seed)
    cluster.crash("d")
    cluster.until_down("d")
    newcomer = cluster.start("e")
    newcomer.slots.ready = lambda: True if "d" not in newcomer.ring else None
    cluster.until_ring("abcd>abcde")
    cluster.net.run(20)
    assert newcomer.ring == "abcd>abcde"  # nobody has said that d is dead
    cluster.wish("b", "forget", ["d"])
    cluster.until_ring("abce", 30)


def test_a_newcomer_that_gets_on_is_let_in_before_a_dead_member_is_forgotten() -> None:
    cluster = Cluster("abc")
    cluster.crash("c")
    cluster.until_down("c")
    cluster.start("d").slots.complete_at_once = False
    cluster.until_ring("abc>abcd")
    cluster.wish("a", "forget", ["c"])
    cluster.net.run(20)
    cluster.until_ring("abc>abcd", 1)
    cluster["d"].slots.complete_at_once = True
    cluster.until_ring("abd")


def test_who_dies_while_it_leaves_can_be_forgotten() -> None:
    cluster = Cluster("abc")
    heir = cluster["b"]
    heir.slots.ready = lambda: True if heir.forgotten else None
    leaving = cluster.wish("a", "leave", "c")
    cluster.until_ring("abc>ab")
    leaving.stop()
    cluster.crash("c")
    cluster.until_down("c")
    cluster.net.run(20)
    assert heir.ring == "abc>ab"
    cluster.wish("a", "forget", ["c"])
    cluster.until_ring("ab", 30)


@pytest.mark.parametrize(
    ("method", "params", "says"),
    [
        ("forget", (["b"],), "b is not down: a member that answers can only leave"),
        ("forget", (["x", "y"],), "there is no member called x, y"),
        ("forget", (["c", "b"],), "b is not down"),
        ("leave", ("c",), "c is down and cannot hand over what it holds: forget it instead"),
    ],
)
def test_wishes_that_cannot_be_fulfilled_are_refused_with_the_reason(
    method: str, params: tuple[Any, ...], says: str
) -> None:
    cluster = Cluster("abc")
    cluster.crash("c")
    cluster.until_down("c")
    refused = refusal(cluster["a"], method, *params)
    assert refused.code == Code.BAD_REQUEST
    assert says in str(refused.detail)
    cluster.net.run(20)
    assert {node.ring for node in cluster.nodes.values()} == {"abc"}


def test_the_last_member_cannot_go() -> None:
    assert "the last member cannot go: stop it" in str(refusal(Cluster("a")["a"], "leave", "a").detail)


def test_who_has_left_already_may_be_told_so_again() -> None:
    Cluster("a")["a"].agent.methods()["leave"]("z")


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("join", (None, None)),
        ("join", (("d",), (3, 4, 0, 1))),
        ("forget", ("a",)),
        ("forget", ([],)),
        ("forget", ([1],)),
    ],
)
def test_a_wish_that_makes_no_sense_is_no_wish(method: str, params: tuple[Any, ...]) -> None:
    node = Cluster("abc")["a"]
    with pytest.raises((TypeError, ValueError)):
        node.agent.methods()[method](*params)
    assert node.agent.table is not None
    assert node.agent.wishes.next(node.agent.table) is None


def test_a_wish_that_nobody_renews_is_forgotten() -> None:
    cluster = Cluster("abc")
    cluster.split("a", "bc")
    cluster["a"].agent.methods()["leave"]("c")
    cluster.net.run(11.5)
    table = cluster["a"].agent.table
    assert table is not None
    assert cluster["a"].agent.wishes.next(table) is None


def test_a_member_that_was_forgotten_while_it_was_away_joins_anew() -> None:
    cluster = Cluster("abc")
    cluster.split("c", "ab")
    cluster.until(lambda: cluster["a"].down == {"c"})
    cluster.until(lambda: cluster["b"].down == {"c"})
    away = cluster.nodes.pop("c")
    forgetting = cluster.wish("a", "forget", ["c"])
    cluster.until(lambda: cluster["a"].ring == cluster["b"].ring == "ab")
    forgetting.stop()
    cluster.net.run(11)
    assert away.ring == "abc"
    cluster.heal("c", "ab")
    cluster.nodes["c"] = away
    cluster.until_ring("abc")
    assert not away.work.done


# -- a minority -------------------------------------------------------------------------------------------------------


def test_a_minority_never_changes_the_ring() -> None:
    cluster = Cluster("abcde")
    cluster.split("ab", "cde")
    cluster.until(lambda: cluster["a"].down == set("cde"))
    cluster.addresses = ["a:7400"]
    cluster.split("f", "cde")
    newcomer = cluster.start("f")
    forgetting = cluster.wish("a", "forget", ["c", "d", "e"])
    cluster.net.run(60)
    assert {cluster[name].ring for name in "ab"} == {"abcde"}
    assert not newcomer.agent.on_ring
    forgetting.stop()
    cluster.heal("ab", "cde")
    cluster.heal("f", "cde")
    cluster.until_ring("abcdef")


def test_the_majority_changes_it_and_the_minority_learns_of_it() -> None:
    cluster = Cluster("abcde")
    cluster.split("ab", "cde")
    cluster.until(lambda: cluster["c"].down == set("ab"))
    cluster.addresses = ["c:7400"]
    cluster.split("f", "ab")
    cluster.start("f")
    cluster.until(lambda: cluster["c"].ring == "abcdef")
    assert cluster["a"].ring == "abcde"
    cluster.heal("ab", "cdef")
    cluster.until_ring("abcdef")


# -- members that forgot ----------------------------------------------------------------------------------------------


def test_a_member_that_started_again_votes_after_it_has_asked_the_others() -> None:
    cluster = Cluster("abc")
    cluster.crash("c")
    returned = cluster.start("c")
    assert not returned.agent.register.acceptor.voter
    cluster.until(lambda: returned.agent.register.acceptor.voter, 5)


def test_two_of_three_that_start_again_vote_only_after_a_while_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster("abc")
    cluster.crash("bc")
    returned = [cluster.start(name) for name in "bc"]
    cluster.net.run(18)
    assert not any(node.agent.register.acceptor.voter for node in returned)
    cluster.until(lambda: all(node.agent.register.acceptor.voter for node in returned), 10)
    assert "too few members remember what was agreed on" in caplog.text
    cluster.start("d")
    cluster.until_ring("abcd")


# -- a first node that was started again ------------------------------------------------------------------------------


def told_by(agent: Agent) -> list[str]:
    """Whom an agent recalls, in ten intervals."""
    work, found = recall(agent, lambda: 0.0, INTERVAL), []
    for _ in range(20):
        effect = next(work)
        if isinstance(effect, Detached):
            found += [f"{call.method} {call.node}" for call in effect.calls]
    return found


def test_members_that_are_down_are_told_at_their_address_what_they_are_members_of() -> None:
    agent = Cluster("abc")["a"].agent
    assert told_by(agent) == []
    assert agent.table is not None
    agent.adopt(agent.table.with_member(attrs.evolve(agent.table.members["c"], health=Health.DOWN)))
    assert set(told_by(agent)) == {"offer c:7400"}


def test_a_second_cluster_of_a_first_node_ends_once_it_is_recalled() -> None:
    cluster = Cluster("abc")
    cluster.crash("c")
    cluster.until_down("c")
    cluster.addresses = []
    second = cluster.start("c", Terms(3, 4, expect=1))
    cluster.until(lambda: second.agent.table is not None, 2)
    for name in "ab":
        cluster[name].host.run(recall(cluster[name].agent, cluster.net.random.random, INTERVAL))
    cluster.until(lambda: second.work.done, 20)
    with pytest.raises(CannotJoin, match="cluster cluster-1 has c for a member and reaches it here"):
        second.work.result()


def test_who_is_left_of_a_cluster_gives_it_up_when_the_second_one_of_its_first_node_has_grown() -> None:
    cluster = Cluster("ab")
    cluster["b"].host.pause()
    cluster.crash("a")
    cluster.addresses = []
    second = cluster.start("a", Terms(3, 4, expect=1))
    cluster.until(lambda: second.agent.table is not None, 2)
    cluster.addresses = ["a:7400"]
    cluster.start("z")
    cluster.until(lambda: second.ring == "az")
    left = cluster["b"]
    left.host.resume()
    left.host.run(recall(left.agent, cluster.net.random.random, INTERVAL))
    cluster.until(lambda: left.work.done, 20)
    with pytest.raises(CannotJoin, match="cluster cluster-1 is no more: a, without whom"):
        left.work.result()
    assert not second.work.done


# -- asking to be let in ----------------------------------------------------------------------------------------------


@pytest.fixture
def guest() -> tuple[Cluster, Agent]:
    """A node that holds the table of abc and is on no ring; it does nothing by itself."""
    cluster = Cluster("abc")
    agent = Agent(Member("z", "z:7400", boot_id="z-1", incarnation=1), TERMS, lambda table: None, Slots())
    assert cluster["a"].agent.table is not None
    agent.adopt(cluster["a"].agent.table)
    host = cluster.net.host("z")
    host.boot(agent.methods())
    host.table = lambda: agent.table
    return cluster, agent


def test_those_that_a_node_was_sent_to_are_asked_as_well_as_the_members_that_it_knows(
    guest: tuple[Cluster, Agent],
) -> None:
    """All members that it knows of may have left since it heard of them."""
    _, agent = guest
    agent.peers = ("b:7400", "d:7400")
    rounds = [next(look_for_news(agent, partial(float, share / 10))) for share in range(10)]
    asked = {call.node for round_ in rounds if isinstance(round_, Round) for call in round_.calls}
    assert asked == {"a", "b", "c", "d:7400"}


def test_members_that_are_said_to_be_down_are_asked_too_but_seldom(guest: tuple[Cluster, Agent]) -> None:
    """What the node knows of them is as old as the table that it was given last: nobody sends it news."""
    _, agent = guest
    assert agent.table is not None
    agent.adopt(agent.table.with_member(attrs.evolve(agent.table.members["c"], health=Health.DOWN)))
    rounds = [next(look_for_news(agent, partial(float, share / 70))) for share in range(70)]
    asked = Counter(call.node for round_ in rounds if isinstance(round_, Round) for call in round_.calls)
    assert asked == {"a": 30, "b": 30, "c": 10}


def test_a_newcomer_is_let_in_by_a_member_that_was_down_when_it_came_and_is_the_only_one_left(
    guest: tuple[Cluster, Agent],
) -> None:
    cluster, agent = guest
    assert agent.table is not None
    agent.adopt(agent.table.with_member(attrs.evolve(agent.table.members["c"], health=Health.DOWN)))
    cluster.crash("ab")
    left = cluster["c"].agent
    assert left.table is not None
    left.adopt(attrs.evolve(left.table, ring_state=RingState(5, (left.me.placed(),))))
    host = cluster.net.hosts["z:7400"]
    task = host.run(join(agent, cluster.net.random.random, lambda: host.now() / 1000))
    cluster.until(lambda: task.done)
    assert cluster["c"].ring == "c>cz"


def test_a_node_that_is_refused_for_good_does_not_ask_again(guest: tuple[Cluster, Agent]) -> None:
    cluster, agent = guest
    for name in "abc":
        twin = Member("z", "elsewhere:1", boot_id="z-2", incarnation=1)
        cluster[name].agent.methods()["join"](member_to_wire(twin), attrs.astuple(TERMS))
    task = cluster.net.hosts["z:7400"].run(ask_to_be_let_in(agent, cluster.net.random.random))
    cluster.until(lambda: task.done)
    with pytest.raises(CannotJoin, match="the name z is taken by a live node at elsewhere:1"):
        task.result()


def test_a_node_is_not_let_in_with_other_terms_whomever_it_asks(guest: tuple[Cluster, Agent]) -> None:
    cluster, agent = guest
    refused = refusal(cluster["a"], "join", member_to_wire(agent.me), (2, 4, 0, 1))
    assert refused.code == Code.CLUSTER_MISMATCH
    assert "has replicas 3, this node was started with 2" in str(refused.detail)


def test_what_was_agreed_on_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster("abc")
    with caplog.at_level(logging.INFO, logger="dcache.agent"):
        cluster.start("d")
        cluster.until_ring("abcd")
    agreed = [record.message for record in caplog.records if record.message.startswith("agreed on")]
    assert agreed == ["agreed on: ring 2 of a, b, c; d is coming", "agreed on: ring 3 of a, b, c, d"]
