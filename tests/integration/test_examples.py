"""The programs in examples/ run as they stand, with nodes of their own and with nodes that are there already."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcache.testing import LocalCluster

ROOT = Path(__file__).parents[2]
DEADLINE = 60.0  # seconds; each takes about one

OUTPUT = {
    "web_handler": """\
GET  report 1: 100 sold, says query 1
GET  report 1: 100 sold, says query 1
POST report 1: 101 sold, says query 2
GET  report 1: 101 sold, says query 2
done
""",
    "batch_job": """\
{files} files: 0 known, {files} computed
{files} files: {files} known, 0 computed
{files} deleted
done
""",
    "async_fan_out": """\
200 visitors got 5 answers, computed 5 times
20 tasks counted to 20
found 5 of 6 cities in one batch
done
""",
    "method_decorator": """\
price 9.5, then 9.5: 1 query
the key is 'price:7', and the client sees it too: 9.5
changed: 8.25, 2 queries
another catalogue: 8.25, 0 queries
in all CacheInfo(hits=2, misses=2)
done
""",
}


def source_files() -> int:
    """How many files the batch job finds to work on."""
    import asyncio

    return len(list(Path(asyncio.__file__).parent.glob("*.py")))


def run_example(name: str, nodes: str | None) -> str:
    """What the program prints; it must end well, in time, and without a warning."""
    environ = {variable: value for variable, value in os.environ.items() if variable != "DCACHE_NODES"}
    environ["PYTHONPATH"] = str(ROOT)
    if nodes is not None:
        environ["DCACHE_NODES"] = nodes
    ended = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / f"{name}.py")],
        env=environ,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A cluster that lives on."""
    with LocalCluster(nodes=3) as cluster:
        yield cluster


def requests(cluster: LocalCluster) -> int:
    """How many requests the nodes have answered."""
    with cluster.client(timeout=5.0) as client:
        return sum(about["requests"] for about in client.stats()["nodes"].values())


def test_every_example_is_run_here() -> None:
    """A program without expected output would go untested."""
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(OUTPUT)


@pytest.mark.parametrize("name", OUTPUT)
def test_an_example_runs_with_a_cluster_of_its_own(name: str) -> None:
    """Nothing needs to be set up, and what the program prints is what it claims to show."""
    assert run_example(name, None) == OUTPUT[name].format(files=source_files())


@pytest.mark.parametrize("name", OUTPUT)
def test_an_example_can_be_repeated_on_nodes_that_are_there(cluster: LocalCluster, name: str) -> None:
    """With DCACHE_NODES a program uses those nodes, and a second run is not confused by what the first one left."""
    nodes, before = ",".join(cluster.addresses), requests(cluster)
    expected = OUTPUT[name].format(files=source_files())
    assert [run_example(name, nodes), run_example(name, nodes)] == [expected, expected]
    assert requests(cluster) > before + 20, "the program did its work elsewhere"
