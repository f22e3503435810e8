"""Values survive with their exact types or are refused; what nobody wrote is a `DecodingError` and nothing worse."""

from __future__ import annotations

import collections
import enum
import functools
import importlib
import io
import json
import math
import pickle
import resource
import struct
import sys
import threading
import tracemalloc
import types
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

import attrs
import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dcache import codec as codec_module
from dcache.codec import CUSTOM, DECOMPRESSED_MAX, INT, JSON, MSGPACK, PICKLE, RAW, ZLIB, ZSTD, Codec
from dcache.errors import DecodingError, NotACounter, SerializationError, ValueTooLarge

try:
    import zstandard
except ImportError:
    zstandard = None

needs_zstd = pytest.mark.skipif(zstandard is None, reason="zstandard is not installed")
COMPRESSIONS = [None, "zlib", pytest.param("zstd", marks=needs_zstd)]
DEFAULT = Codec()


# --- what "the same" means --------------------------------------------------------------------------------------------


def same_zone(a: tzinfo | None, b: tzinfo | None) -> bool:
    """Zones that were made with the same arguments: an explicit name "UTC" is not the same as none."""
    return type(a) is type(b) and (a is None or a.__reduce__()[1] == b.__reduce__()[1])  # type: ignore[union-attr]


def same(a: Any, b: Any) -> bool:
    """Equal with equal types all the way down, in the same order; a NaN is the same as the same NaN."""
    if type(a) is not type(b):
        return False
    if type(a) is float:
        return struct.pack(">d", a) == struct.pack(">d", b)
    if type(a) is Decimal:
        return a.as_tuple() == b.as_tuple()
    if type(a) is datetime:
        return a.replace(tzinfo=None) == b.replace(tzinfo=None) and a.fold == b.fold and same_zone(a.tzinfo, b.tzinfo)
    if type(a) is set:
        return same(sorted(a, key=repr), sorted(b, key=repr))
    if type(a) is dict:
        return same(list(a.items()), list(b.items()))
    if type(a) in (list, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def stored_and_read(value: Any, writer: Codec = DEFAULT, reader: Codec = DEFAULT) -> Any:
    return reader.decode(*writer.encode(value))


ZONES = ["Europe/Berlin", "America/New_York", "UTC", "Pacific/Apia"]
OFFSETS = st.integers(-86_399_999_999, 86_399_999_999).map(lambda us: timedelta(microseconds=us))
any_text = st.text(st.characters() | st.characters(categories=["Cs"]), max_size=20)  # lone surrogates too
fixed_zones = st.builds(timezone, OFFSETS) | st.builds(timezone, OFFSETS, any_text) | st.just(UTC)
zones = st.none() | fixed_zones | st.sampled_from(ZONES).map(ZoneInfo)
datetimes = st.builds(
    lambda moment, zone, fold: moment.replace(tzinfo=zone, fold=fold), st.datetimes(), zones, st.integers(0, 1)
)
hashable_decimals = st.decimals(allow_nan=None).filter(lambda number: not number.is_snan())
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(1 << 3000), 1 << 3000)
    | st.floats(allow_nan=True)
    | any_text
    | st.binary(max_size=20)
    | datetimes
    | st.dates()
    | st.timedeltas()
    | hashable_decimals
    | st.uuids()
)
keys = scalars | st.lists(scalars, max_size=3).map(tuple)
values = st.recursive(
    scalars | st.sampled_from([Decimal("sNaN"), Decimal("-NaN123"), Decimal("1E+9999"), Decimal("0E-9999")]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.sets(keys, max_size=4)
    ),
    max_leaves=20,
)


# --- exact types ------------------------------------------------------------------------------------------------------


@given(values)
@example([(), [], {}, set(), "", b""])
@example({"\ud800": ("\udfff\ud83d", "\ud83d\ude00", "\U0001f600")})
@example(datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")))
@example((datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=timezone.min)))
@example([UTC.fromutc(datetime(1, 1, 1, tzinfo=UTC)), timedelta.max, timedelta.min, date.max])
@example(datetime(2024, 1, 1, tzinfo=timezone(timedelta(0), "UTC")))
@example(datetime(2024, 1, 1, tzinfo=timezone(timedelta(microseconds=-1), "a|b|\n\ud800")))
@example({1 << 64: -(1 << 63) - 1, -(1 << 127): (1 << 127) - 1, (1 << 64) - 1: -(1 << 63)})
@example([math.nan, -math.nan, math.inf, -math.inf, -0.0, 5e-324])
def test_values_survive_with_their_exact_types(value: Any) -> None:
    """What msgpack accepts comes back with the same types, all the way down."""
    assert same(stored_and_read(value), value)


@pytest.mark.parametrize(("a", "b"), [(1, True), (1, 1.0), ("a", b"a"), ((1,), [1]), (0.0, -0.0), ({1: 2}, {1: 2.0})])
def test_the_comparison_of_these_tests_is_strict(a: Any, b: Any) -> None:
    """Values that Python may call equal are told apart by `same`."""
    assert not same(a, b)


@pytest.mark.parametrize(
    ("value", "form"), [(b"x" * 9, RAW), (7, INT), ("seven", MSGPACK), (True, MSGPACK), (None, MSGPACK)]
)
def test_the_default_codec_chooses_the_form_by_type(value: Any, form: int) -> None:
    """Bytes are stored as they are, integers as integers, all else as MessagePack."""
    assert DEFAULT.encode(value)[1] == form


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (-12, b"-12"),
        (1 << 2048, b"0x1" + b"0" * 512),
        ((1, [2]), b"\x93\xc7\x00\x02\x01\x91\x02"),
        ({5}, b"\x92\xc7\x00\x03\x05"),
        ([1 << 64], b"\x91\xc7\x09\x01\x01" + bytes(8)),
        (datetime.fromisoformat("2024-01-02T03:04:05"), b"\xc7\x15\x042024-01-02T03:04:05|0"),
        (
            datetime(2024, 1, 2, fold=1, tzinfo=timezone(timedelta(hours=1), "CET")),
            b"\xc7\x24\x042024-01-02T00:00:00|1|3600000000|CET",
        ),
        (datetime(2024, 1, 2, tzinfo=ZoneInfo("UTC")), b"\xc7\x1e\x042024-01-02T00:00:00|0|zone|UTC"),
        (date(2024, 1, 2), b"\xc7\x0a\x052024-01-02"),
        (timedelta(microseconds=-1), b"\xd4\x06\xff"),
        (Decimal("1.50"), b"\xd6\x071.50"),
        (UUID(int=1), b"\xd8\x08" + bytes(15) + b"\x01"),
    ],
)
def test_the_stored_bytes_are_those_of_the_protocol(value: Any, stored: bytes) -> None:
    """Golden bytes: what is stored today must be read by every later version."""
    assert DEFAULT.encode(value)[0] == stored


def test_a_timestamp_of_another_language_is_read_as_utc() -> None:
    """MessagePack's own timestamp, which dcache never writes, becomes an aware datetime."""
    assert same(DEFAULT.decode(b"\xd6\xff\x00\x00\x00\x01", MSGPACK), datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))


# --- refusals ---------------------------------------------------------------------------------------------------------


class Colour(enum.IntEnum):
    RED = 1


class Point(NamedTuple):
    x: int


class Text(str):
    __slots__ = ()


class Stamp(datetime):
    """As pandas.Timestamp does it."""


class Zone(tzinfo):
    """A zone of the user's own."""


def subclass_of(kind: type, *arguments: Any) -> Any:
    return types.new_class(f"My{kind.__name__}", (kind,))(*arguments)


@attrs.frozen
class Plain:
    x: int = 1


REFUSED = [
    Colour.RED,
    Point(1),
    Text("a"),
    Stamp(2024, 1, 1),
    Plain(),
    collections.OrderedDict(a=1),
    collections.defaultdict(int),
    collections.Counter("a"),
    frozenset({1}),
    bytearray(b"a"),
    memoryview(b"a"),
    msgpack.ExtType(2, b""),
    msgpack.Timestamp(1),
    range(3),
    1j,
    Fraction(1, 2),
    object(),
    int,
    ...,
    *(subclass_of(kind, 1) for kind in (int, float, Decimal)),
    *(subclass_of(kind) for kind in (str, bytes, list, dict, tuple, set)),
    subclass_of(date, 2024, 1, 1),
    subclass_of(timedelta, 1),
    subclass_of(UUID, "0" * 32),
]
WRAPPINGS: list[Callable[[Any], Any]] = [
    lambda value: value,
    lambda value: [1, value],
    lambda value: ("a", value),
    lambda value: {"a": {"b": [value]}},
    lambda value: [[1], (2, [value])],
]


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("wrap", WRAPPINGS, ids=["bare", "list", "tuple", "dict", "deep"])
def test_other_types_and_subclasses_are_refused_by_name(wrap: Callable[[Any], Any], value: Any) -> None:
    """What would come back as something else is refused wherever it stands; the message says what and what to do."""
    with pytest.raises(SerializationError) as caught:
        DEFAULT.encode(wrap(value))
    assert type(value).__qualname__ in str(caught.value)
    assert 'serializer="pickle"' in str(caught.value)


