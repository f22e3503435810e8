"""What a node tells other owners of its slots: the same that it holds, in short and in full, a slice at a time."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import attrs
import mmh3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.node import comparison
from dcache.node.comparison import BLOCK, INDEX_CHUNK, INDEX_IDLE, INDEX_LIFE, INDEXES_AT_ONCE, Index
from dcache.node.service import Identity, Refusal, Service, View
from dcache.node.store import Store
from dcache.record import ZERO, Version, make_version, version_milliseconds
from dcache.wire import Code, Limits, Status

RING, NEXT_RING, TABLE = b"ring", b"next ring", ("table",)
SLOTS = 300  # two blocks and a piece, in 38 bytes
WALL = 1_000_000_000_000
SKEW = 60_000
FAR = SKEW + 10_000  # ahead of all versions that are taken


def slot_of(key: bytes) -> int:
    """Keys are `ns NUL name colon slot`."""
    return int(key[key.index(b":") + 1 :])


def v(n: int) -> Version:
    return make_version(WALL + n, 0, 1)


def bitmap(*slots: int) -> bytes:
    return sum(1 << slot for slot in set(slots)).to_bytes(38, "little")


ALL, NONE = bitmap(*range(SLOTS)), bitmap()


@attrs.define
class Clock:
    """Both clocks of a node, in ms: `now` counts from 0."""

    passed: int = 0

    def now(self) -> int:
        return self.passed

    def wall(self) -> int:
        return WALL + self.passed


@attrs.define
class Node:
    service: Service
    store: Store
    clock: Clock

    def __call__(self, method: str, *params: Any) -> Any:
        return self.service.handle(method, (RING, *params))

    def put(self, key: bytes, n: int, value: bytes = b"x", ttl: int | None = None) -> None:
        assert self.store.set(key, v(n), value, 0, ttl, self.clock.passed) == (Status.STORED, v(n))

    def refused(self, method: str, *params: Any) -> tuple[Code, Any]:
        with pytest.raises(Refusal) as caught:
            self(method, *params)
        return caught.value.code, caught.value.detail

    def index(self, *slots: int) -> int:
        """A finished index of these slots."""
        cursor, done = self("index", bitmap(*slots), None)
        while not done:
            cursor, done = self("index", b"", cursor)
        assert type(cursor) is int
        return cursor

    def digests(self, *slots: int) -> dict[int, tuple[bool, int]]:
        answer = self("digests", bitmap(*slots))
        found = [(flag == 1, digest) for flag, digest in struct.iter_unpack(">BQ", answer)]
        return dict(zip(sorted(slots), found, strict=True))


def make_node(max_batch: int = 8) -> Node:
    store = Store(10_000_000, slot_of, SLOTS)
    store.own(range(SLOTS))
    store.complete(range(SLOTS))
    clock, limits = Clock(), Limits(max_batch=max_batch)
    service = Service(store, Identity("n1", "boot"), clock.now, clock.wall, limits=limits, skew=SKEW)
    service.view = View("c", RING, TABLE)
    return Node(service, store, clock)


@pytest.fixture
def node() -> Node:
    return make_node()


def key(name: int, slot: int) -> bytes:
    return b"ns\0%d:%d" % (name, slot)


def digest(entries: Iterable[tuple[bytes, Version]]) -> int:
    found = 0
    for name, version in entries:
        found ^= mmh3.hash64(name + version, signed=False)[0]
    return found


# -- digests -----------------------------------------------------------------------------------------------------------


def test_digests_tell_of_each_slot_whether_it_is_complete_and_what_sums_it_up(node: Node) -> None:
    node.put(key(1, 7), 1)
    node.put(key(2, 7), 2)
    node.put(key(1, 299), 3)
    node.store.doubt()
    node.store.complete([7, 8])
    assert node.digests(299, 7, 8) == {
        7: (True, digest([(key(1, 7), v(1)), (key(2, 7), v(2))])),
        8: (True, 0),
        299: (False, digest([(key(1, 299), v(3))])),
    }


def test_a_slot_that_is_not_owned_is_not_complete_whatever_answers_on_its_keys_say(node: Node) -> None:
    node.store.own([1])
    assert node.store.is_complete(key(1, 2))
    assert node.digests(1, 2) == {1: (True, 0), 2: (False, 0)}


def test_of_no_slots_there_is_nothing_to_say(node: Node) -> None:
    assert node("digests", NONE) == b""
    assert node("overview", NONE) == bytes(8 * 3)


# -- overviews ---------------------------------------------------------------------------------------------------------


def differing(one: bytes, other: bytes) -> list[int]:
    """The blocks in which two overviews differ."""
    assert len(one) == len(other) == 8 * 3
    return [at for at in range(3) if one[8 * at : 8 * at + 8] != other[8 * at : 8 * at + 8]]


@pytest.mark.parametrize("slot", [0, BLOCK - 1, BLOCK, 2 * BLOCK, SLOTS - 1])
def test_overviews_differ_in_the_block_of_a_slot_that_differs(node: Node, slot: int) -> None:
    other = make_node()
    for one in (node, other):
        one.put(key(1, 5), 1)
    assert node("overview", ALL) == other("overview", ALL)
    other.put(key(2, slot), 2)
    assert differing(node("overview", ALL), other("overview", ALL)) == [slot // BLOCK]
    rest = bitmap(*(wanted for wanted in range(SLOTS) if wanted != slot))
    assert node("overview", rest) == other("overview", rest), "that slot is not asked for"


def test_an_overview_tells_the_digests_of_slots_apart(node: Node) -> None:
    """The same digests, exchanged between two slots of a block."""
    other = make_node()
    node.store._digests[3], node.store._digests[4] = 5, 6
    other.store._digests[3], other.store._digests[4] = 6, 5
    assert differing(node("overview", ALL), other("overview", ALL)) == [0]


# -- indexes -----------------------------------------------------------------------------------------------------------


def test_an_index_is_built_in_slices(node: Node) -> None:
    for n in range(INDEX_CHUNK + 1):
        node.put(key(n, n % SLOTS), 1)
    cursor, done = node("index", ALL, None)
    assert not done
    assert node.refused("inventory", cursor, (0,))[0] == Code.BAD_REQUEST
    assert node("index", b"", cursor) == (cursor, False), "to begin was a slice of its own, and one key is left"
    assert node("index", b"", cursor) == (cursor, True)
    assert node("index", b"", cursor) == (cursor, True), "asked for again"
    listed = [part for slot in range(SLOTS) for part in node("inventory", cursor, (slot,))[0][3:]]
    assert {name for part in listed for name, _ in part} == set(node.store.keys())
    assert sum(map(len, listed)) == INDEX_CHUNK + 1


def test_an_index_of_nothing_is_done_at_once(node: Node) -> None:
    for n in range(INDEX_CHUNK + 1):
        node.put(key(n, n % SLOTS), 1)
    cursor, done = node("index", NONE, None)
    assert done
    assert node.refused("inventory", cursor, (0,))[0] == Code.BAD_REQUEST


def test_a_slot_that_was_not_indexed_is_refused_rather_than_called_empty(node: Node) -> None:
    node.put(key(1, 7), 1)
    cursor = node.index(8)
    assert node.refused("inventory", cursor, (8, 7))[0] == Code.BAD_REQUEST


def test_indexes_at_once_are_bounded_and_what_is_in_use_is_not_lost_to_another(node: Node) -> None:
    cursors = [node.index(1) for _ in range(INDEXES_AT_ONCE)]
    assert node.refused("index", bitmap(1), None) == (Code.UNKNOWN_CURSOR, None)
    for cursor in cursors:
        assert len(node("inventory", cursor, (1,))) == 1


def test_an_index_that_nobody_uses_gives_way(node: Node) -> None:
    idle, *others = [node.index(1) for _ in range(INDEXES_AT_ONCE)]
    node.clock.passed += INDEX_IDLE
    for cursor in others:
        assert len(node("inventory", cursor, (1,))) == 1
    node.index(1)
    assert node.refused("inventory", idle, (1,)) == (Code.UNKNOWN_CURSOR, None)
    for cursor in others:
        assert len(node("inventory", cursor, (1,))) == 1


def test_a_closed_index_is_gone_and_may_be_closed_again(node: Node) -> None:
    cursor = node.index(1)
    assert node("close_index", cursor) is None
    assert node("close_index", cursor) is None
    assert node.refused("inventory", cursor, (1,)) == (Code.UNKNOWN_CURSOR, None)


def test_an_index_is_not_good_under_another_ring(node: Node) -> None:
    """What was acknowledged under the ring before may have come after the index was made."""
    cursor = node.index(1)
    node.service.view = View("c", NEXT_RING, TABLE)
    with pytest.raises(Refusal) as caught:
        node.service.handle("inventory", (NEXT_RING, cursor, (1,)))
    assert caught.value.code == Code.UNKNOWN_CURSOR


def test_an_index_that_nobody_asks_for_is_dropped_in_time(node: Node) -> None:
    used, forgotten = node.index(1), node.index(1)
    node.clock.passed += INDEX_LIFE - 1
    node("inventory", used, (1,))
    node.service.sweep(10)
    node("inventory", used, (1,))
    node.clock.passed += 1
    node.service.sweep(10)
    assert node.refused("inventory", forgotten, (1,))[0] == Code.UNKNOWN_CURSOR
    node("inventory", used, (1,))


@pytest.mark.parametrize("built", [True, False])
def test_the_keys_of_an_index_are_let_go_in_slices(node: Node, built: bool) -> None:
    """Those of a closed one and, in the same slices, of one that was too many."""
    for n in range(1_000):
        node.put(key(n, n % SLOTS), 1)
    cursor = node.index(*range(SLOTS)) if built else node("index", ALL, None)[0]
    index = node.service._comparison._indexes[cursor]
    node("close_index", cursor)
    kept, slices = held_by(index), 1
    assert kept == 1_000
    while node.service.sweep(100):
        assert kept - held_by(index) <= 100 + 1_000 // SLOTS + 1
        kept, slices = held_by(index), slices + 1
    assert held_by(index) == 0
    assert slices >= 9
    assert node.service._comparison._given_up == []


def held_by(index: Index) -> int:
    return len(index.left) + sum(map(len, index.by_slot.values()))


# -- inventories -------------------------------------------------------------------------------------------------------


def test_an_inventory_lists_keys_and_versions_and_what_may_have_been_forgotten(node: Node) -> None:
    node.put(key(1, 7), 1)
    node.put(key(2, 7), 5)
    node.put(key(3, 8), 6)
    node.store.delete(key(4, 7), v(3), 0)
    node.store.prepare(key(5, 7), v(9), 0)
    node.store.doubt()
    node.store.complete([8, 9])
    found = node("inventory", node.index(7, 8, 9), (8, 7, 9))
    assert found[0] == (True, ZERO, ZERO, [(key(3, 8), v(6))])
    assert found[1][:3] == (False, v(3), v(9))
    assert sorted(found[1][3]) == [(key(1, 7), v(1)), (key(2, 7), v(5))]
    assert found[2] == (True, ZERO, ZERO, [])


def test_a_slot_is_told_as_of_one_instant(node: Node) -> None:
    """What came and went since the index was begun is gone, replaced, expired; the floor is that of the list."""
    for n, ttl in enumerate((None, None, 1_000, None)):
        node.put(key(n, 7), n + 1, ttl=ttl)
    cursor = node.index(7)
    node.store.delete(key(0, 7), v(10), 0)
    node.put(key(1, 7), 11)
    node.put(key(9, 7), 12)
    node.clock.passed = 1_000
    ((*of_slot, listed),) = node("inventory", cursor, (7,))
    assert of_slot == [True, v(10), v(10)]
    assert sorted(listed) == [(key(1, 7), v(11)), (key(3, 7), v(4))]


def test_an_expired_record_is_forgotten_before_its_floor_is_told(node: Node) -> None:
    node.put(key(1, 7), 5, ttl=1_000)
    cursor = node.index(7)
    node.clock.passed = 1_000
    assert node("inventory", cursor, (7,)) == [(True, v(5), v(5), [])]


def test_hidden_records_are_not_listed(node: Node) -> None:
    node.put(key(1, 7), 5)
    node.put(key(1, 8), 5)
    node.store.start_over([7], v(9))
    assert node("inventory", node.index(7, 8), (7, 8)) == [
        (True, v(9), v(9), []),
        (True, ZERO, ZERO, [(key(1, 8), v(5))]),
    ]


def test_looking_is_no_use(node: Node) -> None:
    node.put(key(1, 7), 1)
    node.put(key(2, 7), 2)
    node("inventory", node.index(7), (7,))
    node("fetch", (key(1, 7),))
    assert node.store.keys() == [key(1, 7), key(2, 7)]
    assert (node.store.counters.hits, node.store.counters.misses) == (0, 0)


def test_an_inventory_of_many_slots_answers_the_first_few(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "INVENTORY_ROOM", 500)
    for slot in range(20):
        for n in range(5):
            node.put(key(n, slot), 1)
    cursor, left, rounds = node.index(*range(20)), list(range(20)), 0
    while left:
        found = node("inventory", cursor, tuple(left))
        assert [name for name, _ in found[0][3]] != []
        assert all(slot_of(name) == slot for slot, answer in zip(left, found, strict=False) for name, _ in answer[3])
        left = left[len(found) :]
        rounds += 1
    assert rounds == 7


def test_a_slot_too_large_for_an_answer_is_told_alone_and_in_parts_that_arrays_may_have(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An array on the wire has at most `max_batch` elements, here eight."""
    monkeypatch.setattr(comparison, "INVENTORY_ROOM", 100)
    for n in range(20):
        node.put(key(n, 7), 1)
    found = node("inventory", node.index(7, 8), (7, 8))
    assert len(found) == 1
    parts = found[0][3:]
    assert [len(part) for part in parts] == [8, 8, 4]
    assert {name for part in parts for name, _ in part} == {key(n, 7) for n in range(20)}


