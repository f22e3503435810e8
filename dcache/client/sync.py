"""`Client`: the cache for threads."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

from dcache.client.cached import Decorator, cached
from dcache.client.engine import Engine
from dcache.client.keys import KeyFunction
from dcache.client.loading import UNREACHABLE, StoreIf
from dcache.client.reruns import Sets
from dcache.client.session import Configuration, Session, View, key_from_bytes, parse_url
from dcache.codec import Serializer
from dcache.errors import DcacheError
from dcache.membership import Member
from dcache.ops import batch, cluster, mutate, prompt, prompt_many, read, write
from dcache.ops.context import DEFAULT, Context, K, Key, Ttl, TtlOrDefault
from dcache.ops.effects import Op
from dcache.ops.quorum import QuorumSpec
from dcache.ops.read import Item
from dcache.record import ZERO, Version

T = TypeVar("T")
P = ParamSpec("P")


class Client(View):
    """A cache spread over the nodes of a cluster; one client serves all threads of a process, and forked children.

    Making one never connects.  `nodes` are the addresses of any members ("host:port", port 7400 if left out), one
    string or several; the client asks them for all the others.

    Settings, all by keyword:

    * `write_quorum`, `read_quorum`: how many owners must acknowledge a write or be heard for a read: an int, "one",
      "quorum" (a majority, the default) or "all".  With majorities for both, no read returns anything older than an
      acknowledged write; with less, reads and writes go on while most of a key's owners are away, and may be stale.
    * `namespace` (""): keys of different namespaces never meet; `clear` and `scan` are about one.
    * `default_ttl` (None): lifetime in seconds, or a `timedelta`, where none is given; None is no expiry.
    * `serializer` ("msgpack"): also "json", "raw" (bytes only), "pickle", or an object with `dumps` and `loads`.
    * `compression` (None), `compress_above` (1024 bytes): "zlib" or "zstd" for larger values.
    * `max_value` (1 MiB): what an encoded value may have; the nodes have such a limit of their own.
    * `timeout` (0.5 s): for one operation, with all its connects and retries.
    * `connect_timeout` (0.2 s), `max_connections` (64 per node).
    * `on_error` ("raise"): with "miss", plain reads, sets and deletes that cannot reach the cluster count the error and
      return what they return on a miss.  Conditional changes always raise: "no" would be a lie.
    * `consistency` ("quorums"): what the two quorums give.  With "linearizable", for which both are to be majorities,
      sets and deletes take two round trips, have their place in one order whatever the clocks say, and are never
      applied twice.

    Raises `ValueError` or `TypeError` for settings that make no sense.  Every operation may raise `NoNodesAvailable`,
    `QuorumError` (and its subclass `DeadlineExceeded`), `ClockSkew`, `ClusterMismatch` or `ClientClosed`, and, given
    a bad key, `InvalidKey` or `TypeError`.
    """

    is_async = False

    def __init__(
        self,
        nodes: str | Iterable[str],
        *,
        write_quorum: QuorumSpec = "quorum",
        read_quorum: QuorumSpec = "quorum",
        namespace: str = "",
        default_ttl: Ttl = None,
        serializer: str | Serializer = "msgpack",
        compression: str | None = None,
        compress_above: int = 1024,
        max_value: int = 1024 * 1024,
        timeout: float = 0.5,
        connect_timeout: float = 0.2,
        max_connections: int = 64,
        on_error: str = "raise",
        consistency: str = "quorums",
    ) -> None:
        configuration = Configuration(
            write_quorum=write_quorum,
            read_quorum=read_quorum,
            namespace=namespace,
            default_ttl=default_ttl,
            serializer=serializer,
            compression=compression,
            compress_above=compress_above,
            max_value=max_value,
            timeout=timeout,
            connect_timeout=connect_timeout,
            max_connections=max_connections,
            on_error=on_error,
            consistency=consistency,
        )
        session = Session(nodes, configuration)
        super().__init__(session, configuration)
        self.engine = Engine(session)

    @classmethod
    def from_url(cls, url: str, **settings: Any) -> Self:
        """A client from "dcache://h1:7400,h2/namespace?timeout=1"; `settings` win over those in the URL."""
        nodes, found = parse_url(url)
        return cls(nodes, **{**found, **settings})

    def with_options(self, **changes: Any) -> Self:
        """A view on the same connections with other settings; all but `connect_timeout` and `max_connections`."""
        view = type(self).__new__(type(self))
        View.__init__(view, self.session, self.with_configuration(changes))
        view.engine = self.engine
        return view

    # -- single keys --------------------------------------------------------------------------------------------------

    def get(self, key: Key, default: Any = None) -> Any:
        """The value of `key`, or `default`.  None is a value like any other."""
        try:
            return self.engine.read(self, self.engine.driver.read, prompt.value, read.get, key, default)
        except UNREACHABLE:
            return self._missed(default)

    def gets(self, key: Key) -> Item | None:
        """The value of `key` as an `Item` with its version, for `cas`, and its remaining life; None if absent."""
        return self._or(None, read.gets, key)

    def exists(self, key: Key) -> bool:
        """Whether `key` is there.  Moves no value."""
        return self._or(False, read.exists, key)

    def ttl(self, key: Key) -> float | None:
        """The remaining life of `key` in seconds; inf for no expiry, None if it is absent."""
        return self._or(None, read.ttl, key)

    def set(self, key: Key, value: Any, ttl: TtlOrDefault = DEFAULT) -> Version:
        """Store `value` for `ttl` seconds (or a `timedelta`; None: no expiry).  Returns the version, for `cas`.

        Raises `ValueTooLarge`, `SerializationError`, and `ValueError` for a lifetime that is none.  After a
        `QuorumError` with `in_doubt` the value may or may not have been stored.
        """
        try:
            return self._or(ZERO, write.set, key, value, ttl)
        finally:
            self._detach(key)

    def delete(self, key: Key) -> bool:
        """Forget `key`; whether an owner held it."""
        try:
            return self._or(False, write.delete, key)
        finally:
            self._detach(key)

    # -- conditional changes ------------------------------------------------------------------------------------------

    def add(self, key: Key, value: Any, ttl: TtlOrDefault = DEFAULT) -> bool:
        """Store `value` if `key` is absent; whether it was."""
        try:
            return self._run(mutate.add, key, value, ttl)
        finally:
            self._detach(key)

    def replace(self, key: Key, value: Any, ttl: TtlOrDefault = DEFAULT) -> bool:
        """Store `value` if `key` is there; whether it was."""
        try:
            return self._run(mutate.replace, key, value, ttl)
        finally:
            self._detach(key)

    def cas(self, key: Key, value: Any, version: Version, ttl: TtlOrDefault = DEFAULT) -> bool:
        """Store `value` if `key` still has `version`, from `gets` or `set`; whether it had."""
        try:
            return self._run(mutate.cas, key, value, version, ttl)
        finally:
            self._detach(key)

    def incr(self, key: Key, delta: int = 1, *, initial: int = 0, ttl: TtlOrDefault = DEFAULT) -> int:
        """Add `delta` to a counter and return the sum; an absent one counts as `initial`.

        `ttl` is for a counter that this call makes; one that is there keeps its remaining life.  Raises `NotACounter`
        if the value is not an integer.
        """
        try:
            return self._run(mutate.incr, key, delta, initial=initial, ttl=ttl)
        finally:
            self._detach(key)

    def decr(self, key: Key, delta: int = 1, *, initial: int = 0, ttl: TtlOrDefault = DEFAULT) -> int:
        """As `incr`, subtracting."""
        try:
            return self._run(mutate.decr, key, delta, initial=initial, ttl=ttl)
        finally:
            self._detach(key)

    def touch(self, key: Key, ttl: TtlOrDefault = DEFAULT) -> bool:
        """Give `key` a new lifetime; whether it is there."""
        return self._run(mutate.touch, key, ttl)

    # -- many keys ----------------------------------------------------------------------------------------------------

    def get_many(self, keys: Iterable[K]) -> dict[K, Any]:
        """The values of those of `keys` that are there, under the keys as given."""
        try:
            return self.engine.read(self, self.engine.driver.read_many, prompt_many.values, batch.get_many, tuple(keys))
        except UNREACHABLE:
            return self._missed({})

    def set_many(self, mapping: Mapping[K, Any], ttl: TtlOrDefault = DEFAULT) -> dict[K, DcacheError]:
        """Store all values; returns what went wrong by key, empty when all is well.

        A value that is too large or cannot be encoded, or a key whose owners are away, does not keep the others from
        being stored.
        """
        sets = Sets(self.session, mapping, ttl)
        try:
            return self._run(sets.run)
        except UNREACHABLE as error:
            if sets.errors is not None:
                return sets.errors
            if self.options.on_error == "raise":
                raise
            return dict.fromkeys(mapping, error)
        finally:
            self._detach(*mapping)

    def delete_many(self, keys: Iterable[Key]) -> int:
        """Forget all `keys`; how many of them an owner held.

        It may be fewer where the ring changed meanwhile and the call was made anew: what the first attempt forgot is
        not held any more.
        """
        keys = tuple(keys)
        try:
            return self._or(0, batch.delete_many, keys)
        finally:
            self._detach(*keys)

    # -- computing what is missing ------------------------------------------------------------------------------------

    def get_or_set(
        self,
        key: Key,
        factory: Callable[[], T],
        ttl: TtlOrDefault = DEFAULT,
        *,
        store_if: Callable[[T], bool] | None = None,
    ) -> T:
        """The value of `key`, or what `factory()` returns, which is then stored.

        What is found counts as being of the factory's type: who stored it is not checked.

        Of concurrent callers in this process one computes and all get its result; what it raises they all get, and
        nothing is stored.  A value for which `store_if(value)` is false is returned and not stored.  A `set` or
        `delete` made during the computation wins over it.  Where the cache cannot be reached the value is computed
        all the same.
        """
        found, claimer = self.engine.look(self, key)
        if found is not None:
            return cast("T", found.value)
        return cast("T", self.engine.load(self, key, factory, ttl, store_if, claimer))

    # -- the namespace and the cluster --------------------------------------------------------------------------------

    def scan(self, prefix: str | bytes = "") -> Iterator[str | bytes]:
        """The keys of the namespace that start with `prefix`, in no order, each once; str where they are UTF-8.

        Keys that are there all the while are seen; those set or deleted meanwhile may be or not.  The client remembers
        what it has returned, so memory grows with the number of keys.
        """
        wanted = prefix.encode() if isinstance(prefix, str) else bytes(prefix)
        state, seen = None, builtins.set[bytes]()
        while True:
            keys, state = self._run(cluster.scan_page, wanted, state)
            for key in keys:
                if key not in seen:
                    seen.add(key)
                    yield key_from_bytes(key)
            if state is None:
                return

    def clear(self) -> None:
        """Forget every key of this client's namespace."""
        try:
            self._run(cluster.clear)
        finally:
            self.engine.flights.detach_all(self.options.prefix + b"\0")

    def ping(self) -> dict[str, float]:
        """The round trip to each member that answers, in seconds, by name; `NoNodesAvailable` if none does."""
        return self._run(cluster.ping)

    def wait_ready(self, timeout: float = 10.0) -> None:
        """Wait until the cluster has formed and every key can be read and written; raises what is missing after
        `timeout` seconds."""
        self.engine.wait_ready(self, timeout)

    def stats(self) -> dict[str, Any]:
        """{"client": this client's counters, "nodes": {name: its statistics, or {"error": why there are none}}}."""
        return self._run(cluster.stats)

    def members(self) -> tuple[Member, ...]:
        """The members of the cluster, sorted by name."""
        return self._run(cluster.members)

    def cached(
        self,
        ttl: TtlOrDefault = 60,
        key: str | KeyFunction | None = None,
        namespace: str | None = None,
        ignore: Collection[str] = (),
        version: str | int | None = None,
        store_if: StoreIf = None,
    ) -> Decorator:
        """`@client.cached(...)`: the same as `@cached(client, ...)`."""
        return cached(self, ttl, key, namespace, ignore, version, store_if)

    def close(self) -> None:
        """Close all connections, of all views too.  Operations after this raise `ClientClosed`."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- how it is done -----------------------------------------------------------------------------------------------

    def _run(self, operation: Callable[Concatenate[Context, P], Op[T]], *args: P.args, **kw: P.kwargs) -> T:
        return self.engine.run(self, operation, *args, **kw)

    def _or(self, miss: T, operation: Callable[Concatenate[Context, P], Op[T]], *args: P.args, **kw: P.kwargs) -> T:
        """Run; with `on_error="miss"` not reaching the cluster is a miss."""
        try:
            return self.engine.run(self, operation, *args, **kw)
        except UNREACHABLE:
            return self._missed(miss)

    def _missed(self, miss: T) -> T:
        """`miss`, unless the error that is being handled is to be raised."""
        if self.options.on_error == "raise":
            raise  # noqa: PLE0704  # only called where one is
        return miss

    def _detach(self, *keys: Key) -> None:
        """These keys were changed: what is being computed for them is not for those who ask from now on."""
        flights = self.engine.flights
        if len(flights):
            for key in keys:
                flights.detach(self.flight_key(key))