@pytest.mark.parametrize("key", [frozenset({1}), Point(1), memoryview(b"a"), Text("a"), (1, frozenset())])
def test_keys_and_elements_of_sets_are_refused_alike(key: Any) -> None:
    """The rule holds for keys of dicts and elements of sets too."""
    for value in ({key: 1}, {key}):
        with pytest.raises(SerializationError):
            DEFAULT.encode(value)


# Version 1 of the format of time zone files: a header with its counts, then UTC and nothing else.
ZONE_FILE = b"TZif" + bytes(16) + struct.pack(">6l", 0, 0, 0, 0, 1, 4) + struct.pack(">lbb", 0, 0, 0) + b"UTC\0"


def zone_from_file(key: str | None) -> ZoneInfo:
    return ZoneInfo.from_file(io.BytesIO(ZONE_FILE), key=key)


@pytest.mark.parametrize("zone", [Zone(), zone_from_file(None), zone_from_file("Europe/Berlin")])
def test_zones_that_others_cannot_look_up_are_refused(zone: tzinfo) -> None:
    """A tzinfo of the user's own, or one read from a file, might mean other rules elsewhere."""
    with pytest.raises(SerializationError, match=type(zone).__name__):
        DEFAULT.encode(datetime(2024, 1, 1, tzinfo=zone))


def nested(depth: int, value: Any = 1) -> Any:
    return functools.reduce(lambda inner, _: [inner], range(depth), value)


def test_nesting_survives_to_a_depth_and_is_refused_beyond() -> None:
    """400 levels are stored and read; 5,000 are refused before anything is sent."""
    assert stored_and_read(nested(400)) == nested(400)
    with pytest.raises(SerializationError, match="nested too deeply"):
        DEFAULT.encode(nested(5000))


@pytest.mark.parametrize("name", ["msgpack", "json"])
@pytest.mark.parametrize("kind", [list, dict])
def test_values_that_contain_themselves_are_refused(name: str, kind: type) -> None:
    """A cycle ends in an error, not in endless work."""
    value = kind()
    value.append(value) if kind is list else value.update(a=value)
    with pytest.raises(SerializationError, match=kind.__name__):
        Codec(name).encode(value)


# --- integers and counters --------------------------------------------------------------------------------------------


@given(st.integers() | st.integers(-(1 << 20_000), 1 << 20_000), st.sampled_from(["msgpack", "json", "raw", "pickle"]))
@example(10**5000, "msgpack")
@example(-(1 << 2048), "json")
@example((1 << 2048) - 1, "raw")
def test_integers_have_one_form_under_every_serializer(number: int, name: str) -> None:
    """An integer of any size is written the same by all, never compressed, and is a counter to all."""
    writer = Codec(name, compression="zlib", compress_above=0)
    data, flags = writer.encode(number)
    assert (data, flags) == DEFAULT.encode_counter(number)
    assert flags == INT
    assert same(DEFAULT.decode(data, flags), number)
    assert Codec("raw").decode_counter(data, flags) == number


@given(st.integers(-(1 << 64), 1 << 64))
def test_integers_of_64_bits_are_ascii_decimal(number: int) -> None:
    """Any client in any language can read a counter."""
    assert DEFAULT.encode(number) == (str(number).encode(), INT)


@pytest.fixture
def strictest_digit_limit() -> Iterator[None]:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(sys.int_info.str_digits_check_threshold)
    yield
    sys.set_int_max_str_digits(before)


@pytest.mark.usefixtures("strictest_digit_limit")
@pytest.mark.parametrize("bits", [64, 2047, 2048, 2049, 100_000])
def test_integers_survive_pythons_limit_on_digits(bits: int) -> None:
    """A program that forbids long decimal conversions can still store and read every integer."""
    for number in (1 << bits, -(1 << bits), (1 << bits) - 1):
        assert stored_and_read(number) == number
        assert stored_and_read([number]) == [number]


