"""Members notice who does not answer, are not misled by slowness and broken links, and come to hold the same table."""

from __future__ import annotations

import logging
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.agent.agent import Agent, Terms
from dcache.agent.detector import Detector
from dcache.drivers.driver import ABOUT_NODES
from dcache.membership import INCARNATION_CEILING, Health, Member, MemberTable, RingState, Settings, member_to_wire
from dcache.node.service import Refusal
from dcache.ops.effects import Detached, Round, Sleep
from dcache.wire import Code
from tests.unit.agents_kit import Host, Network, NoSlots

pytestmark = pytest.mark.cluster

SEEDS = range(5)


def row(name: str, incarnation: int = 1, health: Health = Health.UP) -> Member:
    return Member(name, f"{name}:7400", boot_id=f"{name}-boot", incarnation=incarnation, health=health)


def first_table(names: Sequence[str], cluster_id: str = "cluster-1") -> MemberTable:
    rows = {name: row(name) for name in names}
    return MemberTable(Settings(cluster_id), RingState(1, tuple(member.placed() for member in rows.values())), rows)


@pytest.fixture(autouse=True, scope="module")
def no_slots() -> Iterator[None]:
    """To work out what slots a member has takes longer than all else that is done here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemberTable, "slots_of", lambda table, name: [])
        yield


class Node:
    """A member with its detector, on a host of its own."""

    def __init__(self, cluster: Cluster, host: Host, me: Member, table: MemberTable) -> None:
        self.cluster, self.host, self.name = cluster, host, me.name
        self.agent = Agent(me, Terms(), self._publish, NoSlots())
        self.agent.adopt(table)
        self.detector = Detector(self.agent, cluster.interval, host.now, host.wall, cluster.net.random.random)
        host.table = lambda: self.agent.table
        host.boot(self.agent.methods(), self.detector.methods())

    def _publish(self, table: MemberTable) -> None:
        self.cluster.ever_down |= table.down
        self.cluster.published += 1

    def watch(self) -> None:
        self.host.run(self.detector.detect(), self.detector.timeout)

    @property
    def table(self) -> MemberTable:
        assert self.agent.table is not None
        return self.agent.table

    def hears(self, changed: Member) -> None:
        self.agent.adopt(self.table.with_member(changed))


class Cluster:
    """Members with these names, of one letter each; `away` are on the ring, but there is no such host."""

    def __init__(self, names: str = "abc", *, seed: int = 0, interval: float = 1.0, away: str = "") -> None:
        self.net, self.interval = Network(seed), interval
        self.ever_down: frozenset[str] = frozenset()
        self.published = 0
        self.first = first_table(names + away)
        self.nodes = {name: Node(self, self.net.host(name), row(name), self.first) for name in names}
        for node in self.nodes.values():
            node.watch()

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def run(self, intervals: float) -> None:
        self.net.run(intervals * self.interval)

    def until(self, condition: Callable[[], object], intervals: float) -> float:
        """The intervals that this takes; it fails if they are more than those."""
        return self.net.run_until(condition, intervals * self.interval) / self.interval

    def agree(self) -> bool:
        return len({node.table.digest for node in self.nodes.values()}) == 1

    def see_down(self, *names: str) -> bool:
        """Whether all that are not down have exactly these down."""
        return all(node.table.down == set(names) for name, node in self.nodes.items() if name not in names)

    def restart(self, name: str) -> None:
        """A new process takes the place of the old one, with the table that it found at another member."""
        old = self.nodes[name]
        another = next(node for node in self.nodes.values() if node is not old)
        me = attrs.evolve(old.agent.me, boot_id=f"{name}-again", incarnation=old.agent.me.incarnation + 1000)
        self.nodes[name] = Node(self, old.host, me, another.table)
        self.nodes[name].watch()


# Who is down


@pytest.mark.parametrize("interval", [1.0, 5.0])
@pytest.mark.parametrize("silent", [False, True], ids=["process", "machine"])
def test_three_members_notice_a_death_within_some_three_to_five_intervals(interval: float, silent: bool) -> None:
    times = []
    for seed in SEEDS:
        cluster = Cluster("abc", seed=seed, interval=interval)
        cluster.run(5)
        cluster["c"].host.crash(silent=silent)
        times.append(cluster.until(lambda: cluster.see_down("c"), 8))  # noqa: B023
    assert statistics.median(times) <= 5
    assert min(times) > 1.6  # not at the first miss, nor at the second


@pytest.mark.parametrize("names", ["ab", "abcdefghijkl"])
def test_larger_and_smaller_clusters_notice_it_too(names: str) -> None:
    for seed in SEEDS:
        cluster = Cluster(names, seed=seed)
        cluster.run(5)
        cluster["b"].host.crash()
        cluster.until(lambda: cluster.see_down("b"), 5 + math.log2(len(names)))  # noqa: B023
        cluster.run(20)
        assert cluster.ever_down == {"b"}


def test_several_that_die_at_once_are_noticed() -> None:
    cluster = Cluster("abcdefg")
    cluster.run(5)
    for name in "bdf":
        cluster[name].host.crash(silent=True)
    cluster.until(lambda: cluster.see_down("b", "d", "f"), 20)


def test_whoever_finds_somebody_down_tells_the_others_at_once() -> None:
    for seed in SEEDS:
        cluster = Cluster("abcd", seed=seed)
        cluster["d"].host.crash()
        cluster.until(lambda: any("d" in node.table.down for node in cluster.nodes.values()), 8)  # noqa: B023
        cluster.until(lambda: cluster.see_down("d"), 0.1)  # noqa: B023


def test_the_last_that_is_left_notices_it_in_the_end() -> None:
    cluster = Cluster("abc")
    cluster.run(5)
    cluster["b"].host.crash()
    cluster["c"].host.crash()
    assert cluster.until(lambda: cluster.see_down("b", "c"), 30) > 8


@pytest.mark.parametrize("interval", [1.0, 5.0])
def test_members_that_answer_are_never_down(interval: float) -> None:
    for seed in SEEDS:
        cluster = Cluster("abcde", seed=seed, interval=interval)
        cluster.run(200)
        assert not cluster.ever_down


# Who is not


@pytest.mark.parametrize("cuts", [["ac"], ["ca"], ["ac", "ca"]], ids="+".join)
@pytest.mark.parametrize("interval", [1.0, 5.0])
def test_one_broken_link_makes_nobody_down(cuts: list[str], interval: float) -> None:
    """Each of the two reaches, or is reached by, b: also with one link cut one way and another the other."""
    for seed in SEEDS:
        cluster = Cluster("abc", seed=seed, interval=interval)
        cluster.run(5)
        for here, there in cuts:
            cluster.net.cut(here, there)
        cluster.run(200)
        assert not cluster.ever_down


def test_one_broken_link_hides_no_death() -> None:
    """The other side of the link dies, and is down though one of them could not see it before."""
    cluster = Cluster("abc")
    cluster.net.cut("a", "c")
    cluster.run(20)
    cluster["c"].host.crash(silent=True)
    cluster.until(lambda: cluster.see_down("c"), 10)


def test_a_node_that_stalls_now_and_then_is_not_down() -> None:
    """Longer than a probe waits, but not three times in a row."""
    cluster = Cluster("abc")
    dice = random.Random(1)
    for _ in range(100):
        cluster.net.run(dice.uniform(2, 5))
        cluster["c"].host.pause()
        cluster.net.run(dice.uniform(1.0, 1.6))
        cluster["c"].host.resume()
    assert not cluster.ever_down


def test_a_node_that_answers_slowly_now_and_then_is_not_down() -> None:
    """Later than a probe waits, for a second or so every few seconds."""
    for seed in SEEDS:
        cluster = Cluster("abc", seed=seed)
        dice = random.Random(seed)
        for _ in range(60):
            cluster.net.path("c", "a").delay = cluster.net.path("c", "b").delay = (1, 5)
            cluster.net.run(dice.uniform(3, 8))
            cluster.net.path("c", "a").delay = cluster.net.path("c", "b").delay = (1000, 1500)
            cluster.net.run(dice.uniform(0.5, 1.5))
        assert not cluster.ever_down


def test_who_is_cut_off_for_a_while_accuses_nobody() -> None:
    cluster = Cluster("abcd")
    cluster.run(5)
    for other in "bcd":
        cluster.net.cut("a", other)
        cluster.net.cut(other, "a")
    cluster.run(8)
    for other in "bcd":
        cluster.net.heal("a", other)
        cluster.net.heal(other, "a")
    cluster.until(cluster.see_down, 8)
    cluster.run(20)
    assert cluster.ever_down == {"a"}


def test_messages_that_get_lost_now_and_then_make_nobody_down() -> None:
    for seed in SEEDS:
        cluster = Cluster("abcde", seed=seed)
        cluster.net.default.loss = 0.05
        cluster.net.default.twice = 0.1
        cluster.run(200)
        assert not cluster.ever_down


# Coming back


def test_a_node_that_was_stopped_is_up_again_soon_after_and_accuses_nobody() -> None:
    cluster = Cluster("abc")
    cluster.run(5)
    cluster["c"].host.pause()
    cluster.until(lambda: cluster.see_down("c"), 8)
    cluster.run(30)
    cluster["c"].host.resume()
    cluster.until(cluster.see_down, 4)
    assert cluster["a"].table.members["c"].incarnation > 1
    cluster.run(20)
    assert cluster.ever_down == {"c"}


def test_a_node_that_starts_anew_is_up_again() -> None:
    cluster = Cluster("abc")
    cluster["c"].host.crash()
    cluster.until(lambda: cluster.see_down("c"), 8)
    cluster.restart("c")
    cluster.until(cluster.see_down, 4)
    assert cluster["a"].table.members["c"].boot_id == "c-again"


def test_a_false_accusation_is_refuted_everywhere() -> None:
    cluster = Cluster("abcde")
    cluster["a"].hears(row("c", 7, Health.DOWN))
    cluster.until(lambda: cluster["e"].table.members["c"] == row("c", 8), 6)
    cluster.until(cluster.agree, 4)


def test_a_node_that_asks_nobody_hears_what_is_said_of_it() -> None:
    """Those that are down are still probed now and then."""
    for names in ("abc", "abcdefghijkl"):
        cluster = Cluster(names)
        for task in cluster["c"].host.process.tasks:  # type: ignore[union-attr]
            task.stop()
        cluster["a"].hears(row("c", 1, Health.DOWN))
        cluster.until(lambda: cluster["c"].agent.me.incarnation == 2, 8)  # noqa: B023
        cluster.until(cluster.see_down, 8)


def test_misses_of_one_life_say_nothing_of_the_next() -> None:
    """The judge's miss was of an incarnation that is over when the others have answered."""
    cluster = Cluster("abc")
    cluster.run(5)
    cluster["c"].host.crash()
    cluster.run(2)
    cluster.restart("c")
    cluster.run(20)
    assert not cluster.ever_down


