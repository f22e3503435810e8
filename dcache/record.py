"""What a stored value is, and which of two is newer.

A version is 12 bytes that sort as bytes, big-endian: 48 bits of wall-clock milliseconds, a 16-bit counter, a 32-bit
writer id.  The newest wins, by version alone; no two writes ever share a version, because

* a writer's own clock never goes back (`VersionClock.stamp`): whose does is another writer from then on, and
* a version made just above somebody else's (`VersionClock.above`) takes a fresh writer id each time.

A node has no other notion of time order: what it forgot is remembered as one version per slot, the *floor*.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NewType

import attrs

Version = NewType("Version", bytes)
"""Twelve bytes; compare with `<` as bytes."""

ZERO = Version(bytes(12))
"""Below every version a writer can stamp: the floor of a slot that has forgotten nothing."""

COUNTER_MAX = 0xFFFF

SET_BACK = 10_000
"""Milliseconds by which a wall clock goes back only if it was set."""

WRITERS = 1 << 32


def make_version(milliseconds: int, counter: int, writer: int) -> Version:
    """The version of these three parts (48, 16 and 32 bits)."""
    return Version(((milliseconds << 48) | (counter << 32) | writer).to_bytes(12, "big"))


def version_milliseconds(version: bytes) -> int:
    """The wall-clock milliseconds since 1970 that `version` carries."""
    return int.from_bytes(version[:6], "big")


@attrs.frozen(slots=True)
class Record:
    """A stored value: its encoded bytes, its version, the remaining life in milliseconds (None: for ever), codec
    flags."""

    value: bytes
    version: Version
    ttl: int | None = None
    flags: int = 0


class VersionClock:
    """Stamps versions for one writer (a process); safe to share between threads.

    `writer` is a random 32-bit id and `wall` gives milliseconds since 1970.  The clock never goes back, even when the
    wall clock does a bit; more than 65,536 stamps in a millisecond borrow from the next one.  A wall clock that goes
    back by more than `SET_BACK` was wrong before, and perhaps so far ahead that nodes refuse what it stamps: then this
    clock follows, as another writer, so that no version is stamped twice.
    """

    def __init__(self, writer: int, wall: Callable[[], int]) -> None:
        self._wall = wall
        self.reset(writer)

    def reset(self, writer: int) -> None:
        """Become another writer: what a forked child must do before its first stamp."""
        self._lock = threading.Lock()  # guards the four below
        self._writer = writer % WRITERS
        self._other = self._writer
        self._last = 0
        self._counter = 0

    def stamp(self) -> Version:
        """A version of now, above all that this clock stamped before."""
        now = self._wall()
        with self._lock:
            return self._next(now)

    def stamps(self, n: int) -> list[Version]:
        """`n` versions of now, each as of `stamp`."""
        now, made = self._wall(), list[Version]()
        with self._lock:
            while len(made) < n:
                made.append(self._next(now))
                made.extend(self._run(n - len(made)))
        return made

    def _run(self, most: int) -> list[Version]:
        """The versions that follow the last one in its millisecond, `most` of them, or as many as there are."""
        first = self._counter + 1
        self._counter = min(self._counter + most, COUNTER_MAX)
        start, writer = self._last << 48, self._writer
        return [  # as of `make_version`, which takes as long again to call
            (start | (counter << 32) | writer).to_bytes(12, "big")  # type: ignore[misc]
            for counter in range(first, self._counter + 1)
        ]

    def _next(self, now: int) -> Version:
        if now < self._last - SET_BACK:
            self._writer = self._new_other()
            self._last = now - 1
        if now > self._last:
            self._last, self._counter = now, 0
        elif self._counter < COUNTER_MAX:
            self._counter += 1
        else:
            self._last, self._counter = self._last + 1, 0
        return make_version(self._last, self._counter, self._writer)

    def above(self, version: bytes) -> Version:
        """A version just above `version`, without taking over the other writer's clock.

        Were it to move this clock, one machine with a fast clock would drag all others along.  Uniqueness comes from
        a fresh writer id instead, counted from this writer's own.
        """
        milliseconds, counter = version_milliseconds(version), int.from_bytes(version[6:8], "big")
        if counter < COUNTER_MAX:
            counter += 1
        else:
            milliseconds, counter = milliseconds + 1, 0
        with self._lock:
            return make_version(milliseconds, counter, self._new_other())

    def _new_other(self) -> int:
        """A writer id that this clock has not used."""
        self._other = (self._other + 1) % WRITERS
        if self._other == self._writer:
            self._other = (self._other + 1) % WRITERS
        return self._other