@pytest.mark.parametrize(
    "data", [b"", b"-", b"+1", b" 1", b"1\n", b"1_0", b"1.0", b"0x", b"0xG", b"\xd9\xa1", b"9" * 9999]
)
def test_bytes_flagged_as_an_integer_that_are_none(data: bytes) -> None:
    """They decode to nothing and count as no counter."""
    with pytest.raises(DecodingError):
        DEFAULT.decode(data, INT)
    with pytest.raises(NotACounter):
        DEFAULT.decode_counter(data, INT)


@pytest.mark.parametrize("value", [b"5", "5", 5.0, True, None, [5]])
def test_other_values_are_no_counters(value: Any) -> None:
    """Only what was stored as an integer can be counted on, and the message says what was found."""
    with pytest.raises(NotACounter, match=r"raw|msgpack"):
        DEFAULT.decode_counter(*DEFAULT.encode(value))


@pytest.mark.parametrize("flags", [INT | ZLIB, INT | 0x40, 15])
def test_flags_that_are_not_exactly_those_of_an_integer_are_no_counter(flags: int) -> None:
    """Integers are never compressed; nobody reads them otherwise."""
    with pytest.raises(NotACounter):
        DEFAULT.decode_counter(b"5", flags)
    with pytest.raises(DecodingError):
        DEFAULT.decode(b"5", flags)


# --- serializers and compression --------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.just(math.nan) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", ["msgpack", "json", "raw"])
@given(data=st.data())
@settings(max_examples=40)
def test_a_default_codec_reads_what_any_other_wrote(name: str, compression: str | None, data: st.DataObject) -> None:
    """Readers do not depend on the settings of the writer."""
    value = data.draw({"msgpack": values, "json": json_values, "raw": st.binary() | st.integers()}[name])
    assert same(stored_and_read(value, Codec(name, compression, compress_above=0)), value)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", ["msgpack", "json", "pickle"])
def test_a_compressed_value_survives(name: str, compression: str | None) -> None:
    """Every serializer goes with every compression, and the flags tell both."""
    writer = Codec(name, compression)
    value = ["a long and boring text"] * 1000
    data, flags = writer.encode(value)
    assert flags >> 4 == {None: 0, "zlib": 1, "zstd": 2}[compression]
    assert (len(data) < 2000) == (compression is not None)
    assert writer.decode(data, flags) == value


def test_compression_starts_above_the_threshold() -> None:
    """Values of up to `compress_above` bytes are left alone."""
    codec = Codec(compression="zlib", compress_above=100)
    assert codec.encode(b"a" * 100) == (b"a" * 100, RAW)
    assert codec.encode(b"a" * 101)[1] == RAW | ZLIB


def test_compression_is_kept_only_where_it_makes_a_value_smaller() -> None:
    """Bytes that do not compress are stored as they are."""
    data = bytes(range(256))
    assert Codec(compression="zlib", compress_above=0).encode(data) == (data, RAW)


def test_json_keeps_what_json_keeps() -> None:
    """Tuples come back as lists and keys as str; text is stored as UTF-8, without spaces."""
    codec = Codec("json")
    assert codec.encode({"ä": (1, None)}) == ('{"ä":[1,null]}'.encode(), JSON)
    assert stored_and_read((1, {2: "b"}), codec) == [1, {"2": "b"}]


@pytest.mark.parametrize(
    ("value", "named"),
    [({1, 2}, "set"), (b"a", "bytes"), (["a", Plain()], "Plain"), ({(1,): 2}, "tuple"), ("\ud800", "str")],
)
def test_json_refuses_the_rest_by_name(value: Any, named: str) -> None:
    """Sets, bytes, objects, odd keys and text that is not Unicode cannot be JSON."""
    with pytest.raises(SerializationError, match=named):
        Codec("json").encode(value)


def test_json_refuses_what_is_nested_too_deeply() -> None:
    """Python's own limit is met as a refusal."""
    with pytest.raises(SerializationError, match="list"):
        Codec("json").encode(nested(100_000))


@pytest.mark.parametrize("value", ["text", bytearray(b"a"), True, None, 1.5, [b"a"]])
def test_raw_accepts_bytes_and_integers_only(value: Any) -> None:
    """With "raw" the user encodes, and is told so."""
    with pytest.raises(SerializationError, match=f"{type(value).__name__}.*accepts bytes and int"):
        Codec("raw").encode(value)


