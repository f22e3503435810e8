"""What a node's store holds, refuses and forgets, one behaviour at a time; `test_store_model` does it all at random."""

from __future__ import annotations

import gc
import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import mmh3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.errors import ValueTooLarge
from dcache.node.held import Entry, hold, version_of
from dcache.node.promises import Promises
from dcache.node.store import ENTRY_OVERHEAD, Store
from dcache.record import ZERO, Version, make_version
from dcache.wire import Status

STORED, NEWER = Status.STORED, Status.NEWER
SLOTS, OVERHEAD = 4, 10
LIFE, PATIENCE = 60_000, 250
KEY, NEIGHBOUR, STRANGER = b"ns\0a0", b"ns\0b0", b"ns\0c1"  # the first two share slot 0


def v(n: int) -> Version:
    return make_version(n, 0, 1)


def slot_of(key: bytes) -> int:
    return key[-1] % SLOTS


def make_store(limit: int = 1_000, **options: Any) -> Store:
    """A store that owns all slots and is complete in them."""
    promises = Promises(100, LIFE, PATIENCE)
    return completed(Store(limit, slot_of, SLOTS, **{"overhead": OVERHEAD, "promises": promises, **options}))


def completed(store: Store) -> Store:
    store.own(range(SLOTS))
    store.complete(range(SLOTS))
    return store


@pytest.fixture
def store() -> Store:
    return make_store()


def put(store: Store, key: bytes, n: int, value: bytes = b"x", *, ttl: int | None = None, now: int = 0) -> None:
    assert store.set(key, v(n), value, 0, ttl, now) == (STORED, v(n))


def held(store: Store, key: bytes, now: int = 0) -> bytes | None:
    entry = store.peek(key, now)
    return None if entry is None else entry.value


def books(store: Store) -> tuple[object, ...]:
    """All that may not change when an operation changes nothing."""
    held = store.keys()
    entries = [(key, *_content(store.peek(key, -1))) for key in held]
    return entries, store.used, store.newest, list(store.floors), list(store._digests)


def _content(entry: Entry | None) -> tuple[object, ...]:
    return () if entry is None else (entry.value, entry.version, entry.flags, entry.deadline)


def digests_of(entries: dict[bytes, Version]) -> list[int]:
    """The digests of a store that holds these, the long way."""
    digests = [0] * SLOTS
    for key, version in entries.items():
        digests[slot_of(key)] ^= mmh3.hash64(key + version, signed=False)[0]
    return digests


# -- records and versions ----------------------------------------------------------------------------------------------


def test_what_is_set_is_got_as_it_was(store: Store) -> None:
    assert store.set(KEY, v(5), b"value", 3, 700, 100) == (STORED, v(5))
    entry = store.get(KEY, 100)
    assert entry is not None
    assert _content(entry) == (b"value", v(5), 3, 800)


def test_an_empty_store_misses_everything(store: Store) -> None:
    assert store.get(KEY, 0) is None
    assert store.peek(KEY, 0) is None
    assert (len(store), store.used, store.keys(), store.newest) == (0, 0, [], ZERO)
    assert store.known(KEY, 0) == store.floor(KEY) == ZERO


def test_a_newer_version_replaces_value_flags_and_lifetime(store: Store) -> None:
    store.set(KEY, v(1), b"old", 1, 500, 0)
    store.set(KEY, v(2), b"new", 2, None, 0)
    assert _content(store.peek(KEY, 10_000)) == (b"new", v(2), 2, None)
    assert len(store) == 1


def test_an_older_version_is_refused_with_the_one_held(store: Store) -> None:
    put(store, KEY, 2, b"new")
    assert store.set(KEY, v(1), b"old", 0, None, 0) == (NEWER, v(2))
    assert held(store, KEY) == b"new"


def test_a_set_sent_again_changes_nothing_and_is_told_it_was_stored(store: Store) -> None:
    put(store, KEY, 2, b"one", ttl=500)
    before = books(store)
    put(store, KEY, 2, b"one", ttl=500, now=100)
    assert books(store) == before


def test_of_two_copies_of_one_version_the_shorter_remaining_life_stands(store: Store) -> None:
    put(store, KEY, 1)
    put(store, KEY, 1, ttl=9_000)
    put(store, KEY, 1, ttl=300)
    put(store, KEY, 1, ttl=5_000)
    put(store, KEY, 1)
    assert held(store, KEY, 299) is not None
    assert held(store, KEY, 300) is None


def test_a_shortened_life_is_swept_at_its_new_end_only(store: Store) -> None:
    put(store, KEY, 1, ttl=9_000)
    put(store, KEY, 1, ttl=1_500)
    store.sweep(2_000, 10)
    assert len(store) == 0
    store.sweep(20_000, 10)
    assert store.counters.expirations == 1


def test_known_is_the_version_held_or_else_the_floor(store: Store) -> None:
    put(store, NEIGHBOUR, 9)
    store.delete(NEIGHBOUR, v(9), 0)
    assert store.known(KEY, 0) == v(9)
    put(store, KEY, 10)
    assert store.known(KEY, 0) == v(10)


def test_newest_is_the_highest_version_ever_met(store: Store) -> None:
    seen = []
    for step in (
        lambda: put(store, KEY, 1),
        lambda: store.delete(KEY, v(2), 0),
        lambda: store.claim(KEY, v(3), ZERO, 0),
        lambda: store.prepare(KEY, v(4), 0),
        lambda: store.clear(b"ns\0", v(5), 0),
        lambda: put(store, KEY, 7),
        lambda: store.set(KEY, v(6), b"", 0, None, 0),
    ):
        step()
        seen.append(store.newest)
    assert seen == [v(1), v(2), v(3), v(4), v(5), v(7), v(7)]


def test_a_refused_version_does_not_count_as_met(store: Store) -> None:
    """Else one wrong clock could raise what the node takes for its newest."""
    store.prepare(KEY, v(5), 0)
    store.claim(KEY, v(6), ZERO, 0)
    store.prepare(KEY, v(7), 0)
    store.accept(KEY, v(8), b"", 0, None, 0)
    assert store.newest == v(5)


# -- lifetimes ---------------------------------------------------------------------------------------------------------


def test_an_entry_lives_up_to_its_deadline_and_not_at_it(store: Store) -> None:
    put(store, KEY, 1, ttl=1_000, now=500)
    assert held(store, KEY, 1_499) == b"x"
    assert held(store, KEY, 1_500) is None
    assert len(store) == 0


def test_without_a_lifetime_an_entry_stays(store: Store) -> None:
    put(store, KEY, 1)
    store.sweep(10**12, 10)
    assert held(store, KEY, 10**12) == b"x"


def test_the_remaining_life_is_told_in_milliseconds_and_never_as_nothing() -> None:
    assert Entry(hold(v(1), b"", 0, 1_000)).ttl(400) == 600
    assert Entry(hold(v(1), b"", 0, 1_000)).ttl(1_000) == 1
    assert Entry(hold(v(1), b"", 0, None)).ttl(400) is None


