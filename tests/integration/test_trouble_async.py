"""`AsyncClient` with many tasks, several loops, nodes that hang and connections that break."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import attrs
import pytest

from dcache import AsyncClient, NoNodesAvailable, QuorumError
from dcache.drivers.aio import Connection
from dcache.membership import MemberTable
from dcache.ops.effects import Call, FirstOf, Op
from dcache.testing import LocalCluster
from tests.conftest import Run
from tests.fronts import PATIENCE, UNHURRIED
from tests.integration.proxied import ProxiedCluster


@pytest.fixture(scope="module")
def delayed() -> Iterator[ProxiedCluster]:
    with ProxiedCluster(3) as cluster:
        yield cluster


@pytest.fixture
def proxied(delayed: ProxiedCluster) -> Iterator[ProxiedCluster]:
    yield delayed
    delayed.restore()


@pytest.fixture(scope="module")
def single() -> Iterator[ProxiedCluster]:
    """One node, so that nobody but the client uses its proxy."""
    with ProxiedCluster(1) as cluster:
        yield cluster


async def until(condition: Callable[[], Any], what: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # what is waited for knows of no event
            await asyncio.sleep(0.005)


async def own_keys(client: AsyncClient, name: str, rounds: int, unless: tuple[type[Exception], ...] = ()) -> int:
    """Write and read keys that nobody else uses, checking each reply; how many rounds were answered."""
    answered = 0
    for number in range(rounds):
        key, value = f"{name}:{number % 5}", [name, number]
        try:
            await client.set(key, value)
            found = await client.get(key)
        except unless:
            continue
        assert found == value
        answered += 1
    return answered


async def all_of(tasks: list[Any]) -> list[Any]:
    """Run them together; the first to fail ends all."""
    async with asyncio.TaskGroup() as group:
        made = [group.create_task(task) for task in tasks]
    return [task.result() for task in made]


# -- one connection ---------------------------------------------------------------------------------------------------


def test_five_hundred_tasks_share_one_connection_per_node(run: Run, single: ProxiedCluster) -> None:
    async def main() -> None:
        async with single.async_client(namespace="many", **UNHURRIED) as client:
            answered = await all_of([own_keys(client, f"task{number}", 6) for number in range(500)])
            assert answered == [6] * 500
            assert single.proxies[0].connections == 1

    run(main())


def test_calls_of_one_tick_leave_in_one_write(run: Run, single: ProxiedCluster) -> None:
    class Recorder:
        def __init__(self, transport: Any) -> None:
            self.transport, self.writes = transport, 0

        def write(self, data: bytes) -> None:
            self.writes += 1
            self.transport.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.transport, name)

    async def main() -> None:
        async with single.async_client(namespace="tick", **UNHURRIED) as client:
            await client.set_many({f"key{number}": number for number in range(300)})
            (connection,) = client.engine.bound().driver._connections.values()
            recorder = connection._transport = Recorder(connection._transport)  # type: ignore[assignment]
            found = await asyncio.gather(*(client.get(f"key{number}") for number in range(300)))
            assert found == list(range(300))
            assert recorder.writes == 1
            connection._transport = recorder.transport

    run(main())


def test_tasks_increment_one_counter_and_lose_nothing(run: Run, dcache_cluster: LocalCluster) -> None:
    async def main() -> None:
        async with dcache_cluster.async_client(namespace="tasks", timeout=30.0) as client:
            sums = await all_of([client.incr("counter") for _ in range(30)])
            assert sorted(sums) == list(range(1, 31))

    run(main())


# -- late and lost replies --------------------------------------------------------------------------------------------


def test_timeouts_around_the_delay_cost_nobody_a_reply(run: Run, proxied: ProxiedCluster) -> None:
    """Some calls make it and some do not; none gets the reply of another."""

    async def main() -> None:
        moments = random.Random(1)
        async with proxied.async_client(namespace="around", **UNHURRIED) as client:
            await client.wait_ready()
            proxied.delay(0.02)
            views = [client.with_options(timeout=moments.choice([0.01, 0.03, 0.05, 0.2])) for _ in range(60)]
            work = [
                own_keys(view, f"task{number}", 15, (QuorumError, NoNodesAvailable))
                for number, view in enumerate(views)
            ]
            assert sum(await all_of(work)) < 60 * 15
            proxied.restore()
            await settled(client)
            await all_of([own_keys(client, f"task{number}", 5) for number in range(60)])

    run(main())


async def settled(client: AsyncClient) -> None:
    """Until no node is being left alone."""
    while client.session.shared.backoff.failures:
        try:
            await client.set("probe", 1)
        except (QuorumError, NoNodesAvailable):
            await asyncio.sleep(0.005)


class Workers:
    """Tasks that read and write their own keys until `trouble` is over; `settle` waits for what was under way."""

    def __init__(self, client: AsyncClient, number: int) -> None:
        self.client, self.rounds, self.stop = client, [0] * number, False

    async def run(self, trouble: Coroutine[Any, Any, None]) -> None:
        async def then_stop() -> None:
            await trouble
            self.stop = True

        await all_of([then_stop(), *(self._work(number) for number in range(len(self.rounds)))])

    async def settle(self) -> None:
        """Wait until each has begun and ended a round."""
        before = [*self.rounds]
        await until(
            lambda: all(now >= then + 2 for now, then in zip(self.rounds, before, strict=True)), "calls to go on"
        )

    async def well(self) -> None:
        """Wait until every node is used again, by every call."""
        await until(lambda: not self.client.session.shared.backoff.failures, "the node to be asked again")
        await self.settle()

    async def _work(self, number: int) -> None:
        while not self.stop:
            await own_keys(self.client, f"task{number}", 2)
            self.rounds[number] += 1


def test_late_replies_of_a_paused_node_disturb_nobody(run: Run, proxied: ProxiedCluster) -> None:
    """It hangs and comes back again and again while tasks read and write their own keys."""

    async def main() -> None:
        async with proxied.async_client(namespace="pause", timeout=4.0) as client:
            await client.wait_ready()
            workers = Workers(client, 50)

            async def trouble() -> None:
                for number in range(4):
                    proxied.pause(number % 3)
                    await workers.settle()
                    await workers.settle()
                    proxied.resume(number % 3)
                    while len(await client.with_options(timeout=0.5).ping()) < 3:
                        pass
                    await workers.well()

            await workers.run(trouble())

    run(main())


def test_broken_connections_disturb_nobody(run: Run, proxied: ProxiedCluster) -> None:
    """One node at a time."""

    async def main() -> None:
        async with proxied.async_client(namespace="cut", **UNHURRIED) as client:
            await client.wait_ready()
            workers = Workers(client, 20)

            async def trouble() -> None:
                for number in range(15):
                    await asyncio.to_thread(proxied.proxies[number % 3].cut)
                    await workers.settle()
                    await workers.well()

            await workers.run(trouble())

    run(main())


# -- loops ------------------------------------------------------------------------------------------------------------


def test_a_client_serves_one_loop_after_another(run: Run, dcache_cluster: LocalCluster) -> None:
    """Made before there was any loop; closed in each, which says nothing about the next."""
    client = dcache_cluster.async_client(namespace="loops", **UNHURRIED)

    async def main(number: int) -> None:
        async with client:
            assert await client.get("key") == (None if number == 0 else number - 1)
            await client.set("key", number)
            await own_keys(client, f"loop{number}", 10)

    for number in range(3):
        run(main(number))
    assert len(client.engine._by_loop) <= 1


def test_loops_in_several_threads_share_a_client(dcache_cluster: LocalCluster) -> None:
    """One that is done and closes takes nothing from the others."""
    client = dcache_cluster.async_client(namespace="threads", **UNHURRIED)
    wrong: list[BaseException] = []

    async def main(number: int) -> None:
        async with client:
            await all_of([own_keys(client, f"loop{number}:{task}", 5 + 10 * number) for task in range(20)])

    def in_thread(number: int) -> None:
        try:
            asyncio.run(main(number))
        except BaseException as error:  # noqa: BLE001  # for the test to show
            wrong.append(error)

    threads = [threading.Thread(target=in_thread, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_uvloop_is_a_loop_like_any_other(run: Run, dcache_cluster: LocalCluster) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with dcache_cluster.async_client(namespace="uvloop", **UNHURRIED) as client:
            await all_of([own_keys(client, f"task{number}", 5) for number in range(100)])

    run(main(), loop_factory=uvloop.new_event_loop)


# -- a changed table --------------------------------------------------------------------------------------------------


def raised(table: MemberTable, node: str) -> MemberTable:
    """The table with a later row for one node."""
    row = table.members[node]
    return table.with_member(attrs.evolve(row, incarnation=row.incarnation + 1))


def offer(node: str, table: MemberTable) -> Op[None]:
    round_ = FirstOf([Call(node, "offer", (table.to_wire(),))])
    yield round_
    assert round_.replies, round_.failures


def test_a_changed_table_comes_without_asking(run: Run, dcache_cluster: LocalCluster) -> None:
    """The client makes no call at all."""

    async def main() -> None:
        options: dict[str, Any] = dict(UNHURRIED)
        async with dcache_cluster.async_client(**options) as client, dcache_cluster.async_client(**options) as other:
            for each in (client, other):
                await each.set("key", 1)
            before = client.session.topology.table
            assert before is not None
            told, changed = dcache_cluster.addresses[:2]
            news = raised(before, changed)
            driver = other.engine.bound().driver
            with pytest.MonkeyPatch.context() as patch:
                asked: list[Call] = []
                original = Connection.request

                def noted(self: Connection, call: Call, waiter: Any) -> None:
                    if self.driver is not driver:
                        asked.append(call)
                    original(self, call, waiter)

                patch.setattr(Connection, "request", noted)
                await driver.run(offer(told, news), driver.loop.time() + 10, 10)
                wanted = news.members[changed].incarnation
                await until(lambda: incarnation(client, changed) >= wanted, "the news")
                assert asked == []

    run(main())
    dcache_cluster.wait_until_stable()


def incarnation(client: AsyncClient, member: str) -> int:
    table = client.session.topology.table
    return -1 if table is None else table.members[member].incarnation
