"""Counting replies: whose word counts, what the newest is, when there is enough, and what tells of too little."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcache.errors import (
    ClientClosed,
    ClockSkew,
    ClusterMismatch,
    DcacheError,
    DeadlineExceeded,
    NodeError,
    ProtocolError,
    QuorumError,
    ValueTooLarge,
)
from dcache.ops.effects import Call, CallTimeout, Gather, LeftAlone, Reply, Round
from dcache.ops.quorum import (
    JointQuorum,
    Quorum,
    QuorumRound,
    ReadRound,
    Shortage,
    WriteRound,
    check_ack,
    check_answer,
    check_quorum,
    counts,
    explain_read,
    explain_write,
    judge,
    majority,
    quorum_error,
    quorum_on,
    quorum_size,
)
from dcache.record import ZERO, Record
from dcache.wire import MESSAGES, Code, Status
from tests.unit.ops_kit import FakeLink, v

LINK = FakeLink()
BROKEN = ConnectionError("broken")
A, B, C = (Call(node, "get", ()) for node in "abc")


def held(n: int, *, complete: bool = True, value: bytes = b"x", ttl: int | None = None) -> tuple[Any, ...]:
    return complete, v(n), value, 0, ttl


def absent(floor: int | None = None, *, complete: bool = True, promised: bool = False) -> tuple[Any, ...]:
    return complete, ZERO if floor is None else v(floor), promised


def ack(n: int = 1, status: Status = Status.STORED, *, complete: bool = True) -> tuple[Any, ...]:
    return complete, int(status), v(n)


def newer(n: int, *, complete: bool = True) -> tuple[Any, ...]:
    return ack(n, Status.NEWER, complete=complete)


def replies(*answers: tuple[Any, ...]) -> list[Reply]:
    return [Reply(node, answer, LINK) for node, answer in zip("abcdefg", answers, strict=False)]


def nodes(some: list[Reply]) -> str:
    return "".join(reply.node for reply in some)


def answered(round_: Round, *answers: tuple[Any, ...]) -> Any:
    """The round with its first calls answered."""
    for call, answer in zip(round_.begin(), answers, strict=False):
        round_.replied(call, answer, LINK)
    return round_


def refusal(code: Code) -> NodeError:
    return NodeError(code, MESSAGES[code])


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "expected"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_a_majority_is_more_than_half(n: int, expected: int) -> None:
    assert majority(n) == quorum_size("quorum", n) == expected


@given(st.integers(1, 9))
def test_any_two_majorities_share_a_member(n: int) -> None:
    assert 2 * majority(n) > n


@pytest.mark.parametrize(("spec", "expected"), [("one", 1), ("all", 3), (1, 1), (2, 2), (3, 3), (7, 3)])
def test_a_quorum_is_named_or_a_number_and_at_most_all_owners(spec: int | str, expected: int) -> None:
    assert quorum_size(spec, 3) == expected


@pytest.mark.parametrize("spec", ["one", "quorum", "all", 1, 9])
def test_what_is_a_quorum_passes(spec: int | str) -> None:
    assert check_quorum("read_quorum", spec) == spec


@pytest.mark.parametrize("spec", ["most", "", 0, -1, True, 2.0, None, ["one"]])
def test_what_is_no_quorum_is_refused_by_name(spec: object) -> None:
    with pytest.raises(ValueError, match="read_quorum must be"):
        check_quorum("read_quorum", spec)


# --- the verdict ------------------------------------------------------------------------------------------------------


def test_the_newest_of_what_is_held_is_the_candidate() -> None:
    verdict = judge(replies(held(1), held(3, value=b"new", ttl=9), held(2)))
    assert verdict.record() == Record(b"new", v(3), 9, 0)
    assert (nodes(verdict.holders), nodes(verdict.behind)) == ("b", "ac")
    assert verdict.votes == 3


def test_everybody_with_the_candidate_holds_it() -> None:
    assert nodes(judge(replies(held(2), held(1), held(2))).holders) == "ac"


def test_the_word_of_an_incomplete_owner_does_not_count() -> None:
    verdict = judge(replies(held(9, complete=False), held(1), absent(complete=False)))
    assert verdict.record().version == v(1)
    assert (nodes(verdict.holders), nodes(verdict.behind), len(verdict.heard)) == ("b", "", 1)


def test_an_owner_that_can_have_forgotten_nothing_newer_votes_for_the_candidate() -> None:
    verdict = judge(replies(held(5), absent(4), absent()))
    assert nodes(verdict.behind) == "bc"


@pytest.mark.parametrize("floor", [5, 6])
def test_an_owner_that_may_have_forgotten_something_newer_does_not_vote(floor: int) -> None:
    verdict = judge(replies(held(5), absent(floor)))
    assert verdict.votes == 1
    assert len(verdict.heard) == 2


def test_nothing_held_is_no_candidate() -> None:
    verdict = judge(replies(absent(1), absent(promised=True), absent(promised=True, complete=False)))
    assert verdict.candidate is None
    assert (len(verdict.heard), verdict.votes) == (2, 0)


def test_only_complete_owners_can_promise() -> None:
    verdict = judge(replies(absent(promised=True), absent(), absent(promised=True, complete=False)))
    assert nodes(verdict.promises) == "a"


def test_available_mode_ignores_floors() -> None:
    verdict = judge(replies(held(5), absent(9)), strict=False)
    assert nodes(verdict.behind) == "b"


def test_available_mode_believes_what_an_incomplete_node_holds() -> None:
    verdict = judge(replies(held(5, complete=False)), strict=False)
    assert (verdict.record().version, len(verdict.heard)) == (v(5), 1)


def test_available_mode_does_not_believe_that_an_incomplete_node_holds_nothing() -> None:
    assert judge(replies(absent(complete=False)), strict=False).heard == []


ANSWERS = st.builds(held, st.integers(0, 5), complete=st.booleans()) | st.builds(
    absent, st.none() | st.integers(0, 5), complete=st.booleans()
)


@given(st.lists(ANSWERS, max_size=4), st.booleans())
def test_a_verdict_does_not_depend_on_the_order_of_the_answers(answers: list[tuple[Any, ...]], strict: bool) -> None:
    def told(order: Sequence[Reply]) -> tuple[Any, ...]:
        verdict = judge(order, strict=strict)
        newest = None if verdict.candidate is None else verdict.record().version
        return newest, sorted(nodes(verdict.holders)), sorted(nodes(verdict.behind)), len(verdict.heard)

    first, *others = map(told, itertools.permutations(replies(*answers)))
    assert all(other == first for other in others)


@given(st.lists(ANSWERS, max_size=5))
def test_every_strict_vote_comes_from_an_owner_that_may_have_forgotten_nothing_newer(
    answers: list[tuple[Any, ...]],
) -> None:
    verdict = judge(replies(*answers))
    if verdict.candidate is not None:
        newest = verdict.candidate[1]
        assert all(reply.result[0] and reply.result[1] <= newest for reply in (*verdict.holders, *verdict.behind))
        assert all(len(reply.result) == 5 or reply.result[1] < newest for reply in verdict.behind)


# --- when a read has enough -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "missing"),
    [
        ([], 2),
        ([absent()], 1),
        ([absent(), absent()], 0),
        ([held(1)], 1),
        ([held(1), held(1)], 0),
        ([held(1), absent()], 0),
        ([held(1), absent(1)], 1),
        ([held(1), absent(1), absent(0)], 0),
        ([held(1), held(9, complete=False)], 1),
    ],
)
def test_a_read_misses_answers_until_enough_are_heard_and_vote(answers: list[tuple[Any, ...]], missing: int) -> None:
    round_ = answered(ReadRound([A, B, C], [], Quorum(2), Quorum(2), True), *answers)
    assert round_.missing() == missing


def test_a_read_asks_another_owner_where_one_refuses_by_its_floor() -> None:
    round_ = ReadRound([A, B], [C], Quorum(2), Quorum(2), True)
    round_.begin()
    round_.replied(A, held(5), LINK)
    assert round_.replied(B, absent(7), LINK) == [C]
    assert not round_.over()
    assert not round_.replied(C, held(5), LINK)
    assert round_.over()
    assert round_.verdict().votes == 2


def test_a_read_without_a_hold_is_over_with_the_first_answer() -> None:
    round_ = answered(ReadRound([A], [B], Quorum(1), Quorum(0), False), absent(9))
    assert round_.over()
    assert round_.verdict().candidate is None


def test_a_verdict_follows_the_connections_that_die_and_the_replies_that_come() -> None:
    round_, link = ReadRound([A, B], [C], Quorum(2), Quorum(2), True), FakeLink()
    round_.begin()
    round_.replied(A, held(9), link)
    assert round_.verdict().record().version == v(9)
    link.alive = False
    round_.replied(B, absent(), LINK)
    assert round_.verdict().candidate is None
    assert round_.verdict() is round_.verdict(), "weighed once"


# --- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [held(1), held(1, ttl=3), absent(), absent(3, promised=True)])
def test_answers_about_a_key_have_one_of_two_forms(answer: object) -> None:
    check_answer(answer)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"",
        (),
        [True, v(1), False],
        (True, "text", False),
        (True, v(1)),
        (True, v(1), b"x", 0),
        (True, v(1), "x", 0, None),
        (True, v(1), b"x", None, None),
        (True, None, b"x", 0, None),
    ],
)
def test_anything_else_is_a_broken_protocol(answer: object) -> None:
    with pytest.raises(ProtocolError):
        check_answer(answer)
    round_ = ReadRound([A], [B], Quorum(1), Quorum(1), True)
    round_.begin()
    assert round_.replied(A, answer, LINK) == [B]


@pytest.mark.parametrize("answer", [None, (), (True, 0), [True, 0, v(1)], (True, 0, None), (True, 0, "text")])
def test_an_acknowledgement_without_its_form_is_a_broken_protocol(answer: object) -> None:
    with pytest.raises(ProtocolError):
        check_ack(answer)
    round_ = WriteRound([A], Quorum(1))
    round_.begin()
    round_.replied(A, answer, LINK)
    assert round_.got() == []
    assert round_.in_doubt(), "the node got the write, whatever it made of it"


def test_acknowledgements_may_say_more() -> None:
    check_ack((*ack(), True, "more"))


# --- when a write has enough ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "overtaken", "expected"),
    [
        (ack(), False, True),
        (ack(), True, True),
        (newer(9), False, False),
        (newer(9), True, True),
        (ack(complete=False), False, False),
        (ack(complete=False), True, False),
        (newer(9, complete=False), True, False),
    ],
)
def test_what_counts_as_an_acknowledgement(answer: tuple[Any, ...], overtaken: bool, expected: bool) -> None:
    assert counts(answer, overtaken=overtaken) is expected
    round_ = answered(WriteRound([A], Quorum(1), overtaken=overtaken), answer)
    assert (len(round_.got()), round_.missing()) == ((1, 0) if expected else (0, 1))


def test_those_that_hold_it_already_count_while_their_connection_is_alive() -> None:
    link = FakeLink()
    round_ = WriteRound([B], Quorum(2), already=[Reply("a", held(1), link)])
    answered(round_, ack())
    assert round_.over()
    link.alive = False
    assert len(round_.got()) == 1


def test_the_highest_version_in_the_way_is_told_whoever_said_it() -> None:
    round_ = answered(WriteRound([A, B, C], Quorum(3)), newer(4), newer(8, complete=False), ack(9))
    assert round_.highest_newer() == v(8)
    assert answered(WriteRound([A], Quorum(1)), ack()).highest_newer() is None


def test_a_write_that_meets_something_newer_waits_until_a_majority_has_said_how_high_it_is() -> None:
    round_ = answered(WriteRound([A, B, C], Quorum(3), hear=Quorum(2)), newer(4))
    assert not round_.over()
    round_.replied(B, ack(), LINK)
    assert (len(round_.heard()), round_.over()) == (2, True)


def test_a_write_does_not_wait_for_a_majority_that_cannot_be_had() -> None:
    round_ = answered(WriteRound([A, B, C], Quorum(3), hear=Quorum(2)), newer(4, complete=False))
    round_.failed(B, BROKEN, sent=False)
    assert (len(round_.heard()), round_.over()) == (0, True)


def test_a_write_without_anything_newer_in_its_way_does_not_wait() -> None:
    round_ = WriteRound([A, B, C], Quorum(3), hear=Quorum(2))
    round_.begin()
    round_.failed(A, BROKEN, sent=False)
    assert round_.over()


def test_answers_whose_connection_broke_are_not_heard() -> None:
    round_, link = WriteRound([A, B, C], Quorum(3), hear=Quorum(2)), FakeLink()
    round_.begin()
    round_.replied(A, newer(4), link)
    link.alive = False
    assert round_.heard() == []


# --- in doubt ---------------------------------------------------------------------------------------------------------


def failed(*failures: tuple[Exception, bool]) -> WriteRound:
    round_ = WriteRound([A, B, C], Quorum(2))
    for call, (error, sent) in zip(round_.begin(), failures, strict=False):
        round_.failed(call, error, sent)
    return round_


def test_a_write_that_every_owner_refused_is_not_in_doubt() -> None:
    assert not failed(*[(refusal(Code.VALUE_TOO_LARGE), True)] * 3).in_doubt()
    assert not answered(WriteRound([A, B], Quorum(2)), newer(9), newer(9)).in_doubt()


@pytest.mark.parametrize("code", [code for code in Code if code != Code.INTERNAL])
def test_every_refusal_means_that_nothing_was_done(code: Code) -> None:
    assert not failed(*[(refusal(code), True)] * 3).in_doubt()


def test_an_internal_error_says_nothing_of_what_was_done() -> None:
    assert failed((refusal(Code.INTERNAL), True), (BROKEN, False), (BROKEN, False)).in_doubt()


def test_a_write_that_was_sent_to_nobody_is_not_in_doubt() -> None:
    assert not failed(*[(BROKEN, False)] * 3).in_doubt()


def test_a_write_whose_fate_at_one_owner_is_unknown_is_in_doubt() -> None:
    assert failed((refusal(Code.OVERLOADED), True), (BROKEN, True), (BROKEN, False)).in_doubt()


def test_a_write_that_one_owner_stored_is_in_doubt_even_if_incomplete_or_gone() -> None:
    assert answered(WriteRound([A], Quorum(2)), ack()).in_doubt()
    assert answered(WriteRound([A], Quorum(2)), ack(complete=False)).in_doubt()


def test_a_write_that_was_not_waited_for_is_in_doubt() -> None:
    round_ = failed((BROKEN, False), (BROKEN, False))
    assert round_.over()
    assert round_.in_doubt()


def test_a_write_that_ran_out_of_time_is_in_doubt() -> None:
    round_ = WriteRound([A], Quorum(1))
    round_.begin()
    round_.expire()
    assert round_.in_doubt()


# --- the error --------------------------------------------------------------------------------------------------------


def error_of(round_: Round, *, in_doubt: bool = False) -> DcacheError:
    explain = explain_read if isinstance(round_, ReadRound) else explain_write
    return quorum_error("read", round_, Shortage(2, 1), in_doubt=in_doubt, explain=explain)


def gather_failures(*errors: Exception) -> Gather:
    round_ = Gather([A, B, C])
    for call, error in zip(round_.begin(), errors, strict=False):
        round_.failed(call, error, False)
    return round_


def test_the_error_tells_needed_got_reasons_and_doubt() -> None:
    error = error_of(gather_failures(BROKEN, OSError(), refusal(Code.WRONG_RING)), in_doubt=True)
    assert type(error) is QuorumError
    assert (error.needed, error.got, error.in_doubt) == (2, 1, True)
    assert error.reasons == {"a": "broken", "b": "OSError", "c": "wrong ring (code 5)"}


@pytest.mark.parametrize("late", [CallTimeout("no answer in time"), TimeoutError("no connection")])
def test_an_error_for_want_of_time_is_a_deadline_exceeded(late: Exception) -> None:
    assert type(error_of(gather_failures(BROKEN, BROKEN, late))) is DeadlineExceeded


def test_a_round_that_expired_with_nothing_pending_is_a_deadline_exceeded_too() -> None:
    round_ = gather_failures(BROKEN, BROKEN, BROKEN)
    round_.expire()
    assert isinstance(error_of(round_), DeadlineExceeded)


def test_an_expired_round_is_a_deadline_exceeded_even_if_all_else_failed_before() -> None:
    round_ = gather_failures(BROKEN)
    round_.expire()
    error = error_of(round_)
    assert isinstance(error, DeadlineExceeded)
    assert error.reasons["b"] == "no answer in time"


@pytest.mark.parametrize("kind", [ClockSkew, ClusterMismatch, ClientClosed])
def test_what_every_failure_says_is_the_error(kind: type[DcacheError]) -> None:
    told = [kind(f"of {node}") for node in "abc"]
    assert error_of(gather_failures(*told)) is told[0]


@pytest.mark.parametrize("kind", [ClockSkew, ClusterMismatch])
def test_what_only_some_failures_say_is_a_reason(kind: type[DcacheError]) -> None:
    error = error_of(gather_failures(kind("told"), BROKEN))
    assert isinstance(error, QuorumError)
    assert error.reasons["a"] == "told"


def test_a_value_that_every_node_finds_too_large_is_told_with_both_sizes() -> None:
    told = NodeError(Code.VALUE_TOO_LARGE, "value too large", (200, 100))
    error = error_of(gather_failures(told, told, told))
    assert isinstance(error, ValueTooLarge)
    assert (error.size, error.limit) == (200, 100)


@pytest.mark.parametrize(("ahead", "told"), [(3_600_000, r"\+3600 s"), (-90_000, "-90 s")])
def test_a_version_that_every_node_finds_too_far_ahead_is_a_clock_skew(ahead: int, told: str) -> None:
    refused = NodeError(Code.CLOCK_SKEW, "clock skew", (5_000_000 + ahead, 5_000_000))
    error = error_of(gather_failures(refused, refused, refused))
    assert isinstance(error, ClockSkew)
    with pytest.raises(ClockSkew, match=told):
        raise error


@pytest.mark.parametrize("code", [Code.VALUE_TOO_LARGE, Code.CLOCK_SKEW])
@pytest.mark.parametrize("detail", [None, (1,), ("200", "100"), b"xx"])
def test_a_refusal_without_its_numbers_is_only_a_reason(code: Code, detail: object) -> None:
    error = error_of(gather_failures(NodeError(code, MESSAGES[code], detail)))
    assert type(error) is QuorumError
    assert MESSAGES[code] in error.reasons["a"]


def test_a_reply_beside_such_failures_makes_it_a_quorum_error() -> None:
    round_ = ReadRound([A, B, C], [], Quorum(3), Quorum(2), True)
    round_.begin()
    round_.replied(A, absent(), LINK)
    round_.failed(B, ClockSkew("told"), sent=False)
    assert isinstance(error_of(round_), QuorumError)


def test_no_failure_at_all_is_a_quorum_error_too() -> None:
    assert (
        type(error_of(answered(ReadRound([A], [], Quorum(2), Quorum(2), True), absent(complete=False)))) is QuorumError
    )


def test_the_reasons_name_incomplete_owners_broken_links_and_who_was_not_waited_for() -> None:
    gone = FakeLink(alive=False)
    round_ = ReadRound([A, B, C], [Call("d", "get", ())], Quorum(4), Quorum(2), True)
    round_.begin()
    round_.replied(A, absent(complete=False), LINK)
    round_.replied(B, absent(), gone)
    error = error_of(round_)
    assert isinstance(error, QuorumError)
    assert error.reasons == {
        "a": "has not completed this slot since it started, so its answer does not count",
        "b": "answered, then broke off",
        "c": "not waited for: too few others were left",
        "d": "not waited for: too few others were left",
    }


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ack(), None),
        (newer(9), "has something newer"),
        (ack(complete=False), "has not completed this slot since it started, so its acknowledgement does not count"),
    ],
)
def test_what_is_said_of_an_answer_to_a_write(answer: tuple[Any, ...], reason: str | None) -> None:
    assert explain_write(Reply("a", answer, LINK)) == reason


def test_nothing_is_said_of_a_complete_answer_to_a_read() -> None:
    assert explain_read(Reply("a", absent(), LINK)) is None


def test_nodes_that_were_left_alone_do_not_hide_what_the_others_said() -> None:
    round_ = WriteRound([Call(node, "set", ()) for node in "abc"], Quorum(2))
    for call, error in zip(round_.begin(), (LeftAlone("b broke"), ClockSkew("an hour off")), strict=False):
        round_.failed(call, error, sent=False)
    with pytest.raises(ClockSkew):
        raise quorum_error("set", round_, Shortage(2, 0), in_doubt=False, explain=explain_write)


# --- quorums on two rings ---------------------------------------------------------------------------------------------

NODES = st.frozensets(st.sampled_from("abcdefg"))
RINGS = st.tuples(*[st.tuples(NODES.filter(len), st.integers(0, 4))] * 2)


def calls_to(names: str | frozenset[str]) -> list[Call]:
    return [Call(name, "get", ()) for name in sorted(names)]


def names(*some: Sequence[Call | Reply]) -> frozenset[str]:
    return frozenset(each.node for group in some for each in group)


def short(rings: Any, some: frozenset[str]) -> int:
    """How many more nodes would have to be had on the first ring and on the second, counted one by one."""
    return sum(max(0, size - sum(name in members for name in some)) for members, size in rings)


@given(RINGS, NODES, NODES)
def test_what_is_lacking_is_the_sum_of_what_each_ring_lacks(rings: Any, some: frozenset[str], more: Any) -> None:
    quorum = quorum_on(rings)
    if isinstance(quorum, JointQuorum):
        assert quorum.lacking(calls_to(some), calls_to(more)) == short(rings, some | more)
        assert quorum.met(calls_to(some)) == (short(rings, some) == 0)
    else:
        assert rings[0] == rings[1]


@given(RINGS, NODES)
def test_a_quorum_is_met_when_each_ring_has_as_many_as_it_needs(rings: Any, some: frozenset[str]) -> None:
    quorum = JointQuorum(sum(size for _, size in rings), rings)
    met = all(
        any(some.issuperset(chosen) for chosen in itertools.combinations(sorted(members), size))
        for members, size in rings
    )
    assert quorum.met(calls_to(some)) is met


@given(RINGS, st.permutations("abcdefg"))
def test_the_first_calls_of_a_read_are_as_few_as_may_be_enough(rings: Any, order: list[str]) -> None:
    calls = [Call(name, "get", ()) for name in order]
    quorum = JointQuorum(0, rings)
    first, spares = quorum.split(calls)
    assert [*first, *spares] == calls
    assert quorum.met(first) or not spares
    assert not first or not quorum.met(first[:-1])


@given(RINGS, st.permutations("abcdefg"), st.lists(st.integers(0, 5), max_size=12))
def test_a_round_on_two_rings_does_what_counting_all_that_may_still_come_says(
    rings: Any, order: list[str], events: list[int]
) -> None:
    """Of the events half are replies, half failures."""
    quorum = JointQuorum(0, rings)
    first, spares = quorum.split([Call(name, "set", ()) for name in order])
    round_ = WriteRound(first, quorum, spares=spares)
    round_.begin()
    for event in events:
        if round_.over():
            break
        call = round_.pending[event % len(round_.pending)]
        more = round_.replied(call, ack(), LINK) if event % 2 else round_.failed(call, BROKEN, sent=False)
        expected = names(round_.replies, round_.pending) - names(more)
        for spare in more:
            assert short(rings, expected | {spare.node}) < short(rings, expected), "a spare that helps nobody"
            expected |= {spare.node}
    enough = short(rings, names(round_.replies)) == 0
    hopeless = short(rings, names(round_.replies, round_.pending, round_.spares)) > 0
    assert round_.over() == (enough or hopeless)
    if not round_.over():
        assert short(rings, names(round_.replies, round_.pending)) == 0, "spares are kept back that are needed"


def test_the_shortage_told_is_that_of_the_ring_that_lacks_more() -> None:
    quorum = quorum_on([(frozenset("abc"), 2), (frozenset("abd"), 2)])
    assert quorum.shortage(calls_to("ac")) == Shortage(2, 1, " on the next ring")
    assert quorum.shortage(calls_to("ad")) == Shortage(2, 1, " on the old ring")
    assert Quorum(2).shortage(calls_to("a")) == Shortage(2, 1)


def test_the_same_quorum_on_both_rings_is_a_single_one() -> None:
    assert quorum_on([(frozenset("abc"), 2), (frozenset("abc"), 2)]) == Quorum(2)
    assert quorum_on([(frozenset("ab"), 2)]) == Quorum(2)


def test_a_spare_of_the_ring_that_has_enough_is_passed_over() -> None:
    quorum = quorum_on([(frozenset("abc"), 2), (frozenset("ade"), 2)])
    round_ = ReadRound(calls_to("abd"), calls_to("ce"), quorum, quorum, True)
    round_.begin()
    assert round_.failed(Call("d", "get", ()), BROKEN, sent=False) == calls_to("e")
    assert round_.spares == calls_to("c")


def test_a_quorum_round_must_say_what_it_wants() -> None:
    with pytest.raises(NotImplementedError):
        QuorumRound([A]).wanted()
