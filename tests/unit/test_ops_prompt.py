"""Reads that are over when those first asked agree: who is asked, and that this is what the rules call a verdict."""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.membership import Health
from dcache.ops import prompt, prompt_many
from dcache.ops.effects import Reply
from dcache.ops.quorum import judge
from tests.unit.ops_kit import Cluster, FakeLink, v

versions = st.integers(1, 2).map(v)
held = st.tuples(st.booleans(), versions, st.sampled_from([b"x", b"y"]), st.just(0), st.sampled_from([None, 5]))
absent = st.tuples(st.booleans(), versions, st.booleans())


@given(st.lists(held | absent, min_size=1, max_size=3), st.booleans())
def test_what_answers_agree_on_is_what_the_rules_find_with_all_of_them_for_it(
    answers: list[tuple[Any, ...]], strict: bool
) -> None:
    by_version = {answer[1]: answer[2] for answer in answers if len(answer) == 5}
    answers = [(*a[:2], by_version[a[1]], *a[3:]) if len(a) == 5 else a for a in answers]  # a version has one value
    found = prompt.agreed(answers)
    verdict = judge([Reply(str(n), answer, FakeLink()) for n, answer in enumerate(answers)], strict=strict)
    if found is None:
        return
    assert len(verdict.heard) == len(answers)
    if len(found) == 5:
        assert verdict.candidate is not None
        assert verdict.candidate[1:4] == found[1:4]
        assert len(verdict.holders) == len(answers)
    else:
        assert verdict.candidate is None


@pytest.mark.parametrize("length", [1, 2, 3])
def test_equal_answers_of_complete_owners_agree(length: int) -> None:
    assert prompt.agreed([(True, v(1), b"x", 0, None)] * length) is not None
    assert prompt.agreed([(True, v(1), False)] * length) is not None


@pytest.mark.parametrize(
    "answers",
    [
        [None],
        [()],
        [(True,)],
        [(1, v(1), b"x", 0, None)],
        [(True, v(1), "x", 0, None)],
        [(True, "v", b"x", 0, None)],
        [(True, v(1), b"x", "0", None)],
        [(True, None, False)],
        [(True, v(1), False), (True, None, False)],
        [(True, v(1), b"x", 0, None), (True, v(1), False)],
        [(True, v(1), b"x", 0, None), None],
        [(5, "refused", None)],
    ],
)
def test_what_is_no_answer_or_differs_is_never_agreed_on(answers: list[Any]) -> None:
    assert prompt.agreed(answers) is None


@pytest.mark.parametrize("answer", [(False, v(1), b"x", 0, None), (False, v(1), False)])
def test_what_an_incomplete_owner_answers_is_never_agreed_on(answer: tuple[Any, ...]) -> None:
    complete = (True, *answer[1:])
    assert prompt.agreed([complete, complete]) is not None
    for answers in ([answer], [answer, answer], [complete, answer], [answer, complete]):
        assert prompt.agreed(answers) is None


# --- who is asked -----------------------------------------------------------------------------------------------------


def test_owners_take_turns_and_as_many_are_asked_as_a_read_needs() -> None:
    nodes = Cluster()
    ctx = nodes.context()
    ways = [prompt.targets(ctx, b"k", 0.0) for _ in range(6)]
    assert all(way is not None and len(way) == 2 for way in ways)
    assert Counter(node for way in ways for node in way or ()) == dict.fromkeys(nodes.owners("k"), 4)


def test_only_owners_are_asked() -> None:
    nodes = Cluster(tuple("abcdefgh"))
    ctx = nodes.context()
    for key in (b"k", b"l", b"m"):
        for _ in range(3):
            assert set(prompt.targets(ctx, key, 0.0) or ()) < set(nodes.owners(key.decode()))


def test_a_node_in_trouble_is_not_asked_and_with_too_few_others_none_is() -> None:
    nodes = Cluster()
    ctx = nodes.context()
    x, y, z = nodes.owners("k")
    ctx.shared.backoff.failed(x, "away", 0.0)
    assert [set(prompt.targets(ctx, b"k", 0.0) or ()) for _ in range(4)] == [{y, z}] * 4
    ctx.shared.backoff.slow(y, 0.0)
    assert prompt.targets(ctx, b"k", 0.0) is None


def test_a_node_that_was_slow_is_asked_again_after_a_while() -> None:
    nodes = Cluster()
    ctx = nodes.context(read_quorum="all")
    ctx.shared.backoff.slow(nodes.owners("k")[0], 0.0)
    assert prompt.targets(ctx, b"k", 0.0) is None
    assert prompt.targets(ctx, b"k", 60.0) is not None


def test_nobody_is_asked_promptly_while_the_ring_changes() -> None:
    nodes = Cluster()
    nodes.begin("abcd")
    assert prompt.targets(nodes.context(), b"k", 0.0) is None


def test_where_one_copy_is_enough_the_first_owner_is_asked_and_no_other() -> None:
    nodes = Cluster()
    ctx = nodes.context(read_quorum="one", write_quorum="one")
    assert {prompt.targets(ctx, b"k", 0.0) for _ in range(4)} == {(nodes.owners("k")[0],)}


# --- many keys --------------------------------------------------------------------------------------------------------


