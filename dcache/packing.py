"""MessagePack in which Python's types survive exactly.

What goes in comes out with the same type, or is refused.  Subclasses are refused as well, because they would come
back as something else.

MessagePack extension types (only append).  Text is UTF-8, integers are signed, big-endian, in two's complement.

====  =========  ===================================================================================================
code  type       payload
====  =========  ===================================================================================================
-1    datetime   MessagePack's own timestamp: read as a datetime in UTC, never written
1     int        an integer that needs more than 64 bits
2     tuple      empty: a mark, the first element of an array that holds the tuple's elements after it
3     set        empty: a mark, as for the tuple
4     datetime   text ``ISO|fold``, ``ISO|fold|offset``, ``ISO|fold|offset|name`` or ``ISO|fold|zone|key``: local time
                 in ISO 8601, fold 0 or 1, then nothing (naive), or the offset from UTC in microseconds and the name,
                 if it was given one, or the word "zone" and a key of the IANA time zone database
5     date       text, ISO 8601
6     timedelta  an integer, microseconds
7     Decimal    text, as Python writes it: exponent, NaN payload and sign kept
8     UUID       16 bytes
====  =========  ===================================================================================================
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack

from dcache.errors import DecodingError, SerializationError


def type_name(value: object) -> str:
    """A value's type as error messages name it."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


_BIG_INT, _TUPLE, _SET, _DATETIME, _DATE, _TIMEDELTA, _DECIMAL, _UUID = range(1, 9)

_MICROSECOND = timedelta(microseconds=1)


class _Mark:
    """What a decoded mark stands as until the array it begins is complete."""

    __slots__ = ("make",)

    def __init__(self, make: type[tuple[Any, ...] | set[Any]]) -> None:
        self.make = make


_MARKS = {_TUPLE: _Mark(tuple), _SET: _Mark(set)}
_TUPLE_EXT, _SET_EXT = msgpack.ExtType(_TUPLE, b""), msgpack.ExtType(_SET, b"")


def _signed(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)


