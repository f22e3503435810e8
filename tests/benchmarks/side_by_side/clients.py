"""The clients that threads use, each behind the same four calls and otherwise as its makers set it up.

Only timeouts are longer than some have them by default: they must not decide what is measured.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs

from dcache.testing.cluster import HOST
from tests.benchmarks.side_by_side.servers import MEMCACHED, ONE, REDIS, THREE, Servers

KINDS = ("get", "set", "get_many", "set_many")
NO_SET_MANY = ("get", "set", "get_many")
TIMEOUT = 20.0
UNANSWERED = "sets without waiting for an answer, which is its default"


@attrs.frozen
class Calls:
    """Functions or coroutine functions; None for what a client cannot do.

    get(key) and get_many(list of keys) give values as they were set; set(key, value), set_many(dict).
    """

    get: Callable[..., Any]
    set: Callable[..., Any]
    get_many: Callable[..., Any] | None = None
    set_many: Callable[..., Any] | None = None


@attrs.frozen
class Rival:
    """One client.  `opened(servers)` is a context manager of its `Calls`, an asynchronous one if the calls are.

    `shared`: all threads use one object; otherwise each has its own, for it is not safe to share.
    `binary`: keys must be bytes.  `only`: the kinds of work it takes part in.  `packages`: whose versions are told.
    """

    name: str
    server: str
    opened: Callable[[Servers], Any]
    packages: tuple[str, ...]
    shared: bool = True
    binary: bool = False
    only: tuple[str, ...] = KINDS
    note: str = ""

    def missing(self) -> str:
        """Why it cannot take part, "" if it can."""
        for package in self.packages:
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                return f"{package} is not installed"
        return ""


@contextmanager
def pymemcache_client(servers: Servers, **settings: Any) -> Iterator[Calls]:
    from pymemcache.client.base import Client

    client = Client((HOST, servers.port(MEMCACHED)), **settings)
    yield Calls(client.get, client.set, client.get_many, client.set_many)
    client.close()


@contextmanager
def pymemcache_hash_client(servers: Servers) -> Iterator[Calls]:
    from pymemcache.client.hash import HashClient

    client = HashClient([(HOST, servers.port(MEMCACHED))])
    yield Calls(client.get, client.set, client.get_many, client.set_many)
    client.close()


@contextmanager
def pylibmc_client(servers: Servers) -> Iterator[Calls]:
    import pylibmc

    client = pylibmc.Client([f"{HOST}:{servers.port(MEMCACHED)}"])
    yield Calls(client.get, client.set, client.get_multi, client.set_multi)
    client.disconnect_all()


@contextmanager
def meta_memcache_client(servers: Servers) -> Iterator[Calls]:
    from meta_memcache import CacheClient, ServerAddress, connection_pool_factory_builder

    client = CacheClient.cache_client_from_servers(
        [ServerAddress(HOST, servers.port(MEMCACHED))], connection_pool_factory_builder(recv_timeout=TIMEOUT)
    )
    yield Calls(client.get, lambda key, value: client.set(key, value, 0), client.multi_get)


@contextmanager
def redis_client(servers: Servers) -> Iterator[Calls]:
    import redis

    with redis.Redis(HOST, servers.port(REDIS)) as client:
        yield Calls(client.get, client.set, client.mget, client.mset)


@contextmanager
def glide_client(servers: Servers) -> Iterator[Calls]:
    from glide_sync import GlideClient, GlideClientConfiguration, NodeAddress

    address = NodeAddress(HOST, servers.port(REDIS))
    client = GlideClient.create(GlideClientConfiguration([address], request_timeout=int(TIMEOUT * 1000)))
    yield Calls(client.get, client.set, client.mget, client.mset)
    client.close()


def dcache_client(name: str) -> Callable[[Servers], Any]:
    @contextmanager
    def opened(servers: Servers) -> Iterator[Calls]:
        with servers.cluster(name).client(timeout=TIMEOUT) as client:
            client.wait_ready()
            yield Calls(client.get, client.set, client.get_many, client.set_many)

    return opened


def answered(servers: Servers) -> Any:
    return pymemcache_client(servers, default_noreply=False)


RIVALS = (
    Rival("pymemcache", MEMCACHED, pymemcache_client, ("pymemcache",), shared=False, note=UNANSWERED),
    Rival("pymemcache, noreply=False", MEMCACHED, answered, ("pymemcache",), shared=False, only=("set", "set_many")),
    Rival("pymemcache HashClient", MEMCACHED, pymemcache_hash_client, ("pymemcache",), shared=False, note=UNANSWERED),
    Rival("pylibmc", MEMCACHED, pylibmc_client, ("pylibmc",), shared=False),
    Rival("meta-memcache", MEMCACHED, meta_memcache_client, ("meta-memcache",), only=NO_SET_MANY),
    Rival("redis-py", REDIS, redis_client, ("redis", "hiredis")),
    Rival("valkey-glide-sync", REDIS, glide_client, ("valkey-glide-sync",)),
    *(Rival(name, name, dcache_client(name), ("dcache-py",)) for name in (ONE, THREE)),
)
