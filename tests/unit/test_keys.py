"""Which calls of a function share a key, and what is refused a place in one."""

from __future__ import annotations

import enum
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dcache
from dcache.client.keys import KeyMaker, canonical


def f(a: Any, b: Any = 2, *rest: Any, c: Any = None, **more: Any) -> None:
    """Something with every kind of parameter."""


def one(value: Any) -> None: ...


def key(*args: Any, **kwargs: Any) -> str | bytes:
    """The key of a call of `f`."""
    return KeyMaker(f).make(args, kwargs)


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


class Size(enum.Enum):
    RED = 1


class Bits(enum.IntFlag):
    ONE = 1
    TWO = 2


class User:
    def __init__(self, number: int) -> None:
        self.id = number


class Keyed(User):
    @property
    def __cache_key__(self) -> int:
        return self.id


class KeyedByMethod(User):
    def __cache_key__(self) -> tuple[str, int]:
        return ("user", self.id)


class KeyedByObject(User):
    __cache_key__ = object()


# -- calls that agree ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [lambda: key(1, b=2), lambda: key(a=1), lambda: key(b=2, a=1), lambda: key(1, 2, c=None)],
    ids=["by name", "default", "other order", "default given"],
)
def test_calls_that_bind_the_same_arguments_share_a_key(call: Callable[[], str]) -> None:
    assert call() == key(1, 2)


def test_surplus_arguments_count_in_their_order_and_named_ones_in_none() -> None:
    assert key(1, 2, 3, 4) != key(1, 2, 4, 3)
    assert key(1, 2, 3) != key(1, 2, (3,))
    assert key(1, x=1, y=2) == key(1, y=2, x=1)
    assert key(1, x=1, y=2) != key(1, x=2, y=1)
    assert key(1, c=5) != key(1, b=5)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({3, 1, 2}, {2, 3, 1}),
        (frozenset("ab"), frozenset("ba")),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ([{"a": {1, 2}}], [{"a": {2, 1}}]),
        ({1: "x", "1": "y"}, {"1": "y", 1: "x"}),
    ],
)
def test_sets_and_dicts_have_no_order(left: Any, right: Any) -> None:
    assert canonical(left) == canonical(right)


DIFFERENT = [
    None,
    True,
    False,
    0,
    1,
    1.0,
    "1",
    b"1",
    "",
    b"",
    Decimal(1),
    [],
    (),
    {},
    set(),
    frozenset(),
    [1],
    (1,),
    {1},
    frozenset({1}),
    {1: 1},
    {1: "1"},
    [[1], 2],
    [[1, 2]],
    ["a", "b"],
    ["ab"],
    ["a,b"],
    date(2024, 1, 1),
    datetime(2024, 1, 1),  # noqa: DTZ001
    datetime(2024, 1, 1, tzinfo=UTC),
    datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=1))),
    datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Paris")),
    datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")),
    time(1),
    timedelta(1),
    UUID(int=1),
    Colour.RED,
    Colour.GREEN,
    Size.RED,
    Bits.ONE,
    Bits.ONE | Bits.TWO,
    Bits(8),
    Bits(16),
    int,
    User,
    Keyed,
    Keyed(1),
    Keyed(2),
    KeyedByMethod(1),
]


def test_values_and_types_are_told_apart() -> None:
    """1, 1.0 and True are equal to Python, and a function may well treat them differently."""
    made = {canonical(value) for value in DIFFERENT}
    assert len(made) == len(DIFFERENT)


def test_an_object_is_keyed_by_its_cache_key_and_class() -> None:
    class Other(Keyed):
        pass

    assert canonical(Keyed(7)) == canonical(Keyed(7))
    assert canonical(KeyedByMethod(7)) == canonical(KeyedByMethod(7))
    assert canonical(Keyed(7)) != canonical(Other(7))


ZONES = st.sampled_from([None, UTC, timezone(timedelta(hours=2))])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.0, -0.0, 1.0, 2.5, float("inf")])
    | st.text("ab:=1", max_size=3)
    | st.binary(max_size=2)
    | st.sampled_from([Decimal(1), UUID(int=1), timedelta(1), date(2024, 1, 1), Colour.RED, Size.RED, int])
    | st.datetimes(datetime(2024, 1, 1), datetime(2024, 1, 2), timezones=ZONES)  # noqa: DTZ001
)
HASHABLE = st.recursive(SCALARS, lambda inner: st.tuples(inner) | st.frozensets(inner, max_size=2), max_leaves=4)
VALUES = st.recursive(
    HASHABLE,
    lambda inner: (
        st.lists(inner, max_size=3) | st.sets(HASHABLE, max_size=3) | st.dictionaries(HASHABLE, inner, max_size=3)
    ),
    max_leaves=6,
)
CALLS = st.tuples(st.lists(VALUES, min_size=1, max_size=4), st.dictionaries(st.sampled_from("cxy"), VALUES, max_size=2))


