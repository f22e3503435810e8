"""The methods of a node, one function each: parameters in, result or `Refusal` out.  No I/O, no ring, no peers.

What the node knows of its cluster is a `View` that somebody above replaces: the fingerprint that requests on keys must
carry, and the table it answers with, which here is only bytes to pass on.

An answer about a key is `(complete, version, value, flags, ttl)` where it is held and `(complete, floor, promised)`
where not; an answer to a write is `(complete, status, version)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs

from dcache.errors import InvalidKey, ValueTooLarge
from dcache.node.comparison import Comparison
from dcache.node.held import Entry
from dcache.node.refusal import REFUSED, Refusal, as_refusal, refusal_to_wire, version_from_wire
from dcache.node.scans import Scans
from dcache.node.store import ANSWER_FRAME, NEWER, PROMISED, Store
from dcache.record import Version, version_milliseconds
from dcache.wire import PROTOCOL, Code, Limits, check_key, pack, pack_array, storage_key

__all__ = ["Identity", "Refusal", "Service", "View", "refusal_to_wire"]


@attrs.frozen
class View:
    """What the node knows of its cluster; `fingerprint` is None while it is in none, and `digest`, by which clients see
    whether they have the table, empty."""

    cluster_id: str = ""
    fingerprint: bytes | None = None
    table: object = None
    digest: bytes = b""


@attrs.frozen
class Identity:
    """Who this process is.  `boot_id` is new at every start."""

    name: str
    boot_id: str
    version: str = ""


Method = Callable[..., Any]
Moment = tuple[int, bytes]
"""Now in ms, and what a version has to be below to be taken as it is: what a batch asks the clocks for once."""


class Service:
    """`now` gives milliseconds that never go back, `wall` milliseconds since 1970; `skew` is how many of them a version
    may be ahead."""

    def __init__(
        self,
        store: Store,
        identity: Identity,
        now: Callable[[], int],
        wall: Callable[[], int],
        *,
        limits: Limits = Limits(),
        skew: int = 60_000,
    ) -> None:
        self.store, self.identity, self.limits = store, identity, limits
        self.view = View()
        self._now, self._wall, self._skew = now, wall, skew
        self._started = now()
        self._namespace = b""  # the last one that was found to be sound: mostly there is one
        self._scans = Scans(store, limits.max_batch)
        self._statistics: list[Callable[[], dict[str, Any]]] = []
        self._comparison = Comparison(store, self._fence, now, lambda: wall() + skew, limits.max_batch)
        self.methods: dict[str, Method] = {
            "hello": self.hello,
            "ping": self.ping,
            "table": self.table,
            "ready": self.ready,
            "stats": self.stats,
            "get": self.get,
            "peek": self.peek,
            "top": self.top,
            "claim": self.claim,
            "set": self.set,
            "copy": self.copy,
            "accept": self.accept,
            "delete": self.delete,
            "prepare": self.prepare,
            "release": self.release,
            "get_many": self.get_many,
            "top_many": self.top_many,
            "set_many": self.set_many,
            "copy_many": self.copy_many,
            "delete_many": self.delete_many,
            "newest": self.newest,
            "clear": self.clear,
            "scan": self.scan,
            **self._comparison.methods(),
        }
        self._at_hand: dict[str, Callable[..., bytes | None]] = {
            "get": self._get_at_hand,
            "get_many": self._get_many_at_hand,
        }

    def answer(self, head: bytes, method: str, params: Sequence[Any]) -> bytes:
        """`head`, then the result of `handle` as MessagePack.

        In one piece from the beginning: a node that copies a megabyte once more has it taken back by the system, and
        given anew, with every request.
        """
        at_hand = self._at_hand.get(method)
        if at_hand is not None:
            try:
                answer = at_hand(head, *params)
            except InvalidKey as error:
                raise as_refusal(error) from error
            except (TypeError, ValueError):  # of the wrong form, and `handle` says so
                answer = None
            if answer is not None:
                return answer
        return head + pack(self.handle(method, params))

    def handle(self, method: str, params: Sequence[Any]) -> Any:
        """The result of a request; `Refusal` if it is refused."""
        function = self.methods.get(method)
        if function is None:
            raise Refusal(Code.UNKNOWN_METHOD, method)
        try:
            return function(*params)
        except REFUSED as error:
            raise as_refusal(error) from error

    # -- about the node -----------------------------------------------------------------------------------------------

    def hello(self, protocol: int, cluster_id: str | None, push: bool) -> dict[str, Any]:
        if protocol != PROTOCOL:
            raise Refusal(Code.BAD_REQUEST, f"this node speaks protocol {PROTOCOL}")
        return {
            "protocol": PROTOCOL,
            "version": self.identity.version,
            "cluster": self.view.cluster_id,
            "node": self.identity.name,
            "boot": self.identity.boot_id,
            "time": self._wall(),
            "limits": attrs.asdict(self.limits),
            "digest": self.view.digest,
        }

    def ping(self) -> None:
        return None

    def table(self) -> object:
        if self.view.fingerprint is None:
            raise Refusal(Code.NOT_READY, "this node has not joined a cluster yet")
        return self.view.table

    def ready(self, fingerprint: bytes) -> bool:
        """Whether this node votes for all of its slots."""
        self._fence(fingerprint)
        complete, owned = self.store.progress()
        return complete == owned  # of a node so small that it owns none there is nothing to wait for

    def stats(self) -> dict[str, Any]:
        store = self.store
        complete, owned = store.progress()
        told = {
            "node": self.identity.name,
            "version": self.identity.version,
            "uptime": (self._now() - self._started) // 1000,
            "entries": len(store),
            "bytes": store.used,
            "memory_limit": store.memory_limit,
            "promises": len(store.promises),
            "complete": store.all_complete,
            "slots": owned,
            "slots_complete": complete,
            **attrs.asdict(store.counters),
        }
        for statistics in self._statistics:
            told.update(statistics())
        return told

    def sweep(self, most: int) -> bool:
        """A slice of forgetting what has expired, was hidden or is not wanted any more; whether there may be more."""
        more = self.store.sweep(self._now(), most)
        return self._comparison.sweep(most) or more

    def also_report(self, statistics: Callable[[], dict[str, Any]]) -> None:
        """Add what somebody else counts to `stats`."""
        self._statistics.append(statistics)

    # -- one key ------------------------------------------------------------------------------------------------------

    def get(self, fingerprint: bytes, namespace: bytes, key: bytes) -> tuple[Any, ...]:
        full = self._key(fingerprint, namespace, key)
        now = self._now()
        return self._answer(full, self.store.get(full, now), now)

    def _get_at_hand(self, head: bytes, fingerprint: bytes, namespace: bytes, key: bytes) -> bytes | None:
        """`head` and the answer to a `get` that hits, as it is held; None where `get` has to look closer.

        The key needs no checking: one that is held was checked when it was written.  A namespace with a NUL would meet
        the keys of another one.
        """
        # The NUL is looked for as a number: for b"\0" Python first makes an exception that says it is none.
        if fingerprint != self.view.fingerprint or 0 in namespace:
            return None
        held = self.store.answer(namespace + b"\0" + key, self._now)
        return None if held is None else head + held

    def peek(self, fingerprint: bytes, namespace: bytes, key: bytes) -> tuple[Any, ...]:
        """As `get`, without the value."""
        full = self._key(fingerprint, namespace, key)
        now = self._now()
        entry = self.store.peek(full, now)
        if entry is None:
            return self._answer(full, None, now)
        return self.store.is_complete(full), entry.version, b"", entry.flags, entry.ttl(now)

    def top(self, fingerprint: bytes, namespace: bytes, key: bytes) -> tuple[bool, Version]:
        """Whether this node's word on `key` counts, and the highest version held, forgotten or promised that a write
        of it may meet here."""
        return self._top(self._moment(), self._key(fingerprint, namespace, key))

    def claim(
        self, fingerprint: bytes, namespace: bytes, key: bytes, version: bytes, unreadable: bytes
    ) -> tuple[Any, ...]:
        full = self._key(fingerprint, namespace, key)
        moment = now, _ = self._moment()
        stamped = self._stamped(moment, full, version)
        if type(unreadable) is not bytes:
            raise TypeError("the version up to which nothing is readable is binary")
        entry, promised = self.store.claim(full, stamped, Version(unreadable), now)
        return self._answer(full, entry, now, promised)

    def set(
        self,
        fingerprint: bytes,
        namespace: bytes,
        key: bytes,
        version: bytes,
        value: bytes,
        flags: int,
        ttl: int | None,
    ) -> tuple[Any, ...]:
        return self._set(self._moment(), self._key(fingerprint, namespace, key), version, value, flags, ttl)

    def copy(
        self,
        fingerprint: bytes,
        namespace: bytes,
        key: bytes,
        version: bytes,
        value: bytes,
        flags: int,
        ttl: int | None,
    ) -> tuple[Any, ...]:
        """As `set`, for a record that other nodes hold: whoever stamped it is not here to be told of the time."""
        return self._copy(self._moment(), self._key(fingerprint, namespace, key), version, value, flags, ttl)

    def accept(
        self,
        fingerprint: bytes,
        namespace: bytes,
        key: bytes,
        version: bytes,
        value: bytes,
        flags: int,
        ttl: int | None,
    ) -> tuple[Any, ...]:
        full = self._key(fingerprint, namespace, key)
        self._check_value(value, flags, ttl)
        answer = self.store.accept(full, version_from_wire(version), value, flags, ttl, self._now())
        return self.store.is_complete(full), *answer

    def delete(self, fingerprint: bytes, namespace: bytes, key: bytes, version: bytes) -> tuple[Any, ...]:
        return self._delete(self._moment(), self._key(fingerprint, namespace, key), version)

    def prepare(self, fingerprint: bytes, namespace: bytes, key: bytes, ballot: bytes) -> tuple[Any, ...]:
        full = self._key(fingerprint, namespace, key)
        moment = now, _ = self._moment()
        status, version, entry = self.store.prepare(full, self._stamped(moment, full, ballot), now)
        record = None if entry is None else (entry.version, entry.value, entry.flags, entry.ttl(now))
        return self.store.is_complete(full), status, version, record

    def release(self, fingerprint: bytes, namespace: bytes, key: bytes, ballot: bytes) -> None:
        """Give up a ballot with which nothing was or will be accepted."""
        self.store.promises.release(self._key(fingerprint, namespace, key), version_from_wire(ballot))

    # -- many keys ----------------------------------------------------------------------------------------------------

    def get_many(self, fingerprint: bytes, namespace: bytes, items: Sequence[Any]) -> list[Any]:
        """Answers to the first items, as many as one frame holds."""
        self._fence(fingerprint)
        answers: list[Any] = []
        room, now = self.limits.frame_room, self._now()
        for (key,) in items:
            full = self._full(namespace, key)
            entry = self.store.get(full, now)
            room -= ANSWER_FRAME if entry is None else ANSWER_FRAME + entry.size
            if room < 0 and answers:
                break
            answers.append(self._answer(full, entry, now))
        return answers

    def _get_many_at_hand(
        self, head: bytes, fingerprint: bytes, namespace: bytes, items: Sequence[Any]
    ) -> bytes | None:
        """As `_get_at_hand`; the misses are looked up one by one."""
        if fingerprint != self.view.fingerprint or 0 in namespace:
            return None
        prefix, now = namespace + b"\0", self._now()
        keys = [prefix + key for (key,) in items]
        answers: list[Any] | None = self.store.answers(keys, self.limits.frame_room, now)
        if answers is None:
            return None
        for at, answer in enumerate(answers):
            if answer is None:
                full = self._full(namespace, items[at][0])
                answers[at] = pack(self._answer(full, self.store.get(full, now), now))
        return pack_array(answers, head)

    def top_many(self, fingerprint: bytes, namespace: bytes, items: Sequence[Any]) -> list[Any]:
        return self._each(fingerprint, namespace, items, self._top)

    def set_many(self, fingerprint: bytes, namespace: bytes, items: Sequence[Any]) -> list[Any]:
        return self._each(fingerprint, namespace, items, self._set)

    def copy_many(self, fingerprint: bytes, namespace: bytes, items: Sequence[Any]) -> list[Any]:
        return self._each(fingerprint, namespace, items, self._copy)

    def delete_many(self, fingerprint: bytes, namespace: bytes, items: Sequence[Any]) -> list[Any]:
        return self._each(fingerprint, namespace, items, self._delete)

    def _each(self, fingerprint: bytes, namespace: bytes, items: Sequence[Any], single: Method) -> list[Any]:
        """The answer to each item; the refusal of one is its answer, `(code, message, detail)`, and harms no other."""
        self._fence(fingerprint)
        answers: list[Any] = []
        moment, full = self._moment(), self._full
        for item in items:
            try:
                key, *rest = item
                answers.append(single(moment, full(namespace, key), *rest))
            except (Refusal, *REFUSED) as error:
                answers.append(refusal_to_wire(as_refusal(error)))
        return answers

    # -- a whole namespace --------------------------------------------------------------------------------------------

    def newest(self, fingerprint: bytes, namespace: bytes) -> tuple[bool, Version]:
        """Whether all slots are complete, and the highest version that was ever held, forgotten or promised here."""
        self._fence(fingerprint)
        return self.store.all_complete, self.store.newest

    def clear(self, fingerprint: bytes, namespace: bytes, version: bytes) -> tuple[bool, Version]:
        """Forget the namespace up to `version`; answered as `newest` is."""
        self._fence(fingerprint)
        stamped = version_from_wire(version)
        self._check_clock(stamped, self.store.newest)
        self.store.clear(self._prefix(namespace), stamped, self._now())
        return self.store.all_complete, self.store.newest

    def scan(self, fingerprint: bytes, namespace: bytes, prefix: bytes, cursor: Any) -> tuple[Any, list[bytes]]:
        """Keys that start with `prefix`, from a snapshot made with the first page, and the cursor of the next page."""
        self._fence(fingerprint)
        start = self._prefix(namespace)
        return self._scans.page(start, start + prefix, cursor, self._now())

    # -- what they share ----------------------------------------------------------------------------------------------

    def _fence(self, fingerprint: bytes) -> None:
        """Refuse a request made under another ring than this node's."""
        if fingerprint != self.view.fingerprint:
            if self.view.fingerprint is None:
                raise Refusal(Code.NOT_READY, "this node has not joined a cluster yet")
            raise Refusal(Code.WRONG_RING, self.view.table)

    def _key(self, fingerprint: bytes, namespace: bytes, key: bytes) -> bytes:
        if fingerprint != self.view.fingerprint:
            self._fence(fingerprint)
        return self._full(namespace, key)

    def _full(self, namespace: bytes, key: bytes) -> bytes:
        if type(key) is not bytes:
            raise InvalidKey(f"a key is binary, not {type(key).__name__}")
        if not 0 < len(key) <= self.limits.max_key:
            check_key(key, self.limits)
        if namespace != self._namespace:
            self._prefix(namespace)
            self._namespace = namespace
        return namespace + b"\0" + key

    def _prefix(self, namespace: bytes) -> bytes:
        if type(namespace) is not bytes or len(namespace) > self.limits.max_namespace or 0 in namespace:
            raise InvalidKey("a namespace is binary, of limited length, and holds no NUL")
        return storage_key(namespace, b"")

    def _answer(self, full: bytes, entry: Entry | None, now: int, promised: bool = False) -> tuple[Any, ...]:
        complete = self.store.is_complete(full)
        if entry is None:
            return complete, self.store.floor(full), promised
        return complete, entry.version, entry.value, entry.flags, entry.ttl(now)

    def _set(
        self, moment: Moment, full: bytes, version: bytes, value: bytes, flags: int, ttl: int | None
    ) -> tuple[Any, ...]:
        store = self.store
        self._check_value(value, flags, ttl)
        answer = store.set(full, self._stamped(moment, full, version), value, flags, ttl, moment[0])
        if answer[0] is NEWER:
            answer = self._told_of_promises(full, version, answer)
        return store.all_complete or store.is_complete(full), *answer

    def _copy(
        self, moment: Moment, full: bytes, version: bytes, value: bytes, flags: int, ttl: int | None
    ) -> tuple[Any, ...]:
        self._check_value(value, flags, ttl)
        answer = self.store.set(full, version_from_wire(version), value, flags, ttl, moment[0])
        return self.store.is_complete(full), *answer

    def _delete(self, moment: Moment, full: bytes, version: bytes) -> tuple[Any, ...]:
        answer: tuple[Any, ...] = self.store.delete(full, self._stamped(moment, full, version), moment[0])
        if answer[0] is NEWER:
            answer = self._told_of_promises(full, version, answer)
        return self.store.is_complete(full), *answer

    def _top(self, moment: Moment, full: bytes) -> tuple[bool, Version]:
        return self.store.is_complete(full), self.store.top(full, moment[0])

    def _told_of_promises(self, full: bytes, version: bytes, answer: tuple[Any, ...]) -> tuple[Any, ...]:
        """The answer to a set or delete that is refused.  It may take itself for overtaken only if nothing above it was
        promised here before: whoever was promised something had not seen it, and may have gone by what is older."""
        promised = self.store.promised(full)
        return (PROMISED, max(answer[1], promised), *answer[2:]) if promised > version else answer

    def _check_value(self, value: bytes, flags: int, ttl: int | None) -> None:
        if type(value) is not bytes or type(flags) is not int or not 0 <= flags < 256:
            raise TypeError("a value is binary with flags from 0 to 255")
        if ttl is not None and (type(ttl) is not int or ttl <= 0):
            raise TypeError("a lifetime is a positive number of milliseconds, or nil")
        if len(value) > self.limits.max_value:
            raise ValueTooLarge(len(value), self.limits.max_value)

    def _moment(self) -> Moment:
        return self._now(), (self._wall() + self._skew + 1).to_bytes(6, "big")

    def _stamped(self, moment: Moment, full: bytes, version: bytes) -> Version:
        """`version`, unless its writer's clock is too far ahead."""
        stamped = version_from_wire(version)
        if stamped > moment[1]:
            # Not only what is held or forgotten: slots that were started over are ahead of all clocks for a while.
            barrier = self.store.barrier(self.store.slot_of(full))
            self._check_clock(stamped, max(self.store.known(full, moment[0]), barrier))
        return stamped

    def _check_clock(self, version: Version, known: Version) -> None:
        """Refuse what is far ahead of this clock and also of what was written before."""
        stamped, wall = version_milliseconds(version), self._wall()
        if stamped > wall + self._skew and stamped > version_milliseconds(known) + 1000:
            raise Refusal(Code.CLOCK_SKEW, (stamped, wall))
