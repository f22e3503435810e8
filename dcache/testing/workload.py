"""Callers that use a cache in every way, and the record of what came of it.

What a caller does next is decided by `Actor`, a generator that yields what to call and is sent what came of it; who
runs it only makes the calls.  So the same callers work on real clusters and on simulated ones.  Time is what `History`
is given as its clock.

A fill's rule needs no database with states: what is computed from a state that a change made invalid was computed from
a read that came before the change began, so its computation began before it too, which is what the checker goes by.
"""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import count
from typing import Any

import attrs

from dcache.client.aio import AsyncClient
from dcache.client.sync import Client
from dcache.errors import DcacheError, QuorumError
from dcache.testing.history import NEVER, Call, Op, Outcome

LIFE = 10**6
"""How far apart the initial values of counters are; more than any of them counts."""

SIZES = (0, 0, 0, 40, 400, 4000)
"""Bytes of padding; most values are small."""

EXPIRING = 0.02  # chance that a value is given a short life
HOT = 0.3  # chance that one of the first few keys is chosen

MIX = {
    "get": 30,
    "gets": 5,
    "set": 20,
    "delete": 5,
    "get_many": 10,
    "set_many": 5,
    "delete_many": 1,
    "cas": 5,
    "add": 2,
    "replace": 2,
    "touch": 1,
    "get_or_set": 20,
    "invalidate": 8,
    "overwrite": 2,
    "peek": 5,
    "incr": 10,
    "count": 5,
}
"""What callers do, and how often."""


# -- values that betray themselves ------------------------------------------------------------------------------------


def seal(key: str, id: str, padding: int = 0) -> str:
    """The value to store for `id` under `key`: it carries both, and a checksum over all of it."""
    body = f"{key}|{id}|{id[-1] * padding}"
    return f"{body}|{zlib.crc32(body.encode())}"


def unseal(key: str, value: Any) -> str | None:
    """The id in `value`, None if it is not whole, or was written under another key."""
    if type(value) is not str:
        return None
    body, _, checksum = value.rpartition("|")
    parts = body.split("|")
    whole = len(parts) == 3 and checksum == str(zlib.crc32(body.encode()))
    return parts[1] if whole and parts[0] == key else None


# -- the record -------------------------------------------------------------------------------------------------------


@attrs.frozen
class Keys:
    """Each kind of key is used in one way: set and read, loaded and invalidated, counted."""

    plain: Sequence[str]
    loaded: Sequence[str]
    counters: Sequence[str]

    def all(self) -> tuple[str, ...]:
        return (*self.plain, *self.loaded, *self.counters)


class History:
    """All calls of a run; `now` is its clock, in any unit.  It may grow from any thread."""

    def __init__(self, now: Callable[[], int]) -> None:
        self.now = now
        self.calls: list[Call] = []
        self.kept: list[str] = []  # keys that are set once
        self._ids = count(1)
        self._computations: list[Computation] = []

    def new_id(self) -> int:
        return next(self._ids)

    def computation(self, client: str, key: str, seconds: float) -> Computation:
        """Something to be computed.  It is watched from now on: one whose caller gave up may go on and be stored."""
        made = Computation(self, client, key, str(self.new_id()), seconds)
        self._computations.append(made)
        return made

    def all(self) -> list[Call]:
        """The calls, and the fills that were computed; complete once nobody calls any more."""
        return self.calls + [one.fill() for one in self._computations if one.began is not None]


class Computation:
    """What a `get_or_set` computes, if it has to, in so many seconds; notes when it began and ended."""

    def __init__(self, history: History, client: str, key: str, id: str, seconds: float) -> None:
        self.client, self.key, self.id, self.seconds = client, key, id, seconds
        self.value = seal(key, id)
        self.began: int | None = None
        self.ended = NEVER
        self.cancelled = False
        self.asked = history.now()
        self.history = history

    def __repr__(self) -> str:
        return f"computed in {self.seconds:.3f} s"

    def fill(self) -> Call:
        """The record of it."""
        assert self.began is not None
        return Call(
            client=self.client,
            op=Op.FILL,
            key=self.key,
            start=self.asked,
            end=self.ended,
            outcome=Outcome.FAILED if self.cancelled else Outcome.DOUBT,
            value=self.id,
            computed=self.began,
            cancelled=self.cancelled,
            how="computed",
        )

    def __call__(self) -> str:
        """The computation of a caller that is a thread."""
        self.began = self.history.now()
        time.sleep(self.seconds)
        self.ended = self.history.now()
        return self.value

    async def awaited(self) -> str:
        """The computation of a caller that is a task."""
        self.began = self.history.now()
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            self.ended = self.history.now()
        return self.value


# -- callers ----------------------------------------------------------------------------------------------------------


