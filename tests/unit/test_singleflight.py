"""Request collapsing: one of many concurrent callers works, all get its result, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.client.singleflight import Flight, Flights, Outcome, Seat, _inside, run_async, run_sync

pytestmark = pytest.mark.timeout(60)
DEADLINE = 20.0
KEY, OTHER = b"n:key", b"n:other"
STRIKES = [KeyboardInterrupt, SystemExit, asyncio.CancelledError]
Table = Flights[threading.Event]
TaskTable = Flights[asyncio.Event]


class Value:
    """A result that can be told from its copies and weakly referenced."""


# --- the table, by hand -------------------------------------------------------------------------------------------


@pytest.fixture
def table() -> Table:
    return Flights(threading.Event)


def board(table: Table, key: bytes = KEY, inside: tuple[Flight[threading.Event], ...] = ()) -> Seat[threading.Event]:
    seat = Seat(key, inside)
    table.board(seat)
    return seat


def flight_of(seat: Seat[threading.Event]) -> Flight[threading.Event]:
    assert seat.flight is not None
    return seat.flight


def lead(table: Table, key: bytes, *inside: Flight[threading.Event]) -> Flight[threading.Event]:
    seat = board(table, key, inside)
    assert seat.leads
    return flight_of(seat)


def test_the_first_caller_leads_and_later_ones_follow_until_the_landing(table: Table) -> None:
    """Another key is another flight; after the landing the key is free again."""
    first, second, other = board(table), board(table), board(table, OTHER)
    assert (first.leads, second.leads, other.leads) == (True, False, True)
    assert first.flight is second.flight is not other.flight
    assert len(table) == 2
    table.land(flight_of(first), Outcome("done"))
    assert flight_of(second).signal.is_set()
    assert flight_of(second).result() == "done"
    assert len(table) == 1
    assert board(table).leads


def test_only_the_first_landing_counts(table: Table) -> None:
    """A leader that is interrupted after its landing does not take the result back."""
    flight = lead(table, KEY)
    follower = board(table)
    table.land(flight, Outcome("done"))
    table.land(flight, Outcome(error=KeyboardInterrupt()))
    assert follower.flight is flight
    assert flight.result() == "done"


def test_an_old_flight_that_finishes_leaves_a_newer_one_of_its_key_alone(table: Table) -> None:
    """Detached, landed, left or struck down: the newer flight can still be joined."""
    old = board(table)
    follower = board(table)
    assert table.detach(KEY)
    new = lead(table, KEY)
    table.land(flight_of(old), Outcome(error=KeyboardInterrupt()))
    table.leave(old)
    table.take_over(follower)
    assert follower.leads
    table.land(flight_of(follower), Outcome("old"))
    table.leave(follower)
    assert board(table).flight is new


def test_detaching_tells_whether_there_was_a_flight(table: Table) -> None:
    """A detached flight is in the air, but cannot be detached again."""
    assert not table.detach(KEY)
    lead(table, KEY)
    assert table.detach(KEY)
    assert not table.detach(KEY)
    assert len(table) == 1


def test_detaching_a_namespace_spares_the_others(table: Table) -> None:
    """Only keys that start with the prefix get new flights."""
    for key in (b"n:a", b"n:b", b"m:a"):
        lead(table, key)
    assert table.detach_all(b"n:") == 2
    assert board(table, b"n:a").leads
    assert not board(table, b"m:a").leads
    assert table.detach_all() == 2


def test_the_last_to_leave_a_flight_in_the_air_closes_it(table: Table) -> None:
    """It is told which work to stop; whoever comes then starts anew."""
    leader, follower = board(table), board(table)
    assert table.leave(leader) is None
    assert table.leave(leader) is None, "leaving twice counts once"
    assert table.leave(follower) is flight_of(leader)
    assert board(table).leads


def test_results_are_not_kept_once_all_have_read_them(table: Table) -> None:
    """A flight may live on in a context; its result must not."""
    leader, follower = board(table), board(table)
    value = Value()
    alive = weakref.ref(value)
    table.land(flight_of(leader), Outcome(value))
    del value
    table.leave(leader)
    assert alive() is not None
    table.leave(follower)
    assert alive() is None


@pytest.mark.timeout(10)
def test_a_result_may_use_the_table_when_it_dies(table: Table) -> None:
    """Its finalizer runs outside the lock."""

    class Dying:
        def __del__(self) -> None:
            died.append(table.detach(KEY))

    died: list[bool] = []
    leader = board(table)
    table.land(flight_of(leader), Outcome(Dying()))
    table.leave(leader)
    assert died == [False]


def test_a_result_that_nobody_waits_for_is_not_kept(table: Table) -> None:
    """The work of a flight that all have left may still end."""
    leader = board(table)
    table.leave(leader)
    table.land(flight_of(leader), Outcome(Value()))
    assert flight_of(leader).outcome is None
    assert len(table) == 0


def test_struck_down_flights_hand_their_followers_to_one_that_the_first_to_ask_leads(table: Table) -> None:
    """A newcomer joins it too; nobody stays behind in the old one but its leader."""
    leader, one, two = board(table), board(table), board(table)
    old = flight_of(leader)
    table.land(old, Outcome(error=KeyboardInterrupt()))
    assert old.signal.is_set()
    assert leader.flight is old
    assert one.flight is two.flight is not old
    table.take_over(two)
    table.take_over(one)
    assert (one.leads, two.leads, board(table).leads) == (False, True, False)


def test_a_newcomer_may_be_the_first_to_ask(table: Table) -> None:
    """Between the strike and the waking of the followers the key has a flight without a leader."""
    leader, follower = board(table), board(table)
    table.land(flight_of(leader), Outcome(error=SystemExit()))
    newcomer = board(table)
    table.take_over(follower)
    assert newcomer.leads
    assert not follower.leads
    assert newcomer.flight is follower.flight


def test_followers_that_leave_before_anyone_takes_over_leave_nothing(table: Table) -> None:
    """There is no work to stop and no dead entry."""
    leader, follower = board(table), board(table)
    table.land(flight_of(leader), Outcome(error=SystemExit()))
    assert table.leave(follower) is None
    assert len(table) == 0
    assert board(table).leads


def test_work_that_asks_for_its_own_key_works_alone(table: Table) -> None:
    """However deep inside, and even after its flight was detached; not once that flight has landed."""
    outer = lead(table, KEY)
    inner = lead(table, OTHER, outer)
    table.detach(KEY)
    assert board(table, KEY, (outer, inner)).flight is None
    table.land(outer, Outcome())
    assert board(table, KEY, (outer, inner)).leads


def test_the_caller_who_would_close_a_cycle_works_alone(table: Table) -> None:
    """A waits for B, B for C; C asking for A would make three that wait for each other."""
    a, b, c = lead(table, b"a"), lead(table, b"b"), lead(table, b"c")
    waiting = board(table, b"b", (a,))
    board(table, b"c", (b,))
    assert board(table, b"a", (c,)).flight is None
    table.leave(waiting)
    assert board(table, b"a", (c,)).flight is a, "nobody in A waits any more"


def test_many_ways_to_one_flight_are_no_cycle(table: Table) -> None:
    """A waits for B and C, which both wait for D."""
    a, b, c, d = (lead(table, key) for key in (b"a", b"b", b"c", b"d"))
    asked = [(b"b", a), (b"c", a), (b"d", b), (b"d", c), (b"d", a)]
    assert all(board(table, key, (inside,)).flight is not None for key, inside in asked)
    assert board(table, b"a", (d,)).flight is None


def test_a_landed_flight_waits_for_nobody(table: Table) -> None:
    """C still counts as waiting for B, which has landed, though a caller that B's work left behind waits for A."""
    a, b, c = lead(table, b"a"), lead(table, b"b"), lead(table, b"c")
    board(table, b"b", (c,))
    board(table, b"a", (b,))
    table.land(b, Outcome())
    assert board(table, b"c", (a,)).flight is c


