"""`dcache demo`: three nodes on this machine, a slow function, `@cached`, and a node that is killed.

The standard library's modules are analysed twice through the cache, then once more while a node is killed with SIGKILL.
Every answer is compared with the one computed from the source.  No node outlives the command, Ctrl-C included.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dcache.cli.output import Front, table
from dcache.cli.trial import Run, Trial
from dcache.cli.workload import find_modules, largest, library
from dcache.testing.cluster import LocalCluster

NODES = 3
VICTIM = 0
MODULES = 250
COLD_LIMIT = 30.0
"""Seconds after which the first run goes no further, so that the whole stays under a minute on a slow machine."""

TIMEOUT = 1.0


@click.command()
@click.option(
    "--modules",
    "count",
    type=click.IntRange(min=2),
    default=MODULES,
    show_default=True,
    metavar="N",
    help="How many modules of the standard library to analyse, the largest first.",
)
@click.pass_obj
def demo(front: Front, count: int) -> None:
    """Show what the cache does, and that it goes on when a node is killed.

    Starts three nodes on this machine, analyses modules of the standard library through @cached, cold and warm, then
    kills a node in the middle of a third run.  Exits with 1 if any answer differs from the computed one.
    """
    modules = largest(find_modules(library()), count)
    if not modules:
        raise click.UsageError(f"this Python has no sources of its standard library at {library()}")
    with ended_by_sigterm(), LocalCluster(NODES) as cluster, cluster.client(timeout=TIMEOUT) as client:
        client.wait_ready()
        say(front.console, f"{NODES} nodes run on this machine: {', '.join(cluster.addresses)}")
        runs = three_runs(front.console, cluster, Trial(client, modules))
    _conclude(front, cluster.addresses, runs)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the program as Ctrl-C does, so that no node outlives it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def three_runs(console: Console, cluster: LocalCluster, trial: Trial) -> list[Run]:
    """Cold, warm, and with the victim killed halfway."""
    names = list(trial.modules)
    with _progress(console, "cold", len(names)) as advance:
        cold = trial.run("cold", names, advance, COLD_LIMIT)
    names = names[: len(cold.seconds)]
    say(console, f"cold: {len(names)} modules analysed and stored in {cold.total:.2f} s")
    with _progress(console, "warm", len(names)) as advance:
        warm = trial.run("warm", names, advance)
    say(console, f"warm: the same answers in {warm.total:.2f} s, {_factor(cold, warm)} as fast")
    middle = len(names) // 2
    with _progress(console, "node killed", len(names)) as advance:

        def kill_in_the_middle(index: int) -> None:
            advance(index)
            if index == middle:
                cluster.kill(VICTIM)

        shaken = trial.run("node killed", names, kill_in_the_middle)
    say(console, f"node killed: {cluster.addresses[VICTIM]} got SIGKILL after {middle} answers")
    return [cold, warm, shaken]


@contextmanager
def _progress(console: Console, title: str, total: int) -> Iterator[Any]:
    """A progress bar on a terminal, nothing elsewhere; gives the function to call with how many are done."""
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)


def say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True)


def _factor(slow: Run, fast: Run) -> str:
    return f"{slow.total / fast.total:.0f} times"


def _conclude(front: Front, nodes: Sequence[str], runs: Sequence[Run]) -> None:
    """Show what came out; exit with 1 if an answer was wrong."""
    wrong = sorted({name for run in runs for name in run.wrong})
    checked = sum(len(run.seconds) for run in runs[1:])
    result = {
        "modules": len(runs[0].seconds),
        "killed": nodes[VICTIM],
        "runs": [_as_json(run) for run in runs],
        "answers_checked": checked,
        "wrong": wrong,
    }
    verdict = Text(f"All {checked} answers of the later runs equal the computed ones.", style="green")
    if wrong:
        verdict = Text(f"WRONG ANSWERS for {', '.join(wrong)}", style="bold red")
    front.show(result, summary(runs), hits(nodes, runs), _cost(runs[1], runs[2]), verdict)
    if wrong:
        click.get_current_context().exit(1)


def summary(runs: Sequence[Run]) -> Table:
    columns = ("run", "answers", "computed", "errors", "wrong", "seconds", "median ms", "slowest ms")
    return table(columns, [_row(run) for run in runs])


def _row(run: Run) -> tuple[object, ...]:
    times = (f"{run.total:.2f}", f"{run.median * 1000:.2f}", f"{run.slowest * 1000:.2f}")
    return run.title, len(run.seconds), run.computed, run.errors, len(run.wrong), *times


def hits(nodes: Sequence[str], runs: Sequence[Run]) -> Table:
    """Hits per node and run.  A read asks two owners, so there are more hits than answers."""
    rows = [(node, *(_hits(run.hits, node) for run in runs)) for node in nodes]
    return table(("hits per node (a read asks two)", *(run.title for run in runs)), rows)


def _hits(counted: Mapping[str, int], node: str) -> str:
    return str(counted[node]) if node in counted else "killed"


def _cost(warm: Run, shaken: Run) -> str:
    return (
        f"What losing the node cost: {(shaken.total - warm.total) * 1000:+.0f} ms over the warm run, slowest answer "
        f"{shaken.slowest * 1000:.1f} ms, {shaken.errors} errors, {shaken.computed} recomputations."
    )


def _as_json(run: Run) -> dict[str, Any]:
    return {
        "run": run.title,
        "answers": len(run.seconds),
        "seconds": run.total,
        "median": run.median,
        "slowest": run.slowest,
        "computed": run.computed,
        "errors": run.errors,
        "hits": dict(run.hits),
        "wrong": list(run.wrong),
    }
