"""Short ways to write down histories, and a register that makes them at random."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable
from itertools import count
from typing import Any

from dcache.testing.history import Call, Op, Outcome

DOUBT, FAILED, MISSED, OK, TORN = Outcome.DOUBT, Outcome.FAILED, Outcome.MISSED, Outcome.OK, Outcome.TORN


def version(number: int) -> bytes:
    return number.to_bytes(12, "big")


def call(op: Op, start: int, end: int, value: str | None = None, outcome: Outcome = OK, **more: Any) -> Call:
    for name in ("version", "expected"):
        if name in more:
            more[name] = version(more[name])
    return Call(op=op, start=start, end=end, value=value, outcome=outcome, **{"client": "c", "key": "k", **more})


def set_(start: int, end: int, value: str, outcome: Outcome = OK, **more: Any) -> Call:
    return call(Op.SET, start, end, value, outcome, **more)


def delete(start: int, end: int, outcome: Outcome = OK, **more: Any) -> Call:
    return call(Op.DELETE, start, end, None, outcome, **more)


def add(start: int, end: int, value: str, outcome: Outcome = OK, **more: Any) -> Call:
    return call(Op.ADD, start, end, value, outcome, **more)


def replace(start: int, end: int, value: str, outcome: Outcome = OK, **more: Any) -> Call:
    return call(Op.REPLACE, start, end, value, outcome, **more)


def cas(start: int, end: int, value: str, expected: int, outcome: Outcome = OK, **more: Any) -> Call:
    return call(Op.CAS, start, end, value, outcome, expected=expected, **more)


def touch(start: int, end: int, outcome: Outcome = OK, **more: Any) -> Call:
    return call(Op.TOUCH, start, end, None, outcome, **more)


def read(start: int, end: int, value: str | None, outcome: Outcome = OK, **more: Any) -> Call:
    return call(Op.READ, start, end, value, MISSED if value is None else outcome, **more)


def fill(start: int, computed: int, end: int, value: str, outcome: Outcome = DOUBT, **more: Any) -> Call:
    return call(Op.FILL, start, end, value, outcome, computed=computed, **more)


def load(start: int, end: int, value: str, client: str = "c") -> Call:
    return call(Op.LOAD, start, end, value, client=client)


def incr(start: int, end: int, value: str | None, life: str = "a", outcome: Outcome = OK) -> Call:
    return call(Op.INCR, start, end, value, outcome, life=life)


def counted(start: int, end: int, value: str, **more: Any) -> Call:
    return call(Op.COUNT, start, end, value, **more)


# -- at random --------------------------------------------------------------------------------------------------------

UNIQUE = 1 << 20

Steps = Generator[None, None, Call]
"""One caller: waits wherever it yields."""


class Register:
    """A register that keeps the promise, or, as far as `broken` says, does not; `skewed` clocks stamp what they like.

    Calls run side by side and act at instants of their own.  A write with a clock of its own may be made twice: for it
    was too low at first, or was in nobody's way but not acknowledged.
    """

    def __init__(self, rng: random.Random, *, skewed: bool = False, broken: str = "") -> None:
        self._rng, self._skewed, self._broken = rng, skewed, broken
        self._now = 0
        self._ids = count(1)
        self._past: list[tuple[int, str | None]] = [(0, None)]  # versions and values as they came
        self._decided = 0  # the version of the last conditional change: no write that it did not see is below it
        self._told = 0  # the highest version that anybody was told of, or promised
        self._computing = False
        self.calls: list[Call] = []

    def run(self, kinds: Iterable[str], callers: int = 4) -> list[Call]:
        """The history of these calls."""
        waiting, under_way = [getattr(self, kind) for kind in kinds], list[Steps]()
        waiting.reverse()
        while waiting or under_way:
            self._now += 1
            if waiting and len(under_way) < callers:
                under_way.append(waiting.pop()())
            caller = self._rng.choice(under_way)
            try:
                next(caller)
            except StopIteration as ended:
                under_way.remove(caller)
                self.calls.append(ended.value)
        return self.calls

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def _top(self) -> int:
        return self._past[-1][0]

    def _is(self, fault: str) -> bool:
        return self._broken == fault and self._rng.random() < 0.3

    def _held(self, fault: str) -> tuple[int, str | None]:
        """What is there; with the fault what was there at some time."""
        return self._rng.choice(self._past) if self._is(fault) else self._past[-1]

    def _store(self, version: int, value: str | None) -> None:
        if version > self._top:
            self._past.append((version, value))

    def _above(self, least: int) -> int:
        """A version that nobody else has."""
        return (least // UNIQUE + self._rng.randint(1, 50)) * UNIQUE + next(self._ids)

    def _done(self, op: Op, start: int, value: str | None, made: int, tells: bool = False, **more: Any) -> Call:
        """A call that succeeded with version `made`, and may tell it."""
        self._told = max(self._told, made)
        return call(op, start, self._now, value, **more, **({"version": made} if tells else {}))

    # -- calls --------------------------------------------------------------------------------------------------------

    def set(self) -> Steps:
        return self._write(Op.SET, f"v{next(self._ids)}")

    def delete(self) -> Steps:
        return self._write(Op.DELETE, None)

    def doubt(self) -> Steps:
        """A set whose caller gives up at some time, before it is made or after."""
        made = yield from self._write(Op.SET, f"v{next(self._ids)}")
        given_up = self._rng.randint(made.start, made.end)
        return call(Op.SET, made.start, given_up, made.value, DOUBT)

    def _write(self, op: Op, value: str | None) -> Steps:
        start, told = self._now, self._told
        yield
        if not self._skewed:
            stamp = self._above(self._top)
            self._store(stamp, value)
        else:
            stamp = self._above(max(0, self._top - 60 * UNIQUE))
            self._store(stamp, value)
            yield
            least = max(told, self._decided)
            if stamp <= least or self._rng.random() < 0.3:
                stamp = self._above(max(stamp, least if self._rng.random() < 0.5 else self._top))
                self._store(stamp, value)
        yield
        return self._done(op, start, value, stamp, tells=op is Op.SET)

    def get(self) -> Steps:
        return self._read(tells=False)

    def gets(self) -> Steps:
        return self._read(tells=True)

    def _read(self, tells: bool) -> Steps:
        start = self._now
        yield
        version, value = self._held("stale reads")
        if self._is("mixed up versions"):
            version = self._rng.choice(self._past)[0]
        if self._is("invented values"):
            value = "invented"
        yield
        if value is None or self._rng.random() < 0.1:
            return call(Op.READ, start, self._now, None, MISSED)
        return self._done(Op.READ, start, value, version, tells)

    def forget(self) -> Steps:
        """Nobody asked for it, so it stands in the history as a read."""
        self._past.append((self._top, None))
        return self._read(tells=False)

    def add(self) -> Steps:
        return self._decide(Op.ADD, lambda held: held is None)

    def replace(self) -> Steps:
        return self._decide(Op.REPLACE, lambda held: held is not None)

    def touch(self) -> Steps:
        return self._decide(Op.TOUCH, lambda held: held is not None)

    def cas(self) -> Steps:
        expected, _ = self._rng.choice(self._past[-3:])
        held = self._past
        return self._decide(Op.CAS, lambda value: value is not None and held[-1][0] == expected, expected=expected)

    def _decide(self, op: Op, agrees: Callable[[str | None], bool], **more: Any) -> Steps:
        start, value, held = self._now, f"v{next(self._ids)}", self._past[-1][1]
        yield
        if not self._is("undecided changes"):
            held = self._past[-1][1]
            if not agrees(held):
                return call(op, start, self._now, value, MISSED, **more)
        ballot = self._decided = self._above(self._top)
        self._store(ballot, held if op is Op.TOUCH else value)
        if self._is("changes made twice") and op is not Op.TOUCH:
            yield
            self._store(self._above(self._top), value)
        yield
        return self._done(op, start, None if op is Op.TOUCH else value, ballot, **more)

    def load(self) -> Steps:
        """A computation; one that would be a second one at once reads instead."""
        if self._computing and not self._is("scattered computations"):
            return self._read(tells=False)
        self._computing = True
        return self._compute()

    def _compute(self) -> Steps:
        start, value = self._now, f"v{next(self._ids)}"
        yield
        computed, claim, before = self._now, self._above(self._top), len(self._past)
        self._told = max(self._told, claim)  # changes that begin from now on go above it
        yield
        end = self._now
        self._computing = False
        yield
        if len(self._past) == before:
            self._store(claim, value)
        elif self._is("unclaimed fills"):
            self._store(self._above(self._top), value)
        return call(Op.FILL, start, end, value, DOUBT, computed=computed)
