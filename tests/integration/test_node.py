"""`dcache-node` as a process: what it says, how it ends, what becomes of it in its cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

import dcache
from dcache import AsyncClient, Client, DcacheError
from dcache.membership import MemberTable
from dcache.record import VersionClock
from dcache.testing import LocalCluster
from dcache.testing.cluster import free_port, table_of
from dcache.wire import PROTOCOL, Decoder, encode_request
from tests.conftest import Run

PATIENCE = 20.0
FOUND_WITHIN = 3.0
"""Seconds that a client may take to see that its cluster is no more: some waits of its back-off."""


def until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """The first true thing that `condition` gives."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {patience:.0f} s for {what}"
        time.sleep(0.01)
    return found


class Node:
    """One process, with what it wrote to each stream."""

    def __init__(self, directory: Path, *argv: str) -> None:
        self._out, self._err = directory / "out", directory / "err"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DCACHE_NODE_")}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dcache.cli.node", *argv], stdout=out, stderr=err, env=environment
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def ready(self) -> tuple[str, int]:
        """Where it says that it is ready."""

        def line() -> re.Match[str] | None:
            assert self.process.poll() is None, self.err
            return re.search(r" is ready at \[?([^\] ]+?)\]?:(\d+) ", self.out)

        found = until(line, "the node to be ready")
        return found[1], int(found[2])

    def wait(self, patience: float = PATIENCE) -> int:
        return self.process.wait(patience)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


Start = Callable[..., Node]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a node with these arguments."""
    nodes: list[Node] = []

    def new(*argv: str) -> Node:
        directory = tmp_path / str(len(nodes))
        directory.mkdir()
        nodes.append(Node(directory, *argv))
        return nodes[-1]

    yield new
    for node in nodes:
        node.end()


class Peer:
    """A raw connection that has said hello."""

    def __init__(self, host: str, port: int) -> None:
        self.sock = socket.create_connection((host, port), timeout=PATIENCE)
        self._decoder, self._inbox = Decoder(1 << 28, 1 << 20), deque[tuple[Any, ...]]()
        assert self.call("hello", PROTOCOL, None, False)["protocol"] == PROTOCOL

    def message(self) -> tuple[Any, ...] | None:
        """The next message; None at the end of the stream."""
        while not self._inbox:
            try:
                data = self.sock.recv(1 << 18)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._decoder.feed(data)
            self._inbox += self._decoder.messages()
        return self._inbox.popleft()

    def call(self, method: str, *params: Any) -> Any:
        self.sock.sendall(encode_request(1, method, params))
        message = self.message()
        assert message is not None
        assert message[2] is None, message
        return message[3]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def held(address: str) -> MemberTable:
    table = table_of(address)
    assert table is not None
    return table


# What it says


def test_a_ready_node_says_one_line_on_standard_output_and_nothing_else(start: Start) -> None:
    """The line names the port that `--port 0` chose; all else is logged, to standard error."""
    node = start("--port", "0")
    host, port = node.ready()
    with Peer(host, port) as peer:
        peer.call("ping")
    node.process.send_signal(signal.SIGTERM)
    assert node.wait() == 0
    assert re.fullmatch(
        r"dcache-node 127\.0\.0\.1:(\d+) is ready at 127\.0\.0\.1:\1 \(cluster [0-9a-f]{16}, members 1\)\n", node.out
    )
    assert "listens on 127.0.0.1" in node.err
    assert "stopped" in node.err


def test_a_port_in_use_is_said_clearly_and_ends_the_node(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        node = start("--port", str(port))
        assert node.wait() == 1
    assert node.out == ""
    assert f"cannot listen on 127.0.0.1:{port}" in node.err
    assert "Traceback" not in node.err


def test_a_command_line_that_makes_no_sense_exits_with_2(start: Start) -> None:
    node = start("--replicas", "none")
    assert node.wait() == 2
    assert "error: --replicas: " in node.err


def test_logs_can_be_lines_of_json(start: Start) -> None:
    node = start("--port", "0", "--log-format", "json")
    node.ready()
    node.process.send_signal(signal.SIGTERM)
    assert node.wait() == 0
    entries = [json.loads(line) for line in node.err.splitlines()]
    assert entries[-1]["message"] == "stopped"
    assert all(set(entry) == {"time", "level", "logger", "message"} for entry in entries)


def test_sigusr1_dumps_all_stacks_and_the_node_goes_on(start: Start) -> None:
    node = start("--port", "0")
    address = node.ready()
    node.process.send_signal(signal.SIGUSR1)
    until(lambda: "most recent call first" in node.err, "the stacks")
    with Peer(*address) as peer:
        peer.call("ping")
    assert "dcache/cli/node.py" in node.err.replace(os.sep, "/")


def test_a_node_serves_on_ipv6(start: Start) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    node = start("--host", "::1", "--port", "0")
    host, port = node.ready()
    assert host == "::1"
    with Client([f"[::1]:{port}"], timeout=5.0) as client:
        client.set("a", 1)
        assert client.get("a") == 1
        assert client.members()[0].address == f"[::1]:{port}"


# How it ends


REQUESTS = 60_000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_told_to_stop_answers_all_that_was_sent_before(start: Start, number: signal.Signals) -> None:
    """One connection has sent more than the node reads at once, and much of it waits in the system's buffers."""
    node = start("--port", "0")
    host, port = node.ready()
    table = held(f"{host}:{port}")
    stamp = VersionClock(1, lambda: time.time_ns() // 1_000_000).stamp
    frames = b"".join(
        encode_request(index, "set", (table.fingerprint, b"", b"%d" % index, stamp(), b"", 0, None))
        for index in range(REQUESTS)
    )
    answered: list[int] = []
    with Peer(host, port) as peer, Peer(host, port) as idle:
        reader = threading.Thread(target=_read_ids, args=(peer, answered))
        reader.start()
        peer.sock.sendall(frames)
        node.process.send_signal(number)
        told = time.monotonic()
        assert node.wait() == 0
        assert time.monotonic() - told < 5.0
        reader.join()
        assert len(answered) == REQUESTS
        assert answered == list(range(REQUESTS))
        assert idle.message() is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, port), timeout=PATIENCE)


