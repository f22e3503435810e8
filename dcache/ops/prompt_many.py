"""Prompt reads of many keys: whom to ask about which, what the answers come to, and which keys are left.

See `prompt` for what makes a read prompt; what is left goes to `batch.get_many`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from typing import Any, Generic

import attrs

from dcache.codec import RAW
from dcache.errors import DecodingError
from dcache.ops.batch import cut
from dcache.ops.context import Context, K
from dcache.ops.effects import Call
from dcache.ops.prompt import Plan, agreed, targets, whole
from dcache.ops.quorum import HELD


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


def requests(ctx: Context, asked: Plan) -> list[Call]:
    """The calls that ask each node about its keys: those that `get_many` makes at first."""
    return [
        ctx.call(node, "get_many", [*zip(piece, strict=True)])
        for node, keys in asked.items()
        for piece in cut(keys, [*map(len, keys)], ctx.shared.limits)
    ]


def by_node(calls: Sequence[Call], results: Sequence[Any]) -> dict[str, Sequence[Any]] | None:
    """What each node said about its keys, in their order and None where it said nothing; None for answers that are
    none."""
    found: dict[str, Sequence[Any]] = {}
    for call, result in zip(calls, results, strict=True):
        asked = len(call.params[-1])
        if type(result) is not tuple or not 0 < len(result) <= asked:
            return None
        if len(result) < asked:
            result = (*result, *repeat(None, asked - len(result)))
        found[call.node] = (*found[call.node], *result) if call.node in found else result
    return found


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


@attrs.frozen
class Values(Generic[K]):
    """What answers say of keys as given: the values `found`, the keys `left` without a whole answer, and how many
    others there are, or are not."""

    found: dict[K, Any]
    left: list[K]
    missed: int
    undecodable: int

    def count(self, ctx: Context) -> None:
        """Count hits and misses, once the read as a whole has come to an end."""
        counters = ctx.shared.counters
        counters.hits += len(self.found)
        counters.misses += self.missed
        counters.undecodable += self.undecodable


def values(ctx: Context, raws: Mapping[K, bytes], answers: Mapping[bytes, Any]) -> Values[K]:
    """The values in answers that were given alike."""
    decode = ctx.options.codec.decode
    found: dict[K, Any] = {}
    left: list[K] = []
    undecodable = 0
    for key, answer in zip(raws, map(answers.get, raws.values()), strict=True):
        if type(answer) is tuple and len(answer) == HELD:
            complete, version, data, flags, _ = answer
            if complete is True and type(version) is type(data) is bytes and type(flags) is int:  # `whole`, at a glance
                try:
                    found[key] = data if flags == RAW else decode(data, flags)
                except DecodingError:
                    undecodable += 1
                continue
        if not whole(answer):
            left.append(key)
    return Values(found, left, len(raws) - len(left) - len(found), undecodable)
