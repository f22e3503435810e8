"""What a round of calls does as replies, failures, lateness and the deadline come in."""

from __future__ import annotations

import pytest

from dcache.errors import ProtocolError
from dcache.ops.effects import Call, CallTimeout, Detached, Failure, FirstOf, Gather, Round, Sleep
from tests.unit.ops_kit import FakeLink

A, B, C, D = (Call(node, "get", ()) for node in "abcd")
LINK = FakeLink()
BROKEN = ConnectionError("broken")


class Wanted(Round):
    """Needs so many true results; "nonsense" is not what the method returns."""

    def __init__(self, wanted: int, calls: list[Call], spares: list[Call]) -> None:
        super().__init__(calls, spares)
        self.wanted = wanted

    def missing(self) -> int:
        return self.wanted - sum(bool(reply.result) for reply in self.live())

    def check(self, call: Call, result: object) -> None:
        if result == "nonsense":
            raise ProtocolError("nonsense")


def begun(wanted: int, calls: list[Call], spares: list[Call] | None = None) -> Wanted:
    round_ = Wanted(wanted, calls, spares or [])
    assert round_.begin() == calls
    return round_


def test_a_round_begins_with_its_calls_and_without_its_spares() -> None:
    round_ = begun(2, [A, B], [C])
    assert round_.pending == [A, B]
    assert not round_.over()


def test_a_round_is_over_with_the_last_reply_it_needs() -> None:
    round_ = begun(1, [A, B])
    assert not round_.replied(A, True, LINK)
    assert round_.over()
    assert round_.pending == [B]


def test_a_failed_call_is_replaced_by_a_spare_at_once() -> None:
    round_ = begun(2, [A, B], [C, D])
    assert round_.failed(A, BROKEN, sent=False) == [C]
    assert round_.pending == [B, C]
    assert round_.failures == [Failure("a", BROKEN, False)]


def test_a_reply_that_is_of_no_use_is_replaced_by_a_spare_too() -> None:
    round_ = begun(1, [A], [B])
    assert round_.replied(A, False, LINK) == [B]


def test_no_spare_is_sent_where_the_pending_calls_can_still_bring_enough() -> None:
    round_ = begun(1, [A, B], [C])
    assert not round_.failed(A, BROKEN, sent=False)
    assert round_.pending == [B]


def test_what_a_method_does_not_return_is_a_failure_that_was_sent() -> None:
    round_ = begun(1, [A], [B])
    assert round_.replied(A, "nonsense", LINK) == [B]
    (failure,) = round_.failures
    assert isinstance(failure.error, ProtocolError)
    assert failure.sent
    assert not round_.replies


def test_a_round_without_a_check_takes_any_result() -> None:
    round_ = FirstOf([A])
    round_.begin()
    round_.replied(A, object(), LINK)
    assert round_.over()


def test_slow_calls_are_raced_with_as_many_spares_as_are_missing() -> None:
    round_ = begun(2, [A, B], [C, D])
    round_.replied(A, True, LINK)
    assert round_.late() == [C]
    assert round_.pending == [B, C]
    assert round_.late() == [D]
    assert not round_.late()


def test_the_slow_call_that_answers_after_all_counts() -> None:
    round_ = begun(1, [A], [B])
    round_.late()
    round_.replied(A, True, LINK)
    assert round_.over()


def test_nothing_is_raced_where_nothing_is_missing() -> None:
    round_ = begun(1, [A, B], [C])
    round_.replied(A, True, LINK)
    assert not round_.late()


def test_a_round_that_can_bring_too_little_is_over_before_the_rest_has_answered() -> None:
    round_ = begun(2, [A, B, C])
    round_.failed(A, BROKEN, sent=False)
    assert not round_.over()
    round_.failed(B, BROKEN, sent=False)
    assert round_.over()
    assert round_.pending == [C]


def test_spares_keep_a_round_from_being_hopeless() -> None:
    round_ = begun(2, [A, B], [C])
    round_.failed(A, BROKEN, sent=False)
    assert not round_.over()
    round_.failed(C, BROKEN, sent=False)
    assert round_.over()


def test_at_the_deadline_what_is_pending_has_failed_and_may_have_been_acted_on() -> None:
    round_ = begun(2, [A, B])
    round_.replied(A, True, LINK)
    round_.expire()
    assert round_.expired
    assert round_.over()
    assert not round_.pending
    (failure,) = round_.failures
    assert (failure.node, failure.sent) == ("b", True)
    assert isinstance(failure.error, CallTimeout)


def test_a_reply_is_worth_nothing_once_its_connection_is_gone() -> None:
    round_, link = begun(1, [A], [B]), FakeLink()
    round_.replied(A, True, link)
    assert round_.over()
    link.alive = False
    assert not round_.over()
    assert round_.live() == []
    assert [reply.node for reply in round_.replies] == ["a"]


def test_a_spare_stands_in_for_a_reply_whose_connection_went() -> None:
    round_, link = begun(2, [A, B], [C]), FakeLink()
    round_.replied(A, True, link)
    link.alive = False
    assert round_.replied(B, True, LINK) == [C]


def test_a_round_must_say_what_is_enough() -> None:
    with pytest.raises(NotImplementedError):
        Round([A]).missing()


def test_gather_waits_for_everybody_as_far_as_they_answer() -> None:
    round_ = Gather([A, B])
    round_.begin()
    round_.replied(A, 1, LINK)
    assert not round_.over()
    round_.failed(B, BROKEN, sent=True)
    assert round_.over()


def test_first_of_is_over_with_any_one_answer_and_tries_the_next_after_a_failure() -> None:
    round_ = FirstOf([A], [B])
    round_.begin()
    assert round_.failed(A, BROKEN, sent=False) == [B]
    round_.replied(B, 1, LINK)
    assert round_.over()


def test_first_of_needs_an_answer_whose_connection_is_alive() -> None:
    round_, link = FirstOf([A]), FakeLink()
    round_.begin()
    round_.replied(A, 1, link)
    link.alive = False
    assert round_.missing() == 1


def test_the_other_effects_only_carry_what_is_asked_for() -> None:
    assert Detached([A]).calls == [A]
    assert Sleep(0.5).seconds == 0.5
