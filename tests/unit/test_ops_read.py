"""Get, gets, exists, ttl: the newest of complete answers, once a majority holds it."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.codec import Codec
from dcache.errors import ClockSkew, ClusterMismatch, DcacheError, DeadlineExceeded, InvalidKey, NodeError, QuorumError
from dcache.ops import read, write
from dcache.ops.context import Context
from dcache.ops.effects import Call, Op
from dcache.ops.read import ATTEMPTS, Item, Missed, read_record
from dcache.record import ZERO, Record, Version
from dcache.wire import Code
from tests.unit.ops_kit import TIMEOUT, Cluster, Hand, drive, full, make_table, v

GROWN = make_table(("a", "b", "c", "d"), ring_version=2)
BROKEN_FLAGS = 0x0F


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def getting(cluster: Cluster, ctx: Context | None = None) -> Hand:
    """A `get` of "k" under way; the most preferred owners are asked first."""
    return Hand(read.get(ctx or cluster.context(), "k", "nothing"), cluster)


def get(cluster: Cluster, ctx: Context | None = None) -> Any:
    return getting(cluster, ctx).finish()


def put(cluster: Cluster, *held: int | None) -> tuple[str, ...]:
    """Have the owners of "k", in order, hold a value named after its version; None for nothing."""
    owners = cluster.owners("k")
    for node, n in zip(owners, held, strict=True):
        if n is not None:
            cluster[node].put("k", v(n), f"value {n}")
    return owners


# --- how many are asked -----------------------------------------------------------------------------------------------


def test_a_read_asks_q_owners_and_no_more(cluster: Cluster) -> None:
    x, y, _ = put(cluster, 1, 1, 1)
    assert get(cluster) == "value 1"
    assert cluster.asked() == [x, y]


@pytest.mark.parametrize(("quorum", "asked"), [("quorum", 2), ("all", 3), (2, 2), (3, 3)])
def test_q_is_what_the_user_says(cluster: Cluster, quorum: int | str, asked: int) -> None:
    put(cluster, 1, 1, 1)
    get(cluster, cluster.context(read_quorum=quorum))
    assert len(cluster.sent) == asked


def test_every_owner_is_asked_equally_often(cluster: Cluster) -> None:
    owners = put(cluster, 1, 1, 1)
    ctx = cluster.context()
    for _ in range(3):
        get(cluster, ctx)
    assert sorted(cluster.asked()) == sorted(owners * 2)


def test_another_owner_is_asked_as_soon_as_one_fails(cluster: Cluster) -> None:
    x, y, z = put(cluster, 1, 1, 1)
    hand = getting(cluster)
    assert hand.fail(x) == [z]
    hand.deliver(y, z)
    assert hand.resume().result == "value 1"


def test_another_owner_is_asked_when_one_is_slow_and_whichever_answers_counts(cluster: Cluster) -> None:
    x, y, z = put(cluster, 1, 1, 1)
    for answering in (x, z):
        hand = getting(cluster)
        hand.deliver(y)
        assert hand.late() == [z]
        hand.deliver(answering)
        assert hand.resume().result == "value 1"


def test_a_silent_owner_costs_a_read_a_part_of_its_time_only(cluster: Cluster) -> None:
    x, _, z = put(cluster, 1, 1, 1)
    cluster[x].silent = True
    assert get(cluster) == "value 1"
    assert cluster.asked()[-1] == z
    assert cluster.time.ms == TIMEOUT // 4


def test_owners_in_trouble_are_asked_last(cluster: Cluster) -> None:
    x, y, z = put(cluster, 1, 1, 1)
    ctx = cluster.context()
    ctx.shared.backoff.failed(x, "refused", 0.0)
    get(cluster, ctx)
    assert cluster.asked() == [y, z]


# --- the newest of complete answers -----------------------------------------------------------------------------------


def test_the_newest_value_wins_whoever_holds_it(cluster: Cluster) -> None:
    put(cluster, 1, 3, 2)
    assert get(cluster) == "value 3"
    assert get(cluster, cluster.context(turn=1)) == "value 3"


def test_what_only_an_owner_that_was_not_needed_holds_may_stay_unseen(cluster: Cluster) -> None:
    """It was acknowledged by no majority, so nobody was told that it is there."""
    put(cluster, 1, 1, 2)
    assert get(cluster) == "value 1"


def test_no_owner_with_the_key_is_a_miss_after_q_answers(cluster: Cluster) -> None:
    assert get(cluster) == "nothing"
    assert len(cluster.sent) == 2
    assert drive(read.get(cluster.context(), "k"), cluster) is None


def test_an_incomplete_owner_is_not_believed_and_another_asked(cluster: Cluster) -> None:
    x, y, z = put(cluster, 1, 1, 1)
    cluster[x].restart()
    hand = getting(cluster)
    assert hand.deliver(x) == [z]
    hand.deliver(y, z)
    assert hand.resume().result == "value 1"


def test_the_emptiness_of_restarted_owners_is_no_miss(cluster: Cluster) -> None:
    _, y, z = put(cluster, 1, 1, 1)
    cluster[y].restart()
    cluster[z].restart()
    with pytest.raises(QuorumError) as caught:
        get(cluster)
    error = caught.value
    assert (error.needed, error.got, error.in_doubt, set(error.reasons)) == (2, 1, False, {y, z})
    assert "has not completed" in error.reasons[y]


def test_what_an_incomplete_owner_holds_does_not_count_even_if_it_is_the_newest(cluster: Cluster) -> None:
    x, *_ = put(cluster, None, 1, 1)
    cluster[x].restart()
    cluster[x].put("k", v(9), "not acknowledged")
    assert get(cluster) == "value 1"


def test_an_owner_that_completed_is_believed_again(cluster: Cluster) -> None:
    x, *_ = put(cluster, 1, 1, 1)
    cluster[x].restart()
    cluster[x].complete()
    assert get(cluster) == "value 1"
    assert cluster[x].value("k") == "value 1", "and was given what it lacked"


# --- write-back -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [(2, None, None), (2, 1, None), (None, 2, None), (1, 2, None)])
def test_a_value_is_not_returned_before_a_majority_holds_it(cluster: Cluster, held: tuple[int | None, ...]) -> None:
    x, y, _ = put(cluster, *held)
    holder, behind = (x, y) if held[0] == 2 else (y, x)
    hand = getting(cluster)
    hand.deliver(x, y)
    hand.resume()
    assert not hand.done
    assert [(call.node, call.method) for call in hand.waiting] == [(behind, "copy")]
    hand.deliver(behind)
    assert hand.resume().result == "value 2"
    assert cluster[behind].version("k") == cluster[holder].version("k") == v(2)


def test_a_value_that_one_reader_returned_is_returned_to_the_next(cluster: Cluster) -> None:
    put(cluster, 2, 1, 1)
    assert get(cluster) == "value 2"
    assert get(cluster, cluster.context(turn=1)) == "value 2"


def test_a_copy_keeps_flags_and_remaining_life(cluster: Cluster) -> None:
    x, y, _ = cluster.owners("k")
    cluster[x].put("k", v(1), "text", ttl=5000)
    cluster.time.advance(2000)
    assert get(cluster) == "text"
    cluster.time.advance(2999)
    assert cluster[y].value("k") == "text"
    cluster.time.advance(1)
    assert cluster[y].value("k") is None


def test_a_copy_is_exempt_from_the_check_of_the_writers_clock(cluster: Cluster) -> None:
    _, y, _ = put(cluster, 3_600_000, None, None)
    assert get(cluster) == "value 3600000"
    assert cluster[y].version("k") == v(3_600_000)


def test_where_a_majority_holds_it_already_the_others_get_it_without_being_waited_for(cluster: Cluster) -> None:
    _, _, z = put(cluster, 2, 2, 1)
    ctx = cluster.context(read_quorum="all")
    hand = getting(cluster, ctx)
    hand.deliver(*cluster.owners("k"))
    assert hand.resume().result == "value 2"
    assert [(call.node, call.method) for call in hand.detached] == [(z, "copy")]
    hand.deliver_detached()
    assert cluster[z].version("k") == v(2)
    assert ctx.shared.counters.repairs == 1


def test_a_read_of_what_all_hold_repairs_nothing(cluster: Cluster) -> None:
    put(cluster, 1, 1, 1)
    ctx = cluster.context()
    get(cluster, ctx)
    assert (ctx.shared.counters.repairs, cluster.detached) == (0, [])


def test_an_owner_that_fails_the_write_back_is_replaced_by_one_that_was_not_asked(cluster: Cluster) -> None:
    x, y, z = put(cluster, 2, None, None)
    ctx = cluster.context()
    hand = getting(cluster, ctx)
    hand.deliver(x, y)
    hand.resume()
    assert hand.fail(y) == [z]
    hand.deliver(z)
    assert hand.resume().result == "value 2"
    assert cluster[z].version("k") == v(2)
    assert ctx.shared.counters.repairs == 1


def test_a_slow_write_back_is_raced_with_an_owner_that_was_not_asked(cluster: Cluster) -> None:
    x, y, z = put(cluster, 2, None, None)
    hand = getting(cluster)
    hand.deliver(x, y)
    hand.resume()
    assert hand.late() == [z]


def test_a_value_that_cannot_be_written_back_is_a_miss(cluster: Cluster) -> None:
    x, y, z = put(cluster, 2, None, None)
    hand = getting(cluster)
    hand.deliver(x, y)
    hand.resume()
    hand.fail(y)
    hand.fail(z)
    assert hand.resume().result == "nothing"


def test_a_holder_that_died_during_the_write_back_does_not_hold_it_any_more(cluster: Cluster) -> None:
    x, y, z = put(cluster, 2, None, None)
    hand = getting(cluster)
    hand.deliver(x, y)
    hand.resume()
    cluster[x].restart()
    assert hand.deliver(y) == [z]
    hand.deliver(z)
    assert hand.resume().result == "value 2"


def test_a_copy_at_an_owner_that_became_incomplete_does_not_count(cluster: Cluster) -> None:
    x, y, z = put(cluster, 2, None, None)
    hand = getting(cluster)
    hand.deliver(x, y)
    hand.resume()
    cluster[y].restart()
    assert hand.deliver(y) == [z]
    hand.deliver(z)
    assert hand.resume().result == "value 2"


def test_a_value_overtaken_during_the_write_back_is_read_again(cluster: Cluster) -> None:
    x, y, z = put(cluster, 2, 1, 1)
    hand = getting(cluster)
    hand.deliver(x, y)
    hand.resume()
    for node in (y, z):
        cluster[node].put("k", v(3), "value 3")
    hand.deliver(y, z)
    hand.resume()
    assert not hand.done
    assert hand.finish() == "value 3"


def test_a_value_deleted_during_the_write_back_is_not_returned(cluster: Cluster) -> None:
    x, y, _ = put(cluster, 2, None, None)
    hand = getting(cluster)
    hand.deliver(x, y)
    hand.resume()
    cluster.time.advance(10)
    drive(write.delete(cluster.context(), "k"), cluster)
    assert hand.finish() == "nothing"


def test_a_value_that_changes_under_every_attempt_is_a_miss_in_the_end(cluster: Cluster) -> None:
    owners = put(cluster, 1, None, None)
    hand = getting(cluster)
    for n in range(1, ATTEMPTS + 1):
        hand.deliver(*hand.asked)
        hand.resume()
        assert {call.method for call in hand.waiting} == {"copy"}
        overtaking = 2 * n
        for node in owners:
            cluster[node].put("k", v(overtaking), "overtaking")
        cluster[owners[n % 3]].put("k", v(overtaking + 1), "half written")
        while not hand.over:
            hand.deliver(*hand.asked)
        hand.resume()
    assert hand.result == "nothing"


# --- floors -----------------------------------------------------------------------------------------------------------


def test_an_owner_that_may_have_forgotten_something_newer_is_replaced_by_another(cluster: Cluster) -> None:
    x, y, z = put(cluster, 2, None, 2)
    cluster[y].forget_slot("k", v(5))
    hand = getting(cluster)
    assert not hand.deliver(x)
    assert hand.deliver(y) == [z]
    hand.deliver(z)
    assert hand.resume().result == "value 2"
    assert cluster[y].version("k") is None, "it is not given what it may have forgotten for good"


def test_where_no_majority_votes_for_a_value_it_is_a_miss(cluster: Cluster) -> None:
    _, y, z = put(cluster, 2, None, None)
    cluster[y].forget_slot("k", v(5))
    cluster[z].forget_slot("k", v(5))
    for turn in range(3):
        assert get(cluster, cluster.context(turn=turn)) == "nothing"
    assert cluster[y].version("k") is cluster[z].version("k") is None


def test_a_floor_below_the_value_is_no_obstacle(cluster: Cluster) -> None:
    _, y, _ = put(cluster, 2, None, None)
    cluster[y].forget_slot("k", v(1))
    assert get(cluster) == "value 2"


def test_an_owner_that_evicted_the_very_value_does_not_vote_for_it(cluster: Cluster) -> None:
    _, y, z = put(cluster, 2, 2, None)
    cluster[y].evict("k")
    assert get(cluster) == "value 2", "the third owner votes for it and is given it"
    assert cluster[z].version("k") == v(2)


def test_an_acknowledged_value_that_a_majority_evicted_hides_the_older_one(cluster: Cluster) -> None:
    _, y, z = put(cluster, 1, 2, 2)
    cluster[y].evict("k")
    cluster[z].evict("k")
    for turn in range(3):
        assert get(cluster, cluster.context(turn=turn)) == "nothing"


# --- too few ----------------------------------------------------------------------------------------------------------


def test_fewer_than_q_complete_answers_are_a_quorum_error(cluster: Cluster) -> None:
    x, _, z = put(cluster, 1, 1, 1)
    cluster[x].down = cluster[z].down = True
    with pytest.raises(QuorumError, match=r"^read: 1 of 2") as caught:
        get(cluster)
    assert not isinstance(caught.value, DeadlineExceeded)
    assert (caught.value.needed, caught.value.got, caught.value.in_doubt) == (2, 1, False)
    assert caught.value.reasons == {x: "refused", z: "refused"}
    assert cluster.time.ms == 0


def test_a_read_that_can_no_longer_reach_q_ends_at_once(cluster: Cluster) -> None:
    x, y, z = put(cluster, 1, 1, 1)
    hand = getting(cluster)
    hand.fail(x)
    assert not hand.over
    hand.fail(y)
    with pytest.raises(QuorumError) as caught:
        hand.resume()
    assert caught.value.reasons[z].startswith("not waited for")


def test_a_read_that_runs_out_of_time_is_a_deadline_exceeded(cluster: Cluster) -> None:
    x, y, _ = put(cluster, 1, 1, 1)
    cluster[x].silent = cluster[y].silent = True
    with pytest.raises(DeadlineExceeded) as caught:
        get(cluster)
    assert cluster.time.ms == TIMEOUT
    assert caught.value.reasons == {x: "no answer in time", y: "no answer in time"}


@pytest.mark.parametrize("kind", [ClockSkew, ClusterMismatch])
def test_what_all_owners_say_of_clocks_or_clusters_is_the_error(cluster: Cluster, kind: type[DcacheError]) -> None:
    for node in cluster.nodes.values():
        node.error = kind("told")
    with pytest.raises(kind):
        get(cluster)


def test_an_answer_whose_connection_broke_is_replaced_by_another_owner(cluster: Cluster) -> None:
    x, y, z = put(cluster, 1, 1, 1)
    hand = getting(cluster)
    hand.deliver(x)
    cluster[x].restart()
    assert hand.deliver(y) == [z]
    hand.deliver(z)
    assert hand.resume().result == "value 1"


def test_an_answer_whose_connection_broke_at_the_very_end_does_not_count(cluster: Cluster) -> None:
    x, *others = put(cluster, 1, 1, 1)
    hand = getting(cluster, cluster.context(read_quorum="all"))
    hand.deliver(x, *others)
    cluster[x].restart()
    with pytest.raises(QuorumError) as caught:
        hand.resume()
    assert caught.value.reasons == {x: "answered, then broke off"}


def test_an_answer_that_makes_no_sense_is_a_failure(cluster: Cluster) -> None:
    x, y, z = put(cluster, 1, 1, 1)
    hand = getting(cluster)
    assert hand.reply(x, "nonsense") == [z]
    hand.deliver(y, z)
    assert hand.resume().result == "value 1"


# --- the fence --------------------------------------------------------------------------------------------------------


def test_a_client_with_an_old_ring_cannot_read_past_a_change(cluster: Cluster) -> None:
    put(cluster, 1, 1, 1)
    ctx = cluster.context()
    cluster.learn(GROWN)
    with pytest.raises(QuorumError, match="wrong ring"):
        get(cluster, ctx)


def test_only_answers_under_one_ring_are_counted_together(cluster: Cluster) -> None:
    _, y, z = put(cluster, 1, 1, 1)
    cluster[y].learn(GROWN)
    cluster[z].learn(GROWN)
    with pytest.raises(QuorumError) as caught:
        get(cluster)
    assert (caught.value.got, set(caught.value.reasons)) == (1, {y, z})


def test_an_owner_under_another_ring_is_replaced_and_its_table_noted(cluster: Cluster) -> None:
    x, y, z = put(cluster, 1, 1, 1)
    cluster[x].learn(GROWN)
    hand = getting(cluster)
    assert hand.deliver(x) == [z]
    (failure,) = hand.round.failures
    assert isinstance(failure.error, NodeError)
    assert failure.error.code == Code.WRONG_RING
    assert type(GROWN).from_wire(failure.error.detail) == GROWN
    hand.deliver(y, z)
    assert hand.resume().result == "value 1"


def test_an_owner_that_is_in_no_cluster_yet_is_replaced(cluster: Cluster) -> None:
    x, *_ = put(cluster, 1, 1, 1)
    cluster[x].learn(None)
    assert get(cluster) == "value 1"


# --- available mode ---------------------------------------------------------------------------------------------------


def test_in_available_mode_one_answer_is_enough_and_floors_are_ignored(cluster: Cluster) -> None:
    x, *_ = put(cluster, 1, None, None)
    for node in cluster.owners("k")[1:]:
        cluster[node].forget_slot("k", v(9))
    assert get(cluster, cluster.available()) == "value 1"
    assert cluster.asked() == [x]


def test_in_available_mode_what_is_behind_is_repaired_without_waiting(cluster: Cluster) -> None:
    _, y, _ = put(cluster, 2, 1, None)
    hand = getting(cluster, cluster.available(read_quorum=2))
    hand.deliver(*cluster.owners("k")[:2])
    assert hand.resume().result == "value 2"
    hand.deliver_detached()
    assert cluster[y].version("k") == v(2)


def test_in_available_mode_other_nodes_are_asked_for_owners_that_are_down() -> None:
    cluster = Cluster(names=tuple("abcde"))
    x, y, z, s, _ = cluster.preference("k")
    ctx = cluster.available()
    for node in (x, y, z):
        cluster[node].down = True
        ctx.shared.backoff.failed(node, "refused", 0.0)
    drive(write.set(ctx, "k", "on stand-ins"), cluster)
    assert cluster[s].value("k") == "on stand-ins"
    assert get(cluster, ctx) == "on stand-ins"
    assert get(cluster, cluster.available()) == "on stand-ins", "found by a client that knows of no trouble, too"


def test_in_available_mode_the_emptiness_of_an_incomplete_node_is_not_believed(cluster: Cluster) -> None:
    x, *_ = put(cluster, 1, 1, 1)
    cluster[x].restart()
    assert get(cluster, cluster.available()) == "value 1"


def test_in_available_mode_what_an_incomplete_node_holds_is_believed(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    cluster[x].restart()
    drive(write.set(cluster.available(), "k", "new"), cluster)
    cluster[y].down = cluster[z].down = True
    assert get(cluster, cluster.available()) == "new"


def test_in_available_mode_nothing_but_incomplete_nodes_is_a_miss(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        node.restart()
    assert get(cluster, cluster.available()) == "nothing"


def test_in_available_mode_no_answer_at_all_is_a_quorum_error(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        node.down = True
    with pytest.raises(QuorumError, match="0 of 1"):
        get(cluster, cluster.available())


# --- reading with a claim ---------------------------------------------------------------------------------------------


def claiming(cluster: Cluster, claim: Version, ctx: Context | None = None) -> Hand:
    return Hand(read_record(ctx or cluster.context(), b"k", claim), cluster)


def test_a_miss_with_a_claim_brings_promises_and_asks_the_others_for_theirs(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    hand = claiming(cluster, v(1))
    hand.deliver(x, y)
    missed = hand.resume().result
    assert isinstance(missed, Missed)
    assert [reply.node for reply in missed.promises] == [x, y]
    assert [(call.node, call.method) for call in hand.detached] == [(z, "claim")]
    hand.deliver_detached()
    assert {len(node.store.promises) for node in cluster.nodes.values()} == {1}


def test_an_owner_that_failed_is_asked_for_its_promise_once_more(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    hand = claiming(cluster, v(1))
    hand.fail(x, sent=True)
    hand.deliver(y, z)
    hand.resume()
    assert [call.node for call in hand.detached] == [x]


def test_in_available_mode_only_as_many_as_there_are_owners_are_asked_for_promises() -> None:
    cluster = Cluster(names=tuple("abcde"))
    x, y, z, *_ = cluster.preference("k")
    hand = claiming(cluster, v(1), cluster.available())
    hand.deliver(x)
    hand.resume()
    assert [call.node for call in hand.detached] == [y, z]


def test_a_hit_with_a_claim_promises_nothing(cluster: Cluster) -> None:
    put(cluster, 1, 1, 1)
    found = claiming(cluster, v(2)).finish()
    assert isinstance(found, Record)
    assert {len(node.store.promises) for node in cluster.nodes.values()} == {0}
    assert not cluster.detached


def test_a_promise_is_made_where_a_value_is_held_that_nobody_may_return(cluster: Cluster) -> None:
    """Were it not, no computation could ever replace that value."""
    _, y, z = put(cluster, 1, None, None)
    cluster[y].forget_slot("k", v(5))
    cluster[z].forget_slot("k", v(5))
    missed = claiming(cluster, v(9)).finish()
    assert isinstance(missed, Missed)
    assert len(missed.promises) == 2
    assert len(cluster.asked("claim")) == 5, "all three owners, and two again"


def test_what_nobody_may_return_is_not_taken_for_a_value_when_it_is_met_again(cluster: Cluster) -> None:
    x, y, z = put(cluster, 1, None, None)
    cluster[y].forget_slot("k", v(5))
    cluster[z].down = True
    missed = claiming(cluster, v(9)).finish()
    assert isinstance(missed, Missed)
    assert {reply.node for reply in missed.promises} == {x, y}


def test_without_promises_a_miss_is_a_miss_all_the_same(cluster: Cluster) -> None:
    """The claim is below what the owners have forgotten, so they promise nothing."""
    for node in cluster.nodes.values():
        node.forget_slot("k", v(5))
    missed = claiming(cluster, v(1)).finish()
    assert isinstance(missed, Missed)
    assert not missed.promises


# --- gets, exists, ttl ------------------------------------------------------------------------------------------------


def test_gets_gives_the_value_with_its_version_and_remaining_life(cluster: Cluster) -> None:
    ctx = cluster.context()
    version = drive(write.set(ctx, "k", [1], 2.5), cluster)
    cluster.time.advance(500)
    assert drive(read.gets(ctx, "k"), cluster) == Item([1], version, 2.0)
    version = drive(write.set(ctx, "k", None, None), cluster)
    assert drive(read.gets(ctx, "k"), cluster) == Item(None, version, None)
    assert drive(read.gets(ctx, "absent"), cluster) is None


def test_none_is_a_value(cluster: Cluster) -> None:
    drive(write.set(cluster.context(), "k", None), cluster)
    assert get(cluster) is None


def test_ttl_is_the_remaining_life_inf_for_no_expiry_and_none_for_absent(cluster: Cluster) -> None:
    ctx = cluster.context()
    drive(write.set(ctx, "k", 1, 10), cluster)
    cluster.time.advance(4000)
    assert drive(read.ttl(ctx, "k"), cluster) == 6.0
    drive(write.set(ctx, "k", 1, None), cluster)
    assert drive(read.ttl(ctx, "k"), cluster) == math.inf
    assert drive(read.ttl(ctx, "absent"), cluster) is None


def test_exists_says_whether_the_key_is_there_until_it_expires(cluster: Cluster) -> None:
    ctx = cluster.context()
    assert drive(read.exists(ctx, "k"), cluster) is False
    drive(write.set(ctx, "k", 1, 1), cluster)
    assert drive(read.exists(ctx, "k"), cluster) is True
    cluster.time.advance(1000)
    assert drive(read.exists(ctx, "k"), cluster) is False


@pytest.mark.parametrize("op", [read.ttl, read.exists])
def test_ttl_and_exists_move_no_value_and_are_no_use_of_it(cluster: Cluster, op: Any) -> None:
    put(cluster, 1, 1, 1)
    cluster.clear_log()
    assert drive(op(cluster.context(), "k"), cluster)
    assert {call.method for call in cluster.sent} == {"peek"}
    assert {node.store.counters.hits for node in cluster.nodes.values()} == {0}


def test_before_ttl_says_that_a_key_is_there_a_majority_holds_it(cluster: Cluster) -> None:
    x, y, z = cluster.owners("k")
    for node in (x, z):
        cluster[node].put("k", v(1), ttl=3000)
    assert drive(read.ttl(cluster.context(), "k"), cluster) == 3.0
    assert cluster[y].version("k") == v(1)


def test_ttl_of_what_no_majority_votes_for_is_that_of_an_absent_key(cluster: Cluster) -> None:
    _, y, z = put(cluster, 1, None, None)
    cluster[y].forget_slot("k", v(5))
    cluster[z].forget_slot("k", v(5))
    assert drive(read.ttl(cluster.context(), "k"), cluster) is None
    assert drive(read.exists(cluster.context(), "k"), cluster) is False


@pytest.mark.parametrize("op", [read.get, read.gets, read.ttl, read.exists])
def test_too_few_owners_are_a_quorum_error_for_every_read(cluster: Cluster, op: Any) -> None:
    for node in cluster.nodes.values():
        node.down = True
    with pytest.raises(QuorumError):
        drive(op(cluster.context(), "k"), cluster)


@pytest.mark.parametrize("op", [read.get, read.gets, read.ttl, read.exists])
@pytest.mark.parametrize(("key", "error"), [("", InvalidKey), (b"x" * 1025, InvalidKey), (None, TypeError)])
def test_a_wrong_key_sends_nothing(cluster: Cluster, op: Any, key: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        drive(op(cluster.context(), key), cluster)
    assert not cluster.sent


# --- what does not decode, and the books ------------------------------------------------------------------------------


def put_undecodable(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        node.store.set(full("k"), v(1), b"\xc1", BROKEN_FLAGS, None, 0)


def test_a_value_that_does_not_decode_is_a_counted_miss(cluster: Cluster) -> None:
    put_undecodable(cluster)
    ctx = cluster.context()
    assert get(cluster, ctx) == "nothing"
    assert drive(read.gets(ctx, "k"), cluster) is None
    counters = ctx.shared.counters
    assert (counters.hits, counters.misses, counters.undecodable) == (0, 2, 2)


def test_a_pickled_value_is_a_miss_for_those_who_did_not_name_pickle(cluster: Cluster) -> None:
    drive(write.set(cluster.context(codec=Codec("pickle")), "k", {1, 2}), cluster)
    assert get(cluster) == "nothing"
    assert get(cluster, cluster.context(codec=Codec("pickle"))) == {1, 2}


def test_hits_and_misses_are_counted(cluster: Cluster) -> None:
    put(cluster, 1, 1, 1)
    ctx = cluster.context()
    get(cluster, ctx)
    drive(read.gets(ctx, "k"), cluster)
    drive(read.get(ctx, "absent"), cluster)
    drive(read.gets(ctx, "absent"), cluster)
    assert (ctx.shared.counters.hits, ctx.shared.counters.misses) == (2, 2)


# --- all rules together -----------------------------------------------------------------------------------------------


class Trouble:
    """Runs operations one after another over a network and nodes that fail at random, and remembers what was promised:
    the highest version that was acknowledged or returned."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.cluster = Cluster()
        self.clients = [self.cluster.context(skew=skew, turn=n) for n, skew in enumerate((0, -20_000, 20_000))]
        self.held_back: list[Call] = []
        self.promised: Version = ZERO
        self.hits = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.cluster.time.advance(self.random.randrange(50))
            ctx = self.random.choice(self.clients)
            self.random.choices([self.read, self.set, self.delete, self.misfortune], [5, 4, 1, 3])[0](ctx)

    def read(self, ctx: Context) -> None:
        found = self._drive(read_record(ctx, b"k"))
        if isinstance(found, Record):
            assert found.version >= self.promised, "older than what was acknowledged or returned before"
            self.promised = found.version
            self.hits += 1

    def set(self, ctx: Context) -> None:
        self._acknowledged(self._drive(write.set(ctx, "k", "x", self.random.choice([None, None, 0.2]))))

    def delete(self, ctx: Context) -> None:
        done = self._drive(
            write.write(ctx, "delete", b"k", lambda node, version: ctx.call(node, "delete", b"k", version))
        )
        self._acknowledged(None if done is None else done[0])

    def _acknowledged(self, version: Version | None) -> None:
        if version is not None:
            assert version > self.promised, "acknowledged, though an earlier value hides it"
            self.promised = version

    def misfortune(self, _: Context | None = None) -> None:
        node = self.random.choice(list(self.cluster.nodes.values()))
        what = self.random.randrange(5)
        if what == 0 and all(other.store.all_complete for other in self.cluster.nodes.values()):
            node.restart()  # stays incomplete: completing is for the agent
        elif what == 1:
            node.break_link()
        elif what == 2 and node.version("k") is not None:
            node.evict("k")
        elif what == 3 and self.held_back:
            self._act(self.held_back.pop(self.random.randrange(len(self.held_back))))

    def _drive(self, op: Op[Any]) -> Any:
        try:
            hand = Hand(op, self.cluster)
            while not hand.done:
                self._round(hand)
                hand.resume()
        except QuorumError:
            return None
        return hand.result

    def _round(self, hand: Hand) -> None:
        while not hand.over:
            node = self.random.choice(hand.asked)
            if self.random.random() < 0.03:
                self.misfortune()
            fate = self.random.random()
            if fate < 0.75:
                hand.deliver(node)
            elif fate < 0.85:
                hand.fail(node)
            else:
                self.held_back.append(hand.call(node))  # and may reach the node much later
                hand.fail(node, sent=True)
        self.held_back += [call for call in hand.waiting if self.random.random() < 0.5]

    def _act(self, call: Call) -> None:
        try:
            self.cluster[call.node].act(call)
        except NodeError:
            return


@given(st.integers(0, 2**32))
def test_no_read_returns_anything_older_than_what_was_acknowledged_or_returned_before(seed: int) -> None:
    """Through lost, repeated and late messages, broken connections, skewed clocks, eviction, expiry and a restart."""
    Trouble(seed).run(40)


def test_the_random_runs_do_read_values() -> None:
    runs = [Trouble(seed) for seed in range(5)]
    for run in runs:
        run.run(40)
    assert sum(run.hits for run in runs) > 20
