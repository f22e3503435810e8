"""`dcache-sim`: runs seeds of the simulator, and says which of them broke a promise.

Exit status: 0 if none did, 1 if one did, 2 for wrong usage, 130 when interrupted; what was done until then is told.
Needs no extra; where rich is installed, a terminal shows how far it is.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import attrs

from dcache.testing.sim import seeds
from dcache.testing.sim.profiles import PROFILES
from dcache.testing.sim.run import run

SEEDS = 100
INTERRUPTED = 130
FORGOTTEN = ("kept", "forgotten", "forgotten unexplained")
"""Of what a run counts: how often a key was looked for that had been kept, how often it was gone, and how often neither
want of memory, nor expiry, nor the end of those who held it explains that."""


@attrs.define
class Tally:
    """What came of one profile.  `seconds` are virtual, `took` is the real time of all runs together."""

    runs: int = 0
    seconds: float = 0.0
    events: int = 0
    took: float = 0.0
    counts: Counter[str] = attrs.Factory(Counter)
    failed: list[seeds.Result] = attrs.Factory(list)

    def add(self, result: seeds.Result) -> None:
        self.runs += 1
        self.seconds += result.report.seconds
        self.events += result.report.events
        self.took += result.took
        self.counts += result.report.counts
        if result.failed:
            self.failed.append(result)

    @property
    def rate(self) -> float:
        """Events per second of one process."""
        return self.events / self.took if self.took else 0.0


@attrs.define
class Hunt:
    """Runs through `profiles` by turns; `tallies` fill up while it goes on."""

    profiles: Sequence[str]
    tallies: dict[str, Tally] = attrs.field(init=False)
    took: float = 0.0
    interrupted: bool = False

    def __attrs_post_init__(self) -> None:
        self.tallies = {profile: Tally() for profile in self.profiles}

    @property
    def runs(self) -> int:
        return sum(tally.runs for tally in self.tallies.values())

    @property
    def failed(self) -> list[seeds.Result]:
        return [result for tally in self.tallies.values() for result in tally.failed]

    def go(self, given: argparse.Namespace, each: Callable[[Hunt], None]) -> None:
        """Until all is done, or it is interrupted; `each` is called after every run."""
        begun = time.monotonic()
        try:
            say(f"seeds from {given.first} on, of {', '.join(self.profiles)}; processes: {given.jobs}")
            with closing(seeds.attempts(self._plan(given), given.jobs)) as results:
                for result in results:
                    self.tallies[result.report.profile].add(result)
                    self.took = time.monotonic() - begun
                    each(self)
                    if given.until_failure and result.failed:
                        break
        except KeyboardInterrupt:
            self.interrupted = True

    def _plan(self, given: argparse.Namespace) -> Iterator[seeds.Seed]:
        endless = given.seeds is None
        numbers = itertools.count(given.first) if endless else range(given.first, given.first + given.seeds)
        end = time.monotonic() + (given.minutes or 0) * 60
        for number in numbers:
            for profile in self.profiles:
                if given.minutes is not None and time.monotonic() >= end:
                    return
                yield profile, number


# -- what is asked ----------------------------------------------------------------------------------------------------


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What a command line says.  Exits with status 2 and a message for what makes no sense."""
    asked = parser()
    given = asked.parse_args(argv)
    if given.trace and (given.seed is None or len(given.profile or ()) != 1):
        asked.error("--trace tells of one run: name it with --seed N and one --profile")
    if given.trace and given.json:
        asked.error("--trace is for people: there is no --json of it")
    if given.seed is not None and not given.seeds == given.first == given.minutes is None:
        asked.error("--seed is one seed: --seeds, --first and --minutes choose others")
    if given.seeds is not None and given.minutes is not None:
        asked.error("either so many --seeds or so many --minutes")
    return _completed(given)


def _completed(given: argparse.Namespace) -> argparse.Namespace:
    """With what was not said: fresh seeds where time is the limit, else those from 0 on."""
    given.profile = given.profile or list(PROFILES)
    if given.seed is not None:
        given.first, given.seeds, given.jobs = given.seed, 1, given.jobs if len(given.profile) > 1 else 1
    if given.first is None:
        given.first = random.SystemRandom().getrandbits(32) if given.minutes is not None else 0
    if given.seeds is None and given.minutes is None:
        given.seeds = None if given.until_failure else SEEDS
    return given


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="dcache-sim",
        allow_abbrev=False,
        description="Runs whole clusters of dcache on simulated machines, with trouble, and looks for broken promises.",
    )
    add = made.add_argument
    add("--profile", action="append", choices=PROFILES, help="what to run; repeatable (default: all, by turns)")
    add("--seeds", type=_at_least(1), metavar="N", help=f"how many seeds of each profile (default: {SEEDS})")
    add("--first", type=_at_least(0), metavar="N", help="the first seed (default: 0; with --minutes a fresh one)")
    add("--seed", type=_at_least(0), metavar="N", help="this seed alone")
    add("--minutes", type=_minutes, metavar="M", help="seeds for so long, instead of --seeds")
    add("--until-failure", action="store_true", help="end when one failed; without --seeds or --minutes only then")
    jobs = os.cpu_count() or 1
    add("--jobs", type=_at_least(1), default=jobs, metavar="N", help=f"processes (default: one per CPU, {jobs})")
    add("--trace", action="store_true", help="tell what happens in one run, of --seed and --profile")
    add("--json", action="store_true", help="print the result as JSON")
    add("--list", action="store_true", help="say what profiles there are")
    return made


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be {least} or more")
        return value

    return number


