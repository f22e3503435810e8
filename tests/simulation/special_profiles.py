"""What a run is about that is to bring out one kind of harm: little is done, and little goes wrong, but that often."""

from __future__ import annotations

import attrs

from dcache.testing.sim.profiles import AMPLE, PROFILES, SCARCE, Profile

NET, CRASHES, CHANGES = PROFILES["network"], PROFILES["crashes"], PROFILES["changes"]
PLAIN = {"get": 20, "gets": 20, "set": 30, "delete": 10}
LOADED = {"get": 1, "get_or_set": 30, "invalidate": 20, "peek": 20}
CONDITIONAL = {"gets": 10, "cas": 20, "add": 10, "replace": 5, "set": 5, "get_or_set": 1, "incr": 20, "count": 10}
CUTS = ("isolate", "cut_links", "swizzle", "heal", "heal")

SPECIAL: dict[str, Profile] = {
    "scarce": attrs.evolve(CRASHES, about="memory is scarce", troubles=("evict", "heal"), mix=PLAIN, memory=(SCARCE,)),
    "evictions": attrs.evolve(
        CRASHES,
        about="plain keys, links cut, keys forgotten",
        troubles=(*CUTS, "evict", "evict"),
        mix=PLAIN,
        memory=(AMPLE,),
    ),
    "skewed": attrs.evolve(
        NET, about="plain keys, links cut, clocks differ", troubles=CUTS, mix=PLAIN, skew_ms=12_000, judge=CRASHES.judge
    ),
    "slow": attrs.evolve(
        NET,
        about="plain keys, slow links",
        troubles=("slow", "slow", "hold", "cut_links", "heal"),
        mix=PLAIN,
        judge=CRASHES.judge,
    ),
    "restarts": attrs.evolve(
        CRASHES,
        about="plain keys, nodes come back empty, links cut",
        troubles=(*CUTS, "bounce", "bounce", "kill", "revive"),
        memory=(AMPLE,),
        mix=PLAIN,
    ),
    "slow restarts": attrs.evolve(
        CRASHES,
        about="plain keys, slow links, nodes come back empty",
        troubles=("slow", "slow", "hold", "bounce", "bounce", "heal"),
        memory=(AMPLE,),
        nodes=(3,),
        mix=PLAIN,
    ),
    "forgetful": attrs.evolve(
        CRASHES,
        about="plain keys, nodes come back empty and forget keys, links cut",
        troubles=("cut_links", "cut_links", "heal", "bounce", "evict"),
        memory=(AMPLE,),
        nodes=(3,),
        mix=PLAIN,
    ),
    "loads": attrs.evolve(
        CRASHES,
        about="keys that are computed, links cut and slow, nodes come back empty",
        troubles=(*CUTS, "slow", "bounce", "reset"),
        memory=(AMPLE,),
        mix=LOADED,
    ),
    "decisions": attrs.evolve(
        NET,
        about="conditional changes, links cut and slow, clocks differ",
        troubles=(*CUTS, "slow", "reset", "lossy"),
        mix=CONDITIONAL,
        skew_ms=12_000,
        judge=CRASHES.judge,
    ),
    "forgotten decisions": attrs.evolve(
        CRASHES,
        about="conditional changes, links cut, keys forgotten",
        troubles=("cut_links", "cut_links", "heal", "evict", "evict"),
        mix=CONDITIONAL,
        memory=(AMPLE,),
        nodes=(3,),
    ),
    "joining": attrs.evolve(
        CHANGES,
        about="plain keys, nodes join and leave, links cut",
        troubles=(*CUTS, "join", "join", "leave", "leave"),
        mix=PLAIN,
    ),
    "joining decisions": attrs.evolve(
        CHANGES,
        about="conditional changes, nodes join and leave",
        troubles=("join", "join", "leave", "leave", "slow", "heal"),
        mix=CONDITIONAL,
        nodes=(2, 3),
    ),
    "away": attrs.evolve(
        CHANGES,
        about="plain keys, nodes join and leave while others are cut off",
        troubles=("isolate", "heal", "join", "leave", "join", "leave"),
        mix=PLAIN,
        nodes=(4,),
        replicas=(3,),
    ),
    "moving": attrs.evolve(
        CHANGES,
        about="plain keys, nodes join and leave, some links cut",
        troubles=("cut_links", "cut_links", "join", "leave"),
        mix=PLAIN,
        nodes=(3,),
        replicas=(3,),
    ),
}
"""Profiles that bring out one kind of harm sooner than those of `dcache.testing.sim.profiles`."""
