"""Operations that met another ring than the one they were made for are run anew, while there is time.

Nodes learn of a new ring at slightly different moments, and the client at some other; for so long some of them refuse
what others take.  An operation is run anew at once when the client has learnt of a ring meanwhile, and after a short
random pause when only nodes have.  Its users see no error of that unless the deadline comes first.

Which of them may be run anew although they are in doubt is said in `dcache.ops.reruns`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic

from dcache.client.session import Session
from dcache.errors import ClusterMismatch, DcacheError, NodeError, QuorumError
from dcache.ops import batch
from dcache.ops.context import Context, K, TtlOrDefault
from dcache.ops.effects import Op
from dcache.ops.reruns import may_rerun
from dcache.wire import MESSAGES, Code

FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.05
"""Seconds before an operation is run anew under the same ring; they double, and are 0.5 to 1 times that long."""

_REFUSED = str(NodeError(int(Code.WRONG_RING), MESSAGES[Code.WRONG_RING]))


def met_another_ring(session: Session, ctx: Context, error: DcacheError) -> bool:
    """Whether an operation failed while the ring it was made for was, or is being, replaced."""
    return moved(session, ctx) or (isinstance(error, QuorumError) and _REFUSED in error.reasons.values())


def moved(session: Session, ctx: Context) -> bool:
    """Whether the client knows by now of another ring than that of `ctx`."""
    table = session.topology.table
    return table is None or table.fingerprint != ctx.fingerprint


class Reruns:
    """The failed runs of one operation that has until `deadline`, on the session's steady clock."""

    def __init__(self, session: Session, operation: Any, deadline: float) -> None:
        self._session, self._deadline = session, deadline
        owner = getattr(operation, "__self__", None)
        self._of_many = isinstance(owner, Sets)
        self._operation = owner.repeats if isinstance(owner, Sets) else operation
        self._wait = FIRST_PAUSE
        self._in_doubt = False  # whether a run may have done something

    def pause(self, ctx: Context, error: QuorumError | ClusterMismatch) -> float:
        """Seconds to wait before the next run; raises `error` if there is to be none.

        What an earlier run may have done is not undone because the last one certainly did nothing.
        """
        session = self._session
        if isinstance(error, QuorumError):
            self._remember(error)
        pause = 0.0 if moved(session, ctx) else self._next_pause()
        in_time = session.settings.monotonic() + pause < self._deadline
        allowed = may_rerun(self._operation, error, linearizable=ctx.options.linearizable)
        if not (in_time and allowed and met_another_ring(session, ctx, error)):
            session.note(error)
            raise error
        session.counters.reruns += 1
        return pause

    def _remember(self, error: QuorumError) -> None:
        if self._in_doubt:
            error.doubt()
        self._in_doubt = error.in_doubt and not self._of_many  # of many keys each has a memory of its own

    def _next_pause(self) -> float:
        wait, self._wait = self._wait, min(LONGEST_PAUSE, self._wait * 2)
        return wait * (0.5 + 0.5 * self._session.shared.random())


class Sets(Generic[K]):
    """A `set_many` whose runs are each for the keys that met another ring in the one before.

    `errors` is what went wrong by now, by key; None before the first run has ended.
    """

    repeats = staticmethod(batch.set_many)

    def __init__(self, session: Session, mapping: Mapping[K, Any], ttl: TtlOrDefault) -> None:
        self.errors: dict[K, DcacheError] | None = None
        self._session, self._ttl = session, ttl
        self._left: dict[K, Any] = dict(mapping)
        self._doubtful: set[K] = set()  # that an earlier run may have stored

    def run(self, ctx: Context) -> Op[dict[K, DcacheError]]:
        """What went wrong by key; raises the error of a key that is worth another run."""
        errors = yield from batch.set_many(ctx, self._left, self._ttl)
        self._remember(errors)
        settled = {key: error for key, error in (self.errors or {}).items() if key not in self._left}
        self.errors = settled | errors
        lost = {key: error for key, error in errors.items() if isinstance(error, QuorumError)}
        again = [
            key
            for key, error in lost.items()
            if may_rerun(self.repeats, error, linearizable=ctx.options.linearizable)
            and met_another_ring(self._session, ctx, error)
        ]
        if not again:
            for error in lost.values():
                self._session.note(error)
                break
            return self.errors
        self._left = {key: self._left[key] for key in again}
        raise errors[again[0]]

    def _remember(self, errors: Mapping[K, DcacheError]) -> None:
        for key, error in errors.items():
            if isinstance(error, QuorumError):
                if key in self._doubtful:
                    error.doubt()
                elif error.in_doubt:
                    self._doubtful.add(key)
