"""Cancelling any await of an `AsyncClient` call, at any point: nobody else notices, and nothing is left behind.

A call is stepped by hand, so that it can be cancelled at its n-th await: while it waits there, or in the same tick in
which what it waits for has come.
"""

from __future__ import annotations

import asyncio
import itertools
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from typing import Any

import pytest

from dcache import AsyncClient, NoNodesAvailable, QuorumError
from tests.conftest import Run
from tests.fronts import UNHURRIED
from tests.integration.proxied import ProxiedCluster

DELAY = 0.003
POINTS = 60
"""More awaits than any of the calls has."""


@pytest.fixture(scope="module")
def delayed() -> Iterator[ProxiedCluster]:
    with ProxiedCluster(3) as cluster:
        cluster.delay(DELAY)
        yield cluster


@types.coroutine
def cancelled_at(call: Coroutine[Any, Any, Any], point: int, late: bool) -> Generator[Any, Any, Any]:
    """Run `call`, and cancel the running task at its n-th await; the call's result if it has fewer."""
    task = asyncio.current_task()
    assert task is not None
    send: Callable[..., Any] = call.send
    argument: Any = None
    for number in itertools.count(1):
        try:
            future = send(argument)
        except StopIteration as stop:
            return stop.value
        if number == point:
            if late and future is not None:
                future.add_done_callback(lambda _: task.cancel())
            else:
                asyncio.get_running_loop().call_soon(task.cancel)
        try:
            send, argument = call.send, (yield future)
        except BaseException as error:  # noqa: BLE001  # it is for the call to judge
            send, argument = call.throw, error
    raise AssertionError("unreachable")


async def stepped(call: Coroutine[Any, Any, Any], point: int, late: bool) -> Any:
    return await cancelled_at(call, point, late)


async def computed() -> str:
    await asyncio.sleep(0)
    return "computed"


async def all_keys(client: AsyncClient) -> set[Any]:
    return {key async for key in client.scan("mine")}


CALLS: dict[str, tuple[Callable[[AsyncClient], Coroutine[Any, Any, Any]], Any]] = {
    "get": (lambda client: client.get("mine"), "value"),
    "get_many": (lambda client: client.get_many(["mine", "mine2"]), {"mine": "value", "mine2": "value2"}),
    "set": (lambda client: client.set("written", 1), None),
    "set_many": (lambda client: client.set_many({"w1": 1, "w2": 2}), {}),
    "delete": (lambda client: client.delete("nothing"), False),
    "add": (lambda client: client.add("mine", 1), False),
    "touch": (lambda client: client.touch("nothing", 1), False),
    "get_or_set": (lambda client: client.get_or_set("loaded", computed), "computed"),
    "scan": (all_keys, {"mine", "mine2"}),
    "ping": (lambda client: client.ping(), None),
    "members": (lambda client: client.members(), None),
}


async def neighbour(client: AsyncClient, name: str, stop: asyncio.Event) -> int:
    """Somebody else at work on the same connections."""
    rounds = 0
    while not stop.is_set():
        key, value = f"neighbour{name}:{rounds % 7}", [name, rounds]
        await client.set(key, value)
        assert await client.get(key) == value
        rounds += 1
    return rounds


async def cancel_everywhere(client: Callable[[], AsyncClient], name: str, late: bool) -> int:
    """Cancel the call at its first await, its second, ... until it has no more; the number of awaits."""
    make, expected = CALLS[name]
    for point in range(1, POINTS):
        task = asyncio.create_task(stepped(make(client()), point, late))
        try:
            result = await task
        except asyncio.CancelledError:
            result = None
            ended = False
        else:
            ended = not late or not task.cancelling()
            assert expected is None or result == expected
        if ended:
            return point
        values = await asyncio.gather(client().get("mine"), client().get("mine2"), client().get_many(["mine"]))
        assert values == ["value", "value2", {"mine": "value"}]
        await client().delete("loaded")
    raise AssertionError(f"{name} awaits more than {POINTS} times")


