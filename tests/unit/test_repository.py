"""The repository keeps its word: commands, pins and contracts that stand in several files agree."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FLOORS_WITH_CLOCKS = {"cli", "client", "drivers", "testing"}
"""What may read clocks, draw random numbers and open sockets."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def ci_command() -> str:
    """The last line of .ci/run."""
    return (ROOT / ".ci" / "run").read_text(encoding="utf-8").rstrip().rpartition("\n")[2]


def test_ci_runs_the_readmes_test_command_and_nothing_else() -> None:
    """.ci/run goes to the root of the repository and runs one line, which the README gives word for word."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in script if line and not line.startswith("#")]
    assert commands[:-1] == ["set -euo pipefail", 'cd "$(dirname "${BASH_SOURCE[0]}")/.."']
    readme = ROOT / "README.md"
    assert readme.exists(), "README.md is missing"
    assert ci_command() in readme.read_text(encoding="utf-8").splitlines(), "README.md lacks the line that .ci/run runs"


def test_ci_script_can_be_executed() -> None:
    """A checkout's .ci/run runs as it is."""
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_nox_is_pinned_alike_everywhere(project: dict[str, Any]) -> None:
    """The dev extra, .ci/run and pre-commit install the same nox, from which all other pins follow."""
    (pin,) = [line for line in project["project"]["optional-dependencies"]["dev"] if line.startswith("nox==")]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    found = re.findall(r"nox==[\w.]+", ci_command() + hooks)
    assert len(found) >= 2
    assert set(found) == {pin}


def test_dev_tools_are_pinned(project: dict[str, Any]) -> None:
    """Each requirement of the dev extra names exactly one version."""
    pins = project["project"]["optional-dependencies"]["dev"]
    assert [line for line in pins if not re.fullmatch(r"[a-z-]+==[\d.]+", line)] == []


def test_runtime_requirements_have_a_lower_bound_and_nothing_else(project: dict[str, Any]) -> None:
    """The session `lowest` turns each bound into a pin, so each needs exactly one."""
    extras = project["project"]["optional-dependencies"]
    lines = [*project["project"]["dependencies"], *(line for name in extras if name != "dev" for line in extras[name])]
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+>=[\d.]+(;.*)?", line)] == []


def test_every_module_below_the_drivers_is_held_to_get_its_clock_as_argument(project: dict[str, Any]) -> None:
    """A new package or module at the top of dcache has to be entered in the import contracts."""
    entries = {
        path.stem for path in (ROOT / "dcache").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    (contract,) = [
        contract
        for contract in project["tool"]["importlinter"]["contracts"]
        if contract["name"] == "Clocks, randomness and sockets come in as arguments"
    ]
    held = {module.removeprefix("dcache.") for module in contract["source_modules"]}
    assert entries - {"__init__"} - FLOORS_WITH_CLOCKS == held
