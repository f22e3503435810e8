"""The decorator, on clients whose operations go to a dictionary instead of a cluster."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dcache import AsyncCached, AsyncClient, Cached, Client, SerializationError, cached
from dcache.client.cached import CacheInfo
from dcache.client.session import View
from dcache.errors import NoNodesAvailable
from dcache.ops import cluster, load, read, write
from dcache.record import ZERO


class Memory:
    """What a cluster would hold, and what its operations would answer."""

    def __init__(self) -> None:
        self.held: dict[bytes, tuple[bytes, int]] = {}
        self.ttls: list[Any] = []
        self.down = False

    def run(self, view: View, operation: Callable[..., Any], *args: Any) -> Any:
        if self.down:
            raise NoNodesAvailable({"memory": "down"})
        if operation is cluster.clear:
            prefix = view.flight_key("x")[:-1]
            self.held = {key: item for key, item in self.held.items() if not key.startswith(prefix)}
            return None
        key, answers = view.flight_key(args[0]), {read.get: self.get, load.hit: self.hit, load.lookup: self.lookup}
        answers |= {load.reclaim: self.reclaim, load.fill: self.fill, write.delete: self.delete}
        return answers[operation](view, key, *args[1:])

    def read(self, view: View, way: object, told: object, operation: Callable[..., Any], *args: Any) -> Any:
        """Nothing is to be had promptly."""
        return self.run(view, operation, *args)

    async def run_async(self, view: View, operation: Callable[..., Any], *args: Any) -> Any:
        await asyncio.sleep(0)
        return self.run(view, operation, *args)

    def hit(self, view: View, key: bytes) -> load.Found | None:
        item = self.held.get(key)
        return None if item is None else load.Found(view.options.codec.decode(*item), *item)

    def get(self, view: View, key: bytes, default: Any) -> Any:
        found = self.hit(view, key)
        return default if found is None else found.value

    def lookup(self, view: View, key: bytes) -> load.Found | load.Claim:
        return self.hit(view, key) or self.reclaim(view, key)

    def reclaim(self, view: View, key: bytes) -> load.Claim:
        return load.Claim(ZERO, ())

    def fill(self, view: View, key: bytes, claim: load.Claim, data: bytes, flags: int, ttl: Any) -> bool:
        self.held[key] = (data, flags)
        self.ttls.append(ttl)
        return True

    def delete(self, view: View, key: bytes) -> bool:
        return self.held.pop(key, None) is not None


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def client(memory: Memory) -> Client:
    made = Client("nowhere:1")
    made.engine.run = memory.run  # type: ignore[method-assign]
    made.engine.read = memory.read  # type: ignore[method-assign]
    return made


@pytest.fixture
def aclient(memory: Memory) -> AsyncClient:
    made = AsyncClient("nowhere:1")
    made.engine.run = memory.run_async  # type: ignore[method-assign]
    return made


@pytest.fixture
def calls() -> list[Any]:
    """What was computed."""
    return []


@pytest.fixture
def double(client: Client, calls: list[Any]) -> Cached[[int], int]:
    @cached(client)
    def double(x: int, times: int = 2) -> int:
        calls.append(x)
        return x * times

    return double


@pytest.fixture
def adouble(aclient: AsyncClient, calls: list[Any]) -> AsyncCached[[int], int]:
    @cached(aclient)
    async def adouble(x: int, times: int = 2) -> int:
        calls.append(x)
        return x * times

    return adouble


# -- calling ------------------------------------------------------------------------------------------------------


def test_a_result_is_computed_once_per_key_and_counted(double: Any, calls: list[int]) -> None:
    assert [double(1), double(1), double(x=1, times=2), double(2)] == [2, 2, 2, 4]
    assert calls == [1, 2]
    assert double.cache_info() == CacheInfo(hits=2, misses=2)


def test_counts_once_given_do_not_go_on_counting(double: Any) -> None:
    before = double.cache_info()
    double(1)
    assert before == CacheInfo(0, 0)


def test_none_is_a_result_like_any_other(client: Client, calls: list[int]) -> None:
    @client.cached()
    def nothing() -> None:
        calls.append(1)

    assert nothing() is nothing() is None  # type: ignore[func-returns-value]
    assert calls == [1]


def test_a_hit_is_a_new_object_each_time(client: Client) -> None:
    """A caller who changes what it was given must not change it for the next one."""
    make = client.cached()(lambda: [1])
    make().append(2)
    make().append(3)
    assert make() == [1]


def test_wrong_arguments_are_a_type_error_and_nothing_is_called(double: Any, calls: list[int]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'y'"):
        double(1, y=2)
    assert calls == []


def test_what_the_function_raises_is_raised_and_not_remembered(client: Client, memory: Memory) -> None:
    outcomes: Iterator[Any] = iter([KeyError("first"), 5])

    @client.cached()
    def fickle() -> int:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return int(outcome)

    with pytest.raises(KeyError, match="first"):
        fickle()
    assert fickle() == 5


def test_results_live_for_the_lifetime_of_the_decorator(client: Client, memory: Memory) -> None:
    for ttl in (60, 2.5, None):
        (client.cached() if ttl == 60 else client.cached(ttl=ttl, version=str(ttl)))(lambda: 1)()
    assert memory.ttls == [60, 2.5, None]


@pytest.mark.parametrize("ttl", [0, -1, float("inf"), float("nan")])
def test_a_lifetime_that_is_none_is_refused_when_decorating(client: Client, ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl must be"):
        client.cached(ttl=ttl)


def test_results_that_store_if_declines_are_computed_each_time(client: Client, calls: list[int]) -> None:
    @client.cached(store_if=lambda result: result > 1)
    def same(x: int) -> int:
        calls.append(x)
        return x

    assert [same(1), same(1), same(2), same(2)] == [1, 1, 2, 2]
    assert calls == [1, 1, 2]


def test_a_result_that_cannot_be_stored_is_an_error_that_names_its_type(client: Client) -> None:
    with pytest.raises(SerializationError, match="object"):
        client.cached()(lambda: [object()])()


def test_without_a_cache_the_function_is_called(double: Any, memory: Memory, calls: list[int]) -> None:
    memory.down = True
    assert [double(1), double(1), double.refresh(1)] == [2, 2, 2]
    assert calls == [1, 1, 1]
    with pytest.raises(NoNodesAvailable):
        double.invalidate(1)


def test_going_without_the_cache_is_logged_anew_once_it_has_worked_in_between(
    double: Any, memory: Memory, caplog: pytest.LogCaptureFixture
) -> None:
    """A hit is enough to show that it works."""
    double(1)
    for _ in range(2):
        double(1)
        memory.down = True
        double(1), double(2)
        memory.down = False
    assert len(caplog.records) == 2


def test_a_recursive_function_is_computed_once_per_argument(client: Client, calls: list[int]) -> None:
    @client.cached()
    def fibonacci(n: int) -> int:
        calls.append(n)
        return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

    assert fibonacci(20) == 6765
    assert sorted(calls) == list(range(21))


# -- what else it can do ------------------------------------------------------------------------------------------


def test_invalidate_forgets_one_result_and_says_whether_there_was_one(double: Any, calls: list[int]) -> None:
    double(1), double(2)
    assert [double.invalidate(x=1), double.invalidate(1)] == [True, False]
    double(1), double(2)
    assert calls == [1, 2, 1]


def test_refresh_computes_anew_and_stores(double: Any, calls: list[int]) -> None:
    double(1)
    assert [double.refresh(1), double(1)] == [2, 2]
    assert calls == [1, 1]


def test_key_is_the_key_under_which_the_result_lies(client: Client, double: Any) -> None:
    double(3)
    view = client.with_options(namespace=f"{__name__}.double.<locals>.double")
    assert view.get(double.key(3)) == 6
    assert client.get(double.key(3)) is None


def test_made_keys_lie_in_a_namespace_of_the_function_within_the_clients(memory: Memory, client: Client) -> None:
    view = client.with_options(namespace="app")

    @view.cached()
    def short() -> int:
        return 1

    short()
    name = f"app:{__name__}.{short.__qualname__}"
    assert client.with_options(namespace=name).get(short.key()) == 1


def test_a_namespace_too_long_is_shortened_and_stays_apart_from_others(client: Client, calls: list[int]) -> None:
    view = client.with_options(namespace="n" * 250)

    def make(result: int) -> Cached[[], int]:
        def function() -> int:
            calls.append(result)
            return result

        function.__qualname__ = f"outer{result}." + "long_name" * 10
        return view.cached()(function)

    assert [make(1)(), make(2)()] == [1, 2]
    make(2).cache_clear()
    make(1)()
    assert make(1).key() != make(2).key()
    assert calls == [1, 2]


def test_a_template_key_is_a_key_of_the_client(client: Client, calls: list[int]) -> None:
    @client.cached(key="user:{id}")
    def user(id: int) -> str:
        calls.append(id)
        return f"user {id}"

    user(7)
    assert user.key(7) == "user:7"
    assert client.get("user:7") == "user 7"
    assert client.delete("user:7")
    user(7)
    assert calls == [7, 7]


def test_a_callable_key_is_given_the_arguments(client: Client) -> None:
    @client.cached(key=lambda number, **rest: f"user:{number}")
    def user(number: int, fresh: bool = False) -> int:
        return number

    user(7, fresh=True)
    assert client.get("user:7") == 7


def test_a_callable_that_makes_no_key_is_an_error(client: Client) -> None:
    with pytest.raises(TypeError, match="a key is str or bytes, not int"):
        client.cached(key=lambda: 5)(lambda: 1)()  # type: ignore[arg-type, return-value]


def test_cache_clear_forgets_the_functions_results_and_no_others(client: Client, calls: list[int]) -> None:
    @client.cached()
    def other() -> int:
        calls.append(0)
        return 0

    @client.cached(key="{x}", namespace="own")
    def named(x: int) -> int:
        calls.append(x)
        return x

    other(), named(1), named(2)
    named.cache_clear()
    other(), named(1), named(2)
    assert calls == [0, 1, 2, 1, 2]
    other.cache_clear()
    other(), named(1)
    assert calls == [0, 1, 2, 1, 2, 0]


def test_cache_clear_is_refused_where_it_would_forget_more(client: Client) -> None:
    function = client.cached(key="all")(lambda: 1)
    with pytest.raises(ValueError, match=r"give it namespace= of its own"):
        function.cache_clear()


def test_two_functions_may_share_a_namespace_and_keys(client: Client, calls: list[int]) -> None:
    first = client.cached(key="k", namespace="shared")(lambda: 1)
    second = client.cached(key="k", namespace="shared")(lambda: 2)
    assert [first(), second()] == [1, 1]


def test_another_version_meets_no_old_results(client: Client) -> None:
    def make(version: int) -> Cached[[], int]:
        @client.cached(version=version)
        def function() -> int:
            return version

        return function

    assert [make(1)(), make(2)(), make(1)()] == [1, 2, 1]


# -- methods ------------------------------------------------------------------------------------------------------


@pytest.fixture
def service(client: Client, calls: list[Any]) -> Any:
    class Service:
        def __init__(self, name: str) -> None:
            self.__cache_key__ = self.name = name

        @client.cached()
        def find(self, number: int) -> str:
            """Find it."""
            calls.append((self.name, number))
            return f"{self.name}{number}"

        @client.cached(key="{self.name}:{number}")
        def look(self, number: int) -> str:
            return f"{self.name}{number}"

        @classmethod
        @client.cached()
        def of_class(cls, number: int) -> str:
            calls.append((cls.__name__, number))
            return f"{cls.__name__}{number}"

        @staticmethod
        @client.cached()
        def of_nobody(number: int) -> int:
            calls.append(number)
            return number

    return Service


def test_a_method_knows_its_object(service: Any, calls: list[Any]) -> None:
    a, b = service("a"), service("b")
    assert [a.find(1), b.find(1), a.find(number=1), service("a").find(1)] == ["a1", "b1", "a1", "a1"]
    assert calls == [("a", 1), ("b", 1)]
    assert a.find.cache_info() == service.find.cache_info() == CacheInfo(2, 2)


def test_the_rest_of_a_methods_functions_know_it_too(service: Any, calls: list[Any]) -> None:
    a, b = service("a"), service("b")
    a.find(1), b.find(1)
    assert a.find.key(1) == service.find.key(a, 1) != b.find.key(1)
    assert a.find.invalidate(1)
    assert a.find.refresh(1) == "a1"
    a.find(1), b.find(1)
    assert calls == [("a", 1), ("b", 1), ("a", 1)]
    a.find.cache_clear()
    b.find(1)
    assert calls[3:] == [("b", 1)]


def test_a_method_called_on_its_class_is_given_the_object(service: Any, calls: list[Any]) -> None:
    a = service("a")
    assert isinstance(service.find, Cached)
    assert service.find(a, 1) == a.find(1) == "a1"
    assert len(calls) == 1
    assert service.find.invalidate(a, 1)


def test_a_template_names_what_matters_of_the_object(service: Any, client: Client) -> None:
    service("a").look(3)
    assert client.get("a:3") == "a3"


def test_a_subclass_shares_the_function_and_not_the_results(service: Any, calls: list[Any]) -> None:
    class Special(service):  # type: ignore[misc]
        def find(self, number: int) -> str:
            return "special " + str(super().find(number))

    assert [service("a").find(1), Special("a").find(1), Special("a").find(1)] == ["a1", "special a1", "special a1"]
    assert len(calls) == 2


def test_a_class_method_is_keyed_by_its_class(service: Any, calls: list[Any]) -> None:
    class Special(service):  # type: ignore[misc]
        pass

    assert [service.of_class(1), service("a").of_class(1), Special.of_class(1)] == ["Service1", "Service1", "Special1"]
    assert calls == [("Service", 1), ("Special", 1)]
    chained = sys.version_info < (3, 13)  # from then on classmethod does not ask what it wraps to bind
    assert service.of_class.invalidate(*(() if chained else (service,)), 1)


def test_a_static_method_is_keyed_by_its_arguments(service: Any, calls: list[Any]) -> None:
    assert [service.of_nobody(1), service("a").of_nobody(1)] == [1, 1]
    assert calls == [1]
    assert service("a").of_nobody.invalidate(1)


@pytest.mark.parametrize("kind", [classmethod, staticmethod])
def test_the_decorator_stands_below_classmethod_and_staticmethod(client: Client, kind: Any) -> None:
    with pytest.raises(TypeError, match=f"put @{kind.__name__} above"):
        client.cached()(kind(lambda: 1))


def test_an_object_without_a_key_is_refused_at_the_call(client: Client) -> None:
    class Plain:
        @client.cached()
        def method(self) -> int:
            return 1

    with pytest.raises(TypeError, match=r"argument 'self': .*__cache_key__"):
        Plain().method()


# -- how it looks from outside ------------------------------------------------------------------------------------


def plain(a: int, *, b: str = "x") -> float:
    """Say something."""
    return 1.0


async def coroutine(a: int, *, b: str = "x") -> float:
    """Say something."""
    return 1.0


@pytest.mark.parametrize("function", [plain, coroutine])
def test_a_cached_function_looks_like_the_function(client: Client, aclient: AsyncClient, function: Any) -> None:
    used: Any = aclient if function is coroutine else client
    decorated: Any = cached(used)(function)
    assert decorated.__wrapped__ is function
    assert (decorated.__name__, decorated.__qualname__, decorated.__module__, decorated.__doc__) == (
        function.__name__,
        function.__qualname__,
        __name__,
        "Say something.",
    )
    assert inspect.signature(decorated) == inspect.signature(function)
    assert inspect.getdoc(decorated) == "Say something."


def test_a_bound_method_looks_like_a_bound_method(service: Any) -> None:
    assert str(inspect.signature(service("a").find)) == "(number: 'int') -> 'str'"
    assert str(inspect.signature(service.find)) == "(self, number: 'int') -> 'str'"
    assert service("a").find.__doc__ == "Find it."
    assert "function" in inspect.signature(Cached).parameters


def test_an_async_cached_function_is_known_as_a_coroutine_function(aclient: AsyncClient, client: Client) -> None:
    """Web frameworks ask, and would not await it otherwise.  On 3.11 only asyncio's own question can be answered."""

    class Service:
        @aclient.cached(ignore=["self"])
        async def method(self) -> int:
            return 1

    for function in (aclient.cached()(coroutine), Service().method):
        assert asyncio.iscoroutinefunction(function)
        assert inspect.iscoroutinefunction(function) == (sys.version_info >= (3, 12))
    assert not asyncio.iscoroutinefunction(client.cached()(plain))


