"""What both drivers do alike: an execution sends what is of use, keeps away from nodes in trouble, races slow ones."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import attrs
import pytest

from dcache.drivers.channel import Waiter
from dcache.drivers.driver import Books, Execution, Probe, Settings, TableWaiter
from dcache.errors import NodeError
from dcache.ops.backoff import Backoff
from dcache.ops.context import Counters
from dcache.ops.effects import Call, FirstOf, Round
from dcache.ops.latency import WARM_UP
from dcache.ops.topology import Topology
from dcache.wire import MESSAGES, Code
from tests.unit.ops_kit import make_table


@attrs.define
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


class Line:
    """Records what is sent."""

    alive = True

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.probes: list[tuple[Call, Waiter]] = []
        self.over = 0

    def send(self, call: Call, waiter: Waiter) -> None:
        if isinstance(waiter, Probe):
            self.probes.append((call, waiter))
        else:
            self.sent.append(call.node)

    def on_over(self) -> None:
        self.over += 1


class Some(Round):
    """So many answers, of any nodes."""

    def __init__(self, needed: int, calls: Sequence[Call], spares: Sequence[Call] = ()) -> None:
        super().__init__(calls, spares)
        self.needed = needed

    def missing(self) -> int:
        return self.needed - len(self.live())


class Raced(Some):
    reserved = 0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def books(clock: Clock) -> Books:
    settings = Settings(monotonic=clock, wall=lambda: 0)
    topology = Topology(["seed:1"], lambda: 0.5)
    topology.install(make_table())
    return Books(topology, Backoff(lambda: 0.5), settings, Counters())


def calls(method: str = "set", nodes: str = "abc") -> list[Call]:
    return [Call(node, method, ()) for node in nodes]


def start(books: Books, round_: Any, patience: float = inf) -> tuple[Line, Execution]:
    line = Line()
    execution = Execution(round_, books, line.send, line.on_over, patience)
    execution.start()
    return line, execution


# -- nodes in trouble -------------------------------------------------------------------------------------------------


def test_a_node_in_trouble_is_not_sent_to(books: Books, clock: Clock) -> None:
    books.backoff.failed("b", "broke", clock.now)
    round_ = Some(2, calls())
    line, _ = start(books, round_)
    assert line.sent == ["a", "c"]
    assert [(failure.node, failure.sent) for failure in round_.failures] == [("b", False)]


def test_a_write_that_cannot_succeed_is_not_made_in_part(books: Books, clock: Clock) -> None:
    """So it is not in doubt either."""
    for node in "ab":
        books.backoff.failed(node, "broke", clock.now)
    round_ = Some(2, calls())
    line, _ = start(books, round_)
    assert line.sent == []
    assert line.over == 1
    assert not any(failure.sent for failure in round_.failures)
    assert {failure.node for failure in round_.failures} == {"a", "b", "c"}


def test_a_node_that_was_to_be_probed_by_a_write_that_is_not_made_is_asked_whether_it_is_well(
    books: Books, clock: Clock
) -> None:
    """Else two nodes that came back would be kept out by each other's absence."""
    books.backoff.failed("a", "broke", clock.now - 1.0)
    for node in "bc":
        books.backoff.failed(node, "broke", clock.now)
    line, _ = start(books, Some(2, calls(nodes="abcd")))
    assert line.sent == ["a", "d"]
    books.backoff.failed("a", "broke", clock.now - 1.0)
    line, _ = start(books, Some(2, calls()))
    assert line.sent == []
    assert [(call.node, call.method) for call, _ in line.probes] == [("a", "ping")]
    (call, waiter) = line.probes[0]
    waiter.replied(call, None, line)
    assert [books.backoff.failing(node) for node in "abc"] == [False, True, True]


