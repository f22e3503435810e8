"""What concerns nodes rather than keys, driven by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from dcache.errors import (
    ClockSkew,
    ClusterMismatch,
    DeadlineExceeded,
    NodeError,
    NoNodesAvailable,
    QuorumError,
)
from dcache.membership import MemberTable
from dcache.ops import batch, cluster, load, mutate, read, write
from dcache.ops.cluster import READY_PAUSE, Holding, ScanState
from dcache.ops.context import Context
from dcache.record import ZERO
from dcache.wire import MESSAGES, Code
from tests.unit.ops_kit import NAMES, Cluster, Hand, drive, v

KEY = "k"


@pytest.fixture
def nodes() -> Cluster:
    return Cluster()


# -- finding the cluster ----------------------------------------------------------------------------------------------


def test_the_table_comes_from_the_first_seed_that_has_it(nodes: Cluster) -> None:
    assert drive(cluster.discover(["b", "a", "c"]), nodes) == (nodes.table, "b")
    assert nodes.asked() == ["b"]


@pytest.mark.parametrize("trouble", ["down", "no cluster yet", "nonsense"])
def test_the_next_seed_is_asked_where_one_is_of_no_help(nodes: Cluster, trouble: str) -> None:
    hand = Hand(cluster.discover(["a", "b"]), nodes)
    if trouble == "down":
        assert hand.fail("a") == ["b"]
    elif trouble == "nonsense":
        assert hand.reply("a", ("not", "a table")) == ["b"]
    else:
        nodes["a"].learn(None)
        assert hand.deliver("a") == ["b"]
    assert hand.finish() == (nodes.table, "b")


def test_a_slow_seed_is_raced_with_the_next(nodes: Cluster) -> None:
    hand = Hand(cluster.discover(["a", "b"]), nodes)
    assert hand.late() == ["b"]
    hand.deliver("b")
    assert hand.resume().result == (nodes.table, "b")


def test_that_no_seed_answers_is_told_with_every_reason(nodes: Cluster) -> None:
    nodes["a"].down = True
    nodes["b"].error = TimeoutError()
    nodes["c"].learn(None)
    with pytest.raises(NoNodesAvailable) as caught:
        drive(cluster.discover(NAMES), nodes)
    reasons = caught.value.reasons
    assert reasons["a"] == "refused"
    assert reasons["b"] == "TimeoutError", "an error without words is told by its name"
    assert "not ready" in reasons["c"]


def test_seeds_that_were_not_reached_in_time_are_told_too(nodes: Cluster) -> None:
    hand = Hand(cluster.discover(["a", "b"]), nodes)
    hand.expire()
    with pytest.raises(NoNodesAvailable) as caught:
        hand.resume()
    assert "a" in caught.value.reasons


@pytest.mark.parametrize("error", [ClockSkew("an hour"), ClusterMismatch("another")])
def test_what_all_seeds_say_is_the_error(nodes: Cluster, error: Exception) -> None:
    for node in nodes.nodes.values():
        node.error = error
    with pytest.raises(type(error)):
        drive(cluster.discover(NAMES), nodes)


def test_what_one_seed_says_is_a_reason_among_others(nodes: Cluster) -> None:
    nodes["a"].error = ClockSkew("an hour")
    nodes["b"].down = True
    with pytest.raises(NoNodesAvailable) as caught:
        drive(cluster.discover(["a", "b"]), nodes)
    assert caught.value.reasons["a"] == "an hour"


def test_a_cluster_that_is_starting_is_waited_for(nodes: Cluster) -> None:
    for node in nodes.nodes.values():
        node.learn(None)
    hand = Hand(cluster.await_table(NAMES), nodes)
    assert hand.asked == list(NAMES), "all are asked at once"
    hand.deliver(*NAMES)
    hand.resume()
    assert hand.sleeps == [READY_PAUSE]
    nodes.learn(nodes.table)
    hand.deliver("b")
    assert hand.resume().result == (nodes.table, "b")


def test_waiting_for_a_cluster_ends_with_the_time(nodes: Cluster) -> None:
    hand = Hand(cluster.await_table(["a"]), nodes)
    hand.expire()
    with pytest.raises(NoNodesAvailable, match="no answer in time"):
        hand.resume()


# -- asking after nodes -----------------------------------------------------------------------------------------------


def test_members_are_the_rows_that_a_node_has_now(nodes: Cluster) -> None:
    ctx = nodes.context()
    row = attrs.evolve(nodes.table.members["c"], incarnation=9)
    nodes["a"].learn(nodes.table.with_member(row))
    hand = Hand(cluster.members(ctx), nodes)
    assert hand.asked == ["a"]
    rows = hand.finish()
    assert [member.name for member in rows] == ["a", "b", "c"]
    assert rows[2].incarnation == 9


def test_nodes_take_turns_in_being_asked_for_members(nodes: Cluster) -> None:
    ctx = nodes.context(turn=1)
    drive(cluster.members(ctx), nodes)
    drive(cluster.members(ctx), nodes)
    assert nodes.asked() == ["b", "c"]


def test_members_fail_only_with_all_nodes(nodes: Cluster) -> None:
    nodes["a"].down = nodes["b"].down = True
    assert len(drive(cluster.members(nodes.context()), nodes)) == 3
    nodes["c"].down = True
    with pytest.raises(NoNodesAvailable) as caught:
        drive(cluster.members(nodes.context()), nodes)
    assert set(caught.value.reasons) == set(NAMES)


def test_ping_times_each_node_that_answers(nodes: Cluster) -> None:
    hand = Hand(cluster.ping(nodes.context()), nodes)
    nodes.time.advance(3)
    hand.deliver("b")
    nodes.time.advance(4)
    hand.deliver("a")
    hand.fail("c")
    assert hand.resume().result == pytest.approx({"b": 0.003, "a": 0.007})


def test_ping_fails_only_with_all_nodes(nodes: Cluster) -> None:
    for node in nodes.nodes.values():
        node.down = True
    with pytest.raises(NoNodesAvailable):
        drive(cluster.ping(nodes.context()), nodes)


def test_statistics_tell_of_every_node_and_of_the_client(nodes: Cluster) -> None:
    ctx = nodes.context()
    drive(write.set(ctx, KEY, 1), nodes)
    drive(read.get(ctx, KEY), nodes)
    nodes["b"].down = True
    told = drive(cluster.stats(ctx), nodes)
    assert told["client"]["hits"] == 1
    assert list(told["nodes"]) == ["a", "b", "c"]
    assert told["nodes"]["b"] == {"error": "refused"}
    assert isinstance(told["nodes"]["a"], dict)
    assert "error" not in told["nodes"]["a"]


# -- readiness --------------------------------------------------------------------------------------------------------


def test_a_cluster_is_ready_with_as_many_nodes_as_every_key_needs(nodes: Cluster) -> None:
    nodes["b"].down = True
    drive(cluster.wait_ready(nodes.context()), nodes)
    hand = Hand(cluster.wait_ready(nodes.context(write_quorum="all")), nodes)
    hand.deliver("a", "c")
    hand.fail("b")
    hand.resume()
    assert hand.sleeps == [READY_PAUSE]


def test_an_incomplete_node_is_waited_for(nodes: Cluster) -> None:
    nodes["a"].restart()
    nodes["b"].down = True
    hand = Hand(cluster.wait_ready(nodes.context()), nodes)
    hand.deliver("a", "c")
    hand.fail("b")
    hand.resume()
    nodes["a"].complete()
    hand.deliver("a", "c")
    hand.fail("b")
    assert hand.resume().done


def test_nodes_of_another_ring_are_not_ready(nodes: Cluster) -> None:
    ctx = nodes.context()
    for node in nodes.nodes.values():
        node.learn(attrs.evolve(nodes.table, settings=attrs.evolve(nodes.table.settings, ring_seed=9)))
    hand = Hand(cluster.wait_ready(ctx), nodes)
    hand.deliver(*NAMES)
    hand.resume()
    assert hand.sleeps == [READY_PAUSE]


def test_waiting_ends_with_the_time_and_says_who_is_missing(nodes: Cluster) -> None:
    nodes["a"].restart()
    nodes["b"].silent = True
    hand = Hand(cluster.wait_ready(nodes.context()), nodes)
    hand.deliver("a", "c")
    hand.expire()
    with pytest.raises(DeadlineExceeded) as caught:
        hand.resume()
    assert (caught.value.needed, caught.value.got) == (2, 1)
    assert "not completed" in caught.value.reasons["a"]
    assert "c" not in caught.value.reasons


# -- clear ------------------------------------------------------------------------------------------------------------


def filled(nodes: Cluster, ctx: Context) -> None:
    assert drive(batch.set_many(ctx, {"k": 1, "l": 2}), nodes) == {}


def test_clear_forgets_the_whole_namespace_and_no_other(nodes: Cluster) -> None:
    mine, other = nodes.context(namespace="mine"), nodes.context(namespace="other")
    filled(nodes, mine)
    filled(nodes, other)
    drive(cluster.clear(mine), nodes)
    assert drive(batch.get_many(mine, ["k", "l"]), nodes) == {}
    assert drive(batch.get_many(other, ["k", "l"]), nodes) == {"k": 1, "l": 2}


@pytest.mark.parametrize("skew", [-20_000, 0, 20_000])
def test_clear_is_above_everything_that_was_written(nodes: Cluster, skew: int) -> None:
    """Whatever the clocks of the writer and of who clears say."""
    filled(nodes, nodes.context(skew=20_000))
    ctx = nodes.context(skew=skew)
    drive(cluster.clear(ctx), nodes)
    assert drive(batch.get_many(ctx, ["k", "l"]), nodes) == {}
    for name in NAMES:
        assert nodes[name].floor(KEY) > v(20_000)


def test_what_a_node_that_was_away_still_holds_does_not_return(nodes: Cluster) -> None:
    filled(nodes, nodes.context())
    nodes["a"].down = True
    drive(cluster.clear(nodes.context()), nodes)
    nodes["a"].down = False
    for turn in range(3):
        assert drive(batch.get_many(nodes.context(turn=turn), ["k", "l"]), nodes) == {}


def test_after_a_clear_the_namespace_can_be_written_again(nodes: Cluster) -> None:
    filled(nodes, nodes.context(skew=20_000))
    drive(cluster.clear(nodes.context()), nodes)
    drive(write.set(nodes.context(), KEY, "again"), nodes)
    assert drive(read.get(nodes.context(), KEY), nodes) == "again"


@pytest.mark.parametrize("skew", [-20_000, 20_000])
def test_a_value_being_computed_during_a_clear_is_refused(nodes: Cluster, skew: int) -> None:
    ctx = nodes.context(skew=skew)
    claim = drive(load.lookup(ctx, KEY), nodes)
    assert isinstance(claim, load.Claim)
    drive(cluster.clear(nodes.context()), nodes)
    assert drive(load.fill(ctx, KEY, claim, b"stale", 0), nodes) is False
    assert drive(read.get(nodes.context(), KEY), nodes) is None


def test_a_change_under_way_during_a_clear_is_refused(nodes: Cluster) -> None:
    hand = Hand(mutate.incr(nodes.context(skew=20_000), KEY), nodes)
    hand.deliver(*NAMES)
    hand.resume()
    drive(cluster.clear(nodes.context()), nodes)
    hand.deliver(*hand.asked[:2])
    with pytest.raises(QuorumError):
        hand.resume()


def cleared_around(nodes: Cluster, meanwhile: Callable[[], object]) -> None:
    """A clear of a namespace; something goes on between its finding the highest version and the nodes clearing."""
    hand = Hand(cluster.clear(nodes.context()), nodes)
    hand.deliver(*NAMES)
    hand.resume()
    nodes.time.advance(5)
    meanwhile()
    hand.finish()


@pytest.mark.parametrize("away", ["", "c"])
def test_what_was_counted_before_a_clear_is_gone_after_it(nodes: Cluster, away: str) -> None:
    """Also where a count that began before is above what the clear found, and one owner never heard of it."""
    counter = nodes.context(skew=20_000)
    for _ in range(5):
        drive(mutate.incr(counter, KEY), nodes)

    def count() -> None:
        for name in away:
            nodes[name].down = True
        drive(mutate.incr(counter, KEY), nodes)
        for name in away:
            nodes[name].down = False

    cleared_around(nodes, count)
    for turn in range(3):
        assert drive(read.get(nodes.context(turn=turn), KEY), nodes) is None
    assert drive(mutate.incr(nodes.context(), KEY), nodes) == 1


def test_a_value_computed_and_stored_during_a_clear_is_gone_after_it(nodes: Cluster) -> None:
    ctx = nodes.context(skew=20_000)

    def compute() -> None:
        claim = drive(load.lookup(ctx, KEY), nodes)
        assert isinstance(claim, load.Claim)
        assert drive(load.fill(ctx, KEY, claim, b"stale", 0), nodes)

    cleared_around(nodes, compute)
    assert drive(read.get(nodes.context(), KEY), nodes) is None


def test_a_clear_that_nothing_higher_comes_in_between_takes_two_rounds(nodes: Cluster) -> None:
    filled(nodes, nodes.context())
    nodes.clear_log()
    drive(cluster.clear(nodes.context()), nodes)
    assert [call.method for call in nodes.sent] == ["newest"] * 3 + ["clear"] * 3


@pytest.mark.parametrize(("write_quorum", "tolerated"), [("quorum", 1), ("all", 0)])
def test_clear_tolerates_no_more_nodes_away_than_any_key_can(write_quorum: str, tolerated: int) -> None:
    nodes = Cluster("abcde")
    ctx = nodes.context(write_quorum=write_quorum)
    for name in "abcde"[:tolerated]:
        nodes[name].down = True
    drive(cluster.clear(ctx), nodes)
    nodes["e"].down = True
    with pytest.raises(QuorumError) as caught:
        drive(cluster.clear(ctx), nodes)
    assert (caught.value.needed, caught.value.got) == (5 - tolerated, 4 - tolerated)
    assert caught.value.in_doubt is False, "the highest version was not found, so nothing was cleared"


def test_a_clear_that_reached_too_few_is_in_doubt(nodes: Cluster) -> None:
    hand = Hand(cluster.clear(nodes.context()), nodes)
    hand.deliver("a", "b")
    hand.resume()
    hand.deliver("a")
    hand.fail("b")
    hand.fail("c")
    with pytest.raises(QuorumError) as caught:
        hand.resume()
    assert caught.value.in_doubt is True


def test_an_incomplete_node_counts_for_nothing_in_a_clear(nodes: Cluster) -> None:
    nodes["a"].restart()
    drive(cluster.clear(nodes.context()), nodes)
    nodes["b"].down = True
    with pytest.raises(QuorumError) as caught:
        drive(cluster.clear(nodes.context()), nodes)
    assert "not completed" in caught.value.reasons["a"]


def test_what_is_no_answer_to_a_clear_is_a_failure(nodes: Cluster) -> None:
    hand = Hand(cluster.clear(nodes.context()), nodes)
    hand.reply("a", b"nonsense")
    assert [failure.node for failure in hand.round.failures] == ["a"]
    hand.finish()


def test_available_mode_clears_what_it_reaches(nodes: Cluster) -> None:
    ctx = nodes.available()
    nodes["a"].down = nodes["b"].down = True
    drive(cluster.clear(ctx), nodes)
    assert nodes["c"].floor(KEY) > ZERO


# -- scan -------------------------------------------------------------------------------------------------------------


def scanned(nodes: Cluster, ctx: Context, prefix: bytes = b"") -> set[bytes]:
    found: set[bytes] = set()
    state: ScanState | None = None
    while True:
        keys, state = drive(cluster.scan_page(ctx, prefix, state), nodes)
        found.update(keys)
        if state is None:
            return found


def test_a_scan_finds_the_keys_of_its_namespace_and_prefix() -> None:
    nodes = Cluster("abcde")
    ctx = nodes.context(namespace="mine")
    drive(batch.set_many(ctx, {"user:1": 1, "user:2": 2, "page:1": 3}), nodes)
    drive(batch.set_many(nodes.context(), {"user:3": 1}), nodes)
    assert scanned(nodes, ctx, b"user:") == {b"user:1", b"user:2"}
    assert scanned(nodes, ctx) == {b"user:1", b"user:2", b"page:1"}


def paged(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Six keys on each of three nodes that look at two per page."""
    monkeypatch.setattr("dcache.node.scans.SCAN_CHUNK", 2)
    nodes = Cluster()
    drive(batch.set_many(nodes.context(), {f"k{n}": n for n in range(6)}), nodes)
    nodes.clear_log()
    return nodes


