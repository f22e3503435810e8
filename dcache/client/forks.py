"""What happens to clients when the process forks: in the child they start anew, with sockets and names of their own."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Forkable(Protocol):
    def after_fork(self) -> None:
        """Runs in the child, before anything else does."""


_alive: weakref.WeakSet[Forkable] = weakref.WeakSet()


def reset_after_fork(engine: Forkable) -> None:
    """Call `engine.after_fork()` in every child forked while it lives."""
    _alive.add(engine)


def _in_child() -> None:
    for engine in list(_alive):
        engine.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
