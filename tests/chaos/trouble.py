"""What happens to the cluster while it is used: planned from a seed, then carried out.

A plan is a list of `Step`s, each one trouble or two at once; the same seed gives the same plan.  Which node it meets
is the step's choice among those that are fit for it then.  After most steps the cluster is given time to become whole
again, so that a majority of every key's owners is there most of the time, but not always.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import attrs

from dcache.testing.cluster import NodeProcess

FEWEST, MOST = 4, 6
"""Nodes: where one is to go and fewer would stay, another joins first; none joins where there are so many."""


class Ground(Protocol):
    """What trouble can be made for: `LocalCluster`, and a network with faults per node."""

    nodes: list[NodeProcess]

    def kill(self, index: int) -> None: ...
    def pause(self, index: int) -> None: ...
    def resume(self, index: int) -> None: ...
    def restart(self, index: int, name: str | None = None) -> None: ...
    def add(self) -> int: ...
    def begin_to_add(self) -> int: ...
    def leave(self, index: int) -> int: ...
    def forget(self, index: int) -> None: ...
    def wait_until_whole(self) -> None: ...
    def forget_name(self, name: str) -> None: ...
    def fault(self, index: int, kind: str, rng: random.Random) -> None: ...
    def mend(self, index: int) -> None: ...


@attrs.frozen
class Step:
    """One trouble, or two at once; `seed` decides whom it meets and for how long.  A hasty step is followed by the
    next one at once, without waiting for the cluster to be whole."""

    kinds: tuple[str, ...]
    seed: int
    hasty: bool

    def __str__(self) -> str:
        return f"{' and '.join(self.kinds)}{', hasty' if self.hasty else ''} ({self.seed})"


LASTS = (0.3, 1.0, 4.0)
"""Seconds that a trouble lasts, from half of that on: two at once overlap in all ways."""

KINDS = ("kill", "pause", "rename", "join", "stillborn", "leave", "forget")
"""What may happen to nodes; what may happen to the network is a matter of the ground."""

CHANGES = frozenset({"join", "stillborn", "leave", "forget", "rename"})
"""Kinds that change the ring."""


def plan(seed: int, kinds: Sequence[str], steps: int) -> list[Step]:
    """Every kind comes once before any comes again.  Half of the steps are two at once."""
    rng = random.Random(seed)
    deck: list[str] = []
    planned = []
    for _ in range(steps):
        drawn = []
        for _ in range(2 if rng.random() < 0.5 else 1):
            deck = deck or rng.sample(list(kinds), len(kinds))
            drawn.append(deck.pop())
        hasty = rng.random() < 0.2 and not CHANGES.intersection(drawn)
        planned.append(Step(tuple(drawn), rng.getrandbits(32), hasty))
    return planned


class Nemesis:
    """Carries out a plan; `done` counts what was carried out, `log` says when."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.done: Counter[str] = Counter()
        self.log: list[str] = []
        self._start = time.monotonic()
        self._choosing = threading.Lock()  # guards the next
        self._well = {node.index for node in ground.nodes}  # who may be chosen: on the ring, and not in trouble
        self._counting = threading.Lock()  # guards the next
        self._going = 0  # how many nodes are about to go
        self._names = 0
        self._kinds: dict[str, Callable[[random.Random], AbstractContextManager[None]]] = {
            "kill": self._kill,
            "pause": self._pause,
            "rename": self._rename,
            "join": self._join,
            "stillborn": self._stillborn,
            "leave": self._leave,
            "forget": self._forget,
        }

    def run(self, steps: Sequence[Step], until: float) -> None:
        """Carry out the steps, and wait until the cluster is whole.  No step begins after `until` (monotonic)."""
        for step in steps:
            if time.monotonic() > until:
                break
            self.suffer(step)
            if not step.hasty:
                self.ground.wait_until_whole()
        self.ground.wait_until_whole()
        self.say("whole")

    def suffer(self, step: Step) -> None:
        """One step, its kinds at the same time."""
        self.say(f"step: {step}")
        seeds = random.Random(step.seed)
        with ThreadPoolExecutor(len(step.kinds)) as pool:
            work = [pool.submit(self._one, kind, random.Random(seeds.random())) for kind in step.kinds]
        for one in work:
            one.result()

    def _one(self, kind: str, rng: random.Random) -> None:
        time.sleep(rng.uniform(0, 1.0))  # so that either of two comes first
        trouble = self._kinds[kind](rng) if kind in self._kinds else self._fault(kind, rng)
        with trouble:
            time.sleep(rng.choice(LASTS) * rng.uniform(0.5, 1.0))
        self.say(f"{kind} over")

    def say(self, text: str) -> None:
        self.log.append(f"{time.monotonic() - self._start:8.3f} {text}")

    # -- kinds --------------------------------------------------------------------------------------------------------

    @contextmanager
    def _kill(self, rng: random.Random) -> Iterator[None]:
        with self._victim("kill", rng) as index:
            self.ground.kill(index)
            yield
            self.ground.restart(index)

    @contextmanager
    def _pause(self, rng: random.Random) -> Iterator[None]:
        with self._victim("pause", rng) as index:
            self.ground.pause(index)
            yield
            self.ground.resume(index)

    @contextmanager
    def _rename(self, rng: random.Random) -> Iterator[None]:
        """Restarted at the same address under another name; the old one is forgotten."""
        with self._victim("rename", rng) as index:
            old = self.ground.nodes[index].name
            self.ground.kill(index)
            yield
            self._names += 1
            self.ground.restart(index, f"renamed{self._names}")
            self.ground.forget_name(old)

    @contextmanager
    def _join(self, rng: random.Random) -> Iterator[None]:
        if self._present() < MOST:
            self._add()
            self.done["join"] += 1
        yield

    def _add(self) -> None:
        self.say("join")
        index = self.ground.add()
        self._well.add(index)
        self.say(f"joined: node {index}")

    @contextmanager
    def _stillborn(self, rng: random.Random) -> Iterator[None]:
        """A node that is killed somewhere on its way onto the ring, and started again."""
        index = self.ground.begin_to_add()
        self.say(f"stillborn: node {index}")
        time.sleep(rng.uniform(0.3, 3.0))
        self.ground.kill(index)
        yield
        self.ground.restart(index)
        self._well.add(index)
        self.done["stillborn"] += 1

    @contextmanager
    def _leave(self, rng: random.Random) -> Iterator[None]:
        with self._one_less(), self._victim("leave", rng) as index:
            self.ground.leave(index)
            yield

    @contextmanager
    def _forget(self, rng: random.Random) -> Iterator[None]:
        with self._one_less(), self._victim("forget", rng) as index:
            self.ground.kill(index)
            yield
            self.ground.forget(index)

    @contextmanager
    def _fault(self, kind: str, rng: random.Random) -> Iterator[None]:
        with self._victim(kind, rng) as index:
            self.ground.fault(index, kind, rng)
            try:
                yield
            finally:
                self.ground.mend(index)

    # -- whom it meets ------------------------------------------------------------------------------------------------

    @contextmanager
    def _victim(self, kind: str, rng: random.Random) -> Iterator[int]:
        """A node that is well, for `kind`; there are always some, as at most two are in trouble."""
        with self._choosing:
            index = rng.choice(sorted(self._well))
            self._well.discard(index)
        self.say(f"{kind}: node {index}")
        try:
            yield index
            self.done[kind] += 1
        finally:
            if self.ground.nodes[index].running:
                self._well.add(index)

    @contextmanager
    def _one_less(self) -> Iterator[None]:
        """Make sure that enough nodes stay when one goes."""
        with self._counting:
            self._going += 1
            while self._present() - self._going < FEWEST:
                self._add()
        try:
            yield
        finally:
            with self._counting:
                self._going -= 1

    def _present(self) -> int:
        return sum(node.running for node in self.ground.nodes)
