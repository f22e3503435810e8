"""Keys, lifetimes and options as users give them, and whom a context sends requests to."""

from __future__ import annotations

import math
import re
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.errors import InvalidKey
from dcache.ops.context import DEFAULT, Options, key_to_bytes, namespace_to_bytes, ttl_to_ms
from dcache.ops.quorum import Quorum
from dcache.wire import Limits
from tests.unit.ops_kit import Cluster, make_table

LIMITS = Limits()


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class Bytes(bytes):
    __slots__ = ()


# --- lifetimes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttl", "ms"),
    [
        (None, None),
        (60, 60_000),
        (0.25, 250),
        (1e-9, 1),
        (0.0011, 2),
        (timedelta(minutes=1), 60_000),
        (timedelta(microseconds=1), 1),
        (100 * 365 * 86_400, 3_153_600_000_000),
    ],
)
def test_a_lifetime_becomes_whole_milliseconds_and_at_least_one(ttl: Any, ms: int | None) -> None:
    assert ttl_to_ms(ttl) == ms


@pytest.mark.parametrize(
    "ttl",
    [0, 0.0, -1, -0.001, math.nan, math.inf, -math.inf, 1e300, 2**60, timedelta(0), timedelta(seconds=-1), 1 << 2000],
)
def test_a_lifetime_that_makes_no_sense_is_refused(ttl: Any) -> None:
    with pytest.raises(ValueError, match="ttl must be more than 0 seconds and finite"):
        ttl_to_ms(ttl)


@pytest.mark.parametrize("ttl", [True, False, "60", b"60", [60], 1j])
def test_a_lifetime_that_is_no_number_is_a_type_error(ttl: Any) -> None:
    with pytest.raises(TypeError, match="ttl is seconds, a timedelta or None"):
        ttl_to_ms(ttl)


def test_default_stands_for_the_lifetime_of_the_client_and_none_for_no_expiry() -> None:
    ctx = Cluster().context(default_ttl=5)
    assert ctx.ttl(DEFAULT) == 5000
    assert ctx.ttl(None) is None
    assert ctx.ttl(1) == 1000
    assert Cluster().context().ttl(DEFAULT) is None
    assert repr(DEFAULT) == "DEFAULT"


@given(st.floats(min_value=1e-6, max_value=1e9))
def test_a_lifetime_is_never_cut_short(seconds: float) -> None:
    ms = ttl_to_ms(seconds)
    assert ms is not None
    assert seconds * 1000 <= ms < seconds * 1000 + 1


# --- keys and namespaces ----------------------------------------------------------------------------------------------


def test_text_and_its_utf8_are_one_key() -> None:
    assert key_to_bytes("a", LIMITS) == key_to_bytes(b"a", LIMITS) == b"a"
    assert key_to_bytes("å", LIMITS) == "å".encode()


def test_binary_keys_may_hold_anything() -> None:
    assert key_to_bytes(b"\0\xff", LIMITS) == b"\0\xff"


@pytest.mark.parametrize("key", ["x" * 1024, b"x" * 1024, "å" * 512])
def test_a_key_may_have_1024_bytes(key: str | bytes) -> None:
    assert len(key_to_bytes(key, LIMITS)) == 1024


@pytest.mark.parametrize("key", ["", b"", "x" * 1025, b"x" * 1025, "å" * 513, "\ud800"])
def test_an_empty_too_long_or_unencodable_key_is_invalid(key: str | bytes) -> None:
    with pytest.raises(InvalidKey):
        key_to_bytes(key, LIMITS)


@pytest.mark.parametrize("key", [None, 1, 1.5, ("a",), ["a"], bytearray(b"a"), memoryview(b"a")])
def test_a_key_of_another_type_is_a_type_error(key: Any) -> None:
    with pytest.raises(TypeError, match="a key is str or bytes, not"):
        key_to_bytes(key, LIMITS)


@given(st.lists(st.text(max_size=3) | st.binary(max_size=3) | st.sampled_from(["é" * 513, "a" * 1024, "\ud800", 5])))
def test_the_bytes_of_many_keys_are_those_of_each(keys: list[Any]) -> None:
    ctx = Cluster(limits=Limits()).context()
    try:
        each = {key: ctx.key(key) for key in keys}
    except (InvalidKey, TypeError) as error:
        with pytest.raises(type(error), match=re.escape(str(error))):
            ctx.keys(keys)
    else:
        assert ctx.keys(iter(keys)) == each


def test_a_subclass_is_the_key_that_its_characters_are() -> None:
    assert key_to_bytes(Text("a"), LIMITS) == b"a"
    assert key_to_bytes(Bytes(b"a"), LIMITS) == b"a"
    with pytest.raises(InvalidKey):
        key_to_bytes(Text(""), LIMITS)


def test_a_context_goes_by_the_limits_of_its_cluster() -> None:
    ctx = Cluster(limits=Limits(max_key=3)).context()
    assert ctx.key("abc") == b"abc"
    with pytest.raises(InvalidKey, match="1 to 3 bytes"):
        ctx.key("abcd")


def test_a_namespace_is_text_without_nul_and_of_limited_length() -> None:
    assert namespace_to_bytes("å") == "å".encode()
    assert len(namespace_to_bytes("x" * 255)) == 255
    for wrong in ("a\0b", "x" * 256, "å" * 128, "\ud800"):
        with pytest.raises(InvalidKey):
            namespace_to_bytes(wrong)
    not_text: Any = b"ns"
    with pytest.raises(TypeError, match="a namespace is a str"):
        namespace_to_bytes(not_text)


