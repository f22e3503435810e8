"""Filling the cache, driven by hand: a value computed before an invalidation is never stored after it."""

from __future__ import annotations

from typing import Any

import pytest

from dcache.codec import Codec
from dcache.errors import QuorumError
from dcache.ops import load, mutate, read, write
from dcache.ops.context import Context
from dcache.ops.load import Claim, Found
from tests.unit.ops_kit import Cluster, Hand, drive, full, v

KEY = "k"
SKEWS = [(0, 0), (20_000, -20_000), (-20_000, 20_000)]


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def claimed(cluster: Cluster, ctx: Context) -> Claim:
    claim = drive(load.lookup(ctx, KEY), cluster)
    assert isinstance(claim, Claim)
    return claim


def fill(ctx: Context, claim: Claim, value: Any, **options: Any) -> Any:
    return load.fill(ctx, KEY, claim, *Codec().encode(value), **options)


def got(cluster: Cluster) -> Any:
    return drive(read.get(cluster.context(read_quorum="all"), KEY), cluster)


# -- finding ----------------------------------------------------------------------------------------------------------


def test_a_value_that_is_there_is_found(cluster: Cluster) -> None:
    ctx = cluster.context()
    drive(write.set(ctx, KEY, "value"), cluster)
    data, flags = Codec().encode("value")
    assert drive(load.lookup(ctx, KEY), cluster) == Found("value", data, flags)
    assert drive(load.hit(ctx, KEY), cluster) == Found("value", data, flags)
    assert ctx.shared.counters.hits == 2


def test_a_plain_hit_claims_nothing(cluster: Cluster) -> None:
    assert drive(load.hit(cluster.context(), KEY), cluster) is None
    assert set(cluster.asked()) == set(cluster.asked("get"))


def test_what_no_longer_decodes_is_no_hit_and_is_computed_anew(cluster: Cluster) -> None:
    ctx = cluster.context()
    for name in cluster.owners(KEY):
        cluster[name].store.set(full(KEY), v(-5), b"\xc1", 2, None, 0)
    assert drive(load.hit(ctx, KEY), cluster) is None
    claim = claimed(cluster, ctx)
    assert ctx.shared.counters.undecodable == 2
    assert drive(fill(ctx, claim, "new"), cluster) is True
    assert got(cluster) == "new"


def test_a_miss_is_claimed_and_filled(cluster: Cluster) -> None:
    ctx = cluster.context()
    claim = claimed(cluster, ctx)
    assert len(claim.promises) == 2
    assert drive(fill(ctx, claim, "computed", ttl=5), cluster) is True
    assert got(cluster) == "computed"
    assert drive(read.ttl(ctx, KEY), cluster) == pytest.approx(5)
    assert (ctx.shared.counters.misses, ctx.shared.counters.fills) == (1, 1)


def test_the_owners_that_were_not_waited_for_are_claimed_at_too(cluster: Cluster) -> None:
    """So that the fill can be stored by all of them."""
    ctx = cluster.context()
    hand = Hand(load.lookup(ctx, KEY), cluster)
    first, second, third = cluster.owners(KEY)
    hand.deliver(first, second)
    hand.resume()
    assert [(call.node, call.method) for call in hand.detached] == [(third, "claim")]
    claim = hand.finish()
    drive(fill(ctx, claim, "computed"), cluster)
    assert cluster[third].value(KEY) == "computed"


def test_a_claim_needs_a_majority_that_answers(cluster: Cluster) -> None:
    for name in cluster.owners(KEY)[:2]:
        cluster[name].down = True
    with pytest.raises(QuorumError):
        drive(load.lookup(cluster.context(), KEY), cluster)


# -- invalidation during the computation ------------------------------------------------------------------------------


@pytest.mark.parametrize(("filler", "writer"), SKEWS)
def test_a_delete_during_the_computation_wins(cluster: Cluster, filler: int, writer: int) -> None:
    """Whatever the clocks say."""
    ctx = cluster.context(skew=filler)
    claim = claimed(cluster, ctx)
    drive(write.delete(cluster.context(skew=writer), KEY), cluster)
    assert drive(fill(ctx, claim, "stale"), cluster) is False
    assert ctx.shared.counters.fills_refused == 1
    assert got(cluster) is None


