"""For tests of programs that use dcache: real nodes on this machine, and a network that can be broken.

Each name is loaded when it is first used: the pytest plugin, which lies beside them, costs nothing while it is unused.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcache.testing.cluster import LocalCluster, NodeFailed
    from dcache.testing.proxy import FaultProxy

__all__ = ["FaultProxy", "LocalCluster", "NodeFailed"]

_HOMES = {
    "FaultProxy": "dcache.testing.proxy",
    "LocalCluster": "dcache.testing.cluster",
    "NodeFailed": "dcache.testing.cluster",
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
