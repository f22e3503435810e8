"""What both drivers do alike: run a round against channels, keep the books of who is in trouble.

A driver brings `send`, which gets a call to its node or fails it, and a way of waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import attrs

from dcache.drivers.channel import Handshake, Waiter
from dcache.errors import ClockSkew, ClusterMismatch, NodeError
from dcache.ops.backoff import Backoff
from dcache.ops.context import Counters
from dcache.ops.effects import Call, LeftAlone, Link, Round
from dcache.ops.latency import Hedging
from dcache.ops.topology import Topology
from dcache.wire import Code

PATIENCE = 0.25
"""The part of an operation's time after which a slow node is raced with another."""

ABOUT_NODES = frozenset({"table", "ping", "stats", "ready", "probe", "vouch", "offer"})
"""Calls that ask after the node itself: they are made even to nodes that are being left alone."""


@attrs.frozen
class Settings:
    """Of a driver.  Times in seconds; `wall` in milliseconds since 1970, `monotonic` in seconds."""

    monotonic: Callable[[], float]
    wall: Callable[[], int]
    connect_timeout: float = 0.2
    max_connections: int = 64
    """Per node, for the blocking driver."""
    stall: float = 2.0
    """A connection that has not answered for so long is closed."""
    skew: int | None = 30_000
    push: bool = True


class Books:
    """Where both drivers note what they see of nodes."""

    def __init__(
        self, topology: Topology, backoff: Backoff, settings: Settings, counters: Counters | None = None
    ) -> None:
        self.topology, self.backoff, self.settings = topology, backoff, settings
        self.hedging = Hedging(counters or Counters())
        topology.on_return = backoff.answered
        topology.on_leave = backoff.reset  # what is known of the nodes is known of the old cluster's

    def handshake(self, node: str) -> Handshake:
        name = node if self.topology.is_member(node) else None
        settings = self.settings
        return Handshake(settings.wall, name, self.topology.cluster_id(), settings.skew, settings.push)

    def news(self, node: str, digest: bytes) -> Call | None:
        """What to ask a node whose table had this digest when it said hello: for its table, if that is another."""
        table = self.topology.table
        if table is None or not digest or digest == table.digest:
            return None
        return Call(node, "exchange", (table.digest,))

    def probes(self) -> list[Call]:
        """Questions to the members that have been left alone for long enough and that nobody has needed since."""
        if not self.backoff.failures:
            return []
        now = self.settings.monotonic()
        return [
            Call(node, "ping", ())
            for node in self.backoff.due(now)
            if self.topology.is_member(node) and self.backoff.allows(node, now) is None
        ]

    def keep_away(self, call: Call) -> str | None:
        """Why a call is not to be made now, if it is not."""
        if not self.backoff.failures or call.method in ABOUT_NODES:
            return None
        return self.backoff.allows(call.node, self.settings.monotonic())

    def raceable(self, calls: Sequence[Call], patience: float, now: float) -> None:
        """These calls, each to another node, are about to be made and may be raced.  See `Execution` for `patience`."""
        self.hedging.called(len(calls))
        for call in calls if self.hedging.owed else ():
            if self.hedging.overdue(call.node, patience, now):
                self.backoff.slow(call.node, now)

    def answered(self, node: str) -> None:
        self.backoff.answered(node)
        self.hedging.answered(node)

    def failed(self, node: str, error: Exception) -> None:
        """A call to `node` brought an error instead of a result."""
        if isinstance(error, NodeError):
            self.answered(node)
            if error.code == Code.WRONG_RING:
                self.topology.refused(error.detail, node)
            return
        if isinstance(error, ClusterMismatch) and error.cluster_id and self.topology.foreign(node, error.cluster_id):
            return
        if isinstance(error, ClockSkew):  # who is of another cluster says that first
            self.topology.sign_of_life()
        now = self.settings.monotonic()
        if not self.backoff.resting(node, now):  # else the calls on one broken connection would count one by one
            self.backoff.failed(node, str(error) or type(error).__name__, now)


