"""How threads wait: for a connection of the pool, and for something to happen at those that they have."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from dcache.drivers import leases as leasing
from dcache.drivers.blocking import BlockingDriver
from dcache.drivers.driver import Books, Settings
from dcache.drivers.leases import Leases
from dcache.drivers.pool import Connection, Held, Pool
from dcache.errors import ClientClosed
from dcache.ops.backoff import Backoff
from dcache.ops.topology import Topology

LONG = 60.0
"""Seconds that nobody waits who is woken."""


# -- for a connection -------------------------------------------------------------------------------------------------


def full_pool() -> tuple[Pool, Held, Connection]:
    """A pool whose only connection is taken."""
    pool, held = Pool("a", 1), dict[str, Connection]()
    return pool, held, pool.take(held, 0.0)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def waiting(threads: ThreadPoolExecutor, pool: Pool) -> Future[Connection]:
    """A thread that waits for a connection of `pool`."""
    taking = threads.submit(pool.take, {}, LONG)
    until = time.monotonic() + LONG
    while not pool._changed._waiters:  # type: ignore[attr-defined]
        assert time.monotonic() < until
        time.sleep(0.001)
    return taking


def test_who_waits_for_a_connection_gets_the_one_that_is_given_back(threads: ThreadPoolExecutor) -> None:
    pool, held, connection = full_pool()
    taking = waiting(threads, pool)
    assert pool.give(held, connection)
    assert taking.result(LONG / 2) is connection


def test_who_waits_for_a_connection_may_open_one_when_another_is_no_more(threads: ThreadPoolExecutor) -> None:
    pool, _, connection = full_pool()
    taking = waiting(threads, pool)
    pool.forget(connection)
    assert not taking.result(LONG / 2).opened


def test_who_waits_for_a_connection_hears_that_the_client_was_closed(threads: ThreadPoolExecutor) -> None:
    pool, _, _ = full_pool()
    taking = waiting(threads, pool)
    pool.drain()
    with pytest.raises(ClientClosed):
        taking.result(LONG / 2)


def test_who_has_other_connections_does_not_wait() -> None:
    pool, _, connection = full_pool()
    extra = pool.take({}, None)
    assert extra.extra
    assert extra is not connection


def test_who_waits_in_vain_is_told_which_bound_to_raise() -> None:
    pool, _, _ = full_pool()
    with pytest.raises(TimeoutError, match="raise max_connections"):
        pool.take({}, 0.0)


# -- for something to happen ------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Line:
    """A channel, as far as waiting looks at it."""

    ready: bool = True
    alive: bool = True


class Leased(Connection):
    """A connection without a socket.  `then` happens when there is something to read."""

    def __init__(self, node: str, line: Line, deadline: float, then: Callable[[], object] = lambda: None) -> None:
        super().__init__(node, False)
        self.line, self.deadline, self.then, self.reads = line, deadline, then, 0
        self.channel: Any = line
        self.fresh = True

    def readable(self) -> None:
        self.reads += 1
        self.then()

    def flush(self) -> None: ...

    def close(self) -> list[Any]:
        self.line.alive = False
        return []


@pytest.fixture
def leases() -> Leases:
    settings = Settings(monotonic=lambda: 0.0, wall=lambda: 0)
    books = Books(Topology(["seed:1"], lambda: 0.5), Backoff(lambda: 0.5), settings)
    return Leases(BlockingDriver(books), books, float("inf"))


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr(leasing, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    return clock


def test_a_connection_that_is_not_made_in_time_is_given_up_in_time(
    leases: Leases, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it waited for until the operation's deadline, nobody else would be asked before."""
    leases._held = {"a": Leased("a", Line(ready=False), 100.2), "b": Leased("b", Line(), 0.0)}

    def nothing_happens(connections: object, seconds: float) -> list[Any]:
        assert seconds <= 0.2 + 1e-9
        now[0] += seconds + 0.001
        return []

    monkeypatch.setattr(leasing, "ready", nothing_happens)
    leases.wait(LONG)
    assert list(leases._held) == ["b"]


def test_a_connection_that_was_lost_over_the_answer_of_another_is_left_alone(
    leases: Leases, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both had something to read; what was read first led to a call that met the second one broken."""
    second = Leased("b", Line(), 0.0)
    first = Leased("a", Line(), 0.0, lambda: leases.give_up(["b"]))
    leases._held = {"a": first, "b": second}
    monkeypatch.setattr(leasing, "ready", lambda connections, seconds: [(one, True, False) for one in connections])
    leases.wait(LONG)
    assert (first.reads, second.reads) == (1, 0)
    assert list(leases._held) == ["a"]
