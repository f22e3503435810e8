"""Nodes and clients of dcache on simulated machines: the programs that real ones run, put onto a `Simulation`.

with Simulation(seed=7) as sim:
    cluster = Cluster(sim, nodes=3)
    cluster.wait_ready()
    client = cluster.client("web1")

    async def work() -> str:
        await client.cache.set("greeting", "hello")
        return await client.cache.get("greeting")

    assert client.run(work()) == "hello"
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar
from unittest import mock

import attrs

from dcache import ring
from dcache.agent import repair
from dcache.agent.agent import Agent
from dcache.cli import node as program
from dcache.cli.node import Node, serve
from dcache.cli.settings import NodeSettings
from dcache.client.aio import AsyncClient
from dcache.client.async_engine import AsyncEngine
from dcache.client.session import Configuration, Session, View
from dcache.membership import MemberTable
from dcache.node.store import Store
from dcache.ops import listing, verify
from dcache.testing.sim.simulation import Clock, Host, Process, Simulation
from dcache.wire import DEFAULT_PORT

T = TypeVar("T")
LATER = ("n2:7400", "n3:7400", "n4:7400", "n5:7400")
"""Whom clients and newcomers are sent to beside the founders, who may all have left."""


class SimulatedClient(AsyncClient):
    """An `AsyncClient` with the clocks and the randomness of a simulated process."""

    def __init__(self, nodes: list[str], process: Process, **settings: Any) -> None:
        configuration = Configuration(**settings)
        session = Session(nodes, configuration, process.machine)
        View.__init__(self, session, configuration)
        self.engine = AsyncEngine(session)


class ClientHost:
    """A program that uses the cache: `cache` is its client, `run` has it do something."""

    def __init__(self, host: Host, seeds: list[str], settings: dict[str, Any]) -> None:
        self.host, self._seeds, self._settings = host, seeds, settings
        self.start()

    def start(self) -> None:
        """A new process with a new client."""
        self.process = self.host.start(_idle)
        self.cache = SimulatedClient(self._seeds, self.process, **self._settings)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return self.process.spawn(coroutine)

    def run(self, coroutine: Coroutine[Any, Any, T], within: float = 60.0) -> T:
        """The result of a coroutine, run while so many virtual seconds pass."""
        task = self.spawn(coroutine)
        if not self.host.simulation.run_until(task.done, within):
            raise TimeoutError(f"not done within {within} virtual seconds")
        return task.result()


async def _idle(process: Process) -> None:
    await process.loop.create_future()


class NodeHost:
    """A node: its host, its settings, and while it runs its `Node`."""

    def __init__(self, host: Host, settings: NodeSettings) -> None:
        self.host, self.settings = host, settings
        self.name = host.name
        self.node: Node | None = None  # once its process has begun
        self.starts: list[int] = []  # when, in microseconds

    def start(self, join: Sequence[str] = ()) -> None:
        """A new process, empty, which is sent to these from now on."""
        if join:
            self.settings = attrs.evolve(self.settings, join=tuple(join))
        self.node = None
        self.starts.append(self.host.simulation.now_us)
        self.host.start(self._main)

    async def _main(self, process: Process) -> int:
        self.node = Node(self.settings, process.machine)
        return await serve(self.node)

    @property
    def running(self) -> bool:
        return self.host.running

    @property
    def ended(self) -> bool:
        """Whether its process has ended by itself: it has left, or could not join."""
        process = self.host.process
        return process is not None and process.done

    @property
    def gave_up(self) -> bool:
        """Whether its process has ended because it could not be of its cluster any more, or of none."""
        process = self.host.process
        return process is not None and process.done and process.result() != 0

    @property
    def waits_in_vain(self) -> bool:
        """Whether it is of no cluster yet, and nobody is there of those that it was sent to."""
        hosts = self.host.simulation.hosts
        sent_to = {address.rpartition(":")[0] for address in self.settings.join} - {self.name}
        there = [name for name in sent_to if name in hosts and hosts[name].running]
        return self.running and self.table is None and bool(sent_to) and not there

    @property
    def paused(self) -> bool:
        process = self.host.process
        return process is not None and process.alive and process.paused

    @property
    def store(self) -> Store:
        assert self.node is not None, "it has not begun yet"
        return self.node.store

    @property
    def agent(self) -> Agent | None:
        """None until it listens."""
        membership = getattr(self.node, "membership", None)
        return None if membership is None else membership.agent

    @property
    def table(self) -> MemberTable | None:
        return None if self.agent is None else self.agent.table

    @property
    def epoch(self) -> int:
        """Of the ring state that it knows; 0 while it knows none."""
        return 0 if self.table is None else self.table.ring_state.epoch


class Cluster:
    """A cluster of `nodes` nodes, named n1, n2...; `settings` are those of `dcache-node`.

    `clocks` gives each host its clock, by name.
    """

    def __init__(
        self, simulation: Simulation, nodes: int = 3, clocks: Callable[[str], Clock] | None = None, **settings: Any
    ) -> None:
        self.simulation = simulation
        self.nodes: dict[str, NodeHost] = {}
        self.clients: dict[str, ClientHost] = {}
        self._clock = clocks or (lambda name: Clock())
        self._settings = settings
        founders = [f"n{number}" for number in range(1, nodes + 1)]
        self._seeds = [f"{name}:{DEFAULT_PORT}" for name in founders]
        for name in founders:
            self._new(name, expect=nodes).start()

    def _new(self, name: str, expect: int = 1, join: Sequence[str] = ()) -> NodeHost:
        settings = NodeSettings(host=name, name=name, join=tuple(join or self._seeds), expect=expect, **self._settings)
        node = self.nodes[name] = NodeHost(self.simulation.host(name, self._clock(name)), settings)
        return node

    def add(self) -> NodeHost:
        """One more node, started to join the others."""
        node = self._new(f"n{len(self.nodes) + 1}", join=list(dict.fromkeys((*self._seeds, *LATER))))
        node.start()
        return node

    def readmit(self, node: NodeHost) -> None:
        """Start a node again that has left, to join the others: sent to nobody, it would begin a cluster of its own."""
        node.start([f"{other}:{DEFAULT_PORT}" for other in self.nodes])

    def client(self, name: str, **settings: Any) -> ClientHost:
        """A program with a client, on a host of its own."""
        client = self.clients[name] = ClientHost(
            self.simulation.host(name, self._clock(name)), list(dict.fromkeys((*self._seeds, *LATER))), settings
        )
        return client

    def running(self) -> list[NodeHost]:
        return [node for node in self.nodes.values() if node.running]

    def newest_names(self) -> frozenset[str]:
        """Who is on the newest ring that anybody who runs knows of."""
        tables = [node.table for node in self.running() if node.table is not None]
        newest = max(tables, key=lambda table: table.ring_state.epoch, default=None)
        return frozenset(self.nodes) if newest is None else frozenset(newest.ring_state.names)

    def in_order(self) -> bool:
        return not self.disorder()

    def disorder(self) -> str:
        """What is not yet as it should be when nothing is wrong; empty if nothing."""
        running = self.running()
        tables = [node.table for node in running]
        known = [table for table in tables if table is not None]
        if len(known) < len(running) or len({table.digest for table in known}) != 1:
            return f"tables differ: {[table and (table.ring_state.epoch, sorted(table.down)) for table in tables]}"
        state = known[0].ring_state
        if state.next is not None:
            return f"a change goes on: {sorted(state.names)}"
        lacking = [node.name for node in running if node.node is None or not node.store.all_complete]
        return f"not complete: {lacking}" if lacking else ""

    def wait_ready(self, seconds: float = 60.0) -> None:
        """Until all that run agree and are complete."""
        if not self.simulation.run_until(self.in_order, seconds, every=0.1):
            raise TimeoutError(self.disorder())


@contextmanager
def few_slots(bits: int = 7) -> Iterator[None]:
    """Rings of 128 slots instead of 16,384 while it lasts, for all clusters of this process: what a node does slot by
    slot then takes a moment instead of a second."""
    slots = 1 << bits
    with ExitStack() as stack:
        for module, name, value in (
            (ring, "_SHIFT", 32 - bits),
            (listing, "BLOCKS", slots // listing.BLOCK),
            *((module, "SLOTS", slots) for module in (ring, listing, repair, verify, program)),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield
