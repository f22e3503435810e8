"""Request collapsing: of any number of concurrent callers with one key, one works and all get its result.

Knows nothing of caches: keys are bytes, the work is a callable.  What is decided (who leads, who follows, who works
alone) is decided in the table `Flights`, under its lock; `run_sync` and `run_async` only work and wait.  Invariants:

* A key has at most one flight that can be joined.  A landed flight cannot be joined, and lands once.
* Everybody who waits for a flight has a seat in it, taken before it landed, and a landing wakes all seats.
* Every flight in the air is worked on by somebody who does not wait for it, however indirectly: the graph of who waits
  for whom has no cycle.  A caller who would close one works alone.
* What ends by an `Exception` ends so for all.  What is struck down (`KeyboardInterrupt`, `SystemExit`, cancellation)
  ends so only for the caller whose work it was; the others move to a new flight, which one of them leads.

A table serves either threads or the tasks of one event loop.  With several loops each needs a table of its own, for a
task cannot wait for a signal of another loop; to choose the table is up to the caller above.  Cycles that run through
two tables are not seen.  Which flights a caller is inside of is told by a contextvar: tasks and `asyncio.to_thread`
inherit it, bare threads and executors do not, and work that waits there for its own key waits for ever.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

import attrs

if TYPE_CHECKING:
    import asyncio  # a seventh of what importing `Client` took: it stands where tasks are

T = TypeVar("T")

LISTEN = 1.0
"""Seconds after which a thread that waits looks up: a Ctrl-C that came just before a wait does not end the wait."""


class Signal(Protocol):
    """What a flight wakes its followers with: `threading.Event` or `asyncio.Event`."""

    def set(self) -> None: ...


S = TypeVar("S", bound=Signal)


@attrs.frozen(slots=True)
class Outcome:
    """How a flight ended: with `value`, or with `error` as it was when the work raised it."""

    value: object = None
    error: BaseException | None = None
    traceback: TracebackType | None = None

    @property
    def struck_down(self) -> bool:
        """Whether the work was stopped from outside, which says nothing about the key."""
        return self.error is not None and not isinstance(self.error, Exception)

    def unwrap(self) -> Any:
        """The value, or raises the error, always from the work's own traceback, which each raise would lengthen."""
        if self.error is not None:
            raise self.error.with_traceback(self.traceback)
        return self.value


@attrs.define(slots=True, eq=False)
class Flight(Generic[S]):
    """One run of the work of `key`.  Changed by `Flights` only, under its lock; `task` by `run_async`."""

    key: bytes
    signal: S
    led: bool = True
    done: bool = False
    outcome: Outcome | None = None  # set while somebody is left who will read it
    seats: set[Seat[S]] = attrs.field(factory=set, repr=False)  # the leader's too
    waits: Counter[Flight[S]] = attrs.field(factory=Counter, repr=False)  # what callers inside wait for
    task: asyncio.Task[Any] | None = attrs.field(default=None, repr=False)

    def result(self) -> Any:
        """What the work returned or raised; for seats that were woken and not moved."""
        assert self.outcome is not None, "asked before the landing, or after leaving the seat"
        return self.outcome.unwrap()


@attrs.define(slots=True, eq=False)
class Seat(Generic[S]):
    """One caller's place: `flight` is None for one who works alone.  `inside`: the flights whose work is calling."""

    key: bytes
    inside: tuple[Flight[S], ...] = ()
    flight: Flight[S] | None = None
    leads: bool = False


