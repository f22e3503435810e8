"""A node's agent at work: what makes its process a member and keeps it one, as operations side by side.

Forming or joining first; then all at once, until one of them ends: the failure detector, the steward of ring changes,
completing, repair.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from dcache.agent.agent import Agent, Terms
from dcache.agent.changes import Steward, join, leave, recall
from dcache.agent.completing import Completing
from dcache.agent.detector import Detector
from dcache.agent.formation import form
from dcache.agent.repair import Repair
from dcache.cli.settings import NodeSettings
from dcache.drivers.aio import AsyncDriver
from dcache.drivers.driver import Books, Settings
from dcache.drivers.machine import Machine
from dcache.membership import Member, MemberTable
from dcache.node.service import Service, View
from dcache.ops.backoff import Backoff
from dcache.ops.effects import Op
from dcache.ops.listing import Pace
from dcache.ops.topology import Topology
from dcache.record import VersionClock

log = logging.getLogger("dcache.node")

PEER_TIMEOUT = 1.0
CONNECT_TIMEOUT = 1.0
WAITS = 2  # probe intervals that a node waits to be called before it founds a cluster


class Membership:
    """Runs the agent of one node.

    `push` notifies the connected clients, with every new table; `ready` is called once, when the node is on the ring.
    """

    def __init__(
        self,
        settings: NodeSettings,
        me: Member,
        service: Service,
        push: Callable[[str, tuple[Any, ...]], None],
        ready: Callable[[MemberTable], None],
        machine: Machine,
    ) -> None:
        self._settings, self._service, self._push, self._ready = settings, service, push, ready
        self._machine, random, now = machine, machine.random, machine.milliseconds
        self._is_ready = False
        terms = Terms(settings.replicas, settings.vnodes, settings.ring_seed, settings.expect)
        self.agent = Agent(me, terms, self._publish, service.store)
        self._topology = Loyal([me.address, *settings.join], random)
        self._driver = new_driver(self._topology, machine)
        # Knows no cluster, and so talks to nodes of any.
        self._stranger = new_driver(Topology([me.address], random), machine)
        interval = settings.probe_interval
        self._detector = Detector(self.agent, interval, now, machine.wall, random)
        clock = VersionClock(machine.new_writer(), machine.wall)
        self._steward = Steward(
            self.agent,
            clock,
            machine.monotonic,
            random,
            interval=interval,
            start_over=settings.start_over_after,
        )
        self._pace = pace = Pace(settings.repair_rate)
        self._completing = Completing(self.agent, service, now, random, pace, settings.start_over_after)
        self._repair = Repair(self.agent, service, now, random, pace, settings.repair_interval)
        self.agent.behind = self._completing.behind
        for part in (self.agent, self._detector, self._completing, self._repair):
            service.methods.update(part.methods())
        for counting in (self._completing, self._repair, self):
            service.also_report(counting.statistics)

    async def live(self) -> None:
        """Until this node has left the cluster; `CannotJoin` if it cannot be of it."""
        settings, agent = self._settings, self.agent
        peers = [peer for peer in settings.join if peer != agent.me.address]
        patience = WAITS * settings.probe_interval
        await self._run(form(agent, peers, self._machine.new_id(), patience))
        await self._run(join(agent, self._machine.random, self._machine.monotonic))
        await first_of(*self._upkeep())

    def _upkeep(self) -> Iterator[Coroutine[Any, Any, None]]:
        """All that goes on for as long as this node is a member."""
        yield self._run(self._steward.work())
        yield self._run(self._detector.detect(), self._detector.timeout)
        yield self._run(self._completing.run())
        yield self._run(self._repair.run())
        recalling = recall(self.agent, self._machine.random, self._settings.probe_interval)
        yield self._stranger.run(recalling, None, PEER_TIMEOUT)

    def _run(self, operation: Op[None], timeout: float = PEER_TIMEOUT) -> Coroutine[Any, Any, None]:
        return self._driver.run(operation, None, timeout)

    async def leave(self) -> None:
        """Ask to be let go until it is so; at once if there is nothing to leave."""
        await self._run(leave(self.agent, self._machine.random))

    async def close(self) -> None:
        await self._driver.close()
        await self._stranger.close()

    def statistics(self) -> dict[str, Any]:
        """What `stats` tells of this."""
        table = self.agent.table
        state = None if table is None else table.ring_state
        return {
            "epoch": 0 if state is None else state.epoch,
            "changing": state is not None and state.next is not None,
            "voter": self.agent.register.acceptor.voter,
            "repair_bytes": self._pace.bytes,
        }

    def _publish(self, table: MemberTable) -> None:
        wire = table.to_wire()
        self._service.view = View(table.settings.cluster_id, table.fingerprint, wire, table.digest)
        self._topology.table = table
        self._push("table", (wire,))
        if not self._is_ready and self.agent.me.name in table.ring:
            self._is_ready = True
            self._ready(table)


class Loyal(Topology):
    """What a node knows of its cluster.  It stays with that for as long as its process lives, and its agent says when
    that is over: a node that left as clients do would count those that are of another cluster as there."""

    def foreign(self, node: str, cluster_id: str) -> bool:
        return False


def new_driver(topology: Topology, machine: Machine) -> AsyncDriver:
    """A driver for talking to other nodes.  It leaves none alone: what runs on it paces itself."""
    backoff = Backoff(machine.random, first=0.0, most=0.0)
    settings = Settings(machine.monotonic, machine.wall, CONNECT_TIMEOUT, skew=None, push=False)
    return AsyncDriver(Books(topology, backoff, settings), asyncio.get_running_loop())


async def first_of(*works: Coroutine[Any, Any, Any]) -> None:
    """Run all side by side until one ends, and end the others; raises what the first that failed did."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
