"""The settings of `dcache-node`, each stated once: name, default, how its text is read, what it means.

A setting may come from a flag, the environment (`DCACHE_NODE_MEMORY_LIMIT`), or a TOML file (`memory-limit =
"1GiB"`); the first of these that has it wins, then the default.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from dcache.membership import format_address, parse_address
from dcache.ring import check_vnodes, check_weight
from dcache.wire import DEFAULT_PORT

_UNITS = {"": 1, "b": 1, "k": 1000, "kb": 1000, "kib": 1 << 10, "m": 10**6, "mb": 10**6, "mib": 1 << 20}
_UNITS |= {"g": 10**9, "gb": 10**9, "gib": 1 << 30, "t": 10**12, "tb": 10**12, "tib": 1 << 40}
WILDCARDS = frozenset({"", "0.0.0.0", "::", "*"})  # noqa: S104  # to be recognised, not to be bound


def size(text: str) -> int:
    """ "256MiB" -> bytes; a bare number is bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{text!r} is no size: write a number of bytes, or one with KiB, MiB or GiB")
    number = int(float(match[1]) * _UNITS[match[2]])
    if number < 1:
        raise ValueError(f"{text!r} is less than one byte")
    return number


def count(text: str) -> int:
    """A positive whole number."""
    number = int(text)
    if number < 1:
        raise ValueError(f"{text!r} is less than 1")
    return number


def port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 65536:
        raise ValueError(f"{text!r} is no port: 0 to 65535")
    return number


def seed(text: str) -> int:
    number = int(text)
    if not 0 <= number < 1 << 32:
        raise ValueError(f"{text!r} is no seed: 0 to {(1 << 32) - 1}")
    return number


def seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError(f"{text!r} is no time: a positive number of seconds")
    return number


def weight(text: str) -> float:
    number = float(text)
    check_weight(None, None, number)
    return number


def vnodes(text: str) -> int:
    number = int(text)
    check_vnodes(None, None, number)
    return number


def address(text: str) -> str:
    """HOST or HOST:PORT, in its full form."""
    return format_address(*parse_address(text, DEFAULT_PORT))


def one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return read


def switch(text: str) -> bool:
    """ "true" or "false"; a flag without a value is "true"."""
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def _setting(read: Callable[[str], Any], default: Any, help: str, metavar: str, many: bool = False) -> Any:
    metadata = {"read": read, "help": help, "metavar": metavar, "many": many}
    return attrs.field(default=default, metadata=metadata)


