"""The callers of a real cluster: many threads and tasks at once, whose every call is recorded."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import count, cycle
from types import TracebackType
from typing import Any, Self

import attrs

from dcache import AsyncClient, Client
from dcache.ring import slot_of
from dcache.testing.workload import Actor, Answer, History, Keys, Steps, made, made_async
from dcache.wire import storage_key

PAUSE = 0.03
"""Seconds between two calls of one caller, on average."""

TIMEOUT = 0.5
GIVEN_UP = 0.03  # chance that a task stops waiting for its call

CROWDED = 16
"""Slots in which every other key is, so that what is forgotten of one key is felt by others."""


@cache
def named(kind: str, number: int) -> tuple[str, ...]:
    """So many keys, every other one in a crowded slot."""
    names = (f"{kind}{index}" for index in count())
    crowded = (name for name in names if slot_of(storage_key(b"", name.encode())) < CROWDED)
    spread = (f"{kind}-{index}" for index in count())
    return tuple(next(one) for one, _ in zip(cycle((crowded, spread)), range(number), strict=False))


KEYS = Keys(named("plain", 240), named("loaded", 24), named("counter", 16))
"""So many that most are changed every few seconds only: a replica that missed a change stays behind for long enough to
be asked."""


def new_history() -> History:
    return History(time.monotonic_ns)


def run_all(client: Client, steps: Steps, history: History) -> list[Answer]:
    """Make all calls that `steps` ask for."""
    answers: list[Answer] = []
    try:
        ask = next(steps)
        while True:
            answers.append(made(client, ask, history))
            ask = steps.send(answers[-1])
    except StopIteration:
        return answers


@attrs.frozen
class Size:
    """How many callers there are."""

    clients: int = 2  # with threads
    threads: int = 3  # of each
    async_clients: int = 2  # each in an event loop of its own
    tasks: int = 5  # of each
    visitors: int = 1  # who make a new client again and again
    calls: int = 100_000  # that each caller makes at most


class Crew:
    """The callers at work; a context manager.  What goes wrong in one of them is raised at the end.

    `make` and `make_async` give new clients.
    """

    def __init__(
        self,
        history: History,
        seed: int,
        make: Callable[[], Client],
        make_async: Callable[[], AsyncClient],
        size: Size = Size(),  # frozen
        keys: Keys = KEYS,
    ) -> None:
        self.history, self.size, self.keys = history, size, keys
        self._make, self._make_async = make, make_async
        self._seeds = random.Random(seed)
        self._over = threading.Event()
        workers = size.clients * size.threads + size.async_clients + size.visitors
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="caller")
        self._work: list[Future[None]] = []
        self._clients: list[Client] = []

    def __enter__(self) -> Self:
        for number in range(self.size.clients):
            client = self._make()
            self._clients.append(client)
            for _ in range(self.size.threads):
                self._begin(self._thread, client, f"threads{number}")
        for number in range(self.size.async_clients):
            self._begin(self._loop, f"tasks{number}")
        for number in range(self.size.visitors):
            self._begin(self._visitor, f"visitor{number}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._pool.shutdown()
        for client in self._clients:
            client.close()
        if error is None:
            self.check()

    def check(self) -> None:
        """Raise what went wrong in a caller, if anything did."""
        for work in self._work:
            if work.done():
                work.result()

    def actor(self, client: str) -> Actor:
        return Actor(self.history, client, random.Random(self._seeds.random()), self.keys)

    def _begin(self, work: Callable[..., None], *args: Any) -> None:
        self._work.append(self._pool.submit(work, *args, random.Random(self._seeds.random())))

    def _thread(self, client: Client, name: str, rng: random.Random) -> None:
        self._call(client, Actor(self.history, name, rng, self.keys), rng, self.size.calls)

    def _call(self, client: Client, actor: Actor, rng: random.Random, calls: int) -> None:
        steps = actor.steps()
        ask = next(steps)
        for _ in range(calls):
            answer = made(client, ask, self.history)
            ask = steps.send(answer)
            if self._over.wait(rng.expovariate(1 / PAUSE)):
                break

    def _visitor(self, name: str, rng: random.Random) -> None:
        for number in range(self.size.calls // 20):
            with self._make() as client:
                self._call(client, Actor(self.history, f"{name}.{number}", rng, self.keys), rng, 20)
            if self._over.is_set():
                break

    def _loop(self, name: str, rng: random.Random) -> None:
        asyncio.run(self._tasks(name, rng))

    async def _tasks(self, name: str, rng: random.Random) -> None:
        async with self._make_async() as client, asyncio.TaskGroup() as group:
            for _ in range(self.size.tasks):
                group.create_task(self._task(client, name, random.Random(rng.random())))

    async def _task(self, client: AsyncClient, name: str, rng: random.Random) -> None:
        steps = Actor(self.history, name, rng, self.keys).steps()
        ask = next(steps)
        for _ in range(self.size.calls):
            patience = rng.uniform(0, 0.02) if rng.random() < GIVEN_UP else None
            ask = steps.send(await made_async(client, ask, self.history, patience))
            if self._over.is_set():
                break
            await asyncio.sleep(rng.expovariate(1 / PAUSE))
