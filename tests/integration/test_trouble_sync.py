"""`Client` under threads, with connections that hang, late replies, Ctrl-C and changes of the member table."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import pytest

from dcache import Client, DeadlineExceeded, NoNodesAvailable, QuorumError
from dcache.drivers.pool import Connection
from dcache.membership import MemberTable
from dcache.ops.effects import Call, FirstOf, Op
from dcache.testing import LocalCluster
from dcache.testing.cluster import table_of
from tests.fronts import UNHURRIED, until
from tests.integration.proxied import ProxiedCluster

DELAY = 0.05


@pytest.fixture(scope="module")
def delayed() -> Iterator[ProxiedCluster]:
    with ProxiedCluster(3) as cluster:
        yield cluster


@pytest.fixture
def proxied(delayed: ProxiedCluster) -> Iterator[ProxiedCluster]:
    yield delayed
    delayed.restore()


def own_keys(client: Client, name: str, rounds: int, patience: tuple[type[Exception], ...] = ()) -> int:
    """Write and read keys that nobody else uses, checking each reply; how many calls were answered."""
    answered = 0
    for number in range(rounds):
        value = [name, number]
        try:
            client.set(f"{name}:{number % 5}", value)
            found = client.get(f"{name}:{number % 5}")
            assert found == value
            answered += 2
        except patience:
            continue
    return answered


def in_threads(number: int, work: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(work, range(number)))


def test_many_threads_share_few_connections(dcache_cluster: LocalCluster) -> None:
    """Each gets its own replies; nobody is left without a connection, and none beyond the bound is kept."""
    with dcache_cluster.client(namespace="storm", max_connections=2, **UNHURRIED) as client:
        in_threads(32, lambda number: own_keys(client, f"thread{number}", 25))
        assert client.get_many([f"thread{number}:4" for number in range(32)]) == {
            f"thread{number}:4": [f"thread{number}", 24] for number in range(32)
        }
        assert len(client.engine.driver.connections) <= 2 * 3


def test_threads_increment_one_counter_and_lose_nothing(dcache_cluster: LocalCluster) -> None:
    with dcache_cluster.client(namespace="threads", timeout=30.0) as client:
        sums = in_threads(6, lambda _: [client.incr("counter") for _ in range(5)])
        assert sorted(itertools.chain.from_iterable(sums)) == list(range(1, 31))


def test_a_timeout_shorter_than_the_delay_costs_nobody_a_reply(proxied: ProxiedCluster) -> None:
    """Replies that come too late are dropped: not even the same thread's next call sees one."""
    with proxied.client(namespace="late", **UNHURRIED) as client:
        client.set_many({f"key{number}": number for number in range(20)})
        proxied.delay(DELAY)
        hurried = client.with_options(timeout=DELAY / 3)
        late = 0
        for number in range(20):
            with pytest.raises((QuorumError, NoNodesAvailable)) as caught:
                hurried.get(f"key{number}")
            late += isinstance(caught.value, DeadlineExceeded)
            if number % 5 == 4:
                assert until_answered(lambda number=number: client.get(f"key{number}")) == number
        assert late
        proxied.restore()
        for number in range(20):
            assert until_answered(lambda number=number: client.get(f"key{number}")) == number


def until_answered(call: Callable[[], Any]) -> Any:
    """What `call` returns once the nodes it needs are no longer being left alone."""
    found: list[Any] = []

    def answered() -> bool:
        try:
            found.append(call())
        except (QuorumError, NoNodesAvailable):
            return False
        return True

    until(answered, "an answer")
    return found[0]


def test_threads_with_timeouts_around_the_delay_see_their_own_values_only(proxied: ProxiedCluster) -> None:
    """Some calls make it and some do not."""
    with proxied.client(namespace="around", max_connections=4, **UNHURRIED) as client:
        client.wait_ready()
        proxied.delay(0.01)
        timeouts = random.Random(1)

        def work(number: int) -> int:
            view = client.with_options(timeout=timeouts.choice([0.012, 0.02, 0.03, 0.08]))
            return own_keys(view, f"thread{number}", 10, (QuorumError, NoNodesAvailable))

        in_threads(12, work)


