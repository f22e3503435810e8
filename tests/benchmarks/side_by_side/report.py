"""Results as text: aligned for people who watch, Markdown for docs/performance.md, JSON for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs

from tests.benchmarks.side_by_side import clients, clients_async
from tests.benchmarks.side_by_side.alone import NODE
from tests.benchmarks.side_by_side.figures import Spread, client_cpu, server_cpu
from tests.benchmarks.side_by_side.race import Job, Race, bytes_named
from tests.benchmarks.side_by_side.servers import ONE, THREE

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
NOTES = {rival.name: rival.note for rival in (*clients.RIVALS, *clients_async.RIVALS) if rival.note}
APART = {rival.name for rival in clients.RIVALS if not rival.shared}
ONE_EACH = "one client per thread, for it is not safe to share; all others share one"


@attrs.frozen
class Grid:
    """A table: what it is about, its columns, its rows, what is to be said below, and which columns are words."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    words: Sequence[int] = (0,)

    def aligned(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        return "\n".join(
            [self.title, *(self._line(line, widths) for line in lines), *(f"  {note}" for note in self.notes)]
        )

    def _line(self, line: Sequence[str], widths: Sequence[int]) -> str:
        cells = [
            cell.ljust(widths[column]) if column in self.words else cell.rjust(widths[column])
            for column, cell in enumerate(line)
        ]
        return f"  {'  '.join(cells)}".rstrip()

    def markdown(self) -> str:
        lines = [self.header, ["---" if n in self.words else "---:" for n in range(len(self.header))], *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        notes = "\n".join(f"- {note}" for note in self.notes)
        return "\n\n".join(filter(None, (f"**{self.title}**", table, notes)))


# -- one race, all that is known --------------------------------------------------------------------------------------

HEADER = ("client", "ops/s", "quartiles", "ratio", "quartiles", "client CPU, µs", "server CPU, µs")


def in_full(race: Race) -> Grid:
    rows = [_row(race, name) for name in ordered(race.rounds)]
    return Grid(f"{race.job} (ratios to {race.reference})", HEADER, rows, [*notes([race]), *left_out([race])])


def _row(race: Race, name: str) -> list[str]:
    assert race.reference is not None
    rate, ratio, rounds = race.rate(name), race.ratio(name, race.reference), race.rounds[name]
    between = f"{rate.low:,.0f}-{rate.high:,.0f}"
    cpu = [microseconds(client_cpu(rounds)), microseconds(server_cpu(rounds))]
    return [marked(name, race.job), f"{rate.median:,.0f}", between, *_ratio(ratio), *cpu]


def _ratio(ratio: Spread) -> tuple[str, str]:
    return f"{ratio.median:.2f}", f"{ratio.low:.2f}-{ratio.high:.2f}"


def microseconds(number: float | None) -> str:
    return "-" if number is None else f"{number:,.1f}"


def ordered(names: Iterable[str]) -> list[str]:
    """As they stand in the lists of clients, each server's own program first, dcache last."""
    known = [rival.name for rival in (*clients.RIVALS, *clients_async.RIVALS) if rival.name != rival.server]
    last = (NODE, ONE, THREE)

    def place(name: str) -> tuple[int, str]:
        if name in last:
            return len(known) + last.index(name), name
        return known.index(name) if name in known else -1, name

    return sorted(names, key=place)


def marked(name: str, job: Job) -> str:
    """The name, with marks that `notes` explain: ¹ for how it was set up, ² for one client per thread."""
    starred = name in NOTES and (job.kind.startswith("set") or NOTES[name] != clients.UNANSWERED)
    apart = job.front == "threads" and job.workers > 1 and name in APART
    return f"{name}{' ¹' if starred else ''}{' ²' if apart else ''}"


def notes(races: Sequence[Race]) -> list[str]:
    names = {(name, marked(name, race.job)) for race in races for name in race.rounds}
    told: dict[str, list[str]] = {}
    for name in ordered({name for name, mark in names if "¹" in mark}):
        told.setdefault(NOTES[name], []).append(name)
    lines = [f"¹ {', '.join(who)}: {note}" for note, who in told.items()]
    return [*lines, *([f"² {ONE_EACH}"] if any("²" in mark for _, mark in names) else [])]


def left_out(races: Sequence[Race]) -> list[str]:
    reasons = {(name, why): None for race in races for name, why in race.skipped.items()}
    return [f"skipped: {name}: {why}" for name, why in reasons]


# -- races beside each other ------------------------------------------------------------------------------------------


def side_by_side(races: Sequence[Race]) -> list[Grid]:
    """A grid for all that do the same on values of one size, a column for so many threads, tasks or connections."""
    groups: dict[tuple[str, str, int], list[Race]] = {}
    for race in races:
        what = {"asyncio": "tasks", "uvloop": "tasks"}.get(race.job.front, race.job.front)
        groups.setdefault((what, race.job.kind, race.job.size), []).append(race)
    return [_beside(*group, races) for group, races in groups.items()]


def _beside(what: str, kind: str, size: int, races: Sequence[Race]) -> Grid:
    names = ordered({name for race in races for name in race.rounds})
    who = {"threads": "clients of threads", "tasks": "clients of asyncio", "node": "servers alone"}[what]
    header = ["", *(_column(race.job) for race in races)]
    rows = [[_most_marked(name, races), *(_cell(race, name) for race in races)] for name in names]
    reference = next((race.reference for race in races if race.reference), "nothing")
    title = f"{kind}, {bytes_named(size)}, {who}: operations per second, ratio to {reference} (quartiles)"
    return Grid(title, header, rows, [*notes(races), *left_out(races)])


def _most_marked(name: str, races: Sequence[Race]) -> str:
    return max((marked(name, race.job) for race in races), key=len)


def _column(job: Job) -> str:
    return str(job).rpartition(", ")[2]


def _cell(race: Race, name: str) -> str:
    if name not in race.rounds or race.reference is None:
        return "-"
    ratio, quartiles = _ratio(race.ratio(name, race.reference))
    return f"{race.rate(name).median:,.0f}, {ratio} ({quartiles})"


# -- files ------------------------------------------------------------------------------------------------------------


def as_json(about: dict[str, Any], races: Sequence[Race], targets: Sequence[Any]) -> dict[str, Any]:
    return {
        **about,
        "races": [
            {
                "job": attrs.asdict(race.job),
                "reference": race.reference,
                "skipped": race.skipped,
                "rounds": {name: [spent._asdict() for spent in rounds] for name, rounds in race.rounds.items()},
            }
            for race in races
        ],
        "targets": [attrs.asdict(target) for target in targets],
    }


def write_markdown(path: Path, text: str) -> None:
    """Replace what stands between the marker lines of the file; all of it if there are none."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}" if end else f"{text}\n", encoding="utf-8")
