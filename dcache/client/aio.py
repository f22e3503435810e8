"""`AsyncClient`: the cache for asyncio."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

from dcache.client.async_engine import AsyncEngine
from dcache.client.cached import AsyncDecorator, cached
from dcache.client.keys import KeyFunction
from dcache.client.loading import UNREACHABLE, StoreIf
from dcache.client.reruns import Sets
from dcache.client.session import Configuration, Session, View, key_from_bytes, parse_url
from dcache.codec import Serializer
from dcache.errors import DcacheError
from dcache.membership import Member
from dcache.ops import batch, cluster, mutate, prompt, read, write
from dcache.ops.context import DEFAULT, Context, K, Key, Ttl, TtlOrDefault
from dcache.ops.effects import Op
from dcache.ops.quorum import QuorumSpec
from dcache.ops.read import Item
from dcache.record import ZERO, Version

T = TypeVar("T")
P = ParamSpec("P")


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
        group = self.engine.ask(self, key)
        if group is None:
            return await self._or(default, self._run(read.get, key, default))
        future = group.futures[-1]
        answer = await future
        if answer is not None and group.alive():
            return prompt.value(group.ctx, answer, default)
        return await self._or(default, self.engine.take_over(self, group.share(future), read.get, key, default))

    async def gets(self, key: Key) -> Item | None:
        """See `Client.gets`."""
        return await self._or(None, self._run(read.gets, key))

    async def exists(self, key: Key) -> bool:
        """See `Client.exists`."""
        return await self._or(False, self._run(read.exists, key))

    async def ttl(self, key: Key) -> float | None:
        """See `Client.ttl`."""
        return await self._or(None, self._run(read.ttl, key))

    async def set(self, key: Key, value: Any, ttl: TtlOrDefault = DEFAULT) -> Version:
        """See `Client.set`."""
        try:
            return await self._or(ZERO, self._run(write.set, key, value, ttl))
        finally:
            self._detach(key)

    async def delete(self, key: Key) -> bool:
        """See `Client.delete`."""
        try:
            return await self._or(False, self._run(write.delete, key))
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
        return await self._or({}, self.engine.get_many(self, tuple(keys)))

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
            return await self._or(0, self._run(batch.delete_many, keys))
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

    def _run(
        self, operation: Callable[Concatenate[Context, P], Op[T]], *args: P.args, **kw: P.kwargs
    ) -> Coroutine[Any, Any, T]:
        return self.engine.run(self, operation, *args, **kw)

    async def _or(self, miss: T, running: Awaitable[T]) -> T:
        """What runs; with `on_error="miss"` not reaching the cluster is a miss."""
        try:
            return await running
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
