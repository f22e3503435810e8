"""Counting replies: who holds the newest, whose word counts, who is behind.

An answer about a key is one of two tuples, told apart by their length:

    held    (complete, version, value, flags, ttl)
    absent  (complete, floor, promised)

The rules of a strict read, for n owners of which any majority is enough for every strict reader:

* Only complete owners are heard: an incomplete one may lack, or hold again, anything.
* Of what they hold the newest is the candidate.
* An owner that lacks the candidate votes for it only if the floor of its slot is below: otherwise it may have forgotten
  something newer, and says nothing about the candidate being the newest.
* The candidate is returned once a majority of the owners hold it, those that voted and lack it having been written to.
  (More than a majority is never needed, whatever the write quorum: every later strict read meets one of these owners.)

While the ring changes a slot has two sets of owners, those on the old ring and those on the next one.  Then whatever is
to be enough must be enough among the owners of each, taken by themselves.  `Quorum` knows which of the two it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import attrs

from dcache.errors import (
    ClientClosed,
    ClockSkew,
    ClusterMismatch,
    DcacheError,
    DeadlineExceeded,
    NodeError,
    ProtocolError,
    QuorumError,
    ValueTooLarge,
)
from dcache.ops.effects import Call, CallTimeout, Failure, LeftAlone, Reply, Round
from dcache.record import ZERO, Record, Version
from dcache.wire import Code, Status

QuorumSpec = int | str
HELD, ABSENT = 5, 3


def majority(n: int) -> int:
    return n // 2 + 1


def quorum_size(spec: QuorumSpec, n: int) -> int:
    """How many of `n` owners `spec` asks for: an int (at most n), "one", "quorum" or "all"."""
    if spec == "quorum":
        return majority(n)
    if spec == "all":
        return n
    return 1 if spec == "one" else min(int(spec), n)


def is_single(spec: QuorumSpec) -> bool:
    """Whether `spec` asks for one, however many owners there are: also where one is a majority."""
    return spec in ("one", 1)


def check_quorum(name: str, spec: object) -> QuorumSpec:
    """`spec`, if it is one; `ValueError` otherwise."""
    if spec in ("one", "quorum", "all") or (type(spec) is int and spec >= 1):
        return spec
    raise ValueError(f'{name} must be "one", "quorum", "all" or a positive int, not {spec!r}')


class Shortage(NamedTuple):
    """How many were needed and how many there were, `on` which ring if there are two."""

    needed: int
    got: int
    on: str = ""


@attrs.frozen
class Quorum:
    """How many are enough: `size` of any that count."""

    size: int

    def lacking(self, counted: Sequence[Reply | Call], *more: Sequence[Reply | Call]) -> int:
        """How many are needed beside those `counted`, who are all different nodes; 0 or less if these are enough."""
        lacking = self.size - len(counted)
        for some in more:
            lacking -= len(some)
        return lacking

    def met(self, counted: Sequence[Reply | Call]) -> bool:
        """Whether those `counted` are enough."""
        return len(counted) >= self.size

    def shortage(self, counted: Sequence[Reply | Call]) -> Shortage:
        """What to tell of too few."""
        return Shortage(self.size, len(counted))

    def split(self, calls: Sequence[Call]) -> tuple[Sequence[Call], Sequence[Call]]:
        """The first calls that together may be enough, and the others."""
        return calls[: self.size], calls[self.size :]


@attrs.frozen
class JointQuorum(Quorum):
    """Enough on the old ring and on the next one: for each the nodes that count there, and how many of them.

    One node may count on both.  `size` is the sum.
    """

    rings: tuple[tuple[frozenset[str], int], tuple[frozenset[str], int]]

    def lacking(self, counted: Sequence[Reply | Call], *more: Sequence[Reply | Call]) -> int:
        """The sum of what is lacking on the two rings."""
        nodes = {each.node for some in (counted, *more) for each in some}
        return sum(max(0, size - len(members & nodes)) for members, size in self.rings)

    def met(self, counted: Sequence[Reply | Call]) -> bool:
        return self.lacking(counted) == 0

    def shortage(self, counted: Sequence[Reply | Call]) -> Shortage:
        """Of the ring that lacks more."""
        nodes = {each.node for each in counted}
        short = [
            Shortage(size, len(members & nodes), on)
            for (members, size), on in zip(self.rings, (" on the old ring", " on the next ring"), strict=True)
        ]
        return max(short, key=lambda shortage: shortage.needed - shortage.got)

    def split(self, calls: Sequence[Call]) -> tuple[Sequence[Call], Sequence[Call]]:
        enough = next((n for n in range(len(calls)) if self.met(calls[:n])), len(calls))
        return calls[:enough], calls[enough:]


def quorum_on(rings: Sequence[tuple[frozenset[str], int]]) -> Quorum:
    """Enough on each of one or two rings, given by the nodes that count there and how many of them are enough."""
    if all(ring == rings[0] for ring in rings):
        return Quorum(rings[0][1])
    old, following = rings
    return JointQuorum(old[1] + following[1], (old, following))


@attrs.frozen(eq=False)
class Verdict:
    """What a set of answers about one key says.

    `holders` hold the candidate, `behind` voted for it and lack it; `heard` are all the answers that count; `absent`
    are those that hold nothing.
    """

    candidate: tuple[Any, ...] | None
    holders: list[Reply]
    behind: list[Reply]
    heard: list[Reply]
    absent: list[Reply]

    @property
    def voters(self) -> list[Reply]:
        return self.holders + self.behind

    @property
    def votes(self) -> int:
        return len(self.holders) + len(self.behind)

    @property
    def promises(self) -> list[Reply]:
        """The answers of those that hold nothing and promised to refuse what is below the claim they were sent."""
        return [reply for reply in self.absent if reply.result[2]]

    @property
    def floor(self) -> Version:
        """The highest that those without the key may have forgotten."""
        return max((reply.result[1] for reply in self.absent), default=ZERO)

    def record(self) -> Record:
        assert self.candidate is not None
        _, version, value, flags, ttl = self.candidate
        return Record(value, version, ttl, flags)


def judge(replies: Sequence[Reply], *, strict: bool = True) -> Verdict:
    """Weigh the answers about one key.

    Not strict: floors are ignored and what an incomplete owner holds is heard, but that it holds nothing is not.
    """
    heard = [reply for reply in replies if reply.result[0] or (not strict and len(reply.result) == HELD)]
    candidate = None
    for reply in heard:
        answer = reply.result
        if len(answer) == HELD and (candidate is None or _stands(answer, candidate)):
            candidate = answer
    absent = [reply for reply in heard if len(reply.result) == ABSENT]
    if candidate is None:
        return Verdict(None, [], [], heard, absent)
    newest = candidate[1]
    holders: list[Reply] = []
    behind: list[Reply] = []
    for reply in heard:
        answer = reply.result
        if len(answer) == HELD:
            (holders if answer[1] == newest else behind).append(reply)
        elif not strict or answer[1] < newest:
            behind.append(reply)
    return Verdict(candidate, holders, behind, heard, absent)


def _stands(answer: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether one held record takes precedence over another: by version, then by the shorter remaining life."""
    if answer[1] != other[1]:
        return bool(answer[1] > other[1])
    return answer[4] is not None and (other[4] is None or answer[4] < other[4])