class Trap:
    sprung = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Trap, "sprung", True)


def test_only_a_codec_that_names_pickle_unpickles() -> None:
    """Nothing of a pickle runs at a reader who did not ask for it."""
    writer = Codec("pickle", compression="zlib")
    assert stored_and_read(frozenset({Colour.RED}), writer, writer) == {Colour.RED}
    data, flags = writer.encode(Trap())
    assert flags == PICKLE
    for name in ("msgpack", "json", "raw", pickle):
        with pytest.raises(DecodingError, match="pickle"):
            Codec(name).decode(data, flags)
    assert not Trap.sprung
    writer.decode(data, flags)
    assert Trap.sprung


def test_what_pickle_cannot_write_is_refused_by_name() -> None:
    """Whatever pickle raises is a `SerializationError`."""
    with pytest.raises(SerializationError, match="function"):
        Codec("pickle").encode(lambda: None)


class Reversed:
    """A serializer of one's own: text, written backwards."""

    def dumps(self, value: Any) -> bytes:
        return str(value)[::-1].encode("ascii")

    def loads(self, data: bytes) -> Any:
        return data.decode("ascii")[::-1]


def test_a_serializer_of_ones_own_writes_and_reads() -> None:
    """It sees every value but integers, and its bytes are compressed like all others."""
    own = Codec(Reversed(), compression="zlib")
    assert own.encode("abc") == (b"cba", CUSTOM)
    assert own.encode(12) == (b"12", INT)
    assert stored_and_read("abc" * 1000, own, own) == "abc" * 1000
    assert own.decode(*DEFAULT.encode((1, 2))) == (1, 2)


def test_only_a_codec_with_a_serializer_of_its_own_reads_its_values() -> None:
    """Others cannot know what the bytes mean."""
    with pytest.raises(DecodingError, match="custom"):
        DEFAULT.decode(b"cba", CUSTOM)


def test_errors_of_a_serializer_of_ones_own_are_the_librarys() -> None:
    """Whatever it raises, callers see the two errors they know."""
    own = Codec(Reversed())
    with pytest.raises(SerializationError, match=r"str cannot be encoded by .*Reversed"):
        own.encode("ä")
    with pytest.raises(DecodingError):
        own.decode(b"\xff", CUSTOM)


def test_a_serializer_that_gives_no_bytes_is_told_so() -> None:
    """The json module has the two methods, but gives text."""
    with pytest.raises(SerializationError, match=r"str .*must give bytes"):
        Codec(json).encode([1])  # type: ignore[arg-type]


# --- settings and limits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("serializer", ["yaml", "", None, object(), ["msgpack"]])
def test_an_unknown_serializer_is_refused_with_the_choices(serializer: Any) -> None:
    """The message lists what can be chosen."""
    with pytest.raises(ValueError, match="'msgpack', 'json', 'raw', 'pickle', or pass an object with dumps and loads"):
        Codec(serializer)


def test_an_unknown_compression_is_refused_with_the_choices() -> None:
    """The message lists what can be chosen; "none" is a choice."""
    with pytest.raises(ValueError, match=r'lzma.*"zlib" or "zstd"'):
        Codec(compression="lzma")
    assert Codec(compression="none", compress_above=0).encode(b"a" * 99) == (b"a" * 99, RAW)


@pytest.mark.parametrize("setting", [{"compress_above": -1}, {"max_value": 0}])
def test_limits_that_make_no_sense_are_refused(setting: dict[str, int]) -> None:
    """A negative threshold or a limit that nothing meets is a mistake."""
    with pytest.raises(ValueError, match=next(iter(setting))):
        Codec(**setting)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "size"), [(b"a" * 101, 101), ("a" * 99, 101), (10**100, 101), ([b"a" * 60, b"b" * 60], 125)]
)
def test_a_value_that_is_too_large_is_refused_with_both_sizes(value: Any, size: int) -> None:
    """The error carries the encoded size and the limit; one byte less passes."""
    with pytest.raises(ValueTooLarge) as caught:
        Codec(max_value=100).encode(value)
    assert (caught.value.size, caught.value.limit) == (size, 100)
    assert stored_and_read(value, Codec(max_value=size)) == value


