"""A node's server on a real socket, spoken to in raw bytes; its clocks are the test's."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import socket
import tracemalloc
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import attrs
import msgpack
import pytest

from dcache.node import server as server_module
from dcache.node.server import Server, ServerLimits
from dcache.node.service import Identity, Service, View
from dcache.node.store import Store
from dcache.record import VersionClock, make_version
from dcache.wire import MESSAGES, PROTOCOL, Code, Decoder, Limits, Status, encode_reply, encode_request
from tests.conftest import Run

RING, NS = b"ring", b"ns"
WALL = 1_000_000_000_000
LONG = 10**9
MIB = 1024 * 1024
WAIT = 20.0  # seconds until a test gives up waiting
PING_FIRST = "the first request must be hello"

Main = Callable[[], Coroutine[Any, Any, None]]


class Clock:
    """The server's clock in seconds; it moves only when told to."""

    def __init__(self) -> None:
        self.seconds, self.asked = 0.0, 0

    def now(self) -> float:
        self.asked += 1
        return self.seconds

    async def beats(self, beats: int = 5) -> None:
        """Until the server has looked at the clock this often, at least."""
        seen = self.asked
        await until(lambda: self.asked >= seen + 2 * beats)


class Peer:
    """One client connection, as raw as it gets."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._decoder = Decoder(64 * MIB, 1 << 20)
        self._inbox: deque[tuple[Any, ...]] = deque()

    async def send(self, *frames: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, b"".join(frames))

    async def message(self) -> tuple[Any, ...] | None:
        """The next message; None when the node has closed the connection."""
        while not self._inbox:
            try:
                async with asyncio.timeout(WAIT):
                    data = await asyncio.get_running_loop().sock_recv(self.sock, MIB)
            except (ConnectionResetError, BrokenPipeError):
                return None
            if not data:
                return None
            self._decoder.feed(data)
            self._inbox += self._decoder.messages()
        return self._inbox.popleft()

    async def messages(self, count: int) -> list[Any]:
        return [await self.message() for _ in range(count)]

    async def rest(self) -> list[tuple[Any, ...]]:
        """All that comes until the node closes the connection."""
        rest = []
        while (message := await self.message()) is not None:
            rest.append(message)
        return rest

    async def call(self, method: str, *params: Any) -> Any:
        await self.send(encode_request(7, method, params))
        message = await self.message()
        assert message is not None, "the connection was closed"
        assert message[:3] == (1, 7, None)
        return message[3]

    def close(self) -> None:
        self.sock.close()


@attrs.define(eq=False)
class Node:
    server: Server
    service: Service
    clock: Clock
    port: int = 0
    peers: list[Peer] = attrs.field(factory=list)

    async def connect(
        self,
        *,
        greet: bool = True,
        push: bool = False,
        cluster_id: str | None = None,
        receive_buffer: int | None = None,
    ) -> Peer:
        sock = socket.socket()
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        peer = Peer(sock)
        self.peers.append(peer)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        if greet:
            assert (await peer.call("hello", PROTOCOL, cluster_id, push))["node"] == "n1"
        return peer

    async def served(self, count: int) -> None:
        """Until the server has this many connections."""
        await until(lambda: len(self.server.connections) == count)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def serving(*, limits: Limits = Limits(), memory: int = 64 * MIB, **server_limits: Any) -> AsyncIterator[Node]:
    clock = Clock()
    store = Store(memory, lambda key: key[-1] % 4, 4)
    store.own(range(4))
    store.complete(range(4))
    service = Service(store, Identity("n1", "boot-1"), lambda: 0, lambda: WALL, limits=limits)
    service.view = View("cluster-1", RING, ("table",))
    node = Node(Server(service, clock.now, ServerLimits(**server_limits)), service, clock)
    node.port = await node.server.start("127.0.0.1", 0)
    try:
        yield node
    finally:
        for peer in node.peers:
            peer.close()
        await node.server.stop(1.0)


@pytest.fixture(autouse=True)
def _quick_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "BEAT", 0.01)


@pytest.fixture(params=["asyncio", "uvloop"])
def on_loop(request: pytest.FixtureRequest, run: Run) -> Callable[[Main], None]:
    """Run the test's `main` on each kind of loop that a node may run on."""
    factory = None if request.param == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    return lambda main: run(main(), loop_factory=factory)


OnLoop = Callable[[Main], None]


def v(n: int) -> bytes:
    return make_version(WALL + n, 0, 1)


