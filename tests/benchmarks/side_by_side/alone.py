"""Contestants without a client: servers under the load generator."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import attrs

from tests.benchmarks.side_by_side.exchange import Exchange, with_memcached, with_redis
from tests.benchmarks.side_by_side.figures import Spent
from tests.benchmarks.side_by_side.race import Contestant, Job, Missing, reason
from tests.benchmarks.side_by_side.servers import MEMCACHED, ONE, PYTHON_ECHO, REDIS, Servers

NODE = "dcache-node"
PATIENCE = 120.0


def under_load(job: Job, servers: Servers) -> tuple[list[Contestant], dict[str, str]]:
    """One node, memcached with one thread, Redis, and a protocol of uvloop that only has a reply, each asked over
    `job.workers` connections at once."""
    kinds: dict[str, tuple[str, Callable[[], Exchange]]] = {
        PYTHON_ECHO: (PYTHON_ECHO, lambda: attrs.evolve(servers.exchange(), hello=b"", hello_reply=0)),
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
    port = servers.cluster(server).addresses[0].rpartition(":")[2] if server == ONE else servers.port(server)
    numbers = [str(number) for number in (port, connections, count, servers.pids(server)[0])]
    hello = [exchange.hello.hex() or "-", str(exchange.hello_reply)]
    return said(servers.load, ["get", *numbers, *hello, exchange.request.hex(), exchange.reply.hex()], count)


def said(load: Path | None, words: list[str], count: int) -> Spent:
    """What load.c says that `count` requests cost."""
    assert load is not None
    done = subprocess.run([load, *words], check=False, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode != 0:
        raise Missing(f"the load generator ended: {done.stderr.strip()}")
    seconds, own, server = map(float, done.stdout.split())
    return Spent(count, seconds, own, None if server < 0 else server)
