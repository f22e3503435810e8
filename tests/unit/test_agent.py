"""What an agent decides: whom it votes for, which tables it takes, what it answers to other nodes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import attrs
import pytest

from dcache.agent.agent import Agent, CannotJoin, Terms
from dcache.errors import ClusterMismatch
from dcache.membership import Health, Member, MemberTable, RingState, member_to_wire
from dcache.node.refusal import Refusal
from dcache.wire import Code, Decoder, encode_reply

TERMS = Terms(replicas=3, vnodes=10, expect=3)


def row(name: str, boot: int = 1) -> Member:
    """The row of a node in its `boot`th life."""
    return Member(name, f"{name}:7400", boot_id=f"{name}{boot}", incarnation=boot)


class Slots:
    """What a store knows of its slots, and the order in which it was told."""

    def __init__(self, log: list[str]) -> None:
        self.owned: set[int] = set()
        self.known: set[int] = set()
        self._log = log

    def own(self, slots: Iterable[int]) -> None:
        self._log.append("own")
        self.owned = set(slots)
        self.known &= self.owned

    def doubt(self) -> None:
        self._log.append("doubt")
        self.known.clear()

    def complete(self, slots: Iterable[int]) -> None:
        self._log.append("complete")
        self.known |= set(slots)
        assert self.known <= self.owned


@attrs.define(eq=False)
class Seat:
    """An agent and what it told those above it."""

    agent: Agent
    published: list[MemberTable]
    slots: Slots
    log: list[str]

    @property
    def completed(self) -> list[bool]:
        return [True] * self.log.count("complete")


def seat(name: str, *others: str, boot: int = 1, terms: Terms = TERMS) -> Seat:
    """An agent that has heard of `others`, each in its first life."""
    published: list[MemberTable] = []
    log: list[str] = []
    slots = Slots(log)

    def publish(table: MemberTable) -> None:
        published.append(table)
        log.append("publish")

    agent = Agent(row(name, boot), terms, publish, slots)
    for other in others:
        agent.heard(row(other), terms)
    return Seat(agent, published, slots, log)


def ballot(*names: str, **boots: int) -> list[tuple[str, str]]:
    return [(name, f"{name}{boots.get(name, 1)}") for name in names]


def over_the_wire(data: Any) -> Any:
    """What the other side reads: tuples, and an `IntEnum` is only a number."""
    decoder = Decoder(1 << 20, 1024)
    decoder.feed(encode_reply(1, data))
    (message,) = decoder.messages()
    return message[3]


def table_of(*names: str, terms: Terms = TERMS, cluster_id: str = "cluster-1") -> MemberTable:
    """The table of a cluster that the first of `names` founded with the others."""
    return seat(names[0], *names[1:], terms=terms).agent.found(cluster_id)


def refusal(agent: Agent, method: str, *params: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        agent.methods()[method](*params)
    return caught.value


# Who may found


def test_the_node_with_the_smallest_name_founds_once_all_are_there() -> None:
    assert not seat("a", "b").agent.may_found()
    assert seat("a", "b", "c").agent.may_found()
    assert not seat("b", "a", "c").agent.may_found()


def test_a_node_too_many_founds_nothing() -> None:
    assert not seat("a", "b", "c", "d").agent.may_found()


def test_a_ballot_is_the_same_whoever_writes_it() -> None:
    assert seat("a", "c", "b").agent.ballot() == seat("c", "b", "a").agent.ballot() == tuple(ballot("a", "b", "c"))


def test_nodes_with_other_terms_are_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    agent = seat("a").agent
    agent.heard(row("b"), attrs.evolve(TERMS, replicas=2))
    assert not agent.candidates
    assert "node b has other settings" in caplog.text


def test_another_node_of_this_ones_name_is_not_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    agent = seat("a").agent
    agent.heard(row("a", boot=2), TERMS)
    assert not agent.candidates
    assert "another node is called a too, at a:7400" in caplog.text


def test_a_node_that_meets_itself_says_nothing_and_knows_the_address_for_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent = seat("a").agent
    agent.heard(row("a"), TERMS, at="localhost:7400")
    assert not agent.candidates
    assert agent.own_addresses == {"a:7400", "localhost:7400"}
    assert not caplog.records


def test_a_node_that_stops_answering_where_it_was_found_is_no_candidate_any_more() -> None:
    agent = seat("a").agent
    agent.heard(row("b"), TERMS, at="b:7400")
    agent.gone("c:7400")
    assert list(agent.candidates) == ["b"]
    agent.gone("b:7400")
    assert not agent.candidates


def test_an_old_introduction_does_not_displace_a_later_start() -> None:
    """A message may be under way for longer than a process takes to start again."""
    agent = seat("a").agent
    agent.heard(row("b", boot=2), TERMS)
    agent.heard(row("b", boot=1), TERMS)
    assert agent.candidates["b"].boot_id == "b2"


def test_who_answers_now_is_who_is_there_whatever_its_clock_said() -> None:
    """Incarnations start from the wall clock, which may have been set back between two starts."""
    agent = seat("a").agent
    agent.heard(row("b", boot=2), TERMS)
    agent.heard(row("b", boot=1), TERMS, at="b:7400")
    assert agent.candidates["b"].boot_id == "b1"


# Votes


def test_a_node_votes_for_the_founder_of_the_nodes_it_knows() -> None:
    assert seat("b", "a", "c").agent.vote(ballot("a", "b", "c")) is True


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param(ballot("a", "b"), id="one less"),
        pytest.param(ballot("a", "b", "c", "d"), id="one more"),
        pytest.param(ballot("a", "b", "d"), id="another"),
        pytest.param(ballot("a", "b", "c", c=2), id="one in another life"),
        pytest.param([], id="nobody"),
    ],
)
def test_a_node_does_not_vote_for_another_set_of_nodes_than_it_knows(wanted: list[tuple[str, str]]) -> None:
    assert seat("b", "a", "c").agent.vote(wanted) is False


def test_a_vote_may_be_given_again() -> None:
    """The answer may have been lost."""
    agent = seat("b", "a", "c").agent
    assert [agent.vote(ballot("a", "b", "c")) for _ in range(3)] == [True] * 3


def test_a_vote_is_for_one_founder_only(caplog: pytest.LogCaptureFixture) -> None:
    """The first founder may have founded by now; a second must not."""
    agent = seat("c", "a", "b").agent
    assert agent.vote(ballot("a", "b", "c"))
    agent.candidates.pop("a")
    agent.heard(row("d"), TERMS)
    assert not agent.vote(ballot("b", "c", "d"))
    assert "not voting for b: this node voted for a before" in caplog.text


def test_a_founder_that_started_anew_gets_the_vote_again() -> None:
    """Whatever it founded in its earlier life died with it, or has members that will not vote."""
    agent = seat("b", "a", "c").agent
    assert agent.vote(ballot("a", "b", "c"))
    agent.heard(row("a", boot=2), TERMS)
    assert agent.vote(ballot("a", "b", "c", a=2))
    assert not agent.vote(ballot("a", "b", "c"))


def test_the_same_founder_gets_the_vote_for_another_set() -> None:
    """It founds once in its life, so it cannot use both."""
    agent = seat("b", "a", "c").agent
    assert agent.vote(ballot("a", "b", "c"))
    agent.heard(row("c", boot=2), TERMS)
    assert agent.vote(ballot("a", "b", "c", c=2))


def test_a_member_votes_for_nobody() -> None:
    agent = seat("a", "b", "c").agent
    agent.found("cluster-1")
    assert not agent.vote(ballot("a", "b", "c"))


# Founding


def test_the_founder_is_a_complete_member_of_what_it_founds() -> None:
    founder = seat("a", "b", "c")
    table = founder.agent.found("cluster-1")
    assert founder.agent.table is table
    assert founder.published == [table]
    assert founder.completed == [True]


def test_a_founded_cluster_has_the_terms_and_the_nodes_that_were_there() -> None:
    table = table_of("a", "b", "c")
    assert attrs.astuple(table.settings) == ("cluster-1", 3, 10, 0)
    assert table.members == {name: row(name) for name in "abc"}
    assert [node.name for node in table.ring_state.members] == ["a", "b", "c"]
    assert table.ring_state.epoch == 1


# Taking a table


def test_who_is_founded_with_in_this_life_knows_all_of_its_slots() -> None:
    one = seat("b", "a", "c")
    one.agent.adopt(table_of("a", "b", "c"))
    assert one.completed == [True]
    assert one.published == [table_of("a", "b", "c")]


def test_who_comes_in_a_later_life_is_a_member_that_lost_its_memory(caplog: pytest.LogCaptureFixture) -> None:
    one = seat("b", boot=2)
    one.agent.adopt(table_of("a", "b", "c"))
    assert one.completed == []
    assert "member of cluster cluster-1 that lost its memory" in caplog.text


def test_a_later_life_stays_incomplete_whatever_tables_come() -> None:
    """Its own row, with its own boot id, comes back to it from the others."""
    one = seat("b", boot=2)
    one.agent.adopt(table_of("a", "b", "c"))
    assert one.agent.table is not None
    one.agent.adopt(one.agent.table)
    one.agent.adopt(table_of("a", "b", "c"))
    assert one.completed == []


def test_a_later_life_puts_its_own_row_into_the_table() -> None:
    one = seat("b", boot=2)
    one.agent.adopt(table_of("a", "b", "c"))
    assert one.agent.table is not None
    assert one.agent.table.members["b"] == row("b", boot=2)


def test_a_later_life_whose_clock_went_back_still_gets_its_row_into_the_table() -> None:
    """It raises its incarnation above what is said of it."""
    earlier = attrs.evolve(row("b"), incarnation=1000)
    founder = seat("a", "c").agent
    founder.heard(earlier, TERMS)
    table = founder.found("cluster-1")
    one = seat("b", boot=2)
    one.agent.adopt(table)
    assert one.agent.table is not None
    assert one.agent.table.members["b"] == attrs.evolve(row("b", boot=2), incarnation=1001)
    assert one.agent.me.incarnation == 1001
    assert table.merge(one.agent.table).members["b"].boot_id == "b2"


def test_a_node_that_is_called_down_says_that_it_is_not() -> None:
    one = seat("b", "a", "c")
    table = table_of("a", "b", "c")
    one.agent.adopt(table)
    one.agent.adopt(table.with_member(attrs.evolve(row("b"), health=Health.DOWN)))
    assert one.agent.me == attrs.evolve(row("b"), incarnation=2)
    assert one.published[-1].members["b"] == one.agent.me


def test_news_is_merged_and_published_once() -> None:
    one = seat("b", "a", "c")
    table = table_of("a", "b", "c")
    news = table.with_member(row("c", boot=2))
    for heard in (table, table, news, table, news):
        one.agent.adopt(heard)
    assert one.published == [table, news]


def test_a_table_of_another_cluster_changes_nothing() -> None:
    one = seat("b", "a", "c")
    table = table_of("a", "b", "c")
    one.agent.adopt(table)
    with pytest.raises(ClusterMismatch, match="cluster_id"):
        one.agent.adopt(table_of("a", "b", "c", cluster_id="cluster-2"))
    assert one.agent.table == table


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"replicas": 2}, "has replicas 3, this node was started with 2"),
        ({"vnodes": 11}, "has vnodes 10, this node was started with 11"),
        ({"ring_seed": 5}, "has ring_seed 0, this node was started with 5"),
    ],
)
def test_a_node_with_other_settings_than_the_cluster_cannot_join(changed: dict[str, int], says: str) -> None:
    one = seat("b", terms=attrs.evolve(TERMS, **changed))
    with pytest.raises(CannotJoin, match=says):
        one.agent.adopt(table_of("a", "b", "c"))
    assert one.agent.table is None
    assert isinstance(one.agent.trouble, CannotJoin)
    assert one.published == []


def test_a_node_that_is_not_on_the_ring_holds_the_table_and_owns_nothing() -> None:
    one = seat("z")
    table = table_of("a", "b", "c")
    one.agent.adopt(table)
    assert one.agent.table == table
    assert not one.agent.on_ring
    assert (one.slots.owned, one.completed) == (set(), [])
    assert one.published == [table]


def test_a_node_that_voted_is_not_let_in_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    """It may have been founded with by now, and would be of two clusters."""
    one = seat("z", "x", "y")
    assert one.agent.vote(ballot("x", "y", "z"))
    for _ in range(2):
        with pytest.raises(CannotJoin):
            one.agent.adopt(table_of("a", "b", "c"))
    assert one.agent.table is None
    assert one.agent.trouble is None
    assert caplog.text.count("this node voted for the founder of another before") == 1


# What becomes of its slots


def ring_of(table: MemberTable, names: str, coming: str | None = None, *, epoch: int) -> MemberTable:
    """`table` with another ring state."""
    rows = {name: table.members.get(name, row(name)) for name in {*names, *(coming or "")}}
    now, then = (None if ring is None else tuple(row(name).placed() for name in ring) for ring in (names, coming))
    return MemberTable(table.settings, RingState(epoch, now or (), then), rows)


def slots_of(table: MemberTable, name: str) -> set[int]:
    return set(table.slots_of(name))


ONE_COPY = attrs.evolve(TERMS, replicas=1)


def test_slots_are_owned_and_doubted_before_the_table_is_published() -> None:
    """No request is answered under a fingerprint with the complete bits of another."""
    one = seat("b", "a", "c", terms=ONE_COPY)
    table = table_of("a", "b", "c", terms=ONE_COPY)
    one.agent.adopt(table)
    assert one.log == ["doubt", "own", "publish", "complete"]
    one.log.clear()
    one.agent.adopt(ring_of(table, "abc", "abcd", epoch=3))
    assert one.log == ["doubt", "own", "publish"]


def test_what_was_complete_stays_so_while_states_follow_one_by_one() -> None:
    one = seat("b", "a", "c", terms=ONE_COPY)
    table = table_of("a", "b", "c", terms=ONE_COPY)
    one.agent.adopt(table)
    both = ring_of(table, "abc", "ab", epoch=2)
    one.agent.adopt(both)
    assert one.slots.owned == slots_of(both, "b") > slots_of(table, "b")
    assert one.slots.known == slots_of(table, "b")


def test_who_missed_a_state_doubts_all_that_it_holds() -> None:
    """In that state its slots may have been somebody else's."""
    one = seat("b", "a", "c", terms=ONE_COPY)
    table = table_of("a", "b", "c", terms=ONE_COPY)
    one.agent.adopt(table)
    one.agent.adopt(ring_of(table, "abc", epoch=3))
    assert one.slots.owned == slots_of(table, "b")
    assert one.slots.known == set()


