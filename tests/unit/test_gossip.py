"""Members come to hold the same table, whatever is lost; those that do exchange nothing but digests."""

from __future__ import annotations

import random
from collections import Counter

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.agent.agent import Agent, Terms
from dcache.agent.gossip import INTERVAL, compare, gossip
from dcache.membership import Member, MemberTable, RingState, Settings
from dcache.node.service import Refusal
from dcache.ops.effects import Call, Op, Round, Sleep
from dcache.record import make_version
from dcache.wire import Decoder, encode_reply

NAMES = "abcde"
AWAY = "xyz"  # members that nobody reaches, so nobody refutes what is said of them


class Link:
    alive = True


def row(name: str, incarnation: int = 1) -> Member:
    return Member(name, f"{name}:7400", boot_id=f"{name}-boot", incarnation=incarnation)


def first_table(names: str = NAMES, cluster_id: str = "cluster-1") -> MemberTable:
    rows = {name: row(name) for name in names}
    state = RingState(make_version(1, 0, 1), tuple(member.placed() for member in rows.values()))
    return MemberTable(Settings(cluster_id), state, rows)


def member(name: str, table: MemberTable) -> Agent:
    agent = Agent(table.members.get(name, row(name)), Terms(), lambda _: None, lambda: None)
    agent.adopt(table)
    return agent


class Cluster:
    """Members whose messages arrive at once, or not at all."""

    def __init__(self, names: str = NAMES, loss: float = 0.0, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.loss = loss
        self.agents = {name: member(name, first_table(names)) for name in names}
        self.counts: Counter[str] = Counter()

    def news(self, at: str, changed: Member) -> None:
        """One member hears something of another."""
        table = self.agents[at].table
        assert table is not None
        self.agents[at].adopt(table.with_member(changed))

    def compare(self, name: str, chance: float | None = None) -> None:
        """Have one member compare, with another that `chance` decides on."""
        operation: Op[None] = compare(self.agents[name], self.random.random if chance is None else lambda: chance)
        for effect in operation:
            assert isinstance(effect, Round)
            for call in effect.begin():
                self._call(effect, call)
            effect.expire()

    def _call(self, round_: Round, call: Call) -> None:
        if self.random.random() < self.loss or call.node not in self.agents:
            return
        self.counts[call.method] += 1
        try:
            result = self.agents[call.node].methods()[call.method](*call.params)
        except Refusal as error:
            round_.failed(call, error, True)
            return
        if self.random.random() >= self.loss:
            round_.replied(call, read(result), Link())

    def digests(self) -> set[bytes]:
        return {agent.table.digest for agent in self.agents.values() if agent.table is not None}


def read(result: object) -> object:
    decoder = Decoder(1 << 20, 1024)
    decoder.feed(encode_reply(1, result))
    (message,) = decoder.messages()
    return message[3]


@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(AWAY), st.integers(1, 3)), max_size=8),
    st.sampled_from([0.0, 0.2, 0.5]),
    st.integers(0, 2**32),
)
def test_members_come_to_hold_the_same_table_in_any_order_and_with_any_loss(
    heard: list[tuple[str, str, int]], loss: float, seed: int
) -> None:
    cluster = Cluster(loss=loss, seed=seed)
    for at, about, incarnation in heard:
        cluster.news(at, row(about, incarnation))
    for _ in range(60):
        cluster.compare(cluster.random.choice(NAMES))
    cluster.loss = 0.0
    for _ in range(20):
        for name in NAMES:
            cluster.compare(name)
    assert len(cluster.digests()) == 1
    table = cluster.agents["a"].table
    assert table is not None
    newest = {about: max(number for _, other, number in heard if other == about) for _, about, _ in heard}
    assert {name: table.members[name].incarnation for name in AWAY if name in table.members} == newest


def test_one_comparison_is_enough_for_two() -> None:
    """Both had something that the other lacked."""
    cluster = Cluster("ab")
    cluster.news("a", row("x", 2))
    cluster.news("b", row("y", 3))
    cluster.compare("a", chance=0.0)
    assert len(cluster.digests()) == 1
    assert cluster.counts == {"exchange": 1, "offer": 1}


def test_who_only_lacks_something_is_told_and_offers_nothing() -> None:
    cluster = Cluster("ab")
    cluster.news("b", row("x", 3))
    cluster.compare("a")
    assert len(cluster.digests()) == 1
    assert cluster.counts == {"exchange": 1}


def test_members_that_agree_exchange_nothing_but_digests() -> None:
    cluster = Cluster()
    published: list[MemberTable] = []
    for agent in cluster.agents.values():
        agent._publish = published.append
    for name in NAMES * 10:
        cluster.compare(name)
    assert cluster.counts == {"exchange": 50}
    assert published == []


def test_what_is_asked_is_a_digest_and_the_answer_is_nothing() -> None:
    table = first_table("ab")
    operation = compare(member("a", table), lambda: 0.0)
    round_ = next(operation)
    assert isinstance(round_, Round)
    assert round_.begin() == [Call("b", "exchange", (table.digest,))]
    assert member("b", table).exchange(table.digest) is None


def test_every_other_member_is_asked_now_and_then_and_never_oneself() -> None:
    table = first_table()
    asked = set()
    for number in range(100):
        round_ = next(compare(member("c", table), lambda number=number: number / 100))
        assert isinstance(round_, Round)
        asked.add(round_.calls[0].node)
    assert asked == set("abde")


def test_a_member_alone_asks_nobody() -> None:
    assert list(compare(member("a", first_table("a")), lambda: 0.5)) == []


@pytest.mark.parametrize("chance", [0.0, 0.5, 0.999])
def test_comparisons_are_about_a_second_apart(chance: float) -> None:
    """Not exactly, so that members which started together do not all speak at once."""
    operation = gossip(member("a", first_table()), lambda: chance)
    for _ in range(3):
        pause = next(operation)
        assert isinstance(pause, Sleep)
        assert pause.seconds == pytest.approx(INTERVAL * (0.8 + 0.4 * chance))
        round_ = next(operation)
        assert isinstance(round_, Round)
        round_.begin()
        round_.expire()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("nonsense", id="no table"),
        pytest.param(read(first_table(cluster_id="cluster-2").to_wire()), id="another cluster"),
    ],
)
def test_an_answer_that_is_none_of_this_clusters_is_logged_and_passed_over(
    answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    table = first_table("ab")
    agent = member("a", table)
    operation = compare(agent, lambda: 0.0)
    round_ = next(operation)
    assert isinstance(round_, Round)
    (call,) = round_.begin()
    round_.replied(call, answer, Link())
    assert list(operation) == []
    assert agent.table == table
    assert "what b holds for the table is none of this cluster" in caplog.text


def test_a_row_about_oneself_is_refuted_and_the_refutation_travels() -> None:
    """Somebody has old news of b; in the end all hold what b says of itself."""
    cluster = Cluster("abc")
    cluster.news("a", attrs.evolve(row("b", 7), boot_id="an earlier life"))
    for _ in range(4):
        for name in "abc":
            cluster.compare(name)
    assert len(cluster.digests()) == 1
    table = cluster.agents["c"].table
    assert table is not None
    assert table.members["b"] == row("b", 8)
