"""What the clients do, from many threads and tasks at once; every call is recorded with its begin and its end.

What a caller does next is decided in one place, `Actor`, a generator that yields what to call and is sent what came of
it; threads and tasks only make the calls.

A fill's rule needs no database with states: what is computed from a state that a change made invalid was computed from
a read that came before the change began, so its computation began before it too, which is what the checker goes by.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import count, cycle
from types import TracebackType
from typing import Any, Self

import attrs

from dcache import AsyncClient, Client, DcacheError, QuorumError
from dcache.ring import slot_of
from dcache.wire import storage_key
from tests.chaos.checker import Call, Op, Outcome
from tests.chaos.values import any_size, seal, unseal

LIFE = 10**6
"""How far apart the initial values of counters are; more than any of them counts."""

PAUSE = 0.03
"""Seconds between two calls of one caller, on average."""

TIMEOUT = 0.5
FORGOTTEN = 0.02  # chance that a value is given a short life
HOT = 0.3  # chance that one of the first few keys is chosen
GIVEN_UP = 0.03  # chance that a task stops waiting for its call


CROWDED = 16
"""Slots in which every other key is, so that what is forgotten of one key is felt by others."""


@cache
def named(kind: str, number: int) -> tuple[str, ...]:
    """So many keys, every other one in a crowded slot."""
    names = (f"{kind}{index}" for index in count())
    crowded = (name for name in names if slot_of(storage_key(b"", name.encode())) < CROWDED)
    spread = (f"{kind}-{index}" for index in count())
    return tuple(next(one) for one, _ in zip(cycle((crowded, spread)), range(number), strict=False))


@attrs.frozen
class Keys:
    """Each kind of key is used in one way: set and read, loaded and invalidated, counted.

    They are so many that most are changed every few seconds only: a replica that missed a change stays behind for long
    enough to be asked.
    """

    plain: tuple[str, ...] = named("plain", 240)
    loaded: tuple[str, ...] = named("loaded", 24)
    counters: tuple[str, ...] = named("counter", 16)

    def all(self) -> tuple[str, ...]:
        return self.plain + self.loaded + self.counters


class History:
    """All calls of a run.  Lists and counts grow safely from any thread."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._ids = count(1)
        self._computations: list[Computation] = []

    def new_id(self) -> int:
        return next(self._ids)

    def computation(self, client: str, key: str, seconds: float) -> Computation:
        """Something to be computed.  It is watched from now on: one whose caller gave up may go on and be stored."""
        made = Computation(client, key, str(self.new_id()), seconds)
        self._computations.append(made)
        return made

    def all(self) -> list[Call]:
        """The calls, and the fills that were computed; complete once nobody calls any more."""
        return self.calls + [one.fill(one.began) for one in self._computations if one.began is not None]