def test_a_row_that_changes_leaves_the_slots_alone() -> None:
    one = seat("b", "a", "c")
    table = table_of("a", "b", "c")
    one.agent.adopt(table)
    one.log.clear()
    one.agent.adopt(table.with_member(row("c", boot=2)))
    assert one.log == ["publish"]


def test_slots_that_went_to_others_are_left_over_until_they_come_back() -> None:
    one = seat("b", "a", "c", terms=ONE_COPY)
    table = table_of("a", "b", "c", terms=ONE_COPY)
    one.agent.adopt(table)
    mine = slots_of(table, "b")
    for epoch, (now, coming) in enumerate([("abc", "abcd"), ("abcd", None)], start=2):
        one.agent.adopt(ring_of(table, now, coming, epoch=epoch))
    assert one.agent.leftover == mine - one.slots.owned
    assert one.agent.leftover
    left = set(one.agent.leftover)
    one.agent.adopt(ring_of(table, "abcd", "abc", epoch=4))
    assert not one.agent.leftover
    assert one.agent.regained == left


def test_a_founder_that_first_hears_of_a_later_state_is_not_complete() -> None:
    one = seat("b", "a", "c")
    one.agent.adopt(ring_of(table_of("a", "b", "c"), "abc", "abcd", epoch=2))
    assert one.completed == []
    assert not one.agent.register.acceptor.voter


