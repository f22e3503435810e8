"""Operations that met another ring are run anew: which of them, when, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

from dcache.client.reruns import FIRST_PAUSE, LONGEST_PAUSE, Reruns, Sets
from dcache.client.session import Configuration, Session, View
from dcache.errors import NodeError, QuorumError, ValueTooLarge
from dcache.membership import MemberTable
from dcache.ops import batch, cluster, mutate, read, write
from dcache.ops.context import Context, Options
from dcache.wire import MESSAGES, Code
from tests.unit.ops_kit import make_table

TABLE = make_table()
GROWN = make_table(("a", "b", "c", "d"), ring_version=2)
REFUSED = str(NodeError(Code.WRONG_RING, MESSAGES[Code.WRONG_RING], GROWN.to_wire()))


def lost(reason: str = "refused", *, in_doubt: bool = False, got: int = 1) -> QuorumError:
    return QuorumError("set", needed=2, got=got, reasons={"a": "broke", "b": reason}, in_doubt=in_doubt)


@pytest.fixture
def session() -> Session:
    made = Session("h", Configuration())
    made.settings = attrs.evolve(made.settings, monotonic=lambda: 100.0)
    made.discovered(TABLE, "a")
    return made


@pytest.fixture
def ctx(session: Session) -> Context:
    made = View(session, Configuration()).context()
    assert made is not None
    return made


def reruns(session: Session, operation: Any = read.get, deadline: float = 1000.0) -> Reruns:
    return Reruns(session, operation, deadline)


def learn(session: Session, table: MemberTable = GROWN) -> None:
    session.topology.install(table)


def test_an_operation_that_failed_under_the_ring_in_force_is_not_run_anew(session: Session, ctx: Context) -> None:
    with pytest.raises(QuorumError, match="broke"):
        reruns(session).pause(ctx, lost())
    assert (session.counters.errors, session.counters.reruns) == (1, 0)


@pytest.mark.parametrize("change", [learn, lambda session: setattr(session.topology, "table", None)])
def test_one_that_the_ring_changed_under_is_run_anew_at_once(
    session: Session, ctx: Context, change: Callable[[Session], None]
) -> None:
    change(session)
    assert reruns(session).pause(ctx, lost()) == 0.0
    assert (session.counters.errors, session.counters.reruns) == (0, 1)


def test_while_only_nodes_know_of_a_change_the_pauses_grow_and_are_random(session: Session, ctx: Context) -> None:
    """Nodes that have not learnt yet what the client knows refuse as well."""
    book = reruns(session)
    pauses = [book.pause(ctx, lost(REFUSED)) for _ in range(12)]
    nominal = [min(LONGEST_PAUSE, FIRST_PAUSE * 2**number) for number in range(12)]
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, nominal, strict=True))
    assert len(set(pauses)) == len(pauses)


def test_no_run_begins_after_the_deadline(session: Session, ctx: Context) -> None:
    with pytest.raises(QuorumError):
        reruns(session, deadline=100.0 + FIRST_PAUSE / 3).pause(ctx, lost(REFUSED))
    learn(session)
    with pytest.raises(QuorumError):
        reruns(session, deadline=100.0).pause(ctx, lost())


@pytest.mark.parametrize("operation", [write.set, write.delete, batch.delete_many, cluster.clear])
def test_in_doubt_only_what_may_be_done_twice_is_run_anew(session: Session, ctx: Context, operation: Any) -> None:
    assert reruns(session, operation).pause(ctx, lost(REFUSED, in_doubt=True)) > 0
    learn(session)
    assert reruns(session, operation).pause(ctx, lost(in_doubt=True)) == 0


@pytest.mark.parametrize("operation", [mutate.add, mutate.replace, mutate.cas, mutate.incr, mutate.decr, mutate.touch])
def test_a_conditional_change_in_doubt_is_not_run_anew(session: Session, ctx: Context, operation: Any) -> None:
    learn(session)
    with pytest.raises(QuorumError):
        reruns(session, operation).pause(ctx, lost(REFUSED, in_doubt=True))
    assert reruns(session, operation).pause(ctx, lost(REFUSED)) == 0


def test_what_an_earlier_run_may_have_done_stays_in_doubt(session: Session, ctx: Context) -> None:
    book = reruns(session, write.set)
    book.pause(ctx, lost(REFUSED, in_doubt=True))
    with pytest.raises(QuorumError, match="in doubt: it may have been stored") as raised:
        book.pause(ctx, lost())
    assert raised.value.in_doubt


def test_runs_that_did_nothing_leave_no_doubt(session: Session, ctx: Context) -> None:
    book = reruns(session, write.set)
    book.pause(ctx, lost(REFUSED))
    with pytest.raises(QuorumError) as raised:
        book.pause(ctx, lost())
    assert not raised.value.in_doubt


# -- many keys --------------------------------------------------------------------------------------------------------


def outcome(sets: Sets[str], ctx: Context) -> dict[str, Any]:
    try:
        next(sets.run(ctx))
    except StopIteration as stop:
        found: dict[str, Any] = stop.value
        return found
    raise AssertionError("it waits for something")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the next runs of `set_many` return; the keys of each run take its place."""
    told: list[dict[str, Any]] = []

    def set_many(ctx: Context, mapping: Any, ttl: Any) -> Any:
        told.append(dict(mapping))
        return told.pop(0)
        yield

    monkeypatch.setattr(batch, "set_many", set_many)
    return told


