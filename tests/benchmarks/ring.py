"""What a lookup costs, and how that grows with the number of points on the ring.

    python -m tests.benchmarks.ring

Three prices: a warm lookup (an index into the compiled table), a cold one (binary search and walk, paid once per slot),
and building the ring.  Each is the best of several rounds: what the code costs, not what else the machine does.
"""

from __future__ import annotations

import random
import sys
import timeit
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dcache.ring import SLOTS, HashRing

NODES = 10
POINTS = (100, 1_000, 10_000, 100_000)
KEYS = 10_000
ROUNDS = 7


def best_of(rounds: int, work: Callable[[], object], setup: Callable[[], object] = lambda: None) -> float:
    """Seconds that the fastest of so many runs of `work` took."""
    return min(timeit.repeat(work, setup, number=1, repeat=rounds))


def build(points: int) -> HashRing:
    return HashRing((f"node-{number}" for number in range(NODES)), vnodes=points // NODES)


def warm_lookup(ring: HashRing, keys: list[bytes]) -> float:
    def look_up_all() -> None:
        lookup = ring.lookup
        for key in keys:
            lookup(key)

    ring.shares()  # fills the table
    return best_of(ROUNDS, look_up_all) / len(keys)


def cold_lookup(ring: HashRing, replicas: int) -> float:
    cold = ring

    def forget() -> None:
        nonlocal cold
        cold = HashRing(ring.nodes, ring.vnodes, ring.seed)

    def compile_all() -> None:
        for slot in range(SLOTS):
            cold.slot_owners(slot, replicas)

    return best_of(3, compile_all, forget) / SLOTS


def main() -> None:
    rng = random.Random(1)
    keys = [rng.randbytes(16) for _ in range(KEYS)]
    lines = [f"{'points':>8} {'warm, µs':>10} {'cold 1, µs':>11} {'cold 3, µs':>11} {'build, ms':>10}"]
    for points in POINTS:
        ring = build(points)
        prices = (warm_lookup(ring, keys) * 1e6, cold_lookup(ring, 1) * 1e6, cold_lookup(ring, 3) * 1e6)
        seconds = best_of(3, lambda points=points: build(points))  # type: ignore[misc]
        lines.append("{:>8} {:>10.3f} {:>11.2f} {:>11.2f} {:>10.2f}".format(points, *prices, seconds * 1e3))
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