def test_members_that_nobody_needs_are_probed_once_their_wait_is_over(books: Books, clock: Clock) -> None:
    assert books.probes() == []
    for node in ("a", "seed:1"):
        books.backoff.failed(node, "broke", clock.now)
    assert books.probes() == []
    clock.now += 0.2
    assert books.probes() == [Call("a", "ping", ())]
    assert books.probes() == []
    Probe(books).failed(Call("a", "ping", ()), ConnectionError("broke"), False)
    clock.now += 0.1
    assert books.probes() == [], "the wait is longer after a probe that failed"
    clock.now += 0.1
    assert books.probes() == [Call("a", "ping", ())]
    Probe(books).replied(Call("a", "ping", ()), None, Line())
    assert not books.backoff.failing("a")


def test_a_spare_takes_the_place_of_a_node_in_trouble_at_once(books: Books, clock: Clock) -> None:
    books.backoff.failed("a", "broke", clock.now)
    line, _ = start(books, FirstOf(calls("get")[:1], calls("get")[1:]))
    assert line.sent == ["b"]


def test_questions_about_a_node_itself_are_asked_also_while_it_is_left_alone(books: Books, clock: Clock) -> None:
    for node in "abc":
        books.backoff.failed(node, "broke", clock.now)
    line, _ = start(books, FirstOf(calls("ping")[:1], calls("ping")[1:]))
    assert line.sent == ["a"]


def test_replies_after_the_end_change_nothing(books: Books) -> None:
    round_ = Some(2, calls())
    line, execution = start(books, round_)
    execution.expire()
    execution.replied(round_.calls[0], (True, 0, bytes(12)), line)
    execution.failed(round_.calls[1], ConnectionError("broke"), True)
    assert round_.replies == []
    assert len(round_.failures) == 3
    assert line.over == 1


# -- racing -----------------------------------------------------------------------------------------------------------


def well_known(books: Books, earned: int = 1) -> None:
    """Each node usually answers within 10 ms, and so many extra calls were earned."""
    for node in "abc":
        for _ in range(WARM_UP):
            books.hedging.took(node, 0.01)
    for _ in range(20 * earned + 1):
        books.hedging.called()


def read(needed: int = 2) -> Raced:
    return Raced(needed, calls("get", "ab"), calls("get", "c"))


def hedges(books: Books) -> int:
    counters: Counters = books.hedging._counters
    return counters.hedges


def test_a_call_that_takes_longer_than_usual_is_raced_by_a_spare(books: Books, clock: Clock) -> None:
    well_known(books)
    round_ = read()
    line, execution = start(books, round_)
    assert execution.hedge_at() == pytest.approx(clock.now + 0.01)
    clock.now += 0.005
    execution.replied(round_.calls[0], None, line)
    execution.hedge()
    assert line.sent == ["a", "b"], "nothing is overdue yet"
    clock.now += 0.0051
    execution.hedge()
    assert line.sent == ["a", "b", "c"]
    assert hedges(books) == 1
    execution.replied(Call("c", "get", ()), None, line)
    assert line.over == 1
    assert books.backoff.rank("abc", clock.now) == "abc", "a hedge holds nothing against a node"


def test_a_call_is_raced_once(books: Books, clock: Clock) -> None:
    well_known(books, earned=5)
    round_ = Raced(2, calls("get", "ab"), [*calls("get", "c"), *calls("get", "d")])
    line, execution = start(books, round_)
    execution.replied(round_.calls[0], None, line)
    clock.now += 0.1
    for _ in range(3):
        execution.hedge()
    assert line.sent == ["a", "b", "c"]
    clock.now += 0.02
    execution.hedge()
    assert line.sent == ["a", "b", "c", "d"], "that raced it is itself overdue"
    assert execution.hedge_at() == inf, "nothing is known of how long the last one takes"


def test_nothing_is_raced_that_was_not_earned(books: Books, clock: Clock) -> None:
    well_known(books, earned=0)
    line, execution = start(books, read())
    clock.now += 0.1
    execution.hedge()
    assert line.sent == ["a", "b"]
    assert hedges(books) == 0


