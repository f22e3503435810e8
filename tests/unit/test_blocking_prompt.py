"""The shortest way of reading, over real sockets, from nodes that say what a test tells them to."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import attrs
import pytest

from dcache import Client, ClientClosed, NoNodesAvailable, QuorumError
from dcache.codec import Codec
from dcache.drivers import blocking, leases, pool, prompt
from dcache.drivers.machine import wall_ms
from dcache.drivers.pool import Connection
from dcache.membership import Member, MemberTable, RingState, Settings
from dcache.ops import latency
from dcache.wire import Code, Decoder, Limits, encode_notification, encode_reply, pack, reply_head
from tests.fronts import UNHURRIED, until
from tests.unit.ops_kit import v

pytestmark = pytest.mark.skipif(not pool.PROMPT, reason="there is no such way here")

LONG = 60.0
LIMITS = Limits()


def held(value: object, version: int = 1) -> tuple[Any, ...]:
    """The answer of a complete owner that holds `value`."""
    data, flags = Codec().encode(value)
    return (True, v(version), data, flags, None)


def as_nodes_do(message_id: int, result: object) -> bytes:
    return reply_head(message_id) + pack(result)


COPIED = (True, 0, v(9))
ABSENT = (True, v(0), False)


class ScriptedNode:
    """Listens on loopback.  `answer(key)` says what `get` gives for a key; None says nothing for now, `hang_up` breaks
    the connection, then or after an answer."""

    def __init__(self) -> None:
        self.answer: Callable[[bytes], Any] = lambda key: held(key.decode())
        self.hangs_up = self.hangs_up_after = False
        self.reply = as_nodes_do
        self.calls: list[tuple[str, bytes | None]] = []
        self.owed: list[Callable[[], None]] = []
        self.hung_up = threading.Event()
        self.table: MemberTable | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.name = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepted: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for sock in (self._listener, *self._accepted):
            _hang_up(sock)

    def asked(self, *methods: str) -> int:
        """How many calls of these methods came."""
        return sum(method in methods for method, _ in self.calls)

    def release(self) -> None:
        """Give the answers that are owed."""
        owed, self.owed = self.owed, []
        for give in owed:
            give()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._accepted.append(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        decoder = Decoder(LIMITS.max_frame, LIMITS.max_batch)
        try:
            while data := sock.recv(1 << 16):
                decoder.feed(data)
                for _, message_id, method, params in decoder.messages():
                    self._act(sock, message_id, method, params)
        except OSError:
            pass
        sock.close()

    def _act(self, sock: socket.socket, message_id: int, method: str, params: tuple[Any, ...]) -> None:
        if method not in ("get", "get_many"):
            sock.sendall(encode_reply(message_id, self._aside(method, params)))
            return
        self.calls.append((method, params[2] if method == "get" else None))
        if self.hangs_up:
            _hang_up(sock)
            return
        asked = params[2]
        result = self.answer(asked) if method == "get" else tuple(self.answer(key) for (key,) in asked)
        reply = self.reply(message_id, result)
        if result is None:
            self.owed.append(lambda: sock.sendall(self.reply(message_id, held(asked.decode()))))
            return
        last = self.hangs_up_after  # not later: with the reply the client goes on, and may say it of the next answer
        sock.sendall(reply)
        if last:
            _hang_up(sock)
            self.hung_up.set()

    def _aside(self, method: str, params: tuple[Any, ...]) -> Any:
        assert self.table is not None
        if method == "hello":
            limits = attrs.asdict(LIMITS)
            hello = {"protocol": 1, "version": "0", "cluster": "kit", "node": self.name, "boot": "1"}
            return {**hello, "time": wall_ms(), "limits": limits, "digest": self.table.digest}
        if method in ("table", "exchange"):
            return self.table.to_wire() if method == "table" else None
        return tuple(COPIED for _ in params[2]) if method == "copy_many" else COPIED


def answering_after(other: ScriptedNode) -> Callable[[bytes], Any]:
    """Answers well after `other` has been asked."""

    def answer(key: bytes) -> Any:
        until(lambda: other.asked("get"), "the other to be asked")
        time.sleep(0.05)
        return held(key.decode())

    return answer


def _hang_up(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


class Nodes:
    """A cluster of scripted nodes, in the order in which they are asked."""

    def __init__(self, number: int) -> None:
        self.nodes = [ScriptedNode() for _ in range(number)]
        rows = {node.name: Member(node.name, node.name) for node in self.nodes}
        placed = tuple(row.placed() for row in rows.values())
        table = MemberTable(Settings("kit", replicas=number, vnodes=16), RingState(1, placed), rows)
        for node in self.nodes:
            node.table = table

    def client(self, **settings: Any) -> Client:
        client = Client([node.name for node in self.nodes], **{**UNHURRIED, **settings})
        for number in range(6):
            assert client.get(f"warm{number}") == f"warm{number}"  # until there are connections to all
        self.forget()
        return client

    def forget(self) -> None:
        for node in self.nodes:
            node.calls.clear()

    def asked(self, *methods: str) -> list[int]:
        return [node.asked(*methods) for node in self.nodes]


@pytest.fixture
def made() -> Iterator[list[Nodes]]:
    made: list[Nodes] = []
    yield made
    for nodes in made:
        for node in nodes.nodes:
            node.close()


@pytest.fixture
def one(made: list[Nodes]) -> Nodes:
    made.append(Nodes(1))
    return made[-1]


@pytest.fixture
def three(made: list[Nodes], monkeypatch: pytest.MonkeyPatch) -> Nodes:
    """Of three nodes the first two are asked, in this order; nobody is raced for being later than usual."""
    nodes = Nodes(3)
    made.append(nodes)
    first_two = (nodes.nodes[0].name, nodes.nodes[1].name)
    monkeypatch.setattr(latency, "WARM_UP", 1 << 30)
    monkeypatch.setattr(blocking, "targets", lambda ctx, raw, now: first_two)
    return nodes


class Recorder:
    """A socket of which the sends and receives are counted.  `before` is called ahead of each receive."""

    def __init__(self, sock: socket.socket, log: Counter[str]) -> None:
        self._sock, self._log = sock, log
        self.before: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, *args: Any) -> int:
        self._log["send"] += 1
        return self._sock.send(*args)

    def recv(self, *args: Any) -> bytes:
        self._log["recv"] += 1
        self.before()
        return self._sock.recv(*args)

    def setsockopt(self, *args: Any) -> None:
        self._log["setsockopt"] += 1
        self._sock.setsockopt(*args)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The system calls of all connections."""
    log: Counter[str] = Counter()
    dial = Connection._dial

    def dialled(self: Connection) -> None:
        dial(self)
        self.sock = Recorder(self.sock, log)  # type: ignore[assignment]

    monkeypatch.setattr(Connection, "_dial", dialled)
    return log