def _from_signed(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def _zone_text(zone: object) -> str:
    if zone is None:
        return ""
    if type(zone) is timezone:
        # The arguments the zone was made with tell a name that was given from one that Python made up.
        arguments: Any = zone.__reduce__()[1]
        offset, *name = arguments
        return "|".join([f"|{offset // _MICROSECOND}", *name])
    if type(zone) is ZoneInfo:
        try:
            zone.__reduce__()
        except pickle.PicklingError:
            pass  # read from a file: its key, if any, need not name the same rules elsewhere
        else:
            return f"|zone|{zone.key}"
    raise SerializationError(
        f"a datetime whose tzinfo is a {type_name(zone)} cannot be encoded by msgpack: accepted are none, "
        "datetime.timezone and zoneinfo.ZoneInfo(key)"
    )


def _write_datetime(value: datetime) -> bytes:
    text = f"{value.replace(tzinfo=None).isoformat()}|{value.fold}{_zone_text(value.tzinfo)}"
    return text.encode("utf-8", "surrogatepass")


def _read_datetime(data: bytes) -> datetime:
    zone: timezone | ZoneInfo | None
    match str(data, "utf-8", "surrogatepass").split("|", 3):
        case [iso, fold]:
            zone = None
        case [iso, fold, "zone", key]:
            zone = ZoneInfo(key)
        case [iso, fold, offset, *name]:
            zone = timezone(int(offset) * _MICROSECOND, *name)
        case _:
            raise DecodingError("a stored datetime is malformed")
    return datetime.fromisoformat(iso).replace(tzinfo=zone, fold=int(fold))


_EXTENSIONS: dict[type, Callable[[Any], Any]] = {
    int: lambda value: msgpack.ExtType(_BIG_INT, _signed(value)),
    tuple: lambda value: [_TUPLE_EXT, *value],
    set: lambda value: [_SET_EXT, *value],
    datetime: lambda value: msgpack.ExtType(_DATETIME, _write_datetime(value)),
    date: lambda value: msgpack.ExtType(_DATE, value.isoformat().encode()),
    timedelta: lambda value: msgpack.ExtType(_TIMEDELTA, _signed(value // _MICROSECOND)),
    Decimal: lambda value: msgpack.ExtType(_DECIMAL, str(value).encode()),
    UUID: lambda value: msgpack.ExtType(_UUID, value.bytes),
}

_READERS: dict[int, Callable[[bytes], Any]] = {
    _BIG_INT: _from_signed,
    _DATETIME: _read_datetime,
    _DATE: lambda data: date.fromisoformat(data.decode()),
    _TIMEDELTA: lambda data: _from_signed(data) * _MICROSECOND,
    _DECIMAL: lambda data: Decimal(data.decode()),
    _UUID: lambda data: UUID(bytes=data),
}

_SCALARS = frozenset({type(None), bool, float, str})
"""Types of values that hold no others and need no extension."""

_SCALAR_BYTES = bytes(first in {0xC0, 0xC2, 0xC3, 0xCB, *range(0xA0, 0xC0), 0xD9, 0xDA, 0xDB} for first in range(256))
"""For every byte, whether it begins a scalar: nil, a bool, a 64-bit float or a string."""

_SMALL = 4096
# Shared by threads, for nothing else runs while a scalar is packed.  What is larger would leave it large.
_pack_small: Callable[[object], bytes] = msgpack.Packer(unicode_errors="surrogatepass", autoreset=True).pack

_CONTAINERS = frozenset({list, tuple, dict, set})
_ACCEPTED = _CONTAINERS | _EXTENSIONS.keys() | {type(None), bool, float, str, bytes}


def _refused(value: object) -> SerializationError:
    return SerializationError(
        f"a value of type {type_name(value)} cannot be encoded by msgpack: accepted are None, bool, int, float, str, "
        "bytes, list, dict, tuple, set, datetime, date, timedelta, Decimal, UUID and nestings of them, not their "
        'subclasses; convert it, name serializer="pickle", or pass an object with dumps and loads'
    )


def _extend(value: object) -> Any:
    extension = _EXTENSIONS.get(type(value))
    if extension is None:
        raise _refused(value)
    return extension(value)


def _refuse_lookalikes(value: object) -> None:
    """Refuse what msgpack packs without asking `_extend`: bytearray, memoryview, its own ExtType and Timestamp.

    Whole containers are judged at once by the set of their types, which costs far less than looking at each element.
    """
    todo: list[Any] = [(value,)]
    while todo:
        members = todo.pop()
        if type(members) is dict:
            members = [*members, *members.values()]
        kinds = set(map(type, members))
        if not kinds <= _ACCEPTED:
            raise _refused(next(member for member in members if type(member) not in _ACCEPTED))
        if not kinds.isdisjoint(_CONTAINERS):
            todo.extend(member for member in members if type(member) in _CONTAINERS)


def pack_value(value: object) -> bytes:
    """`value` as MessagePack; `SerializationError` names the type that cannot be."""
    if type(value) in _SCALARS and (type(value) is not str or len(value) < _SMALL):
        return _pack_small(value)
    # A packer of its own per call, because packers can be shared neither by threads nor by a value that is encoded
    # while another is.  Its buffer starts small: the default of 256 KiB would be allocated each time.
    try:
        data: bytes = msgpack.packb(
            value, default=_extend, strict_types=True, unicode_errors="surrogatepass", buf_size=4096
        )
    except (ValueError, RuntimeError) as error:
        raise SerializationError(
            f"a value of type {type_name(value)} cannot be encoded by msgpack ({error}): it is nested too deeply, "
            "contains itself, or was changed meanwhile"
        ) from error
    _refuse_lookalikes(value)  # after packing, which has shown that it is finite
    return data


class _Unpacking:
    """The hooks of one decoding.  It counts marks, so that one that begins no array cannot slip out as a value."""

    __slots__ = ("open_marks",)

    def __init__(self) -> None:
        self.open_marks = 0

    def extension(self, code: int, data: bytes) -> Any:
        mark = _MARKS.get(code)
        if mark is not None and not data:
            self.open_marks += 1
            return mark
        reader = _READERS.get(code)
        if reader is None:
            raise DecodingError(f"unknown or malformed MessagePack extension {code}")
        return reader(data)

    def array(self, items: list[Any]) -> Any:
        if not items or type(items[0]) is not _Mark:
            return items
        self.open_marks -= 1
        made = items[0].make(items[1:])
        if len(made) != len(items) - 1:
            raise DecodingError("a stored set has equal elements")
        return made


def unpack_value(data: bytes) -> Any:
    """What `pack_value` was given.  Raises all sorts of exceptions for bytes that it did not write."""
    if data and _SCALAR_BYTES[data[0]]:
        return msgpack.unpackb(data, unicode_errors="surrogatepass")
    # msgpack itself limits each claimed size to the length of the data and the depth to 1,024.
    hooks = _Unpacking()
    value = msgpack.unpackb(
        data,
        ext_hook=hooks.extension,
        list_hook=hooks.array,
        strict_map_key=False,
        timestamp=3,
        unicode_errors="surrogatepass",
    )
    if hooks.open_marks:
        raise DecodingError("a stored tuple or set is malformed")
    return value