class QuorumRound(Round):
    """A round that is over when a quorum is met, or cannot be met any more.  Subclasses say in `wanted` which."""

    def wanted(self) -> tuple[Quorum, Sequence[Reply]]:
        """The quorum in question, and the replies that count for it so far."""
        raise NotImplementedError

    def enough(self) -> bool:
        quorum, counted = self.wanted()
        return quorum.met(counted)

    def shortage(self) -> Shortage:
        """What to tell of too few."""
        quorum, counted = self.wanted()
        return quorum.shortage(counted)

    def missing(self) -> int:
        return self.lacks()

    def lacks(self, *more: Sequence[Call]) -> int:
        quorum, counted = self.wanted()
        return quorum.lacking(counted, *more)

    def over(self) -> bool:
        quorum, counted = self.wanted()
        return quorum.met(counted) or quorum.lacking(counted, self.pending, self.spares) > 0


def read_wants(verdict: Verdict, needed: Quorum, hold: Quorum) -> tuple[Quorum, Sequence[Reply]]:
    """What a read wants first: those `needed` heard, then, if there is a candidate, votes of those that are to `hold`
    it."""
    if verdict.candidate is None or not needed.met(verdict.heard):
        return needed, verdict.heard
    return hold, verdict.voters


class ReadRound(QuorumRound):
    """Asks about one key until those `needed` are heard and so many of them vote for the newest as are to `hold` it."""

    def __init__(
        self, calls: Sequence[Call], spares: Sequence[Call], needed: Quorum, hold: Quorum, strict: bool
    ) -> None:
        super().__init__(calls, spares)
        self.needed, self.hold, self.strict = needed, hold, strict
        self.reserved = 0 if strict else len(self.spares)  # beyond its owners a key is rather missed than found
        self._weighed: list[Reply] = []
        self._verdict = judge((), strict=strict)

    def check(self, call: Call, result: Any) -> None:
        check_answer(result)

    def verdict(self) -> Verdict:
        """What the live replies say; weighed again only when they are others than the last time."""
        live = self.live()
        if live != self._weighed:
            self._weighed, self._verdict = live, judge(live, strict=self.strict)
        return self._verdict

    def wanted(self) -> tuple[Quorum, Sequence[Reply]]:
        return read_wants(self.verdict(), self.needed, self.hold)