def test_one_of_several_waits_for_the_same_flight_may_end(table: Table) -> None:
    """While another caller inside A still waits for B, B must not wait for A."""
    a, b = lead(table, b"a"), lead(table, b"b")
    first, second = board(table, b"b", (a,)), board(table, b"b", (a,))
    table.leave(first)
    assert board(table, b"a", (b,)).flight is None
    table.leave(second)
    assert board(table, b"a", (b,)).flight is a


def test_moved_followers_still_count_as_waiting(table: Table) -> None:
    """A caller inside A waits for B, whose leader is struck down: B's next leader must not wait for A."""
    a = lead(table, b"a")
    leader, waiting, heir = board(table, b"b"), board(table, b"b", (a,)), board(table, b"b")
    table.land(flight_of(leader), Outcome(error=KeyboardInterrupt()))
    table.take_over(heir)
    assert waiting.flight is heir.flight
    assert board(table, b"a", (flight_of(heir),)).flight is None


def test_a_landing_interrupted_anywhere_can_be_made_again() -> None:
    """Ctrl-C in the middle of waking the followers: the leader lands once more, and they do wake."""

    class InterruptedOnce(threading.Event):
        interrupts = 1

        def set(self) -> None:
            if self.interrupts:
                self.interrupts -= 1
                raise KeyboardInterrupt
            super().set()

    table: Table = Flights(InterruptedOnce)
    flight = lead(table, KEY)
    follower = board(table)
    with pytest.raises(KeyboardInterrupt):
        table.land(flight, Outcome("done"))
    table.land(flight, Outcome(error=KeyboardInterrupt()))
    assert flight.signal.is_set()
    assert follower.flight is flight
    assert flight.result() == "done"
    assert len(table) == 0