# -- when all is well -------------------------------------------------------------------------------------------------


def test_a_read_of_one_copy_takes_one_send_and_one_receive(one: Nodes, calls: Counter[str]) -> None:
    with one.client() as client:
        calls.clear()
        assert client.get("key") == "key"
        assert calls == {"send": 1, "recv": 1}
        assert client.get_or_set("other", pytest.fail) == "other"
        assert calls == {"send": 2, "recv": 2}


def test_a_reply_may_be_packed_in_another_way_and_come_with_others(three: Nodes) -> None:
    """A node in another language has its own form for a small number, and anything may come before a reply."""
    first, second = three.nodes[:2]
    with three.client() as client:
        before = set(client.engine.driver.connections)
        first.reply = encode_reply
        second.reply = lambda number, result: encode_notification("table", ()) + as_nodes_do(number, result)
        for _ in range(3):
            assert client.get("key") == "key"
            assert client.get_many(["a", "b"]) == {"a": "a", "b": "b"}
        assert three.asked("get") == [3, 3, 0]
        assert before <= set(client.engine.driver.connections), "none was closed"
        assert all(connection.channel.quiet() for connection in before)


@pytest.mark.parametrize("size", [pool.CHUNK - 100, pool.CHUNK, 3 * pool.CHUNK])
def test_a_reply_may_come_in_pieces(three: Nodes, size: int) -> None:
    first, second = three.nodes[:2]
    with three.client() as client:
        first.answer = second.answer = lambda key: held(bytes(size))
        for _ in range(3):
            assert client.get("key") == bytes(size)
        assert three.asked("get") == [3, 3, 0]


def test_a_write_of_one_copy_takes_one_send_and_one_receive(one: Nodes, calls: Counter[str]) -> None:
    with one.client() as client:
        client.set("key", 1)
        calls.clear()
        client.set("key", 2)
        assert calls == {"send": 1, "recv": 1}


