"""How long members take to notice that one of them died, and what watching each other costs; simulated on virtual time.

    python -m tests.benchmarks.membership [--nodes 3 10 50 500] [--seeds 5] [--interval 1.0] [--silent]

Every member runs its real failure detector over a network in memory (1 to 3 ms one way; all frames are encoded and
decoded).  After 20 idle seconds one dies: its process ends, so calls to it are refused; with `--silent` its machine is
gone, and they are not answered.  `first` and `all` are the seconds until one other has it down, and until all have, the
medians over the seeds; `most` is the worst seed.  Messages (requests and replies) and bytes are those that the average
member sends in a second.  CPU is this process's time, the simulation's own part included.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import attrs

from dcache.agent.agent import Agent, Terms
from dcache.agent.detector import Detector
from dcache.membership import Member, MemberTable, RingState, Settings
from tests.unit.agents_kit import Host, Network

IDLE = 20.0  # seconds
SETTLING = 60.0  # seconds after which a death must be known to all
HEADER = ("nodes", "first, s", "all, s", "most, s", "messages", "bytes", "CPU, ms", "messages", "bytes", "CPU, ms")


@attrs.frozen
class Cost:
    """What a member sent in a second, and the CPU time that it took."""

    messages: float
    bytes: float
    cpu: float


@attrs.frozen
class Run:
    first: float
    known: float
    idle: Cost
    during: Cost


class NoHoldings:
    """There is nothing to be held here."""

    def own(self, slots: Sequence[int]) -> None: ...

    def doubt(self) -> None: ...

    def complete(self, slots: Sequence[int]) -> None: ...


class Cluster:
    def __init__(self, nodes: int, interval: float, seed: int) -> None:
        self.net = Network(seed)
        self.net.default.delay = (1, 3)
        rows = [Member(f"node-{n:03}", f"10.0.{n >> 8}.{n & 255}:7400", boot_id=f"{n:016x}") for n in range(nodes)]
        state = RingState(1, tuple(row.placed() for row in rows))
        table = MemberTable(Settings("benchmark"), state, {row.name: row for row in rows})
        self.agents = {row.name: self._member(row, table, interval) for row in rows}

    def _member(self, row: Member, table: MemberTable, interval: float) -> tuple[Host, Agent]:
        host = self.net.host(row.name, row.address)
        agent = Agent(row, Terms(), lambda _: None, NoHoldings())
        agent.adopt(table)
        detector = Detector(agent, interval, host.now, host.wall, self.net.random.random)
        host.boot(agent.methods(), detector.methods())
        host.run(detector.detect(), detector.timeout)
        return host, agent

    def knowing(self, dead: str) -> int:
        """How many of the others have `dead` down."""
        tables = [agent.table for name, (_, agent) in self.agents.items() if name != dead]
        return sum(table is not None and dead in table.down for table in tables)

    def measured(self, seconds: float) -> Cost:
        """Go on for so long."""
        hosts = [host for host, _ in self.agents.values()]
        before = sum(host.sent for host in hosts), sum(host.bytes for host in hosts), time.process_time()
        self.net.run(seconds)
        after = sum(host.sent for host in hosts), sum(host.bytes for host in hosts), time.process_time()
        return Cost(*((new - old) / seconds / len(hosts) for new, old in zip(after, before, strict=True)))


def run(nodes: int, interval: float, seed: int, *, silent: bool) -> Run:
    cluster = Cluster(nodes, interval, seed)
    cluster.net.run(5 * interval)  # until all agree
    idle = cluster.measured(IDLE)
    dead, (host, _) = cluster.net.random.choice(list(cluster.agents.items()))
    host.crash(silent=silent)
    first, known, costs = 0.0, 0.0, []
    while cluster.knowing(dead) < nodes - 1:
        costs.append(cluster.measured(0.1))
        known += 0.1
        if not cluster.knowing(dead):
            first = known
        if known > SETTLING * interval:
            raise SystemExit(f"not all know of a death after {known:.0f} s (seed {seed})")
    during = Cost(*(statistics.fmean(values) for values in zip(*map(attrs.astuple, costs), strict=True)))
    return Run(first, known, idle, during)


def line(nodes: int, runs: list[Run]) -> str:
    def of(cost: str) -> list[float]:
        costs = [getattr(run, cost) for run in runs]
        return [statistics.median(values) for values in zip(*map(attrs.astuple, costs), strict=True)]

    first, known = (statistics.median(getattr(run, name) for run in runs) for name in ("first", "known"))
    idle, during = of("idle"), of("during")
    cells = (first, known, max(run.known for run in runs), idle[0], idle[1], idle[2] * 1e3)
    return f"{nodes:>8}" + "".join(
        f"{cell:>10.{digits}f}"
        for cell, digits in zip(
            (*cells, during[0], during[1], during[2] * 1e3), (1, 1, 1, 1, 0, 2, 1, 0, 2), strict=True
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="detection, convergence and cost of membership, simulated")
    parser.add_argument("--nodes", type=int, nargs="+", default=[3, 10, 50, 500])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--interval", type=float, default=1.0)
    parser.add_argument("--silent", action="store_true")
    args = parser.parse_args()
    logging.disable()
    # Setting up takes longer than all the rest if every member works out its slots; none is asked for here.
    MemberTable.slots_of = lambda table, name: []  # type: ignore[method-assign]
    sys.stdout.write(f"{'death is known to':>38}{'idle, per node and second':>30}{'until all know':>30}\n")
    sys.stdout.write("".join(f"{title:>{8 if title == 'nodes' else 10}}" for title in HEADER) + "\n")
    for nodes in args.nodes:
        runs = [run(nodes, args.interval, seed, silent=args.silent) for seed in range(args.seeds)]
        sys.stdout.write(line(nodes, runs) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
