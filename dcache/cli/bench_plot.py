"""The picture that `dcache bench --plot` draws: the distribution of latency, and throughput over time.

Needs matplotlib, from the extra `plot`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dcache.testing.load.histogram import Histogram

MISSING = '--plot needs matplotlib: pip install "dcache-py[plot]"'
NINES = 5  # the axis goes to 99.999 %


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def curve(histogram: Histogram) -> tuple[list[float], list[float]]:
    """Where to draw the latency that a share of all operations does not exceed: at `1 / (1 - share)`, so that each nine
    takes as much room as the one before; in milliseconds."""
    count = histogram.count
    places, milliseconds = [1.0], []
    for value, share in histogram.distribution():
        milliseconds.append(value / 1e6)
        places.append(min(1 / max(1 - share, 1 / (2 * count)), 10.0**NINES))
    return places[:-1], milliseconds


def draw(path: Path, title: str, latencies: Mapping[str, Histogram], timeline: Sequence[Mapping[str, Any]]) -> None:
    """Write the picture; `OSError` if the file cannot be."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    figure.suptitle(title, fontsize=9, wrap=True)
    above, below = figure.subplots(2, 1)
    _draw_latencies(above, latencies)
    _draw_timeline(below, timeline)
    figure.savefig(path, dpi=120)


def _draw_latencies(axes: Any, latencies: Mapping[str, Histogram]) -> None:
    from matplotlib.ticker import LogLocator

    for kind, histogram in latencies.items():
        if histogram.count:
            places, milliseconds = curve(histogram)
            axes.step(places, milliseconds, where="post", label=f"{kind} ({histogram.count:,})")
    axes.set(xscale="log", yscale="log", xlabel="share of operations that take no longer", ylabel="latency, ms")
    most = max((histogram.count for histogram in latencies.values()), default=0)
    nines = min(NINES, max(2, len(str(most))))
    marks = {1: "0 %", 2: "50 %", 10: "90 %", 100: "99 %", 1000: "99.9 %", 10_000: "99.99 %", 100_000: "99.999 %"}
    axes.set_xticks(list(marks)[: nines + 2], list(marks.values())[: nines + 2])
    axes.set_xlim(1, 10**nines)
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.minorticks_off()
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="upper left")


def _draw_timeline(axes: Any, timeline: Sequence[Mapping[str, Any]]) -> None:
    ends = [one["end"] for one in timeline]
    if ends:
        axes.step([0.0, *ends], [one["throughput"] for one in (timeline[0], *timeline)], where="pre")
    axes.set(xlabel="seconds since the start", ylabel="operations a second")
    axes.set_ylim(0, 1.1 * max([1.0, *(one["throughput"] for one in timeline)]))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
