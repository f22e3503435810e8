"""How even the shares of nodes are, and what it would cost to make them more so: the figures of docs/scaling.md.

    python -m tests.benchmarks.balance [--clusters 200] [PART ...]

Parts: `points` and `schemes`; both if none is named.  A cluster has nodes of random names and equal weights; a node's
share is the slots that it is an owner of.  For every cluster it is taken how much more than the mean its fullest node
has; printed is what 95 of 100 clusters do not exceed.

`schemes` compares other ways of placing with the ring, at the same names, and what a node more and a node less moves:
the copies that come to be where they were not, as a part of all copies.  Least possible is 1/n of the larger cluster.
Nothing here depends on the machine but the column of times.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import attrs
import mmh3

from dcache.ring import SLOTS, HashRing, RingNode

SIZES = (3, 10, 50)
POINTS = (150, 500, 1_000)
Owners = list[tuple[str, ...]]  # by slot
Scheme = Callable[[Sequence[str], int], Owners]  # names, replicas


def random_names(rng: random.Random, count: int) -> list[str]:
    return [f"10.{rng.randrange(256)}.{rng.randrange(256)}.{rng.randrange(256)}:7400" for _ in range(count)]


def all_owners(ring: HashRing, replicas: int) -> Owners:
    return [ring.slot_owners(slot, replicas) for slot in range(SLOTS)]


def excess(owners: Owners, nodes: int) -> float:
    """By which part of the mean the fullest node is above it."""
    counts = Counter(name for names in owners for name in names)
    return max(counts.values()) / (sum(counts.values()) / nodes) - 1


def percentile(values: Sequence[float], part: float) -> float:
    return sorted(values)[math.ceil(part * len(values)) - 1]


# -- points -----------------------------------------------------------------------------------------------------------


def points(clusters: int) -> Iterator[str]:
    """The ring as it is, by points for each node."""
    yield "| nodes | points each | 1 replica: median, 95 % | 3 replicas: median, 95 % | build | all owners |"
    yield "|---|---|---|---|---|---|"
    for nodes in SIZES:
        for each in POINTS:
            yield points_line(nodes, each, clusters)


def points_line(nodes: int, each: int, clusters: int) -> str:
    rng = random.Random(f"{nodes} {each}")
    found: dict[int, list[float]] = {1: [], 3: []}
    built, compiled = [], []
    for _ in range(clusters):
        names = random_names(rng, nodes)
        begun = time.process_time()
        ring = HashRing(names, vnodes=each)
        done = time.process_time()
        owners = all_owners(ring, 3)
        built.append(done - begun)
        compiled.append(time.process_time() - done)
        found[3].append(excess(owners, nodes))
        found[1].append(excess([names[:1] for names in owners], nodes))
    cells = (f"+{statistics.median(values):.1%}, +{percentile(values, 0.95):.1%}" for values in found.values())
    times = (f"{1000 * statistics.median(taken):.1f} ms" for taken in (built, compiled))
    return f"| {nodes} | {each:,} | {' | '.join((*cells, *times))} |"


# -- schemes ----------------------------------------------------------------------------------------------------------


def ring_of_points(each: int) -> Scheme:
    return lambda names, replicas: all_owners(HashRing(names, vnodes=each), replicas)


def rendezvous(names: Sequence[str], replicas: int) -> Owners:
    """Every node bids for every slot, the highest bids own it."""
    bids = [[mmh3.hash(name.encode() + slot.to_bytes(4, "big")) for slot in range(SLOTS)] for name in names]
    return [
        tuple(name for _, name in sorted(zip(by_node, names, strict=True), reverse=True)[:replicas])
        for by_node in zip(*bids, strict=True)
    ]


def bounded(names: Sequence[str], replicas: int, slack: float = 0.05) -> Owners:
    """Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016), the ring's order, slot by slot:
    who has 1.05 times the mean is passed over."""
    ring, held = HashRing(names), Counter[str]()
    most = math.ceil((1 + slack) * SLOTS * replicas / len(names))
    owners: Owners = [()] * SLOTS
    order = list(range(SLOTS))
    random.Random(0).shuffle(order)
    for slot in order:
        walk = ring.slot_owners(slot, len(names))
        free = [name for name in walk if held[name] < most]
        owners[slot] = tuple([*free, *(name for name in walk if name not in free)][:replicas])
        held.update(owners[slot])
    return owners


def tuned_weights(names: Sequence[str], replicas: int, rounds: int = 12) -> Owners:
    """The ring, the number of each node's points put right again and again by its share."""
    weights = dict.fromkeys(names, 1.0)
    best, least = Owners(), math.inf
    for _ in range(rounds):
        ring = HashRing([RingNode(name, weight) for name, weight in weights.items()])
        owners = all_owners(ring, replicas)
        found = excess(owners, len(names))
        if found < least:
            best, least = owners, found
        counts = Counter(name for each in owners for name in each)
        mean = SLOTS * min(replicas, len(names)) / len(names)
        weights = {name: weight * (mean / counts[name]) ** 0.7 for name, weight in weights.items()}
    return best