def test_the_limit_holds_for_what_is_stored_not_for_what_was_given() -> None:
    """A value that compresses to less than the limit is stored."""
    assert stored_and_read(b"a" * 5000, Codec(compression="zlib", max_value=100)) == b"a" * 5000


# --- bytes that nobody wrote ------------------------------------------------------------------------------------------

flag_bytes = st.integers(0, 255) | st.sampled_from([form | how for form in range(6) for how in (0, ZLIB, ZSTD)])


@st.composite
def damaged(draw: st.DrawFn) -> tuple[bytes, int]:
    """Something that was stored, with a few bytes changed, cut out or put in."""
    writer = Codec(draw(st.sampled_from(["msgpack", "json"])), draw(st.sampled_from([None, "zlib"])), compress_above=0)
    data, flags = writer.encode(draw(values if writer.serializer == "msgpack" else json_values))
    for _ in range(draw(st.integers(1, 3))):
        at, cut = draw(st.integers(0, len(data))), draw(st.integers(0, 2))
        data = data[:at] + draw(st.binary(max_size=3)) + data[at + cut :]
    return data, flags


def decodes_or_refuses(data: bytes, flags: int, codec: Codec = DEFAULT) -> None:
    try:
        value = codec.decode(data, flags)
    except DecodingError:
        return
    if flags & 0x0F == MSGPACK:
        assert same(stored_and_read(value), value), "what was decoded is no value of ours"


@given(st.binary(max_size=60), flag_bytes, st.sampled_from([DEFAULT, Codec("raw", "zlib"), Codec(Reversed())]))
@settings(max_examples=400)
def test_random_bytes_decode_or_are_a_decoding_error(data: bytes, flags: int, codec: Codec) -> None:
    """No bytes under any flags raise anything else, and none gives a value that could not have been stored."""
    decodes_or_refuses(data, flags, codec)


@given(damaged())
@settings(max_examples=400)
def test_damaged_values_decode_or_are_a_decoding_error(stored: tuple[bytes, int]) -> None:
    """The same for bytes that are nearly right, which reach further into the readers."""
    decodes_or_refuses(*stored)


def ext(code: int, payload: bytes) -> bytes:
    return bytes(msgpack.packb(msgpack.ExtType(code, payload)))


@given(st.integers(0, 20), st.binary(max_size=30) | any_text.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_random_extensions_decode_or_are_a_decoding_error(code: int, payload: bytes) -> None:
    """Every extension reader meets bytes and text that are none of its own."""
    decodes_or_refuses(ext(code, payload), MSGPACK)


TUPLE, SET = ext(2, b""), ext(3, b"")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x01\x01", id="two values"),
        pytest.param(b"\x92\x01", id="cut short"),
        pytest.param(TUPLE, id="a mark alone"),
        pytest.param(b"\x92\x01" + TUPLE, id="a mark that is not first"),
        pytest.param(b"\x92" + TUPLE + TUPLE, id="two marks"),
        pytest.param(b"\x81\x01" + SET, id="a mark as a value"),
        pytest.param(b"\x82" + SET + b"\x01" + SET + b"\x02", id="marks as keys"),
        pytest.param(b"\x92" + ext(2, b"a") + b"\x01", id="a mark with a payload"),
        pytest.param(b"\x93" + SET + b"\x01\x01", id="a set with equal elements"),
        pytest.param(b"\x92" + SET + b"\x90", id="a set of lists"),
        pytest.param(b"\x81\x90\x01", id="a list as a key"),
        pytest.param(b"\x81" + ext(7, b"sNaN") + b"\x01", id="a key without a hash"),
        pytest.param(ext(99, b""), id="an unknown extension"),
        pytest.param(ext(4, b"2024-01-01"), id="a datetime without fold"),
        pytest.param(ext(4, b"2024-01-01|2"), id="a datetime with fold 2"),
        pytest.param(ext(4, b"2024-01-01|0|zone|Middle/Earth"), id="a zone that is not known here"),
        pytest.param(ext(4, b"2024-01-01|0|zone|../../../etc/passwd"), id="a zone that is a path"),
        pytest.param(ext(4, b"2024-01-01|0|999999999999"), id="an offset of days"),
        pytest.param(ext(6, b"\x7f" * 20), id="a timedelta of ages"),
        pytest.param(ext(8, b"short"), id="a short UUID"),
        pytest.param(b"\xd6\xff\xff\xff\xff\xff"[:5], id="a timestamp cut short"),
        pytest.param(b"\xc7\x0c\xff" + b"\0" * 4 + b"\x7f" + b"\xff" * 7, id="a timestamp of no year"),
    ],
)
def test_malformed_messagepack_is_a_decoding_error(data: bytes) -> None:
    """Each way to be wrong that the format offers."""
    with pytest.raises(DecodingError):
        DEFAULT.decode(data, MSGPACK)


