"""Two of five die and are forgotten, one after the other, while clients read and write: nothing that was acknowledged
is undone, and the ring of those that are left comes about.

The world is that of `test_changes_at_random`; only those are forgotten that are dead.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from dcache.agent.wishes import Wishes
from dcache.membership import MemberTable, RingState, Settings
from dcache.node.service import Refusal
from tests.unit.test_changes_at_random import FOUNDERS, OTHERS, Node, World, make_few_slots

pytestmark = pytest.mark.cluster

EVERYBODY = (*FOUNDERS, *OTHERS)


@pytest.fixture(autouse=True)
def few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    make_few_slots(monkeypatch.setattr)


class Mourning(World):
    """Five founders, of whom two die in the middle."""

    def found(self) -> None:
        rows = {name: node.boot() for name, node in self.nodes.items()}
        placed = tuple(row.placed() for _, row in sorted(rows.items()))
        self.first = MemberTable(Settings("c", 3, 4, 0), RingState(1, placed), rows)
        for node in self.nodes.values():
            assert node.agent is not None
            node.agent.adopt(self.first)
            node.live()

    def run(self) -> None:
        self.troubles = ("evict", "cut", "heal")
        self.net.default.loss = self.rng.choice((0.02, 0.1, 0.3))
        self.go_on(8)
        self.heal()
        for path in (self.net.default, *self.net._paths.values()):
            path.loss = 0.02
        self.dead = self.rng.sample(list(self.nodes.values()), 2)
        for node in self.dead:
            node.crash()
        self.troubles = ("evict",)
        for _ in range(120):
            self.go_on(1)
            self.say_that_they_are_dead()
            if self.violations or self.is_over():
                break
        else:
            self.bad(f"not forgotten: {self.newest().ring_state}, {self.disorder()}")
        self.write_everything()

    def go_on(self, rounds: int) -> None:
        for _ in range(rounds):
            self.trouble()
            for _ in range(self.rng.randrange(20)):
                self.spawn()
                self.net.run(self.rng.choice((0.0, 0.005, 0.05)))
            self.net.run(self.rng.choice((0.5, 1.0)))

    def say_that_they_are_dead(self) -> None:
        member = self.rng.choice(list(self.left()))
        for node in self.dead:
            assert member.agent is not None
            try:
                member.agent.wishes.forget([node.name])
            except Refusal as error:
                self.note(f"refused: {error.detail}")

    def left(self) -> Iterator[Node]:
        return (node for node in self.nodes.values() if node not in self.dead)

    def is_over(self) -> bool:
        names = {node.name for node in self.left()}
        return self.newest().ring_state.names == names and self.in_order()


def first_violation(seeds: range) -> tuple[int, str] | None:
    for seed in seeds:
        world = Mourning(seed)
        world.run()
        if world.violations:
            return seed, world.violations[0]
    return None


@pytest.mark.parametrize("first", range(0, 20, 10))
def test_those_that_are_dead_are_forgotten_and_what_they_acknowledged_is_not_undone(first: int) -> None:
    assert first_violation(range(first, first + 10)) is None


def test_without_the_word_that_they_are_dead_the_change_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    note = Wishes._note
    monkeypatch.setattr(Wishes, "_note", lambda wishes, wish: note(wishes, attrs.evolve(wish, dead=False)))
    found = first_violation(range(1))
    assert found is not None
    assert "not forgotten" in found[1]
