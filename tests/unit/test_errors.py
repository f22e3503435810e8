"""Every error says what happened, is caught by what users expect to catch, and crosses process pools intact."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable

import pytest

from dcache import errors
from dcache.errors import (
    ClientClosed,
    ClockSkew,
    ClusterMismatch,
    DcacheError,
    DeadlineExceeded,
    DecodingError,
    InvalidKey,
    NodeError,
    NoNodesAvailable,
    NotACounter,
    ProtocolError,
    QuorumError,
    SerializationError,
    ValueTooLarge,
)

REASONS = {"node-1": "refused", "node-2": "too slow"}

ONE_OF_EACH: list[DcacheError] = [
    DcacheError("something"),
    InvalidKey("a key has 1 to 1024 bytes, this one has 0"),
    ValueTooLarge(size=2_000_000, limit=1_048_576),
    SerializationError("a socket is not serializable"),
    DecodingError("not a value"),
    NotACounter("a str is no counter"),
    ProtocolError("bad bytes"),
    NodeError(4, "value too large", (10, 5)),
    NoNodesAvailable(REASONS),
    QuorumError("set", needed=2, got=1, reasons=REASONS, in_doubt=True),
    DeadlineExceeded("get", needed=2, got=0, reasons=REASONS, in_doubt=False),
    ClockSkew("an hour off"),
    ClusterMismatch("another cluster"),
    ClientClosed("closed"),
]

PARENTS: dict[type[DcacheError], tuple[type[Exception], ...]] = {
    InvalidKey: (DcacheError, ValueError),
    ValueTooLarge: (DcacheError, ValueError),
    SerializationError: (DcacheError, TypeError),
    DecodingError: (DcacheError, ValueError),
    NotACounter: (DcacheError, TypeError),
    ProtocolError: (DcacheError,),
    NodeError: (DcacheError,),
    NoNodesAvailable: (DcacheError,),
    QuorumError: (DcacheError,),
    DeadlineExceeded: (QuorumError, TimeoutError),
    ClockSkew: (DcacheError,),
    ClusterMismatch: (DcacheError,),
    ClientClosed: (DcacheError,),
    DcacheError: (Exception,),
}

each_error = pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda error: type(error).__name__)


def all_classes() -> set[type]:
    return {each for each in vars(errors).values() if inspect.isclass(each) and issubclass(each, BaseException)}


def test_every_error_class_has_its_cases_here() -> None:
    assert {type(error) for error in ONE_OF_EACH} == set(PARENTS) == all_classes()


@pytest.mark.parametrize(("kind", "parents"), PARENTS.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_the_tree_of_errors(kind: type[DcacheError], parents: tuple[type[Exception], ...]) -> None:
    assert kind.__bases__ == parents


def pickled(protocol: int) -> Callable[[DcacheError], DcacheError]:
    return lambda error: pickle.loads(pickle.dumps(error, protocol))


WAYS = {
    "copied": copy.copy,
    "copied deeply": copy.deepcopy,
    **{f"pickled by protocol {number}": pickled(number) for number in range(pickle.HIGHEST_PROTOCOL + 1)},
}


@each_error
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_an_error_keeps_its_class_message_and_attributes(
    way: Callable[[DcacheError], DcacheError], error: DcacheError
) -> None:
    other = way(error)
    assert other is not error
    assert type(other) is type(error)
    assert (str(other), repr(other), other.args) == (str(error), repr(error), error.args)
    assert vars(other) == vars(error)


def test_notes_and_attributes_added_later_travel_too() -> None:
    error = InvalidKey("empty")
    error.add_note("in the third line")
    error.line = 3  # type: ignore[attr-defined]
    assert vars(pickled(5)(error)) == {"__notes__": ["in the third line"], "line": 3}


class Custom(QuorumError):
    """What a user might derive, with a signature of its own."""

    def __init__(self) -> None:
        super().__init__("custom", needed=3, got=0, reasons={}, in_doubt=False)
        self.extra = [1]


def test_errors_that_users_derive_are_copied_without_calling_their_constructor() -> None:
    error = Custom()
    shallow, deep = copy.copy(error), copy.deepcopy(error)
    assert (str(deep), deep.needed, deep.extra) == (str(error), 3, [1])
    assert shallow.extra is error.extra
    assert deep.extra is not error.extra


@each_error
def test_an_error_says_something(error: DcacheError) -> None:
    assert str(error)
    assert error.args == (str(error),)


def test_a_value_too_large_gives_both_sizes() -> None:
    error = ValueTooLarge(2_000_000, 1_048_576)
    assert (error.size, error.limit) == (2_000_000, 1_048_576)
    assert "2000000" in str(error)
    assert "1048576" in str(error)


def test_a_nodes_refusal_gives_its_code_and_detail() -> None:
    error = NodeError(4, "value too large", (10, 5))
    assert (error.code, error.message, error.detail) == (4, "value too large", (10, 5))
    assert str(error) == "value too large (code 4)"
    assert NodeError(11, "internal error").detail is None


def test_no_nodes_available_names_each_address_and_why() -> None:
    error = NoNodesAvailable({"h1:7400": "refused", "h2:7400": "timed out"})
    assert "h1:7400: refused; h2:7400: timed out" in str(error)
    assert error.reasons == {"h1:7400": "refused", "h2:7400": "timed out"}
    assert "no address was given" in str(NoNodesAvailable({}))


def test_a_quorum_error_says_what_was_needed_what_came_and_why() -> None:
    error = QuorumError("set", needed=2, got=1, reasons=REASONS, in_doubt=False)
    assert (error.needed, error.got, error.reasons, error.in_doubt) == (2, 1, REASONS, False)
    assert str(error) == "set: 1 of 2 needed answers (node-1: refused; node-2: too slow)"
    assert "no node answered" in str(QuorumError("set", needed=2, got=0, reasons={}, in_doubt=False))


def test_a_quorum_error_says_whether_a_write_is_in_doubt() -> None:
    doubtful = QuorumError("set", needed=2, got=1, reasons=REASONS, in_doubt=True)
    certain = QuorumError("set", needed=2, got=1, reasons=REASONS, in_doubt=False)
    assert "in doubt" in str(doubtful)
    assert "in doubt" not in str(certain)


def test_an_error_keeps_its_own_copy_of_the_reasons() -> None:
    reasons = {"node-1": "refused"}
    raised = [NoNodesAvailable(reasons), QuorumError("get", needed=1, got=0, reasons=reasons, in_doubt=False)]
    reasons.clear()
    assert [error.reasons for error in raised] == [{"node-1": "refused"}] * 2


def test_a_deadline_is_caught_as_a_timeout_and_as_a_lost_quorum() -> None:
    error = DeadlineExceeded("get", needed=2, got=0, reasons=REASONS, in_doubt=True)
    for kind in (TimeoutError, QuorumError):
        with pytest.raises(kind) as caught:
            raise error
        assert caught.value is error
    assert (error.needed, error.errno) == (2, None)
