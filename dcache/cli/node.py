"""`dcache-node`: the place where a node and its agent are put together and run.

Says one line on standard output when it is ready to serve; all else is logged.  SIGTERM and SIGINT stop it in good
order: it accepts no more, answers what has arrived, and exits 0.  SIGUSR1 dumps the stacks of all threads to standard
error.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import importlib.util
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dcache.agent.agent import Agent, CannotJoin, Terms
from dcache.agent.formation import form
from dcache.agent.gossip import gossip
from dcache.cli import logs
from dcache.cli.settings import NodeSettings, load
from dcache.drivers.aio import AsyncDriver
from dcache.drivers.driver import Books, Settings
from dcache.membership import Member, MemberTable, format_address
from dcache.node.promises import Promises
from dcache.node.server import Server, ServerLimits
from dcache.node.service import Identity, Service, View
from dcache.node.store import Store
from dcache.ops.backoff import Backoff
from dcache.ops.topology import Topology
from dcache.record import VersionClock
from dcache.ring import SLOTS, slot_of
from dcache.wire import Limits

log = logging.getLogger("dcache.node")

STOP_WITHIN = 4.0  # seconds to answer what has arrived
PEER_TIMEOUT = 1.0


class Node:
    """A store, its service and server, and the agent that makes them a member."""

    def __init__(self, settings: NodeSettings) -> None:
        self.settings = settings
        self.boot_id = os.urandom(8).hex()
        promises = Promises(65_536, 60_000, 250)
        seed = settings.ring_seed
        self.store = Store(
            settings.memory_limit,
            lambda key: slot_of(key, seed),
            SLOTS,
            max_entries=settings.max_entries,
            promises=promises,
        )
        limits = ServerLimits(max_connections=settings.max_connections, idle_timeout=settings.idle_timeout)
        self._server_limits = limits

    async def start(self) -> None:
        """Listen, and begin to look for a cluster."""
        settings = self.settings
        identity = Identity(settings.name, self.boot_id, package_version())
        service = Service(
            self.store,
            identity,
            monotonic_ms,
            wall_ms,
            limits=Limits(max_value=settings.max_value),
            skew=int(settings.clock_skew * 1000),
        )
        self.service = service
        self.server = Server(service, time.monotonic, self._server_limits)
        port = await self.server.start(settings.host, settings.port)
        self.address = settings.advertise or format_address(settings.host, port)
        name = settings.name or self.address
        service.identity = Identity(name, self.boot_id, identity.version)
        me = Member(name, self.address, settings.zone, settings.weight, self.boot_id, incarnation=wall_ms())
        terms = Terms(settings.replicas, settings.vnodes, settings.ring_seed, settings.expect)
        self.agent = Agent(me, terms, self._publish, self._complete)
        service.methods.update(self.agent.methods())
        self.topology = Topology([self.address, *settings.join], random.random)
        books = Books(
            self.topology, Backoff(random.random), Settings(time.monotonic, wall_ms, 1.0, skew=None, push=False)
        )
        self.driver = AsyncDriver(books, asyncio.get_running_loop())
        log.info("%s listens on %s", name, format_address(settings.host, port))

    async def live(self) -> None:
        """Become a member, say so, then stay one.  `CannotJoin`."""
        clock = VersionClock(int.from_bytes(os.urandom(4), "big"), wall_ms)
        peers = [peer for peer in self.settings.join if peer != self.address]
        forming = form(self.agent, peers, os.urandom(8).hex(), clock.stamp)
        await self.driver.run(forming, None, PEER_TIMEOUT)
        table = self.agent.table
        assert table is not None
        print(
            f"dcache-node {self.agent.me.name} is ready at {self.address} "
            f"(cluster {table.settings.cluster_id}, members {len(table.members)})",
            flush=True,
        )
        await self.driver.run(gossip(self.agent, random.random), None, PEER_TIMEOUT)

    async def stop(self) -> None:
        await self.driver.close()
        await self.server.stop(STOP_WITHIN)

    def _publish(self, table: MemberTable) -> None:
        wire = table.to_wire()
        self.service.view = View(table.settings.cluster_id, table.fingerprint, wire)
        self.topology.table = table
        self.server.push("table", (wire,))

    def _complete(self) -> None:
        self.store.complete(range(SLOTS))


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def package_version() -> str:
    try:
        return version("dcache-py")
    except PackageNotFoundError:  # running from a source tree
        return "unknown"


async def serve(settings: NodeSettings) -> int:
    """Run a node until it is told to stop; the exit status."""
    node = Node(settings)
    try:
        await node.start()
    except OSError as error:
        log.error("cannot listen on %s: %s", format_address(settings.host, settings.port), error)
        return 1
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    gc.freeze()  # what is there now stays; collections need not look at it
    living = asyncio.ensure_future(node.live())
    told = asyncio.ensure_future(stopping.wait())
    await asyncio.wait((living, told), return_when=asyncio.FIRST_COMPLETED)
    status = _end_of(living)
    for task in (living, told):
        task.cancel()
    await asyncio.gather(living, told, return_exceptions=True)
    await node.stop()
    log.info("stopped")
    return status


def _end_of(living: asyncio.Future[None]) -> int:
    """0 if the node was told to stop, 1 if it could not go on."""
    if not living.done():
        return 0
    error = living.exception()
    if isinstance(error, CannotJoin):
        log.error("%s", error)
    else:
        log.error("the node's agent ended", exc_info=error)
    return 1


def run(main: Coroutine[Any, Any, int]) -> int:
    """Run on uvloop where it is installed."""
    if importlib.util.find_spec("uvloop") is not None:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)
    return asyncio.run(main)


def main(argv: Sequence[str] | None = None) -> None:
    settings = load(sys.argv[1:] if argv is None else argv)
    logs.configure(settings.log_level, settings.log_format)
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)
    sys.exit(run(serve(settings)))


if __name__ == "__main__":
    main()