@pytest.mark.parametrize("late", [False, True], ids=["waiting", "answered"])
@pytest.mark.parametrize("name", CALLS)
def test_cancelling_at_any_await_is_noticed_by_nobody_else(
    run: Run, delayed: ProxiedCluster, name: str, late: bool
) -> None:
    """On connections that are in use by others."""

    async def main() -> None:
        async with delayed.async_client(namespace="cancel", **UNHURRIED) as client:
            await client.set_many({"mine": "value", "mine2": "value2"})
            stop = asyncio.Event()
            neighbours = [asyncio.create_task(neighbour(client, str(number), stop)) for number in range(4)]
            assert await cancel_everywhere(lambda: client, name, late) > 1
            stop.set()
            assert all(await asyncio.gather(*neighbours))
            assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


@pytest.mark.parametrize("late", [False, True], ids=["waiting", "answered"])
@pytest.mark.parametrize("name", ["get", "set_many", "get_or_set"])
def test_cancelling_a_first_call_at_any_await_leaves_a_client_that_works(
    run: Run, delayed: ProxiedCluster, name: str, late: bool
) -> None:
    """While it looks for the cluster and connects; others who need the same go on."""

    async def main() -> None:
        async with delayed.async_client(namespace="cancel", **UNHURRIED) as settled:
            await settled.set_many({"mine": "value", "mine2": "value2"})
            make, _ = CALLS[name]
            for point in range(1, POINTS):
                async with delayed.async_client(namespace="cancel", **UNHURRIED) as client:
                    task = asyncio.create_task(stepped(make(client), point, late))
                    beside = asyncio.create_task(client.get("mine2"))
                    (result,) = await asyncio.gather(task, return_exceptions=True)
                    assert await beside == "value2"
                    assert await client.get("mine") == "value"
                    if not isinstance(result, asyncio.CancelledError) and not task.cancelling():
                        break
                await settled.delete("loaded")
            else:
                raise AssertionError(f"{name} awaits more than {POINTS} times")
            assert point > 1

    run(main())


def test_a_timeout_of_the_callers_own_is_a_cancellation_like_any_other(run: Run, delayed: ProxiedCluster) -> None:
    """`asyncio.timeout` around calls, at moments before, while and after the replies come."""

    async def main() -> None:
        async with delayed.async_client(namespace="timeout", **UNHURRIED) as client:
            await client.set_many({f"key{number}": number for number in range(30)})

            async def impatient(number: int) -> int:
                late = 0
                for step in range(20):
                    try:
                        async with asyncio.timeout(DELAY * (step % 5) / 2):
                            assert await client.get(f"key{number}") == number
                    except TimeoutError:
                        late += 1
                    assert await client.get(f"key{(number + step) % 30}") == (number + step) % 30
                return late

            assert sum(await asyncio.gather(*(impatient(number) for number in range(30)))) > 0

    run(main())


def test_a_timeout_of_the_client_is_noticed_by_nobody_else(run: Run, delayed: ProxiedCluster) -> None:
    async def main() -> None:
        async with delayed.async_client(namespace="timeout", **UNHURRIED) as client:
            await client.set_many({f"key{number}": number for number in range(30)})
            hurried = client.with_options(timeout=DELAY / 3)
            late = 0
            for number in range(30):
                try:
                    assert await hurried.get(f"key{number}") == number  # in time, by the clock of a busy loop
                except (QuorumError, NoNodesAvailable):
                    late += 1
            assert late > 0
            while True:
                try:
                    found = await asyncio.gather(*(client.get(f"key{number}") for number in range(30)))
                except (QuorumError, NoNodesAvailable):
                    await asyncio.sleep(0.005)
                else:
                    break
            assert found == list(range(30))

    run(main())


def test_closing_while_calls_are_under_way_ends_them(run: Run, delayed: ProxiedCluster) -> None:
    """At any stage; they are told that the client was closed, or were done before."""

    async def main() -> None:
        for ticks in range(0, 40, 2):
            client = delayed.async_client(namespace="close", **UNHURRIED)
            calls = [asyncio.create_task(client.set(f"key{number}", number)) for number in range(10)]
            for _ in range(ticks):
                await asyncio.sleep(DELAY / 10)
            await client.close()
            ended = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 5)
            assert all(isinstance(end, bytes) or "closed" in str(end) for end in ended), ended

    run(main())
