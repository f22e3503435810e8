"""What holds for every test: examples that repeat, nothing left behind, and a count of what ran.

* Property tests use the same examples each time; `nox -s random` takes others, and under coverage they are few.
* A test that leaves a task in a loop it closes, or something for asyncio to complain about in its log, fails.
* Garbage is collected after each test, so that an unclosed socket is blamed on the test that made it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("random", deadline=None, print_blob=True, max_examples=500)
settings.register_profile(
    "few", derandomize=True, deadline=None, print_blob=True, max_examples=10, stateful_step_count=20
)
settings.load_profile("ci")

INTEGRATION = Path(__file__).parent / "integration"
RUN_LIMIT = 100.0
"""Seconds that `run` allows; below pytest's own limit, whose alarm uvloop swallows."""

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
Run = Callable[..., Any]


def pytest_configure(config: pytest.Config) -> None:
    """Take the package's own plugin from the source tree where the package is not installed, and ports of its own for
    each of several workers."""
    from dcache.testing import cluster, plugin

    if not config.pluginmanager.is_registered(plugin):
        config.pluginmanager.register(plugin, "dcache")
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None:  # two at a time take no port that the other has found free, or left for a moment
        count = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        cluster.PORTS = cluster.PORTS[int(worker.removeprefix("gw")) :: count]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what stands in tests/integration, so that nobody has to remember to."""
    for item in items:
        if item.path.is_relative_to(INTEGRATION):
            item.add_marker("integration")


def pytest_collection_finish() -> None:
    """Take all that is imported by now out of later collections: a collection after each test is then cheap."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Append this run's counts to the file that noxfile.py adds up."""
    path = os.environ.get("DCACHE_TEST_TALLY")
    if not path or "PYTEST_XDIST_WORKER" in os.environ:  # whose results the first process counts
        return
    tests = {
        outcome: {report.nodeid for report in reports} for outcome, reports in terminalreporter.stats.items() if outcome
    }
    nothing: set[str] = set()
    failed = tests.get("failed", nothing) | tests.get("error", nothing)  # a test may pass and then fail in its teardown
    skipped = (tests.get("skipped", nothing) | tests.get("xfailed", nothing)) - failed
    passed = tests.get("passed", nothing) - failed - skipped
    tally = {"passed": len(passed), "failed": len(failed), "skipped": len(skipped)}
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(tally) + "\n")


@pytest.fixture(scope="session", autouse=True)
def _left_tasks() -> Iterator[list[str]]:
    """Every task that was still pending when `asyncio.run`, or a runner, closed its loop."""
    left: list[str] = []
    close = asyncio.Runner.close

    def watched_close(self: asyncio.Runner) -> None:
        with contextlib.suppress(RuntimeError):  # closed before
            left.extend(repr(task) for task in asyncio.all_tasks(self.get_loop()))
        close(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.Runner, "close", watched_close)
        yield left


class _Keep(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def asyncio_complaints() -> Iterator[list[str]]:
    """What asyncio logged as an error so far; a test that provokes such a thing on purpose clears the list."""
    messages: list[str] = []
    handler = _Keep(messages)
    logger = logging.getLogger("asyncio")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture(scope="module", autouse=True)
def _keep_collections_cheap() -> Iterator[None]:
    """What a module has imported and cached stays, and need not be looked at after every later test."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _nothing_left_behind(_left_tasks: list[str], asyncio_complaints: list[str]) -> Iterator[None]:
    _left_tasks.clear()
    yield
    gc.collect()
    assert not _left_tasks, "tasks were still pending when their loop was closed"
    assert not asyncio_complaints, "asyncio had something to complain about"


@pytest.fixture(scope="session")
def run() -> Run:
    """Run a coroutine to its end on a loop of its own and give its result; at most `RUN_LIMIT` seconds.

    `run(main(), loop_factory=uvloop.new_event_loop)` takes another loop than asyncio's.
    """

    async def limited(coroutine: Coroutine[Any, Any, Any]) -> Any:
        async with asyncio.timeout(RUN_LIMIT):
            return await coroutine

    def on_new_loop(coroutine: Coroutine[Any, Any, Any], *, loop_factory: LoopFactory | None = None) -> Any:
        with asyncio.Runner(debug=False, loop_factory=loop_factory) as runner:
            return runner.run(limited(coroutine))

    return on_new_loop
