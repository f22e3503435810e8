"""Nodes that die, hang, come back empty or were never there, met by either client: right values or an honest error.

Each test breaks a cluster of its own.  Bounds on time are a client's timeout and an allowance for a busy machine.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dcache import ClockSkew, ClusterMismatch, DcacheError, NoNodesAvailable, QuorumError
from dcache.testing import LocalCluster
from dcache.testing.cluster import free_port
from tests.fronts import UNHURRIED, put_clock_off, until

SLACK = 1.5
"""Seconds that a busy machine may add to a timeout."""

KEYS = [f"key{number}" for number in range(60)]


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(3) as made:
        yield made


@contextmanager
def within(seconds: float) -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds + SLACK


def filled(cache: Any) -> dict[str, Any]:
    """Write a value under every key."""
    values = {key: [key, 0] for key in KEYS}
    assert cache.set_many(values) == {}
    return values


def slow_calls(calls: list[Callable[[], Any]], seconds: float) -> int:
    """How many of the calls, made one after another, took longer."""
    slow = 0
    for call in calls:
        start = time.monotonic()
        call()
        slow += time.monotonic() - start > seconds
    return slow


@pytest.fixture(params=["killed", "paused"])
def one_lost(request: pytest.FixtureRequest, cluster: LocalCluster) -> Callable[[], None]:
    """Takes one node away."""
    return lambda: cluster.kill(0) if request.param == "killed" else cluster.pause(0)


def test_with_one_of_three_lost_reads_and_writes_go_on(
    front: Any, cluster: LocalCluster, one_lost: Callable[[], None]
) -> None:
    """Right values, the first call within its timeout, and hardly any later one waits for the node that is gone."""
    timeout = 4.0
    cache = front.client(cluster.addresses, timeout=timeout)
    values = filled(cache)
    one_lost()
    with within(timeout):
        assert cache.get(KEYS[0]) == values[KEYS[0]]
    with within(timeout):
        cache.set(KEYS[0], "new")
    values[KEYS[0]] = "new"

    def read(key: str) -> None:
        assert cache.get(key) == values[key]

    def write(key: str) -> None:
        values[key] = [key, 1]
        cache.set(key, values[key])

    assert slow_calls([lambda key=key: read(key) for key in KEYS * 3], timeout / 8) <= 6
    assert slow_calls([lambda key=key: write(key) for key in KEYS], timeout / 8) <= 3
    assert slow_calls([lambda key=key: read(key) for key in KEYS], timeout / 8) <= 3
    assert cache.get_many(KEYS) == values
    assert cache.incr("counter") == 1
    assert cache.add("added", 1) is True
    assert cache.delete(KEYS[1]) is True
    assert cache.get_or_set(KEYS[1], lambda: "computed") == "computed"
    assert set(cache.scan()) == {*KEYS, "counter", "added"}
    cache.clear()
    assert cache.get_many(KEYS) == {}


def test_a_client_that_is_made_after_the_loss_finds_its_way(
    front: Any, cluster: LocalCluster, one_lost: Callable[[], None]
) -> None:
    values = filled(front.client(cluster.addresses, **UNHURRIED))
    one_lost()
    cache = front.client(cluster.addresses, timeout=4.0)
    with within(4.0):
        assert cache.get(KEYS[0]) == values[KEYS[0]]
    assert cache.get_many(KEYS) == values
    with within(4.0):
        cache.wait_ready(4.0)


@pytest.mark.parametrize("how", ["killed", "paused"])
def test_with_two_of_three_lost_calls_raise_what_is_missing(front: Any, cluster: LocalCluster, how: str) -> None:
    """Within the timeout; a write is in doubt where one node may have stored it, and only then."""
    cache = front.client(cluster.addresses, timeout=1.0)
    filled(cache.with_options(timeout=10.0))
    for index in (0, 1):
        cluster.kill(index) if how == "killed" else cluster.pause(index)
    with within(1.0), pytest.raises(QuorumError) as written:
        cache.set(KEYS[0], "perhaps")
    assert (written.value.needed, written.value.got < 2, written.value.in_doubt) == (2, True, True)
    available = cache.with_options(read_quorum="one", write_quorum="one", timeout=4.0)
    for key in KEYS[3:6]:
        with within(1.0), pytest.raises(QuorumError) as read:
            cache.get(KEYS[0])
        assert (read.value.needed, read.value.got < 2, read.value.in_doubt) == (2, True, False)
        assert set(read.value.reasons) >= set(cluster.addresses[:2])
        with within(1.0), pytest.raises(QuorumError) as written:
            cache.set(key, "new")
        assert (written.value.needed, written.value.got < 2) == (2, True)
        assert written.value.in_doubt or available.get(key) == [key, 0]
        with within(1.0), pytest.raises(QuorumError):
            cache.incr("counter")
        with within(1.0), pytest.raises(QuorumError):
            cache.get_many(KEYS)
        with within(1.0):
            errors = cache.set_many({"a": 1, "b": 2})
        assert set(errors) == {"a", "b"}
        assert all(isinstance(error, QuorumError) for error in errors.values())
    assert cache.with_options(on_error="miss").get(KEYS[1], "miss") == "miss"
    assert cache.get_or_set(KEYS[1], lambda: "computed") == "computed"
    assert available.get(KEYS[2]) == [KEYS[2], 0]
    available.set(KEYS[2], "available")
    assert available.get(KEYS[2]) == "available"


def test_when_the_lost_nodes_answer_again_all_is_well_again(front: Any, cluster: LocalCluster) -> None:
    cache = front.client(cluster.addresses, timeout=1.0)
    values = filled(cache.with_options(timeout=10.0))
    for index in (0, 1):
        cluster.pause(index)
    with pytest.raises(QuorumError):
        cache.get(KEYS[0])
    for index in (0, 1):
        cluster.resume(index)

    def works() -> bool:
        try:
            return bool(cache.get_many(KEYS) == values)
        except QuorumError:
            return False

    until(works, "reads to succeed again")


def test_with_all_lost_the_client_says_so_and_finds_them_when_they_return(front: Any, cluster: LocalCluster) -> None:
    """They return empty, as another cluster."""
    cache = front.client(cluster.addresses, timeout=1.0)
    filled(cache.with_options(timeout=10.0))
    for index in range(3):
        cluster.kill(index)
    for _ in range(3):
        with within(1.0), pytest.raises(DcacheError):
            cache.get(KEYS[0])
    for node in cluster.nodes:
        node.start()
    for node in cluster.nodes:
        until(node.ready, "the nodes to start")

    def works() -> bool:
        try:
            return cache.get(KEYS[0]) is None
        except (QuorumError, NoNodesAvailable, ClusterMismatch):
            return False

    until(works, "the client to find the new cluster")
    cache.set(KEYS[0], "new")
    assert cache.get(KEYS[0]) == "new"


def test_a_node_that_restarts_empty_is_not_believed(front: Any, cluster: LocalCluster) -> None:
    """No hit becomes a miss or an old value, whoever asks; and where only it could tell, there is no answer."""
    cache = front.client(cluster.addresses, **UNHURRIED)
    values = filled(cache)
    cluster.kill(0)
    for key in KEYS[::2]:
        values[key] = "newer"
        cache.set(key, values[key])
    deleted = KEYS[::5]
    for key in deleted:
        values.pop(key)
        cache.delete(key)
    cluster.restart(0)
    cluster.wait_until_stable()
    for reader in (cache, *(front.client(cluster.addresses, **UNHURRIED) for _ in range(3))):
        for _ in range(2):
            assert reader.get_many(KEYS) == values
            for key in KEYS:
                assert reader.get(key, "miss") == values.get(key, "miss")
    cluster.kill(0)
    cluster.kill(1)
    cluster.nodes[0].start()  # too few are left for it to learn what it forgot
    until(lambda: len(cache.with_options(timeout=0.5).ping()) == 2, "the node to answer again")
    hurried = cache.with_options(timeout=0.5)
    for key in KEYS[:10]:
        with pytest.raises(QuorumError):
            hurried.get(key)


def test_a_write_that_a_restarted_node_takes_is_kept(front: Any, cluster: LocalCluster) -> None:
    cache = front.client(cluster.addresses, **UNHURRIED)
    cluster.kill(2)
    cluster.restart(2)
    cluster.wait_until_stable()
    for round_ in range(3):
        for key in KEYS:
            cache.set(key, [key, round_])
        for key in KEYS:
            assert cache.get(key) == [key, round_]


# -- nobody there -----------------------------------------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[list[str]]:
    """Addresses where somebody listens and never says a word."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(12)]
    try:
        yield [f"127.0.0.1:{sock.getsockname()[1]}" for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


def test_when_no_seed_can_be_reached_each_is_named_with_its_reason(front: Any, silent: list[str]) -> None:
    refusing = f"127.0.0.1:{free_port()}"
    nameless = "no-such-host.invalid:7400"
    seeds = [refusing, nameless, *silent]
    cache = front.client(seeds, timeout=0.5)
    with within(0.5), pytest.raises(NoNodesAvailable) as caught:
        cache.get("key")
    assert set(caught.value.reasons) == set(seeds)
    assert all(address in str(caught.value) for address in seeds)
    assert all(caught.value.reasons.values())


def test_one_reachable_seed_among_dead_ones_is_enough(front: Any, cluster: LocalCluster, silent: list[str]) -> None:
    cache = front.client([*silent, f"127.0.0.1:{free_port()}", cluster.addresses[0]], timeout=8.0)
    cache.set("key", 1)
    assert cache.get("key") == 1


# -- clocks -----------------------------------------------------------------------------------------------------------

HOUR = 3_600_000


@pytest.mark.parametrize("off", [HOUR, -HOUR])
def test_a_client_whose_clock_is_an_hour_off_is_told(
    front: Any, cluster: LocalCluster, off: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_clock_off(monkeypatch, lambda: off)
    cache = front.client(cluster.addresses, **UNHURRIED)
    for call in (lambda: cache.get("key"), lambda: cache.set("key", 1), lambda: cache.incr("key")):
        with within(1.0), pytest.raises(ClockSkew, match="clock"):
            call()
    monkeypatch.undo()
    assert front.client(cluster.addresses, **UNHURRIED).get("key") is None


def test_a_clock_that_jumps_ahead_later_cannot_write_into_the_future(
    front: Any, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody could overwrite it for an hour.  Reads are still answered."""
    jump = [0]
    put_clock_off(monkeypatch, lambda: jump[0])
    cache = front.client(cluster.addresses, **UNHURRIED)
    cache.set("key", "before")
    jump[0] = HOUR
    with pytest.raises(ClockSkew, match="clock"):
        cache.set("key", "ahead")
    with pytest.raises(ClockSkew, match="clock"):
        cache.incr("number")
    assert cache.get("key") == "before"


def test_a_clock_that_falls_behind_later_loses_no_write(
    front: Any, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    jump = [0]
    put_clock_off(monkeypatch, lambda: jump[0])
    front.client(cluster.addresses, **UNHURRIED).set("key", "before")
    cache = front.client(cluster.addresses, **UNHURRIED)
    cache.get("key")
    jump[0] = -HOUR
    cache.set("key", "after")
    assert cache.get("key") == "after"
