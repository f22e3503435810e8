"""The checker against all orders tried one by one, and against a register that keeps its promise, or does not."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations, count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcache.testing.checker import check_available, check_linearizable, check_strict
from dcache.testing.history import CHANGES, Call, Op, Violation
from dcache.testing.rules.order import Group, contradictions
from tests.unit.history_kit import DOUBT, OK, Register, add, call, delete, incr, read, replace, set_, touch

Seeds = st.integers(0, 1 << 32)

# -- every order ------------------------------------------------------------------------------------------------------


def possible(history: Sequence[Call]) -> bool:
    """Whether some order of the calls explains all that was seen; tries them all.

    The register may forget, so misses and failed calls explain themselves, and an `add` succeeds at any time.
    """
    seen = {one.value for one in history if one.op is Op.READ and one.outcome is OK}
    calls = [one for one in history if one.outcome is OK or (one.outcome is DOUBT and one.value in seen)]

    @cache
    def explained(left: frozenset[int], held: str | None) -> bool:
        certain = [calls[index].end for index in left if calls[index].outcome is OK]
        if not certain:
            return True
        return any(
            explained(left - {index}, _after(calls[index], held))
            for index in left
            if calls[index].start <= min(certain) and _agrees(calls[index], held)  # else another one was over before
        )

    return explained(frozenset(range(len(calls))), None)


def _agrees(one: Call, held: str | None) -> bool:
    if one.op is Op.READ:
        return one.value == held
    return held is not None or one.op not in (Op.REPLACE, Op.TOUCH) or one.outcome is DOUBT


def _after(one: Call, held: str | None) -> str | None:
    return one.value if one.op in CHANGES else held


@st.composite
def histories(draw: st.DrawFn, kinds: Sequence[str] = ("set", "delete", "read", "read"), most: int = 9) -> list[Call]:
    """Calls of one key at different instants: changes, some in doubt, and reads of any value."""
    size = draw(st.integers(1, most))
    instants = iter(draw(st.permutations(range(2 * size))))
    makers = {"set": set_, "add": add, "replace": replace}
    ids, made, reads = count(), list[Call](), list[tuple[int, int]]()
    for _ in range(size):
        start, end = sorted((next(instants), next(instants)))
        outcome, kind = draw(st.sampled_from([OK, OK, DOUBT])), draw(st.sampled_from(kinds))
        if kind == "read":
            reads.append((start, end))
        elif kind in makers:
            made.append(makers[kind](start, end, f"v{next(ids)}", outcome))
        else:
            made.append({"delete": delete, "touch": touch}[kind](start, end, outcome))
    values = [one.value for one in made if one.value is not None]
    answers = [read(start, end, draw(st.sampled_from([None, *values, *values]))) for start, end in reads]
    return [*made, *answers]


@settings(max_examples=1000)
@given(histories())
def test_the_verdict_is_that_of_trying_every_order(history: list[Call]) -> None:
    assert (not check_linearizable(history)) == possible(history)


@settings(max_examples=30)
@given(Seeds)
def test_so_it_is_for_very_many_small_histories(seed: int) -> None:
    for history in map(small, [random.Random(seed)] * 300):
        assert (not check_linearizable(history)) == possible(history)


def small(rng: random.Random) -> list[Call]:
    """Two or three writes and as many reads, all of which find something."""
    writes, reads = rng.randint(2, 3), rng.randint(2, 3)
    instants = iter(rng.sample(range(100), 2 * (writes + reads)))
    times = [sorted((next(instants), next(instants))) for _ in range(writes + reads)]
    made = [set_(*times.pop(), f"v{number}", rng.choice([OK, DOUBT])) for number in range(writes)]
    return [*made, *(read(*time, rng.choice(made).value) for time in times)]


@settings(max_examples=500)
@given(histories(["set", "delete", "add", "replace", "touch", "read", "read"], most=7))
def test_with_conditional_changes_too_only_what_no_order_explains_is_wrong(history: list[Call]) -> None:
    assert not check_linearizable(history) or not possible(history)


@settings(max_examples=500)
@given(histories())
def test_what_is_wrong_under_any_clocks_is_wrong_under_one(history: list[Call]) -> None:
    assert check_linearizable(history) or not check_strict(history)
    assert check_strict(history) or not check_available(history)


def test_the_histories_tried_are_both_right_and_wrong() -> None:
    verdicts = []

    @settings(max_examples=600)  # enough by far, whatever they are derived from
    @given(histories())
    def collect(history: list[Call]) -> None:
        hits = [one for one in history if one.op is Op.READ and one.value is not None]
        doubted = {one.value for one in history if one.outcome is DOUBT}
        verdicts.append((possible(history), len(hits) > 1, any(hit.value in doubted for hit in hits)))

    collect()
    assert {(True, True, True), (False, True, True), (True, True, False), (False, True, False)} <= set(verdicts)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=12))
def test_a_group_contradicts_another_if_and_only_if_some_pair_says_so(edges: list[tuple[int, int]]) -> None:
    groups = [Group([], first_end, last_start) for first_end, last_start in edges]
    found = list(contradictions(groups))
    assert bool(found) == any(contradict(one, other) for one, other in combinations(groups, 2))
    assert all(contradict(one, other) for one, other in found)
    told = [id(other) for _, other in found]
    assert len(set(told)) == len(told)
    assert all({id(one), id(other)} & set(told) for one, other in combinations(groups, 2) if contradict(one, other))


def contradict(one: Group, other: Group) -> bool:
    return one.first_end < other.last_start and other.first_end < one.last_start


# -- a register that keeps its promise --------------------------------------------------------------------------------

PLAIN = ("set", "set", "delete", "doubt", "get", "get", "gets", "forget")
ALL = (*PLAIN, "gets", "add", "replace", "cas", "cas", "touch", "load", "load")


def calls_of(seed: int, kinds: Sequence[str], *, skewed: bool, broken: str = "", number: int = 60) -> list[Call]:
    rng = random.Random(seed)
    return Register(rng, skewed=skewed, broken=broken).run(rng.choices(kinds, k=number))


@settings(max_examples=300)
@given(Seeds, st.sampled_from([PLAIN, ALL]))
def test_no_false_alarm_where_clocks_agree(seed: int, kinds: Sequence[str]) -> None:
    assert check_linearizable(calls_of(seed, kinds, skewed=False)) == []


@settings(max_examples=300)
@given(Seeds, st.sampled_from([PLAIN, ALL]))
def test_no_false_alarm_where_they_do_not(seed: int, kinds: Sequence[str]) -> None:
    assert check_strict(calls_of(seed, kinds, skewed=True)) == []


def test_where_they_do_not_a_write_may_be_seen_twice() -> None:
    assert any(check_linearizable(calls_of(seed, PLAIN, skewed=True)) for seed in range(100))


FAULTS = {
    "stale reads, with versions": ("stale reads", ("set", "gets", "gets"), "an older version after a newer one"),
    "stale reads, without": ("stale reads", ("set", "get", "get"), "an older version after a newer one"),
    "deleted values": ("stale reads", ("add", "delete", "get", "get"), "a value that was overwritten"),
    "mixed up versions": ("mixed up versions", ("set", "gets", "gets"), "two values of one version"),
    "invented values": ("invented values", ("set", "get", "get"), "a value that was never written"),
    "cas of any version": ("undecided changes", ("set", "gets", "cas", "cas"), "an older version after a newer one"),
    "two cas of one version": ("undecided changes", ("set", "cas", "cas"), "a version that was replaced twice"),
    "replaced nothing": ("undecided changes", ("add", "delete", "replace"), "a change of something that was not there"),
    "touched nothing": ("undecided changes", ("set", "delete", "touch"), "a change of something that was not there"),
    "changes made twice": ("changes made twice", ("add", "delete", "gets", "gets"), "a change that was made twice"),
    "unclaimed fills": ("unclaimed fills", ("load", "delete", "get"), "a fill that outlived a change of its key"),
    "computations": ("scattered computations", ("load", "load", "get"), "two computations at once"),
}


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize("name", FAULTS)
def test_a_register_that_breaks_its_promise_is_found_out(name: str, skewed: bool) -> None:
    broken, kinds, rule = FAULTS[name]
    found = {
        violation.rule
        for seed in range(30)
        for violation in check_strict(calls_of(seed, kinds, skewed=skewed, broken=broken))
    }
    assert rule in found


@pytest.mark.parametrize("kinds", [("set", "doubt", "get", "get"), ("set", "delete", "get", "get")])
def test_stale_reads_are_found_by_their_order_alone(kinds: Sequence[str]) -> None:
    histories = [calls_of(seed, kinds, skewed=False, broken="stale reads") for seed in range(10)]
    unversioned = [[call(one.op, one.start, one.end, one.value, one.outcome) for one in calls] for calls in histories]
    assert any("an older value after a newer one" in rules(check_linearizable, calls) for calls in unversioned)


def rules(judge: Callable[[Sequence[Call]], list[Violation]], history: Sequence[Call]) -> set[str]:
    return {violation.rule for violation in judge(history)}


@given(Seeds, st.integers(1000, 2000))
def test_a_stale_read_is_found_in_a_long_history(seed: int, at: int) -> None:
    """Two writes one after the other somewhere, and at the end a read of the first."""
    wrong = [set_(at, at + 1, "old"), set_(at + 2, at + 3, "new"), read(at + 4, at + 5, "old")]
    history = [*calls_of(seed, PLAIN, skewed=False), *wrong]
    assert rules(check_linearizable, history) == {"an older value after a newer one"}
    assert rules(check_strict, history) == {"a value that was overwritten"}


@given(st.permutations(range(1, 9)), st.integers(0, 7))
def test_numbers_in_any_order_of_calls_at_the_same_time_are_right(numbers: list[int], repeated: int) -> None:
    calls = [incr(0, 100 + index, f"0+{number}", str(index)) for index, number in enumerate(numbers)]
    assert rules(check_linearizable, calls) == set()
    calls.append(incr(0, 100, f"0+{numbers[repeated]}", "again"))
    assert rules(check_linearizable, calls) == {"a number that was given twice"}
