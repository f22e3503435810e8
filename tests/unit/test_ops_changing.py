"""While the ring changes every operation needs its quorums among the owners on the old ring and on the next one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from dcache.codec import Codec
from dcache.errors import DcacheError, DeadlineExceeded, QuorumError
from dcache.membership import Health
from dcache.ops import batch, cluster, load, mutate, read, write
from dcache.ops.context import Context
from dcache.ops.effects import Op
from dcache.ops.load import Claim
from dcache.ops.quorum import JointQuorum, Quorum
from dcache.record import ZERO
from tests.unit.ops_kit import Cluster, Hand, drive, v


@attrs.frozen
class Change:
    """A cluster whose ring changes, and a key that moves: who owns it on `both` rings, who on the `old` one only and
    who on the `next` one only."""

    cluster: Cluster
    key: str
    both: tuple[str, ...]
    old: str
    next: str

    @property
    def owners(self) -> tuple[str, ...]:
        return *self.both, self.old, self.next

    def down(self, *names: str) -> None:
        for name in names:
            self.cluster[name].down = True


def changing(before: str = "abc", after: str = "abcd", replicas: int = 3) -> Change:
    """By default d joins a, b and c; it is empty and has completed nothing yet."""
    nodes = Cluster(before, replicas)
    nodes.begin(after)
    key = nodes.moving_key()
    old, following = nodes.both_owners(key)
    (left,), (come,) = {*old} - {*following}, {*following} - {*old}
    return Change(nodes, key, tuple(node for node in old if node in following), left, come)


@pytest.fixture(params=[("abc", "abcd"), ("abcd", "abc")], ids=["join", "leave"])
def change(request: pytest.FixtureRequest) -> Change:
    """Everybody has completed."""
    made = changing(*request.param)
    for node in made.cluster.nodes.values():
        node.complete()
    return made


@pytest.fixture
def joining() -> Change:
    return changing()


def raising(op: Op[dict[Any, DcacheError]]) -> Op[None]:
    errors = yield from op
    for error in errors.values():
        raise error


def refreshed(ctx: Context, key: str) -> Op[bool]:
    claim = yield from load.reclaim(ctx, key)
    return (yield from load.fill(ctx, key, claim, *Codec().encode("new")))


READS: dict[str, Callable[[Context, str], Op[Any]]] = {
    "get": read.get,
    "gets": read.gets,
    "exists": read.exists,
    "ttl": read.ttl,
    "get_many": lambda ctx, key: batch.get_many(ctx, [key]),
    "lookup": load.lookup,
}
WRITES: dict[str, Callable[[Context, str], Op[Any]]] = {
    "set": lambda ctx, key: write.set(ctx, key, 5),
    "delete": write.delete,
    "set_many": lambda ctx, key: raising(batch.set_many(ctx, {key: 5})),
    "delete_many": lambda ctx, key: batch.delete_many(ctx, [key]),
    "add": lambda ctx, key: mutate.add(ctx, key, 5),
    "replace": lambda ctx, key: mutate.replace(ctx, key, 5),
    "incr": mutate.incr,
    "touch": lambda ctx, key: mutate.touch(ctx, key, 5),
    "reclaim": refreshed,
}
ON_KEYS = {**READS, **WRITES}
every_operation = pytest.mark.parametrize("operation", ON_KEYS.values(), ids=ON_KEYS)


# -- quorums on both rings ---------------------------------------------------------------------------------------------


@every_operation
def test_a_quorum_on_the_old_ring_alone_is_not_enough(change: Change, operation: Callable[..., Op[Any]]) -> None:
    change.down(change.both[0], change.next)
    with pytest.raises(QuorumError, match="on the next ring: 1 of 2 needed answers") as caught:
        drive(operation(change.cluster.context(), change.key), change.cluster)
    assert (caught.value.needed, caught.value.got) == (2, 1)


@every_operation
def test_a_quorum_on_the_next_ring_alone_is_not_enough(change: Change, operation: Callable[..., Op[Any]]) -> None:
    change.down(change.both[0], change.old)
    with pytest.raises(QuorumError, match="on the old ring: 1 of 2 needed answers"):
        drive(operation(change.cluster.context(), change.key), change.cluster)


@every_operation
@pytest.mark.parametrize("away", range(4))
def test_any_one_owner_may_be_away(change: Change, operation: Callable[..., Op[Any]], away: int) -> None:
    change.down(change.owners[away])
    drive(operation(change.cluster.context(), change.key), change.cluster)


@every_operation
def test_a_newcomer_that_has_not_completed_does_not_count(joining: Change, operation: Callable[..., Op[Any]]) -> None:
    drive(operation(joining.cluster.context(), joining.key), joining.cluster)
    joining.down(joining.both[0])
    with pytest.raises(QuorumError, match="on the next ring") as caught:
        drive(operation(joining.cluster.context(), joining.key), joining.cluster)
    assert "has not completed" in caught.value.reasons[joining.next]
    joining.cluster[joining.next].complete()
    drive(operation(joining.cluster.context(), joining.key), joining.cluster)


@pytest.mark.parametrize("replicas", [1, 2])
@every_operation
def test_with_fewer_replicas_nobody_can_stand_in_for_the_newcomer(
    operation: Callable[..., Op[Any]], replicas: int
) -> None:
    change = changing(replicas=replicas)
    with pytest.raises(QuorumError, match="on the next ring"):
        drive(operation(change.cluster.context(), change.key), change.cluster)
    change.cluster[change.next].complete()
    drive(operation(change.cluster.context(), change.key), change.cluster)


@every_operation
def test_a_key_that_does_not_move_needs_nothing_of_the_newcomer(
    joining: Change, operation: Callable[..., Op[Any]]
) -> None:
    nodes = joining.cluster
    key = next(key for key in map("s{}".format, range(999)) if "d" not in nodes.both_owners(key)[1])
    joining.down("d", nodes.both_owners(key)[0][0])
    drive(operation(nodes.context(), key), nodes)
    assert "d" not in nodes.asked()


def test_slots_that_do_not_move_go_by_one_quorum_that_all_share(joining: Change) -> None:
    ctx, nodes = joining.cluster.context(), joining.cluster
    keys = [key for key in map("s{}".format, range(99)) if "d" not in nodes.both_owners(key)[1]]
    assert len({id(ctx.quorums(key.encode())) for key in keys}) == 1
    assert ctx.quorums(keys[0].encode()).reads == Quorum(2)
    assert isinstance(ctx.quorums(joining.key.encode()).reads, JointQuorum)


def test_with_one_ring_all_keys_share_their_quorums() -> None:
    ctx = Cluster("abcde").context()
    assert len({id(ctx.quorums(b"k%d" % n)) for n in range(99)}) == 1


def test_a_write_acknowledged_while_the_ring_changes_is_read_before_and_after_it_is_taken_over(
    joining: Change,
) -> None:
    nodes = joining.cluster
    drive(write.set(nodes.context(), joining.key, "new"), nodes)
    nodes.take_over()
    joining.down(joining.both[1])
    with pytest.raises(QuorumError):
        drive(read.get(nodes.context(), joining.key), nodes)
    nodes[joining.next].complete()
    assert drive(read.get(nodes.context(), joining.key), nodes) == "new"


# -- whom to ask ------------------------------------------------------------------------------------------------------


def test_a_read_asks_first_those_who_own_the_key_on_both_rings(change: Change) -> None:
    nodes = change.cluster
    for turn in range(3):
        hand = Hand(read.get(nodes.context(turn=turn), change.key), nodes)
        assert {*hand.asked} == {*change.both}, "they are enough for both"
        assert hand.asked[0] == change.both[turn % 2], "they take turns"


def test_where_one_of_those_fails_an_owner_on_each_ring_takes_its_place(change: Change) -> None:
    hand = Hand(read.get(change.cluster.context(), change.key), change.cluster)
    assert hand.fail(change.both[0]) == [change.old, change.next]
    hand.deliver(change.both[1], change.old)
    assert not hand.over
    hand.deliver(change.next)
    assert hand.over


def test_only_spares_that_help_the_ring_that_lacks_are_asked(change: Change) -> None:
    nodes, (first, second) = change.cluster, change.both
    ctx = nodes.context()
    ctx.shared.backoff.slow(first, 0.0)
    hand = Hand(read.get(ctx, change.key), nodes)
    assert hand.asked == [second, change.old, change.next]
    assert hand.fail(change.old) == [first]
    hand.deliver(second, first)
    assert hand.over, "the next ring needs no third"


def test_a_hedge_is_sent_to_an_owner_that_helps(change: Change) -> None:
    nodes, (first, second) = change.cluster, change.both
    ctx = nodes.context()
    for name in (first, change.old):
        ctx.shared.backoff.slow(name, 0.0)
    hand = Hand(read.get(ctx, change.key), nodes)
    assert hand.asked == [second, change.next, first]
    hand.deliver(second, change.next)
    assert not hand.over
    (hedge,) = hand.round.hedge()
    assert hedge.node == change.old
    assert not hand.round.hedge(), "nobody is left"


def test_a_write_goes_to_the_owners_on_both_rings(change: Change) -> None:
    drive(write.set(change.cluster.context(), change.key, 1), change.cluster)
    assert sorted(change.cluster.asked("set")) == sorted(change.owners)


def test_an_operation_that_one_ring_makes_hopeless_ends_at_once(change: Change) -> None:
    hand = Hand(write.set(change.cluster.context(), change.key, 1), change.cluster)
    hand.fail(change.next)
    hand.deliver(change.old)
    assert not hand.over
    hand.fail(change.both[0])
    assert hand.over, "though the old ring might still have its quorum"
    with pytest.raises(QuorumError, match="next ring") as caught:
        hand.resume()
    assert caught.value.in_doubt


def test_an_acknowledgement_of_the_old_ring_does_not_stand_for_one_of_the_next(change: Change) -> None:
    hand = Hand(write.set(change.cluster.context(), change.key, 1), change.cluster)
    hand.deliver(change.both[0], change.old)
    assert not hand.over
    hand.deliver(change.next)
    assert hand.over


# -- reads: votes and write-back ---------------------------------------------------------------------------------------


def test_what_only_the_old_ring_holds_is_written_to_the_next_before_it_is_returned(change: Change) -> None:
    nodes, (first, second) = change.cluster, change.both
    for name in (second, change.old):
        nodes[name].put(change.key, v(1), "value")
    nodes[first].down = True
    hand = Hand(read.get(nodes.context(turn=1), change.key), nodes)
    hand.deliver(second)
    hand.fail(first)
    hand.deliver(change.old, change.next)
    hand.resume()
    assert [(call.node, call.method) for call in hand.waiting] == [(change.next, "copy")]
    assert not hand.over
    hand.deliver(change.next)
    assert hand.resume().result == "value"


def test_a_write_back_that_does_not_reach_the_next_ring_in_time_is_no_miss(change: Change) -> None:
    nodes, (first, second) = change.cluster, change.both
    for name in (second, change.old):
        nodes[name].put(change.key, v(1), "value")
    hand = Hand(read.get(nodes.context(turn=1), change.key), nodes)
    hand.deliver(second)
    hand.fail(first)
    hand.deliver(change.old, change.next)
    hand.resume().expire()
    with pytest.raises(DeadlineExceeded, match="on the next ring: 1 of 2"):
        hand.resume()


@pytest.mark.parametrize("get", [read.get, lambda ctx, key: batch.read_records(ctx, [key.encode()])])
def test_a_value_that_an_owner_on_the_next_ring_may_have_seen_overwritten_is_a_miss(
    change: Change, get: Callable[[Context, str], Op[Any]]
) -> None:
    """The old ring vouches for it; the next one, with one owner away, has no majority that does."""
    nodes, (first, second) = change.cluster, change.both
    for name in (second, change.old):
        nodes[name].put(change.key, v(1), "value")
    nodes[change.next].forget_slot(change.key, v(9))
    change.down(first)
    assert not drive(get(nodes.context(), change.key), nodes)


def test_a_batch_writes_back_to_the_ring_that_lacks(change: Change) -> None:
    nodes, (first, second) = change.cluster, change.both
    for name in (second, change.old):
        nodes[name].put(change.key, v(1), "value")
    change.down(first)
    assert drive(batch.get_many(nodes.context(), [change.key]), nodes) == {change.key: "value"}
    assert nodes[change.next].value(change.key) == "value"


# -- writes that meet something newer ----------------------------------------------------------------------------------


def test_a_write_that_is_overtaken_counts_on_both_rings(change: Change) -> None:
    nodes = change.cluster
    for name in change.owners:
        nodes[name].put(change.key, v(5_000), "newer")
    drive(write.set(nodes.context(), change.key, "mine"), nodes)
    assert drive(read.get(nodes.context(), change.key), nodes) == "mine", "made again above what was in its way"


def test_a_write_hears_a_majority_of_both_rings_before_it_is_made_again(change: Change) -> None:
    nodes, (first, second) = change.cluster, change.both
    for name in change.owners:
        nodes[name].put(change.key, v(5_000), "newer")
    hand = Hand(write.set(nodes.context(), change.key, "mine"), nodes)
    hand.deliver(first, change.old)
    assert not hand.over
    hand.fail(second)
    assert not hand.over, "the next ring has not told how high it is"
    hand.deliver(change.next)
    assert hand.over


# -- conditional changes and fills -------------------------------------------------------------------------------------


def test_a_conditional_change_decides_on_what_both_rings_vouch_for(change: Change) -> None:
    nodes, first = change.cluster, change.both[0]
    for name in change.owners[:3]:
        nodes[name].put(change.key, v(1), 7)
    nodes[change.next].forget_slot(change.key, v(9))
    change.down(first)
    assert drive(mutate.incr(nodes.context(), change.key), nodes) == 1, "it counts as absent"


def claim_of(change: Change, *promising: str) -> Claim:
    """A claim made before the ring began to change, promised by these."""
    nodes = Cluster("abc")
    nodes.nodes.update({name: change.cluster[name] for name in "abc"})
    nodes.learn(nodes.table)
    for name in "abc":
        nodes[name].down = name not in promising
    claim = drive(load.lookup(nodes.context(), change.key), nodes)
    for name in "abc":
        nodes[name].down = False
    change.cluster.learn(change.cluster.table)
    assert isinstance(claim, Claim)
    assert {promise.node for promise in claim.promises} == {*promising}
    return claim


def filled(change: Change, claim: Claim) -> bool:
    data, flags = Codec().encode("computed")
    return drive(load.fill(change.cluster.context(), change.key, claim, data, flags), change.cluster)


def test_a_claim_outlives_the_change_where_those_who_promised_are_a_majority_on_both_rings(joining: Change) -> None:
    assert filled(joining, claim_of(joining, *joining.both))


def test_a_claim_whose_promises_are_no_majority_on_the_next_ring_is_void(joining: Change) -> None:
    """Else an invalidation would meet none of them once the next ring alone is in force."""
    claim = claim_of(joining, joining.both[0], joining.old)
    assert not filled(joining, claim)
    assert joining.cluster.asked("accept") == []
    joining.cluster.take_over()
    assert not filled(joining, claim)


def test_a_claim_made_while_the_ring_changes_is_made_at_all_owners(change: Change) -> None:
    drive(load.lookup(change.cluster.context(), change.key), change.cluster)
    claims = [call.node for call in (*change.cluster.sent, *change.cluster.detached) if call.method == "claim"]
    assert {*claims} == {*change.owners}


# -- the whole cluster -------------------------------------------------------------------------------------------------


def test_a_clear_needs_a_majority_of_every_slot_on_both_rings(joining: Change) -> None:
    nodes = joining.cluster
    drive(cluster.clear(nodes.context()), nodes)
    joining.down("a")
    with pytest.raises(QuorumError, match="newest on the next ring: 2 of 3 needed answers"):
        drive(cluster.clear(nodes.context()), nodes)
    nodes["d"].complete()
    drive(cluster.clear(nodes.context()), nodes)
    assert all(nodes[name].floor("k") > ZERO for name in "bcd")


def test_a_cluster_is_ready_when_every_slot_is_on_both_rings(joining: Change) -> None:
    nodes = joining.cluster
    drive(cluster.wait_ready(nodes.context()), nodes)
    nodes["a"].silent = True
    hand = Hand(cluster.wait_ready(nodes.context()), nodes)
    hand.deliver("b", "c", "d")
    hand.expire()
    with pytest.raises(QuorumError, match="next ring: 2 of 3"):
        hand.resume()


def test_all_nodes_of_both_rings_are_asked_about_themselves(change: Change) -> None:
    nodes = change.cluster
    ctx = nodes.context()
    assert set(drive(cluster.ping(ctx), nodes)) == set("abcd")
    assert set(drive(cluster.stats(ctx), nodes)["nodes"]) == set("abcd")
    assert {row.name for row in drive(cluster.members(ctx), nodes)} == set("abcd")
    assert list(drive(cluster.holders(ctx, change.key), nodes)) == list(change.owners)


def test_a_scan_needs_a_majority_of_every_slot_on_both_rings(change: Change) -> None:
    nodes = change.cluster
    drive(write.set(nodes.context(), change.key, 1), nodes)
    change.down("d")
    keys, _ = drive(cluster.scan_page(nodes.context(), b"", None), nodes)
    assert set(keys) == {change.key.encode()}
    change.down("a")
    with pytest.raises(QuorumError, match="scan on the"):
        drive(cluster.scan_page(nodes.context(), b"", None), nodes)


def test_a_scan_begins_anew_when_the_ring_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has not seen may have moved to a node that has told all it had."""
    monkeypatch.setattr("dcache.node.scans.SCAN_CHUNK", 2)
    nodes = Cluster("abc", replicas=1)
    keys = [f"k{n}" for n in range(20)]
    drive(batch.set_many(nodes.context(), dict.fromkeys(keys, 1)), nodes)
    page, state = drive(cluster.scan_page(nodes.context(), b"", None), nodes)
    nodes.begin("abcd")
    for key in keys:
        owner, newcomer = nodes.both_owners(key)
        if owner != newcomer:
            nodes["d"].put(key, v(1))
            nodes[owner[0]].evict(key)
    nodes["d"].complete()
    nodes.take_over()
    found = set(page)
    while state is not None:
        page, state = drive(cluster.scan_page(nodes.context(), b"", state), nodes)
        found.update(page)
    assert found == {key.encode() for key in keys}


