"""Bytes become messages however they are cut, or a `ProtocolError`; never anything else, and never without bound."""

from __future__ import annotations

import itertools
import random
import sys
import threading
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.errors import InvalidKey, ProtocolError
from dcache.membership import Member, MemberTable, RingState, Settings
from dcache.record import make_version
from dcache.ring import RingNode
from dcache.wire import (
    IDS,
    MESSAGES,
    NOTIFICATION,
    PROTOCOL,
    REPLY,
    REQUEST,
    Code,
    Decoder,
    Limits,
    Status,
    check_key,
    check_message,
    encode_error,
    encode_notification,
    encode_reply,
    encode_request,
    lone_result,
    pack,
    pack_array,
    reply_head,
    storage_key,
)

MAX_FRAME, MAX_BATCH = 64 * 1024, 64
GOLDEN = Path(__file__).parent / "golden"

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=5).map(tuple) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)
ids = st.integers(0, 2**32 - 1)
calls = st.tuples(st.text(max_size=8), st.lists(values, max_size=4).map(tuple))
requests = st.builds(lambda number, call: (REQUEST, number, *call), ids, calls)
replies = st.builds(lambda number, result: (REPLY, number, None, result), ids, values)
refusals = st.builds(
    lambda number, code, detail: (REPLY, number, (int(code), MESSAGES[code], detail), None),
    ids | st.none(),
    st.sampled_from(Code),
    values,
)
notifications = calls.map(lambda call: (NOTIFICATION, *call))
messages = requests | replies | refusals | notifications


def new_decoder() -> Decoder:
    return Decoder(MAX_FRAME, MAX_BATCH)


def decode(chunks: Iterable[bytes], decoder: Decoder | None = None) -> list[tuple[Any, ...]]:
    return list(each_message(chunks, decoder))


def each_message(chunks: Iterable[bytes], decoder: Decoder | None = None) -> Iterator[tuple[Any, ...]]:
    decoder = decoder or new_decoder()
    for chunk in chunks:
        decoder.feed(chunk)
        yield from decoder.messages()


def byte_by_byte(stream: bytes) -> Iterator[bytes]:
    return (stream[index : index + 1] for index in range(len(stream)))


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    ends = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(ends)]


# Streams


@given(st.lists(messages, max_size=6), st.lists(st.integers(0), max_size=8))
def test_messages_come_out_as_they_went_in_however_the_stream_is_cut(
    sent: list[tuple[Any, ...]], places: list[int]
) -> None:
    stream = b"".join(pack(message) for message in sent)
    assert decode([stream]) == sent
    assert decode(cut(stream, places)) == sent
    assert decode(byte_by_byte(stream)) == sent


def test_a_message_comes_out_with_its_last_byte_and_not_before() -> None:
    frame = encode_request(1, "get", [b"", b"", b"key"])
    decoder = new_decoder()
    assert decode(byte_by_byte(frame[:-1]), decoder) == []
    assert decode([frame[-1:]], decoder) == [(REQUEST, 1, "get", (b"", b"", b"key"))]


@given(st.lists(messages, max_size=4))
def test_partial_is_true_exactly_between_the_first_and_the_last_byte_of_a_frame(sent: list[tuple[Any, ...]]) -> None:
    frames = [pack(message) for message in sent]
    ends = set(itertools.accumulate((len(frame) for frame in frames), initial=0))
    decoder = new_decoder()
    assert not decoder.partial
    for position, byte in enumerate(byte_by_byte(b"".join(frames)), start=1):
        decode([byte], decoder)
        assert decoder.partial == (position not in ends)


@given(st.lists(messages, min_size=1, max_size=4), messages, st.integers(0))
def test_partial_is_exact_when_frames_come_together(
    sent: list[tuple[Any, ...]], last: tuple[Any, ...], place: int
) -> None:
    whole, tail = b"".join(pack(message) for message in sent), pack(last)
    begun = place % len(tail)
    decoder = new_decoder()
    assert decode([whole + tail[:begun]], decoder) == sent
    assert decoder.partial == (begun > 0)
    assert decode([tail[begun:]], decoder) == [last]
    assert not decoder.partial