@pytest.mark.parametrize("operation", ["get", "peek", "known", "set", "delete", "accept", "claim", "prepare"])
def test_every_operation_finds_an_expired_entry_gone_and_its_version_forgotten(store: Store, operation: str) -> None:
    put(store, KEY, 5, ttl=100)
    arguments = {"set": (v(5), b"", 0, None), "accept": (v(5), b"", 0, None)}
    arguments |= {"delete": (v(5),), "prepare": (v(5),), "claim": (v(5), ZERO)}
    getattr(store, operation)(KEY, *arguments.get(operation, ()), 100)
    assert len(store) == 0
    assert store.floor(KEY) == v(5)
    assert store.counters.expirations == 1


def test_a_sweep_drops_what_expired_without_being_asked_for_it(store: Store) -> None:
    put(store, KEY, 1, ttl=1_000)
    put(store, STRANGER, 2, ttl=3_000)
    assert not store.sweep(2_000, 10)
    assert store.keys() == [STRANGER]
    assert store.floor(KEY) == v(1)


def test_a_sweep_is_bounded_and_says_whether_there_may_be_more(store: Store) -> None:
    for n in range(25):
        put(store, b"ns\0%d" % n, n + 1, ttl=1)
    left = []
    while store.sweep(5_000, 10):
        left.append(len(store))
    assert left == [15, 5]
    assert len(store) == 0


def test_a_sweep_drops_promises_that_are_over(store: Store) -> None:
    store.claim(KEY, v(1), ZERO, 0)
    store.sweep(LIFE - 1, 10)
    assert len(store.promises) == 1
    store.sweep(LIFE, 10)
    assert len(store.promises) == 0


# -- floors ------------------------------------------------------------------------------------------------------------


def forget_by_delete(store: Store) -> None:
    put(store, KEY, 4)
    store.delete(KEY, v(5), 0)


def forget_by_expiry(store: Store) -> None:
    put(store, KEY, 5, ttl=1)
    store.peek(KEY, 1)


def forget_by_sweep(store: Store) -> None:
    put(store, KEY, 5, ttl=1)
    store.sweep(1_000, 1)


def forget_by_eviction(store: Store) -> None:
    put(store, KEY, 5)
    put(store, STRANGER, 6, bytes(1_000 - OVERHEAD - len(STRANGER)))


def forget_by_clear(store: Store) -> None:
    put(store, KEY, 4)
    store.clear(b"ns\0", v(5), 0)


def forget_by_refusing_for_room(store: Store) -> None:
    with pytest.raises(ValueTooLarge):
        store.set(KEY, v(5), bytes(1_000), 0, None, 0)


ways_to_forget = pytest.mark.parametrize(
    "forget",
    [
        forget_by_delete,
        forget_by_expiry,
        forget_by_sweep,
        forget_by_eviction,
        forget_by_clear,
        forget_by_refusing_for_room,
    ],
)


@ways_to_forget
def test_whatever_was_forgotten_never_returns(store: Store, forget: Callable[[Store], None]) -> None:
    """At or below the floor a write of an absent key is refused, of any key of the slot; above it, it is taken."""
    forget(store)
    now = 2_000
    for key in (KEY, NEIGHBOUR):
        assert store.floor(key) == store.known(key, now) == v(5)
        assert store.set(key, v(4), b"", 0, None, now) == (NEWER, v(5))
        assert store.set(key, v(5), b"", 0, None, now) == (NEWER, v(5))
        assert held(store, key, now) is None
        assert store.set(key, v(6), b"", 0, None, now) == (STORED, v(6))


def test_a_replacement_forgets_nothing(store: Store) -> None:
    """The key itself remembers the newer version, so the rest of the slot need not be refused."""
    put(store, KEY, 1)
    put(store, KEY, 5)
    assert store.floors == [ZERO] * SLOTS
    put(store, NEIGHBOUR, 2)


def test_forgetting_touches_the_floor_of_its_own_slot_only(store: Store) -> None:
    forget_by_delete(store)
    assert store.floors == [v(5), ZERO, ZERO, ZERO]


def test_a_floor_never_sinks(store: Store) -> None:
    store.delete(KEY, v(9), 0)
    put(store, KEY, 10, ttl=1)
    store.peek(KEY, 1)
    store.claim(NEIGHBOUR, v(11), ZERO, 0)
    store.delete(KEY, v(10), 5)
    assert store.floor(KEY) == v(10)
    store.clear(b"ns\0", v(3), 0)
    assert store.floors == [v(11), v(3), v(3), v(3)]


def test_what_was_promised_above_a_clear_of_its_namespace_stays_a_barrier(store: Store) -> None:
    """It may have been accepted elsewhere before."""
    store.prepare(KEY, v(11), 0)
    store.clear(b"ns\0", v(3), 0)
    assert store.accept(KEY, v(11), b"", 0, None, 0) == (NEWER, v(11))
    assert store.set(KEY, v(5), b"", 0, None, 0) == (NEWER, v(11))


def test_the_top_of_a_key_is_above_all_that_is_held_forgotten_or_promised(store: Store) -> None:
    assert store.top(KEY, 0) == ZERO
    put(store, KEY, 1, ttl=5)
    assert store.top(KEY, 0) == v(1)
    store.delete(NEIGHBOUR, v(2), 0)
    assert store.top(KEY, 0) == v(2)
    put(store, KEY, 3)
    assert store.top(KEY, 0) == v(3)
    store.prepare(KEY, v(4), 0)
    store.promises.release(KEY, v(4))
    assert store.top(KEY, 0) == v(4), "what was promised once may have been accepted"


def test_a_held_key_is_written_below_the_floor_that_others_raised(store: Store) -> None:
    put(store, KEY, 1)
    store.delete(NEIGHBOUR, v(9), 0)
    put(store, KEY, 2, b"newer than what is held")
    assert held(store, KEY) == b"newer than what is held"


def test_an_evicted_entry_below_the_floor_leaves_the_floor_as_it_is(store: Store) -> None:
    put(store, KEY, 1, ttl=10)
    store.delete(NEIGHBOUR, v(9), 0)
    assert store.peek(KEY, 10) is None
    assert store.floor(KEY) == v(9)


# -- delete ------------------------------------------------------------------------------------------------------------


def test_a_delete_says_whether_the_key_was_held(store: Store) -> None:
    put(store, KEY, 1)
    assert store.delete(KEY, v(2), 0) == (STORED, v(2), True)
    assert store.delete(KEY, v(3), 0) == (STORED, v(3), False)


def test_a_delete_sent_again_is_done_and_changes_nothing(store: Store) -> None:
    put(store, KEY, 1)
    store.delete(KEY, v(2), 0)
    before = books(store)
    assert store.delete(KEY, v(2), 0) == (STORED, v(2), False)
    assert books(store) == before


def test_a_delete_below_what_the_slot_forgot_is_done_once_and_sent_again_it_is_taken_for_overtaken(
    store: Store,
) -> None:
    """With the key gone, the floor that other keys raised is all there is to go by: nothing is lost by refusing."""
    put(store, KEY, 1)
    store.delete(NEIGHBOUR, v(9), 0)
    assert store.delete(KEY, v(5), 0) == (STORED, v(5), True)
    before = books(store)
    assert store.delete(KEY, v(5), 0) == (NEWER, v(9), False)
    assert books(store) == before