def _read_ids(peer: Peer, ids: list[int]) -> None:
    while (message := peer.message()) is not None:
        ids.append(message[1])


def test_a_node_told_to_stop_ends_though_a_client_goes_on_sending(start: Start) -> None:
    node = start("--port", "0")
    address = node.ready()
    with Peer(*address) as peer:
        sender = threading.Thread(target=_send_for_ever, args=(peer.sock,))
        reader = threading.Thread(target=_read_to_the_end, args=(peer.sock,))
        sender.start()
        reader.start()
        node.process.send_signal(signal.SIGTERM)
        assert node.wait(5.0) == 0
        sender.join()
        reader.join()


def _send_for_ever(sock: socket.socket) -> None:
    frames = encode_request(1, "ping", ()) * 100
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(frames)


def _read_to_the_end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(1 << 18):
            pass


def test_a_node_that_waits_for_its_cluster_can_be_stopped(start: Start) -> None:
    node = start("--port", "0", "--expect", "2", "--join", f"127.0.0.1:{free_port()}")
    until(lambda: "waiting for a cluster of 2" in node.err, "it to wait")
    node.process.send_signal(signal.SIGTERM)
    assert node.wait() == 0
    assert node.out == ""


# Whom it is sent to


@contextlib.contextmanager
def foreign_server(answer: bytes | None) -> Iterator[str]:
    """Somebody who is no node: answers anything with `answer`, or nothing ever; at this address."""
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 16)
                    if answer is None:
                        ended.wait()
                    else:
                        connection.sendall(answer)

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.1)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            thread.join()


HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "says"),
    [(HTTP, "is no dcache node of this kind"), (b"", "no answer from"), (None, "no answer from")],
    ids=["http", "closes", "silent"],
)
def test_a_node_that_is_sent_to_something_else_says_so_and_waits(start: Start, answer: bytes | None, says: str) -> None:
    """It founds no cluster, for it was told that there is one; and it can be stopped."""
    with foreign_server(answer) as address:
        node = start("--port", "0", "--join", address)
        until(lambda: any(says in line and address in line for line in node.err.splitlines()), "it to say so")
        node.process.send_signal(signal.SIGTERM)
        assert node.wait() == 0
    assert node.out == ""


def test_a_node_alone_that_is_told_to_leave_just_ends(start: Start) -> None:
    node = start("--port", "0", "--leave")
    node.ready()
    node.process.send_signal(signal.SIGTERM)
    assert node.wait() == 0
    assert "leaving the cluster before stopping" in node.err


def test_ctrl_c_stops_a_node_at_once_also_one_that_would_leave(start: Start) -> None:
    node = start("--port", "0", "--leave")
    node.ready()
    node.process.send_signal(signal.SIGINT)
    assert node.wait() == 0
    assert "leaving" not in node.err


# A node that was stopped for long


