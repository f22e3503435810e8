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
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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


def check_quorum(name: str, spec: object) -> QuorumSpec:
    """`spec`, if it is one; `ValueError` otherwise."""
    if spec in ("one", "quorum", "all") or (type(spec) is int and spec >= 1):
        return spec
    raise ValueError(f'{name} must be "one", "quorum", "all" or a positive int, not {spec!r}')


@attrs.frozen(eq=False)
class Verdict:
    """What a set of answers about one key says.

    `holders` hold the candidate, `behind` voted for it and lack it; `complete` counts the answers that were
    heard; `absent` are those that hold nothing.
    """

    candidate: tuple[Any, ...] | None
    holders: list[Reply]
    behind: list[Reply]
    complete: int
    absent: list[Reply]

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
        return Verdict(None, [], [], len(heard), absent)
    newest = candidate[1]
    holders: list[Reply] = []
    behind: list[Reply] = []
    for reply in heard:
        answer = reply.result
        if len(answer) == HELD:
            (holders if answer[1] == newest else behind).append(reply)
        elif not strict or answer[1] < newest:
            behind.append(reply)
    return Verdict(candidate, holders, behind, len(heard), absent)


def _stands(answer: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether one held record takes precedence over another: by version, then by the shorter remaining life."""
    if answer[1] != other[1]:
        return bool(answer[1] > other[1])
    return answer[4] is not None and (other[4] is None or answer[4] < other[4])


def read_missing(verdict: Verdict, needed: int, hold: int) -> int:
    """How many more answers a read needs that wants `needed` heard and the candidate at `hold` owners."""
    if verdict.complete < needed:
        return needed - verdict.complete
    return 0 if verdict.candidate is None else hold - verdict.votes


class ReadRound(Round):
    """Asks about one key until `needed` are heard and enough of them vote for the newest."""

    def __init__(self, calls: Sequence[Call], spares: Sequence[Call], needed: int, hold: int, strict: bool) -> None:
        super().__init__(calls, spares)
        self.needed, self.hold, self.strict = needed, hold, strict
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

    def missing(self) -> int:
        return read_missing(self.verdict(), self.needed, self.hold)


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
    return bool(answer[0]) and (answer[1] == Status.STORED or (overtaken and answer[1] == Status.NEWER))


class WriteRound(Round):
    """A write to several owners until `needed` have acknowledged it, beside `already` that hold it.

    With `overtaken` something newer counts as an acknowledgement; `hear` is explained at `over`.
    """

    def __init__(
        self,
        calls: Sequence[Call],
        needed: int,
        *,
        spares: Sequence[Call] = (),
        overtaken: bool = False,
        already: Sequence[Reply] = (),
        hear: int = 0,
    ) -> None:
        super().__init__(calls, spares)
        self.needed, self.overtaken, self.already, self.hear = needed, overtaken, already, hear

    def check(self, call: Call, result: Any) -> None:
        check_ack(result)

    def got(self) -> int:
        acknowledged = sum(counts(reply.result, overtaken=self.overtaken) for reply in self.live())
        return acknowledged + sum(reply.link.alive for reply in self.already)

    def missing(self) -> int:
        return self.needed - self.got()

    def over(self) -> bool:
        """As of any round; but one with something newer in its way waits until `hear` owners have said how high it is,
        if so many still can."""
        missing = self.missing()
        if missing <= 0 or missing <= len(self.pending) + len(self.spares):
            return missing <= 0
        heard = self.heard()
        return self.highest_newer() is None or not heard < self.hear <= heard + len(self.pending)

    def heard(self) -> int:
        """How many answers there are of owners that know all that was acknowledged before."""
        return sum(bool(reply.result[0]) for reply in self.live())

    def highest_newer(self) -> Version | None:
        """The highest version that stood in the way anywhere."""
        newer = [reply.result[2] for reply in self.replies if reply.result[1] != Status.STORED]
        return max(newer, default=None)

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
    what: str, round_: Round, needed: int, got: int, *, in_doubt: bool, explain: Callable[[Reply], str | None]
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
    return cls(what, needed=needed, got=got, reasons=reasons, in_doubt=in_doubt)


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
