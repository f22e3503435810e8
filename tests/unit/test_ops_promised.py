"""A write that meets a promise is not overtaken by it: what was promised may be older than the write, or never come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dcache.codec import Codec
from dcache.errors import QuorumError
from dcache.ops import batch, load, mutate, read, write
from dcache.ops.context import Context
from dcache.ops.effects import Op
from dcache.ops.write import ATTEMPTS
from dcache.wire import Status
from tests.unit.ops_kit import Cluster, Hand, drive, full, v

KEY = "k"
Writer = Callable[[Context], Op[Any]]


def set_one(ctx: Context) -> Op[Any]:
    return write.set(ctx, KEY, "new")


def set_many(ctx: Context) -> Op[Any]:
    return batch.set_many(ctx, {KEY: "new", "other": 1})


def got(cluster: Cluster) -> Any:
    return drive(read.get(cluster.context(read_quorum="all"), KEY), cluster)


@pytest.mark.parametrize("writer", [set_one, set_many])
def test_a_set_refused_for_one_promise_after_another_is_made_until_it_is_stored(writer: Writer) -> None:
    """The second promise belongs to an `add` that finds the key and stores nothing: nobody overtakes the set."""
    cluster = Cluster()
    for name in "abc":
        cluster[name].put(KEY, v(-50_000), "old")
    Hand(mutate.add(cluster.context(), KEY, 1), cluster).deliver("a", "b", "c")
    setting = Hand(writer(cluster.context(skew=-20_000)), cluster)
    setting.deliver("a", "b", "c")
    cluster.time.advance(1000)  # the first ballot is young no more
    adding = Hand(mutate.add(cluster.context(skew=20_000), KEY, 1), cluster)
    adding.deliver("a", "b", "c")
    setting.resume().finish()
    assert adding.resume().result is False
    assert got(cluster) == "new"


def test_a_delete_refused_for_one_claim_after_another_voids_both() -> None:
    cluster = Cluster()
    slow, fast = cluster.context(), cluster.context(skew=10_000)
    first = drive(load.lookup(slow, KEY), cluster)
    assert isinstance(first, load.Claim)
    deleting = Hand(write.delete(cluster.context(skew=-20_000), KEY), cluster)
    deleting.deliver("a", "b", "c")
    drive(load.lookup(fast, KEY), cluster)
    deleting.resume().finish()
    assert drive(load.fill(slow, KEY, first, *Codec().encode("stale")), cluster) is False
    assert got(cluster) is None


@pytest.mark.parametrize("forget", ["time", "number"])
def test_a_forgotten_promise_leaves_its_barrier(forget: str) -> None:
    """A value accepted elsewhere for that promise must not be newer than the delete that came in below it."""
    cluster = Cluster()
    ctx = cluster.context(skew=20_000)
    claim = drive(load.lookup(ctx, KEY), cluster)
    assert isinstance(claim, load.Claim)
    for name in "ab":
        promises = cluster[name].store.promises
        if forget == "time":
            promises._life = 0
        else:
            promises._most = 1
            promises.claim(full("other"), v(0), cluster.time.ms)
        assert cluster[name].store.promises.find(full(KEY), cluster.time.ms) is None
    cluster["c"].down = True
    drive(write.delete(cluster.context(skew=-20_000), KEY), cluster)
    cluster["c"].down = False
    assert drive(load.fill(ctx, KEY, claim, *Codec().encode("stale")), cluster) is False
    assert cluster["c"].value(KEY) == "stale", "where the promise still stood"
    for turn in range(3):
        assert drive(read.get(cluster.context(turn=turn), KEY), cluster) is None


def test_attempts_are_bounded_and_their_failure_says_why() -> None:
    cluster = Cluster()
    hand = Hand(write.set(cluster.context(), KEY, 1), cluster)
    for n in range(ATTEMPTS):
        for name in "ab":
            hand.reply(name, (True, int(Status.PROMISED), v(n)))
        if n < ATTEMPTS - 1:
            hand.fail("c")
            hand.resume()
    hand.fail("c")
    with pytest.raises(QuorumError, match="newer"):
        hand.resume()
    assert len(cluster.sent) == 3 * ATTEMPTS
