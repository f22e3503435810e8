"""Tables that heard the same things are the same table, in whatever order and however often they heard them."""

from __future__ import annotations

import itertools
import math
import random
from functools import reduce
from typing import Any

import attrs
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dcache.errors import ClusterMismatch, ProtocolError
from dcache.membership import (
    INCARNATION_CEILING,
    Health,
    Member,
    MemberTable,
    RingState,
    Settings,
    check_settings,
    format_address,
    parse_address,
)
from dcache.ring import HashRing, RingNode
from dcache.wire import Decoder, Limits, encode_notification

SETTINGS = Settings("cluster-1")

# Few values for everything, so that tables often speak of the same member and often disagree in one thing only.
names = st.sampled_from(["a", "b", "c", "d"])
zones = st.sampled_from(["", "z1", "z2"])
weights = st.sampled_from([0.5, 1.0, 2.0])
rows = st.builds(
    Member,
    name=names,
    address=st.sampled_from(["h1:7400", "h2:7400", "[::1]:7401"]),
    zone=zones,
    weight=weights,
    boot_id=st.sampled_from(["", "boot-1", "boot-2"]),
    incarnation=st.integers(0, 2),
    health=st.sampled_from(Health),
)
placed = st.lists(
    st.builds(RingNode, names, weights, zones, st.sampled_from(["", "h1"])),
    max_size=3,
    unique_by=lambda node: node.name,
).map(tuple)
ring_states = st.builds(
    RingState,
    epoch=st.integers(0, 2),
    members=placed,
    next=st.none() | placed,
).flatmap(lambda state: st.sampled_from([state, attrs.evolve(state, forgotten=bool(state.going))]))
members = st.lists(rows, max_size=4).map(lambda found: {row.name: row for row in found})


def made(settings: Settings, state: RingState, heard: dict[str, Member]) -> MemberTable:
    """A table as all are: with rows for none but those on a ring."""
    return MemberTable(settings, state, {name: row for name, row in heard.items() if name in state.names})


tables = st.builds(made, st.just(SETTINGS), ring_states, members)

# What came of agreement: one state for each epoch.
HISTORY = [
    RingState(epoch, tuple(map(RingNode, now)), None if coming is None else tuple(map(RingNode, coming)))
    for epoch, (now, coming) in enumerate([("ab", None), ("ab", "abc"), ("abc", None), ("abc", "bc"), ("bc", None)])
]
agreed_tables = st.builds(made, st.just(SETTINGS), st.sampled_from(HISTORY), members)
any_settings = st.builds(
    Settings, st.sampled_from(["c1", "c2"]), st.integers(1, 2), st.integers(1, 2), st.integers(0, 1)
)

ME = Member("me", "me:7400", boot_id="boot", incarnation=5)

FINGERPRINT = "58d4907873cd8b57"
DIGEST = "97bb93fe93d2d2dc59619b144050f2e7"


ON_RING = RingState(1, tuple(RingNode(name) for name in ("a", "b", "me")))


def table_of(*members: Member) -> MemberTable:
    return MemberTable(SETTINGS, ON_RING, {row.name: row for row in members})


def over_the_wire(table: MemberTable) -> MemberTable:
    decoder = Decoder(Limits().max_frame, Limits().max_batch)
    decoder.feed(encode_notification("table", [table.to_wire()]))
    ((_, _, params),) = decoder.messages()
    return MemberTable.from_wire(params[0])


# Merging


@given(tables, tables)
def test_merging_is_commutative(one: MemberTable, other: MemberTable) -> None:
    assert one.merge(other) == other.merge(one)


@given(agreed_tables, agreed_tables, agreed_tables)
def test_merging_is_associative(one: MemberTable, other: MemberTable, third: MemberTable) -> None:
    assert one.merge(other).merge(third) == one.merge(other.merge(third))


@given(tables, tables)
def test_hearing_something_again_changes_nothing(one: MemberTable, other: MemberTable) -> None:
    """The very same table is given back, so `is` tells whether there was any news."""
    assert one.merge(one) is one
    merged = one.merge(other)
    assert merged.merge(other) is merged
    assert merged.merge(one) is merged


@given(st.lists(agreed_tables, min_size=1, max_size=5), st.data())
def test_any_order_and_any_repetition_of_tables_lead_to_one_digest(
    heard: list[MemberTable], data: st.DataObject
) -> None:
    again = data.draw(st.lists(st.sampled_from(heard), max_size=5))
    shuffled = data.draw(st.permutations([*heard, *again]))
    ours, theirs = reduce(MemberTable.merge, heard), reduce(MemberTable.merge, shuffled)
    assert ours == theirs
    assert (ours.digest, ours.fingerprint) == (theirs.digest, theirs.fingerprint)