class Flights(Generic[S]):
    """The table of flights under way.  `signal` makes what followers wait on, one per flight.

    The races, and why they are none (each method is one step, under the lock):

    * A follower boards while the leader lands.  Board first: its seat is in the flight, and the signal it is about to
      wait on is set after that.  Landing first: the key is free, and the caller leads a new flight.
    * A key is detached while its flight finishes.  The old flight is out of `_open`; when it lands a newer one may
      stand there under the same key, so landing takes away the key only while it leads to the flight that lands.
    * The last waiter gives up while another caller boards.  Board first: it was not the last.  Leaving first: the
      same step has closed the flight to newcomers, so nobody boards work that is about to be cancelled.
    * A follower gives up while its leader is struck down.  All followers move to a flight without a leader and all are
      woken; the first to ask leads.  So nobody is chosen who may be gone, and no newcomer comes in between unseen.
    """

    def __init__(self, signal: Callable[[], S]) -> None:
        self._signal = signal
        self.reset()

    def reset(self) -> None:
        """Forget everything: what a forked child must do first.  The parent's flights never touch the table again."""
        self._lock = threading.Lock()  # guards the two below, and every flight and seat reached from them
        self._open: dict[bytes, Flight[S]] = {}  # can be joined
        self._airborne: set[Flight[S]] = set()  # not landed, detached ones included; keeps their tasks alive

    def __len__(self) -> int:
        """How many flights are in the air, detached ones included."""
        return len(self._airborne)

    def board(self, seat: Seat[S]) -> None:
        """Decide whether the caller leads, follows or works alone, and write it on its seat.

        The seat is filled before the flight is shown to others, so that a caller interrupted at any point can give up
        what it took with `land` (a leader) and `leave`.
        """
        with self._lock:
            seat.inside = tuple(flight for flight in seat.inside if flight in self._airborne)
            flight = self._open.get(seat.key)
            if any(outer.key == seat.key for outer in seat.inside) or self._would_wait_for_itself(flight, seat):
                return
            if flight is None:
                flight = Flight(seat.key, self._signal(), led=False)
            self._sit_down(seat, flight)
            self._lead_if_free(seat, flight)
            self._open[seat.key] = flight

    def take_over(self, seat: Seat[S]) -> None:
        """Make a seat that was moved by `land` the leader of its new flight, unless another was faster."""
        with self._lock:
            if seat.flight is not None:
                self._lead_if_free(seat, seat.flight)

    def land(self, flight: Flight[S], outcome: Outcome) -> None:
        """End `flight`; only the first outcome counts.  If it was struck down, its followers are moved to a new one.

        Leaving `_airborne` comes last: a leader hit by Ctrl-C in the middle of this calls it again, and the steps can
        all be repeated.  A flight forgotten by `reset` stays untouched, for its signal may have been copied by a fork
        while another thread held the lock within.
        """
        with self._lock:
            if flight not in self._airborne:
                return
            if not flight.done:
                flight.outcome = outcome if flight.seats else None
                flight.done = True
            if flight.outcome is not None and flight.outcome.struck_down:
                self._move_followers(flight)
            self._close(flight)
            flight.signal.set()
            flight.task = None
            self._airborne.discard(flight)

    def leave(self, seat: Seat[S]) -> Flight[S] | None:
        """Give up a seat; a second time does nothing.  For the last one of a flight still worked on, gives that flight.

        It takes no newcomers any more, and the caller should stop its work.  The last one to leave a landed flight
        clears its outcome, as contexts can outlive it and would keep the result alive.
        """
        with self._lock:
            flight = seat.flight
            if flight is None or seat not in flight.seats:
                return None
            self._stand_up(seat, flight)
            if flight.seats:
                return None
            # Lives until the lock is free: a finalizer of the value may come back to this table.
            _outcome, flight.outcome = flight.outcome, None
            self._close(flight)
            if not flight.led:
                self._airborne.discard(flight)
            return flight if flight.led and not flight.done else None

    def detach(self, key: bytes) -> bool:
        """Let the flight of `key` finish for those aboard, while later callers start anew.  True if there was one."""
        with self._lock:
            return self._open.pop(key, None) is not None

    def detach_all(self, prefix: bytes = b"") -> int:
        """`detach` every key that starts with `prefix`; returns how many."""
        with self._lock:
            keys = [key for key in self._open if key.startswith(prefix)]
            for key in keys:
                del self._open[key]
            return len(keys)

    def _sit_down(self, seat: Seat[S], flight: Flight[S]) -> None:
        seat.flight = flight
        flight.seats.add(seat)
        self._airborne.add(flight)
        for outer in seat.inside:
            outer.waits[flight] += 1

    def _stand_up(self, seat: Seat[S], flight: Flight[S]) -> None:
        flight.seats.discard(seat)
        for outer in seat.inside:
            outer.waits[flight] -= 1
            if outer.waits[flight] <= 0:
                del outer.waits[flight]

    def _lead_if_free(self, seat: Seat[S], flight: Flight[S]) -> None:
        if not flight.led:
            seat.leads = flight.led = True

    def _move_followers(self, flight: Flight[S]) -> None:
        """Seat them in a flight that nobody leads yet, and which newcomers can join if they could join the old one."""
        followers = [seat for seat in flight.seats if not seat.leads]
        if not followers:
            return
        heir = Flight(flight.key, self._signal(), led=False)
        for seat in followers:
            self._sit_down(seat, heir)
            self._stand_up(seat, flight)
        if self._open.get(flight.key) is flight:
            self._open[flight.key] = heir

    def _close(self, flight: Flight[S]) -> None:
        if self._open.get(flight.key) is flight:
            del self._open[flight.key]

    def _would_wait_for_itself(self, flight: Flight[S] | None, seat: Seat[S]) -> bool:
        """Whether `flight` waits, over any number of others, for one that the caller is inside of."""
        ahead, seen = [flight] if flight is not None and seat.inside else [], set[Flight[S]]()
        while ahead:
            flight = ahead.pop()
            if flight in seat.inside:
                return True
            if flight not in seen:
                seen.add(flight)
                ahead.extend(waited for waited in flight.waits if waited in self._airborne)
        return False


