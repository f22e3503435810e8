"""Comparing all replicas from outside, and mending what differs."""

from __future__ import annotations

import pytest

from dcache.ops import read
from dcache.ops.verify import Report, mend, verify
from dcache.record import Version
from tests.unit.ops_kit import Cluster, drive, v


def cluster(names: str = "abcd") -> Cluster:
    made = Cluster(names)
    for n in range(30):
        for name in made.owners(f"k{n}"):
            made[name].put(f"k{n}", v(n))
    return made


def verified(made: Cluster) -> Report:
    report = drive(verify(made.context()), made)
    assert isinstance(report, Report)
    return report


def test_replicas_that_agree() -> None:
    report = verified(cluster())
    assert report.agree
    assert (report.slots, report.unequal, report.differences) == (16_384, 0, [])
    assert sum(report.entries.values()) == 90
    assert report.incomplete == dict.fromkeys("abcd", 0)


def test_what_is_missing_older_or_strayed_is_named() -> None:
    made = cluster()
    first, second, third = made.owners("k1")
    (stranger,) = set("abcd") - set(made.owners("k1"))
    made[second].put("k1", v(50))
    made[stranger].put("k1", v(1))
    made[made.owners("new")[0]].put("new", v(60))
    report = verified(made)
    assert not report.agree
    by_key = {one.key: one for one in report.differences}
    assert set(by_key[b"k1"].older) == {first, third}
    assert by_key[b"k1"].strays == (stranger,)
    assert len(by_key[b"new"].missing) == 2
    assert report.unequal == 2


def test_an_owner_that_may_have_forgotten_a_key_is_no_trouble() -> None:
    made = cluster()
    (first, *_) = made.owners("k1")
    made[first].evict("k1")
    report = verified(made)
    assert [(one.key, one.forgotten, one.mendable) for one in report.differences] == [(b"k1", (first,), False)]
    assert report.agree


def test_a_node_that_does_not_answer_and_slots_that_are_incomplete_are_told() -> None:
    made = cluster()
    made["a"].down = True
    made["b"].restart()
    report = verified(made)
    assert not report.agree
    assert list(report.silent) == ["a"]
    assert report.incomplete["b"] > 0
    assert report.differences == []


@pytest.mark.parametrize("version", [v(1), v(50)])
def test_mending_brings_all_owners_up_to_date(version: Version) -> None:
    made = cluster()
    _, second, third = made.owners("k1")
    made[second].boot(complete=True)
    for name in (second, third):
        made[name].put("k1", version)
    ctx = made.context()
    report = verified(made)
    drive(mend(ctx, report.differences), made)
    assert {made[name].version("k1") for name in made.owners("k1")} == {version}
    assert drive(read.get(ctx, "k1"), made) == "x"
    assert verified(made).agree


def test_mending_asks_the_nodes_to_see_to_what_is_not_theirs() -> None:
    made = cluster()
    drive(mend(made.context(), []), made)
    assert set(made.asked("repair")) == set("abcd")