def test_a_scan_in_available_mode_whose_ring_is_not_in_force_fails_instead_of_ending(joining: Change) -> None:
    nodes = joining.cluster
    ctx = nodes.available()
    nodes.take_over()
    with pytest.raises(QuorumError, match="wrong ring"):
        drive(cluster.scan_page(ctx, b"", None), nodes)


# -- available mode ----------------------------------------------------------------------------------------------------


def test_available_mode_writes_to_the_owners_on_both_rings_and_is_content_with_any(change: Change) -> None:
    nodes = change.cluster
    ctx = nodes.available()
    assert list(ctx.writers(change.key.encode())) == list(change.owners)
    change.down(*change.owners[:3])
    drive(write.set(ctx, change.key, 5), nodes)
    assert drive(read.get(ctx, change.key), nodes) == 5


def test_available_mode_goes_to_the_next_nodes_where_owners_of_a_changing_ring_are_in_trouble() -> None:
    change = changing("abcde", "abcdef", replicas=1)
    ctx = change.cluster.available()
    ctx.shared.backoff.failed(change.old, "broke", 0.0)
    first, second = ctx.writers(change.key.encode())
    assert first == change.next
    assert second not in change.owners
    assert set(ctx.readers(change.key.encode())) == set("abcdef")


@pytest.mark.parametrize("operation", [WRITES["add"], WRITES["incr"]])
def test_conditional_changes_need_both_majorities_also_in_available_mode(
    change: Change, operation: Callable[..., Op[Any]]
) -> None:
    change.down(change.both[0], change.next)
    with pytest.raises(QuorumError, match="next ring"):
        drive(operation(change.cluster.available(), change.key), change.cluster)


# -- nodes that are said to be down ------------------------------------------------------------------------------------


def rumour(nodes: Cluster, name: str) -> None:
    """Everybody believes that a node is down."""
    row = attrs.evolve(nodes.table.members[name], health=Health.DOWN)
    nodes.learn(nodes.table.with_member(row))


def test_a_node_that_is_said_to_be_down_is_asked_last_and_written_to_all_the_same() -> None:
    nodes = Cluster()
    first, second, third = nodes.owners("k")
    rumour(nodes, first)
    ctx = nodes.context()
    ctx.shared.backoff.slow(second, 0.0)
    assert list(ctx.readers(b"k")) == [third, second, first], "one that is slow does answer"
    assert list(ctx.writers(b"k")) == [first, second, third]
    nodes[third].down = True
    drive(write.set(ctx, "k", 1), nodes)
    assert drive(read.get(ctx, "k"), nodes) == 1


def test_available_mode_replaces_a_node_that_is_said_to_be_down() -> None:
    nodes = Cluster("abc", replicas=1)
    first, second, _ = nodes.preference("k")
    rumour(nodes, first)
    assert list(nodes.available().writers(b"k")) == [second]
    assert list(nodes.context().writers(b"k")) == [first], "strict"
