"""Reads of asyncio tasks that are to be prompt: how they travel, and what becomes of those that cannot be."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import attrs
import pytest

from dcache import AsyncClient, ClientClosed
from dcache.drivers.channel import Waiter
from dcache.errors import NodeError
from dcache.ops.effects import Call, Link
from dcache.ops.latency import WARM_UP
from dcache.wire import MESSAGES, Code, Limits
from tests.conftest import LoopFactory, Run
from tests.unit.ops_kit import Cluster, FakeLink, v

PATIENCE = 30.0
LONG = 60.0


@attrs.define(eq=False)
class Request:
    """Something that was sent to a node, and who waits for the answer."""

    call: Call
    waiter: Waiter | None

    def asks(self) -> list[bytes]:
        what = self.call.params[2]
        return [what] if self.call.method == "get" else [key for (key,) in what]


class Ground:
    """A client whose requests stay here, in the order sent, until the test has them answered by nodes in memory."""

    def __init__(self, nodes: Cluster, **settings: Any) -> None:
        self.nodes = nodes
        self.client = AsyncClient(["seed.test:1"], **{"timeout": LONG, **settings})
        self.client.session.topology.install(nodes.table)
        driver = self.client.engine.bound().driver
        driver.send = driver.prompt._send = self._send  # type: ignore[method-assign]
        self.sent: list[Request] = []
        self.waiting: list[Request] = []

    def _send(self, call: Call, waiter: Waiter | None) -> None:
        self.sent.append(Request(call, waiter))
        self.waiting.append(self.sent[-1])

    async def begin(self, *reads: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
        """Start them in one tick, and let what they ask for be sent."""
        tasks = [asyncio.create_task(read) for read in reads]
        await ticks()
        return tasks

    def take(self, node: str) -> Request:
        """The oldest request to a node that was not answered."""
        request = next(request for request in self.waiting if request.call.node == node)
        self.waiting.remove(request)
        return request

    async def answer(self, *names: str) -> None:
        """Let each node act on what it was asked, and its answer arrive."""
        for name in names:
            request = self.take(name)
            self.reply(request, self.nodes[name].act(request.call), self.nodes[name].link)
        await ticks()

    def reply(self, request: Request, result: Any, link: Link | None = None) -> None:
        if request.waiter is not None:
            request.waiter.replied(request.call, result, link or FakeLink())

    async def fail(self, name: str, error: Exception) -> None:
        request = self.take(name)
        assert request.waiter is not None
        request.waiter.failed(request.call, error, True)
        await ticks()

    async def finish(self, tasks: list[asyncio.Task[Any]]) -> list[Any]:
        """Answer everything in order until they are done."""
        while not all(task.done() for task in tasks):
            await self.answer(self.waiting[0].call.node)
        return [task.result() for task in tasks]

    def asked(self) -> dict[str, list[tuple[str, int]]]:
        """What each node was asked: method and number of keys."""
        asked: dict[str, list[tuple[str, int]]] = {}
        for request in self.sent:
            asked.setdefault(request.call.node, []).append((request.call.method, len(request.asks())))
        return asked

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110  # what is waited for knows of no event
                await asyncio.sleep(0.001)


async def ticks() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def uvloop() -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop = pytest.importorskip("uvloop").new_event_loop()
    return loop


Test = Callable[[Callable[[], Awaitable[None]]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop], ids=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest, run: Run) -> Test:
    """Runs a test on every kind of loop."""
    factory: LoopFactory = request.param
    return lambda main: run(main(), loop_factory=factory)


def three(**keys: Any) -> Cluster:
    """Three nodes that all hold these keys."""
    nodes = Cluster()
    for key, value in keys.items():
        for name in nodes.nodes:
            nodes[name].put(key, v(1), value)
    return nodes


def one(**keys: Any) -> Cluster:
    nodes = Cluster(("a",))
    for key, value in keys.items():
        nodes["a"].put(key, v(1), value)
    return nodes


# -- how they travel ---------------------------------------------------------------------------------------------------


def test_gets_of_one_tick_are_one_request_per_node(loop: Test) -> None:
    async def main() -> None:
        values = {f"k{n}": n for n in range(30)}
        ground = Ground(three(**values))
        tasks = await ground.begin(*(ground.client.get(key) for key in values))
        assert ground.asked() == {name: [("get_many", 20)] for name in "abc"}
        assert Counter(key for request in ground.sent for key in request.asks()) == {k.encode(): 2 for k in values}
        assert await ground.finish(tasks) == list(values.values())
        assert len(ground.sent) == 3
        await ground.client.close()

    loop(main)


def test_a_get_alone_is_a_request_for_one_key(loop: Test) -> None:
    async def main() -> None:
        ground = Ground(one(k=1))
        for key, value in (("k", 1), ("gone", None)):
            assert await ground.finish(await ground.begin(ground.client.get(key))) == [value]
        assert ground.asked() == {"a": [("get", 1), ("get", 1)]}
        assert (ground.client.session.counters.hits, ground.client.session.counters.misses) == (1, 1)
        await ground.client.close()

    loop(main)


def test_a_hit_of_a_loading_read_is_read_as_a_get_is(loop: Test) -> None:
    async def main() -> None:
        ground = Ground(one(k=1, l=2))

        async def never() -> int:
            raise AssertionError

        tasks = await ground.begin(*(ground.client.get_or_set(key, never) for key in "kl"), ground.client.get("k"))
        assert await ground.finish(tasks) == [1, 2, 1]
        assert ground.asked() == {"a": [("get_many", 3)]}
        await ground.client.close()

    loop(main)


def test_namespaces_do_not_travel_together(loop: Test) -> None:
    async def main() -> None:
        ground = Ground(one(k=1, l=1))
        other = ground.client.with_options(namespace="other")
        tasks = await ground.begin(ground.client.get("k"), other.get("k"), ground.client.get("l"), other.get("l"))
        assert ground.asked() == {"a": [("get_many", 2), ("get_many", 2)]}
        assert await ground.finish(tasks) == [1, None, 1, None]
        await ground.client.close()

    loop(main)


@pytest.mark.parametrize("nodes", [one(), three()], ids=["one", "three"])
def test_what_does_not_fit_one_batch_makes_several(loop: Test, nodes: Cluster) -> None:
    async def main() -> None:
        ground, most = Ground(nodes), Limits().max_batch
        tasks = await ground.begin(*(ground.client.get(f"k{n}") for n in range(most * 2)))
        sizes = [size for asked in ground.asked().values() for _, size in asked]
        assert max(sizes) <= most
        assert sum(sizes) == most * 2 * min(2, len(nodes.nodes))
        assert await ground.finish(tasks) == [None] * most * 2
        await ground.client.close()

    loop(main)


def test_who_is_cancelled_is_told_nothing_and_disturbs_nobody(loop: Test) -> None:
    async def main() -> None:
        ground = Ground(three(k=1, l=2, m=3))
        tasks = await ground.begin(*(ground.client.get(key) for key in "klm"))
        tasks[1].cancel()
        await ticks()
        await ground.answer(*[request.call.node for request in ground.waiting])
        assert tasks[1].cancelled()
        assert [tasks[0].result(), tasks[2].result()] == [1, 3]
        assert not ground.waiting
        assert await ground.finish(await ground.begin(ground.client.get("l"))) == [2]
        await ground.client.close()

    loop(main)


# -- taking over -------------------------------------------------------------------------------------------------------


def calls_of(ground: Ground) -> dict[str, int]:
    return Counter(request.call.node for request in ground.sent if request.call.method.startswith("get"))


def test_owners_that_differ_are_not_asked_again(loop: Test) -> None:
    async def main() -> None:
        ground = Ground(three(k=1, l=1))
        for name in "ab":
            ground.nodes[name].put("k", v(2), "newer")
        for _ in range(3):  # each pair of owners, by turns
            ground.sent.clear()
            assert await ground.finish(await ground.begin(ground.client.get("k"))) == ["newer"]
            assert max(calls_of(ground).values()) == 1
            ground.waiting.clear()
        await ground.client.close()

    loop(main)


@pytest.mark.parametrize("first", [True, False])
def test_a_node_that_refuses_is_not_asked_again(loop: Test, first: bool) -> None:
    """Whether its refusal comes before the other's answer or after it."""

    async def main() -> None:
        ground = Ground(three(k=1))
        (task,) = await ground.begin(ground.client.get("k"))
        refusing, other = (request.call.node for request in ground.waiting)
        if not first:
            await ground.answer(other)
        await ground.fail(refusing, NodeError(int(Code.WRONG_RING), MESSAGES[Code.WRONG_RING]))
        assert await ground.finish([task]) == [1]
        assert calls_of(ground) == dict.fromkeys("abc", 1)
        await ground.client.close()

    loop(main)


