"""What owners take from each other and drop now and then, with real services and stores on a network in memory."""

from __future__ import annotations

import random

import pytest

from dcache.ring import slot_of
from tests.unit.owners_kit import Owners, full, make_table, v

pytestmark = pytest.mark.cluster

KEYS = [f"k{n}" for n in range(3000)]


def filled(names: str = "abc", **settings: int) -> Owners:
    owners = Owners(names, **settings)
    for n, key in enumerate(KEYS):
        owners.write(key, n)
    return owners


def repaired(owners: Owners, *names: str) -> Owners:
    """One round at each of these nodes, at all if none are named, one after the other."""
    for name in names or owners.names:
        before = owners[name].repair.progress.rounds
        owners[name].repair.ask()
        owners.until(lambda name=name, before=before: owners[name].repair.progress.rounds > before)  # type: ignore[misc]
    return owners


def test_what_an_owner_missed_it_takes_from_the_others() -> None:
    owners = filled()
    owners.write("new", 5000, at="ab")
    owners.write("k7", 5000, at="ab")
    repaired(owners, "c")
    assert owners["c"].version("new") == owners["c"].version("k7") == v(5000)


def test_owners_that_differ_everywhere_agree_after_a_round_each() -> None:
    owners, rng = Owners(), random.Random(4)
    for n, key in enumerate(KEYS):
        for name in "abc":
            if rng.random() < 0.6:
                owners[name].put(key, rng.randrange(10) * 10_000 + n)
    for _ in range(4):  # a round looks at some of the slots
        repaired(owners)
    held = [{key: owners[name].version(key) for key in KEYS} for name in "abc"]
    assert held[0] == held[1] == held[2]


def test_each_round_goes_on_where_the_last_one_ended() -> None:
    owners = Owners()
    for key in KEYS:
        owners[("a")].put(key, 1)
    rounds = 0
    while owners["b"].held() != owners["a"].held():
        repaired(owners, "b")
        rounds += 1
    assert 2 <= rounds <= 4


def test_what_was_forgotten_is_not_taken_again() -> None:
    owners = filled()
    owners["c"].forget("k7")
    repaired(owners)
    assert owners["c"].version("k7") is None
    assert owners["a"].version("k7") == v(7)


def test_what_no_strict_read_can_return_is_dropped() -> None:
    owners = filled()
    owners.delete("k7", 5000, at="ab")
    assert owners["c"].version("k7") == v(7)
    repaired(owners, "c")
    assert owners["c"].version("k7") is None
    assert owners["c"].store.floor(full("k7")) >= v(7)


def test_equal_owners_exchange_a_few_kilobytes() -> None:
    owners = filled()
    owners.net.run(1)
    before = sum(owners[name].host.bytes for name in "abc")
    repaired(owners, "a")
    assert sum(owners[name].host.bytes for name in "abc") - before < 10_000
    assert owners.net.counts["digests"] == 0


@pytest.mark.parametrize("differing", [1, 10, 40])
def test_traffic_is_in_proportion_to_the_difference(differing: int) -> None:
    owners = Owners("ab")
    keys = [f"k{n}" for n in range(50_000)]
    for n, key in enumerate(keys):
        owners.write(key, n)
    for key in keys[:differing]:
        owners.write(key, 100_000, at="a")
    before = sum(owners[name].host.bytes for name in "ab")
    repaired(owners, "b")
    assert all(owners["b"].version(key) == v(100_000) for key in keys[:differing])
    traffic = sum(owners[name].host.bytes for name in "ab") - before
    assert traffic < 10_000 + 2_500 * differing  # of which 1,152 for the digests of a block