def test_a_namespace_moves_its_keys_and_travels_with_each_request() -> None:
    cluster = Cluster(names=tuple("abcdefgh"))
    plain, named = cluster.context(), cluster.context(namespace="ns")
    keys = [b"k%d" % n for n in range(50)]
    assert any(plain.owners(key) != named.owners(key) for key in keys)
    assert named.call("a", "get", b"k").params == (cluster.table.fingerprint, b"ns", b"k")


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf])
def test_a_timeout_must_be_a_positive_time(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be a positive number"):
        Options(timeout=timeout)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"write_quorum": 0}, "write_quorum must be"),
        ({"read_quorum": "most"}, "read_quorum must be"),
        ({"on_error": "ignore"}, "'on_error' must be in"),
        ({"default_ttl": 0}, "ttl must be more than 0"),
        ({"namespace": "\0"}, "no NUL"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Options(**wrong)


# --- quorums and modes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write_quorum", "read_quorum", "strict"),
    [
        ("quorum", "quorum", True),
        ("all", "quorum", True),
        ("quorum", 3, True),
        (2, 2, True),
        ("all", "one", False),
        ("one", "all", False),
        (1, 1, False),
        ("quorum", 1, False),
    ],
)
def test_strict_means_that_reads_and_writes_take_a_majority(
    write_quorum: int | str, read_quorum: int | str, strict: bool
) -> None:
    ctx = Cluster().context(write_quorum=write_quorum, read_quorum=read_quorum)
    assert ctx.strict is strict
    assert ctx.quorums(b"k").hold == Quorum(2 if strict else 0)


@pytest.mark.parametrize(("nodes", "owners", "needed"), [("a", 1, 1), ("ab", 2, 2), ("abc", 3, 2), ("abcde", 3, 2)])
def test_owners_are_as_many_as_there_are_replicas_or_members(nodes: str, owners: int, needed: int) -> None:
    ctx = Cluster(names=tuple(nodes)).context()
    quorums = ctx.quorums(b"k")
    assert {quorums.reads, quorums.writes, quorums.hold, quorums.majority} == {Quorum(needed)}
    assert len(ctx.owners(b"k")) == owners


def test_what_a_read_returns_is_held_by_a_majority_even_if_writes_take_all() -> None:
    assert Cluster().context(write_quorum="all", read_quorum="all").quorums(b"k").hold == Quorum(2)


# --- whom to ask ------------------------------------------------------------------------------------------------------


def test_every_request_on_a_key_carries_the_fingerprint_of_the_ring_it_was_made_with() -> None:
    cluster = Cluster()
    ctx = cluster.context()
    cluster.learn(make_table(("a", "b", "c", "d"), ring_version=2))
    assert ctx.call("a", "get", b"k").params[0] == make_table().fingerprint
    assert cluster.context().call("a", "get", b"k").params[0] != make_table().fingerprint


def test_owners_take_turns_in_being_asked() -> None:
    cluster = Cluster()
    ctx, owners = cluster.context(), cluster.owners("k")
    first = [tuple(ctx.readers(b"k")) for _ in range(6)]
    assert Counter(order[0] for order in first) == dict.fromkeys(owners, 2)
    assert all(set(order) == set(owners) for order in first)
    assert first[1] == (owners[1], owners[2], owners[0])


def test_owners_in_trouble_are_asked_last_and_written_to_all_the_same() -> None:
    cluster = Cluster()
    ctx, (x, y, z) = cluster.context(), cluster.owners("k")
    ctx.shared.backoff.failed(x, "refused", 0.0)
    ctx.shared.backoff.slow(y, 0.0)
    assert list(ctx.readers(b"k")) == [z, y, x]
    assert tuple(ctx.writers(b"k")) == (x, y, z)


def test_in_strict_mode_nobody_stands_in_for_an_owner() -> None:
    cluster = Cluster(names=tuple("abcde"))
    ctx, owners = cluster.context(), cluster.owners("k")
    ctx.shared.backoff.failed(owners[0], "refused", 0.0)
    assert set(ctx.readers(b"k")) == set(ctx.writers(b"k")) == set(owners)


def test_in_available_mode_the_next_nodes_stand_in_for_owners_in_trouble() -> None:
    cluster = Cluster(names=tuple("abcde"))
    ctx, (v1, v2, v3, v4, v5) = cluster.available(), cluster.preference("k")
    assert tuple(ctx.writers(b"k")) == (v1, v2, v3)
    ctx.shared.backoff.failed(v1, "refused", 0.0)
    ctx.shared.backoff.failed(v3, "refused", 0.0)
    assert list(ctx.writers(b"k")) == [v2, v4, v5]
    assert list(ctx.readers(b"k")) == [v2, v4, v5, v1, v3]
    ctx.shared.backoff.answered(v1)
    assert list(ctx.writers(b"k")) == [v1, v2, v4]


def test_trouble_is_judged_by_the_client_s_own_clock() -> None:
    cluster = Cluster()
    ctx, (x, y, z) = cluster.context(turn=0), cluster.owners("k")
    ctx.shared.backoff.slow(x, 0.0)
    cluster.time.advance(10_000)
    assert tuple(ctx.readers(b"k")) == (x, y, z)