class Execution(Waiter):
    """One round on its way.  `send(call, waiter)` is the driver's; `on_over` is called once there is enough, or nothing
    left to wait for, unless the driver looks for itself.  A node that owes an answer for `patience` seconds is slow."""

    def __init__(
        self,
        round_: Round,
        books: Books,
        send: Callable[[Call, Waiter], None],
        on_over: Callable[[], None] | None,
        patience: float = inf,
    ) -> None:
        self.round, self._books, self._send, self._on_over = round_, books, send, on_over
        self.closed = False
        self._patience = patience
        self._monotonic = books.settings.monotonic
        self._since = self._monotonic()
        self._raceable = len(round_.spares) > round_.reserved
        self._sent: dict[str, float] = {}  # when each node was sent a call that may be raced
        self._due: dict[str, float] = {}  # when it is to be raced

    def start(self) -> None:
        self._send_all(self.round.begin())

    def replied(self, call: Call, result: Any, link: Link) -> None:
        self._books.answered(call.node)
        if not self.closed:
            if self._sent:
                self._took(call.node)
            self._send_all(self.round.replied(call, result, link))

    def failed(self, call: Call, error: Exception, sent: bool) -> None:
        self._books.failed(call.node, error)
        if not self.closed:
            self._sent.pop(call.node, None)
            self._due.pop(call.node, None)
            self._send_all(self.round.failed(call, error, sent))

    def hedge_at(self) -> float:
        """When the next call is to be raced; inf for never."""
        return min(self._due.values()) if self._due else inf

    def hedge(self) -> None:
        """Race the calls that have taken longer than is usual, as far as extra calls have been earned."""
        now = self._monotonic()
        for node in [node for node, due in self._due.items() if due <= now]:
            del self._due[node]
            if self._worth_racing() and self._books.hedging.take():
                self._send_all(self.round.hedge())

    def _worth_racing(self) -> bool:
        """Whether something is still missing, and a node that is well could bring it."""
        spares, failing = self.round.spares, self._books.backoff.failing
        left = len(spares) > self.round.reserved and not all(failing(call.node) for call in spares)
        return left and not self.round.over()

    def late(self) -> None:
        """Another quarter of the time is gone."""
        now = self._monotonic()
        for call in self.round.pending:
            self._books.backoff.slow(call.node, now)
        self._send_all(self.round.late())

    def expire(self) -> None:
        """The deadline came.  One that leaves no time to connect says nothing bad about the nodes."""
        settings = self._books.settings
        now = self._monotonic()
        for call in list(self.round.pending):
            if now - self._since < settings.connect_timeout:
                self._books.backoff.slow(call.node, now)
            else:
                self._books.failed(call.node, TimeoutError("no answer in time"))
        self.round.expire()
        self.close()
        if self._on_over is not None:
            self._on_over()

    def close(self) -> None:
        """Nobody waits any more; replies that still come are dropped."""
        self.closed = True
        if self._sent:
            now = self._monotonic()
            for node, since in self._sent.items():
                self._books.hedging.unanswered(node, since, now)
            self._sent, self._due = {}, {}

    def _send_all(self, calls: Sequence[Call]) -> None:
        """Send what may be sent, unless too few nodes are left for that to be of use: a write that cannot succeed had
        better not be made at all than in part."""
        fit = self._fit(calls)
        if fit and self.round.over():
            for call in fit:
                self._only_probe(call.node)
                fit.extend(self.round.failed(call, LeftAlone("not asked, for too few others can be"), False))
        elif self._raceable:
            self._send_raceable(fit)
        else:
            for call in fit:
                self._send(call, self)
        if self._on_over is not None and self.round.over():
            self._on_over()

    def _fit(self, calls: Sequence[Call]) -> list[Call]:
        """The calls to nodes that are not being left alone, those among them that take the place of others."""
        queue = list(calls)
        if not self._books.backoff.failures:
            return queue
        fit: list[Call] = []
        for call in queue:
            away = self._books.keep_away(call)
            if away is None:
                fit.append(call)
            else:
                queue.extend(self.round.failed(call, LeftAlone(away), False))
        return fit

    def _send_raceable(self, calls: Sequence[Call]) -> None:
        if not calls:
            return
        now, patience = self._monotonic(), self._books.hedging.patience
        self._books.raceable(calls, self._patience, now)
        for call in calls:
            node = call.node
            self._sent[node] = now
            self._due[node] = now + patience(node)
            self._send(call, self)

    def _only_probe(self, node: str) -> None:
        """The call that would have shown whether `node` is well again is not made: ask no more than that."""
        if self._books.backoff.failing(node):
            self._send(Call(node, "ping", ()), Probe(self._books))

    def _took(self, node: str) -> None:
        since = self._sent.pop(node, None)
        if since is not None:
            self._due.pop(node, None)
            self._books.hedging.took(node, self._monotonic() - since)


class Probe(Waiter):
    """Notes whether a node that is being left alone answers."""

    def __init__(self, books: Books) -> None:
        self._books = books

    def replied(self, call: Call, result: Any, link: Link) -> None:
        self._books.answered(call.node)

    def failed(self, call: Call, error: Exception, sent: bool) -> None:
        self._books.failed(call.node, error)


class TableWaiter(Waiter):
    """Takes in the table that a node was asked for on the side."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology

    def replied(self, call: Call, result: Any, link: Link) -> None:
        if result is not None:
            self._topology.offer(result, call.node)

    def failed(self, call: Call, error: Exception, sent: bool) -> None:
        """No news; there will be another time."""
