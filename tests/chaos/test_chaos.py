"""Clients at work while nodes die, hang, come back, join and leave: nothing that they see breaks the promise.

These are short runs; `nox -s chaos` makes long ones, from fresh seeds.
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import pytest

from dcache.ops.cluster import Holding
from dcache.record import make_version
from dcache.testing.checker import check_linearizable
from dcache.testing.workload import Keys
from tests.chaos.ground import ProxiedCluster, disagreement
from tests.chaos.storm import judge, storm
from tests.chaos.trouble import KINDS
from tests.chaos.workload import TIMEOUT, Crew, named, new_history
from tests.fronts import until

pytestmark = pytest.mark.integration

SECONDS = 25.0


@pytest.mark.timeout(400)  # much more than it takes
@pytest.mark.parametrize(("seed", "kinds"), [(1, ProxiedCluster.kinds), (2, KINDS)], ids=["network", "nodes"])
def test_no_client_sees_the_promise_broken(seed: int, kinds: tuple[str, ...], tmp_path: Path) -> None:
    with ProxiedCluster(4) as cluster:
        verdict = storm(cluster, seed, kinds, len(kinds) + 1, SECONDS, tmp_path)
    judge(verdict)


def test_clients_that_ask_too_few_owners_are_found_out() -> None:
    """So what the run above would find is found: here reads are answered by one owner, and one misses writes."""
    history, few = new_history(), Keys(named("plain", 16), named("loaded", 4), named("counter", 2))
    one = {"read_quorum": "one", "timeout": TIMEOUT}

    def found() -> bool:
        return "an older value after a newer one" in {violation.rule for violation in check_linearizable(history.all())}

    with (
        ProxiedCluster(3) as cluster,
        Crew(history, 1, partial(cluster.client, **one), partial(cluster.async_client, **one), keys=few),
    ):
        until(lambda: len(history.calls) > 500, "calls while all is well")
        cluster.fault(0, "lost", random.Random(1))
        until(lambda: len(history.calls) > 1500, "calls while a node hears nothing")
        cluster.mend(0)
        until(found, "an old value to be read and to be found")


def holding(held: bool, version: int, complete: bool = True) -> Holding:
    return Holding(held, make_version(version, 0, 0), complete=complete)


@pytest.mark.parametrize(
    ("agree", "owners"),
    [
        (True, [holding(True, 5), holding(True, 5), holding(True, 5)]),
        (True, [holding(False, 0), holding(False, 7), holding(False, 9)]),
        (True, [holding(True, 5), holding(True, 5), holding(False, 5)]),
        (False, [holding(True, 5), holding(True, 5), holding(True, 4)]),
        (False, [holding(True, 5), holding(True, 5), holding(False, 4)]),
        (False, [holding(True, 5), holding(False, 5), holding(False, 6)]),
        (False, [holding(True, 5), holding(True, 5), holding(True, 5, complete=False)]),
        (False, [holding(True, 5), holding(True, 5), Holding(error="no answer in time")]),
    ],
)
def test_replicas_agree_if_all_that_can_tell_hold_the_same(agree: bool, owners: list[Holding]) -> None:
    assert (disagreement({str(number): one for number, one in enumerate(owners)}) == "") is agree