def test_what_was_sent_to_a_stopped_node_is_not_carried_out(start: Start) -> None:
    """Whoever sent it has given up, and may have been told so: its connection is closed unread."""
    node = start("--port", "0")
    host, port = node.ready()
    table = held(f"{host}:{port}")
    with Peer(host, port) as peer:
        node.process.send_signal(signal.SIGSTOP)
        try:
            version = VersionClock(1, lambda: time.time_ns() // 1_000_000).stamp()
            peer.sock.sendall(encode_request(2, "set", (table.fingerprint, b"", b"late", version, b"value", 0, None)))
            threading.Event().wait(3.0)  # the time that it is stopped is the matter of this test
        finally:
            node.process.send_signal(signal.SIGCONT)
        assert peer.message() is None
    with Peer(host, port) as peer:
        assert len(peer.call("get", table.fingerprint, b"", b"late")) == 3, "absent"
        assert peer.call("stats")["stalls"] == 1
    assert "closing all connections unread" in node.err


# A member that starts again


def complete(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with Peer(host, int(port)) as peer:
        found: bool = peer.call("stats")["complete"]
        return found


@pytest.mark.parametrize("index", [0, 2])
def test_a_member_that_starts_again_is_a_member_again_and_is_filled_up(index: int) -> None:
    """The first as any other; it rejoins with the command line that it founded the cluster with."""
    with LocalCluster(3) as cluster:
        before = held(cluster.addresses[0])
        assert all(complete(address) for address in cluster.addresses)
        cluster.kill(index)
        cluster.restart(index)
        cluster.wait_until_stable()
        after = held(cluster.addresses[(index + 1) % 3])
        assert after.settings == before.settings
        assert after.fingerprint == before.fingerprint
        name = cluster.addresses[index]
        assert after.members[name].boot_id != before.members[name].boot_id
        assert after.members[name].incarnation > before.members[name].incarnation
        cluster.wait_until_complete()
        assert all(complete(address) for address in cluster.addresses)


def test_a_member_that_starts_again_with_other_settings_ends_and_says_why() -> None:
    with LocalCluster(3) as cluster:
        cluster.stop(1)
        node = cluster.nodes[1]
        node.command += ["--replicas", "2"]
        node.start()
        assert node.wait() == 1
        assert "has replicas 3, this node was started with 2: start it with the cluster's" in node.tail()


def restart_all(cluster: LocalCluster) -> None:
    for index in range(len(cluster.nodes)):
        cluster.kill(index)
    for node in cluster.nodes:
        node.start()
    until(lambda: all(node.ready() for node in cluster.nodes), "all to be ready again")


def test_when_all_start_again_they_are_another_cluster_and_a_client_finds_it() -> None:
    """The first calls fail, some at once because nodes are being left alone; then it goes on with the new cluster."""
    with LocalCluster(3) as cluster, cluster.client(timeout=2.0) as client:
        client.set("a", 1)
        before = held(cluster.addresses[0])
        restart_all(cluster)
        cluster.wait_until_stable()
        assert held(cluster.addresses[0]).settings.cluster_id != before.settings.cluster_id
        until(lambda: _worked(lambda: client.set("a", 2)), "the client to find it", FOUND_WITHIN)
        assert client.get("a") == 2


def test_when_all_start_again_they_are_another_cluster_and_an_async_client_finds_it(run: Run) -> None:
    async def main(cluster: LocalCluster) -> None:
        async with cluster.async_client(timeout=2.0) as client:
            await client.set("a", 1)
            await asyncio.to_thread(restart_all, cluster)
            await asyncio.to_thread(cluster.wait_until_stable)
            async with asyncio.timeout(FOUND_WITHIN):
                while not await _async_worked(client):  # noqa: ASYNC110 - what is waited for tells nobody
                    await asyncio.sleep(0.01)
            assert await client.get("a") == 2

    with LocalCluster(3) as cluster:
        run(main(cluster))


def _worked(attempt: Callable[[], Any]) -> bool:
    try:
        attempt()
    except DcacheError:
        return False
    return True


async def _async_worked(client: AsyncClient) -> bool:
    try:
        await client.set("a", 2)
    except DcacheError:
        return False
    return True


# What it needs

LOADED = "import sys; import {module}; print(*sys.modules)"


def loaded_by(module: str) -> set[str]:
    """The modules that are loaded once `module` is."""
    command: Sequence[str] = [sys.executable, "-c", LOADED.format(module=module)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return set(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split())


EXTRAS = {"click", "rich", "uvloop", "zstandard"}
HEAVY = {"argparse", "email", "http", "multiprocessing", "pytest", "sqlite3", "tomllib", "unittest", "xml"}


def test_the_node_runs_with_the_core_dependencies_alone() -> None:
    loaded = loaded_by("dcache.cli.node")
    assert not loaded & (EXTRAS - {"uvloop"})
    assert not {module for module in loaded if module.startswith(("dcache.client.", "dcache.testing"))}


def test_to_import_the_package_loads_nothing_of_it_yet() -> None:
    """Nor anything heavy: each name is loaded when it is first used."""
    loaded = loaded_by("dcache")
    assert {module for module in loaded if module.startswith("dcache")} == {"dcache"}
    assert not loaded & (EXTRAS | HEAVY | {"attr", "asyncio", "logging", "mmh3", "msgpack", "sortedcontainers", "ssl"})


def test_the_clients_load_nothing_that_they_do_not_need() -> None:
    """No extras, no servers, no tools; what only some users need is imported when they do."""
    loaded = loaded_by("dcache; dcache.Client; dcache.AsyncClient; dcache.cached")
    assert not loaded & (EXTRAS | HEAVY)
    rooms = ("dcache.agent.", "dcache.cli.", "dcache.node.", "dcache.testing.")
    assert not {module for module in loaded if f"{module}.".startswith(rooms)}


def test_a_program_of_threads_does_not_load_asyncio() -> None:
    """It would be a seventh of the time that its imports take."""
    assert not loaded_by("dcache; dcache.Client; dcache.cached") & {"asyncio", "ssl", "dcache.client.aio"}


def test_every_public_name_is_there() -> None:
    for name in dcache.__all__:
        assert getattr(dcache, name) is not None
        assert name in dir(dcache)
    with pytest.raises(AttributeError, match="no attribute 'Cleint'"):
        _ = dcache.Cleint
