"""The options of `dcache bench`: what each says, how it is read, and what must be so of them together."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import click

from dcache.cli import bench_plot, settings
from dcache.cli.bench_run import NAMESPACE, SETTINGS, Plan
from dcache.client.session import Configuration
from dcache.ops.quorum import QuorumSpec
from dcache.testing.load.sizes import Fixed, Sizes
from dcache.testing.load.workload import PRESETS, Workload

CALLERS = 8
SECONDS = 10.0
COUNT = click.IntRange(min=1)
MAX_KEY = 1000  # bytes; with the namespace there may be 1,024
PICTURES = (".png", ".svg", ".pdf")


# -- how options are read ---------------------------------------------------------------------------------------------


def _value_size(ctx: click.Context, option: click.Parameter, text: str | None) -> Sizes | None:
    found = _sizes(ctx, option, text, {name: preset.value_sizes for name, preset in PRESETS.items()})
    if isinstance(found, Fixed) and found.size > SETTINGS.max_value:
        raise click.BadParameter(f"values have at most {SETTINGS.max_value} bytes", ctx, option)
    return found


def _key_size(ctx: click.Context, option: click.Parameter, text: str | None) -> Sizes | None:
    found = _sizes(ctx, option, text, {name: preset.key_sizes for name, preset in PRESETS.items()})
    if isinstance(found, Fixed) and found.size > MAX_KEY:
        raise click.BadParameter(f"keys have at most {MAX_KEY} bytes", ctx, option)
    return found


def _sizes(ctx: click.Context, option: click.Parameter, text: str | None, presets: Mapping[str, Sizes]) -> Sizes | None:
    """A size, or those of a preset."""
    if text is None or text in presets:
        return None if text is None else presets[text]
    try:
        return Fixed(settings.size(text))
    except ValueError as error:
        raise click.BadParameter(f"{error}, or the name of a preset: {', '.join(presets)}", ctx, option) from None


def _quorum(ctx: click.Context, option: click.Parameter, text: str | None) -> QuorumSpec | None:
    """As a client takes them."""
    if text is None or text in ("one", "quorum", "all"):
        return text
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise click.BadParameter(f"{text!r} is neither one, quorum, all nor a positive number", ctx, option)


class Number(click.FloatRange):
    """A number between others, and no infinite one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return found


POSITIVE = Number(min=0, min_open=True)
SHARE = Number(0, 1)


def _also_json(ctx: click.Context, option: click.Parameter, given: bool) -> bool:
    """The program's own option, said after the command."""
    if given and ctx.parent is not None:
        ctx.parent.params["json_"] = True  # for errors
    return given


def _option(name: str, type: Any, help: str, **more: Any) -> Callable[[Any], Any]:
    return click.option(name, type=type, help=help, **more)


# -- the options themselves -------------------------------------------------------------------------------------------

OPTIONS = (
    _option(
        "--start",
        COUNT,
        "Start so many nodes on this machine, instead of using those of `dcache --nodes`.",
        metavar="N",
    ),
    _option(
        "--replicas",
        COUNT,
        "With --start: nodes that hold each key.  [default: 3, or as many as there are]",
        metavar="N",
    ),
    _option(
        "--write-quorum",
        str,
        "Owners that must have stored: one, quorum, all or a number.  [default: quorum]",
        callback=_quorum,
        metavar="QUORUM",
    ),
    _option(
        "--read-quorum",
        str,
        "Owners that must have answered a read.  [default: quorum]",
        callback=_quorum,
        metavar="QUORUM",
    ),
    _option("--threads", COUNT, "Callers, as threads with one Client.  [default: 8]", metavar="N"),
    _option("--tasks", COUNT, "Callers, as tasks with one AsyncClient, instead of threads.", metavar="N"),
    click.option("--uvloop/--no-uvloop", default=None, help="With --tasks: on uvloop.  [default: no]"),
    _option(
        "--pipeline",
        COUNT,
        "With --tasks: operations that each begins at once, and waits for together.  [default: 1]",
        metavar="N",
    ),
    _option(
        "--preset",
        click.Choice(list(PRESETS)),
        f"A published workload, which the options below override: {', '.join(PRESETS)}.",
        metavar="NAME",
    ),
    _option("--keys", COUNT, "Number of keys.  [default: 10,000]", metavar="N"),
    _option(
        "--value-size",
        str,
        "Bytes of a value (100, 10KiB), or a preset with whose sizes.  [default: 100]",
        callback=_value_size,
        metavar="SIZE",
    ),
    _option(
        "--key-size",
        str,
        "Bytes of a key, or a preset with whose sizes.  [default: 16]",
        callback=_key_size,
        metavar="SIZE",
    ),
    _option("--reads", SHARE, "Share of the operations that read.  [default: 0.9]", metavar="SHARE"),
    _option(
        "--batch", COUNT, "Keys per operation: get_many and set_many, if more than 1.  [default: 1]", metavar="SIZE"
    ),
    _option(
        "--distribution",
        click.Choice(["uniform", "zipf", "latest"]),
        "How often which key is chosen; latest: Zipf's law by age.  [default: uniform]",
    ),
    _option("--skew", Number(0, 10), "Exponent of Zipf's law.  [default: 0.99]", metavar="S"),
    click.option("--fill/--no-fill", default=None, help="Store a key that a read missed.  [default: no]"),
    _option("--ttl", POSITIVE, "Lifetime of all that is stored, in seconds.  [default: no expiry]", metavar="SECONDS"),
    _option("--once", SHARE, "Share of choices that are keys asked for only once.  [default: 0]", metavar="SHARE"),
    _option("--rate", POSITIVE, "Operations per second in all, each timed from when it should begin.", metavar="N"),
    _option(
        "--seconds", POSITIVE, "How long to run.  [default: 10, or until --operations are done]", metavar="SECONDS"
    ),
    _option("--operations", COUNT, "How many operations to run.", metavar="N"),
    _option(
        "--warm-up",
        Number(0),
        "Seconds to run beforehand without counting.",
        default=1.0,
        show_default=True,
        metavar="SECONDS",
    ),
    click.option("--preload/--no-preload", default=True, help="Store all keys beforehand.", show_default=True),
    _option(
        "--seed",
        click.IntRange(min=0),
        "What is chosen at random follows from it.",
        default=0,
        show_default=True,
        metavar="N",
    ),
    _option("--plot", click.Path(path_type=Path), "Draw latencies and throughput (.png, .svg, .pdf).", metavar="FILE"),
    click.option("--json", "json_", is_flag=True, callback=_also_json, help="The same as `dcache --json bench`."),
)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


