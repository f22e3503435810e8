"""Many tasks at once: `get_or_set` computes every key once, counters lose nothing, requests travel together.

Runs as it stands: it starts three nodes on this machine, or uses those named in DCACHE_NODES.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from dcache import AsyncClient
from dcache.testing import LocalCluster

CITIES = ("Lima", "Oslo", "Pune", "Riga", "Suva")
VISITORS = 200


@contextmanager
def nodes() -> Iterator[list[str]]:
    """The nodes named in DCACHE_NODES, or three of our own."""
    named = os.environ.get("DCACHE_NODES", "").replace(",", " ").split()
    if named:
        yield named
    else:
        with LocalCluster(nodes=3) as cluster:
            yield list(cluster.addresses)


async def fan_out(cache: AsyncClient) -> None:
    asked = Counter[str]()

    async def forecast(city: str) -> str:
        asked[city] += 1
        await asyncio.sleep(0.1)  # stands for a slow service
        return f"sun in {city}"

    async def visit(number: int) -> str:
        city = CITIES[number % len(CITIES)]
        answer: str = await cache.get_or_set(city, lambda: forecast(city), ttl=60)
        return answer

    answers = await asyncio.gather(*map(visit, range(VISITORS)))
    print(f"{len(answers)} visitors got {len(set(answers))} answers, computed {asked.total()} times")

    await asyncio.gather(*(cache.incr("visits") for _ in range(20)))
    print(f"20 tasks counted to {await cache.get('visits')}")

    found = await cache.get_many([*CITIES, "Atlantis"])
    print(f"found {len(found)} of {len(CITIES) + 1} cities in one batch")


async def main() -> None:
    with nodes() as addresses:
        async with AsyncClient(addresses, namespace="fan-out", timeout=5.0) as cache:
            await cache.clear()  # an earlier run may have left its results in a cluster that lives on
            await fan_out(cache)
    print("done")


if __name__ == "__main__":
    asyncio.run(main())
