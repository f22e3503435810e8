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


def plan(ctx: Context, keys: Iterable[bytes], now: float) -> tuple[Plan, list[bytes]]:
    """Whom to ask about which of `keys`, all different, and those of them that are left to the operations."""
    by_way: dict[tuple[str, ...] | None, list[bytes]] = {}
    calm, turn, ways_of = ctx.shared.backoff.undisturbed(now), next(ctx.shared.turn), ctx.ways
    if calm and ctx.any_way:
        by_way[ctx.any_way[turn % len(ctx.any_way)]] = list(keys)
    else:
        for key in keys:
            ways = ways_of(key)
            way = ways[turn % len(ways)] if calm and ways else targets(ctx, key, now)
            by_way.setdefault(way, []).append(key)
    others = by_way.pop(None, [])
    asked: Plan = {}
    for way, some in by_way.items():
        for node in way or ():
            if some:
                asked.setdefault(node, []).extend(some)
    return asked, others


def settle_many(asked: Plan, answers: Mapping[str, Sequence[Any]]) -> dict[bytes, Any]:
    """What all that were asked about a key say of it alike: an answer, if it is `whole`.

    `answers` are those of each node, in the order of its keys: for the first few of them only, if it likes, and none
    from a node that did not answer or whose connection broke.
    """
    if not asked:
        return {}
    lists, told = list(asked.values()), [answers.get(node, ()) for node in asked]
    keys, first = lists[0], told[0]
    if any(theirs != keys for theirs in lists):
        return {key: some[0] for key, some in _by_key(lists, told).items() if agreed(some)}
    if all(theirs == first for theirs in told):  # also where one node was asked
        return dict(zip(keys, first, strict=False))
    each = zip(*told, strict=False)
    return {key: some[0] for key, some in zip(keys, each, strict=False) if agreed(some)}


def _by_key(lists: Sequence[Sequence[bytes]], told: Sequence[Sequence[Any]]) -> dict[bytes, list[Any]]:
    """What those who were asked about a key said, with None for those who said nothing."""
    found: dict[bytes, list[Any]] = {}
    for keys, answers in zip(lists, told, strict=True):
        for key, answer in zip(keys, chain(answers, repeat(None)), strict=False):
            found.setdefault(key, []).append(answer)
    return found


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
