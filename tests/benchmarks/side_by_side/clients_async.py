"""The clients that tasks use, behind the same four calls as those of clients.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from dcache.testing.cluster import HOST
from tests.benchmarks.side_by_side.clients import NO_SET_MANY, TIMEOUT, Calls, Rival
from tests.benchmarks.side_by_side.servers import MEMCACHED, ONE, REDIS, THREE, Servers

MOST_TASKS = 500


@asynccontextmanager
async def aiomcache_client(servers: Servers) -> AsyncIterator[Calls]:
    import aiomcache

    client = aiomcache.Client(HOST, servers.port(MEMCACHED))

    async def get_many(keys: list[bytes]) -> Any:
        return await client.multi_get(*keys)

    yield Calls(client.get, client.set, get_many)
    await client.close()


@asynccontextmanager
async def emcache_client(servers: Servers) -> AsyncIterator[Calls]:
    import emcache

    address = emcache.MemcachedHostAddress(HOST, servers.port(MEMCACHED))
    client = await emcache.create_client([address], timeout=TIMEOUT)

    async def get(key: bytes) -> bytes | None:
        item = await client.get(key)
        return None if item is None else item.value

    yield Calls(get, client.set, client.get_many)
    await client.close()


@asynccontextmanager
async def redis_client(servers: Servers) -> AsyncIterator[Calls]:
    import redis.asyncio

    port = servers.port(REDIS)
    async with redis.asyncio.Redis(host=HOST, port=port, socket_timeout=TIMEOUT, max_connections=MOST_TASKS) as client:
        yield Calls(client.get, client.set, client.mget, client.mset)


@asynccontextmanager
async def coredis_client(servers: Servers) -> AsyncIterator[Calls]:
    import coredis

    async with coredis.Redis(HOST, servers.port(REDIS)) as client:

        async def get(key: str) -> Any:
            return await client.get(key)

        yield Calls(get, client.set, client.mget, client.mset)


@asynccontextmanager
async def glide_client(servers: Servers) -> AsyncIterator[Calls]:
    from glide import GlideClient, GlideClientConfiguration, NodeAddress

    address = NodeAddress(HOST, servers.port(REDIS))
    client = await GlideClient.create(GlideClientConfiguration([address], request_timeout=int(TIMEOUT * 1000)))
    yield Calls(client.get, client.set, client.mget, client.mset)
    await client.close()


def dcache_client(name: str) -> Callable[[Servers], Any]:
    @asynccontextmanager
    async def opened(servers: Servers) -> AsyncIterator[Calls]:
        async with servers.cluster(name).async_client(timeout=TIMEOUT) as client:
            await client.wait_ready()
            yield Calls(client.get, client.set, client.get_many, client.set_many)

    return opened


RIVALS = (
    Rival("aiomcache", MEMCACHED, aiomcache_client, ("aiomcache",), binary=True, only=NO_SET_MANY),
    Rival("emcache", MEMCACHED, emcache_client, ("emcache",), binary=True, only=NO_SET_MANY),
    Rival("redis.asyncio", REDIS, redis_client, ("redis", "hiredis"), note=f"with room for {MOST_TASKS} connections"),
    Rival("coredis", REDIS, coredis_client, ("coredis",)),
    Rival("valkey-glide", REDIS, glide_client, ("valkey-glide",)),
    *(Rival(name, name, dcache_client(name), ("dcache-py",)) for name in (ONE, THREE)),
)
