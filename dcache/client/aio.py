"""`AsyncClient`: the cache for asyncio."""

from __future__ import annotations

import asyncio
import builtins
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

from dcache.client.cached import AsyncDecorator, cached
from dcache.client.forks import reset_after_fork
from dcache.client.keys import KeyFunction
from dcache.client.loading import UNREACHABLE, Claimer, Compute, Loaded, Loading, StoreIf, loading, own_copy
from dcache.client.reruns import Reruns, Sets
from dcache.client.session import Configuration, Session, View, key_from_bytes, parse_url
from dcache.client.singleflight import Flights, run_async
from dcache.codec import Serializer
from dcache.drivers.aio import AsyncDriver
from dcache.errors import ClientClosed, ClusterMismatch, DcacheError, NoNodesAvailable, QuorumError
from dcache.membership import Member
from dcache.ops import batch, cluster, load, mutate, read, write
from dcache.ops.context import DEFAULT, Context, K, Key, Ttl, TtlOrDefault
from dcache.ops.effects import Op
from dcache.ops.quorum import QuorumSpec
from dcache.ops.read import Item
from dcache.record import ZERO, Version

T = TypeVar("T")
P = ParamSpec("P")


TURN_PAUSE = 0.01


def _still_searching() -> NoNodesAvailable:
    return NoNodesAvailable({"the cluster": "another task is still looking for it"})


class Bound:
    """What an engine has in one event loop."""

    def __init__(self, session: Session, loop: asyncio.AbstractEventLoop) -> None:
        self.driver = AsyncDriver(session.books, loop)
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
        loop = asyncio.get_running_loop()
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

    async def run(
        self, view: View, operation: Callable[Concatenate[Context, P], Op[T]], *args: P.args, **kw: P.kwargs
    ) -> T:
        bound, timeout = self.bound(), view.options.timeout
        deadline = bound.driver.loop.time() + timeout
        reruns: Reruns | None = None
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
        try:
            found = await self.run(view, load.hit, key)
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
        """Compute a value that was not there, together with all others who want it now."""
        steps = loading(view, key, ttl, store_if, claimer)
        work = partial(self.drive, view, steps, factory)
        loaded, led = await run_async(self.flights, view.flight_key(key), work)
        return own_copy(view, loaded, led)

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
        loop = asyncio.get_running_loop()
        self._closed_in.add(loop)
        bound = self._by_loop.pop(loop, None)
        if bound is not None:
            await bound.driver.close()

    def after_fork(self) -> None:
        """The loops, and their connections, are the parent's."""
        self.session.after_fork()
        self._by_loop, self._closed_in = {}, weakref.WeakSet()


