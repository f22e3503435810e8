"""Nodes in network namespaces of their own, with a network between them that can really fail.

    hub (the clients)  10.77.0.1 -- bridge --+-- 10.77.0.10  node 0
                                             +-- 10.77.0.11  node 1 ...

The hub is a namespace too, which the thread that makes the cluster enters, and with it all threads and processes that
it starts; outside of these namespaces nothing is touched.  This takes Linux, root and the programs `ip` and `tc`;
`why_not` says what is missing.  Faults need nothing but what every kernel has that has `tc`, except those of `NETEM`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dcache.testing.cluster import NodeProcess
from tests.chaos.ground import ChaosCluster

NETWORK = "10.77.0"
PORT = 7400
HUB = f"{NETWORK}.1"
CLONE_NEWNET = 0x40000000

NOTHING = "tbf rate 8bit burst 1 limit 1"
"""A queue that is too short for any packet, so that it drops all."""

NARROW = "tbf rate 400kbit burst 4000 latency 300ms"
"""A line so thin that packets queue, and are lost when the queue is full."""

NOWHERE = "02:00:00:00:00:01"
"""A hardware address that nobody has."""

NETEM = {"lossy": "netem loss 20%", "late": "netem delay 100ms 60ms"}
"""Faults that need the kernel's network emulator."""


def ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")


def why_not() -> str:
    """What keeps this machine from having such networks; nothing if it can."""
    missing = [program for program in ("ip", "tc") if shutil.which(program) is None]
    if missing or os.geteuid() != 0:
        return f"no network namespaces here: {' and '.join(missing) or 'root'} is needed"
    try:
        with namespaces() as network:
            network.attach(0)
    except OSError as error:
        return f"no network namespaces here: {error}"
    return ""


def netem_kinds() -> tuple[str, ...]:
    """Those of `NETEM` that this kernel can do: all or none."""
    with namespaces() as network:
        network.attach(0)
        try:
            network.queue(0, "in", "netem loss 1%")
        except OSError:
            return ()
    return tuple(NETEM)


class Network:
    """A hub and, by number, the namespaces of nodes."""

    def __init__(self) -> None:
        self.prefix = f"dcache-{os.getpid()}"
        self.hub = f"{self.prefix}-hub"
        self._made: list[str] = []

    def begin(self) -> None:
        self._add(self.hub)
        ip("-n", self.hub, "link", "add", "br0", "type", "bridge")
        ip("-n", self.hub, "addr", "add", f"{HUB}/24", "dev", "br0")
        for device in ("lo", "br0"):
            ip("-n", self.hub, "link", "set", device, "up")

    def close(self) -> None:
        for name in self._made:
            with contextlib.suppress(OSError):
                ip("netns", "del", name)
        self._made.clear()

    def _add(self, name: str) -> None:
        ip("netns", "add", name)
        self._made.append(name)

    def namespace(self, number: int) -> str:
        return f"{self.prefix}-{number}"

    def address(self, number: int) -> str:
        return f"{NETWORK}.{10 + number}"

    def attach(self, number: int) -> None:
        """Make the namespace of a node and plug it in."""
        inner = self.namespace(number)
        self._add(inner)
        device = self._device(number)
        ip("link", "add", device, "netns", self.hub, "type", "veth", "peer", "name", "eth0", "netns", inner)
        ip("-n", self.hub, "link", "set", device, "master", "br0", "up")
        ip("-n", inner, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
        for name in ("lo", "eth0"):
            ip("-n", inner, "link", "set", name, "up")

    def _device(self, number: int) -> str:
        return f"node{number}"

    # -- faults -------------------------------------------------------------------------------------------------------

    def plug(self, number: int, state: str) -> None:
        """Plug a node's cable in ("up") or pull it ("down")."""
        ip("-n", self.hub, "link", "set", self._device(number), state)

    def queue(self, number: int, way: str, discipline: str) -> None:
        """What packets go through on their way "in" to a node or "out" of it."""
        _run("tc", "-n", *self._end(number, way), *discipline.split())

    def _end(self, number: int, way: str, verb: str = "replace") -> list[str]:
        at, device = (self.hub, self._device(number)) if way == "in" else (self.namespace(number), "eth0")
        return [at, "qdisc", verb, "dev", device, "root"]

    def lead_astray(self, number: int, other: int) -> None:
        """Let nothing that a node sends arrive at one other."""
        words = (self.address(other), "lladdr", NOWHERE, "dev", "eth0", "nud", "permanent")
        ip("-n", self.namespace(number), "neigh", "replace", *words)

    def mend(self, number: int, others: int) -> None:
        """End all faults of a node."""
        for way in ("in", "out"):
            with contextlib.suppress(OSError):  # there is none
                _run("tc", "-n", *self._end(number, way, "del"))
        for other in range(others):
            with contextlib.suppress(OSError):  # as above
                ip("-n", self.namespace(number), "neigh", "del", self.address(other), "dev", "eth0")
        self.plug(number, "up")


@contextlib.contextmanager
def namespaces() -> Iterator[Network]:
    """A network that is gone afterwards, whatever happens."""
    network = Network()
    try:
        network.begin()
        yield network
    finally:
        network.close()


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Have this thread, and the threads and processes that it starts meanwhile, in a network namespace."""
    with Path("/proc/thread-self/ns/net").open() as before:
        with Path(f"/run/netns/{namespace}").open() as there:
            _enter(there.fileno())
        try:
            yield
        finally:
            _enter(before.fileno())


def _enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class NamespacedCluster(ChaosCluster):
    """Each node runs in a namespace of its own; to be made and used `inside` the hub of `network`."""

    kinds = ("unplugged", "deaf", "mute", "narrow", "astray")

    def __init__(self, network: Network, nodes: int, **options: Any) -> None:
        self.network = network
        self._numbers: dict[str, int] = {}  # by the address that `LocalCluster` would have used
        super().__init__(nodes, **options)

    def way_to(self, address: str) -> str:
        if address.startswith(NETWORK):
            return address
        number = self._numbers.setdefault(address, len(self._numbers))
        return f"{self.network.address(number)}:{PORT}"

    def _make(self, address: str, options: dict[str, Any]) -> NodeProcess:
        address = self.way_to(address)
        host = address.rpartition(":")[0]
        node = super()._make(address, {**options, "host": host})
        self.network.attach(node.index)
        node.command = ["ip", "netns", "exec", self.network.namespace(node.index), *node.command]
        return node

    def fault(self, index: int, kind: str, rng: random.Random) -> None:
        network = self.network
        if kind == "unplugged":
            network.plug(index, "down")
        elif kind == "deaf":
            network.queue(index, "in", NOTHING)
        elif kind == "mute":
            network.queue(index, "out", NOTHING)
        elif kind == "astray":
            network.lead_astray(index, rng.choice([node.index for node in self.nodes if node.index != index]))
        else:
            network.queue(index, rng.choice(("in", "out")), NETEM.get(kind, NARROW))

    def mend(self, index: int) -> None:
        self.network.mend(index, len(self.nodes))
