"""Nodes that start together become one cluster, never two, whatever is lost, late or started anew on the way."""

from __future__ import annotations

import heapq
import itertools
import logging
import random
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcache.agent.agent import Agent, CannotJoin, Terms
from dcache.agent.changes import look_for_news
from dcache.agent.formation import PAUSE, form
from dcache.errors import NodeError, ProtocolError
from dcache.membership import Member, MemberTable
from dcache.node.refusal import Refusal
from dcache.ops.effects import Call, Op, Round, Sleep
from dcache.wire import Decoder, encode_request
from tests.unit.agents_kit import NoSlots

TIMEOUT = 1.0


@attrs.define
class Link:
    alive: bool = True


@attrs.define
class Trouble:
    """How the network treats a message: the chance that it is lost, and the most seconds that it takes."""

    loss: float = 0.0
    delay: float = 0.001


@pytest.fixture(autouse=True, scope="module")
def no_slots() -> Generator[None]:
    """Who owns what, which takes long to find out, is not at stake here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemberTable, "slots_of", lambda table, name: [])
        yield


def agent_of(me: Member, terms: Terms) -> Agent:
    return Agent(me, terms, lambda table: None, NoSlots())


class Life:
    """One process: an agent and what it is doing."""

    def __init__(
        self, net: Network, name: str, boot: int, terms: Terms, peers: list[str], patience: float, address: str
    ) -> None:
        me = Member(name, address or f"at-{name}:1", boot_id=f"{name}{boot}", incarnation=boot)
        self.net, self.name, self.alive, self.ended = net, name, True, ""
        self.agent = agent_of(me, terms)
        self._work: Op[None] = self._live([peer for peer in peers if peer != me.address], patience)

    def _live(self, peers: list[str], patience: float) -> Op[None]:
        yield from form(self.agent, peers, f"cluster-{next(self.net.numbers)}", patience)
        while True:
            yield Sleep(0.5 + 0.5 * self.net.random.random())
            yield from look_for_news(self.agent, self.net.random.random)

    def go_on(self) -> None:
        """Do what is to be done until something has to be waited for."""
        if not self.alive:
            return
        try:
            effect = next(self._work)
        except CannotJoin as error:
            self.ended = str(error)
            return
        if isinstance(effect, Sleep):
            self.net.after(effect.seconds, self.go_on)
        else:
            assert isinstance(effect, Round)
            Exchange(self, effect).start()


class Exchange:
    """A round on its way."""

    def __init__(self, life: Life, round_: Round) -> None:
        self.life, self.net, self.round, self.over = life, life.net, round_, False

    def start(self) -> None:
        for call in self.round.begin():
            self.net.message(lambda call=call: self._arrives(call))
        self.net.after(TIMEOUT, self._expire)
        self._look()

    def _arrives(self, call: Call) -> None:
        self.net.counts[call.method] += 1
        there = self.net.at(call.node)
        if there is None:
            self.net.message(lambda: self._fails(call, ConnectionError("nobody is there")))
            return
        try:
            result = there.agent.methods()[call.method](*over_the_wire(call.params))
        except Refusal as refusal:
            error = refusal
            self.net.message(lambda: self._fails(call, error))
        else:
            self.net.message(lambda: self._replied(call, over_the_wire((result,))[0]))

    def _replied(self, call: Call, result: Any) -> None:
        if not self.over:
            self.round.replied(call, result, Link())
            self._look()

    def _fails(self, call: Call, error: Exception) -> None:
        if not self.over:
            self.round.failed(call, error, True)
            self._look()

    def _expire(self) -> None:
        if not self.over:
            self.round.expire()
            self._look()

    def _look(self) -> None:
        if self.round.over() and not self.over:
            self.over = True
            self.net.after(0.0, self.life.go_on)


class Network:
    """Some nodes, a clock that jumps to what happens next, and messages that may be lost or late."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.trouble = Trouble()
        self.now = 0.0
        self.numbers = itertools.count(1)
        self.counts: Counter[str] = Counter()
        self.nodes: dict[str, Life] = {}
        self._boots: Counter[str] = Counter()
        self._plan: list[tuple[float, int, Callable[[], None]]] = []

    def boot(
        self, name: str, terms: Terms, peers: list[str], place: str = "", patience: float = 0.0, address: str = ""
    ) -> Life:
        """Start a node, anew if it is there; `place` tells nodes of one name apart."""
        self._boots[name] += 1
        self.kill(place or name)
        life = self.nodes[place or name] = Life(self, name, self._boots[name], terms, peers, patience, address)
        self.after(0.0, life.go_on)
        return life

    def kill(self, place: str) -> None:
        life = self.nodes.pop(place, None)
        if life is not None:
            life.alive = False

    def at(self, node: str) -> Life | None:
        """Nodes are reached by address while they look for a cluster, later by name."""
        return self.nodes.get(node.removeprefix("at-").removesuffix(":1"))

    def after(self, seconds: float, then: Callable[[], None]) -> None:
        heapq.heappush(self._plan, (self.now + seconds, next(self.numbers), then))

    def message(self, then: Callable[[], None]) -> None:
        if self.random.random() >= self.trouble.loss:
            self.after(self.random.random() * self.trouble.delay, then)

    def events(self, until: float) -> Iterator[None]:
        """Let things happen until this time; pauses after each."""
        while self._plan and self._plan[0][0] <= until:
            self.now, _, then = heapq.heappop(self._plan)
            then()
            yield
        self.now = until

    def run(self, seconds: float) -> None:
        for _ in self.events(self.now + seconds):
            pass

    def clusters(self) -> set[str]:
        return {table.settings.cluster_id for table in self.tables() if table is not None}

    def tables(self) -> list[MemberTable | None]:
        return [life.agent.table for life in self.nodes.values()]


