"""How a node that lost its memory becomes complete again, with real services and stores on a network in memory."""

from __future__ import annotations

import pytest

from dcache.agent import completing
from dcache.node.store import Store
from dcache.ops.compare import settle
from dcache.ops.listing import to_bitmap
from dcache.record import COUNTER_MAX, ZERO, make_version
from dcache.ring import SLOTS, slot_of
from tests.unit.owners_kit import MEMORY, Owners, full, make_table, v

pytestmark = pytest.mark.cluster

KEYS = [f"k{n}" for n in range(3000)]


def same_slot(key: str) -> str:
    """Another key of the same slot."""
    return next(other for n in range(10**6) if slot_of(full(other := f"o{n}")) == slot_of(full(key)))


def filled(**settings: object) -> Owners:
    owners = Owners(**settings)  # type: ignore[arg-type]
    for n, key in enumerate(KEYS):
        owners.write(key, n)
    return owners


def test_a_node_that_lost_everything_holds_it_all_again() -> None:
    owners = filled()
    before = owners["b"].held()
    owners["a"].restart()
    assert not owners["a"].store.all_complete
    owners.until(lambda: owners["a"].store.all_complete)
    assert owners["a"].held() == before == owners["b"].held()
    assert {owners["a"].version(key) for key in KEYS} == {v(n) for n in range(len(KEYS))}


