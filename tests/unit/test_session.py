"""What clients and their views share: settings, URLs, the search for the cluster, forks."""

from __future__ import annotations

import gc
import logging
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

import dcache
from dcache import AsyncClient, Client
from dcache.client.forks import _in_child, reset_after_fork
from dcache.client.session import SEARCH_PAUSE, Configuration, Session, View, key_from_bytes, parse_url
from dcache.drivers.machine import THIS_MACHINE
from dcache.errors import ClientClosed, ClockSkew, ClusterMismatch, InvalidKey, NoNodesAvailable, QuorumError
from dcache.membership import Member, MemberTable, RingState, Settings
from dcache.ops.topology import GIVEN_UP_AFTER, GIVEN_UP_SEARCHES
from tests.unit.ops_kit import make_table

# -- URLs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "nodes", "settings"),
    [
        ("dcache://h1", ["h1"], {}),
        ("dcache://h1:7400,h2/ns?timeout=1", ["h1:7400", "h2"], {"namespace": "ns", "timeout": 1.0}),
        ("dcache://h1/", ["h1"], {}),
        ("dcache://h1/a/b", ["h1"], {"namespace": "a/b"}),
        ("dcache://h1/caf%C3%A9%3A", ["h1"], {"namespace": "café:"}),
        ("dcache://[::1]:7400,[::2],h3", ["[::1]:7400", "[::2]", "h3"], {}),
        ("dcache://h1,[::2]:1/n", ["h1", "[::2]:1"], {"namespace": "n"}),
        ("dcache://h?write_quorum=2&read_quorum=one", ["h"], {"write_quorum": 2, "read_quorum": "one"}),
        ("dcache://h?namespace=&on_error=miss", ["h"], {"namespace": "", "on_error": "miss"}),
        ("dcache://h?consistency=linearizable", ["h"], {"consistency": "linearizable"}),
        ("dcache://h?max_value=10&compression=zlib", ["h"], {"max_value": 10, "compression": "zlib"}),
        ("dcache://h?default_ttl=1.5&serializer=json", ["h"], {"default_ttl": 1.5, "serializer": "json"}),
    ],
)
def test_a_url_names_nodes_namespace_and_settings(url: str, nodes: list[str], settings: dict[str, Any]) -> None:
    assert parse_url(url) == (nodes, settings)
    assert isinstance(Client.from_url(url), Client)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis://h", "not of the form dcache://"),
        ("h1:7400", "not of the form"),
        ("dcache:h1", "not of the form"),
        ("dcache://", "not of the form"),
        ("dcache:///ns", "not of the form"),
        ("dcache://h#part", "not of the form"),
        ("dcache://user:secret@h", "no user or password"),
        ("dcache://h?colour=red", "'colour' is not a setting that a URL can carry"),
        ("dcache://h?timeout=soon", "timeout='soon' makes no sense"),
        ("dcache://h?timeout=", "timeout='' makes no sense"),
        ("dcache://h?max_connections=1.5", "makes no sense"),
        ("dcache://h?timeout", "bad query field"),
    ],
)
def test_any_other_url_is_refused_with_the_reason(url: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_url(url)


@pytest.mark.parametrize("url", ["dcache://h?timeout=0", "dcache://h?timeout=nan", "dcache://h,", "dcache://h:port"])
def test_settings_of_a_url_are_checked_like_any_other(url: str) -> None:
    with pytest.raises(ValueError, match=r"timeout must be|address|port"):
        Client.from_url(url)


def test_settings_given_beside_a_url_win() -> None:
    client = AsyncClient.from_url("dcache://h/outer?timeout=1", timeout=2, default_ttl=timedelta(1))
    assert (client.options.namespace, client.options.timeout) == ("outer", 2)


def test_passwords_are_not_repeated_in_the_complaint() -> None:
    with pytest.raises(ValueError, match="no user") as raised:
        parse_url("dcache://user:secret@h")
    assert "secret" not in str(raised.value)


# -- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"connect_timeout": 0},
        {"connect_timeout": float("nan")},
        {"connect_timeout": float("inf")},
        {"max_connections": 0},
        {"write_quorum": 0},
        {"read_quorum": "most"},
        {"default_ttl": 0},
        {"on_error": "ignore"},
        {"consistency": "strong"},
        {"consistency": "linearizable", "read_quorum": "one"},
        {"serializer": "xml"},
        {"compression": "rar"},
        {"max_value": 0},
        {"namespace": "a\0b"},
        {"namespace": "x" * 256},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_settings_that_make_no_sense_are_refused_when_the_client_is_made(kind: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        kind("h", **settings)


@pytest.mark.parametrize("nodes", [[], "", ["h:"], ["h:70000"], ["h", "h:x"]], ids=repr)
def test_addresses_that_make_no_sense_are_refused_when_the_client_is_made(nodes: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Client(nodes)


def test_a_view_has_other_options_and_the_same_session() -> None:
    client = Client("h", namespace="a", timeout=1)
    view = client.with_options(namespace="b", write_quorum="all")
    assert (view.options.namespace, view.options.write_quorum, view.options.timeout) == ("b", "all", 1)
    assert (client.options.namespace, client.options.write_quorum) == ("a", "quorum")
    assert view.session is client.session
    assert view.engine is client.engine
    assert type(view) is Client
    assert view.with_options(timeout=2).options.namespace == "b"


@pytest.mark.parametrize("name", ["connect_timeout", "max_connections", "colour", "nodes"])
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_view_cannot_change_connections_nor_what_is_no_setting(kind: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"with_options\\(\\) cannot change '{name}'; it knows .*namespace"):
        kind("h").with_options(**{name: 1})


def test_options_of_a_view_are_checked_too() -> None:
    with pytest.raises(ValueError, match="timeout"):
        Client("h").with_options(timeout=0)
    with pytest.raises(InvalidKey):
        Client("h").with_options(namespace="\0")


def test_keys_of_two_namespaces_are_computed_separately() -> None:
    client = Client("h")
    assert client.flight_key("a") == client.flight_key(b"a") == client.with_options(timeout=9).flight_key("a")
    assert client.flight_key("a") != client.with_options(namespace="n").flight_key("a")


def test_keys_come_back_as_text_where_they_are_text() -> None:
    assert key_from_bytes("é".encode()) == "é"
    assert key_from_bytes(b"\xff") == b"\xff"


# -- the search for the cluster -----------------------------------------------------------------------------------


class FakeTime:
    """What a machine's clocks show."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> int:
        return int(self.now * 1000)


@pytest.fixture
def clock() -> FakeTime:
    return FakeTime()


@pytest.fixture
def session(clock: FakeTime) -> Session:
    machine = attrs.evolve(THIS_MACHINE, monotonic=clock.monotonic, wall=clock.wall)
    return Session("h", Configuration(), machine)


def table(name: str = "a", incarnation: int = 1) -> MemberTable:
    member = Member(name=name, address="h:1", boot_id="b", incarnation=incarnation)
    ring = RingState(members=(member.placed(),))
    return MemberTable(Settings(cluster_id="c"), ring, {name: member})


LOST = NoNodesAvailable({"h:7400": "refused"})
NOBODY = QuorumError("get", needed=2, got=0, reasons={}, in_doubt=False)


def test_a_failed_search_is_not_repeated_at_once_but_its_error_is(session: Session, clock: FakeTime) -> None:
    """Else each call of a busy program would spend its whole timeout on nodes that are known to be away."""
    session.check_discovery()
    session.discovery_failed(LOST)
    for _ in range(2):
        with pytest.raises(NoNodesAvailable, match="h:7400: refused") as raised:
            session.check_discovery()
        assert raised.value is not LOST
    clock.now += 0.11
    session.check_discovery()


def test_pauses_between_searches_grow_and_only_one_caller_probes(session: Session, clock: FakeTime) -> None:
    for _ in range(10):
        session.discovery_failed(LOST)
    clock.now += 2.0
    with pytest.raises(NoNodesAvailable):
        session.check_discovery()
    clock.now += 3.1
    session.check_discovery()
    with pytest.raises(NoNodesAvailable):
        session.check_discovery()


def test_a_search_that_succeeds_ends_the_pause_and_makes_the_next_one_short(session: Session, clock: FakeTime) -> None:
    assert session.needs_discovery()
    for _ in range(10):
        session.discovery_failed(LOST)
    session.discovered(table(), "a")
    assert not session.needs_discovery()
    session.check_discovery()
    session.discovery_failed(LOST)
    clock.now += 0.11
    session.check_discovery()


# -- a cluster that is not there any more -----------------------------------------------------------------------------


@pytest.fixture
def deserted(session: Session) -> Session:
    """A client that knows of three nodes, one of which is of another cluster now."""
    session.discovered(make_table(("a", "b", "c")), "a")
    session.topology.foreign("a", "another")
    return session


def in_vain(session: Session, clock: FakeTime, searches: int, pause: float) -> bool:
    """Whether the client has given up its cluster after so many searches, the first of them at once."""
    for number in range(searches):
        clock.now += pause if number else 0.0
        session.discovery_failed(LOST)
    return session.topology.cluster_id() is None


def test_a_cluster_that_is_not_found_for_long_is_given_up_for_another_and_any_is_searched_for_at_once(
    deserted: Session, clock: FakeTime, caplog: pytest.LogCaptureFixture
) -> None:
    assert not in_vain(deserted, clock, 11, (GIVEN_UP_AFTER - 1) / 10)
    with pytest.raises(NoNodesAvailable):
        deserted.check_discovery()
    assert not caplog.messages
    clock.now += 1.1
    assert in_vain(deserted, clock, 1, 0.0)
    deserted.check_discovery()
    assert "no node of cluster kit is found any more, but one of another" in caplog.text


def test_a_few_searches_are_not_enough_however_long_ago_the_first_was(deserted: Session, clock: FakeTime) -> None:
    assert not in_vain(deserted, clock, GIVEN_UP_SEARCHES - 1, 3600.0)
    assert in_vain(deserted, clock, 1, 0.0)


def test_a_sign_of_life_between_two_searches_begins_the_count_anew(deserted: Session, clock: FakeTime) -> None:
    assert not in_vain(deserted, clock, GIVEN_UP_SEARCHES - 1, 3600.0)
    deserted.topology.install(make_table(("a", "b", "c")))  # pushed by a node
    deserted.topology.foreign("a", "another")
    clock.now += 3600.0
    assert not in_vain(deserted, clock, GIVEN_UP_SEARCHES + 1, 1.0)


def test_a_node_with_another_clock_is_a_sign_of_life(deserted: Session, clock: FakeTime) -> None:
    """It said first that it is of this cluster."""
    deserted.books.failed("b", ClockSkew("60 s off"))
    assert not in_vain(deserted, clock, 20, 3600.0)


def test_a_forked_child_counts_its_own_searches(deserted: Session, clock: FakeTime) -> None:
    assert not in_vain(deserted, clock, GIVEN_UP_SEARCHES - 1, 3600.0)
    deserted.after_fork()
    assert not in_vain(deserted, clock, GIVEN_UP_SEARCHES - 1, 3600.0)


def test_the_table_of_another_cluster_is_no_table_found(deserted: Session, clock: FakeTime) -> None:
    found = make_table(("a",), cluster_id="another")
    for _ in range(GIVEN_UP_SEARCHES):
        assert deserted.topology.cluster_id() == "kit"
        with pytest.raises(ClusterMismatch):
            deserted.discovered(found, "a")
        clock.now += GIVEN_UP_AFTER
    deserted.discovered(found, "a")
    assert deserted.topology.cluster_id() == "another"


def test_nobody_is_given_up_for_not_answering(session: Session, clock: FakeTime) -> None:
    session.discovered(make_table(("a", "b", "c")), "a")
    session.topology.foreign("stranger", "another")
    assert not in_vain(session, clock, 20, 3600.0)


# -- when to search ---------------------------------------------------------------------------------------------------


def test_members_of_which_none_answers_are_searched_for_anew_but_not_all_the_time(
    session: Session, clock: FakeTime
) -> None:
    session.discovered(table(), "a")
    session.note(NOBODY)
    assert not session.needs_discovery()
    clock.now += SEARCH_PAUSE * 1.5 + 0.01
    session.note(QuorumError("get", needed=2, got=1, reasons={}, in_doubt=False))
    assert not session.needs_discovery()
    session.note(NOBODY)
    assert session.needs_discovery()
    session.discovered(table(), "a")
    assert not session.needs_discovery()
    assert session.counters.errors == 3


def test_a_view_makes_its_context_once_per_table(session: Session) -> None:
    session.discovered(table(), "a")
    view = View(session, Configuration())
    first = view.context()
    assert view.context() is first
    session.discovered(table(incarnation=2), "a")
    assert view.context() is not first


def test_a_closed_session_says_so(session: Session) -> None:
    session.check_open()
    session.discovered(table(), "a")
    session.closed = True
    assert session.needs_discovery()
    with pytest.raises(ClientClosed):
        session.check_open()


def test_doing_without_the_cache_is_counted_always_and_logged_once(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dcache.client"):
        session.complain(LOST)
        session.complain(LOST)
        session.works_again()
        session.complain(LOST)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert session.counters.computed_without_cache == 3


def test_every_counter_is_explained(session: Session) -> None:
    text = (Path(dcache.__file__).parent.parent / "docs" / "api.md").read_text()
    table = text.partition("| counter of a client |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) == set(attrs.asdict(session.counters))


# -- forks --------------------------------------------------------------------------------------------------------


def test_a_forked_session_is_another_writer_and_trusts_no_failure_of_its_parent(session: Session) -> None:
    before = session.shared.clock.stamp()
    session.discovery_failed(LOST)
    session.after_fork()
    assert session.shared.clock.stamp()[-4:] != before[-4:]
    session.check_discovery()


class Forked:
    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.told = name, told

    def after_fork(self) -> None:
        self.told.append(self.name)


def test_clients_are_told_of_forks_while_they_live() -> None:
    told: list[str] = []
    kept, dropped = Forked("kept", told), Forked("dropped", told)
    reset_after_fork(kept)
    reset_after_fork(dropped)
    del dropped
    gc.collect()
    _in_child()
    assert told == ["kept"]


FORK = """
import os
from dcache import AsyncClient, Client
client, other = Client("127.0.0.1:1"), AsyncClient("127.0.0.1:1")
engines = (client.engine, other.engine)
before = [engine.session.shared.clock.stamp()[-4:] for engine in engines]
child = os.fork()
same = [engine.session.shared.clock.stamp()[-4:] == writer for engine, writer in zip(engines, before)]
if child == 0:
    os._exit(0 if same == [False, False] else 1)
print(same, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_real_fork_makes_new_writers_in_the_child_and_keeps_the_parents() -> None:
    source = str(Path(dcache.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", FORK],
        check=False,
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
    )
    assert (done.stdout.strip(), done.stderr) == ("[True, True] 0", "")
