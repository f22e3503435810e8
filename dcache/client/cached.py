"""`@cached`: remember what a function returned, for every client of the cluster.

The decorated function is a descriptor, so on methods `obj.method(1)`, `obj.method.invalidate(1)` and the like know
their object.  Plain functions go with `Client`, coroutine functions with `AsyncClient`; how keys are made is told in
`keys`.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, cast, overload

import attrs

from dcache.client.keys import KeyFunction, KeyMaker
from dcache.client.loading import StoreIf
from dcache.ops.context import Key, TtlOrDefault, namespace_to_bytes, ttl_to_ms

if TYPE_CHECKING:
    from dcache.client.aio import AsyncClient
    from dcache.client.sync import Client

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")


@attrs.define
class CacheInfo:
    """What a cached function counted in this process: calls answered from the cache, and all others."""

    hits: int = 0
    misses: int = 0


@attrs.frozen(eq=False)
class Plan:
    """What the decorator was told, in the terms of the client: shared by a function and all its bound forms."""

    view: Any
    keys: KeyMaker
    ttl: TtlOrDefault
    store_if: StoreIf
    own_namespace: bool
    info: CacheInfo = attrs.field(factory=CacheInfo)

    def check_clearable(self) -> None:
        if not self.own_namespace:
            raise ValueError(
                "cache_clear() forgets the function's namespace, and with key= this function uses the client's, which "
                "may hold more: give it namespace= of its own, or call clear() of the client"
            )


class _Signature:
    """What the caller has still to give: as for a method, without its object."""

    def __get__(self, instance: Any, owner: type) -> inspect.Signature:
        if instance is None:
            raise AttributeError("__signature__")  # of the class: is made as always
        return inspect.signature(functools.partial(instance._function, *instance._bound))


class Cached(Generic[P, R]):
    """A cached function.  Calling it returns the cached result, or computes and stores it."""

    __wrapped__: Callable[P, R]
    __signature__ = _Signature()

    def __init__(self, function: Callable[P, R], plan: Plan, bound: tuple[Any, ...] = ()) -> None:
        functools.update_wrapper(self, function)
        self._function, self._plan, self._bound = function, plan, bound

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        plan, key = self._plan, self.key(*args, **kwargs)
        found, claimer = plan.view.engine.look(plan.view, key)
        if found is not None:
            plan.info.hits += 1
            return cast("R", found.value)
        plan.info.misses += 1
        work = functools.partial(self._function, *self._bound, *args, **kwargs)
        return cast("R", plan.view.engine.load(plan.view, key, work, plan.ttl, plan.store_if, claimer))

    def key(self, *args: P.args, **kwargs: P.kwargs) -> Key:
        """The key of this call, in the function's namespace."""
        return self._plan.keys.make((*self._bound, *args), kwargs)

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Forget the result of this call; whether there was one.  A computation under way will not be stored."""
        return bool(self._plan.view.delete(self.key(*args, **kwargs)))

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Compute the result of this call now and store it; readers have the old one until then."""
        plan = self._plan
        work = functools.partial(self._function, *self._bound, *args, **kwargs)
        key = self.key(*args, **kwargs)
        return cast("R", plan.view.engine.refresh(plan.view, key, work, plan.ttl, plan.store_if))

    def cache_info(self) -> CacheInfo:
        """Counts of this process, of all objects if this is a method."""
        return attrs.evolve(self._plan.info)

    def cache_clear(self) -> None:
        """Forget all results of the function: its whole namespace.  `ValueError` if it has none of its own."""
        self._plan.check_clearable()
        self._plan.view.clear()

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self: Cached[Concatenate[S, Q], R], instance: S, owner: type) -> Cached[Q, R]: ...

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else Cached(self._function, self._plan, (instance,))


class AsyncCached(Generic[P, R]):
    """As `Cached`, for coroutine functions: everything but `key` and `cache_info` is awaited."""

    __wrapped__: Callable[P, Awaitable[R]]
    __signature__ = _Signature()

    def __init__(self, function: Callable[P, Awaitable[R]], plan: Plan, bound: tuple[Any, ...] = ()) -> None:
        functools.update_wrapper(self, function)
        self._function, self._plan, self._bound = function, plan, bound
        _mark_as_coroutine_function(self)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        plan, key = self._plan, self.key(*args, **kwargs)
        found, claimer = await plan.view.engine.look(plan.view, key)
        if found is not None:
            plan.info.hits += 1
            return cast("R", found.value)
        plan.info.misses += 1
        work = functools.partial(self._function, *self._bound, *args, **kwargs)
        return cast("R", await plan.view.engine.load(plan.view, key, work, plan.ttl, plan.store_if, claimer))

    def key(self, *args: P.args, **kwargs: P.kwargs) -> Key:
        """See `Cached.key`."""
        return self._plan.keys.make((*self._bound, *args), kwargs)

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """See `Cached.invalidate`."""
        return bool(await self._plan.view.delete(self.key(*args, **kwargs)))

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """See `Cached.refresh`."""
        plan = self._plan
        work = functools.partial(self._function, *self._bound, *args, **kwargs)
        key = self.key(*args, **kwargs)
        return cast("R", await plan.view.engine.refresh(plan.view, key, work, plan.ttl, plan.store_if))

    def cache_info(self) -> CacheInfo:
        """See `Cached.cache_info`."""
        return attrs.evolve(self._plan.info)

    async def cache_clear(self) -> None:
        """See `Cached.cache_clear`."""
        self._plan.check_clearable()
        await self._plan.view.clear()

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self: AsyncCached[Concatenate[S, Q], R], instance: S, owner: type) -> AsyncCached[Q, R]: ...

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else AsyncCached(self._function, self._plan, (instance,))


