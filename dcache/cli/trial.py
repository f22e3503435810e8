"""The trial that the demonstration shows: the same questions, asked again and again through `@cached`.

Every answer is compared with what was computed from the source in this very process, which no cache had a hand in.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from dcache.cli.workload import Statistics, statistics_of
from dcache.client.cached import cached
from dcache.client.sync import Client

Ask = Callable[[str], Statistics]
Each = Callable[[int], None]


@attrs.frozen
class Run:
    """What asking for each of some modules brought.

    `seconds` are per answer; `computed` counts the answers that had to be computed, `errors` the client's operations
    that failed; `hits` are per node, of those that were there at the end; `wrong` names the modules whose answers
    differ from the computed ones.
    """

    title: str
    seconds: tuple[float, ...]
    computed: int
    errors: int
    hits: Mapping[str, int]
    wrong: tuple[str, ...]

    @property
    def total(self) -> float:
        return sum(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def slowest(self) -> float:
        return max(self.seconds)


class Trial:
    """Modules, a cached function of them, and what was computed of each."""

    def __init__(self, client: Client, modules: Mapping[str, Path]) -> None:
        self.client, self.modules = client, modules
        self.truth: dict[str, Statistics] = {}
        self.computed = 0

        @cached(client, ttl=None, namespace="dcache-demo", key=self.key)
        def ask(module: str) -> Statistics:
            return self._compute(module)

        self.ask: Ask = ask

    def key(self, module: str) -> str:
        """The answer to another state of the source is another one."""
        state = self.modules[module].stat()
        return f"{module}:{state.st_size}:{state.st_mtime_ns}"

    def _compute(self, module: str) -> Statistics:
        self.computed += 1
        answer = statistics_of(self.modules[module].read_bytes())
        self.truth.setdefault(module, answer)
        return answer

    def run(self, title: str, names: Iterable[str], each: Each = lambda index: None, limit: float | None = None) -> Run:
        """Ask for each of `names`; `each` is told before every question which one it is, from 0.

        After `limit` seconds no more are asked.
        """
        computed, before = self.computed, self.client.stats()
        answers: dict[str, Statistics] = {}
        seconds: list[float] = []
        for index, name in enumerate(names):
            if limit is not None and sum(seconds) > limit:
                break
            each(index)
            start = time.perf_counter()
            answers[name] = self.ask(name)
            seconds.append(time.perf_counter() - start)
        after = self.client.stats()
        return Run(
            title,
            tuple(seconds),
            self.computed - computed,
            after["client"]["errors"] - before["client"]["errors"],
            hits_between(before["nodes"], after["nodes"]),
            differing(self.truth, answers),
        )


def differing(truth: Mapping[str, Statistics], answers: Mapping[str, Statistics]) -> tuple[str, ...]:
    """The names under which `answers` has anything but the computed answer, of the same types all through."""
    return tuple(name for name, answer in answers.items() if name not in truth or not _same(truth[name], answer))


def _same(one: Any, other: Any) -> bool:
    # repr tells 1, 1.0 and True apart, and the order in a dict, all of which equality does not
    return bool(one == other) and repr(one) == repr(other)


def hits_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, int]:
    """The hits of every node that gave its statistics both times."""
    both = [name for name in after if "hits" in after[name] and "hits" in before.get(name, {})]
    return {name: after[name]["hits"] - before[name]["hits"] for name in both}
