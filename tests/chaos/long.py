"""Long runs, from fresh seeds: `python -m tests.chaos.long --seeds 20`, which is what `nox -s chaos` calls.

Each seed is run on this machine's loopback behind proxies, then with every node in a network namespace of its own,
where that is permitted.  Ends with status 1 if any run failed, and says how to make that one again.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import attrs

from tests.chaos import netns
from tests.chaos.ground import ChaosCluster, ProxiedCluster
from tests.chaos.netns import NamespacedCluster, inside, namespaces
from tests.chaos.storm import judge, storm
from tests.chaos.trouble import KINDS

NODES = 4
STEPS = 1000
"""More than there is time for."""


@contextmanager
def proxied() -> Iterator[ChaosCluster]:
    with ProxiedCluster(NODES) as cluster:
        yield cluster


@contextmanager
def namespaced() -> Iterator[ChaosCluster]:
    with namespaces() as network, inside(network.hub), NamespacedCluster(network, NODES) as cluster:
        yield cluster


@attrs.frozen
class Stage:
    """A kind of cluster to run on, and what can go wrong in its network."""

    name: str
    cluster: Callable[[], AbstractContextManager[ChaosCluster]]
    faults: tuple[str, ...]


def stages(only: str | None) -> list[Stage]:
    """Where to run; says what is left out, and why."""
    made = [] if only == "namespaces" else [Stage("proxies", proxied, ProxiedCluster.kinds)]
    reason = "" if only == "proxies" else netns.why_not()
    if reason:
        say(f"SKIPPED namespaces: {reason}")
    elif only != "proxies":
        emulated = netns.netem_kinds()
        if not emulated:
            say(f"SKIPPED {' and '.join(netns.NETEM)}: this kernel has no netem; thin lines delay and lose packets too")
        made.append(Stage("namespaces", namespaced, NamespacedCluster.kinds + emulated))
    return made


def succeeds(stage: Stage, seed: int, seconds: float, directory: Path) -> bool:
    """Make one run and say what it covered; False if something was wrong."""
    say(f"== seed {seed} on {stage.name}")
    directory.mkdir(parents=True)
    try:
        with stage.cluster() as cluster:
            verdict = storm(cluster, seed, (*KINDS, *stage.faults), STEPS, seconds, directory)
        judge(verdict)
    except Exception:  # noqa: BLE001  # the other seeds are run all the same
        say(traceback.format_exc())
        say(f"FAILED; once more: nox -s chaos -- --seed {seed} --seconds {seconds:g} --on {stage.name}")
        return False
    say(str(verdict))
    return True


def main() -> int:
    """How many runs failed."""
    given = arguments()
    directory = given.keep or Path(tempfile.mkdtemp(prefix="dcache-chaos-"))
    seeds = given.seed or [random.SystemRandom().getrandbits(32) for _ in range(given.seeds)]
    runs = [
        succeeds(stage, seed, given.seconds, directory / f"{seed}-{stage.name}")
        for stage in stages(given.on)
        for seed in seeds
    ]
    say(f"{len(runs)} runs, {runs.count(False)} failed; histories and logs are in {directory}")
    return runs.count(False) if runs else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Runs clients and trouble, and looks for broken promises.")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="how many fresh seeds (default: 5)")
    parser.add_argument("--seed", type=int, action="append", metavar="SEED", help="run this one instead; repeatable")
    parser.add_argument("--seconds", type=float, default=60.0, help="time for trouble in each run (default: 60)")
    parser.add_argument("--on", choices=("proxies", "namespaces"), help="only there (default: both)")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="where to put histories and logs")
    return parser.parse_args()


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # a program, which prints


if __name__ == "__main__":
    sys.exit(min(main(), 1))