def test_where_the_kernel_cannot_wait_the_operations_do(three: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pool, leases, blocking):
        monkeypatch.setattr(module, "PROMPT", False)
    with three.client() as client:
        client.set("key", 1)
        assert client.get("key") == "key"
        assert client.get_many(["a", "b"]) == {"a": "a", "b": "b"}


def test_a_quorum_read_takes_a_send_and_a_receive_per_node(
    three: Nodes, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt, "RESTART", LONG)  # this machine may be busy
    with three.client() as client:
        calls.clear()
        assert client.get("key") == "key"
        assert calls == {"send": 2, "recv": 2}
        assert three.asked("get") == [1, 1, 0]


def test_many_keys_take_a_send_and_a_receive_per_node(
    three: Nodes, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt, "RESTART", LONG)
    with three.client() as client:
        keys = [f"key{number}" for number in range(10)]
        for _ in range(12):  # until there are connections to all: here they take turns
            client.get_many(keys)
        calls.clear()
        three.forget()
        assert client.get_many(keys) == {key: key for key in keys}
        assert calls == {"send": 2, "recv": 2}
        assert sorted(three.asked("get_many")) == [0, 1, 1]


def test_a_batch_that_no_frame_holds_goes_in_pieces_by_one_connection(one: Nodes) -> None:
    with one.client() as client:
        keys = [f"key{number}" for number in range(2 * LIMITS.max_batch + 1)]
        assert client.get_many(keys) == {key: key for key in keys}
        assert one.asked("get_many") == [3]
        assert len(client.engine.driver.connections) == 1


def test_pieces_of_a_batch_that_the_system_does_not_take_at_once_leave_whole(one: Nodes) -> None:
    """What was cut short is sent before the piece that follows by the same connection."""
    node, seen = one.nodes[0], list[bytes]()

    def answer(key: bytes) -> Any:
        seen.append(key)
        return held(1)

    with one.client() as client:
        for connection in client.engine.driver.connections:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
        node.answer = answer
        keys = [f"key{number}-".ljust(500, "x") for number in range(4 * LIMITS.max_batch)]
        assert client.get_many(keys) == dict.fromkeys(keys, 1)
        assert seen == [key.encode() for key in keys]
        assert len(client.engine.driver.connections) == 1


def test_the_users_serializer_is_called_while_no_connection_is_held(one: Nodes) -> None:
    """It may use the client itself."""

    class Dictionary:
        def dumps(self, value: object) -> bytes:
            return b"1"

        def loads(self, data: bytes) -> object:
            return client.get("dictionary")

    with one.client(max_connections=1) as client:
        reader = client.with_options(serializer=Dictionary())
        _, flags = reader.options.codec.encode(object())
        one.nodes[0].answer = lambda key: (True, v(1), b"1", flags, None) if key == b"key" else held(key.decode())
        assert reader.get("key") == "dictionary"
        assert reader.get_many(["key"]) == {"key": "dictionary"}


def test_what_is_asked_for_again_under_a_new_ring_is_counted_once(three: Nodes) -> None:
    refusals = iter(range(4))
    wrong_ring = (int(Code.WRONG_RING), "wrong ring", None)

    def refuse_one_at_first(key: bytes) -> Any:
        return wrong_ring if key == b"key3" and next(refusals, None) is not None else held(key.decode())

    with three.client() as client:
        keys = [f"key{number}" for number in range(10)]
        for _ in range(12):  # until there are connections to all
            client.get_many(keys)
        for node in three.nodes:
            node.answer = refuse_one_at_first
        before = client.session.counters.hits
        assert client.get_many(keys) == {key: key for key in keys}
        assert client.session.counters.hits - before == len(keys)


def test_hits_and_misses_are_counted(one: Nodes) -> None:
    with one.client() as client:
        one.nodes[0].answer = lambda key: ABSENT if key == b"absent" else held(key.decode())
        before = attrs.asdict(client.session.counters)
        assert client.get("absent", "none") == "none"
        assert client.get("there") == "there"
        assert client.get_many(["absent", "there", "also"]) == {"there": "there", "also": "also"}
        after = attrs.asdict(client.session.counters)
        assert (after["hits"] - before["hits"], after["misses"] - before["misses"]) == (3, 2)


