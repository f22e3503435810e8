"""One connection's side of the protocol, without the connection: handshake, message ids, who waits for which reply.

Bytes go in by `receive`, bytes to be sent come out of `take`.  Every reply goes to the waiter of its id; one that
nobody waits for any more is dropped, so whatever happens to a caller (cancelled, timed out, interrupted), no other
caller sees its reply.  Nothing but `hello` is sent before `hello` is answered.

Prompt reads of threads (`prompt`) pass it by as long as all that comes is their reply alone: they take an id from it,
on a connection that is `quiet`, and look whether that is the id of the reply.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat
from typing import Any, NamedTuple, Protocol

import attrs

from dcache.errors import ClockSkew, ClusterMismatch, NodeError, ProtocolError
from dcache.ops.effects import Call, Link
from dcache.wire import FRAME_CEILING, IDS, PROTOCOL, REPLY, REQUEST, Decoder, Limits, encode_request

HELLO_ID = 0
_LIMITS = tuple(field.name for field in attrs.fields(Limits))
CLIENT_SKEW_MS = 30_000


class Waiter(Protocol):
    """Who is told of a reply or failure."""

    def replied(self, call: Call, result: Any, link: Link) -> None: ...

    def failed(self, call: Call, error: Exception, sent: bool) -> None: ...


@attrs.frozen
class Handshake:
    """What is said and expected in `hello`.

    `node` and `cluster_id` are None where anyone will do; `wall` gives milliseconds since 1970; `skew` is how many of
    them the clocks may differ, None for any.
    """

    wall: Callable[[], int]
    node: str | None = None
    cluster_id: str | None = None
    skew: int | None = CLIENT_SKEW_MS
    push: bool = True

    def params(self) -> tuple[Any, ...]:
        return PROTOCOL, self.cluster_id, self.push

    def check(self, result: Any, sent: int) -> Limits:
        """The node's limits, if its answer is as expected."""
        try:
            protocol, node, time = result["protocol"], result["node"], result["time"]
            cluster_id, told = result["cluster"], result["limits"]
            limits = Limits(**{name: told[name] for name in _LIMITS if name in told})
        except (TypeError, KeyError) as error:
            raise ProtocolError(f"the answer to hello lacks something: {error}") from error
        if protocol != PROTOCOL:
            raise ProtocolError(f"node {node} speaks protocol {protocol}, this is {PROTOCOL}: upgrade the older one")
        if self.cluster_id is not None and cluster_id and cluster_id != self.cluster_id:
            mine = self.cluster_id
            raise ClusterMismatch(f"node {node} belongs to cluster {cluster_id}, this client to {mine}", cluster_id)
        if self.node is not None and node != self.node:
            raise ClusterMismatch(f"the node at this address is called {node}, not {self.node}")
        if self.skew is not None and not sent - self.skew <= time <= self.wall() + self.skew:
            raise ClockSkew(
                f"the clock of node {node} and this machine's differ by {(time - sent) / 1000:+.0f} s, "
                f"more than {self.skew / 1000:.0f} s: set the clock that is wrong (NTP)"
            )
        return limits


_Waiting = tuple[Call, Waiter | None, float]
"""What was asked, by whom, and when."""


class Unanswered(NamedTuple):
    """A call whose connection ended before its reply came."""

    call: Call
    waiter: Waiter
    sent: bool


class Channel:
    """See the module.  It is the `Link` of every reply that came through it."""

    def __init__(self, handshake: Handshake, on_table: Callable[[Any], object]) -> None:
        self.alive = True
        self.ready = False
        self.limits = Limits()
        self.digest = b""  # of the table that the node had when it answered hello, empty if it did not say
        self._handshake, self._on_table = handshake, on_table
        self._greeted = handshake.wall()
        self._decoder = Decoder(self.limits.max_frame, self.limits.max_batch)
        self._out: list[bytes] = [encode_request(HELLO_ID, "hello", handshake.params())]
        self._held: list[bytes] = []  # requests that wait for the answer to hello
        self._waiting: dict[int, _Waiting] = {}
        self.ids = chain.from_iterable(repeat(range(HELLO_ID + 1, IDS)))  # of the requests to come

    def request(self, call: Call, waiter: Waiter | None, now: float) -> None:
        """Queue a call; with no waiter its reply will be dropped."""
        message_id = next(self.ids)
        (self._out if self.ready else self._held).append(encode_request(message_id, call[1], call[2]))
        self.expect(message_id, call, waiter, now)

    def expect(self, message_id: int, call: Call, waiter: Waiter | None, since: float) -> None:
        """`call` went out under this id at that time, and `waiter` (nobody else any more) is told of the reply."""
        self._waiting[message_id] = (call, waiter, since)

    def quiet(self) -> bool:
        """Whether it can be used at once, and nothing is to be sent or answered, or has come in part, by now."""
        return self.ready and not self._waiting and not self._out and not self._decoder.partial

    def take(self) -> bytes:
        """What is to be sent now."""
        out = self._out
        if not out:
            return b""
        self._out = []
        return out[0] if len(out) == 1 else b"".join(out)

    def waiting_since(self) -> float | None:
        """When the oldest request without a reply was made."""
        for _, _, since in self._waiting.values():
            return since
        return None

    def receive(self, data: bytes) -> None:
        """Take in bytes.  `DcacheError` if the connection is of no use (any more): then `close` it."""
        decoder = self._decoder
        decoder.feed(data)
        while decoder.partial and (message := decoder.next()) is not None:
            if message[0] == REPLY:
                if self.ready:
                    self._reply(message)
                else:
                    self._welcome(*message[1:])
            elif message[0] == REQUEST:
                raise ProtocolError("a node does not make requests to its clients")
            elif message[1] == "table" and message[2]:
                self._on_table(message[2][0])
        if self._decoder is not decoder:  # hello widened the limits: go on with what came after it
            self.receive(b"")

    def close(self) -> list[Unanswered]:
        """The connection is gone.  Returns the calls that somebody still waits for, and whether they were sent."""
        self.alive = False
        waiting, self._waiting = self._waiting, {}
        return [Unanswered(call, waiter, self.ready) for call, waiter, _ in waiting.values() if waiter is not None]

    def _reply(self, message: tuple[Any, ...]) -> None:
        _, message_id, error, result = message
        entry = self._waiting.pop(message_id, None)
        if entry is None:
            raise _unasked(message_id, error)
        call, waiter, _ = entry
        if waiter is None:
            return
        if error is None:
            waiter.replied(call, result, self)
        else:
            waiter.failed(call, NodeError(*error), True)

    def _welcome(self, message_id: int | None, error: tuple[Any, ...] | None, result: Any) -> None:
        if message_id != HELLO_ID:
            raise ProtocolError("the node answered something else before hello")
        if error is not None:
            raise NodeError(*error)
        limits = self._handshake.check(result, self._greeted)
        if limits.max_frame > self.limits.max_frame:
            self._decoder = self._decoder.widened(min(limits.max_frame, FRAME_CEILING), self.limits.max_batch)
        self.limits = limits
        digest = result.get("digest")
        self.digest = digest if type(digest) is bytes else b""
        self.ready = True
        self._out += self._held
        self._held = []


def _unasked(message_id: int | None, error: tuple[Any, ...] | None) -> ProtocolError:
    """What it means that a reply answers nothing that was asked."""
    if message_id is None and error is not None:
        return ProtocolError(f"the node could not read what was sent: {error[1]} ({error[2]})")
    return ProtocolError(f"a reply to message {message_id}, which was not sent or was answered before")
