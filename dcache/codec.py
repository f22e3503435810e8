"""Values to bytes and back.

A stored value is bytes and a small number, its *flags*.  The flags say all that is needed to read it again, so a reader
never depends on the settings of the writer.  Two forms are kept for those who ask: only a codec that names pickle ever
unpickles, and only a codec with a serializer object of its own reads what such an object wrote.

Flags, one byte (only append):

=========  =======  ====================================================================================
bits 0-3   0        raw: the bytes are the value
           1        integer: ASCII decimal up to 2,048 bits, ``[-]0x`` and hexadecimal digits above;
                    never compressed; the same under every serializer, so that counters can be counted
           2        MessagePack with the extensions below
           3        JSON in UTF-8
           4        pickle, protocol 5
           5        whatever the user's own serializer wrote
bits 4-5   0 1 2    not compressed, one zlib stream, one Zstandard frame
bits 6-7   0        reserved
=========  =======  ====================================================================================

What MessagePack stores survives with its exact type, or is refused; how is told in `packing`.  Bytes that no codec of
ours wrote give `DecodingError` and nothing worse: sizes claimed by the data are held against its length, and
decompression stops at `DECOMPRESSED_MAX`.
"""

from __future__ import annotations

import functools
import importlib
import json
import pickle
import re
import zlib
from collections.abc import Callable
from typing import Any, Final, Protocol, runtime_checkable

import attrs

from dcache.errors import DecodingError, NotACounter, SerializationError, ValueTooLarge
from dcache.packing import pack_value, type_name, unpack_value

RAW, INT, MSGPACK, JSON, PICKLE, CUSTOM = range(6)
"""Forms: the low four bits of the flags."""

ZLIB, ZSTD = 1 << 4, 2 << 4
"""Compressions: bits 4 and 5 of the flags."""

DECOMPRESSED_MAX: Final = 64 << 20
"""No value is larger than this, in bytes, after decompression; larger ones are written without compression."""

_FORM_BITS = 0x0F
_FORM_NAMES = ("raw", "integer", "msgpack", "json", "pickle", "custom")


@runtime_checkable
class Serializer(Protocol):
    """What to pass as `serializer=` to encode in one's own way.

    Both methods may raise anything: callers see `SerializationError` and `DecodingError`.
    """

    def dumps(self, value: Any, /) -> bytes: ...

    def loads(self, data: bytes, /) -> Any: ...


# --- integers ---------------------------------------------------------------------------------------------------------

# 2,048 bits are 617 digits.  Python lets a program forbid conversions of more than 640 decimal digits or any higher
# number, but never fewer, and never restricts hexadecimal ones.
_DECIMAL_BITS = 2048
_INTEGER = re.compile(rb"-?[0-9]{1,640}")
_HEXADECIMAL = re.compile(rb"-?0x[0-9a-f]+")


def _write_int(value: int) -> bytes:
    return (b"%d" % value) if value.bit_length() <= _DECIMAL_BITS else hex(value).encode()


def _read_int(data: bytes) -> int:
    if _INTEGER.fullmatch(data):
        return int(data)
    if _HEXADECIMAL.fullmatch(data):
        return int(data, 16)
    raise DecodingError("the stored bytes are flagged as an integer and are none")


# --- the other serializers --------------------------------------------------------------------------------------------


def _refused_by_json(value: object) -> Any:
    raise SerializationError(
        f"a value of type {type_name(value)} cannot be encoded as json: convert it, or use the default serializer, "
        "which keeps more types"
    )


_JSON_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_refused_by_json)


def _write_json(value: object) -> bytes:
    try:
        return _JSON_ENCODER.encode(value).encode()
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, SerializationError):
            raise
        raise SerializationError(f"a value of type {type_name(value)} cannot be encoded as json: {error}") from error


def _read_json(data: bytes) -> Any:
    return json.loads(data.decode())


def _write_raw(value: object) -> bytes:
    if type(value) is not bytes:
        raise SerializationError(
            f'a value of type {type_name(value)} cannot be stored: serializer="raw" accepts bytes and int only; '
            "encode it yourself, or use the default serializer"
        )
    return value


def _read_raw(data: bytes) -> bytes:
    return data


def _write_pickle(value: object) -> bytes:
    try:
        return pickle.dumps(value, protocol=5)
    except Exception as error:  # objects may raise what they like from their __reduce__
        raise SerializationError(f"a value of type {type_name(value)} cannot be pickled: {error}") from error


