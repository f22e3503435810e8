"""Which operations may be made anew when the ring changed under them.

What certainly did nothing may always be made again.  What may have been done in part is made again only if that is as
good as doing it once: sets and deletes are, for they take a new version, which stands above what the first attempt may
have left behind, and whoever wrote in between did so at the same time.  An `incr` would count twice, an `add` find its
own value.  Nor are they if the client asked for linearizability: it was promised that nothing is written twice.

The caller knows whether the ring changed: whether its table is another by now than the operation worked with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dcache.errors import ClusterMismatch, QuorumError
from dcache.ops import batch, cluster, write

REPEATABLE: frozenset[Callable[..., Any]] = frozenset(
    {write.set, write.delete, batch.set_many, batch.delete_many, cluster.clear}
)
"""Operations that may be made anew also when in doubt."""


def may_rerun(
    operation: Callable[..., Any], error: QuorumError | ClusterMismatch, *, linearizable: bool = False
) -> bool:
    """Whether an operation that raised `error` may be made anew."""
    in_doubt = isinstance(error, QuorumError) and error.in_doubt
    return not in_doubt or (operation in REPEATABLE and not linearizable)