def test_an_answer_whose_connection_breaks_before_the_last_one_comes_does_not_count(loop: Test) -> None:
    """And its node is not asked again by the same read."""

    async def main() -> None:
        ground = Ground(three(k="old"))
        (task,) = await ground.begin(ground.client.get("k"))
        first, second = (request.call.node for request in ground.waiting)
        await ground.answer(first)
        ground.nodes[first].break_link()
        await ground.answer(second)
        assert not task.done()
        (third,) = (request.call.node for request in ground.waiting)
        assert third not in (first, second)
        assert await ground.finish([task]) == ["old"]
        await ground.client.close()

    loop(main)


def test_an_answer_whose_connection_breaks_in_the_tick_of_the_last_one_does_not_count(loop: Test) -> None:
    async def main() -> None:
        ground = Ground(three(k="old"))
        (task,) = await ground.begin(ground.client.get("k"))
        names = [request.call.node for request in ground.waiting]
        for name in names:
            request = ground.take(name)
            ground.reply(request, ground.nodes[name].act(request.call), ground.nodes[name].link)
        ground.nodes[names[0]].break_link()
        await ticks()
        assert not task.done()
        assert await ground.finish([task]) == ["old"]
        await ground.client.close()

    loop(main)


def test_keys_that_a_batch_was_not_answered_for_are_asked_for_again(loop: Test) -> None:
    async def main() -> None:
        values = {f"k{n}": n for n in range(5)}
        ground = Ground(one(**values))
        tasks = await ground.begin(*(ground.client.get(key) for key in values))
        request = ground.take("a")
        ground.reply(request, ground.nodes["a"].act(request.call)[:2])
        await ticks()
        assert [task.done() for task in tasks] == [True, True, False, False, False]
        assert [request.asks() for request in ground.waiting] == [[b"k2"], [b"k3"], [b"k4"]]
        assert await ground.finish(tasks) == [0, 1, 2, 3, 4]
        await ground.client.close()

    loop(main)


