"""Which operations may be made anew after the ring changed under them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from dcache.errors import ClusterMismatch, QuorumError
from dcache.ops import batch, cluster, load, mutate, read, write
from dcache.ops.reruns import REPEATABLE, may_rerun
from tests.unit.ops_kit import Cluster, drive

IN_DOUBT, CERTAIN = (QuorumError("set", needed=2, got=1, reasons={}, in_doubt=doubt) for doubt in (True, False))
ONCE: list[Callable[..., Any]] = [
    mutate.add,
    mutate.replace,
    mutate.cas,
    mutate.incr,
    mutate.decr,
    mutate.touch,
    load.fill,
]
REPEATED = sorted(REPEATABLE, key=lambda operation: operation.__name__)


@pytest.mark.parametrize("operation", [write.set, write.delete, batch.set_many, batch.delete_many, cluster.clear])
def test_what_takes_a_new_version_each_time_may_be_made_anew_though_in_doubt(operation: Callable[..., Any]) -> None:
    assert operation in REPEATABLE
    assert may_rerun(operation, IN_DOUBT)


@pytest.mark.parametrize("operation", REPEATED)
def test_nothing_in_doubt_is_made_anew_where_nothing_may_be_written_twice(operation: Callable[..., Any]) -> None:
    assert not may_rerun(operation, IN_DOUBT, linearizable=True)
    assert may_rerun(operation, CERTAIN, linearizable=True)


@pytest.mark.parametrize("operation", ONCE)
def test_conditional_changes_and_fills_are_not_made_anew_when_in_doubt(operation: Callable[..., Any]) -> None:
    assert operation not in REPEATABLE
    assert not may_rerun(operation, IN_DOUBT)


@pytest.mark.parametrize("operation", [*ONCE, *REPEATED, read.get])
def test_what_did_nothing_may_always_be_made_anew(operation: Callable[..., Any]) -> None:
    assert may_rerun(operation, CERTAIN)
    assert may_rerun(operation, ClusterMismatch("another cluster"))


@pytest.mark.parametrize("stored", range(4))
def test_a_set_made_anew_wins_over_what_its_first_attempt_left_behind(stored: int) -> None:
    """Some owners stored it under the old ring, the others refused it under the new one."""
    nodes = Cluster()
    ctx, table = nodes.context(), nodes.table
    nodes.begin("abcd")
    for name in nodes.owners("k")[:stored]:
        nodes[name].learn(table)
    with pytest.raises(QuorumError, match="in doubt") if stored < 2 else contextlib.nullcontext():
        drive(write.set(ctx, "k", "first"), nodes)
    nodes.learn(nodes.table)
    drive(write.set(nodes.context(shared=ctx.shared), "k", "again"), nodes)
    assert drive(read.get(nodes.context(), "k"), nodes) == "again"
