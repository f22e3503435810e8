"""The floor under clients and nodes in Python: messages of the size of a request and of its reply, and nothing else.

    python -m tests.benchmarks.side_by_side.echo FILE

answers requests, which it knows by their length, with the replies that FILE, a MessagePack map, has for them, on a port
that it prints.  It runs uvloop where that is installed, as a node does.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import msgpack

from tests.benchmarks.side_by_side.exchange import Exchange

HOST = "127.0.0.1"
CHUNK = 64 * 1024


class Ping:
    """The client's side: sends the request to each of `ports`, then reads a reply from each."""

    def __init__(self, ports: Sequence[int], exchange: Exchange, then: Callable[[bytes], object] = len) -> None:
        self._request, self._length, self._then = exchange.request, len(exchange.reply), then
        with ExitStack() as stack:
            self._sockets = [stack.enter_context(socket.create_connection((HOST, port))) for port in ports]
            self.close = stack.pop_all().close
        for each in self._sockets:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self, count: int) -> float:
        """The seconds that so many requests take, with what is done with each reply."""
        request, length, then, sockets = self._request, self._length, self._then, self._sockets
        start = time.perf_counter()
        for _ in range(count):
            for each in sockets:
                each.send(request)
            for each in sockets:
                reply = each.recv(CHUNK)
                while len(reply) < length:
                    reply += _more(each)
                then(reply)
        return time.perf_counter() - start


def _more(connection: socket.socket) -> bytes:
    data = connection.recv(CHUNK)
    if not data:
        raise ConnectionError("the echo is gone")
    return data


class Echo(asyncio.Protocol):
    """The node's side."""

    def __init__(self, replies: dict[int, bytes]) -> None:
        self._replies = replies
        self._begun = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = cast("asyncio.Transport", transport).write

    def data_received(self, data: bytes) -> None:
        reply = self._replies.get(len(data))
        if reply is None:  # it came in pieces
            self._begun += data
            reply = self._replies.get(len(self._begun))
            if reply is None:
                return
            self._begun = b""
        self._write(reply)


async def serve(replies: dict[int, bytes]) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Echo(replies), HOST, 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main(file: str) -> None:
    try:
        from uvloop import new_event_loop
    except ImportError:
        from asyncio import new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(msgpack.unpackb(Path(file).read_bytes(), strict_map_key=False)))


if __name__ == "__main__":
    main(sys.argv[1])
