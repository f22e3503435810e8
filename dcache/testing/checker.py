"""Decides whether what clients saw can have happened, if the cache keeps its promise; pure.

A *history* is all calls of a run (`dcache.testing.history`), in any order.  It is judged key by key; a miss is always
right.  What holds depends on how the clients that made it were set up, so there is one function for each way.  Each
gives all that is wrong, nothing if the history can have happened, and takes about n log n steps for n calls.

The rules themselves are in `dcache.testing.rules`, by what they go by: real time, versions, counters, computations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from dcache.testing.history import Call, Violation
from dcache.testing.rules.computations import computed_once, detached
from dcache.testing.rules.conditional import decided_once, made_once, present
from dcache.testing.rules.counters import beginnings, counting
from dcache.testing.rules.order import order
from dcache.testing.rules.story import Story, story
from dcache.testing.rules.values import fills, origins, overwritten
from dcache.testing.rules.versions import staleness, versions

Rule = Callable[[Story], Iterator[Violation]]

ALWAYS: tuple[Rule, ...] = (origins, beginnings, computed_once)
MAJORITIES: tuple[Rule, ...] = (
    *ALWAYS,
    staleness,
    versions,
    fills,
    detached,
    decided_once,
    made_once,
    present,
    counting,
)
STRICT: tuple[Rule, ...] = (*MAJORITIES, overwritten)
LINEARIZABLE: tuple[Rule, ...] = (*MAJORITIES, order)  # which finds all that was overwritten, and more


def check_strict(history: Iterable[Call]) -> list[Violation]:
    """Of strict clients, whatever their clocks say."""
    return _check(history, STRICT)


def check_linearizable(history: Iterable[Call]) -> list[Violation]:
    """Of clients in linearizable mode, whatever their clocks say."""
    return _check(history, LINEARIZABLE)


def check_available(history: Iterable[Call]) -> list[Violation]:
    """Of clients in available mode: they may get old values, and no invented ones."""
    return _check(history, ALWAYS)


def _check(history: Iterable[Call], rules: Sequence[Rule]) -> list[Violation]:
    by_key: defaultdict[str, list[Call]] = defaultdict(list)
    for call in history:
        by_key[call.key].append(call)
    stories = [story(key, by_key[key]) for key in sorted(by_key)]
    return [violation for one in stories for rule in rules for violation in rule(one)]
