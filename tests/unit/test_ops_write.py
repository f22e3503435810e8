"""Set and delete: to all owners, done after W acknowledgements, above whatever stands in the way."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest

from dcache.codec import Codec
from dcache.errors import (
    ClockSkew,
    ClusterMismatch,
    DcacheError,
    DeadlineExceeded,
    InvalidKey,
    NodeError,
    QuorumError,
    SerializationError,
    ValueTooLarge,
)
from dcache.ops import read, write
from dcache.ops.context import Context
from dcache.ops.effects import Op
from dcache.record import version_milliseconds
from dcache.wire import MESSAGES, Code, Limits, Status
from tests.unit.ops_kit import TIMEOUT, WALL, Cluster, FakeLink, Hand, drive, make_table, v

GROWN = make_table(("a", "b", "c", "d"), ring_version=2)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def stored(cluster: Cluster, nodes: Iterable[str]) -> list[Any]:
    return [cluster[node].value("k") for node in nodes]


def setting(cluster: Cluster, ctx: Context | None = None, value: Any = "new") -> Hand:
    """A `set` of "k" under way."""
    return Hand(write.set(ctx or cluster.context(), "k", value), cluster)


def refusal(code: Code) -> NodeError:
    return NodeError(code, MESSAGES[code])


# --- W acknowledgements -----------------------------------------------------------------------------------------------


def test_a_write_goes_to_all_owners_with_one_version(cluster: Cluster) -> None:
    version = drive(write.set(cluster.context(), "k", 1), cluster)
    assert sorted(cluster.asked("set")) == sorted(cluster.owners("k"))
    assert {node.version("k") for node in cluster.nodes.values()} == {version}


def test_a_write_is_done_after_w_acknowledgements(cluster: Cluster) -> None:
    hand, (x, y, _) = setting(cluster), cluster.owners("k")
    hand.deliver(x)
    assert not hand.over
    hand.deliver(y)
    assert hand.resume().done
    assert hand.result == cluster[x].version("k")


@pytest.mark.parametrize(("quorum", "needed"), [("one", 1), (1, 1), ("quorum", 2), (2, 2), ("all", 3), (5, 3)])
def test_w_is_what_the_user_says(cluster: Cluster, quorum: int | str, needed: int) -> None:
    hand, owners = setting(cluster, cluster.context(write_quorum=quorum)), cluster.owners("k")
    for index, node in enumerate(owners[:needed]):
        assert not hand.over, f"after {index} acknowledgements"
        hand.deliver(node)
    assert hand.over


def test_a_write_survives_the_loss_of_one_owner_of_three(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    cluster[x].down = True
    drive(write.set(cluster.context(), "k", "new"), cluster)
    assert stored(cluster, (x, y, z)) == [None, "new", "new"]


def test_a_write_does_not_wait_for_a_silent_owner(cluster: Cluster) -> None:
    cluster[cluster.owners("k")[0]].silent = True
    drive(write.set(cluster.context(), "k", 1), cluster)
    assert len(cluster.sent) == 3
    assert cluster.time.ms < TIMEOUT


def test_an_incomplete_owner_is_written_to_and_its_acknowledgement_does_not_count(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    cluster[x].restart()
    hand = setting(cluster)
    hand.deliver(x, y)
    assert not hand.over
    assert cluster[x].value("k") == "new"
    hand.deliver(z)
    assert hand.over


def test_too_few_complete_owners_are_a_quorum_error_in_doubt(cluster: Cluster) -> None:
    _, y, z = cluster.owners("k")
    cluster[y].restart()
    cluster[z].restart()
    with pytest.raises(QuorumError) as caught:
        drive(write.set(cluster.context(), "k", 1), cluster)
    error = caught.value
    assert (error.needed, error.got, error.in_doubt) == (2, 1, True)
    assert set(error.reasons) == {y, z}
    assert "has not completed" in error.reasons[y]


def test_an_acknowledgement_whose_connection_broke_before_the_end_does_not_count(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    hand = setting(cluster)
    hand.deliver(x)
    cluster[x].restart()
    hand.deliver(y)
    assert not hand.over, "the process that acknowledged first is no more"
    hand.deliver(z)
    assert hand.resume().done


def test_a_connection_that_breaks_at_the_very_end_costs_its_acknowledgement(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    hand = setting(cluster)
    hand.fail(z)
    hand.deliver(x, y)
    cluster[x].break_link()
    with pytest.raises(QuorumError) as caught:
        hand.resume()
    assert caught.value.in_doubt
    assert caught.value.reasons[x] == "answered, then broke off"


def test_a_write_that_can_no_longer_reach_w_ends_at_once(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    hand = setting(cluster)
    hand.fail(x)
    assert not hand.over
    hand.fail(y)
    with pytest.raises(QuorumError) as caught:
        hand.resume()
    assert caught.value.reasons[z] == "not waited for: too few others were left"
    assert caught.value.in_doubt


# --- the fence --------------------------------------------------------------------------------------------------------


def test_a_client_with_an_old_ring_cannot_write_past_a_change(cluster: Cluster) -> None:
    hand = setting(cluster)
    cluster.learn(GROWN)
    hand.deliver(*cluster.owners("k")[:2])
    with pytest.raises(QuorumError, match="wrong ring"):
        hand.resume()
    assert {node.version("k") for node in cluster.nodes.values()} == {None}


def test_only_acknowledgements_under_one_ring_are_counted_together(cluster: Cluster) -> None:
    _, y, z = cluster.owners("k")
    cluster[y].learn(GROWN)
    cluster[z].learn(GROWN)
    with pytest.raises(QuorumError) as caught:
        drive(write.set(cluster.context(), "k", 1), cluster)
    assert (caught.value.got, set(caught.value.reasons)) == (1, {y, z})
    assert caught.value.in_doubt, "the first owner stored it"


def test_a_refusal_for_the_ring_brings_the_table_of_the_node(cluster: Cluster) -> None:
    x, *_ = cluster.owners("k")
    hand = setting(cluster)
    cluster[x].learn(GROWN)
    hand.deliver(x)
    (failure,) = hand.round.failures
    assert isinstance(failure.error, NodeError)
    assert type(GROWN).from_wire(failure.error.detail) == GROWN


# --- something newer --------------------------------------------------------------------------------------------------


def test_a_slow_clock_writes_once_more_just_above_the_highest_in_the_way(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    for node, ahead in ((x, 9000), (y, 3000), (z, 6000)):
        cluster[node].put("k", v(ahead), "old")
    version = drive(write.set(cluster.context(), "k", "new"), cluster)
    assert version > v(9000)
    assert version_milliseconds(version) == WALL + 9000
    assert stored(cluster, (x, y, z)) == ["new"] * 3
    assert len(cluster.sent) == 6


def test_one_owner_with_something_newer_does_not_make_a_write_repeat(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    cluster[x].put("k", v(9000), "newer")
    hand = setting(cluster)
    hand.deliver(x, y, z)
    assert hand.resume().done
    assert len(hand.rounds) == 1


def test_something_newer_is_overcome_where_the_others_failed(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    cluster[x].put("k", v(9000), "old")
    hand = setting(cluster)
    hand.fail(y, sent=True)
    hand.deliver(x, z)
    hand.resume()
    assert not hand.done
    hand.deliver(x, z)
    assert hand.resume().result == cluster[x].version("k") == cluster[z].version("k")


def test_a_forgotten_version_is_in_the_way_like_one_that_is_held(cluster: Cluster) -> None:
    """The key is absent, and its slot has forgotten something above the version written."""
    for node in cluster.nodes.values():
        node.forget_slot("k", v(5000))
    version = drive(write.set(cluster.context(), "k", "new"), cluster)
    assert version > v(5000)
    assert drive(read.get(cluster.context(), "k"), cluster) == "new"


def test_a_write_goes_above_what_was_acknowledged_before_even_if_one_owner_missed_it(cluster: Cluster) -> None:
    """The only owner with an old version in the way is no measure: had the write gone just above it, the value that it
    is to replace would have counted as overtaking it."""
    x, y, z = cluster.owners("k")
    cluster[x].put("k", v(3000), "older")
    for node in (y, z):
        cluster[node].put("k", v(9000), "old, and acknowledged")
    hand = setting(cluster)
    hand.deliver(x)
    hand.fail(y)
    assert not hand.over, "the third owner may know of more"
    hand.deliver(z)
    hand.resume()
    hand.deliver(x, z)
    assert hand.resume().result > v(9000)
    assert drive(read.get(cluster.context(turn=1), "k"), cluster) == "new"


def test_a_write_made_from_too_few_answers_is_not_done_by_being_overtaken(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    cluster[x].put("k", v(3000), "older")
    for node in (y, z):
        cluster[node].put("k", v(9000), "old, and acknowledged")
    hand = setting(cluster)
    hand.deliver(x)
    hand.fail(y)
    hand.fail(z)
    hand.resume()
    hand.deliver(x, z)
    assert not hand.over
    hand.fail(y)
    with pytest.raises(QuorumError) as caught:
        hand.resume()
    assert caught.value.in_doubt


def test_the_measure_of_how_high_to_go_is_a_majority_and_not_an_incomplete_owner(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    cluster[x].put("k", v(3000), "older")
    cluster[y].restart()
    cluster[y].put("k", v(2000), "older")
    cluster[z].put("k", v(9000), "old")
    hand = setting(cluster)
    hand.deliver(x, y)
    assert not hand.over
    hand.deliver(z)
    assert hand.over
    hand.resume()
    hand.deliver(x, z)
    assert hand.resume().result > v(9000)


def test_with_all_acknowledgements_wanted_a_majority_is_enough_to_know_how_high_to_go(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    cluster[x].put("k", v(3000), "older")
    hand = setting(cluster, cluster.context(write_quorum="all"))
    hand.deliver(x)
    assert not hand.over
    hand.deliver(y)
    assert hand.over
    hand.resume()
    hand.deliver(x, y, z)
    assert hand.resume().done


def test_in_available_mode_nothing_is_waited_for_to_go_higher(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    cluster[x].put("k", v(3000), "old")
    hand = setting(cluster, cluster.available(write_quorum="all"))
    hand.deliver(x)
    assert hand.over
    hand.resume()
    cluster[z].put("k", v(7000), "newer")
    hand.deliver(x, y, z)
    assert hand.resume().done


def test_an_incomplete_owner_tells_what_is_in_the_way_too(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    cluster[z].put("k", v(3000), "old")
    cluster[x].restart()
    cluster[x].put("k", v(9000), "old")
    cluster[y].put("k", v(4000), "old")
    version = drive(write.set(cluster.context(), "k", "new"), cluster)
    assert version > v(9000)


def test_a_repeated_write_that_is_overtaken_counts_as_done(cluster: Cluster) -> None:
    owners = cluster.owners("k")
    for node in owners:
        cluster[node].put("k", v(5000), "old")
    hand = setting(cluster)
    hand.deliver(*owners[:2])
    hand.deliver(owners[2])
    hand.resume()
    for node in owners:
        cluster[node].put("k", v(7000), "from somebody else")
    hand.deliver(*owners[:2])
    assert hand.resume().done
    assert v(5000) < hand.result < v(7000)
    assert len(hand.rounds) == 2


def test_an_overtaken_write_needs_w_complete_owners_as_well(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    for node in (x, y):
        cluster[node].put("k", v(5000), "old")
    hand = setting(cluster)
    hand.fail(z)
    hand.deliver(x, y)
    hand.resume()
    cluster[x].restart()
    cluster[x].put("k", v(7000), "from somebody else")
    hand.deliver(x, y)
    assert not hand.over
    hand.fail(z)
    with pytest.raises(QuorumError):
        hand.resume()


def test_the_version_in_the_way_does_not_move_the_writers_own_clock(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        node.put("k", v(9000), "old")
    ctx = cluster.context()
    assert drive(write.set(ctx, "k", 1), cluster) > v(9000)
    assert drive(write.set(ctx, "other", 1), cluster) < v(1)


def test_of_two_writes_that_go_above_the_same_version_both_have_one_of_their_own(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        node.put("k", v(9000), "old")
    first, second = setting(cluster), setting(cluster)
    for hand in (first, second):
        hand.deliver(*cluster.owners("k"))
        hand.resume()
    assert first.finish() != second.finish()
    assert len({node.version("k") for node in cluster.nodes.values()}) == 1


# --- in doubt or not --------------------------------------------------------------------------------------------------


def doubt(hand: Hand) -> bool:
    assert hand.over
    with pytest.raises(QuorumError) as caught:
        hand.resume()
    return caught.value.in_doubt


def test_a_write_that_every_owner_refused_was_certainly_not_made(cluster: Cluster) -> None:
    hand = setting(cluster)
    for node in cluster.owners("k"):
        hand.fail(node, refusal(Code.OVERLOADED), sent=True)
    assert not doubt(hand)


def test_a_write_that_reached_nobody_was_certainly_not_made(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        node.down = True
    with pytest.raises(QuorumError) as caught:
        drive(write.set(cluster.context(write_quorum="one"), "k", 1), cluster)
    assert not caught.value.in_doubt
    assert not isinstance(caught.value, DeadlineExceeded)


def test_a_write_is_in_doubt_while_the_word_of_one_owner_is_unknown(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    hand = setting(cluster, cluster.context(write_quorum="one"))
    hand.fail(x, refusal(Code.OVERLOADED), sent=True)
    hand.fail(y)
    hand.fail(z, sent=True)
    assert doubt(hand)


def test_a_write_that_one_owner_stored_is_in_doubt(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    hand = setting(cluster)
    hand.deliver(x)
    hand.fail(y)
    hand.fail(z)
    assert doubt(hand)


def test_the_doubt_of_the_first_attempt_outlasts_the_second(cluster: Cluster) -> None:
    """The first attempt may have been stored by the owner that broke off, whatever became of the second."""
    x, y, z = cluster.owners("k")
    cluster[x].put("k", v(5000), "old")
    cluster[y].put("k", v(5000), "old")
    hand = setting(cluster)
    hand.fail(z, sent=True)
    hand.deliver(x, y)
    hand.resume()
    for node in (x, y, z):
        hand.fail(node, refusal(Code.OVERLOADED), sent=True)
    assert doubt(hand)


def test_a_write_that_was_refused_as_older_and_then_reached_nobody_was_not_made(cluster: Cluster) -> None:
    owners = cluster.owners("k")
    for node in owners:
        cluster[node].put("k", v(5000), "old")
    hand = setting(cluster, cluster.context(write_quorum=1))
    hand.deliver(*owners)
    hand.resume()
    for node in owners:
        hand.fail(node)
    assert not doubt(hand)


# --- which error ------------------------------------------------------------------------------------------------------


def test_a_write_that_runs_out_of_time_is_a_deadline_exceeded_in_doubt(cluster: Cluster) -> None:
    x, y, _ = cluster.owners("k")
    cluster[x].silent = cluster[y].mute = True
    with pytest.raises(DeadlineExceeded) as caught:
        drive(write.set(cluster.context(), "k", 1), cluster)
    assert caught.value.in_doubt
    assert cluster.time.ms == TIMEOUT
    assert cluster[y].value("k") == 1, "it acted on it, and nobody heard of it"


@pytest.mark.parametrize("kind", [ClockSkew, ClusterMismatch])
def test_what_all_owners_say_of_clocks_or_clusters_is_the_error(cluster: Cluster, kind: type[DcacheError]) -> None:
    for node in cluster.nodes.values():
        node.error = kind("told")
    with pytest.raises(kind):
        drive(write.set(cluster.context(), "k", 1), cluster)


def test_a_client_whose_clock_is_an_hour_ahead_is_told_so(cluster: Cluster) -> None:
    with pytest.raises(ClockSkew, match="3600 s"):
        drive(write.set(cluster.context(skew=3_600_000), "k", 1), cluster)
    assert stored(cluster, "abc") == [None] * 3


@pytest.mark.parametrize(
    ("what", "op"), [("set", lambda ctx: write.set(ctx, "k", 1)), ("delete", lambda ctx: write.delete(ctx, "k"))]
)
def test_the_error_names_the_operation(cluster: Cluster, what: str, op: Any) -> None:
    for node in cluster.nodes.values():
        node.down = True
    with pytest.raises(QuorumError, match=f"^{what}: 0 of 2"):
        drive(op(cluster.context()), cluster)


def test_an_acknowledgement_that_makes_no_sense_is_a_failure_in_doubt(cluster: Cluster) -> None:
    x, y, _ = cluster.owners("k")
    hand = setting(cluster)
    hand.reply(x, None)
    hand.reply(y, (True, int(Status.STORED)))
    with pytest.raises(QuorumError) as caught:
        hand.resume()
    assert "does not have its form" in caught.value.reasons[x]
    assert caught.value.in_doubt


# --- available mode ---------------------------------------------------------------------------------------------------


def test_in_available_mode_one_acknowledgement_is_enough(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    cluster[x].down = cluster[y].down = True
    drive(write.set(cluster.available(), "k", "new"), cluster)
    assert cluster[z].value("k") == "new"


def test_in_available_mode_the_next_nodes_take_the_place_of_those_in_trouble() -> None:
    cluster = Cluster(names=tuple("abcde"))
    ctx, (x, y, z, s, _) = cluster.available(), cluster.preference("k")
    ctx.shared.backoff.failed(x, "refused", 0.0)
    drive(write.set(ctx, "k", "new"), cluster)
    assert stored(cluster, (x, y, z, s)) == [None, "new", "new", "new"]


# --- set --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ttl", "seconds"), [(2, 2.0), (0.5, 0.5), (timedelta(seconds=3), 3.0), (None, math.inf)])
def test_a_value_lives_as_long_as_was_said(cluster: Cluster, ttl: Any, seconds: float) -> None:
    ctx = cluster.context(default_ttl=60)
    drive(write.set(ctx, "k", 1, ttl), cluster)
    assert drive(read.ttl(ctx, "k"), cluster) == seconds


def test_a_value_lives_for_the_default_time_where_nothing_is_said(cluster: Cluster) -> None:
    ctx = cluster.context(default_ttl=60)
    drive(write.set(ctx, "k", 1), cluster)
    assert drive(read.ttl(ctx, "k"), cluster) == 60.0


@pytest.mark.parametrize("ttl", [0, -1, math.nan, math.inf, timedelta(0), 1e300])
def test_a_lifetime_that_makes_no_sense_sends_nothing(cluster: Cluster, ttl: Any) -> None:
    with pytest.raises(ValueError, match="ttl must be"):
        drive(write.set(cluster.context(), "k", 1, ttl), cluster)
    assert not cluster.sent


def test_a_truth_value_is_no_lifetime(cluster: Cluster) -> None:
    with pytest.raises(TypeError, match="ttl is seconds"):
        drive(write.set(cluster.context(), "k", 1, True), cluster)
    assert not cluster.sent


@pytest.mark.parametrize(
    ("key", "error"), [("", InvalidKey), ("x" * 1025, InvalidKey), ("\ud800", InvalidKey), (1, TypeError)]
)
def test_a_wrong_key_sends_nothing(cluster: Cluster, key: Any, error: type[Exception]) -> None:
    for op in (write.set(cluster.context(), key, 1), write.delete(cluster.context(), key)):
        with pytest.raises(error):
            drive(op, cluster)
    assert not cluster.sent


@pytest.mark.parametrize(("value", "error"), [("x" * 200, ValueTooLarge), (object(), SerializationError)])
def test_a_value_that_cannot_be_stored_sends_nothing(cluster: Cluster, value: Any, error: type[DcacheError]) -> None:
    with pytest.raises(error):
        drive(write.set(cluster.context(codec=Codec(max_value=100)), "k", value), cluster)
    assert not cluster.sent


def test_a_value_that_nodes_do_not_take_is_too_large_with_both_sizes() -> None:
    cluster = Cluster(limits=Limits(max_value=100))
    with pytest.raises(ValueTooLarge) as caught:
        drive(write.set(cluster.context(), "k", b"x" * 200), cluster)
    assert (caught.value.size, caught.value.limit) == (200, 100)


def test_text_and_bytes_write_one_key_and_namespaces_do_not(cluster: Cluster) -> None:
    ctx = cluster.context()
    drive(write.set(ctx, "k", "text"), cluster)
    drive(write.set(ctx, b"k", "bytes"), cluster)
    drive(write.set(cluster.context(namespace="ns"), "k", "elsewhere"), cluster)
    assert drive(read.get(ctx, "k"), cluster) == "bytes"


def test_each_write_of_one_client_is_newer_than_the_one_before(cluster: Cluster) -> None:
    ctx = cluster.context()
    versions = [drive(write.set(ctx, "k", n), cluster) for n in range(3)]
    assert versions == sorted(set(versions))


# --- delete -----------------------------------------------------------------------------------------------------------


def test_delete_forgets_the_key_and_tells_whether_an_owner_held_it(cluster: Cluster) -> None:
    ctx = cluster.context()
    drive(write.set(ctx, "k", 1), cluster)
    assert drive(write.delete(ctx, "k"), cluster) is True
    assert drive(read.get(ctx, "k"), cluster) is None
    assert drive(write.delete(ctx, "k"), cluster) is False


def test_delete_leaves_its_version_behind_as_the_floor_of_the_slot(cluster: Cluster) -> None:
    drive(write.delete(cluster.context(), "k"), cluster)
    floors = {node.floor("k") for node in cluster.nodes.values()}
    assert len(floors) == 1
    assert floors != {v(0)}
    assert version_milliseconds(floors.pop()) == WALL


def test_one_owner_that_held_it_is_enough_to_say_so(cluster: Cluster) -> None:
    x, y, _ = cluster.owners("k")
    cluster[y].put("k", v(-5), 1)
    hand = Hand(write.delete(cluster.context(), "k"), cluster)
    hand.deliver(x, y)
    assert hand.resume().result is True


def test_a_delete_from_a_slow_clock_goes_above_what_is_held(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        node.put("k", v(20_000), "old")
    assert drive(write.delete(cluster.context(), "k"), cluster) is True
    assert stored(cluster, "abc") == [None] * 3


def test_a_value_that_missed_its_delete_does_not_come_back(cluster: Cluster) -> None:
    """One owner was away while the others deleted; the read that asks it first must not believe it."""
    ctx, (x, _, _) = cluster.context(), cluster.owners("k")
    drive(write.set(ctx, "k", 1), cluster)
    cluster[x].down = True
    drive(write.delete(ctx, "k"), cluster)
    cluster[x].down = False
    assert cluster[x].value("k") == 1
    for turn in range(3):
        assert drive(read.get(cluster.context(turn=turn), "k"), cluster) is None


def test_an_acknowledgement_of_a_delete_that_says_no_more_counts_as_not_held(cluster: Cluster) -> None:
    hand = Hand(write.delete(cluster.context(), "k"), cluster)
    for node in cluster.owners("k")[:2]:
        hand.reply(node, (True, int(Status.STORED), v(0)), FakeLink())
    assert hand.resume().result is False


def test_a_write_is_an_operation_that_other_operations_can_build_on(cluster: Cluster) -> None:
    ctx = cluster.context()

    def op() -> Op[int]:
        version, round_ = yield from write.write(
            ctx, "set", b"k", lambda node, version: ctx.call(node, "set", b"k", version, b"x", 0, None)
        )
        assert len(round_.got()) >= 2
        return version_milliseconds(version)

    assert drive(op(), cluster) == WALL