def typed(value: Any) -> Any:
    """A plainly right stand-in for `value`: equal to another exactly if value and types are."""
    kind = type(value)
    if kind in (list, tuple):
        return (kind, tuple(map(typed, value)))
    if kind in (set, frozenset):
        return (kind, frozenset(map(typed, value)))
    if kind is dict:
        return (kind, frozenset((typed(name), typed(item)) for name, item in value.items()))
    return (kind, repr(value))


@given(CALLS, CALLS)
def test_two_calls_share_a_key_exactly_if_their_bound_arguments_are_equal_with_their_types(
    left: tuple[list[Any], dict[str, Any]], right: tuple[list[Any], dict[str, Any]]
) -> None:
    def bound(args: list[Any], kwargs: dict[str, Any]) -> Any:
        a, b, rest = args[0], args[1] if len(args) > 1 else 2, tuple(args[2:])
        return [typed(part) for part in (a, b, rest, kwargs.get("c"), {n: v for n, v in kwargs.items() if n != "c"})]

    assert (key(*left[0], **left[1]) == key(*right[0], **right[1])) == (bound(*left) == bound(*right))


@given(VALUES, VALUES)
def test_two_values_have_one_form_exactly_if_they_are_equal_with_their_types(left: Any, right: Any) -> None:
    assert (canonical(left) == canonical(right)) == (typed(left) == typed(right))


PRINT_KEYS = """
import datetime, enum
from dcache.client.keys import KeyMaker
class Colour(enum.Enum):
    RED = 1
class Keyed:
    __cache_key__ = {"x", "y", "z"}
def f(*args): ...
print(KeyMaker(f).make(({"a", "b", "c", b"d", 1, 2.5}, {"x": {"p", "q"}, "y": frozenset("rst")}, Colour.RED, Keyed(),
                        Keyed, datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)), {}))
"""


