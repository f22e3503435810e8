"""`LocalCluster`: real nodes, as processes of this machine, for tests, demonstrations and trying things out.

with LocalCluster(nodes=3) as cluster, cluster.client() as cache:
    cache.set("greeting", "hello")
    cluster.kill(0)
    assert cache.get("greeting") == "hello"
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import dcache
from dcache.client.aio import AsyncClient
from dcache.client.sync import Client
from dcache.errors import DcacheError
from dcache.membership import MemberTable
from dcache.ops.cluster import discover

PORTS = range(10_000, 32_000)
"""Where free ports are looked for: below what systems give to outgoing connections, which could take a port from a node
that is being restarted."""

HOST = "127.0.0.1"
PATIENCE = 30.0


class NodeFailed(Exception):
    """A node did not start, or not in time; the message ends with what it logged."""


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    for port in random.sample(PORTS, 1000):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port on {HOST} among a thousand that were tried")


class NodeProcess:
    """One node: its command line, and the process that runs it now, if any."""

    def __init__(self, index: int, address: str, command: list[str], directory: Path) -> None:
        self.index, self.address, self.command = index, address, command
        self.log = directory / f"node{index}.log"
        self._output = directory / f"node{index}.out"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        if self.running:
            raise RuntimeError(f"node {self.index} is running")
        with self._output.open("wb") as output, self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=log, env=_environment()
            )

    def ready(self) -> bool:
        """Whether it has said so; `NodeFailed` if it has ended instead."""
        if b" is ready at " in self._output.read_bytes():
            return True
        if not self.running:
            raise NodeFailed(f"node {self.index} ended before it was ready:\n{self.tail()}")
        return False

    def send(self, number: signal.Signals) -> None:
        if not self.running or self.process is None:
            raise RuntimeError(f"node {self.index} is not running")
        self.process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Wait for its end; the exit status."""
        assert self.process is not None
        return self.process.wait(timeout)

    def end(self) -> None:
        """Make sure that it is gone."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


class LocalCluster:
    """A cluster of `nodes` processes on free loopback ports; a context manager.

    `options` are settings of `dcache-node`, for all nodes: `LocalCluster(3, memory_limit="64MiB", replicas=2)`.
    Nodes are told apart by their index, from 0.
    """

    def __init__(self, nodes: int = 3, **options: Any) -> None:
        if nodes < 1:
            raise ValueError("a cluster has at least one node")
        self._directory = tempfile.TemporaryDirectory(prefix="dcache-", ignore_cleanup_errors=True)
        ports: set[int] = set()
        while len(ports) < nodes:
            ports.add(free_port())
        self.addresses: tuple[str, ...] = tuple(f"{HOST}:{port}" for port in ports)
        self.nodes = [
            NodeProcess(index, address, self._command(index, options), Path(self._directory.name))
            for index, address in enumerate(self.addresses)
        ]

    def _command(self, index: int, options: dict[str, Any]) -> list[str]:
        port = self.addresses[index].rpartition(":")[2]
        words = ["--host", HOST, "--port", port, "--expect", str(len(self.addresses))]
        for address in self.addresses:
            words += ["--join", address]
        for name, value in options.items():
            words += ["--" + name.replace("_", "-"), str(value)]
        return [sys.executable, "-m", "dcache.cli.node", *words]

    # -- as a whole ---------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start all nodes and wait until they are one cluster."""
        try:
            for node in self.nodes:
                node.start()
            for node in self.nodes:
                wait_for(node.ready, f"node {node.index} to be ready", node.tail)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End all nodes at once."""
        for node in self.nodes:
            node.end()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def client(self, **settings: Any) -> Client:
        """A `Client` of this cluster."""
        return Client(self.addresses, **settings)

    def async_client(self, **settings: Any) -> AsyncClient:
        """An `AsyncClient` of this cluster."""
        return AsyncClient(self.addresses, **settings)

    def wait_until_stable(self, timeout: float = PATIENCE) -> None:
        """Wait until all nodes that run hold the same member table."""
        wait_for(self._agrees, "the nodes to hold the same member table", lambda: "", timeout)

    # -- node by node -------------------------------------------------------------------------------------------------

    def kill(self, index: int) -> None:
        """SIGKILL: the node is gone at once, with all it held."""
        self.nodes[index].send(signal.SIGKILL)
        self.nodes[index].wait()

    def stop(self, index: int) -> int:
        """SIGTERM: the node ends in good order; returns its exit status."""
        self.nodes[index].send(signal.SIGTERM)
        return self.nodes[index].wait()

    def pause(self, index: int) -> None:
        """SIGSTOP: the node hangs, its connections stay open."""
        self.nodes[index].send(signal.SIGSTOP)

    def resume(self, index: int) -> None:
        """SIGCONT: the node goes on after `pause`."""
        self.nodes[index].send(signal.SIGCONT)

    def restart(self, index: int) -> None:
        """Start a node again that was killed or stopped, empty, at its old address."""
        node = self.nodes[index]
        node.start()
        wait_for(node.ready, f"node {index} to be ready", node.tail)

    def _agrees(self) -> bool:
        tables = [table_of(node.address) for node in self.nodes if node.running]
        return None not in tables and len({table.digest for table in tables if table is not None}) == 1


def table_of(address: str) -> MemberTable | None:
    """The member table that the node at `address` holds, None if it does not say."""
    with Client([address], timeout=1.0) as client:
        try:
            found: MemberTable = client.engine.driver.run(discover([address]), time.monotonic() + 1.0, 1.0)
        except DcacheError:
            return None
        return found


def wait_for(condition: Callable[[], bool], what: str, told: Callable[[], str], timeout: float = PATIENCE) -> None:
    """Poll until `condition()`; `NodeFailed` with what is `told` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise NodeFailed(f"waited {timeout:.0f} s for {what}\n{told()}")
        time.sleep(0.01)


def _environment() -> dict[str, str]:
    """This process's environment, without settings of nodes, and with this very package to be imported."""
    made = {name: value for name, value in os.environ.items() if not name.startswith("DCACHE_NODE_")}
    source = str(Path(dcache.__file__).resolve().parent.parent)
    made["PYTHONPATH"] = os.pathsep.join(filter(None, (source, made.get("PYTHONPATH"))))
    return made
