"""How a node keeps a record: as the bytes that it answers a `get` with.

====================  =================================================================================================
byte                  what is there
====================  =================================================================================================
0                     0x95, an array of five; 0x00 if the record has a lifetime
1                     0xc3, true: these bytes are only answered with where this node's word counts
2, 3                  0xc4 0x0c, twelve binary bytes
4 to 15               the version
16 and the 1, 2 or 4  a binary value of that size: 0xc4, 0xc5 or 0xc6, the shortest that does
then                  the value
then 1 or 2           the flags: one byte below 128, else 0xcc and one byte
last                  0xc0, nil; if the record has a lifetime, its deadline in nine bytes instead
====================  =================================================================================================

So what has no lifetime is the MessagePack of `(True, version, value, flags, None)` as it stands, and a hit costs no
encoding.  One object instead of a tuple of four also takes half the memory, and is nothing that the garbage collector
would look at: a million objects that it tracks it goes through again and again, for some 0.1 s each time.
"""

from __future__ import annotations

import attrs

from dcache.record import Version
from dcache.wire import pack

_ARRAY = b"\x95"
_WITHOUT_END, _WITH_END = b"\x95\xc3\xc4\x0c", b"\x00\xc3\xc4\x0c"
_VERSION_END = 16
_DEADLINE = 9  # bytes: a lifetime may take eight of its own
_CHEAP = 4096  # bytes: up to here to copy them once more takes less than to look at them in place
_FLAGS = [pack(flags) for flags in range(256)]
_LAST = [flags + b"\xc0" for flags in _FLAGS]
_BIN8 = [pack(bytes(size))[:2] for size in range(256)]


def hold(version: bytes, value: bytes, flags: int, deadline: int | None) -> bytes:
    """The record as it is kept; `deadline` in ms on the store's clock, None for no expiry."""
    size = len(value)
    head = _BIN8[size] if size < 256 else _long_head(size)
    if deadline is None:
        return b"".join((_WITHOUT_END, version, head, value, _LAST[flags]))
    return b"".join((_WITH_END, version, head, value, _FLAGS[flags], deadline.to_bytes(_DEADLINE, "big")))


def _long_head(size: int) -> bytes:
    return b"\xc5" + size.to_bytes(2, "big") if size < 1 << 16 else b"\xc6" + size.to_bytes(4, "big")


def answer(held: bytes, now: int) -> bytes | None:
    """The MessagePack of `(True, version, value, flags, ttl)`; None once its life is over."""
    if held[0]:
        return held
    left = ends_at(held) - now
    if left <= 0:
        return None
    rest = held[1:-_DEADLINE] if len(held) < _CHEAP else memoryview(held)[1:-_DEADLINE]
    return b"".join((_ARRAY, rest, pack(left)))


def shortened(held: bytes, deadline: int) -> bytes:
    """The same record with this deadline."""
    rest = memoryview(held)[1 : -1 if held[0] else -_DEADLINE]
    return b"".join((_WITH_END[:1], rest, deadline.to_bytes(_DEADLINE, "big")))


def version_of(held: bytes) -> Version:
    return held[4:_VERSION_END]  # type: ignore[return-value]  # to call what only checkers see takes as long again


def deadline_of(held: bytes) -> int | None:
    return None if held[0] else ends_at(held)


def ends_at(held: bytes) -> int:
    """The deadline of what has a lifetime: what begins with a zero byte."""
    return int.from_bytes(held[-_DEADLINE:], "big")


def value_size(held: bytes) -> int:
    kind = held[_VERSION_END]
    return held[17] if kind == 0xC4 else int.from_bytes(held[17 : 19 if kind == 0xC5 else 21], "big")


@attrs.define
class Entry:
    """What is held, taken apart when it is asked for: the value is copied each time."""

    _held: bytes

    @property
    def version(self) -> Version:
        return version_of(self._held)

    @property
    def value(self) -> bytes:
        start, end = self._span()
        return self._held[start:end]

    @property
    def size(self) -> int:
        """Of the value, in bytes."""
        return value_size(self._held)

    @property
    def flags(self) -> int:
        _, end = self._span()
        flags = self._held[end]
        return flags if flags < 128 else self._held[end + 1]

    @property
    def deadline(self) -> int | None:
        """On the store's clock in ms, None for no expiry."""
        return deadline_of(self._held)

    def ttl(self, now: int) -> int | None:
        """The remaining life in ms, at least 1."""
        deadline = self.deadline
        return None if deadline is None else max(1, deadline - now)

    def _span(self) -> tuple[int, int]:
        start = {0xC4: 18, 0xC5: 19, 0xC6: 21}[self._held[_VERSION_END]]
        return start, start + self.size