def over_the_wire(params: Any) -> Any:
    decoder = Decoder(1 << 20, 1024)
    decoder.feed(encode_request(1, "m", params))
    (message,) = decoder.messages()
    return message[3]


def addresses(names: str) -> list[str]:
    return [f"at-{name}:1" for name in names]


def started(names: str, *, expect: int | None = None, seed: int = 0) -> Network:
    """Nodes that list each other, all started now."""
    net = Network(seed)
    for name in names:
        net.boot(name, Terms(expect=expect or len(names)), addresses(names))
    return net


def assert_one_cluster(net: Network, size: int) -> None:
    (cluster_id,) = net.clusters()
    tables = [table for table in net.tables() if table is not None]
    assert len(tables) == len(net.nodes) == size
    assert len({table.digest for table in tables}) == 1
    assert {row.boot_id for row in tables[0].members.values()} == {life.agent.me.boot_id for life in net.nodes.values()}
    assert tables[0].settings.cluster_id == cluster_id


@pytest.mark.parametrize("names", ["a", "ab", "abc", "edcba"])
def test_nodes_that_list_each_other_become_one_cluster_at_once(names: str) -> None:
    net = started(names)
    net.run(2 * PAUSE)
    assert_one_cluster(net, len(names))


@settings(max_examples=300)
@given(st.integers(0, 2**32), st.integers(2, 5))
def test_there_is_never_more_than_one_cluster_and_in_the_end_there_is_one(seed: int, size: int) -> None:
    """In bad times messages are lost and late and nodes are killed and started anew; then all is well."""
    names = "abcde"[:size]
    net = Network(seed)
    chance = net.random
    net.trouble = Trouble(loss=chance.choice([0.0, 0.1, 0.4]), delay=chance.choice([0.01, 0.3, 2.0]))

    def born(name: str) -> Callable[[], None]:
        return lambda: _void(net.boot(name, Terms(expect=size), addresses(names)))

    for name in names:
        net.after(chance.random() * 2, born(name))
        for _ in range(chance.choice([0, 0, 1, 3])):
            net.after(2 + chance.random() * 8, born(name))
    for _ in net.events(10.5):
        assert len(net.clusters()) <= 1
    net.trouble = Trouble()
    for _ in net.events(30.0):
        assert len(net.clusters()) <= 1
    assert_one_cluster(net, size)


