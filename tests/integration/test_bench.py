"""`dcache bench` on real nodes: threads and tasks, a fixed rate that a stall cannot hide from, and an end by Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner, Result

from dcache.cli.bench_run import Bench, Plan
from dcache.cli.program import program
from dcache.client.session import Configuration
from dcache.client.sync import Client
from dcache.testing import LocalCluster
from dcache.testing.cluster import wait_for
from dcache.testing.load.tally import Interval
from dcache.testing.load.workload import PRESETS, Workload

SMALL = ("--keys", "200", "--seconds", "1", "--warm-up", "0")
SETTINGS = Configuration(namespace="bench-test", timeout=10.0)
DEADLINE = 60


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(3) as made:
        made.wait_until_stable()
        yield made


def bench(cluster: LocalCluster, *words: str) -> Result:
    nodes = ",".join(cluster.addresses)
    return CliRunner().invoke(program, ["--nodes", nodes, "--timeout", "10", "bench", *words])


def told(cluster: LocalCluster, *words: str) -> dict[str, Any]:
    ended = bench(cluster, "--json", *SMALL, *words)
    assert ended.exit_code == 0, ended.output
    assert ended.stdout.count("\n") == 1
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


@pytest.mark.parametrize("callers", ["--threads", "--tasks"])
def test_every_operation_is_counted_once_and_none_fails(cluster: LocalCluster, callers: str) -> None:
    found = told(cluster, callers, "4", "--reads", "0.5")
    operations = found["operations"]
    assert operations > 0
    assert found["errors"] == {}
    assert found["hit_rate"] == 1.0
    assert operations == found["latency"]["read"]["count"] + found["latency"]["write"]["count"]
    assert operations == sum(one["operations"] for one in found["timeline"])
    assert found["throughput"] == pytest.approx(operations / found["seconds"])
    assert set(found["nodes"]) == set(cluster.addresses)
    assert sum(one["share"] for one in found["nodes"].values()) == pytest.approx(1.0)
    assert sum(one["hits"] for one in found["nodes"].values()) >= found["hits"]


@pytest.mark.parametrize("callers", ["--threads", "--tasks"])
def test_at_a_fixed_rate_just_so_many_operations_are_run(cluster: LocalCluster, callers: str) -> None:
    found = told(cluster, callers, "3", "--rate", "60")
    assert found["operations"] + found["behind"] == 60
    assert found["load"]["rate"] == 60.0


def test_so_many_operations_are_run_as_were_asked_for(cluster: LocalCluster) -> None:
    words = ("--json", "--keys", "200", "--operations", "137", "--tasks", "5", "--pipeline", "4")
    found = json.loads(bench(cluster, *words).stdout)
    assert found["operations"] == 137


def test_batches_read_and_write_many_keys_in_an_operation(cluster: LocalCluster) -> None:
    found = told(cluster, "--batch", "20", "--threads", "2", "--reads", "0.5")
    assert found["hits"] > 10 * found["latency"]["read"]["count"]
    assert found["hit_rate"] == 1.0


def test_uvloop_can_be_chosen(cluster: LocalCluster) -> None:
    pytest.importorskip("uvloop")
    found = told(cluster, "--tasks", "3", "--uvloop")
    assert found["load"]["uvloop"] is True
    assert found["operations"] > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs(cluster: LocalCluster, preset: str) -> None:
    words = ("--json", "--preset", preset, "--keys", "300", "--operations", "300", "--warm-up", "0", "--threads", "2")
    found = json.loads(bench(cluster, *words).stdout)
    assert (found["operations"], found["errors"]) == (300, {})
    assert found["workload"]["preset"] == preset
    assert found["hit_rate"] > 0.9
    assert found["latency"].get("fill", {"count": 0})["count"] == (found["misses"] if found["workload"]["fill"] else 0)


def test_it_leaves_no_keys_behind(cluster: LocalCluster) -> None:
    with cluster.client(namespace="dcache-bench", timeout=10.0) as client:
        client.set("left by another run", 1)
        told(cluster, "--threads", "2")
        assert list(client.scan()) == []


def test_a_namespace_that_was_named_is_left_alone(cluster: LocalCluster) -> None:
    nodes = ",".join(cluster.addresses)
    words = ["--nodes", nodes, "--namespace", "named", "--timeout", "10", "bench", "--keys", "5", "--operations", "20"]
    with cluster.client(namespace="named", timeout=10.0) as client:
        client.set("mine", 1)
        assert CliRunner().invoke(program, [*words, "--warm-up", "0"]).exit_code == 0
        assert client.get("mine") == 1
        assert len(list(client.scan())) == 6


def test_people_are_told_and_a_picture_is_drawn(cluster: LocalCluster, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    picture = tmp_path / "latency.png"
    ended = bench(cluster, *SMALL, "--threads", "2", "--plot", str(picture))
    assert ended.exit_code == 0
    assert "operations in" in ended.stdout
    assert "\x1b" not in ended.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_it_can_start_nodes_of_its_own() -> None:
    words = ["--json", "bench", "--start", "2", "--replicas", "1", *SMALL, "--threads", "2"]
    found = json.loads(CliRunner().invoke(program, words).stdout)
    assert (len(found["cluster"]["nodes"]), found["cluster"]["replicas"]) == (2, 1)
    assert found["operations"] > 0


# -- a cache that stalls ----------------------------------------------------------------------------------------------

STALL = 0.5


@pytest.mark.parametrize("tasks", [False, True], ids=["threads", "tasks"])
def test_at_a_fixed_rate_a_stall_makes_all_operations_slow_that_should_have_begun(tasks: bool) -> None:
    """One caller, 100 operations a second, one pause of the only node: the operations of the pause wait for its end.
    In a closed loop only one does."""
    plan = Plan(
        workload=Workload(keys=10),
        callers=1,
        tasks=tasks,
        rate=100.0,
        seconds=2.5,
        warm_up=0.0,
        settings=attrs.evolve(SETTINGS, timeout=30.0),
    )
    with LocalCluster(1) as cluster:
        paused = threading.Event()

        def stall(interval: Interval) -> None:
            if not paused.is_set():
                paused.set()
                cluster.pause(0)
                threading.Timer(STALL, cluster.resume, (0,)).start()

        outcome = Bench(plan, cluster.addresses).run(30.0, lambda done: None, stall)
    latencies = outcome.tally.operations()
    slow = sum(1 for value, share in latencies.distribution() if value > 1e8)
    assert latencies.largest >= STALL * 0.9e9
    assert latencies.quantile(0.9) > 1e8, "a tenth of all operations fell into the stall"
    assert slow > 1
    assert latencies.count + outcome.behind == 250


def test_errors_do_not_end_the_run_and_are_told_of() -> None:
    settings = attrs.evolve(SETTINGS, timeout=0.3)
    plan = Plan(workload=Workload(keys=10), callers=2, seconds=1.5, warm_up=0.0, settings=settings)
    with LocalCluster(1) as cluster:
        outcome = Bench(plan, cluster.addresses).run(30.0, lambda done: None, lambda interval: cluster.nodes[0].end())
    assert outcome.tally.errors
    assert outcome.after == {}


# -- interrupted ------------------------------------------------------------------------------------------------------


def reads(client: Client) -> int:
    """What all nodes have found."""
    return sum(one["hits"] for one in client.stats()["nodes"].values())


@pytest.mark.parametrize("callers", [("--threads", "3"), ("--tasks", "3"), ("--tasks", "3", "--rate", "1")])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_tells_what_was_measured_until_then(
    cluster: LocalCluster, callers: tuple[str, ...], number: signal.Signals
) -> None:
    words = [sys.executable, "-m", "dcache.cli.main", "--timeout", "10", "--json", "bench", "--keys", "50"]
    environ = {**os.environ, "DCACHE_NODES": ",".join(cluster.addresses)}
    words = [*words, "--seconds", "60", "--warm-up", "0", *callers]
    with (
        cluster.client(timeout=10.0) as client,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as process,
    ):
        before = reads(client)
        wait_for(lambda: reads(client) > before, "reads to be made", lambda: "")
        process.send_signal(number)
        output, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    found = json.loads(output)
    assert found["interrupted"] is True
    assert found["operations"] > 0
    assert found["seconds"] < 60


def test_interrupted_while_it_warms_up_it_just_ends(cluster: LocalCluster) -> None:
    words = [sys.executable, "-m", "dcache.cli.main", "--timeout", "10", "bench", "--keys", "50", "--warm-up", "60"]
    environ = {**os.environ, "DCACHE_NODES": ",".join(cluster.addresses)}
    with (
        cluster.client(timeout=10.0) as client,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as process,
    ):
        before = reads(client)
        wait_for(lambda: reads(client) > before, "reads to be made", lambda: "")
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=DEADLINE)
    assert (process.returncode, output, errors) == (130, "", "")
