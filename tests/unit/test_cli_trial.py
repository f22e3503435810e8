"""What the demonstration's verdict rests on: comparing answers, counting hits, and keys that follow the source."""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from dcache.cli.trial import Run, Trial, differing, hits_between
from dcache.cli.workload import Statistics, statistics_of
from dcache.client.sync import Client

TRUTH = {"one": statistics_of(b"def f(a):\n    return a\n"), "two": statistics_of(b"b = 1\n")}


def tampered(**changes: Any) -> dict[str, Statistics]:
    one: Any = {**TRUTH["one"], **changes}
    return {**deepcopy(TRUTH), "one": one}


def test_answers_equal_to_the_computed_ones_differ_in_nothing() -> None:
    assert differing(TRUTH, deepcopy(TRUTH)) == ()


@pytest.mark.parametrize(
    "changes",
    [{"lines": 3}, {"lines": 2.0}, {"classes": False}, {"identifiers": {"a": 3}}, {"look_alikes": ()}, {"more": 1}],
)
def test_an_answer_that_was_tampered_with_is_named(changes: dict[str, Any]) -> None:
    assert differing(TRUTH, tampered(**changes)) == ("one",)


def test_an_answer_to_a_question_that_was_never_computed_is_wrong() -> None:
    assert differing({}, deepcopy(TRUTH)) == ("one", "two")


def test_a_run_is_about_the_answers_it_has() -> None:
    assert differing(TRUTH, {"two": TRUTH["two"]}) == ()


def test_hits_are_told_of_nodes_that_gave_statistics_before_and_after() -> None:
    before = {"a": {"hits": 5}, "b": {"hits": 1}, "c": {"error": "refused"}}
    after = {"a": {"hits": 9}, "b": {"error": "refused"}, "c": {"hits": 3}}
    assert hits_between(before, after) == {"a": 4}


def test_the_key_of_a_module_changes_with_its_source(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text("a = 1\n")
    with Client("127.0.0.1:1") as client:
        trial = Trial(client, {"m": path})
        first = trial.key("m")
        assert trial.key("m") == first
        os.utime(path, ns=(1, 1))
        second = trial.key("m")
        path.write_text("a = 12\n")
        os.utime(path, ns=(1, 1))
        assert len({first, second, trial.key("m")}) == 3


def test_the_figures_of_a_run_come_from_the_seconds_of_its_answers() -> None:
    run = Run("warm", (0.1, 0.3, 0.2), 0, 0, {}, ())
    assert run.total == pytest.approx(0.6)
    assert (run.median, run.slowest) == (0.2, 0.3)
