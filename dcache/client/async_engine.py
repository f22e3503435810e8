"""What runs the operations of `AsyncClient`: for all its views, in every loop with connections of its own."""

from __future__ import annotations

import asyncio
import weakref
from asyncio import get_running_loop
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

from dcache.client.forks import reset_after_fork
from dcache.client.loading import UNREACHABLE, Claimer, Compute, Loaded, Loading, StoreIf, loading, own_copy
from dcache.client.reruns import Reruns
from dcache.client.session import Session, View
from dcache.client.singleflight import Flights, run_async
from dcache.drivers.aio import AsyncDriver
from dcache.drivers.prompt_groups import Group, Share
from dcache.errors import ClientClosed, ClusterMismatch, DcacheError, NoNodesAvailable, QuorumError
from dcache.ops import batch, cluster, load, prompt_many
from dcache.ops.context import Context, K, Key, TtlOrDefault
from dcache.ops.effects import Op

T = TypeVar("T")
P = ParamSpec("P")

TURN_PAUSE = 0.01


def _still_searching() -> NoNodesAvailable:
    return NoNodesAvailable({"the cluster": "another task is still looking for it"})


class Bound:
    """What an engine has in one event loop."""

    def __init__(self, session: Session, loop: asyncio.AbstractEventLoop) -> None:
        self.driver = AsyncDriver(session.books, loop)
        self.prompt = self.driver.prompt
        self.flights: Flights[asyncio.Event] = Flights(asyncio.Event)
        self.discovering = asyncio.Lock()  # one task of this loop asks for the table, or waits for its turn


