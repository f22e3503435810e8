"""What requests cost the client and the node themselves: no system call, no other process, all of it warm.

    python -m tests.benchmarks.costs [--seconds 0.5]

The client's socket takes every frame and gives the reply of a real node again and again; the node's transport drops
what is written.  So what is measured is the code of dcache, msgpack and Python, and what a request takes beside that
(`tests.benchmarks.side_by_side`) is the system's: calls into the kernel, wake-ups, and caches that have grown cold
meanwhile.  Beside the time stand how many Python functions are called, and in which files the time goes.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from dcache import Client
from dcache.drivers.machine import THIS_MACHINE
from dcache.drivers.pool import Connection as Place
from dcache.node.server import Connection, Server, ServerLimits
from dcache.node.service import Identity, Service, View
from dcache.node.store import Store
from dcache.record import VersionClock
from dcache.ring import SLOTS, slot_of
from dcache.testing import LocalCluster
from dcache.wire import REPLY, Decoder, Limits, encode_request

BATCH = [f"user:{number:06}" for number in range(100)]
KEY, VALUE = BATCH[0], bytes(100)
FINGERPRINT = bytes(8)
_ID = slice(3, 7)
"""Where a reply of a node has the number of its request, in 32 bits."""


class Replay:
    """In the place of a connection's socket: what was answered once is answered again."""

    def __init__(self, connection: Place) -> None:
        self._socket = connection.sock
        self._before = self._after = self._asked = b""
        self.wanted = False

    def send(self, frames: bytes, flags: int = 0) -> int:
        self._asked = frames
        return len(frames) if self._after else self._socket.send(frames, flags)

    def recv(self, size: int, flags: int = 0) -> bytes:
        if self._after:
            return self._before + number_of(self._asked) + self._after
        data = self._socket.recv(size, flags)
        if self.wanted and len(messages := decoded(data)) == 1 and messages[0][0] == REPLY:
            self._before, self._after = data[: _ID.start], data[_ID.stop :]
        return data

    @property
    def kept(self) -> bool:
        return bool(self._after)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


@contextmanager
def replayed(client: Client, call: Callable[[], object]) -> Iterator[None]:
    """Let what `client` is answered to `call` be answered from memory."""
    members, pools = len(client.members()), client.engine.driver.pools
    while sum(len(pool._idle) for pool in pools.values()) < members:  # a node may be said to be down at first
        call()
    connections = [connection for pool in pools.values() for connection in pool._idle]
    there, replays = [connection.sock for connection in connections], [*map(Replay, connections)]
    for connection, replay in zip(connections, replays, strict=True):
        connection.sock = cast("Any", replay)
    try:
        for connection, replay in zip(connections, replays, strict=True):
            while not connection.channel.quiet():  # it still asks for the table
                call()
            replay.wanted = True
            while not replay.kept:  # nodes answer in turn
                call()
        yield
    finally:
        for connection, sock in zip(connections, there, strict=True):
            connection.sock = sock


def number_of(request: bytes) -> bytes:
    """The number of a request, which has it as MessagePack after two bytes, in 32 bits."""
    kind = request[2]
    if kind < 0xCC:
        return bytes((0, 0, 0, kind))
    size = 1 << kind - 0xCC
    return bytes(4 - size) + request[3 : 3 + size]


def decoded(data: bytes) -> list[tuple[Any, ...]]:
    decoder = Decoder(Limits().max_frame, Limits().max_batch)
    decoder.feed(data)
    return list(decoder.messages())


class Transport:
    """Drops what is written."""

    def write(self, data: bytes) -> None: ...

    def set_write_buffer_limits(self, high: int) -> None: ...


def node_connection() -> Connection:
    """A client's connection to a node that holds the batch, some of it with lifetimes."""
    store = Store(1 << 30, partial(slot_of, seed=0), SLOTS)
    store.own(range(SLOTS))
    store.complete(range(SLOTS))
    service = Service(store, Identity("n1", "boot"), THIS_MACHINE.milliseconds, THIS_MACHINE.wall)
    service.view = View("cluster", FINGERPRINT, ("table",))
    connection = Connection(Server(service, THIS_MACHINE.monotonic, ServerLimits(stall=1e9)))
    connection.connection_made(cast("Any", Transport()))
    clock = VersionClock(1, THIS_MACHINE.wall)
    frames = [encode_request(0, "hello", (1, None, False))]
    for namespace, life in ((b"", None), (b"mortal", 86_400_000)):
        items = [(key.encode(), clock.stamp(), VALUE, 0, life) for key in BATCH]
        frames.append(encode_request(1, "set_many", (FINGERPRINT, namespace, items)))
    for frame in frames:
        connection.data_received(frame)
    return connection


def per_call(call: Callable[[], object], seconds: float) -> float:
    """Microseconds of CPU, the least of many short runs: whatever else the machine does only adds to them."""
    count, best, end = 1, float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        begun = time.process_time()
        for _ in range(count):
            call()
        spent = time.process_time() - begun
        if spent < 0.01:
            count *= 2
        else:
            best = min(best, spent / count)
    return best * 1e6


def profiled(call: Callable[[], object], calls: int = 2000) -> tuple[int, Counter[str]]:
    """How many Python functions a call calls, and the percentage of its time by file, as cProfile sees it: what is
    called in C counts for the file that calls it, and functions seem dearer than they are."""
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(calls):
        call()
    profile.disable()
    number, seconds = 0, Counter[str]()
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]  # which typeshed leaves out
    for (file, _, _), (_, count, own, _, callers) in stats.items():
        if file == "~":
            for (caller, _, _), (_, _, part, _) in callers.items():
                seconds[Path(caller).name] += part
        elif file != __file__:
            number += count
            seconds[Path(file).name] += own
    for nobody in ("~", Path(__file__).name):
        del seconds[nobody]
    whole = seconds.total()
    return round(number / calls), Counter({file: round(100 * part / whole) for file, part in seconds.items()})


def tell(what: str, call: Callable[[], object], seconds: float) -> None:
    number, parts = profiled(call)
    most = ", ".join(f"{file} {part} %" for file, part in parts.most_common(8))
    print(f"{what:34}{per_call(call, seconds):8.2f} us {number:5} functions  {most}", flush=True)


def of_client(cluster: LocalCluster, replicas: int, seconds: float) -> None:
    """A set of three replicas is left out: the third answers when nobody waits for it any more."""
    calls: dict[str, Callable[[Client], object]] = {
        "get": lambda client: client.get(KEY),
        **({"set": lambda client: client.set(KEY, VALUE)} if replicas == 1 else {}),
        "get_many of 100": lambda client: client.get_many(BATCH),
    }
    for what, call in calls.items():
        with cluster.client(timeout=5) as client, replayed(client, partial(call, client)):
            tell(f"client, R={replicas}: {what}", partial(call, client), seconds)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each line, default %(default)s")
    given = parser.parse_args(arguments)
    for replicas in (1, 3):
        with LocalCluster(replicas) as cluster:
            with cluster.client(timeout=5) as client:
                client.set_many(dict.fromkeys(BATCH, VALUE))
            of_client(cluster, replicas, given.seconds)
    connection = node_connection()
    asked: dict[str, tuple[str, bytes, object]] = {
        "node: get": ("get", b"", KEY.encode()),
        "node: get, with a lifetime": ("get", b"mortal", KEY.encode()),
        "node: get_many of 100": ("get_many", b"", [(key.encode(),) for key in BATCH]),
    }
    for what, (method, namespace, argument) in asked.items():
        frame = encode_request(7, method, (FINGERPRINT, namespace, argument))
        tell(what, partial(connection.data_received, frame), given.seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
