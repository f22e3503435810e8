"""What a client and all its views share, and what sync and async clients do alike: everything but waiting."""

from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Callable, Iterable
from copy import copy
from typing import Any
from urllib.parse import parse_qsl, unquote

import attrs

from dcache.codec import Codec, Serializer
from dcache.drivers.driver import Books, Settings
from dcache.drivers.machine import THIS_MACHINE, Machine
from dcache.errors import ClientClosed, ClusterMismatch, DcacheError, QuorumError, ValueTooLarge
from dcache.membership import MemberTable
from dcache.ops.backoff import Backoff
from dcache.ops.context import Context, Counters, Key, Options, Shared, Ttl, key_to_bytes
from dcache.ops.quorum import QuorumSpec
from dcache.ops.topology import GIVEN_UP_AFTER, GIVEN_UP_SEARCHES, Topology
from dcache.record import VersionClock
from dcache.wire import Limits, storage_key

log = logging.getLogger("dcache.client")

SEARCH_PAUSE = 1.0
"""Seconds between two searches for a cluster whose members do not answer, give or take a half."""

_SEEDS = "the seeds"  # a name in the backoff, where nodes have theirs


@attrs.frozen(kw_only=True)
class Configuration:
    """Every setting of a client; see `Client` for what they mean.  Immutable; views evolve it."""

    write_quorum: QuorumSpec = "quorum"
    read_quorum: QuorumSpec = "quorum"
    namespace: str = ""
    default_ttl: Ttl = None
    serializer: str | Serializer = "msgpack"
    compression: str | None = None
    compress_above: int = 1024
    max_value: int = 1024 * 1024
    timeout: float = 0.5
    connect_timeout: float = 0.2
    max_connections: int = 64
    on_error: str = "raise"
    consistency: str = "quorums"

    def options(self) -> Options:
        codec = Codec(self.serializer, self.compression, self.compress_above, self.max_value)
        return Options(
            write_quorum=self.write_quorum,
            read_quorum=self.read_quorum,
            namespace=self.namespace,
            default_ttl=self.default_ttl,
            timeout=self.timeout,
            on_error=self.on_error,
            codec=codec,
            consistency=self.consistency,
        )


FIXED = frozenset({"connect_timeout", "max_connections"})
"""Settings of the connections, which views share and cannot change."""


@attrs.define
class _Search:
    """For a cluster that is not found: since when, how many signs of life there had been by then, how often in vain."""

    since: float = 0.0
    signs: int = -1
    failures: int = 0


class Session:
    """The topology, clocks and books of a client, and the contexts made from them."""

    def __init__(
        self, nodes: str | Iterable[str], configuration: Configuration, machine: Machine | None = None
    ) -> None:
        if not 0 < configuration.connect_timeout < math.inf or configuration.max_connections < 1:
            raise ValueError("connect_timeout must be a positive number of seconds and max_connections at least 1")
        seeds = [nodes] if isinstance(nodes, str) else list(nodes)
        self._machine = machine = machine or THIS_MACHINE
        monotonic, wall, random = machine.monotonic, machine.wall, machine.random
        backoff = Backoff(random)
        self.settings = Settings(monotonic, wall, configuration.connect_timeout, configuration.max_connections)
        self.shared = Shared(VersionClock(machine.new_writer(), wall), monotonic, random, backoff)
        self.topology = Topology(seeds, random)
        self.books = Books(self.topology, backoff, self.settings, self.shared.counters)
        self.searching = threading.Lock()  # held by the one that asks for the table
        self.closed = False
        self._complained = self._told_of_size = False
        self._lost_cluster: DcacheError | None = None  # why the last search for it failed
        self._search = _Search()  # those that failed
        self._search_again = 0.0

    @property
    def counters(self) -> Counters:
        return self.shared.counters

    @property
    def limits(self) -> Limits:
        return self.shared.limits

    def after_fork(self) -> None:
        """Become another writer, who trusts nothing that was under way."""
        self.shared.clock.reset(self._machine.new_writer())
        self.shared.backoff.reset()
        self._search = _Search()
        self.searching = threading.Lock()

    def check_open(self) -> None:
        if self.closed:
            raise ClientClosed("this client was closed")

    def needs_discovery(self) -> bool:
        return self.topology.table is None or self.topology.forsaken or self.closed

    def check_discovery(self) -> None:
        """Raise again what the last search for the cluster ended with, while it is too early for another."""
        if self._lost_cluster is not None and self.shared.backoff.allows(_SEEDS, self.settings.monotonic()):
            self.counters.errors += 1
            raise copy(self._lost_cluster)

    def discovery_failed(self, error: DcacheError) -> None:
        """Nobody gave a table; the next search is for any cluster if that makes this client leave its own."""
        self.counters.errors += 1
        self._lost_cluster = error
        now, mine = self.settings.monotonic(), self.topology.cluster_id()
        if self._search.signs != self.topology.signs_of_life:
            self._search = _Search(now, self.topology.signs_of_life)
        self._search.failures += 1
        long_ago = now - self._search.since >= GIVEN_UP_AFTER and self._search.failures >= GIVEN_UP_SEARCHES
        other = self.topology.give_up() if long_ago else None
        if other is None:
            self.shared.backoff.failed(_SEEDS, str(error), now)
            return
        log.warning(
            "no node of cluster %s is found any more, but one of %s: beginning anew with the seeds", mine, other
        )
        self._lost_cluster = None

    def discovered(self, table: MemberTable, source: str) -> None:
        """The search found this table at the node `source`."""
        try:
            self.topology.install(table)
        except ClusterMismatch as error:
            if not self.topology.foreign(source, table.settings.cluster_id):
                self.discovery_failed(error)
                raise
            self.topology.install(table)
        self._lost_cluster = None
        self._search_again = self.settings.monotonic() + SEARCH_PAUSE * (0.5 + self.shared.random())
        self.shared.backoff.answered(_SEEDS)

    def note(self, error: Exception) -> None:
        """An operation failed for want of nodes: perhaps none of those that are known is there any more."""
        self.counters.errors += 1
        if isinstance(error, QuorumError) and error.got == 0 and self.settings.monotonic() > self._search_again:
            self.topology.forsaken = True

    def complain(self, error: Exception) -> None:
        """Say once, until it works again, that the cache is being done without."""
        self.counters.computed_without_cache += 1
        if not self._complained:
            self._complained = True
            log.warning("the cache cannot be used, going on without it: %s", error)

    def too_large(self, error: ValueTooLarge) -> None:
        """Say once that there are values which are computed each time."""
        self.counters.computed_without_cache += 1
        if not self._told_of_size:
            self._told_of_size = True
            log.warning("some computed values are not stored: %s", error)

    def works_again(self) -> None:
        self._complained = False


