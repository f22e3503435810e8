"""What both drivers do alike: an execution sends what is of use, and keeps away from nodes in trouble."""

from __future__ import annotations

from typing import Any

import pytest

from dcache.drivers.channel import Waiter
from dcache.drivers.driver import Books, Execution, Settings
from dcache.ops.backoff import Backoff
from dcache.ops.effects import Call, FirstOf
from dcache.ops.quorum import WriteRound
from dcache.ops.topology import Topology


class Line:
    """Records what is sent."""

    alive = True

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.over = 0

    def send(self, call: Call, waiter: Waiter) -> None:
        self.sent.append(call.node)

    def on_over(self) -> None:
        self.over += 1


@pytest.fixture
def books() -> Books:
    settings = Settings(monotonic=lambda: 0.0, wall=lambda: 0)
    return Books(Topology(["seed:1"], lambda: 0.5), Backoff(lambda: 0.5), settings)


def calls(method: str = "set") -> list[Call]:
    return [Call(node, method, ()) for node in "abc"]


def start(books: Books, round_: Any) -> tuple[Line, Execution]:
    line = Line()
    execution = Execution(round_, books, line.send, line.on_over)
    execution.start()
    return line, execution


def test_a_node_in_trouble_is_not_sent_to(books: Books) -> None:
    books.backoff.failed("b", "broke", 0.0)
    round_ = WriteRound(calls(), 2)
    line, _ = start(books, round_)
    assert line.sent == ["a", "c"]
    assert [(failure.node, failure.sent) for failure in round_.failures] == [("b", False)]


def test_a_write_that_cannot_succeed_is_not_made_in_part(books: Books) -> None:
    """So it is not in doubt either."""
    for node in "ab":
        books.backoff.failed(node, "broke", 0.0)
    round_ = WriteRound(calls(), 2)
    line, _ = start(books, round_)
    assert line.sent == []
    assert line.over == 1
    assert not round_.in_doubt()
    assert {failure.node for failure in round_.failures} == {"a", "b", "c"}


def test_a_spare_takes_the_place_of_a_node_in_trouble_at_once(books: Books) -> None:
    books.backoff.failed("a", "broke", 0.0)
    line, _ = start(books, FirstOf(calls("get")[:1], calls("get")[1:]))
    assert line.sent == ["b"]


def test_questions_about_a_node_itself_are_asked_also_while_it_is_left_alone(books: Books) -> None:
    for node in "abc":
        books.backoff.failed(node, "broke", 0.0)
    line, _ = start(books, FirstOf(calls("ping")[:1], calls("ping")[1:]))
    assert line.sent == ["a"]


def test_replies_after_the_end_change_nothing(books: Books) -> None:
    round_ = WriteRound(calls(), 2)
    line, execution = start(books, round_)
    execution.expire()
    execution.replied(round_.calls[0], (True, 0, bytes(12)), line)
    execution.failed(round_.calls[1], ConnectionError("broke"), True)
    assert round_.got() == 0
    assert len(round_.failures) == 3
    assert line.over == 1