@pytest.mark.parametrize(("filler", "writer"), SKEWS)
def test_a_set_during_the_computation_wins(cluster: Cluster, filler: int, writer: int) -> None:
    ctx = cluster.context(skew=filler)
    claim = claimed(cluster, ctx)
    drive(write.set(cluster.context(skew=writer), KEY, "set"), cluster)
    assert drive(fill(ctx, claim, "stale"), cluster) is False
    assert got(cluster) == "set"


@pytest.mark.parametrize(("filler", "writer"), SKEWS)
@pytest.mark.parametrize("missed", [0, 1, 2])
def test_a_delete_that_missed_one_owner_wins_at_the_majority(
    cluster: Cluster, filler: int, writer: int, missed: int
) -> None:
    """Where the fill is stored all the same, no strict read returns it."""
    ctx = cluster.context(skew=filler)
    claim = claimed(cluster, ctx)
    away = cluster[cluster.owners(KEY)[missed]]
    away.down = True
    drive(write.delete(cluster.context(skew=writer), KEY), cluster)
    away.down = False
    assert drive(fill(ctx, claim, "stale"), cluster) is False
    for turn in range(3):
        assert drive(read.get(cluster.context(turn=turn), KEY), cluster) is None


def test_the_node_refuses_a_fill_without_its_promise(cluster: Cluster) -> None:
    """An owner that forgot its promise does not store the value."""
    ctx = cluster.context()
    claim = claimed(cluster, ctx)
    for name in cluster.owners(KEY):
        cluster[name].store.promises.void(full(KEY))
    assert drive(fill(ctx, claim, "computed"), cluster) is False
    assert [cluster[name].value(KEY) for name in cluster.owners(KEY)] == [None] * 3


def test_a_refused_fill_is_not_repeated(cluster: Cluster) -> None:
    ctx = cluster.context()
    claim = claimed(cluster, ctx)
    drive(write.delete(cluster.context(), KEY), cluster)
    cluster.clear_log()
    drive(fill(ctx, claim, "stale"), cluster)
    assert sorted(cluster.asked()) == sorted(cluster.owners(KEY))
    assert cluster.sleeps == []


def test_a_fill_that_too_few_take_is_refused(cluster: Cluster) -> None:
    ctx = cluster.context()
    claim = claimed(cluster, ctx)
    for name in cluster.owners(KEY)[:2]:
        cluster[name].down = True
    assert drive(fill(ctx, claim, "computed"), cluster) is False
    assert ctx.shared.counters.fills_refused == 1


# -- promises that do not suffice -------------------------------------------------------------------------------------


def test_with_promises_of_fewer_than_a_majority_no_fill_is_sent(cluster: Cluster) -> None:
    """The claims that are delivered late were made during the computation: they come after its beginning."""
    ctx = cluster.context()
    first, *_ = cluster.owners(KEY)
    changing = Hand(mutate.add(cluster.context(), KEY, 1), cluster)
    changing.deliver(first)  # a young ballot stands there
    claim = claimed(cluster, ctx)
    assert len(claim.promises) == 1
    cluster.clear_log()
    assert drive(fill(ctx, claim, "computed"), cluster) is False
    assert cluster.sent == []
    assert ctx.shared.counters.fills_refused == 1


def test_promises_over_broken_connections_do_not_count(cluster: Cluster) -> None:
    """The process that gave one may have started anew, empty."""
    ctx = cluster.context()
    claim = claimed(cluster, ctx)
    cluster[claim.promises[0].node].break_link()
    cluster.clear_log()
    assert drive(fill(ctx, claim, "computed"), cluster) is False
    assert cluster.sent == []


def test_an_incomplete_owner_promises_nothing_that_counts(cluster: Cluster) -> None:
    first, second, third = cluster.owners(KEY)
    cluster[first].restart()
    claim = claimed(cluster, cluster.context())
    assert {promise.node for promise in claim.promises} == {second, third}


def test_available_mode_fills_with_one_promise() -> None:
    cluster = Cluster()
    ctx = cluster.available()
    for name in cluster.owners(KEY)[1:]:
        cluster[name].down = True
    claim = claimed(cluster, ctx)
    assert len(claim.promises) == 1
    assert drive(fill(ctx, claim, "computed"), cluster) is True


