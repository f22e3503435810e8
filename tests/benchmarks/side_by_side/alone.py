"""Contestants without a Python client: servers under the load generator, and the echo."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.benchmarks.side_by_side.echo import Ping
from tests.benchmarks.side_by_side.exchange import Exchange, with_memcached, with_redis
from tests.benchmarks.side_by_side.figures import Spent
from tests.benchmarks.side_by_side.race import Contestant, Job, Missing, reason
from tests.benchmarks.side_by_side.servers import ECHO, MEMCACHED, ONE, REDIS, Servers

NODE, C_ECHO, PYTHON_ECHO = "dcache-node", "C echo", "echo of blocking sockets in Python"
PATIENCE = 120.0


def echo(servers: Servers) -> Contestant:
    """The exchange of messages as long as a get and its reply, in C if there is a compiler."""
    port, exchange = servers.port(ECHO), servers.exchange()
    request, reply = len(exchange.request), len(exchange.reply)
    if servers.load is None:
        ping = Ping(port, request, reply)
        return Contestant(PYTHON_ECHO, ping.run, ping.close)
    words = ["ping", str(port), str(request), str(reply)]
    return Contestant(C_ECHO, lambda count: said(servers.load, [*words, str(count)], count))


def under_load(job: Job, servers: Servers) -> tuple[list[Contestant], dict[str, str]]:
    """One node, memcached with one thread, and Redis, each asked over `job.workers` connections at once."""
    kinds: dict[str, tuple[str, Callable[[], Exchange]]] = {
        NODE: (ONE, servers.exchange),
        MEMCACHED: (MEMCACHED, lambda: with_memcached(servers.port(MEMCACHED))),
        REDIS: (REDIS, lambda: with_redis(servers.port(REDIS))),
    }
    ready, skipped = [], {}
    for name, (server, exchange) in kinds.items():
        try:
            run = partial(asked, servers, server, exchange(), job.workers)
            ready.append(Contestant(name, run, unit=job.workers))
        except Exception as error:  # noqa: BLE001  # whatever is wrong with it, the others go on
            skipped[name] = reason(error)
    return ready, skipped


def asked(servers: Servers, server: str, exchange: Exchange, connections: int, count: int) -> Spent:
    if servers.load is None:
        raise Missing("no C compiler to build the load generator with")
    (port,) = (int(address.rpartition(":")[2]) for address in addresses(servers, server))
    (pid,) = servers.pids(server)
    numbers = [str(number) for number in (port, connections, count, pid)]
    hello = [exchange.hello.hex() or "-", str(exchange.hello_reply)]
    return said(servers.load, ["get", *numbers, *hello, exchange.request.hex(), exchange.reply.hex()], count)


def addresses(servers: Servers, server: str) -> tuple[str, ...]:
    return servers.cluster(server).addresses if server == ONE else (f":{servers.port(server)}",)


def said(load: Path | None, words: list[str], count: int) -> Spent:
    """What load.c says that `count` requests cost."""
    assert load is not None
    done = subprocess.run([load, *words], check=False, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode != 0:
        raise Missing(f"the load generator ended: {done.stderr.strip()}")
    seconds, own, server = map(float, done.stdout.split())
    return Spent(count, seconds, own, None if server < 0 else server)
