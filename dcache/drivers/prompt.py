"""Reads by the shortest way: one request to each of the nodes that are enough, and each answer waited for in the call
that reads it.

This is for when all is well: connections are at hand on which nothing is under way, and answers come in time, alike.
Then a read costs one send and one receive per node.  As soon as anything else happens the operation takes over what was
begun: calls that were made are not made again, and the time counts from when they were made.

Who waits in the kernel is woken by the kernel alone.  A signal whose handler returns begins the wait anew, so a thread
that is sent signals faster than its patience ends waits for a silent node until they cease.

An answer counts only while the connection that brought it lives, for a node that lost its memory no longer knows what
it answered.  No node starts anew within `RESTART`, so only a read that took longer looks at the others once more when
the last answer has come.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from dcache.drivers.channel import Waiter
from dcache.drivers.driver import Books, Execution
from dcache.drivers.pool import Connection
from dcache.errors import DcacheError
from dcache.ops.effects import Call, Link, Round
from dcache.ops.latency import FLOOR
from dcache.wire import lone_result

RESTART = 0.01
"""Seconds in which no process ends and another takes its place."""


class Sent:
    """A call on its way: answered or not, and what befell its connection, if anything did."""

    answered = expected = False
    result: Any = None
    error: Exception | None = None
    fault: Exception | None = None

    def __init__(self, call: Call, connection: Connection, since: float) -> None:
        self.call, self.connection, self.since = call, connection, since
        self.message_id: int = next(connection.channel.ids)

    def replied(self, call: Call, result: Any, link: Link) -> None:
        self.result = result
        self.answered = True

    def failed(self, call: Call, error: Exception, sent: bool) -> None:
        self.error = error
        self.answered = True

    def expect(self) -> None:
        """Have its channel say when it is answered, from now on."""
        if not (self.answered or self.expected):
            self.connection.channel.expect(self.message_id, self.call, self, self.since)
            self.connection.quiet_until = 0.0
            self.expected = True


def answers(begun: Sequence[Sent], books: Books, patience: float, *, raced: bool) -> list[Any] | None:
    """What all of them brought in time; None if anything is out of the ordinary.  Then the channels of those that have
    not answered expect that they do.

    A node has `patience` seconds; where calls can be `raced`, as many as one usually takes.  How long it took is not
    known of an answer that may have been there long before it was looked at.
    """
    now = since = begun[0].since
    hedging, failures, results = books.hedging, books.backoff.failures, []
    several, late = len(begun) > 1, since + patience
    for at, one in enumerate(begun, 1):
        before, estimate = now, None
        if raced:
            estimate = hedging.of(one.call[0])
            late = since + min(patience, estimate.patience)
        if one.fault is not None or one.connection.unsent or not _answered(one, begun, late - now, late):
            _expect(begun)
            _look_at(begun[at:], books)
            return None
        if several:
            now = time.monotonic()
        if hedging.owed or failures:
            books.answered(one.call[0])
        if estimate is not None and (before - since <= FLOOR or now - since <= estimate.patience < inf):
            estimate.add(now - since)
        results.append(one.result)
    return results if now - since <= RESTART or _all_live(begun[:-1]) else None


def _answered(one: Sent, begun: Sequence[Sent], seconds: float, until: float) -> bool:
    """Whether a result is there before `until`, which is in so many seconds, or by now.

    The first thing that comes is nearly always the reply alone.  Whatever else it is goes to the channel; it may hold
    the replies to others that were `begun` on the same connection.
    """
    connection, data = one.connection, b""
    try:
        if seconds > 0.0 and not (one.answered or one.expected):
            data = connection.await_bytes(seconds)
            one.result = lone_result(data, one.message_id)
            if one.result is not None:
                one.answered = True
                return True
        _expect(begun)
        if data:
            connection.channel.receive(data)
        while not one.answered:
            seconds = until - time.monotonic()
            if seconds <= 0.0:
                connection.readable()
                break
            connection.channel.receive(connection.await_bytes(seconds))
    except BlockingIOError:
        return False
    except (OSError, DcacheError) as error:
        one.fault = error
        return False
    return one.answered and one.error is None


def _expect(begun: Sequence[Sent]) -> None:
    for one in begun:
        one.expect()


def _look_at(others: Sequence[Sent], books: Books) -> None:
    """Take in what is there, before it would seem to have come only when the operation looks."""
    for one in others:
        if one.fault is None and _answered(one, (), 0.0, 0.0):
            books.answered(one.call.node)


def _all_live(begun: Sequence[Sent]) -> bool:
    for one in begun:
        if not one.connection.lives():
            one.fault = ConnectionError("answered, then broke off")
    return all(one.fault is None for one in begun)


class TakeOver(Execution):
    """The first round of an operation that takes over what was `begun`: who answered has, and who has not may."""

    def __init__(
        self,
        round_: Round,
        books: Books,
        send: Callable[[Call, Waiter], None],
        patience: float,
        begun: Sequence[Sent],
    ) -> None:
        super().__init__(round_, books, send, None, patience)
        self._begun = begun
        self._since = begun[0].since

    def start(self) -> None:
        calls = self.round.begin()
        made = [(call, one) for call in calls for one in self._begun if one.call == call]
        more = [call for call in calls if all(call is not taken for taken, _ in made)]
        for call, one in made:
            if not one.answered:
                self._wait_for(call, one)
        for call, one in made:
            if one.answered:
                more.extend(self._take(call, one))
        self._send_all(more)

    def _wait_for(self, call: Call, one: Sent) -> None:
        one.connection.channel.expect(one.message_id, call, self, one.since)
        if self._raceable:
            self._sent[call.node] = one.since
            self._due[call.node] = one.since + self._books.hedging.patience(call.node)

    def _take(self, call: Call, one: Sent) -> Sequence[Call]:
        """What is to be sent once the round has the answer.  If it is a result, the books have been told of it."""
        if one.error is None:
            return self.round.replied(call, one.result, one.connection.channel)
        self._books.failed(call.node, one.error)
        return self.round.failed(call, one.error, True)
