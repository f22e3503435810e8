"""The clusters that trouble is made for: real nodes, with something on the way to them that can fail."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dcache import AsyncClient, Client
from dcache.client.session import View
from dcache.ops import cluster as operations
from dcache.ops.cluster import Holding
from dcache.ops.quorum import majority
from dcache.testing import FaultProxy, LocalCluster
from dcache.testing.cluster import HOST, NodeProcess, asked, free_port, wait_for

FAULTS: dict[str, Callable[[FaultProxy, random.Random], None]] = {
    "unheard": lambda proxy, rng: proxy.hold("down"),
    "deaf": lambda proxy, rng: proxy.hold("up"),
    "lost": lambda proxy, rng: proxy.hold("up"),
    "slow": lambda proxy, rng: proxy.delay(rng.uniform(0.01, 0.4), rng.choice(("both", "up", "down"))),
    "cut": lambda proxy, rng: cut(proxy),
    "reset": lambda proxy, rng: proxy.cut(),
}
"""What may happen on the way to a node and back: nothing arrives from it, or at it, and it comes late when the fault
ends; nothing arrives at it, and never does; what arrives is late; it cannot be connected to; its connections are reset
once.  Those that lose something make replicas that differ."""

LOSING = frozenset({"lost"})
"""Faults that end in resets, so that what was kept back is lost."""

OPTIONS: dict[str, Any] = {"start_over_after": 3, "repair_interval": 3600, "probe_interval": 0.5}
"""So that little takes longer than a short run, and a busy machine is not all that the nodes notice.  Replicas that
differ are compared at the end only: meanwhile the promise has to hold without that."""

PATIENCE = 90.0
"""Seconds for what takes a few where nothing else runs."""

AGAIN = 0.2
"""Seconds after which a wish that is not fulfilled is told again."""


def cut(proxy: FaultProxy) -> None:
    proxy.refuse()
    proxy.cut()


class ChaosCluster(LocalCluster):
    """As `LocalCluster`; trouble can be made on the way to each node.  Subclasses say how."""

    kinds: tuple[str, ...] = ()
    """What `fault` can do."""

    def __init__(self, nodes: int, **options: Any) -> None:
        self._making = threading.RLock()  # two may be added at the same time
        super().__init__(nodes, **{**OPTIONS, **options})

    def _make(self, address: str, options: dict[str, Any]) -> NodeProcess:
        join = [self.way_to(other) for other in options.get("join", ())]
        with self._making:
            return super()._make(address, {**options, "join": join, "name": f"node{len(self.nodes)}"})

    def way_to(self, address: str) -> str:
        """Where clients and other nodes find the node that listens at `address`."""
        raise NotImplementedError

    def fault(self, index: int, kind: str, rng: random.Random) -> None:
        """Let something of `kind` go wrong on the way to a node, or from it."""
        raise NotImplementedError

    def mend(self, index: int) -> None:
        """End all faults of a node."""
        raise NotImplementedError

    def client(self, **settings: Any) -> Client:
        return Client([self.way_to(address) for address in self._present()], **settings)

    def async_client(self, **settings: Any) -> AsyncClient:
        return AsyncClient([self.way_to(address) for address in self._present()], **settings)

    def begin_to_add(self) -> int:
        """Start another node, which joins, and do not wait for it."""
        node = self._make(f"{HOST}:{free_port()}", {"join": self._present(), **self._options})
        node.start()
        return node.index

    def add(self, **options: Any) -> int:
        index = self.begin_to_add()
        node = self.nodes[index]
        wait_for(lambda: node.ready() and self._with(node), f"node {index} to join", self._told, PATIENCE)
        return index

    def leave(self, index: int, timeout: float = PATIENCE) -> int:
        return super().leave(index, timeout)

    def forget(self, index: int, timeout: float = PATIENCE) -> None:
        super().forget(index, timeout)

    def _begin(self, node: NodeProcess) -> None:
        node.start()
        wait_for(node.ready, f"node {node.index} to be ready", node.tail, PATIENCE)

    def wait_until_whole(self) -> None:
        self.wait_until_complete(PATIENCE)

    def forget_name(self, name: str) -> None:
        """Have the members forget a name that no process has any more."""
        said = 0.0

        def forgotten() -> bool:
            nonlocal said
            if time.monotonic() - said > AGAIN:
                said = time.monotonic()
                asked(self._awake()[0].address, "forget", [name])
            return self._without(name)

        wait_for(forgotten, f"{name} to be forgotten", self._told, PATIENCE)

    def repair(self) -> None:
        """Have every node compare what it holds with the other owners now."""
        for node in self._awake():
            asked(node.address, "repair")

    def save_logs(self, directory: Path) -> None:
        """Copy what the nodes logged into `directory`."""
        for node in self.nodes:
            if node.log.exists():
                shutil.copy(node.log, directory)


class ProxiedCluster(ChaosCluster):
    """Each node is known to clients and to the other nodes by the proxy in front of it.

    What the tests themselves ask of the nodes goes past the proxies.
    """

    kinds = tuple(FAULTS)

    def __init__(self, nodes: int, **options: Any) -> None:
        self.proxies: dict[str, FaultProxy] = {}
        self._losing: set[int] = set()
        super().__init__(nodes, **options)

    def _make(self, address: str, options: dict[str, Any]) -> NodeProcess:
        return super()._make(address, {**options, "advertise": self.way_to(address)})

    def proxy(self, address: str) -> FaultProxy:
        if address not in self.proxies:
            self.proxies[address] = FaultProxy(address)
        return self.proxies[address]

    def way_to(self, address: str) -> str:
        return self.proxy(address).address

    def fault(self, index: int, kind: str, rng: random.Random) -> None:
        FAULTS[kind](self.proxy(self.nodes[index].address), rng)
        if kind in LOSING:
            self._losing.add(index)

    def mend(self, index: int) -> None:
        proxy = self.proxy(self.nodes[index].address)
        if index in self._losing:
            self._losing.remove(index)
            proxy.cut()
        proxy.restore()

    def close(self) -> None:
        super().close()
        for proxy in self.proxies.values():
            proxy.close()


# -- whether the replicas agree ---------------------------------------------------------------------------------------


def held(client: Client, keys: Iterable[str]) -> dict[str, Mapping[str, Holding]]:
    """What every owner says of each key."""
    view: View = client
    return {key: client.engine.run(view, operations.holders, key) for key in keys}


def disagreement(holdings: Mapping[str, Holding]) -> str:
    """What is wrong with the replicas of one key; nothing if all owners answer, are complete, and agree.

    An owner may lack what the others hold if the floor of the slot is as high there: then it has forgotten some key of
    that slot and cannot tell whether it was this one.  Where most owners are so, none may hold it: nobody can read it.
    """
    for name, one in holdings.items():
        if one.error is not None or not one.complete:
            return f"{name} is {one.error or 'incomplete'}"
    newest = max((one.version for one in holdings.values() if one.held), default=None)
    if newest is None:
        return ""
    behind = any(one.version < newest for one in holdings.values())
    forgot = sum(not one.held for one in holdings.values())
    if behind or forgot >= majority(len(holdings)):
        return ", ".join(f"{name} {_says(one)}" for name, one in holdings.items())
    return ""


def _says(one: Holding) -> str:
    return f"holds {one.version.hex()}" if one.held else f"lacks it, with a floor of {one.version.hex()}"
