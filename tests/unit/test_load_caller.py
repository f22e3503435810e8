"""What a caller asks for, what it counts, and that the published workloads are as they were published."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from itertools import count
from typing import Any

import attrs
import pytest

from dcache.errors import NoNodesAvailable, ValueTooLarge
from dcache.testing.load.caller import Caller, Load
from dcache.testing.load.keys import Zipf
from dcache.testing.load.run import Threads, async_calls_of, calls_of, idle_tasks, idle_threads, play, play_async
from dcache.testing.load.schedule import Schedule
from dcache.testing.load.sizes import Fixed
from dcache.testing.load.tally import FILL, Tally, Timeline, hit_rate, total
from dcache.testing.load.workload import ETC_KEY_SIZES, ETC_KEYS, ETC_VALUE_SIZES, PRESETS, SKEW_ETC, Workload

SMALL = Workload(keys=50)
MILLISECOND = 1_000_000


class Clock:
    """Goes on by a millisecond each time that it is looked at."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += MILLISECOND
        return self.now


class Held:
    """A cache that is a dict; it notes what it was asked."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.lifetimes: list[float | None] = []
        self.asked: list[str] = []

    def get(self, key: str) -> bytes | None:
        self.asked.append("get")
        return self.values.get(key)

    def set(self, key: str, value: bytes, ttl: float | None) -> bytes:
        self.asked.append("set")
        self.lifetimes.append(ttl)
        self.values[key] = value
        return b"version"

    def get_many(self, keys: list[str]) -> dict[str, bytes]:
        self.asked.append("get_many")
        assert len(set(keys)) == len(keys)
        return {key: self.values[key] for key in keys if key in self.values}

    def set_many(self, values: dict[str, bytes], ttl: float | None) -> dict[str, Exception]:
        self.asked.append("set_many")
        self.lifetimes.append(ttl)
        self.values |= values
        return {}


def at_work(workload: Workload, cache: Any, times: int, batch: int = 1) -> Tally:
    """So many operations, on keys that are there."""
    load, tally = Load.of(workload, batch, 0, Clock()), Tally()
    caller, calls = Caller(load, tally, random.Random(1)), calls_of(cache)
    play(caller.preload(range(workload.keys)), calls)
    if isinstance(cache, Held):
        cache.asked.clear()
        cache.lifetimes.clear()
    tally.stored = 0
    for _ in range(times):
        play(caller.operation(), calls)
    return tally


def counts(tally: Tally) -> dict[str, int]:
    return {kind: histogram.count for kind, histogram in tally.latencies.items() if histogram.count}


def test_the_share_of_reads_is_what_was_asked_for() -> None:
    tally = at_work(attrs.evolve(SMALL, reads=0.9), Held(), 5000)
    assert counts(tally)["read"] == pytest.approx(4500, abs=100)
    assert sum(counts(tally).values()) == 5000
    assert (tally.hits, tally.misses) == (counts(tally)["read"], 0)
    assert tally.stored == counts(tally)["write"]


def test_keys_are_chosen_by_the_distribution_and_hot_ones_are_scattered() -> None:
    load = Load.of(attrs.evolve(SMALL, distribution="zipf", skew=2.0), 1, 0, Clock())
    caller = Caller(load, Tally(), random.Random(1))
    found = Counter(caller._key() for _ in range(10_000))
    first, second = (load.keys.scattered(rank) for rank in (0, 1))
    assert found[first] == pytest.approx(4 * found[second], rel=0.15)
    assert abs(int(first) - int(second)) > 10


def test_a_batch_asks_for_many_keys_in_one_call() -> None:
    cache = Held()
    tally = at_work(attrs.evolve(SMALL, reads=0.5), cache, 100, batch=10)
    assert set(cache.asked) == {"get_many", "set_many"}
    assert len(cache.asked) == tally.operations().count == 100
    assert 5 * counts(tally)["read"] < tally.hits <= 10 * counts(tally)["read"]


@pytest.mark.parametrize(("batch", "store"), [(1, "set"), (5, "set_many")])
def test_a_read_that_misses_is_followed_by_storing_what_was_missing(batch: int, store: str) -> None:
    cache = Held()
    tally = at_work(attrs.evolve(SMALL, reads=1.0, once=1.0, fill=True), cache, 40, batch)
    assert cache.asked == ["get" if batch == 1 else "get_many", store] * 40
    assert counts(tally) == {"read": 40, FILL: 40}
    assert (tally.misses, tally.stored, tally.hits) == (40 * batch, 40 * batch, 0)
    assert tally.operations().count == 40


def test_without_filling_a_miss_is_just_a_miss() -> None:
    cache = Held()
    tally = at_work(attrs.evolve(SMALL, reads=1.0, once=0.3), cache, 1000)
    assert set(cache.asked) == {"get"}
    assert tally.misses == pytest.approx(300, abs=60)


def test_inserting_makes_new_keys_and_the_latest_are_read_and_found() -> None:
    cache = Held()
    tally = at_work(attrs.evolve(SMALL, reads=0.5, change="insert", distribution="latest"), cache, 500)
    assert len(cache.values) == SMALL.keys + counts(tally)["insert"]
    assert tally.misses == 0


def test_an_update_reads_and_then_stores_and_is_timed_as_one() -> None:
    cache = Held()
    tally = at_work(attrs.evolve(SMALL, reads=0.0, change="update"), cache, 20)
    assert cache.asked == ["get", "set"] * 20
    assert counts(tally) == {"update": 20}


def test_lifetimes_are_given_as_often_as_they_should_be() -> None:
    cache = Held()
    at_work(attrs.evolve(SMALL, reads=0.0, lifetimes=((60.0, 0.75), (None, 0.25))), cache, 2000)
    assert cache.lifetimes.count(60.0) == pytest.approx(1500, abs=80)
    assert cache.lifetimes.count(None) == 2000 - cache.lifetimes.count(60.0)


def test_values_have_the_sizes_that_are_drawn_and_a_fixed_one_is_never_copied() -> None:
    cache = Held()
    at_work(attrs.evolve(SMALL, reads=0.0, value_sizes=Fixed(1000)), cache, 200)
    assert {len(value) for value in cache.values.values()} == {1000}
    assert len({id(value) for value in cache.values.values()}) == 1


def test_time_counts_from_the_intended_start_or_from_the_first_call() -> None:
    clock, tally = Clock(), Tally()
    caller = Caller(Load.of(attrs.evolve(SMALL, reads=1.0), 1, 0, clock), tally, random.Random(1))
    play(caller.operation(), calls_of(Held()))
    assert tally.latencies["read"].largest == MILLISECOND
    play(caller.operation(clock.now - 70 * MILLISECOND), calls_of(Held()))
    assert tally.latencies["read"].largest == 71 * MILLISECOND


class Broken(Held):
    def get(self, key: str) -> bytes | None:
        raise NoNodesAvailable({"a": "refused"})

    def set_many(self, values: dict[str, bytes], ttl: float | None) -> dict[str, Exception]:
        return {key: ValueTooLarge(2, 1) for key in values}


def test_errors_are_counted_by_kind_and_their_time_counts() -> None:
    tally = at_work(attrs.evolve(SMALL, reads=1.0, fill=True), Broken(), 10)
    assert tally.errors == {"NoNodesAvailable": 10, "ValueTooLarge": 50}  # the latter while preloading
    assert counts(tally) == {"read": 10}
    assert (tally.hits, tally.misses) == (0, 0)


def test_a_mistake_of_the_program_is_no_error_of_the_cache() -> None:
    class Mistaken(Held):
        def get(self, key: str) -> bytes | None:
            raise TypeError

    with pytest.raises(TypeError):
        at_work(attrs.evolve(SMALL, reads=1.0), Mistaken(), 1)


def test_a_task_makes_the_same_calls_as_a_thread() -> None:
    class Awaited(Held):
        async def get(self, key: str) -> bytes | None:
            return super().get(key)

        async def set(self, key: str, value: bytes, ttl: float | None) -> bytes:
            return super().set(key, value, ttl)

        async def get_many(self, keys: list[str]) -> dict[str, bytes]: ...

        async def set_many(self, values: dict[str, bytes], ttl: float | None) -> Any: ...

    workload = attrs.evolve(SMALL, reads=0.5, once=0.2, fill=True)
    plain, awaited = Held(), Awaited()
    tallies = [Tally(), Tally()]
    one, other = (Caller(Load.of(workload, 1, 0, Clock()), tally, random.Random(3)) for tally in tallies)

    async def main() -> None:
        for _ in range(200):
            await play_async(other.operation(), async_calls_of(awaited))

    for _ in range(200):
        play(one.operation(), calls_of(plain))
    asyncio.run(main())
    assert plain.values == awaited.values
    assert plain.asked == awaited.asked
    assert counts(tallies[0]) == counts(tallies[1])


def test_measuring_the_callers_alone_asks_no_cache() -> None:
    caller = Caller(Load.of(SMALL, 1, 0, Clock()), Tally(), random.Random(1))
    assert 0 < idle_threads(caller) < 0.01
    assert 0 < idle_tasks(caller) < 0.01


# -- what came of it --------------------------------------------------------------------------------------------------


def test_intervals_add_up_to_the_whole() -> None:
    numbers = count(1)
    tallies = [Tally(), Tally()]
    timeline = Timeline(tallies, lambda: next(numbers) * 1_000_000_000)
    for done in (3, 0, 5):
        for tally in tallies:
            for _ in range(done):
                tally.latencies["read"].record(1000)
                tally.latencies[FILL].record(1)
                tally.hits += 1
        tallies[0].errors["QuorumError"] += 1
        timeline.look()
    assert [one.operations for one in timeline.intervals] == [6, 0, 10]
    assert [one.hit_rate for one in timeline.intervals] == [1.0, None, 1.0]
    assert [one.errors for one in timeline.intervals] == [1, 1, 1]
    assert [one.end for one in timeline.intervals] == [1.0, 2.0, 3.0]
    assert timeline.intervals[0].throughput == 6.0
    whole = total(tallies)
    assert (whole.hits, whole.operations().count, whole.errors) == (16, 16, {"QuorumError": 3})


def test_where_nothing_was_read_there_is_no_hit_rate() -> None:
    assert hit_rate(0, 0) is None
    assert hit_rate(3, 1) == 0.75


# -- published workloads ----------------------------------------------------------------------------------------------


def test_ycsb_is_as_its_workload_files_say() -> None:
    mixes = {name: (one.reads, one.change, one.distribution) for name, one in PRESETS.items() if "ycsb" in name}
    assert mixes == {
        "ycsb-a": (0.5, "write", "zipf"),
        "ycsb-b": (0.95, "write", "zipf"),
        "ycsb-c": (1.0, "write", "zipf"),
        "ycsb-d": (0.95, "insert", "latest"),
        "ycsb-f": (0.5, "update", "zipf"),
    }
    assert {(one.skew, one.value_sizes(0.5), one.fill) for name, one in PRESETS.items() if "ycsb" in name} == {
        (0.99, 1000, False)
    }


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_sense(name: str) -> None:
    workload = PRESETS[name]
    assert 0 <= workload.reads <= 1
    assert 0 <= workload.once < 0.05
    assert sum(share for _, share in workload.lifetimes) == pytest.approx(1, abs=0.02)
    assert workload.value_sizes(1 - 2**-53) <= 1_000_000


def test_half_of_the_keys_of_facebook_make_a_hundredth_of_the_requests() -> None:
    """What the paper says of the pool ETC, from which the exponent is taken."""
    zipf = Zipf(ETC_KEYS, SKEW_ETC)
    assert zipf(0.99) == pytest.approx(ETC_KEYS / 2, rel=0.01)


def test_the_sizes_of_facebook_are_those_of_the_model() -> None:
    assert [ETC_VALUE_SIZES(share) for share in (0.0, 0.1, 0.2, 0.441)] == [0, 2, 3, 14]
    assert ETC_VALUE_SIZES(0.45) >= 15
    assert ETC_KEY_SIZES(0.5) == 34


def test_an_interrupt_while_threads_are_still_being_started_stops_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, load = Held(), Load.of(SMALL, 1, 1, time.perf_counter_ns)
    tallies = [Tally(), Tally()]
    callers = [Caller(load, tally, random.Random(1)) for tally in tallies]
    schedule = Schedule(time.perf_counter_ns, 2, seconds=60.0)
    start, interrupts = threading.Thread.start, [KeyboardInterrupt()]

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        while not cache.asked:
            time.sleep(0.001)
        if interrupts:
            raise interrupts.pop()

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    Threads(callers, calls_of(cache), schedule).run(lambda: None)  # type: ignore[arg-type]
    assert schedule.stopped
    assert not interrupts
    assert total(tallies).operations().count > 0