@given(st.sets(st.binary(min_size=1, max_size=4), max_size=30), st.sampled_from(["abc", "abcde"]))
def test_every_key_is_asked_of_as_many_of_its_owners_as_a_read_needs(keys: set[bytes], names: str) -> None:
    nodes = Cluster(tuple(names))
    asked, others = prompt_many.plan(nodes.context(), sorted(keys), 0.0)
    assert not others
    for key in keys:
        nodes_asked = {node for node, theirs in asked.items() if key in theirs}
        assert len(nodes_asked) == 2
        assert nodes_asked <= set(nodes.context().owners(key))


def test_keys_whose_owners_are_in_trouble_are_left_to_the_operations() -> None:
    nodes = Cluster()
    ctx = nodes.context(read_quorum="all")
    ctx.shared.backoff.failed(nodes.owners("k")[0], "away", 0.0)
    assert prompt_many.plan(ctx, [b"k"], 0.0) == ({}, [b"k"])


def test_a_member_that_is_said_to_be_down_is_not_asked() -> None:
    nodes = Cluster()
    x, y, z = nodes.owners("k")
    rows = nodes.table.members
    nodes.learn(attrs.evolve(nodes.table, members={**rows, x: attrs.evolve(rows[x], health=Health.DOWN)}))
    ctx = nodes.context()
    assert [set(prompt.targets(ctx, b"k", 0.0) or ()) for _ in range(4)] == [{y, z}] * 4
    assert set(prompt_many.plan(ctx, [b"k"], 0.0)[0]) == {y, z}
    assert prompt.targets(nodes.context(read_quorum="all"), b"k", 0.0) is None


# --- the answers about many keys --------------------------------------------------------------------------------------

X, Y, Z = (True, v(1), b"x", 0, None), (True, v(1), b"y", 0, None), (True, v(1), False)


def test_the_answers_of_one_node_settle_its_keys() -> None:
    assert prompt_many.settle_many({"a": [b"x", b"z"]}, {"a": (X, Z)}) == {b"x": X, b"z": Z}


@pytest.mark.parametrize("asked", [{"a": [b"x", b"y"], "b": [b"x", b"y"]}, {"a": [b"x", b"y"], "b": [b"y", b"x"]}])
def test_keys_are_settled_that_all_who_were_asked_agree_on(asked: prompt.Plan) -> None:
    held: dict[bytes, Any] = {b"x": X, b"y": Y}
    answers = {node: tuple(held[key] for key in keys) for node, keys in asked.items()}
    assert prompt_many.settle_many(asked, answers) == held
    answers["b"] = tuple(Z if key == b"x" else held[key] for key in asked["b"])
    assert prompt_many.settle_many(asked, answers) == {b"y": Y}


@given(st.sets(st.binary(min_size=1, max_size=4), min_size=1, max_size=12), st.data())
def test_keys_that_a_node_did_not_answer_for_are_left_to_the_operations(keys: set[bytes], data: st.DataObject) -> None:
    asked, _ = prompt_many.plan(Cluster(tuple("abcde")).context(), sorted(keys), 0.0)
    told = {node: data.draw(st.integers(0, len(theirs))) for node, theirs in asked.items()}
    answers = {node: (X,) * told[node] for node in asked if told[node]}
    found = prompt_many.settle_many(asked, answers)
    unheard = {key for node, theirs in asked.items() for key in theirs[told[node] :]}
    assert found == dict.fromkeys(keys - unheard, X)


answers_about = held | absent | st.sampled_from([None, (), (5, "refused", None), (1, v(1), b"x", 0, None)])


@given(
    st.integers(1, 3), st.lists(st.lists(answers_about, min_size=3, max_size=3), min_size=1, max_size=6), st.booleans()
)
def test_many_keys_are_settled_as_each_would_be(nodes: int, each: list[list[Any]], alike: bool) -> None:
    each = [[answers[0]] * nodes if alike else answers[:nodes] for answers in each]
    keys = [b"%d" % n for n in range(len(each))]
    told = {name: tuple(answers[n] for answers in each) for n, name in enumerate("abc"[:nodes])}
    wanted = {key: prompt.agreed(answers) for key, answers in zip(keys, each, strict=True)}
    found = prompt_many.settle_many({name: list(keys) for name in told}, told)
    assert {key: answer for key, answer in found.items() if prompt.whole(answer)} == {
        key: answer for key, answer in wanted.items() if answer is not None
    }
    ctx = Cluster().context()
    left = prompt_many.values(ctx, {key: key for key in keys}, found).left
    assert left == [key for key, answer in wanted.items() if answer is None]


def test_of_no_keys_nothing_is_settled() -> None:
    assert prompt_many.settle_many({}, {}) == {}


# --- what an answer means ---------------------------------------------------------------------------------------------


def test_an_answer_is_a_counted_hit_or_miss() -> None:
    ctx = Cluster().context()
    counters = ctx.shared.counters
    data, flags = ctx.options.codec.encode("there")
    assert prompt.value(ctx, (True, v(1), data, flags, None), "default") == "there"
    assert (counters.hits, counters.misses, counters.undecodable) == (1, 0, 0)
    assert prompt.value(ctx, Z, "default") == "default"
    assert (counters.hits, counters.misses, counters.undecodable) == (1, 1, 0)
    assert prompt.value(ctx, (True, v(1), b"\xc1", flags, None), "default") == "default"
    assert (counters.hits, counters.misses, counters.undecodable) == (1, 2, 1)
