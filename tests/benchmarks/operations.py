"""What happens to a cluster when nodes die, join and come back empty, in numbers: those of docs/operations.md.

    python -m tests.benchmarks.operations [--entries 1000000] [PART ...]

Parts: `kill`, `join`, `refill`, `idle`, `floors`; all of them if none is named.  Every part starts real nodes on this
machine, with the default settings of `dcache-node` but for what the part says, and ends them.  Nothing else should run
beside it.  The whole takes some ten minutes.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dcache import Client, DcacheError
from dcache.membership import Health
from dcache.node.store import ENTRY_OVERHEAD
from dcache.testing import LocalCluster
from dcache.testing.cluster import table_of, wait_for

VALUE = bytes(100)
PATIENCE = 600.0


def fresh_cluster(nodes: int = 3, **options: object) -> LocalCluster:
    """A cluster with the interval between probes that nodes have by default."""
    return LocalCluster(nodes, **{"probe_interval": 1.0, **options})


# -- kill -------------------------------------------------------------------------------------------------------------


def kill() -> None:
    """One of three is killed while one thread sets and gets as fast as it can."""
    rounds = [killed_once() for _ in range(5)]
    for index, name in enumerate(("first success again", "no more errors or timeouts", "table changed everywhere")):
        seconds = [taken[index] for taken in rounds]
        print(f"  {name:28} median {statistics.median(seconds):6.3f} s, longest {max(seconds):6.3f} s")
    print(f"  {'calls that failed':28} {sum(taken[3] for taken in rounds)} in {len(rounds)} kills")
    print(f"  {'longest call':28} {max(taken[4] for taken in rounds):6.3f} s")


def killed_once() -> tuple[float, float, float, int, float]:
    with fresh_cluster() as cluster, cluster.client(timeout=1.0) as client:
        calls: list[tuple[float, float, bool]] = []
        stop = threading.Event()
        worker = threading.Thread(target=call_always, args=(client, calls, stop))
        worker.start()
        time.sleep(1.0)
        cluster.kill(0)
        killed = time.monotonic()
        wait_for(lambda: all_say_down(cluster, cluster.addresses[0]), "the table to change", lambda: "", PATIENCE)
        changed = time.monotonic() - killed
        stop.set()
        worker.join()
    after = [(start, end, fine) for start, end, fine in calls if end > killed]
    first = next(end for _, end, fine in after if fine) - killed
    bad = [end for start, end, fine in after if not fine or end - start > 0.5]
    return first, max((end - killed for end in bad), default=0.0), changed, len(bad), max(e - s for s, e, _ in after)


def call_always(client: Client, calls: list[tuple[float, float, bool]], stop: threading.Event) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        start = time.monotonic()
        try:
            client.set(f"key{number % 1000}", number)
            client.get(f"key{(number * 7) % 1000}")
            fine = True
        except DcacheError:
            fine = False
        calls.append((start, time.monotonic(), fine))


def all_say_down(cluster: LocalCluster, name: str) -> bool:
    tables = [table_of(node.address) for node in cluster.nodes if node.running]
    return all(table is not None and table.members[name].health is Health.DOWN for table in tables)


# -- join -------------------------------------------------------------------------------------------------------------


def join() -> None:
    """A fourth node joins three that hold 100,000 entries, while one thread reads them."""
    entries = 100_000
    with fresh_cluster(memory_limit="1GiB") as cluster, cluster.client(timeout=2.0) as client:
        fill(client, entries)
        with cluster.client(timeout=2.0) as reader:
            before = read_for(reader, entries, seconds=5.0)
            reads = Reader(cluster, entries)
            start = time.monotonic()
            joined = cluster.add(probe_interval=1.0, memory_limit="1GiB")
            taken = time.monotonic() - start
            during = reads.end()
        client.get("entry0")  # and learn of the new ring
        stats = client.stats()["nodes"]
        moved = stats[cluster.nodes[joined].address]["entries"]
        print(f"  joined in {taken:.1f} s")
        print(f"  keys copied to it: {moved:,} of {3 * entries:,} replicas, {moved / (3 * entries):.1%} (ideal 25 %)")
        for name, (count, hits, errors, p99) in (("before", before), ("during", during)):
            told = f"{count:,} gets, hit rate {hits / max(count, 1):.2%}, {errors} errors, p99 {p99 * 1000:.2f} ms"
            print(f"  {name}: {told}")


class Reader:
    """A thread that reads keys at random until it is ended."""

    def __init__(self, cluster: LocalCluster, entries: int) -> None:
        self._stop = threading.Event()
        self._result = (0, 0, 0, 0.0)
        self._client, self._entries = cluster.client(timeout=2.0), entries
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._client:
            self._result = read_while(self._client, self._entries, lambda: not self._stop.is_set())

    def end(self) -> tuple[int, int, int, float]:
        self._stop.set()
        self._thread.join()
        return self._result


def read_for(client: Client, entries: int, seconds: float) -> tuple[int, int, int, float]:
    until = time.monotonic() + seconds
    return read_while(client, entries, lambda: time.monotonic() < until)


def read_while(client: Client, entries: int, go_on: Callable[[], bool]) -> tuple[int, int, int, float]:
    """Gets, hits, errors, and the 99th percentile of the seconds that a get took."""
    rng = random.Random(1)
    took: list[float] = []
    hits = errors = 0
    while go_on():
        start = time.monotonic()
        try:
            hits += client.get(f"entry{rng.randrange(entries)}") is not None
        except DcacheError:
            errors += 1
        took.append(time.monotonic() - start)
    return len(took), hits, errors, sorted(took)[int(len(took) * 0.99)] if took else 0.0


def fill(client: Client, entries: int) -> None:
    for first in range(0, entries, 1000):
        errors = client.set_many({f"entry{number}": VALUE for number in range(first, min(entries, first + 1000))})
        assert not errors, errors


# -- refill -----------------------------------------------------------------------------------------------------------


def refill(entries: int) -> None:
    """One of three loses everything and is started again."""
    with fresh_cluster(memory_limit="2GiB") as cluster, cluster.client(timeout=5.0) as client:
        fill(client, entries)
        cluster.kill(0)
        start = time.monotonic()
        cluster.restart(0)
        ready = time.monotonic() - start
        cluster.wait_until_complete(timeout=PATIENCE)
        complete = time.monotonic() - start
        held = client.stats()["nodes"][cluster.addresses[0]]["entries"]
        print(
            f"  {entries:,} entries of {len(VALUE)} bytes: serves after {ready:.1f} s, complete after {complete:.1f} s"
        )
        print(f"  it holds {held:,} entries again")


# -- idle -------------------------------------------------------------------------------------------------------------


def idle() -> None:
    """What three nodes say to each other when nobody asks them anything: all bytes of the loopback device."""
    with fresh_cluster() as cluster:
        cluster.wait_until_complete()
        time.sleep(5.0)
        start, began = loopback_bytes(), time.monotonic()
        time.sleep(130.0)  # two rounds of repair
        seconds = time.monotonic() - began
        print(f"  {(loopback_bytes() - start) / seconds / 3:,.0f} bytes per node and second, headers counted")


def loopback_bytes() -> int:
    for line in Path("/proc/net/dev").read_text(encoding="ascii").splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "lo":
            return int(counts.split()[0])
    raise OSError("no loopback device")


# -- floors -----------------------------------------------------------------------------------------------------------

WORKING_SET = 30_000


def floors() -> None:
    """Three strict replicas with room for a third of the working set, and one plain LRU of the size of one of them."""
    entry = len("item00000") + 1 + len(VALUE) + ENTRY_OVERHEAD
    room = WORKING_SET * entry // 3
    with fresh_cluster(memory_limit=room) as cluster, cluster.client(timeout=5.0) as client:
        plain: OrderedDict[str, None] = OrderedDict()
        most = room // entry
        counted = hits = plain_hits = 0
        accesses = 200_000
        for number, key in enumerate(skewed(accesses)):
            hit = client.get(key) is not None
            if not hit:
                client.set(key, VALUE)
            plain_hit = touch(plain, key, most)
            if number >= accesses // 4:  # warm by now
                counted += 1
                hits += hit
                plain_hits += plain_hit
        print(f"  {counted:,} reads, Zipf 1.0 over {WORKING_SET:,} keys, room for {most:,} entries")
        print(f"  three strict replicas: hit rate {hits / counted:.2%}; one plain LRU: {plain_hits / counted:.2%}")


def skewed(count: int) -> Iterator[str]:
    """Keys with Zipf's distribution (exponent 1)."""
    rng = random.Random(7)
    weights = list(accumulate(1 / rank for rank in range(1, WORKING_SET + 1)))
    order = list(range(WORKING_SET))
    rng.shuffle(order)
    for rank in rng.choices(order, cum_weights=weights, k=count):
        yield f"item{rank:05}"


def touch(plain: OrderedDict[str, None], key: str, most: int) -> bool:
    """Read a key of a plain LRU, and store it if it was not there; whether it was."""
    hit = key in plain
    plain[key] = None
    plain.move_to_end(key)
    if len(plain) > most:
        plain.popitem(last=False)
    return hit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000, help="how many entries `refill` has")
    parser.add_argument("parts", nargs="*", metavar="PART")
    given = parser.parse_args()
    parts: dict[str, Callable[[], None]] = {
        "kill": kill,
        "join": join,
        "refill": lambda: refill(given.entries),
        "idle": idle,
        "floors": floors,
    }
    for name in given.parts or parts:
        if name not in parts:
            parser.error(f"no part is called {name!r}: {', '.join(parts)}")
        print(f"{name}:", flush=True)
        parts[name]()


if __name__ == "__main__":
    main()
