"""What a client knows of its cluster, and when it changes its mind."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from dcache.errors import ClusterMismatch, NodeError
from dcache.membership import Health, MemberTable, RingState
from dcache.ops import write
from dcache.ops.topology import REFRESH, Topology
from dcache.wire import Code
from tests.unit.ops_kit import Cluster, Hand, make_table

TABLE = make_table()
GROWN = make_table(("a", "b", "c", "d"), ring_version=2)
FOREIGN = make_table(cluster_id="another")


def topology(*seeds: str, random: Callable[[], float] = lambda: 0.5) -> Topology:
    return Topology(seeds or ("seed1", "seed2:7500"), random)


def settled(table: MemberTable = TABLE) -> Topology:
    made = topology()
    made.install(table)
    return made


def test_a_client_without_a_node_to_ask_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one node"):
        Topology([], lambda: 0.5)


@pytest.mark.parametrize("seed", ["", "host:port", "host:99999", ":7400", "[a:1"])
def test_a_seed_that_is_no_address_is_refused_at_once(seed: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        topology(seed)


def test_a_seed_named_twice_is_asked_once() -> None:
    assert topology("x", "y", "x").seeds == ("x", "y")


def test_before_the_first_table_little_is_known() -> None:
    fresh = topology()
    assert fresh.cluster_id() is None
    assert not fresh.is_member("a")
    assert sorted(fresh.sources()) == ["seed1", "seed2:7500"]
    assert fresh.address("seed1") == ("seed1", 7400)
    assert fresh.address("seed2:7500") == ("seed2", 7500)


def test_the_table_says_who_is_a_member_and_where() -> None:
    known = settled()
    assert known.cluster_id() == "kit"
    assert known.is_member("a")
    assert not known.is_member("d")
    assert known.address("a") == ("a.test", 7400)
    assert known.address("seed1") == ("seed1", 7400)


@pytest.mark.parametrize("order", [(TABLE, GROWN), (GROWN, TABLE)])
def test_tables_are_merged_in_any_order(order: tuple[MemberTable, ...]) -> None:
    known = topology()
    for table in order:
        known.install(table)
    assert known.table == GROWN


def test_a_newer_row_is_taken_into_the_table_that_stands() -> None:
    known = settled()
    moved = attrs.evolve(TABLE.members["a"], address="elsewhere:1", incarnation=1)
    known.install(TABLE.with_member(moved))
    assert known.address("a") == ("elsewhere", 1)


def test_the_table_of_another_cluster_is_refused() -> None:
    known = settled()
    with pytest.raises(ClusterMismatch):
        known.install(FOREIGN)
    assert known.table == TABLE


def test_installing_a_table_ends_the_search_for_the_cluster() -> None:
    known = settled()
    known.forsaken = True
    known.install(TABLE)
    assert not known.forsaken


def test_an_offered_table_is_merged() -> None:
    known = settled()
    known.offer(GROWN.to_wire(), "a")
    assert known.table == GROWN


@pytest.mark.parametrize("offered", [None, b"", (1, 2), FOREIGN.to_wire()])
def test_an_offer_that_makes_no_sense_or_is_another_clusters_changes_nothing(offered: object) -> None:
    known = settled()
    known.offer(offered, "a")
    assert known.table == TABLE


def test_nobody_is_believed_unasked_before_the_first_table() -> None:
    fresh = topology()
    fresh.offer(TABLE.to_wire(), "a")
    assert fresh.table is None


def test_a_request_under_an_old_ring_brings_the_new_table() -> None:
    cluster, known = Cluster(), settled()
    ctx = cluster.context()
    cluster.learn(GROWN)  # by which all nodes go, and not yet the client
    hand = Hand(write.set(ctx, "k", 1), cluster)
    hand.deliver(hand.asked[0])
    (failure,) = hand.round.failures
    assert isinstance(failure.error, NodeError)
    assert failure.error.code == Code.WRONG_RING
    known.offer(failure.error.detail, "a")
    assert known.table == GROWN


def test_seeds_and_members_are_asked_by_turns_each_in_a_random_order() -> None:
    """The members may all be gone, or the seeds be names of the past."""
    numbers = itertools.cycle([0.5, 0.1, 0.9, 0.3, 0.7])
    known = topology("seed1", "seed2", random=lambda: next(numbers))
    known.install(TABLE)
    assert known.sources() == ["seed2", "b.test:7400", "seed1", "c.test:7400", "a.test:7400"]
    numbers = itertools.cycle([0.1, 0.5, 0.1, 0.3, 0.7])
    assert known.sources() == ["seed1", "a.test:7400", "seed2", "b.test:7400", "c.test:7400"]


def test_a_seed_that_is_a_member_is_asked_once() -> None:
    known = topology("b.test:7400", "seed")
    known.install(TABLE)
    assert sorted(known.sources()) == ["a.test:7400", "b.test:7400", "c.test:7400", "seed"]


def test_a_majority_that_names_one_other_cluster_makes_the_client_start_afresh() -> None:
    known = settled()
    assert not known.foreign("a", "another")
    assert known.table == TABLE
    assert known.foreign("b", "another")
    assert known.table is None


def test_what_was_said_before_the_client_started_afresh_is_forgotten() -> None:
    known = settled()
    known.foreign("a", "another")
    known.foreign("b", "another")
    known.install(TABLE)
    known.foreign("a", "another")
    assert known.table == TABLE


def test_one_node_that_repeats_itself_is_no_majority() -> None:
    known = settled()
    for _ in range(5):
        known.foreign("a", "another")
    assert known.table == TABLE


def test_a_cluster_is_given_up_if_one_on_its_ring_is_of_another() -> None:
    known = settled()
    assert not known.foreign("a", "another")
    assert known.give_up() == "another"
    assert known.table is None
    assert known.give_up() is None


def test_a_cluster_of_which_nobody_answers_is_not_given_up_for_that() -> None:
    """Its nodes may all be restarting, and this client knows more of them than its seeds."""
    known = settled()
    known.foreign("stranger", "another")
    assert known.give_up() is None
    assert known.table == TABLE


def test_a_sign_of_life_of_the_cluster_takes_back_what_was_said_against_it() -> None:
    known = settled()
    known.foreign("a", "another")
    known.install(TABLE)
    assert known.give_up() is None
    assert not known.foreign("b", "another")
    assert known.table == TABLE


def test_a_majority_that_refuses_calls_for_an_earlier_ring_takes_the_client_back_to_it() -> None:
    """All who agreed on the later one may have lost their memory."""
    known = settled(GROWN)
    earlier = make_table(("a", "b", "c", "d"), ring_version=1)
    for node in ("a", "stranger", "b", "a"):
        known.refused(earlier.to_wire(), node)
        assert known.table == GROWN
    known.refused(earlier.to_wire(), "c")
    assert known.table == earlier
    known.install(GROWN)
    assert known.table == GROWN, "it had not got about yet"


def test_what_is_behind_counts_no_more_once_the_ring_was_heard_of_again() -> None:
    known = settled(GROWN)
    earlier = make_table(("a", "b", "c", "d"), ring_version=1)
    known.refused(earlier.to_wire(), "a")
    known.refused(earlier.to_wire(), "b")
    known.install(GROWN)
    known.refused(earlier.to_wire(), "c")
    assert known.table == GROWN


def test_an_earlier_ring_that_is_merely_told_of_changes_nothing() -> None:
    known = settled(GROWN)
    earlier = make_table(("a", "b", "c", "d"), ring_version=1)
    for node in "abcd":
        known.offer(earlier.to_wire(), node)
    assert known.table == GROWN


def test_a_majority_that_names_different_clusters_changes_nothing() -> None:
    known = settled()
    known.foreign("a", "another")
    known.foreign("b", "third")
    assert known.table == TABLE


def test_strangers_and_members_off_the_ring_have_no_say_about_the_cluster() -> None:
    off_the_ring = attrs.evolve(TABLE, ring_state=RingState(2, TABLE.ring_state.members[:1]))
    known = settled(off_the_ring)
    for node in ("stranger", "b", "c"):
        known.foreign(node, "another")
    assert known.table == off_the_ring
    known.foreign("a", "another")
    assert known.table is None


def test_what_a_node_said_before_it_was_a_member_is_not_held_against_its_cluster() -> None:
    known = settled()
    known.foreign("d", "another")
    known.install(GROWN)
    known.foreign("a", "another")
    known.foreign("b", "another")
    assert known.table == GROWN
    known.foreign("d", "another")
    assert known.table is None


def test_what_is_said_before_the_first_table_is_not_kept() -> None:
    fresh = topology()
    fresh.foreign("a", "another")
    fresh.install(TABLE)
    fresh.foreign("b", "another")
    assert fresh.table == TABLE


OTHERS = attrs.evolve(TABLE, settings=attrs.evolve(TABLE.settings, cluster_id="another"))


def test_tables_of_another_cluster_count_as_the_word_of_the_nodes_that_sent_them() -> None:
    """They may have formed it after they said hello: then nothing else tells."""
    known, left = settled(), []
    known.on_leave = lambda: left.append(True)
    known.offer(OTHERS.to_wire(), "a")
    known.offer(OTHERS.to_wire(), "a")
    assert known.table == TABLE
    known.offer(OTHERS.to_wire(), "b")
    assert known.table is None
    assert left == [True]


def test_a_member_may_be_meant_by_its_address() -> None:
    known = settled()
    for name in ("a", "b"):
        known.foreign(TABLE.members[name].address, "another")
    assert known.table is None


def test_news_are_asked_for_once_per_period_and_not_at_the_very_start() -> None:
    known = topology(random=lambda: 0.5)
    assert not known.due(100.0)
    assert not known.due(100.0 + REFRESH * 0.99)
    assert known.due(100.0 + REFRESH)
    assert not known.due(100.0 + REFRESH)
    assert known.due(100.0 + 2 * REFRESH)


@pytest.mark.parametrize(("random", "period"), [(0.0, 15.0), (0.999, 45.0)])
def test_the_period_differs_from_client_to_client(random: float, period: float) -> None:
    known = topology(random=lambda: random)
    known.due(1.0)
    assert not known.due(1.0 + period - 0.1)
    assert known.due(1.0 + period + 0.1)


@pytest.mark.parametrize(
    ("change", "noticed"),
    [
        ({"address": "elsewhere:1"}, True),
        ({"boot_id": "another"}, True),
        ({"health": Health.DOWN}, False),
        ({"zone": "z"}, False),
        ({"address": "elsewhere:1", "health": Health.DOWN}, False),
    ],
    ids=str,
)
def test_a_member_that_started_anew_or_moved_is_said_to_be_there_again(change: dict[str, Any], noticed: bool) -> None:
    known, names = settled(), []
    known.on_return = names.append
    known.install(TABLE)
    row = attrs.evolve(TABLE.members["b"], incarnation=1, **change)
    known.install(TABLE.with_member(row))
    assert names == (["b"] if noticed else [])
    known.install(TABLE.with_member(attrs.evolve(row, incarnation=2, health=Health.UP)))
    assert (names == ["b"]) == (noticed or row.health is Health.DOWN)