@pytest.mark.parametrize("nonsense", [None, (), 7, [1], (1, 2, 3)])
def test_an_answer_that_makes_no_sense_is_none(loop: Test, nonsense: Any) -> None:
    async def main() -> None:
        ground = Ground(three(k=1, l=2), read_quorum="all")
        tasks = await ground.begin(ground.client.get("k"), ground.client.get("l"))
        ground.reply(ground.take("a"), nonsense)
        await ticks()
        results = asyncio.gather(*tasks, return_exceptions=True)
        while ground.waiting:
            await ground.answer(ground.waiting[0].call.node)
        assert [type(result).__name__ for result in await results] == ["QuorumError"] * 2
        assert calls_of(ground) == dict.fromkeys("abc", 1)
        await ground.client.close()

    loop(main)


def test_a_key_that_is_refused_in_a_batch_hurts_no_other(loop: Test) -> None:
    async def main() -> None:
        ground = Ground(one(k=1, l=2))
        tasks = await ground.begin(ground.client.get("k"), ground.client.get("l"))
        request = ground.take("a")
        refused = int(Code.INTERNAL), MESSAGES[Code.INTERNAL], None
        ground.reply(request, (refused, ground.nodes["a"].act(request.call)[1]))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert "internal error" in str(results[0])
        assert results[1] == 2
        assert len(ground.sent) == 1
        await ground.client.close()

    loop(main)