def _minutes(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be a positive number")
    return value


# -- what is told -----------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """To people, also where standard output is for the machine."""
    print(f"dcache-sim: {text}", file=sys.stderr, flush=True)


def again(result: seeds.Result) -> str:
    """The command that makes this run once more, and tells of it."""
    return f"dcache-sim --profile {result.report.profile} --seed {result.report.seed} --trace"


def shown(hunt: Hunt) -> Iterator[str]:
    """For people: a line for each profile, what failed and how to see it again, and all in one line."""
    forgotten = [name for name in FORGOTTEN if any(name in tally.counts for tally in hunt.tallies.values())]
    titles = ("profile", "seeds", "virtual s", "events", "events/s", *forgotten, "failed")
    yield _row(titles, titles)
    for profile, tally in hunt.tallies.items():
        numbers = (tally.runs, tally.seconds, tally.events, tally.rate, *(tally.counts[name] for name in forgotten))
        yield _row(titles, (profile, *(f"{number:,.0f}" for number in numbers), str(len(tally.failed))))
    for result in hunt.failed:
        first, *more = result.report.violations
        yield f"\nFAILED {result.report.profile} {result.report.seed}: {first.rstrip()}"
        yield from [f"  and {len(more)} more"] if more else []
        yield f"  to see it: {again(result)}"
    events = sum(tally.events for tally in hunt.tallies.values())
    rates = f"{hunt.runs / hunt.took:.1f} seeds/s, {events / hunt.took:,.0f} events/s" if hunt.took else "none ran"
    stopped = "interrupted: " if hunt.interrupted else ""
    yield f"\n{stopped}{hunt.runs} runs in {hunt.took:.1f} s ({rates}), {len(hunt.failed)} failed"


def _row(titles: Sequence[str], cells: Sequence[str]) -> str:
    first, *rest = cells
    return f"{first:<12}" + "".join(
        f"  {cell:>{max(10, len(title))}}" for title, cell in zip(titles[1:], rest, strict=True)
    )


def as_json(hunt: Hunt) -> str:
    profiles = {
        profile: {
            "seeds": tally.runs,
            "virtual_seconds": round(tally.seconds, 3),
            "events": tally.events,
            "events_per_second": round(tally.rate),
            "counts": dict(sorted(tally.counts.items())),
            "failed": [
                {"seed": one.report.seed, "violations": list(one.report.violations), "again": again(one)}
                for one in tally.failed
            ],
        }
        for profile, tally in hunt.tallies.items()
    }
    return json.dumps({"profiles": profiles, "seconds": round(hunt.took, 3), "interrupted": hunt.interrupted})


@contextmanager
def progress(total: int | None) -> Iterator[Callable[[Hunt], None]]:
    """A bar on a terminal, nothing elsewhere; gives the function to call after every run."""
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield lambda hunt: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("0 failed", total=total)

        def show(hunt: Hunt) -> None:
            bar.update(task, completed=hunt.runs, description=f"{len(hunt.failed)} failed")

        yield show


def hunt(given: argparse.Namespace) -> int:
    made = Hunt(given.profile)
    with progress(None if given.seeds is None else given.seeds * len(given.profile)) as each:
        made.go(given, each)
    print(as_json(made) if given.json else "\n".join(shown(made)), flush=True)
    if made.interrupted:
        return INTERRUPTED
    return 1 if made.failed else 0


def trace(profile: str, seed: int) -> int:
    """Tell what happens in one run, and how it ends."""
    report = run(profile, seed, story=print)
    for violation in report.violations:
        print(f"VIOLATION {violation}")
    verdict = f"{len(report.violations)} violations" if report.violations else "no violation"
    about = f"{report.events} events in {report.seconds:.1f} virtual s, digest {report.digest}"
    print(f"{profile} {seed}: {verdict}, {about}", flush=True)
    return 1 if report.violations else 0


def command(argv: Sequence[str]) -> int:
    """Do what a command line says; the exit status."""
    given = arguments(argv)
    if given.list:
        for name, profile in PROFILES.items():
            print(f"{name:<12}  {profile.about}")
        return 0
    return trace(given.profile[0], given.seed) if given.trace else hunt(given)


def main() -> None:
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # who reads a trace need not read all of it
    try:
        sys.exit(command(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