@given(st.sets(st.tuples(st.integers(0, 9), st.integers(0, SLOTS - 1)), max_size=40))
def test_what_is_listed_is_what_the_digest_sums_up(names: set[tuple[int, int]]) -> None:
    node = make_node(max_batch=1024)
    for n, (name, slot) in enumerate(names):
        node.put(key(name, slot), n)
    wanted = sorted({slot for _, slot in names})
    found = node("inventory", node.index(*wanted), tuple(wanted))
    assert {slot: (True, digest(answer[3])) for slot, answer in zip(wanted, found, strict=True)} == node.digests(
        *wanted
    )


# -- records -----------------------------------------------------------------------------------------------------------


def test_fetch_gives_records_with_their_remaining_life_and_nil_for_what_is_gone(node: Node) -> None:
    node.store.set(key(1, 7), v(1), b"value", 3, 700, 0)
    node.put(key(2, 7), 2, ttl=100)
    node.clock.passed = 200
    assert node("fetch", (key(1, 7), key(2, 7), b"anything", key(3, 7))) == [
        (v(1), b"value", 3, 500),
        None,
        None,
        None,
    ]
    assert node("fetch", ()) == []


def test_fetch_answers_for_the_first_few_and_for_one_at_least(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "FETCH_ROOM", 250)
    for n in range(5):
        node.put(key(n, 7), 1, b"v" * 100)
    node.put(key(9, 7), 1, b"v" * 1000)
    names = tuple(key(n, 7) for n in range(5))
    assert [len(node("fetch", names)), len(node("fetch", names[2:])), len(node("fetch", names[4:]))] == [2, 2, 1]
    assert [record[1] for record in node("fetch", (key(9, 7), *names))] == [b"v" * 1000]
    assert len(node("fetch", (b"none",) * 50)) == 12


