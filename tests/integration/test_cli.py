"""The `dcache` command against real nodes: what it prints, as text and as JSON, and the status it ends with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dcache.cli.program import program
from dcache.client.sync import Client
from dcache.ring import SLOTS
from dcache.testing import LocalCluster
from dcache.testing.cluster import asked, wait_for

Dcache = Callable[..., Result]


def command(nodes: tuple[str, ...]) -> Dcache:
    def invoke(*words: str, input: str | bytes | None = None, **environ: str) -> Result:
        return CliRunner().invoke(program, words, input=input, env={"DCACHE_NODES": ",".join(nodes), **environ})

    return invoke


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(3) as cluster:
        cluster.wait_until_stable()
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with cluster.client(timeout=5.0) as client:
        client.wait_ready()
        client.clear()
        yield client


@pytest.fixture
def dcache(cluster: LocalCluster, client: Client) -> Dcache:
    return command(cluster.addresses)


@pytest.fixture
def shaken() -> Iterator[LocalCluster]:
    """A cluster of its own, for a test that kills nodes."""
    with LocalCluster(3) as cluster, cluster.client(timeout=5.0) as client:
        client.wait_ready()
        yield cluster


def told(result: Result, status: int = 0) -> Any:
    """The one JSON document on standard output."""
    assert result.exit_code == status, result.output
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def one_line(result: Result, status: int) -> str:
    """The one line on standard error, with nothing on standard output."""
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


# -- one key ----------------------------------------------------------------------------------------------------------


def test_what_was_set_is_got_as_text(dcache: Dcache, client: Client) -> None:
    assert dcache("set", "k", "[bold]värde[/bold]").exit_code == 0
    assert client.get("k") == "[bold]värde[/bold]"
    assert dcache("get", "k").stdout == "[bold]värde[/bold]\n"


def test_set_takes_a_lifetime(dcache: Dcache, client: Client) -> None:
    assert dcache("set", "k", "v", "--ttl", "90").exit_code == 0
    remaining = client.ttl("k")
    assert remaining is not None
    assert 60 < remaining <= 90


def test_an_integer_can_be_stored_to_be_counted_with(dcache: Dcache, client: Client) -> None:
    assert dcache("set", "--int", "--", "n", "-5").exit_code == 0
    assert client.incr("n") == -4
    assert dcache("get", "n").stdout == "-4\n"


def test_a_value_comes_from_standard_input_exactly_as_it_is(dcache: Dcache, client: Client) -> None:
    assert dcache("set", "text", "-", input="two\nlines\n").exit_code == 0
    assert dcache("set", "binary", "-", input=b"\xff\x00\n").exit_code == 0
    assert client.get_many(["text", "binary"]) == {"text": "two\nlines\n", "binary": b"\xff\x00\n"}


def test_bytes_are_printed_as_they_are_and_other_values_as_python_writes_them(dcache: Dcache, client: Client) -> None:
    client.set("binary", b"\xff\x00")
    client.set("tuple", (1, None))
    assert dcache("get", "binary").stdout_bytes == b"\xff\x00"
    assert dcache("get", "tuple").stdout == "(1, None)\n"


def test_a_miss_prints_nothing_and_ends_with_1(dcache: Dcache) -> None:
    result = dcache("get", "nothing")
    assert (result.exit_code, result.output) == (1, "")


def test_what_cannot_be_read_is_a_miss_that_says_so(dcache: Dcache, client: Client) -> None:
    client.with_options(serializer="pickle").set("k", {1, 2})
    assert "cannot be read" in one_line(dcache("get", "k"), 1)


def test_delete_ends_with_0_if_the_key_was_there_and_1_if_not(dcache: Dcache, client: Client) -> None:
    client.set("k", 1)
    assert dcache("delete", "k").exit_code == 0
    assert client.exists("k") is False
    assert dcache("delete", "k").exit_code == 1


def test_keys_and_values_that_are_not_text_are_the_bytes_that_were_typed(dcache: Dcache, client: Client) -> None:
    assert dcache("set", "k\udcff", "v\udcff").exit_code == 0
    assert client.get(b"k\xff") == b"v\xff"
    assert told(dcache("--json", "get", "k\udcff"))["encoding"] == "base64"
    assert dcache("ring", "k\udcff").exit_code == 0
    assert dcache("delete", "k\udcff").exit_code == 0


def test_keys_of_another_namespace_are_others(dcache: Dcache, client: Client) -> None:
    assert dcache("--namespace", "mine", "set", "k", "v").exit_code == 0
    assert dcache("get", "k").exit_code == 1
    assert dcache("--namespace", "mine", "get", "k").stdout == "v\n"
    client.with_options(namespace="mine").clear()


def test_single_keys_in_json(dcache: Dcache, client: Client) -> None:
    stored = told(dcache("--json", "set", "k", "v"))
    assert stored == {"key": "k", "stored": True, "version": stored["version"]}
    found = told(dcache("--json", "get", "k"))
    assert found == {
        "key": "k",
        "found": True,
        "value": "v",
        "encoding": "json",
        "version": stored["version"],
        "ttl": None,
    }
    assert told(dcache("--json", "delete", "k")) == {"key": "k", "deleted": True}
    assert told(dcache("--json", "delete", "k"), 1) == {"key": "k", "deleted": False}
    assert told(dcache("--json", "get", "k"), 1) == {"key": "k", "found": False}


# -- the cluster ------------------------------------------------------------------------------------------------------


def test_ping_tells_the_round_trip_of_every_member(dcache: Dcache, cluster: LocalCluster) -> None:
    text = dcache("ping")
    assert text.exit_code == 0
    assert all(address in text.stdout for address in cluster.addresses)
    seconds = told(dcache("--json", "ping"))
    assert set(seconds) == set(cluster.addresses)
    assert all(0 < took < 5 for took in seconds.values())


def test_members_are_listed_with_what_the_table_says_of_them(dcache: Dcache, cluster: LocalCluster) -> None:
    assert all(address in dcache("members").stdout for address in cluster.addresses)
    seen = told(dcache("--json", "members"))
    rows = seen["members"]
    assert [row["name"] for row in rows] == sorted(cluster.addresses)
    assert {(row["health"], row["on_ring"], row["place"], row["weight"]) for row in rows} == {("up", True, "yes", 1.0)}
    assert {(row["slots"], row["slots_complete"]) for row in rows} == {(SLOTS, SLOTS)}
    assert (seen["changing"], seen["epoch"]) == (False, 1)
    assert f"100 % of {SLOTS:,}" in dcache("members").stdout


def test_the_ring_tells_who_owns_what_share(dcache: Dcache, cluster: LocalCluster) -> None:
    ring = told(dcache("--json", "ring"))
    assert (ring["slots"], ring["replicas"]) == (SLOTS, 3)
    assert set(ring["nodes"]) == set(cluster.addresses)
    assert sum(share["first_owner"] for share in ring["nodes"].values()) == pytest.approx(1.0)
    assert {share["owner"] for share in ring["nodes"].values()} == {1.0}  # three owners of three nodes
    text = dcache("ring").stdout
    assert all(f"{share['first_owner']:.1%}" in text for share in ring["nodes"].values())


def test_the_ring_of_a_key_tells_what_each_owner_holds(dcache: Dcache, cluster: LocalCluster, client: Client) -> None:
    version = client.set("k", "v", ttl=90)
    told_of = told(dcache("--json", "ring", "k"))
    assert 0 <= told_of["slot"] < SLOTS
    assert {owner["node"] for owner in told_of["owners"]} == set(cluster.addresses)
    held = [owner for owner in told_of["owners"] if owner["held"]]
    assert len(held) >= 2
    assert {owner["version"] for owner in held} == {version.hex()}
    assert all(60 < owner["ttl"] <= 90 for owner in held)
    text = dcache("ring", "k")
    assert text.exit_code == 0
    assert f"slot {told_of['slot']}" in text.stdout
    assert version.hex() in text.stdout


def test_looking_who_holds_a_key_is_no_use_of_it(dcache: Dcache, client: Client) -> None:
    client.set("k", "v")
    before = {name: about["hits"] for name, about in client.stats()["nodes"].items()}
    dcache("ring", "k")
    assert {name: about["hits"] for name, about in client.stats()["nodes"].items()} == before


def test_the_ring_of_a_key_that_nobody_holds_tells_the_owners_and_ends_with_1(dcache: Dcache) -> None:
    owners = told(dcache("--json", "ring", "nothing"), 1)["owners"]
    assert [owner["held"] for owner in owners] == [False] * 3
    assert dcache("ring", "nothing").exit_code == 1


def test_statistics_come_from_every_node(dcache: Dcache, cluster: LocalCluster, client: Client) -> None:
    client.with_options(write_quorum="all").set("k", "v")
    nodes = told(dcache("--json", "stats"))["nodes"]
    assert set(nodes) == set(cluster.addresses)
    assert all(about["entries"] >= 1 and about["writes"] >= 1 for about in nodes.values())
    text = dcache("stats").stdout
    assert all(address in text for address in cluster.addresses)


def test_one_address_is_enough_to_find_all_nodes(cluster: LocalCluster) -> None:
    assert set(told(command(cluster.addresses[:1])("--json", "ping"))) == set(cluster.addresses)


def test_the_option_wins_over_the_environment(dcache: Dcache, cluster: LocalCluster) -> None:
    assert dcache("--nodes", cluster.addresses[0], "ping", DCACHE_NODES="127.0.0.1:1").exit_code == 0


# -- misuse and trouble -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("unknown",),
        ("get",),
        ("get", ""),
        ("get", "x" * 1025),
        ("set", "k", "v", "--ttl", "0"),
        ("set", "k", "v", "--ttl", "nan"),
        ("set", "k", "v", "--int"),
        ("set", "k", "x" * (1 << 20) + "x"),
        ("--timeout", "0", "ping"),
        ("--timeout", "nan", "ping"),
        ("--nodes", "", "ping"),
        ("--nodes", "host:port", "ping"),
        ("--namespace", "n" * 256, "get", "k"),
        ("--namespace", "\udcff", "get", "k"),
        ("demo", "--modules", "1"),
        ("leave",),
        ("leave", "nobody"),
        ("forget",),
        ("forget", "nobody"),
        ("leave", "x", "--timeout", "0"),
    ],
    ids=lambda words: ascii(" ".join(words))[:40],
)
def test_what_makes_no_sense_ends_with_2(dcache: Dcache, words: tuple[str, ...]) -> None:
    result = dcache(*words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr


@pytest.mark.parametrize(
    "words",
    [
        *[("get", "k"), ("set", "k", "v"), ("delete", "k")],
        *[("ping",), ("members",), ("ring",), ("ring", "k"), ("stats",)],
        *[("leave", "x"), ("forget", "x"), ("repair",), ("repair", "--watch"), ("verify",)],
    ],
)
def test_without_a_node_every_command_ends_with_3_and_says_why(words: tuple[str, ...]) -> None:
    nowhere = command(("127.0.0.1:1",))
    assert "127.0.0.1:1" in one_line(nowhere(*words), 3)
    error = json.loads(one_line(nowhere("--json", *words), 3))
    assert error["kind"] == "NoNodesAvailable"
    assert "127.0.0.1:1" in error["error"]


def test_a_dead_node_is_told_of_and_a_dead_majority_is_trouble(shaken: LocalCluster) -> None:
    dcache = command(shaken.addresses)
    dead = shaken.addresses[0]
    assert dcache("set", "k", "v").exit_code == 0
    shaken.kill(0)
    assert dcache("get", "k").stdout == "v\n"
    assert told(dcache("--json", "ping"), 3)[dead] is None
    text = dcache("ping")
    assert (text.exit_code, text.stderr) == (3, "dcache: 1 of 3 members do not answer\n")
    assert "error" in told(dcache("--json", "stats"))["nodes"][dead]
    assert "no answer" in dcache("stats").stdout
    owners = {owner["node"]: owner for owner in told(dcache("--json", "ring", "k"))["owners"]}
    assert "error" in owners[dead]
    assert sum(owner.get("held", False) for owner in owners.values()) == 2
    shaken.kill(1)
    assert json.loads(one_line(dcache("--json", "get", "k"), 3))["kind"] == "QuorumError"


# -- changes of the ring, and repair ----------------------------------------------------------------------------------


@pytest.fixture
def four() -> Iterator[LocalCluster]:
    """Four nodes, so that one can go and each key has three owners still."""
    with LocalCluster(4) as cluster, cluster.client(timeout=5.0) as client:
        client.wait_ready()
        yield cluster


def test_a_member_leaves_when_told_to_and_ends(four: LocalCluster) -> None:
    dcache = command(four.addresses)
    gone, *others = four.addresses
    result = told(dcache("--json", "leave", gone))
    assert (result["left"], result["done"], result["members"]) == ([gone], True, sorted(others))
    assert four.nodes[0].wait() == 0
    assert [row["name"] for row in told(dcache("--json", "members"))["members"]] == sorted(others)
    assert f"no member is called {gone}" in one_line(dcache("leave", gone), 2)


def test_leaving_need_not_be_waited_for(four: LocalCluster) -> None:
    result = command(four.addresses)("leave", four.addresses[0], "--no-wait")
    assert result.exit_code == 0
    assert four.nodes[0].wait() == 0


def test_dead_members_are_forgotten_and_others_are_not(four: LocalCluster) -> None:
    dcache = command(four.addresses)
    dead, alive = four.addresses[0], four.addresses[1]
    assert f"{alive} is up: use dcache leave" in one_line(dcache("forget", alive), 2)
    four.kill(0)
    assert f"dcache forget {dead}" in one_line(dcache("leave", dead), 2)
    text = dcache("forget", dead)
    assert text.exit_code == 0, text.output
    assert f"{dead} is forgotten" in text.stdout
    rows = told(dcache("--json", "members"))["members"]
    assert sorted(row["name"] for row in rows) == sorted(four.addresses[1:])


def test_without_a_majority_nobody_can_be_forgotten(shaken: LocalCluster) -> None:
    dcache = command(shaken.addresses)
    shaken.kill(0)
    shaken.kill(1)
    line = one_line(dcache("--timeout", "1", "forget", shaken.addresses[0]), 3)
    assert "forget: a majority of members must agree: 1 of 2 needed answers" in line
    assert json.loads(one_line(dcache("--json", "forget", shaken.addresses[0]), 3))["kind"] == "QuorumError"


def test_a_change_that_takes_too_long_says_what_it_waits_for(shaken: LocalCluster) -> None:
    """A node that has just died is not known to be down yet."""
    dcache = command(shaken.addresses)
    shaken.kill(0)
    line = one_line(dcache("forget", shaken.addresses[0], "--timeout", "0.001"), 3)
    assert "forget: not done within 0.001 s: not yet known to be down" in line


def test_the_last_member_cannot_leave() -> None:
    with LocalCluster(1) as cluster, cluster.client(timeout=5.0) as client:
        client.wait_ready()
        (only,) = cluster.addresses
        assert f"{only} is the only member" in one_line(command(cluster.addresses)("leave", only), 2)


def test_a_member_that_is_down_and_incomplete_is_shown_to_be(shaken: LocalCluster) -> None:
    dcache, dead = command(shaken.addresses), shaken.addresses[0]
    shaken.kill(0)
    wait_for(lambda: row_of(dcache, dead)["health"] == "down", "it to be down", lambda: "")
    assert row_of(dcache, dead)["slots_complete"] is None
    assert "down" in dcache("members").stdout
    shaken.restart(0)
    shaken.wait_until_complete()
    assert (row_of(dcache, dead)["health"], row_of(dcache, dead)["slots_complete"]) == ("up", SLOTS)


def row_of(dcache: Dcache, name: str) -> dict[str, Any]:
    (found,) = (row for row in told(dcache("--json", "members"))["members"] if row["name"] == name)
    assert isinstance(found, dict)
    return found


def test_repair_is_asked_of_all_nodes_and_can_be_watched(dcache: Dcache, cluster: LocalCluster, client: Client) -> None:
    client.set("k", "v")
    asked = told(dcache("--json", "repair"))
    assert (asked["told"], asked["silent"]) == (sorted(cluster.addresses), [])
    watched = told(dcache("--json", "repair", "--watch"))
    assert set(watched["nodes"]) == set(cluster.addresses)
    assert all(about["slots_complete"] == about["slots"] == SLOTS for about in watched["nodes"].values())
    assert all(about["repair_rounds"] > 0 for about in watched["nodes"].values())
    assert all(address in dcache("repair", "--watch").stdout for address in cluster.addresses)


def test_replicas_that_agree_are_verified(dcache: Dcache, cluster: LocalCluster, client: Client) -> None:
    client.set_many({f"k{number}": number for number in range(100)})
    report = told(dcache("--json", "verify"))
    assert (report["agree"], report["slots"], report["differences"]) == (True, SLOTS, [])
    assert report["entries"].keys() == set(cluster.addresses)
    text = dcache("verify")
    assert text.exit_code == 0
    assert "0 keys differ" in text.stdout


def put_at_one(client: Client, address: str, key: bytes) -> None:
    """Store a record at one owner behind the back of the others."""
    table = client.session.topology.table
    assert table is not None
    stamp = client.session.shared.clock.stamp()
    assert asked(address, "copy", table.fingerprint, b"", key, stamp, b"\xa1v", 0, None) is not None


def test_replicas_that_differ_are_found_and_mended() -> None:
    """The nodes themselves would find out only later."""
    with LocalCluster(3, repair_interval=3600) as cluster, cluster.client(timeout=5.0) as client:
        client.wait_ready()
        dcache = command(cluster.addresses)
        put_at_one(client, cluster.addresses[0], b"lonely")
        report = told(dcache("--json", "verify"), 1)
        (found,) = report["differences"]
        assert (found["key"], found["mendable"]) == ("lonely", True)
        assert sorted(found["missing"]) == sorted(cluster.addresses[1:])
        assert "lonely" in dcache("verify").stdout
        assert told(dcache("--json", "verify", "--repair"))["agree"] is True
        assert told(dcache("--json", "verify"))["differences"] == []


def test_a_node_that_does_not_answer_cannot_be_verified(shaken: LocalCluster) -> None:
    shaken.kill(0)
    report = told(command(shaken.addresses)("--json", "verify"), 3)
    assert list(report["silent"]) == [shaken.addresses[0]]
