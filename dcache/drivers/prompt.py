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

RESTART = 0.01
"""Seconds in which no process ends and another takes its place."""


Asked = tuple[Connection, int, Exception | None]
"""A request that was made: its connection and its id there, and what went wrong when it was sent."""


class Sent:
    """A call on its way that its channel is to tell of: answered or not, and what befell its connection, if anything
    did."""

    result: Any = None
    error: Exception | None = None

    def __init__(self, call: Call, asked: Asked, since: float) -> None:
        self.call, self.since = call, since
        self.connection, self.message_id, self.fault = asked
        self.answered = False

    def replied(self, call: Call, result: Any, link: Link) -> None:
        self.result = result
        self.answered = True

    def failed(self, call: Call, error: Exception, sent: bool) -> None:
        self.error = error
        self.answered = True

    def expect(self) -> None:
        """Have its channel tell of it."""
        self.connection.channel.expect(self.message_id, self.call, self, self.since)
        self.connection.quiet_until = 0.0


def sent(calls: Sequence[Call], asked: Sequence[Asked], results: Sequence[Any], since: float) -> list[Sent]:
    """The calls that were asked, the first of which had these `results`; their channels tell of the others.

    What has come and was not a reply alone is for the channel; it may hold the replies to several of them.
    """
    begun = [Sent(call, each, since) for call, each in zip(calls, asked, strict=True)]
    for one, result in zip(begun, results, strict=False):
        one.replied(one.call, result, one.connection.channel)
    for one in begun[len(results) :]:
        one.expect()
    for one in begun[len(results) :]:
        unread, one.connection.unread = one.connection.unread, b""
        try:
            one.connection.channel.receive(unread)
        except DcacheError as error:
            one.fault = error
    return begun


def answers(
    calls: Sequence[Call], asked: list[Asked], books: Books, since: float, patience: float, *, raced: bool
) -> tuple[list[Any] | None, list[Sent]]:
    """What all that were `asked` answered in time, None if anything is out of the ordinary; and the calls as they are
    by then, unless no channel was needed.

    A node has `patience` seconds; where calls can be `raced`, as many as one usually takes.  How long it took is not
    known of an answer that may have been there long before it was looked at.
    """
    now, several, hedging, failures = since, len(asked) > 1, books.hedging, books.backoff.failures
    results: list[Any] = []
    begun: list[Sent] = []
    for at, (connection, message_id, fault) in enumerate(asked):
        before, late, estimate, result = now, since + patience, None, None
        if raced:
            estimate = hedging.of(connection.node)
            late = since + min(patience, estimate.patience)
        if not (begun or fault or connection.unsent or late <= now):
            try:
                result = connection.hear(message_id, late - now)
            except BlockingIOError:
                pass
            except OSError as error:
                asked[at] = connection, message_id, error
        if result is None:
            begun = begun or sent(calls, asked, results, since)
            if not _answered(begun[at], late):
                _look_at(begun[at + 1 :], books)
                return None, begun
            result = begun[at].result
        if several:
            now = time.monotonic()
        if hedging.owed or failures:
            books.answered(connection.node)
        if estimate is not None and (before - since <= FLOOR or now - since <= estimate.patience < inf):
            estimate.add(now - since)
        results.append(result)
    if now - since > RESTART:
        begun = begun or sent(calls, asked, results, since)
        if not _all_live(begun[:-1]):
            return None, begun
    return results, begun


def _answered(one: Sent, until: float) -> bool:
    """Whether its channel tells of a result before `until`, or by now."""
    connection = one.connection
    if one.fault is not None or connection.unsent:
        return False
    try:
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


def _look_at(others: Sequence[Sent], books: Books) -> None:
    """Take in what is there, before it would seem to have come only when the operation looks."""
    for one in others:
        if _answered(one, 0.0):
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