class AsyncClient(View):
    """The cache for asyncio: as `Client`, with the same settings and methods, to be awaited.

    It may be made anywhere, also at import time; it binds to each running loop on first use there.  All tasks of a
    loop share one connection per node, and requests made in one tick of the loop leave in one write.  Call `close`,
    or use it with `async with`, in every loop that used it; that closes it there and in no other.
    """

    is_async = True

    def __init__(
        self,
        nodes: str | Iterable[str],
        *,
        write_quorum: QuorumSpec = "quorum",
        read_quorum: QuorumSpec = "quorum",
        namespace: str = "",
        default_ttl: Ttl = None,
        serializer: str | Serializer = "msgpack",
        compression: str | None = None,
        compress_above: int = 1024,
        max_value: int = 1024 * 1024,
        timeout: float = 0.5,
        connect_timeout: float = 0.2,
        max_connections: int = 64,
        on_error: str = "raise",
        consistency: str = "quorums",
    ) -> None:
        configuration = Configuration(
            write_quorum=write_quorum,
            read_quorum=read_quorum,
            namespace=namespace,
            default_ttl=default_ttl,
            serializer=serializer,
            compression=compression,
            compress_above=compress_above,
            max_value=max_value,
            timeout=timeout,
            connect_timeout=connect_timeout,
            max_connections=max_connections,
            on_error=on_error,
            consistency=consistency,
        )
        session = Session(nodes, configuration)
        super().__init__(session, configuration)
        self.engine = AsyncEngine(session)

    @classmethod
    def from_url(cls, url: str, **settings: Any) -> Self:
        """See `Client.from_url`."""
        nodes, found = parse_url(url)
        return cls(nodes, **{**found, **settings})

    def with_options(self, **changes: Any) -> Self:
        """See `Client.with_options`."""
        view = type(self).__new__(type(self))
        View.__init__(view, self.session, self.with_configuration(changes))
        view.engine = self.engine
        return view

    # -- single keys --------------------------------------------------------------------------------------------------

    async def get(self, key: Key, default: Any = None) -> Any:
        """See `Client.get`."""
        return await self._or(default, read.get, key, default)

    async def gets(self, key: Key) -> Item | None:
        """See `Client.gets`."""
        return await self._or(None, read.gets, key)

    async def exists(self, key: Key) -> bool:
        """See `Client.exists`."""
        return await self._or(False, read.exists, key)

    async def ttl(self, key: Key) -> float | None:
        """See `Client.ttl`."""
        return await self._or(None, read.ttl, key)

    async def set(self, key: Key, value: Any, ttl: TtlOrDefault = DEFAULT) -> Version:
        """See `Client.set`."""
        try:
            return await self._or(ZERO, write.set, key, value, ttl)
        finally:
            self._detach(key)

    async def delete(self, key: Key) -> bool:
        """See `Client.delete`."""
        try:
            return await self._or(False, write.delete, key)
        finally:
            self._detach(key)

    # -- conditional changes ------------------------------------------------------------------------------------------

    async def add(self, key: Key, value: Any, ttl: TtlOrDefault = DEFAULT) -> bool:
        """See `Client.add`."""
        try:
            return await self._run(mutate.add, key, value, ttl)
        finally:
            self._detach(key)

    async def replace(self, key: Key, value: Any, ttl: TtlOrDefault = DEFAULT) -> bool:
        """See `Client.replace`."""
        try:
            return await self._run(mutate.replace, key, value, ttl)
        finally:
            self._detach(key)

    async def cas(self, key: Key, value: Any, version: Version, ttl: TtlOrDefault = DEFAULT) -> bool:
        """See `Client.cas`."""
        try:
            return await self._run(mutate.cas, key, value, version, ttl)
        finally:
            self._detach(key)

    async def incr(self, key: Key, delta: int = 1, *, initial: int = 0, ttl: TtlOrDefault = DEFAULT) -> int:
        """See `Client.incr`."""
        try:
            return await self._run(mutate.incr, key, delta, initial=initial, ttl=ttl)
        finally:
            self._detach(key)

    async def decr(self, key: Key, delta: int = 1, *, initial: int = 0, ttl: TtlOrDefault = DEFAULT) -> int:
        """See `Client.decr`."""
        try:
            return await self._run(mutate.decr, key, delta, initial=initial, ttl=ttl)
        finally:
            self._detach(key)

    async def touch(self, key: Key, ttl: TtlOrDefault = DEFAULT) -> bool:
        """See `Client.touch`."""
        return await self._run(mutate.touch, key, ttl)

    # -- many keys ----------------------------------------------------------------------------------------------------

    async def get_many(self, keys: Iterable[K]) -> dict[K, Any]:
        """See `Client.get_many`."""
        return await self._or({}, batch.get_many, tuple(keys))

    async def set_many(self, mapping: Mapping[K, Any], ttl: TtlOrDefault = DEFAULT) -> dict[K, DcacheError]:
        """See `Client.set_many`."""
        sets = Sets(self.session, mapping, ttl)
        try:
            return await self._run(sets.run)
        except UNREACHABLE as error:
            if sets.errors is not None:
                return sets.errors
            if self.options.on_error == "raise":
                raise
            return dict.fromkeys(mapping, error)
        finally:
            self._detach(*mapping)

    async def delete_many(self, keys: Iterable[Key]) -> int:
        """See `Client.delete_many`."""
        keys = tuple(keys)
        try:
            return await self._or(0, batch.delete_many, keys)
        finally:
            self._detach(*keys)

    # -- computing what is missing ------------------------------------------------------------------------------------

    async def get_or_set(
        self,
        key: Key,
        factory: Callable[[], Awaitable[T]],
        ttl: TtlOrDefault = DEFAULT,
        *,
        store_if: Callable[[T], bool] | None = None,
    ) -> T:
        """See `Client.get_or_set`."""
        found, claimer = await self.engine.look(self, key)
        if found is not None:
            return cast("T", found.value)
        return cast("T", await self.engine.load(self, key, factory, ttl, store_if, claimer))

    # -- the namespace and the cluster --------------------------------------------------------------------------------

    async def scan(self, prefix: str | bytes = "") -> AsyncIterator[str | bytes]:
        """See `Client.scan`."""
        wanted = prefix.encode() if isinstance(prefix, str) else bytes(prefix)
        state, seen = None, builtins.set[bytes]()
        while True:
            keys, state = await self._run(cluster.scan_page, wanted, state)
            for key in keys:
                if key not in seen:
                    seen.add(key)
                    yield key_from_bytes(key)
            if state is None:
                return

    async def clear(self) -> None:
        """See `Client.clear`."""
        try:
            await self._run(cluster.clear)
        finally:
            self.engine.flights.detach_all(self.options.prefix + b"\0")

    async def ping(self) -> dict[str, float]:
        """See `Client.ping`."""
        return await self._run(cluster.ping)

    async def wait_ready(self, timeout: float = 10.0) -> None:
        """See `Client.wait_ready`."""
        await self.engine.wait_ready(self, timeout)

    async def stats(self) -> dict[str, Any]:
        """See `Client.stats`."""
        return await self._run(cluster.stats)

    async def members(self) -> tuple[Member, ...]:
        """See `Client.members`."""
        return await self._run(cluster.members)

    def cached(
        self,
        ttl: TtlOrDefault = 60,
        key: str | KeyFunction | None = None,
        namespace: str | None = None,
        ignore: Collection[str] = (),
        version: str | int | None = None,
        store_if: StoreIf = None,
    ) -> AsyncDecorator:
        """See `Client.cached`."""
        return cached(self, ttl, key, namespace, ignore, version, store_if)

    async def close(self) -> None:
        """See `Client.close`."""
        await self.engine.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- how it is done -----------------------------------------------------------------------------------------------

    async def _run(self, operation: Callable[Concatenate[Context, P], Op[T]], *args: P.args, **kw: P.kwargs) -> T:
        return await self.engine.run(self, operation, *args, **kw)

    async def _or(
        self, miss: T, operation: Callable[Concatenate[Context, P], Op[T]], *args: P.args, **kw: P.kwargs
    ) -> T:
        """Run; with `on_error="miss"` not reaching the cluster is a miss."""
        try:
            return await self.engine.run(self, operation, *args, **kw)
        except UNREACHABLE:
            if self.options.on_error == "raise":
                raise
            return miss

    def _detach(self, *keys: Key) -> None:
        """These keys were changed: what is being computed for them is not for those who ask from now on."""
        flights = self.engine.flights
        if len(flights):
            for key in keys:
                flights.detach(self.flight_key(key))