def test_an_older_delete_is_refused_by_what_is_held_or_forgotten(store: Store) -> None:
    put(store, KEY, 5)
    assert store.delete(KEY, v(4), 0) == (NEWER, v(5), False)
    assert held(store, KEY) == b"x"
    store.delete(KEY, v(6), 0)
    assert store.delete(NEIGHBOUR, v(5), 0) == (NEWER, v(6), False)


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_snapshot_has_all_keys_and_does_not_follow_what_comes(store: Store) -> None:
    keys = [b"ns\0k%d" % n for n in range(5)]
    for n, key in enumerate(keys):
        put(store, key, n + 1)
    store.get(keys[2], 0)
    taken = store.snapshot()
    store.delete(keys[0], v(9), 0)
    assert sorted(taken) == keys
    assert store.keys() == [keys[1], keys[3], keys[4], keys[2]]


# -- eviction and accounting -------------------------------------------------------------------------------------------


def test_an_entry_costs_its_key_its_value_and_the_overhead() -> None:
    store = make_store(1_000, overhead=ENTRY_OVERHEAD)
    put(store, KEY, 1, bytes(100))
    assert store.used == len(KEY) + 100 + 256
    put(store, KEY, 2, bytes(30))
    assert store.used == len(KEY) + 30 + 256
    store.delete(KEY, v(3), 0)
    assert store.used == 0


def test_the_overhead_is_256_bytes_unless_told() -> None:
    store = Store(1_000, slot_of, SLOTS)
    put(store, KEY, 1, b"")
    assert store.used == len(KEY) + 256


def test_a_budget_is_used_to_the_last_byte_and_not_beyond() -> None:
    store = make_store(2 * (len(KEY) + 20 + OVERHEAD))
    put(store, KEY, 1, bytes(20))
    put(store, NEIGHBOUR, 2, bytes(20))
    assert store.used == store.memory_limit
    put(store, NEIGHBOUR, 3, bytes(21))
    assert store.keys() == [NEIGHBOUR]
    assert store.counters.evictions == 1


def test_the_least_recently_used_go_first_and_only_as_many_as_needed() -> None:
    store = make_store(5 * (len(KEY) + 20 + OVERHEAD))
    keys = [b"ns\0k%d" % n for n in range(5)]
    for n, key in enumerate(keys):
        put(store, key, n + 1, bytes(20))
    store.get(keys[0], 0)
    put(store, keys[1], 10, bytes(20))
    put(store, b"ns\0z1", 11, bytes(50))
    assert store.keys() == [keys[4], keys[0], keys[1], b"ns\0z1"]


def test_reading_and_claiming_are_uses_and_looking_is_none(store: Store) -> None:
    for n, key in enumerate((KEY, NEIGHBOUR, STRANGER)):
        put(store, key, n + 1)
    store.peek(KEY, 0)
    store.known(KEY, 0)
    store.prepare(KEY, v(10), 0)
    put(store, KEY, 1)  # a copy of the same version
    assert store.keys() == [KEY, NEIGHBOUR, STRANGER]
    store.get(KEY, 0)
    assert store.keys() == [NEIGHBOUR, STRANGER, KEY]
    store.claim(NEIGHBOUR, v(11), ZERO, 0)
    assert store.keys() == [STRANGER, KEY, NEIGHBOUR]


def test_a_limit_on_entries_holds_and_a_replacement_needs_no_room() -> None:
    store = make_store(max_entries=2)
    put(store, KEY, 1)
    put(store, NEIGHBOUR, 2)
    put(store, KEY, 3)
    assert store.keys() == [NEIGHBOUR, KEY]
    put(store, STRANGER, 4)
    assert store.keys() == [KEY, STRANGER]
    assert store.floor(NEIGHBOUR) == v(2)


def test_a_record_larger_than_the_store_is_refused_with_both_sizes_and_evicts_nothing(store: Store) -> None:
    put(store, STRANGER, 1)
    with pytest.raises(ValueTooLarge) as caught:
        store.set(KEY, v(2), bytes(1_000), 0, None, 0)
    assert (caught.value.size, caught.value.limit) == (len(KEY) + 1_000 + OVERHEAD, 1_000)
    assert store.keys() == [STRANGER]
    assert store.counters.evictions == 0


def test_a_record_too_large_still_ends_the_older_one_it_was_to_replace(store: Store) -> None:
    """It may have been acknowledged elsewhere, so the older one must not be served any more."""
    put(store, KEY, 1)
    with pytest.raises(ValueTooLarge):
        store.set(KEY, v(2), bytes(1_000), 0, None, 0)
    assert held(store, KEY) is None
    assert store.floor(KEY) == v(2)
    assert (store.used, store.digests_of(range(SLOTS))) == (0, [0] * SLOTS)


def test_an_accepted_record_too_large_is_refused_in_the_same_way(store: Store) -> None:
    store.prepare(KEY, v(2), 0)
    with pytest.raises(ValueTooLarge):
        store.accept(KEY, v(2), bytes(1_000), 0, None, 0)
    assert store.floor(KEY) == v(2)
    assert store.accept(KEY, v(2), b"", 0, None, 0) == (NEWER, v(2))


def test_what_the_store_did_is_counted() -> None:
    store = make_store(max_entries=2)
    put(store, KEY, 1)
    put(store, NEIGHBOUR, 2, ttl=10)
    put(store, STRANGER, 3)
    store.get(STRANGER, 0)
    store.get(KEY, 0)
    store.get(NEIGHBOUR, 10)
    store.peek(STRANGER, 0)
    store.set(STRANGER, v(1), b"", 0, None, 0)
    store.delete(STRANGER, v(9), 0)
    counters = store.counters
    assert (counters.hits, counters.misses, counters.writes, counters.refused) == (1, 2, 3, 1)
    assert (counters.deletes, counters.evictions, counters.expirations) == (1, 1, 1)


# -- clear -------------------------------------------------------------------------------------------------------------


def test_a_cleared_namespace_is_hidden_at_once_and_the_others_stay(store: Store) -> None:
    for key in (b"a\0k0", b"a\0k1", b"ab\0k0", b"\0k0"):
        put(store, key, 1)
    store.clear(b"a\0", v(5), 0)
    hits = [key for key in (b"a\0k0", b"a\0k1", b"ab\0k0", b"\0k0") if store.get(key, 0)]
    assert hits == [b"ab\0k0", b"\0k0"]
    assert store.floors == [v(5)] * SLOTS


def test_the_namespace_without_a_name_is_cleared_alone(store: Store) -> None:
    put(store, b"\0k0", 1)
    put(store, b"a\0k0", 2)
    store.clear(b"\0", v(5), 0)
    assert (held(store, b"\0k0"), held(store, b"a\0k0")) == (None, b"x")


def test_a_clear_hides_up_to_its_own_version(store: Store) -> None:
    put(store, KEY, 5)
    store.clear(b"ns\0", v(5), 0)
    assert held(store, KEY) is None


def test_a_clear_spares_what_is_newer_than_it(store: Store) -> None:
    put(store, KEY, 9)
    put(store, NEIGHBOUR, 4)
    store.clear(b"ns\0", v(5), 0)
    assert (held(store, KEY), held(store, NEIGHBOUR)) == (b"x", None)


