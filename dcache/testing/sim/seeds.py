"""Many runs, on all processors: seeds in, what came of each out.

A run that breaks down, does not end, or takes its process with it, is one that failed, and the others go on.
"""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import signal
import time
import traceback
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import FrameType

import attrs

from dcache.testing.sim.run import Report, run

Seed = tuple[str, int]
"""A profile and a seed."""

CPU_LIMIT = 300.0
"""Seconds of CPU after which a run is broken off: it goes round and round while no virtual time passes.  Of CPU, for
this machine may be put to sleep meanwhile."""

AHEAD = 2  # runs given out per process


class Stuck(KeyboardInterrupt):
    """A run takes too long.  Nothing that a simulated program catches."""


@attrs.frozen
class Result:
    """What came of a seed, and how many real seconds it `took`."""

    report: Report
    took: float

    @property
    def failed(self) -> bool:
        return bool(self.report.violations)


def attempt(profile: str, seed: int) -> Result:
    """Make one run; if it breaks down, its traceback is the violation."""
    begun = time.perf_counter()
    try:
        report = run(profile, seed)
    except (Exception, Stuck):  # noqa: BLE001  # whatever it is, the report says so
        report = broken_down(profile, seed, traceback.format_exc())
    gc.collect()
    return Result(report, time.perf_counter() - begun)


def broken_down(profile: str, seed: int, why: str) -> Report:
    return Report(profile, seed, (why,), 0.0, 0, "", Counter())


def attempts(plan: Iterable[Seed], jobs: int) -> Generator[Result, None, None]:
    """Make these runs, in so many processes, 1 being this one; results come as they are ready.

    `plan` may be endless: it is asked for a seed when there is somebody to run it.  Closing the generator leaves the
    rest of them unrun.
    """
    seeds = iter(plan)
    if jobs == 1:
        yield from itertools.starmap(attempt, seeds)
        return
    processes = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, processes, initializer=_begin) as pool:
        try:
            yield from _shared_out(pool, seeds, jobs * AHEAD)
        finally:
            pool.shutdown(cancel_futures=True)


def _shared_out(pool: ProcessPoolExecutor, seeds: Iterator[Seed], ahead: int) -> Iterator[Result]:
    given: dict[Future[Result], Seed] = {}

    def give(most: int) -> None:
        with _uninterrupted():
            given.update((pool.submit(_limited, *seed), seed) for seed in itertools.islice(seeds, most))

    give(ahead)
    while given:
        done, _ = wait(given, return_when=FIRST_COMPLETED)
        for future in done:
            result = _result(future, given.pop(future))
            if not isinstance(future.exception(), BrokenProcessPool):
                give(1)
            yield result


def _result(future: Future[Result], seed: Seed) -> Result:
    """Of a run; when a process ends, nobody knows which of the runs under way did it, and all others end too."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        return Result(broken_down(*seed, f"perhaps not its fault: {error}"), 0.0)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Keep Ctrl-C waiting, and from the processes that are started here for ever: the parent lets them end what they
    have begun."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- in a process of its own ------------------------------------------------------------------------------------------


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGPROF"):
        signal.signal(signal.SIGPROF, _break_off)
    gc.collect()
    gc.freeze()  # what is there now stays; collections need not look at it


def _break_off(number: int, frame: FrameType | None) -> None:
    raise Stuck(f"not done after {CPU_LIMIT:g} s of CPU time")


def _limited(profile: str, seed: int) -> Result:
    if not hasattr(signal, "SIGPROF"):
        return attempt(profile, seed)
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT)
    try:
        return attempt(profile, seed)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