def test_keys_are_the_same_in_every_process() -> None:
    """Other hash seeds order sets differently and put objects at other addresses."""
    source = str(Path(dcache.__file__).parent.parent)
    made = {
        subprocess.run(
            [sys.executable, "-c", PRINT_KEYS],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": source},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(made) == 1


def test_keys_stay_what_they_are_from_release_to_release() -> None:
    """Were they to change, an upgrade would empty every cache."""
    assert canonical([1, "a", None]) == b"list:29:int:1:1str:1:aNoneType:4:None"
    assert canonical({True: (1.0,)}) == b"dict:31:bool:4:Truetuple:11:float:3:1.0"


# -- what is refused ----------------------------------------------------------------------------------------------


class LocalTime(tzinfo):
    pass


class FancyInt(int):
    pass


@pytest.mark.parametrize(
    "value",
    [
        object(),
        User(1),
        lambda: None,
        [User(1)],
        {"a": {"b": User(1)}},
        {Keyed(1): User(1)},
        FancyInt(1),
        KeyedByObject(1),
        datetime(2024, 1, 1, tzinfo=LocalTime()),
        list[int],
        iter([1]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_without_a_stable_form_is_refused_with_its_argument_and_the_remedy(value: Any) -> None:
    with pytest.raises(
        TypeError, match=r"argument 'b': a .* same in every process; .*__cache_key__.*ignore=.*template"
    ):
        key(1, value)


def test_self_without_cache_key_is_refused_and_may_be_ignored() -> None:
    class Service:
        def find(self, number: int) -> None: ...

    with pytest.raises(TypeError, match=r"argument 'self': a .*Service has no representation"):
        KeyMaker(Service.find).make((Service(), 1), {})
    ignoring = KeyMaker(Service.find, ignore=["self"])
    assert ignoring.make((Service(), 1), {}) == ignoring.make((Service(), 1), {})
    assert ignoring.make((Service(), 1), {}) != ignoring.make((Service(), 2), {})


@pytest.mark.parametrize("call", [((), {}), ((1,), {"a": 1})], ids=["missing", "twice"])
def test_arguments_that_do_not_fit_are_a_type_error_as_without_the_cache(call: Any) -> None:
    with pytest.raises(TypeError, match="argument"):
        KeyMaker(f).make(*call)


# -- settings -----------------------------------------------------------------------------------------------------


def test_made_keys_begin_readably_with_module_name_and_version() -> None:
    assert str(KeyMaker(f).make((1,), {})).startswith(f"{__name__}.f::")
    assert str(KeyMaker(f, version=3).make((1,), {})).startswith(f"{__name__}.f:3:")


def test_version_and_function_tell_keys_apart() -> None:
    made = {KeyMaker(one, version=version).make((1,), {}) for version in (None, 1, 2, "2b")}
    assert len(made | {key(1)}) == 5


def test_a_very_long_name_leaves_room_for_the_hash() -> None:
    def long() -> None: ...

    long.__qualname__ = "long" * 300
    made = KeyMaker(long).make((), {})
    long.__qualname__ = "long" * 301
    assert len(made) < 250
    assert KeyMaker(long).make((), {}) != made


def test_ignored_arguments_do_not_matter_and_all_others_do() -> None:
    keys = KeyMaker(f, ignore=("b", "rest", "more"))
    assert keys.make((1, 2, 3), {"x": object()}) == keys.make((1, object()), {})
    assert keys.make((1,), {"c": 1}) != keys.make((1,), {"c": 2})


def test_ignoring_another_argument_makes_other_keys() -> None:
    """Else a release that changes its mind would be given the other's results."""
    assert KeyMaker(f, ignore="a").make((1, 7), {}) != KeyMaker(f, ignore="b").make((7, 1), {})


def test_one_name_may_be_ignored_without_a_list() -> None:
    keys = KeyMaker(one, ignore="value")
    assert keys.make((1,), {}) == keys.make((2,), {})


def test_ignore_must_name_parameters() -> None:
    with pytest.raises(ValueError, match="ignore names d, x, which the function does not have"):
        KeyMaker(f, ignore=["x", "a", "d"])


@pytest.mark.parametrize("setting", [{"ignore": ["a"]}, {"version": 1}])
def test_ignore_and_version_do_not_go_with_a_key_of_ones_own(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="for made keys"):
        KeyMaker(f, "x:{a}", **setting)


# -- templates ----------------------------------------------------------------------------------------------------


def get(self: Any, id: Any, name: Any = "ann", *rest: Any, **more: Any) -> None: ...


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("user:{id}", "user:7"),
        ("{self.id}/{id}", "1/7"),
        ("{self}", "1"),
        ("{name}:{id:04}", "ann:0007"),
        ("{name!r}", "'ann'"),
        ("{id:{rest[0]}}", "  7"),
        ("{rest[1]}{more[x]}", "4y"),
        ("all", "all"),
        ("{{{id}}}", "{7}"),
    ],
)
def test_a_template_is_filled_in_and_is_literally_the_key(template: str, expected: str) -> None:
    assert KeyMaker(get, template).make((Keyed(1), 7, "ann", 3, 4), {"x": "y"}) == expected


def test_a_template_takes_defaults_and_names_as_the_call_has_them() -> None:
    keys = KeyMaker(get, "{id}:{name}")
    assert keys.make((None,), {"id": 7}) == keys.make((None, 7, "ann"), {}) == "7:ann"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(Colour.RED, "RED"), (Bits(8), "8"), (KeyedByMethod, None), (date(2024, 1, 2), "2024-01-02"), (None, "None")],
)
def test_a_template_prints_what_has_a_stable_form_of_its_own(value: Any, expected: str | None) -> None:
    keys = KeyMaker(one, "{value}")
    if expected is None:
        with pytest.raises(TypeError, match="the template names a type"):
            keys.make((value,), {})
    else:
        assert keys.make((value,), {}) == expected


@pytest.mark.parametrize("template", ["{id2}", "{}", "{0}", "{id}{other.x}", "{id:{width}}", "{other[0]}"])
def test_a_template_must_name_parameters(template: str) -> None:
    with pytest.raises(ValueError, match=r"key names .* which the function does not have as a parameter"):
        KeyMaker(get, template)


@pytest.mark.parametrize("template", ["user:{id", "user:}", "{id!}"])
def test_a_malformed_template_is_refused_when_decorating(template: str) -> None:
    with pytest.raises(ValueError, match=r"expected|Single|unmatched|end of"):
        KeyMaker(get, template)


@pytest.mark.parametrize("template", ["{value}", "{value!r}", "{value!s}", "{value.__class__}"])
@pytest.mark.parametrize("value", [User(1), [1], {"a": 1}, KeyedByMethod(1)], ids=lambda value: type(value).__name__)
def test_a_template_refuses_what_may_print_differently_elsewhere(template: str, value: Any) -> None:
    """An address in memory, or a set's order, would make keys that are never met again."""
    with pytest.raises(TypeError, match=r"the template names a \w+: name something printable"):
        KeyMaker(one, template).make((value,), {})


# -- callables ----------------------------------------------------------------------------------------------------


def test_a_callable_is_given_the_arguments_and_returns_the_key() -> None:
    def make(*args: Any, **kwargs: Any) -> bytes:
        return repr((args, kwargs)).encode()

    assert KeyMaker(f, make).make((1, 2), {"c": 3}) == b"((1, 2), {'c': 3})"