@pytest.mark.parametrize("operation", ["get", "peek", "known", "set", "delete", "accept", "claim", "prepare"])
def test_no_operation_sees_a_hidden_entry(store: Store, operation: str) -> None:
    put(store, KEY, 5)
    store.clear(b"ns\0", v(6), 0)
    arguments = {"set": (v(5), b"", 0, None), "accept": (v(5), b"", 0, None)}
    arguments |= {"delete": (v(5),), "prepare": (v(5),), "claim": (v(5), ZERO)}
    answer = getattr(store, operation)(KEY, *arguments.get(operation, ()), 0)
    assert answer in (None, v(6), (NEWER, v(6)), (NEWER, v(6), False), (NEWER, v(6), None), (None, False))
    assert (len(store), store.used, store.floor(KEY)) == (0, 0, v(6))


def test_a_cleared_key_is_written_anew_before_and_after_the_sweep(store: Store) -> None:
    put(store, KEY, 1)
    put(store, NEIGHBOUR, 2)
    store.clear(b"ns\0", v(5), 0)
    put(store, KEY, 6, b"new")
    store.sweep(0, 100)
    put(store, NEIGHBOUR, 7, b"new")
    assert held(store, KEY) == held(store, NEIGHBOUR) == b"new"


def test_hidden_entries_are_swept_in_bounded_slices(store: Store) -> None:
    for n in range(20):
        put(store, b"%s\0%d" % (b"a" if n % 2 else b"b", n), n + 1)
    store.clear(b"a\0", v(50), 0)
    assert len(store) == 20
    looked = 0
    while True:
        before = len(store)
        more = store.sweep(0, 3)
        looked += 3
        assert before - len(store) <= 3
        if not more:
            break
    assert looked <= 21
    left = store.keys()
    assert [key[:2] for key in left] == [b"b\0"] * 10


def test_a_second_clear_before_the_sweep_is_over_loses_nothing_of_the_first(store: Store) -> None:
    for n, name in enumerate((b"a\0k1", b"a\0k2", b"b\0k1", b"b\0k2")):
        put(store, name, n + 1)
    store.clear(b"a\0", v(10), 0)
    store.sweep(0, 1)
    store.clear(b"b\0", v(11), 0)
    while store.sweep(0, 1):
        pass
    assert (len(store), store.used) == (0, 0)


def test_a_lower_clear_does_not_bring_back_what_a_higher_one_hid(store: Store) -> None:
    put(store, KEY, 5)
    store.clear(b"ns\0", v(9), 0)
    store.clear(b"ns\0", v(3), 0)
    assert store.peek(KEY, 0) is None


def test_a_clear_sent_again_spares_what_came_after_it(store: Store) -> None:
    put(store, KEY, 1)
    store.clear(b"ns\0", v(5), 0)
    put(store, KEY, 6)
    before = books(store)
    store.clear(b"ns\0", v(5), 0)
    assert books(store) == before


def test_after_the_sweep_a_clear_costs_nothing_any_more(store: Store) -> None:
    put(store, KEY, 1)
    store.clear(b"ns\0", v(5), 0)
    assert not store.sweep(0, 10)
    assert (store._hiding, store._cleared, store._unswept) == (False, {}, [])


# -- complete ----------------------------------------------------------------------------------------------------------


def answers(store: Store) -> list[bool]:
    """Whether its word counts on a key of the slots 0, 0 and 1."""
    return [store.is_complete(key) for key in (KEY, NEIGHBOUR, STRANGER)]


@pytest.fixture
def blank() -> Store:
    """A store of a process that has just begun."""
    return Store(1_000, slot_of, SLOTS, overhead=OVERHEAD, promises=Promises(100, LIFE, PATIENCE))


def test_a_store_owns_nothing_at_first_and_is_not_complete(blank: Store) -> None:
    assert (blank.owned, blank.incomplete(), blank.progress()) == ([], [], (0, 0))
    assert not blank.all_complete
    assert answers(blank) == [False] * 3
    blank.own([])
    blank.complete([])
    assert not blank.all_complete


def test_owned_slots_are_incomplete_until_completed_one_by_one(blank: Store) -> None:
    blank.own(range(SLOTS))
    assert answers(blank) == [False] * 3
    blank.complete([0])
    assert answers(blank) == [True, True, False]
    assert (blank.incomplete(), blank.progress(), blank.all_complete) == ([1, 2, 3], (1, 4), False)
    blank.complete([1, 2, 3])
    assert answers(blank) == [True] * 3
    assert (blank.incomplete(), blank.progress(), blank.all_complete) == ([], (4, 4), True)


def test_only_what_is_owned_can_be_completed(blank: Store) -> None:
    blank.complete(range(SLOTS))
    assert blank.progress() == (0, 0)
    blank.own([1, 2])
    blank.complete([0, 1])
    assert (list(blank.complete_bits), blank.incomplete()) == ([0, 1, 0, 0], [2])


def test_where_all_that_is_owned_is_complete_the_word_on_other_slots_counts_as_well(blank: Store) -> None:
    blank.own([1, 2])
    blank.complete([1])
    assert answers(blank) == [False, False, True]
    blank.complete([2])
    assert answers(blank) == [True] * 3
    assert list(blank.complete_bits) == [0, 1, 1, 0]


def test_a_slot_owned_no_more_is_known_no_more_when_it_comes_back(store: Store) -> None:
    store.own([1, 2])
    assert (store.owned, list(store.complete_bits), store.all_complete) == ([1, 2], [0, 1, 1, 0], True)
    store.own([0, 1])
    assert (list(store.complete_bits), store.incomplete(), store.all_complete) == ([0, 1, 0, 0], [0], False)


def test_in_doubt_nothing_is_known_of_any_slot_and_all_stay_owned(store: Store) -> None:
    put(store, KEY, 1)
    store.doubt()
    assert (store.owned, store.incomplete(), store.all_complete) == ([0, 1, 2, 3], [0, 1, 2, 3], False)
    assert answers(store) == [False] * 3
    assert held(store, KEY) == b"x"


def test_an_incomplete_slot_reads_and_promises_nothing(blank: Store) -> None:
    put(blank, KEY, 1)
    blank.own(range(SLOTS))
    blank.complete([1, 2, 3])
    entry, promised = blank.claim(KEY, v(5), ZERO, 0)
    assert (entry is not None, promised) == (True, False)
    assert blank.claim(KEY, v(5), v(1), 0) == blank.claim(NEIGHBOUR, v(5), ZERO, 0) == (None, False)
    assert blank.prepare(KEY, v(5), 0) == (STORED, v(1), blank.peek(KEY, 0))
    assert blank.prepare(NEIGHBOUR, v(5), 0) == (STORED, ZERO, None)
    assert (len(blank.promises), blank.barrier(0)) == (0, ZERO)
    assert blank.claim(STRANGER, v(5), ZERO, 0) == (None, True)


def lose_and_own_again(store: Store) -> None:
    store.own([1])
    store.own(range(SLOTS))


def stand_in(store: Store) -> None:
    """What comes after the promise is made by a node that does not own the slot."""


ways_to_not_know = pytest.mark.parametrize("forget", [Store.doubt, lose_and_own_again, stand_in])