def test_messages_may_be_left_early_and_taken_up_again() -> None:
    frames = [encode_reply(number, b"x") for number in range(4)]
    decoder = new_decoder()
    decoder.feed(frames[0] + frames[1] + frames[2][:3])
    assert next(decoder.messages())[1] == 0
    assert decoder.partial
    decoder.feed(frames[2][3:] + frames[3])
    assert [message[1] for message in decoder.messages()] == [1, 2, 3]
    assert not decoder.partial


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_buffer_can_be_fed(kind: type) -> None:
    decoder = new_decoder()
    decoder.feed(b"")
    assert decode([kind(encode_reply(1, b"x"))], decoder) == [(REPLY, 1, None, b"x")]


def test_a_message_does_not_share_memory_with_the_buffer_it_came_in() -> None:
    buffer = bytearray(encode_reply(1, b"value"))
    decoder = new_decoder()
    decoder.feed(buffer)
    buffer[:] = bytes(len(buffer))
    assert list(decoder.messages()) == [(REPLY, 1, None, b"value")]


def test_messages_can_be_taken_one_by_one() -> None:
    decoder = new_decoder()
    assert decoder.next() is None
    decoder.feed(encode_reply(1, b"x") + encode_reply(2, b"y")[:-1])
    assert decoder.next() == (REPLY, 1, None, b"x")
    assert decoder.next() is None
    decoder.feed(encode_reply(2, b"y")[-1:])
    assert decoder.next() == (REPLY, 2, None, b"y")
    assert decoder.next() is None


@given(ids, values)
def test_a_reply_can_be_made_of_a_result_that_is_encoded_already(number: int, result: Any) -> None:
    assert decode([reply_head(number) + pack(result)]) == [(REPLY, number, None, result)]


@given(st.lists(values, max_size=MAX_BATCH))
def test_an_array_can_be_made_of_objects_that_are_encoded_already(parts: list[Any]) -> None:
    assert pack_array([pack(part) for part in parts]) == pack(parts)


# Wider limits


@given(st.integers(0, 5), st.lists(st.integers(0), max_size=4))
def test_a_widened_decoder_goes_on_where_the_first_one_was_left(together: int, places: list[int]) -> None:
    """What follows the answer to hello may have come with it, and be larger than was allowed before."""
    big = encode_reply(2, b"x" * 2 * MAX_FRAME)
    decoder = new_decoder()
    decoder.feed(encode_reply(1, "hello") + big[:together])
    assert next(decoder.messages())[1] == 1
    wider = decoder.widened(4 * MAX_FRAME, MAX_BATCH)
    assert wider.partial == (together > 0)
    assert decode(cut(big[together:], places), wider) == [(REPLY, 2, None, b"x" * 2 * MAX_FRAME)]
    assert not wider.partial


# Bad bytes


BAD_BYTES = {
    "a byte that MessagePack never uses": b"\xc1",
    "text that is not UTF-8": b"\xa1\xff",
    "a map with a key that is a number": b"\x81\x01\x02",
    "a map with a key that is an array": b"\x81\x90\x02",
    "an extension type": b"\xd4\x05a",
    "an empty timestamp": b"\xc7\x00\xff",
    "a timestamp": b"\xd7\xff" + bytes(8),
    "an array over the limit": b"\xdc" + (MAX_BATCH + 1).to_bytes(2, "big"),
    "a map over the limit": b"\xde" + (MAX_BATCH + 1).to_bytes(2, "big"),
    "an array that claims 4 thousand million parts": b"\xdd\xff\xff\xff\xff",
    "a map that claims 4 thousand million parts": b"\xdf\xff\xff\xff\xff",
    "deep nesting": b"\x91" * 5000,
    "deep nesting of maps": b"\x81\xa1k" * 5000,
}


@pytest.mark.parametrize("bad", BAD_BYTES.values(), ids=BAD_BYTES.keys())
def test_bad_bytes_are_a_protocol_error_after_the_good_messages_before_them(bad: bytes) -> None:
    good = [(REPLY, 1, None, b"x"), (NOTIFICATION, "table", ())]
    stream = b"".join(map(pack, good)) + b"\x94\x00\x01\xa1m\x91" + bad  # the only parameter of a sound request
    for chunks in [stream], byte_by_byte(stream):
        found: list[Any] = []
        with pytest.raises(ProtocolError):
            found.extend(each_message(chunks))  # keeps what came before the error
        assert found == good