@attrs.frozen
class Ask:
    """A call to be made; a `Computation` among the arguments is what the client calls."""

    method: str
    args: tuple[Any, ...]
    options: dict[str, Any] = attrs.Factory(dict)


@attrs.frozen
class Answer:
    start: int
    end: int
    result: Any = None
    error: Exception | None = None


Steps = Generator[Ask, Answer, None]


class Actor:
    """One caller of the client called `client`: what it does, and the record of what came of it."""

    def __init__(
        self, history: History, client: str, rng: random.Random, keys: Keys, mix: Mapping[str, int] = MIX
    ) -> None:
        self._history, self._client, self._rng, self._keys = history, client, rng, keys
        self._actions = [getattr(self, f"_{name}") for name in mix]
        self._weights = list(mix.values())

    def steps(self) -> Steps:
        while True:
            (action,) = self._rng.choices(self._actions, self._weights)
            yield from action()

    def look(self) -> Steps:
        """Read every key once."""
        for key in (*self._keys.plain, *self._keys.loaded):
            yield from self._read(key)
        for key in self._keys.counters:
            yield from self._count(key)

    def write(self) -> Steps:
        """Write every key once."""
        for key in (*self._keys.plain, *self._keys.loaded):
            yield from self._store(key, {})
        for key in self._keys.counters:
            yield from self._incr(key)

    # -- plain keys ---------------------------------------------------------------------------------------------------

    def _get(self) -> Steps:
        return self._read(self._any(self._keys.plain))

    def _read(self, key: str) -> Steps:
        answer = yield Ask("get", (key,))
        self._note_read("get", key, answer, answer.result)

    def _gets(self) -> Steps:
        yield from self._item(self._any(self._keys.plain))

    def _item(self, key: str) -> Generator[Ask, Answer, Any]:
        answer = yield Ask("gets", (key,))
        item = answer.result
        value, version = (None, None) if item is None else (item.value, item.version)
        self._note_read("gets", key, answer, value, version=version)
        return item

    def _set(self) -> Steps:
        return self._store(self._any(self._keys.plain), {"ttl": 0.5} if self._rng.random() < EXPIRING else {})

    def _store(self, key: str, life: dict[str, Any]) -> Steps:
        id = str(self._history.new_id())
        answer = yield Ask("set", (key, seal(key, id, any_size(self._rng))), life)
        how = "set for a moment" if life else "set"
        self._note(how, Op.SET, key, answer, _change(answer.error), value=id, version=answer.result)

    def _keep(self) -> Steps:
        """Set a key that nobody ever changes: it should be there until the end."""
        id = str(self._history.new_id())
        self._history.kept.append(f"kept{id}")
        answer = yield Ask("set", (f"kept{id}", seal(f"kept{id}", id)))
        self._note("keep", Op.SET, f"kept{id}", answer, _change(answer.error), value=id, version=answer.result)

    def _delete(self) -> Steps:
        return self._remove(self._any(self._keys.plain))

    def _remove(self, key: str) -> Steps:
        answer = yield Ask("delete", (key,))
        self._note("delete", Op.DELETE, key, answer, _change(answer.error))

    def _get_many(self) -> Steps:
        keys = self._some(self._keys.plain)
        answer = yield Ask("get_many", (keys,))
        for key in keys:
            self._note_read("get_many", key, answer, (answer.result or {}).get(key))

    def _set_many(self) -> Steps:
        ids = {key: str(self._history.new_id()) for key in self._some(self._keys.plain)}
        answer = yield Ask("set_many", ({key: seal(key, id) for key, id in ids.items()},))
        for key, id in ids.items():
            error = answer.error or answer.result.get(key)
            self._note("set_many", Op.SET, key, attrs.evolve(answer, error=error), _change(error), value=id)

    def _delete_many(self) -> Steps:
        keys = self._some(self._keys.plain)
        answer = yield Ask("delete_many", (keys,))
        for key in keys:
            self._note("delete_many", Op.DELETE, key, answer, _change(answer.error))

    def _clear(self) -> Steps:
        answer = yield Ask("clear", ())
        for key in (*self._keys.all(), *self._history.kept):
            self._note("clear", Op.DELETE, key, answer, _change(answer.error))

    # -- conditional changes ------------------------------------------------------------------------------------------

    def _cas(self) -> Steps:
        key = self._any(self._keys.plain)
        item = yield from self._item(key)
        if item is not None:
            yield from self._conditional("cas", Op.CAS, key, item.version)

    def _add(self) -> Steps:
        return self._conditional("add", Op.ADD, self._any(self._keys.plain))

    def _replace(self) -> Steps:
        return self._conditional("replace", Op.REPLACE, self._any(self._keys.plain))

    def _conditional(self, method: str, op: Op, key: str, expected: bytes | None = None) -> Steps:
        id = str(self._history.new_id())
        on = () if expected is None else (expected,)
        answer = yield Ask(method, (key, seal(key, id), *on))
        outcome = Outcome.MISSED if answer.result is False else _change(answer.error)
        self._note(method, op, key, answer, outcome, value=id, expected=expected)

    def _touch(self) -> Steps:
        key = self._any(self._keys.plain)
        answer = yield Ask("touch", (key,))
        self._note("touch", Op.TOUCH, key, answer, Outcome.MISSED if answer.result is False else _change(answer.error))

    # -- loaded keys --------------------------------------------------------------------------------------------------

    def _get_or_set(self) -> Steps:
        key = self._any(self._keys.loaded)
        computation = self._history.computation(self._client, key, self._rng.choice((0.0, 0.0, 0.01, 0.1)))
        answer = yield Ask("get_or_set", (key, computation))
        if answer.result != computation.value:
            self._note_read("get_or_set", key, answer, answer.result, Op.LOAD)

    def _invalidate(self) -> Steps:
        return self._remove(self._any(self._keys.loaded))

    def _overwrite(self) -> Steps:
        return self._store(self._any(self._keys.loaded), {})

    def _peek(self) -> Steps:
        return self._read(self._any(self._keys.loaded))

    # -- counters -----------------------------------------------------------------------------------------------------

    def _incr(self, key: str | None = None) -> Steps:
        key, life = key or self._any(self._keys.counters), self._history.new_id()
        answer = yield Ask("incr", (key,), {"initial": life * LIFE})
        value = None if answer.error else _counted(answer.result)
        self._note("incr", Op.INCR, key, answer, _change(answer.error), value=value, life=str(life))

    def _count(self, key: str | None = None) -> Steps:
        key = key or self._any(self._keys.counters)
        answer = yield Ask("get", (key,))
        missed = Outcome.MISSED if answer.result is None else Outcome.OK
        outcome = Outcome.FAILED if answer.error else missed
        value = _counted(answer.result) if outcome is Outcome.OK else None
        self._note("get counter", Op.COUNT, key, answer, outcome, value=value)

    # -- the record ---------------------------------------------------------------------------------------------------

    def _any(self, keys: Sequence[str]) -> str:
        return self._rng.choice(keys[:8] if self._rng.random() < HOT else keys)

    def _some(self, keys: Sequence[str]) -> list[str]:
        return self._rng.sample(keys, self._rng.randint(min(2, len(keys)), min(12, len(keys))))

    def _note_read(
        self, how: str, key: str, answer: Answer, result: Any, op: Op = Op.READ, version: bytes | None = None
    ) -> None:
        if answer.error is not None:
            self._note(how, op, key, answer, Outcome.FAILED)
        elif result is None:
            self._note(how, op, key, answer, Outcome.MISSED)
        elif (id := unseal(key, result)) is not None:
            self._note(how, op, key, answer, Outcome.OK, value=id, version=version)
        else:
            self._note(how, op, key, answer, Outcome.TORN, value=repr(result)[:200])

    def _note(self, how: str, op: Op, key: str, answer: Answer, outcome: Outcome, **more: Any) -> None:
        error = "" if answer.error is None else f"{type(answer.error).__name__}: {answer.error}"
        more |= {"start": answer.start, "end": answer.end, "how": how, "error": error}
        self._history.calls.append(Call(client=self._client, op=op, key=key, outcome=outcome, **more))


