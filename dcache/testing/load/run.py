"""Callers at work, as threads with one `Client` or as tasks with one `AsyncClient`.

What is not counted is the callers' own work, which shares the processor with the client: `idle_threads` and
`idle_tasks` tell how long it takes, by running the same callers with operations that do nothing.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dcache.client.aio import AsyncClient
from dcache.client.sync import Client
from dcache.errors import DcacheError
from dcache.testing.load.caller import Caller, Steps
from dcache.testing.load.schedule import Schedule

METHODS = ("get", "set", "get_many", "set_many")
LOOK = 1.0
"""Seconds between two looks at what is going on."""

COARSE = 1_000_000
"""Nanoseconds by which the timers of event loops may be late: they count in milliseconds."""

IDLE = 0.03  # seconds of processor time for which operations do nothing

Calls = Mapping[str, Callable[..., Any]]
AsyncCalls = Mapping[str, Callable[..., Awaitable[Any]]]


# -- threads ----------------------------------------------------------------------------------------------------------


def calls_of(client: Client) -> Calls:
    return {name: getattr(client, name) for name in METHODS}


def play(steps: Steps[None], calls: Calls) -> None:
    """Make the calls of one operation."""
    try:
        method, arguments = next(steps)
        while True:
            try:
                result = calls[method](*arguments)
            except DcacheError as error:
                method, arguments = steps.throw(error)
            else:
                method, arguments = steps.send(result)
    except StopIteration:
        return


class Threads:
    """One thread for each caller."""

    def __init__(self, callers: Sequence[Caller], calls: Calls, schedule: Schedule) -> None:
        self._callers, self._calls, self._schedule = callers, calls, schedule
        self._clock = time.perf_counter_ns
        self._stop = threading.Event()
        self._errors: list[BaseException] = []

    def run(self, look: Callable[[], object]) -> None:
        """Until the schedule ends.  `look` is called about every second; the first KeyboardInterrupt stops in order."""
        threads = [threading.Thread(target=self._work, args=each, daemon=True) for each in enumerate(self._callers)]
        while True:
            try:
                self._start(threads)
                self._watch(threads, look)
                break
            except KeyboardInterrupt:
                if self._schedule.stopped:
                    raise
                self._end()
        if self._errors:
            raise self._errors[0]

    def _start(self, threads: Iterable[threading.Thread]) -> None:
        """Those that are to be: an interrupt comes when the first are at work already, too.  One that was just being
        started then is not waited for; it finds that the schedule has ended."""
        for thread in threads:
            if not self._schedule.stopped:
                thread.start()

    def _watch(self, threads: Collection[threading.Thread], look: Callable[[], object]) -> None:
        due = time.monotonic() + LOOK
        for thread in threads:
            while thread.is_alive():
                thread.join(max(0.0, due - time.monotonic()))
                if time.monotonic() >= due:
                    look()
                    due += LOOK

    def _work(self, lane: int, caller: Caller) -> None:
        try:
            for intended, _ in self._schedule.starts(lane):
                if intended is not None and (early := intended - self._clock()) > 0 and self._stop.wait(early / 1e9):
                    return
                play(caller.operation(intended), self._calls)
        except BaseException as error:  # noqa: BLE001  # raised again where it is seen
            self._errors.append(error)
            self._end()

    def _end(self) -> None:
        self._schedule.stop()
        self._stop.set()


# -- tasks ------------------------------------------------------------------------------------------------------------


def async_calls_of(client: AsyncClient) -> AsyncCalls:
    return {name: getattr(client, name) for name in METHODS}


async def play_async(steps: Steps[None], calls: AsyncCalls) -> None:
    """Make the calls of one operation."""
    try:
        method, arguments = next(steps)
        while True:
            try:
                result = await calls[method](*arguments)
            except DcacheError as error:
                method, arguments = steps.throw(error)
            else:
                method, arguments = steps.send(result)
    except StopIteration:
        return


class Tasks:
    """One task for each group of callers, whose operations it begins together and waits for together."""

    def __init__(self, groups: Sequence[Sequence[Caller]], calls: AsyncCalls, schedule: Schedule) -> None:
        self._groups, self._calls, self._schedule = groups, calls, schedule
        self._clock = time.perf_counter_ns

    async def run(self, look: Callable[[], object]) -> None:
        """Until the schedule ends.  `look` is called about every second; the first SIGINT or SIGTERM stops in order."""
        looking = asyncio.ensure_future(self._look(look))
        try:
            with self._stopped_by_signals():
                async with asyncio.TaskGroup() as tasks:
                    for lane, group in enumerate(self._groups):
                        tasks.create_task(self._work(lane, group))
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    async def _look(self, look: Callable[[], object]) -> None:
        while True:
            await asyncio.sleep(LOOK)
            look()

    async def _work(self, lane: int, group: Sequence[Caller]) -> None:
        for intended, width in self._schedule.starts(lane):
            if intended is not None:
                await self._until(intended)
                if self._schedule.stopped:
                    return
            if width == 1:
                await play_async(group[0].operation(intended), self._calls)
            else:
                operations = [caller.operation(intended) for caller in group[:width]]
                await asyncio.gather(*(play_async(operation, self._calls) for operation in operations))

    async def _until(self, moment: int) -> None:
        """Wait no longer than that: the last millisecond, which a timer cannot tell, by asking again and again."""
        while (early := moment - self._clock()) > 0 and not self._schedule.stopped:  # noqa: ASYNC110  # a moment
            await asyncio.sleep(min(early - COARSE, 1e8) / 1e9 if early > COARSE else 0)

    @contextmanager
    def _stopped_by_signals(self) -> Iterator[None]:
        """The first of each signal stops in order; the next one does what it did before."""
        loop, numbers = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in numbers}

        def stop(number: int) -> None:
            self._schedule.stop()
            restore(number)

        def restore(number: int) -> None:
            loop.remove_signal_handler(number)
            signal.signal(number, before[signal.Signals(number)])

        for number in numbers:
            loop.add_signal_handler(number, stop, number)
        try:
            yield
        finally:
            for number in numbers:
                restore(number)


# -- what the callers themselves cost ---------------------------------------------------------------------------------


def _nothing(method: str) -> Callable[..., Any]:
    """An operation that finds everything and stores nothing."""

    def get(key: str) -> bytes:
        return b""

    def get_many(keys: Sequence[str]) -> dict[str, bytes]:
        return dict.fromkeys(keys, b"")

    def store(*arguments: object) -> dict[str, DcacheError]:
        return {}

    return {"get": get, "get_many": get_many}.get(method, store)


def idle_threads(caller: Caller) -> float:
    """Seconds of processor time that a caller takes for an operation, without the operation."""
    calls, done = {name: _nothing(name) for name in METHODS}, 0
    begun = time.thread_time()
    while (took := time.thread_time() - begun) < IDLE:
        for _ in range(50):  # so that looking at the clock, a system call, does not count for much
            play(caller.operation(), calls)
        done += 50
    return took / done


def idle_tasks(caller: Caller) -> float:
    """As `idle_threads`, for a task."""

    def awaited(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: object) -> Any:
            return function(*arguments)

        return call

    async def main() -> float:
        calls, done = {name: awaited(_nothing(name)) for name in METHODS}, 0
        begun = time.thread_time()
        while (took := time.thread_time() - begun) < IDLE:
            for _ in range(50):
                await play_async(caller.operation(), calls)
            done += 50
        return took / done

    return asyncio.run(main())
