"""What a caller does: operations, drawn from a workload.

An operation is a generator that yields calls of a client, `(method, arguments)`, and is sent what they return, or
thrown what they raise.  Who runs it only makes the calls, so threads and tasks run the same one, and so does who wants
to know how long all but the calls takes.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Generator, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import attrs

from dcache.errors import DcacheError
from dcache.testing.load.keys import Chooser, Keys, Uniform, Zipf
from dcache.testing.load.tally import FILL, Tally
from dcache.testing.load.workload import Workload

T = TypeVar("T")
Call = tuple[str, tuple[Any, ...]]
Steps = Generator[Call, Any, T]

NOISE = 1 << 20
"""Bytes of which values are the beginnings: making one is a copy of it, or nothing where it is always the same."""


@attrs.frozen
class Load:
    """A workload, made ready to be drawn from by any number of callers, `batch` keys at a time."""

    workload: Workload
    batch: int
    keys: Keys
    chooser: Chooser
    noise: bytes
    clock: Callable[[], int]

    @classmethod
    def of(cls, workload: Workload, batch: int, seed: int, clock: Callable[[], int]) -> Load:
        """`clock` is in nanoseconds."""
        keys = Keys(workload.keys, workload.key_sizes)
        even = workload.distribution == "uniform"
        chooser = Uniform(workload.keys) if even else Zipf(workload.keys, workload.skew)
        largest = max(1, workload.value_sizes(1 - 2**-53))
        return cls(workload, batch, keys, chooser, random.Random(seed).randbytes(min(largest, NOISE)), clock)


class Caller:
    """One caller, who draws from `random` and notes in `tally` what came of it."""

    def __init__(self, load: Load, tally: Tally, random: random.Random) -> None:
        self._keys, self._chooser, self._clock, self._noise = load.keys, load.chooser, load.clock, load.noise
        self._batch, self._tally, self._random = load.batch, tally, random.random
        workload = load.workload
        place = load.keys.latest if workload.distribution == "latest" else load.keys.scattered
        self._place, self._sizes, self._once = place, workload.value_sizes, workload.once
        self._reads, self._change, self._fill = workload.reads, workload.change, workload.fill
        self._lives = [seconds for seconds, _ in workload.lifetimes]
        self._likely = list(accumulate(share for _, share in workload.lifetimes))

    def operation(self, intended: int | None = None) -> Steps[None]:
        """The next operation.  Its time counts from `intended`, None: from when its first call is made."""
        if self._random() < self._reads:
            return self._read_through(self._chosen(), intended)
        if self._change == "insert":
            return self._timed("insert", self._insert(), intended)
        if self._change == "update":
            return self._timed("update", self._update(self._chosen()), intended)
        return self._timed("write", self._store(self._chosen()), intended)

    def _read_through(self, keys: Sequence[str], intended: int | None) -> Steps[None]:
        missing = yield from self._timed("read", self._read(keys), intended)
        if missing and self._fill:
            yield from self._timed(FILL, self._store(missing), None)

    def preload(self, numbers: range) -> Steps[None]:
        """Store these keys, in one batch."""
        yield from self._store([self._keys.name(number) for number in numbers])

    def _timed(self, kind: str, steps: Steps[T], intended: int | None) -> Steps[T | None]:
        result = None
        start = self._clock() if intended is None else intended
        try:
            result = yield from steps
        except DcacheError as error:
            self._tally.errors[type(error).__name__] += 1
        self._tally.latencies[kind].record(self._clock() - start)
        return result

    # -- the calls of an operation ------------------------------------------------------------------------------------

    def _read(self, keys: Sequence[str]) -> Steps[Sequence[str]]:
        """Those that are missing."""
        if self._batch == 1:
            value = yield "get", (keys[0],)
            missing = keys if value is None else ()
        else:
            found = yield "get_many", (keys,)
            missing = [key for key in keys if key not in found] if len(found) < len(keys) else ()
        self._tally.misses += len(missing)
        self._tally.hits += len(keys) - len(missing)
        return missing

    def _store(self, keys: Sequence[str]) -> Steps[None]:
        if self._batch == 1 and len(keys) == 1:
            yield "set", (keys[0], self._value(), self._lifetime())
            self._tally.stored += 1
        else:
            values = {key: self._value() for key in keys}
            errors = yield "set_many", (values, self._lifetime())
            self._tally.stored += len(keys) - len(errors)
            self._tally.errors.update(type(error).__name__ for error in errors.values())

    def _insert(self) -> Steps[None]:
        numbers = [self._keys.new() for _ in range(self._batch)]
        yield from self._store([self._keys.name(number) for number in numbers])
        self._keys.inserted(numbers[-1])

    def _update(self, keys: Sequence[str]) -> Steps[None]:
        yield from self._read(keys)
        yield from self._store(keys)

    # -- what is drawn ------------------------------------------------------------------------------------------------

    def _chosen(self) -> Sequence[str]:
        """The keys of an operation, each once: in a batch, one that is drawn twice makes it so much shorter."""
        if self._batch == 1:
            return (self._key(),)
        if self._once:
            return list(dict.fromkeys(self._key() for _ in range(self._batch)))
        place, choose, draw = self._place, self._chooser, self._random
        return list({place(choose(draw())): None for _ in range(self._batch)})

    def _key(self) -> str:
        if self._once and self._random() < self._once:
            return self._keys.once()
        return self._place(self._chooser(self._random()))

    def _value(self) -> bytes:
        return self._noise[: self._sizes(self._random())]

    def _lifetime(self) -> float | None:
        if len(self._lives) == 1:
            return self._lives[0]
        return self._lives[bisect_right(self._likely, self._random() * self._likely[-1])]