ZSTD_CLAIM = b"\x28\xb5\x2f\xfd\xe0"  # "a frame of so many bytes follows"


@pytest.mark.parametrize(
    ("data", "flags"),
    [
        pytest.param(b"\x91" * 1_000_000, MSGPACK, id="deep arrays"),
        pytest.param((b"\x92" + TUPLE) * 100_000, MSGPACK, id="deep tuples"),
        pytest.param(b"[" * 1_000_000, JSON, id="deep JSON"),
        pytest.param(b'{"a":' * 200_000, JSON, id="deep JSON objects"),
        pytest.param(b"\xdd\xff\xff\xff\xff", MSGPACK, id="an array of 4 G elements"),
        pytest.param(b"\xdf\xff\xff\xff\xff", MSGPACK, id="a map of 4 G pairs"),
        pytest.param(b"\xc6\xff\xff\xff\xff", MSGPACK, id="4 GB of bytes"),
        pytest.param(b"\xc9\xff\xff\xff\xff\x01", MSGPACK, id="an extension of 4 GB"),
        pytest.param(ZSTD_CLAIM + struct.pack("<Q", 1 << 60), RAW | ZSTD, id="zstd that claims 1 EB"),
        pytest.param(b"x\x9c", RAW | ZLIB, id="zlib without an end"),
    ],
)
def test_huge_claims_and_deep_nesting_cost_no_memory(data: bytes, flags: int) -> None:
    """The data's own length bounds what is allocated, whatever it claims."""
    tracemalloc.start()
    try:
        with pytest.raises(DecodingError):
            DEFAULT.decode(data, flags)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def peak_memory() -> int:
    """Bytes that this process ever had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_nested_claims_that_each_fit_the_length_cost_little_memory() -> None:
    """Arrays within arrays, each said to fill the data: room is set aside but never touched, so never resident."""
    data = ((b"\xdd" + struct.pack(">I", 1_000_000)) * 1000).ljust(1 << 20, b"\0")
    before = peak_memory()
    with pytest.raises(DecodingError):
        DEFAULT.decode(data, MSGPACK)
    assert peak_memory() - before < 256 << 20


def zlib_bomb(size: int) -> bytes:
    return zlib.compress(bytes(size), 1)


def zstd_bomb(size: int) -> bytes:
    return bytes(zstandard.ZstdCompressor().compress(bytes(size)))


def zstd_bomb_of_unknown_size(size: int) -> bytes:
    compressor = zstandard.ZstdCompressor().compressobj()
    return bytes(compressor.compress(bytes(size)) + compressor.flush())


@pytest.mark.parametrize(
    ("bomb", "flag"),
    [
        pytest.param(zlib_bomb, ZLIB, id="zlib"),
        pytest.param(zstd_bomb, ZSTD, marks=needs_zstd, id="zstd"),
        pytest.param(zstd_bomb_of_unknown_size, ZSTD, marks=needs_zstd, id="zstd of unknown size"),
    ],
)
def test_decompression_stops_at_the_limit(
    bomb: Callable[[int], bytes], flag: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much as the limit is decompressed, one byte more is a bomb."""
    monkeypatch.setattr(codec_module, "DECOMPRESSED_MAX", 100_000)
    assert DEFAULT.decode(bomb(100_000), RAW | flag) == bytes(100_000)
    with pytest.raises(DecodingError):
        DEFAULT.decode(bomb(100_001), RAW | flag)


