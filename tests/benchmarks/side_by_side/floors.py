"""Contestants that do what cannot be left out, and no more: the messages, without a cache that they are about.

The C echo is the floor under everything.  The Python echo is the floor under a client and a node in Python: a loop with
two calls of a blocking socket, and a protocol of uvloop that writes a reply made beforehand.  What a cache takes beside
that is its own.
"""

from __future__ import annotations

from collections.abc import Callable

import msgpack

from tests.benchmarks.side_by_side.alone import said
from tests.benchmarks.side_by_side.echo import Ping
from tests.benchmarks.side_by_side.exchange import BATCH, Exchange
from tests.benchmarks.side_by_side.race import Contestant, Missing
from tests.benchmarks.side_by_side.servers import ECHO, PYTHON_ECHO, Servers
from tests.benchmarks.side_by_side.work import with_cpu

C_ECHO, TWO_ECHOES = "C echo", "Python echo of two nodes"


def of_get(servers: Servers) -> dict[str, Callable[[], Contestant]]:
    """A get of 100 bytes: by C, by Python, and by Python from two nodes at once."""
    return {
        C_ECHO: lambda: in_c(servers),
        PYTHON_ECHO: lambda: in_python(PYTHON_ECHO, servers, 1, servers.exchange()),
        TWO_ECHOES: lambda: in_python(TWO_ECHOES, servers, 2, servers.exchange()),
    }


def of_batch(servers: Servers) -> dict[str, Callable[[], Contestant]]:
    """A get of 100 values of 100 bytes, until they are in a dict."""

    def values(reply: bytes) -> dict[str, bytes]:
        answers = msgpack.unpackb(reply, use_list=False)[3]
        return {key: answer[2] for key, answer in zip(BATCH, answers, strict=True)}

    return {PYTHON_ECHO: lambda: in_python(PYTHON_ECHO, servers, 1, servers.batch(), values)}


def in_c(servers: Servers) -> Contestant:
    if servers.load is None:
        raise Missing("no C compiler")
    port, exchange = servers.port(ECHO), servers.exchange()
    words = ["ping", str(port), str(len(exchange.request)), str(len(exchange.reply))]
    return Contestant(C_ECHO, lambda count: said(servers.load, [*words, str(count)], count))


def in_python(
    name: str, servers: Servers, nodes: int, exchange: Exchange, then: Callable[[bytes], object] = len
) -> Contestant:
    ping = Ping(servers.ports(PYTHON_ECHO)[:nodes], exchange, then)
    return Contestant(name, with_cpu(ping.run, servers.pids(PYTHON_ECHO)[:nodes]), ping.close)