@given(st.lists(agreed_tables, min_size=2, max_size=5), st.integers(0, 2**32))
def test_nodes_that_gossip_in_pairs_converge(held: list[MemberTable], seed: int) -> None:
    """Whoever talks to whom, once everybody has met everybody all hold the merge of what each began with."""
    everything = reduce(MemberTable.merge, held)
    meetings = list(itertools.permutations(range(len(held)), 2)) * len(held)
    random.Random(seed).shuffle(meetings)
    for one, other in [*meetings, *itertools.permutations(range(len(held)), 2)]:
        held[one] = held[other] = held[one].merge(held[other])
    assert {table.digest for table in held} == {everything.digest}


@given(st.lists(tables, min_size=2, max_size=4), st.integers(0, 2**32))
def test_nodes_that_gossip_in_pairs_converge_also_on_who_went_and_returned(held: list[MemberTable], seed: int) -> None:
    """On which of its rows is a matter of order then; the member itself puts a wrong one right."""
    meetings = list(itertools.permutations(range(len(held)), 2)) * 2 * len(held)
    random.Random(seed).shuffle(meetings)
    for one, other in [*meetings, *itertools.permutations(range(len(held)), 2)]:
        held[one] = held[other] = held[one].merge(held[other])
    assert len({table.digest for table in held}) == 1


def test_neither_table_is_changed_by_a_merge() -> None:
    one, other = table_of(ME), table_of(Member("b", "b:7400"))
    assert sorted(one.merge(other).members) == ["b", "me"]
    assert (list(one.members), list(other.members)) == (["me"], ["b"])


@pytest.mark.parametrize(
    ("stands", "falls"),
    [
        ({"incarnation": 6}, {"incarnation": 5}),
        ({"incarnation": 6, "health": Health.UP}, {"incarnation": 5, "health": Health.DOWN}),
        ({"health": Health.DOWN}, {"health": Health.UP}),
        ({"health": Health.DOWN, "boot_id": "a"}, {"health": Health.UP, "boot_id": "b"}),
    ],
)
def test_the_higher_incarnation_stands_and_at_equal_ones_the_graver_health(
    stands: dict[str, Any], falls: dict[str, Any]
) -> None:
    winner, loser = attrs.evolve(ME, **stands), attrs.evolve(ME, **falls)
    assert table_of(loser).merge(table_of(winner)).members == {"me": winner}
    assert table_of(winner).merge(table_of(loser)).members == {"me": winner}


def test_the_ring_state_of_the_later_epoch_stands() -> None:
    older = MemberTable(SETTINGS, RingState(1, (RingNode("z"),), (RingNode("y"),)))
    newer = MemberTable(SETTINGS, RingState(2, (RingNode("a"),)))
    assert older.merge(newer).ring_state == newer.merge(older).ring_state == newer.ring_state


def test_two_states_of_one_epoch_that_differ_only_in_what_comes_next_still_merge() -> None:
    one, other = (MemberTable(SETTINGS, RingState(0, (), coming)) for coming in (None, (RingNode("a"),)))
    assert one.merge(other) == other.merge(one)


def test_who_is_on_no_ring_any_more_has_no_row() -> None:
    before = MemberTable(
        SETTINGS, RingState(1, (RingNode("a"), RingNode("me"))), {"me": ME, "a": Member("a", "a:7400")}
    )
    after = MemberTable(SETTINGS, RingState(2, (RingNode("a"),)), {"a": Member("a", "a:7400")})
    assert before.merge(after) == after.merge(before) == after


def test_who_is_on_the_next_ring_alone_has_a_row() -> None:
    table = MemberTable(SETTINGS, RingState(1, (RingNode("a"),), (RingNode("a"), RingNode("me"))), {"me": ME})
    assert table.merge(table).members == over_the_wire(table).members == {"me": ME}


# Settings


OTHER_SETTINGS = {"cluster_id": "cluster-2", "replicas": 2, "vnodes": 10, "ring_seed": 7}


def test_every_setting_has_a_case_here() -> None:
    assert [field.name for field in attrs.fields(Settings)] == list(OTHER_SETTINGS)


@pytest.mark.parametrize(("field", "value"), OTHER_SETTINGS.items())
def test_tables_with_other_settings_do_not_merge_and_the_error_says_what_differs(field: str, value: Any) -> None:
    other = attrs.evolve(SETTINGS, **{field: value})
    with pytest.raises(ClusterMismatch, match=rf"{field} is {value!r} there and {getattr(SETTINGS, field)!r} here"):
        MemberTable(SETTINGS).merge(MemberTable(other))
    with pytest.raises(ClusterMismatch, match=field):
        check_settings(SETTINGS, other)


