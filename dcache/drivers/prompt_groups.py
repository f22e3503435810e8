"""Who waits for the answers to prompt reads: groups of single keys, reads of many, and the operations that take over.

See `prompt_aio`, which says when they are told what.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any, NamedTuple, Protocol

from dcache.drivers.channel import Waiter
from dcache.drivers.driver import Books, Execution
from dcache.errors import NodeError
from dcache.ops.context import Context
from dcache.ops.effects import Call, Link, Round
from dcache.ops.prompt import Answer, Plan, agreed
from dcache.ops.prompt_many import settle_many

Send = Callable[[Call, Waiter], None]
Way = tuple[str, ...]


class Asking(Protocol):
    """The request that asks a node about the keys of a group."""

    def usual(self) -> float:
        """When it takes longer than is usual."""

    def abandon(self, now: float) -> None:
        """Somebody waits for the answer no longer, and has not had it."""


class Group:
    """Reads of one tick that ask the same nodes, `way`, under the same context.

    `since` is when the first began.  The last future is that of the key added last.
    """

    __slots__ = ("answers", "ctx", "failures", "futures", "keys", "links", "most", "requests", "since", "takers", "way")

    def __init__(self, ctx: Context, way: Way, since: float) -> None:
        self.ctx, self.way, self.since = ctx, way, since
        self.most = ctx.shared.limits.max_batch
        self.keys: list[bytes] = []
        self.futures: list[asyncio.Future[Answer | None]] = []
        self.requests: dict[str, Asking] = {}
        self.answers: dict[str, Sequence[Any]] = {}
        self.links: dict[str, Link] = {}  # by which they came
        self.failures: dict[str, tuple[Exception, bool]] = {}
        self.takers: list[TakeOver] = []

    def alive(self) -> bool:
        """Whether the connections of all answers still are.  One may have broken in the tick of the last answer."""
        for link in self.links.values():  # noqa: SIM110  # a generator would take as long as the rest of a hit's look
            if not link.alive:
                return False
        return True

    def share(self, future: asyncio.Future[Any]) -> Share:
        """That of one of the futures."""
        return Share(self, self.futures.index(future))

    def answered(self, node: str, answers: Sequence[Any], link: Link) -> None:
        self.answers[node], self.links[node] = answers, link
        for taker in self.takers:
            taker.heard(node)
        if len(self.answers) == len(self.way):
            self._deal()

    def _deal(self) -> None:
        dealt = 0
        for answers in zip(*self.answers.values(), strict=False):
            future = self.futures[dealt]
            dealt += 1
            if not future.done():
                future.set_result(agreed(answers))
        if dealt < len(self.futures):
            _let_go(self.futures[dealt:], inf)

    def failed(self, node: str, error: Exception, sent: bool) -> None:
        self.failures[node] = error, sent
        for taker in self.takers:
            taker.heard(node)
        _let_go(self.futures, inf)

    def spare(self, most: float) -> float:
        return _let_go(self.futures, most)


def _let_go(futures: Iterable[asyncio.Future[Any]], most: float) -> float:
    """Wake those who wait, `most` at most, with no result; how many more it could have been."""
    for future in futures:
        if most < 1:
            break
        if not future.done():
            future.set_result(None)
            most -= 1
    return most


class Share(NamedTuple):
    """A read that was to be prompt: one key of a group, at `place`."""

    group: Group
    place: int


class Many:
    """The read of many keys: one future for all of them, done when nothing more is to be waited for."""

    def __init__(self, asked: Plan, future: asyncio.Future[None]) -> None:
        self.asked, self.future = asked, future
        self._answers: dict[str, Sequence[Any]] = {}
        self._links: dict[str, Link] = {}
        self._waiting = len(asked)

    def answered(self, node: str, answers: Sequence[Any], link: Link) -> None:
        self._answers[node], self._links[node] = answers, link
        self._one_less()

    def failed(self, node: str, error: Exception, sent: bool) -> None:
        self._one_less()

    def spare(self, most: float) -> float:
        return _let_go((self.future,), most)

    def _one_less(self) -> None:
        self._waiting -= 1
        if not self._waiting and not self.future.done():
            self.future.set_result(None)

    def settled(self) -> dict[bytes, Any]:
        """What was said alike, by answers whose connections are alive."""
        live = {node: answers for node, answers in self._answers.items() if self._links[node].alive}
        return settle_many(self.asked, live)


class TakeOver(Execution):
    """The first round of an operation that takes over what was asked: whoever answered has, and who has not may."""

    def __init__(
        self,
        round_: Round,
        books: Books,
        send: Send,
        on_over: Callable[[], None],
        patience: float,
        share: Share,
    ) -> None:
        super().__init__(round_, books, send, on_over, patience)
        self._group, self._place = share
        self._since = self._group.since
        self._made: dict[str, Call] = {}  # the calls that were made and not answered

    def go_on(self) -> None:
        """Instead of `start`: make the calls that were not made by then."""
        more: list[Call] = []
        for call in self.round.begin():
            if call.node in self._group.requests:
                more.extend(self._take(call))
            else:
                more.append(call)
        if self._made:
            self._group.takers.append(self)
        self._send_all(more)

    def _take(self, call: Call) -> Sequence[Call]:
        """What is to be sent for a call that was made by then."""
        group, node = self._group, call.node
        if node in group.failures:
            return self.round.failed(call, *group.failures[node])
        answers = group.answers.get(node)
        if answers is None:
            self._made[node] = call
            self._due[node] = group.requests[node].usual()
            return ()
        if self._place >= len(answers):  # it answered for some keys, and this is none of them
            return (call,)
        answer = answers[self._place]
        if type(answer) is tuple and len(answer) == 3 and type(answer[0]) is int:  # this key was refused
            return self.round.failed(call, NodeError(*answer), True)
        return self.round.replied(call, answer, group.links[node])

    def heard(self, node: str) -> None:
        """The group has an answer of `node`, or knows that there will be none."""
        call = self._made.pop(node, None)
        self._due.pop(node, None)
        if call is not None and not self.closed:
            self._send_all(self._take(call))

    def close(self) -> None:
        super().close()
        now = self._monotonic()
        for node in self._made:
            self._group.requests[node].abandon(now)
        self._made = {}
