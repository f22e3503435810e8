"""What an operation may ask its driver for: a `Round` of calls, `Detached` calls, a `Sleep`.

An operation is a generator that yields effects and is resumed when each is over; what a round brought is read from the
round itself.  The driver's part in a round is small and the same everywhere:

    send every call of `begin()`; then, until `over()`:
        a reply came      -> send what `replied(...)` returns
        a call failed     -> send what `failed(...)` returns
        one is overdue    -> send what `hedge()` returns (later than nearly all answers of that node; not too often)
        it takes long     -> send what `late()` returns (each time another quarter of the operation's time is gone)
        the deadline came -> `expire()`, and the round is over

A reply is worth something only while the connection that brought it is alive: a node that answered and then lost its
memory no longer knows what it answered.  So replies carry their link, and all counting is over `live()` replies.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from copy import copy
from math import inf
from typing import Any, NamedTuple, Protocol, Self, TypeVar

from dcache.errors import ProtocolError

T = TypeVar("T")


class Link(Protocol):
    """The connection that a reply came by."""

    @property
    def alive(self) -> bool: ...


class Call(NamedTuple):
    """A request to a node, by the node's name."""

    node: str
    method: str
    params: tuple[Any, ...]


class Reply(NamedTuple):
    node: str
    result: Any
    link: Link


class Failure(NamedTuple):
    """Why a call brought no result.  With `sent` the node may have acted on it all the same."""

    node: str
    error: Exception
    sent: bool


class CallTimeout(Exception):
    """A call was not answered before the operation's deadline."""


class LeftAlone(ConnectionError):
    """A call was not made: its node is being left alone, or too few others could be asked for it to be of use."""


class Round:
    """Calls to be made at once, spare calls for when some bring nothing, and when enough replies are in.

    Subclasses say what is enough in `missing`, and in `lacks` if not every reply is worth the same.  The last
    `reserved` spares are not called for haste alone.
    """

    reserved: float = inf

    def __init__(self, calls: Sequence[Call], spares: Sequence[Call] = ()) -> None:
        self.calls = calls
        self.spares = list(spares)
        self.replies: list[Reply] = []
        self.failures: list[Failure] = []
        self.pending: list[Call] = []
        self.expired = False

    def missing(self) -> int:
        """How many more useful replies are needed; 0 or less when there are enough."""
        raise NotImplementedError

    def lacks(self, *more: Sequence[Call]) -> int:
        """What would be missing if all of `more` brought useful replies."""
        return self.missing() - sum(map(len, more))

    def check(self, call: Call, result: Any) -> None:
        """Look at a result; `ProtocolError` if it is not what the method returns."""

    def live(self) -> list[Reply]:
        """The replies whose connection is still alive."""
        return [reply for reply in self.replies if reply.link.alive]

    def begin(self) -> Sequence[Call]:
        self.pending.extend(self.calls)
        return self.calls

    def replied(self, call: Call, result: Any, link: Link) -> Sequence[Call]:
        try:
            self.check(call, result)
        except ProtocolError as error:
            return self.failed(call, error, sent=True)
        self.pending.remove(call)
        self.replies.append(Reply(call.node, result, link))
        return self._reinforce(self.pending)

    def failed(self, call: Call, error: Exception, sent: bool) -> Sequence[Call]:
        self.pending.remove(call)
        self.failures.append(Failure(call.node, error, sent))
        return self._reinforce(self.pending)

    def late(self) -> Sequence[Call]:
        """What is pending takes long: race it with spares."""
        return self._reinforce(())

    def hedge(self) -> Sequence[Call]:
        """One more spare, because a call takes longer than usual: nothing is wrong with it so far."""
        return self._reinforce((), 1) if len(self.spares) > self.reserved else ()

    def expire(self) -> None:
        """The deadline came: whatever is pending will not be waited for."""
        self.expired = True
        for call in self.pending:
            self.failures.append(Failure(call.node, CallTimeout("no answer in time"), True))
        self.pending.clear()

    def over(self) -> bool:
        """Whether there is enough, or nothing left that could still bring it."""
        return self.missing() <= 0 or self.lacks(self.pending, self.spares) > 0

    def twin(self) -> Self:
        """Another round that goes on from where this one is."""
        other = copy(self)
        other.spares, other.replies = [*self.spares], [*self.replies]
        other.failures, other.pending = [*self.failures], [*self.pending]
        return other

    def _reinforce(self, promising: Sequence[Call], most: float = inf) -> Sequence[Call]:
        """Send the spares, `most` at most, that are of use beside the calls that are `promising`."""
        if not self.spares:
            return ()
        more: list[Call] = []
        lacking = self.lacks(promising)
        for spare in self.spares:
            if lacking <= 0 or len(more) >= most:
                break
            left = self.lacks(promising, more, (spare,))
            if left < lacking:
                lacking = left
                more.append(spare)
        for spare in more:
            self.spares.remove(spare)
        self.pending.extend(more)
        return more


class Gather(Round):
    """Everybody's answer, as far as it comes."""

    def missing(self) -> int:
        return len(self.pending)


class FirstOf(Round):
    """Any one answer."""

    def missing(self) -> int:
        return 1 - len(self.live())


class Detached(NamedTuple):
    """Calls to be sent and not waited for."""

    calls: Sequence[Call]


class Sleep(NamedTuple):
    seconds: float


def jittered(seconds: float, random: Callable[[], float]) -> float:
    """0.8 to 1.2 times `seconds`, so that what began at once on many nodes does not go on in step."""
    return seconds * (0.8 + 0.4 * random())


Effect = Round | Detached | Sleep
Op = Generator[Effect, None, T]
