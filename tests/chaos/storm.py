"""One run: clients at work, trouble from a seed, then quiet, and the verdict."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs

from dcache import Client
from dcache.testing.checker import check_strict
from dcache.testing.cluster import wait_for
from dcache.testing.history import Violation
from tests.chaos import report
from tests.chaos.ground import disagreement, held
from tests.chaos.report import Coverage
from tests.chaos.trouble import Ground, Nemesis, Step, plan
from tests.chaos.workload import TIMEOUT, Crew, Size, new_history, run_all

QUIET = 60.0
"""Seconds after the last trouble within which every call must succeed and all replicas must agree."""

WARM = 200
"""Calls before the first trouble."""


class Chaotic(Ground, Protocol):
    """A cluster that trouble can be made for and that clients can use."""

    def client(self, **settings: Any) -> Any: ...
    def async_client(self, **settings: Any) -> Any: ...
    def repair(self) -> None: ...
    def save_logs(self, directory: Path) -> None: ...


@attrs.frozen
class Verdict:
    """What a run covered, and which violations of the promise were found."""

    seed: int
    steps: tuple[Step, ...]
    trouble: Mapping[str, int]
    coverage: Coverage
    table: str
    violations: tuple[Violation, ...]
    directory: Path

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {times}" for kind, times in sorted(self.trouble.items())) or "none"
        found = Counter(violation.rule for violation in self.violations)
        wrong = [f"VIOLATED {times} times: {rule}" for rule, times in found.items()]
        return "\n".join([f"seed {self.seed}, trouble: {kinds}", self.table, *wrong])


def storm(
    ground: Chaotic,
    seed: int,
    kinds: Sequence[str],
    steps: int,
    seconds: float,
    directory: Path,
    size: Size | None = None,
) -> Verdict:
    """Let clients use `ground` while `steps` of trouble from `seed` happen; no step begins after `seconds`.

    Everything about the run is in `directory` afterwards, also when it fails.
    """
    history, zero = new_history(), time.monotonic_ns()
    planned = plan(seed, kinds, steps)
    nemesis = Nemesis(ground)
    try:
        with Crew(
            history,
            seed,
            lambda: ground.client(timeout=TIMEOUT),
            lambda: ground.async_client(timeout=TIMEOUT),
            size or Size(),
        ) as crew:
            wait_for(lambda: len(history.calls) >= WARM, "calls before the trouble", lambda: "")
            nemesis.run(planned, time.monotonic() + seconds)
            with ground.client(timeout=TIMEOUT) as client:
                wait_for(lambda: all_answered(crew, client), "every call to succeed", lambda: "", QUIET)
        with ground.client(timeout=5.0) as client:
            settle(ground, client, crew.keys.all())
    finally:
        calls = history.all()
        violations = check_strict(calls)
        report.save(directory, calls, violations, zero, [f"seed {seed}", *nemesis.log])
        ground.save_logs(directory)
    coverage, counted = Coverage.of(calls), report.table(calls)
    return Verdict(seed, tuple(planned), dict(nemesis.done), coverage, counted, tuple(violations), directory)


def all_answered(crew: Crew, client: Client) -> bool:
    """Whether every key can be read."""
    crew.check()
    answers = run_all(client, crew.actor("afterwards").look(), crew.history)
    return all(answer.error is None for answer in answers)


def settle(ground: Chaotic, client: Client, keys: Sequence[str]) -> None:
    """Have the nodes repair until all owners of each key agree."""
    wrong: dict[str, str] = {}

    def agreed() -> bool:
        wrong.clear()
        ground.repair()
        told = {key: disagreement(holdings) for key, holdings in held(client, keys).items()}
        wrong.update({key: text for key, text in told.items() if text})
        return not wrong

    wait_for(agreed, "the replicas to agree", lambda: "\n".join(f"{key}: {text}" for key, text in wrong.items()), QUIET)


def judge(verdict: Verdict, kinds: Sequence[str] = ()) -> None:
    """Fail for what was wrong, and for a run that shows too little: each of `kinds` must have happened."""
    where = f"{verdict}\nall calls and logs are in {verdict.directory}"
    if verdict.violations:
        texts = (verdict.directory / "violations.txt").read_text()
        raise AssertionError(f"{where}\n\n{texts[:20_000]}")
    lacking = verdict.coverage.lacking()
    assert not lacking, f"too little happened, {lacking}\n{where}"
    absent = [kind for kind in kinds if not verdict.trouble.get(kind)]
    assert verdict.trouble, f"no trouble was had\n{where}"
    assert not absent, f"no such trouble: {', '.join(absent)}\n{where}"
