"""`LocalCluster` does to its nodes what its methods say, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dcache.testing import LocalCluster, NodeFailed
from dcache.testing.cluster import PORTS, asked, table_of, wait_for
from tests.conftest import Run


@pytest.fixture(scope="module")
def _shared() -> Iterator[LocalCluster]:
    with LocalCluster(3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def whole() -> Iterator[LocalCluster]:
    """A cluster that nobody breaks."""
    with LocalCluster(3) as cluster:
        yield cluster


@pytest.fixture
def cluster(_shared: LocalCluster) -> LocalCluster:
    """Three nodes that all run."""
    for index, node in enumerate(_shared.nodes):
        if not node.running:
            _shared.restart(index)
    _shared.wait_until_stable()
    return _shared


def processes(cluster: LocalCluster) -> list[int]:
    return [node.process.pid for node in cluster.nodes if node.process is not None]


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5.0).close()
    except OSError:
        return False
    return True


def test_nodes_have_their_addresses_and_are_one_cluster(whole: LocalCluster) -> None:
    tables = [table_of(address) for address in whole.addresses]
    assert len(set(whole.addresses)) == 3
    for table in tables:
        assert table is not None
        assert set(table.members) == set(whole.addresses)
    assert len({table.digest for table in tables if table is not None}) == 1


def test_ports_are_below_those_that_systems_give_to_outgoing_connections(whole: LocalCluster) -> None:
    """Such a connection could take the port of a node that is being restarted."""
    assert PORTS.stop <= 32768
    assert all(int(address.rpartition(":")[2]) in PORTS for address in whole.addresses)


def test_a_client_of_the_cluster_takes_the_settings_it_is_given(whole: LocalCluster) -> None:
    with whole.client(namespace="one") as one, whole.client(namespace="two") as two:
        one.set("a", 1)
        assert one.get("a") == 1
        assert two.get("a") is None


def test_an_async_client_of_the_cluster(whole: LocalCluster, run: Run) -> None:
    async def main() -> None:
        async with whole.async_client(namespace="async") as client:
            await client.set("a", 1)
            assert await client.get("a") == 1

    run(main())


def test_a_killed_node_is_gone_at_once(cluster: LocalCluster) -> None:
    cluster.kill(0)
    process = cluster.nodes[0].process
    assert process is not None
    assert process.returncode == -signal.SIGKILL
    assert not accepts(cluster.addresses[0])


def test_a_stopped_node_ends_in_good_order(cluster: LocalCluster) -> None:
    assert cluster.stop(1) == 0
    assert not cluster.nodes[1].running
    assert not accepts(cluster.addresses[1])


def test_a_paused_node_hangs_and_goes_on_when_resumed(cluster: LocalCluster) -> None:
    """Its connections stay open; only its answers do not come."""
    address = cluster.addresses[2]
    cluster.pause(2)
    try:
        assert accepts(address), "the system still does that for it"
        assert table_of(address) is None
    finally:
        cluster.resume(2)
    wait_for(lambda: table_of(address) is not None, "the node to answer again", lambda: "")


def test_a_restarted_node_is_at_its_old_address_and_a_member_again(cluster: LocalCluster) -> None:
    before = cluster.nodes[0].process
    cluster.kill(0)
    cluster.restart(0)
    assert cluster.nodes[0].process is not before
    cluster.wait_until_stable()
    table = table_of(cluster.addresses[0])
    assert table is not None
    assert set(table.members) == set(cluster.addresses)


def test_what_runs_cannot_be_restarted_and_what_does_not_cannot_be_signalled(cluster: LocalCluster) -> None:
    for method in (cluster.restart, cluster.forget):
        with pytest.raises(RuntimeError, match="node 1 is running"):
            method(1)
    cluster.kill(1)
    for method in (cluster.kill, cluster.stop, cluster.pause, cluster.resume, cluster.leave):
        with pytest.raises(RuntimeError, match="node 1 is not running"):
            method(1)


def test_nodes_that_do_not_come_to_agree_are_not_waited_for_for_ever(cluster: LocalCluster) -> None:
    process = cluster.nodes[0].process
    assert process is not None
    process.send_signal(signal.SIGSTOP)  # behind the cluster's back
    try:
        with pytest.raises(NodeFailed, match="for the nodes to hold the same member table"):
            cluster.wait_until_stable(timeout=0.1)
    finally:
        process.send_signal(signal.SIGCONT)


def test_a_paused_node_is_not_waited_for(cluster: LocalCluster) -> None:
    cluster.pause(0)
    try:
        cluster.wait_until_stable()
    finally:
        cluster.resume(0)
    wait_for(lambda: table_of(cluster.addresses[0]) is not None, "the node to answer again", lambda: "")


@pytest.mark.parametrize("size", [1, 2])
def test_options_are_settings_of_all_nodes(size: int) -> None:
    with LocalCluster(size, memory_limit="8MiB", max_entries=100) as cluster, cluster.client() as client:
        nodes = client.stats()["nodes"]
        assert [nodes[address]["memory_limit"] for address in cluster.addresses] == [8 << 20] * size


def test_a_node_may_have_options_of_its_own_and_some_several_times() -> None:
    with LocalCluster(1, memory_limit="8MiB") as cluster:
        index = cluster.add(memory_limit="4MiB", join=[cluster.addresses[0], "127.0.0.1:1"])
        assert cluster.addresses[index] == cluster.nodes[index].address
        assert [asked(address, "stats")["memory_limit"] for address in cluster.addresses] == [8 << 20, 4 << 20]


def test_clients_are_given_the_addresses_of_those_that_have_not_left() -> None:
    with LocalCluster(2) as cluster:
        assert cluster.leave(0) == 0
        with cluster.client(timeout=5.0) as client:
            assert client.session.topology.seeds == (cluster.addresses[1],)
            client.wait_ready()


def test_a_cluster_has_nodes() -> None:
    with pytest.raises(ValueError, match="at least one node"):
        LocalCluster(0)


def test_settings_of_nodes_in_the_environment_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are meant for other nodes than those of a test."""
    monkeypatch.setenv("DCACHE_NODE_REPLICAS", "none")
    with LocalCluster(1) as cluster:
        assert table_of(cluster.addresses[0]) is not None


