"""Everything that answers: each is started once, on loopback, and ended with the harness.  What is not there
is said."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import msgpack

from dcache.testing import LocalCluster
from dcache.testing.cluster import HOST, free_port, wait_for
from tests.benchmarks.side_by_side.exchange import Exchange, batch_with_node, with_node
from tests.benchmarks.side_by_side.race import Missing, reason

MEMCACHED, REDIS, ONE, THREE = "memcached", "redis-server", "dcache R=1", "dcache R=3"
ECHO, PYTHON_ECHO = "C echo", "Python echo"
SERVERS = (ONE, THREE, MEMCACHED, REDIS, ECHO, PYTHON_ECHO)
ROOT = Path(__file__).resolve().parents[3]
SYSTEM = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"))
LARGEST = 2 << 20
"""Bytes that a value may have everywhere, which is more than some allow by default."""


class Servers:
    """A context manager; `names` are those to start, the others count as missing.

    `load` is the compiled load.c, None without a C compiler.
    """

    def __init__(self, names: Sequence[str] = SERVERS, *, compiler: bool = True) -> None:
        self.missing = {name: "not wanted" for name in SERVERS if name not in names}
        self.load: Path | None = None
        self._names, self._compiler = names, compiler
        self._ports: dict[str, list[int]] = {}
        self._pids: dict[str, list[int]] = {}
        self._clusters: dict[str, LocalCluster] = {}
        self._exchange: Exchange | None = None
        self._batch: Exchange | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _start(self) -> None:
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="side-by-side-")))
        self.load = compiled(directory) if self._compiler else None
        starts = {
            ONE: lambda: self._found(ONE, 1),
            THREE: lambda: self._found(THREE, 3),
            MEMCACHED: self._start_memcached,
            REDIS: lambda: self._start_redis(directory),
            ECHO: self._start_echo,
            PYTHON_ECHO: lambda: self._start_python_echoes(directory),
        }
        for name in self._names:
            try:
                starts[name]()
            except Exception as error:  # noqa: BLE001  # it is said, and the others go on
                self.missing[name] = reason(error)

    # -- what callers ask ---------------------------------------------------------------------------------------------

    def port(self, name: str) -> int:
        return self.ports(name)[0]

    def ports(self, name: str) -> list[int]:
        self._check(name)
        return self._ports[name]

    def pids(self, name: str) -> list[int]:
        self._check(name)
        return self._pids[name]

    def cluster(self, name: str) -> LocalCluster:
        self._check(name)
        return self._clusters[name]

    def exchange(self) -> Exchange:
        """A get of a value of 100 bytes from a node."""
        if self._exchange is None:
            self._exchange = with_node(self.cluster(ONE))
        return self._exchange

    def batch(self) -> Exchange:
        """A get of 100 such values."""
        if self._batch is None:
            self._batch = batch_with_node(self.cluster(ONE))
        return self._batch

    def _check(self, name: str) -> None:
        if name in self.missing:
            raise Missing(f"{name}: {self.missing[name]}")

    # -- starting -----------------------------------------------------------------------------------------------------

    def _found(self, name: str, nodes: int) -> None:
        cluster = LocalCluster(
            nodes, replicas=nodes, memory_limit="1GiB", max_value=LARGEST, probe_interval=1.0
        )  # else nodes look after each other more often than they do by default
        self._clusters[name] = self._stack.enter_context(cluster)
        self._pids[name] = [node.process.pid for node in cluster.nodes if node.process is not None]

    def _start_memcached(self) -> None:
        port = free_port()
        flags = ["-l", HOST, "-p", str(port), "-U", "0", "-t", "1", "-m", "1024", "-I", str(LARGEST)]
        user = ["-u", "nobody"] if os.name == "posix" and os.geteuid() == 0 else []
        self._spawn(MEMCACHED, [program("memcached"), *flags, *user], port)

    def _start_redis(self, directory: Path) -> None:
        port = free_port()
        flags = ["--bind", HOST, "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(directory)]
        self._spawn(REDIS, [program("redis-server"), *flags], port)

    def _start_echo(self) -> None:
        if self.load is None:
            raise Missing("no C compiler")
        self._told(ECHO, [str(self.load), "echo", str(len(self.exchange().request)), str(len(self.exchange().reply))])

    def _start_python_echoes(self, directory: Path) -> None:
        """Two of them, for a read of two nodes."""
        replies, file = (self.exchange(), self.batch()), directory / "replies"
        file.write_bytes(msgpack.packb({len(each.request): each.reply for each in replies}))
        for _ in range(2):
            self._told(PYTHON_ECHO, [sys.executable, "-m", "tests.benchmarks.side_by_side.echo", str(file)])

    def _told(self, name: str, command: list[str]) -> None:
        """Start what prints the port that it serves."""
        process = self._keep(subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT))
        assert process.stdout is not None
        self._ports.setdefault(name, []).append(int(process.stdout.readline()))
        self._pids.setdefault(name, []).append(process.pid)

    def _spawn(self, name: str, command: list[str], port: int) -> None:
        quiet = subprocess.DEVNULL
        process = self._keep(subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet))
        wait_for(lambda: process.poll() is not None or listens(port), f"{name} to listen", lambda: "", timeout=10.0)
        if process.poll() is not None:
            raise Missing(f"it ended at once, with status {process.returncode}")
        self._ports[name], self._pids[name] = [port], [process.pid]

    def _keep(self, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        self._stack.enter_context(process)  # which waits for its end and closes its pipe
        self._stack.callback(process.kill)
        return process


def program(name: str) -> str:
    found = shutil.which(name, path=SYSTEM)
    if found is None:
        raise Missing("not installed on this machine")
    return found


def compiled(directory: Path) -> Path | None:
    """load.c as a program in `directory`; None where there is no C compiler."""
    compiler, made = shutil.which("cc", path=SYSTEM), directory / "load"
    if compiler is None:
        return None
    source = Path(__file__).with_name("load.c")
    done = subprocess.run([compiler, "-O2", "-o", str(made), str(source)], check=False, capture_output=True)
    return made if done.returncode == 0 else None


def listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def cpu_seconds(pids: Sequence[int]) -> float | None:
    """What all threads of these processes have had, as the scheduler counts it; None where it does not tell."""
    try:
        tasks = [task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
        return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks) / 1e9
    except OSError:
        return None
