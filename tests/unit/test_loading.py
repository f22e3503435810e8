"""The miss policy, driven by hand: each step is answered as a client would, with a result or an error."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from dcache.client.loading import Compute, Loaded, Loading, Run, StoreIf, loading, own_copy
from dcache.client.session import Configuration, Session, View
from dcache.errors import (
    ClientClosed,
    ClockSkew,
    ClusterMismatch,
    DeadlineExceeded,
    NoNodesAvailable,
    QuorumError,
    SerializationError,
)
from dcache.ops import load
from dcache.record import ZERO

CLAIM = load.Claim(ZERO, ())
OUT_OF_REACH = [
    QuorumError("load", needed=2, got=1, reasons={}, in_doubt=False),
    DeadlineExceeded("load", needed=2, got=0, reasons={}, in_doubt=True),
    NoNodesAvailable({"h:1": "refused"}),
    ClockSkew("an hour"),
    ClusterMismatch("another"),
]


@pytest.fixture
def view() -> View:
    configuration = Configuration(max_value=100)
    return View(Session("nowhere:1", configuration), configuration)


def start(view: View, *, store_if: StoreIf = None, ttl: Any = 5, reachable: bool = True) -> Loading:
    return loading(view, "k", ttl, store_if, load.lookup if reachable else None)


def end(steps: Loading, outcome: Any) -> Loaded:
    """Send the last outcome and give what the load ended with."""
    with pytest.raises(StopIteration) as stop:
        steps.throw(outcome) if isinstance(outcome, Exception) else steps.send(outcome)
    loaded: Loaded = stop.value.value
    return loaded


def claimed(view: View, **settings: Any) -> Loading:
    """A load that has its claim and asks for the value to be computed."""
    steps = start(view, **settings)
    next(steps)
    assert isinstance(steps.send(CLAIM), Compute)
    return steps


def test_what_another_stored_meanwhile_is_returned_and_nothing_is_computed(view: View) -> None:
    steps = start(view)
    step = next(steps)
    assert isinstance(step, Run)
    assert (step.operation, step.args) == (load.lookup, ("k",))
    loaded = end(steps, load.Found([1], b"\x91\x01", 0))
    assert (loaded.value, loaded.found) == ([1], True)


def test_a_computed_value_is_filled_with_the_claim_and_the_lifetime(view: View) -> None:
    steps = claimed(view, ttl=7)
    step = steps.send([1, 2])
    assert isinstance(step, Run)
    data, flags = view.options.codec.encode([1, 2])
    assert (step.operation, step.args) == (load.fill, ("k", CLAIM, data, flags, 7))
    loaded = end(steps, True)
    assert (loaded.value, loaded.found, loaded.data) == ([1, 2], False, data)


def test_a_refused_fill_changes_nothing_for_the_callers(view: View) -> None:
    steps = claimed(view)
    steps.send("value")
    assert end(steps, False).value == "value"
    assert view.session.counters.computed_without_cache == 0


@pytest.mark.parametrize("error", OUT_OF_REACH, ids=lambda error: type(error).__name__)
def test_where_the_claim_fails_the_value_is_computed_and_not_filled(view: View, error: Exception) -> None:
    steps = start(view)
    next(steps)
    assert isinstance(steps.throw(error), Compute)
    assert end(steps, "value").value == "value"
    assert view.session.counters.computed_without_cache == 1


@pytest.mark.parametrize("error", OUT_OF_REACH, ids=lambda error: type(error).__name__)
def test_where_the_fill_fails_the_value_is_returned(view: View, error: Exception) -> None:
    steps = claimed(view)
    steps.send("value")
    assert end(steps, error).value == "value"
    assert view.session.counters.computed_without_cache == 1


def test_a_cache_known_to_be_out_of_reach_is_not_asked_again(view: View) -> None:
    steps = start(view, reachable=False)
    assert isinstance(next(steps), Compute)
    assert end(steps, "value").value == "value"


def test_being_out_of_reach_is_logged_once_until_it_works_again(view: View, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        steps = start(view)
        next(steps)
        steps.throw(OUT_OF_REACH[0])
        end(steps, 1)

    with caplog.at_level(logging.WARNING, "dcache.client"):
        fail()
        fail()
        assert len(caplog.records) == 1
        steps = claimed(view)
        steps.close()
        fail()
    assert len(caplog.records) == 2
    assert "1 of 2 needed answers" in caplog.text
    assert view.session.counters.computed_without_cache == 3


def test_a_value_that_store_if_declines_is_returned_and_not_filled(view: View) -> None:
    asked = []
    steps = claimed(view, store_if=lambda value: bool(asked.append(value)))
    loaded = end(steps, "value")
    assert (loaded.value, loaded.data, asked) == ("value", None, ["value"])


def test_a_value_that_store_if_accepts_is_filled(view: View) -> None:
    steps = claimed(view, store_if=lambda value: value is None)
    assert isinstance(steps.send(None), Run)
    steps.close()


def test_a_value_that_store_if_declines_need_not_be_storable(view: View) -> None:
    steps = claimed(view, store_if=lambda value: False)
    assert isinstance(end(steps, view).value, View)


def test_a_value_that_is_too_large_is_returned_uncached_and_complained_about(
    view: View, caplog: pytest.LogCaptureFixture
) -> None:
    steps = claimed(view)
    loaded = end(steps, "x" * 200)
    assert (loaded.value, loaded.data) == ("x" * 200, None)
    end(claimed(view), "x" * 200)
    assert view.session.counters.computed_without_cache == 2
    assert [record.message for record in caplog.records if "the limit is 100" in record.message] == [
        record.message for record in caplog.records
    ][:1], "said once, not for every such value"


def test_a_value_of_a_type_that_cannot_be_stored_is_an_error(view: View) -> None:
    """Silence would leave a function uncached that its author believes to be cached."""
    with pytest.raises(SerializationError, match="object"):
        claimed(view).send(object())


@pytest.mark.parametrize(
    "error", [ValueError("mine"), OUT_OF_REACH[0], ClientClosed("mine")], ids=lambda error: type(error).__name__
)
def test_what_the_factory_raises_passes_through_and_nothing_is_filled(view: View, error: Exception) -> None:
    """Also what says that the cache is out of reach: it is about another one, or another key."""
    with pytest.raises(type(error)) as raised:
        claimed(view).throw(error)
    assert raised.value is error
    assert view.session.counters.computed_without_cache == 0


def test_misuse_is_an_error_whether_or_not_the_cache_is_there(view: View) -> None:
    steps = start(view)
    next(steps)
    with pytest.raises(ClientClosed):
        steps.throw(ClientClosed("closed"))


@pytest.mark.parametrize("reachable", [True, False])
@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf")])
def test_a_lifetime_that_is_none_is_refused_before_anything_is_computed(
    view: View, ttl: float, reachable: bool
) -> None:
    with pytest.raises(ValueError, match="ttl must be"):
        next(start(view, ttl=ttl, reachable=reachable))


# -- copies -------------------------------------------------------------------------------------------------------


def test_the_one_who_computed_has_the_object_itself_and_others_a_copy_each(view: View) -> None:
    data, flags = view.options.codec.encode([1])
    loaded = Loaded([1], False, data, flags)
    one, other = own_copy(view, loaded, False), own_copy(view, loaded, False)
    assert own_copy(view, loaded, True) is loaded.value
    assert one == other == loaded.value
    assert len({id(one), id(other), id(loaded.value)}) == 3


def test_what_has_no_bytes_is_shared(view: View) -> None:
    loaded = Loaded([1], False)
    assert own_copy(view, loaded, False) is loaded.value


def test_bytes_that_do_not_decode_are_no_reason_to_fail(view: View) -> None:
    loaded = Loaded([1], False, b"\xc1", view.options.codec.encode([1])[1])
    assert own_copy(view, loaded, False) is loaded.value