# -- starting over -----------------------------------------------------------------------------------------------------


def test_starting_over_forgets_completes_and_answers_how_far_versions_go(node: Node) -> None:
    node.put(key(1, 7), 5)
    node.put(key(1, 8), 6)
    node.store.doubt()
    assert node("start_over", bitmap(7), v(FAR)) == (WALL + SKEW, v(FAR))
    assert node("fetch", (key(1, 7), key(1, 8))) == [None, (v(6), b"x", 0, None)]
    assert node.store.progress() == (1, SLOTS)
    assert node.store.is_complete(key(9, 7))
    assert node.store.floors[7:9] == [v(FAR), ZERO]


def test_without_a_floor_it_only_answers(node: Node) -> None:
    node.put(key(1, 7), 5)
    node.store.doubt()
    node.clock.passed = 10
    assert node("start_over", ALL, ZERO) == (WALL + SKEW + 10, v(5))
    assert node.store.progress() == (0, SLOTS)
    assert node("fetch", (key(1, 7),)) != [None]


def test_a_floor_that_may_be_below_something_acknowledged_is_refused(node: Node) -> None:
    """It was made too long ago: since then this process may have come, completed, acknowledged more, and gone."""
    node.put(key(1, 7), 5)
    node.store.doubt()
    assert node.refused("start_over", ALL, v(SKEW - 1)) == (Code.CLOCK_SKEW, (WALL + SKEW - 1, WALL + SKEW))
    assert node.store.progress() == (0, SLOTS)
    assert node("fetch", (key(1, 7),)) != [None]
    node("start_over", ALL, v(SKEW))
    assert node.store.all_complete