def test_equal_settings_pass() -> None:
    check_settings(SETTINGS, Settings("cluster-1"))


@pytest.mark.parametrize(
    ("field", "value"), [("replicas", 0), ("vnodes", 0), ("vnodes", 10_001), ("ring_seed", -1), ("ring_seed", 2**32)]
)
def test_settings_that_make_no_sense_are_refused(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=field):
        Settings("cluster-1", **{field: value})


# Refutation


@given(tables, rows)
def test_what_a_node_says_of_itself_stands_against_all_that_was_said_of_it(heard: MemberTable, me: Member) -> None:
    assume(me.name in heard.ring_state.names)
    table, raised = heard.refuting(me)
    assert table.members[me.name] == raised
    assert attrs.evolve(raised, incarnation=me.incarnation) == me
    assert raised.incarnation >= me.incarnation
    assert heard.merge(table).members[me.name] == raised
    others = {name: row for name, row in heard.members.items() if name != me.name}
    assert {name: row for name, row in table.members.items() if name != me.name} == others


@given(tables, rows)
def test_what_was_refuted_once_needs_no_second_time(heard: MemberTable, me: Member) -> None:
    table, raised = heard.refuting(me)
    again, still = table.refuting(raised)
    assert again is table
    assert still is raised


def test_who_is_on_no_ring_puts_itself_into_no_table() -> None:
    stranger = Member("z", "z:7400")
    assert table_of(ME).refuting(stranger) == (table_of(ME), stranger)


def test_a_row_that_cannot_be_outranked_is_left_and_breaks_nothing() -> None:
    poison = attrs.evolve(ME, incarnation=INCARNATION_CEILING - 1, health=Health.DOWN)
    assert table_of(poison).refuting(ME) == (table_of(poison), ME)


def test_a_node_called_down_is_up_again_with_a_higher_incarnation() -> None:
    table, raised = table_of(attrs.evolve(ME, health=Health.DOWN)).refuting(ME)
    assert raised == attrs.evolve(ME, incarnation=6)
    assert table.members == {"me": raised}


def test_a_node_that_started_again_outranks_its_former_self() -> None:
    """Even where the wall clock, from which incarnations start, stands behind what it was."""
    former = attrs.evolve(ME, boot_id="zzz", incarnation=900)
    table, raised = table_of(former).refuting(ME)
    assert raised == attrs.evolve(ME, incarnation=901)
    assert table_of(former).merge(table).members == {"me": raised}


def test_nothing_false_needs_no_raise() -> None:
    assert table_of().refuting(ME) == (table_of(ME), ME)
    assert table_of(attrs.evolve(ME, incarnation=3)).refuting(ME) == (table_of(ME), ME)


# Fingerprint and digest


@given(st.builds(MemberTable, any_settings, ring_states, members), any_settings, ring_states, members)
def test_the_fingerprint_changes_when_and_only_when_settings_or_ring_state_do(
    one: MemberTable, settings: Settings, state: RingState, rows: dict[str, Member]
) -> None:
    for other in (MemberTable(s, r, rows) for s in (settings, one.settings) for r in (state, one.ring_state)):
        same = (one.settings, one.ring_state) == (other.settings, other.ring_state)
        assert (one.fingerprint == other.fingerprint) == same


@given(tables, rows)
def test_no_row_ever_changes_the_fingerprint(table: MemberTable, row: Member) -> None:
    assert table.with_member(row).fingerprint == table.fingerprint


@pytest.mark.parametrize(("field", "value"), OTHER_SETTINGS.items())
def test_every_setting_is_in_the_fingerprint(field: str, value: Any) -> None:
    other = attrs.evolve(SETTINGS, **{field: value})
    assert MemberTable(SETTINGS).fingerprint != MemberTable(other).fingerprint


def test_every_trait_of_every_node_of_both_rings_is_in_the_fingerprint() -> None:
    node = RingNode("a", 1.0, "z", "h")
    changed = [
        attrs.evolve(node, **{key: new}) for key, new in {"name": "b", "weight": 2, "zone": "y", "host": "i"}.items()
    ]
    states = [RingState(), RingState(1), RingState(next=())]
    for each in (node, *changed):
        states += [RingState(members=(each,)), RingState(next=(each,))]
    assert len({MemberTable(SETTINGS, state).fingerprint for state in states}) == len(states)


@given(tables, tables)
def test_digests_are_equal_exactly_when_tables_are(one: MemberTable, other: MemberTable) -> None:
    assert (one.digest == other.digest) == (one == other)