# Leaving, and being forgotten


def test_who_has_seen_itself_on_its_way_has_left_when_it_is_off_the_ring() -> None:
    one = seat("c", "a", "b")
    table = table_of("a", "b", "c")
    one.agent.adopt(table)
    one.agent.adopt(ring_of(table, "abc", "ab", epoch=2))
    assert (one.agent.leaving, one.agent.left, one.agent.on_ring) == (True, False, True)
    one.agent.adopt(ring_of(table, "ab", epoch=3))
    assert (one.agent.left, one.agent.on_ring) == (True, False)


def test_who_is_off_the_ring_without_having_seen_it_was_forgotten_and_drops_all() -> None:
    one = seat("c", "a", "b")
    table = table_of("a", "b", "c")
    one.agent.adopt(table)
    one.agent.adopt(ring_of(table, "ab", epoch=3))
    assert (one.agent.left, one.agent.on_ring) == (False, False)
    assert one.slots.owned == one.slots.known == set()
    assert one.agent.leftover == slots_of(table, "c")


def test_who_wanted_to_go_has_left_also_if_it_missed_that_it_was_on_its_way() -> None:
    one = seat("c", "a", "b")
    table = table_of("a", "b", "c")
    one.agent.adopt(table)
    one.agent.resigned = True
    one.agent.adopt(ring_of(table, "ab", epoch=3))
    assert one.agent.left