def _write_custom(serializer: Serializer, value: object) -> bytes:
    try:
        data: object = serializer.dumps(value)
    except Exception as error:  # foreign code
        raise SerializationError(
            f"a value of type {type_name(value)} cannot be encoded by {type_name(serializer)}: {error!r}"
        ) from error
    if type(data) is not bytes:
        raise SerializationError(
            f"{type_name(serializer)}.dumps gave {type_name(data)} for a value of type {type_name(value)}: it must "
            "give bytes"
        )
    return data


_WRITERS: dict[str, tuple[int, Callable[[object], bytes]]] = {
    "msgpack": (MSGPACK, pack_value),
    "json": (JSON, _write_json),
    "raw": (RAW, _write_raw),
    "pickle": (PICKLE, _write_pickle),
}

_ALWAYS_READ: dict[int, Callable[[bytes], Any]] = {RAW: _read_raw, MSGPACK: unpack_value, JSON: _read_json}


# --- compression ------------------------------------------------------------------------------------------------------


@attrs.frozen(slots=True)
class _Compression:
    flag: int
    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes], bytes]


def _decompress_bounded(decompressor: Any, data: bytes) -> bytes:
    """All of one stream.  zlib's decompressor and the one of Python's own Zstandard module work alike."""
    plain: bytes = decompressor.decompress(data, DECOMPRESSED_MAX + 1)
    if len(plain) > DECOMPRESSED_MAX:
        raise DecodingError(f"a stored value is larger than {DECOMPRESSED_MAX} bytes when decompressed")
    if not decompressor.eof or decompressor.unused_data:
        raise DecodingError("a compressed stored value is cut short or too long")
    return plain


_ZLIB_METHOD = _Compression(ZLIB, zlib.compress, lambda data: _decompress_bounded(zlib.decompressobj(), data))


def _builtin_zstd(module: Any) -> _Compression:
    return _Compression(ZSTD, module.compress, lambda data: _decompress_bounded(module.ZstdDecompressor(), data))


def _packaged_zstd(module: Any) -> _Compression:
    def decompress(data: bytes) -> bytes:
        # This package believes a frame that states its size, whatever the limit; -1 means that it states none.
        if module.frame_content_size(data) > DECOMPRESSED_MAX:
            raise DecodingError(f"a stored value is larger than {DECOMPRESSED_MAX} bytes when decompressed")
        plain: bytes = module.ZstdDecompressor().decompress(
            data, max_output_size=DECOMPRESSED_MAX, allow_extra_data=False
        )
        return plain

    return _Compression(ZSTD, lambda data: module.ZstdCompressor().compress(data), decompress)


@functools.cache
def _zstd_method() -> _Compression | None:
    """Zstandard from wherever it can be had, or None.  Looked for once, and only when somebody asks for it."""
    for name, adapt in (("compression.zstd", _builtin_zstd), ("zstandard", _packaged_zstd)):
        try:
            return adapt(importlib.import_module(name))
        except ImportError:
            continue
    return None


def _compression_named(name: str | None) -> _Compression | None:
    if name is None or name == "none":
        return None
    if name == "zlib":
        return _ZLIB_METHOD
    if name != "zstd":
        raise ValueError(f'compression is {name!r}: choose None, "none", "zlib" or "zstd"')
    method = _zstd_method()
    if method is None:
        raise ValueError('compression is "zstd", which is not installed: pip install dcache-py[zstd]')
    return method


def _decompress(data: bytes, flag: int) -> bytes:
    if flag == ZLIB:
        return _ZLIB_METHOD.decompress(data)
    if flag != ZSTD:
        raise DecodingError(f"unknown compression (flags {flag:#x})")
    method = _zstd_method()
    if method is None:
        raise DecodingError("a stored value is compressed with zstd, which is not installed here")
    return method.decompress(data)


# --- the codec --------------------------------------------------------------------------------------------------------


def _writer_of(serializer: str | Serializer) -> tuple[int, Callable[[object], bytes]]:
    if isinstance(serializer, str):
        if serializer in _WRITERS:
            return _WRITERS[serializer]
    elif isinstance(serializer, Serializer):
        return CUSTOM, functools.partial(_write_custom, serializer)
    raise ValueError(
        f"serializer is {serializer!r}: choose {', '.join(map(repr, _WRITERS))}, or pass an object with dumps and loads"
    )


def _readers_of(serializer: str | Serializer) -> dict[int, Callable[[bytes], Any]]:
    if not isinstance(serializer, str):
        return {**_ALWAYS_READ, CUSTOM: serializer.loads}
    return {**_ALWAYS_READ, PICKLE: pickle.loads} if serializer == "pickle" else _ALWAYS_READ


