"""What each method of a node answers and refuses, called without a server and under a fake clock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import attrs
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.node.promises import CLAIMS_PER_KEY
from dcache.node.scans import SCAN_CHUNK, SCANS_AT_ONCE
from dcache.node.service import Identity, Refusal, Service, View
from dcache.node.store import ENTRY_OVERHEAD, Store
from dcache.record import ZERO, Version, make_version
from dcache.wire import MESSAGES, PROTOCOL, Code, Limits, Status

RING, OTHER_RING = b"ring", b"other ring"
TABLE = ("the", "member", "table")
NS, KEY = b"ns", b"a0"
SLOTS = 4
ALL, NONE = b"\x0f", b"\0"  # slots as bitmaps
WALL = 1_000_000_000_000  # ms since 1970 at the start of each test
SKEW = 60_000
STORED, NEWER = Status.STORED, Status.NEWER
LIMITS = Limits(max_key=20, max_namespace=5, max_value=1000, max_batch=8, frame_room=1000)


class Clock:
    """Both clocks of a node, in ms: `now` counts from 0."""

    def __init__(self) -> None:
        self.passed = 0

    def now(self) -> int:
        return self.passed

    def wall(self) -> int:
        return WALL + self.passed


@attrs.frozen
class Node:
    service: Service
    store: Store
    clock: Clock

    def __call__(self, method: str, *params: Any) -> Any:
        """A call under the right ring, in namespace NS."""
        return self.service.handle(method, (RING, NS, *params))

    def raw(self, method: str, *params: Any) -> Any:
        return self.service.handle(method, params)

    def put(self, key: bytes, n: int, value: bytes = b"x", ttl: int | None = None) -> None:
        assert self("set", key, v(n), value, 0, ttl) == (True, STORED, v(n))

    def held(self, key: bytes) -> bytes | None:
        answer = self("get", key)
        return answer[2] if len(answer) == 5 else None


def slot_of(key: bytes) -> int:
    return key[-1] % SLOTS


def make_node(*, complete: bool = True, limits: Limits = LIMITS, memory: int = 1_000_000, **options: Any) -> Node:
    clock = Clock()
    store = Store(memory, slot_of, SLOTS, **options)
    store.own(range(SLOTS))
    if complete:
        store.complete(range(SLOTS))
    service = Service(store, Identity("n1", "boot-1", "9.9"), clock.now, clock.wall, limits=limits, skew=SKEW)
    service.view = View("cluster-1", RING, TABLE)
    return Node(service, store, clock)


@pytest.fixture
def node() -> Node:
    return make_node()


def v(n: int) -> Version:
    """A version of `n` ms after the start of the test."""
    return make_version(WALL + n, 0, 1)


def refused(node: Node, method: str, *params: Any) -> tuple[Code, Any]:
    with pytest.raises(Refusal) as caught:
        node.raw(method, *params)
    assert str(caught.value) == MESSAGES[caught.value.code]
    return caught.value.code, caught.value.detail


def refused_here(node: Node, method: str, *params: Any) -> Code:
    return refused(node, method, RING, NS, *params)[0]


def wire(code: Code, detail: Any) -> tuple[int, str, Any]:
    return int(code), MESSAGES[code], detail


# -- the forms of answers ----------------------------------------------------------------------------------------------


def test_a_held_key_is_answered_with_its_record_and_remaining_life(node: Node) -> None:
    assert node("set", KEY, v(5), b"value", 3, 700) == (True, STORED, v(5))
    node.clock.passed = 200
    assert node("get", KEY) == (True, v(5), b"value", 3, 500)


def test_a_record_without_expiry_has_no_remaining_life(node: Node) -> None:
    node.put(KEY, 5)
    assert node("get", KEY) == (True, v(5), b"x", 0, None)


def test_an_absent_key_is_answered_with_the_floor_of_its_slot(node: Node) -> None:
    assert node("get", KEY) == (True, ZERO, False)
    node("delete", KEY, v(7))
    assert node("get", KEY) == (True, v(7), False)


def test_a_key_is_gone_when_its_life_is_over_and_leaves_its_version_as_floor(node: Node) -> None:
    node.put(KEY, 5, ttl=100)
    node.clock.passed = 100
    assert node("get", KEY) == (True, v(5), False)


def test_every_answer_about_a_key_says_whether_the_slot_is_complete() -> None:
    node = make_node(complete=False)
    calls: list[tuple[Any, ...]] = [
        ("get", KEY),
        ("peek", KEY),
        ("claim", KEY, v(1), b""),
        ("prepare", KEY, v(2)),
        ("accept", KEY, v(2), b"x", 0, None),
        ("set", KEY, v(3), b"x", 0, None),
        ("copy", KEY, v(4), b"x", 0, None),
        ("delete", KEY, v(5)),
    ]
    assert [node(*call)[0] for call in calls] == [False] * len(calls)
    node.store.complete([slot_of(KEY)])
    node("set", KEY, v(6), b"x", 0, None)
    assert [node(*call)[0] for call in calls[:2]] == [True] * 2
    assert node("get", b"a1")[0] is False, "another slot"


def test_an_older_write_is_answered_with_the_newer_version(node: Node) -> None:
    node.put(KEY, 5)
    assert node("set", KEY, v(4), b"old", 0, None) == (True, NEWER, v(5))
    assert node("copy", KEY, v(4), b"old", 0, None) == (True, NEWER, v(5))
    assert node("delete", KEY, v(4)) == (True, NEWER, v(5), False)
    assert node.held(KEY) == b"x"


def test_delete_says_whether_the_key_was_held(node: Node) -> None:
    node.put(KEY, 5)
    assert node("delete", KEY, v(6)) == (True, STORED, v(6), True)
    assert node("delete", KEY, v(7)) == (True, STORED, v(7), False)


def test_peek_sends_all_but_the_value(node: Node) -> None:
    node("set", KEY, v(5), b"value", 3, 700)
    assert node("peek", KEY) == (True, v(5), b"", 3, 700)
    assert node("peek", b"none") == (True, ZERO, False)


def test_top_is_the_highest_version_held_forgotten_or_promised_of_the_key_or_in_its_slot(node: Node) -> None:
    assert node("top", KEY) == (True, ZERO)
    node.put(KEY, 5)
    assert node("top", KEY) == (True, v(5))
    node("prepare", KEY, v(7))
    node("release", KEY, v(7))
    assert node("top", KEY) == node("top_many", ((KEY,),))[0] == (True, v(7))
    assert node("top_many", ((KEY,), (b"",)))[1][0] == Code.INVALID_KEY


def test_a_write_that_something_newer_beats_may_be_beaten_by_who_had_not_seen_it(node: Node) -> None:
    """What was promised above it has been accepted meanwhile, by a change that looked at something older."""
    node("prepare", KEY, v(7))
    node("accept", KEY, v(7), b"changed", 0, None)
    assert node("set", KEY, v(7), b"changed", 0, None) == (True, STORED, v(7))
    assert node("set", KEY, v(6), b"x", 0, None) == (True, Status.PROMISED, v(7))
    assert node("delete", KEY, v(6)) == (True, Status.PROMISED, v(7), False)
    assert node("copy", KEY, v(6), b"x", 0, None) == (True, NEWER, v(7)), "who holds it knows no better"
    node.put(KEY, 9)
    assert node("set", KEY, v(8), b"x", 0, None) == (True, NEWER, v(9))


def test_peek_is_no_use_and_get_is() -> None:
    """With room for two, the one that was got stays and the one that was only peeked at goes."""
    node = make_node(max_entries=2)
    node.put(b"a", 1)
    node.put(b"b", 2)
    node("get", b"a")
    node("peek", b"b")
    node.put(b"c", 3)
    assert [node.held(key) for key in (b"a", b"b", b"c")] == [b"x", None, b"x"]
    counters = node.store.counters
    assert (counters.hits, counters.misses) == (3, 1), "peek counts as neither"


# -- claims and ballots ------------------------------------------------------------------------------------------------


def test_a_claim_on_an_absent_key_is_promised_and_its_value_accepted(node: Node) -> None:
    assert node("claim", KEY, v(5), b"") == (True, ZERO, True)
    assert node("set", KEY, v(4), b"old", 0, None) == (True, Status.PROMISED, v(5))
    assert node("accept", KEY, v(5), b"filled", 2, 900) == (True, STORED, v(5))
    assert node("get", KEY) == (True, v(5), b"filled", 2, 900)


def test_a_claim_on_a_held_key_is_a_read(node: Node) -> None:
    node.put(KEY, 5)
    assert node("claim", KEY, v(6), b"") == (True, v(5), b"x", 0, None)
    assert node("accept", KEY, v(6), b"y", 0, None) == (True, NEWER, v(5))


def test_what_is_unreadable_counts_as_absent(node: Node) -> None:
    node.put(KEY, 5)
    assert node("claim", KEY, v(6), v(5)) == (True, ZERO, True)
    assert node("accept", KEY, v(6), b"y", 0, None) == (True, STORED, v(6))


def test_a_write_during_the_computation_voids_the_claim(node: Node) -> None:
    node("claim", KEY, v(5), b"")
    node("delete", KEY, v(6))
    assert node("accept", KEY, v(5), b"stale", 0, None) == (True, NEWER, v(6))
    assert node.held(KEY) is None


def test_accept_without_a_promise_is_refused(node: Node) -> None:
    assert node("accept", KEY, v(5), b"x", 0, None) == (True, NEWER, ZERO)


def test_claims_on_one_key_are_bounded(node: Node) -> None:
    for n in range(1, CLAIMS_PER_KEY + 1):
        assert node("claim", KEY, v(n + 1), b"")[2]
    assert not node("claim", KEY, v(1), b"")[2]


def test_prepare_returns_what_is_held(node: Node) -> None:
    assert node("prepare", KEY, v(3)) == (True, STORED, ZERO, None)
    assert node("accept", KEY, v(3), b"1", 4, 800) == (True, STORED, v(3))
    node.clock.passed = 300
    assert node("prepare", KEY, v(4)) == (True, STORED, v(3), (v(3), b"1", 4, 500))


def test_prepare_below_what_is_held_forgotten_or_promised_is_refused(node: Node) -> None:
    node.put(KEY, 5)
    assert node("prepare", KEY, v(4)) == (True, NEWER, v(5), None)
    node("delete", KEY, v(6))
    assert node("prepare", KEY, v(6)) == (True, NEWER, v(6), None)
    assert node("prepare", KEY, v(8))[1] == STORED
    assert node("prepare", KEY, v(7)) == (True, NEWER, v(8), None)


def test_an_overtaken_ballot_is_refused(node: Node) -> None:
    node("prepare", KEY, v(3))
    node.clock.passed = 1000
    node("prepare", KEY, v(4))
    assert node("accept", KEY, v(3), b"first", 0, None) == (True, NEWER, v(4))
    assert node("accept", KEY, v(4), b"second", 0, None) == (True, STORED, v(4))


# -- the fence ---------------------------------------------------------------------------------------------------------

FENCED: list[tuple[Any, ...]] = [
    ("get", NS, KEY),
    ("peek", NS, KEY),
    ("top", NS, KEY),
    ("claim", NS, KEY, v(1), b""),
    ("set", NS, KEY, v(1), b"x", 0, None),
    ("copy", NS, KEY, v(1), b"x", 0, None),
    ("accept", NS, KEY, v(1), b"x", 0, None),
    ("delete", NS, KEY, v(1)),
    ("prepare", NS, KEY, v(1)),
    ("release", NS, KEY, v(1)),
    ("get_many", NS, ((KEY,),)),
    ("top_many", NS, ((KEY,),)),
    ("set_many", NS, ((KEY, v(1), b"x", 0, None),)),
    ("copy_many", NS, ((KEY, v(1), b"x", 0, None),)),
    ("delete_many", NS, ((KEY, v(1)),)),
    ("newest", NS),
    ("clear", NS, v(1)),
    ("scan", NS, b"", None),
    ("ready",),
    ("overview", ALL),
    ("digests", ALL),
    ("index", ALL, None),
    ("close_index", 1),
    ("fetch", (NS + b"\0" + KEY,)),
    ("start_over", NONE, ZERO),
]
IN_TEST_COMPARISON = {"inventory"}  # needs an index
UNFENCED = {"hello", "ping", "table", "stats"}


def test_every_method_is_either_fenced_or_about_the_node_alone(node: Node) -> None:
    assert {call[0] for call in FENCED} | UNFENCED | IN_TEST_COMPARISON == set(node.service.methods)


@pytest.mark.parametrize("call", FENCED, ids=lambda call: call[0])
def test_another_ring_is_refused_with_the_table_and_does_nothing(node: Node, call: tuple[Any, ...]) -> None:
    method, *params = call
    for fingerprint in (OTHER_RING, b"", None, "ring"):
        assert refused(node, method, fingerprint, *params) == (Code.WRONG_RING, TABLE)
    assert (len(node.store), node.store.newest, len(node.store.promises)) == (0, ZERO, 0)
    node.raw(method, RING, *params)


@pytest.mark.parametrize("call", FENCED, ids=lambda call: call[0])
def test_a_node_without_a_cluster_is_not_ready(node: Node, call: tuple[Any, ...]) -> None:
    node.service.view = View()
    method, *params = call
    for fingerprint in (RING, b""):
        assert refused(node, method, fingerprint, *params)[0] == Code.NOT_READY


def test_a_new_view_moves_the_fence_at_once(node: Node) -> None:
    node.service.view = View("cluster-1", OTHER_RING, ("newer table",))
    assert refused(node, "get", RING, NS, KEY) == (Code.WRONG_RING, ("newer table",))
    assert node.raw("get", OTHER_RING, NS, KEY) == (True, ZERO, False)


# -- about the node ----------------------------------------------------------------------------------------------------


def test_hello_says_who_and_when_and_what_is_allowed(node: Node) -> None:
    node.clock.passed = 5
    assert node.raw("hello", PROTOCOL, None, False) == {
        "protocol": PROTOCOL,
        "version": "9.9",
        "cluster": "cluster-1",
        "node": "n1",
        "boot": "boot-1",
        "time": WALL + 5,
        "limits": {"max_key": 20, "max_namespace": 5, "max_value": 1000, "max_batch": 8, "frame_room": 1000},
        "digest": b"",
    }
    node.service.view = View("cluster-1", RING, TABLE, b"of the table")
    assert node.raw("hello", PROTOCOL, None, False)["digest"] == b"of the table"


@pytest.mark.parametrize("protocol", [0, PROTOCOL + 1, None, "1"])
def test_hello_in_another_protocol_is_refused_with_the_one_spoken(node: Node, protocol: Any) -> None:
    code, detail = refused(node, "hello", protocol, None, False)
    assert code == Code.BAD_REQUEST
    assert str(PROTOCOL) in detail


def test_the_table_is_passed_on_as_it_is(node: Node) -> None:
    assert node.raw("table") == TABLE
    node.service.view = View()
    assert refused(node, "table")[0] == Code.NOT_READY


def test_ping_answers_nothing(node: Node) -> None:
    assert node.raw("ping") is None


def test_ready_means_that_all_slots_are_complete() -> None:
    node = make_node(complete=False)
    assert node.raw("ready", RING) is False
    node.store.complete(range(SLOTS - 1))
    assert node.raw("ready", RING) is False
    node.store.complete([SLOTS - 1])
    assert node.raw("ready", RING) is True
    node.store.own([])
    assert node.raw("ready", RING) is True, "there is nothing to wait for"


def test_stats_tell_what_is_held_what_was_done_and_what_others_add(node: Node) -> None:
    node.put(KEY, 1, b"12345")
    node("get", KEY)
    node("get", b"none")
    node.service.also_report(lambda: {"connections": 3})
    node.service.also_report(lambda: {"epoch": 7})
    node.clock.passed = 2500
    stats = node.raw("stats")
    expected = {
        "node": "n1",
        "version": "9.9",
        "uptime": 2,
        "entries": 1,
        "bytes": len(NS + b"\0" + KEY) + 5 + ENTRY_OVERHEAD,
        "memory_limit": 1_000_000,
        "complete": True,
        "slots": SLOTS,
        "slots_complete": SLOTS,
        "hits": 1,
        "misses": 1,
        "writes": 1,
        "connections": 3,
        "epoch": 7,
    }
    assert {name: stats[name] for name in expected} == expected


def test_stats_tell_how_far_completing_is() -> None:
    node = make_node(complete=False)
    node.store.own([1, 2, 3])
    node.store.complete([2])
    stats = node.raw("stats")
    assert (stats["complete"], stats["slots"], stats["slots_complete"]) == (False, 3, 1)


def test_sweep_forgets_what_expired(node: Node) -> None:
    node.put(KEY, 1, ttl=1000)
    node.clock.passed = 5000
    assert not node.service.sweep(10)
    assert len(node.store) == 0


# -- clocks ------------------------------------------------------------------------------------------------------------

STAMPED: list[tuple[Any, ...]] = [
    ("set", lambda version: (KEY, version, b"x", 0, None)),
    ("delete", lambda version: (KEY, version)),
    ("claim", lambda version: (KEY, version, b"")),
    ("prepare", lambda version: (KEY, version)),
    ("clear", lambda version: (version,)),
]
stamped = pytest.mark.parametrize(("method", "params"), STAMPED, ids=[method for method, _ in STAMPED])


@stamped
def test_a_version_far_ahead_of_the_node_is_refused_with_both_times(node: Node, method: str, params: Any) -> None:
    assert refused(node, method, RING, NS, *params(v(SKEW + 1))) == (Code.CLOCK_SKEW, (WALL + SKEW + 1, WALL))
    assert (len(node.store), node.store.newest, len(node.store.promises)) == (0, ZERO, 0)


@stamped
def test_a_version_within_the_skew_is_taken(node: Node, method: str, params: Any) -> None:
    node(method, *params(v(SKEW)))
    assert node.store.newest == v(SKEW)


@stamped
def test_a_version_far_ahead_is_taken_up_to_a_second_above_what_is_held(node: Node, method: str, params: Any) -> None:
    """However a far version got here, the key can still be written."""
    held = 10 * SKEW
    node("copy", KEY, v(held), b"x", 0, None)
    assert refused_here(node, method, *params(v(held + 1001))) == Code.CLOCK_SKEW
    node(method, *params(v(held + 1000)))


@stamped
def test_a_version_far_ahead_is_taken_up_to_a_second_above_what_is_forgotten(
    node: Node, method: str, params: Any
) -> None:
    held = 10 * SKEW
    node("copy", KEY, v(held), b"x", 0, 1)
    node.clock.passed = 1
    assert refused_here(node, method, *params(v(held + 1001))) == Code.CLOCK_SKEW
    node(method, *params(v(held + 1000)))


def test_what_another_slot_knows_does_not_count(node: Node) -> None:
    node("copy", b"a1", v(10 * SKEW), b"x", 0, None)
    assert refused_here(node, "set", KEY, v(10 * SKEW), b"x", 0, None) == Code.CLOCK_SKEW


def test_copies_may_have_any_version(node: Node) -> None:
    assert node("copy", KEY, v(10 * SKEW), b"x", 0, None) == (True, STORED, v(10 * SKEW))
    answers = node("copy_many", ((b"b0", v(10 * SKEW), b"y", 0, None),))
    assert answers == [(True, STORED, v(10 * SKEW))]


def test_the_nodes_own_clock_is_what_counts(node: Node) -> None:
    assert refused_here(node, "set", KEY, v(SKEW + 500), b"x", 0, None) == Code.CLOCK_SKEW
    node.clock.passed = 500
    node.put(KEY, SKEW + 500)


# -- what is checked ---------------------------------------------------------------------------------------------------

KEYED: list[tuple[str, Any]] = [
    ("get", ()),
    ("peek", ()),
    ("claim", (v(1), b"")),
    ("set", (v(1), b"x", 0, None)),
    ("copy", (v(1), b"x", 0, None)),
    ("accept", (v(1), b"x", 0, None)),
    ("delete", (v(1),)),
    ("prepare", (v(1),)),
]
keyed = pytest.mark.parametrize(("method", "rest"), KEYED, ids=[method for method, _ in KEYED])


@keyed
@pytest.mark.parametrize("key", [b"", b"k" * 21, "text", None, 5, (b"k",)])
def test_a_key_is_binary_and_of_limited_length(node: Node, method: str, rest: Any, key: Any) -> None:
    assert refused_here(node, method, key, *rest) == Code.INVALID_KEY
    node(method, b"k" * 20, *rest)


@keyed
@pytest.mark.parametrize("namespace", [b"n" * 6, b"a\0b", b"\0", "text", None, 5])
def test_a_namespace_is_binary_of_limited_length_and_without_nul(
    node: Node, method: str, rest: Any, namespace: Any
) -> None:
    assert refused(node, method, RING, namespace, KEY, *rest)[0] == Code.INVALID_KEY
    node.raw(method, RING, b"n" * 5, KEY, *rest)
    node.raw(method, RING, b"", KEY, *rest)


@pytest.mark.parametrize(("method", "rest"), [("clear", (v(1),)), ("scan", (b"", None))])
@pytest.mark.parametrize("namespace", [b"n" * 6, b"a\0b", "text", None])
def test_a_whole_namespace_is_checked_as_well(node: Node, method: str, rest: Any, namespace: Any) -> None:
    assert refused(node, method, RING, namespace, *rest)[0] == Code.INVALID_KEY


def test_a_key_may_hold_any_bytes_and_stays_in_its_namespace(node: Node) -> None:
    node.raw("set", RING, b"n", b"s\0k", v(1), b"x", 0, None)
    assert len(node.raw("get", RING, b"n", b"s\0k")) == 5
    assert len(node.raw("get", RING, b"", b"n\0s\0k")) == 3


VALUED = pytest.mark.parametrize("method", ["set", "copy", "accept"])


@VALUED
def test_a_value_over_the_limit_is_refused_with_both_sizes_and_evicts_nothing(node: Node, method: str) -> None:
    node.put(b"other", 1)
    detail = refused(node, method, RING, NS, KEY, v(2), b"x" * 1001, 0, None)
    assert detail == (Code.VALUE_TOO_LARGE, (1001, 1000))
    assert node.held(b"other") == b"x"
    node("prepare", KEY, v(2))
    assert node(method, KEY, v(2), b"x" * 1000, 0, None) == (True, STORED, v(2))


def test_a_value_larger_than_the_whole_store_is_refused_and_evicts_nothing() -> None:
    node = make_node(memory=400)
    node.put(b"o", 1)
    code, detail = refused(node, "set", RING, NS, KEY, v(2), b"x" * 500, 0, None)
    assert (code, detail[1]) == (Code.VALUE_TOO_LARGE, 400)
    assert node.held(b"o") == b"x"


@VALUED
@pytest.mark.parametrize("value", ["text", None, 5, (b"x",)])
def test_a_value_is_binary(node: Node, method: str, value: Any) -> None:
    assert refused_here(node, method, KEY, v(1), value, 0, None) == Code.BAD_REQUEST


@VALUED
@pytest.mark.parametrize("flags", [-1, 256, None, 1.0, True])
def test_flags_are_a_byte(node: Node, method: str, flags: Any) -> None:
    assert refused_here(node, method, KEY, v(1), b"x", flags, None) == Code.BAD_REQUEST


@VALUED
@pytest.mark.parametrize("ttl", [0, -1, 1.5, "1", True, float("nan")])
def test_a_lifetime_is_a_positive_number_of_milliseconds_or_nil(node: Node, method: str, ttl: Any) -> None:
    assert refused_here(node, method, KEY, v(1), b"x", 0, ttl) == Code.BAD_REQUEST
    assert len(node.store) == 0


VERSIONED: list[tuple[Any, ...]] = [*STAMPED, *((method, STAMPED[0][1]) for method in ("copy", "accept"))]


@pytest.mark.parametrize(("method", "params"), VERSIONED, ids=[method for method, _ in VERSIONED])
@pytest.mark.parametrize("version", [b"", bytes(11), bytes(13), "0" * 12, None, 5])
def test_a_version_has_twelve_bytes(node: Node, method: str, params: Any, version: Any) -> None:
    assert refused_here(node, method, *params(version)) == Code.BAD_REQUEST


@pytest.mark.parametrize("unreadable", [None, "0" * 12, 5])
def test_what_is_unreadable_is_told_in_bytes(node: Node, unreadable: Any) -> None:
    assert refused_here(node, "claim", KEY, v(1), unreadable) == Code.BAD_REQUEST
    assert len(node.store.promises) == 0


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["set_many", "copy_many"])
def test_a_bad_item_of_a_batch_is_refused_and_the_others_are_written(node: Node, method: str) -> None:
    node.put(b"newer", 9)
    items = (
        (b"good", v(1), b"1", 0, None),
        (b"", v(1), b"x", 0, None),
        (b"large", v(1), b"x" * 1001, 0, None),
        (b"newer", v(1), b"x", 0, None),
        (b"ttl", v(1), b"x", 0, 0),
        (b"version", b"short", b"x", 0, None),
        (b"few", v(1)),
        (),
        None,
        (b"last", v(1), b"2", 0, 50),
    )
    answers = node(method, items)
    assert answers[0] == (True, STORED, v(1))
    assert answers[2] == wire(Code.VALUE_TOO_LARGE, (1001, 1000))
    assert answers[3] == (True, NEWER, v(9))
    assert answers[9] == (True, STORED, v(1))
    codes = {1: Code.INVALID_KEY, 4: Code.BAD_REQUEST, 5: Code.BAD_REQUEST, 6: Code.BAD_REQUEST}
    codes |= {7: Code.BAD_REQUEST, 8: Code.BAD_REQUEST}
    assert {i: answers[i] for i in codes} == {i: wire(code, answers[i][2]) for i, code in codes.items()}
    assert [node.held(key) for key in (b"good", b"last", b"ttl", b"few")] == [b"1", b"2", None, None]


def test_the_clock_is_checked_for_each_item_of_a_batch(node: Node) -> None:
    far = v(SKEW + 1)
    assert node("set_many", ((b"a", far, b"x", 0, None), (b"b", v(1), b"x", 0, None))) == [
        wire(Code.CLOCK_SKEW, (WALL + SKEW + 1, WALL)),
        (True, STORED, v(1)),
    ]


def test_delete_many_answers_each_key(node: Node) -> None:
    node.put(b"a", 1)
    node.put(b"c", 9)
    answers = node("delete_many", ((b"a", v(5)), (b"b", v(5)), (b"c", v(5)), ("d", v(5))))
    assert answers[:3] == [(True, STORED, v(5), True), (True, STORED, v(5), False), (True, NEWER, v(9), False)]
    assert answers[3][0] == Code.INVALID_KEY


def test_a_batch_that_is_no_list_is_a_bad_request(node: Node) -> None:
    for method in ("get_many", "set_many", "copy_many", "delete_many"):
        assert refused_here(node, method, 5) == Code.BAD_REQUEST
        assert refused_here(node, method, None) == Code.BAD_REQUEST
        assert node(method, ()) == []


def test_get_many_answers_in_order(node: Node) -> None:
    node.put(b"a", 1, b"A")
    node.put(b"c", 3, b"C", ttl=70)
    assert node("get_many", ((b"a",), (b"b",), (b"c",))) == [
        (True, v(1), b"A", 0, None),
        (True, ZERO, False),
        (True, v(3), b"C", 0, 70),
    ]


def test_get_many_with_a_bad_key_is_refused(node: Node) -> None:
    assert refused_here(node, "get_many", ((b"a",), (b"",))) == Code.INVALID_KEY
    assert refused_here(node, "get_many", ((b"a",), (b"b", b"c"))) == Code.BAD_REQUEST


def test_get_many_answers_the_first_items_that_one_frame_holds(node: Node) -> None:
    """A frame has room for 1000 bytes beside the largest value: three of 200 and their heads, not four."""
    for n in range(6):
        node.put(b"k%d" % n, n, b"v" * 200)
    items = tuple((b"k%d" % n,) for n in range(6))
    assert len(node("get_many", items)) == 3
    assert len(node("get_many", items[3:])) == 3


def test_get_many_always_answers_at_least_one(node: Node) -> None:
    for n in range(2):
        node.put(b"k%d" % n, n, b"v" * 1000)
    answers = node("get_many", ((b"k0",), (b"k1",)))
    assert [answer[2] for answer in answers] == [b"v" * 1000]


def test_absent_keys_take_room_too() -> None:
    node = make_node(limits=attrs.evolve(LIMITS, frame_room=640))
    assert len(node("get_many", tuple((b"k%d" % n,) for n in range(50)))) == 10


# -- whole namespaces --------------------------------------------------------------------------------------------------


def test_newest_is_the_highest_version_seen_anywhere(node: Node) -> None:
    assert node("newest") == (True, ZERO)
    node.put(b"a", 5)
    node("claim", b"b", v(8), b"")
    node("delete", b"c", v(7))
    assert node("newest") == (True, v(8))


def test_clear_hides_its_namespace_at_once_and_only_it(node: Node) -> None:
    for namespace in (NS, b"ns2", b"n", b""):
        node.raw("set", RING, namespace, KEY, v(1), b"x", 0, None)
    assert node("clear", v(5)) == (True, v(5))
    assert node("get", KEY) == (True, v(5), False)
    assert node("scan", b"", None) == (None, [])
    assert [len(node.raw("get", RING, namespace, KEY)) for namespace in (b"ns2", b"n", b"")] == [5, 5, 5]


def test_nothing_older_than_a_clear_comes_back(node: Node) -> None:
    node("claim", KEY, v(4), b"")
    node("clear", v(5))
    assert node("set", KEY, v(4), b"x", 0, None) == (True, NEWER, v(5))
    assert node("accept", KEY, v(4), b"x", 0, None)[1] == NEWER
    node.put(KEY, 6)
    node.service.sweep(100)
    assert node.held(KEY) == b"x"


def test_newest_and_clear_say_whether_the_node_votes() -> None:
    node = make_node(complete=False)
    assert node("clear", v(5)) == node("newest") == (False, v(5))


def scan_all(node: Node, prefix: bytes = b"", namespace: bytes = NS) -> list[list[bytes]]:
    pages, cursor = [], None
    while True:
        cursor, page = node.raw("scan", RING, namespace, prefix, cursor)
        pages.append(page)
        if cursor is None:
            return pages


def test_scan_gives_each_key_once_in_pages_of_a_batch(node: Node) -> None:
    keys = [b"k%d" % n for n in range(20)]
    for key in keys:
        node.put(key, 1)
    pages = scan_all(node)
    assert [len(page) for page in pages] == [8, 8, 4]
    assert sorted(key for page in pages for key in page) == sorted(keys)


def test_scan_gives_live_keys_of_the_namespace_that_start_with_the_prefix(node: Node) -> None:
    for key in (b"aa", b"ab", b"b", b"a\0"):
        node.put(key, 1)
    node.put(b"ac", 1, ttl=10)
    node.raw("set", RING, b"ns2", b"ad", v(1), b"x", 0, None)
    node.clock.passed = 10
    assert sorted(scan_all(node, b"a")[0]) == [b"a\0", b"aa", b"ab"]
    assert scan_all(node, b"x") == [[]]
    assert scan_all(node, b"", b"ns2") == [[b"ad"]]


def test_a_page_looks_at_a_bounded_number_of_keys() -> None:
    node = make_node(memory=4 << 20)
    for n in range(SCAN_CHUNK + 10):
        node.put(b"%d" % n, 1)
    cursor, page = node("scan", b"none", None)
    assert cursor is not None
    assert page == []
    assert node("scan", b"none", cursor) == (None, [])


def test_a_scan_meets_neither_what_was_deleted_nor_what_was_written_since(node: Node) -> None:
    for n in range(10):
        node.put(b"k%d" % n, 1)
    cursor, first = node("scan", b"", None)
    for n in range(10):
        node("delete", b"k%d" % n, v(2))
    node.put(b"late", 3)
    assert node("scan", b"", cursor) == (None, [])
    assert len(first) == 8


def test_a_page_is_given_once(node: Node) -> None:
    """A client that repeats a page missed its answer, and would miss those keys: it has to start again."""
    for n in range(20):
        node.put(b"k%d" % n, 1)
    first, _ = node("scan", b"", None)
    second, _ = node("scan", b"", first)
    assert refused_here(node, "scan", b"", first) == Code.UNKNOWN_CURSOR
    assert refused_here(node, "scan", b"", (99, 4)) == Code.UNKNOWN_CURSOR
    assert second is not None


def test_scans_at_once_are_bounded_and_the_oldest_is_lost(node: Node) -> None:
    for n in range(10):
        node.put(b"k%d" % n, 1)
    cursors = [node("scan", b"", None)[0] for _ in range(SCANS_AT_ONCE + 1)]
    assert refused_here(node, "scan", b"", cursors[0]) == Code.UNKNOWN_CURSOR
    for cursor in cursors[1:]:
        assert node("scan", b"", cursor)[0] is None


@pytest.mark.parametrize(
    "params", [("text", None), (None, None), (b"", 5), (b"", (1,)), (b"", ({}, 1)), (b"", (1, 2, 3))]
)
def test_a_scan_with_bad_parameters_is_refused(node: Node, params: Any) -> None:
    assert refused_here(node, "scan", *params) == Code.BAD_REQUEST


# -- bad requests ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["", "nothing", "GET", "handle", "__init__", "sweep", "_set", "also_report"])
def test_an_unknown_method_is_named(node: Node, method: str) -> None:
    assert refused(node, method) == (Code.UNKNOWN_METHOD, method)


CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("hello", (PROTOCOL, None, False)),
    ("ping", ()),
    ("table", ()),
    ("stats", ()),
]
CALLS += [(method, (RING, *params)) for method, *params in FENCED]


@pytest.mark.parametrize(("method", "params"), CALLS, ids=[method for method, _ in CALLS])
def test_a_wrong_number_of_parameters_is_a_bad_request(node: Node, method: str, params: tuple[Any, ...]) -> None:
    assert refused(node, method, *params, None)[0] == Code.BAD_REQUEST
    if params:
        assert refused(node, method, *params[:-1])[0] == Code.BAD_REQUEST


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=14),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=8,
)


@given(data=st.data(), method=st.sampled_from([method for method, _ in CALLS]))
def test_whatever_the_parameters_are_a_method_answers_or_refuses(data: st.DataObject, method: str) -> None:
    """Each parameter is either right or anything: no other exception, and no parameter is believed unchecked."""
    node = make_node()
    params = [data.draw(st.just(right) | anything) for right in dict(CALLS)[method]]
    with contextlib.suppress(Refusal):
        node.raw(method, *params)
    for key in list(node.store.keys()):
        entry = node.store.peek(key, 0)
        assert entry is not None
        assert (type(entry.value), len(entry.version)) == (bytes, 12)


def test_a_fault_of_the_node_is_not_blamed_on_the_request(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(node.store, "get", broken)
    with pytest.raises(KeyError):
        node("get", KEY)


# -- encoded answers ---------------------------------------------------------------------------------------------------

NAMESPACES = [NS, b"", b"n", b"ns\0a", b"too long", "ns", None, 7, ()]
ODD_KEYS = [b"a0", b"b1", b"a", b"a\0a0", b"", bytes(21), "a0", None, 3, (b"a0",)]


def outcome(node: Node, ask: Callable[[], Any]) -> tuple[Any, ...]:
    """Why a request is refused, or what it is answered and leaves behind: counters and the order of use."""
    try:
        answer = ask()
    except Refusal as refusal:
        return refusal.code, refusal.detail
    return tuple(answer), node.store.counters, node.store.keys()


def twins(*, complete: bool) -> tuple[Node, Node]:
    """Two nodes that hold the same: keys without lifetime, with one, with one that is over, and in two namespaces."""
    pair = make_node(complete=complete), make_node(complete=complete)
    for one in pair:
        for n, (namespace, key, ttl) in enumerate(
            [(NS, b"a0", None), (NS, b"b1", 700), (NS, b"a", 5), (NS, b"a\0a0", None), (b"", b"a0", None)]
        ):
            one.raw("set", RING, namespace, key, v(n + 1), b"x" * n, n * 60, ttl)
        one.clock.passed = 100
    return pair


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("hiding", [True, False])
@given(
    asked=st.sampled_from(["get", "get_many"]),
    ring=st.sampled_from([RING, RING, RING, OTHER_RING]),
    namespace=st.sampled_from(NAMESPACES),
    keys=st.lists(st.sampled_from(ODD_KEYS), max_size=5),
)
def test_an_encoded_answer_says_what_the_plain_one_does(
    complete: bool, hiding: bool, asked: str, ring: bytes, namespace: Any, keys: list[Any]
) -> None:
    one, other = twins(complete=complete)
    if hiding:
        for node in (one, other):
            node.raw("clear", RING, NS, v(2))
    params = (ring, namespace, tuple((key,) for key in keys)) if asked == "get_many" else (ring, namespace, *keys)
    encoded = outcome(one, lambda: msgpack.unpackb(one.service.answer(b"", asked, params), use_list=False))
    assert encoded == outcome(other, lambda: other.service.handle(asked, params))


@pytest.mark.parametrize("method", ["get", "get_many", "peek"])
def test_an_answer_comes_behind_the_head_that_it_is_given(node: Node, method: str) -> None:
    node.put(b"key", 1)
    params = (RING, NS, ((b"key",),) if method == "get_many" else b"key")
    assert node.service.answer(b"head", method, params) == b"head" + node.service.answer(b"", method, params)


@pytest.mark.parametrize(
    "params", [("get", b"ns\0a", b"a0"), ("get_many", b"ns\0a", ((b"a0",),))], ids=["get", "get_many"]
)
def test_a_namespace_with_a_nul_does_not_reach_the_keys_of_another(node: Node, params: tuple[Any, ...]) -> None:
    node.put(b"a\0a0", 1)
    method, *rest = params
    with pytest.raises(Refusal) as caught:
        node.service.answer(b"", method, (RING, *rest))
    assert caught.value.code == Code.INVALID_KEY


def test_a_batch_of_encoded_answers_ends_where_its_room_does(node: Node) -> None:
    for n in range(8):
        node.put(b"k%d" % n, n + 1, bytes(100 * n), ttl=1000 if n % 2 else None)
    params = (RING, NS, tuple((b"k%d" % n,) for n in range(8)))
    answers = msgpack.unpackb(node.service.answer(b"", "get_many", params), use_list=False)
    assert len(answers) == 4
    assert list(answers) == node.raw("get_many", *params)
