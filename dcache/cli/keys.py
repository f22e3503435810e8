"""`dcache get`, `set`, `delete`: one key."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from dcache.cli.output import Front, json_value, key_bytes
from dcache.ops.context import ttl_to_ms


@click.command()
@click.argument("key")
@click.pass_obj
def get(front: Front, key: str) -> None:
    """Print the value of KEY; exit with 1 if there is none.

    Text is printed with a newline, bytes as they are, anything else as Python writes it.
    """
    item = front.client.gets(key_bytes(key))
    if item is None:
        _missed(front, key)
    elif front.json:
        about = {"version": item.version.hex(), "ttl": item.ttl}
        front.show({"key": key, "found": True, **json_value(item.value), **about})
    else:
        _print(item.value)


def _missed(front: Front, key: str) -> None:
    if front.json:
        front.show({"key": key, "found": False})
    elif front.client.session.counters.undecodable:
        click.echo("dcache: what is stored there cannot be read as msgpack", err=True)
    click.get_current_context().exit(1)


def _print(value: Any) -> None:
    if isinstance(value, bytes):
        click.echo(value, nl=False)
        return
    text = value if isinstance(value, str) else repr(value)
    click.echo(text.encode(errors="backslashreplace"))


def _lifetime(ctx: click.Context, option: click.Parameter, seconds: float | None) -> float | None:
    try:
        ttl_to_ms(seconds)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, option) from None
    return seconds


@click.command("set")
@click.argument("key")
@click.argument("value")
@click.option("--ttl", type=float, metavar="SECONDS", callback=_lifetime, help="Lifetime.  [default: no expiry]")
@click.option("--int", "integer", is_flag=True, help="Store an integer, which can be counted with.")
@click.pass_obj
def set_(front: Front, key: str, value: str, ttl: float | None, integer: bool) -> None:
    """Store VALUE under KEY: as text, or as bytes if it is not UTF-8.

    With "-" for VALUE, what stands on standard input is stored.  What begins with a dash goes after "--":
    dcache set --int -- KEY -5
    """
    given = _text(sys.stdin.buffer.read() if value == "-" else os.fsencode(value))
    version = front.client.set(key_bytes(key), _integer(given) if integer else given, ttl)
    front.show({"key": key, "stored": True, "version": version.hex()})


def _text(data: bytes) -> str | bytes:
    """Text if it is UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _integer(given: str | bytes) -> int:
    try:
        return int(given)
    except ValueError:
        raise click.BadParameter("is no integer", param_hint="VALUE") from None


@click.command()
@click.argument("key")
@click.pass_obj
def delete(front: Front, key: str) -> None:
    """Forget KEY; exit with 1 if no owner held it."""
    held = front.client.delete(key_bytes(key))
    front.show({"key": key, "deleted": held})
    if not held:
        click.get_current_context().exit(1)