def check_answer(answer: Any) -> None:
    """`ProtocolError` unless `answer` is one about a key."""
    shaped = type(answer) is tuple and len(answer) in (HELD, ABSENT) and type(answer[1]) is bytes
    if not shaped or (len(answer) == HELD and not (type(answer[2]) is bytes and type(answer[3]) is int)):
        raise ProtocolError("an answer about a key has neither of the two forms")


def check_ack(answer: Any) -> None:
    """`ProtocolError` unless `answer` is one to a write: (complete, status, version, ...)."""
    if type(answer) is not tuple or len(answer) < 3 or type(answer[2]) is not bytes:
        raise ProtocolError("an answer to a write does not have its form")


def counts(answer: tuple[Any, ...], *, overtaken: bool = False) -> bool:
    """Whether an answer to a write counts as an acknowledgement; `overtaken`: being beaten to it counts too."""
    return bool(answer[0]) and (answer[1] == _STORED or (overtaken and answer[1] == Status.NEWER))


_STORED = int(Status.STORED)  # a plain number: it is compared several times per reply
NOBODY = Quorum(0)


def stored(answer: Any) -> bool:
    """Whether this is how a complete owner answers a set that it stored.  Such answers mean the same for every key."""
    return (
        type(answer) is tuple
        and len(answer) == 3
        and answer[0] is True
        and answer[1] == _STORED
        and type(answer[2]) is bytes
    )


class WriteRound(QuorumRound):
    """A write to several owners until those `needed` have acknowledged it, beside `already` that hold it.

    With `overtaken` something newer counts as an acknowledgement; `hear` is explained at `over`.
    """

    def __init__(
        self,
        calls: Sequence[Call],
        needed: Quorum,
        *,
        spares: Sequence[Call] = (),
        overtaken: bool = False,
        already: Sequence[Reply] = (),
        hear: Quorum = NOBODY,
    ) -> None:
        super().__init__(calls, spares)
        self.needed, self.overtaken, self.already, self.hear = needed, overtaken, already, hear

    def check(self, call: Call, result: Any) -> None:
        check_ack(result)

    def got(self) -> list[Reply]:
        """The acknowledgements, those that held it already among them."""
        overtaken = self.overtaken
        acknowledged = [r for r in self.replies if r.link.alive and counts(r.result, overtaken=overtaken)]
        if self.already:
            acknowledged.extend(reply for reply in self.already if reply.link.alive)
        return acknowledged

    def wanted(self) -> tuple[Quorum, Sequence[Reply]]:
        return self.needed, self.got()

    def over(self) -> bool:
        """As of any round; but one with something newer in its way waits until those whom it is to `hear` have said how
        high it is, if they still can."""
        got = self.got()
        lacking = self.needed.lacking(got, self.pending, self.spares)
        if lacking <= 0:
            return self.needed.met(got)
        heard = self.heard()
        return self.highest_newer() is None or self.hear.met(heard) or self.hear.lacking(heard, self.pending) > 0

    def heard(self) -> list[Reply]:
        """The answers of owners that know all that was acknowledged before."""
        return [reply for reply in self.live() if reply.result[0]]

    def highest_newer(self) -> Version | None:
        """The highest version that stood in the way anywhere."""
        newer = [reply.result[2] for reply in self.replies if reply.result[1] != _STORED]
        return max(newer) if newer else None

    def met_promise(self) -> bool:
        """Whether it was refused for a promise anywhere: then being refused again says nothing of being overtaken."""
        return any(reply.result[1] == Status.PROMISED for reply in self.replies)

    def in_doubt(self) -> bool:
        """Whether some owner may have stored it: not every owner refused, and something was sent."""
        stored = any(reply.result[1] == Status.STORED for reply in self.replies)
        return stored or bool(self.pending) or any(failure.sent and not refused(failure) for failure in self.failures)


