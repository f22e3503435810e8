"""`dcache bench`: how fast a cluster answers, a running one or one that it starts.

Its options are in `bench_options`, the run is in `bench_run`, what is told of it in `bench_report` and `bench_plot`;
what is asked of the cache is in `dcache.testing.load`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.live import Live
from rich.text import Text

from dcache.cli import bench_plot
from dcache.cli.bench_options import check_cluster, check_plot, planned, with_options
from dcache.cli.bench_report import callers, described, document, live, shown
from dcache.cli.bench_run import Bench, Outcome
from dcache.cli.demo import ended_by_sigterm
from dcache.cli.output import Front
from dcache.testing.cluster import LocalCluster

INTERRUPTED = 130
STARTED_WITHIN = 30.0


@click.command()
@with_options
@click.pass_obj
def bench(front: Front, /, json_: bool, start: int | None, plot: Path | None, **given: Any) -> None:
    """Measure how fast a cluster answers.

    Uses the cluster of `dcache --nodes`, or with --start one of its own.  Keys are in the namespace "dcache-bench",
    which is cleared before and after, or in that of `dcache --namespace`, which is not.  Ctrl-C ends it early, and what
    was measured is told all the same.
    """
    front.json = front.json or json_
    plan = planned(front.configuration, given)
    check_cluster(start, given["replicas"])
    check_plot(plot)
    with ended_by_sigterm(), cluster(front, start, given["replicas"]) as (nodes, ready_within):
        outcome = _run(front, Bench(plan, nodes), ready_within)
    told = document(outcome)
    front.show(told, *shown(told))
    if plot is not None:
        _draw(plot, told, outcome)
    if outcome.interrupted:
        click.get_current_context().exit(INTERRUPTED)


@contextmanager
def cluster(front: Front, start: int | None, replicas: int | None) -> Iterator[tuple[Sequence[str], float]]:
    """The addresses of the nodes, and how many seconds they may take to be ready."""
    if start is None:
        yield front.nodes, front.configuration.timeout
        return
    with LocalCluster(start, replicas=replicas or min(3, start), probe_interval=1.0) as made:
        yield made.addresses, STARTED_WITHIN


def _run(front: Front, run: Bench, ready_within: float) -> Outcome:
    """With a line about what is going on, on a terminal."""
    console, keys = front.console, run.plan.workload.keys
    if front.json or not console.is_terminal:
        return run.run(ready_within, lambda done: None, lambda interval: None)
    with Live(console=console, refresh_per_second=4, transient=True) as line:

        def say(text: str) -> None:
            line.update(Text(text))

        say("waiting for the cluster")
        return run.run(
            ready_within,
            lambda done: say(f"storing keys: {done:,} of {keys:,}"),
            lambda interval: say(live(interval)),
        )


def _draw(path: Path, told: Mapping[str, Any], outcome: Outcome) -> None:
    count = len(told["cluster"]["nodes"])
    title = f"{count} node{'s' * (count != 1)}; {callers(told['load'])}\n{described(told['workload'])}"
    try:
        bench_plot.draw(path, title, outcome.tally.latencies, told["timeline"])
    except OSError as error:
        raise click.UsageError(f"--plot {path}: {error.strerror}") from None
    if not outcome.interrupted:
        click.echo(f"drawn: {path}", err=True)