class Workers:
    """Threads that read and write their own keys until `trouble` is over; `settle` waits for what was under way."""

    def __init__(self, client: Client, number: int) -> None:
        self.client, self.rounds, self.stop = client, [0] * number, threading.Event()

    def run(self, trouble: Callable[[], None]) -> None:
        with ThreadPoolExecutor(len(self.rounds) + 1) as pool:
            futures = [pool.submit(self._work, number) for number in range(len(self.rounds))]
            futures.append(pool.submit(trouble))
            for future in futures:
                future.add_done_callback(lambda _: self.stop.set())
        for future in futures:
            future.result()

    def settle(self) -> None:
        """Wait until each has begun and ended a round."""
        before = [*self.rounds]
        self._until(
            lambda: all(now >= then + 2 for now, then in zip(self.rounds, before, strict=True)), "calls to go on"
        )

    def well(self) -> None:
        """Wait until every node is used again, by every call."""
        self._until(lambda: not self.client.session.shared.backoff.failures, "the node to be asked again")
        self.settle()

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        until(lambda: self.stop.is_set() or condition(), what)

    def _work(self, number: int) -> None:
        while not self.stop.is_set():
            own_keys(self.client, f"thread{number}", 2)
            self.rounds[number] += 1


def test_late_replies_of_a_paused_node_disturb_nobody(proxied: ProxiedCluster) -> None:
    """It hangs and comes back again and again while threads read and write their own keys."""
    with proxied.client(namespace="pause", timeout=4.0) as client:
        client.wait_ready()
        workers = Workers(client, 8)

        def trouble() -> None:
            for number in range(4):
                proxied.pause(number % 3)
                workers.settle()
                workers.settle()
                proxied.resume(number % 3)
                until(lambda: len(client.with_options(timeout=0.5).ping()) == 3, "the node to answer again")
                workers.well()

        workers.run(trouble)


def test_broken_connections_disturb_nobody(proxied: ProxiedCluster) -> None:
    """One node at a time: a read fails over, a write has two more owners, and the idle connections are replaced."""
    with proxied.client(namespace="cut", **UNHURRIED) as client:
        client.wait_ready()
        workers = Workers(client, 6)

        def trouble() -> None:
            for number in range(15):
                proxied.proxies[number % 3].cut()
                workers.settle()
                workers.well()

        workers.run(trouble)


def test_an_idle_connection_that_was_closed_meanwhile_is_not_noticed(proxied: ProxiedCluster) -> None:
    """All nodes at once, with nobody else to ask."""
    with proxied.client(namespace="idle", **UNHURRIED) as client:
        for number in range(5):
            client.set("key", number)
            proxied.each(lambda proxy: proxy.cut())
            assert client.get("key") == number
            proxied.each(lambda proxy: proxy.cut())


def test_nothing_is_sent_for_a_bad_key(proxied: ProxiedCluster) -> None:
    sent: list[Call] = []
    with proxied.client(namespace="bad", **UNHURRIED) as client:
        client.get("key")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dcache.drivers.leases.Leases.send", lambda self, call, waiter: sent.append(call))
            for call in (lambda: client.get(""), lambda: client.set("x" * 1025, 1), lambda: client.get_many(["a", ""])):
                with pytest.raises(ValueError, match="key"):
                    call()
    assert sent == []


# -- interruption -----------------------------------------------------------------------------------------------------

