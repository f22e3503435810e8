"""What the linearizable mode costs: `python -m tests.benchmarks.linearizable`.

Three nodes on this machine, one client, one thread; the two modes take turns, so that what disturbs the machine hits
both.  Prints medians over the rounds, and their ratio.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from dcache.testing import LocalCluster

ROUNDS, CALLS, BATCH = 9, 300, 100
VALUE = "x" * 100


def microseconds(work: Callable[[], object], calls: int) -> float:
    """Per call."""
    begun = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - begun) / calls * 1e6


def main() -> None:
    with LocalCluster(3) as cluster, cluster.client(timeout=5.0) as quorums:
        linearizable = quorums.with_options(consistency="linearizable")
        batch = {f"key{number}": VALUE for number in range(BATCH)}
        works = {
            "set": (lambda cache: cache.set("key", VALUE), CALLS),
            "get": (lambda cache: cache.get("key"), CALLS),
            "delete": (lambda cache: cache.delete("key"), CALLS),
            f"set_many of {BATCH}": (lambda cache: cache.set_many(batch), CALLS // 10),
        }
        print(f"{'':16}{'quorums':>12}{'linearizable':>14}{'ratio':>8}   (microseconds per call)")
        for name, (work, calls) in works.items():
            taken: dict[str, list[float]] = {"quorums": [], "linearizable": []}
            for _ in range(ROUNDS):
                taken["quorums"].append(microseconds(lambda: work(quorums), calls))  # noqa: B023
                taken["linearizable"].append(microseconds(lambda: work(linearizable), calls))  # noqa: B023
            plain, twice = median(taken["quorums"]), median(taken["linearizable"])
            print(f"{name:16}{plain:12.0f}{twice:14.0f}{twice / plain:8.2f}")


if __name__ == "__main__":
    main()
