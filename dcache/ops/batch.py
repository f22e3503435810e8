"""Many keys at once: get_many, set_many, delete_many.

Every key keeps the rules of its single operation; what is shared is the travelling.  The calls of all keys to one
node go as one request, cut where a frame would grow too large, and all nodes are asked at once.  A node may answer
for the first few keys only, when the reply would grow too large; the rest is asked for again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import attrs

from dcache.errors import (
    DcacheError,
    NodeError,
    ProtocolError,
    QuorumError,
    SerializationError,
    ValueTooLarge,
)
from dcache.ops import linearizable
from dcache.ops.context import DEFAULT, Context, K, Key, TtlOrDefault
from dcache.ops.effects import Call, Link, Op, Reply, Round
from dcache.ops.prompt import Plan
from dcache.ops.quorum import ReadRound, Verdict, WriteRound, stored, write_error
from dcache.ops.read import Missed, check_in_time, decoded, read_record, read_round, settled
from dcache.ops.write import attempt, next_version
from dcache.record import Record, Version
from dcache.wire import Limits

T = TypeVar("T")

ITEM_OVERHEAD = 64  # bytes of a batch item on the wire beside key and value, generously


@attrs.define(eq=False)
class Part:
    """The share in a batch of one key, or of several that fare alike: one round, and the items to send to any node.

    `size` is how many bytes all their keys and values have.
    """

    round: Round
    keys: Sequence[bytes]
    items: Sequence[tuple[Any, ...]]
    size: int

    def apart(self) -> list[Part]:
        """A part for each key, whose round goes on from where the common one is."""
        size = self.size // len(self.keys)
        return [Part(self.round.twin(), (key,), (item,), size) for key, item in zip(self.keys, self.items, strict=True)]


class BatchRound(Round):
    """Runs the rounds of many keys as one: `method` takes a list of items and returns a list of answers.

    A part of several keys is taken apart when they cease to fare alike, so `parts` may be others in the end.
    """

    def __init__(self, ctx: Context, method: str, parts: Sequence[Part]) -> None:
        super().__init__(())
        self._ctx, self._method, self._limits = ctx, method, ctx.shared.limits
        self._parts_of: dict[int, Sequence[tuple[Part, Call]]] = {}  # by the identity of the batch's call
        self.parts = self._open = list(parts)
        self._heard = True  # whether something came since it was last seen which parts are open

    def begin(self) -> Sequence[Call]:
        return self._bundle((part, call) for part in self._open for call in part.round.begin())

    def check(self, call: Call, result: Any) -> None:
        if type(result) is not tuple or not 0 < len(result) <= len(call.params[-1]):
            raise ProtocolError("a batch is answered item by item")

    def replied(self, call: Call, result: Any, link: Link) -> Sequence[Call]:
        try:
            self.check(call, result)
        except ProtocolError as error:
            return self.failed(call, error, sent=True)
        self._heard = True
        self.pending.remove(call)
        self.replies.append(Reply(call.node, result, link))
        parts, answers = self._one_answer_each(self._parts_of.pop(id(call)), result)
        more = [
            (part, another)
            for (part, single), answer in zip(parts, answers, strict=False)
            for another in self._part_replied(part, single, answer, link)
        ]
        return self._bundle((*more, *parts[len(answers) :]))

    def _one_answer_each(
        self, parts: Sequence[tuple[Part, Call]], result: Sequence[Any]
    ) -> tuple[Sequence[tuple[Part, Call]], Sequence[Any]]:
        """The parts, taken apart where the answers to their items do not mean the same, and an answer to each; fewer
        answers if there are fewer."""
        found: list[tuple[Part, Call]] = []
        answers: list[Any] = []
        at = 0
        for part, single in parts:
            some = result[at : at + len(part.items)]
            at += len(part.items)
            if len(part.items) == 1 or (len(some) == len(part.items) and all(map(stored, some))):
                found.append((part, single))
                answers.extend(some[:1])
            else:
                found.extend((one, single) for one in self._take_apart(part))
                answers.extend(some)
        return found, answers

    def _take_apart(self, part: Part) -> list[Part]:
        made = part.apart()
        self.parts = [one for old in self.parts for one in (made if old is part else (old,))]
        self._open = [one for old in self._open for one in (made if old is part else (old,))]
        for call, sent in self._parts_of.items():
            self._parts_of[call] = [(one, single) for old, single in sent for one in (made if old is part else (old,))]
        return made

    def _part_replied(self, part: Part, single: Call, answer: Any, link: Link) -> Sequence[Call]:
        if type(answer) is tuple and len(answer) == 3 and type(answer[0]) is int:  # this item was refused
            return part.round.failed(single, NodeError(*answer), sent=True)
        return part.round.replied(single, answer, link)

    def failed(self, call: Call, error: Exception, sent: bool) -> Sequence[Call]:
        self._heard = True
        self.pending.remove(call)
        parts = self._parts_of.pop(id(call))
        return self._bundle((part, another) for part, one in parts for another in part.round.failed(one, error, sent))

    def late(self) -> Sequence[Call]:
        self._heard = True
        return self._bundle((part, call) for part in self._still_open() for call in part.round.late())

    def expire(self) -> None:
        self.expired = self._heard = True
        for part in self._still_open():
            part.round.expire()
        self.pending.clear()

    def over(self) -> bool:
        return not self._still_open()

    def _still_open(self) -> list[Part]:
        """A connection that breaks opens no part that was over, and brings word of the calls that are pending on it."""
        if self._heard:
            self._open = [part for part in self._open if not part.round.over()]
            self._heard = False
        return self._open

    def _bundle(self, wanted: Iterable[tuple[Part, Call]]) -> list[Call]:
        by_node: dict[str, list[tuple[Part, Call]]] = {}
        for part, call in wanted:
            by_node.setdefault(call.node, []).append((part, call))
        made = []
        for node, parts in by_node.items():
            for some in cut(parts, [part.size for part, _ in parts], self._limits):
                call = self._ctx.call(node, self._method, [item for part, _ in some for item in part.items])
                self._parts_of[id(call)] = some
                made.append(call)
        self.pending.extend(made)
        return made


def fit(sizes: Collection[int], limits: Limits) -> bool:
    """Whether items whose keys and values have so many bytes are to go in one frame."""
    return len(sizes) <= limits.max_batch and sum(sizes) + ITEM_OVERHEAD * len(sizes) <= limits.frame_room // 2


def cut(items: Sequence[T], sizes: Sequence[int], limits: Limits) -> Iterator[Sequence[T]]:
    """Pieces that each fit a frame, of items whose keys and values have so many bytes."""
    if fit(sizes, limits):
        yield items
        return
    most, room = limits.max_batch, limits.frame_room // 2
    start = size = 0
    for at, bare in enumerate(sizes):
        more = bare + ITEM_OVERHEAD
        if at > start and (at - start >= most or size + more > room):
            yield items[start:at]
            start, size = at, 0
        size += more
    yield items[start:]


def get_many(ctx: Context, keys: Iterable[K], first: Plan | None = None) -> Op[dict[K, Any]]:
    """The values of those of `keys` that are there, under the keys as given; `QuorumError` as for a single get.

    `first` says who was asked about what before this began, by a read that was to be prompt.
    """
    raws = ctx.keys(keys)
    records = yield from read_records(ctx, tuple(dict.fromkeys(raws.values())), first)
    found: dict[K, Any] = {}
    for key, raw in raws.items():
        record = records.get(raw)
        value = _ABSENT if record is None else decoded(ctx, record, _ABSENT)
        if value is not _ABSENT:
            found[key] = value
        elif record is None:
            ctx.shared.counters.misses += 1
    return found


_ABSENT = object()


def read_records(ctx: Context, keys: Sequence[bytes], first: Plan | None = None) -> Op[dict[bytes, Record]]:
    """The newest records of `keys`, each once a majority holds it; `first` as for `get_many`."""
    asked: dict[bytes, list[str]] = {}
    for node, theirs in (first or {}).items():
        for key in theirs:
            asked.setdefault(key, []).append(node)
    parts = {key: _asking(key, _read_round(ctx, key, asked.get(key, ()))) for key in keys}
    yield BatchRound(ctx, "get_many", list(parts.values()))
    found: dict[bytes, Record] = {}
    unsettled: dict[bytes, Verdict] = {}
    for key, part in parts.items():
        assert isinstance(part.round, ReadRound)
        verdict, hold = settled(ctx, "get_many", part.round), part.round.hold
        if verdict.candidate is None:
            continue
        if hold.met(verdict.holders):
            found[key] = verdict.record()
        elif hold.met(verdict.voters):
            unsettled[key] = verdict
    if unsettled:
        found.update((yield from _write_back(ctx, unsettled)))
    return found


def _asking(key: bytes, round_: Round) -> Part:
    return Part(round_, (key,), ((key,),), len(key))


def _read_round(ctx: Context, key: bytes, first: Sequence[str]) -> ReadRound:
    nodes = ctx.readers(key)
    if first:
        nodes = (*first, *(node for node in nodes if node not in first))
    return read_round(ctx, key, [Call(node, "get", ()) for node in nodes])


def _write_back(ctx: Context, unsettled: Mapping[bytes, Verdict]) -> Op[dict[bytes, Record]]:
    """Have a majority hold each candidate; what was overtaken meanwhile is read again, alone."""
    parts = {key: _copy_part(ctx, key, verdict) for key, verdict in unsettled.items()}
    ctx.shared.counters.repairs += len(parts)
    yield BatchRound(ctx, "copy_many", list(parts.values()))
    found = {}
    for key, part in parts.items():
        assert isinstance(part.round, WriteRound)
        check_in_time(part.round)
        if part.round.enough():
            found[key] = unsettled[key].record()
        elif part.round.highest_newer() is not None:
            record = yield from read_record(ctx, key)
            if not isinstance(record, Missed):
                found[key] = record
    return found


def _copy_part(ctx: Context, key: bytes, verdict: Verdict) -> Part:
    record = verdict.record()
    asked = {reply.node for reply in (*verdict.holders, *verdict.behind)}
    calls = [Call(reply.node, "copy", ()) for reply in verdict.behind]
    spares = [Call(node, "copy", ()) for node in ctx.owners(key) if node not in asked]
    round_ = WriteRound(calls, ctx.quorums(key).hold, spares=spares, already=verdict.holders)
    item = (key, record.version, record.value, record.flags, record.ttl)
    return Part(round_, (key,), (item,), _item_size(key, (record.value,)))


Writes = Mapping[bytes, tuple[Any, ...]]
"""For every key what follows its version in the batch item that writes it: of a set the value, flags and life."""


def _item_size(key: bytes, what: tuple[Any, ...]) -> int:
    return len(key) + len(what[0]) if what else len(key)


def write_many(ctx: Context, method: str, writes: Writes) -> Op[_Written]:
    """As `write.write`, for every key: the last round of each, and the error of each that failed."""
    making = _write_linearizably if ctx.options.linearizable else _write_stamped
    rounds, errors = yield from making(ctx, method, writes)
    last = {key: made[-1] for key, made in rounds.items()}
    lost = {round_ for round_ in {*last.values()} if not round_.enough()}
    for key in rounds if lost else ():
        if last[key] in lost:
            errors[key] = write_error(method, rounds[key])
    return _Written(last, errors)


_Made = tuple[dict[bytes, list[WriteRound]], dict[bytes, DcacheError]]
"""The rounds that wrote each key, and the errors of those for which there was none."""


def _write_linearizably(ctx: Context, method: str, writes: Writes) -> Op[_Made]:
    """As `linearizable.write`; a key that promises kept out is settled alone."""
    asked = {key: _asking(key, linearizable.top_round(ctx, key)) for key in writes}
    yield BatchRound(ctx, "top_many", list(asked.values()))
    versions: dict[bytes, Version] = {}
    errors: dict[bytes, DcacheError] = {}
    for key, part in asked.items():
        assert isinstance(part.round, linearizable.TopRound)
        if part.round.enough():
            versions[key] = linearizable.version_above(ctx, part.round)
        else:
            errors[key] = linearizable.top_error(method, part.round)
    parts = {
        key: Part(
            linearizable.write_round(ctx, key, _singles(tuple(ctx.owners(key)))),
            (key,),
            ((key, version, *writes[key]),),
            _item_size(key, writes[key]),
        )
        for key, version in versions.items()
    }
    if parts:
        yield BatchRound(ctx, method, list(parts.values()))
    rounds: dict[bytes, list[WriteRound]] = {}
    for key, part in parts.items():
        single = _single(ctx, method, key, writes[key])
        _, rounds[key] = yield from linearizable.settle(ctx, key, versions[key], _written(part), single)
    return rounds, errors


def _single(ctx: Context, method: str, key: bytes, what: tuple[Any, ...]) -> linearizable.Caller:
    return lambda node, version: ctx.call(node, method.removesuffix("_many"), key, version, *what)


def _write_stamped(ctx: Context, method: str, writes: Writes) -> Op[_Made]:
    rounds: dict[bytes, list[WriteRound]] = {key: [] for key in writes}
    versions = dict(zip(writes, ctx.shared.clock.stamps(len(writes)), strict=True))
    while versions:
        round_ = BatchRound(ctx, method, _write_parts(ctx, method, writes, versions, rounds))
        yield round_
        versions = {}
        for part in round_.parts:
            made = _written(part)
            for key in part.keys:
                rounds[key].append(made)
            version = next_version(ctx, rounds[key])  # where several keys are still together nothing was in the way
            if version is not None:
                versions[key] = version
    return rounds, {}


@attrs.frozen(eq=False)
class _Written:
    rounds: dict[bytes, WriteRound]
    errors: dict[bytes, DcacheError]


def _write_parts(
    ctx: Context,
    method: str,
    writes: Writes,
    versions: Mapping[bytes, Version],
    before: Mapping[bytes, Sequence[WriteRound]],
) -> list[Part]:
    """The parts of a batch of writes with these versions; keys that are set for the first time, at the same nodes, have
    one together, if all go in one frame.  (Deletes are answered with more than that they were made.)"""
    sizes = {key: _item_size(key, writes[key]) for key in versions}
    together = method == "set_many" and fit(sizes.values(), ctx.shared.limits)
    groups: dict[Any, list[bytes]] = {}
    alike = ctx.owners_alike()
    for key in versions:
        if before[key] or not together:
            groups[key] = [key]
        elif alike:
            groups.setdefault(None, []).append(key)
        else:
            where = frozenset(ctx.writers(key)), tuple(ctx.stand_ins(key)), ctx.quorums(key)
            groups.setdefault(where, []).append(key)
    parts = []
    for keys in groups.values():
        key = keys[0]
        calls, spares = _singles(tuple(ctx.writers(key))), _singles(tuple(ctx.stand_ins(key)))
        round_ = attempt(ctx.quorums(key), calls, before[key], spares)
        items = [(key, versions[key], *writes[key]) for key in keys]
        parts.append(Part(round_, keys, items, sum(sizes[key] for key in keys)))
    return parts


@lru_cache(maxsize=1024)
def _singles(nodes: tuple[str, ...]) -> tuple[Call, ...]:
    """What stands in the rounds of single keys for the calls of the batch; keys with the same owners share it."""
    return tuple([Call(node, "", ()) for node in nodes])


def _written(part: Part) -> WriteRound:
    assert isinstance(part.round, WriteRound)
    return part.round


def set_many(ctx: Context, mapping: Mapping[K, Any], ttl: TtlOrDefault = DEFAULT) -> Op[dict[K, DcacheError]]:
    """Store every value; what went wrong, by key as given.  One key's trouble does not keep the others from being
    written."""
    life = ctx.ttl(ttl)
    raws, encode = ctx.keys(mapping), ctx.options.codec.encode
    errors: dict[K, DcacheError] = {}
    writes: dict[bytes, tuple[Any, ...]] = {}
    for key, value in mapping.items():
        try:
            data, flags = encode(value)
        except (SerializationError, ValueTooLarge) as error:
            errors[key] = error
        else:
            writes[raws[key]] = data, flags, life
    written = yield from write_many(ctx, "set_many", writes)
    if written.errors:
        errors.update({key: written.errors[raw] for key, raw in raws.items() if raw in written.errors})
    return errors


def delete_many(ctx: Context, keys: Iterable[Key]) -> Op[int]:
    """Forget every key; how many of them an owner held.  Raises the first error, after all have been tried; it is in
    doubt if any of them may be forgotten."""
    raws = dict.fromkeys(ctx.keys(keys).values())
    written = yield from write_many(ctx, "delete_many", dict.fromkeys(raws, ()))
    if written.errors:
        raise _first_error(written)
    return sum(any(reply.result[3] for reply in round_.replies) for round_ in written.rounds.values())


def _first_error(written: _Written) -> DcacheError:
    """The first error of a batch that stands and falls as one; in doubt if any part of it may have been made."""
    errors = list(written.errors.values())
    made = any(round_.enough() for round_ in written.rounds.values())
    made = made or any(isinstance(error, QuorumError) and error.in_doubt for error in errors)
    first = errors[0]
    if made and isinstance(first, QuorumError):
        first.doubt()
    return first