def test_what_would_not_be_decompressed_is_not_compressed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value above the limit of decompression is stored as it is, where its size is allowed at all."""
    monkeypatch.setattr(codec_module, "DECOMPRESSED_MAX", 10_000)
    codec = Codec(compression="zlib")
    assert codec.encode(bytes(10_000))[1] == RAW | ZLIB
    assert codec.encode(bytes(10_001)) == (bytes(10_001), RAW)


def test_the_limit_of_decompression_is_64_mib() -> None:
    """The constant that the documentation names."""
    assert DECOMPRESSED_MAX == 64 * 1024 * 1024


@pytest.mark.parametrize("compression", ["zlib", pytest.param("zstd", marks=needs_zstd)])
def test_compressed_bytes_cut_short_or_followed_by_others_are_a_decoding_error(compression: str) -> None:
    """One stream, whole, and nothing after it."""
    data, flags = Codec(compression=compression).encode(b"ab" * 5000)
    for wrong in (data[:-1], data[:5], b"", data + b"x", data + data):
        with pytest.raises(DecodingError):
            DEFAULT.decode(wrong, flags)


@pytest.mark.parametrize("flags", [3 << 4, 1 << 6, 1 << 7, 6, 15, 256, -1])
def test_unknown_flags_are_a_decoding_error(flags: int) -> None:
    """What a later version may write is not guessed at."""
    with pytest.raises(DecodingError):
        DEFAULT.decode(b"abc", flags)


# --- Zstandard: absent, or Python's own -------------------------------------------------------------------------------


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What can be imported as Zstandard during a test: name to module, at first none."""
    present: dict[str, Any] = {}

    def import_module(name: str) -> Any:
        if name not in present:
            raise ImportError(name)
        return present[name]

    monkeypatch.setattr(importlib, "import_module", import_module)
    codec_module._zstd_method.cache_clear()
    yield present
    codec_module._zstd_method.cache_clear()


@pytest.mark.usefixtures("modules")
def test_zstd_that_is_not_installed_is_refused_with_the_remedy() -> None:
    """Who asks for it learns what to install."""
    with pytest.raises(ValueError, match=r"pip install dcache-py\[zstd\]"):
        Codec(compression="zstd")


@pytest.mark.usefixtures("modules")
def test_a_value_compressed_with_zstd_does_not_decode_without_it() -> None:
    """Another writer's choice is at worst a miss."""
    with pytest.raises(DecodingError, match="not installed"):
        DEFAULT.decode(b"\x28\xb5\x2f\xfd\x00\x00\x00", MSGPACK | ZSTD)


def test_pythons_own_zstd_comes_first(modules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module has zlib's interface, so zlib stands in for it: flags, limit and unfinished streams are as above."""
    own = types.SimpleNamespace(compress=zlib.compress, ZstdDecompressor=zlib.decompressobj)
    modules.update({"compression.zstd": own, "zstandard": None})
    monkeypatch.setattr(codec_module, "DECOMPRESSED_MAX", 10_000)
    codec = Codec(compression="zstd")
    data, flags = codec.encode(bytes(10_000))
    assert flags == RAW | ZSTD
    assert codec.decode(data, flags) == bytes(10_000)
    for wrong in (data[:-1], data + b"x", zlib.compress(bytes(10_001))):
        with pytest.raises(DecodingError):
            codec.decode(wrong, flags)


# --- sharing ----------------------------------------------------------------------------------------------------------


def test_threads_share_a_codec() -> None:
    """Many threads encode and decode at once, and each gets its own."""
    codec = Codec(compression="zlib", compress_above=100)
    wrong: list[Any] = []

    def work(number: int) -> None:
        for round_number in range(100):
            value = [(number, round_number), {str(number)}, Decimal(number), "a" * number * 20]
            if not same(stored_and_read(value, codec, codec), value):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_encoding_may_happen_within_encoding() -> None:
    """A serializer of one's own may use the codec of the same process while a value is under way."""

    class Wrapping:
        def dumps(self, value: Any) -> bytes:
            return DEFAULT.encode([value])[0]

        def loads(self, data: bytes) -> Any:
            return DEFAULT.decode(data, MSGPACK)[0]

    own = Codec(Wrapping())
    assert stored_and_read((1, "a"), own, own) == (1, "a")


def test_codecs_with_equal_settings_are_equal() -> None:
    """Settings make a codec; its repr shows them."""
    assert Codec("json", "zlib") == Codec("json", "zlib") != DEFAULT
    assert repr(DEFAULT) == "Codec(serializer='msgpack', compression=None, compress_above=1024, max_value=1048576)"


def test_a_uuid_keeps_its_number() -> None:
    """How safely it was made is not kept: `is_safe` takes no part in what a UUID is equal to."""
    assert stored_and_read(UUID(int=5, is_safe=SafeUUID.safe)) == UUID(int=5)
