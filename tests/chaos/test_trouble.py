"""The trouble itself: what a plan holds, and that it is carried out on a cluster that only counts."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from tests.chaos import trouble
from tests.chaos.trouble import FEWEST, KINDS, MOST, Nemesis, Step, plan

FAULT = "deaf"


class Paper:
    """A cluster on paper: it notes what is done to it, and raises what a real one would."""

    def __init__(self, nodes: int = FEWEST) -> None:
        self.nodes: list[Any] = []
        self.faulty: set[int] = set()
        self.paused: set[int] = set()
        self.did: list[str] = []
        self.fewest = nodes
        for _ in range(nodes):
            self.restart(self._new())

    def _new(self) -> int:
        index = len(self.nodes)
        self.nodes.append(SimpleNamespace(index=index, name=f"node{index}", running=False))
        return index

    def _note(self, what: str) -> None:
        self.did.append(what)
        self.fewest = min(self.fewest, sum(node.running for node in self.nodes))

    def kill(self, index: int) -> None:
        assert self.nodes[index].running
        self.nodes[index].running = False
        self.did.append("kill")

    def pause(self, index: int) -> None:
        assert self.nodes[index].running
        self.paused.add(index)

    def resume(self, index: int) -> None:
        self.paused.remove(index)

    def restart(self, index: int, name: str | None = None) -> None:
        assert not self.nodes[index].running
        self.nodes[index].running = True
        self.nodes[index].name = name or self.nodes[index].name

    def add(self) -> int:
        index = self._new()
        self.restart(index)
        return index

    begin_to_add = add

    def leave(self, index: int) -> int:
        assert self.nodes[index].running
        self.nodes[index].running = False
        self._note("leave")
        return 0

    def forget(self, index: int) -> None:
        assert not self.nodes[index].running
        self._note("forget")

    def forget_name(self, name: str) -> None:
        assert name not in [node.name for node in self.nodes]

    def wait_until_whole(self) -> None:
        assert not self.faulty
        assert not self.paused

    def fault(self, index: int, kind: str, rng: random.Random) -> None:
        self.faulty.add(index)

    def mend(self, index: int) -> None:
        self.faulty.remove(index)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trouble, "time", SimpleNamespace(sleep=lambda seconds: None, monotonic=lambda: 0.0))


def test_the_same_seed_gives_the_same_plan() -> None:
    assert plan(7, KINDS, 20) == plan(7, KINDS, 20) != plan(8, KINDS, 20)


def test_every_kind_of_trouble_comes_before_any_comes_again() -> None:
    for seed in range(20):
        drawn = [kind for step in plan(seed, KINDS, len(KINDS)) for kind in step.kinds]
        assert set(drawn[: len(KINDS)]) == set(KINDS)


def test_some_steps_are_two_at_once_and_some_are_hasty() -> None:
    steps = plan(1, KINDS, 100)
    assert {len(step.kinds) for step in steps} == {1, 2}
    assert {step.hasty for step in steps} == {True, False}


@pytest.mark.parametrize("kind", [*KINDS, FAULT])
def test_a_trouble_is_over_when_its_step_is(kind: str) -> None:
    ground = Paper()
    nemesis = Nemesis(ground)
    nemesis.run([Step((kind,), 1, False)], 1.0)
    assert nemesis.done[kind] == 1
    ground.wait_until_whole()
    assert sum(node.running for node in ground.nodes) >= FEWEST


def test_long_plans_leave_enough_nodes_and_not_too_many() -> None:
    for seed in range(5):
        ground = Paper()
        nemesis = Nemesis(ground)
        nemesis.run(plan(seed, (*KINDS, FAULT), 60), 1.0)
        assert ground.fewest >= FEWEST - 1  # while another one that will be back is away
        assert sum(node.running for node in ground.nodes) <= MOST + 1
        assert set(nemesis.done) == {*KINDS, FAULT}


def test_what_goes_wrong_in_a_trouble_is_raised() -> None:
    ground = Paper()
    ground.nodes[0].running = ground.nodes[1].running = ground.nodes[2].running = ground.nodes[3].running = False
    with pytest.raises(AssertionError):
        Nemesis(ground).run([Step(("kill",), 1, False)], 1.0)