def any_size(rng: random.Random) -> int:
    return rng.choice(SIZES)


def _change(error: Exception | None) -> Outcome:
    """Whether a change was made.  Only a `QuorumError` says that it was not."""
    if error is None:
        return Outcome.OK
    return Outcome.FAILED if isinstance(error, QuorumError) and not error.in_doubt else Outcome.DOUBT


def _counted(result: Any) -> str:
    life, number = divmod(int(result), LIFE)
    return f"{life}+{number}"


def made(client: Client, ask: Ask, history: History) -> Answer:
    """Make the call.  Errors that are not the library's are mistakes, and raised."""
    start, result, error = history.now(), None, None
    try:
        result = getattr(client, ask.method)(*ask.args, **ask.options)
    except DcacheError as raised:
        error = raised
    return Answer(start, history.now(), result, error)


async def made_async(client: AsyncClient, ask: Ask, history: History, patience: float | None = None) -> Answer:
    """As `made`; gives up after `patience` seconds, which leaves a change in doubt."""
    start, result, error = history.now(), None, None
    args = [argument.awaited if isinstance(argument, Computation) else argument for argument in ask.args]
    try:
        async with asyncio.timeout(patience):
            result = await getattr(client, ask.method)(*args, **ask.options)
    except (DcacheError, TimeoutError) as raised:
        error = raised
    return Answer(start, history.now(), result, error)
