"""`dcache demo`: that it shows what it says, sees a wrong answer, and leaves no node behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from dcache.cli import demo
from dcache.cli.program import program
from dcache.cli.trial import Run, Trial
from dcache.cli.workload import find_modules, largest, library
from dcache.errors import NoNodesAvailable
from dcache.testing import LocalCluster
from dcache.testing.cluster import table_of

DCACHE = [sys.executable, "-m", "dcache.cli.main"]
DEADLINE = 60


def test_the_demonstration_answers_right_with_a_node_killed_in_the_middle() -> None:
    words = [*DCACHE, "--json", "demo", "--modules", "12"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    cold, warm, killed = told["runs"]
    assert [run["answers"] for run in told["runs"]] == [12, 12, 12]
    assert (told["wrong"], told["answers_checked"]) == ([], 24)
    assert (cold["computed"], warm["computed"]) == (12, 0)
    assert warm["seconds"] < cold["seconds"]
    assert told["killed"] in warm["hits"]
    assert told["killed"] not in killed["hits"]
    assert sum(warm["hits"].values()) >= 24  # a read asks two owners


def test_without_a_terminal_it_prints_a_plain_summary() -> None:
    words = [*DCACHE, "demo", "--modules", "4"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert re.search(r"^cold +4 +4 +0 +0 ", done.stdout, re.MULTILINE)
    assert re.search(r"^node killed +4 ", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("All 8 answers of the later runs equal the computed ones.\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_no_node_behind(number: signal.Signals) -> None:
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [*DCACHE, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ
    )
    with process:
        assert process.stdout is not None
        addresses = re.findall(r"127\.0\.0\.1:\d+", process.stdout.readline())
        assert len(addresses) == 3
        assert all(table_of(address) for address in addresses)
        process.send_signal(number)
        _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert [table_of(address) for address in addresses] == [None] * 3


def test_an_answer_that_was_changed_in_the_cache_is_found_out() -> None:
    modules = largest(find_modules(library()), 40)
    few = {name: modules[name] for name in list(modules)[-3:]}
    with LocalCluster(1) as cluster, cluster.client(timeout=5.0) as client:
        client.wait_ready()
        trial = Trial(client, few)
        assert trial.run("cold", few).wrong == ()
        changed = list(few)[1]
        forged = {**trial.truth[changed], "functions": -1}
        client.with_options(namespace="dcache-demo").set(trial.key(changed), forged)
        warm = trial.run("warm", few)
    assert (warm.computed, warm.wrong) == (0, (changed,))


def test_a_run_stops_when_its_time_is_up() -> None:
    modules = largest(find_modules(library()), 3)
    with LocalCluster(1) as cluster, cluster.client(timeout=5.0) as client:
        client.wait_ready()
        run = Trial(client, modules).run("cold", modules, limit=0.0)
    assert len(run.seconds) == 1


@contextmanager
def no_cluster(nodes: int) -> Iterator[LocalCluster]:
    """The addresses of a cluster without its processes."""
    cluster = LocalCluster(nodes)
    try:
        yield cluster
    finally:
        cluster.close()


def test_a_wrong_answer_makes_it_end_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Run("warm", (0.1, 0.1), 0, 0, {}, ())
    monkeypatch.setattr(demo, "LocalCluster", no_cluster)
    monkeypatch.setattr("dcache.client.sync.Client.wait_ready", lambda self: None)
    monkeypatch.setattr(demo, "three_runs", lambda *_: [right, right, Run("killed", (0.1, 0.1), 0, 0, {}, ("ast",))])
    result = CliRunner().invoke(program, ["demo"])
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (1, "WRONG ANSWERS for ast")
    assert json.loads(CliRunner().invoke(program, ["--json", "demo"]).stdout)["wrong"] == ["ast"]


def test_a_cluster_in_trouble_makes_it_end_with_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise NoNodesAvailable({"here": "refused"})

    monkeypatch.setattr(demo, "LocalCluster", no_cluster)
    monkeypatch.setattr("dcache.client.sync.Client.wait_ready", fail)
    assert CliRunner().invoke(program, ["demo"]).exit_code == 3


def test_without_the_sources_of_the_library_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "library", lambda: tmp_path)
    result = CliRunner().invoke(program, ["demo"])
    assert result.exit_code == 2
    assert "no sources" in result.stderr
