"""The miss policy, the same in sync, async and decorator: look, claim, compute, fill.

Written once, as a generator that yields what is to be run or computed; the two clients run and compute.  The cache
being out of reach never keeps a value from its callers: then it is computed, counted and logged once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import attrs

from dcache.client.session import View
from dcache.errors import ClockSkew, ClusterMismatch, DecodingError, NoNodesAvailable, QuorumError, ValueTooLarge
from dcache.ops import load
from dcache.ops.context import Context, Key, TtlOrDefault, ttl_to_ms
from dcache.ops.effects import Op

UNREACHABLE = (QuorumError, NoNodesAvailable, ClockSkew, ClusterMismatch)
"""What it means that the cache cannot be used."""

StoreIf = Callable[[Any], bool] | None


@attrs.frozen(eq=False)
class Run:
    """A step: run this operation."""

    operation: Callable[..., Op[Any]]
    args: tuple[Any, ...]


class Compute:
    """A step: call the factory."""


@attrs.frozen(eq=False)
class Loaded:
    """What a load ended with: the value and, if it was or could be stored, its bytes."""

    value: Any
    found: bool
    data: bytes | None = None
    flags: int = 0


Loading = Generator[Run | Compute, Any, Loaded]
Claimer = Callable[[Context, Key], Op[load.Found | load.Claim]]


def loading(view: View, key: Key, ttl: TtlOrDefault, store_if: StoreIf, claimer: Claimer | None) -> Loading:
    """Compute the value of `key` and store it, unless `claimer` finds it after all.

    Without a `claimer` the cache is known to be out of reach.
    """
    ttl_to_ms(ttl)  # before the value is computed, not after
    claim: load.Claim | None = None
    if claimer is not None:
        try:
            found = yield Run(claimer, (key,))
        except UNREACHABLE as error:
            view.session.complain(error)
        else:
            view.session.works_again()
            if isinstance(found, load.Found):
                return Loaded(found.value, True, found.data, found.flags)
            claim = found
    value = yield Compute()
    if store_if is not None and not store_if(value):
        return Loaded(value, False)
    try:
        data, flags = view.options.codec.encode(value)
    except ValueTooLarge as error:
        view.session.too_large(error)
        return Loaded(value, False)
    if claim is not None:
        try:
            yield Run(load.fill, (key, claim, data, flags, ttl))
        except UNREACHABLE as error:
            view.session.complain(error)
    return Loaded(value, False, data, flags)


def own_copy(view: View, loaded: Loaded, led: bool) -> Any:
    """The value for one caller: who did not compute it gets a copy, so that no two callers share a mutable value."""
    if led or loaded.data is None:
        return loaded.value
    try:
        return view.options.codec.decode(loaded.data, loaded.flags)
    except DecodingError:
        return loaded.value
