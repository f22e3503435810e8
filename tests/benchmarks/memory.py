"""How much memory nodes and clients take, beside memcached and Redis: the numbers of docs/performance.md.

    python -m tests.benchmarks.memory [--entries 500000] [PART ...]

Parts: `entry`, `limit`, `client`, `import`; all of them if none is named.  Memory is the resident set (`VmRSS`) of the
process, so this runs on Linux only.  What a server takes per entry leaves out what it takes empty.  Keys are like
`user:123456`, values random bytes.  The whole takes a few minutes.
"""

from __future__ import annotations

import argparse
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dcache.cli.settings import size as bytes_of
from dcache.drivers.machine import wall_ms
from dcache.node.store import ENTRY_OVERHEAD
from dcache.record import VersionClock
from dcache.testing import LocalCluster
from dcache.testing.cluster import HOST, asked, table_of
from dcache.wire import PROTOCOL, Decoder, Limits, encode_request
from tests.benchmarks.side_by_side.race import Missing
from tests.benchmarks.side_by_side.servers import MEMCACHED, REDIS, Servers

ENTRIES, SIZE, BATCH = 500_000, 100, 100
HOUR = 3_600_000  # ms
LIMIT = "256MiB"
SIZES = (10, 100, 1024, 10 * 1024)

Item = tuple[str, bytes]
Batches = Iterator[list[Item]]


def resident(pid: int | str) -> int:
    """Bytes."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"process {pid} has no memory")


def batches(entries: int, size: int) -> Batches:
    """The same for every server.  Values differ, and are no two of them one object anywhere."""
    rng = random.Random(1)
    for first in range(0, entries, BATCH):
        numbers = range(first, min(entries, first + BATCH))
        yield [(f"user:{number:06}", rng.randbytes(size)) for number in numbers]


# -- entry ------------------------------------------------------------------------------------------------------------


def entry(entries: int) -> None:
    """Bytes per entry at 100-byte values."""
    print(f"  {entries:,} entries, values of {SIZE} bytes")
    fills: dict[str, Callable[[], float]] = {
        "dcache-node": lambda: bytes_per_entry(entries),
        "dcache-node, with lifetimes": lambda: bytes_per_entry(entries, ttl=HOUR),
        "memcached": lambda: of_rival(MEMCACHED, entries, in_memcached),
        "redis-server": lambda: of_rival(REDIS, entries, in_redis),
    }
    for name, measure in fills.items():
        try:
            print(f"  {name:30}{measure():6.0f} bytes per entry", flush=True)
        except Missing as missing:
            print(f"  {name:30}skipped: {missing}", flush=True)


def bytes_per_entry(entries: int = ENTRIES, *, ttl: int | None = None) -> float:
    """What a node takes for each."""
    with filled(entries, SIZE, "4GiB", ttl) as (before, after, _):
        return (after - before) / entries


@contextmanager
def filled(entries: int, size: int, limit: str, ttl: int | None) -> Iterator[tuple[int, int, int]]:
    """The memory of a node before and after it got these entries, which live so many ms, and how many it holds."""
    with LocalCluster(1, memory_limit=limit, probe_interval=1.0) as cluster:
        process, address = cluster.nodes[0].process, cluster.addresses[0]
        assert process is not None
        table = table_of(address)  # and the node has seen a client
        assert table is not None
        before = resident(process.pid)
        fill(address, table.fingerprint, batches(entries, size), ttl)
        yield before, resident(process.pid), asked(address, "stats")["entries"]


def fill(address: str, fingerprint: bytes, some: Batches, ttl: int | None) -> None:
    """Without a client, whose work would take most of the time."""
    clock, decoder = VersionClock(1, wall_ms), Decoder(Limits().max_frame, Limits().max_batch)
    hello = encode_request(0, "hello", (PROTOCOL, None, False))
    requests = (
        encode_request(1, "set_many", (fingerprint, b"", [(k.encode(), clock.stamp(), v, 0, ttl) for k, v in batch]))
        for batch in some
    )
    with socket.create_connection((HOST, int(address.rpartition(":")[2])), timeout=60.0) as sock:
        for request in chain([hello], requests):
            sock.sendall(request)
            while (reply := decoder.next()) is None:
                decoder.feed(sock.recv(65536))
            assert reply[2] is None, reply


def of_rival(name: str, entries: int, request: Callable[[list[Item]], tuple[bytes, int]]) -> float:
    with (
        Servers([name], compiler=False) as servers,
        socket.create_connection((HOST, servers.port(name))) as sock,
    ):
        (pid,) = servers.pids(name)
        before = resident(pid)
        for batch in batches(entries, SIZE):
            data, answer = request(batch)
            sock.sendall(data)
            while answer > 0:
                answer -= len(sock.recv(65536))
        return (resident(pid) - before) / entries


def in_memcached(batch: list[Item]) -> tuple[bytes, int]:
    """The request, and how many bytes its answer has."""
    sets = [b"set %b 0 0 %d\r\n%b\r\n" % (key.encode(), len(value), value) for key, value in batch]
    return b"".join(sets), len(b"STORED\r\n") * len(batch)


def in_redis(batch: list[Item]) -> tuple[bytes, int]:
    sets = [
        b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(key), key.encode(), len(value), value)
        for key, value in batch
    ]
    return b"".join(sets), len(b"+OK\r\n") * len(batch)


# -- limit ------------------------------------------------------------------------------------------------------------


def limit() -> None:
    """The memory of a node that is full, over its `--memory-limit`."""
    print(f"  --memory-limit {LIMIT}, filled three times over")
    print(f"  {'values':>10}{'entries':>12}{'RSS / limit':>14}{'with lifetimes':>16}")
    for size in SIZES:
        entries = 3 * bytes_of(LIMIT) // (len("\0user:000000") + size + ENTRY_OVERHEAD)
        full = []
        for ttl in (None, HOUR):
            with filled(entries, size, LIMIT, ttl) as (_, after, held):
                full.append((held, after / bytes_of(LIMIT)))
        print(f"  {size:8,} B{full[0][0]:12,}{full[0][1]:14.2f}{full[1][1]:16.2f}", flush=True)


# -- client -----------------------------------------------------------------------------------------------------------

CLIENT = """
import sys
from pathlib import Path