def test_nothing_is_raced_before_the_node_is_known(books: Books, clock: Clock) -> None:
    line, execution = start(books, read())
    assert execution.hedge_at() == inf
    clock.now += 10.0
    execution.hedge()
    assert line.sent == ["a", "b"]


@pytest.mark.parametrize("spares", ["", "c"], ids=["there are none", "they are for failures only"])
def test_a_round_without_spares_for_it_is_not_raced(books: Books, clock: Clock, spares: str) -> None:
    well_known(books)
    line, execution = start(books, Some(2, calls("get", "ab"), calls("get", spares)))
    assert execution.hedge_at() == inf
    clock.now += 1.0
    execution.hedge()
    assert line.sent == ["a", "b"]


def test_a_spare_that_is_in_trouble_is_no_help(books: Books, clock: Clock) -> None:
    well_known(books)
    books.backoff.failed("c", "broke", clock.now)
    line, execution = start(books, read())
    clock.now += 0.1
    execution.hedge()
    assert line.sent == ["a", "b"]
    assert hedges(books) == 0


def test_a_round_that_has_enough_is_not_raced(books: Books, clock: Clock) -> None:
    """Its task may not have woken yet when the timer strikes."""
    well_known(books)
    round_ = read(needed=1)
    line, execution = start(books, round_)
    execution.replied(round_.calls[0], None, line)
    clock.now += 0.1
    execution.hedge()
    assert line.sent == ["a", "b"]


def test_the_time_that_answers_take_is_learnt_also_from_those_that_lost_the_race(books: Books, clock: Clock) -> None:
    well_known(books)
    round_ = read()
    line, execution = start(books, round_)
    clock.now += 0.002
    execution.replied(round_.calls[0], None, line)
    clock.now += 0.1
    execution.close()
    assert books.hedging.patience("a") < 0.01 < books.hedging.patience("b")


def test_a_node_that_lost_a_race_and_still_owes_the_answer_is_asked_last(books: Books, clock: Clock) -> None:
    """However many others would win the next races: they are not free."""
    well_known(books)
    round_ = read()
    line, execution = start(books, round_, patience=0.1)
    execution.replied(round_.calls[0], None, line)
    clock.now += 0.02
    execution.close()
    start(books, read(), patience=0.1)
    assert books.backoff.rank("abc", clock.now) == "abc"
    clock.now += 0.1
    start(books, read(), patience=0.1)
    assert books.backoff.rank("abc", clock.now) == ["a", "c", "b"]


def test_a_node_whose_answer_came_late_is_not_asked_last(books: Books, clock: Clock) -> None:
    well_known(books)
    round_ = read()
    line, execution = start(books, round_, patience=0.1)
    execution.replied(round_.calls[0], None, line)
    execution.close()
    execution.replied(round_.calls[1], None, line)
    clock.now += 1.0
    start(books, read(), patience=0.1)
    assert books.backoff.rank("abc", clock.now) == "abc"


# -- news -------------------------------------------------------------------------------------------------------------


def test_a_node_with_another_table_is_asked_for_it_when_it_is_met(books: Books) -> None:
    table = books.topology.table
    assert table is not None
    assert books.news("a", table.digest) is None
    assert books.news("a", b"") is None, "it does not say"
    assert books.news("a", b"another") == Call("a", "exchange", (table.digest,))
    books.topology.table = None
    assert books.news("a", b"another") is None


def test_the_table_that_a_node_gives_is_taken_in(books: Books) -> None:
    grown = make_table(("a", "b", "c", "d"), ring_version=2)
    TableWaiter(books.topology).replied(Call("a", "exchange", (b"",)), grown.to_wire(), Line())
    assert books.topology.table == grown


def test_a_refusal_for_another_ring_brings_the_table_and_is_no_failure(books: Books) -> None:
    grown = make_table(("a", "b", "c", "d"), ring_version=2)
    books.failed("a", NodeError(Code.WRONG_RING, MESSAGES[Code.WRONG_RING], grown.to_wire()))
    assert books.topology.table == grown
    assert not books.backoff.failures
