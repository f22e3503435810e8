"""What `dcache bench` tells of a run: as a document, and to people.  Times are in seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from dcache.cli.bench_run import Outcome, Plan
from dcache.cli.output import table
from dcache.testing.load.histogram import Histogram
from dcache.testing.load.tally import KINDS, Interval, hit_rate

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
HEAVY = 0.1
"""The share of this process's time that the callers' own work may take before it is pointed out."""


_AS_TOLD = {"quorum": "a majority"}


# -- as a document ----------------------------------------------------------------------------------------------------


def document(outcome: Outcome) -> dict[str, Any]:
    """All that is known of a run."""
    tally = outcome.tally
    everything = tally.operations()
    operations = everything.count
    return {
        "workload": _workload(outcome.plan),
        "load": _load(outcome.plan),
        "cluster": {
            "nodes": sorted(outcome.after),
            "replicas": outcome.replicas,
            "write_quorum": outcome.plan.settings.write_quorum,
            "read_quorum": outcome.plan.settings.read_quorum,
        },
        "preload": _preload(outcome),
        "seconds": outcome.seconds,
        "interrupted": outcome.interrupted,
        "operations": operations,
        "throughput": operations / outcome.seconds,
        "behind": outcome.behind,
        "latency": {"all": latency(everything), **_by_kind(outcome)},
        "hits": tally.hits,
        "misses": tally.misses,
        "hit_rate": hit_rate(tally.hits, tally.misses),
        "errors": dict(sorted(tally.errors.items())),
        "nodes": loads(outcome.before, outcome.after),
        "timeline": [_interval(one) for one in outcome.timeline],
        "overhead": {"per_operation": outcome.overhead, "share": overhead_share(outcome)},
    }


def _workload(plan: Plan) -> dict[str, Any]:
    workload = plan.workload
    return {
        "preset": plan.preset,
        "keys": workload.keys,
        "key_size": str(workload.key_sizes),
        "value_size": str(workload.value_sizes),
        "reads": workload.reads,
        "change": workload.change,
        "distribution": workload.distribution,
        "skew": None if workload.distribution == "uniform" else workload.skew,
        "once": workload.once,
        "lifetimes": [{"seconds": seconds, "share": share} for seconds, share in workload.lifetimes],
        "fill": workload.fill,
    }


def _load(plan: Plan) -> dict[str, Any]:
    return {
        "callers": "tasks" if plan.tasks else "threads",
        "count": plan.callers,
        "uvloop": plan.uvloop,
        "pipeline": plan.pipeline,
        "batch": plan.batch,
        "rate": plan.rate,
        "warm_up": plan.warm_up,
        "seed": plan.seed,
    }


def _preload(outcome: Outcome) -> dict[str, Any] | None:
    done = outcome.preloaded
    if done is None:
        return None
    return {"keys": done.keys, "stored": done.stored, "seconds": done.seconds, "errors": dict(done.errors)}


def latency(histogram: Histogram) -> dict[str, float]:
    """The figures of one kind of operation."""
    found = histogram.quantiles(tuple(QUANTILES.values()))
    figures = {name: found[share] / 1e9 for name, share in QUANTILES.items()}
    return {
        "count": histogram.count,
        "mean": histogram.mean / 1e9,
        **figures,
        "max": histogram.largest / 1e9,
    }


def _by_kind(outcome: Outcome) -> dict[str, dict[str, float]]:
    latencies = outcome.tally.latencies
    return {kind: latency(latencies[kind]) for kind in KINDS if latencies[kind].count}


def loads(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What each node did that told of itself both times, and its share of all requests."""
    counted = ("requests", "hits", "misses", "writes")
    both = [name for name in after if "requests" in after[name] and "requests" in before.get(name, {})]
    made = {name: {what: after[name][what] - before[name][what] for what in counted} for name in both}
    requests = sum(one["requests"] for one in made.values())
    return {name: {**one, "share": one["requests"] / requests if requests else 0.0} for name, one in made.items()}


def _interval(one: Interval) -> dict[str, Any]:
    return {
        "end": one.end,
        "operations": one.operations,
        "throughput": one.throughput,
        "hit_rate": one.hit_rate,
        "p50": one.p50 / 1e9,
        "p99": one.p99 / 1e9,
        "errors": one.errors,
    }


def overhead_share(outcome: Outcome) -> float:
    """How much of this process's time went into choosing operations and noting their latency."""
    return min(1.0, outcome.overhead * outcome.tally.operations().count / max(outcome.processor, 1e-9))


# -- to people --------------------------------------------------------------------------------------------------------