ALL = {b"k%d" % n for n in range(6)}


def test_a_scan_goes_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = paged(monkeypatch)
    keys, state = drive(cluster.scan_page(nodes.context(), b"", None), nodes)
    assert len(set(keys)) < 6
    assert state is not None
    assert set(state.cursors) == set(NAMES)
    assert scanned(nodes, nodes.context()) == ALL


def test_a_node_that_is_done_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = paged(monkeypatch)
    nodes["a"].restart()
    ctx = nodes.context()
    _, state = drive(cluster.scan_page(ctx, b"", None), nodes)
    nodes.clear_log()
    drive(cluster.scan_page(ctx, b"", state), nodes)
    assert nodes.asked() == ["b", "c"]


def test_a_lost_cursor_starts_that_node_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = paged(monkeypatch)
    ctx = nodes.context()
    _, state = drive(cluster.scan_page(ctx, b"", None), nodes)
    assert state is not None
    lost = NodeError(Code.UNKNOWN_CURSOR, MESSAGES[Code.UNKNOWN_CURSOR])
    hand = Hand(cluster.scan_page(ctx, b"", state), nodes)
    hand.fail("a", lost, sent=True)
    hand.deliver("b", "c")
    _, state = hand.resume().result
    assert state is not None
    assert state.cursors["a"] is None
    assert state.away == frozenset()
    assert scanned(nodes, ctx) == ALL