@attrs.frozen(kw_only=True)
class NodeSettings:
    """Sizes in bytes, times in seconds."""

    host: str = _setting(str, "127.0.0.1", "address to listen on; others than loopback let the network in", "HOST")
    port: int = _setting(port, DEFAULT_PORT, "port to listen on; 0 takes a free one and says which", "PORT")
    advertise: str = _setting(address, "", "where others reach this node, if not at --host and --port", "HOST:PORT")
    name: str = _setting(str, "", "name in the cluster, kept over restarts; default: the advertised address", "NAME")
    join: tuple[str, ...] = _setting(
        address, (), "a member of the cluster to join, or a node to form one with; repeatable", "HOST:PORT", many=True
    )
    expect: int = _setting(count, 1, "if no cluster is running, form one of so many nodes that --join each other", "N")
    leave: bool = _setting(switch, False, "on SIGTERM leave the cluster before ending, not just stop", "true|false")
    replicas: int = _setting(count, 3, "nodes that hold each key; the same for all of a cluster", "N")
    vnodes: int = _setting(vnodes, 150, "points on the ring per unit of weight; the same for all of a cluster", "N")
    ring_seed: int = _setting(seed, 0, "seed of the ring's hash; the same for all of a cluster", "N")
    zone: str = _setting(str, "", "failure zone; copies of a key are spread over zones", "ZONE")
    weight: float = _setting(weight, 1.0, "share of the keys, relative to the other nodes", "W")
    memory_limit: int = _setting(size, 256 << 20, "for keys, values and 256 bytes per entry", "SIZE")
    max_entries: int | None = _setting(count, None, "limit on the number of entries; default: none", "N")
    max_value: int = _setting(size, 1 << 20, "largest value", "SIZE")
    max_connections: int = _setting(count, 1024, "connections at a time", "N")
    idle_timeout: float = _setting(seconds, 3600.0, "close a connection that is silent for so long", "SECONDS")
    clock_skew: float = _setting(seconds, 60.0, "refuse writers whose clocks are further ahead", "SECONDS")
    probe_interval: float = _setting(seconds, 1.0, "time between two looks at whether another member is up", "SECONDS")
    start_over_after: float = _setting(
        seconds, 30.0, "begin slots anew, empty, when so long too few others know what was in them", "SECONDS"
    )
    repair_interval: float = _setting(seconds, 60.0, "time between two comparisons with the other owners", "SECONDS")
    repair_rate: int = _setting(size, 32 << 20, "most bytes per second for copying between nodes", "SIZE")
    log_level: str = _setting(one_of("debug", "info", "warning", "error"), "info", "what to log", "LEVEL")
    log_format: str = _setting(one_of("text", "json"), "text", "how to log, on standard error", "FORMAT")

    def __attrs_post_init__(self) -> None:
        if self.host in WILDCARDS and not self.advertise:
            raise ValueError(f"--host {self.host} is no address that others can reach: say --advertise HOST:PORT too")
        if self.expect > 1 and not self.join:
            raise ValueError("--expect needs the addresses of the other nodes: --join HOST:PORT, repeatable")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def load(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> NodeSettings:
    """The settings of a command line.  Exits with status 2 and a message for what makes no sense."""
    parser = _parser()
    given = vars(parser.parse_args(argv))
    path = given.pop("config") or environ.get("DCACHE_NODE_CONFIG")
    try:
        file = {} if path is None else _read_file(Path(path))
        chosen = {}
        for field in attrs.fields(NodeSettings):
            value = _choose(field, given[field.name], environ, file)
            if value is not attrs.NOTHING:
                chosen[field.name] = value
        return NodeSettings(**chosen)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dcache-node",
        allow_abbrev=False,  # a shortened flag could come to mean another one
        description="A storage node of dcache: keeps records in memory and answers MessagePack-RPC over TCP.",
        epilog="Every setting can also come from the environment (DCACHE_NODE_MEMORY_LIMIT=1GiB) or from a TOML file "
        '(memory-limit = "1GiB"); a flag wins over the environment, that over the file.',
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings, named as the flags are")
    for field in attrs.fields(NodeSettings):
        about = field.metadata
        alone: dict[str, Any] = {"nargs": "?", "const": "true"} if about["read"] is switch else {}
        unsaid = field.default is False or field.default in ("", None, ())
        parser.add_argument(
            flag(field.name),
            dest=field.name,
            metavar=about["metavar"],
            action="append" if about["many"] else "store",
            help=about["help"] + ("" if unsaid else f" (default: {field.default})"),
            **alone,
        )
    return parser


def _choose(field: attrs.Attribute[Any], given: Any, environ: Mapping[str, str], file: Mapping[str, Any]) -> Any:
    """The first that has a say: flag, environment, file."""
    variable = f"DCACHE_NODE_{field.name.upper()}"
    name = field.name.replace("_", "-")
    if given is not None:
        return _read(field, given, flag(field.name))
    if variable in environ:
        text = environ[variable]
        return _read(field, text.replace(",", " ").split() if field.metadata["many"] else text, variable)
    if name in file:
        return _read(field, file[name], f"{name} in the file")
    return attrs.NOTHING


def _read(field: attrs.Attribute[Any], value: Any, where: str) -> Any:
    try:
        if field.metadata["many"]:
            return tuple(field.metadata["read"](str(one)) for one in ([value] if isinstance(value, str) else value))
        return field.metadata["read"](str(value))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error}") from None
    known = {field.name.replace("_", "-") for field in attrs.fields(NodeSettings)}
    unknown = sorted(set(found) - known)
    if unknown:
        raise ValueError(f"{path}: no such settings: {', '.join(unknown)}")
    return found