def test_a_member_that_refutes_while_others_are_asked_about_it_is_not_put_down() -> None:
    cluster = Cluster("abc")
    node = cluster["a"]
    for begun in (0, 1000):
        node.detector.suspicions.missed(node.table.members["c"], begun)
        node.detector.suspicions.is_down("c", vouched=False, weight=1.0)
    operation = node.detector.look_around()
    probes = next(operation)
    assert isinstance(probes, Round)
    probes.begin()
    probes.expire()
    next(operation)  # asks who is left
    node.hears(row("c", 2))
    with pytest.raises(StopIteration) as end:
        next(operation)
    assert end.value.value is False
    assert node.table.members["c"] == row("c", 2)


def test_whoever_has_no_table_is_told_it_and_is_down_if_that_does_not_help() -> None:
    """It is a node of that name that started anew and does not know of its cluster, or cannot be of it."""
    cluster = Cluster("abc")
    offered: list[Any] = []

    def not_ready(_digest: bytes) -> None:
        raise Refusal(Code.NOT_READY)

    cluster["c"].host.boot({"probe": not_ready, "offer": offered.append})
    cluster.until(lambda: offered, 3)
    assert MemberTable.from_wire(offered[0]) == cluster.first
    cluster.until(lambda: cluster.see_down("c"), 8)


