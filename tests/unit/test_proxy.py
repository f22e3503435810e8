"""What each fault of the proxy does, seen from both ends of a connection.

Most tests hold both ends themselves.  "Nothing came" is asserted only after the proxy is known to have the bytes and a
message has gone the other way, so that a proxy that fails to keep them back has had its chance.
"""

from __future__ import annotations

import asyncio
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from dcache.testing.proxy import BUFFER_LIMIT, RESET_ON_CLOSE, FaultProxy

DEADLINE = 20.0
Ends = tuple[socket.socket, socket.socket]


class Node:
    """A listener whose connections the test accepts and speaks on."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(DEADLINE)
        self.address: tuple[str, int] = self.listener.getsockname()[:2]
        self._opened: list[socket.socket] = []

    def connect(self, proxy: FaultProxy) -> Ends:
        """A client's end and the node's end of a new connection through the proxy."""
        client = self.connect_only(proxy)
        end, _ = self.listener.accept()
        end.settimeout(DEADLINE)
        self._opened.append(end)
        return client, end

    def connect_only(self, proxy: FaultProxy) -> socket.socket:
        host, port = proxy.address.split(":")
        client = socket.create_connection((host, int(port)), timeout=DEADLINE)
        self._opened.append(client)
        return client

    def close(self) -> None:
        for end in (self.listener, *self._opened):
            end.close()


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)


@pytest.fixture
def node() -> Iterator[Node]:
    made = Node()
    yield made
    made.close()


@pytest.fixture
def proxy(node: Node) -> Iterator[FaultProxy]:
    with FaultProxy(node.address) as made:
        yield made


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """The address of a server that sends back what it gets."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield ("127.0.0.1", server.server_address[1])
        server.shutdown()
        thread.join(DEADLINE)


