"""The floor under all clients: an exchange of messages of the size of a get and of its reply, and nothing else.

    python -m tests.benchmarks.side_by_side.echo REQUEST_LENGTH REPLY_LENGTH

serves one connection after the other with blocking sockets, on a port that it prints.  It is used where no C compiler
is found; else both sides are load.c.
"""

from __future__ import annotations

import socket
import sys
import time

from tests.benchmarks.side_by_side.figures import Spent


class Ping:
    """The client's side."""

    def __init__(self, port: int, request: int, reply: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request, self._reply = bytes(request), reply

    def run(self, count: int) -> Spent:
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            self._socket.sendall(self._request)
            if not received(self._socket, self._reply):
                raise ConnectionError("the echo is gone")
        return Spent(count, time.perf_counter() - start, time.process_time() - cpu)

    def close(self) -> None:
        self._socket.close()


def received(connection: socket.socket, length: int) -> bool:
    """Whether so many bytes came."""
    while length > 0:
        data = connection.recv(length)
        if not data:
            return False
        length -= len(data)
    return True


def serve(request: int, reply: int) -> None:
    answer = bytes(reply)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while received(connection, request):
                    connection.sendall(answer)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