@given(tables)
def test_the_order_in_which_rows_were_heard_is_not_in_the_digest(table: MemberTable) -> None:
    backwards = dict(reversed(table.members.items()))
    assert attrs.evolve(table, members=backwards).digest == table.digest


def test_fingerprint_and_digest_are_the_same_in_every_process_and_version() -> None:
    """Written down once: were they to change, nodes of two versions would refuse each other's clients."""
    state = RingState(123, (RingNode("a", 1.5, "z", "h"), RingNode("b")), (RingNode("a"),))
    table = MemberTable(SETTINGS, state, {"me": ME})
    assert table.fingerprint.hex() == FINGERPRINT
    assert table.digest.hex() == DIGEST


def test_whether_a_member_is_forgotten_is_in_the_fingerprint() -> None:
    """Owners act on it, so all must have heard of it that answer together."""
    leaving = RingState(1, (RingNode("a"), RingNode("b")), (RingNode("a"),))
    states = (leaving, attrs.evolve(leaving, forgotten=True))
    assert len({MemberTable(SETTINGS, state).fingerprint for state in states}) == 2


def test_who_goes_is_on_the_ring_and_not_on_the_next_one() -> None:
    assert RingState(1, (RingNode("a"), RingNode("b")), (RingNode("a"),)).going == {"b"}
    assert RingState(1, (RingNode("a"),), (RingNode("a"), RingNode("b"))).going == frozenset()
    assert RingState(1, (RingNode("a"),)).going == frozenset()


# The ring


def test_the_ring_is_built_from_the_ring_state_and_the_settings_and_not_from_rows() -> None:
    settings = Settings("c", vnodes=7, ring_seed=3)
    state = RingState(members=(RingNode("b"), RingNode("a", 2.0)), next=(RingNode("c"),))
    table = MemberTable(settings, state, {"me": ME})
    assert table.ring == HashRing([RingNode("a", 2.0), RingNode("b")], vnodes=7, seed=3)
    assert table.ring is table.ring


def test_a_member_is_placed_by_name_weight_zone_and_the_host_it_is_reached_at() -> None:
    member = Member("n", "[fe80::1]:7400", zone="z", weight=2, boot_id="b", incarnation=3, health=Health.DOWN)
    assert member.placed() == RingNode("n", 2.0, "z", "fe80::1")


@pytest.mark.parametrize(
    "wrong", [{"name": ""}, {"weight": 0}, {"weight": math.inf}, {"weight": 1e12}, {"incarnation": -1}, {"health": 2}]
)
def test_a_member_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"name|weight|incarnation|Health"):
        attrs.evolve(ME, **wrong)


# The wire


@given(tables)
def test_a_table_survives_the_wire(table: MemberTable) -> None:
    received = over_the_wire(table)
    assert received == table
    assert received.to_wire() == table.to_wire()
    assert (received.digest, received.fingerprint) == (table.digest, table.fingerprint)


FULL = MemberTable(
    SETTINGS,
    RingState(7, (RingNode("a"), RingNode("b", 2.0, "z", "h")), (RingNode("a"),), forgotten=True),
    {"a": Member("a", "a:7400"), "b": Member("b", "b:7400")},
)

garbage = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=13),
    lambda inner: st.lists(inner, max_size=5).map(tuple) | st.dictionaries(st.text(max_size=2), inner, max_size=4),
    max_leaves=15,
)


def usable(table: MemberTable) -> bool:
    """Whether a table that was let in can be compared, sent on and merged."""
    return over_the_wire(table) == table and table.merge(table) is table and len(table.fingerprint) == 8


@given(garbage)
def test_garbage_is_a_protocol_error(data: Any) -> None:
    try:
        table = MemberTable.from_wire(data)
    except ProtocolError:
        return
    assert usable(table)