@ways_to_not_know
@pytest.mark.parametrize("kind", ["claim", "prepare"])
def test_what_was_promised_before_a_slot_was_completed_is_void_and_what_it_kept_out_stays_out(
    blank: Store, forget: Callable[[Store], None], kind: str
) -> None:
    """It may have been invalidated at other owners, while this one did not know of it."""
    blank.own([1] if forget is stand_in else range(SLOTS))
    blank.complete(range(SLOTS))
    assert blank.claim(KEY, v(5), ZERO, 0)[1] if kind == "claim" else blank.prepare(KEY, v(5), 0)[0] is STORED
    forget(blank)
    blank.own(range(SLOTS))
    blank.complete(range(SLOTS))
    assert blank.accept(KEY, v(5), b"stale", 0, None, 0) == (NEWER, v(5))
    assert blank.claim(KEY, v(5), ZERO, 0) == (None, False)
    assert blank.prepare(KEY, v(5), 0) == (NEWER, v(5), None)
    assert blank.floor(KEY) == v(5)
    assert blank.delete(KEY, v(4), 0)[0] is not STORED
    assert blank.claim(KEY, v(6), ZERO, PATIENCE) == (None, True)
    assert blank.accept(KEY, v(6), b"fresh", 0, None, PATIENCE) == (STORED, v(6))


def test_a_slot_that_stays_owned_and_complete_keeps_its_promises(store: Store) -> None:
    store.claim(KEY, v(5), ZERO, 0)
    store.own([0, 1])
    store.complete([0, 1])
    assert store.accept(KEY, v(5), b"computed", 0, None, 0) == (STORED, v(5))


def test_over_a_record_below_what_is_void_nothing_is_promised_that_would_be_void(store: Store) -> None:
    put(store, KEY, 1)
    store.claim(NEIGHBOUR, v(5), ZERO, 0)
    store.doubt()
    store.complete(range(SLOTS))
    assert store.prepare(KEY, v(5), 0) == (NEWER, v(5), None)
    assert store.claim(KEY, v(5), v(1), 0) == (None, False)
    assert store.prepare(KEY, v(6), 0)[0] is STORED
    assert store.accept(KEY, v(6), b"six", 0, None, 0) == (STORED, v(6))


def test_completing_twice_changes_nothing(store: Store) -> None:
    put(store, KEY, 1)
    store.claim(STRANGER, v(2), ZERO, 0)
    before = books(store)
    store.complete(range(SLOTS))
    assert books(store) == before
    assert store.accept(STRANGER, v(2), b"computed", 0, None, 0) == (STORED, v(2))


# -- barriers ----------------------------------------------------------------------------------------------------------


def test_the_barrier_of_a_slot_is_the_highest_ever_forgotten_or_promised(store: Store) -> None:
    seen = []
    for step in (
        lambda: put(store, KEY, 9),
        lambda: store.delete(STRANGER, v(9), 0),
        lambda: store.claim(NEIGHBOUR, v(3), ZERO, 0),
        lambda: store.claim(NEIGHBOUR, v(2), ZERO, 0),
        lambda: store.prepare(NEIGHBOUR, v(4), 0),
        lambda: store.promises.release(NEIGHBOUR, v(4)),
        lambda: store.raise_floor(0, v(5)),
        lambda: store.prepare(NEIGHBOUR, v(5), 0),
    ):
        step()
        seen.append(store.barrier(0))
    assert seen == [ZERO, ZERO, v(3), v(3), v(4), v(4), v(5), v(5)]


def test_a_floor_that_is_raised_refuses_what_is_absent_and_leaves_what_is_held(store: Store) -> None:
    put(store, KEY, 1)
    store.raise_floor(0, v(5))
    assert held(store, KEY) == b"x"
    assert store.set(NEIGHBOUR, v(5), b"", 0, None, 0) == (NEWER, v(5))
    assert (store.newest, store.floors) == (v(5), [v(5), ZERO, ZERO, ZERO])
    store.raise_floor(0, v(3))
    assert store.floors == [v(5), ZERO, ZERO, ZERO]


# -- dropping ----------------------------------------------------------------------------------------------------------


def test_what_is_dropped_is_forgotten(store: Store) -> None:
    put(store, KEY, 5)
    assert store.drop(KEY, v(9), 0)
    assert (held(store, KEY), store.used, store.digests_of([0]), store.floor(KEY)) == (None, 0, [0], v(5))
    assert store.set(KEY, v(5), b"", 0, None, 0) == (NEWER, v(5))


def test_nothing_newer_than_told_is_dropped(store: Store) -> None:
    put(store, KEY, 5)
    before = books(store)
    assert not store.drop(KEY, v(4), 0)
    assert not store.drop(NEIGHBOUR, v(9), 0)
    assert books(store) == before


def test_dropping_is_no_write_so_promises_stand(store: Store) -> None:
    put(store, KEY, 5)
    store.claim(KEY, v(7), v(5), 0)
    store.drop(KEY, v(5), 0)
    assert store.accept(KEY, v(7), b"computed", 0, None, 0) == (STORED, v(7))


# -- starting over -----------------------------------------------------------------------------------------------------


def sweep_all(store: Store, most: int = 3) -> None:
    while store.sweep(0, most):
        pass


def test_starting_over_forgets_the_slots_at_once_and_completes_them(blank: Store) -> None:
    for n, key in enumerate((KEY, NEIGHBOUR, STRANGER)):
        put(blank, key, n + 1)
    blank.own([0, 1])
    blank.start_over([0], v(50))
    assert [held(blank, key) for key in (KEY, NEIGHBOUR, STRANGER)] == [None, None, b"x"]
    assert blank.floors == [v(50), ZERO, ZERO, ZERO]
    assert (blank.newest, blank.incomplete()) == (v(50), [1])
    assert blank.set(KEY, v(50), b"", 0, None, 0) == (NEWER, v(50))
    put(blank, KEY, 51)


def test_a_slot_that_is_not_owned_is_forgotten_and_not_completed(blank: Store) -> None:
    put(blank, KEY, 1)
    blank.own([1])
    blank.start_over([0, 1], v(50))
    assert held(blank, KEY) is None
    assert list(blank.complete_bits) == [0, 1, 0, 0]


def test_what_is_newer_than_the_floor_is_spared(store: Store) -> None:
    put(store, KEY, 60)
    put(store, NEIGHBOUR, 50)
    store.start_over([0], v(50))
    sweep_all(store)
    assert (held(store, KEY), held(store, NEIGHBOUR)) == (b"x", None)


@pytest.mark.parametrize("kind", ["claim", "prepare"])
def test_what_was_promised_before_starting_over_is_void(store: Store, kind: str) -> None:
    store.claim(KEY, v(5), ZERO, 0) if kind == "claim" else store.prepare(KEY, v(5), 0)
    store.claim(STRANGER, v(6), ZERO, 0)
    store.start_over([0], v(50))
    assert store.accept(KEY, v(5), b"old", 0, None, 0) == (NEWER, v(50))
    assert store.accept(STRANGER, v(6), b"another slot", 0, None, 0) == (STORED, v(6))


