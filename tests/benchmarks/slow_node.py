"""What users notice while a node hangs, or while one is filled up again: latencies, for docs/scaling.md.

    python -m tests.benchmarks.slow_node [--times 5] [--entries 200000] [PART ...]

Parts: `paused` and `refilled`; both if none is named.  Three nodes, three replicas, one thread that gets and sets by
turns; all share this machine, so that the nodes' own work delays the thread as well.  `paused` stops a node (SIGSTOP)
for 8 seconds, so many times; the table tells the time before it is noticed from the time after.  `refilled` kills one
and starts it again, empty.  A race is an extra call of a read to another owner, because one took unusually long.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dcache import Client, DcacheError
from dcache.testing import LocalCluster
from dcache.testing.cluster import table_of
from tests.benchmarks.operations import PATIENCE, VALUE, fill, fresh_cluster

HANGING = 8.0
QUIET = 3.0
HEADER = "| while | | calls | p50 | p99 | p99.9 | longest | errors | races per 100 gets |"


class Call(NamedTuple):
    """When it began, how long it took, in seconds; the races until it was over."""

    kind: str
    began: float
    took: float
    fine: bool
    races: int


class Caller:
    """A thread that gets and sets by turns, until it is ended."""

    def __init__(self, client: Client, entries: int) -> None:
        self.calls: list[Call] = []
        self._client, self._entries = client, entries
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        works: dict[str, Callable[[str], object]] = {
            "get": self._client.get,
            "set": lambda key: self._client.set(key, VALUE),
        }
        counters = self._client.engine.session.counters
        number = 0
        while not self._stop.is_set():
            number += 1
            for kind, work in works.items():
                began = time.perf_counter()
                try:
                    work(f"entry{number * 7919 % self._entries}")
                    fine = True
                except DcacheError:
                    fine = False
                took = time.perf_counter() - began
                self.calls.append(Call(kind, began, took, fine, counters.hedges))

    def end(self) -> list[Call]:
        self._stop.set()
        self._thread.join()
        return self.calls


def told(phase: str, calls: Sequence[Sequence[Call]]) -> Iterator[str]:
    """A line for gets and one for sets; `calls` are stretches of calls without a gap."""
    gets = sum(call.kind == "get" for stretch in calls for call in stretch)
    races = sum(stretch[-1].races - stretch[0].races for stretch in calls if stretch)
    for kind in ("get", "set"):
        some = [call for stretch in calls for call in stretch if call.kind == kind]
        if not some:
            continue
        took = sorted(1000 * call.took for call in some)
        cells = (f"{took[int(len(took) * part)]:.2f} ms" for part in (0.5, 0.99, 0.999))
        errors, raced = sum(not call.fine for call in some), f"{100 * races / gets:.2f}" if kind == "get" else ""
        yield f"| {phase} | {kind} | {len(some):,} | {' | '.join(cells)} | {took[-1]:.1f} ms | {errors} | {raced} |"


def between(calls: Sequence[Call], first: float, last: float) -> list[Call]:
    return [call for call in calls if first <= call.began < last]


def paused(times: int, _entries: int) -> Iterator[str]:
    """One of three hangs."""
    phases: dict[str, list[list[Call]]] = {}
    with fresh_cluster() as cluster, cluster.client(timeout=1.0) as client:
        fill(client, 10_000)
        for _ in range(times):
            for phase, calls in paused_once(cluster, client).items():
                phases.setdefault(phase, []).append(calls)
            cluster.wait_until_complete(PATIENCE)
    for phase, stretches in phases.items():
        yield from told(phase, stretches)


def paused_once(cluster: LocalCluster, client: Client) -> dict[str, list[Call]]:
    caller = Caller(client, 10_000)
    time.sleep(QUIET)
    cluster.pause(0)
    begun = time.perf_counter()
    while not others_say_down(cluster) and time.perf_counter() - begun < HANGING:
        time.sleep(0.1)
    noticed = time.perf_counter()
    time.sleep(max(0.0, begun + HANGING - noticed))
    ended = time.perf_counter()
    cluster.resume(0)
    time.sleep(QUIET)
    calls = caller.end()
    return {
        "all three answer": between(calls, 0, begun),
        "one hangs, its first second": between(calls, begun, begun + 1.0),
        "until the others' tables say so": between(calls, begun + 1.0, noticed),
        "after that": between(calls, noticed, ended),
        "it goes on": between(calls, ended, time.perf_counter()),
    }


def others_say_down(cluster: LocalCluster) -> bool:
    """Whether the others' tables have the first node down."""
    tables = [table_of(address) for address in cluster.addresses[1:]]
    return all(table is not None and cluster.addresses[0] in table.down for table in tables)


def refilled(_times: int, entries: int) -> Iterator[str]:
    """One of three lost all it held."""
    with fresh_cluster(memory_limit="1GiB") as cluster, cluster.client(timeout=1.0) as client:
        fill(client, entries)
        cluster.wait_until_complete(PATIENCE)
        caller = Caller(client, entries)
        time.sleep(QUIET)
        cluster.kill(0)
        killed = time.perf_counter()
        cluster.restart(0)
        back = time.perf_counter()
        cluster.wait_until_complete(PATIENCE)
        complete = time.perf_counter()
        time.sleep(QUIET)
        calls = caller.end()
    yield from told("all three answer", [between(calls, 0, killed)])
    yield from told(f"one is dead, {back - killed:.1f} s", [between(calls, killed, back)])
    yield from told(f"it takes {entries:,} entries, {complete - back:.1f} s", [between(calls, back, complete)])
    yield from told("it is complete", [between(calls, complete, time.perf_counter())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="how often a node is paused")
    parser.add_argument("--entries", type=int, default=200_000, help="how many `refilled` has")
    parser.add_argument("parts", nargs="*", metavar="PART")
    given = parser.parse_args()
    parts = {"paused": paused, "refilled": refilled}
    for name in given.parts or parts:
        if name not in parts:
            parser.error(f"no part is called {name!r}: {', '.join(parts)}")
        print(f"{name}:\n{HEADER}\n|---|---|---|---|---|---|---|---|---|")
        for line in parts[name](given.times, given.entries):
            print(line, flush=True)


if __name__ == "__main__":
    main()