def test_a_scan_goes_on_without_nodes_that_no_key_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = paged(monkeypatch)
    nodes["a"].down = True
    assert scanned(nodes, nodes.context()) == ALL


def test_a_node_that_went_away_stays_away_for_the_rest_of_a_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would not be asked for what it has not told; and with another one away, keys might be missed."""
    nodes = paged(monkeypatch)
    ctx = nodes.context()
    nodes["a"].down = True
    _, state = drive(cluster.scan_page(ctx, b"", None), nodes)
    assert state is not None
    assert state.away == {"a"}
    nodes["a"].down, nodes["b"].down = False, True
    with pytest.raises(QuorumError) as caught:
        drive(cluster.scan_page(ctx, b"", state), nodes)
    assert (caught.value.needed, caught.value.got, caught.value.in_doubt) == (2, 1, False)


def test_available_mode_scans_what_it_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = paged(monkeypatch)
    nodes["a"].down = nodes["b"].down = True
    assert scanned(nodes, nodes.available()) == ALL


@pytest.mark.parametrize("nonsense", [None, (None,), (None, b"keys")])
def test_what_is_no_page_counts_as_a_node_away(nodes: Cluster, nonsense: Any) -> None:
    hand = Hand(cluster.scan_page(nodes.context(), b"", None), nodes)
    hand.reply("a", nonsense)
    hand.deliver("b", "c")
    assert hand.resume().result == ([], None)


# -- who holds a key --------------------------------------------------------------------------------------------------


def test_holders_tell_what_each_owner_has(nodes: Cluster) -> None:
    first, second, third = nodes.owners(KEY)
    nodes[first].put(KEY, v(-5), 1, ttl=2500)
    nodes[second].forget_slot(KEY, v(-4))
    nodes[third].restart()
    nodes[third].put(KEY, v(-6), 1)
    assert drive(cluster.holders(nodes.context(), KEY), nodes) == {
        first: Holding(True, v(-5), 2.5, True),
        second: Holding(False, v(-4), None, True),
        third: Holding(True, v(-6), None, False),
    }


def test_holders_tell_who_did_not_answer_and_fail_only_with_all(nodes: Cluster) -> None:
    first, second, third = nodes.owners(KEY)
    nodes[first].down = True
    held = drive(cluster.holders(nodes.context(), KEY), nodes)
    assert list(held) == [first, second, third]
    assert held[first] == Holding(error="refused")
    nodes[second].down = nodes[third].down = True
    with pytest.raises(NoNodesAvailable):
        drive(cluster.holders(nodes.context(), KEY), nodes)


def test_the_table_of_a_context_names_its_nodes(nodes: Cluster) -> None:
    assert isinstance(nodes.context().table, MemberTable)
