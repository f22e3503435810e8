"""What a node does and sends per request, counted, so that nothing grows unseen: no timing, the same everywhere."""

from __future__ import annotations

import asyncio
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any, cast

import pytest

from dcache.node.server import Connection, Server
from dcache.node.service import Identity, Service, View
from dcache.node.store import Store
from dcache.record import make_version
from dcache.wire import PROTOCOL, Decoder, encode_request

RING = bytes(8)
VALUE = b"x" * 100
KEYS = [b"user:%06d" % n for n in range(100)]
WALL = 1_700_000_000_000
HEAD = 8  # bytes of a reply beside its result: an array of four, its kind, the id in 32 bits, no error
VERSION = 2 + 12


class Recording:
    """A transport that keeps what is written, and how often it was asked to do anything."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.others = 0

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def pause_reading(self) -> None:
        self.others += 1

    def resume_reading(self) -> None:
        self.others += 1


class Clock:
    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        return 0.0


class Line:
    """A greeted connection of a node that holds all of `KEYS`, the last ten for an hour."""

    def __init__(self) -> None:
        store = Store(1 << 24, lambda key: key[-1] % 4, 4)
        store.own(range(4))
        store.complete(range(4))
        service = Service(store, Identity("n1", "boot-1"), lambda: 0, lambda: WALL)
        service.view = View("cluster-1", RING, ("table",))
        self.clock = Clock()
        self.transport = Recording()
        self._connection = Connection(Server(service, self.clock))
        self._connection.connection_made(cast("asyncio.Transport", self.transport))
        self.send(encode_request(0, "hello", (PROTOCOL, None, False)))
        for n, key in enumerate(KEYS):
            self.send(setting(n, key, n, None if n < 90 else 3_600_000))

    def send(self, *frames: bytes) -> list[bytes]:
        """What is written when these come at once."""
        self.transport.writes.clear()
        self.transport.others = self.clock.asked = 0
        self._connection.data_received(b"".join(frames))
        return self.transport.writes

    def choke(self) -> None:
        """The client reads no replies."""
        self._connection.pause_writing()

    def read_again(self) -> list[bytes]:
        """What is written once the client reads on."""
        self._connection.resume_writing()
        return self.transport.writes


@pytest.fixture
def line() -> Line:
    return Line()


def getting(message_id: int, key: bytes) -> bytes:
    return encode_request(message_id, "get", (RING, b"", key))


def setting(message_id: int, key: bytes, n: int, ttl: int | None = None) -> bytes:
    return encode_request(message_id, "set", (RING, b"", key, make_version(WALL, n, 1), VALUE, 0, ttl))


def replies(data: bytes) -> list[tuple[Any, ...]]:
    decoder = Decoder(1 << 24, 1 << 16)
    decoder.feed(data)
    return list(decoder.messages())


# -- reads and writes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requests", [1, 2, 50, 128])
def test_requests_that_come_at_once_are_answered_in_one_write(line: Line, requests: int) -> None:
    (written,) = line.send(*(getting(n, KEYS[n % 100]) for n in range(requests)))
    assert [reply[1] for reply in replies(written)] == list(range(requests))


def test_a_request_costs_the_transport_nothing_but_the_write(line: Line) -> None:
    line.send(getting(1, KEYS[0]))
    assert line.transport.others == 0


@pytest.mark.parametrize("requests", [1, 50])
def test_the_servers_clock_is_looked_at_once_per_read(line: Line, requests: int) -> None:
    line.send(*[getting(1, KEYS[0])] * requests)
    assert line.clock.asked == 1


def test_a_request_that_comes_while_replies_wait_is_handled_after_them(line: Line) -> None:
    line.choke()
    assert line.send(getting(1, KEYS[0])) == []
    (written,) = line.read_again()
    assert [reply[1] for reply in replies(written)] == [1]


# -- bytes ------------------------------------------------------------------------------------------------------------


def test_a_hit_takes_28_bytes_beside_its_value(line: Line) -> None:
    (written,) = line.send(getting(70_000, KEYS[0]))
    assert len(written) == HEAD + 20 + len(VALUE)


def test_a_hit_with_a_lifetime_takes_32_bytes_beside_its_value(line: Line) -> None:
    (written,) = line.send(getting(70_000, KEYS[95]))
    assert replies(written)[0][3][4] == 3_600_000
    assert len(written) == HEAD + 19 + len(VALUE) + 5


def test_a_miss_takes_25_bytes(line: Line) -> None:
    (written,) = line.send(getting(70_000, b"absent"))
    assert len(written) == HEAD + 3 + VERSION


def test_the_answer_to_a_set_takes_25_bytes(line: Line) -> None:
    (written,) = line.send(setting(70_000, KEYS[0], 1000))
    assert len(written) == HEAD + 3 + VERSION


def test_an_answer_in_a_batch_takes_20_bytes_beside_its_value(line: Line) -> None:
    (written,) = line.send(encode_request(70_000, "get_many", (RING, b"", [(key,) for key in KEYS[:90]])))
    assert len(written) == HEAD + 3 + 90 * (20 + len(VALUE))


# -- calls ------------------------------------------------------------------------------------------------------------


def calls_of(work: Callable[[], object]) -> int:
    """How many Python functions are called."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def test_a_hit_costs_few_calls(line: Line) -> None:
    frame = getting(1, KEYS[0])
    assert calls_of(lambda: line.send(frame)) <= 14


def test_a_key_more_in_a_batch_of_hits_costs_no_call(line: Line) -> None:
    few, many = (encode_request(1, "get_many", (RING, b"", [(key,) for key in KEYS[:n]])) for n in (10, 90))
    assert calls_of(lambda: line.send(few)) == calls_of(lambda: line.send(many))


def test_a_key_more_in_a_batch_of_writes_costs_few_calls(line: Line) -> None:
    def batch(size: int, counter: int) -> bytes:
        version = make_version(WALL, counter, 1)
        return encode_request(1, "set_many", (RING, b"", [(key, version, VALUE, 0, None) for key in KEYS[:size]]))

    few, many = batch(10, 2_000), batch(60, 3_000)
    assert (calls_of(lambda: line.send(many)) - calls_of(lambda: line.send(few))) / 50 <= 16


@pytest.mark.parametrize("keys", [1, 20])
def test_a_large_reply_is_put_together_once(line: Line, keys: int) -> None:
    """Two copies at a time are more than an allocator keeps at hand: then the system clears pages for every reply."""
    for n, key in enumerate(KEYS[:keys], 1000):
        line.send(encode_request(1, "set", (RING, b"", key, make_version(WALL, n, 1), bytes(100_000), 0, None)))
    asked = KEYS[0] if keys == 1 else [(key,) for key in KEYS[:keys]]
    frame = encode_request(1, "get" if keys == 1 else "get_many", (RING, b"", asked))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        (reply,) = line.send(frame)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(reply) > keys * 100_000
    assert peak - before < 1.2 * len(reply)
