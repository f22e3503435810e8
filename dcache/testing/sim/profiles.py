"""What a run is about: the cluster, what goes wrong in it, what its clients promise themselves, and who judges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from dcache.testing import checker
from dcache.testing.history import Call, Violation
from dcache.testing.workload import MIX

AMPLE = 64 << 20
SCARCE = 14_000
"""Bytes of memory: more than is ever used, and room for some of the values."""

NETWORK = (
    "isolate",
    "isolate_one_way",
    "cut_links",
    "swizzle",
    "hold",
    "reset",
    "slow",
    "lossy",
    "heal",
    "heal",
    "pause",
    "resume",
    "resume",
    "stall_client",
)
NODES = ("kill", "power_off", "bounce", "revive", "revive")
RING = ("join", "leave", "forget")

Judge = Callable[[Iterable[Call]], list[Violation]]


@attrs.frozen(kw_only=True)
class Profile:
    """`troubles` are names of methods of `Nemesis`, one named twice comes twice as often; `skew_ms` is how far clocks
    are off, either way, and `steps_ms` how far they are set off while it lasts.

    Of `nodes`, `replicas` and `memory` each run takes one.  `client` are settings of its clients.  `forgets` says that
    values may be gone for other reasons than that those who held them ended.
    """

    about: str
    troubles: Sequence[str]
    judge: Judge = checker.check_strict
    nodes: Sequence[int] = (3, 3, 4)
    replicas: Sequence[int] = (3,)
    memory: Sequence[int] = (AMPLE,)
    skew_ms: int = 12_000
    steps_ms: int = 12_000
    client: Mapping[str, Any] = attrs.Factory(dict)
    mix: Mapping[str, int] = attrs.Factory(lambda: MIX)
    forgets: bool = False


PROFILES: dict[str, Profile] = {
    "network": Profile(
        about="clocks agree, nobody ends, the ring stays: the network and stopped processes alone",
        troubles=NETWORK,
        judge=checker.check_strict,
        skew_ms=0,
        steps_ms=0,
    ),
    "crashes": Profile(
        about="nodes end and come back empty, memory is scarce, clocks differ and are set",
        troubles=(*NETWORK, *NODES, *NODES, "evict", "blackout", "step_clock"),
        memory=(AMPLE, SCARCE),
        mix={**MIX, "clear": 1},
        forgets=True,
    ),
    "changes": Profile(
        about="nodes join, leave and are forgotten, amid everything else",
        troubles=(*NETWORK, *NODES, *RING, *RING, *RING, "evict", "step_clock"),
        nodes=(1, 2, 3, 4),
        replicas=(2, 3, 3, 3),
        forgets=True,
    ),
    "linearizable": Profile(
        about="clients in linearizable mode, on a ring that changes, with clocks that are set hours off",
        troubles=(*NETWORK, *NODES, *RING, "step_clock", "step_clock", "step_clock"),
        judge=checker.check_linearizable,
        nodes=(3, 3, 4),
        steps_ms=2 * 3_600_000,
        client={"consistency": "linearizable"},
    ),
    "available": Profile(
        about="one reply is enough, amid everything",
        troubles=(*NETWORK, *NODES, *RING, "evict", "blackout", "step_clock"),
        judge=checker.check_available,
        replicas=(1, 2, 3),
        memory=(AMPLE, SCARCE),
        client={"write_quorum": "one", "read_quorum": "one"},
        forgets=True,
    ),
}
