"""Simulated machines: their clocks, how their processes end and stop, and where randomness comes from."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from dcache.testing.sim import Clock, Process, Simulation
from dcache.testing.sim.simulation import WALL_MS
from tests.simulation.ears import Ear, Talk, idle, say


@pytest.fixture
def sim() -> Iterator[Simulation]:
    with Simulation(seed=1) as simulation:
        yield simulation


# -- clocks -----------------------------------------------------------------------------------------------------------


def test_time_passes_only_when_the_simulation_runs(sim: Simulation) -> None:
    host = sim.host("h")
    assert (host.monotonic(), host.wall()) == (0.0, WALL_MS)
    sim.run(90.5)
    assert (sim.now, host.monotonic(), host.wall()) == (90.5, 90.5, WALL_MS + 90_500)


def test_a_wall_clock_may_be_off(sim: Simulation) -> None:
    host = sim.host("h", Clock(offset_ms=-3000))
    sim.run(1)
    assert (host.monotonic(), host.wall()) == (1.0, WALL_MS - 2000)


def test_a_clock_that_drifts_runs_too_fast_or_too_slow(sim: Simulation) -> None:
    fast, slow = sim.host("fast", Clock(drift=0.01)), sim.host("slow", Clock(drift=-0.01))
    sim.run(100)
    assert (fast.monotonic(), slow.monotonic()) == pytest.approx((101.0, 99.0))
    assert (fast.wall() - WALL_MS, slow.wall() - WALL_MS) == pytest.approx((101_000, 99_000), abs=1)


def test_timers_follow_the_clock_of_their_host(sim: Simulation) -> None:
    ended: list[float] = []

    async def program(process: Process) -> None:
        await asyncio.sleep(101)
        ended.append(sim.now)

    sim.host("h", Clock(drift=0.01)).start(program)
    sim.run(200)
    assert ended == [pytest.approx(100.0)]


@pytest.mark.parametrize("drift", [0.0, 7.1e-4, -3.3e-4])
def test_no_timer_strikes_before_its_time_by_a_rounding(sim: Simulation, drift: float) -> None:
    """One who sleeps until a time need not sleep again, for no time at all, for ever."""
    host = sim.host("h", Clock(drift=drift))
    random = sim.stream("times")

    def shown_at(us: int) -> float:
        sim.now_us = us
        return host.monotonic()

    for _ in range(10_000):
        now, later = shown_at(random.randrange(10**9)), shown_at(random.randrange(10**9, 2 * 10**9))
        until = now + (later - now)
        assert shown_at(host.instant(until)) >= until


def test_a_step_of_the_clock_moves_the_wall_clock_alone(sim: Simulation) -> None:
    host = sim.host("h")
    sim.run(10)
    host.step_clock(-60_000)
    assert (host.monotonic(), host.wall()) == (10.0, WALL_MS - 50_000)
    assert sim.host("other").wall() == WALL_MS + 10_000


def test_a_process_has_the_clocks_of_its_host(sim: Simulation) -> None:
    host = sim.host("h", Clock(offset_ms=500, drift=0.1))
    machine = host.start(idle).machine
    sim.run(10)
    assert (machine.monotonic(), machine.wall()) == (host.monotonic(), host.wall())


def test_run_until_stops_when_it_is_so_or_the_time_is_over(sim: Simulation) -> None:
    assert sim.run_until(lambda: sim.now >= 3, 10, every=0.5)
    assert sim.now == 3.0
    assert not sim.run_until(lambda: False, 10)
    assert sim.now == 13.0


# -- processes --------------------------------------------------------------------------------------------------------


async def tick(process: Process) -> None:
    simulation = process.host.simulation
    while True:
        await asyncio.sleep(1)
        simulation.tell(process.name, "tick")


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def ticking(told: list[str]) -> Iterator[Simulation]:
    with Simulation(seed=1, story=told.append) as simulation:
        simulation.host("h").start(tick)
        yield simulation


def test_the_story_says_what_happened_when(ticking: Simulation, told: list[str]) -> None:
    ticking.run(2.5)
    assert told == ["    1.0000 h#1: tick", "    2.0000 h#1: tick"]


def test_a_killed_process_does_nothing_more_and_another_may_start(ticking: Simulation, told: list[str]) -> None:
    host = ticking.hosts["h"]
    with pytest.raises(RuntimeError, match="kill it first"):
        host.start(tick)
    host.kill()
    ticking.run(5)
    assert told == []
    host.start(tick)
    ticking.run(1.5)
    assert told == ["    6.0000 h#2: tick"]


def test_a_stopped_process_stands_still_and_goes_on_with_timers_that_struck(
    ticking: Simulation, told: list[str]
) -> None:
    host = ticking.hosts["h"]
    ticking.run(0.5)
    host.pause()
    ticking.run(9.5)
    assert told == []
    host.resume()
    ticking.run(1.5)
    assert told == ["   10.0000 h#1: tick", "   11.0000 h#1: tick"]
    assert host.slept_us == 9_500_000


def test_a_timer_cancelled_while_its_process_was_stopped_does_not_strike(sim: Simulation) -> None:
    struck: list[int] = []
    host = sim.host("h")
    loop = host.start(idle).loop
    handle = loop.call_later(1, struck.append, 1)
    host.pause()
    sim.run(2)
    handle.cancel()
    host.resume()
    sim.run(1)
    assert struck == []


def test_a_host_has_one_name(sim: Simulation) -> None:
    sim.host("h")
    with pytest.raises(ValueError, match="already"):
        sim.host("h")


def test_what_is_left_at_the_end_is_cleared_away_without_a_complaint() -> None:
    """Also what does not want to end: whatever it does then reaches nobody."""
    cleaned: list[str] = []

    async def stubborn(process: Process) -> None:
        try:
            await idle(process)
        finally:
            cleaned.append("cleaned up")
            await asyncio.sleep(1)

    with Simulation() as sim:
        sim.host("h").start(stubborn)
        sim.run(1)
    assert cleaned == ["cleaned up"]
    assert sim.complaints == []


# -- randomness -------------------------------------------------------------------------------------------------------


def test_streams_are_the_same_every_time_and_differ_by_name_and_seed() -> None:
    draws = {
        (seed, name): tuple(Simulation(seed).stream(name).random() for _ in range(2))
        for seed in (1, 2)
        for name in ("x", "y")
    }
    assert len({first for first, _ in draws.values()}) == 4
    assert all(first == second for first, second in draws.values())


def test_a_process_draws_differently_after_each_start(sim: Simulation) -> None:
    host = sim.host("h")
    first = host.start(idle).machine.bits(64)
    host.kill()
    assert host.start(idle).machine.bits(64) != first


def heard(draws: int) -> tuple[str, list[tuple[float, bytes]]]:
    """The trace, and what a server heard, when elsewhere so many numbers are drawn."""
    with Simulation(seed=3) as sim:
        talk = Talk(sim, Ear)
        other = sim.host("other").start(idle).machine
        ear = talk.connect()
        for number in range(10):
            for _ in range(draws):
                sim.stream("elsewhere").random()
                other.random()
            say(ear, bytes([number]))
            sim.run(0.1)
        return sim.digest, talk.served[0].heard


def test_what_one_draws_does_not_shift_what_another_draws() -> None:
    assert heard(0) == heard(17)


def test_the_digest_tells_one_course_of_things_from_another(ticking: Simulation) -> None:
    digests = set()
    for _ in range(3):
        ticking.run(1)
        digests.add(ticking.digest)
    assert len(digests) == 3