@pytest.mark.parametrize("bad", [b"\x94\x00\x01\xa1m\xc1", b"\x91" * 5000], ids=["format", "nesting"])
def test_the_error_says_what_was_wrong(bad: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"not MessagePack within the limits: \S"):
        decode([bad])


@given(st.binary(max_size=300), st.lists(st.integers(0), max_size=4))
def test_random_bytes_give_messages_or_a_protocol_error(noise: bytes, places: list[int]) -> None:
    try:
        found = decode(cut(noise, places))
    except ProtocolError:
        return
    assert all(check_message(message) is message for message in found)


@given(st.lists(messages, min_size=1, max_size=3), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=3))
def test_messages_with_some_bytes_changed_give_messages_or_a_protocol_error(
    sent: list[tuple[Any, ...]], changes: list[tuple[int, int]]
) -> None:
    stream = bytearray(b"".join(pack(message) for message in sent))
    for place, byte in changes:
        stream[place % len(stream)] = byte
    try:
        found = decode([bytes(stream)])
    except ProtocolError:
        return
    assert all(check_message(message) is message for message in found)


def test_noise_without_end_ends_in_a_protocol_error() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        with pytest.raises(ProtocolError):
            decode(rng.randbytes(997) for _ in range(1000))


# Size


def part(size: int) -> bytes:
    """A binary value that takes `size` bytes on the wire."""
    return b"\xc4" + bytes([size - 2]) + bytes(size - 2)


def frame_of_many_parts(size: int) -> bytes:
    """A reply that takes exactly `size` bytes, as an array of arrays of small values."""
    head = b"\x94\x01\x01\xc0\xdc\x00\x40"
    row = b"\xdc\x00\x20" + part(30) * 32
    left = size - len(head) - 60 * len(row)
    return head + row * 60 + b"\xc0\xc0\xc0\xc5" + (left - 6).to_bytes(2, "big") + bytes(left - 6)


def frame_of_one_value(size: int) -> bytes:
    return b"\x94\x01\x01\xc0\xc6" + (size - 9).to_bytes(4, "big") + bytes(size - 9)


