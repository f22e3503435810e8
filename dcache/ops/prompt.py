"""Reads that are over when those first asked have answered alike: in a healthy cluster nearly all of them.

Such a read needs no round: nobody is to be asked besides, nothing is to be weighed or written back.  The drivers ask
for it by the shortest way there is.  Whatever is out of the ordinary (an owner in trouble, a ring that changes, an
answer that differs, is late or makes no sense) is left to the operations, which take over what was asked by then.

That answers agree is a special case of the rules in `quorum`: when `agreed` gives an answer, `judge` finds it to be the
candidate, held by all that were asked, and they are enough of the owners.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

from dcache.codec import RAW
from dcache.errors import DecodingError
from dcache.ops.context import Context
from dcache.ops.quorum import ABSENT, HELD

Answer = tuple[Any, ...]


def targets(ctx: Context, key: bytes, now: float) -> tuple[str, ...] | None:
    """The nodes whose answers about a key's bytes are enough if they agree; None if none such are well at `now`."""
    ways = ctx.any_way or ctx.ways(key)
    if not ways:
        return None
    backoff, turn = ctx.shared.backoff, next(ctx.shared.turn) % len(ways)
    if not (backoff.failures or backoff.slowed) or backoff.undisturbed(now):
        return ways[turn]
    for way in (*ways[turn:], *ways[:turn]):
        if not any(backoff.trouble(node, now) for node in way):
            return way
    return None


def whole(answer: Any) -> TypeGuard[Answer]:
    """Whether this is what a complete owner says about a key: what it holds, or that it holds nothing."""
    if type(answer) is not tuple or not answer or answer[0] is not True:
        return False
    if len(answer) == HELD:
        return type(answer[1]) is bytes and type(answer[2]) is bytes and type(answer[3]) is int
    return len(answer) == ABSENT and type(answer[1]) is bytes


def agreed(answers: Sequence[Any]) -> Answer | None:
    """The answer that complete owners gave alike, all that were asked: of what they hold, or that they hold nothing.

    None if they differ in any way, or one of them is no answer about a key.
    """
    first = answers[0]
    if not whole(first):
        return None
    for other in answers[1:]:
        if other == first:
            continue
        if not whole(other) or len(other) != len(first):
            return None
        if len(first) == HELD and other[1:4] != first[1:4]:
            return None
    return first


Plan = dict[str, list[bytes]]
"""For every node that is asked, the keys that it is asked about."""


def value(ctx: Context, answer: Answer, default: Any) -> Any:
    """The value in an answer that was agreed on, or `default`; counted as a hit or a miss."""
    counters = ctx.shared.counters
    if len(answer) == HELD:
        _, _, data, flags, _ = answer
        try:
            found = data if flags == RAW else ctx.options.codec.decode(data, flags)
        except DecodingError:
            counters.undecodable += 1
        else:
            counters.hits += 1
            return found
    counters.misses += 1
    return default
