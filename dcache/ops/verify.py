"""Whether all replicas of all keys agree, as seen from outside: what `dcache verify` does.

Slots are compared by their digests; where these differ, or a node holds something of a slot that it does not own, the
keys are listed and compared.  What is written meanwhile may show as a difference: look again to be sure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from dcache.ops.compare import Inventory
from dcache.ops.context import Context
from dcache.ops.effects import Call, Gather, Op
from dcache.ops.listing import Digests, Others, Pace
from dcache.ops.read import Missed, copy_call, read_record
from dcache.record import Version
from dcache.ring import SLOTS

CHUNK = 64
"""Slots whose inventories are asked for at once."""


@attrs.frozen
class Difference:
    """A key that its owners do not agree on.  Of the nodes that are named, `missing` lack it and `older` hold an older
    version; `forgotten` lack it and may have forgotten it; `strays` hold it and do not own it."""

    namespace: bytes
    key: bytes
    version: Version
    missing: tuple[str, ...] = ()
    older: tuple[str, ...] = ()
    forgotten: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()

    @property
    def mendable(self) -> bool:
        """Whether there is anything to be done: a node that may have forgotten a key does right in not taking it."""
        return bool(self.missing or self.older or self.strays)


@attrs.define
class Report:
    """What a comparison found.

    `slots` were compared, at all owners that are complete in them; in `unequal` of them something differed.
    `incomplete` are the slots that a node has yet to complete, by node; `entries` what a node holds, by node; `silent`
    the nodes that did not answer, and why.
    """

    slots: int = 0
    unequal: int = 0
    incomplete: dict[str, int] = attrs.field(factory=dict)
    entries: dict[str, int] = attrs.field(factory=dict)
    silent: dict[str, str] = attrs.field(factory=dict)
    differences: list[Difference] = attrs.field(factory=list)

    @property
    def agree(self) -> bool:
        """Whether every node answered, is complete, and nothing is to be mended."""
        mendable = any(difference.mendable for difference in self.differences)
        return not (self.silent or any(self.incomplete.values()) or mendable)


Told = Callable[[int, int], object]
"""Is told how many slots of how many have been compared."""


def verify(ctx: Context, rate: float = float("inf"), told: Told = lambda done, of: None) -> Op[Report]:
    """Compare all replicas, at no more than `rate` bytes per second."""
    others, report = Others(ctx.fingerprint, Pace(rate)), Report()
    yield from _count_entries(ctx, report)
    digests = yield from others.digests({node: range(SLOTS) for node in ctx.nodes if node not in report.silent})
    for node in ctx.nodes:
        if node not in digests:
            report.silent.setdefault(node, "does not compare slots, or goes by another ring")
    unequal = _unequal(ctx, digests, report)
    report.unequal = len(unequal)
    told(report.slots - len(unequal), report.slots)
    indexes = yield from others.indexes(_by_node(unequal))
    slots = sorted(unequal)
    for at in range(0, len(slots), CHUNK):
        chunk = slots[at : at + CHUNK]
        wanted = _by_node({slot: unequal[slot] for slot in chunk})
        heard = yield from others.inventories(indexes, {node: wanted[node] for node in wanted if node in indexes})
        for slot in chunk:
            report.differences += _differences(heard.by_slot.get(slot, {}), _owners(ctx, slot))
        told(report.slots - len(slots) + at + len(chunk), report.slots)
    yield others.drop(indexes)
    return report


def mend(ctx: Context, differences: Iterable[Difference]) -> Op[int]:
    """Bring the owners of these keys up to date with what a strict read returns; how many keys that was done for.

    What a strict read does not return is left to the nodes, who drop it when they compare; they are asked to, and to
    send home what is not theirs.
    """
    mended = 0
    for difference in differences:
        if not difference.mendable:
            continue
        one = attrs.evolve(ctx, options=attrs.evolve(ctx.options, namespace=difference.namespace.decode()))
        found = yield from read_record(one, difference.key)
        if not isinstance(found, Missed):
            yield Gather([copy_call(one, node, difference.key, found) for node in one.owners(difference.key)])
            mended += 1
    yield Gather([Call(node, "repair", ()) for node in ctx.nodes])
    return mended


def _count_entries(ctx: Context, report: Report) -> Op[None]:
    round_ = Gather([Call(node, "stats", ()) for node in ctx.nodes])
    yield round_
    report.entries = {reply.node: dict(reply.result).get("entries", 0) for reply in round_.replies}
    report.silent = {failure.node: str(failure.error) or type(failure.error).__name__ for failure in round_.failures}


def _owners(ctx: Context, slot: int) -> Sequence[str]:
    return tuple(dict.fromkeys(node for owners in ctx.table.owners(slot) for node in owners))


def _unequal(ctx: Context, digests: Mapping[str, Digests], report: Report) -> dict[int, list[str]]:
    """The slots to be looked into, with the nodes to ask: owners that differ, and others that hold anything."""
    unequal: dict[int, list[str]] = {}
    report.incomplete = dict.fromkeys(digests, 0)
    for slot in range(SLOTS):
        owners = _owners(ctx, slot)
        heard = {node: digests[node][slot] for node in owners if node in digests}
        for node, (complete, _) in heard.items():
            report.incomplete[node] += not complete
        compared = {digest for complete, digest in heard.values() if complete}
        strays = [node for node in digests if node not in owners and digests[node][slot][1]]
        report.slots += 1
        if len(compared) > 1 or strays:
            unequal[slot] = [*heard, *strays]
    return unequal


def _by_node(slots: Mapping[int, Sequence[str]]) -> dict[str, list[int]]:
    by_node: dict[str, list[int]] = {}
    for slot, nodes in slots.items():
        for node in nodes:
            by_node.setdefault(node, []).append(slot)
    return by_node


def _differences(heard: Mapping[str, Inventory], owners: Sequence[str]) -> list[Difference]:
    """What differs in one slot, by key."""
    keys: dict[bytes, Any] = dict.fromkeys(key for inventory in heard.values() for key in inventory.versions)
    found = (_difference(key, heard, owners) for key in sorted(keys))
    return [difference for difference in found if difference is not None]


def _difference(full: bytes, heard: Mapping[str, Inventory], owners: Sequence[str]) -> Difference | None:
    """None if all complete owners hold the same, and nobody else holds anything."""
    held = {node: inventory.versions[full] for node, inventory in heard.items() if full in inventory.versions}
    newest, complete = max(held.values()), [node for node in heard if node in owners and heard[node].complete]
    lacking = [node for node in complete if node not in held]
    forgotten = tuple(node for node in lacking if heard[node].floor >= newest)
    missing = tuple(node for node in lacking if heard[node].floor < newest)
    older = tuple(node for node in complete if node in held and held[node] < newest)
    strays = tuple(node for node in held if node not in owners)
    if not (missing or older or forgotten or strays):
        return None
    namespace, _, key = full.partition(b"\0")
    return Difference(namespace, key, newest, missing, older, forgotten, strays)
