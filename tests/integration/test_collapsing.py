"""The miss policy over a real node: who computes, who waits, and what is stored in the end.

A computation under way is held by a `Gate`, so that what happens "meanwhile" happens exactly then.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from dcache import AsyncClient, Client, DcacheError, NoNodesAvailable
from dcache.testing import LocalCluster
from tests.fronts import put_clock_off

Run = Callable[[Awaitable[Any]], Any]
PATIENCE = 20.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=1) as cluster, cluster.client() as client:
        client.wait_ready(PATIENCE)
        yield cluster


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A namespace of the test's own, and patience with a busy machine."""
    return {"namespace": request.node.name[-200:], "timeout": PATIENCE}


@pytest.fixture
def client(cluster: LocalCluster, settings: dict[str, Any]) -> Iterator[Client]:
    with cluster.client(**settings) as client:
        yield client


@pytest.fixture
def other(cluster: LocalCluster, settings: dict[str, Any]) -> Iterator[Client]:
    """Another process, as far as the cluster can tell: it shares nothing with `client`."""
    with cluster.client(**settings) as client:
        yield client


class Gate:
    """A factory of threads that waits inside until it is let go, and counts how often it was called."""

    def __init__(self, result: Any = "computed") -> None:
        self.result = result
        self.calls = 0
        self.entered = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> Any:
        self.calls += 1
        self.entered.set()
        assert self.open.wait(PATIENCE)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class AsyncGate(Gate):
    """The same for tasks."""

    def __init__(self, result: Any = "computed") -> None:
        super().__init__(result)
        self.entered, self.open = asyncio.Event(), asyncio.Event()  # type: ignore[assignment]

    async def __call__(self) -> Any:
        self.calls += 1
        self.entered.set()
        await self.open.wait()  # type: ignore[misc]
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@contextmanager
def computing(client: Client, gate: Gate, key: str = "k") -> Iterator[Future[Any]]:
    """What happens within happens while `gate` computes the value of `key`; then the result can be waited for."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.get_or_set, key, gate)
        try:
            assert gate.entered.wait(PATIENCE)
            yield future
        finally:
            gate.open.set()
        future.result(PATIENCE)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


async def until_async(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # polls what has no event
            await asyncio.sleep(0)


def aboard(client: Client | AsyncClient, key: str = "k") -> int:
    """How many callers lead or follow the computation of `key` that can be joined."""
    flight = client.engine.flights._open.get(client.flight_key(key))
    return 0 if flight is None else len(flight.seats)


# -- one computes -------------------------------------------------------------------------------------------------


def test_of_a_hundred_threads_one_computes_and_all_get_a_value_of_their_own(client: Client) -> None:
    gate = Gate({"items": [1, (2, 3)]})
    with ThreadPoolExecutor(100) as pool:
        futures = [pool.submit(client.get_or_set, "k", gate) for _ in range(100)]
        until(lambda: aboard(client) == 100)
        gate.open.set()
        results = [future.result(PATIENCE) for future in futures]
    assert gate.calls == 1
    assert results == [{"items": [1, (2, 3)]}] * 100
    assert len({id(result) for result in results}) == len({id(result["items"]) for result in results}) == 100
    assert client.get("k") == {"items": [1, (2, 3)]}


def test_of_a_thousand_tasks_one_computes_and_all_get_a_value_of_their_own(
    run: Run, cluster: LocalCluster, settings: dict[str, Any]
) -> None:
    async def main() -> None:
        gate = AsyncGate({"items": [1]})
        async with cluster.async_client(**settings) as client:
            tasks = [asyncio.create_task(client.get_or_set("k", gate)) for _ in range(1000)]
            await until_async(lambda: aboard(client) == 1000)
            gate.open.set()
            results = await asyncio.gather(*tasks)
            assert gate.calls == 1
            assert results == [{"items": [1]}] * 1000
            assert len({id(result["items"]) for result in results}) == 1000
            assert await client.get("k") == {"items": [1]}

    run(main())


def test_calls_of_a_decorated_function_collapse_too(client: Client) -> None:
    gate = Gate([1])

    @client.cached()
    def function(x: int) -> Any:
        return gate()

    with ThreadPoolExecutor(20) as pool:
        futures = [pool.submit(function, 1) for _ in range(20)]
        assert gate.entered.wait(PATIENCE)
        until(lambda: any(len(flight.seats) == 20 for flight in list(client.engine.flights._airborne)))
        gate.open.set()
        assert [future.result(PATIENCE) for future in futures] == [[1]] * 20
    assert gate.calls == 1


def test_two_namespaces_and_two_keys_do_not_wait_for_each_other(client: Client) -> None:
    with computing(client, Gate("slow")):
        assert client.get_or_set("other", lambda: 1) == 1
        assert client.with_options(namespace="elsewhere").get_or_set("k", lambda: 2) == 2


def test_an_exception_goes_to_all_and_is_not_stored(client: Client) -> None:
    gate = Gate(ValueError("mine"))
    with ThreadPoolExecutor(20) as pool:
        futures = [pool.submit(client.get_or_set, "k", gate) for _ in range(20)]
        until(lambda: aboard(client) == 20)
        gate.open.set()
        assert {str(future.exception(PATIENCE)) for future in futures} == {"mine"}
    assert gate.calls == 1
    assert client.get_or_set("k", lambda: 5) == 5


def test_an_exception_goes_to_all_tasks_and_is_not_stored(
    run: Run, cluster: LocalCluster, settings: dict[str, Any]
) -> None:
    async def five() -> int:
        return 5

    async def main() -> None:
        gate = AsyncGate(ValueError("mine"))
        async with cluster.async_client(**settings) as client:
            tasks = [asyncio.create_task(client.get_or_set("k", gate)) for _ in range(20)]
            await until_async(lambda: aboard(client) == 20)
            gate.open.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {str(result) for result in results} == {"mine"}
            assert gate.calls == 1
            assert await client.get_or_set("k", five) == 5

    run(main())


def test_a_cancelled_leader_does_not_cancel_its_followers(
    run: Run, cluster: LocalCluster, settings: dict[str, Any]
) -> None:
    async def main() -> None:
        gate = AsyncGate()
        async with cluster.async_client(**settings) as client:
            leader = asyncio.create_task(client.get_or_set("k", gate))
            await gate.entered.wait()  # type: ignore[misc]
            followers = [asyncio.create_task(client.get_or_set("k", gate)) for _ in range(10)]
            await until_async(lambda: aboard(client) == 11)
            leader.cancel()
            await asyncio.wait([leader])
            assert leader.cancelled()
            gate.open.set()
            assert await asyncio.gather(*followers) == ["computed"] * 10
            assert gate.calls == 1

    run(main())


def test_when_all_callers_are_cancelled_so_is_the_computation(
    run: Run, cluster: LocalCluster, settings: dict[str, Any]
) -> None:
    async def main() -> None:
        gate = AsyncGate()
        async with cluster.async_client(**settings) as client:
            tasks = [asyncio.create_task(client.get_or_set("k", gate)) for _ in range(3)]
            await until_async(lambda: aboard(client) == 3 and gate.entered.is_set())
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert len(client.engine.flights) == 0
            assert not await client.exists("k")

    run(main())


# -- recursion ----------------------------------------------------------------------------------------------------


def test_a_recursive_function_does_not_wait_for_itself(client: Client) -> None:
    calls = []

    @client.cached()
    def fibonacci(n: int) -> int:
        calls.append(n)
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert fibonacci(30) == 832040
    assert sorted(calls) == list(range(31))


def test_a_recursive_coroutine_function_does_not_wait_for_itself(
    run: Run, cluster: LocalCluster, settings: dict[str, Any]
) -> None:
    calls = []

    async def main() -> None:
        async with cluster.async_client(**settings) as client:

            @client.cached()
            async def fibonacci(n: int) -> int:
                calls.append(n)
                return n if n < 2 else sum(await asyncio.gather(fibonacci(n - 1), fibonacci(n - 2)))

            assert await fibonacci(30) == 832040
            assert sorted(calls) == list(range(31))

    run(main())


def test_computing_a_value_may_ask_for_the_same_value(client: Client) -> None:
    assert client.get_or_set("k", lambda: client.get_or_set("k", lambda: 1) + 1) == 2


def test_threads_whose_computations_need_each_other_do_not_wait_for_ever(client: Client) -> None:
    """The left needs the right while the right needs the left; one of them computes for itself."""
    both = threading.Barrier(2, timeout=PATIENCE)

    def needing(key: str) -> int:
        both.wait()
        return client.get_or_set(key, lambda: 10) + 1

    with ThreadPoolExecutor(2) as pool:
        left = pool.submit(client.get_or_set, "left", lambda: needing("right"))
        right = pool.submit(client.get_or_set, "right", lambda: needing("left"))
        results = {left.result(PATIENCE), right.result(PATIENCE)}
    assert results == {11, 12}


# -- connections --------------------------------------------------------------------------------------------------


def test_waiting_for_a_computation_holds_no_connection(cluster: LocalCluster, settings: dict[str, Any]) -> None:
    """With a single connection the computation could not use the client while others wait for it."""
    with cluster.client(max_connections=1, **settings) as client:
        entered, go = threading.Event(), threading.Event()

        def work() -> int:
            entered.set()
            assert go.wait(PATIENCE)
            client.set("inner", 20)
            return int(client.get("inner")) + 1

        with ThreadPoolExecutor(20) as pool:
            futures = [pool.submit(client.get_or_set, "k", work) for _ in range(20)]
            until(lambda: aboard(client) == 20 and entered.is_set())
            go.set()
            assert [future.result(PATIENCE) for future in futures] == [21] * 20


# -- changes meanwhile --------------------------------------------------------------------------------------------


def delete(client: Client) -> None:
    client.delete("k")


def clear(client: Client) -> None:
    client.clear()


def set_(client: Client) -> None:
    client.set("k", "changed")


def set_many(client: Client) -> None:
    client.set_many({"k": "changed"})


def delete_many(client: Client) -> None:
    client.delete_many(["k"])


def add(client: Client) -> None:
    assert client.add("k", "changed")


CHANGES = [delete, delete_many, clear, set_, set_many, add]
Change = Callable[[Client], None]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_made_during_the_computation_wins(client: Client, change: Change) -> None:
    """The result is what its callers asked for, but already old for everybody who comes later."""
    with computing(client, Gate("old")) as first:
        change(client)
        after = client.get("k", "nothing")
    assert first.result() == "old"
    assert client.get("k", "nothing") == after == ("nothing" if change in (delete, delete_many, clear) else "changed")


@pytest.mark.parametrize("change", [delete, delete_many, clear])
def test_who_comes_after_a_change_does_not_join_the_computation_from_before(client: Client, change: Change) -> None:
    with computing(client, Gate("old")) as first:
        change(client)
        assert client.get_or_set("k", lambda: "new") == "new"
    assert first.result() == "old"
    assert client.get("k", "new") == "new"  # a claim made within a millisecond of a clear may be refused its fill


def test_a_delete_detaches_a_computation_of_tasks(run: Run, cluster: LocalCluster, settings: dict[str, Any]) -> None:
    async def new() -> str:
        return "new"

    async def main() -> None:
        gate = AsyncGate("old")
        async with cluster.async_client(**settings) as client:
            first = asyncio.create_task(client.get_or_set("k", gate))
            await gate.entered.wait()  # type: ignore[misc]
            await client.delete("k")
            assert await client.get_or_set("k", new) == "new"
            gate.open.set()
            assert await first == "old"
            assert await client.get("k") == "new"

    run(main())


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_made_by_another_process_during_the_computation_wins(
    client: Client, other: Client, change: Change
) -> None:
    with computing(client, Gate("old")) as first:
        change(other)
        after = other.get("k", "nothing")
    assert first.result() == "old"
    assert client.get("k", "nothing") == other.get("k", "nothing") == after
    assert client.stats()["client"]["fills_refused"] == 1


@pytest.fixture(params=[-20, 20], ids=["slow", "fast"])
def two_clocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Client, Client]]:
    """A client whose clock is 20 s off and one whose clock is right, at a cluster of their own: a fast clock leaves
    traces in it."""
    with LocalCluster(nodes=1) as cluster, cluster.client(timeout=PATIENCE) as exact:
        put_clock_off(monkeypatch, lambda: request.param * 1000)
        with cluster.client(timeout=PATIENCE) as skewed:
            exact.wait_ready(PATIENCE)
            yield skewed, exact


@pytest.mark.parametrize("change", [delete, set_, set_many])
@pytest.mark.parametrize("swapped", [False, True], ids=["skewed changes", "exact changes"])
def test_a_change_wins_whatever_the_clocks_say(
    two_clocks: tuple[Client, Client], swapped: bool, change: Change
) -> None:
    """By its own stamp alone the change of a slow clock would look older than the claim that it has to undo."""
    changer, computer = reversed(two_clocks) if swapped else two_clocks
    with computing(computer, Gate("old")):
        change(changer)
    expected = "nothing" if change is delete else "changed"
    assert [reader.get("k", "nothing") for reader in two_clocks] == [expected] * 2
    assert computer.get_or_set("again", lambda: "stored") == changer.get("again") == "stored"


@pytest.mark.parametrize("change", [delete, set_, set_many])
@pytest.mark.parametrize("swapped", [False, True], ids=["skewed changes", "exact changes"])
def test_a_change_wins_whatever_the_clocks_say_where_something_was_forgotten_before(
    two_clocks: tuple[Client, Client], swapped: bool, change: Change
) -> None:
    """Then two things are above a slow clock's change: what was forgotten and, above that, the claim."""
    changer, computer = reversed(two_clocks) if swapped else two_clocks
    two_clocks[1].clear()
    with computing(computer, Gate("old")):
        change(changer)
    expected = "nothing" if change is delete else "changed"
    assert [reader.get("k", "nothing") for reader in two_clocks] == [expected] * 2


