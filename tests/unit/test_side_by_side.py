"""What the side-by-side harness makes of its measurements; it measures nothing here."""

from __future__ import annotations

import random
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.benchmarks.side_by_side import awake, clients, clients_async, report
from tests.benchmarks.side_by_side.figures import (
    Spent,
    client_cpu,
    next_trial,
    operations_for,
    ratio,
    server_cpu,
    spread,
    whole_units,
)
from tests.benchmarks.side_by_side.plan import all_jobs
from tests.benchmarks.side_by_side.race import Contestant, Job, Pace, Race, race
from tests.benchmarks.side_by_side.targets import ASYNC_RIVALS, FASTEST, JOBS, RATIOS, Outcome, Target, fastest
from tests.benchmarks.side_by_side.work import Data

JOB = Job("threads", "get", 100, 1)
ROOT = Path(__file__).parents[2]


def steady(seconds_each: float) -> Callable[[int], Spent]:
    """A contestant whose every operation takes so long."""
    return lambda count: Spent(count, count * seconds_each)


def run(contestants: list[Contestant], rounds: int = 3, reference: str = "slow", seed: int = 1) -> Race:
    return race(JOB, contestants, {}, Pace(rounds, 1.0, random.Random(seed)), reference)


def test_a_spread_is_the_median_with_its_quartiles() -> None:
    assert spread([5, 1, 2, 4, 3]) == (3, 2, 4)
    assert spread([7]) == (7, 7, 7)


def test_who_comes_to_a_stall_is_given_less_to_do() -> None:
    """Or it would keep all others waiting: a round was to take a second, and the second one takes a thousand."""
    rounds: list[int] = []

    def stalling(count: int) -> Spent:
        each = 1.0 if rounds else 0.001
        if count == 1000 or rounds:
            rounds.append(count)
        return Spent(count, count * each)

    found = run([Contestant("slow", stalling)], rounds=4)
    assert rounds == [1000, 1000, 1, 1]
    assert [spent.rate for spent in found.rounds["slow"]] == pytest.approx([1000, 1, 1, 1])


def test_ratios_are_taken_within_each_round() -> None:
    """A machine that is ten times slower in one round leaves the ratio as it is."""
    mine = [Spent(200, 1.0), Spent(200, 10.0), Spent(200, 2.0)]
    other = [Spent(100, 1.0), Spent(100, 10.0), Spent(100, 2.0)]
    assert ratio(mine, other) == (2, 2, 2)


def test_cpu_is_told_per_operation_over_all_rounds() -> None:
    rounds = [Spent(100, 1.0, 0.001, 0.004), Spent(300, 1.0, 0.001, None)]
    assert client_cpu(rounds) == pytest.approx(5.0)
    assert server_cpu(rounds) is None, "one round did not tell"


@pytest.mark.parametrize(("operations", "unit", "whole"), [(0.2, 1, 1), (10, 8, 16), (16, 8, 16), (0, 50, 50)])
def test_operations_are_shared_out_evenly(operations: float, unit: int, whole: int) -> None:
    assert whole_units(operations, unit) == whole


def test_trials_grow_until_one_is_long_enough_to_tell() -> None:
    trial = Spent(1, 1e-4)
    tried = []
    while (count := next_trial(trial, 1.0, 1)) is not None:
        tried.append(count)
        trial = Spent(count, count * 1e-4)
    assert tried == sorted(set(tried))
    assert trial.seconds >= 0.2
    assert operations_for(trial, 1.0, 1) == pytest.approx(10_000, rel=0.01)


def test_a_clock_that_stands_still_does_not_stop_the_trials() -> None:
    assert next_trial(Spent(8, 0.0), 1.0, 8) == 80


def test_every_contestant_runs_as_many_operations_in_every_round_as_fill_its_time() -> None:
    found = run([Contestant("slow", steady(0.01)), Contestant("fast", steady(0.001), unit=8)])
    assert [spent.operations for spent in found.rounds["slow"]] == [100] * 3
    assert [spent.operations for spent in found.rounds["fast"]] == [1000] * 3
    assert found.ratio("fast", "slow").median == pytest.approx(10)


def test_the_order_is_drawn_anew_in_every_round() -> None:
    """Nobody always runs behind the same other one; one seed gives one order."""

    def order(seed: int) -> list[str]:
        ran: list[str] = []

        def contestant(name: str) -> Contestant:
            return Contestant(name, lambda count: ran.append(name) or Spent(count, count * 0.5))  # type: ignore[func-returns-value]

        run([contestant(name) for name in "abc"], rounds=40, seed=seed)
        return ran[-120:]

    first = Counter(order(1)[0::3])
    assert set(first) == set("abc")
    assert order(1) == order(1) != order(2)


