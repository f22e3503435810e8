"""What completing and repair take: seconds, CPU, bytes, and how long they keep requests waiting.

    python -m tests.benchmarks.repair [--entries 1000000] [--differing 100]

All nodes run in this one process, on one event loop, so that the CPU is that of all together and a pause of any of them
delays all.  The bytes are those that the nodes' servers received and sent.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dcache.agent.completing import Completing
from dcache.agent.repair import Repair
from dcache.drivers.aio import AsyncDriver
from dcache.drivers.driver import Books, Settings
from dcache.membership import Member, MemberTable, RingState
from dcache.membership import Settings as ClusterSettings
from dcache.node.server import Connection, Server
from dcache.node.service import Identity, Service, View
from dcache.node.store import Store
from dcache.ops.backoff import Backoff
from dcache.ops.effects import Op
from dcache.ops.listing import Pace
from dcache.ops.topology import Topology
from dcache.record import make_version
from dcache.ring import SLOTS, slot_of

VALUE = bytes(100)
RATE = 32 << 20
MEMORY = 4 << 30


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


class Node:
    """A store behind a server, and what completes and repairs it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.table: MemberTable | None = None
        self.leftover: set[int] = set()
        self.regained: set[int] = set()
        self.empty()

    def empty(self) -> None:
        self.store = Store(MEMORY, slot_of, SLOTS)
        self.service = Service(self.store, Identity(self.name, "1"), monotonic_ms, wall_ms)

    async def start(self) -> None:
        self.server = Server(self.service, time.monotonic)
        self.me = Member(self.name, f"127.0.0.1:{await self.server.start('127.0.0.1', 0)}")

    def learn(self, table: MemberTable) -> None:
        self.table = table
        self.store.own(table.slots_of(self.name))
        self.service.view = View("benchmark", table.fingerprint, table.to_wire())
        topology = Topology([self.me.address], random.random)
        topology.table = table
        settings = Settings(time.monotonic, wall_ms, 1.0, skew=None, push=False)
        self.driver = AsyncDriver(Books(topology, Backoff(random.random), settings), asyncio.get_running_loop())
        pace = Pace(RATE)
        self.completing = Completing(self, self.service, monotonic_ms, random.random, pace)
        self.repair = Repair(self, self.service, monotonic_ms, random.random, pace, interval=3600.0)

    def run(self, op: Op[None]) -> asyncio.Future[None]:
        return asyncio.ensure_future(self.driver.run(op, None, 5.0))

    def fill(self, entries: int) -> None:
        for n in range(entries):
            self.store.set(b"\0key:%08d" % n, make_version(1_700_000_000_000 + n, 0, 0), VALUE, 0, None, 0)


class Pauses:
    """How long others wait for their turn: the CPU time between two turns of a task that always wants one."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self._task = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while True:
            begun = time.process_time()
            await asyncio.sleep(0)
            self.seen.append(1000 * (time.process_time() - begun))

    def stop(self) -> str:
        self._task.cancel()
        busy = sorted(pause for pause in self.seen if pause > 0.2)
        return f"p99 of turns {busy[int(len(busy) * 0.99)]:.1f} ms, longest {busy[-1]:.1f} ms"


async def cluster(names: str, entries: int) -> list[Node]:
    nodes = [Node(name) for name in names]
    for node in nodes:
        await node.start()
    rows = {node.name: node.me for node in nodes}
    state = RingState(1, tuple(row.placed() for row in rows.values()))
    table = MemberTable(ClusterSettings("benchmark"), state, rows)
    for node in nodes:
        node.learn(table)
        node.fill(entries)
        node.store.complete(range(SLOTS))
    gc.freeze()
    return nodes


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(600):
        while not condition():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)


async def refill(entries: int) -> None:
    """One of three nodes lost everything."""
    nodes = await cluster("abc", entries)
    lost = nodes[0]
    await lost.server.stop(0.1)
    lost.empty()
    await lost.start()
    gc.freeze()  # as a node does when it starts
    table = nodes[1].table
    assert table is not None
    rows = {**table.members, lost.name: lost.me}
    state = RingState(2, table.ring_state.members)
    for node in nodes:
        node.learn(MemberTable(table.settings, state, rows))
    pauses, begun, cpu = Pauses(), time.monotonic(), time.process_time()
    task = lost.run(lost.completing.run())
    await until(lambda: lost.store.all_complete)
    print(f"one of three nodes takes {len(lost.store):,} entries, {lost.completing.progress.bytes:,} bytes, again")
    print(f"  {time.monotonic() - begun:.1f} s, CPU {time.process_time() - cpu:.1f} s, {pauses.stop()}")
    task.cancel()


async def differ(entries: int, differing: int) -> None:
    """Two nodes that differ in some keys, half of them newer here, half there."""
    nodes = await cluster("ab", entries)
    keys = random.Random(1).sample(range(entries), differing)
    for at, n in enumerate(keys):
        key, version = b"\0key:%08d" % n, make_version(1_800_000_000_000 + n, 0, 0)
        nodes[at % 2].store.set(key, version, VALUE, 0, None, monotonic_ms())
    counted = count_traffic()
    pauses, begun, cpu = Pauses(), time.monotonic(), time.process_time()
    for node in nodes:
        node.repair.ask()
        node.run(node.repair.run())
    await until(lambda: all(node.repair.progress.rounds for node in nodes))
    every = range(SLOTS)
    agree = nodes[0].store.digests_of(every) == nodes[1].store.digests_of(every)
    print(f"two nodes of {entries:,} entries that differ in {differing} {'agree' if agree else 'DO NOT AGREE'}")
    print(f"  {time.monotonic() - begun:.1f} s, CPU {time.process_time() - cpu:.1f} s, {pauses.stop()}")
    print(f"  {sum(counted.values()):,} bytes: {counted}")


def count_traffic() -> dict[str, int]:
    """From now on, the bytes that servers receive and send."""
    counted = {"received": 0, "sent": 0}
    receive, made = Connection.data_received, Connection.connection_made

    def data_received(self: Connection, data: bytes) -> None:
        counted["received"] += len(data)
        receive(self, data)

    def connection_made(self: Connection, transport: asyncio.Transport) -> None:
        write = transport.write

        class Counting:
            def __getattr__(self, name: str) -> object:
                return getattr(transport, name)

            def write(self, data: bytes) -> None:
                counted["sent"] += len(data)
                write(data)

        made(self, Counting())  # type: ignore[arg-type]

    Connection.data_received = data_received  # type: ignore[method-assign]
    Connection.connection_made = connection_made  # type: ignore[method-assign, assignment]
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--differing", type=int, default=100)
    arguments = parser.parse_args()
    asyncio.run(refill(arguments.entries))
    asyncio.run(differ(arguments.entries, arguments.differing))


if __name__ == "__main__":
    main()
