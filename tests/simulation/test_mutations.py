"""Without any one safeguard there is harm, and the simulator finds it: else the safeguard may go, or the simulator sees
too little.  Those whose harm is found rarely are left to `nox -s simulate`; see `mutations`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.simulation.held_elsewhere import HELD_ELSEWHERE
from tests.simulation.mutations import MUTATIONS, found

ROOT = Path(__file__).resolve().parents[2]
OFTEN = [name for name, mutation in MUTATIONS.items() if not mutation.rare]


@pytest.mark.cluster
@pytest.mark.parametrize("name", OFTEN)
def test_the_harm_is_found_when_a_safeguard_is_taken_out(name: str) -> None:
    assert found(MUTATIONS[name]) is not None, "the safeguard may go, or the simulator sees too little"


def told() -> list[list[str]]:
    """The rows of the two tables of safeguards in docs/testing.md, without their headings."""
    text = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8").partition("\n## Safeguards\n")[2]
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in re.findall(r"^\|.*\|$", text, re.MULTILINE)
    ]
    return [row for row in rows if row[0] != "safeguard" and not row[0].startswith("-")]


def test_the_document_lists_the_safeguards_and_what_is_found_without_them() -> None:
    rows = {row[0]: (row[1], row[2].partition(",")[0]) for row in told() if row[0] in MUTATIONS}
    assert rows == {name: (mutation.against, mutation.profile) for name, mutation in MUTATIONS.items()}


def test_the_document_lists_the_safeguards_that_other_tests_hold() -> None:
    rows = {row[0]: row[1] for row in told() if row[0] not in MUTATIONS}
    assert rows == {name: against for name, (against, _, _) in HELD_ELSEWHERE.items()}


@pytest.mark.parametrize("name", HELD_ELSEWHERE)
def test_the_test_that_holds_a_safeguard_is_there(name: str) -> None:
    path, _, test = HELD_ELSEWHERE[name][1].partition("::")
    assert f"def {test.partition('[')[0]}(" in (ROOT / "tests" / path).read_text(encoding="utf-8")
