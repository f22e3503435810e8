"""Many keys at once, driven by hand: every key keeps the rules of its single operation, the travelling is shared."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.errors import DeadlineExceeded, QuorumError, SerializationError, ValueTooLarge
from dcache.ops import batch, mutate, read, write
from dcache.ops.context import Key
from dcache.ops.effects import Call
from dcache.ops.quorum import Quorum, WriteRound
from dcache.wire import MESSAGES, Code, Limits, Status
from tests.unit.ops_kit import Cluster, FakeLink, Hand, Node, drive, full, v

KEYS = ("k", "l", "m")
FIVE = "abcde"


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def put_everywhere(cluster: Cluster, key: str, n: int, value: Any = "x") -> None:
    for name in cluster.owners(key):
        cluster[name].put(key, v(n), value)


def items(call: Call) -> list[Any]:
    return list(call.params[2])


def keys_of(cluster: Cluster, method: str) -> dict[str, set[bytes]]:
    """The keys that each node was asked about."""
    asked: dict[str, set[bytes]] = {}
    for call in cluster.sent:
        if call.method == method:
            asked.setdefault(call.node, set()).update(item[0] for item in items(call))
    return asked


def shorten(node: Node, method: str, most: int) -> None:
    """The node acts on the first `most` items only, and answers for them."""
    real = node.service.methods[method]
    node.service.methods[method] = lambda ring, namespace, items: real(ring, namespace, items[:most])


# -- travelling -------------------------------------------------------------------------------------------------------


def test_what_is_stored_together_is_read_together(cluster: Cluster) -> None:
    ctx = cluster.context()
    assert drive(batch.set_many(ctx, {"k": 1, "l": [2], "m": None}), cluster) == {}
    assert drive(batch.get_many(ctx, ["k", "l", "m", "absent"]), cluster) == {"k": 1, "l": [2], "m": None}
    assert (ctx.shared.counters.hits, ctx.shared.counters.misses) == (3, 1)
    assert drive(batch.delete_many(ctx, ["k", "l", "absent"]), cluster) == 2
    assert drive(batch.get_many(ctx, KEYS), cluster) == {"m": None}


def test_one_request_goes_to_each_node() -> None:
    cluster = Cluster(FIVE)
    keys = [f"key{n}" for n in range(40)]
    drive(batch.set_many(cluster.context(), dict.fromkeys(keys, 1)), cluster)
    assert sorted(cluster.asked()) == list(FIVE)
    assert all(
        name in cluster.owners(key.decode()) for name, asked in keys_of(cluster, "set_many").items() for key in asked
    )


def test_all_nodes_are_asked_at_once(cluster: Cluster) -> None:
    hand = Hand(batch.set_many(cluster.context(), dict.fromkeys(KEYS, 1)), cluster)
    assert sorted(hand.asked) == ["a", "b", "c"]


@pytest.mark.parametrize("most", [1, 2, 3])
def test_batches_are_cut_at_their_greatest_length(most: int) -> None:
    cluster = Cluster(limits=Limits(max_batch=most))
    keys = [f"key{n}" for n in range(5)]
    assert drive(batch.set_many(cluster.context(), dict.fromkeys(keys, 1)), cluster) == {}
    assert max(len(items(call)) for call in cluster.sent) == most
    assert drive(batch.get_many(cluster.context(), keys), cluster) == dict.fromkeys(keys, 1)


def test_batches_are_cut_where_a_frame_would_be_too_large() -> None:
    cluster = Cluster(limits=Limits(frame_room=4000))
    values = {f"key{n}": b"x" * 900 for n in range(6)}
    assert drive(batch.set_many(cluster.context(), values), cluster) == {}
    sizes = [sum(len(item[0]) + len(item[2]) for item in items(call)) for call in cluster.sent]
    assert max(sizes) <= 2000
    assert len(cluster.sent) == 9, "two keys in a frame, three frames to each of three nodes"


def test_a_single_item_larger_than_half_a_frame_travels_alone() -> None:
    cluster = Cluster(limits=Limits(frame_room=100))
    assert drive(batch.set_many(cluster.context(), {"k": b"x" * 500, "l": 1}), cluster) == {}


def test_what_a_short_answer_left_out_is_asked_for_again() -> None:
    cluster = Cluster(limits=Limits(frame_room=2000))
    keys = [f"key{n}" for n in range(6)]
    for key in keys:
        put_everywhere(cluster, key, -5, b"x" * 900)
    assert drive(batch.get_many(cluster.context(), keys), cluster) == dict.fromkeys(keys, b"x" * 900)
    assert max(cluster.asked().count(name) for name in cluster.nodes) > 1


def test_short_answers_to_writes_are_asked_on_too(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        shorten(node, "delete_many", 1)
    drive(batch.set_many(cluster.context(), dict.fromkeys(KEYS, 1)), cluster)
    assert drive(batch.delete_many(cluster.context(), KEYS), cluster) == 3


@pytest.mark.parametrize("nonsense", [(), (1, 2, 3, 4), "text", None])
def test_an_answer_that_is_none_fails_the_node_and_harms_nobody(cluster: Cluster, nonsense: Any) -> None:
    put_everywhere(cluster, "k", -5, 1)
    hand = Hand(batch.get_many(cluster.context(), ["k"]), cluster)
    assert len(hand.reply(hand.asked[0], nonsense)) == 1, "a spare is asked in its place"
    assert hand.finish() == {"k": 1}


def test_nothing_is_sent_for_no_keys(cluster: Cluster) -> None:
    ctx = cluster.context()
    assert drive(batch.get_many(ctx, []), cluster) == {}
    assert drive(batch.set_many(ctx, {}), cluster) == {}
    assert drive(batch.delete_many(ctx, []), cluster) == 0
    assert cluster.sent == []


def test_text_and_bytes_of_one_key_are_one_key(cluster: Cluster) -> None:
    put_everywhere(cluster, "k", -5, 1)
    both: list[Key] = ["k", b"k"]
    assert drive(batch.get_many(cluster.context(), both), cluster) == {"k": 1, b"k": 1}
    assert [len(items(call)) for call in cluster.sent] == [1, 1]
    assert drive(batch.delete_many(cluster.context(), ["k", b"k", "k"]), cluster) == 1


def test_of_two_values_for_one_key_the_last_is_stored(cluster: Cluster) -> None:
    values: dict[Key, int] = {"k": 1, b"k": 2}
    assert drive(batch.set_many(cluster.context(), values), cluster) == {}
    assert drive(read.get(cluster.context(), "k"), cluster) == 2


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_node_that_fails_is_replaced_by_a_spare_for_its_keys_only() -> None:
    cluster = Cluster(FIVE)
    keys = [f"key{n}" for n in range(20)]
    for key in keys:
        put_everywhere(cluster, key, -5, key)
    hand = Hand(batch.get_many(cluster.context(), keys), cluster)
    broken = hand.asked[0]
    lost = {item[0] for item in items(hand.call(broken))}
    before = len(cluster.sent)
    hand.fail(broken)
    again = [item[0] for call in cluster.sent[before:] for item in items(call)]
    assert sorted(again) == sorted(lost)
    assert broken not in [call.node for call in cluster.sent[before:]]
    assert hand.finish() == {key: key for key in keys}


def test_a_slow_node_is_raced_with_the_spares(cluster: Cluster) -> None:
    put_everywhere(cluster, "k", -5, 1)
    hand = Hand(batch.get_many(cluster.context(), ["k"]), cluster)
    first, second = hand.asked
    hand.deliver(first)
    assert len(hand.late()) == 1
    hand.deliver(hand.asked[-1])
    assert hand.resume().result == {"k": 1}
    assert second in cluster.asked()


def test_too_few_answers_are_an_error_that_says_so(cluster: Cluster) -> None:
    cluster["a"].down = cluster["b"].down = True
    with pytest.raises(QuorumError, match="get_many") as caught:
        drive(batch.get_many(cluster.context(), KEYS), cluster)
    assert caught.value.in_doubt is False
    assert {"a", "b"} <= set(caught.value.reasons)


def test_silence_until_the_deadline_is_an_error_of_time(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        node.silent = True
    with pytest.raises(DeadlineExceeded):
        drive(batch.get_many(cluster.context(), KEYS), cluster)


def test_the_emptiness_of_an_incomplete_owner_is_not_believed(cluster: Cluster) -> None:
    put_everywhere(cluster, "k", -5, 1)
    cluster["a"].restart()
    for turn in range(3):
        assert drive(batch.get_many(cluster.context(turn=turn), ["k"]), cluster) == {"k": 1}


def test_what_a_majority_lacks_is_written_back_in_one_batch_before_it_is_returned(cluster: Cluster) -> None:
    """And what a majority holds is not."""
    for key in KEYS[:2]:
        cluster[cluster.owners(key)[0]].put(key, v(-5), key)
    put_everywhere(cluster, "m", -5, "m")
    ctx = cluster.context(read_quorum="all")
    assert drive(batch.get_many(ctx, KEYS), cluster) == {"k": "k", "l": "l", "m": "m"}
    assert set().union(*keys_of(cluster, "copy_many").values()) == {b"k", b"l"}
    assert ctx.shared.counters.repairs == 2
    for key in KEYS:
        assert sum(cluster[name].value(key) == key for name in cluster.owners(key)) >= 2


def test_a_key_is_not_returned_before_a_majority_holds_it(cluster: Cluster) -> None:
    first, second, third = cluster.owners("k")
    cluster[first].put("k", v(-5), 1)
    hand = Hand(batch.get_many(cluster.context(), ["k"]), cluster)
    hand.deliver(first, second)
    hand.resume()
    assert (hand.asked, hand.call(second).method) == ([second], "copy_many")
    assert hand.fail(second) == [third], "one that was not asked may take it as well"
    hand.deliver(third)
    assert hand.resume().result == {"k": 1}


def test_a_key_that_cannot_be_written_back_is_a_miss(cluster: Cluster) -> None:
    first, second, third = cluster.owners("k")
    cluster[first].put("k", v(-5), 1)
    hand = Hand(batch.get_many(cluster.context(), ["k"]), cluster)
    hand.deliver(first, second)
    hand.resume()
    hand.fail(second)
    hand.fail(third)
    assert hand.resume().result == {}


def test_a_key_that_changed_while_it_was_written_back_is_read_again(cluster: Cluster) -> None:
    first, second, third = cluster.owners("k")
    cluster[first].put("k", v(-5), "old")
    hand = Hand(batch.get_many(cluster.context(), ["k"]), cluster)
    hand.deliver(first, second)
    hand.resume()
    drive(write.set(cluster.context(), "k", "new"), cluster)
    hand.deliver(second, third)
    assert hand.resume().finish() == {"k": "new"}


def test_a_key_that_was_deleted_while_it_was_written_back_is_a_miss(cluster: Cluster) -> None:
    first, second, third = cluster.owners("k")
    cluster[first].put("k", v(-5), "old")
    hand = Hand(batch.get_many(cluster.context(), ["k"]), cluster)
    hand.deliver(first, second)
    hand.resume()
    drive(write.delete(cluster.context(), "k"), cluster)
    hand.deliver(second, third)
    assert hand.resume().finish() == {}


def test_a_key_of_which_something_newer_may_be_forgotten_is_a_miss(cluster: Cluster) -> None:
    first, second, third = cluster.owners("k")
    cluster[first].put("k", v(-5), "old")
    for name in (second, third):
        cluster[name].forget_slot("k", v(-4))
    assert drive(batch.get_many(cluster.context(), ["k"]), cluster) == {}
    assert cluster.asked("copy_many") == []


def test_what_no_longer_decodes_is_a_counted_miss(cluster: Cluster) -> None:
    for name in cluster.owners("k"):
        cluster[name].store.set(full("k"), v(-5), b"\xc1", 2, None, 0)
    ctx = cluster.context()
    assert drive(batch.get_many(ctx, ["k"]), cluster) == {}
    assert (ctx.shared.counters.undecodable, ctx.shared.counters.misses) == (1, 1)


def test_available_mode_reads_what_any_one_node_has(cluster: Cluster) -> None:
    first, second, third = cluster.owners("k")
    cluster[first].put("k", v(-5), 1)
    cluster[second].down = cluster[third].down = True
    assert drive(batch.get_many(cluster.available(), ["k"]), cluster) == {"k": 1}


# -- writing ----------------------------------------------------------------------------------------------------------


def test_a_value_that_cannot_be_stored_harms_no_other(cluster: Cluster) -> None:
    cluster.limits = Limits()
    errors = drive(batch.set_many(cluster.context(), {"k": object(), "l": b"x" * (1 << 21), "m": 3}), cluster)
    assert {key: type(error) for key, error in errors.items()} == {"k": SerializationError, "l": ValueTooLarge}
    assert drive(batch.get_many(cluster.context(), KEYS), cluster) == {"m": 3}


def test_an_item_that_the_nodes_refuse_harms_no_other(cluster: Cluster) -> None:
    hand = Hand(batch.set_many(cluster.context(), {"k": 1, "l": 2}), cluster)
    refusal = (int(Code.OVERLOADED), MESSAGES[Code.OVERLOADED], None)
    hand.fail("a", sent=False)
    for name in ("b", "c"):
        hand.reply(name, (refusal, (True, int(Status.STORED), v(0))))
    errors = hand.resume().result
    assert list(errors) == ["k"]
    assert isinstance(errors["k"], QuorumError)
    assert errors["k"].in_doubt is False
    assert "overloaded" in errors["k"].reasons["b"]


def test_the_keys_of_reachable_owners_are_stored_and_the_others_reported() -> None:
    cluster = Cluster("abcdef")
    keys = [f"key{n}" for n in range(30)]
    dead = {"a", "b"}
    for name in dead:
        cluster[name].down = True
    errors = drive(batch.set_many(cluster.context(), dict.fromkeys(keys, 1)), cluster)
    lost = {key for key in keys if len(dead & set(cluster.owners(key))) == 2}
    assert set(errors) == lost != set()
    assert drive(batch.get_many(cluster.context(), set(keys) - lost), cluster) == dict.fromkeys(set(keys) - lost, 1)


def test_only_what_was_overtaken_is_written_again_and_above(cluster: Cluster) -> None:
    put_everywhere(cluster, "k", 20_000, "of a faster clock")
    assert drive(batch.set_many(cluster.context(), {"k": 1, "l": 2}), cluster) == {}
    assert [len(items(call)) for call in cluster.sent] == [2, 2, 2, 1, 1, 1]
    assert drive(batch.get_many(cluster.context(), ["k", "l"]), cluster) == {"k": 1, "l": 2}
    version = cluster[cluster.owners("k")[0]].version("k")
    assert version is not None
    assert version > v(20_000)


def test_a_delete_goes_above_what_it_deletes(cluster: Cluster) -> None:
    put_everywhere(cluster, "k", 20_000)
    assert drive(batch.delete_many(cluster.context(), ["k", "l"]), cluster) == 1
    assert drive(batch.get_many(cluster.context(), ["k"]), cluster) == {}


def test_every_item_of_a_batch_has_a_version_of_its_own(cluster: Cluster) -> None:
    drive(batch.set_many(cluster.context(), dict.fromkeys(KEYS, 1)), cluster)
    assert len({item[1] for item in items(cluster.sent[0])}) == 3


def test_a_write_that_too_few_acknowledge_is_in_doubt(cluster: Cluster) -> None:
    first, second, third = cluster.owners("k")
    hand = Hand(batch.set_many(cluster.context(), {"k": 1}), cluster)
    hand.deliver(first)
    hand.fail(second)
    hand.fail(third)
    error = hand.resume().result["k"]
    assert isinstance(error, QuorumError)
    assert (error.in_doubt, error.needed, error.got) == (True, 2, 1)


def test_a_write_that_never_left_is_not_in_doubt(cluster: Cluster) -> None:
    hand = Hand(batch.delete_many(cluster.context(), ["k"]), cluster)
    for name in ("a", "b", "c"):
        hand.fail(name, sent=False)
    with pytest.raises(QuorumError) as caught:
        hand.resume()
    assert caught.value.in_doubt is False


def test_deleting_tries_all_keys_before_it_raises() -> None:
    cluster = Cluster("abcdef")
    keys = [f"key{n}" for n in range(30)]
    for key in keys:
        put_everywhere(cluster, key, -5)
    for name in "ab":
        cluster[name].down = True
    with pytest.raises(QuorumError):
        drive(batch.delete_many(cluster.context(), keys), cluster)
    deleted = [key for key in keys if not {"a", "b"} <= set(cluster.owners(key))]
    assert all(cluster[name].value(key) is None for key in deleted for name in cluster.owners(key) if name not in "ab")


def test_a_delete_of_many_that_was_made_in_part_is_in_doubt() -> None:
    """The key that comes first was certainly not deleted; the error is about all of them."""
    cluster = Cluster("abcdef")
    lost, made = (
        next(key for key in map("key{}".format, range(1000)) if len({*cluster.owners(key)} & {*"abc"}) == away)
        for away in (3, 0)
    )
    for name in "abc":
        cluster[name].down = True
    for keys, in_doubt in (([lost], False), ([lost, made], True)):
        with pytest.raises(QuorumError) as caught:
            drive(batch.delete_many(cluster.context(consistency="linearizable"), keys), cluster)
        assert caught.value.in_doubt is in_doubt


def test_acknowledgements_of_incomplete_owners_do_not_count(cluster: Cluster) -> None:
    first, second, third = cluster.owners("k")
    cluster[first].restart()
    cluster[second].down = True
    errors = drive(batch.set_many(cluster.context(), {"k": 1}), cluster)
    assert list(errors) == ["k"]
    assert cluster[third].value("k") == 1


def test_a_batch_voids_promises_like_a_single_write(cluster: Cluster) -> None:
    hand = Hand(mutate.incr(cluster.context(), "k"), cluster)
    hand.deliver(*cluster.owners("k"))
    hand.resume()
    assert drive(batch.set_many(cluster.context(skew=-20_000), {"k": 100, "l": 1}), cluster) == {}
    hand.deliver(*hand.asked[:2])
    with pytest.raises(QuorumError):
        hand.resume()
    assert drive(read.get(cluster.context(), "k"), cluster) == 100


def test_lifetimes_hold_for_all_items(cluster: Cluster) -> None:
    ctx = cluster.context()
    drive(batch.set_many(ctx, {"k": 1, "l": 2}, 5), cluster)
    assert drive(read.ttl(ctx, "l"), cluster) == pytest.approx(5)
    cluster.time.advance(5000)
    assert drive(batch.get_many(ctx, ["k", "l"]), cluster) == {}


# -- keys that fare alike share a round -------------------------------------------------------------------------------

STORED = (True, int(Status.STORED), v(1))
ANSWERS = [
    STORED,
    (True, int(Status.NEWER), v(9)),
    (False, int(Status.STORED), v(1)),
    (int(Code.OVERLOADED), MESSAGES[Code.OVERLOADED], None),
    None,
]
"""Of an owner about one set; the last is none that makes sense."""


class Told:
    """A batch of writes that is told what befalls its calls, with one part for all keys or one for each."""

    def __init__(self, together: bool) -> None:
        self.round = batch.BatchRound(Cluster().context(), "set_many", self._parts(together))
        self.link = FakeLink()
        self.waiting = list(self.round.begin())

    @staticmethod
    def _parts(together: bool) -> list[batch.Part]:
        def made(*keys: bytes) -> batch.Part:
            calls, spares = [Call(node, "", ()) for node in "abc"], [Call(node, "", ()) for node in "de"]
            round_ = WriteRound(calls, Quorum(2), spares=spares, hear=Quorum(2))
            return batch.Part(round_, keys, [(key, v(1)) for key in keys], len(keys))

        return [made(b"k", b"l", b"m")] if together else [made(key) for key in (b"k", b"l", b"m")]

    def tell(self, node: str, answers: list[Any] | None) -> None:
        """The node's oldest call is answered, as far as there are answers, or fails."""
        call = next((call for call in self.waiting if call.node == node), None)
        if call is None or self.round.over():
            return
        self.waiting.remove(call)
        if answers is None:
            self.waiting += self.round.failed(call, ConnectionError("broke"), sent=True)
        else:
            self.waiting += self.round.replied(call, tuple(answers[: len(items(call))]), self.link)

    def late(self) -> None:
        if not self.round.over():
            self.waiting += self.round.late()

    def state(self) -> tuple[Any, ...]:
        """What is asked of whom, and how every key fares."""
        asked = sorted((call.node, [item[0] for item in items(call)]) for call in self.waiting)
        rounds = {key: part.round for part in self.round.parts for key in part.keys}
        fares = {
            key: (
                [(reply.node, reply.result) for reply in round_.replies],
                [(failure.node, failure.sent) for failure in round_.failures],
                (round_.pending, round_.spares, round_.over(), round_.missing()),
            )
            for key, round_ in sorted(rounds.items())
        }
        return asked, fares, self.round.over()