def test_a_departure_that_is_given_up_is_none() -> None:
    one = seat("c", "a", "b")
    table = table_of("a", "b", "c")
    for epoch, (now, coming) in enumerate([("abc", None), ("abc", "ab"), ("abc", None)], start=1):
        one.agent.adopt(ring_of(table, now, coming, epoch=epoch))
    one.agent.adopt(ring_of(table, "ab", epoch=9))
    assert not one.agent.left


# Two of one name, and two clusters


def test_another_process_that_took_ones_name_elsewhere_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    one = seat("c", "a", "b")
    table = table_of("a", "b", "c")
    one.agent.adopt(table)
    for boot in (5, 7):
        twin = attrs.evolve(row("c", boot=2), address="elsewhere:1", incarnation=boot)
        one.agent.adopt(table.with_member(twin))
        assert one.agent.table is not None
        assert one.agent.table.members["c"].boot_id == "c1"
    assert caplog.text.count("another node is called c too, at elsewhere:1") == 1


def test_a_node_whose_namesake_is_let_in_before_it_cannot_join() -> None:
    one = seat("z")
    table = table_of("a", "b", "c")
    one.agent.adopt(table)
    both = ring_of(table, "abc", "abcz", epoch=2)
    one.agent.adopt(both.with_member(attrs.evolve(row("z", boot=9), address="elsewhere:1")))
    assert "the name z is taken by a live node at elsewhere:1" in str(one.agent.trouble)