def test_coroutine_functions_need_an_async_client_and_plain_ones_a_client(client: Any, aclient: Any) -> None:
    with pytest.raises(TypeError, match="needs an AsyncClient"):
        cached(client)(coroutine)
    with pytest.raises(TypeError, match="use a Client"):
        cached(aclient)(plain)


def test_generators_are_refused(client: Any, aclient: Any) -> None:
    def generator() -> Iterator[int]:
        yield 1

    async def async_generator() -> Any:
        yield 1

    for used, function in ((client, generator), (client, async_generator), (aclient, async_generator)):
        with pytest.raises(TypeError, match="generator's values"):
            cached(used)(function)


def test_what_has_no_name_is_refused(client: Client) -> None:
    class Caller:
        def __call__(self) -> int:
            return 1

    with pytest.raises(TypeError, match=r"only functions have a name to make keys of, not .*Caller"):
        client.cached()(Caller())


def test_settings_that_do_not_fit_the_function_are_refused_when_decorating(client: Client) -> None:
    with pytest.raises(ValueError, match="ignore names nobody"):
        client.cached(ignore=["nobody"])(plain)
    with pytest.raises(ValueError, match="key names id"):
        client.cached(key="user:{id}")(plain)


def test_the_method_and_the_function_take_the_same_settings() -> None:
    expected = list(inspect.signature(cached).parameters.values())[1:]
    for kind in (Client, AsyncClient):
        assert list(inspect.signature(kind.cached).parameters.values())[1:] == expected


