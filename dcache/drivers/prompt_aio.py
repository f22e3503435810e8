"""The prompt reads of an event loop: what is asked in one tick leaves as one request per node.

Reads that ask the same nodes under the same context are a *group*: its keys are asked about together, and dealt with
together once all these nodes have answered.  What the nodes agree on is the result of each key's future.  It is None
where they do not agree, or do not all answer in time: then the task that waits goes on with the general operation,
which takes over (`TakeOver`) what was asked by then, so that no node is asked twice.

All requests of a loop share one timer.  A node that exceeds its usual time is raced, as far as extra calls have been
earned: by as many of the waiting reads as may make one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Protocol

from dcache.drivers.channel import Waiter
from dcache.drivers.driver import PATIENCE, Books
from dcache.drivers.prompt_groups import Group, Many, Send, Way
from dcache.errors import ProtocolError
from dcache.ops.context import Context
from dcache.ops.effects import Call, Link
from dcache.ops.prompt import Plan, targets
from dcache.ops.prompt_many import plan

TICK = 0.001
"""A loop's timer may strike so much too early."""


class Asker(Protocol):
    """Those who share in a request: each is told of the answers about its own keys."""

    def answered(self, node: str, answers: Sequence[Any], link: Link) -> None:
        """`node` answered for all keys, or for the first few."""

    def failed(self, node: str, error: Exception, sent: bool) -> None: ...

    def spare(self, most: float) -> float:
        """`most` of those who wait are to wait no longer, or as many as there are; how many were not needed."""


class Request(Waiter):
    """One request about `size` keys of `askers`; `raceable` if its node may be raced.

    The books see one call, however many keys it is about.
    """

    __slots__ = ("_askers", "_reads", "_since", "_size", "due", "late", "node", "raceable")

    def __init__(self, reads: PromptReads, node: str, raceable: bool) -> None:
        self._reads, self.node, self.raceable = reads, node, raceable
        self._askers: list[tuple[Asker, int]] = []  # each with how many keys are its own
        self._size = 0
        self._since = self.late = self.due = inf

    def add(self, asker: Asker, keys: int) -> None:
        self._askers.append((asker, keys))
        self._size += keys

    def start(self, now: float, patience: float) -> None:
        self._since, self.late = now, now + patience
        self.due = self.usual()

    def replied(self, call: Call, result: Any, link: Link) -> None:
        self._reads.books.answered(self.node)
        self._over()
        answers = (result,) if call.method == "get" else result
        if type(answers) is not tuple or not 0 < len(answers) <= self._size:
            self._tell_failed(ProtocolError("a batch is answered item by item"), True)
            return
        at = 0
        for asker, keys in self._askers:
            asker.answered(self.node, answers[at : at + keys], link)
            at += keys

    def failed(self, call: Call, error: Exception, sent: bool) -> None:
        self._reads.books.failed(self.node, error)
        self.raceable = False
        self._over()
        self._tell_failed(error, sent)

    def _tell_failed(self, error: Exception, sent: bool) -> None:
        for asker, _ in self._askers:
            asker.failed(self.node, error, sent)

    def _over(self) -> None:
        self._reads.waiting.pop(self, None)
        if self.raceable:
            self.raceable = False
            self._reads.books.hedging.took(self.node, self._reads.monotonic() - self._since)

    def race(self) -> None:
        """It takes longer than is usual: let as many read elsewhere as may."""
        self.due = inf
        most: float = self._reads.books.hedging.left()
        for asker, _ in self._askers:
            most = asker.spare(most)

    def give_up(self, now: float) -> None:
        """It takes too long: let all read elsewhere."""
        self._reads.books.backoff.slow(self.node, now)
        for asker, _ in self._askers:
            asker.spare(inf)
        self.abandon(now)

    def abandon(self, now: float) -> None:
        """Somebody waits for the answer no longer, and has not had it."""
        if self.raceable:
            self.raceable = False
            self._reads.books.hedging.unanswered(self.node, self._since, now)

    def usual(self) -> float:
        """When it takes longer than is usual."""
        return self._since + self._reads.books.hedging.patience(self.node) if self.raceable else inf