CTRL_C = """
import gc, random, signal, sys
from dcache import Client, QuorumError

def interrupt(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGALRM, interrupt)
moments = random.Random(7)
interrupted = wrong = 0
with Client(sys.argv[1:], namespace="ctrl-c", timeout=10.0, connect_timeout=5.0, max_connections=2) as client:
    for number in range(20):
        client.set(f"key{number}", number)
    for turn in range(150):
        number = turn % 20
        signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.0005, 0.03))
        try:
            for step in range(100):
                if client.get(f"key{(number + step) % 20}") != (number + step) % 20:
                    wrong += 1
                client.set(f"other{step % 3}", step)
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if client.get(f"key{number}") != number or client.get_many(["key3", "key4"]) != {"key3": 3, "key4": 4}:
            wrong += 1
    open_at_the_end = len(client.engine.driver.connections)
gc.collect()
print(interrupted, wrong, open_at_the_end)
"""


def test_ctrl_c_in_the_middle_of_a_call_leaves_a_client_that_works(proxied: ProxiedCluster) -> None:
    """At any moment, behind proxies that delay replies; no connection is lost track of.

    That a socket is closed by Python itself is let pass: Ctrl-C can strike before anybody has been handed it.
    """
    proxied.delay(0.005)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", CTRL_C, *proxied.addresses],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    interrupted, wrong, connections = map(int, done.stdout.split())
    assert interrupted > 100
    assert wrong == 0
    assert connections <= 2 * 3


# -- a changed table --------------------------------------------------------------------------------------------------


def raised(table: MemberTable, node: str) -> MemberTable:
    """The table with a later row for one node."""
    row = table.members[node]
    return table.with_member(attrs.evolve(row, incarnation=row.incarnation + 1))


def offer(node: str, table: MemberTable) -> Op[None]:
    round_ = FirstOf([Call(node, "offer", (table.to_wire(),))])
    yield round_
    assert round_.replies, round_.failures


def test_a_changed_table_comes_with_the_next_operation(dcache_cluster: LocalCluster) -> None:
    """Pushed by the nodes: the client does not ask."""
    with dcache_cluster.client(**UNHURRIED) as client, dcache_cluster.client(**UNHURRIED) as other:
        told, changed = dcache_cluster.addresses[:2]
        until(lambda: client.set("key", 1) and connected(client, told), "a connection for the news to come by")
        other.get("key")
        before = client.session.topology.table
        assert before is not None
        news = raised(before, changed)
        other.engine.driver.run(offer(told, news), time.monotonic() + 10, 10)
        wanted = news.members[changed].incarnation
        until(lambda: told_by(told, changed) >= wanted, "the node to hold the new table")
        assert client.session.topology.table is before
        # A write may be done before the last of three owners was read from, so it need not be the very next.
        until(lambda: client.set("key", 1) and known(client, changed) >= wanted, "an operation to bring the news")
        dcache_cluster.wait_until_stable()


def connected(client: Client, node: str) -> bool:
    """Whether the client keeps a connection to `node`."""
    return any(line.node == node and line.channel.ready for line in client.engine.driver.connections)


def known(client: Client, member: str) -> int:
    table = client.session.topology.table
    return 0 if table is None else table.members[member].incarnation


def told_by(address: str, member: str) -> int:
    table = table_of(address)
    return 0 if table is None else table.members[member].incarnation


def test_a_node_that_never_greets_is_waited_for_once(proxied: ProxiedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quorum answers each set; the connection that is not made in time is not tried with every one of them."""
    opened: list[str] = []
    true_open = Connection.open

    def counting_open(self: Connection, *args: Any) -> None:
        opened.append(self.node)
        true_open(self, *args)

    monkeypatch.setattr(Connection, "open", counting_open)
    silent = proxied.addresses[0]
    with Client(proxied.addresses[1:], timeout=2.0) as client:
        client.wait_ready()
        client.set("first", 1)
        proxied.proxies[0].cut()
        proxied.proxies[0].hold()
        opened.clear()
        for number in range(40):
            client.set(f"key{number}", number)
        assert 1 <= opened.count(silent) <= 5
        assert client.get_many([f"key{number}" for number in range(40)]) == {f"key{n}": n for n in range(40)}