class Decorator(Protocol):
    """What `cached` with a `Client` returns."""

    def __call__(self, function: Callable[P, R], /) -> Cached[P, R]: ...


class AsyncDecorator(Protocol):
    """What `cached` with an `AsyncClient` returns."""

    def __call__(self, function: Callable[P, Awaitable[R]], /) -> AsyncCached[P, R]: ...


@overload
def cached(
    client: Client,
    ttl: TtlOrDefault = 60,
    key: str | KeyFunction | None = None,
    namespace: str | None = None,
    ignore: Collection[str] = (),
    version: str | int | None = None,
    store_if: StoreIf = None,
) -> Decorator: ...


@overload
def cached(
    client: AsyncClient,
    ttl: TtlOrDefault = 60,
    key: str | KeyFunction | None = None,
    namespace: str | None = None,
    ignore: Collection[str] = (),
    version: str | int | None = None,
    store_if: StoreIf = None,
) -> AsyncDecorator: ...


def cached(
    client: Client | AsyncClient,
    ttl: TtlOrDefault = 60,
    key: str | KeyFunction | None = None,
    namespace: str | None = None,
    ignore: Collection[str] = (),
    version: str | int | None = None,
    store_if: StoreIf = None,
) -> Any:
    """Cache what the decorated function returns, as `client.get_or_set` would.

    * `ttl` (60 s): lifetime of results, as everywhere.
    * `key`: a template such as "user:{id}", or a callable that is given the call's arguments; by default a key is
      made of the function's module and name, `version` and all arguments but those named in `ignore`.
    * `namespace`: a namespace for the results.  By default made keys get one of the function's own, and keys from
      `key=` are keys of the client, so that `client.delete("user:7")` is about them.
    * `version`: change it when the meaning of the result changes, and old results are not met again.
    * `store_if`: results for which it is false are returned and not stored.

    Stands below `@classmethod` and `@staticmethod`.  (From Python 3.13 on a class method's `invalidate`, `refresh` and
    `key` are then given the class too: `C.method.invalidate(C, 1)`.)

    Raises `TypeError` when a coroutine function meets a `Client`, or a plain one an `AsyncClient`, and `ValueError` for
    settings that make no sense or do not fit the function.
    """

    ttl_to_ms(ttl)

    def decorate(function: Callable[..., Any]) -> Any:
        _check_kind(function, client.is_async)
        keys = KeyMaker(function, key, ignore, version)
        own = namespace is not None or key is None
        name = namespace if namespace is not None else _function_namespace(client.options.namespace, keys.name)
        view = client.with_options(namespace=name) if own else client
        return (AsyncCached if client.is_async else Cached)(function, Plan(view, keys, ttl, store_if, own))

    return decorate


def _check_kind(function: Any, is_async: bool) -> None:
    if isinstance(function, (classmethod, staticmethod)):
        kind = type(function).__name__
        raise TypeError(f"put @{kind} above the caching decorator, which is for the function itself")
    if not hasattr(function, "__qualname__"):
        raise TypeError(f"only functions have a name to make keys of, not {type(function).__qualname__}: def one")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError("a generator's values come one by one and cannot be cached: return a list")
    if inspect.iscoroutinefunction(function) and not is_async:
        raise TypeError("a coroutine function needs an AsyncClient, this is a Client")
    if not inspect.iscoroutinefunction(function) and is_async:
        raise TypeError("an AsyncClient caches coroutine functions; use a Client, or make the function async")


def _function_namespace(outer: str, name: str) -> str:
    """The client's namespace and the function's name, as much of the end as there is room for."""
    whole = f"{outer}:{name}" if outer else name
    room = 200
    if len(whole.encode()) > room:
        whole = hashlib.blake2b(whole.encode(), digest_size=8).hexdigest() + ":" + name[-64:]
    namespace_to_bytes(whole)
    return whole


def _mark_as_coroutine_function(wrapper: Any) -> None:
    """Frameworks ask `iscoroutinefunction` to know whether to await."""
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(wrapper)
    else:
        from asyncio.coroutines import _is_coroutine  # type: ignore[attr-defined]

        wrapper._is_coroutine = _is_coroutine  # as asyncio looks for