class View:
    """A session seen with certain options: what `Client` and `AsyncClient` are made of."""

    def __init__(self, session: Session, configuration: Configuration) -> None:
        self.session, self.configuration = session, configuration
        self.options = configuration.options()
        self.latest: Context | None = None  # that of the last operation

    def with_configuration(self, changes: dict[str, Any]) -> Configuration:
        """This view's configuration with changes; `TypeError` for what cannot be changed in a view."""
        names = {field.name for field in attrs.fields(Configuration)}
        for name in changes:
            if name in FIXED or name not in names:
                raise TypeError(f"with_options() cannot change {name!r}; it knows {', '.join(sorted(names - FIXED))}")
        return attrs.evolve(self.configuration, **changes)

    def waiting(self, timeout: float) -> View:
        """This view with so many seconds for an operation."""
        return View(self.session, attrs.evolve(self.configuration, timeout=timeout))

    def context(self) -> Context | None:
        """The context for an operation that starts now; None if the table has just been given up."""
        table, context = self.session.topology.table, self.latest
        if table is None:
            return None
        if context is None or context.table is not table:
            context = self.latest = Context(table, self.options, self.session.shared)
        return context

    def flight_key(self, key: Key) -> bytes:
        """What concurrent computations of `key` have in common."""
        return storage_key(self.options.prefix, key_to_bytes(key, self.session.limits))


def key_from_bytes(key: bytes) -> str | bytes:
    """A key as `scan` returns it: str where it is UTF-8."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        return key


def parse_url(url: str) -> tuple[list[str], dict[str, Any]]:
    """ "dcache://h1:7400,h2/namespace?timeout=1" -> (nodes, settings); `ValueError` for anything else."""
    parts = _URL.fullmatch(url)
    if parts is None:
        raise ValueError(f"{url!r} is not of the form dcache://HOST[:PORT][,HOST...][/NAMESPACE][?SETTING=VALUE...]")
    nodes, path, query = parts.groups(default="")
    if "@" in nodes:
        raise ValueError("dcache URLs carry no user or password")
    settings: dict[str, Any] = {}
    if path.strip("/"):
        settings["namespace"] = unquote(path.strip("/"))
    for name, text in parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)):
        if name not in _FROM_TEXT:
            raise ValueError(f"{name!r} is not a setting that a URL can carry: {', '.join(sorted(_FROM_TEXT))}")
        try:
            settings[name] = _FROM_TEXT[name](text)
        except ValueError:
            raise ValueError(f"{name}={text!r} makes no sense") from None
    return nodes.split(","), settings


# Not `urlsplit`, which takes brackets, of IPv6 addresses, at the beginning only.
_URL = re.compile(r"dcache://([^/?#]+)(/[^?#]*)?(?:\?([^#]*))?")


def _quorum(text: str) -> QuorumSpec:
    return int(text) if text.isdigit() else text


_FROM_TEXT: dict[str, Callable[[str], Any]] = {
    "write_quorum": _quorum,
    "read_quorum": _quorum,
    "namespace": str,
    "default_ttl": float,
    "serializer": str,
    "compression": str,
    "compress_above": int,
    "max_value": int,
    "timeout": float,
    "connect_timeout": float,
    "max_connections": int,
    "on_error": str,
    "consistency": str,
}
