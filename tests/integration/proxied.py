"""A cluster behind fault proxies: each node is known to clients, and to the other nodes, by its proxy's address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dcache.testing import FaultProxy, LocalCluster


class ProxiedCluster(LocalCluster):
    """As `LocalCluster`, with `proxies[i]` in front of node i; `addresses` are those of the proxies."""

    def __init__(self, nodes: int = 3, **options: Any) -> None:
        self.proxies: list[FaultProxy] = []
        super().__init__(nodes, **options)
        self.addresses = tuple(proxy.address for proxy in self.proxies)

    def _command(self, index: int, options: dict[str, Any]) -> list[str]:
        proxy = FaultProxy(self.addresses[index])
        self.proxies.append(proxy)
        return [*super()._command(index, options), "--advertise", proxy.address]

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
