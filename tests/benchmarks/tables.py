"""What the ring and the member table cost as a cluster grows: time, bytes and memory, for docs/scaling.md.

    python -m tests.benchmarks.tables [--nodes 3 10 100 1000] [--points 150]

Times are CPU time, the best of several rounds: what the code costs, not what else the machine does.  A warm lookup is
also given as a multiple of hashing the same key, which no ring of this kind can do without.  Memory is what Python
allocated for a ring and its table of three owners for every slot.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

if __package__ in (None, ""):  # started as a file
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import attrs
import mmh3

from dcache.membership import Health, Member, MemberTable, RingState, Settings
from dcache.ring import SLOTS, HashRing
from dcache.wire import Decoder, Limits, encode_reply

KEYS = 10_000
REPLICAS = 3


def cpu(work: Callable[[], object], rounds: int = 5) -> float:
    """CPU seconds of the fastest of so many runs."""
    best = float("inf")
    for _ in range(rounds):
        begun = time.process_time()
        work()
        best = min(best, time.process_time() - begun)
    return best


def rows_of(nodes: int) -> dict[str, Member]:
    names = [f"10.0.{n >> 8}.{n & 255}:7400" for n in range(nodes)]
    return {name: Member(name, name, boot_id=f"{n:016x}") for n, name in enumerate(names)}


def table_of(nodes: int, points: int) -> MemberTable:
    rows = rows_of(nodes)
    settings = Settings("benchmark", REPLICAS, points)
    return MemberTable(settings, RingState(1, tuple(row.placed() for row in rows.values())), rows)


def fresh(ring: HashRing) -> HashRing:
    return HashRing(ring.nodes, ring.vnodes, ring.seed)


def compile_owners(ring: HashRing) -> None:
    for slot in range(SLOTS):
        ring.slot_owners(slot, REPLICAS)


def ring_costs(ring: HashRing, keys: list[bytes]) -> dict[str, str]:
    def look_up(find: Callable[[bytes], object]) -> Callable[[], None]:
        def all_keys() -> None:
            for key in keys:
                find(key)

        return all_keys

    compile_owners(ring)
    ring.shares()
    lookup, hashing = (cpu(look_up(find), 9) / len(keys) for find in (ring.lookup, lambda key: mmh3.hash(key, 0)))
    cold: list[HashRing] = []
    build = cpu(lambda: cold.append(fresh(ring)), 3)
    compiled = min(cpu(lambda each=each: compile_owners(each), 1) for each in cold)  # type: ignore[misc]
    kept, whole = memory_of(ring)
    return {
        "building the ring": f"{1000 * build:.2f} ms",
        "owners of all slots": f"{1000 * compiled:.1f} ms",
        "`lookup`, warm": f"{1e6 * lookup:.2f} µs",
        "... as a multiple of hashing": f"{lookup / hashing:.1f}",
        "memory of the ring": f"{kept / 1e6:.2f} MB",
        "... with all owners": f"{whole / 1e6:.2f} MB",
    }


def memory_of(ring: HashRing) -> tuple[int, int]:
    gc.collect()
    tracemalloc.start()
    try:
        made = fresh(ring)
        gc.collect()
        kept = tracemalloc.get_traced_memory()[0]
        compile_owners(made)
        gc.collect()
        return kept, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def table_costs(table: MemberTable) -> dict[str, str]:
    frame = encode_reply(1, table.to_wire())

    def decode() -> MemberTable:
        decoder = Decoder(Limits().max_frame, max(Limits().max_batch, len(table.members)))
        decoder.feed(frame)
        ((_, _, _, result),) = decoder.messages()
        return MemberTable.from_wire(result)

    changed = table.with_member(attrs.evolve(next(iter(table.members.values())), health=Health.DOWN))
    return {
        "bytes of the table": f"{len(frame):,}",
        "encoding it": f"{1000 * cpu(lambda: encode_reply(1, table.to_wire())):.2f} ms",
        "decoding it": f"{1000 * cpu(decode):.2f} ms",
        "merging one changed row": f"{1000 * cpu(lambda: table.merge(changed)):.2f} ms",
        "digest": f"{1000 * cpu(lambda: attrs.evolve(table).digest):.2f} ms",
        "fingerprint": f"{1000 * cpu(lambda: attrs.evolve(table).fingerprint):.2f} ms",
    }


def join_costs(ring: HashRing) -> dict[str, str]:
    """What a client or node works out when one joins: the new ring, and which slots change their owners."""

    def diff() -> float:
        after = ring.add_node("10.9.9.9:7400", host="10.9.9.9")
        new = [slot for slot in range(SLOTS) if ring.slot_owners(slot, REPLICAS) != after.slot_owners(slot, REPLICAS)]
        return len(new) / SLOTS

    after = ring.add_node("10.9.9.9:7400", host="10.9.9.9")
    copies = sum(len({*after.slot_owners(s, REPLICAS)} - {*ring.slot_owners(s, REPLICAS)}) for s in range(SLOTS))
    return {
        "a join: ring and changed slots": f"{1000 * cpu(diff, 3):.1f} ms",
        "copies that move (least possible)": f"{copies / SLOTS / REPLICAS:.2%} ({1 / len(after):.2%})",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[3, 10, 100, 1000])
    parser.add_argument("--points", type=int, default=150, help="points of each node")
    given = parser.parse_args()
    keys = [random.Random(1).randbytes(16) for _ in range(KEYS)]
    columns = []
    for nodes in given.nodes:
        table = table_of(nodes, given.points)
        columns.append(ring_costs(table.ring, keys) | table_costs(table) | join_costs(table.ring))
    print(f"| {given.points} points each | {' | '.join(f'{nodes:,} nodes' for nodes in given.nodes)} |")
    print("|---" * (len(columns) + 1) + "|")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(column[name] for column in columns)} |")


if __name__ == "__main__":
    main()