def test_after_starting_over_a_write_goes_above_the_floor_at_once(node: Node) -> None:
    """Although the floor is ahead of the clock: a version just above what stands in the way is taken."""
    node.store.doubt()
    node("start_over", ALL, v(FAR))
    refused = node("set", b"ns", b"1:7", v(1), b"x", 0, None)
    assert refused == (True, Status.NEWER, v(FAR))
    above = make_version(version_milliseconds(refused[2]), 1, 5)
    assert node("set", b"ns", b"1:7", above, b"x", 0, None) == (True, Status.STORED, above)


def test_owners_that_know_a_slot_keep_it_when_others_start_over(node: Node) -> None:
    """But take writes above the floor of the others, although those are ahead of the clock."""
    node.put(key(1, 7), 5)
    node("start_over", ALL, v(FAR))
    assert node.store.peek(key(1, 7), 0) is not None
    assert node.store.floors[7] == ZERO
    above = make_version(version_milliseconds(v(FAR)), 1, 5)
    assert node("set", b"ns", b"1:7", above, b"x", 0, None) == (True, Status.STORED, above)


# -- bad requests ------------------------------------------------------------------------------------------------------

CALLS: list[tuple[Any, ...]] = [
    ("overview", ALL),
    ("digests", ALL),
    ("index", ALL, None),
    ("close_index", 1),
    ("inventory", 1, (1,)),
    ("fetch", (b"k",)),
    ("start_over", ALL, ZERO),
]
called = pytest.mark.parametrize("call", CALLS, ids=[method for method, *_ in CALLS])