def test_reset_forgets_everything_and_frees_the_lock(table: Table) -> None:
    """As after a fork while another thread held the lock: old flights neither count nor are touched."""
    leader = board(table)
    table._lock.acquire()
    table.reset()
    assert len(table) == 0
    new = lead(table, KEY, flight_of(leader))
    table.land(flight_of(leader), Outcome("old"))
    assert not flight_of(leader).signal.is_set(), "its lock may have been copied while held"
    assert table.leave(leader) is flight_of(leader)
    assert board(table).flight is new


def test_raising_an_error_again_and_again_does_not_lengthen_its_traceback() -> None:
    """A thousand waiters raise one object."""
    error = ValueError("no")
    try:
        raise error
    except ValueError as raised:
        outcome = Outcome(error=raised, traceback=raised.__traceback__)
    lengths = set()
    for _ in range(3):
        with pytest.raises(ValueError, match="no"):
            outcome.unwrap()
        lengths.add(len(traceback.extract_tb(error.__traceback__)))
    assert len(lengths) == 1


class Worker:
    """A thread in the abstract: what it is inside of, and the flight it waits for."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.frames: list[Seat[threading.Event]] = []
        self.waiting: Seat[threading.Event] | None = None

    def blocked(self) -> bool:
        if self.waiting is not None and flight_of(self.waiting).done:
            self.table.leave(self.waiting)
            self.waiting = None
        return self.waiting is not None

    def ask(self, key: bytes) -> None:
        led = tuple(flight_of(seat) for seat in self.frames if seat.flight is not None)
        seat = board(self.table, key, led)
        if seat.leads or seat.flight is None:
            self.frames.append(seat)
        else:
            self.waiting = seat

    def finish(self) -> None:
        seat = self.frames.pop()
        if seat.flight is not None:
            self.table.land(seat.flight, Outcome("done"))
            self.table.leave(seat)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([b"a", b"b", b"c", b"d", None])), max_size=40))
def test_however_callers_nest_somebody_can_always_go_on(steps: list[tuple[int, bytes | None]]) -> None:
    """Four workers ask for four keys in any order and depth (None: finish the innermost); all come to an end."""
    table: Table = Flights(threading.Event)
    workers = [Worker(table) for _ in range(4)]
    for number, key in steps:
        worker = workers[number]
        if worker.blocked():
            continue
        if key is not None:
            worker.ask(key)
        elif worker.frames:
            worker.finish()
    while busy := [worker for worker in workers if worker.blocked() or worker.frames]:
        free = [worker for worker in busy if not worker.blocked()]
        assert free, "all wait for each other"
        if free[0].frames:
            free[0].finish()
    assert len(table) == 0


# --- threads ------------------------------------------------------------------------------------------------------


class Caller(threading.Thread):
    """A thread that keeps how its call ended."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:  # noqa: BLE001 - shown by `result` and `error`
            self._error = error

    def _end(self) -> None:
        self.join(DEADLINE)
        assert not self.is_alive(), "still waiting"

    def result(self) -> Any:
        self._end()
        if self._error is not None:
            raise self._error
        return self._result

    def error(self) -> BaseException | None:
        self._end()
        return self._error


class Threads:
    """A table, threads that call through it, and a way to know that they wait."""

    def __init__(self) -> None:
        arrived = self._arrived = threading.Semaphore(0)

        class Announced(threading.Event):
            def __init__(self) -> None:
                super().__init__()
                self._seen: set[int] = set()

            def wait(self, timeout: float | None = None) -> bool:
                if threading.get_ident() not in self._seen:  # else it looks up now and then
                    self._seen.add(threading.get_ident())
                    arrived.release()
                return super().wait(timeout)

        self.flights: Table = Flights(Announced)

    def call(self, work: Callable[[], Any], key: bytes = KEY) -> Caller:
        return Caller(lambda: run_sync(self.flights, key, work))

    def wait_for_waiting(self, count: int) -> None:
        for _ in range(count):
            assert self._arrived.acquire(timeout=DEADLINE), "too few callers wait"


