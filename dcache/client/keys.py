"""Keys for calls: which calls of a function share a cached result.

A call is first bound to the function's signature, with defaults filled in, so `f(1, b=2)` and `f(1, 2)` agree.  Then

* with no `key`, the arguments are written in one canonical form, with their types (`1`, `1.0` and `True` differ), sets
  and dicts sorted, and hashed; module, qualified name and version stand before the hash;
* a template, `"user:{id}"` or `"user:{self.id}"`, is filled in and is literally the key;
* a callable is given the call's arguments and returns the key.

A value enters a key only if it has a representation that is the same in every process: those that msgpack stores, enum
members, classes, and whatever has `__cache_key__`, an attribute or method that gives such a value.  Times in a zone are
told apart by the zone's name, so it has to have one.
"""

from __future__ import annotations

import enum
import hashlib
import inspect
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

KeyFunction = Callable[..., str | bytes]
_PLAIN = (type(None), bool, int, float, str, bytes, datetime, date, time, timedelta, Decimal, UUID)
_LONGEST = 200  # characters of module, name and version that still stand readably before the hash


class KeyMaker:
    """Makes the keys of one function.  `ValueError` or `TypeError` for settings that do not fit its signature."""

    def __init__(
        self,
        function: Callable[..., Any],
        key: str | KeyFunction | None = None,
        ignore: Collection[str] = (),
        version: str | int | None = None,
    ) -> None:
        self._signature = inspect.signature(function)
        self._ignore = frozenset([ignore] if isinstance(ignore, str) else ignore)
        self._check_names("ignore", self._ignore)
        if key is not None and (self._ignore or version is not None):
            raise ValueError("ignore and version are for made keys; with key= put into the key what tells calls apart")
        if isinstance(key, str):
            self._check_names("key", set(_roots(key)))
        self._key = key
        self.name = f"{function.__module__}.{function.__qualname__}"
        prefix = f"{self.name}:{'' if version is None else version}:"
        self._prefix = prefix if len(prefix) <= _LONGEST else _hash(prefix.encode()) + ":"

    def make(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | bytes:
        """The key of a call; `TypeError` if its arguments do not fit, or one has no stable representation."""
        if callable(self._key):
            return self._key(*args, **kwargs)
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if isinstance(self._key, str):
            return _TEMPLATE.vformat(self._key, (), bound.arguments)
        parts = bytearray()
        for name, value in bound.arguments.items():
            if name not in self._ignore:
                parts += _tagged("=", name.encode())
                parts += _argument(name, value)
        return self._prefix + _hash(bytes(parts))

    def _check_names(self, setting: str, names: Iterable[str]) -> None:
        unknown = sorted(set(names) - set(self._signature.parameters))
        if unknown:
            raise ValueError(f"{setting} names {', '.join(unknown)}, which the function does not have as a parameter")


def _argument(name: str, value: Any) -> bytes:
    try:
        return canonical(value)
    except TypeError as error:
        remedy = "give its class __cache_key__, name it in ignore=, or name what matters of it in a template key"
        raise TypeError(f"argument {name!r}: {error}; {remedy}") from None


def canonical(value: Any) -> bytes:
    """Bytes that are equal in every process exactly when two values are equal and of the same types.

    `TypeError` for what has no such form.
    """
    kind = type(value)
    if kind in _PLAIN:
        return _tagged(kind.__name__, _plain(value) + _zone(value))
    if kind in (list, tuple):
        return _tagged(kind.__name__, b"".join(map(canonical, value)))
    if kind in (set, frozenset):
        return _tagged(kind.__name__, b"".join(sorted(map(canonical, value))))
    if kind is dict:
        return _tagged("dict", b"".join(sorted(canonical(key) + canonical(item) for key, item in value.items())))
    if isinstance(value, type):
        return _tagged("type", f"{value.__module__}.{value.__qualname__}".encode())
    if isinstance(value, enum.Enum):
        return _tagged("enum", canonical(kind) + canonical(_member(value)))
    own = getattr(value, "__cache_key__", None)
    if own is not None:
        return _tagged("own", canonical(kind) + canonical(own() if callable(own) else own))
    raise TypeError(f"a {kind.__qualname__} has no representation that is the same in every process")


def _plain(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text.encode("utf-8", "surrogatepass")


def _zone(value: Any) -> bytes:
    """What `repr` of a time might not say the same way in every process: which zone it is in."""
    zone = getattr(value, "tzinfo", None)
    if zone is None or type(zone) is timezone or getattr(zone, "key", None) is not None:
        return b""
    raise TypeError(f"a {type(zone).__qualname__}, the zone of a time, has no name that is the same in every process")


def _member(value: Any) -> Any:
    """Flags may have bits that no member names."""
    return value.value if value.name is None else value.name


def _tagged(tag: str, data: bytes) -> bytes:
    """With its length, so that no two sequences of values run together the same way."""
    return f"{tag}:{len(data)}:".encode() + data


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _roots(template: str) -> Iterator[str]:
    """The parameters that a template names, in its format specifications too: "{price:{width}}"."""
    for _, field, spec, _ in _TEMPLATE.parse(template):
        if field is not None:
            yield field.replace("[", ".").split(".")[0]
            yield from _roots(spec or "")


class _Template(string.Formatter):
    """`str.format` that refuses what would print as an address in memory."""

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return kwargs[str(key)]

    def convert_field(self, value: Any, conversion: Any) -> Any:
        own = getattr(value, "__cache_key__", None)
        if own is not None and not isinstance(value, type):
            value = own() if callable(own) else own
        if isinstance(value, enum.Enum):
            value = _member(value)
        if type(value) not in _PLAIN:
            raise TypeError(f"the template names a {type(value).__qualname__}: name something printable of it instead")
        return super().convert_field(value, conversion)


_TEMPLATE = _Template()
