"""A web handler whose expensive page is cached, and a POST that changes the data and invalidates the page.

Runs as it stands: it starts three nodes on this machine (or uses those named in DCACHE_NODES, separated by commas),
serves on a free loopback port, makes a few requests to itself, and ends.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

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


def make_application(cache: Client) -> Callable[..., Iterable[bytes]]:
    """A WSGI application: GET /report/N gives a report, POST /report/N changes what it is about."""
    sales = {"1": 100, "2": 200}  # stands for the database
    queries = itertools.count(1)

    @cached(cache, ttl=300, version=1)
    def report(number: str) -> str:
        time.sleep(0.2)  # stands for a slow query
        return f"report {number}: {sales[number]} sold, says query {next(queries)}"

    report.cache_clear()  # an earlier run of this program may have left reports in a cluster that lives on

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        number = environ["PATH_INFO"].rpartition("/")[2]
        if number not in sales:
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"no such report"]
        if environ["REQUEST_METHOD"] == "POST":
            sales[number] += 1
            report.invalidate(number)  # after the change: whoever computes from now on sees it
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [report(number).encode()]

    return application


class QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """The program prints what happens itself."""


def request(method: str, url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=30) as response:
        print(f"{method:4} {response.read().decode()}")


def main() -> None:
    with (
        nodes() as addresses,
        Client(addresses, namespace="web", timeout=5.0) as cache,
        make_server("127.0.0.1", 0, make_application(cache), handler_class=QuietHandler) as server,
    ):
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/report/1"
            request("GET", url)
            request("GET", url)
            request("POST", url)
            request("GET", url)
        finally:
            server.shutdown()
            serving.join()
    print("done")


if __name__ == "__main__":
    main()