@settings(max_examples=200)
@given(st.integers(0, 2**32), st.integers(2, 3))
def test_no_node_is_ever_in_two_clusters(seed: int, expect: int) -> None:
    """More nodes than a cluster is to have, of which each knows only some: several may form, with nobody in two."""
    names = "abcdef"
    net = Network(seed)
    chance = net.random
    net.trouble = Trouble(loss=chance.choice([0.0, 0.2]), delay=chance.choice([0.01, 0.3, 0.9]))

    def born(name: str) -> Callable[[], None]:
        peers = addresses("".join(chance.sample(names, 3)))
        return lambda: _void(net.boot(name, Terms(expect=expect), peers))

    for name in names:
        for _ in range(chance.choice([1, 1, 2])):
            net.after(chance.random() * 4, born(name))
    for _ in net.events(10.0):
        found: dict[str, set[str]] = {}
        for table in net.tables():
            for member in () if table is None else table.members.values():
                found.setdefault(member.boot_id, set()).add(table.settings.cluster_id)
        assert all(len(clusters) == 1 for clusters in found.values())


def _void(_: object) -> None:
    """What is planned gives nothing back."""


def test_who_introduces_itself_while_the_votes_come_in_is_not_founded_with() -> None:
    """It was not voted for, and may be founding a cluster of its own."""
    agent = agent_of(Member("a", "at-a:1", boot_id="a1"), Terms(expect=2))
    work = form(agent, ["at-b:1"], "cluster-1")
    introduction = next(work)
    assert isinstance(introduction, Round)
    (call,) = introduction.begin()
    introduction.replied(call, (("b", "at-b:1", "", 1.0, "b1", 1, 0), (3, 150, 0, 2), None), Link())
    votes = next(work)
    assert isinstance(votes, Round)
    (call,) = votes.begin()
    assert call == Call("at-b:1", "vote", ((("a", "a1"), ("b", "b1")),))
    votes.replied(call, True, Link())
    agent.heard(Member("c", "at-c:1", boot_id="c1"), Terms(expect=2))
    assert isinstance(next(work), Sleep)
    assert agent.table is None


@pytest.mark.parametrize("answer", [False, None, "yes"])
def test_nothing_is_founded_without_the_votes_of_all(answer: object) -> None:
    agent = agent_of(Member("a", "at-a:1", boot_id="a1"), Terms(expect=2))
    agent.heard(Member("b", "at-b:1", boot_id="b1"), Terms(expect=2))
    work = form(agent, [], "cluster-1")
    _over(next(work))
    votes = next(work)
    assert isinstance(votes, Round)
    (call,) = votes.begin()
    votes.replied(call, answer, Link())
    assert isinstance(next(work), Sleep)
    assert agent.table is None


def _over(effect: object) -> None:
    assert isinstance(effect, Round)
    effect.begin()
    effect.expire()


def test_an_answer_from_a_life_that_is_over_gives_no_cluster() -> None:
    """a told b of its cluster, died, started anew, and may have b's vote for another by the time that b reads it."""
    founder = agent_of(Member("a", "at-a:1", boot_id="a1", incarnation=1), Terms(expect=2))
    founder.heard(Member("b", "at-b:1", boot_id="b1", incarnation=1), Terms(expect=2))
    founder.found("cluster-1")
    answer = founder.candidate(("b", "at-b:1", "", 1.0, "b1", 1, 0), (3, 150, 0, 2))

    agent = agent_of(Member("b", "at-b:1", boot_id="b1", incarnation=1), Terms(expect=2))
    work = form(agent, ["at-a:1"], "cluster-2")
    introduction = next(work)
    assert isinstance(introduction, Round)
    (call,) = introduction.begin()
    agent.heard(Member("a", "at-a:1", boot_id="a2", incarnation=2), Terms(expect=2))
    introduction.replied(call, over_the_wire((answer,))[0], Link())
    assert isinstance(next(work), Sleep)
    assert agent.table is None


# Where nothing is to form


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Generator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, logger="dcache.agent"):
        yield caplog


def test_nodes_wait_for_those_that_are_missing_and_say_so(logged: pytest.LogCaptureFixture) -> None:
    net = started("ab", expect=3)
    net.run(15)
    assert not net.clusters()
    assert "waiting for a cluster of 3 nodes; here are 2: a, b" in logged.text
    assert len([record for record in logged.records if "waiting" in record.message]) <= 4, "not at every pause"


def test_too_many_nodes_form_nothing_and_that_is_an_error(logged: pytest.LogCaptureFixture) -> None:
    net = started("abcd", expect=3)
    net.run(15)
    assert not net.clusters()
    errors = [record.message for record in logged.records if record.levelno == logging.ERROR]
    assert "waiting for a cluster of 3 nodes; here are 4: a, b, c, d" in errors


