"""The `dcache` program: its global options, and how all commands end.

Exit status: 0 done or found, 1 a miss or a difference, 2 wrong usage, 3 trouble with the cluster, 130 interrupted.
Results go to standard output; what went wrong goes to standard error, as one line, with `--json` as one object.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

import click

from dcache.cli import bench, changes, cluster, demo, keys, repairs
from dcache.cli.changes import NotPossible
from dcache.cli.node import package_version
from dcache.cli.output import Front
from dcache.client.session import Configuration
from dcache.errors import DcacheError, InvalidKey, SerializationError, ValueTooLarge
from dcache.membership import parse_address
from dcache.testing.cluster import NodeFailed
from dcache.wire import DEFAULT_PORT

USAGE, TROUBLE, INTERRUPTED = 2, 3, 130


class Program(click.Group):
    """A group in which every error becomes one line and a status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (InvalidKey, ValueTooLarge, SerializationError, NotPossible) as error:
            fail(ctx, error, USAGE)
        except (DcacheError, NodeFailed) as error:
            fail(ctx, error, TROUBLE)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


def fail(ctx: click.Context, error: Exception, status: int) -> NoReturn:
    message = " ".join(str(error).split())
    if ctx.params["json_"]:
        message = json.dumps({"error": message, "kind": type(error).__name__})
    else:
        message = f"dcache: {message}"
    click.echo(message, err=True)
    ctx.exit(status)


def _addresses(ctx: click.Context, option: click.Parameter, text: str) -> tuple[str, ...]:
    addresses = tuple(filter(None, text.replace(",", " ").split()))
    try:
        for address in addresses:
            parse_address(address, DEFAULT_PORT)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, option) from None
    if not addresses:
        raise click.BadParameter("name at least one node, HOST:PORT", ctx, option)
    return addresses


def _positive(ctx: click.Context, option: click.Parameter, number: float) -> float:
    if not 0 < number < float("inf"):
        raise click.BadParameter("must be a positive number of seconds", ctx, option)
    return number


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--nodes",
    metavar="HOST:PORT[,...]",
    envvar="DCACHE_NODES",
    default=f"127.0.0.1:{DEFAULT_PORT}",
    show_default=True,
    show_envvar=True,
    callback=_addresses,
    help="Members of the cluster; one that answers is enough.",
)
@click.option("--namespace", metavar="NAME", default="", help="Namespace of the keys.  [default: none]")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=float,
    default=2.0,
    show_default=True,
    callback=_positive,
    help="For each operation on the cluster.",
)
@click.option("--json", "json_", is_flag=True, help="Print results, and errors, as JSON.")
@click.version_option(package_version())
@click.pass_context
def program(ctx: click.Context, nodes: tuple[str, ...], namespace: str, timeout: float, json_: bool) -> None:
    """Look into a dcache cluster, use it, try it out.

    Exit status: 0 done or found, 1 a miss (for `demo` a wrong answer, for `verify` nodes that differ), 2 wrong usage,
    3 trouble with the cluster.
    """
    ctx.obj = Front(nodes, Configuration(namespace=namespace, timeout=timeout), json_)
    ctx.call_on_close(ctx.obj.close)


COMMANDS = (
    *(keys.get, keys.set_, keys.delete),
    *(cluster.ping, cluster.members, cluster.ring, cluster.stats),
    *(changes.leave, changes.forget, repairs.repair, repairs.verify),
    *(demo.demo, bench.bench),
)

for _command in COMMANDS:
    program.add_command(_command)
