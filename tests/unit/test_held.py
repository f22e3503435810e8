"""A record comes out of the bytes in which a node keeps it as it went in, and they are the answer to a `get`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.node.held import Entry, answer, deadline_of, ends_at, hold, shortened, value_size, version_of
from dcache.record import Version, make_version
from dcache.wire import pack

versions = st.binary(min_size=12, max_size=12).map(Version)
values = st.binary(max_size=300) | st.sampled_from([0, 255, 256, 65_535, 65_536, 70_000]).map(bytes)
flags = st.integers(0, 255)
deadlines = st.integers(0, 2**64 + 2**40)  # a lifetime of all 64 bits, counted from now

VERSION = make_version(1_700_000_000_000, 3, 9)


@given(versions, values, flags, st.none() | deadlines)
def test_what_is_held_is_read_as_it_was(version: Version, value: bytes, flags: int, deadline: int | None) -> None:
    held = hold(version, value, flags, deadline)
    entry = Entry(held)
    assert (entry.version, entry.value, entry.flags, entry.deadline) == (version, value, flags, deadline)
    assert (version_of(held), value_size(held), entry.size, deadline_of(held)) == (
        version,
        len(value),
        len(value),
        deadline,
    )


@given(versions, values, flags)
def test_what_has_no_lifetime_is_held_as_it_is_answered(version: Version, value: bytes, flags: int) -> None:
    held = hold(version, value, flags, None)
    assert held == answer(held, 10**12) == pack((True, version, value, flags, None))


@given(versions, values, flags, st.integers(0, 2**40), st.integers(1, 2**64 - 1))
def test_what_has_a_lifetime_is_answered_with_what_remains_of_it(
    version: Version, value: bytes, flags: int, now: int, ttl: int
) -> None:
    held = hold(version, value, flags, now + ttl)
    assert answer(held, now) == pack((True, version, value, flags, ttl))
    assert not held[0]
    assert ends_at(held) == now + ttl


@pytest.mark.parametrize("size", [0, 100, 5_000])
def test_there_is_an_answer_until_the_life_of_a_record_is_over(size: int) -> None:
    held = hold(VERSION, bytes(size), 3, 1_000)
    assert answer(held, 999) == pack((True, VERSION, bytes(size), 3, 1))
    assert answer(held, 1_000) is None
    assert answer(held, 1_001) is None


@given(versions, values, flags, st.none() | deadlines, deadlines)
def test_another_deadline_changes_nothing_else(
    version: Version, value: bytes, flags: int, before: int | None, after: int
) -> None:
    assert shortened(hold(version, value, flags, before), after) == hold(version, value, flags, after)


@pytest.mark.parametrize(("deadline", "beside"), [(None, 20), (10**9, 28)])
def test_a_small_record_takes_20_bytes_beside_its_value_or_28(deadline: int | None, beside: int) -> None:
    assert len(hold(VERSION, bytes(100), 0, deadline)) == 100 + beside
