"""The pytest plugin: fixtures that start a cluster when, and only when, a test asks for one.

* `dcache_cluster`: a `LocalCluster` of three nodes for the whole test session.  A test that breaks nodes should start a
  cluster of its own instead.
* `dcache_client`: a `Client` of it, in a namespace that no other test uses.

Imports nothing of dcache until then, so having the plugin installed costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from dcache.client.sync import Client
    from dcache.testing.cluster import LocalCluster


@pytest.fixture(scope="session")
def dcache_cluster() -> Iterator[LocalCluster]:
    """Three nodes on this machine."""
    from dcache.testing.cluster import LocalCluster

    with LocalCluster(nodes=3) as cluster:
        yield cluster


@pytest.fixture
def dcache_client(dcache_cluster: LocalCluster, request: pytest.FixtureRequest) -> Iterator[Client]:
    """A client of `dcache_cluster` in a namespace of this test's own."""
    import hashlib

    namespace = "test:" + hashlib.blake2b(request.node.nodeid.encode(), digest_size=8).hexdigest()
    with dcache_cluster.client(namespace=namespace, timeout=5.0) as client:
        client.clear()
        yield client