@attrs.frozen(slots=True)
class Codec:
    """How one client writes values, and how it reads what any client wrote.  Safe to share between threads.

    * `serializer`: "msgpack" (default; exact types, see the module), "json" (what JSON makes of a value: tuples come
      back as lists, keys of dicts as str), "raw" (bytes only), "pickle" (only for data that nobody else can write:
      reading a pickle runs what it says), or an object with `dumps` and `loads`.  Integers have one form under all.
    * `compression`: None or "none" (default), "zlib", "zstd".  Applied to encodings of more than `compress_above` bytes
      (1,024) and kept where it makes them smaller.
    * `max_value`: the limit in bytes of what is stored, after compression (1 MiB).

    A setting that makes no sense raises ValueError.
    """

    serializer: str | Serializer = "msgpack"
    compression: str | None = None
    compress_above: int = attrs.field(default=1024, validator=attrs.validators.ge(0))
    max_value: int = attrs.field(default=1 << 20, validator=attrs.validators.ge(1))
    _writer: tuple[int, Callable[[object], bytes]] = attrs.field(init=False, repr=False, eq=False)
    _readers: dict[int, Callable[[bytes], Any]] = attrs.field(init=False, repr=False, eq=False)
    _method: _Compression | None = attrs.field(init=False, repr=False, eq=False)

    @_writer.default
    def _choose_writer(self) -> tuple[int, Callable[[object], bytes]]:
        return _writer_of(self.serializer)

    @_readers.default
    def _choose_readers(self) -> dict[int, Callable[[bytes], Any]]:
        return _readers_of(self.serializer)

    @_method.default
    def _choose_method(self) -> _Compression | None:
        return _compression_named(self.compression)

    def encode(self, value: Any) -> tuple[bytes, int]:
        """The bytes to store and their flags.  Raises `SerializationError` or `ValueTooLarge`."""
        if type(value) is int:
            return self.encode_counter(value)
        form, write = self._writer
        if type(value) is bytes and form == MSGPACK:
            form, data = RAW, value
        else:
            data = write(value)
        if self._method is not None:
            data, compression = self._compressed(self._method, data)
            form |= compression
        return self._checked(data), form

    def decode(self, data: bytes, flags: int) -> Any:
        """The value that was stored as these bytes with these flags.  Raises `DecodingError`, never anything else."""
        if flags == MSGPACK:  # every codec reads it, and nearly all values have this form
            try:
                return unpack_value(data)
            except DecodingError:
                raise
            except Exception as error:
                raise _undecodable(flags, error) from error
        if flags == INT:
            return _read_int(data)
        form, compression = flags & _FORM_BITS, flags & ~_FORM_BITS
        read = self._readers.get(form)
        if read is None:
            raise DecodingError(f"this codec does not read {_form_name(flags)} values")
        try:
            return read(_decompress(data, compression) if compression else data)
        except DecodingError:
            raise
        except Exception as error:  # whatever the readers make of bytes that nobody wrote
            raise _undecodable(flags, error) from error

    def encode_counter(self, number: int) -> tuple[bytes, int]:
        """The stored form of an integer: what `encode` gives too.  Raises `ValueTooLarge`."""
        return self._checked(_write_int(number)), INT

    def decode_counter(self, data: bytes, flags: int) -> int:
        """The integer that was stored as these bytes.  Raises `NotACounter` if it was not one."""
        if flags != INT:
            raise NotACounter(f"the stored value is not an integer (its form is {_form_name(flags)})")
        try:
            return _read_int(data)
        except DecodingError as error:
            raise NotACounter(str(error)) from error

    def _compressed(self, method: _Compression, data: bytes) -> tuple[bytes, int]:
        if not self.compress_above < len(data) <= DECOMPRESSED_MAX:
            return data, 0
        smaller = method.compress(data)
        return (smaller, method.flag) if len(smaller) < len(data) else (data, 0)

    def _checked(self, data: bytes) -> bytes:
        if len(data) > self.max_value:
            raise ValueTooLarge(len(data), self.max_value)
        return data


def _undecodable(flags: int, error: Exception) -> DecodingError:
    return DecodingError(f"a stored {_form_name(flags)} value does not decode: {error!r}")


def _form_name(flags: int) -> str:
    form = flags & _FORM_BITS
    return _FORM_NAMES[form] if form < len(_FORM_NAMES) else f"unknown (flags {flags:#x})"
