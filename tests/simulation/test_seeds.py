"""A few seeds of every profile, each time the same; `nox -s simulate` runs thousands."""

from __future__ import annotations

import pytest

from dcache.testing.sim.profiles import PROFILES
from dcache.testing.sim.seeds import attempt
from tests.simulation.regressions import REGRESSIONS

SEEDS, CHUNK = 40, 10

pytestmark = pytest.mark.cluster


def check(profile: str, seed: int) -> None:
    result = attempt(profile, seed)
    assert not result.report.violations, f"dcache-sim --profile {profile} --seed {seed} --trace"


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_promised_is_broken(profile: str, first: int) -> None:
    for seed in range(first, first + CHUNK):
        check(profile, seed)


@pytest.mark.parametrize(("profile", "seed", "wrong"), REGRESSIONS)
def test_what_was_wrong_once_stays_right(profile: str, seed: int, wrong: str) -> None:
    check(profile, seed)
