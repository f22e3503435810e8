"""One cluster for the whole suite, and for every test a client in a namespace of its own."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from dcache.testing import LocalCluster
from tests.fronts import UNHURRIED, front

__all__ = ["cache", "front", "namespace"]

_numbers = itertools.count(1)


@pytest.fixture
def namespace() -> str:
    return f"contract-{next(_numbers)}"


@pytest.fixture
def cache(front: Any, dcache_cluster: LocalCluster, namespace: str) -> Any:
    """A client of either kind with the default settings, but patient."""
    return front.client(dcache_cluster.addresses, namespace=namespace, **UNHURRIED)
