"""Conditional changes, driven by hand: a majority promises, the newest by vote is changed, and stored where the promise
stands."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dcache.codec import Codec
from dcache.errors import DeadlineExceeded, NotACounter, QuorumError
from dcache.ops import mutate, read, write
from dcache.ops.context import Context
from dcache.ops.effects import Call
from dcache.ops.mutate import LONGEST_WAIT, PrepareRound
from dcache.ops.quorum import Quorum
from dcache.record import Version
from dcache.wire import Status
from tests.unit.ops_kit import Cluster, FakeLink, Hand, drive, v

KEY = "k"


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def put_everywhere(cluster: Cluster, version: Version, value: Any, ttl: int | None = None) -> None:
    for name in cluster.owners(KEY):
        cluster[name].put(KEY, version, value, ttl)


def got(cluster: Cluster, ctx: Context | None = None) -> Any:
    return drive(read.get(ctx or cluster.context(read_quorum="all"), KEY), cluster)


# -- what the changes do ----------------------------------------------------------------------------------------------


def test_add_stores_only_where_the_key_is_absent(cluster: Cluster) -> None:
    ctx = cluster.context()
    assert drive(mutate.add(ctx, KEY, "first"), cluster) is True
    assert drive(mutate.add(ctx, KEY, "second"), cluster) is False
    assert got(cluster) == "first"


def test_replace_stores_only_where_the_key_is_there(cluster: Cluster) -> None:
    ctx = cluster.context()
    put_everywhere(cluster, v(-5), "old")
    assert drive(mutate.replace(ctx, "other", "new"), cluster) is False
    assert drive(read.get(ctx, "other"), cluster) is None
    assert drive(mutate.replace(ctx, KEY, "new"), cluster) is True
    assert got(cluster) == "new"


def test_cas_stores_only_over_the_version_it_was_given(cluster: Cluster) -> None:
    ctx = cluster.context()
    put_everywhere(cluster, v(-5), "old")
    assert drive(mutate.cas(ctx, KEY, "new", v(-6)), cluster) is False
    assert got(cluster) == "old"
    assert drive(mutate.cas(ctx, KEY, "new", v(-5)), cluster) is True
    assert got(cluster) == "new"
    assert drive(mutate.cas(ctx, KEY, "newer", v(-5)), cluster) is False


def test_cas_of_an_absent_key_stores_nothing(cluster: Cluster) -> None:
    assert drive(mutate.cas(cluster.context(), KEY, "new", v(-5)), cluster) is False
    assert got(cluster) is None


@pytest.mark.parametrize("version", [b"short", "a string of 1", None, 7])
def test_cas_wants_a_version(cluster: Cluster, version: Any) -> None:
    with pytest.raises(TypeError, match="12 bytes"):
        drive(mutate.cas(cluster.context(), KEY, "new", version), cluster)
    assert cluster.sent == []


def test_incr_and_decr_count_from_initial(cluster: Cluster) -> None:
    ctx = cluster.context()
    assert drive(mutate.incr(ctx, KEY, 3, initial=10), cluster) == 13
    assert drive(mutate.incr(ctx, KEY), cluster) == 14
    assert drive(mutate.decr(ctx, KEY, 20), cluster) == -6
    assert got(cluster) == -6


@pytest.mark.parametrize(
    ("operation", "arguments", "named"),
    [
        (mutate.incr, {"delta": 1.5}, "delta"),
        (mutate.incr, {"delta": True}, "delta"),
        (mutate.incr, {"initial": "0"}, "initial"),
        (mutate.decr, {"delta": "1"}, "delta"),
    ],
)
def test_counting_is_by_ints_only(cluster: Cluster, operation: Any, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(TypeError, match=named):
        drive(operation(cluster.context(), KEY, **arguments), cluster)
    assert cluster.sent == []


def test_the_lifetime_of_a_counter_is_that_of_its_first_increment(cluster: Cluster) -> None:
    ctx = cluster.context()
    drive(mutate.incr(ctx, KEY, ttl=10), cluster)
    cluster.time.advance(4000)
    drive(mutate.incr(ctx, KEY, ttl=1000), cluster)
    assert drive(read.ttl(ctx, KEY), cluster) == pytest.approx(6)


def test_a_counter_that_expires_not_goes_on_without_expiry(cluster: Cluster) -> None:
    ctx = cluster.context()
    drive(write.set(ctx, KEY, 5), cluster)
    assert drive(mutate.incr(ctx, KEY, ttl=1), cluster) == 6
    assert drive(read.ttl(ctx, KEY), cluster) == math.inf


def test_touch_changes_the_lifetime_and_nothing_else(cluster: Cluster) -> None:
    ctx = cluster.context()
    put_everywhere(cluster, v(-5), "value", ttl=1000)
    assert drive(mutate.touch(ctx, "other", 5), cluster) is False
    assert drive(mutate.touch(ctx, KEY, 5), cluster) is True
    assert drive(read.ttl(ctx, KEY), cluster) == pytest.approx(5)
    assert got(cluster) == "value"
    assert drive(mutate.touch(ctx, KEY, None), cluster) is True
    assert drive(read.ttl(ctx, KEY), cluster) == math.inf


@pytest.mark.parametrize("value", ["text", b"5", 1.5, True, None, [1]])
def test_what_is_no_counter_stays_as_it_is(cluster: Cluster, value: Any) -> None:
    put_everywhere(cluster, v(-5), value)
    with pytest.raises(NotACounter):
        drive(mutate.incr(cluster.context(), KEY), cluster)
    assert cluster.asked("accept") == []
    assert {cluster[name].version(KEY) for name in cluster.owners(KEY)} == {v(-5)}


def test_a_change_that_changes_nothing_sends_nothing(cluster: Cluster) -> None:
    put_everywhere(cluster, v(-5), "old")
    assert drive(mutate.add(cluster.context(), KEY, "new"), cluster) is False
    assert set(cluster.asked()) == set(cluster.asked("prepare"))


def test_changes_are_worked_out_with_the_default_lifetime(cluster: Cluster) -> None:
    ctx = cluster.context(default_ttl=7)
    drive(mutate.add(ctx, KEY, 1), cluster)
    assert drive(read.ttl(ctx, KEY), cluster) == pytest.approx(7)


# -- promises ---------------------------------------------------------------------------------------------------------


def test_nothing_is_decided_before_a_majority_has_promised(cluster: Cluster) -> None:
    hand = Hand(mutate.add(cluster.context(), KEY, 1), cluster)
    first, second, third = cluster.owners(KEY)
    assert hand.asked == [first, second, third]
    hand.deliver(first)
    assert not hand.over
    hand.deliver(third)
    assert {call.method for call in hand.resume().waiting} == {"accept"}


def test_a_promise_whose_connection_broke_is_none(cluster: Cluster) -> None:
    hand = Hand(mutate.add(cluster.context(), KEY, 1), cluster)
    first, second, third = cluster.owners(KEY)
    hand.deliver(first)
    cluster[first].restart()
    hand.deliver(second)
    assert not hand.over
    hand.fail(third)
    with pytest.raises(QuorumError) as caught:
        hand.resume()
    assert caught.value.got == 1
    assert "broke off" in caught.value.reasons[first]


def test_the_promise_of_an_incomplete_owner_does_not_count(cluster: Cluster) -> None:
    first, second, _ = cluster.owners(KEY)
    cluster[first].restart()
    cluster[second].down = True
    with pytest.raises(QuorumError) as caught:
        drive(mutate.add(cluster.context(), KEY, 1), cluster)
    assert (caught.value.needed, caught.value.in_doubt) == (2, False)
    assert caught.value.got < 2
    assert "not completed" in caught.value.reasons[first]
    assert cluster.asked("accept") == []


def test_the_newest_that_a_majority_promised_over_is_changed(cluster: Cluster) -> None:
    first, second, third = cluster.owners(KEY)
    cluster[first].put(KEY, v(-9), 1)
    cluster[second].put(KEY, v(-5), 10)
    cluster[third].put(KEY, v(-9), 1)
    hand = Hand(mutate.incr(cluster.context(), KEY), cluster)
    hand.deliver(first, second)
    assert hand.resume().finish() == 11


def test_an_owner_that_may_have_forgotten_something_newer_has_no_vote(cluster: Cluster) -> None:
    """The counter starts anew rather than from an older value."""
    first, second, third = cluster.owners(KEY)
    cluster[first].put(KEY, v(-9), 41)
    for name in (second, third):
        cluster[name].put(KEY, v(-5), 99)
        cluster[name].evict(KEY)
    assert drive(mutate.incr(cluster.context(), KEY), cluster) == 1


def test_another_owner_is_waited_for_where_one_has_no_vote(cluster: Cluster) -> None:
    first, second, third = cluster.owners(KEY)
    cluster[first].put(KEY, v(-5), 41)
    cluster[second].forget_slot(KEY, v(-4))
    cluster[third].put(KEY, v(-5), 41)
    hand = Hand(mutate.incr(cluster.context(), KEY), cluster)
    hand.deliver(first, second)
    assert not hand.over, "two promises, but one vote"
    hand.deliver(third)
    assert hand.resume().finish() == 42


def test_a_vote_that_cannot_be_had_leaves_the_key_absent(cluster: Cluster) -> None:
    first, second, third = cluster.owners(KEY)
    cluster[first].put(KEY, v(-5), 41)
    cluster[second].forget_slot(KEY, v(-4))
    cluster[third].down = True
    assert drive(mutate.incr(cluster.context(), KEY, initial=100), cluster) == 101


def test_an_owner_that_lacks_what_it_never_saw_votes(cluster: Cluster) -> None:
    first, second, third = cluster.owners(KEY)
    cluster[first].put(KEY, v(-5), 41)
    cluster[third].down = True
    assert drive(mutate.incr(cluster.context(), KEY), cluster) == 42
    assert cluster[second].value(KEY) == 42


def test_a_write_between_promise_and_change_wins(cluster: Cluster) -> None:
    """The accept needs the promise to stand."""
    put_everywhere(cluster, v(-5), 1)
    hand = Hand(mutate.incr(cluster.context(), KEY), cluster)
    hand.deliver(*cluster.owners(KEY))
    hand.resume()
    drive(write.set(cluster.context(), KEY, 100), cluster)
    hand.fail(hand.asked[0], sent=False)
    hand.deliver(*hand.asked)
    with pytest.raises(QuorumError) as caught:
        hand.resume()
    assert caught.value.in_doubt is False, "every owner that was reached refused"
    assert got(cluster) == 100


def test_a_write_with_a_slow_clock_between_promise_and_change_wins_too(cluster: Cluster) -> None:
    put_everywhere(cluster, v(-50_000), 1)
    hand = Hand(mutate.incr(cluster.context(skew=20_000), KEY), cluster)
    hand.deliver(*cluster.owners(KEY))
    hand.resume()
    drive(write.set(cluster.context(skew=-20_000), KEY, 100), cluster)
    hand.deliver(*hand.asked[:2])
    with pytest.raises(QuorumError):
        hand.resume()
    assert got(cluster) == 100


def test_a_change_is_stored_only_where_it_was_promised(cluster: Cluster) -> None:
    first, second, third = cluster.owners(KEY)
    hand = Hand(mutate.add(cluster.context(), KEY, 1), cluster)
    hand.deliver(first, second)
    hand.resume()
    hand.deliver(third)
    assert cluster[third].value(KEY) is None
    hand.deliver(first, second)
    assert hand.resume().result is True


# -- ballots in each other's way --------------------------------------------------------------------------------------


def test_a_refused_ballot_is_made_anew_above_what_was_in_its_way(cluster: Cluster) -> None:
    put_everywhere(cluster, v(40_000), 1)
    assert drive(mutate.incr(cluster.context(), KEY), cluster) == 2
    assert len(cluster.sleeps) == 1
    ballots = {call.params[3] for call in cluster.sent if call.method == "prepare"}
    assert min(ballots) < v(40_000) < max(ballots)


def test_of_two_changes_at_once_the_second_waits_and_counts_on(cluster: Cluster) -> None:
    """A young ballot is not pushed out, so the first is not left half done."""
    first_hand = Hand(mutate.incr(cluster.context(), KEY), cluster)
    first_hand.deliver(*cluster.owners(KEY))
    first_hand.resume()
    second_hand = Hand(mutate.incr(cluster.context(skew=5000), KEY), cluster)
    second_hand.deliver(*second_hand.asked[:2])
    second_hand.resume()
    assert len(second_hand.sleeps) == 1
    assert first_hand.finish() == 1
    assert second_hand.finish() == 2


def test_an_old_ballot_is_pushed_out(cluster: Cluster) -> None:
    """Whoever made it is gone, or slow: then its own change is refused."""
    left = Hand(mutate.incr(cluster.context(), KEY), cluster)
    left.deliver(*cluster.owners(KEY))
    left.resume()
    cluster.time.advance(1000)
    assert drive(mutate.incr(cluster.context(), KEY), cluster) == 1
    left.deliver(*left.asked[:2])
    with pytest.raises(QuorumError):
        left.resume()
    assert got(cluster) == 1


def test_waits_double_up_to_a_bound_and_are_jittered(cluster: Cluster) -> None:
    def refused(random: float) -> list[float]:
        hand = Hand(mutate.incr(cluster.context(random=lambda: random), KEY), cluster)
        for _ in range(9):
            for name in list(hand.asked):
                ballot = hand.call(name).params[3]
                if not hand.over:
                    hand.reply(name, (True, int(Status.NEWER), ballot))
            hand.resume()
        return hand.sleeps

    short, long = refused(0.0), refused(0.999)
    assert short[:4] == pytest.approx([0.0005, 0.001, 0.002, 0.004])
    assert max(short) == pytest.approx(LONGEST_WAIT / 2)
    assert all(a < b for a, b in zip(short, long, strict=True))


def test_each_new_ballot_is_higher_than_the_last(cluster: Cluster) -> None:
    hand = Hand(mutate.incr(cluster.context(), KEY), cluster)
    ballots = []
    for _ in range(4):
        ballots.append(hand.call(hand.asked[0]).params[3])
        for name in hand.asked[:2]:
            hand.reply(name, (True, int(Status.NEWER), v(-9)))  # whatever is said to be in the way
        hand.resume()
    assert ballots == sorted(set(ballots))


# -- failure ----------------------------------------------------------------------------------------------------------


def test_failing_to_prepare_is_not_in_doubt(cluster: Cluster) -> None:
    first, second, _ = cluster.owners(KEY)
    cluster[first].error = cluster[second].error = ConnectionResetError("gone")
    cluster[first].error_sent = cluster[second].error_sent = True
    with pytest.raises(QuorumError) as caught:
        drive(mutate.incr(cluster.context(), KEY), cluster)
    assert caught.value.in_doubt is False


def test_a_change_accepted_by_too_few_is_in_doubt(cluster: Cluster) -> None:
    first, second, third = cluster.owners(KEY)
    hand = Hand(mutate.incr(cluster.context(), KEY), cluster)
    hand.deliver(first, second, third)
    hand.resume()
    hand.deliver(first)
    hand.fail(second)
    hand.fail(third)
    with pytest.raises(QuorumError) as caught:
        hand.resume()
    assert caught.value.in_doubt is True
    assert (caught.value.needed, caught.value.got) == (2, 1)


def test_a_change_that_never_left_is_not_in_doubt(cluster: Cluster) -> None:
    hand = Hand(mutate.incr(cluster.context(), KEY), cluster)
    hand.deliver(*cluster.owners(KEY))
    hand.resume()
    for name in list(hand.asked):
        hand.fail(name, sent=False)
    with pytest.raises(QuorumError) as caught:
        hand.resume()
    assert caught.value.in_doubt is False


def test_an_expired_prepare_is_not_repeated(cluster: Cluster) -> None:
    """Not even where a higher ballot would do: there is no time for it."""
    first, _, _ = cluster.owners(KEY)
    hand = Hand(mutate.incr(cluster.context(), KEY), cluster)
    hand.reply(first, (True, int(Status.NEWER), v(5)))
    hand.expire()
    with pytest.raises(DeadlineExceeded):
        hand.resume()


def test_an_acknowledgement_whose_connection_broke_is_none(cluster: Cluster) -> None:
    first, second, third = cluster.owners(KEY)
    hand = Hand(mutate.incr(cluster.context(), KEY), cluster)
    hand.deliver(first, second, third)
    hand.resume()
    hand.deliver(first)
    cluster[first].restart()
    hand.deliver(second)
    assert not hand.over
    hand.deliver(third)
    assert hand.resume().result == 1


def test_what_is_no_answer_to_a_prepare_is_a_failure(cluster: Cluster) -> None:
    first, _, _ = cluster.owners(KEY)
    hand = Hand(mutate.incr(cluster.context(), KEY), cluster)
    hand.reply(first, "nonsense")
    assert [failure.node for failure in hand.round.failures] == [first]
    assert hand.finish() == 1


# -- available mode ---------------------------------------------------------------------------------------------------


def test_available_mode_changes_still_take_a_majority_of_the_owners() -> None:
    cluster = Cluster("abcde")
    owners = cluster.owners(KEY)
    for name in owners[:2]:
        cluster[name].down = True
    ctx = cluster.available()
    for name in owners[:2]:
        ctx.shared.backoff.failed(name, "down", 0)
    with pytest.raises(QuorumError) as caught:
        drive(mutate.incr(ctx, KEY), cluster)
    assert caught.value.needed == 2
    assert set(cluster.asked()) == set(owners), "no other node takes an owner's place"


def test_available_mode_changes_are_done_after_a_majority() -> None:
    cluster = Cluster("abcde")
    hand = Hand(mutate.incr(cluster.available(), KEY), cluster)
    first, second, _ = cluster.owners(KEY)
    hand.deliver(first)
    assert not hand.over
    hand.deliver(second)
    hand.resume().deliver(first)
    assert not hand.over


def test_a_prepare_round_without_refusals_has_nothing_in_its_way() -> None:
    round_ = PrepareRound([Call("a", "prepare", ())], Quorum(1))
    assert round_.highest_newer() is None
    assert round_.newest() is None
    call = round_.begin()[0]
    round_.replied(call, (True, int(Status.STORED), v(1), (v(1), Codec().encode(3)[0], 0, None)), FakeLink())
    newest = round_.newest()
    assert newest is not None
    assert newest.version == v(1)


def test_a_change_that_changes_nothing_keeps_nobody_waiting() -> None:
    """Its ballot is given up, so the next change need not wait until it is no longer young."""
    cluster = Cluster()
    drive(write.set(cluster.context(), "k", 1), cluster)
    assert drive(mutate.add(cluster.context(), "k", 2), cluster) is False
    cluster.clear_log()
    assert drive(mutate.incr(cluster.context(), "k"), cluster) == 2
    assert cluster.sleeps == []


def test_a_refused_change_gives_up_its_ballot_too() -> None:
    cluster = Cluster()
    drive(write.set(cluster.context(), "k", "text"), cluster)
    with pytest.raises(NotACounter):
        drive(mutate.incr(cluster.context(), "k"), cluster)
    cluster.clear_log()
    assert drive(mutate.replace(cluster.context(), "k", 3), cluster) is True
    assert cluster.sleeps == []


def test_a_change_that_too_few_promised_gives_up_its_ballot_at_those_that_did() -> None:
    """One owner's clock is as far ahead as the client's, so it alone promises.  Were its promise to stay, nobody could
    change the key when both clocks are right again: what is above it is too far ahead for the other owners."""
    cluster = Cluster("ab")
    first, _ = cluster.owners(KEY)
    cluster[first].skew = 7_200_000
    with pytest.raises(QuorumError, match="clock skew"):
        drive(mutate.incr(cluster.context(skew=1_800_000), KEY), cluster)
    cluster[first].skew = 0
    assert drive(mutate.incr(cluster.context(), KEY), cluster) == 1