class Gate:
    """Work that says when it has begun and ends when it is told to, with `end` called or returned."""

    def __init__(self, end: Callable[[], Any]) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.runs = 0
        self._end = end

    def __call__(self) -> Any:
        self.runs += 1
        self.begun.set()
        assert self.go.wait(DEADLINE)
        return self._end()


def throw(error: BaseException) -> Any:
    raise error


def never() -> Any:
    raise AssertionError("this work must not run")


@pytest.fixture
def threads() -> Threads:
    return Threads()


def test_a_hundred_threads_share_one_run(threads: Threads) -> None:
    """All get the same object, and exactly one is told that the run was its own."""
    gate, start = Gate(Value), threading.Barrier(100, timeout=DEADLINE)

    def call() -> tuple[Any, bool]:
        start.wait()
        return run_sync(threads.flights, KEY, gate)

    callers = [Caller(call) for _ in range(100)]
    threads.wait_for_waiting(99)
    gate.go.set()
    results = [caller.result() for caller in callers]
    assert gate.runs == 1
    assert len({id(value) for value, _ in results}) == 1
    assert [led for _, led in results].count(True) == 1
    assert len(threads.flights) == 0


def test_threads_one_after_the_other_each_work(threads: Threads) -> None:
    """Nothing is remembered of a flight that has landed."""
    assert [run_sync(threads.flights, KEY, lambda n=n: n) for n in range(3)] == [(0, True), (1, True), (2, True)]


def test_a_thousand_callers_that_hurry_never_get_a_stale_or_lost_result(threads: Threads) -> None:
    """Joining races with landing: a call never returns what was computed before it began."""
    lock, count = threading.Lock(), 0

    def work() -> int:
        nonlocal count
        with lock:
            count += 1
            return count

    def calls() -> None:
        for _ in range(50):
            before = count
            value, led = run_sync(threads.flights, KEY, work)
            assert value > before or not led
            assert value >= before

    for caller in [Caller(calls) for _ in range(20)]:
        caller.result()
    assert len(threads.flights) == 0


def test_an_exception_reaches_all_threads_and_is_forgotten(threads: Threads) -> None:
    """The same object for all; the next caller works anew."""
    error = ValueError("no")
    gate = Gate(lambda: throw(error))
    callers = [threads.call(gate) for _ in range(10)]
    threads.wait_for_waiting(9)
    gate.go.set()
    assert all(caller.error() is error for caller in callers)
    assert gate.runs == 1
    assert len(threads.flights) == 0
    assert run_sync(threads.flights, KEY, lambda: 1) == (1, True)


@pytest.mark.parametrize("strike", STRIKES)
def test_when_a_leading_thread_is_struck_down_one_follower_takes_over(
    threads: Threads, strike: type[BaseException]
) -> None:
    """With its own work, once for all the others, however many they are."""
    first, second = Gate(lambda: throw(strike())), Gate(Value)
    leader = threads.call(first)
    assert first.begun.wait(DEADLINE)
    followers = [threads.call(second) for _ in range(99)]
    threads.wait_for_waiting(99)
    first.go.set()
    assert isinstance(leader.error(), strike)
    second.go.set()
    results = [follower.result() for follower in followers]
    assert (first.runs, second.runs) == (1, 1)
    assert len({id(value) for value, _ in results}) == 1
    assert [led for _, led in results].count(True) == 1
    assert len(threads.flights) == 0


def test_leaders_struck_down_one_after_the_other_each_hurt_only_themselves(threads: Threads) -> None:
    """Three callers, three interrupted runs, and the key is free in the end."""
    gate = Gate(lambda: throw(KeyboardInterrupt()))
    callers = [threads.call(gate) for _ in range(3)]
    threads.wait_for_waiting(2)
    gate.go.set()
    assert all(isinstance(caller.error(), KeyboardInterrupt) for caller in callers)
    assert gate.runs == 3
    assert len(threads.flights) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be sent to one thread there")
