"""`dcache repair`, `verify`: have the nodes compare what they hold, and compare it from outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dcache.cli.changes import NotDone, percent, with_timeout
from dcache.cli.output import Front, size, table
from dcache.ops.survey import Survey, everybody
from dcache.ops.verify import Difference, Report, mend
from dcache.ops.verify import verify as compare_all

LOOK_EVERY = 0.2


@click.command()
@click.option("--watch", is_flag=True, help="Show how far they are, until all are complete and have compared once.")
@with_timeout("How long to watch.")
@click.pass_obj
def repair(front: Front, watch: bool, timeout: float) -> None:
    """Have every node compare what it holds with the other owners now, and take what it lacks."""
    before = front.survey()
    told = front.client.engine.run(front.client, everybody, "repair")
    silent = sorted(before.table.members.keys() - told)
    notes = [f"{name} does not answer" for name in silent]
    if not watch:
        front.show({"told": sorted(told), "silent": silent}, f"{len(told)} nodes compare now", *notes)
        return
    after = _watch(front, {name: before.stats[name] for name in told if name in before.stats}, timeout)
    nodes = {name: _work(about) for name, about in after.stats.items()}
    columns = ("node", "slots complete", "rounds", "records completing took", "records repair took", "bytes asked for")
    rows = [(name, *_cells(about)) for name, about in nodes.items()]
    front.show({"told": sorted(told), "silent": silent, "nodes": nodes}, table(columns, rows), *notes)


WORK = ("slots", "slots_complete", "completing_records", "repair_rounds", "repair_taken", "repair_bytes")
"""What a node counts in `stats` of completing and repair, since it started."""


def _work(about: Mapping[str, Any]) -> dict[str, int]:
    return {name: about.get(name, 0) for name in WORK}


def _cells(about: Mapping[str, int]) -> tuple[str, ...]:
    complete = f"{percent(about['slots_complete'], about['slots'])} of {about['slots']:,}"
    counts = (about[name] for name in ("repair_rounds", "completing_records", "repair_taken"))
    return complete, *(f"{count:,}" for count in counts), size(about["repair_bytes"])


@attrs.frozen
class Standing:
    """How far all nodes are together, since `dcache repair` was called."""

    owned: int
    complete: int
    copied: int
    compared: bool
    """Whether each has compared once since."""

    changing: bool

    @property
    def over(self) -> bool:
        return self.complete >= self.owned and self.compared and not self.changing


def standing(before: Mapping[str, Mapping[str, Any]], seen: Survey) -> Standing:
    """How far those nodes are that answer; what they have done is counted for those that answered `before`."""
    now = {name: _work(about) for name, about in seen.stats.items()}

    def since(what: str) -> list[int]:
        return [about[what] - _work(before[name])[what] for name, about in now.items() if name in before]

    return Standing(
        owned=sum(about["slots"] for about in now.values()),
        complete=sum(about["slots_complete"] for about in now.values()),
        copied=sum(max(0, count) for count in since("repair_bytes")),
        compared=all(since("repair_rounds")),
        changing=seen.changing,
    )


def _watch(front: Front, before: Mapping[str, Mapping[str, Any]], timeout: float) -> Survey:
    deadline = time.monotonic() + timeout
    with _bar(front.console) as tell:
        while True:
            seen = front.survey()
            now = standing(before, seen)
            tell(now)
            if now.over:
                return seen
            if time.monotonic() >= deadline:
                done = percent(now.complete, now.owned)
                raise NotDone(f"not done within {timeout:g} s: {done} of all slots are complete")
            time.sleep(LOOK_EVERY)


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[Standing], None]]:
    """Slots and bytes done, as a bar on a terminal, nothing elsewhere."""
    columns = (
        TextColumn("slots complete"),
        BarColumn(),
        TextColumn("{task.fields[slots]}"),
        TextColumn("{task.fields[copied]} copied"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None, slots="", copied="")

        def tell(now: Standing) -> None:
            slots = f"{now.complete:,} of {now.owned:,}"
            progress.update(task, total=now.owned, completed=now.complete, slots=slots, copied=size(now.copied))

        yield tell


# -- verify -----------------------------------------------------------------------------------------------------------

SHOWN = 20
"""Keys that are listed to people; JSON has them all."""

LOOKS = 5
"""How often replicas that differ are looked at before they are said to: writes and repair take a moment."""

BETWEEN_LOOKS = 0.5


@click.command()
@click.option("--repair", "mending", is_flag=True, help="Mend what differs, and ask all nodes to compare.")
@with_timeout("How long it may take.")
@click.pass_obj
def verify(front: Front, mending: bool, timeout: float) -> None:
    """Compare all replicas of all keys; exit with 1 if some differ and were not mended, or a node is incomplete.

    At the memory limit replicas always differ a little, since each node forgets what it used least.
    """
    report, mended = _verified(front, mending, time.monotonic() + timeout)
    bad = [one for one in report.differences if one.mendable]
    result = {
        **attrs.asdict(report, filter=lambda field, _: field.name != "differences"),
        "agree": report.agree,
        "mended": mended,
        "differences": [_told(one) for one in report.differences],
    }
    front.show(result, *_shown(report, bad, mended))
    if bad or any(report.incomplete.values()):
        click.get_current_context().exit(1)
    if report.silent:
        click.get_current_context().exit(3)


def _verified(front: Front, mending: bool, deadline: float) -> tuple[Report, int]:
    """The last look, and how many keys were mended in all."""
    mended, looks = 0, 0
    while True:
        client = front.client.with_options(timeout=max(0.1, deadline - time.monotonic()))
        with _compared(front.console) as tell:
            report = client.engine.run(client, compare_all, told=tell)
        bad, looks = [one for one in report.differences if one.mendable], looks + 1
        if not bad or looks == LOOKS or time.monotonic() > deadline:
            return report, mended
        if mending:
            mended += client.engine.run(client, mend, bad)
        time.sleep(BETWEEN_LOOKS)


def _told(one: Difference) -> dict[str, Any]:
    told = {"namespace": _text(one.namespace), "key": _text(one.key), "version": one.version.hex()}
    where = {name: list(getattr(one, name)) for name in ("missing", "older", "forgotten", "strays")}
    return {**told, **where, "mendable": one.mendable}


def _text(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")


def _shown(report: Report, bad: Sequence[Difference], mended: int) -> Iterator[Any]:
    if bad:
        columns = ("key", "namespace", "lacked by", "older at", "stray at")
        rows = [(_text(one.key), _text(one.namespace), *map(", ".join, _places(one))) for one in bad[:SHOWN]]
        yield table(columns, rows)
    if len(bad) > SHOWN:
        yield f"and {len(bad) - SHOWN:,} keys more"
    yield f"{report.slots:,} slots compared at {len(report.entries)} nodes: {len(bad):,} keys differ"
    if mended:
        yield f"{mended:,} keys were mended"
    yield from (f"{name} has yet to complete {count:,} slots" for name, count in report.incomplete.items() if count)
    yield from (f"{name} does not answer: {why}" for name, why in report.silent.items())


def _places(one: Difference) -> tuple[Sequence[str], ...]:
    return one.missing, one.older, one.strays


@contextmanager
def _compared(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Slots compared, as a bar on a terminal, nothing elsewhere."""
    columns = (TextColumn("slots compared"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)
