"""The same seed gives the same run: whatever the hashes of strings, and whatever ran before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dcache.testing.sim.profiles import PROFILES
from dcache.testing.sim.run import run

ROOT = Path(__file__).parents[2]
SEEDS = (0, 7)
PROGRAM = """
import sys
from dcache.testing.sim.run import run
profile, *seeds = sys.argv[1:]
for seed in seeds:
    print(seed, run(profile, int(seed)).digest)
"""

pytestmark = pytest.mark.cluster


def digests_under(hash_seed: int, profile: str, seeds: tuple[int, ...]) -> dict[int, str]:
    """In a process of its own, in this order."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, profile, *map(str, seeds)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {int(seed): digest for seed, digest in (line.split() for line in done.stdout.splitlines())}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_seed_gives_the_same_run_under_all_hashes_and_after_any_other(profile: str) -> None:
    first, second, third = (
        digests_under(hash_seed, profile, seeds) for hash_seed, seeds in enumerate((SEEDS, SEEDS[::-1], SEEDS))
    )
    assert first == second == third
    assert len(set(first.values())) == len(SEEDS)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_story_does_not_change_what_it_tells(profile: str) -> None:
    """What is logged, told and collected meanwhile has no part in it: a run that failed fails when it is looked at."""
    story: list[str] = []
    silent, told = run(profile, 4), run(profile, 4, story=story.append)
    assert told == silent
    assert len(story) > 100