@called
def test_another_ring_is_refused_with_the_table(node: Node, call: tuple[Any, ...]) -> None:
    method, *params = call
    node.index(1)
    for fingerprint in (NEXT_RING, b"", None):
        with pytest.raises(Refusal) as caught:
            node.service.handle(method, (fingerprint, *params))
        assert (caught.value.code, caught.value.detail) == (Code.WRONG_RING, TABLE)
    node(method, *params)


@called
def test_a_wrong_number_of_parameters_is_a_bad_request(node: Node, call: tuple[Any, ...]) -> None:
    method, *params = call
    assert node.refused(method, *params, None)[0] == Code.BAD_REQUEST
    assert node.refused(method, *params[:-1])[0] == Code.BAD_REQUEST


BITMAPS = [b"", ALL[:-1], ALL + b"\0", b"\xff" * 38, "0" * 38, None, 5, (1,) * 38]


@pytest.mark.parametrize("slots", BITMAPS, ids=range(len(BITMAPS)))
def test_slots_are_a_bitmap_of_exactly_as_many(node: Node, slots: Any) -> None:
    node.put(key(1, 7), 5)
    for method, rest in (("overview", ()), ("digests", ()), ("index", (None,)), ("start_over", (v(FAR),))):
        assert node.refused(method, slots, *rest)[0] == Code.BAD_REQUEST
    assert len(node.store) == 1


@pytest.mark.parametrize("cursor", ["1", b"1", 1.0, True, (), (1, 2)])
def test_an_index_is_told_by_its_number(node: Node, cursor: Any) -> None:
    node.index(1)
    for method, params in (("index", (ALL, cursor)), ("inventory", (cursor, (1,)))):
        assert node.refused(method, *params)[0] == Code.BAD_REQUEST


def test_an_index_of_nobodys_is_unknown(node: Node) -> None:
    for cursor in (0, 99, -1, 2**64 - 1):
        assert node.refused("inventory", cursor, (1,))[0] == Code.UNKNOWN_CURSOR
        assert node.refused("index", ALL, cursor)[0] == Code.UNKNOWN_CURSOR


@pytest.mark.parametrize("slots", [None, 5, "ab", (-1,), (SLOTS,), ("1",), (None,), ((1,),), ({},)])
def test_an_inventory_is_of_slots(node: Node, slots: Any) -> None:
    assert node.refused("inventory", node.index(1), slots)[0] == Code.BAD_REQUEST


@pytest.mark.parametrize("keys", [None, 5, "ab", b"ab", ("ab",), (None,), (b"a", 5)])
def test_records_are_fetched_by_keys(node: Node, keys: Any) -> None:
    assert node.refused("fetch", keys)[0] == Code.BAD_REQUEST


@pytest.mark.parametrize("floor", [None, b"", bytes(11), bytes(13), "0" * 12, 5])
def test_a_floor_is_a_version(node: Node, floor: Any) -> None:
    node.put(key(1, 7), 5)
    assert node.refused("start_over", ALL, floor)[0] == Code.BAD_REQUEST
    assert len(node.store) == 1