def lone(name: str) -> Seat:
    terms = attrs.evolve(TERMS, expect=1)
    one = seat(name, terms=terms)
    one.agent.found("cluster-2")
    return one


def test_a_first_node_that_founded_a_second_cluster_is_told_and_gives_up() -> None:
    one = lone("a")
    refused = refusal(one.agent, "offer", over_the_wire(table_of("a", "b", "c").to_wire()))
    assert refused.code == Code.CLUSTER_MISMATCH
    assert "cluster cluster-1 has a for a member and reaches it here" in str(one.agent.trouble)


@pytest.mark.parametrize("names", ["bc", "a"])
def test_a_cluster_of_ones_own_is_not_given_up_for_one_without_this_node_or_of_it_alone(names: str) -> None:
    one = lone("a")
    assert refusal(one.agent, "offer", table_of(*names).to_wire()).code == Code.CLUSTER_MISMATCH
    assert one.agent.trouble is None


def test_a_cluster_of_several_is_not_given_up_for_another() -> None:
    one = seat("a", "b", "c")
    one.agent.found("cluster-2")
    assert refusal(one.agent, "offer", table_of("a", "b", "c").to_wire()).code == Code.CLUSTER_MISMATCH
    assert one.agent.trouble is None


def founders(cluster_id: str, *names: str) -> Agent:
    """The first of these, which founded a cluster together."""
    one = seat(*names)
    one.agent.found(cluster_id)
    return one.agent


