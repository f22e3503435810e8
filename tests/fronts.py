"""The two front doors seen as one, so that a test of what both promise is written once.

`front.client(...)` gives a client whose methods return plain values: a `Client` as it is, or an `AsyncClient` whose
coroutines are run on a loop that stays open for the whole test.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from dcache import AsyncClient, Client
from dcache.client import session
from dcache.drivers.machine import THIS_MACHINE

PATIENCE = 30.0
"""Seconds after which a test stops waiting for what should be there at once."""

UNHURRIED: dict[str, Any] = {"timeout": 10.0, "connect_timeout": 5.0}
"""Settings for tests that are not about time: nothing in them may depend on how busy the machine is."""


def until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Poll until `condition()` is true and give what it returned; fails after `patience` seconds."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {patience:.0f} s for {what}"
        time.sleep(0.005)
    return found


def put_clock_off(monkeypatch: pytest.MonkeyPatch, milliseconds: Callable[[], int]) -> None:
    """Let clients that are made from now on believe that it is so much later than it is."""
    true = THIS_MACHINE.wall
    monkeypatch.setattr(session, "THIS_MACHINE", attrs.evolve(THIS_MACHINE, wall=lambda: true() + milliseconds()))


def as_coroutine(function: Callable[..., Any]) -> Callable[..., Any]:
    """A plain function as a coroutine function of the same name and signature."""

    @functools.wraps(function)
    async def made(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return made


class Front:
    """`Client` as it is."""

    kind: type[Any] = Client

    def __init__(self) -> None:
        self._made: list[Any] = []

    def client(self, nodes: Any, **settings: Any) -> Any:
        """A client of `nodes`, closed after the test."""
        return self.keep(self.kind(nodes, **settings))

    def from_url(self, url: str, **settings: Any) -> Any:
        return self.keep(self.kind.from_url(url, **settings))

    def keep(self, client: Any) -> Any:
        self._made.append(client)
        return client

    def function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` of the kind that this client calls."""
        return function

    def together(self, calls: list[Callable[[], Any]]) -> list[Any]:
        """Make the calls at the same time; their results in order."""
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(len(calls)) as pool:
            return [future.result() for future in [pool.submit(call) for call in calls]]

    def close(self) -> None:
        for client in self._made:
            client.close()


class AsyncFront(Front):
    """`AsyncClient`, awaited on one loop."""

    kind = AsyncClient

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()

    def keep(self, client: Any) -> Any:
        return super().keep(Awaited(client, self))

    def function(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return as_coroutine(function)

    def run(self, coroutine: Any) -> Any:
        return self._runner.run(coroutine)

    def together(self, calls: list[Callable[[], Any]]) -> list[Any]:
        async def gathered() -> list[Any]:
            return await asyncio.gather(*(call() for call in calls))

        recording, self.run = self.run, lambda coroutine: coroutine  # type: ignore[method-assign]
        try:
            pending = gathered()
            return recording(pending)
        finally:
            self.run = recording  # type: ignore[method-assign]

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._runner.close()


class Awaited:
    """An object whose coroutine methods, called, have run."""

    def __init__(self, inner: Any, front: AsyncFront) -> None:
        self.inner, self._front = inner, front

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if not inspect.iscoroutinefunction(found):
            return found
        return lambda *args, **kwargs: self._front.run(found(*args, **kwargs))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._front.run(self.inner(*args, **kwargs))

    def scan(self, *args: Any) -> Iterator[Any]:
        async def collected() -> list[Any]:
            return [key async for key in self.inner.scan(*args)]

        return iter(self._front.run(collected()))

    def with_options(self, **changes: Any) -> Awaited:
        return Awaited(self.inner.with_options(**changes), self._front)

    def get_or_set(self, key: Any, factory: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        return self._front.run(self.inner.get_or_set(key, as_coroutine(factory), *args, **kwargs))

    def cached(self, **settings: Any) -> Callable[[Callable[..., Any]], Awaited]:
        return lambda function: Awaited(self.inner.cached(**settings)(as_coroutine(function)), self._front)


@pytest.fixture(params=[Front, AsyncFront], ids=["sync", "async"])
def front(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Each of the two front doors in turn."""
    made = request.param()
    try:
        yield made
    finally:
        made.close()