def test_what_does_not_decode_is_a_miss(one: Nodes) -> None:
    with one.client() as client:
        one.nodes[0].answer = lambda key: (True, v(1), b"\xc1", 2, None)
        assert client.get("key", "none") == "none"
        assert client.get_many(["key"]) == {}
        assert client.session.counters.undecodable == 2


def test_no_connection_stays_in_use_when_a_node_in_trouble_is_looked_at_in_passing(three: Nodes) -> None:
    with three.client() as client:
        for number in range(3):
            client.session.shared.backoff.failed(three.nodes[2].name, "away", time.monotonic() - LONG)
            assert client.get(f"key{number}") == f"key{number}"
        assert three.asked("get") == [3, 3, 0]
        assert [len(pool._in_use) for pool in client.engine.driver.pools.values()] == [0, 0, 0]


def test_an_answer_ends_what_its_node_owed(three: Nodes) -> None:
    with three.client() as client:
        hedging = client.session.books.hedging
        for node in three.nodes:
            hedging.unanswered(node.name, time.monotonic(), time.monotonic())
        assert client.get("key") == "key"
        assert set(hedging.owed) == {three.nodes[2].name}, "who was not asked owes it still"


# -- when it is not, the operation takes over -------------------------------------------------------------------------


def test_answers_that_differ_are_not_asked_for_again(three: Nodes) -> None:
    first, second, third = three.nodes
    with three.client() as client:
        first.answer = lambda key: held("old", 1)
        second.answer = third.answer = lambda key: held("new", 2)
        assert client.get("key") == "new"
        assert three.asked("get")[:2] == [1, 1]


def test_a_node_that_is_late_is_raced_and_not_asked_again(three: Nodes) -> None:
    with three.client(timeout=1.0) as client:
        three.nodes[1].answer = lambda key: None
        assert client.get("key") == "key"
        assert three.asked("get") == [1, 1, 1]
        three.nodes[1].answer = lambda key: held(key.decode())
        three.nodes[1].release()
        for number in range(6):
            assert client.get(f"key{number}") == f"key{number}", "nobody meets the late answer"


def test_a_node_that_is_late_makes_no_other_seem_slow(three: Nodes) -> None:
    late, quick = three.nodes[:2]
    with three.client() as client:
        hedging = client.session.books.hedging
        before = len(hedging._estimates[quick.name].first)
        late.answer = lambda key: None
        assert client.with_options(timeout=1.0).get("key") == "key"
        assert len(hedging._estimates[quick.name].first) == before
        assert three.asked("get") == [1, 1, 1]


def test_an_answer_that_comes_after_the_take_over_counts(three: Nodes) -> None:
    """With nobody else to ask."""
    second = three.nodes[1]
    with three.client(timeout=4.0, read_quorum="all") as client:
        second.answer = lambda key: None
        threading.Timer(1.2, second.release).start()
        assert client.get("key") == "key"
        assert second.asked("get") == 1


def test_an_answer_that_is_there_when_its_time_is_over_counts(three: Nodes) -> None:
    """The first node took longer than is usual of the second, whose answer nobody had looked at by then."""
    slow, quick = three.nodes[:2]

    with three.client() as client:
        client.session.books.hedging.of(quick.name).patience = latency.FLOOR
        before = set(client.engine.driver.connections)
        slow.answer = answering_after(quick)
        assert client.get("key") == "key"
        slow.answer = quick.answer
        assert client.get("other") == "other"
        assert three.asked("get") == [2, 2, 0]
        assert before <= set(client.engine.driver.connections), "none was closed over an answer that nobody expected"


def test_a_slow_node_makes_no_other_seem_slow(three: Nodes) -> None:
    """Whose answer is read after that of the slow one, and was there long before."""
    slow, quick = three.nodes[:2]

    with three.client() as client:
        hedging = client.session.books.hedging
        before = {node.name: len(hedging._estimates[node.name].first) for node in (slow, quick)}
        slow.answer = answering_after(quick)
        assert client.get("key") == "key"
        after = {node.name: len(hedging._estimates[node.name].first) for node in (slow, quick)}
        assert after == {slow.name: before[slow.name] + 1, quick.name: before[quick.name]}
        assert three.asked("get") == [1, 1, 0]


def test_a_node_that_refuses_is_not_asked_again(three: Nodes) -> None:
    with three.client() as client:
        three.nodes[0].answer = lambda key: (False, v(0), False)
        assert client.get("key") == "key"
        assert three.asked("get") == [1, 1, 1]