def received(end: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        data = end.recv(size - len(got))
        assert data, f"the stream ended after {len(got)} of {size} bytes"
        got += data
    return got


def passes(source: socket.socket, sink: socket.socket, data: bytes = b"ping") -> bool:
    source.sendall(data)
    return received(sink, len(data)) == data


def nothing_came(end: socket.socket) -> bool:
    end.setblocking(False)
    try:
        end.recv(1)
    except BlockingIOError:
        return True
    finally:
        end.settimeout(DEADLINE)
    return False


def ended(end: socket.socket) -> bool:
    return end.recv(1) == b""


def was_reset(end: socket.socket) -> bool:
    try:
        while end.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    return False


def refuses_bytes(end: socket.socket) -> bool:
    try:
        end.sendall(b"x")
    except ConnectionError:
        return True
    return False


def connect_unnoticed(node: Node, proxy: FaultProxy) -> list[socket.socket]:
    """Let a connect happen just before the next call, with the proxy's thread too busy to have accepted it yet."""
    clients: list[socket.socket] = []
    proxy._loop.call_soon_threadsafe(time.sleep, 0.02)
    proxy._loop.call_soon_threadsafe(lambda: clients.append(node.connect_only(proxy)))
    return clients


def eventually(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.002)
    return True


# Without faults


def test_bytes_pass_both_ways_and_are_counted(node: Node, proxy: FaultProxy) -> None:
    client, end = node.connect(proxy)
    assert passes(client, end, b"question")
    assert passes(end, client, b"answer")
    assert (proxy.bytes_up, proxy.bytes_down) == (8, 6)


def test_a_large_payload_comes_back_whole_through_a_server_that_echoes(echo: tuple[str, int]) -> None:
    payload = bytes(range(256)) * (1 << 14)  # 4 MiB: more than all buffers on the way, so both ends must be served
    with FaultProxy(echo) as proxy:
        host, port = proxy.address.split(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE) as client:
            sender = threading.Thread(target=client.sendall, args=(payload,))
            sender.start()
            assert received(client, len(payload)) == payload
            sender.join(DEADLINE)
        assert proxy.bytes_up == proxy.bytes_down == len(payload)


def test_a_half_close_is_forwarded_and_the_other_direction_lives_on(node: Node, proxy: FaultProxy) -> None:
    client, end = node.connect(proxy)
    client.sendall(b"last")
    client.shutdown(socket.SHUT_WR)
    assert received(end, 4) == b"last"
    assert ended(end)
    assert passes(end, client, b"reply")
    end.shutdown(socket.SHUT_WR)
    assert ended(client)
    assert eventually(lambda: proxy.connections == 0)


def test_a_connection_that_ended_in_peace_leaves_its_last_bytes_readable(node: Node, proxy: FaultProxy) -> None:
    client, end = node.connect(proxy)
    client.shutdown(socket.SHUT_WR)
    assert ended(end)
    farewell = bytes(200_000)  # more than the client's system takes unread, so that some is still on its way
    end.sendall(farewell)
    end.close()
    assert eventually(lambda: proxy.connections == 0)
    assert received(client, len(farewell)) == farewell
    assert ended(client)


@pytest.mark.parametrize("side", ["client", "node"])
def test_a_reset_of_one_side_reaches_the_other(node: Node, proxy: FaultProxy, side: str) -> None:
    client, end = node.connect(proxy)
    gone, left = (client, end) if side == "client" else (end, client)
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    gone.close()
    assert was_reset(left)


def test_who_keeps_writing_to_a_side_that_is_gone_is_reset(node: Node, proxy: FaultProxy) -> None:
    client, end = node.connect(proxy)
    end.close()
    assert ended(client)
    assert eventually(lambda: refuses_bytes(client))


def test_who_kept_writing_while_the_end_was_held_is_reset_after_release(node: Node, proxy: FaultProxy) -> None:
    client, end = node.connect(proxy)
    proxy.hold("down")
    end.close()
    for sent in range(20):  # the first meets a closed socket, one of the next an error
        client.sendall(b"x")
        proxy.wait_for_bytes("up", sent + 1, DEADLINE)
    proxy.release("down")
    assert eventually(lambda: refuses_bytes(client))


def test_connections_are_counted_while_open(node: Node, proxy: FaultProxy) -> None:
    assert proxy.connections == 0
    first, first_end = node.connect(proxy)
    node.connect(proxy)
    assert proxy.connections == 2
    first.close()
    first_end.close()
    assert eventually(lambda: proxy.connections == 1)


def test_a_connection_is_counted_as_soon_as_connect_returns(node: Node, proxy: FaultProxy) -> None:
    connect_unnoticed(node, proxy)
    assert proxy.connections == 1


def test_a_connection_to_a_target_that_is_down_is_reset(node: Node, proxy: FaultProxy) -> None:
    node.listener.close()
    with pytest.raises(ConnectionResetError):  # it may come so soon that `connect` already meets it
        node.connect_only(proxy).recv(1)
    assert eventually(lambda: proxy.connections == 0)


def test_a_new_target_gets_the_next_connections_and_leaves_the_open_ones(node: Node, proxy: FaultProxy) -> None:
    client, end = node.connect(proxy)
    other = Node()
    try:
        proxy.target = f"127.0.0.1:{other.address[1]}"
        assert proxy.target == f"127.0.0.1:{other.address[1]}"
        assert passes(*other.connect(proxy))
        assert passes(client, end)
    finally:
        other.close()


# delay


def test_a_delay_up_holds_back_the_client_only(node: Node, proxy: FaultProxy) -> None:
    client, end = node.connect(proxy)
    proxy.delay(600, "up")
    client.sendall(b"a")
    proxy.wait_for_bytes("up", 1, DEADLINE)
    assert passes(end, client)
    assert nothing_came(end)
    proxy.delay(0, "up")
    assert received(end, 1) == b"a"


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_delayed_chunk_comes_at_least_that_much_later(node: Node, proxy: FaultProxy, direction: str) -> None:
    client, end = node.connect(proxy)
    source, sink = (client, end) if direction == "up" else (end, client)
    proxy.delay(0.15, "up" if direction == "up" else "down")
    sent = time.monotonic()
    assert passes(source, sink)
    assert time.monotonic() - sent >= 0.15


def test_a_delay_keeps_the_order_and_applies_to_the_end_of_the_stream(node: Node, proxy: FaultProxy) -> None:
    client, end = node.connect(proxy)
    proxy.delay(0.05)
    sent = time.monotonic()
    for chunk in range(20):
        client.sendall(bytes([chunk]))
        proxy.wait_for_bytes("up", chunk + 1, DEADLINE)  # so that each travels as a chunk of its own
    client.shutdown(socket.SHUT_WR)
    assert received(end, 20) == bytes(range(20))
    assert ended(end)
    assert time.monotonic() - sent >= 0.05


def test_a_delay_applies_to_connections_made_later(node: Node, proxy: FaultProxy) -> None:
    proxy.delay(0.1, "down")
    client, end = node.connect(proxy)
    sent = time.monotonic()
    assert passes(end, client)
    assert time.monotonic() - sent >= 0.1


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_delay_that_is_no_length_of_time_is_refused(proxy: FaultProxy, seconds: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        proxy.delay(seconds)


# hold, release


def test_held_up_bytes_stay_until_release_while_the_other_direction_flows(node: Node, proxy: FaultProxy) -> None:
    client, end = node.connect(proxy)
    proxy.hold("up")
    client.sendall(b"held")
    proxy.wait_for_bytes("up", 4, DEADLINE)
    assert passes(end, client)
    assert nothing_came(end)
    proxy.release("up")
    assert received(end, 4) == b"held"


def test_held_down_bytes_stay_until_release_while_the_other_direction_flows(node: Node, proxy: FaultProxy) -> None:
    client, end = node.connect(proxy)
    proxy.hold("down")
    end.sendall(b"held")
    proxy.wait_for_bytes("down", 4, DEADLINE)
    assert passes(client, end)
    assert nothing_came(client)
    proxy.release("down")
    assert received(client, 4) == b"held"


def test_release_of_one_direction_leaves_the_other_held(node: Node, proxy: FaultProxy) -> None:
    client, end = node.connect(proxy)
    proxy.hold()
    proxy.release("down")
    client.sendall(b"a")
    proxy.wait_for_bytes("up", 1, DEADLINE)
    assert passes(end, client)
    assert nothing_came(end)


def test_hold_keeps_back_the_end_and_the_reset_of_a_connection(node: Node, proxy: FaultProxy) -> None:
    """So that a node that was killed can look like one that is merely silent."""
    client, end = node.connect(proxy)
    proxy.hold("down")
    end.sendall(b"x")
    proxy.wait_for_bytes("down", 1, DEADLINE)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    end.close()
    assert proxy.connections == 1
    client.sendall(b"is anybody there?")
    proxy.wait_for_bytes("up", 17, DEADLINE)
    assert nothing_came(client)
    proxy.release("down")
    assert was_reset(client)


def test_hold_reads_no_more_than_its_buffer_and_loses_nothing(node: Node, proxy: FaultProxy) -> None:
    client, end = node.connect(proxy)
    proxy.hold("up")
    payload = bytes(range(256)) * (1 << 15)  # 8 MiB: more than the proxy and the sockets keep together
    sender = threading.Thread(target=client.sendall, args=(payload,))
    sender.start()
    proxy.wait_for_bytes("up", BUFFER_LIMIT, DEADLINE)
    for _ in range(50):  # plenty of turns of the proxy's loop in which it could go on reading
        assert passes(end, client)
    assert proxy.bytes_up < BUFFER_LIMIT + (1 << 16)
    proxy.release("up")
    assert received(end, len(payload)) == payload
    sender.join(DEADLINE)


# drop


def test_dropped_up_bytes_never_come_and_later_ones_do(node: Node, proxy: FaultProxy) -> None:
    client, end = node.connect(proxy)
    proxy.drop("up")
    client.sendall(b"lost")
    proxy.wait_for_bytes("up", 4, DEADLINE)
    assert passes(end, client)
    proxy.restore()
    assert passes(client, end, b"kept")


def test_dropped_down_bytes_never_come_and_later_ones_do(node: Node, proxy: FaultProxy) -> None:
    client, end = node.connect(proxy)
    proxy.drop("down")
    end.sendall(b"lost")
    proxy.wait_for_bytes("down", 4, DEADLINE)
    assert passes(client, end)
    proxy.restore()
    assert passes(end, client, b"kept")


def test_drop_applies_to_new_connections_and_passes_their_end_on(node: Node, proxy: FaultProxy) -> None:
    proxy.drop("up")
    client, end = node.connect(proxy)
    client.sendall(b"lost")
    client.shutdown(socket.SHUT_WR)
    assert ended(end)


# cut, refuse, accept


def test_cut_resets_both_sides_of_all_connections_and_new_ones_work(node: Node, proxy: FaultProxy) -> None:
    ends = [end for _ in range(3) for end in node.connect(proxy)]
    proxy.cut()
    assert proxy.connections == 0
    assert all(was_reset(end) for end in ends)
    assert passes(*node.connect(proxy))


def test_cut_loses_what_was_held(node: Node, proxy: FaultProxy) -> None:
    client, end = node.connect(proxy)
    proxy.hold("up")
    client.sendall(b"held")
    proxy.wait_for_bytes("up", 4, DEADLINE)
    proxy.cut()
    with pytest.raises(ConnectionResetError):
        end.recv(4)


def test_cut_meets_a_connection_whose_connect_has_only_just_returned(node: Node, proxy: FaultProxy) -> None:
    clients = connect_unnoticed(node, proxy)
    proxy.cut()
    assert was_reset(clients[0])


def test_refuse_turns_new_connects_away_and_leaves_open_ones(node: Node, proxy: FaultProxy) -> None:
    client, end = node.connect(proxy)
    address = proxy.address
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        node.connect_only(proxy)
    assert passes(client, end)
    proxy.accept()
    assert proxy.address == address
    assert passes(*node.connect(proxy))


def test_a_connection_made_just_before_refuse_is_kept(node: Node, proxy: FaultProxy) -> None:
    clients = connect_unnoticed(node, proxy)
    proxy.refuse()
    end, _ = node.listener.accept()
    with end:
        end.settimeout(DEADLINE)
        assert passes(clients[0], end)


def test_refuse_and_accept_may_be_repeated(node: Node, proxy: FaultProxy) -> None:
    proxy.accept()
    proxy.refuse()
    proxy.refuse()
    proxy.accept()
    assert passes(*node.connect(proxy))


# restore, wait_for_bytes, close


def test_restore_ends_every_fault(node: Node, proxy: FaultProxy) -> None:
    client, end = node.connect(proxy)
    proxy.hold("up")
    proxy.delay(600)
    proxy.refuse()
    client.sendall(b"kept back")
    proxy.wait_for_bytes("up", 9, DEADLINE)
    proxy.drop("down")
    proxy.restore()
    assert received(end, 9) == b"kept back"
    assert passes(end, client)
    assert passes(*node.connect(proxy))


def test_wait_for_bytes_gives_up_after_its_timeout(proxy: FaultProxy) -> None:
    with pytest.raises(TimeoutError, match="0 of 1 bytes came up"):
        proxy.wait_for_bytes("up", 1, 0.01)


def test_an_unknown_direction_is_refused(proxy: FaultProxy) -> None:
    with pytest.raises(ValueError, match="sideways"):
        proxy.hold("sideways")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="both"):
        proxy.wait_for_bytes("both", 1, 0.01)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["", "127.0.0.1", ":80", "127.0.0.1:", "127.0.0.1:http"])
