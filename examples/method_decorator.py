"""`@cached` on a method: a key that says what it is about, and what changes the data invalidates it.

Runs as it stands: it starts three nodes on this machine, or uses those named in DCACHE_NODES.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from dcache import Client, cached
from dcache.testing import LocalCluster


@contextmanager
def nodes() -> Iterator[list[str]]:
    """The nodes named in DCACHE_NODES, or three of our own."""
    named = os.environ.get("DCACHE_NODES", "").replace(",", " ").split()
    if named:
        yield named
    else:
        with LocalCluster(nodes=3) as cluster:
            yield list(cluster.addresses)


def main() -> None:
    with nodes() as addresses, Client(addresses, namespace="shop", timeout=5.0) as cache:
        cache.clear()  # an earlier run may have left its results in a cluster that lives on

        class Catalogue:
            """Prices, as they stand in a database."""

            def __init__(self, prices: dict[int, float]) -> None:
                self.prices = prices
                self.queries = 0

            @cached(cache, ttl=300, key="price:{product}")
            def price(self, product: int) -> float:
                self.queries += 1
                return self.prices[product]

            def change_price(self, product: int, price: float) -> None:
                self.prices[product] = price
                self.price.invalidate(product)  # after the change

        catalogue = Catalogue({7: 9.5})
        print(f"price {catalogue.price(7)}, then {catalogue.price(product=7)}: {catalogue.queries} query")
        print(f"the key is {catalogue.price.key(7)!r}, and the client sees it too: {cache.get('price:7')}")

        catalogue.change_price(7, 8.25)
        print(f"changed: {catalogue.price(7)}, {catalogue.queries} queries")

        another = Catalogue({7: 8.25})  # as in another process: it shares what is cached
        print(f"another catalogue: {another.price(7)}, {another.queries} queries")
        print(f"in all {Catalogue.price.cache_info()}")
    print("done")


if __name__ == "__main__":
    main()
