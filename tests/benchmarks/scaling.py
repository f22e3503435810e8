"""What an operation costs as nodes are added, in CPU, messages and round trips: figures of docs/scaling.md.

    python -m tests.benchmarks.scaling [--nodes 1 2 4 8] [--scale 1.0] [PART ...]

Parts: `cpu` and `batch`; both if none is named.  Each prints the table that the document has.  Nodes, proxies and the
client share this machine, so nothing here says how much many machines can do; CPU seconds and messages do not depend on
how many cores there are.  `--scale 0.1` makes a tenth of the calls.

CPU is that of whole processes, user and system, read from their own clocks; the client's is this process's.  Nodes also
spend some on watching each other, which is in the figures.  Requests are counted by the nodes; each has one reply.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import attrs

from dcache import Client
from dcache.testing import LocalCluster
from tests.integration.proxied import ProxiedCluster

KEYS, BATCH = 10_000, 100
VALUE = bytes(100)
ROUNDS = 5
RETURN = 0.100
"""Seconds that a reply takes in `batch`: enough that all else is little beside it."""

Work = Callable[[Client, int], object]
names = [f"key{number}" for number in range(KEYS)]


def batch_of(number: int) -> list[str]:
    first = number * BATCH % KEYS
    return names[first : first + BATCH]


def values_of(number: int) -> dict[str, bytes]:
    return dict.fromkeys(batch_of(number), VALUE)


@attrs.frozen
class Kind:
    """`work` is called with a client and a running number; it is about `keys` keys."""

    name: str
    work: Work
    keys: int
    calls: int


KINDS = (
    Kind("get", lambda client, number: client.get(names[number % KEYS]), 1, 4_000),
    Kind("set", lambda client, number: client.set(names[number % KEYS], VALUE), 1, 3_000),
    Kind(f"get_many of {BATCH}", lambda client, number: client.get_many(batch_of(number)), BATCH, 150),
    Kind(f"set_many of {BATCH}", lambda client, number: client.set_many(values_of(number)), BATCH, 80),
)


def fill(client: Client) -> None:
    for number in range(KEYS // BATCH):
        errors = client.set_many(values_of(number))
        assert not errors, next(iter(errors.values()))


# -- cpu --------------------------------------------------------------------------------------------------------------


class Spent(NamedTuple):
    """CPU seconds, requests, and seconds by the clock on the wall."""

    client: float
    nodes: float
    requests: float
    wall: float


def cpu_of(process: int) -> float:
    """CPU seconds of a process, all its threads: its clock, by the number that Linux gives it."""
    return time.clock_gettime((~process << 3) | 2)


class Meter:
    def __init__(self, cluster: LocalCluster, client: Client) -> None:
        self._cluster, self._client = cluster, client
        self._asked = 0

    def read(self) -> Spent:
        told = self._client.stats()["nodes"].values()
        self._asked += len(self._cluster.nodes)  # requests of the meter's own
        requests = sum(each["requests"] for each in told) - self._asked
        processes = [node.process.pid for node in self._cluster.nodes if node.process is not None]
        return Spent(time.process_time(), sum(map(cpu_of, processes)), requests, time.perf_counter())

    def spent(self, kind: Kind, calls: int, first: int) -> Spent:
        """What each of so many calls took."""
        before = self.read()
        for number in range(first, first + calls):
            kind.work(self._client, number)
        return Spent(*((now - then) / calls for now, then in zip(self.read(), before, strict=True)))


def cpu(sizes: Sequence[int], scale: float) -> Iterator[str]:
    """`time` is a call's by the clock on the wall, as a multiple of that with the first size in the same round."""
    yield "| replicas | nodes | work | client, CPU s per million keys | nodes together | requests per call | time |"
    yield "|---|---|---|---|---|---|---|"
    for replicas in (1, 3):
        with ExitStack() as stack:
            meters = {nodes: meter_of(stack, nodes, replicas) for nodes in sizes}
            rounds = {kind: [one_round(meters, kind, scale, turn) for turn in range(ROUNDS)] for kind in KINDS}
        for nodes in sizes:
            for kind, found in rounds.items():
                each = Spent(*map(statistics.median, zip(*(spent[nodes] for spent in found), strict=True)))
                beside = statistics.median(spent[nodes].wall / spent[sizes[0]].wall for spent in found)
                seconds = (f"{1e6 * side / kind.keys:.1f}" for side in (each.client, each.nodes))
                cells = (replicas, nodes, kind.name, *seconds, f"{each.requests:.2f}", f"{beside:.2f}")
                yield f"| {' | '.join(map(str, cells))} |"


def meter_of(stack: ExitStack, nodes: int, replicas: int) -> Meter:
    """A cluster that holds the keys, and stays until the stack ends."""
    cluster = stack.enter_context(LocalCluster(nodes, replicas=replicas, probe_interval=5.0))
    client = stack.enter_context(cluster.client(timeout=10.0))
    cluster.wait_until_complete()
    fill(client)
    return Meter(cluster, client)


def one_round(meters: Mapping[int, Meter], kind: Kind, scale: float, turn: int) -> dict[int, Spent]:
    """The clusters take turns, so that what disturbs the machine hits all alike."""
    calls = max(10, round(kind.calls * scale))
    return {nodes: meter.spent(kind, calls, turn * calls) for nodes, meter in meters.items()}


# -- batch ------------------------------------------------------------------------------------------------------------


def batch(sizes: Sequence[int], scale: float) -> Iterator[str]:
    """Three replicas, every reply held back for `RETURN`: how many times that does a call take?"""
    yield f"| nodes | work | round trips of {1000 * RETURN:.0f} ms that a call takes: fastest | median |"
    yield "|---|---|---|---|"
    for nodes in sizes:
        with ProxiedCluster(nodes, probe_interval=5.0) as cluster, cluster.client(timeout=5.0) as client:
            cluster.wait_until_complete()
            fill(client)
            cluster.delay(RETURN)
            for kind in KINDS:
                trips = round_trips(client, kind, max(5, round(20 * scale)))
                yield f"| {nodes} | {kind.name} | {min(trips):.2f} | {statistics.median(trips):.2f} |"


def round_trips(client: Client, kind: Kind, calls: int) -> list[float]:
    """Of each call.  What takes two rounds never takes less than two; a busy machine may make it seem more."""
    taken = []
    for number in range(calls):
        begun = time.perf_counter()
        kind.work(client, number)
        taken.append((time.perf_counter() - begun) / RETURN)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the usual number of calls")
    parser.add_argument("parts", nargs="*", metavar="PART")
    given = parser.parse_args()
    parts = {"cpu": cpu, "batch": batch}
    for name in given.parts or parts:
        if name not in parts:
            parser.error(f"no part is called {name!r}: {', '.join(parts)}")
        print(f"{name}:")
        for line in parts[name](given.nodes, given.scale):
            print(line, flush=True)


if __name__ == "__main__":
    main()
