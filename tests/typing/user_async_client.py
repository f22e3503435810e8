"""User code with `AsyncClient`: the same as with `Client`, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, assert_type

from dcache import AsyncClient, DcacheError, Item, Member, Version

CACHE = AsyncClient(["cache1:7400"], namespace="app", timeout=1)


async def operations(cache: AsyncClient) -> None:
    assert_type(await cache.set("key", 1, ttl=60), Version)
    assert_type(await cache.get("key"), Any)
    assert_type(await cache.gets(b"key"), Item | None)
    assert_type(await cache.exists("key"), bool)
    assert_type(await cache.ttl("key"), float | None)
    assert_type(await cache.delete("key"), bool)
    assert_type(await cache.add("key", 1), bool)
    assert_type(await cache.replace("key", 1), bool)
    assert_type(await cache.incr("key", 2, initial=1), int)
    assert_type(await cache.decr("key"), int)
    assert_type(await cache.touch("key", None), bool)
    assert_type(await cache.get_many(["a"]), dict[str, Any])
    assert_type(await cache.set_many({"a": 1}), dict[str, DcacheError])
    assert_type(await cache.delete_many(["a"]), int)
    await cache.get(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def forgotten_await(cache: AsyncClient) -> bool:
    return cache.exists("key")  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


async def computing(cache: AsyncClient) -> None:
    async def load() -> list[int]:
        return [1]

    def plain() -> list[int]:
        return [1]

    assert_type(await cache.get_or_set("key", load, 60), list[int])
    assert_type(await cache.get_or_set("key", load, store_if=lambda value: len(value) > 0), list[int])
    await cache.get_or_set("key", plain)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def cluster(cache: AsyncClient) -> None:
    keys = cache.scan("prefix")
    assert_type(keys, AsyncIterator[str | bytes])
    async for key in keys:
        assert_type(key, str | bytes)
    assert_type(await cache.ping(), dict[str, float])
    assert_type(await cache.members(), tuple[Member, ...])
    assert_type(await cache.stats(), dict[str, Any])
    await cache.wait_ready(5)
    await cache.clear()
    async with cache as same:
        assert_type(same, AsyncClient)
    assert_type(cache.with_options(timeout=2), AsyncClient)
    assert_type(AsyncClient.from_url("dcache://h"), AsyncClient)