def setting(key: bytes, n: int = 1, value: bytes = b"x", message_id: int = 1) -> bytes:
    return encode_request(message_id, "set", (RING, NS, key, v(n), value, 0, None))


def getting(key: bytes, message_id: int) -> bytes:
    return encode_request(message_id, "get", (RING, NS, key))


def pinging(message_id: int) -> bytes:
    return encode_request(message_id, "ping", ())


def answered(message_id: int, result: Any = None) -> tuple[Any, ...]:
    return 1, message_id, None, result


def told_off(message: Any, code: Code = Code.BAD_REQUEST) -> bool:
    """Whether this is the error frame for bytes that are no request."""
    return message is not None and message[:2] == (1, None) and message[2][:2] == (code, MESSAGES[code])


# -- answers -----------------------------------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving(max_in_flight=16) as node:
            peer = await node.connect()
            frames, expected = [], []
            for n in range(300):
                value = b"%d" % n
                frames += [setting(b"k", n + 1, value, 2 * n), getting(b"k", 2 * n + 1)]
                expected.append(answered(2 * n, (True, Status.STORED, v(n + 1))))
                expected.append(answered(2 * n + 1, (True, v(n + 1), value, 0, None)))
            await peer.send(*frames)
            assert await peer.messages(600) == expected

    on_loop(main)