def test_a_node_that_cannot_start_is_told_of_with_what_it_said() -> None:
    cluster = LocalCluster(2, memory_limit="nonsense")
    with pytest.raises(
        NodeFailed, match=r"node [01] ended before it was ready:\n(.|\n)*--memory-limit: 'nonsense' is no size"
    ):
        cluster.start()
    assert not any(node.running for node in cluster.nodes)


def test_close_leaves_no_process_and_no_file() -> None:
    """Paused ones included; and it may be called twice."""
    with LocalCluster(3) as cluster:
        pids = processes(cluster)
        directory = cluster.nodes[0].log.parent
        cluster.pause(0)
        cluster.kill(1)
    assert [pid for pid in pids if exists(pid)] == []
    assert not directory.exists()
    cluster.close()


def test_an_error_in_the_block_closes_the_cluster_too() -> None:
    cluster = LocalCluster(1)
    with pytest.raises(ZeroDivisionError), cluster:
        raise ZeroDivisionError
    assert [pid for pid in processes(cluster) if exists(pid)] == []


# The pytest plugin

USER_TESTS = """
import sys

def test_without():
    assert "dcache.client" not in sys.modules

def test_one(dcache_client):
    dcache_client.set("a", 1)
    assert dcache_client.get("a") == 1

def test_another(dcache_client, dcache_cluster):
    assert dcache_client.get("a") is None, "a namespace of its own"
    assert len(dcache_cluster.addresses) == 3
"""


def environment() -> dict[str, str]:
    """As here, but with no plugins of installed packages: this one may be installed, and is named by the test."""
    path = os.pathsep.join(path for path in sys.path if path)
    return os.environ | {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def test_a_users_tests_get_a_cluster_and_a_client_each(tmp_path: Path) -> None:
    (tmp_path / "test_user.py").write_text(USER_TESTS)
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "dcache.testing.plugin",
        "-p",
        "no:cacheprovider",
        "-W",
        "error",
    ]
    done = subprocess.run(
        [*words, str(tmp_path)], check=False, capture_output=True, text=True, env=environment(), cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b3 passed\b", done.stdout)


def test_the_plugin_loads_no_client_until_a_test_asks_for_one() -> None:
    """Whoever has dcache installed pays nothing for the plugin in a test run that does not use it."""
    code = "import sys; import dcache.testing.plugin; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    loaded = {module for module in done.stdout.split() if module.startswith("dcache")}
    assert loaded == {"dcache", "dcache.testing", "dcache.testing.plugin"}
