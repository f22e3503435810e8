"""The connections of the blocking driver to one node, and waiting for those of several nodes together."""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from dcache.drivers.channel import Channel, Unanswered
from dcache.errors import ClientClosed
from dcache.wire import REQUEST, lone_result, pack

CHUNK = 64 * 1024
"""Bytes read at once: a buffer of this size costs next to nothing to have, one of 256 KiB more than a whole read."""

PROMPT = sys.platform == "linux"
"""Whether a read can wait in the call that reads, by the kernel's timeout.  Sockets are blocking then, for that alone;
all else is done with a flag that says not to wait, which not every system minds when it sends."""

_NOW = socket.MSG_DONTWAIT if PROMPT else 0
SLACK = 0.002  # seconds that a wait in the kernel may take longer than it need
RECENT = 1.0
"""Seconds for which a connection that was of use is taken to be so still."""
CLOSED = "the node closed the connection"
_IN_PROGRESS = {errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EAGAIN, getattr(errno, "WSAEWOULDBLOCK", errno.EAGAIN)}


class Connection:
    """A place in a pool, with a socket and its channel once it is opened; used by one operation at a time."""

    channel: Channel
    sock: socket.socket

    def __init__(self, node: str, extra: bool) -> None:
        self.node = node
        self.extra = extra  # above the pool's bound
        self.opened = False
        self.quiet_until = 0.0  # until when it is taken to be sound, and nothing is under way on it, either way
        self._patience = 0.0  # what the kernel was told

    def open(self, addresses: Sequence[Any], channel: Channel, deadline: float) -> None:
        """Begin to connect; `OSError` if that cannot even begin."""
        self.channel, self.deadline = channel, deadline
        self.fresh = True  # has served no earlier operation
        self.unsent = self.unread = b""
        self._addresses = deque(addresses)
        self._dial()

    def _dial(self) -> None:
        family, kind, proto, _, address = self._addresses.popleft()
        self.sock = socket.socket(family, kind, proto)
        self.opened = self._connecting = True
        self._patience = 0.0
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
            self.sock.setblocking(PROMPT)
        self.flush()

    def flush(self) -> None:
        """Send what can be sent without waiting."""
        if self._connecting:
            return
        frames = self.channel.take()
        self.send(self.unsent + frames if self.unsent else frames)

    def send(self, frames: bytes) -> None:
        """Send these, all that is unsent, as far as that goes without waiting."""
        self.unsent = frames
        while frames:
            try:
                sent = self.sock.send(frames, _NOW)
            except (BlockingIOError, InterruptedError):
                return
            self.unsent = frames = frames[sent:]

    def ask(self, method: str, params: tuple[Any, ...]) -> int:
        """Make a request on a connection that was quiet, and tell its id.  Its channel does not know of it."""
        message_id: int = next(self.channel.ids)
        frame = pack((REQUEST, message_id, method, params))  # as `encode_request`: a call less for each get
        if self.unsent:  # of a request before this one
            self.send(self.unsent + frame)
            return message_id
        try:
            sent = self.sock.send(frame, _NOW)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent < len(frame):
            self.send(frame[sent:])
        return message_id

    def hear(self, message_id: int, seconds: float) -> Any:
        """The result of that request, if its reply comes alone; else None, and what has come instead is `unread`.

        Waits, and raises, as `await_bytes` does.
        """
        if not seconds <= self._patience <= 1.25 * seconds + SLACK:
            self._be_patient(seconds)
        data = self.sock.recv(CHUNK)
        result = lone_result(data, message_id)
        if result is None:
            if not data:
                raise ConnectionError(CLOSED)
            self.unread = data
        return result

    def readable(self) -> None:
        """Read what is there; `OSError` or `DcacheError` if the connection is of no more use."""
        while True:
            try:
                data = self.sock.recv(CHUNK, _NOW)
            except (BlockingIOError, InterruptedError):
                return
            if not data:
                raise ConnectionError(CLOSED)
            self.channel.receive(data)
            if len(data) < CHUNK:
                return

    def rest(self, now: float) -> None:
        """Nothing is wrong with it as far as is known, and nobody waits for what it may still bring."""
        quiet = self.opened and self.channel.quiet() and not self.wants_to_write()
        self.quiet_until = now + RECENT if quiet else 0.0

    def await_bytes(self, seconds: float) -> bytes:
        """Wait for bytes, `CHUNK` at most, in the call that reads them.

        `BlockingIOError` if none come within `seconds` or, as the kernel is not exact, a few milliseconds more, another
        `OSError` if the connection is of no more use.
        """
        self._be_patient(seconds)
        data = self.sock.recv(CHUNK)
        if not data:
            raise ConnectionError(CLOSED)
        return data

    def lives(self) -> bool:
        """Whether nothing is known to the contrary, without reading."""
        try:
            return bool(self.sock.recv(1, _NOW | socket.MSG_PEEK))
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False

    def _be_patient(self, seconds: float) -> None:
        """Tell the kernel how long to wait.  That is a system call too, so it is not told of small differences."""
        if seconds <= self._patience <= 1.25 * seconds + SLACK:
            return
        milliseconds = math.ceil(seconds * 1000)
        timeout = struct.pack("@ll", milliseconds // 1000, milliseconds % 1000 * 1000)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        self._patience = milliseconds / 1000

    def close(self) -> list[Unanswered]:
        """May be called again, and opened again."""
        if not self.opened:
            return []
        self.sock.close()
        self.opened, self.quiet_until = False, 0.0
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
        self._queue = 0  # how many wait
        self.closed = False

    def _has_room(self) -> bool:
        return bool(self._idle) or len(self._in_use) < self._most

    def take(self, held: Held, wait: float | None) -> Connection:
        """Put an idle connection, or a new one to be opened, into `held`.

        With `wait` None the caller holds other connections: it never waits, for two such callers could wait for each
        other, and goes above the bound instead.  `TimeoutError` after `wait` seconds.
        """
        with self._lock:
            if wait is not None and not self._has_room():
                self._queue_up(wait)
            if self.closed:
                raise ClientClosed("the client was closed")
            if self._idle:
                return self._take_idle(held)
            extra = len(self._in_use) >= self._most
            connection = held[self._node] = Connection(self._node, extra)
            if not extra:
                self._in_use.add(connection)
            return connection

    def _queue_up(self, wait: float) -> None:
        self._queue += 1
        try:
            free = self._changed.wait_for(lambda: self._has_room() or self.closed, wait)
        finally:
            self._queue -= 1
        if not free:
            raise TimeoutError(f"all {self._most} connections to this node are in use: raise max_connections")

    def borrow(self, held: Held) -> Connection | None:
        """Put the connection that was used last into `held`, if it is idle."""
        if not self._idle:
            return None
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
            if self._queue:
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
