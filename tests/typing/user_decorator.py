"""User code with the decorator: parameters and results of functions and methods survive it.

What must be an error carries an ignore, and an ignore that is not needed is an error itself: so a type that gets lost
fails here.
"""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from dcache import AsyncCached, AsyncClient, Cached, CacheInfo, Client, cached

cache = Client("cache1")
acache = AsyncClient("cache1")


# -- functions ----------------------------------------------------------------------------------------------------


@cached(cache, ttl=60)
def area(width: int, height: int = 1, *, unit: str = "m") -> float:
    return width * height * len(unit)


@cache.cached(ttl=timedelta(minutes=1), key="user:{number}", namespace="users", store_if=lambda user: user is not None)
def user(number: int) -> dict[str, str] | None:
    return {"id": str(number)}


@cache.cached()
def nothing() -> None: ...


def functions() -> None:
    assert_type(area(2), float)
    assert_type(area(2, height=3, unit="cm"), float)
    assert_type(user(1), dict[str, str] | None)
    area("2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    area()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    area(2, 3, "cm")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    area(2, depth=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    user(number=1).get("id")  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    nothing(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def attributes() -> None:
    assert_type(area.invalidate(2, unit="cm"), bool)
    assert_type(area.refresh(2), float)
    assert_type(area.key(2, 3), str | bytes)
    assert_type(area.cache_info(), CacheInfo)
    assert_type(area.cache_info().hits + area.cache_info().misses, int)
    assert_type(area.__wrapped__(2), float)
    area.cache_clear()
    area.invalidate("2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    area.refresh(2, depth=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    area.key()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def may_be_named(function: Cached[[int], str], afunction: AsyncCached[[int], str]) -> None:
    assert_type(function(1), str)
    function("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(afunction.key(1), str | bytes)


# -- coroutine functions ------------------------------------------------------------------------------------------


@cached(acache, ttl=None)
async def fetch(url: str, retries: int = 3) -> bytes:
    return url.encode() * retries


@acache.cached(ignore=["session"], version=2)
async def fetch_with(session: object, url: str) -> bytes:
    return url.encode()


async def coroutine_functions() -> None:
    assert_type(await fetch("u"), bytes)
    assert_type(await fetch_with(object(), url="u"), bytes)
    assert_type(await fetch.invalidate("u"), bool)
    assert_type(await fetch.refresh("u", retries=1), bytes)
    assert_type(fetch.key("u"), str | bytes)
    assert_type(fetch.cache_info(), CacheInfo)
    assert_type(await fetch.__wrapped__("u"), bytes)
    await fetch.cache_clear()
    await fetch(b"u")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await fetch("u", 1, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await fetch.invalidate()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def forgotten_await() -> bytes:
    return fetch("u")  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


@acache.cached()  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def not_a_coroutine_function(x: int) -> int:
    return x


# -- methods ------------------------------------------------------------------------------------------------------


class Service:
    def __init__(self, name: str) -> None:
        self.name = name

    @cache.cached(key="{self.name}:{number}")
    def find(self, number: int, deep: bool = False) -> str:
        return f"{self.name}{number}{deep}"

    @cached(acache, ignore="self")
    async def find_async(self, number: int) -> str:
        return f"{self.name}{number}"

    @staticmethod
    @cache.cached()
    def double(number: int) -> int:
        return 2 * number


class Special(Service):
    pass


def methods(service: Service, special: Special) -> None:
    assert_type(service.find(1), str)
    assert_type(special.find(number=1, deep=True), str)
    assert_type(service.find.invalidate(1), bool)
    assert_type(service.find.refresh(1), str)
    assert_type(service.find.key(1), str | bytes)
    assert_type(service.find.cache_info(), CacheInfo)
    assert_type(Service.find(service, 1), str)
    assert_type(Service.find.invalidate(service, 1), bool)
    assert_type(Service.double(1), int)  # on the class: for `service.double` checkers bind, which Python does not
    service.find("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    service.find(service, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    service.find.invalidate()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Service.find(1)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]


async def async_methods(service: Service) -> None:
    assert_type(await service.find_async(1), str)
    assert_type(await service.find_async.invalidate(1), bool)
    assert_type(await Service.find_async(service, 1), str)
    await service.find_async("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# -- settings -----------------------------------------------------------------------------------------------------


def settings() -> None:
    def make_key(number: int) -> str:
        return f"user:{number}"

    cache.cached(key=make_key)
    cache.cached(ttl="60")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    cache.cached(key=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    cache.cached(colour="red")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    acache.cached(ignore=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    cached("cache1")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