def test_two_processes_that_compute_one_key_in_turns_get_it_stored(client: Client, other: Client) -> None:
    """Were each claim to undo the other's, nothing would ever be stored while both keep computing."""
    with computing(client, Gate("a")), computing(other, Gate("b")):
        pass
    assert client.get("k") == other.get("k") in ("a", "b")
    fills = client.stats()["client"]["fills"] + other.stats()["client"]["fills"]
    assert fills >= 1


def test_refresh_lets_readers_have_the_old_value_until_the_new_one_is_there(client: Client) -> None:
    gate = Gate("new")
    results = iter(["old"])

    @client.cached()
    def function() -> Any:
        return next(results, None) or gate()

    assert function() == "old"
    with ThreadPoolExecutor(1) as pool:
        refreshed = pool.submit(function.refresh)
        assert gate.entered.wait(PATIENCE)
        assert function() == "old"
        gate.open.set()
        assert refreshed.result(PATIENCE) == "new"
    assert function() == "new"


def test_a_delete_during_a_refresh_wins(client: Client, other: Client) -> None:
    gate = Gate("new")
    results = iter(["old"])
    function = client.cached(key="k")(lambda: next(results, None) or gate())
    function()
    with ThreadPoolExecutor(1) as pool:
        refreshed = pool.submit(function.refresh)
        assert gate.entered.wait(PATIENCE)
        assert other.delete("k")
        gate.open.set()
        assert refreshed.result(PATIENCE) == "new"
    assert client.get("k") is None


