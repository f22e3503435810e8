"""A batch job: look up what is known with get_many, compute the rest, store it with set_many, in several threads.

The work is real: the length and the SHA-256 of every source file of a package of the standard library.  One client
serves all threads.  Runs as it stands: it starts three nodes on this machine, or uses those named in DCACHE_NODES.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

from dcache import Client
from dcache.testing import LocalCluster

CHUNK = 8


@contextmanager
def nodes() -> Iterator[list[str]]:
    """The nodes named in DCACHE_NODES, or three of our own."""
    named = os.environ.get("DCACHE_NODES", "").replace(",", " ").split()
    if named:
        yield named
    else:
        with LocalCluster(nodes=3) as cluster:
            yield list(cluster.addresses)


def chunks(paths: list[Path]) -> Iterator[list[Path]]:
    rest = iter(paths)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def fingerprint(path: Path) -> dict[str, int | str]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def work(cache: Client, chunk: list[Path]) -> tuple[int, int]:
    """Have all of a chunk in the cache; how many were known and how many were computed."""
    known = cache.get_many([path.name for path in chunk])
    computed = {path.name: fingerprint(path) for path in chunk if path.name not in known}
    errors = cache.set_many(computed, ttl=3600)
    for name, error in errors.items():
        print(f"not stored: {name!r}: {error}")
    return len(known), len(computed)


def run(cache: Client, paths: list[Path]) -> None:
    with ThreadPoolExecutor(max_workers=4) as pool:
        counts = list(pool.map(partial(work, cache), chunks(paths)))
    known, computed = (sum(column) for column in zip(*counts, strict=True))
    print(f"{len(paths)} files: {known} known, {computed} computed")


def main() -> None:
    paths = sorted(Path(asyncio.__file__).parent.glob("*.py"))
    with nodes() as addresses, Client(addresses, namespace="batch-job", timeout=5.0) as cache:
        cache.clear()  # an earlier run may have left its results in a cluster that lives on
        run(cache, paths)
        run(cache, paths)
        print(f"{cache.delete_many([path.name for path in paths])} deleted")
    print("done")


if __name__ == "__main__":
    main()
