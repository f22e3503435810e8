"""What every command of `dcache` is given: the client it works with, and how results are shown.

Nothing that comes from a key, a value or a node is ever read as markup.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import attrs
import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dcache.client.session import Configuration
from dcache.client.sync import Client
from dcache.ops.survey import Survey, survey
from dcache.record import version_milliseconds

NO_TERMINAL = 160
"""Columns where there is no terminal whose width would count: wide enough that nothing is folded."""


@attrs.define(slots=False)
class Front:
    """The global options, and what follows from them.  The client is made when it is first needed."""

    nodes: Sequence[str]
    configuration: Configuration
    json: bool

    @cached_property
    def client(self) -> Client:
        settings = self.configuration
        return Client(self.nodes, namespace=settings.namespace, timeout=settings.timeout)

    @cached_property
    def console(self) -> Console:
        """For people: standard output, or standard error where that is for the machine."""
        console = Console(stderr=self.json, markup=False, highlight=False, emoji=False)
        if not console.is_terminal:
            console.width = NO_TERMINAL
        return console

    def survey(self) -> Survey:
        """What all members say now."""
        seen = self.client.engine.run(self.client, survey)
        self.client.session.topology.install(seen.table)
        return seen

    def close(self) -> None:
        if "client" in self.__dict__:
            self.client.close()

    def show(self, result: Any, *shown: Any) -> None:
        """Print `result` as JSON, or what is `shown` of it to people."""
        if self.json:
            click.echo(json.dumps(result, allow_nan=False))
            return
        for one in shown:
            self.console.print(one)


def table(columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table whose first column is text and whose others are numbers, or are shown like them."""
    made = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for index, name in enumerate(columns):
        made.add_column(name, justify="right" if index else "left", overflow="fold", no_wrap=not index)
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return made


def key_bytes(key: str) -> bytes:
    """A key of the command line as the very bytes that were typed, which need not be text."""
    return os.fsencode(key)


def json_value(value: Any) -> dict[str, Any]:
    """A cached value in JSON: as it is where JSON has it, else base64 or Python's notation, and which of these."""
    if isinstance(value, bytes):
        import base64

        return {"value": base64.b64encode(value).decode(), "encoding": "base64"}
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return {"value": repr(value), "encoding": "repr"}
    return {"value": value, "encoding": "json"}


def lifetime(seconds: float | None) -> str:
    """A remaining lifetime as text; None and inf are no expiry."""
    if seconds is None or math.isinf(seconds):
        return "no expiry"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def size(count: int) -> str:
    """Bytes as text, in binary units."""
    if count < 1024:
        return f"{count} B"
    power = min((count.bit_length() - 1) // 10, 4)
    return f"{count / (1 << 10 * power):.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def written(version: bytes) -> str:
    """When a version was stamped, by its writer's clock; in ISO 8601, UTC."""
    moment = datetime.fromtimestamp(version_milliseconds(version) / 1000, UTC)
    return moment.isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