class PromptReads:
    """See the module.  `send` is the driver's; `wake` is called when there is something to `flush` in this tick."""

    def __init__(self, books: Books, loop: asyncio.AbstractEventLoop, send: Send, wake: Callable[[], None]) -> None:
        self.books, self.monotonic = books, books.settings.monotonic
        self.waiting: dict[Request, None] = {}  # a set with an order: the oldest first
        self._loop, self._send, self._wake = loop, send, wake
        self._new_future = loop.create_future
        self._now = 0.0  # when this tick's first read began
        self._gathered: dict[Context, list[Group]] = {}
        self._open: dict[Context, dict[Way, Group]] = {}  # the groups that take more keys
        self._timer: asyncio.TimerHandle | None = None
        self._strikes = inf

    def ask(self, ctx: Context, key: bytes) -> Group | None:
        """Ask about a key's bytes; None if it is not to be asked about promptly.

        The last future of the group is this key's.
        """
        groups = self._open.get(ctx)
        if groups is None:
            groups = self._begin(ctx)
        way = targets(ctx, key, self._now)
        if way is None:
            return None
        group = groups.get(way)
        if group is None or len(group.keys) >= group.most:
            group = groups[way] = Group(ctx, way, self._now)
            self._gathered[ctx].append(group)
        group.keys.append(key)
        group.futures.append(self._new_future())
        return group

    def _begin(self, ctx: Context) -> dict[Way, Group]:
        if not self._gathered:
            self._now = self.monotonic()
            self._wake()
        self._gathered[ctx] = []
        groups = self._open[ctx] = {}
        return groups

    def ask_many(self, ctx: Context, keys: Sequence[bytes]) -> list[Many]:
        """Ask about the bytes of many keys, all different, unless some of them are not to be asked about promptly."""
        now, most = self.monotonic(), ctx.shared.limits.max_batch
        plans = [plan(ctx, keys[at : at + most], now) for at in range(0, len(keys), most)]
        if any(others for _, others in plans):
            return []
        return [self._ask_planned(ctx, asked, now) for asked, _ in plans]

    def _ask_planned(self, ctx: Context, asked: Plan, now: float) -> Many:
        many = Many(asked, self._loop.create_future())
        for node, keys in asked.items():
            request = Request(self, node, False)
            request.add(many, len(keys))
            self._start(request, ctx, keys, now)
        return many

    @property
    def gathered(self) -> bool:
        """Whether there is something to flush."""
        return bool(self._gathered)

    def flush(self) -> None:
        """Send what was gathered."""
        gathered, self._gathered, self._open = self._gathered, {}, {}
        now = self.monotonic()
        for ctx, groups in gathered.items():
            self._flush_groups(ctx, groups, now)

    def _flush_groups(self, ctx: Context, groups: Sequence[Group], now: float) -> None:
        most, raceable = ctx.shared.limits.max_batch, ctx.raced
        requests: dict[str, tuple[Request, list[bytes]]] = {}
        for group in groups:
            for node in group.way:
                request, keys = requests.get(node) or (None, [])
                if request is None or len(keys) + len(group.keys) > most:
                    if request is not None:
                        self._start(request, ctx, keys, now)
                    request, keys = requests[node] = Request(self, node, raceable), []
                request.add(group, len(group.keys))
                group.requests[node] = request
                keys.extend(group.keys)
        for request, keys in requests.values():
            self._start(request, ctx, keys, now)

    def _start(self, request: Request, ctx: Context, keys: Sequence[bytes], now: float) -> None:
        patience, node = ctx.options.timeout * PATIENCE, request.node
        request.start(now, patience)
        self.waiting[request] = None
        if len(keys) == 1:
            call = ctx.call(node, "get", keys[0])
        else:
            call = ctx.call(node, "get_many", [*zip(keys, strict=True)])
        if request.raceable:
            self.books.raceable((call,), patience, now)
        self._send(call, request)
        self._strike(min(request.due, request.late), now)

    def _strike(self, at: float, now: float) -> None:
        """Look at what waits at `at`, or before."""
        at = max(at, now + TICK)
        if self._timer is not None:
            if self._strikes <= at:
                return
            self._timer.cancel()
        self._strikes = at
        self._timer = self._loop.call_later(at - now, self._tick)

    def _tick(self) -> None:
        self._timer, now, following = None, self.monotonic(), inf
        for request in list(self.waiting):
            if request.late <= now:
                del self.waiting[request]
                request.give_up(now)
                continue
            if request.due <= now:
                request.race()
            following = min(following, request.due, request.late)
        if following < inf:
            self._strike(following, now)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