def down(table: MemberTable, *names: str) -> MemberTable:
    for name in names:
        table = table.with_member(attrs.evolve(table.members[name], health=Health.DOWN))
    return table


def test_founders_of_a_cluster_that_goes_on_without_them_give_up_the_one_that_they_founded_again() -> None:
    """As when the nodes that everybody is sent to are started again, all at once, in a cluster that has grown."""
    agent = founders("cluster-2", "a", "b", "c")
    refusal(agent, "offer", down(table_of(*"abcdefg"), "a", "b", "c").to_wire())
    assert "cluster cluster-1 has a for a member and reaches it here" in str(agent.trouble)


@pytest.mark.parametrize("dead", ["abc", "abcd"])
def test_founders_keep_to_their_new_cluster_if_the_old_one_cannot_go_on(dead: str) -> None:
    agent = founders("cluster-2", "a", "b", "c")
    refusal(agent, "offer", down(table_of(*"abcde" if dead == "abc" else "abcdefg"), *dead).to_wire())
    assert agent.trouble is None


def elsewhere(cluster_id: str) -> ClusterMismatch:
    return ClusterMismatch("another cluster", cluster_id)


def test_a_cluster_most_of_whose_members_are_of_another_one_is_given_up() -> None:
    one = seat("z", *"abc")
    one.agent.adopt(table_of("a", "b", "c"))
    one.agent.note_elsewhere("a", elsewhere("cluster-2"))
    one.agent.note_elsewhere("a", elsewhere("cluster-2"))
    assert one.agent.trouble is None
    one.agent.note_elsewhere("b", elsewhere("cluster-2"))
    assert one.agent.trouble is not None
    says = "cluster cluster-1 is no more: a, b, without whom its members can agree on nothing, are of cluster cluster-2"
    assert says in str(one.agent.trouble)


@pytest.mark.parametrize(
    "answers",
    [
        [("a", "cluster-2"), ("b", "cluster-3")],
        [("a", "cluster-2"), ("x", "cluster-2")],
        [("a", "cluster-2"), ("b", "")],
    ],
    ids=["two others", "no member", "other settings"],
)
def test_a_cluster_is_not_given_up_for_less(answers: list[tuple[str, str]]) -> None:
    one = seat("z", *"abc")
    one.agent.adopt(table_of("a", "b", "c"))
    for name, cluster_id in answers:
        one.agent.note_elsewhere(name, elsewhere(cluster_id))
    assert one.agent.trouble is None


def test_who_waits_to_be_let_in_by_members_that_cannot_agree_any_more_gives_up() -> None:
    one = seat("z")
    one.agent.adopt(table_of("a", "b"))
    one.agent.note_elsewhere("b", elsewhere("cluster-2"))
    assert "cluster cluster-1 is no more: b, without whom" in str(one.agent.trouble)


def coming(cluster: str, newcomer: str) -> MemberTable:
    """The table of a cluster that a newcomer is on its way into."""
    return ring_of(table_of(*cluster), cluster, cluster + newcomer, epoch=2)


def grown(name: str, newcomer: str) -> MemberTable:
    """The table of a cluster that `name` founded alone, and to which somebody has come."""
    return ring_of(table_of(name, cluster_id="cluster-2"), name, name + newcomer, epoch=2)