def test_a_node_whose_connection_breaks_is_asked_by_another_once(three: Nodes) -> None:
    """For the first may have been closed for being idle."""
    with three.client() as client:
        three.nodes[0].hangs_up = True
        assert client.get("key") == "key"
        assert three.asked("get") == [2, 1, 1]


def test_an_answer_of_a_node_that_broke_off_while_the_others_were_waited_for_does_not_count(
    three: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have lost its memory by now."""
    monkeypatch.setattr(prompt, "RESTART", -1.0)
    first, second = three.nodes[:2]

    def once_the_first_is_gone(key: bytes) -> Any:
        assert first.hung_up.wait(LONG)
        return held(key.decode())

    with three.client() as client:
        first.hangs_up_after = True
        second.answer = once_the_first_is_gone
        assert client.get("key") == "key"
        assert three.asked("get") == [1, 1, 1]


def test_only_the_keys_that_are_not_agreed_on_are_asked_for_again(three: Nodes) -> None:
    with three.client() as client:
        keys = [f"key{number}" for number in range(10)]
        for _ in range(3):
            client.get_many(keys)
        three.forget()
        wanted: list[int] = []

        def some_differ(key: bytes) -> Any:
            wanted.append(1)
            return held("old", 0) if key == b"key3" else held(key.decode())

        three.nodes[0].answer = some_differ
        for _ in range(3):
            assert client.get_many(keys) == {key: key for key in keys}
        assert len(wanted) <= 3 * (len(keys) + 1)


def test_the_calls_of_a_batch_are_taken_over_too(one: Nodes) -> None:
    """The node has nobody it could be raced with: its answer is waited for until the end, and not asked for again."""
    released = threading.Event()

    def slowly(key: bytes) -> Any:
        assert released.wait(LONG)
        return held(key.decode())

    with one.client(timeout=4.0) as client:
        one.nodes[0].answer = slowly
        threading.Timer(1.2, released.set).start()
        assert client.get_many(["a", "b"]) == {"a": "a", "b": "b"}
        assert one.asked("get_many") == [1]


def test_a_silent_node_ends_a_read_at_its_deadline(one: Nodes) -> None:
    with one.client() as client:
        one.nodes[0].answer = lambda key: None
        with pytest.raises(QuorumError):
            client.with_options(timeout=0.3).get("key")
        assert one.asked("get") == [1]
        one.nodes[0].answer = lambda key: held(key.decode())
        assert until(lambda: _answer(client, "other"), "the node to be asked again") == "other"


def _answer(client: Client, key: str) -> Any:
    try:
        return client.get(key)
    except (QuorumError, NoNodesAvailable):
        return None


# -- interruption -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before the answer", "after it"])
def test_ctrl_c_in_the_middle_of_a_read_leaves_nobody_a_foreign_reply(
    one: Nodes, calls: Counter[str], moment: str
) -> None:
    with one.client() as client:
        (connection,) = client.engine.driver.connections
        recorder: Any = connection.sock

        def strike() -> None:
            if moment == "after it":
                recorder._sock.recv(1, socket.MSG_PEEK)
            raise KeyboardInterrupt

        recorder.before = strike
        if moment == "before the answer":
            one.nodes[0].answer = lambda key: None
        with pytest.raises(KeyboardInterrupt):
            client.get("key")
        assert not connection.opened
        assert connection not in client.engine.driver.connections
        one.nodes[0].answer = lambda key: held(key.decode())
        assert client.get("other") == "other"
        assert len(client.engine.driver.connections) == 1


# -- how long the kernel waits ----------------------------------------------------------------------------------------


def test_the_kernel_is_not_told_the_same_again(one: Nodes, calls: Counter[str]) -> None:
    with one.client(timeout=LONG) as client:
        calls.clear()
        for number in range(20):
            client.get(f"key{number}")
        assert calls["setsockopt"] == 0
        client.with_options(timeout=LONG / 4).get("key")
        assert calls["setsockopt"] == 1


def test_a_closed_client_reads_no_more(one: Nodes) -> None:
    client = one.client()
    client.close()
    with pytest.raises(ClientClosed):
        client.get("key")
    with pytest.raises(ClientClosed):
        client.get_many(["key"])
    assert one.asked("get", "get_many") == [0]