# -- the cache is gone --------------------------------------------------------------------------------------------


@pytest.fixture
def lost() -> Iterator[LocalCluster]:
    """A cluster of which nobody is left."""
    with LocalCluster(nodes=1) as cluster:
        cluster.kill(0)
        yield cluster


def test_without_a_cluster_values_are_computed_and_it_is_counted_and_logged_once(
    lost: LocalCluster, caplog: pytest.LogCaptureFixture
) -> None:
    with lost.client() as client, caplog.at_level(logging.WARNING, "dcache.client"):
        function = client.cached()(lambda x: x + 1)
        assert [function(1), function(1), function.refresh(2)] == [2, 2, 3]
        assert client.get_or_set("k", lambda: "computed") == "computed"
        assert client.session.counters.computed_without_cache == 4
        with pytest.raises(NoNodesAvailable):
            client.get("k")
    assert len(caplog.records) == 1
    assert lost.addresses[0] in caplog.text


def test_when_the_cluster_goes_away_values_are_computed_and_plain_calls_raise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with LocalCluster(nodes=1) as cluster, cluster.client() as client:
        client.wait_ready(PATIENCE)
        assert client.get_or_set("k", lambda: "stored") == "stored"
        cluster.kill(0)
        assert [client.get_or_set("k", lambda: "computed") for _ in range(3)] == ["computed"] * 3
        assert client.session.counters.computed_without_cache == 3
        for operation in (lambda: client.get("k"), lambda: client.set("k", 1), lambda: client.delete("k")):
            with pytest.raises(DcacheError):
                operation()
        cluster.restart(0)
        client.wait_ready(PATIENCE)
        assert client.get_or_set("k", lambda: "anew") == "anew"
        until(lambda: client.get_or_set("k", lambda: "again") == client.get("k"))
    assert len([record for record in caplog.records if record.name == "dcache.client"]) == 1


def test_without_a_cluster_coroutines_are_run_and_plain_calls_raise(run: Run, lost: LocalCluster) -> None:
    async def main() -> None:
        gate = AsyncGate()
        gate.open.set()
        async with lost.async_client() as client:

            @client.cached()
            async def function(x: int) -> Any:
                return await gate()

            assert [await function(1), await function(1)] == ["computed"] * 2
            assert await client.get_or_set("k", gate) == "computed"
            assert client.session.counters.computed_without_cache == 3
            with pytest.raises(NoNodesAvailable):
                await client.set("k", 1)

    run(main())


def test_callers_still_share_one_computation_without_a_cluster(lost: LocalCluster) -> None:
    """The database is spared just when it has to do without the cache."""
    gate = Gate([1])
    with lost.client() as client, ThreadPoolExecutor(20) as pool:
        futures = [pool.submit(client.get_or_set, "k", gate) for _ in range(20)]
        until(lambda: aboard(client) == 20)
        gate.open.set()
        results = [future.result(PATIENCE) for future in futures]
    assert gate.calls == 1
    assert results == [[1]] * 20
    assert len({id(result) for result in results}) == 20