class AsyncEngine:
    """What runs a client's operations: shared by all its views, with connections of its own in every loop."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._by_loop: dict[asyncio.AbstractEventLoop, Bound] = {}
        self._closed_in: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        reset_after_fork(self)

    def bound(self) -> Bound:
        loop = get_running_loop()
        bound = self._by_loop.get(loop)
        if bound is None:
            if loop in self._closed_in:
                raise ClientClosed("this client was closed in this event loop")
            for ended in [other for other in list(self._by_loop) if other.is_closed()]:
                self._by_loop.pop(ended, None)
            bound = self._by_loop[loop] = Bound(self.session, loop)
        return bound

    @property
    def flights(self) -> Flights[asyncio.Event]:
        return self.bound().flights

    def run(
        self, view: View, operation: Callable[Concatenate[Context, P], Op[T]], *args: P.args, **kw: P.kwargs
    ) -> Coroutine[Any, Any, T]:
        """Run an operation, anew where that is of use; see `Reruns`."""
        bound = self.bound()
        deadline = bound.driver.loop.time() + view.options.timeout
        return self._run(view, deadline, None, operation, args, kw)

    async def _run(
        self,
        view: View,
        deadline: float,
        reruns: Reruns | None,
        operation: Callable[..., Op[T]],
        args: tuple[Any, ...],
        kw: dict[str, Any],
    ) -> T:
        bound, timeout = self.bound(), view.options.timeout
        while True:
            if self.session.needs_discovery():
                await self.discover(bound, deadline, timeout)
            ctx = view.context()
            if ctx is None:
                continue
            try:
                return await bound.driver.run(operation(ctx, *args, **kw), deadline, timeout)
            except (QuorumError, ClusterMismatch) as error:
                reruns = reruns or Reruns(self.session, operation, deadline)
                await asyncio.sleep(reruns.pause(ctx, error))

    def ask(self, view: View, key: Key) -> Group | None:
        """Ask about `key` promptly, if it is a time for that: the last future of the group is for the answer."""
        bound = self._by_loop.get(get_running_loop())
        if bound is None or self.session.needs_discovery():
            return None
        ctx = view.context()
        return None if ctx is None else bound.prompt.ask(ctx, ctx.key(key))

    async def take_over(self, view: View, share: Share, operation: Callable[..., Op[T]], *args: Any) -> T:
        """Run an operation that takes over a read that was to be prompt."""
        driver, group, timeout = self.bound().driver, share.group, view.options.timeout
        deadline = group.since + timeout
        try:
            return await driver.run(operation(group.ctx, *args, first=group.way), deadline, timeout, share)
        except (QuorumError, ClusterMismatch) as error:
            reruns = Reruns(self.session, operation, deadline)
            await asyncio.sleep(reruns.pause(group.ctx, error))
        return await self._run(view, deadline, reruns, operation, args, {})

    async def get_many(self, view: View, keys: tuple[K, ...]) -> dict[K, Any]:
        """Those of `keys` that are there: by prompt reads, and what these do not settle as `batch.get_many`."""
        bound = self._by_loop.get(get_running_loop())
        ctx = None if bound is None or self.session.needs_discovery() else view.context()
        if bound is None or ctx is None:
            return await self.run(view, batch.get_many, keys)
        deadline = bound.driver.loop.time() + view.options.timeout
        raws = ctx.keys(keys)
        asked = bound.prompt.ask_many(ctx, list(dict.fromkeys(raws.values())))
        answers: dict[bytes, Any] = {}
        for many in asked:
            await many.future
        for many in asked:
            answers.update(many.settled())
        told = prompt_many.values(ctx, raws, answers)
        rest = await self._run(view, deadline, None, batch.get_many, (told.left,), {}) if told.left else {}
        told.count(ctx)
        return told.found | rest

    async def discover(self, bound: Bound, deadline: float, timeout: float) -> None:
        session = self.session
        async with self._turn(bound, deadline):
            if not session.needs_discovery():
                return
            session.check_discovery()
            try:
                found = await bound.driver.run(cluster.discover(session.topology.sources()), deadline, timeout)
            except ClientClosed:
                raise  # in this loop: the others' search is not over
            except DcacheError as error:
                session.discovery_failed(error)
                raise
            session.discovered(*found)

    async def wait_ready(self, view: View, timeout: float) -> None:
        driver = self.bound().driver
        deadline = driver.loop.time() + timeout
        sources = self.session.topology.sources()
        self.session.discovered(*await driver.run(cluster.await_table(sources), deadline, timeout))
        await self.run(view.waiting(timeout), cluster.wait_ready)

    async def drive(self, view: View, steps: Loading, factory: Callable[[], Awaitable[Any]]) -> Loaded:
        """Run what `loading` asks to be run, compute what it asks to be computed."""
        try:
            step = next(steps)
            while True:
                try:
                    if isinstance(step, Compute):
                        outcome = await factory()
                    else:
                        outcome = await self.run(view, step.operation, *step.args)
                except Exception as error:  # noqa: BLE001  # it is for `loading` to judge
                    step = steps.throw(error)
                else:
                    step = steps.send(outcome)
        except StopIteration as stop:
            loaded: Loaded = stop.value
            return loaded

    async def look(self, view: View, key: Key) -> tuple[load.Found | None, Claimer | None]:
        """The value if it is there; else how to claim the key, None if the cache is out of reach."""
        group = self.ask(view, key)
        try:
            if group is None:
                found = await self.run(view, load.hit, key)
            else:
                future = group.futures[-1]
                answer = await future
                if answer is not None and group.alive():
                    found = load.found(group.ctx, answer)
                else:
                    found = await self.take_over(view, group.share(future), load.hit, key)
        except UNREACHABLE as error:
            self.session.complain(error)
            return None, None
        self.session.works_again()
        return found, load.lookup

    async def load(
        self,
        view: View,
        key: Key,
        factory: Callable[[], Awaitable[Any]],
        ttl: TtlOrDefault,
        store_if: StoreIf,
        claimer: Claimer | None,
    ) -> Any:
        """Compute a value that was not there, together with all others who want it now.

        What the one who was to compute it found after all is not for who came later: it may have been changed before.
        """
        while True:
            steps = loading(view, key, ttl, store_if, claimer)
            work = partial(self.drive, view, steps, factory)
            loaded, led = await run_async(self.flights, view.flight_key(key), work)
            if led or not loaded.found:
                return own_copy(view, loaded, led)
            found, claimer = await self.look(view, key)
            if found is not None:
                return found.value

    async def refresh(
        self, view: View, key: Key, factory: Callable[[], Awaitable[Any]], ttl: TtlOrDefault, store_if: StoreIf
    ) -> Any:
        """Compute a value whether or not it is there, and store it unless it is changed meanwhile."""
        self.flights.detach(view.flight_key(key))
        return (await self.drive(view, loading(view, key, ttl, store_if, load.reclaim), factory)).value

    @asynccontextmanager
    async def _turn(self, bound: Bound, deadline: float) -> AsyncIterator[None]:
        """Held by one task at a time, of all loops."""
        try:
            async with asyncio.timeout_at(deadline):
                await bound.discovering.acquire()
        except TimeoutError:
            raise _still_searching() from None
        try:
            searching = self.session.searching
            while not searching.acquire(blocking=False):  # held in another loop, which cannot wake this one
                if bound.driver.loop.time() >= deadline:
                    raise _still_searching()
                await asyncio.sleep(TURN_PAUSE)
            try:
                yield
            finally:
                searching.release()
        finally:
            bound.discovering.release()

    async def close(self) -> None:
        loop = get_running_loop()
        self._closed_in.add(loop)
        bound = self._by_loop.pop(loop, None)
        if bound is not None:
            await bound.driver.close()

    def after_fork(self) -> None:
        """The loops, and their connections, are the parent's."""
        self.session.after_fork()
        self._by_loop, self._closed_in = {}, weakref.WeakSet()
