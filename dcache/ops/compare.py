"""Comparing the owners of a slot: what each holds and may have forgotten, and what follows from it.

Of a write that was acknowledged, W of the n owners of its key *know* (W: a majority): they hold it, or something newer,
or hold nothing and have a floor at or above it.  An owner that knows of a write never votes for anything older (see
`quorum`).  So no strict read goes wrong as long as this holds:

    for every acknowledged write there are W owners that know of it at all times at which they are complete.

**Settling** (`settle`) makes an owner that lost its memory complete again.  It must know afterwards of every write that
it helped to acknowledge; of later ones it need not know, W others acknowledged them without it.  It hears n - W + 1
complete others.  At most n - W owners are not among the W that know of a given write, so one of those heard is.

* For each key the newest version `v` of all that is heard and held counts, with the votes that those heard give it.
  With n - W + 1 votes one voter knows of the write in question, so `v` is that write or newer: it is taken, or kept.
* With fewer votes one of those heard lacks the key with a floor at or above `v`.  Nothing is kept, of whatever version,
  and the floor is raised to the highest that was heard.  That is at or above `v`, and `v` is at or above what the one
  that knows holds; where it holds nothing, its own floor is at or above the write.
* The floor is raised to the *barriers* heard, not only to the floors: a version that was promised elsewhere may yet be
  accepted there, and a write that comes in below it would be acknowledged here and lose against it.
* What was held before, or came in meanwhile, gets no vote of its own: an owner that is not complete may hold anything.

What is heard may be old by the time it is used: later writes are none of those that must be known.  What is held must
be looked at when the slot is declared complete, and in that same step.

**Reconciling** (`reconcile`) is what complete owners do now and then.  To take over what another one holds is always
safe, if it is newer than what is held and above the floor.  To drop is always safe if the floor is raised.  So nothing
depends on when the others were heard; what is dropped is what has too few votes left ever to be returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs

from dcache.ops.quorum import majority
from dcache.record import ZERO, Version

Versions = Mapping[bytes, Version]


@attrs.frozen(eq=False)
class Inventory:
    """What one owner holds of a slot, by storage key, and what it may have forgotten, at one instant.

    `barrier` is the higher of its floor and of all that it has promised in the slot.
    """

    complete: bool
    floor: Version
    barrier: Version
    versions: Versions

    def votes(self, key: bytes, version: Version) -> bool:
        """Whether this owner vouches that nothing newer than `version` was forgotten."""
        held = self.versions.get(key)
        return self.floor < version if held is None else held <= version


@attrs.frozen(eq=False)
class Settlement:
    """What an owner has to do to know a slot: `take` maps keys to the version wanted and who holds it, `drop` keys to
    the version held.  `floor` is to be raised to once that is done."""

    take: dict[bytes, tuple[Version, list[str]]]
    drop: dict[bytes, Version]
    floor: Version


def enough(n: int) -> int:
    """How many of `n` owners have one among them that knows of any given acknowledged write."""
    return n - majority(n) + 1


def must_catch_up(before: int, after: int) -> bool:
    """Whether owners have to catch up before they go on with `after` owners a slot in the place of `before`, at most
    one less: those that stay may be fewer of the ones that know of a write than will then be relied on.

    A complete owner catches up by settling; it may hear itself.
    """
    return after < before and majority(before) - 1 < majority(after)


def settle(mine: Versions, heard: Mapping[str, Inventory], needed: int) -> Settlement | None:
    """What an owner that holds `mine` and does not count itself makes of what others say; None if too few are complete.

    `needed` is `enough(n)`.  An owner that is complete, and only wants to know more, may be among those heard.
    """
    heard = {name: inventory for name, inventory in heard.items() if inventory.complete}
    if len(heard) < needed:
        return None
    settlement = Settlement({}, {}, max(inventory.barrier for inventory in heard.values()))
    for key, version in _newest(mine, heard).items():
        held = mine.get(key)
        if sum(inventory.votes(key, version) for inventory in heard.values()) < needed:
            if held is not None:
                settlement.drop[key] = held
        elif held != version:
            settlement.take[key] = version, _holders(key, version, heard)
    return settlement


@attrs.frozen(eq=False)
class Reconciliation:
    """What a complete owner has to do to agree with the others, in the terms of `Settlement`."""

    take: dict[bytes, tuple[Version, list[str]]]
    drop: dict[bytes, Version]


def reconcile(
    me: str, mine: Inventory, others: Mapping[str, Inventory], rings: Iterable[Sequence[str]]
) -> Reconciliation:
    """What `me` makes of what other owners say; `rings` are the owners on each ring in force.

    An owner of whom nothing is heard is taken to vote for anything.
    """
    heard = {name: inventory for name, inventory in others.items() if inventory.complete}
    everybody = {me: mine, **heard}
    votes = [([everybody[name] for name in owners if name in everybody], enough(len(owners))) for owners in rings]
    made = Reconciliation({}, {})
    for key, version in _newest(mine.versions, heard).items():
        held = mine.versions.get(key)
        if any(sum(not one.votes(key, version) for one in heard_of) >= most for heard_of, most in votes):
            if held is not None:
                made.drop[key] = held
        elif held != version and (held is not None or version > mine.floor):
            made.take[key] = version, _holders(key, version, heard)
    return made


def _newest(mine: Versions, heard: Mapping[str, Inventory]) -> dict[bytes, Version]:
    """The newest version of every key, in the order in which the holders list them."""
    newest: dict[bytes, Version] = {}
    for versions in (*(inventory.versions for inventory in heard.values()), mine):
        for key, version in versions.items():
            if version > newest.get(key, ZERO):
                newest[key] = version
    return newest


def _holders(key: bytes, version: Version, heard: Mapping[str, Inventory]) -> list[str]:
    return [name for name, inventory in heard.items() if inventory.versions.get(key) == version]