@pytest.mark.parametrize("table", [table_of("a", "b"), coming("a", "b")], ids=["half", "all but a newcomer"])
def test_a_cluster_whose_others_can_agree_on_nothing_is_given_up_for_one_that_goes_on(table: MemberTable) -> None:
    """As when the first node was started again with its first command line, while the other one stood still: alone, it
    will give up the cluster that it founded anew; with others in it that goes on."""
    one = seat("b", "a")
    one.agent.adopt(table)
    one.agent.note_elsewhere("a", elsewhere("cluster-2"))
    one.agent.compare_with(table_of("a", cluster_id="cluster-2"))
    assert one.agent.trouble is None
    one.agent.compare_with(grown("a", "x"))
    assert "cluster cluster-1 is no more: a, without whom its members can agree on nothing" in str(one.agent.trouble)


def test_a_cluster_whose_others_can_agree_is_not_given_up_for_one_that_goes_on() -> None:
    one = seat("b", "a", "c")
    one.agent.adopt(table_of("a", "b", "c"))
    one.agent.note_elsewhere("a", elsewhere("cluster-2"))
    one.agent.compare_with(grown("a", "x"))
    assert one.agent.trouble is None


def gives_way(mine: MemberTable, others: MemberTable) -> bool:
    """Whether a member of a new cluster does that is called by its old one."""
    agent = seat(min(mine.ring_state.names)).agent
    agent.adopt(mine)
    refusal(agent, "offer", others.to_wire())
    return agent.trouble is not None


def ends(mine: MemberTable, gone: Iterable[str], others: MemberTable) -> bool:
    """Whether a member of an old cluster does that meets a new one to which those have gone."""
    agent = seat(max(mine.ring_state.names)).agent
    agent.adopt(mine)
    for name in gone:
        agent.note_elsewhere(name, elsewhere(others.settings.cluster_id))
    agent.compare_with(others)
    return agent.trouble is not None


@pytest.mark.parametrize("joint", [False, True], ids=["fixed", "a change under way"])
@pytest.mark.parametrize("went_on", [False, True], ids=["as founded", "with a newcomer"])
@pytest.mark.parametrize(("old", "gone"), [("ab", "a"), ("abc", "a"), ("abc", "ab"), ("abcd", "ab"), ("abcde", "ab")])
def test_of_two_clusters_that_claim_the_same_nodes_one_gives_way(
    old: str, gone: str, went_on: bool, joint: bool
) -> None:
    before = down(coming(old, "y") if joint else table_of(*old), *gone)
    after = table_of(*gone, cluster_id="cluster-2")
    if went_on:
        after = ring_of(after, gone, gone + "x", epoch=2)
    assert gives_way(after, before) != ends(before, gone, after)


def test_a_node_of_no_cluster_that_is_called_a_member_will_ask_there() -> None:
    one = seat("a", boot=2)
    assert refusal(one.agent, "offer", table_of("a", "b", "c").to_wire()).code == Code.CLUSTER_MISMATCH
    assert one.agent.called_by == {"b:7400", "c:7400"}
    assert one.agent.table is None


def test_a_node_of_no_cluster_does_not_care_for_those_that_do_not_know_it() -> None:
    one = seat("z")
    refusal(one.agent, "offer", table_of("a", "b", "c").to_wire())
    assert one.agent.called_by == frozenset()


# Being asked


def test_who_asks_for_an_exchange_gets_the_table_only_if_it_holds_another() -> None:
    one = seat("b", "a", "c")
    table = table_of("a", "b", "c")
    one.agent.adopt(table)
    assert one.agent.exchange(table.digest) is None
    assert MemberTable.from_wire(over_the_wire(one.agent.exchange(b"other"))) == table


def test_a_node_without_a_cluster_has_nothing_to_exchange() -> None:
    assert refusal(seat("b").agent, "exchange", b"").code == Code.NOT_READY


def test_an_introduction_is_answered_with_ones_own_and_remembered() -> None:
    agent = seat("a").agent
    answer = agent.candidate(*over_the_wire((member_to_wire(row("b")), attrs.astuple(TERMS))))
    assert answer == (member_to_wire(row("a")), attrs.astuple(TERMS), None)
    assert agent.candidates == {"b": row("b")}


