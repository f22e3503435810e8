"""How a node runs what its agent does side by side."""

from __future__ import annotations

import asyncio

import pytest

from dcache.cli.member import Loyal, first_of
from dcache.membership import Member, MemberTable, RingState, Settings
from tests.conftest import Run


async def for_ever(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("for_ever")


def test_when_one_ends_the_others_are_ended(run: Run) -> None:
    ended: list[str] = []

    async def soon() -> None:
        await asyncio.sleep(0)

    run(first_of(for_ever(ended), soon()))
    assert ended == ["for_ever"]


def test_the_first_that_fails_ends_all_and_is_heard_of(run: Run) -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(first_of(for_ever([]), fails(), for_ever([])))


def test_who_is_cancelled_cancels_all(run: Run) -> None:
    ended: list[str] = []

    async def main() -> None:
        task = asyncio.ensure_future(first_of(for_ever(ended), for_ever(ended)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    assert ended == ["for_ever"] * 2


def test_a_node_stays_with_its_cluster_whatever_others_say_that_they_are_of() -> None:
    """A driver that knows no cluster would take nodes of another one for members that are there."""
    topology = Loyal(["a:7400"], lambda: 0.0)
    rows = {name: Member(name, f"{name}:7400") for name in "ab"}
    topology.table = MemberTable(Settings("c1"), RingState(1, tuple(row.placed() for row in rows.values())), rows)
    assert not topology.foreign("a", "c2")
    assert not topology.foreign("b", "c2")
    assert topology.cluster_id() == "c1"
