"""dcache: an embeddable, client-side sharding cache.  Smart client, dumb servers.

from dcache import Client

cache = Client(["cache1:7400", "cache2:7400", "cache3:7400"])
cache.set("greeting", "hello", ttl=60)

Each name is loaded when it is first used, so that one part of the package (a node, the pytest plugin) can be imported
without all the others.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcache.client.aio import AsyncClient
    from dcache.client.cached import AsyncCached, Cached, CacheInfo, cached
    from dcache.client.sync import Client
    from dcache.codec import Serializer
    from dcache.errors import (
        ClientClosed,
        ClockSkew,
        ClusterMismatch,
        DcacheError,
        DeadlineExceeded,
        InvalidKey,
        NodeError,
        NoNodesAvailable,
        NotACounter,
        ProtocolError,
        QuorumError,
        SerializationError,
        ValueTooLarge,
    )
    from dcache.membership import Member
    from dcache.ops.context import DEFAULT
    from dcache.ops.read import Item
    from dcache.record import Version

__all__ = [
    "DEFAULT",
    "AsyncCached",
    "AsyncClient",
    "CacheInfo",
    "Cached",
    "Client",
    "ClientClosed",
    "ClockSkew",
    "ClusterMismatch",
    "DcacheError",
    "DeadlineExceeded",
    "InvalidKey",
    "Item",
    "Member",
    "NoNodesAvailable",
    "NodeError",
    "NotACounter",
    "ProtocolError",
    "QuorumError",
    "SerializationError",
    "Serializer",
    "ValueTooLarge",
    "Version",
    "cached",
]

_HOMES = {
    "AsyncClient": "dcache.client.aio",
    "AsyncCached": "dcache.client.cached",
    "Cached": "dcache.client.cached",
    "CacheInfo": "dcache.client.cached",
    "cached": "dcache.client.cached",
    "Client": "dcache.client.sync",
    "Serializer": "dcache.codec",
    "ClientClosed": "dcache.errors",
    "ClockSkew": "dcache.errors",
    "ClusterMismatch": "dcache.errors",
    "DcacheError": "dcache.errors",
    "DeadlineExceeded": "dcache.errors",
    "InvalidKey": "dcache.errors",
    "NodeError": "dcache.errors",
    "NoNodesAvailable": "dcache.errors",
    "NotACounter": "dcache.errors",
    "ProtocolError": "dcache.errors",
    "QuorumError": "dcache.errors",
    "SerializationError": "dcache.errors",
    "ValueTooLarge": "dcache.errors",
    "Member": "dcache.membership",
    "DEFAULT": "dcache.ops.context",
    "Item": "dcache.ops.read",
    "Version": "dcache.record",
}

if not TYPE_CHECKING:  # a checker that saw this would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found: object = getattr(import_module(_HOMES[name]), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