def test_after_the_sweep_books_and_digests_are_exact(store: Store) -> None:
    for n in range(12):
        put(store, b"ns\0k%d" % n, n + 1, ttl=None if n % 2 else 100_000)
    store.start_over([0, 1], v(50))
    put(store, b"ns\0k0", 51)
    sweep_all(store)
    left = {b"ns\0k%d" % n: v(n + 1) for n in range(12) if slot_of(b"%d" % n) in {2, 3}} | {b"ns\0k0": v(51)}
    assert sorted(store.keys()) == sorted(left)
    assert store.digests_of(range(SLOTS)) == list(store._digests) == digests_of(left)
    assert store.used == sum(len(key) + 1 + OVERHEAD for key in left)
    assert (store._hiding, store._started_over, store._unswept) == (False, {}, [])


def test_a_slot_started_over_is_swept_in_bounded_slices(store: Store) -> None:
    for n in range(20):
        put(store, b"ns\0%d" % n, n + 1)
    store.start_over(range(SLOTS), v(50))
    while len(store):
        before = len(store)
        store.sweep(0, 3)
        assert before - len(store) <= 3


def test_starting_over_again_before_the_sweep_is_over_loses_nothing_of_the_first(store: Store) -> None:
    for n, key in enumerate((KEY, NEIGHBOUR, b"ns\0d0", STRANGER)):
        put(store, key, n + 35)
    store.start_over([0], v(50))
    store.sweep(0, 1)
    store.start_over([1], v(40))
    store.start_over([0], v(30))
    sweep_all(store, 1)
    assert (len(store), store.floors[:2]) == (0, [v(50), v(40)])


def clear(store: Store) -> None:
    store.clear(b"ns\0", v(50), 0)


def start_over(store: Store) -> None:
    store.start_over(range(SLOTS), v(50))


@pytest.mark.parametrize("hide", [clear, start_over])
def test_a_digest_tells_what_is_hidden_apart_from_what_is_held(hide: Callable[[Store], None]) -> None:
    """Else a node that has cleared would be taken to hold what one holds that has not heard of it."""
    here, there, elsewhere = make_store(), make_store(), make_store()
    for store in (here, there, elsewhere):
        put(store, KEY, 1)
        put(store, STRANGER, 2)
    hide(here)
    assert not set(here.digests_of([0, 1])) & set(there.digests_of([0, 1]))
    hide(elsewhere)
    assert here.digests_of(range(SLOTS)) == elsewhere.digests_of(range(SLOTS))
    sweep_all(here)
    assert here.digests_of(range(SLOTS)) == [0] * SLOTS


@pytest.mark.parametrize(
    "hide",
    [
        lambda store, n: store.start_over([0], v(n)),
        lambda store, n: store.clear(b"ns\0", v(n), 0),
        lambda store, n: store.clear(b"ns\0" if n == 50 else b"other\0", v(50), 0),
    ],
)
def test_what_hides_more_and_what_hides_less_are_told_apart(hide: Callable[[Store, int], None]) -> None:
    """One still holds what the other has forgotten."""
    here, there = make_store(), make_store()
    for store in (here, there):
        put(store, KEY, 45)
    hide(here, 50)
    hide(there, 40)
    assert here.digests_of([0]) != there.digests_of([0])
    assert (held(here, KEY), held(there, KEY)) == (None, b"x")


# -- claims and fills --------------------------------------------------------------------------------------------------


def test_a_claim_reads_what_is_held_and_promises_nothing(store: Store) -> None:
    put(store, KEY, 1)
    entry, promised = store.claim(KEY, v(2), ZERO, 0)
    assert entry is not None
    assert (entry.value, promised, len(store.promises)) == (b"x", False, 0)


def test_a_claim_of_an_absent_key_is_promised_and_its_value_accepted(store: Store) -> None:
    assert store.claim(KEY, v(2), ZERO, 0) == (None, True)
    assert store.accept(KEY, v(2), b"computed", 7, 500, 100) == (STORED, v(2))
    assert _content(store.peek(KEY, 100)) == (b"computed", v(2), 7, 600)


def test_a_claim_takes_what_nobody_can_return_for_absent(store: Store) -> None:
    """The reader names the version that too few owners hold; the claim must be above what is held all the same."""
    put(store, KEY, 3)
    entry, promised = store.claim(KEY, v(9), v(2), 0)
    assert (entry, promised) == (store.peek(KEY, 0), False)
    assert store.claim(KEY, v(2), v(3), 0) == (None, False)
    assert store.claim(KEY, v(3), v(3), 0) == (None, False)
    assert store.claim(KEY, v(4), v(3), 0) == (None, True)
    assert held(store, KEY) == b"x"
    assert store.accept(KEY, v(4), b"computed", 0, None, 0) == (STORED, v(4))
    assert held(store, KEY) == b"computed"


def test_a_claim_over_a_held_record_is_measured_against_it_and_not_against_the_floor(store: Store) -> None:
    put(store, KEY, 3)
    store.delete(NEIGHBOUR, v(9), 0)
    assert store.claim(KEY, v(4), v(3), 0) == (None, True)


def test_a_claim_at_or_below_the_floor_is_not_promised(store: Store) -> None:
    store.delete(NEIGHBOUR, v(5), 0)
    assert store.claim(KEY, v(4), ZERO, 0) == (None, False)
    assert store.claim(KEY, v(5), ZERO, 0) == (None, False)
    assert store.claim(KEY, v(6), ZERO, 0) == (None, True)


def test_a_young_ballot_refuses_a_claim(store: Store) -> None:
    store.prepare(KEY, v(5), 0)
    assert store.claim(KEY, v(6), ZERO, 0) == (None, False)


def test_claims_and_accepts_sent_again_are_answered_again(store: Store) -> None:
    assert store.claim(KEY, v(2), ZERO, 0) == store.claim(KEY, v(2), ZERO, 0) == (None, True)
    assert store.accept(KEY, v(2), b"c", 0, 500, 0) == (STORED, v(2))
    before = books(store)
    assert store.accept(KEY, v(2), b"c", 0, 500, 100) == (STORED, v(2))
    assert books(store) == before


def test_without_a_promise_nothing_is_accepted(store: Store) -> None:
    """A forgotten promise only refuses: the answer is what is known, or nothing."""
    assert store.accept(KEY, v(5), b"", 0, None, 0) == (NEWER, ZERO)
    put(store, KEY, 3)
    assert store.accept(KEY, v(5), b"", 0, None, 0) == (NEWER, v(3))


def test_a_version_that_was_not_promised_is_told_the_promise_in_its_way(store: Store) -> None:
    store.claim(KEY, v(5), ZERO, 0)
    assert store.accept(KEY, v(4), b"", 0, None, 0) == (NEWER, v(5))
    assert store.accept(KEY, v(6), b"", 0, None, 0) == (NEWER, v(5))


def test_a_promise_refuses_lower_sets_and_deletes(store: Store) -> None:
    store.claim(KEY, v(5), ZERO, 0)
    assert store.set(KEY, v(4), b"", 0, None, 0) == (Status.PROMISED, v(5))
    assert store.delete(KEY, v(4), 0) == (Status.PROMISED, v(5), False)
    assert store.accept(KEY, v(5), b"c", 0, None, 0) == (STORED, v(5))


