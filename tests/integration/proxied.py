"""A cluster behind fault proxies: each node is known to clients, and to the other nodes, by its proxy's address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dcache import AsyncClient, Client
from dcache.testing import FaultProxy, LocalCluster
from dcache.testing.cluster import NodeProcess


class ProxiedCluster(LocalCluster):
    """As `LocalCluster`, with `proxies[i]` in front of node i; `addresses` are those of the proxies."""

    def __init__(self, nodes: int = 3, **options: Any) -> None:
        self.proxies: list[FaultProxy] = []
        super().__init__(nodes, **options)

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(proxy.address for proxy in self.proxies)

    def _make(self, address: str, options: dict[str, Any]) -> NodeProcess:
        proxy = FaultProxy(address)
        self.proxies.append(proxy)
        node = super()._make(address, {**options, "advertise": proxy.address})
        node.name = proxy.address
        return node

    def client(self, **settings: Any) -> Client:
        return Client(self.addresses, **settings)

    def async_client(self, **settings: Any) -> AsyncClient:
        return AsyncClient(self.addresses, **settings)

    def delay(self, seconds: float) -> None:
        """Let every reply come `seconds` late."""
        self.each(lambda proxy: proxy.delay(seconds, "down"))

    def each(self, act: Callable[[FaultProxy], object]) -> None:
        for proxy in self.proxies:
            act(proxy)

    def restore(self) -> None:
        """End every fault; what hangs goes on."""
        for node in self.nodes:
            if node.running:
                self.resume(node.index)
        self.each(FaultProxy.restore)

    def close(self) -> None:
        super().close()
        self.each(FaultProxy.close)
