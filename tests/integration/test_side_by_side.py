"""The side-by-side harness runs from beginning to end, with hardly any operations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import costs
from tests.benchmarks.side_by_side.__main__ import main

FEW = ("--rounds", "2", "--seconds", "0.005", "--no-compiler", "--no-targets", "--let-sleep", "--seed", "1")
ALONE = ("--servers", "dcache R=1", "--servers", "C echo", "--servers", "Python echo")


def test_what_is_there_is_measured_and_what_is_not_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Threads, tasks and the echoes; what lacks its server, or the compiler, is a line with the reason."""
    jobs = (
        "--only",
        "get, 100 B, 1 thread",
        "--only",
        "get_many, 100 B, 1 thread",
        "--only",
        "set_many, 100 B, 50 tasks of asyncio",
        "--only",
        "1 connection",
    )
    main([*FEW, *ALONE, *jobs, "--json", str(tmp_path / "all.json"), "--markdown", str(tmp_path / "all.md")])
    out = capsys.readouterr().out
    assert "skipped: redis-py: redis-server: not wanted" in out
    assert "skipped: dcache-node: no C compiler" in out
    assert "skipped: C echo: no C compiler" in out
    found = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    get, get_many, tasks, node = found["races"]
    assert set(get["rounds"]) == {"Python echo", "Python echo of two nodes", "dcache R=1"}
    assert set(get_many["rounds"]) == {"Python echo", "dcache R=1"}
    assert set(tasks["rounds"]) == {"dcache R=1"}
    assert not node["rounds"]
    assert all(spent["operations"] % 50 == 0 for spent in tasks["rounds"]["dcache R=1"])
    assert "| dcache R=1 | " in (tmp_path / "all.md").read_text(encoding="utf-8")


def test_what_requests_cost_in_memory_is_told_with_the_functions_that_are_called(
    capsys: pytest.CaptureFixture[str],
) -> None:
    costs.main(["--seconds", "0.02"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("  ")[0] for line in lines] == [
        "client, R=1: get",
        "client, R=1: set",
        "client, R=1: get_many of 100",
        "client, R=3: get",
        "client, R=3: get_many of 100",
        "node: get",
        "node: get, with a lifetime",
        "node: get_many of 100",
    ]
    assert all(0.0 < float(line[34:].split()[0]) < 100_000 for line in lines)
