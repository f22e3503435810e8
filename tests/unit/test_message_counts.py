"""What operations send in a healthy cluster: rounds, requests, replies, bytes, counted, so that nothing grows unseen.

docs/scaling.md tells these numbers.  One that has to change is to be changed knowingly, there and here.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dcache.ops import batch, load, mutate, read, write
from dcache.ops.context import Context
from dcache.ops.effects import Op
from dcache.wire import encode_reply, encode_request
from tests.unit.ops_kit import Cluster, Hand

KEY, VALUE = "key:123456", b"x" * 100
KEYS = [f"key:{number:06}" for number in range(100)]
MESSAGE_ID = 1_000_000
"""One of five bytes: none is longer, and a node may use as many for every reply."""

Making = Callable[[Context], Op[object]]


class Counts:
    """What an operation takes when everybody answers, a second after the one before: no clock is behind another."""

    def __init__(self, cluster: Cluster, making: Making) -> None:
        cluster.clear_log()
        cluster.time.advance(1000)
        hand = Hand(making(cluster.context()), cluster)
        hand.finish()
        self.rounds = len(hand.rounds)
        self.nodes = cluster.asked()
        self.detached = len(cluster.detached)
        self.replies = [reply for round_ in hand.rounds for reply in round_.replies]
        self.sent = sum(len(encode_request(MESSAGE_ID, call.method, call.params)) for call in cluster.sent)
        self.received = sum(len(encode_reply(MESSAGE_ID, reply.result)) for reply in self.replies)

    @property
    def messages(self) -> tuple[int, int, int]:
        """Rounds, requests and replies."""
        return self.rounds, len(self.nodes), len(self.replies)

    @property
    def bytes(self) -> tuple[int, int]:
        return self.sent, self.received


def cluster_of(nodes: int, replicas: int = 3) -> Cluster:
    """Nodes that hold `KEY` and `KEYS`."""
    cluster = Cluster("abcdefgh"[:nodes], replicas)
    values = dict.fromkeys([KEY, *KEYS], VALUE)
    assert Hand(batch.set_many(cluster.context(), values), cluster).finish() == {}
    return cluster


@pytest.fixture
def three() -> Cluster:
    return cluster_of(3)


# -- single keys ------------------------------------------------------------------------------------------------------

SINGLE: dict[str, tuple[Making, tuple[int, int, int]]] = {
    "a get that hits": (lambda ctx: read.get(ctx, KEY), (1, 2, 2)),
    "a get that misses": (lambda ctx: read.get(ctx, "absent"), (1, 2, 2)),
    "gets": (lambda ctx: read.gets(ctx, KEY), (1, 2, 2)),
    "exists": (lambda ctx: read.exists(ctx, KEY), (1, 2, 2)),
    "ttl": (lambda ctx: read.ttl(ctx, KEY), (1, 2, 2)),
    "set": (lambda ctx: write.set(ctx, KEY, VALUE), (1, 3, 2)),
    "delete of nothing": (lambda ctx: write.delete(ctx, "absent"), (1, 3, 2)),
}
"""Of three replicas a read asks two; a write asks all three, and is done when two have answered."""


@pytest.mark.parametrize("name", SINGLE)
def test_single_keys_take_one_round_and_no_request_more_than_needed(three: Cluster, name: str) -> None:
    making, expected = SINGLE[name]
    counts = Counts(three, making)
    assert counts.messages == expected
    assert len(set(counts.nodes)) == len(counts.nodes), "nobody is asked twice"
    assert counts.detached == 0


@pytest.mark.parametrize("nodes", [1, 3, 8])
def test_one_replica_takes_one_request_and_one_reply(nodes: int) -> None:
    cluster = cluster_of(nodes, replicas=1)
    for making, _ in SINGLE.values():
        assert Counts(cluster, making).messages == (1, 1, 1)


@pytest.mark.parametrize("nodes", [3, 8])
def test_single_keys_cost_the_same_however_many_nodes_there_are(nodes: int) -> None:
    cluster = cluster_of(nodes)
    for making, expected in SINGLE.values():
        assert Counts(cluster, making).messages == expected


def test_a_conditional_change_takes_two_rounds_with_the_owners(three: Cluster) -> None:
    for making in (lambda ctx: mutate.incr(ctx, "counter", 1, initial=0), lambda ctx: mutate.touch(ctx, KEY, 60)):
        assert Counts(three, making).messages == (2, 6, 4)


def test_to_claim_what_is_to_be_filled_takes_one_round(three: Cluster) -> None:
    assert Counts(three, lambda ctx: load.lookup(ctx, "to be filled")).messages == (1, 2, 2)


def test_a_race_with_a_slow_owner_costs_one_request_more(three: Cluster) -> None:
    three.clear_log()
    hand = Hand(read.get(three.context(), KEY), three)
    three.sent += hand.round.hedge()
    assert len(three.sent) == 3
    assert hand.round.hedge() == (), "there is nobody left to race with"


# -- batches ----------------------------------------------------------------------------------------------------------

BATCHES: dict[str, Making] = {
    "get_many": lambda ctx: batch.get_many(ctx, KEYS),
    "set_many": lambda ctx: batch.set_many(ctx, dict.fromkeys(KEYS, VALUE)),
    "delete_many": lambda ctx: batch.delete_many(ctx, [f"no {key}" for key in KEYS]),
}


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("nodes", [1, 3, 8])
@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_is_one_round_of_one_request_to_each_node_that_is_asked(name: str, nodes: int, replicas: int) -> None:
    cluster = cluster_of(nodes, replicas)
    counts = Counts(cluster, BATCHES[name])
    assert counts.rounds == 1
    assert sorted(counts.nodes) == sorted(set(counts.nodes)), "nobody is asked twice"
    assert len(counts.nodes) == nodes
    assert counts.detached == 0


@pytest.mark.parametrize(("nodes", "replicas", "each"), [(1, 1, 1), (8, 1, 1), (3, 3, 2), (8, 3, 2)])
def test_a_batch_asks_as_many_owners_about_each_key_as_a_single_get(nodes: int, replicas: int, each: int) -> None:
    cluster = cluster_of(nodes, replicas)
    cluster.clear_log()
    Hand(batch.get_many(cluster.context(), KEYS), cluster).finish()
    assert sum(len(call.params[-1]) for call in cluster.sent) == each * len(KEYS)


# -- bytes ------------------------------------------------------------------------------------------------------------


def test_bytes_of_a_get_beside_key_and_value(three: Cluster) -> None:
    counts = Counts(three, SINGLE["a get that hits"][0])
    assert counts.bytes == (2 * (len(KEY) + 26), 2 * (len(VALUE) + 28))


def test_bytes_of_a_get_that_misses_beside_the_key(three: Cluster) -> None:
    counts = Counts(three, SINGLE["a get that misses"][0])
    assert counts.bytes == (2 * (len("absent") + 26), 2 * 25)


def test_bytes_of_a_set_beside_key_and_value(three: Cluster) -> None:
    counts = Counts(three, SINGLE["set"][0])
    assert counts.bytes == (3 * (len(KEY) + len(VALUE) + 44), 2 * 25)


def test_bytes_of_batches_for_each_key_and_owner_beside_key_and_value(three: Cluster) -> None:
    """What is around the items (method, fingerprint) is less than a byte for each."""
    sent, received = Counts(three, BATCHES["get_many"]).bytes
    asked = 2 * len(KEYS)
    assert sent / asked - len(KEYS[0]) < 4
    assert received / asked - len(VALUE) < 23
    sent, received = Counts(three, BATCHES["set_many"]).bytes
    assert sent / (3 * len(KEYS)) - len(KEYS[0]) - len(VALUE) < 24
    assert received / (2 * len(KEYS)) < 20