def test_each_of_many_keys_stays_in_doubt_that_an_earlier_run_may_have_stored(
    session: Session, ctx: Context, told: list[dict[str, Any]]
) -> None:
    told += [{"a": lost(REFUSED, in_doubt=True), "b": lost(REFUSED)}, {"a": lost(), "b": lost()}]
    sets = Sets(session, dict.fromkeys("ab", 1), None)
    book = reruns(session, sets.run)
    with pytest.raises(QuorumError) as raised:
        outcome(sets, ctx)
    book.pause(ctx, raised.value)
    errors = outcome(sets, ctx)
    assert (errors["a"].in_doubt, errors["b"].in_doubt) == (True, False)


def test_keys_that_met_another_ring_are_written_again_and_only_those(
    session: Session, ctx: Context, told: list[dict[str, Any]]
) -> None:
    large, away = ValueTooLarge(2, 1), lost()
    told += [{"a": lost(REFUSED, in_doubt=True), "b": large, "c": lost(REFUSED), "d": away}, {"c": lost(REFUSED)}, {}]
    sets = Sets(session, dict.fromkeys("abcde", 1), None)
    assert sets.errors is None
    book = reruns(session, sets.run)
    for left in ({"a", "b", "c", "d"}, {"b", "c", "d"}):
        with pytest.raises(QuorumError) as raised:
            outcome(sets, ctx)
        assert book.pause(ctx, raised.value) > 0
        assert sets.errors is not None
        assert set(sets.errors) == left
    assert outcome(sets, ctx) == {"b": large, "d": away}
    assert [set(keys) for keys in told] == [set("abcde"), set("ac"), set("c")]


def test_a_ring_that_the_client_learnt_meanwhile_makes_every_lost_key_worth_another_run(
    session: Session, ctx: Context, told: list[dict[str, Any]]
) -> None:
    learn(session)
    told += [{"a": lost(in_doubt=True)}]
    sets = Sets(session, {"a": 1, "b": 2}, None)
    with pytest.raises(QuorumError) as raised:
        outcome(sets, ctx)
    assert reruns(session, sets.run).pause(ctx, raised.value) == 0


def test_keys_in_doubt_are_not_written_again_where_nothing_may_be_written_twice(
    session: Session, ctx: Context, told: list[dict[str, Any]]
) -> None:
    ctx = attrs.evolve(ctx, options=Options(consistency="linearizable"))
    doubtful, certain = lost(REFUSED, in_doubt=True), lost(REFUSED)
    told += [{"a": doubtful, "b": certain}, {}]
    sets = Sets(session, {"a": 1, "b": 2}, None)
    book = reruns(session, sets.run)
    with pytest.raises(QuorumError) as raised:
        outcome(sets, ctx)
    assert raised.value is certain
    book.pause(ctx, raised.value)
    assert outcome(sets, ctx) == {"a": doubtful}
    assert told[1] == {"b": 2}
    with pytest.raises(QuorumError):
        reruns(session, write.set).pause(ctx, doubtful)


def test_keys_whose_owners_are_all_gone_make_the_client_look_for_its_cluster(
    session: Session, ctx: Context, told: list[dict[str, Any]]
) -> None:
    session.settings = attrs.evolve(session.settings, monotonic=lambda: 200.0)
    told += [{"a": lost(got=0), "b": lost(got=0)}]
    assert set(outcome(Sets(session, {"a": 1, "b": 2}, None), ctx)) == {"a", "b"}
    assert session.needs_discovery()
    assert session.counters.errors == 1
