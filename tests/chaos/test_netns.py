"""That each fault of the network does what it says, as plain connections see it."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.chaos import netns
from tests.chaos.netns import PORT, Network, inside, namespaces
from tests.fronts import until

pytestmark = pytest.mark.integration

ECHO = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:
    while True:
        accepted, _ = server.accept()
        accepted.sendall(b"x")
        accepted.close()
"""

ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 0.5) as made:
    made.settimeout(0.5)
    sys.exit(made.recv(1) != b"x")
"""


SAY = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.sendto(b"x", (sys.argv[1], int(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """Two nodes, each with a server that greets."""
    reason = netns.why_not()
    if reason:
        pytest.skip(reason)
    with namespaces() as made, inside(made.hub):
        servers = []
        try:
            for number in range(2):
                made.attach(number)
                servers.append(_within(made, number, ECHO, made.address(number)))
            for number in range(2):
                until(partial(heard, made, number), "the servers to start")
            yield made
        finally:
            for server in servers:
                server.kill()
                server.wait()


def _within(network: Network, number: int, program: str, address: str) -> subprocess.Popen[bytes]:
    words = ["ip", "netns", "exec", network.namespace(number), sys.executable, "-c", program, address, str(PORT)]
    return subprocess.Popen(words, stderr=subprocess.DEVNULL)


def heard(network: Network, number: int) -> bool:
    """Whether a node greets one who asks from the hub."""
    try:
        with socket.create_connection((network.address(number), PORT), 0.5) as made:
            made.settimeout(0.5)
            return made.recv(1) == b"x"
    except OSError:
        return False


def hears(network: Network, number: int, other: int) -> bool:
    """Whether a node gets an answer from another one."""
    return _within(network, number, ASK, network.address(other)).wait(10) == 0


FAULTS: dict[str, Callable[[Network], None]] = {
    "pulled": lambda network: network.plug(0, "down"),
    "nothing in": lambda network: network.queue(0, "in", netns.NOTHING),
    "nothing out": lambda network: network.queue(0, "out", netns.NOTHING),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_node_that_is_cut_off_is_reached_by_nobody_until_it_is_mended(network: Network, name: str) -> None:
    FAULTS[name](network)
    assert not heard(network, 0)
    assert not hears(network, 1, 0)
    assert heard(network, 1)
    network.mend(0, 2)
    until(lambda: heard(network, 0), "the node to be heard again")


@pytest.mark.parametrize(("way", "arrives"), [("in", True), ("out", False)])
def test_a_cut_may_be_one_way(network: Network, way: str, arrives: bool) -> None:
    """Nothing comes back in either case, but what a node says is heard where only its way "in" is cut."""
    assert heard(network, 0)  # so that the two know each other's hardware addresses
    network.queue(0, way, netns.NOTHING)
    assert datagram_arrives(network, 0) is arrives
    network.mend(0, 2)
    until(lambda: heard(network, 0), "the node to be heard again")


def datagram_arrives(network: Network, number: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((netns.HUB, PORT))
        receiver.settimeout(1.0)
        assert _within(network, number, SAY, netns.HUB).wait(10) == 0
        try:
            return receiver.recv(10) == b"x"
        except TimeoutError:
            return False


def test_two_nodes_may_miss_each_other_while_both_are_heard(network: Network) -> None:
    network.lead_astray(0, 1)
    assert not hears(network, 0, 1)
    assert heard(network, 0)
    assert heard(network, 1)
    network.mend(0, 2)
    assert until(lambda: hears(network, 0, 1), "the nodes to hear each other again")