def test_a_refusal_is_an_answer() -> None:
    """Say, of an older version that does not know the method."""
    cluster = Cluster("abc")
    cluster["c"].host.boot({})
    cluster.run(50)
    assert not cluster.ever_down
    (age,) = cluster["a"].detector.vouch(["c"])
    assert age is not None
    assert age < 5000


# Tables


@given(
    names=st.integers(2, 12).map(lambda count: "abcdefghijkl"[:count]),
    news=st.lists(
        st.tuples(st.integers(0, 11), st.sampled_from("xyz"), st.integers(1, 5), st.floats(0, 2)), max_size=12
    ),
    loss=st.sampled_from([0.0, 0.2, 0.5]),
    twice=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**32),
)
def test_tables_agree_a_few_intervals_after_the_last_change(
    names: str, news: list[tuple[int, str, int, float]], loss: float, twice: float, seed: int
) -> None:
    """Whoever heard what, in any order, with messages lost and doubled until then.  What is heard is of members that
    are away and down, so that nobody refutes it."""
    cluster = Cluster(names, seed=seed, away="xyz")
    for node in cluster.nodes.values():
        for name in "xyz":
            node.hears(row(name, 1, Health.DOWN))
    cluster.net.default = attrs.evolve(cluster.net.default, loss=loss, twice=twice, delay=(1, 200))
    for at, about, incarnation, pause in news:
        cluster[names[at % len(names)]].hears(row(about, incarnation, Health.DOWN))
        cluster.net.run(pause)
    cluster.net.default = attrs.evolve(cluster.net.default, loss=0.0)
    cluster.until(lambda: cluster.agree() and cluster.see_down("x", "y", "z"), 6 + 2 * math.log2(len(names)))
    newest = {name: max([1, *(number for _, about, number, _ in news if about == name)]) for name in "xyz"}
    assert {name: cluster["a"].table.members[name].incarnation for name in "xyz"} == newest


