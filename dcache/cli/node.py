"""`dcache-node`: the process of a node.  Store, service and server are put together here, the agent in `member`.

Says one line on standard output when it is ready; all else is logged.  SIGTERM and SIGINT stop it in good order: it
accepts no more, answers what has arrived, and exits 0.  With `--leave`, SIGTERM makes it leave the cluster first, and a
second one stops it at once.  SIGUSR1 dumps the stacks of all threads to standard error.
"""

from __future__ import annotations

import asyncio
import faulthandler
import functools
import gc
import importlib.util
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dcache.agent.terms import CannotJoin
from dcache.cli import logs
from dcache.cli.member import Membership, first_of
from dcache.cli.settings import NodeSettings, load
from dcache.drivers.machine import THIS_MACHINE, Machine
from dcache.membership import Member, MemberTable, format_address
from dcache.node.promises import Promises
from dcache.node.server import Server, ServerLimits
from dcache.node.service import Identity, Service
from dcache.node.store import Store
from dcache.ring import SLOTS, slot_of
from dcache.wire import Limits

log = logging.getLogger("dcache.node")

STOP_WITHIN = 4.0  # seconds to answer what has arrived
LEAVE_WITHIN = 60.0  # seconds until a node that cannot leave stops all the same


class Node:
    """A store, its service and server, and the membership that makes them one of a cluster.

    `ready(me, table)` is called once, when the node is on the ring.
    """

    def __init__(
        self,
        settings: NodeSettings,
        machine: Machine = THIS_MACHINE,
        ready: Callable[[Member, MemberTable], None] = lambda me, table: None,
    ) -> None:
        self.settings, self._machine, self._ready = settings, machine, ready
        seed = settings.ring_seed
        self.store = Store(
            settings.memory_limit,
            functools.partial(slot_of, seed=seed),
            SLOTS,
            max_entries=settings.max_entries,
            promises=Promises(65_536, 60_000, 250),
        )

    async def start(self) -> None:
        """Listen; `OSError` if that cannot be."""
        settings, machine = self.settings, self._machine
        boot_id = machine.new_id()
        service = Service(
            self.store,
            Identity(settings.name, boot_id, package_version()),
            machine.milliseconds,
            machine.wall,
            limits=Limits(max_value=settings.max_value),
            skew=int(settings.clock_skew * 1000),
        )
        limits = ServerLimits(max_connections=settings.max_connections, idle_timeout=settings.idle_timeout)
        self.server = Server(service, machine.monotonic, limits)
        port = await self.server.start(settings.host, settings.port)
        address = settings.advertise or format_address(settings.host, port)
        name = settings.name or address
        service.identity = Identity(name, boot_id, package_version())
        me = Member(name, address, settings.zone, settings.weight, boot_id, incarnation=machine.wall())
        self.membership = Membership(settings, me, service, self.server.push, self._is_ready, machine)
        log.info("%s listens on %s", name, format_address(settings.host, port))

    async def stop(self) -> None:
        await self.membership.close()
        await self.server.stop(STOP_WITHIN)

    def _is_ready(self, table: MemberTable) -> None:
        self._ready(self.membership.agent.me, table)


def say_ready(me: Member, table: MemberTable) -> None:
    about = f"cluster {table.settings.cluster_id}, members {len(table.members)}"
    print(f"dcache-node {me.name} is ready at {me.address} ({about})", flush=True)


def package_version() -> str:
    try:
        return version("dcache-py")
    except PackageNotFoundError:  # running from a source tree
        return "unknown"


class Told:
    """What the process was told by signals: to leave, to stop."""

    def __init__(self, leave: bool) -> None:
        self._leave = leave
        self.leave, self.stop = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._terminate)
        loop.add_signal_handler(signal.SIGINT, self.stop.set)

    def _terminate(self) -> None:
        if not self._leave or self.leave.is_set():
            self.stop.set()
        self.leave.set()


async def serve(node: Node) -> int:
    """Run a node until it is told to stop, or has left its cluster; the exit status."""
    settings = node.settings
    try:
        await node.start()
    except OSError as error:
        log.error("cannot listen on %s: %s", format_address(settings.host, settings.port), error)
        return 1
    told = Told(settings.leave)
    living = asyncio.ensure_future(node.membership.live())
    stopped = asyncio.ensure_future(_until_stopped(node.membership, told))
    await asyncio.wait((living, stopped), return_when=asyncio.FIRST_COMPLETED)
    status = _end_of(living)
    for task in (living, stopped):
        task.cancel()
    await asyncio.gather(living, stopped, return_exceptions=True)
    await node.stop()
    log.info("stopped")
    return status


async def _until_stopped(membership: Membership, told: Told) -> None:
    """Until the process is to stop: if it is to leave first, once it has left, or it takes too long."""
    await first_of(told.leave.wait(), told.stop.wait())
    if told.stop.is_set():
        return
    log.info("leaving the cluster before stopping; SIGTERM again to stop at once")
    try:
        async with asyncio.timeout(LEAVE_WITHIN):
            await first_of(membership.leave(), told.stop.wait())
    except TimeoutError:
        log.warning("this node could not leave within %.0f s: stopping all the same", LEAVE_WITHIN)


def _end_of(living: asyncio.Future[None]) -> int:
    """0 if the node was told to stop or has left, 1 if it could not go on."""
    error = living.exception() if living.done() else None
    if error is None:
        return 0
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
    node = Node(settings, ready=say_ready)
    gc.freeze()  # what is there now stays; collections need not look at it
    sys.exit(run(serve(node)))


if __name__ == "__main__":
    main()