def test_frames_may_come_byte_by_byte(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving() as node:
            peer = await node.connect(greet=False)
            peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            hello = encode_request(0, "hello", (PROTOCOL, None, False))
            for byte in hello + setting(b"k") + getting(b"k", 2):
                await peer.send(bytes([byte]))
                await asyncio.sleep(0)
            replies = await peer.messages(3)
            assert [reply[1] for reply in replies] == [0, 1, 2]
            assert replies[2] == answered(2, (True, v(1), b"x", 0, None))

    on_loop(main)


def test_a_refusal_and_an_internal_error_leave_the_connection_open(
    on_loop: OnLoop, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise KeyError("a bug")

    async def main() -> None:
        async with serving() as node:
            node.service.methods["broken"] = broken
            peer = await node.connect()
            await peer.send(encode_request(1, "nothing", ()), encode_request(2, "broken", ()), pinging(3))
            refusal, internal, pong = await peer.messages(3)
            assert refusal == (1, 1, (Code.UNKNOWN_METHOD, "unknown method", "nothing"), None)
            assert internal == (1, 2, (Code.INTERNAL, "internal error", None), None)
            assert pong == answered(3)
            assert (await peer.call("stats"))["refusals"] == 1

    on_loop(main)
    assert "internal error in broken" in caplog.text


def test_notifications_and_replies_from_a_client_are_not_answered(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving() as node:
            peer = await node.connect()
            await peer.send(msgpack.packb([2, "ping", []]), encode_reply(5, "unasked"), pinging(1))
            assert await peer.message() == answered(1)

    on_loop(main)


def test_the_first_request_must_be_hello(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving() as node:
            peer = await node.connect(greet=False)
            await peer.send(setting(b"k"))
            (message,) = await peer.rest()
            assert told_off(message)
            assert message[2][2] == PING_FIRST
            assert len(node.service.store) == 0

    on_loop(main)


def test_a_refused_hello_is_no_greeting(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving() as node:
            peer = await node.connect(greet=False)
            await peer.send(encode_request(0, "hello", (PROTOCOL + 1, None, True)), encode_request(1, "hello", ()))
            assert [message[2][0] for message in await peer.messages(2)] == [Code.BAD_REQUEST] * 2
            await peer.send(pinging(2))
            assert [message[1] for message in await peer.rest()] == [None]

    on_loop(main)


# -- bad bytes ---------------------------------------------------------------------------------------------------------

SMALL = Limits(max_value=64 * 1024, frame_room=64 * 1024, max_batch=64)


def packed(message: object) -> bytes:
    return bytes(msgpack.packb(message))


BAD = {
    "never used byte": b"\xc1",
    "another protocol": b"GET / HTTP/1.1\r\nHost: n1\r\n\r\n",
    "random": random.Random(1).randbytes(200) + b"\xc1",
    "no array": packed({"a": 1}),
    "empty array": packed([]),
    "unknown kind": packed([3, 1, "ping", []]),
    "short request": packed([0, 1, "ping"]),
    "method no string": packed([0, 1, 5, []]),
    "parameters no array": packed([0, 1, "ping", {}]),
    "negative id": packed([0, -1, "ping", []]),
    "id over 32 bits": packed([0, 1 << 32, "ping", []]),
    "text not utf-8": b"\x94\x00\x01\xa2\xff\xfe\x90",
    "extension type": packed([0, 1, "ping", [msgpack.ExtType(1, b"x")]]),
    "array of too many": packed([0, 1, "get_many", [b"", b"", [None] * 65]]),
    "array said to be huge": b"\x94\x00\x01\xa4ping\xdd\xff\xff\xff\xff",
    "binary said to be huge": b"\x94\x00\x01\xa4ping\x91\xc6\xff\xff\xff\xff" + bytes(SMALL.max_frame),
    "frame too large": b"\x94\x00\x01\xa4ping\x91\xc6\x00\x02\x00\x00" + bytes(128 * 1024 + 100),
    "many small parts": b"\x94\x00\x01\xa4ping\xdc\x00\x40" + (b"\xdc\x00\x40" + b"\xc4\x40" * 64 + bytes(4096)) * 64,
    "deeply nested": b"\x91" * 100_000,
    "deeply nested parameters": b"\x94\x00\x01\xa4ping" + b"\x91" * 100_000,
}


@pytest.mark.parametrize("bad", BAD.values(), ids=list(BAD))
def test_bad_bytes_close_that_connection_with_an_error_and_no_other(on_loop: OnLoop, bad: bytes) -> None:
    async def main() -> None:
        async with serving(limits=SMALL) as node:
            other, peer = await node.connect(), await node.connect()
            await peer.send(pinging(1))
            assert await peer.message() == answered(1)
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                await peer.send(bad)
            *_, last = await peer.rest()
            assert told_off(last)
            assert await other.call("ping") is None
            assert (node.server.rejected, len(node.server.connections)) == (1, 1)

    on_loop(main)


def test_requests_before_the_bad_bytes_are_answered_and_those_after_are_not_carried_out(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving() as node:
            peer = await node.connect()
            await peer.send(setting(b"before"), b"\xc1", setting(b"after"))
            first, last = await peer.rest()
            assert first == answered(1, (True, Status.STORED, v(1)))
            assert told_off(last)
            assert node.service.store.keys() == [b"ns\0before"]

    on_loop(main)


def test_a_client_that_leaves_in_the_middle_of_a_frame_leaves_nothing_behind(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving() as node:
            other, peer = await node.connect(), await node.connect()
            await peer.send(pinging(1), setting(b"k")[:-1])
            peer.sock.shutdown(socket.SHUT_WR)
            assert await peer.rest() == [answered(1)]
            await node.served(1)
            assert len(node.service.store) == 0
            assert await other.call("ping") is None

    on_loop(main)


def garbage(rng: random.Random) -> bytes:
    """A stream that is bad, or good, in one of many ways."""
    good = rng.choice([setting(rng.randbytes(4)), getting(b"k", 5), pinging(rng.randrange(1 << 32))]) * rng.randint(
        1, 4
    )
    match rng.randrange(6):
        case 0:
            return rng.randbytes(rng.randint(1, 2000))
        case 1:
            return good[: rng.randrange(len(good))]
        case 2:
            flipped = bytearray(good)
            for _ in range(rng.randint(1, 5)):
                flipped[rng.randrange(len(flipped))] = rng.randrange(256)
            return bytes(flipped)
        case 3:
            return good + rng.randbytes(rng.randint(1, 50))
        case 4:
            method = rng.choice(["get", "set", "scan", "get_many", "set_many", "clear", "hello", "prepare", "claim"])
            return encode_request(1, method, [thing(rng, 3) for _ in range(rng.randrange(9))])
        case _:
            head = rng.choice([b"\xdc\x00\x40", b"\xdd\x00\x00\x00\x40", b"\x91", b"\xde\x00\x40", b"\x81\xa0"])
            return b"\x94\x00\x01\xa4ping" + head * rng.randint(1, 3000)


def thing(rng: random.Random, depth: int) -> Any:
    things = [None, True, 0, -1, 2**64 - 1, 0.5, RING, NS, v(1), b"", "text", rng.randbytes(12)]
    if depth and rng.random() < 0.4:
        return [thing(rng, depth - 1) for _ in range(rng.randrange(5))]
    return rng.choice(things)


def test_hundreds_of_garbage_streams_disturb_nobody_and_take_bounded_memory(
    on_loop: OnLoop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "dcache.node")  # captured warnings would keep every connection alive
    rng = random.Random(2024)

    async def attack(node: Node) -> None:
        peer = await node.connect(greet=rng.random() < 0.7)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            await peer.send(garbage(rng))
            if rng.random() < 0.9:
                peer.sock.shutdown(socket.SHUT_WR)
                await peer.rest()
        peer.close()
        node.peers.remove(peer)

    async def main() -> None:
        async with serving(limits=SMALL, memory=MIB) as node:
            witness = await node.connect()
            await attack(node)
            gc.collect()
            tracemalloc.start()
            try:
                before, _ = tracemalloc.get_traced_memory()
                for n in range(600):
                    await attack(node)
                    if n % 20 == 0:
                        assert await witness.call("ping") is None
                await node.served(1)
                gc.collect()
                after, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert node.server.rejected > 100
            assert after - before < 2 * MIB
            assert peak - before < 32 * MIB

    on_loop(main)


# -- limits ------------------------------------------------------------------------------------------------------------


def test_one_connection_too_many_is_told_so_and_another_may_come_when_one_has_left(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving(max_connections=2) as node:
            first, second = await node.connect(), await node.connect()
            third = await node.connect(greet=False)
            (message,) = await third.rest()
            assert told_off(message, Code.OVERLOADED)
            assert await first.call("ping") is None
            second.close()
            await node.served(1)
            fourth = await node.connect()
            assert await fourth.call("ping") is None

    on_loop(main)


def test_of_many_requests_sent_at_once_only_so_many_are_handled_before_others_have_their_turn(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving(max_in_flight=10) as node:
            greedy, modest = await node.connect(), await node.connect()
            await greedy.send(*[pinging(n) for n in range(5000)])
            assert await greedy.message() == answered(0)
            handled = (await modest.call("stats"))["requests"]
            assert handled < 2500
            assert await greedy.messages(4999) == [answered(n) for n in range(1, 5000)]

    on_loop(main)


async def filled(node: Node) -> Peer:
    """A connection that has just asked for 64 MiB in 64 replies and reads none of it."""
    peer = await node.connect(receive_buffer=64 * 1024)
    await peer.call("set", RING, NS, b"big", v(1), bytes(MIB), 0, None)
    await peer.send(*[getting(b"big", n) for n in range(64)])
    await until(lambda: not reading(node))
    return peer


def reading(node: Node) -> bool:
    (connection,) = node.server.connections
    return connection.transport.is_reading()


def test_a_slow_reader_is_not_read_from_then_dropped(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving(slow_timeout=5.0, stall=LONG) as node:
            await filled(node)
            (connection,) = node.server.connections
            await node.clock.beats()
            assert connection.transport.get_write_buffer_size() < 4 * MIB
            handled = node.service.store.counters.hits
            assert handled < 64
            node.clock.seconds += 5
            await node.clock.beats()
            assert node.server.connections.keys() == {connection}, "it has until the timeout"
            node.clock.seconds += 1
            await node.served(0)
            assert node.service.store.counters.hits == handled, "nothing more was done for it"
            other = await node.connect()
            assert await other.call("ping") is None

    on_loop(main)


def test_requests_that_come_one_by_one_are_not_read_either_while_replies_wait(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving(slow_timeout=LONG) as node:
            counters = node.service.store.counters
            peer = await node.connect(receive_buffer=64 * 1024)
            await peer.call("set", RING, NS, b"big", v(1), bytes(MIB), 0, None)
            sent = 0
            while reading(node):
                await peer.send(getting(b"big", sent))
                sent += 1
                await until(lambda: counters.hits == sent or not reading(node))  # noqa: B023 - awaited here
                assert sent < 64
            handled = counters.hits
            await peer.send(getting(b"big", sent))
            await node.clock.beats()
            assert counters.hits == handled
            assert [reply[1] for reply in await peer.messages(sent + 1)] == list(range(sent + 1))

    on_loop(main)


def test_a_slow_reader_that_catches_up_in_time_gets_every_reply(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving(slow_timeout=5.0, stall=LONG, max_in_flight=1000) as node:
            peer = await filled(node)
            node.clock.seconds += 4
            replies = await peer.messages(64)
            assert [reply[1] for reply in replies] == list(range(64))
            assert {len(reply[3][2]) for reply in replies} == {MIB}
            node.clock.seconds += 4
            await node.clock.beats()
            assert await peer.call("ping") is None

    on_loop(main)


def test_replies_of_more_than_may_be_queued_reach_who_reads_them(on_loop: OnLoop) -> None:
    """What a client asked for at once is prepared as it reads, so a large pipeline is no offence."""

    async def main() -> None:
        async with serving(max_queued=2 * MIB) as node:
            peer = await node.connect()
            await peer.call("set", RING, NS, b"big", v(1), bytes(MIB), 0, None)
            await peer.send(*[getting(b"big", n) for n in range(50)])
            assert [reply[1] for reply in await peer.messages(50)] == list(range(50))

    on_loop(main)


def test_a_frame_that_is_not_finished_in_time_drops_the_connection(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving(frame_timeout=5.0, stall=LONG) as node:
            peer, other = await node.connect(), await node.connect()
            await peer.send(setting(b"k")[:10])
            await until(lambda: any(connection._decoder.partial for connection in node.server.connections))
            node.clock.seconds = 5
            await peer.send(setting(b"k")[10:12])
            await node.clock.beats()
            assert len(node.server.connections) == 2
            node.clock.seconds = 6
            assert await peer.rest() == []
            assert await other.call("ping") is None
            assert len(node.service.store) == 0

    on_loop(main)


def test_a_busy_stream_that_always_ends_in_the_middle_of_a_frame_goes_on(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving(frame_timeout=5.0, stall=LONG) as node:
            peer = await node.connect()
            await peer.send(pinging(0)[:3])
            for n in range(1, 20):
                await peer.send(pinging(0)[3:], pinging(0)[:3])
                assert await peer.message() == answered(0)
                node.clock.seconds = n
                await node.clock.beats(2)
            assert len(node.server.connections) == 1

    on_loop(main)


def test_a_frame_begun_is_not_held_against_a_client_that_is_not_read_from(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving(frame_timeout=5.0, slow_timeout=LONG, stall=LONG) as node:
            peer = await node.connect(receive_buffer=64 * 1024)
            await peer.call("set", RING, NS, b"big", v(1), bytes(MIB), 0, None)
            last = pinging(64)
            await peer.send(*[getting(b"big", n) for n in range(64)], last[:3])
            await until(lambda: not reading(node))
            node.clock.seconds = 100
            await node.clock.beats()
            assert [reply[1] for reply in await peer.messages(64)] == list(range(64))
            await node.clock.beats()
            await peer.send(last[3:])
            assert await peer.message() == answered(64)

    on_loop(main)


def test_a_silent_connection_is_closed_after_the_idle_time(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving(idle_timeout=60.0, stall=LONG) as node:
            silent, mute, talking = await node.connect(), await node.connect(greet=False), await node.connect()
            await node.served(3)
            node.clock.seconds = 40
            assert await talking.call("ping") is None
            await node.clock.beats()
            assert len(node.server.connections) == 3
            node.clock.seconds = 61
            assert await silent.rest() == []
            assert await mute.rest() == []
            assert await talking.call("ping") is None

    on_loop(main)


# -- stalls ------------------------------------------------------------------------------------------------------------


def test_after_a_stall_connections_are_closed_and_what_waits_in_them_is_not_carried_out(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving(stall=2.0) as node:
            peer, other = await node.connect(), await node.connect()
            peer.sock.send(setting(b"k"))  # no await: the server has not run since
            node.clock.seconds += 3
            assert await peer.rest() == []
            assert await other.rest() == []
            assert len(node.service.store) == 0
            later = await node.connect()
            assert (await later.call("stats"))["stalls"] == 1

    on_loop(main)


def test_a_short_pause_is_no_stall(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving(stall=2.0) as node:
            peer = await node.connect()
            for n in range(5):
                peer.sock.send(setting(b"k", n + 1))
                node.clock.seconds += 2
                assert await peer.message() == answered(1, (True, Status.STORED, v(n + 1)))
                await node.clock.beats(2)
            assert node.server.stalls == 0

    on_loop(main)


def test_a_stall_is_also_noticed_between_two_turns_of_one_connection(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving(stall=2.0, max_in_flight=1) as node:

            def stall() -> None:
                node.clock.seconds += 10

            node.service.methods["stall"] = stall
            peer = await node.connect()
            await peer.send(encode_request(1, "stall", ()), setting(b"k"))
            assert len(await peer.rest()) <= 1
            assert len(node.service.store) == 0

    on_loop(main)


# -- notifications -----------------------------------------------------------------------------------------------------


def test_notifications_reach_only_those_who_asked_for_them(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving() as node:
            asked, did_not = await node.connect(push=True), await node.connect(push=False)
            stranger = await node.connect(greet=False)
            await node.served(3)
            node.server.push("table", (("new", "table"),))
            assert await asked.message() == (2, "table", (("new", "table"),))
            assert await did_not.call("ping") is None
            await stranger.send(pinging(1))
            assert [message[1] for message in await stranger.rest()] == [None]

    on_loop(main)


def test_who_came_for_another_cluster_is_sent_away_when_the_node_is_of_one(on_loop: OnLoop) -> None:
    """It said hello when the node was of none yet, and would take for its own what it gets here."""

    async def main() -> None:
        async with serving() as node:
            right, any_will_do = await node.connect(push=True, cluster_id="c"), await node.connect(push=True)
            wrong = await node.connect(cluster_id="another")
            node.service.view = View("c", b"f", ("table",))
            node.server.push("table", (("table",),))
            assert await wrong.rest() == []
            for peer in (right, any_will_do):
                assert await peer.message() == (2, "table", (("table",),))

    on_loop(main)


def test_notifications_do_not_pile_up_for_a_slow_reader(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving(max_queued=2 * MIB) as node:
            slow = await node.connect(push=True, receive_buffer=64 * 1024)
            other = await node.connect(push=True)
            for _ in range(40):
                node.server.push("table", (bytes(MIB),))
                assert await other.message() == (2, "table", (bytes(MIB),))
            await node.served(1)
            assert await other.call("ping") is None
            slow.close()

    on_loop(main)


# -- stopping ----------------------------------------------------------------------------------------------------------


def test_stop_answers_what_has_arrived_and_closes(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving(max_in_flight=1) as node:
            peer, idle = await node.connect(), await node.connect()
            await peer.send(*[setting(b"k%d" % n, message_id=n) for n in range(3000)])
            stopping = asyncio.create_task(node.server.stop(10.0))
            assert [reply[1] for reply in await peer.rest()] == list(range(3000))
            assert await idle.rest() == []
            await stopping
            assert not node.server.connections
            assert len(node.service.store) == 3000
            with pytest.raises(ConnectionRefusedError):
                await node.connect(greet=False)

    on_loop(main)


def test_stop_does_not_wait_longer_for_a_slow_reader_than_it_was_told_to(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving() as node:
            await filled(node)
            async with asyncio.timeout(5):
                await node.server.stop(0.1)
            await node.served(0)

    on_loop(main)


def test_a_connection_is_not_closed_while_something_waits_to_be_read_from_it(on_loop: OnLoop) -> None:
    """Else the system would reset it, and replies that are on their way would be lost."""

    async def main() -> None:
        async with serving() as node:
            peer = await node.connect()
            (connection,) = node.server.connections
            connection.finish(at_once=False)
            peer.sock.send(encode_request(8, "ping", ()))
            await until(lambda: node.server.requests == 2)
            peer.sock.send(encode_request(9, "ping", ()))
            connection.finish(at_once=False)
            assert await peer.messages(2) == [(1, 8, None, None), (1, 9, None, None)]
            connection.finish(at_once=False)
            connection.finish(at_once=False)
            assert await peer.message() is None

    on_loop(main)


def test_a_connection_that_goes_on_sending_is_closed_all_the_same(on_loop: OnLoop) -> None:
    async def main() -> None:
        async with serving() as node:
            peer = await node.connect()
            (connection,) = node.server.connections
            peer.sock.send(encode_request(8, "ping", ()))
            connection.finish(at_once=True)
            await node.served(0)

    on_loop(main)


# -- many at once ------------------------------------------------------------------------------------------------------


async def increment(peer: Peer, clock: VersionClock) -> None:
    """One increment as a conditional change: prepare, decide, accept; again where somebody was faster."""
    ballot = clock.stamp()
    while True:
        _, status, version, record = await peer.call("prepare", RING, NS, b"n", ballot)
        if status == Status.STORED:
            value = b"%d" % (1 if record is None else int(record[1]) + 1)
            _, status, version = await peer.call("accept", RING, NS, b"n", ballot, value, 0, None)
            if status == Status.STORED:
                return
        ballot = clock.above(version)


def test_a_hundred_connections_increment_one_counter_and_lose_nothing(on_loop: OnLoop) -> None:
    connections, times = 100, 5

    async def work(node: Node, writer: int) -> None:
        peer, clock = await node.connect(), VersionClock(writer, lambda: WALL)
        for _ in range(times):
            await increment(peer, clock)

    async def main() -> None:
        async with serving() as node:
            async with asyncio.TaskGroup() as group:
                for writer in range(connections):
                    group.create_task(work(node, 1000 * writer))
            peer = await node.connect()
            assert (await peer.call("get", RING, NS, b"n"))[2] == b"%d" % (connections * times)

    on_loop(main)