def places(data: Any, path: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """The path to everything in a tree of tuples and lists."""
    if not isinstance(data, (tuple, list)):
        return [path]
    return [path, *(found for index, part in enumerate(data) for found in places(part, (*path, index)))]


def replaced(data: Any, path: tuple[int, ...], new: Any) -> Any:
    if not path:
        return new
    return tuple(replaced(part, path[1:], new) if index == path[0] else part for index, part in enumerate(data))


@given(st.sampled_from(places(FULL.to_wire())), garbage)
def test_a_table_with_garbage_in_one_place_is_a_protocol_error_or_a_sound_table(
    path: tuple[int, ...], new: Any
) -> None:
    try:
        table = MemberTable.from_wire(replaced(FULL.to_wire(), path, new))
    except ProtocolError:
        return
    assert usable(table)


@pytest.mark.parametrize(
    ("path", "new"),
    [
        pytest.param((0, 0), b"cluster", id="a cluster id that is bytes"),
        pytest.param((0, 1), True, id="a bool as replicas"),
        pytest.param((0, 1), 0, id="no replicas"),
        pytest.param((0, 2), 1.0, id="a float as vnodes"),
        pytest.param((1, 0), -1, id="an epoch below nought"),
        pytest.param((1, 0), True, id="a bool as epoch"),
        pytest.param((1, 0), 1 << 62, id="an epoch beyond all counting"),
        pytest.param((1, 0), "1", id="an epoch that is text"),
        pytest.param((1, 1), None, id="no ring members"),
        pytest.param((1, 1, 0, 0), "b", id="two nodes of one name on the ring"),
        pytest.param((1, 2), (("a", 1.0, "", ""), ("a", 1.0, "", "")), id="two nodes of one name on the next ring"),
        pytest.param((1, 3), 1, id="a number that says who is forgotten"),
        pytest.param((1, 2), None, id="somebody forgotten who does not go"),
        pytest.param((1, 1, 0, 1), math.inf, id="an infinite weight on the ring"),
        pytest.param((1, 1, 0, 1), math.nan, id="a weight on the ring that is no number"),
        pytest.param((1, 1, 0, 1), 10**400, id="a weight that no float holds"),
        pytest.param((1, 1, 0, 2), None, id="a zone that is nil"),
        pytest.param((2, 0, 0), "", id="a row without a name"),
        pytest.param((2, 0, 1), b"h:1", id="an address that is bytes"),
        pytest.param((2, 0, 3), math.inf, id="an infinite weight in a row"),
        pytest.param((2, 0, 5), -1, id="a negative incarnation"),
        pytest.param((2, 0, 5), True, id="a bool as incarnation"),
        pytest.param((2, 0, 5), INCARNATION_CEILING, id="an incarnation that none can follow"),
        pytest.param((2, 0, 1), "h", id="an address without a port"),
        pytest.param((2, 0, 6), 9, id="an unknown health"),
        pytest.param((2, 0), ("a", "a:1", "", 1.0, "", 0, 0, "more"), id="a row with one field too many"),
        pytest.param((2,), {"a": 1}, id="rows that are a map"),
        pytest.param((), (1, 2), id="two parts"),
    ],
)
def test_what_is_not_a_table_says_so(path: tuple[int, ...], new: Any) -> None:
    assert MemberTable.from_wire(FULL.to_wire()) == FULL
    with pytest.raises(ProtocolError, match="not a member table"):
        MemberTable.from_wire(replaced(FULL.to_wire(), path, new))


# Addresses


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("cache1:7400", ("cache1", 7400)),
        (" cache1:7400\n", ("cache1", 7400)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535)),
        ("[::1]:7401", ("::1", 7401)),
        ("[fe80::1%eth0]:7401", ("fe80::1%eth0", 7401)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == parse_address(text, default_port=1) == address


@pytest.mark.parametrize(
    ("text", "host"),
    [("cache1", "cache1"), ("10.0.0.1", "10.0.0.1"), ("::1", "::1"), ("[::1]", "::1"), ("a::b", "a::b")],
)
def test_a_host_alone_is_an_address_where_there_is_a_default_port(text: str, host: str) -> None:
    assert parse_address(text, default_port=7400) == (host, 7400)
    with pytest.raises(ValueError, match="HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ":", ":7400", "[]:7400", "[]", "host:", "host:port", "host:-1", "host:+1", "host:65536", "host:1.0"),
        *("host:٣", "host: 1", "[::1:7400", "::1]:7400", "[host:7400", "host]:7400", "[[::1]]:7400"),
        "host:" + "1" * 40,
    ],
)
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT"):
        parse_address(text, default_port=None)


def test_an_error_repeats_the_address_as_it_was_given() -> None:
    with pytest.raises(ValueError, match="'nonsense' is no address"):
        parse_address("nonsense")


@given(st.sampled_from(["cache1", "10.0.0.1", "::1", "fe80::1%eth0"]), st.integers(0, 65535))
def test_an_address_written_out_reads_back(host: str, port: int) -> None:
    assert parse_address(format_address(host, port)) == (host, port)


@given(st.text(max_size=12), st.none() | st.integers(0, 65535))
def test_any_text_is_an_address_or_a_value_error(text: str, default_port: int | None) -> None:
    try:
        host, port = parse_address(text, default_port)
    except ValueError:
        return
    assert host
    assert 0 <= port <= 65535
    assert parse_address(format_address(host, port)) == (host, port)