# -- what they say together -------------------------------------------------------------------------------------------


def planned(configuration: Configuration, given: Mapping[str, Any]) -> Plan:
    """What is to be run; `UsageError` for what does not go together."""
    _check_callers(given)
    tasks = given["tasks"] is not None
    chosen = {name: given[name] for name in ("pipeline", "batch", "rate", "operations", "warm_up", "preload", "seed")}
    seconds = given["seconds"]
    if seconds is None and given["operations"] is None:
        seconds = SECONDS
    quorums = {name: given[name] for name in ("write_quorum", "read_quorum")}
    return Plan(
        workload=workload_of(given),
        preset=given["preset"],
        callers=given["tasks"] or given["threads"] or CALLERS,
        tasks=tasks,
        uvloop=bool(given["uvloop"]),
        seconds=seconds,
        settings=attrs.evolve(configuration, namespace=configuration.namespace or NAMESPACE, **_said(quorums)),
        **_said(chosen),
    )


def workload_of(given: Mapping[str, Any]) -> Workload:
    """The preset, or what is asked where nothing is said, with the options that were given in place of its own."""
    named = ("keys", "reads", "distribution", "skew", "fill", "once")
    sizes = {"value_sizes": given["value_size"], "key_sizes": given["key_size"]}
    lifetimes = None if given["ttl"] is None else ((given["ttl"], 1.0),)
    changes = _said({**{name: given[name] for name in named}, **sizes, "lifetimes": lifetimes})
    made = attrs.evolve(PRESETS[given["preset"]] if given["preset"] else Workload(), **changes)
    if given["skew"] is not None and made.distribution == "uniform":
        raise click.UsageError("--skew is for --distribution zipf or latest: in a uniform one there is none")
    return made


def _said(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _check_callers(given: Mapping[str, Any]) -> None:
    if given["tasks"] is not None and given["threads"] is not None:
        raise click.UsageError("callers are either --threads or --tasks, not both")
    if given["tasks"] is None and (given["pipeline"] or 1) > 1:
        raise click.UsageError("--pipeline is for --tasks: a thread has one operation under way; use more --threads")
    if given["tasks"] is None and given["uvloop"]:
        raise click.UsageError("--uvloop is for --tasks: threads have no event loop")
    if given["uvloop"] and importlib.util.find_spec("uvloop") is None:
        raise click.UsageError('--uvloop needs uvloop: pip install "dcache-py[fast]"')


def check_cluster(start: int | None, replicas: int | None) -> None:
    if replicas is None:
        return
    if start is None:
        raise click.UsageError("--replicas is for --start: a cluster that is running has its own number of them")
    if replicas > start:
        raise click.UsageError(f"there cannot be {replicas} replicas on {start} node{'s' * (start > 1)}")


def check_plot(path: Path | None) -> None:
    """Before anything is run for it."""
    if path is None:
        return
    if path.suffix.lower() not in PICTURES:
        raise click.UsageError(f"--plot {path}: the name must end in {', '.join(PICTURES)}")
    if not path.absolute().parent.is_dir():
        raise click.UsageError(f"--plot {path}: there is no such directory")
    if not bench_plot.available():
        raise click.UsageError(bench_plot.MISSING)
