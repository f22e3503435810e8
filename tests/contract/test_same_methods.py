"""`Client` and `AsyncClient` are the same, but for `await`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from dcache import AsyncClient, Client

PUBLIC = sorted(name for name in dir(Client) if not name.startswith("_"))
METHODS = [name for name in PUBLIC if callable(getattr(Client, name))]
ENTERING = {"__enter__": "__aenter__", "__exit__": "__aexit__"}
NOT_AWAITED = {"with_options", "from_url", "cached", "with_configuration", "context", "flight_key", "waiting", "scan"}
PROMISED = [
    "get",
    "get_many",
    "exists",
    "set",
    "set_many",
    "delete",
    "delete_many",
    "add",
    "replace",
    "gets",
    "cas",
    "incr",
    "decr",
    "touch",
    "ttl",
    "get_or_set",
    "scan",
    "clear",
    "ping",
    "wait_ready",
    "stats",
    "members",
    "with_options",
    "cached",
    "close",
    "from_url",
]


def shape(method: Callable[..., Any]) -> list[tuple[Any, ...]]:
    """Names, kinds, defaults and annotations of the parameters."""
    parameters = inspect.signature(method).parameters.values()
    return [(p.name, p.kind, p.default, _plain(str(p.annotation))) for p in parameters]


def _plain(annotation: str) -> str:
    for awaited, plain in (("Awaitable[T]", "T"), ("Awaitable[Any]", "Any"), ("Async", "")):
        annotation = annotation.replace(awaited, plain)
    return annotation


def test_both_have_all_that_is_promised() -> None:
    assert set(PROMISED) <= set(PUBLIC)


def test_both_have_the_same_public_names() -> None:
    assert sorted(name for name in dir(AsyncClient) if not name.startswith("_")) == PUBLIC


@pytest.mark.parametrize("name", METHODS)
def test_both_take_the_same_arguments(name: str) -> None:
    ours, theirs = getattr(Client, name), getattr(AsyncClient, name)
    assert shape(theirs) == shape(ours)
    returned = [_plain(str(inspect.signature(method).return_annotation)) for method in (ours, theirs)]
    assert returned[0] == returned[1]


@pytest.mark.parametrize("name", METHODS)
def test_one_is_called_and_the_other_awaited(name: str) -> None:
    assert not inspect.iscoroutinefunction(getattr(Client, name))
    assert inspect.iscoroutinefunction(getattr(AsyncClient, name)) is (name not in NOT_AWAITED)


def test_both_are_made_with_the_same_settings() -> None:
    assert shape(AsyncClient.__init__) == shape(Client.__init__)


def test_both_are_context_managers() -> None:
    for plain, awaited in ENTERING.items():
        assert hasattr(Client, plain)
        assert hasattr(AsyncClient, awaited)


def test_scan_is_an_iterator_of_the_right_kind() -> None:
    assert inspect.isgeneratorfunction(Client.scan)
    assert inspect.isasyncgenfunction(AsyncClient.scan)