# -- several who compute ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [-20_000, 0, 20_000])
def test_two_who_compute_in_turns_do_not_refuse_each_other_for_ever(cluster: Cluster, skew: int) -> None:
    """Claims stand side by side: whoever ends first may store."""
    one, other = cluster.context(), cluster.context(skew=skew)
    first = claimed(cluster, one)
    second = claimed(cluster, other)
    assert drive(fill(one, first, "first"), cluster) is True
    drive(fill(other, second, "second"), cluster)
    assert got(cluster) in ("first", "second")


@pytest.mark.parametrize("skew", [-20_000, 0, 20_000])
@pytest.mark.parametrize("ends", [0, 1])
def test_of_two_who_compute_either_may_store_its_value(cluster: Cluster, skew: int, ends: int) -> None:
    """The other one may never end."""
    contexts = [cluster.context(), cluster.context(skew=skew)]
    claims = [claimed(cluster, ctx) for ctx in contexts]
    assert drive(fill(contexts[ends], claims[ends], "computed"), cluster) is True
    assert got(cluster) == "computed"


@pytest.mark.parametrize("skew", [-20_000, 20_000])
def test_the_delete_is_above_all_claims_that_stand_side_by_side(cluster: Cluster, skew: int) -> None:
    one, other = cluster.context(), cluster.context(skew=skew)
    first, second = claimed(cluster, one), claimed(cluster, other)
    drive(write.delete(cluster.context(skew=-20_000), KEY), cluster)
    assert drive(fill(one, first, "stale"), cluster) is False
    assert drive(fill(other, second, "stale"), cluster) is False
    assert got(cluster) is None


def test_a_record_that_nobody_may_return_does_not_keep_its_key_from_being_filled(cluster: Cluster) -> None:
    """One of two live owners holds it, the other has evicted it."""
    first, second, third = cluster.owners(KEY)
    for name in (first, second):
        cluster[name].put(KEY, v(-5), "old")
    cluster[second].evict(KEY)
    cluster[third].down = True
    ctx = cluster.context()
    claim = claimed(cluster, ctx)
    assert {promise.node for promise in claim.promises} == {first, second}
    assert drive(fill(ctx, claim, "new"), cluster) is True
    assert drive(read.get(ctx, KEY), cluster) == "new"


# -- computing anew ---------------------------------------------------------------------------------------------------


def test_a_key_that_is_held_can_be_claimed_and_replaced(cluster: Cluster) -> None:
    ctx = cluster.context()
    drive(write.set(ctx, KEY, "old"), cluster)
    claim = drive(load.reclaim(ctx, KEY), cluster)
    assert got(cluster) == "old", "it can be read until the new value is there"
    assert drive(fill(ctx, claim, "new"), cluster) is True
    assert got(cluster) == "new"


@pytest.mark.parametrize(("filler", "writer"), SKEWS)
def test_a_set_while_a_value_is_computed_anew_wins(cluster: Cluster, filler: int, writer: int) -> None:
    ctx = cluster.context(skew=filler)
    drive(write.set(ctx, KEY, "old"), cluster)
    claim = drive(load.reclaim(ctx, KEY), cluster)
    drive(write.set(cluster.context(skew=writer), KEY, "set"), cluster)
    assert drive(fill(ctx, claim, "stale"), cluster) is False
    assert got(cluster) == "set"


def test_a_change_during_the_computation_wins(cluster: Cluster) -> None:
    ctx = cluster.context(skew=-10_000)
    claim = claimed(cluster, ctx)
    assert drive(mutate.add(cluster.context(), KEY, "added"), cluster) is True
    assert drive(fill(ctx, claim, "stale"), cluster) is False
    assert got(cluster) == "added"


def test_a_slot_that_forgot_something_of_a_faster_clock_can_still_be_filled(cluster: Cluster) -> None:
    """The claim is made once more, above the floors."""
    for name in cluster.owners(KEY):
        cluster[name].forget_slot(KEY, v(20_000))
    ctx = cluster.context()
    claim = claimed(cluster, ctx)
    assert claim.version > v(20_000)
    assert drive(fill(ctx, claim, "computed"), cluster) is True
    assert got(cluster) == "computed"