some_answers = st.lists(st.sampled_from([STORED, STORED, STORED, *ANSWERS]), min_size=1, max_size=3)
told_things = st.tuples(st.sampled_from("abcde"), st.just([STORED] * 3) | some_answers | st.none()) | st.just(None)


@given(st.lists(told_things, max_size=8))
def test_keys_whose_writes_share_a_round_fare_as_each_would_alone(things: list[Any]) -> None:
    together, alone = Told(together=True), Told(together=False)
    assert len(together.round.parts) == 1
    for thing in things:
        for told in (together, alone):
            if thing is None:
                told.late()
            else:
                told.tell(*thing)
        assert together.state() == alone.state()


def test_what_is_stored_everywhere_is_counted_once_for_all_keys() -> None:
    told = Told(together=True)
    told.tell("a", [STORED] * 3)
    told.tell("b", [STORED] * 3)
    assert (len(told.round.parts), told.round.over()) == (1, True)


def test_the_first_key_to_fare_otherwise_ends_what_is_shared() -> None:
    told = Told(together=True)
    told.tell("a", [STORED] * 3)
    told.tell("b", [STORED, ANSWERS[1], STORED])
    rounds = {part.keys: part.round for part in told.round.parts}
    assert [round_.over() for round_ in rounds.values()] == [True, False, True]
    assert [len(round_.live()) for round_ in rounds.values()] == [2, 2, 2]
