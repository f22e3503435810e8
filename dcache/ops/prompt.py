"""Reads that are over when those first asked have answered alike: in a healthy cluster nearly all of them.

Such a read needs no round: nobody is to be asked besides, nothing is to be weighed or written back.  The drivers ask
for it by the shortest way there is.  Whatever is out of the ordinary (an owner in trouble, a ring that changes, an
answer that differs, is late or makes no sense) is left to the operations, which take over what was asked by then.

That answers agree is a special case of the rules in `quorum`: when `agreed` gives an answer, `judge` finds it to be the
candidate, held by all that were asked, and they are enough of the owners.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from typing import Any

from dcache.errors import DecodingError
from dcache.ops.context import Context
from dcache.ops.quorum import ABSENT, HELD

Answer = tuple[Any, ...]


def targets(ctx: Context, key: bytes, now: float) -> tuple[str, ...] | None:
    """The nodes whose answers about a key's bytes are enough if they agree; None if none such are well at `now`."""
    ways = ctx.ways(key)
    if not ways:
        return None
    backoff, turn = ctx.shared.backoff, next(ctx.shared.turn) % len(ways)
    if backoff.undisturbed(now):
        return ways[turn]
    for way in (*ways[turn:], *ways[:turn]):
        if not any(backoff.trouble(node, now) for node in way):
            return way
    return None


def agreed(answers: Sequence[Any]) -> Answer | None:
    """The answer that complete owners gave alike, all that were asked: of what they hold, or that they hold nothing.

    None if they differ in any way, or one of them is no answer about a key.
    """
    first = answers[0]
    if type(first) is not tuple or not first or first[0] is not True:
        return None
    size = len(first)
    if size == HELD:
        if type(first[1]) is not bytes or type(first[2]) is not bytes or type(first[3]) is not int:
            return None
    elif size != ABSENT or type(first[1]) is not bytes:
        return None
    for other in answers[1:]:
        if type(other) is not tuple or len(other) != size or other[0] is not True:
            return None
        if size == HELD and other[1:4] != first[1:4]:
            return None
        if size == ABSENT and type(other[1]) is not bytes:
            return None
    return first


Plan = dict[str, list[bytes]]
"""For every node that is asked, the keys that it is asked about."""


def plan(ctx: Context, keys: Iterable[bytes], now: float) -> tuple[Plan, list[bytes]]:
    """Whom to ask about which of `keys`, all different, and those of them that are left to the operations."""
    asked: Plan = {}
    others: list[bytes] = []
    calm, turn, ways_of = ctx.shared.backoff.undisturbed(now), next(ctx.shared.turn), ctx.ways
    for key in keys:
        ways = ways_of(key)
        way = ways[turn % len(ways)] if calm and ways else targets(ctx, key, now)
        if way is None:
            others.append(key)
        else:
            for node in way:
                if node in asked:
                    asked[node].append(key)
                else:
                    asked[node] = [key]
    return asked, others


def settle_many(asked: Plan, answers: Mapping[str, Sequence[Any]]) -> tuple[dict[bytes, Answer], list[bytes]]:
    """What was agreed on of the keys that were asked about, and the keys left to the operations.

    `answers` are those of each node, in the order of its keys: for the first few of them only, if it likes, and none
    from a node that did not answer or whose connection broke.
    """
    told = {node: chain(answers.get(node, ()), repeat(None)) for node in asked}
    lists = list(asked.values())
    of_keys: Iterable[tuple[bytes, Sequence[Any]]]
    if all(keys == lists[0] for keys in lists):  # where one node is asked, or all nodes own all keys
        of_keys = zip(lists[0], zip(*told.values(), strict=False), strict=False) if lists else ()
    else:
        by_key: dict[bytes, list[Any]] = {}
        for node, keys in asked.items():
            for key, answer in zip(keys, told[node], strict=False):
                by_key.setdefault(key, []).append(answer)
        of_keys = by_key.items()
    found: dict[bytes, Answer] = {}
    unsettled: list[bytes] = []
    for key, some in of_keys:
        answer = agreed(some)
        if answer is None:
            unsettled.append(key)
        else:
            found[key] = answer
    return found, unsettled


def value(ctx: Context, answer: Answer, default: Any) -> Any:
    """The value in an answer that was agreed on, or `default`; counted as a hit or a miss."""
    counters = ctx.shared.counters
    if len(answer) == HELD:
        try:
            found = ctx.options.codec.decode(answer[2], answer[3])
        except DecodingError:
            counters.undecodable += 1
        else:
            counters.hits += 1
            return found
    counters.misses += 1
    return default