class Computation:
    """What a `get_or_set` computes, if it has to; notes when it began."""

    def __init__(self, client: str, key: str, id: str, seconds: float) -> None:
        self.client, self.key, self.id, self.seconds = client, key, id, seconds
        self.value = seal(key, id)
        self.began: int | None = None

    def fill(self, began: int) -> Call:
        return Call(
            client=self.client,
            op=Op.FILL,
            key=self.key,
            start=began,
            end=began + int(self.seconds * 1e9),
            outcome=Outcome.DOUBT,
            value=self.id,
            computed=began,
            how="computed",
        )

    def __call__(self) -> str:
        self.began = time.monotonic_ns()
        time.sleep(self.seconds)
        return self.value

    async def awaited(self) -> str:
        self.began = time.monotonic_ns()
        await asyncio.sleep(self.seconds)
        return self.value


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
    """One caller: what it does, and the record of what came of it."""

    def __init__(self, history: History, client: str, rng: random.Random, keys: Keys) -> None:
        self._history, self._client, self._rng, self._keys = history, client, rng, keys
        self._actions: dict[Callable[[], Steps], int] = {
            self._get: 30,
            self._set: 20,
            self._delete: 5,
            self._get_many: 10,
            self._set_many: 5,
            self._get_or_set: 20,
            self._invalidate: 8,
            self._overwrite: 2,
            self._peek: 5,
            self._incr: 10,
            self._count: 5,
        }

    def steps(self) -> Steps:
        while True:
            (action,) = self._rng.choices(list(self._actions), list(self._actions.values()))
            yield from action()

    def look(self) -> Steps:
        """Read every key once."""
        for key in self._keys.plain + self._keys.loaded:
            yield from self._read(key)
        for key in self._keys.counters:
            yield from self._count(key)

    # -- plain keys ---------------------------------------------------------------------------------------------------

    def _get(self) -> Steps:
        return self._read(self._any(self._keys.plain))

    def _read(self, key: str) -> Steps:
        answer = yield Ask("get", (key,))
        self._note_read("get", key, answer, answer.result)

    def _set(self) -> Steps:
        return self._store(self._any(self._keys.plain))

    def _store(self, key: str) -> Steps:
        id = str(self._history.new_id())
        life = {"ttl": 0.5} if self._rng.random() < FORGOTTEN else {}
        answer = yield Ask("set", (key, seal(key, id, any_size(self._rng))), life)
        self._note("set", Op.SET, key, answer, _change(answer.error), value=id)

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

    def _any(self, keys: Sequence[str]) -> str:
        return self._rng.choice(keys[:8] if self._rng.random() < HOT else keys)

    def _some(self, keys: Sequence[str]) -> list[str]:
        return self._rng.sample(keys, self._rng.randint(2, min(12, len(keys))))

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
        return self._store(self._any(self._keys.loaded))

    def _peek(self) -> Steps:
        return self._read(self._any(self._keys.loaded))

    # -- counters -----------------------------------------------------------------------------------------------------

    def _incr(self) -> Steps:
        key, life = self._any(self._keys.counters), self._history.new_id()
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

    def _note_read(self, how: str, key: str, answer: Answer, result: Any, op: Op = Op.READ) -> None:
        if answer.error is not None:
            self._note(how, op, key, answer, Outcome.FAILED)
        elif result is None:
            self._note(how, op, key, answer, Outcome.MISSED)
        elif (id := unseal(key, result)) is not None:
            self._note(how, op, key, answer, Outcome.OK, value=id)
        else:
            self._note(how, op, key, answer, Outcome.TORN, value=repr(result)[:200])

    def _note(self, how: str, op: Op, key: str, answer: Answer, outcome: Outcome, **more: Any) -> None:
        error = "" if answer.error is None else f"{type(answer.error).__name__}: {answer.error}"
        more |= {"start": answer.start, "end": answer.end, "how": how, "error": error}
        call = Call(client=self._client, op=op, key=key, outcome=outcome, **more)
        self._history.calls.append(call)


def _change(error: Exception | None) -> Outcome:
    """Whether a change was made.  Only a `QuorumError` says that it was not."""
    if error is None:
        return Outcome.OK
    return Outcome.FAILED if isinstance(error, QuorumError) and not error.in_doubt else Outcome.DOUBT


def _counted(result: Any) -> str:
    life, number = divmod(int(result), LIFE)
    return f"{life}+{number}"


# -- making the calls -------------------------------------------------------------------------------------------------


def made(client: Client, ask: Ask) -> Answer:
    """Make the call.  Errors that are not the library's are mistakes, and end the test."""
    start, result, error = time.monotonic_ns(), None, None
    try:
        result = getattr(client, ask.method)(*ask.args, **ask.options)
    except DcacheError as raised:
        error = raised
    return Answer(start, time.monotonic_ns(), result, error)


async def made_async(client: AsyncClient, ask: Ask, patience: float | None) -> Answer:
    """As `made`; gives up after `patience` seconds, which leaves a change in doubt."""
    start, result, error = time.monotonic_ns(), None, None
    args = [argument.awaited if isinstance(argument, Computation) else argument for argument in ask.args]
    try:
        async with asyncio.timeout(patience):
            result = await getattr(client, ask.method)(*args, **ask.options)
    except (DcacheError, TimeoutError) as raised:
        error = raised
    return Answer(start, time.monotonic_ns(), result, error)