def test_members_that_agree_exchange_nothing_but_digests() -> None:
    cluster = Cluster("abcde")
    cluster.run(3)
    published, bytes_before = cluster.published, sum(node.host.bytes for node in cluster.nodes.values())
    cluster.net.counts.clear()
    cluster.run(20)
    assert set(cluster.net.counts) == {"probe"}
    assert 80 < cluster.net.counts["probe"] < 130
    assert cluster.published == published
    assert sum(node.host.bytes for node in cluster.nodes.values()) - bytes_before < 60 * cluster.net.counts["probe"]


def test_one_probe_is_enough_for_two() -> None:
    """Both had something that the other lacked."""
    cluster = Cluster("ab", away="xy")
    for about, at in (("x", "a"), ("y", "b")):
        cluster[at].hears(row(about, 3, Health.DOWN))
    cluster.net.counts.clear()
    cluster["a"].host.run(cluster["a"].detector.look_around())
    cluster.net.run(0.01)
    assert cluster.agree()
    assert {method: cluster.net.counts[method] for method in ("probe", "offer")} == {"probe": 1, "offer": 1}


def test_news_is_told_to_several_at_once() -> None:
    cluster = Cluster("abcdefghij")
    node = cluster["a"]

    def probed() -> int:
        round_ = next(node.detector.look_around())
        assert isinstance(round_, Round)
        return len(round_.calls)

    assert [probed(), probed()] == [3, 1]  # a table that it has just got is news
    node.hears(row("b", 2))
    assert [probed(), probed()] == [3, 1]


def test_a_member_alone_asks_nobody_and_goes_on() -> None:
    cluster = Cluster("a")
    cluster.run(20)
    assert not cluster.net.counts


@pytest.mark.parametrize("interval", [0.2, 1.0, 5.0])
def test_probes_are_an_interval_apart_give_or_take_a_fifth(interval: float) -> None:
    cluster = Cluster("a", interval=interval)
    operation = cluster["a"].detector.detect()
    next(operation)
    pauses = []
    for effect in operation:
        if isinstance(effect, Sleep):
            pauses.append(effect.seconds / interval)
        if len(pauses) == 100:
            break
    assert 0.8 <= min(pauses) < 0.85
    assert 1.15 < max(pauses) <= 1.2


def test_time_spent_waiting_for_answers_is_part_of_the_interval() -> None:
    cluster = Cluster("ab")
    cluster["b"].host.crash(silent=True)
    cluster.run(20)
    assert cluster.net.counts["probe"] >= 16


def test_probes_are_made_also_to_nodes_that_are_left_alone() -> None:
    """How else would it be known that they are well again."""
    assert {*Cluster("a")["a"].detector.methods(), "offer"} <= ABOUT_NODES


def test_nothing_is_done_without_a_table() -> None:
    agent = Agent(row("a"), Terms(), lambda _: None, NoSlots())
    detector = Detector(agent, 1.0, lambda: 0, lambda: 0, lambda: 0.5)
    assert list(detector.look_around()) == []
    assert detector.vouch(["b"]) == [None]
    with pytest.raises(Refusal) as refused:
        detector.probe(b"")
    assert refused.value.code == Code.NOT_READY