def test_one_that_fails_is_left_out_with_the_reason_and_the_others_go_on() -> None:
    closed = []

    def fails_late(count: int) -> Spent:
        if count > 50:
            raise ExceptionGroup("tasks", [ConnectionResetError("gone")])
        return Spent(count, count * 0.01)

    found = run([Contestant("bad", fails_late, lambda: closed.append("bad")), Contestant("slow", steady(0.01))])
    assert found.skipped == {"bad": "ConnectionResetError: gone"}
    assert list(found.rounds) == ["slow"]
    assert closed == ["bad"]


def test_another_reference_is_taken_where_the_usual_one_did_not_take_part() -> None:
    assert run([Contestant("fast", steady(0.001))]).reference == "fast"
    assert run([]).reference is None


def test_every_target_is_about_a_job_of_the_full_run_and_a_client_that_there_is() -> None:
    assert set(JOBS) <= set(all_jobs())
    assert {job for job, *_ in RATIOS} == set(JOBS)
    names = {rival.name for rival in (*clients.RIVALS, *clients_async.RIVALS)}
    wanted = {name for job, mine, other, _ in RATIOS if job.front != "node" for name in (mine, other)}
    assert wanted - {FASTEST, "C echo"} <= names
    assert set(ASYNC_RIVALS) <= {rival.name for rival in clients_async.RIVALS}


def test_the_fastest_is_the_one_with_the_highest_median() -> None:
    rounds = {"emcache": [Spent(10, 1.0)], "coredis": [Spent(20, 1.0)], "dcache R=1": [Spent(90, 1.0)]}
    assert fastest(Race(JOB, rounds, {})) == "coredis"
    assert fastest(Race(JOB, {}, {})) == ""


@pytest.mark.parametrize(
    ("target", "measured", "verdict"),
    [
        (Target("w", "a", 1.0, 2.0), 2.0, "aim met"),
        (Target("w", "a", 1.0, 2.0), 1.5, "met"),
        (Target("w", "a", 1.0, 2.0), 0.9, "NOT MET"),
        (Target("w", "a", None, 2.0), 1.9, "aim not met"),
        (Target("w", "a", 400, 300, "bytes"), 300, "aim met"),
        (Target("w", "a", 400, 300, "bytes"), 401, "NOT MET"),
    ],
)
def test_a_target_says_whether_it_is_met(target: Target, measured: float, verdict: str) -> None:
    assert Outcome(target, measured).row()[-1] == verdict
    assert Outcome(target, why="not run").row()[-1] == "not measured: not run"


def test_batches_have_100_keys_and_the_values_their_size() -> None:
    data = Data.of("ka", 100)
    assert {len(batch) for (batch,) in data.arguments("get_many")} == {100}
    assert {len(batch) for (batch,) in data.arguments("set_many")} == {100}
    assert {len(value) for _, value in data.arguments("set")} == {100}
    assert all(isinstance(key, bytes) for (key,) in Data.of("ka", 100, binary=True).arguments("get"))


def test_what_sets_without_an_answer_is_marked_where_it_sets() -> None:
    assert report.marked("pymemcache", Job("threads", "set", 100, 8)) == "pymemcache ¹ ²"
    assert report.marked("pymemcache", Job("threads", "get", 100, 1)) == "pymemcache"
    assert report.marked("redis-py", Job("threads", "set", 100, 8)) == "redis-py"


def test_the_tables_take_the_place_between_the_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n", encoding="utf-8")
    report.write_markdown(page, "new")
    report.write_markdown(page, "newer")
    assert page.read_text(encoding="utf-8") == f"# Title\n\n{report.BEGIN}\n\nnewer\n\n{report.END}\n\nafter\n"


def test_the_page_of_results_has_the_markers() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert page.count(report.BEGIN) == page.count(report.END) == 1


def test_every_client_that_is_compared_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pins = project["dependency-groups"]["bench"]
    assert [line for line in pins if not re.fullmatch(r"[a-z-]+==[\d.]+", line)] == []
    wanted = {name for rival in (*clients.RIVALS, *clients_async.RIVALS) for name in rival.packages} - {"dcache-py"}
    assert {line.partition("==")[0] for line in pins} == wanted


def test_cores_are_kept_awake_by_asking_for_no_delay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = tmp_path / "cpu_dma_latency"
    device.touch()
    monkeypatch.setattr(awake, "DEVICE", str(device))
    with awake.awake() as told:
        assert told == f"kept awake ({device})"
        assert device.read_bytes() == bytes(4)


def test_where_cores_cannot_be_kept_awake_it_is_said_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(awake, "DEVICE", str(tmp_path / "none"))
    with awake.awake() as told:
        assert told.endswith("none: No such file or directory")
    with awake.awake(wanted=False) as told:
        assert told == "may sleep, as is usual"