def test_at_the_memory_limit_nothing_is_evicted_for_what_others_hold() -> None:
    owners = Owners(memory=300_000)
    rng = random.Random(3)
    for n in range(12_000):
        for name in rng.sample("abc", 2):
            owners[name].put(f"k{n}", n)
    before = [owners[name].store.counters.evictions for name in "abc"]
    held = sum(len(owners[name].store) for name in "abc")
    assert all(before)
    for _ in range(3):
        repaired(owners)
    assert [owners[name].store.counters.evictions for name in "abc"] == before
    assert all(owners[name].store.used <= 300_000 for name in "abc")
    assert sum(len(owners[name].store) for name in "abc") <= held + 300


def test_at_the_memory_limit_a_newer_version_is_taken() -> None:
    owners = Owners(memory=300_000)
    for n in range(4_000):
        owners.write(f"k{n}", n)
    owners.write("k3999", 9_999, at="ab")
    for _ in range(4):
        repaired(owners, "c")
    assert owners["c"].version("k3999") == v(9_999)


def test_a_round_at_the_memory_limit_is_bounded() -> None:
    owners = Owners("ab")
    for n in range(40_000):
        owners["a"].put(f"k{n}", n)
    repaired(owners, "b")
    assert 1_000 <= len(owners["b"].store) <= 4_000  # of 1,024 slots


def test_what_a_node_stopped_owning_is_dropped() -> None:
    owners = filled("abcd", replicas=3)
    gone = set(owners["a"].store.owned)
    owners.learn(make_table("abcde"[:4], replicas=2, epoch=2))
    gone -= set(owners["a"].store.owned)
    owners["a"].agent.leftover = set(gone)
    assert any(slot_of(key) in gone for key in owners["a"].held())
    repaired(owners, "a")
    assert not any(slot_of(key) in gone for key in owners["a"].held())
    assert owners["a"].agent.leftover == set()


def stranding(owners: Owners, count: int = 50) -> list[str]:
    """Keys that "a" holds and does not own."""
    keys = [f"s{n}" for n in range(2_000) if "a" not in owners.of(f"s{n}")][:count]
    for n, key in enumerate(keys):
        owners["a"].put(key, 5000 + n)
    return keys


def test_stranded_records_go_home_and_are_dropped() -> None:
    owners = filled("abcd", replicas=2)
    keys = stranding(owners)
    repaired(owners, "a")
    for n, key in enumerate(keys):
        assert {owners[name].version(key) for name in owners.of(key)} == {v(5000 + n)}
        assert owners["a"].version(key) is None
    assert owners["a"].repair.progress.sent_home == len(keys)


def test_a_stranded_record_is_no_longer_needed_where_the_owners_have_a_newer_one() -> None:
    owners = filled("abcd", replicas=2)
    (key,) = stranding(owners, 1)
    owners.write(key, 9_000)
    repaired(owners, "a")
    assert owners["a"].version(key) is None
    assert {owners[name].version(key) for name in owners.of(key)} == {v(9_000)}


def test_stranded_records_stay_while_their_owner_is_away() -> None:
    owners = filled("abc", replicas=1)
    keys = stranding(owners)
    owners["b"].host.crash()
    repaired(owners, "a")
    for key in keys:
        assert (owners["a"].version(key) is None) == (owners.of(key) == ("c",))


def test_a_round_is_made_every_interval_and_after_completing() -> None:
    owners = Owners(interval=10.0)
    owners.net.run(60)
    assert 4 <= owners["a"].repair.progress.rounds <= 8
    owners["a"].interval = 1_000.0
    owners["a"].restart(only="k")
    owners.net.run(5)
    assert owners["a"].repair.progress.rounds == 1


def test_slots_that_another_has_yet_to_complete_are_left_to_it() -> None:
    owners = filled()
    owners["b"].restart(begin=False)
    repaired(owners, "a")
    assert owners["a"].held() == {full(key) for key in KEYS}
    assert owners["a"].repair.progress.differing == 0


def test_nothing_happens_under_another_ring() -> None:
    owners = filled()
    owners.write("k7", 5000, at="ab")
    owners["c"].learn(make_table("abc", epoch=2))
    repaired(owners, "c")
    assert owners["c"].version("k7") == v(7)