def best_seed(names: Sequence[str], replicas: int, seeds: int = 16) -> Owners:
    """The ring, with the seed of sixteen that suits these names best."""
    tried = (all_owners(HashRing(names, seed=seed), replicas) for seed in range(seeds))
    return min(tried, key=lambda owners: excess(owners, len(names)))


class Chosen:
    """Every newcomer tries sixteen sets of points and keeps the one that leaves the shares most even; the table would
    have to tell which.  The idea is that of Cassandra's token allocation."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], str] = {}  # what the table would tell

    def __call__(self, names: Sequence[str], replicas: int) -> Owners:
        here: list[str] = []
        for name in names:
            if (name, replicas) not in self._kept:
                tried = [f"{name} {salt}" for salt in range(16)]
                self._kept[name, replicas] = min(tried, key=lambda one: self._excess([*here, one], replicas))
            here.append(self._kept[name, replicas])
        return all_owners(HashRing(here), replicas)

    def _excess(self, names: Sequence[str], replicas: int) -> float:
        return excess(all_owners(HashRing(names), min(replicas, len(names))), len(names))


@attrs.frozen
class Way:
    name: str
    scheme: Scheme
    clusters: int = 100


WAYS = (
    Way("ring, 150 points", ring_of_points(150)),
    Way("ring, 500 points", ring_of_points(500)),
    Way("ring, 1,000 points", ring_of_points(1_000)),
    Way("ring, 4,000 points", ring_of_points(4_000), 40),
    Way("rendezvous over slots", rendezvous, 40),
    Way("ring, loads bounded at 1.05", bounded, 40),
    Way("ring, weights tuned to shares", tuned_weights, 40),
    Way("ring, best of 16 seeds", best_seed, 40),
    Way("ring, newcomers choose of 16", Chosen(), 40),
)


def schemes(_clusters: int) -> Iterator[str]:
    """Other ways of giving out slots.  The fewest new owners that a change can bring a slot is one at a time."""
    yield "| way | nodes | replicas | 95 % of clusters | join moves | leave moves | new owners of a slot, most | time |"
    yield "|---|---|---|---|---|---|---|---|"
    for nodes, replicas in ((3, 1), (10, 1), (10, 3)):
        for way in WAYS:
            yield scheme_line(way, nodes, replicas)


def scheme_line(way: Way, nodes: int, replicas: int) -> str:
    rng = random.Random(nodes)  # the same clusters for each way
    uneven, joined, left, changed, taken = [], [], [], [0], []
    for number in range(way.clusters):
        names = random_names(rng, nodes + 1)
        begun = time.process_time()
        owners = way.scheme(names[:-1], replicas)
        taken.append(time.process_time() - begun)
        uneven.append(excess(owners, nodes))
        if number < 20:
            more, less = way.scheme(names, replicas), way.scheme(names[1:-1], replicas)
            for after, moves in (more, joined), (less, left):
                new = [len(set(now) - set(before)) for before, now in zip(owners, after, strict=True)]
                moves.append(sum(new) / sum(map(len, owners)))
                changed.append(max(new))
    cells = f"+{percentile(uneven, 0.95):.1%} | {statistics.mean(joined):.1%} | {statistics.mean(left):.1%}"
    return (
        f"| {way.name} | {nodes} | {replicas} | {cells} | {max(changed)} | {1000 * statistics.median(taken):.0f} ms |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clusters", type=int, default=200, help="random clusters for each line of `points`")
    parser.add_argument("parts", nargs="*", metavar="PART")
    given = parser.parse_args()
    parts = {"points": points, "schemes": schemes}
    for name in given.parts or parts:
        if name not in parts:
            parser.error(f"no part is called {name!r}: {', '.join(parts)}")
        print(f"{name}:")
        for line in parts[name](given.clusters):
            print(line, flush=True)


if __name__ == "__main__":
    main()
