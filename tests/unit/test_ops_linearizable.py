"""Linearizable writes: the newest version first, then one above it, never a second one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dcache.errors import QuorumError
from dcache.ops import batch, cluster, load, mutate, read, write
from dcache.ops.context import Context, Options
from dcache.ops.effects import Op
from dcache.ops.linearizable import TopRound
from dcache.record import version_milliseconds
from dcache.wire import Status
from tests.unit.ops_kit import Cluster, Hand, drive, v

KEY = "k"
HOUR = 3_600_000
Writer = Callable[[Context], Op[Any]]


@pytest.fixture
def nodes() -> Cluster:
    return Cluster()


def linearizable(nodes: Cluster, **options: Any) -> Context:
    return nodes.context(consistency="linearizable", **options)


def set_one(ctx: Context) -> Op[Any]:
    return write.set(ctx, KEY, "new")


def set_many(ctx: Context) -> Op[Any]:
    return batch.set_many(ctx, {KEY: "new"})


def delete_one(ctx: Context) -> Op[Any]:
    return write.delete(ctx, KEY)


def delete_many(ctx: Context) -> Op[Any]:
    return batch.delete_many(ctx, [KEY])


WRITERS = pytest.mark.parametrize("writer", [set_one, set_many, delete_one, delete_many])
SETTERS = pytest.mark.parametrize("writer", [set_one, set_many])


def got(nodes: Cluster) -> Any:
    return drive(read.get(nodes.context(read_quorum="all"), KEY), nodes)


def in_doubt(op: Callable[[], Any]) -> bool | None:
    """Whether a set is in doubt; None if it went well."""
    try:
        result = op()
    except QuorumError as error:
        return error.in_doubt
    return next((error.in_doubt for error in result.values()), None) if isinstance(result, dict) else None


# --- two rounds -------------------------------------------------------------------------------------------------------


@WRITERS
def test_a_write_asks_a_quorum_and_writes_to_all_owners(nodes: Cluster, writer: Writer) -> None:
    """With three replicas five calls, where a strict write has three."""
    drive(writer(linearizable(nodes)), nodes)
    first, *_ = {call.method for call in nodes.sent if call.method.startswith("top")}
    assert len(nodes.asked(first)) == 2
    assert len(nodes.sent) == 5


def test_a_batch_takes_as_many_calls_as_one_key(nodes: Cluster) -> None:
    drive(batch.set_many(linearizable(nodes), {f"k{n}": n for n in range(100)}), nodes)
    assert sorted(nodes.asked("set_many")) == ["a", "b", "c"]
    assert len(nodes.asked("top_many")) <= 3


@pytest.mark.parametrize("skew", [-3 * HOUR, 0, 3 * HOUR])
def test_the_version_is_just_above_the_newest_whatever_the_clock_says(nodes: Cluster, skew: int) -> None:
    for node in nodes.nodes.values():
        node.put(KEY, v(-70), "old")
    version = drive(write.set(linearizable(nodes, skew=skew), KEY, "new"), nodes)
    assert version > v(-70)
    assert version_milliseconds(version) == version_milliseconds(v(-70))
    assert got(nodes) == "new"


@pytest.mark.parametrize("skew", [-3 * HOUR, 3 * HOUR])
@WRITERS
def test_clocks_that_are_hours_off_keep_no_write_out(nodes: Cluster, writer: Writer, skew: int) -> None:
    drive(write.set(nodes.context(), KEY, "old"), nodes)
    drive(writer(linearizable(nodes, skew=skew)), nodes)
    assert got(nodes) == ("new" if writer in (set_one, set_many) else None)


def test_the_version_is_above_what_was_forgotten(nodes: Cluster) -> None:
    for node in nodes.nodes.values():
        node.forget_slot(KEY, v(5))
    assert drive(write.set(linearizable(nodes), KEY, "new"), nodes) > v(5)
    assert got(nodes) == "new"


def test_the_version_is_above_what_was_promised(nodes: Cluster) -> None:
    claim = drive(load.lookup(nodes.context(), KEY), nodes)
    assert isinstance(claim, load.Claim)
    assert drive(write.set(linearizable(nodes, skew=-HOUR), KEY, "new"), nodes) > claim.version
    assert len(nodes.asked("set")) == 3


def test_two_writes_of_one_client_above_the_same_newest_have_different_versions(nodes: Cluster) -> None:
    ctx = linearizable(nodes)
    one, other = Hand(set_one(ctx), nodes), Hand(set_one(ctx), nodes)
    assert one.finish() != other.finish()


def test_an_owner_that_does_not_answer_is_replaced_in_the_first_round(nodes: Cluster) -> None:
    nodes[nodes.owners(KEY)[0]].down = True
    drive(set_one(linearizable(nodes)), nodes)
    assert len(nodes.asked("top")) == 3
    assert sum(node.value(KEY) == "new" for node in nodes.nodes.values()) == 2


def test_an_incomplete_owner_does_not_count_in_the_first_round(nodes: Cluster) -> None:
    x, y, z = nodes.owners(KEY)
    nodes[x].store.doubt()
    hand = Hand(set_one(linearizable(nodes)), nodes)
    assert hand.deliver(x) == [z]
    hand.deliver(y)
    assert not hand.over
    hand.deliver(z)
    assert hand.over


@SETTERS
def test_without_a_quorum_to_ask_nothing_is_written_and_nothing_in_doubt(nodes: Cluster, writer: Writer) -> None:
    for node in nodes.owners(KEY)[:2]:
        nodes[node].down = True
    assert in_doubt(lambda: drive(writer(linearizable(nodes)), nodes)) is False
    assert not nodes.asked("set")
    assert not nodes.asked("set_many")


def test_while_the_ring_changes_both_rings_are_asked_and_written(nodes: Cluster) -> None:
    nodes.begin("abcd")
    nodes["d"].store.complete(range(1 << 14))
    key = nodes.moving_key()
    nodes["d"].put(key, v(9), "newest")
    hand = Hand(write.set(linearizable(nodes), key, "new"), nodes)
    assert isinstance(hand.round, TopRound)
    hand.finish()
    for owners in nodes.both_owners(key):
        assert sum(nodes[name].value(key) == "new" for name in owners) >= 2


# --- overtaken --------------------------------------------------------------------------------------------------------


@SETTERS
def test_a_write_that_is_beaten_by_another_is_done_and_not_made_again(nodes: Cluster, writer: Writer) -> None:
    hand = Hand(writer(linearizable(nodes)), nodes)
    hand.deliver(*hand.asked)
    hand.resume()
    drive(write.set(linearizable(nodes), KEY, "first"), nodes)
    drive(write.set(linearizable(nodes), KEY, "second"), nodes)
    sent = len(nodes.sent)
    hand.finish()
    assert len(nodes.sent) == sent
    assert got(nodes) == "second"


def test_a_write_that_meets_a_floor_that_rose_meanwhile_is_done_and_forgotten(nodes: Cluster) -> None:
    hand = Hand(set_one(linearizable(nodes)), nodes)
    hand.deliver(*hand.asked)
    hand.resume()
    for node in nodes.nodes.values():
        node.forget_slot(KEY, v(5))
    hand.finish()
    assert got(nodes) is None


def test_a_second_answer_of_something_newer_does_not_make_up_for_one_that_does_not_count(nodes: Cluster) -> None:
    hand = Hand(set_one(linearizable(nodes)), nodes)
    hand.deliver(*hand.asked)
    hand.resume()
    x, y, z = nodes.owners(KEY)
    hand.reply(x, (True, int(Status.NEWER), v(9)))
    hand.reply(y, (False, int(Status.NEWER), v(9)))
    assert not hand.over
    hand.fail(z)
    with pytest.raises(QuorumError, match="1 of 2"):
        hand.resume()


# --- promises ---------------------------------------------------------------------------------------------------------


@SETTERS
def test_a_write_that_a_claim_kept_out_is_settled_with_a_ballot(nodes: Cluster, writer: Writer) -> None:
    """Two owners promised a claim after they had told their tops, the third stored the value: it is that value's one
    place in the order."""
    hand = Hand(writer(linearizable(nodes)), nodes)
    hand.deliver(*hand.asked)
    hand.resume()
    x, y, z = nodes.owners(KEY)
    claiming = Hand(load.lookup(nodes.context(), KEY), nodes)
    claiming.deliver(x, y)
    claim = claiming.resume().result
    assert isinstance(claim, load.Claim)
    hand.deliver(z)
    hand.finish()
    assert got(nodes) == "new"
    assert drive(load.fill(nodes.context(), KEY, claim, b"old", 0), nodes) is False
    assert got(nodes) == "new"


@pytest.mark.parametrize("writer", [delete_one, delete_many])
def test_a_delete_that_a_claim_kept_out_voids_it(nodes: Cluster, writer: Writer) -> None:
    hand = Hand(writer(linearizable(nodes)), nodes)
    hand.deliver(*hand.asked)
    hand.resume()
    claim = drive(load.lookup(nodes.context(), KEY), nodes)
    assert isinstance(claim, load.Claim)
    hand.finish()
    assert drive(load.fill(nodes.context(), KEY, claim, b"old", 0), nodes) is False
    assert got(nodes) is None


def caught_by_a_change(nodes: Cluster) -> Hand:
    """The second round of a set, with nothing delivered yet, and two owners that accepted an `incr` since the first."""
    drive(write.set(nodes.context(skew=-50), KEY, 1), nodes)
    setting = Hand(write.set(linearizable(nodes), KEY, 100), nodes)
    setting.deliver(*setting.asked)
    setting.resume()
    counting = Hand(mutate.incr(nodes.context(), KEY), nodes)
    x, y, _ = nodes.owners(KEY)
    counting.deliver(x, y)
    counting.resume()
    counting.deliver(x, y)
    assert counting.resume().result == 2
    return setting


def test_a_set_is_not_lost_under_a_change_that_did_not_see_it(nodes: Cluster) -> None:
    """Nobody stored it yet, so it comes after the change."""
    setting, (x, y, z) = caught_by_a_change(nodes), nodes.owners(KEY)
    setting.fail(z)
    setting.deliver(x, y)
    setting.resume().finish()
    assert got(nodes) == 100


def test_a_set_that_some_stored_before_a_change_that_may_have_seen_it_is_in_doubt(nodes: Cluster) -> None:
    """Were it made again it might be applied twice: before the change and after."""
    setting, (_, _, z) = caught_by_a_change(nodes), nodes.owners(KEY)
    setting.deliver(z)
    assert in_doubt(setting.finish) is True
    assert got(nodes) == 2


def test_a_set_is_in_doubt_when_too_few_are_left_to_promise_it_anything(nodes: Cluster) -> None:
    hand = Hand(set_one(linearizable(nodes)), nodes)
    hand.deliver(*hand.asked)
    hand.resume()
    drive(load.lookup(nodes.context(), KEY), nodes)
    x, y, z = nodes.owners(KEY)
    hand.deliver(x, y)
    nodes[y].down = nodes[z].down = True
    assert in_doubt(hand.finish) is True


# --- clocks of nodes --------------------------------------------------------------------------------------------------


def test_a_version_that_most_nodes_find_too_far_ahead_fails_in_doubt_until_it_is_read(nodes: Cluster) -> None:
    """An owner whose clock is an hour ahead holds what the others would not have taken, and do not go above.  A read
    brings them there."""
    nodes[nodes.owners(KEY)[0]].put(KEY, v(HOUR), "ahead")
    ctx = linearizable(nodes)
    with pytest.raises(QuorumError) as caught:
        drive(set_one(ctx), nodes)
    assert caught.value.in_doubt
    assert got(nodes) == "new"
    drive(write.set(ctx, KEY, "newer"), nodes)
    assert got(nodes) == "newer"


# --- clear ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [-3 * HOUR, 3 * HOUR])
def test_a_clear_goes_above_the_newest_whatever_the_clock_says(nodes: Cluster, skew: int) -> None:
    for node in nodes.nodes.values():
        node.put(KEY, v(-70), "old")
    drive(cluster.clear(linearizable(nodes, skew=skew)), nodes)
    assert got(nodes) is None
    assert {version_milliseconds(node.floor(KEY)) for node in nodes.nodes.values()} == {version_milliseconds(v(-70))}


# --- the option -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quorums", [{"read_quorum": "one"}, {"write_quorum": "one"}, {"write_quorum": 1}])
def test_a_single_owner_cannot_make_it_linearizable(quorums: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="needs majorities"):
        Options(consistency="linearizable", **quorums)


@pytest.mark.parametrize("quorum", ["read_quorum", "write_quorum"])
def test_less_than_a_majority_is_told_when_the_number_of_owners_is_known(quorum: str) -> None:
    nodes = Cluster("abcde", replicas=5)
    with pytest.raises(ValueError, match="keys have 5 owners"):
        linearizable(nodes, **{quorum: 2})
    linearizable(nodes, **{quorum: 3})


def test_one_replica_is_a_majority_of_itself() -> None:
    nodes = Cluster(replicas=1)
    drive(set_one(linearizable(nodes)), nodes)
    assert got(nodes) == "new"
