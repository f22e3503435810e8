"""What a run covered, and what is to be read when something was wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import attrs

from dcache.testing.history import Call, Op, Outcome, Violation


@attrs.frozen
class Coverage:
    """How many calls of a run say something."""

    hits: int
    writes: int
    fills_seen: int
    counted: int
    errors: int
    doubts: int
    calls: int

    @classmethod
    def of(cls, calls: Sequence[Call]) -> Coverage:
        ended = Counter((call.op, call.outcome) for call in calls)
        fills = {call.value for call in calls if call.op is Op.FILL}
        return cls(
            hits=ended[Op.READ, Outcome.OK] + ended[Op.LOAD, Outcome.OK],
            writes=ended[Op.SET, Outcome.OK] + ended[Op.DELETE, Outcome.OK],
            fills_seen=sum(call.op is Op.READ and call.value in fills for call in calls),
            counted=ended[Op.INCR, Outcome.OK],
            errors=sum(call.outcome is Outcome.FAILED for call in calls),
            doubts=sum(call.outcome is Outcome.DOUBT and call.op is not Op.FILL for call in calls),
            calls=len(calls),
        )

    def lacking(self) -> str:
        """What is missing for the run to say something: an empty one, or one of errors alone, must not pass."""
        least = {
            "calls": 1000,
            "hits": self.calls // 6,
            "writes": self.calls // 10,
            "fills_seen": self.calls // 200,
            "counted": self.calls // 50,
        }
        short = [(what, number) for what, number in least.items() if getattr(self, what) < number]
        return ", ".join(f"{what}: {getattr(self, what)} of at least {number}" for what, number in short)


def table(calls: Sequence[Call]) -> str:
    """Per method: how many of its keys ended how."""
    ended = Counter((call.how, call.outcome) for call in calls)
    lines = [f"{'':12}" + "".join(f"{outcome.value:>10}" for outcome in Outcome)]
    methods = sorted({call.how for call in calls})
    lines += [f"{how:12}" + "".join(f"{ended[how, outcome]:>10}" for outcome in Outcome) for how in methods]
    return "\n".join(lines)


def told(call: Call, zero: int, mark: str = " ") -> str:
    """A call in one line, in milliseconds since `zero`."""
    times = f"{(call.start - zero) / 1e6:10.1f} - {(call.end - zero) / 1e6:10.1f}"
    computed = "" if call.computed is None else f" computed from {(call.computed - zero) / 1e6:.1f} on"
    value = "" if call.value is None else f" {call.value}"
    what = f"{call.how:12} {call.outcome.value:8}{value}{computed}"
    return f"{mark} {times}  {call.client:12} {what} {call.error[:200]}".rstrip()


def explained(violation: Violation, calls: Sequence[Call], zero: int) -> str:
    """The rule, the calls that show that it was broken, and all of the key's history around them."""
    first = min(call.start for call in violation.calls) - 2_000_000_000
    last = max(call.end for call in violation.calls) + 1_000_000_000
    around = [call for call in calls if call.key == violation.key and first <= call.end and call.start <= last]
    lines = [f"{violation.key}: {violation.rule}"]
    lines += [told(call, zero, "*") for call in violation.calls]
    lines += ["", "what was called around that time:"]
    lines += [told(call, zero, "*" if call in violation.calls else " ") for call in sorted(around, key=_start)]
    return "\n".join(lines)


def _start(call: Call) -> int:
    return call.start


def save(
    directory: Path, calls: Sequence[Call], violations: Sequence[Violation], zero: int, trouble: Sequence[str]
) -> None:
    """Everything about a run, in files: the trouble, all calls, and each violation with what was around it."""
    (directory / "trouble.txt").write_text("\n".join(trouble) + "\n")
    ordered = sorted(calls, key=lambda call: (call.key, call.start))
    (directory / "history.txt").write_text("".join(f"{call.key:16}{told(call, zero)}\n" for call in ordered))
    texts = [explained(violation, calls, zero) for violation in violations[:20]]
    (directory / "violations.txt").write_text("\n\n".join(texts) + "\n")