_inside: ContextVar[tuple[Flight[Any], ...]] = ContextVar("dcache_inside_flights", default=())


def _call_inside(flight: Flight[Any], call: Callable[[], T]) -> T:
    """`call()` in a context that knows it is inside of `flight`, and no longer of those that landed meanwhile."""
    token = _inside.set((*(outer for outer in _inside.get() if not outer.done), flight))
    try:
        return call()
    finally:
        _inside.reset(token)


def run_sync(flights: Flights[threading.Event], key: bytes, work: Callable[[], T]) -> tuple[T, bool]:
    """The result of `work`, or of the same key's work under way in another thread, and whether it was this one's own.

    All callers get the same object.  Raises what the work raised.  Waits without a timeout, but for Ctrl-C.
    """
    seat = Seat(key, _inside.get())
    try:
        flights.board(seat)
        while (flight := seat.flight) is not None:
            if seat.leads:
                result = _call_inside(flight, work)
                flights.land(flight, Outcome(result))
                return result, True
            while not flight.signal.wait(LISTEN):
                pass
            if seat.flight is flight:
                return cast("T", flight.result()), False
            flights.take_over(seat)
    except BaseException as error:
        if seat.flight is not None and seat.leads:
            flights.land(seat.flight, Outcome(error=error, traceback=error.__traceback__))
        raise
    finally:
        flights.leave(seat)
    return work(), True


async def run_async(flights: Flights[asyncio.Event], key: bytes, work: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
    """As `run_sync`, for tasks.  The work runs in a task of its own, with a copy of the leader's context.

    So a cancelled caller, the leader too, hurts nobody else.  When the last caller is cancelled so is the work, and
    the caller's cancellation completes when the work has ended.
    """
    import asyncio

    seat = Seat(key, _inside.get())
    try:
        flights.board(seat)
        while (flight := seat.flight) is not None:
            if seat.leads:
                _launch(flights, flight, work)
            await flight.signal.wait()
            if seat.flight is flight:
                return cast("T", flight.result()), seat.leads
            flights.take_over(seat)
    except asyncio.CancelledError:
        given_up = flights.leave(seat)
        if given_up is not None and given_up.task is not None:
            await _stop(given_up.task)
        raise
    finally:
        flights.leave(seat)
    return await work(), True


def _launch(flights: Flights[asyncio.Event], flight: Flight[asyncio.Event], work: Callable[[], Awaitable[Any]]) -> None:
    import asyncio

    async def fly() -> Any:
        return await work()

    # The landing is a callback, not the end of `fly`: a task cancelled before its first step never enters its body.
    def land(task: asyncio.Task[Any]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            flights.land(flight, Outcome(task.result()))
        else:
            flights.land(flight, Outcome(error=error, traceback=error.__traceback__))

    flying = fly()
    try:
        flight.task = _call_inside(flight, lambda: asyncio.get_running_loop().create_task(flying))
    except BaseException as error:
        flying.close()
        flights.land(flight, Outcome(error=error, traceback=error.__traceback__))
        raise
    flight.task.add_done_callback(land)


async def _stop(task: asyncio.Task[Any]) -> None:
    """Cancel `task` and wait for its end; further cancellations are handed on to it, as a plain await would do."""
    import asyncio

    task.cancel()
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            task.cancel()