def test_ctrl_c_gets_a_waiting_thread_out_and_leaves_the_flight_alone(threads: Threads) -> None:
    """The main thread follows; interrupted, it is out at once while the leader goes on for the others."""
    gate, main = Gate(Value), threading.get_ident()
    leader = threads.call(gate)
    assert gate.begun.wait(DEADLINE)

    def interrupt() -> None:
        threads.wait_for_waiting(1)
        signal.pthread_kill(main, signal.SIGINT)

    interrupter = Caller(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_sync(threads.flights, KEY, never)
    interrupter.result()
    follower = threads.call(never)
    threads.wait_for_waiting(1)
    gate.go.set()
    assert follower.result() == (leader.result()[0], False)
    assert len(threads.flights) == 0


def test_a_thread_recurses_into_its_own_key(threads: Threads) -> None:
    """The inner call works directly, however often, and the outer one is still shared."""
    depth = 0

    def work() -> int:
        nonlocal depth
        depth += 1
        return depth if depth == 5 else run_sync(threads.flights, KEY, work)[0]

    assert threads.call(work).result() == (5, True)
    assert len(threads.flights) == 0


def test_threads_that_ask_crosswise_both_end(threads: Threads) -> None:
    """A's work asks for B while B's work asks for A: one waits, the other works alone."""
    both = threading.Barrier(2, timeout=DEADLINE)

    def ask(other: bytes) -> Callable[[], Any]:
        def work() -> Any:
            both.wait()
            return run_sync(threads.flights, other, lambda: b"alone")[0]

        return work

    a, b = threads.call(ask(b"b"), b"a"), threads.call(ask(b"a"), b"b")
    assert {a.result(), b.result()} == {(b"alone", True)}
    assert len(threads.flights) == 0


def test_a_detached_flight_finishes_for_its_threads_while_later_ones_start_anew(threads: Threads) -> None:
    """The old one ends last and does not disturb the new one, which can be joined until it lands."""
    old, new = Gate(lambda: "old"), Gate(lambda: "new")
    leader = threads.call(old)
    assert old.begun.wait(DEADLINE)
    follower = threads.call(never)
    threads.wait_for_waiting(1)
    threads.flights.detach(KEY)
    later = threads.call(new)
    assert new.begun.wait(DEADLINE)
    old.go.set()
    assert [leader.result(), follower.result()] == [("old", True), ("old", False)]
    latest = threads.call(never)
    threads.wait_for_waiting(1)
    new.go.set()
    assert [later.result(), latest.result()] == [("new", True), ("new", False)]
    assert len(threads.flights) == 0


def test_what_a_thread_was_inside_of_ends_with_the_work(threads: Threads) -> None:
    """After a failed call too, the same thread shares runs of that key again."""
    with pytest.raises(ValueError, match="no"):
        run_sync(threads.flights, KEY, lambda: throw(ValueError("no")))
    gate = Gate(Value)
    other = threads.call(gate)
    assert gate.begun.wait(DEADLINE)
    release = Caller(lambda: (threads.wait_for_waiting(1), gate.go.set()))
    assert run_sync(threads.flights, KEY, never) == (other.result()[0], False)
    release.result()


def test_a_context_kept_by_work_in_a_thread_keeps_no_result(threads: Threads) -> None:
    """It remembers the flight it was inside of, which is all it keeps; nor does a chain of such contexts grow."""
    context = contextvars.copy_context()

    def work() -> Value:
        nonlocal context
        context = contextvars.copy_context()
        return Value()

    for _ in range(3):
        value = weakref.ref(context.run(run_sync, threads.flights, KEY, work)[0])
        assert value() is None
        assert len(context[_inside]) == 1


FORK = """
import os, threading
from dcache.client.singleflight import Flights, run_sync

waiting = threading.Event()
class Announced(threading.Event):
    def wait(self, timeout=None):
        waiting.set()
        return super().wait(timeout)

flights = Flights(Announced)

def work():
    threading.Thread(target=run_sync, args=(flights, b"key", work), daemon=True).start()
    assert waiting.wait(20)
    child = os.fork()
    if child == 0:
        flights.reset()
        assert run_sync(flights, b"key", lambda: "child") == ("child", True)
        return "forked"
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

result = run_sync(flights, b"key", work)
assert len(flights) == 0
os._exit(0 if result in [("forked", True), (0, True)] else 1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_starts_clean() -> None:
    """Forked in the middle of shared work: the child calls the same key, and returns from the parent's work."""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], cwd=root, timeout=DEADLINE, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


# --- tasks --------------------------------------------------------------------------------------------------------

Run = Callable[..., Any]


class Tasks:
    """A table, tasks that call through it, and a way to know that they wait (the leader waits too)."""

    def __init__(self) -> None:
        arrived = self._arrived = asyncio.Semaphore(0)

        class Announced(asyncio.Event):
            async def wait(self) -> Any:
                arrived.release()
                return await super().wait()

        self.flights: TaskTable = Flights(Announced)

    def call(self, work: Callable[[], Awaitable[Any]], key: bytes = KEY) -> asyncio.Task[Any]:
        return asyncio.create_task(run_async(self.flights, key, work))  # type: ignore[arg-type]

    async def wait_for_waiting(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE):
            for _ in range(count):
                await self._arrived.acquire()

    async def crowd(self, work: Callable[[], Awaitable[Any]], count: int) -> list[asyncio.Task[Any]]:
        callers = [self.call(work) for _ in range(count)]
        await self.wait_for_waiting(count)
        return callers


class TaskGate:
    """Work that says when it has begun, in which task, and how it was stopped; ends when told to."""

    def __init__(self, end: Callable[[], Any]) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        self.runs = self.cancelled = 0
        self.task: asyncio.Task[Any] | None = None
        self._end = end

    async def __call__(self) -> Any:
        self.runs += 1
        self.task = asyncio.current_task()
        self.begun.set()
        try:
            async with asyncio.timeout(DEADLINE):
                await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self._end()


async def never_async() -> Any:
    raise AssertionError("this work must not run")


async def ended(*tasks: asyncio.Task[Any]) -> list[Any]:
    """Results, exceptions and cancellations of all."""
    async with asyncio.timeout(DEADLINE):
        return await asyncio.gather(*tasks, return_exceptions=True)


def test_a_thousand_tasks_share_one_run(run: Run) -> None:
    """All get the same object, and exactly one is told that the run was its own."""

    async def main() -> None:
        tasks, gate = Tasks(), TaskGate(Value)
        callers = await tasks.crowd(gate, 1000)
        gate.go.set()
        results = await ended(*callers)
        assert gate.runs == 1
        assert len({id(value) for value, _ in results}) == 1
        assert [led for _, led in results].count(True) == 1
        assert len(tasks.flights) == 0

    run(main())


def test_an_exception_reaches_all_tasks_and_is_forgotten(run: Run) -> None:
    """The same object for all; the next caller works anew."""

    async def main() -> None:
        tasks, error = Tasks(), ValueError("no")
        gate = TaskGate(lambda: throw(error))
        callers = await tasks.crowd(gate, 10)
        gate.go.set()
        assert all(result is error for result in await ended(*callers))
        assert gate.runs == 1
        assert len(tasks.flights) == 0
        assert await ended(tasks.call(gate)) == [error]
        assert gate.runs == 2

    run(main())


@pytest.mark.parametrize("cancelled", [0, 1, 9])
def test_a_cancelled_caller_hurts_no_other(run: Run, cancelled: int) -> None:
    """Be it the leader (0) or a follower: the work goes on, and the others get its result."""

    async def main() -> None:
        tasks, gate = Tasks(), TaskGate(Value)
        callers = await tasks.crowd(gate, 10)
        callers.pop(cancelled).cancel()
        late = tasks.call(never_async)
        await tasks.wait_for_waiting(1)
        gate.go.set()
        results = await ended(*callers, late)
        assert len({id(value) for value, _ in results}) == 1
        assert (gate.runs, gate.cancelled) == (1, 0)

    run(main())


def test_when_all_callers_are_cancelled_so_is_the_work(run: Run) -> None:
    """A caller's cancellation is complete only when the work has ended, clean-up included."""

    async def main() -> None:
        tasks, gate = Tasks(), TaskGate(Value)
        callers = await tasks.crowd(gate, 1000)
        for caller in callers:
            caller.cancel()
        await ended(*callers)
        assert all(caller.cancelled() for caller in callers)
        assert (gate.runs, gate.cancelled) == (1, 1)
        assert len(tasks.flights) == 0
        assert len(asyncio.all_tasks()) == 1, "only this one"

    run(main())


def test_work_that_fails_while_it_is_cancelled_complains_nowhere(run: Run) -> None:
    """Its exception is taken note of: nothing is logged (watched after each test), and the caller is just cancelled."""

    async def main() -> None:
        tasks, begun = Tasks(), asyncio.Event()

        async def work() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                raise ValueError("while cleaning up")

        caller = tasks.call(work)
        await begun.wait()
        caller.cancel()
        await ended(caller)
        assert caller.cancelled()
        gc.collect()

    run(main())


def test_a_caller_cancelled_twice_hands_that_on_to_slow_clean_up(run: Run) -> None:
    """As a plain await would: clean-up that takes too long can itself be cancelled."""

    async def main() -> None:
        tasks, begun, cleaning = Tasks(), asyncio.Event(), asyncio.Event()

        async def work() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                cleaning.set()
                await asyncio.Event().wait()

        caller = tasks.call(work)
        await begun.wait()
        caller.cancel()
        await cleaning.wait()
        assert not caller.done()
        caller.cancel()
        await ended(caller)
        assert caller.cancelled()
        assert len(tasks.flights) == 0

    run(main())


def test_a_newcomer_does_not_join_work_that_is_being_cancelled(run: Run) -> None:
    """It starts its own while the old work still cleans up."""

    async def main() -> None:
        tasks, cleaning, clean, begun = Tasks(), asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def work() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                cleaning.set()
                await clean.wait()

        async def fresh() -> str:
            return "fresh"

        caller = tasks.call(work)
        await begun.wait()
        caller.cancel()
        await cleaning.wait()
        assert await ended(tasks.call(fresh)) == [("fresh", True)]
        clean.set()
        await ended(caller)
        assert len(tasks.flights) == 0

    run(main())


def test_work_cancelled_from_outside_is_taken_over_by_one_follower(run: Run) -> None:
    """The leader ends with its own work; one of the others works for all of them."""

    async def main() -> None:
        tasks, first, second = Tasks(), TaskGate(Value), TaskGate(Value)
        leader = tasks.call(first)
        await first.begun.wait()
        followers = await tasks.crowd(second, 999)
        assert first.task is not None
        first.task.cancel()
        second.go.set()
        await ended(leader)
        assert leader.cancelled()
        results = await ended(*followers)
        assert (first.runs, second.runs) == (1, 1)
        assert len({id(value) for value, _ in results}) == 1
        assert [led for _, led in results].count(True) == 1
        assert len(tasks.flights) == 0

    run(main())


def test_work_cancelled_before_its_first_step_does_not_strand_its_followers(run: Run) -> None:
    """A task that never ran has no last line that could land the flight."""

    async def main() -> None:
        tasks, second = Tasks(), TaskGate(Value)
        second.go.set()
        before = asyncio.all_tasks()
        leader, follower = tasks.call(never_async), tasks.call(second)
        await asyncio.sleep(0)  # both have boarded, the work's own task is only scheduled
        (work,) = asyncio.all_tasks() - before - {leader, follower}
        work.cancel()
        await ended(leader)
        assert leader.cancelled()
        ((_, led),) = await ended(follower)
        assert led

    run(main())


def test_followers_cancelled_together_with_the_work_do_not_take_over(run: Run) -> None:
    """What happens when a loop shuts down: every task is cancelled in one sweep."""

    async def main() -> None:
        tasks, gate = Tasks(), TaskGate(Value)
        callers = await tasks.crowd(gate, 10)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:  # type: ignore[arg-type]
            task.cancel()
        await ended(*callers)
        assert all(caller.cancelled() for caller in callers)
        assert gate.runs == 1
        assert len(tasks.flights) == 0

    run(main())


def test_work_whose_leader_was_cancelled_earlier_can_still_be_taken_over(run: Run) -> None:
    """First the leading caller goes, then its work is cancelled: nobody is left to end with it."""

    async def main() -> None:
        tasks, first, second = Tasks(), TaskGate(Value), TaskGate(Value)
        leader = tasks.call(first)
        await first.begun.wait()
        followers = await tasks.crowd(second, 2)
        leader.cancel()
        await ended(leader)
        assert first.task is not None
        first.task.cancel()
        second.go.set()
        assert sorted(led for _, led in await ended(*followers)) == [False, True]

    run(main())


def test_the_work_sees_its_leaders_context(run: Run) -> None:
    """A copy: what it sets there stays with it."""
    who = contextvars.ContextVar("who", default="nobody")

    async def main() -> None:
        tasks = Tasks()

        async def work() -> str:
            seen = who.get()
            who.set("work")
            return seen

        who.set("leader")
        assert await run_async(tasks.flights, KEY, work) == ("leader", True)
        assert who.get() == "leader"

    run(main())


def test_a_context_kept_by_work_in_a_task_keeps_no_result(run: Run) -> None:
    """As with threads."""

    async def main() -> None:
        tasks = Tasks()

        async def work() -> tuple[Value, contextvars.Context]:
            return Value(), contextvars.copy_context()

        result: Any = (await run_async(tasks.flights, KEY, work))[0]
        value, context = weakref.ref(result[0]), result[1]
        del result
        gc.collect()
        assert context[_inside]
        assert value() is None

    run(main())


def test_a_leader_that_gave_up_waiting_can_come_back_as_a_follower(run: Run) -> None:
    """It is not inside of its own work, which goes on for another caller."""

    async def main() -> None:
        tasks, gate = Tasks(), TaskGate(Value)

        async def impatient() -> Any:
            try:
                await run_async(tasks.flights, KEY, gate)
            except asyncio.CancelledError:
                return await run_async(tasks.flights, KEY, never_async)

        leader = asyncio.create_task(impatient())
        await gate.begun.wait()
        follower = tasks.call(never_async)
        await tasks.wait_for_waiting(2)
        leader.cancel()
        await tasks.wait_for_waiting(1)
        gate.go.set()
        again, other = await ended(leader, follower)
        assert again == other
        assert again[1] is False

    run(main())


def test_a_task_and_its_children_recurse_into_their_own_key(run: Run) -> None:
    """Children made by gather inherit what their parent is inside of, and work directly."""

    async def main() -> None:
        tasks = Tasks()

        async def leaf() -> int:
            return 1

        async def work() -> int:
            direct = await run_async(tasks.flights, KEY, leaf)
            children = await asyncio.gather(*(run_async(tasks.flights, KEY, leaf) for _ in range(10)))
            assert {direct, *children} == {(1, True)}
            return 1 + len(children)

        assert await ended(tasks.call(work)) == [(11, True)]
        assert len(tasks.flights) == 0

    run(main())


def test_tasks_that_ask_crosswise_both_end(run: Run) -> None:
    """A's work, in a child task, asks for B while B's work asks for A: one waits, the other works alone."""

    async def main() -> None:
        tasks, both = Tasks(), asyncio.Barrier(2)

        async def alone() -> bytes:
            return b"alone"

        def ask(other: bytes) -> Callable[[], Awaitable[Any]]:
            async def work() -> Any:
                await both.wait()
                ((value, _),) = await asyncio.gather(run_async(tasks.flights, other, alone))
                return value

            return work

        assert await ended(tasks.call(ask(b"b"), b"a"), tasks.call(ask(b"a"), b"b")) == [(b"alone", True)] * 2
        assert len(tasks.flights) == 0

    run(main())


def test_a_task_left_behind_by_work_shares_again_once_that_has_ended(run: Run) -> None:
    """It inherited a flight that has landed, which is no recursion any more."""

    async def main() -> None:
        tasks, later, gate = Tasks(), asyncio.Event(), TaskGate(Value)
        gate.go.set()

        async def left_behind() -> Any:
            await later.wait()
            return await run_async(tasks.flights, KEY, never_async)

        async def work() -> asyncio.Task[Any]:
            return asyncio.create_task(left_behind())

        ((left, _),) = await ended(tasks.call(work))
        second = TaskGate(Value)
        leader = tasks.call(second)
        await second.begun.wait()
        later.set()
        await tasks.wait_for_waiting(3)  # both leaders, and the one left behind
        second.go.set()
        (value, _), shared = await ended(leader, left)
        assert shared == (value, False)

    run(main())


def test_a_detached_flight_finishes_for_its_tasks_while_later_ones_start_anew(run: Run) -> None:
    """The old one ends last and does not disturb the new one; nobody but the flight itself holds the old work."""

    async def main() -> None:
        tasks, old, new = Tasks(), TaskGate(lambda: "old"), TaskGate(lambda: "new")
        early = await tasks.crowd(old, 2)
        assert tasks.flights.detach_all(b"n:") == 1
        late = await tasks.crowd(new, 2)
        gc.collect()
        old.go.set()
        assert await ended(*early) == [("old", True), ("old", False)]
        late += [tasks.call(never_async)]
        await tasks.wait_for_waiting(1)
        new.go.set()
        assert await ended(*late) == [("new", True), ("new", False), ("new", False)]
        assert len(tasks.flights) == 0

    run(main())


def test_a_loop_that_starts_no_tasks_leaves_no_dead_entry(run: Run) -> None:
    """The error of the task factory reaches the caller, the work is never begun, the key is free."""

    async def main() -> None:
        tasks = Tasks()
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda *args, **options: throw(OSError("no more tasks")))
        try:
            with pytest.raises(OSError, match="no more tasks"):
                await run_async(tasks.flights, KEY, never_async)
        finally:
            loop.set_task_factory(None)
        assert len(tasks.flights) == 0

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
def test_eager_tasks_share_and_recurse_as_others_do(run: Run) -> None:
    """There the work begins, and may end, before its task is known to the flight."""

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        tasks, gate = Tasks(), TaskGate(Value)

        async def leaf() -> int:
            return 1

        async def work() -> Any:
            return await run_async(tasks.flights, OTHER, leaf)

        assert await run_async(tasks.flights, OTHER, work) == ((1, True), True)
        callers = [tasks.call(gate) for _ in range(10)]
        gate.go.set()
        assert len({id(value) for value, _ in await ended(*callers)}) == 1
        assert gate.runs == 1
        assert len(tasks.flights) == 0

    run(main())
