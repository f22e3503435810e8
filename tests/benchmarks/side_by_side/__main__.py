"""dcache beside other caches and their clients, on this machine, in interleaved rounds: docs/performance.md.

    python -m tests.benchmarks.side_by_side [--quick] [--rounds 5] [--only TEXT] [--clients TEXT]
        [--json FILE] [--markdown FILE]

`nox -s bench` installs the clients, in pinned versions, and runs it.  Servers are those of the machine; what is not
there is said.  Everything takes some 40 minutes, --quick (the targets alone) some 3.  Nothing else should run beside
it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.side_by_side import about
from tests.benchmarks.side_by_side.awake import awake
from tests.benchmarks.side_by_side.plan import Plan, all_jobs
from tests.benchmarks.side_by_side.race import Job, Pace, Race
from tests.benchmarks.side_by_side.report import Grid, as_json, in_full, side_by_side, write_markdown
from tests.benchmarks.side_by_side.servers import SERVERS, Servers
from tests.benchmarks.side_by_side.targets import HEADER, JOBS, Outcome, outcomes

TITLE = "What is to be held"


def main(arguments: Sequence[str]) -> None:
    given = parser_of_arguments().parse_args(arguments)
    jobs = chosen(JOBS if given.quick else all_jobs(), given.only)
    if given.list or not jobs:
        print("\n".join(map(str, jobs)) or "no job has that in its name")
        return
    with awake(not given.let_sleep) as cores:
        told = preface(given, arguments, cores)
        print("\n".join(f"{name}: {text}" for name, text in told.items()), flush=True)
        races, results = run(given, jobs)
    grids = [*([of_targets(results)] if results else []), *side_by_side(races)]
    text = "\n\n".join([in_markdown(told), *(grid.markdown() for grid in grids)])
    if given.markdown == "-":
        print(f"\n{text}")
    elif given.markdown:
        write_markdown(Path(given.markdown), text)
    if given.json:
        found = as_json(told, races, results)
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def run(given: argparse.Namespace, jobs: Sequence[Job]) -> tuple[list[Race], list[Outcome]]:
    pace = Pace(given.rounds or (9 if given.quick else 5), given.seconds, random.Random(given.seed))
    races: list[Race] = []
    began = time.monotonic()
    with Servers(given.servers or SERVERS, compiler=not given.no_compiler) as servers:
        for name, why in servers.missing.items():
            print(f"skipped: {name}: {why}", flush=True)
        plan = Plan(servers, pace, given.clients)
        for number, job in enumerate(jobs, 1):
            races.append(plan.run(job))
            print(
                f"\n[{number}/{len(jobs)}, {time.monotonic() - began:.0f} s] {in_full(races[-1]).aligned()}", flush=True
            )
    results = [] if given.no_targets else outcomes(races)
    if results:
        print(f"\n{of_targets(results).aligned()}", flush=True)
    return races, results


def parser_of_arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.side_by_side",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="only what the targets are about")
    add("--only", action="append", default=[], metavar="TEXT", help="jobs with this in their names (see --list)")
    add("--clients", action="append", default=[], metavar="TEXT", help="clients with this in their names")
    add("--servers", action="append", choices=SERVERS, help="start only this one (again and again); default all")
    add("--rounds", type=int, help="default 5, with --quick 9")
    add("--seconds", type=float, default=0.3, help="that each contestant has in a round, about; default %(default)s")
    add("--seed", type=int, default=random.randrange(1 << 32), help="of the order in each round; default drawn")
    add("--list", action="store_true", help="print the names of the jobs and stop")
    add("--json", metavar="FILE", help="write every round of everything to FILE")
    add(
        "--markdown", metavar="FILE", help="write the tables to FILE, between its markers if it has them; - prints them"
    )
    add("--let-sleep", action="store_true", help="let the cores sleep between messages, as they do by default")
    add("--no-compiler", action="store_true", help="do as if there were no C compiler")
    add("--no-targets", action="store_true", help="leave out what no race tells of the targets")
    return parser


def chosen(jobs: Sequence[Job], only: Sequence[str]) -> list[Job]:
    return [job for job in jobs if not only or any(text in str(job) for text in only)]


def preface(given: argparse.Namespace, arguments: Sequence[str], cores: str) -> dict[str, Any]:
    return {
        "machine": about.machine(),
        "its cores": cores,
        "versions": ", ".join(f"{name} {version}" for name, version in about.versions().items()),
        "command": about.command(arguments),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "seed": given.seed,
    }


def in_markdown(told: dict[str, Any]) -> str:
    lines = {**told, "command": f"`{told['command']}`"}
    return "\n".join(f"- {name}: {text}" for name, text in lines.items())


def of_targets(results: Sequence[Outcome]) -> Grid:
    return Grid(TITLE, HEADER, [result.row() for result in results], words=(0, 1, len(HEADER) - 1))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else what was started goes on
    main(sys.argv[1:])