def refused(failure: Failure) -> bool:
    """Whether the node itself said no, so that nothing was done."""
    return isinstance(failure.error, NodeError) and failure.error.code != Code.INTERNAL


def quorum_error(
    what: str, round_: Round, shortage: Shortage, *, in_doubt: bool, explain: Callable[[Reply], str | None]
) -> DcacheError:
    """The error for a round that brought too little.

    If every failure of a call that was made is that the clocks differ, that the nodes are of another cluster, or that
    the value is too large for them, then that is the error.
    """
    errors = [_meant(failure.error) for failure in round_.failures if not isinstance(failure.error, LeftAlone)]
    for kind in (ClockSkew, ClusterMismatch, ClientClosed, ValueTooLarge):
        told = [error for error in errors if isinstance(error, kind)]
        if told and len(told) == len(errors) and not round_.replies:
            return told[0]
    reasons = _reasons(round_, explain)
    late = round_.expired or any(isinstance(failure.error, (CallTimeout, TimeoutError)) for failure in round_.failures)
    cls = DeadlineExceeded if late else QuorumError
    needed, got, on = shortage
    return cls(what + on, needed=needed, got=got, reasons=reasons, in_doubt=in_doubt)


def write_error(what: str, rounds: Sequence[WriteRound]) -> DcacheError:
    """The error of a write that was attempted in these rounds, the last of which brought too little."""
    last, in_doubt = rounds[-1], any(round_.in_doubt() for round_ in rounds)
    return quorum_error(what, last, last.shortage(), in_doubt=in_doubt, explain=explain_write)


def _meant(error: Exception) -> Exception:
    """The error that a node's refusal stands for, where there is one of our own."""
    match error:
        case NodeError(code=Code.VALUE_TOO_LARGE, detail=(int(size), int(limit))):
            return ValueTooLarge(size, limit)
        case NodeError(code=Code.CLOCK_SKEW, detail=(int(stamped), int(wall))):
            seconds = (stamped - wall) / 1000
            return ClockSkew(f"this client's clock is {seconds:+.0f} s off that of the nodes: set it (NTP)")
    return error


def _reasons(round_: Round, explain: Callable[[Reply], str | None]) -> Mapping[str, str]:
    reasons = {failure.node: str(failure.error) or type(failure.error).__name__ for failure in round_.failures}
    for reply in round_.replies:
        reason = explain(reply) if reply.link.alive else "answered, then broke off"
        if reason:
            reasons[reply.node] = reason
    for call in round_.pending:
        reasons.setdefault(call.node, "not waited for: too few others were left")
    return reasons


def explain_read(reply: Reply) -> str | None:
    return None if reply.result[0] else "has not completed this slot since it started, so its answer does not count"


def explain_write(reply: Reply) -> str | None:
    if not reply.result[0]:
        return "has not completed this slot since it started, so its acknowledgement does not count"
    return None if reply.result[1] == Status.STORED else "has something newer"