def resident():
    return next(line.split()[1] for line in Path("/proc/self/status").open() if line.startswith("VmRSS:"))

told = [resident()]
from dcache import Client
told.append(resident())
client = Client(sys.argv[1].split(","))
client.wait_ready()
told.append(resident())
for number in range(10_000):
    client.set(f"user:{number:06}", bytes(100))
    client.get(f"user:{number:06}")
print(*told, resident())
"""


def client() -> None:
    """The memory of a program that uses a client, step by step."""
    with LocalCluster(3, probe_interval=1.0) as cluster:
        bare, imported, made, used = (int(kibibytes) / 1024 for kibibytes in output(CLIENT, *cluster.addresses).split())
    for name, mebibytes in (
        ("Python alone", bare),
        ("dcache imported", imported - bare),
        ("a client that is ready, of three nodes", made - imported),
        ("after 10,000 sets and gets", used - made),
    ):
        print(f"  {name:42}{mebibytes:6.1f} MiB")


def output(code: str, *addresses: str) -> str:
    command = [sys.executable, "-c", code, ",".join(addresses)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


# -- import -----------------------------------------------------------------------------------------------------------


def import_() -> None:
    """The seconds of an import: a process that does it, less one that does nothing."""
    rounds = 15
    milliseconds: dict[str, list[float]] = {"pass": [], "import dcache": [], "from dcache import Client": []}
    for _ in range(rounds + 1):
        for code, taken in milliseconds.items():
            begun = time.perf_counter()
            output(code)
            taken.append((time.perf_counter() - begun) * 1000)
    bare, *others = (statistics.median(taken[1:]) for taken in milliseconds.values())  # the first one compiles
    for code, median in zip(list(milliseconds)[1:], others, strict=True):
        print(f"  {code:28}{median - bare:5.0f} ms")
    print(f"  Python itself starts in {bare:.0f} ms; medians of {rounds} rounds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=ENTRIES, help="how many entries `entry` has")
    parser.add_argument("parts", nargs="*", metavar="PART")
    given = parser.parse_args()
    parts: dict[str, Callable[[], None]] = {
        "entry": lambda: entry(given.entries),
        "limit": limit,
        "client": client,
        "import": import_,
    }
    for name in given.parts or parts:
        if name not in parts:
            parser.error(f"no part is called {name!r}: {', '.join(parts)}")
        print(f"{name}:", flush=True)
        parts[name]()


if __name__ == "__main__":
    main()
