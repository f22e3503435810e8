"""`dcache bench`: what its options mean together, and what is told of a run."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner
from rich.console import Console

from dcache.cli import bench as command
from dcache.cli import bench_options, bench_plot
from dcache.cli.bench_options import planned
from dcache.cli.bench_plot import NINES, curve
from dcache.cli.bench_report import document, live, loads, shown
from dcache.cli.bench_run import NAMESPACE, Outcome, Plan, Preloaded
from dcache.cli.program import program
from dcache.client.session import Configuration
from dcache.testing.load.histogram import Histogram
from dcache.testing.load.tally import Interval, Tally
from dcache.testing.load.workload import PRESETS, Workload

MILLISECOND = 1_000_000


def plan(*words: str, **settings: Any) -> Plan:
    """What the words of a command line ask for."""
    context = command.bench.make_context("bench", list(words))
    return planned(Configuration(**settings), context.params)


# -- options ----------------------------------------------------------------------------------------------------------


def test_without_options_it_is_ten_seconds_of_eight_threads() -> None:
    found = plan()
    assert (found.callers, found.tasks, found.seconds, found.operations, found.rate) == (8, False, 10.0, None, None)
    assert found.workload == Workload()
    assert found.settings.namespace == NAMESPACE


def test_so_many_operations_need_no_time() -> None:
    assert plan("--operations", "500").seconds is None
    assert plan("--operations", "500", "--seconds", "3").seconds == 3


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_taken_as_it_is(name: str) -> None:
    assert plan("--preset", name).workload == PRESETS[name]


def test_single_options_override_a_preset() -> None:
    found = plan("--preset", "ycsb-a", "--reads", "0.7", "--keys", "5", "--value-size", "2KiB", "--ttl", "60").workload
    expected = {"reads": 0.7, "keys": 5, "lifetimes": ((60.0, 1.0),)}
    assert found == attrs.evolve(PRESETS["ycsb-a"], **expected, value_sizes=found.value_sizes)
    assert found.value_sizes(0.3) == 2048
    assert plan("--preset", "facebook-etc", "--no-fill", "--once", "0.1").workload == attrs.evolve(
        PRESETS["facebook-etc"], fill=False, once=0.1
    )


def test_sizes_can_be_those_of_a_preset() -> None:
    found = plan("--value-size", "facebook-etc", "--key-size", "twitter-writes").workload
    assert found.value_sizes is PRESETS["facebook-etc"].value_sizes
    assert found.key_sizes is PRESETS["twitter-writes"].key_sizes


def test_quorums_timeout_and_namespace_are_those_that_were_given() -> None:
    found = plan("--write-quorum", "all", "--read-quorum", "1", namespace="mine", timeout=7.0).settings
    assert (found.write_quorum, found.read_quorum, found.namespace, found.timeout) == ("all", 1, "mine", 7.0)


def test_tasks_may_have_several_operations_at_a_time() -> None:
    found = plan("--tasks", "5", "--pipeline", "4", "--rate", "100")
    assert (found.tasks, found.callers, found.pipeline, found.rate) == (True, 5, 4, 100.0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--threads 2 --tasks 2", "either --threads or --tasks"),
        ("--pipeline 3", "--pipeline is for --tasks"),
        ("--uvloop", "--uvloop is for --tasks"),
        ("--replicas 2", "--replicas is for --start"),
        ("--start 2 --replicas 3", "3 replicas on 2 nodes"),
        ("--skew 1", "--skew is for --distribution"),
        ("--rate 0", "not in the range"),
        ("--rate nan", "not a finite number"),
        ("--seconds -1", "not in the range"),
        ("--seconds inf", "not a finite number"),
        ("--keys 0", "not in the range"),
        ("--reads 1.5", "not in the range"),
        ("--preset ycsb-e", "'ycsb-f'"),
        ("--value-size big", "the name of a preset"),
        ("--key-size 2000", "at most 1000 bytes"),
        ("--value-size 2MiB", "at most 1048576 bytes"),
        ("--read-quorum most", "'most' is neither"),
        ("--write-quorum 0", "'0' is neither"),
        ("--plot latency.txt", "must end in"),
        ("--plot nowhere/at/all.png", "no such directory"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(words: str, told: str) -> None:
    ended = CliRunner().invoke(program, ["bench", *words.split()])
    assert ended.exit_code == 2
    assert told in ended.output


def test_without_matplotlib_a_picture_is_refused_before_anything_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_plot, "available", lambda: False)
    ended = CliRunner().invoke(program, ["bench", "--plot", "latency.png"])
    assert ended.exit_code == 2
    assert "dcache-py[plot]" in ended.output


def test_without_uvloop_it_is_refused_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_options.importlib.util, "find_spec", lambda name: None)
    ended = CliRunner().invoke(program, ["bench", "--tasks", "2", "--uvloop"])
    assert ended.exit_code == 2
    assert "dcache-py[fast]" in ended.output


@pytest.mark.parametrize("words", [["--json", "bench"], ["bench", "--json"]])
def test_where_no_cluster_can_be_reached_it_says_so_and_ends_with_3(words: list[str]) -> None:
    ended = CliRunner().invoke(program, ["--nodes", "127.0.0.1:1", "--timeout", "0.3", *words])
    assert ended.exit_code == 3
    assert json.loads(ended.output)["kind"] == "NoNodesAvailable"  # and nothing else


# -- what is told -----------------------------------------------------------------------------------------------------


def outcome(**changes: Any) -> Outcome:
    """A run of two seconds: 98 reads of 1 ms, a write of 5 ms, one of 300 ms that failed, and a fill."""
    tally = Tally()
    for _ in range(98):
        tally.latencies["read"].record(MILLISECOND)
    tally.latencies["write"].record(5 * MILLISECOND)
    tally.latencies["write"].record(300 * MILLISECOND)
    tally.latencies["fill"].record(2 * MILLISECOND)
    tally.hits, tally.misses, tally.stored = 97, 1, 2
    tally.errors["QuorumError"] += 1
    made: dict[str, Any] = {
        "plan": Plan(workload=PRESETS["twitter-storage"], preset="twitter-storage"),
        "replicas": 3,
        "preloaded": Preloaded(keys=10, stored=10, seconds=0.1, errors={}),
        "tally": tally,
        "timeline": [Interval(2.0, 2.0, 100, 0.99, 1e6, 5e6, 1)],
        "seconds": 2.0,
        "behind": 0,
        "interrupted": False,
        "processor": 0.5,
        "overhead": 5e-6,
        "before": {"a": {"requests": 10, "hits": 1, "misses": 0, "writes": 5}, "b": {"error": "gone"}},
        "after": {"a": {"requests": 110, "hits": 98, "misses": 1, "writes": 7}, "b": {"error": "gone"}},
    }
    return Outcome(**{**made, **changes})


def text_of(told: dict[str, Any]) -> str:
    console = Console(width=200, file=io.StringIO())
    for one in shown(told):
        console.print(one)
    return console.file.getvalue()


def test_the_document_has_throughput_latency_hit_rate_and_errors() -> None:
    told = document(outcome())
    assert (told["operations"], told["throughput"]) == (100, 50.0)  # a fill is no operation
    assert {kind: one["count"] for kind, one in told["latency"].items()} == {
        "all": 100,
        "read": 98,
        "write": 2,
        "fill": 1,
    }
    everything = told["latency"]["all"]
    assert everything["p50"] == pytest.approx(0.001, rel=0.01)
    assert everything["p99"] == pytest.approx(0.005, rel=0.01)
    assert everything["p99.9"] == everything["max"] == 0.3
    assert (told["hit_rate"], told["errors"]) == (97 / 98, {"QuorumError": 1})
    assert told["overhead"] == {"per_operation": 5e-6, "share": pytest.approx(0.001)}
    json.dumps(told, allow_nan=False)


def test_the_load_of_a_node_is_what_it_did_meanwhile_and_its_share() -> None:
    def node(requests: int) -> dict[str, int]:
        return {"requests": requests, "hits": 0, "misses": 0, "writes": 0}

    before = {"a": node(5), "b": node(100), "c": {"error": "away"}}
    after = {"a": node(35), "b": node(110), "c": node(7)}
    found = loads(before, after)
    assert {name: (one["requests"], one["share"]) for name, one in found.items()} == {"a": (30, 0.75), "b": (10, 0.25)}
    assert loads({"a": node(5)}, {"a": node(5)})["a"]["share"] == 0.0


def test_people_are_told_the_same() -> None:
    text = text_of(document(outcome()))
    assert "twitter-storage: 100,000 keys of 20 B, values of 273 B, 93.9% reads" in text
    assert "100 operations in 2.00 s: 50 a second" in text
    assert "hit rate 98.98%: 97 of 98 keys" in text
    assert "errors: 1 QuorumError" in text
    assert "did not" not in text


def test_people_are_told_what_went_wrong() -> None:
    text = text_of(document(outcome(behind=12, interrupted=True, before={}, after={}, preloaded=None)))
    assert "interrupted: 100 operations" in text
    assert "12 operations should have begun and did not" in text


def test_a_run_in_which_nothing_happened_can_be_told_of() -> None:
    nothing = outcome(tally=Tally(), timeline=[], before={}, after={})
    told = document(nothing)
    assert (told["throughput"], told["hit_rate"], told["latency"]["all"]["p99"]) == (0.0, None, 0.0)
    assert "0 operations" in text_of(told)


def test_the_last_second_is_told_in_one_line() -> None:
    line = live(Interval(7.0, 1.0, 1234, None, 1e6, 5e6, 3))
    assert line == "    7 s        1,234 a second   hit rate none   p99 5.00 ms   errors 3"


# -- the picture ------------------------------------------------------------------------------------------------------


def test_the_curve_gives_each_nine_the_same_room() -> None:
    histogram = Histogram()
    for value in range(1, 1001):
        histogram.record(value * MILLISECOND)
    places, milliseconds = curve(histogram)
    assert places[0] == 1.0
    assert places == sorted(places)
    at_99 = max(value for place, value in zip(places, milliseconds, strict=True) if place <= 100.1)
    assert at_99 == pytest.approx(990, rel=0.02)
    assert milliseconds[-1] == 1000
    assert max(places) <= 10**NINES


@pytest.mark.parametrize("name", ["picture.png", "picture.svg"])
def test_the_picture_is_drawn_even_of_nothing(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plot` is not installed")
    for run in (outcome(), outcome(tally=Tally(), timeline=[])):
        path = tmp_path / name
        bench_plot.draw(path, "a title", run.tally.latencies, document(run)["timeline"])
        assert path.read_bytes().startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
        path.unlink()


# -- what the document says -------------------------------------------------------------------------------------------

TEXT = (Path(__file__).parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TEXT.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_documented_as_it_is(name: str) -> None:
    (row,) = [row for row in ROWS if row[0] == f"`{name}`"]
    workload = PRESETS[name]
    assert row[1] == f"{workload.reads * 100:.3g} %"
    assert row[2] == ("" if workload.reads == 1 else workload.change)
    assert row[3] == f"{workload.distribution} {workload.skew:g}"
    assert row[4].startswith("model") or row[4] == f"{workload.key_sizes}, {workload.value_sizes}"
    assert (row[5] == "none") == (workload.lifetimes == ((None, 1.0),))
    assert row[6] == (f"{workload.once:.2%}".replace("%", " %") if workload.once else "")
    assert row[7] == ("yes" if workload.fill else "no")


def test_every_field_of_the_document_is_documented_and_no_other() -> None:
    told = document(outcome())
    rows = {row[0]: row[1] for row in ROWS if "field" not in row[0]}
    fields = {field for row in rows for field in row.replace("`", "").split(", ")}
    assert set(told) <= fields
    assert fields - set(told) <= {*PRESETS, "preset", "---"}
    nested = {"workload", "load", "cluster", "preload", "overhead"}
    for name in nested:
        assert [field for field in told[name] if f"`{field}`" not in rows[f"`{name}`"]] == []
    assert [field for field in told["latency"]["all"] if f"`{field}`" not in rows["`latency`"]] == []
    assert [field for field in told["timeline"][0] if f"`{field}`" not in rows["`timeline`"]] == []
    assert [field for field in told["nodes"]["a"] if f"`{field}`" not in rows["`nodes`"]] == []