def test_a_member_answers_an_introduction_with_its_table() -> None:
    agent = seat("a", "b", "c").agent
    table = agent.found("cluster-1")
    answer = agent.candidate(member_to_wire(row("b", boot=2)), attrs.astuple(TERMS))
    assert MemberTable.from_wire(over_the_wire(answer[2])) == table
    assert agent.candidates["b"] == row("b")


@pytest.mark.parametrize(
    ("who", "terms"),
    [
        pytest.param((b"b", "b:1", "", 1.0, "b1", 1, 0), (3, 10, 0, 3), id="a name in bytes"),
        pytest.param(("b", "b:1", "", 1.0, 1, 1, 0), (3, 10, 0, 3), id="a boot id that is a number"),
        pytest.param(("b", "b:1", "", 1.0, "b1", "1", 0), (3, 10, 0, 3), id="an incarnation in letters"),
        pytest.param(("b", "b:1", "", 1e12, "b1", 1, 0), (3, 10, 0, 3), id="an absurd weight"),
        pytest.param(("b", "b", "", 1.0, "b1", 1, 0), (3, 10, 0, 3), id="an address without a port"),
        pytest.param(("b",), (3, 10, 0, 3), id="no whole row"),
        pytest.param(None, (3, 10, 0, 3), id="no row"),
        pytest.param(("b", "b:1", "", 1.0, "b1", 1, 0), (3, 10, 0, 3, 9), id="too many terms"),
        pytest.param(("b", "b:1", "", 1.0, "b1", 1, 0), (3, "10", 0, 3), id="terms in letters"),
    ],
)
def test_an_introduction_that_makes_no_sense_leaves_no_trace(who: Any, terms: Any) -> None:
    """The service answers `TypeError` and `ValueError` with "bad request"."""
    agent = seat("a").agent
    with pytest.raises((TypeError, ValueError)):
        agent.candidate(who, terms)
    assert not agent.candidates


def test_an_offer_of_the_founder_one_voted_for_is_taken() -> None:
    one = seat("b", "a", "c")
    one.agent.vote(ballot("a", "b", "c"))
    one.agent.offer(over_the_wire(table_of("a", "b", "c").to_wire()))
    assert one.agent.table == table_of("a", "b", "c")
    assert one.completed == [True]


def test_an_offer_of_anybody_else_is_not_taken_before_there_is_a_cluster() -> None:
    """The founder died after its offer left, and has the vote again in its next life: two clusters would come of it."""
    one = seat("b", "a", "c")
    offered = table_of("a", "b", "c").to_wire()
    assert refusal(one.agent, "offer", offered).code == Code.CLUSTER_MISMATCH
    one.agent.heard(row("a", boot=2), TERMS)
    assert one.agent.vote(ballot("a", "b", "c", a=2))
    assert refusal(one.agent, "offer", offered).code == Code.CLUSTER_MISMATCH
    assert one.agent.table is None
    assert one.agent.trouble is None


def test_a_member_takes_in_what_it_is_offered() -> None:
    one = seat("b", "a", "c")
    table = table_of("a", "b", "c")
    one.agent.adopt(table)
    news = table.with_member(row("c", boot=2))
    one.agent.offer(over_the_wire(news.to_wire()))
    assert one.agent.table == news


def test_an_offer_of_another_cluster_is_refused() -> None:
    one = seat("b", "a", "c")
    one.agent.adopt(table_of("a", "b", "c"))
    refused = refusal(one.agent, "offer", table_of("a", "b", "c", cluster_id="cluster-2").to_wire())
    assert refused.code == Code.CLUSTER_MISMATCH
    assert "cluster-2" in str(refused.detail)


def test_an_offer_that_is_no_table_is_a_bad_request() -> None:
    assert refusal(seat("b").agent, "offer", ("nonsense",)).code == Code.BAD_REQUEST


def test_what_an_agent_answers_is_logged_under_its_own_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        seat("b", boot=2).agent.adopt(table_of("a", "b", "c"))
    assert {record.name for record in caplog.records} == {"dcache.agent"}
