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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import dcache
from dcache.agent.wishes import RENEW_EVERY
from dcache.client.aio import AsyncClient
from dcache.client.sync import Client
from dcache.membership import MemberTable
from dcache.ops.effects import Call, FirstOf, Op

PORTS = range(10_000, 32_000)
"""Where free ports are looked for: below what systems give to outgoing connections, which could take a port from a node
that is being restarted."""

HOST = "127.0.0.1"
PATIENCE = 30.0
PROBE_INTERVAL = 0.2


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
    """One node: its name, its command line, and the process that runs it now, if any."""

    def __init__(self, index: int, address: str, name: str, command: list[str], directory: Path) -> None:
        self.index, self.address, self.name, self.command = index, address, name, command
        self.log = directory / f"node{index}.log"
        self._output = directory / f"node{index}.out"
        self.process: subprocess.Popen[bytes] | None = None
        self.paused = False
        self.gone = False  # it left the cluster, or was forgotten

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        if self.running:
            raise RuntimeError(f"node {self.index} is running")
        self.paused = self.gone = False
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

    `options` are settings of `dcache-node`, for all nodes: `LocalCluster(3, memory_limit="64MiB", replicas=2)`; a list
    is one that is given several times.  Nodes are told apart by their index, from 0; one that leaves keeps its index.
    They look after each other every 0.2 s (`probe_interval`), so that tests need not wait for long.
    """

    def __init__(self, nodes: int = 3, **options: Any) -> None:
        if nodes < 1:
            raise ValueError("a cluster has at least one node")
        self._directory = tempfile.TemporaryDirectory(prefix="dcache-", ignore_cleanup_errors=True)
        self._options = {"probe_interval": PROBE_INTERVAL, **options}
        ports: set[int] = set()
        while len(ports) < nodes:
            ports.add(free_port())
        addresses = [f"{HOST}:{port}" for port in ports]
        founding = self._options if nodes == 1 else {"expect": nodes, "join": addresses, **self._options}
        self.nodes: list[NodeProcess] = []
        for address in addresses:
            self._make(address, founding)

    def _make(self, address: str, options: dict[str, Any]) -> NodeProcess:
        command = [sys.executable, "-m", "dcache.cli.node", "--host", HOST, "--port", address.rpartition(":")[2]]
        name, directory = str(options.get("name", address)), Path(self._directory.name)
        node = NodeProcess(len(self.nodes), address, name, [*command, *flags(options)], directory)
        self.nodes.append(node)
        return node

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the nodes are, or were, by index."""
        return tuple(node.address for node in self.nodes)

    # -- as a whole ---------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start all nodes and wait until they are one cluster."""
        try:
            for node in self.nodes:
                node.start()
            wait_for(self._ready, "the nodes to be ready", self._told)
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
        return Client(self._present(), **settings)

    def async_client(self, **settings: Any) -> AsyncClient:
        """An `AsyncClient` of this cluster."""
        return AsyncClient(self._present(), **settings)

    def wait_until_stable(self, timeout: float = PATIENCE) -> None:
        """Wait until all nodes that run, and are not paused, hold the same member table."""
        wait_for(self._agrees, "the nodes to hold the same member table", self._told, timeout)

    def wait_until_complete(self, timeout: float = PATIENCE) -> None:
        """Wait until all nodes that run, and are not paused, know of all that is in their slots, and the ring is not
        changing."""
        wait_for(self._complete, "the nodes to be complete", self._told, timeout)

    def add(self, **options: Any) -> int:
        """Start another node, which joins; returns its index once it is on the ring and all know so.

        `options` are settings of this node, beside those of all.
        """
        address = f"{HOST}:{free_port()}"
        while address in self.addresses:
            address = f"{HOST}:{free_port()}"
        node = self._make(address, {"join": self._present(), **self._options, **options})
        self._begin(node)
        wait_for(lambda: self._with(node), f"the others to know node {node.index}", self._told)
        return node.index

    def leave(self, index: int, timeout: float = PATIENCE) -> int:
        """Have a node leave: it ends once others hold what it held; returns its exit status."""
        node = self.nodes[index]
        if not node.running:
            raise RuntimeError(f"node {index} is not running")
        self._wish("leave", node, lambda: not node.running, timeout)
        return node.wait()

    def forget(self, index: int, timeout: float = PATIENCE) -> None:
        """Take a node that was killed or stopped off the ring, once the others have seen that it is down."""
        node = self.nodes[index]
        if node.running:
            raise RuntimeError(f"node {index} is running")
        self._wish("forget", node, lambda: self._without(node.name), timeout)

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
        self.nodes[index].paused = True

    def resume(self, index: int) -> None:
        """SIGCONT: the node goes on after `pause`."""
        self.nodes[index].send(signal.SIGCONT)
        self.nodes[index].paused = False

    def restart(self, index: int, name: str | None = None) -> None:
        """Start a node again that was killed, stopped or left, empty, at its old address; with `name` as another
        member, which joins."""
        node = self.nodes[index]
        if name is not None and not node.running:
            node.name, node.command = name, [*node.command, "--name", name]
        self._begin(node)

    def _begin(self, node: NodeProcess) -> None:
        """Start a node and wait until it is of the cluster."""
        node.start()
        wait_for(node.ready, f"node {node.index} to be ready", node.tail)

    # -- what the nodes say -------------------------------------------------------------------------------------------

    def _present(self) -> list[str]:
        """The addresses of all that have not left."""
        return [node.address for node in self.nodes if not node.gone]

    def _awake(self) -> list[NodeProcess]:
        return [node for node in self.nodes if node.running and not node.paused]

    def _tables(self) -> list[MemberTable] | None:
        """Those of all that can answer; None if one does not."""
        tables = [table_of(node.address) for node in self._awake()]
        found = [table for table in tables if table is not None]
        return found if len(found) == len(tables) else None

    def _ready(self) -> bool:
        """Whether all have said so; all are looked at, for one that has ended will never be."""
        return sum(node.ready() for node in self.nodes) == len(self.nodes)

    def _agrees(self) -> bool:
        tables = self._tables()
        return tables is not None and len({table.digest for table in tables}) == 1

    def _complete(self) -> bool:
        tables = self._tables()
        if tables is None or len({table.digest for table in tables}) != 1 or tables[0].ring_state.next is not None:
            return False
        told = [asked(node.address, "stats") for node in self._awake()]
        return all(about is not None and about["complete"] for about in told)

    def _with(self, node: NodeProcess) -> bool:
        """Whether all know `node` as a member that is on the ring."""
        tables = self._tables()
        return tables is not None and all(node.name in table.ring for table in tables)

    def _without(self, name: str) -> bool:
        tables = self._tables()
        return tables is not None and all(name not in table.members for table in tables)

    def _wish(self, method: str, node: NodeProcess, fulfilled: Callable[[], bool], timeout: float) -> None:
        """Tell some member, again and again, that `node` should leave or be forgotten."""
        said = -RENEW_EVERY

        def look() -> bool:
            nonlocal said
            if time.monotonic() - said >= RENEW_EVERY / 5 and not fulfilled():
                said = time.monotonic()
                others = [other for other in self._awake() if other is not node] or [node]
                wanted = node.name if method == "leave" else [node.name]
                asked(others[0].address, method, wanted)  # refused while it is not known yet to be down
            return fulfilled()

        wait_for(look, f"node {node.index} to {method}", self._told, timeout)
        node.gone = True

    def _told(self) -> str:
        """The end of what each node that runs has logged."""
        return "\n".join(f"-- node {node.index}:\n{node.tail()}" for node in self._awake())


def flags(options: Mapping[str, Any]) -> Iterator[str]:
    """Settings of `dcache-node` as words of its command line."""
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            yield from ("--" + name.replace("_", "-"), str(one))


def table_of(address: str) -> MemberTable | None:
    """The member table that the node at `address` holds, None if it does not say."""
    found = asked(address, "table")
    return None if found is None else MemberTable.from_wire(found)


def asked(address: str, method: str, *params: Any) -> Any:
    """What the node at `address` answers; None also if it refuses, or is not there."""
    with Client([address], timeout=1.0, connect_timeout=1.0) as client:
        return client.engine.driver.run(_ask(Call(address, method, params)), time.monotonic() + 1.0, 1.0)


def _ask(call: Call) -> Op[Any]:
    round_ = FirstOf([call])
    yield round_
    return round_.replies[0].result if round_.replies else None


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