@pytest.mark.parametrize("frame", [frame_of_many_parts, frame_of_one_value])
@pytest.mark.parametrize("step", [1, 1000, MAX_FRAME // 2 + 1, MAX_FRAME])
def test_a_frame_may_be_as_large_as_the_limit_and_not_a_byte_larger(frame: Any, step: int) -> None:
    fits, too_large = frame(MAX_FRAME), frame(MAX_FRAME + 1)
    assert (len(fits), len(too_large)) == (MAX_FRAME, MAX_FRAME + 1)
    assert len(decode(fits[at : at + step] for at in range(0, len(fits), step))) == 1
    with pytest.raises(ProtocolError):
        decode(too_large[at : at + step] for at in range(0, len(too_large), step))


def test_the_limit_is_on_a_frame_and_not_on_the_stream() -> None:
    frame = encode_reply(1, bytes(MAX_FRAME // 2))
    assert len(decode(itertools.repeat(frame, 10))) == 10


def test_a_feed_larger_than_a_frame_may_be_is_refused_at_once() -> None:
    with pytest.raises(ProtocolError, match=f"larger than {MAX_FRAME} bytes"):
        new_decoder().feed(bytes(MAX_FRAME + 1))


def test_arrays_and_maps_may_have_as_many_parts_as_the_limit() -> None:
    full = {f"{number}": tuple(range(MAX_BATCH)) for number in range(MAX_BATCH)}
    assert decode([encode_reply(1, full)]) == [(REPLY, 1, None, full)]


WITHOUT_END = {
    "a binary that claims 4 GiB": (b"\x94\x00\x01\xa1m\x91\xc6\xff\xff\xff\xff", b"\0" * 500),
    "a text that claims 4 GiB": (b"\x94\x00\x01\xa1m\x91\xdb\xff\xff\xff\xff", b"a" * 500),
    "an extension that claims 4 GiB": (b"\x94\x00\x01\xa1m\x91\xc9\xff\xff\xff\xff\x05", b"\0" * 500),
    "values beside each other": (b"\x94\x00\x01\xa1m\x91\xdc\x00\x40", (b"\xdc\x00\x40" + part(200) * 64) * 4),
    "the longest arrays in each other": (b"", b"\xdc\x00\x40" * 100),
    "empty maps": (b"", (b"\xdc\x00\x40" + b"\x80" * 63) * 20),
}


@pytest.mark.parametrize(("head", "more"), WITHOUT_END.values(), ids=WITHOUT_END.keys())
def test_a_frame_without_end_is_an_error_before_it_costs_much(head: bytes, more: bytes) -> None:
    """Neither what a peer claims nor how it nests makes us hold more than a fixed multiple of a frame.

    The dearest byte is an empty map: 64 bytes, and 8 to refer to it.
    """
    fed = 0

    def endless() -> Iterator[bytes]:
        nonlocal fed
        yield head
        for chunk in itertools.repeat(more):
            fed += len(chunk)
            yield chunk

    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            decode(endless())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert fed <= MAX_FRAME + len(more)
    assert peak < 80 * MAX_FRAME


# Envelopes


GOOD_ENVELOPES = [
    (REQUEST, 0, "m", ()),
    (REQUEST, 2**32 - 1, "", (1, 2)),
    (REPLY, 0, None, None),
    (REPLY, None, (1, "bad request", None), None),
    (REPLY, 5, (99, "a code of the future", {"more": 1}), None),
    (NOTIFICATION, "m", ()),
]

BAD_ENVELOPES = {
    "not an array": 5,
    "nil": None,
    "text": "abcd",
    "a map": {"a": 1},
    "empty": (),
    "an unknown kind": (3, 1, "m", ()),
    "a negative kind": (-1, 1, "m", ()),
    "a bool as kind of request": (False, 1, "m", ()),
    "a bool as kind of reply": (True, 1, None, None),
    "a float as kind": (0.0, 1, "m", ()),
    "a request without params": (REQUEST, 1, "m"),
    "a request with more parts": (REQUEST, 1, "m", (), None),
    "a request with a bool as id": (REQUEST, True, "m", ()),
    "a request with a negative id": (REQUEST, -1, "m", ()),
    "a request with an id of 33 bits": (REQUEST, 2**32, "m", ()),
    "a request with a float as id": (REQUEST, 1.0, "m", ()),
    "a request with text as id": (REQUEST, "1", "m", ()),
    "a request with nil as id": (REQUEST, None, "m", ()),
    "a request with a binary method": (REQUEST, 1, b"m", ()),
    "a request with a number as method": (REQUEST, 1, 7, ()),
    "a request with a map as params": (REQUEST, 1, "m", {"a": 1}),
    "a request with nil as params": (REQUEST, 1, "m", None),
    "a request with text as params": (REQUEST, 1, "m", "ab"),
    "a reply without result": (REPLY, 1, None),
    "a reply with more parts": (REPLY, 1, None, None, None),
    "a reply with a bool as id": (REPLY, True, None, None),
    "a reply with a negative id": (REPLY, -1, None, None),
    "a reply with an id of 33 bits": (REPLY, 2**32, None, None),
    "a reply with text as error": (REPLY, 1, "failed", None),
    "a reply with a short error": (REPLY, 1, (1, "bad request"), None),
    "a reply with a long error": (REPLY, 1, (1, "bad request", None, None), None),
    "a reply with an error without a code": (REPLY, 1, ("1", "bad request", None), None),
    "a reply with a bool as code": (REPLY, 1, (True, "bad request", None), None),
    "a notification without params": (NOTIFICATION, "m"),
    "a notification with more parts": (NOTIFICATION, "m", (), None),
    "a notification with a binary method": (NOTIFICATION, b"m", ()),
    "a notification with nil as params": (NOTIFICATION, "m", None),
}


@pytest.mark.parametrize("message", GOOD_ENVELOPES, ids=repr)
def test_a_sound_envelope_passes(message: tuple[Any, ...]) -> None:
    assert decode([pack(message)]) == [message]


@pytest.mark.parametrize("message", BAD_ENVELOPES.values(), ids=BAD_ENVELOPES.keys())
def test_a_broken_envelope_is_a_protocol_error(message: object) -> None:
    with pytest.raises(ProtocolError, match="neither request, reply nor notification"):
        decode([pack(message)])


@given(values)
def test_any_value_is_a_message_or_a_protocol_error(value: object) -> None:
    try:
        assert check_message(value) is value
    except ProtocolError:
        return
    assert type(value) is tuple


# Numbers that travel


def test_codes_are_only_ever_appended() -> None:
    assert {code.name: code.value for code in Code} == {
        "BAD_REQUEST": 1,
        "UNKNOWN_METHOD": 2,
        "INVALID_KEY": 3,
        "VALUE_TOO_LARGE": 4,
        "WRONG_RING": 5,
        "NOT_READY": 6,
        "CLOCK_SKEW": 7,
        "OVERLOADED": 8,
        "UNKNOWN_CURSOR": 9,
        "CLUSTER_MISMATCH": 10,
        "INTERNAL": 11,
    }
    assert (Status.STORED, Status.NEWER) == (0, 1)
    assert (REQUEST, REPLY, NOTIFICATION, PROTOCOL) == (0, 1, 2, 1)


@pytest.mark.parametrize("code", Code)
def test_every_code_has_a_constant_message(code: Code) -> None:
    assert decode([encode_error(3, code, {"more": 1})]) == [(REPLY, 3, (code.value, MESSAGES[code], {"more": 1}), None)]


def test_an_error_to_a_request_that_could_not_be_read_has_no_id() -> None:
    assert decode([encode_error(None, Code.BAD_REQUEST)]) == [(REPLY, None, (1, "bad request", None), None)]


# Keys


@pytest.mark.parametrize("size", [1, 1024])
def test_a_key_of_1_to_1024_bytes_passes(size: int) -> None:
    check_key(bytes(size), Limits())


@pytest.mark.parametrize("size", [0, 1025])
def test_any_other_key_is_invalid(size: int) -> None:
    with pytest.raises(InvalidKey, match=f"has 1 to 1024 bytes, this one has {size}"):
        check_key(bytes(size), Limits())


def test_the_limit_on_keys_is_the_one_given() -> None:
    check_key(b"abc", Limits(max_key=3))
    with pytest.raises(InvalidKey):
        check_key(b"abcd", Limits(max_key=3))


namespaces = st.binary(max_size=4).map(lambda raw: raw.replace(b"\0", b"n"))


@given(st.tuples(namespaces, st.binary(max_size=4)), st.tuples(namespaces, st.binary(max_size=4)))
def test_keys_of_different_namespaces_never_meet(one: tuple[bytes, bytes], other: tuple[bytes, bytes]) -> None:
    assert (storage_key(*one) == storage_key(*other)) == (one == other)


def test_a_frame_has_room_for_the_largest_value_and_more() -> None:
    assert Limits().max_frame == 8 * 1024 * 1024
    assert Limits(max_value=10, frame_room=5).max_frame == 15
    assert Limits(**attrs.asdict(Limits(max_key=5))) == Limits(max_key=5)


# Packing


def test_what_cannot_be_packed_leaves_nothing_behind() -> None:
    with pytest.raises(TypeError):
        pack((1, b"left over", object()))
    with pytest.raises(OverflowError):
        pack((1, b"left over", 2**64))
    assert pack(5) == b"\x05"
    assert type(pack(5)) is bytes


def test_threads_can_pack_at_once() -> None:
    wrong: list[object] = []
    start = threading.Barrier(4)

    def work(number: int) -> None:
        message = (number, {"k": [bytes([number]) * 50] * 20})
        expected = msgpack.packb(message)
        start.wait()
        wrong.extend(number for _ in range(500) if pack(message) != expected)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


# Golden frames: what clients in other languages can be tested with

FINGERPRINT = bytes.fromhex("0102030405060708")
VERSION = make_version(1_700_000_000_000, 1, 0xDEADBEEF)
FLOOR = make_version(1_600_000_000_000, 0, 7)
TABLE = MemberTable(
    Settings("cluster-1"),
    RingState(7, (RingNode("node-1", host="10.0.0.1"), RingNode("node-2", 2.0, "zone-b", "10.0.0.2"))),
    {
        "node-1": Member("node-1", "10.0.0.1:7400", boot_id="boot-1", incarnation=1_700_000_000_000),
        "node-2": Member("node-2", "10.0.0.2:7400", "zone-b", 2.0, "boot-2", 1_700_000_000_001),
    },
)
SET_ITEMS = [(b"k1", VERSION, b"v1", 0, 60_000), (b"k2", VERSION, b"v2", 3, None)]

FRAMES: dict[str, tuple[bytes, tuple[Any, ...]]] = {
    "request_hello": (
        encode_request(0, "hello", (PROTOCOL, "cluster-1", True)),
        (0, 0, "hello", (1, "cluster-1", True)),
    ),
    "request_get": (
        encode_request(1, "get", (FINGERPRINT, b"ns", b"user:1")),
        (0, 1, "get", (FINGERPRINT, b"ns", b"user:1")),
    ),
    "request_set": (
        encode_request(2, "set", (FINGERPRINT, b"ns", b"user:1", VERSION, b"value", 0, 60_000)),
        (0, 2, "set", (FINGERPRINT, b"ns", b"user:1", VERSION, b"value", 0, 60_000)),
    ),
    "request_set_many": (
        encode_request(2**32 - 1, "set_many", (FINGERPRINT, b"", SET_ITEMS)),
        (0, 2**32 - 1, "set_many", (FINGERPRINT, b"", tuple(SET_ITEMS))),
    ),
    "reply_hit": (
        encode_reply(1, (True, VERSION, b"value", 0, 59_999)),
        (1, 1, None, (True, VERSION, b"value", 0, 59_999)),
    ),
    "reply_absent": (encode_reply(1, (True, FLOOR, False)), (1, 1, None, (True, FLOOR, False))),
    "reply_error": (
        encode_error(2, Code.VALUE_TOO_LARGE, (2_000_000, 1_048_576)),
        (1, 2, (4, "value too large", (2_000_000, 1_048_576)), None),
    ),
    "notification_table": (
        encode_notification("table", [TABLE.to_wire()]),
        (
            2,
            "table",
            (
                (
                    ("cluster-1", 3, 150, 0),
                    (7, (("node-1", 1.0, "", "10.0.0.1"), ("node-2", 2.0, "zone-b", "10.0.0.2")), None, False),
                    (
                        ("node-1", "10.0.0.1:7400", "", 1.0, "boot-1", 1_700_000_000_000, 0),
                        ("node-2", "10.0.0.2:7400", "zone-b", 2.0, "boot-2", 1_700_000_000_001, 0),
                    ),
                ),
            ),
        ),
    ),
}


def test_every_golden_file_is_tested() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(FRAMES)


@pytest.mark.parametrize("name", FRAMES)
def test_frames_are_byte_for_byte_what_is_on_file(name: str) -> None:
    golden = bytes.fromhex((GOLDEN / f"{name}.hex").read_text(encoding="ascii"))
    encoded, message = FRAMES[name]
    assert encoded == golden
    assert decode([golden]) == [message]


def test_the_golden_table_reads_back() -> None:
    golden = bytes.fromhex((GOLDEN / "notification_table.hex").read_text(encoding="ascii"))
    ((_, _, (table,)),) = decode([golden])
    assert MemberTable.from_wire(table) == TABLE


def test_a_decoder_for_requests_refuses_maps():
    """Even empty ones, which cost a byte on the wire and 64 in memory."""
    decoder = Decoder(MAX_FRAME, MAX_BATCH, maps=False)
    decoder.feed(msgpack.packb([0, 1, "get", [{}]]))
    with pytest.raises(ProtocolError, match="maps"):
        list(decoder.messages())


# -- a reply that comes alone -----------------------------------------------------------------------------------------


@given(st.integers(0, IDS - 1), st.binary(max_size=300))
def test_the_result_of_a_reply_that_comes_alone_is_read_at_once(message_id: int, value: bytes) -> None:
    result = (True, value, None)
    assert lone_result(reply_head(message_id) + pack(result), message_id) == result


@pytest.mark.parametrize(
    "data",
    [
        reply_head(8) + pack((True,)),
        encode_reply(7, (True,)),
        encode_error(7, Code.WRONG_RING),
        reply_head(7) + pack((True,)) + reply_head(8) + pack((True,)),
        encode_notification("table", ()) + reply_head(7) + pack((True,)),
        (reply_head(7) + pack((True,)))[:-1],
        reply_head(7)[:5],
        reply_head(7) + b"\xc1",
        reply_head(7) + pack([0] * (Limits().max_batch + 1)),
        b"",
    ],
    ids=["another", "other form", "error", "two", "after another", "cut", "head", "garbage", "too long", "nothing"],
)
def test_whatever_else_comes_is_left_to_a_decoder(data: bytes) -> None:
    assert lone_result(data, 7) is None