@pytest.mark.parametrize("kind", ["claim", "prepare"])
@pytest.mark.parametrize("write", ["set", "delete", "clear"])
def test_a_write_during_the_computation_wins_over_it(store: Store, kind: str, write: str) -> None:
    """Whatever the clocks say: the promise is void even where the write is not higher than it."""
    store.claim(KEY, v(5), ZERO, 0) if kind == "claim" else store.prepare(KEY, v(5), 0)
    if write == "set":
        put(store, KEY, 5, b"written")
        store.delete(KEY, v(6), 0)
    elif write == "delete":
        store.delete(KEY, v(5), 0)
    else:
        store.clear(b"ns\0", v(2), 0)
    assert store.accept(KEY, v(5), b"stale", 0, None, 0)[0] is NEWER
    assert held(store, KEY) is None


def test_a_copy_of_what_is_held_voids_no_promise(store: Store) -> None:
    put(store, KEY, 3)
    store.prepare(KEY, v(5), 0)
    put(store, KEY, 3)
    assert store.accept(KEY, v(5), b"new", 0, None, 0) == (STORED, v(5))


def test_a_write_of_another_key_of_the_slot_voids_nothing_although_it_raises_the_floor(store: Store) -> None:
    store.claim(KEY, v(5), ZERO, 0)
    store.delete(NEIGHBOUR, v(9), 0)
    assert store.accept(KEY, v(5), b"computed", 0, None, 0) == (STORED, v(5))
    assert held(store, KEY) == b"computed"


def test_of_two_claims_the_first_done_is_stored_and_the_higher_may_still_follow(store: Store) -> None:
    store.claim(KEY, v(5), ZERO, 0)
    store.claim(KEY, v(6), ZERO, 0)
    assert store.accept(KEY, v(5), b"five", 0, None, 0) == (STORED, v(5))
    assert store.accept(KEY, v(6), b"six", 0, None, 0) == (STORED, v(6))
    assert held(store, KEY) == b"six"


def test_after_a_higher_claim_was_accepted_a_lower_one_is_refused(store: Store) -> None:
    store.claim(KEY, v(5), ZERO, 0)
    store.claim(KEY, v(6), ZERO, 0)
    store.claim(KEY, v(7), ZERO, 0)
    store.accept(KEY, v(6), b"six", 0, None, 0)
    assert store.accept(KEY, v(5), b"five", 0, None, 0)[0] is NEWER
    assert held(store, KEY) == b"six"


def test_an_accepted_value_evicted_since_is_not_accepted_again(store: Store) -> None:
    store.claim(KEY, v(5), ZERO, 0)
    store.accept(KEY, v(5), b"five", 0, 100, 0)
    assert store.accept(KEY, v(5), b"five", 0, 100, 100) == (NEWER, v(5))


def test_a_promise_whose_life_is_over_refuses(store: Store) -> None:
    store.claim(KEY, v(5), ZERO, 0)
    assert store.accept(KEY, v(5), b"", 0, None, LIFE) == (NEWER, v(5))


def test_a_promise_forgotten_for_others_refuses() -> None:
    store = make_store(promises=Promises(1, LIFE, PATIENCE))
    store.claim(KEY, v(5), ZERO, 0)
    store.claim(STRANGER, v(6), ZERO, 0)
    assert store.accept(KEY, v(5), b"", 0, None, 0) == (NEWER, v(5))
    assert store.accept(STRANGER, v(6), b"", 0, None, 0) == (STORED, v(6))


def test_not_even_a_promise_puts_an_older_value_over_a_newer_one(store: Store) -> None:
    """No order of the operations leads here; should one ever, the promise does not count."""
    put(store, KEY, 9)
    store.promises.claim(KEY, v(5), 0)
    assert store.accept(KEY, v(5), b"old", 0, None, 0) == (NEWER, v(9))
    assert held(store, KEY) == b"x"


def test_promises_have_limits_of_their_own_unless_given() -> None:
    store = completed(Store(1_000, slot_of, SLOTS))
    assert store.claim(KEY, v(1), ZERO, 0) == (None, True)
    assert store.accept(KEY, v(1), b"", 0, None, 60_000) == (NEWER, v(1))


# -- conditional changes -----------------------------------------------------------------------------------------------


def test_a_ballot_is_promised_with_what_is_held(store: Store) -> None:
    put(store, KEY, 3, b"three")
    status, known, entry = store.prepare(KEY, v(5), 0)
    assert (status, known, held(store, KEY)) == (STORED, v(3), b"three")
    assert entry == store.peek(KEY, 0)
    assert store.accept(KEY, v(5), b"five", 0, None, 0) == (STORED, v(5))


def test_a_ballot_on_an_absent_key_is_promised_with_the_floor(store: Store) -> None:
    store.delete(NEIGHBOUR, v(3), 0)
    assert store.prepare(KEY, v(5), 0) == (STORED, v(3), None)


def test_a_ballot_not_above_what_is_held_or_forgotten_is_refused(store: Store) -> None:
    put(store, KEY, 3)
    assert store.prepare(KEY, v(3), 0) == (NEWER, v(3), None)
    assert store.prepare(KEY, v(2), 0) == (NEWER, v(3), None)
    store.delete(KEY, v(4), 0)
    assert store.prepare(KEY, v(4), 0) == (NEWER, v(4), None)


def test_a_ballot_pushes_out_claims_below_it(store: Store) -> None:
    store.claim(KEY, v(4), ZERO, 0)
    store.prepare(KEY, v(5), 0)
    assert store.accept(KEY, v(4), b"", 0, None, 0) == (NEWER, v(5))


def test_a_second_ballot_waits_for_the_patience_of_the_first(store: Store) -> None:
    store.prepare(KEY, v(5), 0)
    assert store.prepare(KEY, v(6), PATIENCE - 1) == (NEWER, v(5), None)
    assert store.prepare(KEY, v(6), PATIENCE) == (STORED, ZERO, None)
    assert store.accept(KEY, v(5), b"", 0, None, PATIENCE) == (NEWER, v(6))


def test_prepares_and_their_accepts_sent_again_are_answered_again(store: Store) -> None:
    put(store, KEY, 3)
    assert store.prepare(KEY, v(5), 0) == store.prepare(KEY, v(5), 0)
    assert store.accept(KEY, v(5), b"five", 0, None, 0) == (STORED, v(5))
    assert store.accept(KEY, v(5), b"five", 0, None, 0) == (STORED, v(5))


# -- digests -----------------------------------------------------------------------------------------------------------


def test_a_digest_is_the_xor_over_the_entries_of_its_slot(store: Store) -> None:
    put(store, KEY, 1)
    put(store, NEIGHBOUR, 2)
    put(store, STRANGER, 3)
    put(store, KEY, 4)
    assert store.digests_of(range(SLOTS)) == digests_of({KEY: v(4), NEIGHBOUR: v(2), STRANGER: v(3)})
    assert 0 not in store.digests_of([0, 1])


def test_digests_tell_versions_and_keys_apart_and_nothing_else() -> None:
    def digests(key: bytes, n: int, value: bytes, ttl: int | None) -> list[int]:
        store = make_store()
        put(store, key, n, value, ttl=ttl)
        return store.digests_of(range(SLOTS))

    assert digests(KEY, 1, b"x", None) != digests(KEY, 2, b"x", None)
    assert digests(KEY, 1, b"x", None) != digests(NEIGHBOUR, 1, b"x", None)
    assert digests(KEY, 1, b"x", None) == digests(KEY, 1, b"y", 50)