# -- those that take long ----------------------------------------------------------------------------------------------


def used_to(ground: Ground, seconds: float) -> None:
    """All nodes have always answered in so many seconds, and an extra call has been earned."""
    hedging = ground.client.session.books.hedging
    for name in ground.nodes.nodes:
        for _ in range(WARM_UP):
            hedging.took(name, seconds)
    hedging.called(20)


def test_a_node_that_takes_longer_than_is_usual_is_raced_and_not_asked_again(loop: Test) -> None:
    async def main() -> None:
        ground = Ground(three(k=1))
        used_to(ground, 0.001)
        (task,) = await ground.begin(ground.client.get("k"))
        slow, other = (request.call.node for request in ground.waiting)
        await ground.answer(other)
        await ground.until(lambda: len(ground.sent) == 3)
        (third,) = {*"abc"} - {slow, other}
        await ground.answer(third)
        assert task.result() == 1
        await ground.answer(slow)  # nobody waits for it
        assert calls_of(ground) == dict.fromkeys("abc", 1)
        assert ground.client.session.counters.hedges == 1
        await ground.client.close()

    loop(main)


def test_the_late_answer_suffices_after_all(loop: Test) -> None:
    async def main() -> None:
        ground = Ground(three(k=1))
        used_to(ground, 0.001)
        (task,) = await ground.begin(ground.client.get("k"))
        first, second = (request.call.node for request in ground.waiting)
        await ground.until(lambda: len(ground.sent) == 3)
        await ground.answer(first, second)
        assert task.result() == 1
        await ground.client.close()

    loop(main)


def test_of_many_reads_no_more_race_than_have_been_earned(loop: Test) -> None:
    async def main() -> None:
        values = {f"k{n}": n for n in range(30)}
        ground = Ground(three(**values))
        used_to(ground, 0.001)
        tasks = await ground.begin(*(ground.client.get(key) for key in values))
        await ground.until(lambda: len(ground.sent) == 4)
        reads = ground.client.engine.bound().prompt
        await ground.until(lambda: all(request.due > reads.monotonic() + LONG for request in reads.waiting))
        await ticks()
        assert [request.call.method for request in ground.sent] == ["get_many"] * 3 + ["get"]
        assert await ground.finish(tasks) == list(values.values())
        await ground.client.close()

    loop(main)


def test_after_a_quarter_of_its_time_a_read_goes_elsewhere(loop: Test) -> None:
    async def main() -> None:
        ground = Ground(three(k=1, l=2), timeout=2.0)
        tasks = await ground.begin(ground.client.get("k"), ground.client.get("k"), ground.client.get("k"))
        await ground.answer("b", "c")
        await ground.until(lambda: len(ground.sent) == 5)  # the two who wait for "a" ask the third
        assert [request.call.node for request in ground.waiting].count("a") == 1
        assert ground.client.session.shared.backoff.trouble("a", ground.client.session.settings.monotonic()) == 1
        assert await ground.finish(tasks) == [1, 1, 1]
        await ground.client.close()

    loop(main)


def test_a_read_that_nobody_answers_has_no_more_time_than_any(loop: Test) -> None:
    async def main() -> None:
        ground = Ground(three(k=1), timeout=0.05)
        began = asyncio.get_running_loop().time()
        (task,) = await ground.begin(ground.client.get("k"))
        await ground.until(task.done)
        assert type(task.exception()).__name__ == "DeadlineExceeded"
        assert asyncio.get_running_loop().time() >= began + 0.045
        assert calls_of(ground) == dict.fromkeys("abc", 1)
        await ground.client.close()

    loop(main)


def test_a_closed_client_says_so_to_those_who_wait(loop: Test) -> None:
    async def main() -> None:
        ground = Ground(one(k=1))
        asked = await ground.begin(ground.client.get("k"))
        driver = ground.client.engine.bound().driver
        begun = asyncio.create_task(ground.client.get("k"))
        await asyncio.sleep(0)
        await ground.client.close()
        assert driver.closed
        await ground.fail("a", ClientClosed("the client was closed"))
        while ground.waiting:
            await ground.fail("a", ClientClosed("the client was closed"))
        with pytest.raises(ClientClosed):
            await asked[0]
        with pytest.raises(ClientClosed):
            await begun

    loop(main)