def test_when_the_one_too_many_leaves_the_others_form_their_cluster() -> None:
    net = started("abcd", expect=3)
    net.run(5)
    net.kill("d")
    net.run(5)
    assert_one_cluster(net, 3)


@pytest.mark.parametrize("changed", [{"replicas": 2}, {"vnodes": 7}, {"ring_seed": 1}, {"expect": 2}])
def test_nodes_with_different_terms_form_nothing_and_that_is_an_error(
    changed: dict[str, int], logged: pytest.LogCaptureFixture
) -> None:
    net = Network()
    net.boot("a", Terms(expect=3), addresses("abc"))
    net.boot("b", Terms(expect=3), addresses("abc"))
    net.boot("c", attrs.evolve(Terms(expect=3), **changed), addresses("abc"))
    net.run(15)
    assert not net.clusters()
    assert "node c has other settings" in logged.text


def test_two_nodes_of_one_name_form_nothing_and_that_is_an_error(logged: pytest.LogCaptureFixture) -> None:
    net = Network()
    for place, name in {"a": "a", "b": "b", "twin": "a"}.items():
        net.boot(name, Terms(expect=3), ["at-a:1", "at-b:1", "at-twin:1"], place)
    net.run(15)
    assert not net.clusters()
    assert "another node is called a too" in logged.text


def test_a_node_alone_that_was_sent_to_others_waits_for_them() -> None:
    """They may be of a cluster already, and a second one would come of not waiting."""
    net = Network()
    net.boot("a", Terms(expect=1), addresses("b"))
    net.run(15)
    assert not net.clusters()


def test_a_node_alone_may_list_itself() -> None:
    """Under any of its addresses: it recognises itself."""
    net = Network()
    life = net.boot("a", Terms(expect=1), ["at-elsewhere:1"])
    net.nodes["elsewhere"] = life
    net.run(1)
    assert len(net.clusters()) == 1


# Where there is a cluster already


def test_a_member_that_started_anew_finds_its_cluster_again() -> None:
    net = started("abc")
    net.run(1)
    before = net.clusters()
    net.boot("a", Terms(expect=3), addresses("abc"))
    net.run(10)
    assert net.clusters() == before
    assert_one_cluster(net, 3)


def test_when_all_start_anew_they_are_another_cluster() -> None:
    net = started("abc")
    net.run(1)
    before = net.clusters()
    for name in "abc":
        net.boot(name, Terms(expect=3), addresses("abc"))
    net.run(1)
    assert_one_cluster(net, 3)
    assert not net.clusters() & before


def test_a_later_node_takes_no_part_in_founding_and_finds_the_cluster_when_all_are_started_anew(
    logged: pytest.LogCaptureFixture,
) -> None:
    """It was started with --join alone, the others with --expect too: so their command lines are, for good."""
    net = started("bcd")
    net.run(1)
    before = net.clusters()
    net.boot("a", Terms(), addresses("b"))
    for name in "bcd":
        net.boot(name, Terms(expect=3), addresses("bcd"))
    net.run(2)
    (after,) = net.clusters()
    assert {after} != before
    assert [table.settings.cluster_id for table in net.tables() if table is not None] == [after] * 4
    assert not [record for record in logged.records if record.levelno >= logging.ERROR]


def test_where_a_founder_is_gone_for_good_those_that_wait_for_it_say_so(logged: pytest.LogCaptureFixture) -> None:
    """A later node in its place does not count, and nobody can know that it is meant to."""
    net = Network()
    for name in "ab":
        net.boot(name, Terms(expect=3), addresses("abc"))
    net.boot("d", Terms(), addresses("a"))
    net.run(25)
    assert not net.clusters()
    told = "waiting for a cluster of 3 nodes; here are 2: a, b; d waits for one to join; no answer from at-c:1"
    assert sum(told in record.message for record in logged.records) >= 2
    joining = "waiting for a member of the cluster to join; a waits for a cluster of 3 nodes"
    assert sum(joining in record.message for record in logged.records) >= 2


def test_a_node_that_finds_a_cluster_without_a_place_for_it_is_its_guest() -> None:
    net = started("abc")
    net.run(1)
    late = net.boot("d", Terms(expect=3), addresses("abc"))
    net.run(1)
    assert late.agent.table is not None
    assert not late.agent.on_ring
    assert net.clusters() == {late.agent.table.settings.cluster_id}


# A name that is in use


