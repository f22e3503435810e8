"""What runs the operations of `Client`: for all its views and all threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

from dcache.client.forks import reset_after_fork
from dcache.client.loading import UNREACHABLE, Claimer, Compute, Loaded, Loading, StoreIf, loading, own_copy
from dcache.client.reruns import Reruns
from dcache.client.session import Session, View
from dcache.client.singleflight import Flights, run_sync
from dcache.drivers.blocking import BlockingDriver
from dcache.errors import ClusterMismatch, DcacheError, NoNodesAvailable, QuorumError
from dcache.ops import cluster, load
from dcache.ops.context import Context, Key, TtlOrDefault
from dcache.ops.effects import Op

T = TypeVar("T")
P = ParamSpec("P")


class Engine:
    """What runs a client's operations: shared by all its views and all threads."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.driver = BlockingDriver(session.books)
        self.flights: Flights[threading.Event] = Flights(threading.Event)
        reset_after_fork(self)

    def run(self, view: View, operation: Callable[Concatenate[Context, P], Op[T]], *args: P.args, **kw: P.kwargs) -> T:
        timeout = view.options.timeout
        return self._attempts(view, time.monotonic() + timeout, timeout, None, operation, *args, **kw)

    def read(
        self, view: View, way: Callable[..., T], told: Callable[..., Any], operation: Callable[..., Op[T]], *args: Any
    ) -> T:
        """As `run`, for an operation that reads; `way` is the driver's, of having what it can `told` promptly."""
        timeout, since, ctx, session = view.options.timeout, time.monotonic(), view.latest, self.session
        deadline = since + timeout
        # That nothing has changed since the last operation is seen here: `_context` would take a get two calls more.
        if ctx is None or ctx.table is not session.topology.table or session.topology.forsaken or session.closed:
            ctx = self._context(view, deadline, timeout)
        try:
            return way(ctx, since, timeout, told, operation, *args)
        except (QuorumError, ClusterMismatch) as error:
            reruns = Reruns(self.session, operation, deadline)
            time.sleep(reruns.pause(ctx, error))
        return self._attempts(view, deadline, timeout, reruns, operation, *args)

    def _attempts(
        self,
        view: View,
        deadline: float,
        timeout: float,
        reruns: Reruns | None,
        operation: Callable[Concatenate[Context, P], Op[T]],
        *args: P.args,
        **kw: P.kwargs,
    ) -> T:
        while True:
            ctx = self._context(view, deadline, timeout)
            try:
                return self.driver.run(operation(ctx, *args, **kw), deadline, timeout)
            except (QuorumError, ClusterMismatch) as error:
                reruns = reruns or Reruns(self.session, operation, deadline)
                time.sleep(reruns.pause(ctx, error))

    def _context(self, view: View, deadline: float, timeout: float) -> Context:
        while True:
            if self.session.needs_discovery():
                self.discover(deadline, timeout)
            ctx = view.context()
            if ctx is not None:
                return ctx

    def discover(self, deadline: float, timeout: float) -> None:
        session = self.session
        session.check_open()
        with self._turn(deadline):
            if not session.needs_discovery():
                return
            session.check_discovery()
            try:
                found = self.driver.run(cluster.discover(session.topology.sources()), deadline, timeout)
            except DcacheError as error:
                session.discovery_failed(error)
                raise
            session.discovered(*found)

    def wait_ready(self, view: View, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self.session.check_open()
        self.session.discovered(
            *self.driver.run(cluster.await_table(self.session.topology.sources()), deadline, timeout)
        )
        self.run(view.waiting(timeout), cluster.wait_ready)

    def drive(self, view: View, steps: Loading, factory: Callable[[], Any]) -> Loaded:
        """Run what `loading` asks to be run, compute what it asks to be computed."""
        try:
            step = next(steps)
            while True:
                try:
                    outcome = factory() if isinstance(step, Compute) else self.run(view, step.operation, *step.args)
                except Exception as error:  # noqa: BLE001  # it is for `loading` to judge
                    step = steps.throw(error)
                else:
                    step = steps.send(outcome)
        except StopIteration as stop:
            loaded: Loaded = stop.value
            return loaded

    def look(self, view: View, key: Key) -> tuple[load.Found | None, Claimer | None]:
        """The value if it is there; else how to claim the key, None if the cache is out of reach."""
        try:
            found = self.read(view, self.driver.read, load.found, load.hit, key)
        except UNREACHABLE as error:
            self.session.complain(error)
            return None, None
        self.session.works_again()
        return found, load.lookup

    def load(
        self,
        view: View,
        key: Key,
        factory: Callable[[], Any],
        ttl: TtlOrDefault,
        store_if: StoreIf,
        claimer: Claimer | None,
    ) -> Any:
        """Compute a value that was not there, together with all others who want it now.

        What the one who was to compute it found after all is not for who came later: it may have been changed before.
        """
        while True:
            steps = loading(view, key, ttl, store_if, claimer)
            work = partial(self.drive, view, steps, factory)
            loaded, led = run_sync(self.flights, view.flight_key(key), work)
            if led or not loaded.found:
                return own_copy(view, loaded, led)
            found, claimer = self.look(view, key)
            if found is not None:
                return found.value

    def refresh(self, view: View, key: Key, factory: Callable[[], Any], ttl: TtlOrDefault, store_if: StoreIf) -> Any:
        """Compute a value whether or not it is there, and store it unless it is changed meanwhile."""
        self.flights.detach(view.flight_key(key))
        return (self.drive(view, loading(view, key, ttl, store_if, load.reclaim), factory)).value

    def close(self) -> None:
        self.session.closed = True
        self.driver.close()

    def after_fork(self) -> None:
        self.session.after_fork()
        self.driver.abandon()
        self.flights.reset()

    @contextmanager
    def _turn(self, deadline: float) -> Iterator[None]:
        searching = self.session.searching
        if not searching.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise NoNodesAvailable({"the cluster": "another thread is still looking for it"})
        try:
            yield
        finally:
            searching.release()
