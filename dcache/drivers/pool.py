"""The connections of the blocking driver to one node, and waiting for those of several nodes together."""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from dcache.drivers.channel import Channel, Unanswered
from dcache.errors import ClientClosed

CHUNK = 256 * 1024
_IN_PROGRESS = {errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EAGAIN, getattr(errno, "WSAEWOULDBLOCK", errno.EAGAIN)}


class Connection:
    """A place in a pool, with a socket and its channel once it is opened; used by one operation at a time."""

    channel: Channel
    sock: socket.socket

    def __init__(self, node: str, extra: bool) -> None:
        self.node = node
        self.extra = extra  # above the pool's bound
        self.opened = False
        self.used = 0.0

    def open(self, addresses: Sequence[Any], channel: Channel, deadline: float) -> None:
        """Begin to connect; `OSError` if that cannot even begin."""
        self.channel, self.deadline = channel, deadline
        self.fresh = True  # has served no earlier operation
        self.unsent = b""
        self._addresses = deque(addresses)
        self._dial()

    def _dial(self) -> None:
        family, kind, proto, _, address = self._addresses.popleft()
        self.sock = socket.socket(family, kind, proto)
        self.opened = self._connecting = True
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self.sock.connect_ex(address)
        if code and code not in _IN_PROGRESS:
            raise OSError(code, os.strerror(code))

    def wants_to_write(self) -> bool:
        return self._connecting or bool(self.unsent)

    def unfinished(self) -> bool:
        """Whether what was asked of it has not left yet."""
        return self.wants_to_write() or not self.channel.ready

    def overdue(self, now: float) -> bool:
        """Whether it should have been made by now."""
        return not self.channel.ready and now >= self.deadline

    def writable(self) -> None:
        """The socket is connected, or can take more bytes; `OSError` if it could not connect."""
        if self._connecting:
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                if not self._addresses:
                    raise OSError(code, os.strerror(code))
                self.sock.close()
                self._dial()
                return
            self._connecting = False
        self.flush()

    def flush(self) -> None:
        """Send what can be sent without waiting."""
        if self._connecting:
            return
        self.unsent += self.channel.take()
        while self.unsent:
            try:
                sent = self.sock.send(self.unsent)
            except (BlockingIOError, InterruptedError):
                return
            self.unsent = self.unsent[sent:]

    def readable(self) -> None:
        """Read what is there; `OSError` or `DcacheError` if the connection is of no more use."""
        while True:
            try:
                data = self.sock.recv(CHUNK)
            except (BlockingIOError, InterruptedError):
                return
            if not data:
                raise ConnectionError("the node closed the connection")
            self.channel.receive(data)
            if len(data) < CHUNK:
                return

    def close(self) -> list[Unanswered]:
        """May be called again, and opened again."""
        if not self.opened:
            return []
        self.sock.close()
        self.opened = False
        return self.channel.close()


Held = dict[str, Connection]
"""The connections of one operation, by node."""


class Pool:
    """The connections to one node: the idle ones, and those in use up to the bound."""

    def __init__(self, node: str, most: int) -> None:
        self._node, self._most = node, most
        self._idle: list[Connection] = []
        self._in_use: set[Connection] = set()  # those above the bound are not among them
        self._lock = threading.Lock()  # guards all here; not entered through the condition, where Ctrl-C could leave it
        self._changed = threading.Condition(self._lock)
        self.closed = False

    def _has_room(self) -> bool:
        return bool(self._idle) or len(self._in_use) < self._most

    def take(self, held: Held, wait: float | None) -> Connection:
        """Put an idle connection, or a new one to be opened, into `held`.

        With `wait` None the caller holds other connections: it never waits, for two such callers could wait for each
        other, and goes above the bound instead.  `TimeoutError` after `wait` seconds.
        """
        with self._lock:
            free = wait is None or self._changed.wait_for(lambda: self._has_room() or self.closed, wait)
            if not free:
                raise TimeoutError(f"all {self._most} connections to this node are in use: raise max_connections")
            if self.closed:
                raise ClientClosed("the client was closed")
            if self._idle:
                return self._take_idle(held)
            extra = len(self._in_use) >= self._most
            connection = held[self._node] = Connection(self._node, extra)
            if not extra:
                self._in_use.add(connection)
            return connection

    def borrow(self, held: Held) -> Connection | None:
        """Put the connection that was used last into `held`, if it is idle."""
        with self._lock:
            return self._take_idle(held) if self._idle else None

    def _take_idle(self, held: Held) -> Connection:
        connection = held[self._node] = self._idle[-1]
        self._in_use.add(connection)
        self._idle.pop()
        return connection

    def give(self, held: Held, connection: Connection) -> bool:
        """Put a connection back.  False if it must be closed by the caller, who still holds it."""
        with self._lock:
            if connection.extra or self.closed:
                return False
            self._in_use.discard(connection)
            del held[self._node]
            self._idle.append(connection)
            self._changed.notify()
            return True

    def forget(self, connection: Connection) -> None:
        """A connection is no more."""
        with self._lock:
            self._in_use.discard(connection)
            self._changed.notify()

    def drain(self) -> list[Connection]:
        """Close the pool; the idle connections are the caller's to close."""
        with self._lock:
            self.closed = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()
            return idle


def ready(connections: Sequence[Connection], seconds: float) -> list[tuple[Connection, bool, bool]]:
    """Those with something to read, or room to write what waits to be written, within `seconds`."""
    if hasattr(select, "poll"):
        poll = select.poll()
        by_fd = {connection.sock.fileno(): connection for connection in connections}
        for fd, connection in by_fd.items():
            poll.register(fd, select.POLLIN | (select.POLLOUT if connection.wants_to_write() else 0))
        return [
            (by_fd[fd], bool(event & ~select.POLLOUT), bool(event & select.POLLOUT))
            for fd, event in poll.poll(math.ceil(seconds * 1000))
        ]
    by_socket = {connection.sock: connection for connection in connections}
    writing = [connection.sock for connection in connections if connection.wants_to_write()]
    if not by_socket:
        time.sleep(seconds)
        return []
    # Windows tells of failed connects in the last of the three.
    readable, writable, broken = select.select(by_socket, writing, writing, seconds)
    touched = dict.fromkeys((*readable, *writable, *broken))
    return [(by_socket[sock], sock in readable, sock in writable or sock in broken) for sock in touched]