def test_a_node_whose_name_is_that_of_a_live_member_elsewhere_gives_up() -> None:
    net = started("abc")
    net.run(1)
    late = net.boot("c", Terms(expect=3), addresses("ab"), place="twin", address="at-twin:1")
    net.run(1)
    assert late.ended == (
        "the name c is taken by a live node at at-c:1: give this one another --name, or stop that one"
    )


@pytest.mark.parametrize("there", ["", "d"], ids=["nobody", "another member"])
def test_a_member_that_returns_at_another_address_is_let_in_where_its_former_self_is_gone(there: str) -> None:
    net = started("abc")
    net.run(1)
    net.kill("c")
    if there:
        net.boot(there, Terms(expect=9), [], place="c")
    late = net.boot("c", Terms(expect=3), addresses("ab"), place="twin", address="at-twin:1")
    net.run(3)
    assert late.ended == ""
    assert late.agent.table is not None
    assert late.agent.table.members["c"].address == "at-twin:1"


# A first node that was started again


def test_a_first_node_waits_to_be_called_before_it_founds_a_cluster() -> None:
    net = Network()
    net.boot("a", Terms(), [], patience=2.0)
    net.run(1.9)
    assert not net.clusters()
    net.run(0.5)
    assert len(net.clusters()) == 1


def test_a_first_node_that_is_called_by_its_cluster_becomes_a_member_again() -> None:
    net = started("abc")
    net.run(1)
    before = net.clusters()
    returned = net.boot("a", Terms(), [], patience=2.0)
    net.run(1)
    table = net.nodes["b"].agent.table
    assert table is not None
    with pytest.raises(Refusal):
        returned.agent.offer(table.to_wire())
    net.run(5)
    assert net.clusters() == before
    assert_one_cluster(net, 3)


def test_a_first_node_that_was_called_founds_nothing_though_nobody_answers_it() -> None:
    net = started("abc")
    net.run(1)
    table = net.nodes["b"].agent.table
    assert table is not None
    returned = net.boot("a", Terms(), [], patience=2.0)
    net.run(1)
    with pytest.raises(Refusal):
        returned.agent.offer(table.to_wire())
    net.kill("b")
    net.kill("c")
    net.run(10)
    assert not net.clusters()


def test_a_member_that_started_anew_with_other_settings_gives_up() -> None:
    net = started("abc")
    net.run(1)
    late = net.boot("c", Terms(expect=3, replicas=2), addresses("abc"))
    net.run(1)
    assert "has replicas 3, this node was started with 2" in late.ended


@pytest.mark.parametrize(
    "answer", [None, (), ("row",), (None, None, None), (("b",), (1,), None), (b"x", (3, 150, 0, 2), ("table",))]
)
def test_an_answer_that_makes_no_sense_is_logged_and_passed_over(
    answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    agent = agent_of(Member("a", "at-a:1", boot_id="a1"), Terms(expect=2))
    work = form(agent, ["at-b:1"], "cluster-1")
    introduction = next(work)
    assert isinstance(introduction, Round)
    (call,) = introduction.begin()
    introduction.replied(call, answer, Link())
    assert isinstance(next(work), Sleep)
    assert "at-b:1 is no dcache node of this kind" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        ProtocolError("not MessagePack within the limits"),
        ProtocolError("node b speaks protocol 2, this is 1: upgrade the older one"),
        NodeError(2, "unknown method", "candidate"),
    ],
)
def test_who_is_no_dcache_node_or_one_of_another_kind_is_logged_once(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    work = form(agent_of(Member("a", "at-a:1", boot_id="a1"), Terms(expect=2)), ["at-b:1"], "cluster-1")
    for _ in range(5):
        introduction = next(work)
        assert isinstance(introduction, Round)
        (call,) = introduction.begin()
        introduction.failed(call, error, True)
        assert isinstance(next(work), Sleep)
    assert caplog.text.count(f"at-b:1 is no dcache node of this kind: {error}") == 1


def test_nobody_at_an_address_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    work = form(agent_of(Member("a", "at-a:1", boot_id="a1"), Terms(expect=2)), ["at-b:1"], "cluster-1")
    introduction = next(work)
    assert isinstance(introduction, Round)
    (call,) = introduction.begin()
    introduction.failed(call, ConnectionRefusedError("refused"), False)
    assert isinstance(next(work), Sleep)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