# Vouching


def test_who_is_asked_says_when_it_last_heard_and_watches_from_then_on() -> None:
    cluster = Cluster("abcdefghij")
    cluster.run(20)
    detector = cluster["a"].detector
    (age, never, own) = detector.vouch(["b", "nobody", "a"])
    assert age is not None
    assert 0 <= age < 20_000
    assert (never, own) == (None, None)
    round_ = next(detector.look_around())
    assert isinstance(round_, Round)
    assert "b" in {call.node for call in round_.calls}
    assert {call.node for call in round_.calls} <= set("bcdefghij")


# What is said in the log


def lines(caplog: pytest.LogCaptureFixture, part: str) -> int:
    return sum(part in record.getMessage() for record in caplog.records if record.levelno >= logging.INFO)


def test_who_goes_down_and_comes_up_is_logged_by_each_of_the_others(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cluster = Cluster("abc")
    cluster["c"].host.pause()
    cluster.run(15)
    assert lines(caplog, "c is down") == 2
    cluster["c"].host.resume()
    cluster.run(15)
    assert lines(caplog, "c is up again") == 2
    assert lines(caplog, "c is down") == 2


@pytest.mark.parametrize(("clock", "expected"), [(600_000, 1), (-600_000, 1), (20_000, 0), (-20_000, 0)])
def test_a_clock_that_is_wrong_is_logged_once(clock: int, expected: int, caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster("abc")
    cluster["c"].host.clock = clock
    cluster.run(20)
    for name in "ab":  # both see it, and to c they both look wrong
        assert sum(f"the clock of {name} and" in record.getMessage() for record in caplog.records) == expected
    assert lines(caplog, f"the clock of c and this machine's differ by {clock / 1000:+.0f} s") == 2 * expected
    assert not cluster.ever_down


def future(table: MemberTable) -> Any:
    """A table with a row that could never be refuted."""
    settings, state, rows = table.to_wire()
    changed = (*member_to_wire(row("a"))[:5], INCARNATION_CEILING, 1)
    return settings, state, [changed, *rows[1:]]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("nonsense", id="no pair"),
        pytest.param(None, id="nothing"),
        pytest.param(("soon", None), id="no time"),
        pytest.param((0, "nonsense"), id="no table"),
        pytest.param((0, first_table("abc", "cluster-2").to_wire()), id="another cluster"),
        pytest.param((0, future(first_table("abc"))), id="a row from the future"),
    ],
)
def test_garbage_is_logged_once_and_has_no_effect(answer: object, caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster("abc")
    cluster["c"].host.boot({"probe": lambda _digest: answer, "vouch": lambda _names: answer})
    cluster.run(20)
    assert lines(caplog, "c does not answer as a member of this cluster") == 2
    assert cluster["a"].table == cluster["b"].table == cluster.first
    cluster["b"].host.crash()
    cluster.until(lambda: cluster["a"].table.down == {"b"}, 20)


@pytest.mark.parametrize("ages", ["nonsense", [], ["soon"], [None, None], [-5.0]])
def test_who_vouches_in_nonsense_vouches_for_nobody(ages: object, caplog: pytest.LogCaptureFixture) -> None:
    cluster = Cluster("abc")
    cluster["b"].host.boot({"probe": lambda _digest: (cluster["b"].host.wall(), None), "vouch": lambda _names: ages})
    cluster["c"].host.crash()
    cluster.until(lambda: "c" in cluster["a"].table.down, 10)
    assert lines(caplog, "b does not answer as a member of this cluster") == 1


def test_what_is_offered_is_not_waited_for() -> None:
    cluster = Cluster("ab", away="x")
    cluster["a"].hears(row("x", 3, Health.DOWN))
    operation = cluster["a"].detector.look_around()
    round_ = next(operation)
    assert isinstance(round_, Round)
    for call in round_.begin():
        if call.node == "b":
            round_.replied(call, (cluster["a"].host.wall(), cluster.first.to_wire()), Alive())
    round_.expire()
    effect = next(operation)
    assert isinstance(effect, Detached)
    assert [(call.node, call.method) for call in effect.calls] == [("b", "offer")]


class Alive:
    alive = True