def shown(told: Mapping[str, Any]) -> Iterator[Table | Text | str]:
    """A document, for people."""
    yield from _asked(told)
    yield _latencies(told)
    yield from _sums(told)
    yield ""
    yield _nodes(told)
    yield _overhead(told)


def _asked(told: Mapping[str, Any]) -> Iterator[str]:
    cluster, load = told["cluster"], told["load"]
    count = len(cluster["nodes"])
    waits = (_AS_TOLD.get(cluster[what], cluster[what]) for what in ("write_quorum", "read_quorum"))
    quorums = "a write waits for {} of them, a read for {}".format(*waits)
    yield f"{count} node{'s' * (count != 1)}; keys have {cluster['replicas']} replicas: {quorums}"
    yield callers(load)
    yield described(told["workload"])
    if told["preload"] is not None:
        preload = told["preload"]
        failed = "".join(f", {count:,} {kind}" for kind, count in preload["errors"].items())
        yield f"{preload['stored']:,} keys stored beforehand in {preload['seconds']:.1f} s{failed}"
    yield ""


def callers(load: Mapping[str, Any]) -> str:
    """Who asks, and how fast, in one line."""
    loop = " on uvloop" if load["uvloop"] else ""
    pace = "as fast as they can" if load["rate"] is None else f"{load['rate']:g} operations a second"
    wide = f", {load['pipeline']} operations at a time each" if load["pipeline"] > 1 else ""
    batch = f", batches of {load['batch']} keys" if load["batch"] > 1 else ""
    return f"{load['count']} {load['callers']}{loop}, {pace}{wide}{batch}"


def described(workload: Mapping[str, Any]) -> str:
    """A workload in one line."""
    preset = "" if workload["preset"] is None else f"{workload['preset']}: "
    choice = workload["distribution"] + ("" if workload["skew"] is None else f" {workload['skew']:g}")
    once = f", {workload['once']:.2%} keys asked for once" if workload["once"] else ""
    fill = ", missing keys are stored" if workload["fill"] else ""
    lives = ", ".join(f"{one['seconds']:g} s" for one in workload["lifetimes"] if one["seconds"] is not None)
    return (
        f"{preset}{workload['keys']:,} keys of {workload['key_size']}, values of {workload['value_size']}, "
        f"{workload['reads']:.1%} reads, else {workload['change']}; {choice}{once}{fill}"
        + (f"; lifetimes {lives}" if lives else "")
    )


def _latencies(told: Mapping[str, Any]) -> Table:
    figures = ("mean", *QUANTILES, "max")
    rows = []
    for kind, row in told["latency"].items():
        times = (f"{row[figure] * 1000:.3f}" for figure in figures)
        rows.append((kind, f"{row['count']:,}", f"{row['count'] / told['seconds']:,.0f}", *times))
    return table(("operation", "count", "a second", *(f"{figure} ms" for figure in figures)), rows)


def _sums(told: Mapping[str, Any]) -> Iterator[Text]:
    stopped = "interrupted: " if told["interrupted"] else ""
    yield Text(
        f"\n{stopped}{told['operations']:,} operations in {told['seconds']:.2f} s: {told['throughput']:,.0f} a second"
    )
    if told["hit_rate"] is not None:
        keys = f"{told['hits']:,} of {told['hits'] + told['misses']:,} keys"
        yield Text(f"hit rate {told['hit_rate']:.2%}: {keys}")
    for kind, count in told["errors"].items():
        yield Text(f"errors: {count:,} {kind}", style="bold red")
    if told["behind"]:
        yield Text(f"{told['behind']:,} operations should have begun and did not", style="bold red")


def _nodes(told: Mapping[str, Any]) -> Table:
    columns = ("node", "requests", "share", "hits", "misses", "writes")
    rows = [
        (
            name,
            f"{one['requests']:,}",
            f"{one['share']:.1%}",
            *(f"{one[what]:,}" for what in ("hits", "misses", "writes")),
        )
        for name, one in told["nodes"].items()
    ]
    return table(columns, rows)


def _overhead(told: Mapping[str, Any]) -> Text:
    one, share = told["overhead"]["per_operation"], told["overhead"]["share"]
    text = (
        f"\nChoosing operations and noting latencies took {one * 1e6:.1f} us each, {share:.1%} of this process's time."
    )
    return Text(text, style="yellow" if share > HEAVY else "")


def live(interval: Interval) -> str:
    """The last second in one line."""
    rate = "none" if interval.hit_rate is None else f"{interval.hit_rate:.1%}"
    errors = f"   errors {interval.errors:,}" if interval.errors else ""
    p99 = f"{interval.p99 / 1e6:.2f} ms"
    return f"{interval.end:5.0f} s   {interval.throughput:10,.0f} a second   hit rate {rate}   p99 {p99}{errors}"