def run_all(client: Client, steps: Steps) -> list[Answer]:
    """Make all calls that `steps` ask for."""
    answers: list[Answer] = []
    try:
        ask = next(steps)
        while True:
            answers.append(made(client, ask))
            ask = steps.send(answers[-1])
    except StopIteration:
        return answers


@attrs.frozen
class Size:
    """How many callers there are."""

    clients: int = 2  # with threads
    threads: int = 3  # of each
    async_clients: int = 2  # each in an event loop of its own
    tasks: int = 5  # of each
    visitors: int = 1  # who make a new client again and again
    calls: int = 100_000  # that each caller makes at most


class Crew:
    """The callers at work; a context manager.  What goes wrong in one of them is raised at the end.

    `make` and `make_async` give new clients.
    """

    def __init__(
        self,
        history: History,
        seed: int,
        make: Callable[[], Client],
        make_async: Callable[[], AsyncClient],
        size: Size = Size(),  # frozen
        keys: Keys = Keys(),
    ) -> None:
        self.history, self.size, self.keys = history, size, keys
        self._make, self._make_async = make, make_async
        self._seeds = random.Random(seed)
        self._over = threading.Event()
        workers = size.clients * size.threads + size.async_clients + size.visitors
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="caller")
        self._work: list[Future[None]] = []
        self._clients: list[Client] = []

    def __enter__(self) -> Self:
        for number in range(self.size.clients):
            client = self._make()
            self._clients.append(client)
            for _ in range(self.size.threads):
                self._begin(self._thread, client, f"threads{number}")
        for number in range(self.size.async_clients):
            self._begin(self._loop, f"tasks{number}")
        for number in range(self.size.visitors):
            self._begin(self._visitor, f"visitor{number}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._pool.shutdown()
        for client in self._clients:
            client.close()
        if error is None:
            self.check()

    def check(self) -> None:
        """Raise what went wrong in a caller, if anything did."""
        for work in self._work:
            if work.done():
                work.result()

    def actor(self, client: str) -> Actor:
        return Actor(self.history, client, random.Random(self._seeds.random()), self.keys)

    def _begin(self, work: Callable[..., None], *args: Any) -> None:
        self._work.append(self._pool.submit(work, *args, random.Random(self._seeds.random())))

    def _thread(self, client: Client, name: str, rng: random.Random) -> None:
        self._call(client, Actor(self.history, name, rng, self.keys), rng, self.size.calls)

    def _call(self, client: Client, actor: Actor, rng: random.Random, calls: int) -> None:
        steps = actor.steps()
        ask = next(steps)
        for _ in range(calls):
            answer = made(client, ask)
            ask = steps.send(answer)
            if self._over.wait(rng.expovariate(1 / PAUSE)):
                break

    def _visitor(self, name: str, rng: random.Random) -> None:
        for number in range(self.size.calls // 20):
            with self._make() as client:
                self._call(client, Actor(self.history, f"{name}.{number}", rng, self.keys), rng, 20)
            if self._over.is_set():
                break

    def _loop(self, name: str, rng: random.Random) -> None:
        asyncio.run(self._tasks(name, rng))

    async def _tasks(self, name: str, rng: random.Random) -> None:
        async with self._make_async() as client, asyncio.TaskGroup() as group:
            for _ in range(self.size.tasks):
                group.create_task(self._task(client, name, random.Random(rng.random())))

    async def _task(self, client: AsyncClient, name: str, rng: random.Random) -> None:
        steps = Actor(self.history, name, rng, self.keys).steps()
        ask = next(steps)
        for _ in range(self.size.calls):
            patience = rng.uniform(0, 0.02) if rng.random() < GIVEN_UP else None
            ask = steps.send(await made_async(client, ask, patience))
            if self._over.is_set():
                break
            await asyncio.sleep(rng.expovariate(1 / PAUSE))