def test_a_malformed_target_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        FaultProxy(target)


def test_a_port_that_is_taken_is_an_error_that_leaves_nothing_behind(node: Node) -> None:
    before = threading.active_count()
    with pytest.raises(OSError, match="in use"):
        FaultProxy(node.address, port=node.address[1])
    assert threading.active_count() == before


def test_close_resets_connections_and_leaves_no_thread_and_no_listener(node: Node) -> None:
    before = threading.active_count()
    proxy = FaultProxy(node.address)
    client, end = node.connect(proxy)
    proxy.hold()
    client.sendall(b"held")
    proxy.wait_for_bytes("up", 4, DEADLINE)
    proxy.close()
    proxy.close()
    assert threading.active_count() == before
    assert was_reset(client)
    assert was_reset(end)
    with pytest.raises(ConnectionRefusedError):
        node.connect_only(proxy)
    with pytest.raises(RuntimeError, match="closed"):
        proxy.cut()
    assert proxy.bytes_up == 4


def test_close_while_clients_keep_connecting_leaves_nothing_behind(node: Node) -> None:
    """A socket forgotten in the middle of being accepted would be a ResourceWarning, which is an error here."""
    for _ in range(20):
        proxy = FaultProxy(node.address)
        clients = [node.connect_only(proxy) for _ in range(3)]
        proxy.close()
        assert all(was_reset(client) for client in clients)


def test_faults_can_be_set_from_many_threads_while_bytes_flow(node: Node, proxy: FaultProxy) -> None:
    client, end = node.connect(proxy)

    def meddle() -> None:
        for _ in range(20):
            proxy.hold("up")
            proxy.delay(0.001, "down")
            proxy.release("up")

    threads = [threading.Thread(target=meddle) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert all(passes(client, end) and passes(end, client) for _ in range(20))
    for thread in threads:
        thread.join(DEADLINE)


def test_it_serves_asyncio_programs(echo: tuple[str, int]) -> None:
    async def ask(proxy: FaultProxy) -> bytes:
        host, port = proxy.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        proxy.hold("down")
        writer.write(b"hello")
        await asyncio.to_thread(proxy.wait_for_bytes, "down", 5, DEADLINE)
        waiting = asyncio.ensure_future(reader.readexactly(5))
        proxy.release("down")
        answer = await waiting
        writer.close()
        await writer.wait_closed()
        return answer

    with FaultProxy(echo) as proxy:
        assert asyncio.run(asyncio.wait_for(ask(proxy), DEADLINE)) == b"hello"