def test_slots_of_which_nothing_is_to_be_fetched_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a node that has nothing to fetch, as when there are fewer owners soon, is done in half the time."""
    looks: list[int] = []
    monkeypatch.setattr(completing, "settle", lambda *about: looks.append(1) or settle(*about))
    owners = Owners()
    owners.write("k", 1)
    owners["a"].restart()
    owners.until(lambda: owners["a"].store.all_complete)
    assert owners["a"].version("k") == v(1)
    assert len(looks) == SLOTS + 1


def test_only_what_a_node_owns_comes_to_it() -> None:
    owners = filled(names="abcde")
    before = owners["a"].held()
    owners["a"].restart()
    owners.until(lambda: owners["a"].store.all_complete)
    assert owners["a"].held() == before


def test_lifetimes_go_on() -> None:
    owners = Owners()
    for name in "abc":
        owners[name].put("k", 1, ttl=30_000)
    owners["a"].restart(only="k")
    owners.until(lambda: owners["a"].store.all_complete)
    entry = owners["a"].store.peek(full("k"), owners.net.ms)
    assert entry is not None
    assert 0 < (entry.ttl(owners.net.ms) or 0) <= 30_000


def test_both_others_are_needed_of_three() -> None:
    owners = filled()
    owners["c"].host.crash(silent=True)
    owners["a"].restart()
    owners.net.run(10)
    assert owners["a"].store.progress()[0] == 0
    owners["b"].restart()
    owners.net.run(10)
    assert owners["a"].store.progress()[0] == 0


def test_a_deleted_value_that_one_owner_still_holds_does_not_come_back() -> None:
    owners = Owners()
    owners.write("k", 10)
    owners.delete("k", 20, at="ab")  # acknowledged; c missed it
    owners["a"].restart(only="k")
    owners.until(lambda: owners["a"].store.all_complete)
    assert owners["a"].version("k") is None
    assert owners["a"].store.floor(full("k")) >= v(20)
    assert owners.reads("k") == {None}


def test_what_comes_in_late_while_the_node_is_incomplete_is_not_kept_against_a_floor() -> None:
    owners = Owners()
    owners.write("k", 10)
    owners.delete("k", 20, at="ab")
    owners["a"].restart(only="k")
    owners["a"].put("k", 10)  # a copy that was long under way
    owners.until(lambda: owners["a"].store.all_complete)
    assert owners.reads("k") == {None}


@pytest.mark.parametrize("after", range(0, 120, 3))
def test_what_comes_in_late_at_any_moment_of_completing_does_no_harm(after: int) -> None:
    owners = Owners()
    owners.write("k", 10)
    owners.delete("k", 20, at="ab")
    owners["a"].restart(only="k")
    owners.net.run(after / 1000)
    owners["a"].put("k", 10)
    owners.until(lambda: owners["a"].store.all_complete)
    assert owners.reads("k") == {None}


def test_a_record_that_is_forgotten_between_being_listed_and_fetched_is_known_to_have_been() -> None:
    owners = Owners()
    owners.write("k", 20, at="ab")
    owners.write("k", 10, at="c")
    owners["a"].restart(only="k")
    owners.net.run_until(lambda: owners.net.counts["fetch"], 20, 0.001)
    owners["b"].forget("k")
    owners.until(lambda: owners["a"].store.all_complete)
    assert owners["a"].version("k") is None
    assert owners["a"].store.floor(full("k")) >= v(20)
    assert v(10) not in owners.reads("k")


def test_promises_of_others_are_a_barrier() -> None:
    """Else a delete would be acknowledged below a promise, and the fill it was given for would win."""
    owners = Owners()
    for name in "ab":
        assert owners[name].store.claim(full("k"), v(50), v(0), owners.net.ms)[1]
    owners["a"].restart(only="k")
    owners.until(lambda: owners["a"].store.all_complete)
    status, in_the_way, _ = owners["a"].store.delete(full("k"), v(40), owners.net.ms)
    assert status != 0
    assert in_the_way >= v(50)


def test_a_record_of_which_no_answer_came_is_not_taken_for_forgotten() -> None:
    owners = Owners()
    owners.write("k", 20)
    owners["a"].restart(only="k")
    owners.net.run_until(lambda: owners.net.counts["fetch"], 20, 0.001)
    for name in "bc":
        owners[name].host.shut(owners[name].host.process.callers)  # type: ignore[union-attr]
    owners.until(lambda: owners["a"].store.all_complete)
    assert owners["a"].version("k") == v(20)


def test_slots_that_nobody_else_owns_are_complete_at_once() -> None:
    owners = Owners("ab", replicas=1)
    owners["a"].restart()
    owners.until(lambda: owners["a"].store.all_complete, 1.0)
    assert not owners.net.counts["digests"]


def test_the_last_owner_of_several_takes_nothing_older_than_what_it_may_have_lost() -> None:
    owners = Owners("a", replicas=3)
    latest = owners["a"].service.handle("start_over", (owners.table.fingerprint, to_bitmap(()), ZERO))[0]
    owners["a"].restart()
    owners.until(lambda: owners["a"].store.all_complete, 1.0)
    assert min(owners["a"].store.floors) > make_version(latest, COUNTER_MAX, 0)


def test_the_only_owner_there_ever_is_takes_what_was_written_elsewhere_while_it_was_away() -> None:
    owners = Owners("ab", replicas=1)
    key = next(key for key in KEYS if owners.of(key) == ("a",))
    owners["a"].restart()
    owners.until(lambda: owners["a"].store.all_complete, 1.0)
    owners["a"].put(key, 1)
    assert owners["a"].version(key) == v(1)


def test_writes_meanwhile_are_kept() -> None:
    owners = filled()
    owners["a"].restart()
    for n in range(200):
        owners.net.run(0.002)
        owners.write(f"new{n}", 10_000 + n)
        owners.write(KEYS[n], 10_000 + n)
    owners.until(lambda: owners["a"].store.all_complete)
    assert owners["a"].held() == owners["b"].held()
    assert {owners["a"].version(f"new{n}") for n in range(200)} == {v(10_000 + n) for n in range(200)}
    assert {owners["a"].version(KEYS[n]) for n in range(200)} == {v(10_000 + n) for n in range(200)}


def test_keys_that_come_and_go_while_a_round_lasts_are_not_all_kept_in_mind() -> None:
    """A full node that is written to may take a million keys in one round, and forget them again."""
    store = Store(MEMORY, lambda key: key[-1] % 4, 4, max_entries=100)
    held = completing.Held(store, range(4), lambda: 0)
    for n in range(10_000):
        store.set(full(f"k{n}"), v(n), b"x", 0, None, 0)
        assert len(held) <= 2 * 100 + 4 * (completing.SPARE + 2)
    assert {key for slot in range(4) for key in held.versions(slot)} == set(store.keys())


def test_nothing_is_declared_under_another_ring_than_it_was_asked_under() -> None:
    owners = filled()
    owners["a"].restart()
    owners.until(lambda: owners["a"].store.progress()[0])
    owners["a"].learn(make_table("abc", epoch=2))
    done = owners["a"].store.progress()[0]
    owners.net.run(5)  # the others have another ring, and refuse
    assert owners["a"].store.progress()[0] == done
    owners.learn(make_table("abc", epoch=2))
    owners.until(lambda: owners["a"].store.all_complete)


def test_a_newcomer_asks_the_owners_on_the_current_ring() -> None:
    owners = Owners("abcd")
    owners.learn(make_table("abc", epoch=2))
    for owner in owners.by_name.values():
        owner.store.complete(range(SLOTS))
    for n, key in enumerate(KEYS):
        owners.write(key, n)
    owners.learn(make_table("abc", following="abcd", epoch=3))
    newcomer = owners["d"].store
    assert not newcomer.all_complete
    owners.until(lambda: newcomer.all_complete)
    mine = set(newcomer.owned)
    assert owners["d"].held() == {full(key) for key in KEYS if slot_of(full(key)) in mine}


def test_a_whole_cluster_that_lost_its_memory_starts_over_after_the_stated_time() -> None:
    owners = filled(start_over=5.0)
    for name in "abc":
        owners[name].restart()
    owners["c"].put("k1", 1)  # a copy that was long under way
    owners.net.run(4.5)
    assert [owners[name].store.progress()[0] for name in "abc"] == [0, 0, 0]
    owners.until(lambda: all(owners[name].store.all_complete for name in "abc"), 10.0)
    assert owners["c"].version("k1") is None
    for name in "abc":
        assert min(owners[name].store.floors) > v(owners.net.ms + 50_000)


def test_a_majority_of_the_owners_is_needed_to_start_over() -> None:
    owners = filled(start_over=2.0)
    owners["b"].host.crash(silent=True)
    owners["c"].host.crash(silent=True)
    owners["a"].restart()
    owners.net.run(20)
    assert owners["a"].store.progress()[0] == 0


def test_a_node_that_cannot_complete_says_who_is_missing_and_what_waits_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    owners = Owners(start_over=2.0)
    for name in "bc":
        owners[name].host.crash(silent=True)
    owners["a"].restart()
    owners.net.run(20)
    assert "slots cannot be completed" in caplog.text
    assert "no answer from b, c" in caplog.text
    assert "nobody can join or leave" in caplog.text
    assert caplog.text.count("slots cannot be completed") == 1


def test_an_owner_that_is_complete_keeps_what_it_holds_when_another_starts_over() -> None:
    """If the third returns with its memory, what the two hold can be read again."""
    owners = filled(start_over=2.0)
    owners.net.cut("a", "c")
    owners["a"].restart()
    owners.until(lambda: owners["a"].store.all_complete, 10.0)
    assert owners["b"].held() == owners["c"].held() != set()
    assert owners.reads("k7") == {v(7), None}


def test_no_more_than_the_stated_bytes_per_second() -> None:
    owners = filled()
    owners["a"].rate = 100_000
    owners["a"].restart()
    seconds = owners.until(lambda: owners["a"].store.all_complete, 60.0)
    assert owners["a"].pace.bytes / seconds <= 100_000
    assert owners["a"].pace.bytes / seconds >= 30_000


def test_it_goes_on_when_messages_are_lost() -> None:
    owners = filled()
    owners.net.default.loss = 0.05
    owners["a"].restart()
    owners.until(lambda: owners["a"].store.all_complete, 200.0)
    assert owners["a"].held() == owners["b"].held()


def test_it_never_goes_above_the_memory_limit() -> None:
    owners = filled()
    owners["a"].memory = owners["b"].store.used // 2
    owners["a"].restart()
    owners.until(lambda: owners["a"].store.all_complete)
    assert owners["a"].store.used <= owners["a"].memory
    assert all(v(n) in owners.reads(key) | {v(n)} for n, key in enumerate(KEYS))


def test_other_keys_of_a_slot_are_taken_though_one_was_forgotten() -> None:
    owners = Owners()
    other = same_slot("k")
    owners.write("k", 10)
    owners.write(other, 30)
    owners.delete("k", 20, at="ab")
    owners["a"].restart(only="k")
    owners.until(lambda: owners["a"].store.all_complete)
    assert owners["a"].version(other) == v(30)


def test_one_restart_after_the_other_loses_nothing_though_other_keys_are_deleted_meanwhile() -> None:
    owners = Owners()
    other = same_slot("k")
    owners.write("k", 10)
    for n, name in enumerate("abc"):
        owners[name].restart(only="k", begin=False)
        owners.delete(other, 20 + n, at="abc")
        owners[name].begin()
        owners.until(lambda name=name: owners[name].store.all_complete)  # type: ignore[misc]
        assert owners[name].version("k") == v(10)


def test_a_key_that_is_deleted_while_the_node_is_incomplete_is_a_miss() -> None:
    owners = Owners()
    owners.write("k", 10)
    owners["a"].restart(only="k", begin=False)
    owners.delete("k", 20, at="abc")
    owners["a"].begin()
    owners.until(lambda: owners["a"].store.all_complete)
    assert owners.reads("k") == {None}


# -- fewer owners than before -----------------------------------------------------------------------------------------


def shrunk(*, catching_up: bool) -> Owners:
    """Of three, c has left; what was acknowledged by a and c reached b by catching up, or not at all."""
    owners = Owners(begin=catching_up)
    owners.write("k", 10)
    owners.write("k", 20, at="ac")
    owners.learn(make_table("abc", following="ab", epoch=2))
    if catching_up:
        table = owners.table
        assert not owners["b"].completing.ready(table.fingerprint)
        assert owners["b"].completing.behind(table, make_table("ab", epoch=3))
        assert not owners["b"].completing.behind(table, make_table("abc", epoch=3))  # the change was given up
        owners.until(lambda: all(owners[name].completing.finished(table) for name in "ab"))
        assert owners["b"].completing.ready(table.fingerprint)
        assert not owners["b"].completing.behind(table, make_table("ab", epoch=3))
    owners.learn(make_table("ab", epoch=3))
    owners["a"].restart()
    if not catching_up:
        owners["b"].begin()
    owners.until(lambda: owners["a"].store.all_complete)
    return owners


def test_owners_catch_up_before_they_are_two_in_place_of_three() -> None:
    assert shrunk(catching_up=True).reads("k") == {v(20)}
    assert shrunk(catching_up=False).reads("k") == {v(10)}  # which is older than what was acknowledged


# -- forgetting -------------------------------------------------------------------------------------------------------


def forgetting(
    names: str, dead: str, *, replicas: int, word: bool = True, away: str = "", seconds: float = 20.0
) -> tuple[Owners, list[str]]:
    """Of `names` the first of `dead` goes, all of them being down; those that are `away` do not answer, and nobody has
    noticed.  Also who has completed its slots after `seconds`."""
    owners = Owners(names, replicas, start_over=5.0)
    for n, key in enumerate(KEYS):
        owners.write(key, n)
    for name in dead + away:
        owners[name].host.crash(silent=True)
    staying = [name for name in names if name != dead[0]]
    owners.learn(make_table(names, replicas, following=staying, epoch=2, forgotten=word, down=dead))
    owners.net.run(seconds)
    table = owners.table
    return owners, [
        name for name in names if name not in dead + away and owners[name].completing.ready(table.fingerprint)
    ]


@pytest.mark.parametrize(
    ("names", "dead", "replicas"),
    [("abc", "c", 1), ("abcde", "de", 1), ("abcd", "d", 2), ("abcde", "de", 2), ("abcde", "de", 3)],
)
def test_who_is_forgotten_need_not_be_heard(names: str, dead: str, replicas: int) -> None:
    alive = [name for name in names if name not in dead]
    assert forgetting(names, dead, replicas=replicas)[1] == alive


@pytest.mark.parametrize(("names", "dead", "replicas"), [("abc", "c", 1), ("abcde", "de", 2), ("abcde", "de", 3)])
def test_who_is_down_may_come_back_as_long_as_nobody_says_that_it_is_dead(names: str, dead: str, replicas: int) -> None:
    owners, complete = forgetting(names, dead, replicas=replicas, word=False)
    assert not complete
    waiting = [owners[name].completing.ready(owners.table.fingerprint) for name in names if name not in dead]
    assert set(waiting) == {None}


def test_slots_of_which_every_other_owner_was_heard_do_not_wait() -> None:
    """Of two owners one is forgotten, and the other has lost its memory."""
    owners = Owners("abc", 2)
    owners["c"].host.crash(silent=True)
    owners["b"].restart()
    owners.learn(make_table("abc", 2, following="ab", epoch=2, forgotten=True, down="c"))
    owners.until(lambda: all(owners[name].completing.finished(owners.table) for name in "ab"), 10.0)


def test_others_that_are_down_are_waited_for_a_while() -> None:
    assert forgetting("abcde", "de", replicas=3, seconds=4.0)[1] == []


def test_who_is_not_down_and_does_not_answer_is_waited_for() -> None:
    """Of two owners one is forgotten, the other one knows what it acknowledged with that one."""
    assert forgetting("abc", "c", replicas=2, away="b")[1] == []


@pytest.mark.parametrize("dead", ["de", "ed"])
def test_what_a_forgotten_member_helped_to_acknowledge_is_not_undone(dead: str) -> None:
    """The newest value was known to the one that goes and one more, an older one is held by the third."""
    names, last = "abcde", dead[1]
    owners = Owners(names, start_over=5.0)
    keys = [key for key in KEYS if {dead[0], last} <= set(owners.of(key))]
    assert keys
    for key in keys:
        owners.write(key, 10)
        owners.write(key, 20, at=dead)
    for name in dead:
        owners[name].host.crash(silent=True)
    staying = [name for name in names if name != dead[0]]
    owners.learn(make_table(names, following=staying, epoch=2, forgotten=True, down=dead))
    owners.until(lambda: all(owners[name].completing.finished(owners.table) for name in "abc"), 20.0)
    owners.learn(make_table(staying, epoch=3, down=last))
    assert {version for key in keys for version in owners.reads(key)} == {None, v(20)}  # were the last one to return


def heir_of(key: str, owners: Owners) -> str:
    return make_table("ab", 1).owners(slot_of(full(key)))[0][0]


@pytest.mark.parametrize("regained", [False, True])
def test_the_heir_of_an_only_owner_keeps_what_was_stranded_there_and_not_what_was_left(regained: bool) -> None:
    owners = Owners("abc", 1)
    key = next(key for key in KEYS if owners.of(key) == ("c",))
    heir = owners[heir_of(key, owners)]
    heir.put(key, 10)
    if regained:
        heir.agent.regained = {slot_of(full(key))}
    owners["c"].host.crash(silent=True)
    owners.learn(make_table("abc", 1, following="ab", epoch=2, forgotten=True, down="c"))
    owners.until(lambda: heir.completing.finished(owners.table), 2.0)
    assert heir.version(key) == (None if regained else v(10))


def test_an_only_owner_that_answers_though_it_is_to_be_forgotten_is_heard() -> None:
    owners = Owners("abc", 1)
    for n, key in enumerate(KEYS):
        owners.write(key, n)
    owners.learn(make_table("abc", 1, following="ab", epoch=2, forgotten=True))
    owners.until(lambda: all(owners[name].completing.finished(owners.table) for name in "ab"), 20.0)
    assert all(owners[heir_of(key, owners)].version(key) for key in KEYS if owners.of(key) == ("c",))