@given(st.dictionaries(st.integers(0, 30), st.integers(1_000, 2_000), max_size=20), st.randoms(use_true_random=False))
def test_two_stores_with_the_same_entries_have_the_same_digests_whatever_their_history(
    entries: dict[int, int], chance: random.Random
) -> None:
    """One is written straight away; the other by way of older versions, deletes, expiry and a namespace cleared."""
    straight, roundabout = make_store(100_000), make_store(100_000)
    wanted = {b"ns\0%d" % key: n for key, n in entries.items()}
    for key, n in wanted.items():
        put(straight, key, n)
    keys = [*wanted, *(b"ns\0%d" % n for n in range(31)), *(b"old\0%d" % n for n in range(10))]
    chance.shuffle(keys)
    for n, key in enumerate(keys):
        put(roundabout, key, 10 * n + 10, ttl=chance.choice([None, 50]))
        if chance.random() < 0.3:
            roundabout.delete(key, v(10 * n + 15), 0)
    roundabout.clear(b"old\0", v(800), 0)
    for key, n in wanted.items():
        put(roundabout, key, n, now=60)
    for key in set(keys) - wanted.keys():
        roundabout.delete(key, v(900), 60)
    roundabout.sweep(60, 1_000)
    assert sorted(straight.keys()) == sorted(roundabout.keys())
    assert straight.digests_of(range(SLOTS)) == roundabout.digests_of(range(SLOTS))


# -- cost --------------------------------------------------------------------------------------------------------------


def calls_of(operation: Callable[[], object]) -> int:
    """How many functions, of Python and of C, `operation` calls."""
    count = 0

    def profile(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    before = sys.getprofile()
    gc.disable()  # a collection in between would call whoever listens to it
    sys.setprofile(profile)
    try:
        operation()
    finally:
        sys.setprofile(before)
        gc.enable()
    return count


def full_store(entries: int) -> Store:
    """As full as it gets, its entries ending in one of four far seconds, a promise on every tenth key as well."""
    store = make_store(entries * (9 + OVERHEAD + 1), promises=Promises(10**6, LIFE, PATIENCE))
    for n in range(entries):
        put(store, b"ns\0%06d" % n, n + 1, ttl=100_000 + 1_000 * (n % 4))
        if n % 10 == 0:
            store.claim(b"no\0%06d" % n, v(10**6 + n), ZERO, 0)
    assert (len(store), store.used) == (entries, store.memory_limit)
    return store


ONE, NEW, ABSENT, HIGH = b"ns\0000007", b"ns\0999999", b"no\0000003", v(10**9)

operations: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get(ONE, 1),
    "miss": lambda store: store.get(NEW, 1),
    "known": lambda store: store.known(ONE, 1),
    "replace": lambda store: store.set(ONE, HIGH, b"y", 0, 100_000, 1),
    "set that evicts": lambda store: store.set(NEW, HIGH, b"y", 0, 100_000, 1),
    "refused set": lambda store: store.set(ONE, v(1), b"y", 0, 100_000, 1),
    "set of what is held": lambda store: store.set(ONE, v(8), b"y", 0, 99_998, 1),
    "delete": lambda store: store.delete(ONE, HIGH, 1),
    "drop": lambda store: store.drop(ONE, HIGH, 1),
    "claim": lambda store: store.claim(ABSENT, HIGH, ZERO, 1),
    "prepare": lambda store: store.prepare(ONE, HIGH, 1),
    "prepare and accept": lambda store: (store.prepare(ONE, HIGH, 1), store.accept(ONE, HIGH, b"y", 0, None, 1)),
    "sweep with nothing due": lambda store: store.sweep(1, 100),
    "expiry of one": lambda store: store.get(ONE, 200_000),
}


@pytest.mark.parametrize("name", operations)
def test_an_operation_takes_as_many_steps_in_a_large_store_as_in_a_small_one(name: str) -> None:
    small, large = full_store(20), full_store(5_000)
    assert calls_of(lambda: operations[name](small)) == calls_of(lambda: operations[name](large)) < 60


class Watched(OrderedDict[bytes, bytes]):
    """The entries of a store, counting those that are walked over."""

    walked = 0

    def __iter__(self) -> Iterator[bytes]:
        for key in super().__iter__():
            self.walked += 1
            yield key

    def items(self) -> Any:
        return ((key, self[key]) for key in self)

    def values(self) -> Any:
        return (self[key] for key in self)


def watched_store(**options: Any) -> tuple[Store, list[bytes], Watched]:
    """A store, the keys whose slots it asked for, and its entries."""
    touched: list[bytes] = []

    def watched_slot_of(key: bytes) -> int:
        touched.append(key)
        return slot_of(key)

    store = completed(Store(10**6, watched_slot_of, SLOTS, **options))
    for n in range(1_000):
        put(store, b"ns\0%d" % n, n + 1, ttl=500 if n in {3, 400, 998} else 50_000)
    store._entries = entries = Watched(store._entries)
    entries.walked = 0
    touched.clear()
    return store, touched, entries


def test_a_sweep_touches_the_keys_that_are_due_and_no_others() -> None:
    store, touched, entries = watched_store()
    steps = calls_of(lambda: store.sweep(2_000, 100))
    assert set(touched) == {b"ns\x003", b"ns\x00400", b"ns\x00998"}
    assert entries.walked == 0
    assert steps < 100


def test_the_garbage_collector_does_not_go_through_the_entries(store: Store) -> None:
    """Each of its full rounds over a million would take some 0.1 s."""
    put(store, KEY, 1)
    put(store, KEY, 2, ttl=500)
    store.set(KEY, v(2), b"", 0, 400, 0)
    put(store, NEIGHBOUR, 3)
    gc.collect()
    assert [gc.is_tracked(held) for held in store._entries.values()] == [False, False]


def test_entries_are_hidden_without_being_listed() -> None:
    """Nobody waits for that: they are listed once, when sweeping begins."""
    store, _, _ = watched_store()
    store.clear(b"ns\0", v(500), 0)
    store.start_over([1, 2], v(2_000))
    assert store._unswept is None
    assert store.sweep(0, 100)
    assert len(store._unswept or ()) == 1_000 - 100
    while store.sweep(0, 100):
        pass
    assert (len(store), store._hiding) == (len(list(remaining(store))), False)


def remaining(store: Store) -> Iterator[bytes]:
    """What is neither cleared nor in a slot that was started over."""
    return (key for key, held in store._entries.items() if version_of(held) > v(500) and slot_of(key) not in {1, 2})


def test_an_eviction_looks_at_nothing_but_what_it_evicts() -> None:
    store, touched, entries = watched_store(max_entries=1_000)
    put(store, KEY, 5_000)
    assert set(touched) == {b"ns\x000", KEY}
    assert entries.walked == 1


@pytest.mark.parametrize("name", sorted(operations.keys() - {"set that evicts"}))
def test_no_operation_walks_over_the_entries(name: str) -> None:
    store, _, entries = watched_store()
    operations[name](store)
    assert entries.walked == 0