# -- what the books are told -------------------------------------------------------------------------------------------


def test_the_books_see_one_call_per_request(loop: Test, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        ground = Ground(three())
        hedging = ground.client.session.books.hedging
        took: list[str] = []
        called: list[int] = []
        monkeypatch.setattr(hedging, "took", lambda node, seconds: took.append(node))
        monkeypatch.setattr(hedging, "called", lambda calls=1: called.append(calls))
        await ground.finish(await ground.begin(*(ground.client.get(f"k{n}") for n in range(30))))
        assert sorted(took) == ["a", "b", "c"]
        assert sum(called) == 3
        await ground.client.close()

    loop(main)


def test_a_node_that_owes_an_answer_is_noted_once(loop: Test, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        ground = Ground(three(k=1), timeout=2.0)
        noted: list[str] = []
        monkeypatch.setattr(
            ground.client.session.books.hedging, "unanswered", lambda node, since, now: noted.append(node)
        )
        tasks = await ground.begin(*(ground.client.get("k") for _ in range(6)))
        await ground.answer("b", "c")
        await ground.until(lambda: len(ground.sent) > 3)
        while not all(task.done() for task in tasks):
            for request in [request for request in ground.waiting if request.call.node != "a"]:
                await ground.answer(request.call.node)
        assert noted == ["a"]
        await ground.client.close()

    loop(main)


# -- many keys ---------------------------------------------------------------------------------------------------------


def test_many_keys_are_one_request_per_node(loop: Test) -> None:
    async def main() -> None:
        values = {f"k{n}": n for n in range(30)}
        ground = Ground(three(**values))
        (found,) = await ground.finish(await ground.begin(ground.client.get_many([*values, "gone"])))
        assert found == values
        assert list(found) == list(values)
        assert calls_of(ground) == dict.fromkeys([request.call.node for request in ground.sent], 1)
        assert (ground.client.session.counters.hits, ground.client.session.counters.misses) == (30, 1)
        await ground.client.close()

    loop(main)


def test_keys_that_owners_differ_about_are_read_again_alone(loop: Test) -> None:
    async def main() -> None:
        ground = Ground(three(k=1, l=1, m=1))
        ground.nodes["a"].put("l", v(2), 2)
        for name in "bc":
            ground.nodes[name].put("l", v(3), 3)
        for _ in range(3):
            (found,) = await ground.finish(await ground.begin(ground.client.get_many(["k", "l", "m"])))
            assert found == {"k": 1, "l": 3, "m": 1}
        read = [request.asks() for request in ground.sent if request.call.method.startswith("get")]
        assert {tuple(keys) for keys in read} == {(b"k", b"l", b"m"), (b"l",)}
        await ground.client.close()

    loop(main)


def test_more_keys_than_fit_a_batch_are_read_in_several(loop: Test) -> None:
    async def main() -> None:
        ground, most = Ground(one(k1=1)), Limits().max_batch
        (found,) = await ground.finish(await ground.begin(ground.client.get_many(f"k{n}" for n in range(most + 5))))
        assert found == {"k1": 1}
        assert ground.asked() == {"a": [("get_many", most), ("get_many", 5)]}
        await ground.client.close()

    loop(main)


def test_many_keys_do_not_wait_for_a_slow_node_longer_than_others(loop: Test) -> None:
    async def main() -> None:
        ground = Ground(three(k=1, l=2), timeout=2.0)
        (task,) = await ground.begin(ground.client.get_many(["k", "l"]))
        slow, other = (request.call.node for request in ground.waiting)
        await ground.answer(other)
        await ground.until(lambda: len(ground.sent) > 2)
        assert slow not in [request.call.node for request in ground.sent[2:]]
        while not task.done():
            await ground.answer(next(request.call.node for request in ground.waiting if request.call.node != slow))
        assert task.result() == {"k": 1, "l": 2}
        await ground.client.close()

    loop(main)
