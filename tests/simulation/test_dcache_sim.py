"""`dcache-sim`: what it takes, what it runs, what it prints, and the status it ends with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dcache.cli import sim as program
from dcache.cli.sim import command
from dcache.testing.sim import seeds
from dcache.testing.sim.profiles import PROFILES
from dcache.testing.sim.run import Report

ROOT = Path(__file__).parents[2]
BROKEN = "f0: a value that was never written"

Runs = list[tuple[str, int]]


def report(profile: str, seed: int, *violations: str) -> Report:
    return Report(profile, seed, violations, 2.5, 100, "0123456789abcdef", Counter({"forgotten": 2, "get ok": 7}))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """What is run, in place of which nothing is; the seed 3 fails, the seed 4 breaks down."""
    made: Runs = []

    def run(profile: str, seed: int, story: Callable[[str], None] | None = None) -> Report:
        made.append((profile, seed))
        if story is not None:
            story("    1.0000 n1#1: something happens")
        if seed == 4:
            raise LookupError("nothing there")
        return report(profile, seed, *[BROKEN, "another"] * (seed == 3))

    monkeypatch.setattr(seeds, "run", run)
    monkeypatch.setattr(program, "run", run)
    return made


def one(*words: str) -> list[str]:
    return ["--jobs", "1", "--profile", "network", *words]


# -- what it takes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--profile", "nothing"],
        ["--seeds", "0"],
        ["--seeds", "many"],
        ["--jobs", "0"],
        ["--first", "-1"],
        ["--minutes", "0"],
        ["--minutes", "inf"],
        ["--seeds", "1", "--minutes", "1"],
        ["--seed", "1", "--first", "1"],
        ["--seed", "1", "--seeds", "1"],
        ["--trace"],
        ["--trace", "--seed", "1"],
        ["--trace", "--profile", "network"],
        ["--trace", "--seed", "1", "--profile", "network", "--profile", "changes"],
        ["--trace", "--seed", "1", "--profile", "network", "--json"],
        ["more"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2_and_runs_nothing(runs: Runs, words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(words)
    assert ended.value.code == 2
    assert runs == []


def test_profiles_are_listed_with_what_they_are_about(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PROFILES)
    assert all(profile.about in line for line, profile in zip(lines, PROFILES.values(), strict=True))
    assert runs == []


# -- what it runs -----------------------------------------------------------------------------------------------------


def test_all_profiles_are_run_by_turns(runs: Runs) -> None:
    assert command(["--jobs", "1", "--seeds", "2"]) == 0
    assert runs == [(profile, seed) for seed in (0, 1) for profile in PROFILES]


def test_the_seeds_of_chosen_profiles_are_run(runs: Runs) -> None:
    command(one("--profile", "changes", "--first", "7", "--seeds", "2"))
    assert runs == [("network", 7), ("changes", 7), ("network", 8), ("changes", 8)]


def test_one_seed_is_run(runs: Runs) -> None:
    command(one("--seed", "9"))
    assert runs == [("network", 9)]


def test_until_failure_ends_with_the_first_that_failed(runs: Runs) -> None:
    assert command(one("--until-failure")) == 1
    assert runs == [("network", seed) for seed in range(4)]


def test_minutes_are_of_fresh_seeds(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = iter(range(0, 1000, 10))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(passed)))
    assert command(one("--minutes", "1")) == 0
    assert 0 < len(runs) < 6
    first = runs[0][1]
    assert first > 1000
    assert runs == [("network", first + number) for number in range(len(runs))]


# -- what it prints ---------------------------------------------------------------------------------------------------


def test_numbers_are_told_for_each_profile(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(one("--seeds", "3")) == 0
    titles, network, *_, last = capsys.readouterr().out.splitlines()
    assert titles.split() == ["profile", "seeds", "virtual", "s", "events", "events/s", "forgotten", "failed"]
    numbers = network.split()
    assert [*numbers[:4], *numbers[5:]] == ["network", "3", "8", "300", "6", "0"]
    assert last.startswith("3 runs in")
    assert last.endswith(" 0 failed")


def test_what_failed_is_told_with_how_to_see_it_again(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(one("--seeds", "4")) == 1
    told = capsys.readouterr().out
    assert f"FAILED network 3: {BROKEN}\n  and 1 more\n" in told
    (again,) = [line.split(": dcache-sim ")[1] for line in told.splitlines() if ": dcache-sim " in line]
    runs.clear()
    assert command(again.split()) == 1
    assert runs == [("network", 3)]


def test_a_run_that_breaks_down_has_failed_and_the_others_go_on(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(one("--first", "4", "--seeds", "3")) == 1
    told = capsys.readouterr().out
    assert "FAILED network 4: Traceback" in told
    assert "LookupError: nothing there" in told
    assert runs == [("network", 4), ("network", 5), ("network", 6)]


def test_json_is_one_object(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(one("--first", "2", "--seeds", "2", "--json")) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["interrupted"]
    network = told["profiles"]["network"]
    assert (network["seeds"], network["virtual_seconds"], network["events"]) == (2, 5.0, 200)
    assert network["counts"] == {"forgotten": 4, "get ok": 14}
    assert [(failed["seed"], failed["violations"]) for failed in network["failed"]] == [(3, [BROKEN, "another"])]


def test_a_trace_is_the_story_and_the_verdict(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(one("--seed", "3", "--trace")) == 1
    assert capsys.readouterr().out.splitlines() == [
        "    1.0000 n1#1: something happens",
        f"VIOLATION {BROKEN}",
        "VIOLATION another",
        "network 3: 2 violations, 100 events in 2.5 virtual s, digest 0123456789abcdef",
    ]
    assert command(one("--seed", "5", "--trace")) == 0
    assert "network 5: no violation" in capsys.readouterr().out


def test_an_interruption_ends_with_what_was_done(
    runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = seeds.run

    def interrupted(profile: str, seed: int) -> Report:
        if seed == 2:
            raise KeyboardInterrupt
        return run(profile, seed)

    monkeypatch.setattr(seeds, "run", interrupted)
    assert command(one("--seeds", "9")) == 130
    assert "interrupted: 2 runs" in capsys.readouterr().out


# -- processes --------------------------------------------------------------------------------------------------------


def die(profile: str, seed: int) -> Any:
    os._exit(7)


def hang(profile: str, seed: int) -> Any:
    while True:
        pass


def test_a_process_that_ends_fails_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "_limited", die)
    results = list(seeds.attempts([("network", 1), ("network", 2)], jobs=2))
    assert sorted(result.report.seed for result in results) == [1, 2]
    assert all("perhaps not its fault" in result.report.violations[0] for result in results)


def test_a_run_that_goes_round_in_circles_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeds, "run", hang)
    monkeypatch.setattr(seeds, "CPU_LIMIT", 0.05)
    before = signal.signal(signal.SIGPROF, seeds._break_off)
    try:
        result = seeds._limited("network", 1)
    finally:
        signal.signal(signal.SIGPROF, before)
    assert "Stuck: not done after 0.05 s of CPU time" in result.report.violations[0]


@pytest.mark.cluster
def test_the_program_runs_seeds_in_several_processes() -> None:
    """All of it, as it is; and each process comes to the same."""
    words = [sys.executable, "-m", "dcache.cli.sim", "--profile", "network", "--seeds", "3", "--json", "--jobs"]
    told = []
    for jobs in ("1", "2"):
        done = subprocess.run([*words, jobs], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (0, 1)
        told.append(json.loads(done.stdout)["profiles"]["network"])
    assert [one["seeds"] for one in told] == [3, 3]
    assert [one["events"] for one in told] == [told[0]["events"]] * 2
    assert [one["counts"] for one in told] == [told[0]["counts"]] * 2


@pytest.mark.cluster
def test_ctrl_c_ends_it_cleanly() -> None:
    words = [sys.executable, "-m", "dcache.cli.sim", "--jobs", "2", "--until-failure", "--profile", "network"]
    with subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as hunting:
        assert hunting.stderr is not None
        assert hunting.stderr.readline().startswith("dcache-sim: seeds from 0 on")
        os.killpg(hunting.pid, signal.SIGINT)
        out, err = hunting.communicate(timeout=30)
    assert (hunting.returncode, err) == (130, "")
    assert "interrupted: " in out