# -- the same for coroutine functions -----------------------------------------------------------------------------


def test_async_results_are_computed_once_per_key_and_counted(run: Any, adouble: Any, calls: list[int]) -> None:
    async def main() -> list[int]:
        return [await adouble(1), await adouble(x=1), await adouble(2)]

    assert run(main()) == [2, 2, 4]
    assert calls == [1, 2]
    assert adouble.cache_info() == CacheInfo(hits=1, misses=2)


def test_concurrent_async_calls_are_computed_once(run: Any, adouble: Any, calls: list[int]) -> None:
    async def main() -> list[int]:
        return await asyncio.gather(*(adouble(1) for _ in range(50)))

    assert run(main()) == [2] * 50
    assert calls == [1]


def test_async_invalidate_refresh_key_and_clear(run: Any, adouble: Any, calls: list[int]) -> None:
    async def main() -> None:
        await adouble(1)
        assert [await adouble.invalidate(1), await adouble.invalidate(1)] == [True, False]
        assert [await adouble.refresh(1), await adouble(1)] == [2, 2]
        assert calls == [1, 1]
        assert adouble.key(1) == adouble.key(1, times=2)
        await adouble.cache_clear()
        await adouble(1)
        assert calls == [1, 1, 1]

    run(main())


def test_async_methods_know_their_object(run: Any, aclient: AsyncClient, calls: list[Any]) -> None:
    class Service:
        def __init__(self, name: str) -> None:
            self.name = name

        @aclient.cached(key="{self.name}:{number}")
        async def find(self, number: int) -> str:
            calls.append((self.name, number))
            return f"{self.name}{number}"

    async def main() -> None:
        a, b = Service("a"), Service("b")
        assert [await a.find(1), await b.find(1), await Service.find(a, 1)] == ["a1", "b1", "a1"]
        assert await a.find.invalidate(1)
        assert [await a.find(1), await b.find(1)] == ["a1", "b1"]
        with pytest.raises(ValueError, match="namespace= of its own"):
            await a.find.cache_clear()

    run(main())
    assert calls == [("a", 1), ("b", 1), ("a", 1)]


def test_without_a_cache_the_coroutine_function_is_called(run: Any, adouble: Any, memory: Memory) -> None:
    async def main() -> list[int]:
        return [await adouble(1), await adouble.refresh(1)]

    memory.down = True
    assert run(main()) == [2, 2]
    assert adouble.cache_info() == CacheInfo(0, 1)


@pytest.mark.parametrize("pause", range(6))
def test_an_async_call_cancelled_anywhere_leaves_nothing_behind(run: Any, aclient: AsyncClient, pause: int) -> None:
    @aclient.cached()
    async def slow() -> int:
        await asyncio.sleep(0)
        return 1

    async def main() -> None:
        task = asyncio.create_task(slow())
        for _ in range(pause):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert len(aclient.engine.flights) == 0
        assert await slow() == 1

    run(main())
