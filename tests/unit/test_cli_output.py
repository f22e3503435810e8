"""How values, sizes and times are written, and what `dcache` says when its extra is not installed."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from math import inf, nan
from typing import Any

import pytest
from rich.console import Console

from dcache.cli.output import json_value, lifetime, size, table, written
from dcache.record import make_version


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("text", {"value": "text", "encoding": "json"}),
        ({"a": [1, None, True]}, {"value": {"a": [1, None, True]}, "encoding": "json"}),
        (b"\xff\x00", {"value": "/wA=", "encoding": "base64"}),
        ({1, 2}, {"value": "{1, 2}", "encoding": "repr"}),
        (nan, {"value": "nan", "encoding": "repr"}),
        (datetime(2026, 1, 2, tzinfo=UTC), {"value": repr(datetime(2026, 1, 2, tzinfo=UTC)), "encoding": "repr"}),
    ],
)
def test_a_value_is_told_in_json_and_how_it_was_put_there(value: Any, told: dict[str, Any]) -> None:
    assert json_value(value) == told


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "no expiry"), (inf, "no expiry"), (0.25, "0.2 s"), (125, "2 min 05 s"), (7500, "2 h 05 min")],
)
def test_lifetimes_are_written_for_people(seconds: float | None, text: str) -> None:
    assert lifetime(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (256 << 20, "256.0 MiB"), (3 << 50, "3072.0 TiB")],
)
def test_sizes_are_written_in_binary_units(count: int, text: str) -> None:
    assert size(count) == text


def test_a_version_tells_when_it_was_stamped() -> None:
    assert written(make_version(1_700_000_000_123, 0, 7)) == "2023-11-14 22:13:20.123"


def test_what_comes_from_the_cluster_is_not_read_as_markup() -> None:
    console = Console(width=80, markup=True)
    with console.capture() as captured:
        console.print(table(["[bold]member"], [["[red]name[/red]"]]))
    assert "[red]name[/red]" in captured.get()


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_its_extra_the_command_says_how_to_install_it(missing: str) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None; from dcache.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert 'pip install "dcache-py[cli]"' in done.stderr
