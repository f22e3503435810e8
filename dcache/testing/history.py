"""What clients saw: every call of a run, with when it began and ended.  Only data; `dcache.testing.checker` judges it.

A history has one `Call` per key and call, and one per computation of a `get_or_set`.  What a call's fields mean depends
on its `Op`; an outcome that nobody learned, for instance because the process died, is `Outcome.DOUBT`.
"""

from __future__ import annotations

import enum

import attrs

NEVER = 1 << 62
"""Later than any call."""


class Outcome(enum.Enum):
    OK = "ok"
    MISSED = "missed"  # a read found nothing; a conditional change found that its condition does not hold
    TORN = "torn"  # a value that is not whole, or that belongs to another key
    DOUBT = "in doubt"  # a change of which nobody knows whether it was made
    FAILED = "failed"  # an error; a change was certainly not made


class Op(enum.Enum):
    SET = "set"
    DELETE = "delete"  # a `clear` is one of every key
    ADD = "add"
    REPLACE = "replace"
    CAS = "cas"
    TOUCH = "touch"
    FILL = "fill"  # the value that a get_or_set computed: it may be stored, nobody is told
    READ = "read"  # of a `gets` with the version
    LOAD = "load"  # what a get_or_set returned and had not computed itself
    INCR = "incr"
    COUNT = "count"  # a read of a counter


CONDITIONAL = frozenset({Op.ADD, Op.REPLACE, Op.CAS})
"""Changes that are decided on what is there, and made at most once; a plain set may be made again, a bit higher."""

CHANGES = frozenset({Op.SET, Op.DELETE}) | CONDITIONAL
"""After one of these was made, the value that was there is there no more."""

WRITES = frozenset({Op.SET, Op.FILL}) | CONDITIONAL
"""They bring a value of their own."""

READS = frozenset({Op.READ, Op.LOAD})


@attrs.frozen(eq=False, kw_only=True)
class Call:
    """One key in one call.  Times are of one clock, in any unit; values are unique to the call that writes them.

    `value` is the id of the value that was written (or would have been) or returned; for counters it is "life+number",
    where `life` is what an `incr` would begin.  `client` is who made the call: callers that share computations share
    the name, a process that starts again takes another.  `version` is what the call returned, None where it tells none;
    `expected` is the version that a `cas` was made on.  `how` is the method that was called and `error` what it raised,
    for reports.

    A fill is one computation: `start` is when its `get_or_set` was called, `computed` when the computation began and
    `end` when it ended.  Its outcome is in doubt, or failed if it raised; `cancelled` if it was, by its last caller.
    """

    client: str
    op: Op
    key: str
    start: int
    end: int
    outcome: Outcome
    value: str | None = None
    version: bytes | None = None
    expected: bytes | None = None
    computed: int | None = None
    cancelled: bool = False
    life: str = ""
    how: str = ""
    error: str = ""

    @property
    def earliest(self) -> int:
        """When it may have acted first: a value is not there before its computation began."""
        return self.start if self.computed is None else self.computed

    @property
    def latest(self) -> int:
        """When it may have acted last: what is in doubt comes true at any time, or never."""
        return NEVER if self.outcome is Outcome.DOUBT or self.op is Op.FILL else self.end


@attrs.frozen
class Violation:
    """What cannot have happened: the rule that was broken, and the calls that show it."""

    rule: str
    key: str
    calls: tuple[Call, ...]
