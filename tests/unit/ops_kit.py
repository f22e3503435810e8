"""A cluster in memory, and two ways of driving an operation over it by hand: no socket, loop, thread or sleep.

    cluster = Cluster()                       # three complete nodes "a", "b", "c", three replicas
    ctx = cluster.context(read_quorum="all")  # a client's view of it; each call makes another client
    drive(write.set(ctx, "k", 1), cluster)    # everything is delivered and answered in order

    hand = Hand(read.get(ctx, "k"), cluster)  # the test decides what happens, call by call
    first, second, third = cluster.owners("k")
    hand.deliver(first)                       # the node acts and its reply arrives
    hand.fail(second, sent=True)              # no result; `sent`: it may have acted on it
    hand.late(); hand.expire()                # as a driver's clock would
    hand.resume()                             # the round is over: on to the next effect
    hand.finish()                             # the rest as `drive` does it; gives the result

    cluster.begin("abcd")                     # the ring changes: "d" joins, empty and incomplete; both rings count
    cluster.take_over()                       # only the next one does

Nodes are the real `Service` and `Store`, and every request and reply passes through the bytes of the wire.  All clocks
are one `Time`, in milliseconds, that moves only when told to, by `Sleep`s and by waiting for silent nodes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import attrs

from dcache.codec import Codec
from dcache.errors import NodeError
from dcache.membership import Member, MemberTable, RingState, Settings
from dcache.node.service import Identity, Refusal, Service, View, refusal_to_wire
from dcache.node.store import Store
from dcache.ops.backoff import Backoff
from dcache.ops.context import Context, Options, Shared, Ttl
from dcache.ops.effects import Call, Detached, Op, Round, Sleep
from dcache.ops.quorum import QuorumSpec
from dcache.record import Version, VersionClock, make_version
from dcache.ring import SLOTS, slot_of
from dcache.wire import Code, Decoder, Limits, encode_error, encode_reply, encode_request, storage_key

T = TypeVar("T")
WALL = 1_700_000_000_000
"""Milliseconds since 1970 when a test's time is 0."""

TIMEOUT = 500
"""Milliseconds that an operation has; each quarter of it what is pending counts as late."""

MEMORY = 1 << 20
NAMES = ("a", "b", "c")
LIMITS = Limits()


def v(n: int, writer: int = 0) -> Version:
    """A version of `n` milliseconds after (negative: before) a test's time 0."""
    return make_version(WALL + n, 0, writer)


@attrs.define
class Time:
    """Moves only when told to."""

    ms: int = 0

    def advance(self, ms: int) -> None:
        self.ms += ms

    def seconds(self) -> float:
        return self.ms / 1000


@attrs.define(eq=False)
class FakeLink:
    """A connection; tests set `alive` to False."""

    alive: bool = True


@functools.cache
def make_table(
    names: tuple[str, ...] = NAMES, replicas: int = 3, cluster_id: str = "kit", ring_version: int = 1
) -> MemberTable:
    """A member table with these nodes on the ring."""
    rows = {name: Member(name, f"{name}.test:7400") for name in names}
    placed = tuple(row.placed() for row in rows.values())
    settings = Settings(cluster_id, replicas=replicas, vnodes=16)
    return MemberTable(settings, RingState(ring_version, placed), rows)


def changing_table(before: MemberTable, names: tuple[str, ...]) -> MemberTable:
    """`before`, with a next ring of `names`."""
    following = make_table(names, before.settings.replicas, before.settings.cluster_id)
    state = RingState(before.ring_state.epoch + 1, before.ring_state.members, following.ring_state.members)
    return MemberTable(before.settings, state, {**following.members, **before.members})


def changed_table(before: MemberTable) -> MemberTable:
    """`before`, with its next ring taken over."""
    state, following = before.ring_state, before.ring_state.next
    assert following is not None, "the ring does not change"
    names = {node.name for node in following}
    rows = {name: row for name, row in before.members.items() if name in names}
    return MemberTable(before.settings, RingState(state.epoch + 1, following), rows)


def over_the_wire(frame: bytes) -> tuple[Any, ...]:
    """The message in `frame`, with the types that the other side sees."""
    decoder = Decoder(LIMITS.max_frame, LIMITS.max_batch)
    decoder.feed(frame)
    (message,) = decoder.messages()
    return message


class Node:
    """One node.  Switches: `down` (nothing reaches it), `silent` (requests are lost, no answer comes), `mute` (it acts,
    no answer comes), `error` (what every call fails with, not sent; with `error_sent` sent), `skew` (its clock, ms)."""

    def __init__(
        self, name: str, time: Time, memory: int = MEMORY, limits: Limits = LIMITS, *, complete: bool = True
    ) -> None:
        self.name, self._time, self._memory, self._limits = name, time, memory, limits
        self.down = self.silent = self.mute = self.error_sent = False
        self.error: Exception | None = None
        self.skew = 0
        self.boots = 0
        self.link = FakeLink()
        self.view = View()
        self.calls: list[Call] = []  # that reached it
        self.boot(complete=complete)

    def boot(self, *, complete: bool) -> None:
        """Start empty."""
        self.boots += 1
        self.store = Store(self._memory, slot_of, SLOTS)
        self.store.own(range(SLOTS))
        identity = Identity(self.name, f"{self.name}-{self.boots}", "kit")
        self.service = Service(self.store, identity, lambda: self._time.ms, self._wall, limits=self._limits)
        self.service.view = self.view
        if complete:
            self.complete()

    def _wall(self) -> int:
        return WALL + self._time.ms + self.skew

    def complete(self) -> None:
        """It knows all that was acknowledged."""
        self.store.complete(range(SLOTS))

    def restart(self) -> None:
        """Its memory is lost, its connections broke, it is incomplete."""
        self.break_link()
        self.boot(complete=False)

    def break_link(self) -> None:
        """Its connections broke; what it holds it keeps."""
        self.link.alive = False
        self.link = FakeLink()

    def learn(self, table: MemberTable | None) -> None:
        """From now on its ring is this one's; None: it is in no cluster."""
        if table is None:
            self.view = View()
        else:
            self.view = View(table.settings.cluster_id, table.fingerprint, table.to_wire())
        self.service.view = self.view

    def act(self, call: Call) -> Any:
        """Act on `call` as sent over the wire and return the result; `NodeError` if it is refused."""
        self.calls.append(call)
        _, message_id, method, params = over_the_wire(encode_request(7, call.method, call.params))
        try:
            frame = encode_reply(message_id, self.service.handle(method, params))
        except Refusal as refusal:
            code, _, detail = refusal_to_wire(refusal)
            frame = encode_error(message_id, Code(code), detail)
        _, _, error, result = over_the_wire(frame)
        if error is not None:
            raise NodeError(*error)
        return result

    # -- what it holds, behind the back of every client; keys of the namespace "" ------------------------------------

    def put(self, key: str, version: Version, value: Any = "x", ttl: int | None = None) -> None:
        """Hold a record, whatever stands against it but a newer one."""
        data, flags = Codec().encode(value)
        status, _ = self.store.set(full(key), version, data, flags, ttl, self._time.ms)
        assert status == 0, "something newer is held, forgotten or promised there"

    def evict(self, key: str) -> None:
        """Forget `key` for want of room: the floor of its slot rises to its version."""
        entry = self.store.peek(full(key), self._time.ms)
        assert entry is not None, "there is nothing to forget"
        self.store.delete(full(key), entry.version, self._time.ms)

    def forget_slot(self, key: str, version: Version) -> None:
        """Something else in the slot of `key`, of this version, was forgotten: its floor rises."""
        slot = slot_of(full(key))
        self.store.floors[slot] = max(self.store.floors[slot], version)

    def version(self, key: str) -> Version | None:
        """The version that it holds."""
        entry = self.store.peek(full(key), self._time.ms)
        return None if entry is None else entry.version

    def value(self, key: str) -> Any:
        """The value that it holds; None for none."""
        entry = self.store.peek(full(key), self._time.ms)
        return None if entry is None else Codec().decode(entry.value, entry.flags)

    def floor(self, key: str) -> Version:
        return self.store.floor(full(key))


def full(key: str) -> bytes:
    """The storage key of `key` in the namespace ""."""
    return storage_key(b"", key.encode())


class Cluster:
    """Nodes by name under one table; `sent`, `detached`, `sleeps` record what all driven operations asked for."""

    def __init__(
        self,
        names: Iterable[str] = NAMES,
        replicas: int = 3,
        *,
        memory: int = MEMORY,
        limits: Limits = LIMITS,
    ) -> None:
        self.time = Time()
        self.table = make_table(tuple(names), replicas)
        self.limits, self._memory = limits, memory
        self.nodes = {name: Node(name, self.time, memory, limits) for name in self.table.members}
        self.learn(self.table)
        self.clear_log()
        self._writers = itertools.count(1)

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def clear_log(self) -> None:
        self.sent: list[Call] = []
        self.detached: list[Call] = []
        self.sleeps: list[float] = []

    def learn(self, table: MemberTable) -> None:
        """All nodes, and contexts made from now on, go by this table; who is new in it is empty and incomplete."""
        self.table = table
        for name in table.members:
            if name not in self.nodes:
                self.nodes[name] = Node(name, self.time, self._memory, self.limits, complete=False)
        for node in self.nodes.values():
            node.learn(table)

    def begin(self, names: Iterable[str]) -> None:
        """The ring begins to change to one of `names`."""
        self.learn(changing_table(self.table, tuple(names)))

    def take_over(self) -> None:
        """The change of the ring ends: the next one alone is in force."""
        self.learn(changed_table(self.table))

    def both_owners(self, key: str) -> tuple[tuple[str, ...], ...]:
        """The owners of `key` on each ring in force."""
        return self.table.owners(slot_of(full(key), self.table.settings.ring_seed))

    def moving_key(self) -> str:
        """A key whose owners are not the same on both rings."""
        for key in map("k{}".format, itertools.count()):
            old, following = self.both_owners(key)
            if {*old} != {*following}:
                return key
        raise AssertionError

    def owners(self, key: str) -> tuple[str, ...]:
        """The owners of `key` in the namespace "", in preference order."""
        return self.preference(key)[: min(self.table.settings.replicas, len(self.table.ring))]

    def preference(self, key: str) -> tuple[str, ...]:
        """All nodes of the ring in the order of `key`."""
        slot = slot_of(full(key), self.table.settings.ring_seed)
        return self.table.ring.slot_owners(slot, len(self.table.ring))

    def context(
        self,
        *,
        write_quorum: QuorumSpec = "quorum",
        read_quorum: QuorumSpec = "quorum",
        namespace: str = "",
        default_ttl: Ttl = None,
        codec: Codec | None = None,
        skew: int = 0,
        turn: int = 0,
        consistency: str = "quorums",
        random: Callable[[], float] = lambda: 0.5,
        shared: Shared | None = None,
    ) -> Context:
        """A context of another client, or of the one whose `shared` is given.

        `skew` is how far its clock is ahead in ms, `turn` the owner it asks first (0: the most preferred).
        """
        codec = codec or Codec()
        options = Options(write_quorum, read_quorum, namespace, default_ttl, codec=codec, consistency=consistency)
        if shared is None:
            writer = next(self._writers) << 20  # far apart, as random ones are: `above` counts up from them
            clock = VersionClock(writer, lambda: WALL + self.time.ms + skew)
            backoff = Backoff(random)
            turns = itertools.count(turn)
            shared = Shared(clock, self.time.seconds, random, backoff, self.limits, turn=turns)
        return Context(self.table, options, shared)

    def available(self, **options: Any) -> Context:
        """As `context`, with one reply and one acknowledgement being enough."""
        return self.context(**{"write_quorum": "one", "read_quorum": "one", **options})

    def asked(self, method: str | None = None) -> list[str]:
        """The nodes that calls (of `method`) were sent to, in order, detached ones not among them."""
        return [call.node for call in self.sent if method in (None, call.method)]


class Hand:
    """An operation in the hands of a test.  What it raises comes out of the constructor, `resume` and `finish`.

    `waiting` are the calls sent and not yet answered, `effect` is what the operation waits for.  Detached calls and
    sleeps are passed over: recorded, the calls not delivered until `deliver_detached` (`finish` delivers them).
    """

    def __init__(self, op: Op[Any], cluster: Cluster) -> None:
        self._op, self.cluster = op, cluster
        self.waiting: list[Call] = []
        self.under_way: list[tuple[Call, Any, Any]] = []  # calls acted on, with result or error, and link
        self.detached: list[Call] = []
        self.sleeps: list[float] = []
        self.rounds: list[Round] = []
        self.effect: Round | None = None
        self.done = False
        self.result: Any = None
        self._deadline = cluster.time.ms + TIMEOUT
        self._step()

    # -- the operation ------------------------------------------------------------------------------------------------

    @property
    def round(self) -> Round:
        assert self.effect is not None, "the operation is over"
        return self.effect

    @property
    def over(self) -> bool:
        """Whether the present round is over, or the operation."""
        return self.done or self.round.expired or self.round.over()

    def resume(self) -> Hand:
        """The present round must be over: on to the next."""
        assert self.over, f"still waiting for {[call.node for call in self.waiting]}"
        self.waiting.clear()
        self.under_way.clear()
        self._step()
        return self

    def _step(self) -> None:
        self.effect = None
        while not self.done:
            try:
                effect = next(self._op)
            except StopIteration as stop:
                self.done, self.result = True, stop.value
            except BaseException:
                self.done = True
                raise
            else:
                if isinstance(effect, Round):
                    self.effect = effect
                    self.rounds.append(effect)
                    self._send(effect.begin())
                    return
                self._pass_over(effect)

    def _pass_over(self, effect: Detached | Sleep) -> None:
        if isinstance(effect, Detached):
            self.detached += effect.calls
            self.cluster.detached += effect.calls
        else:
            self.sleeps.append(effect.seconds)
            self.cluster.sleeps.append(effect.seconds)
            self.cluster.time.advance(max(1, round(effect.seconds * 1000)))

    def _send(self, calls: Sequence[Call]) -> list[str]:
        self.waiting += calls
        self.cluster.sent += calls
        return [call.node for call in calls]

    # -- what befalls its calls; each returns the nodes that calls were sent to because of it -------------------------

    def call(self, node: str) -> Call:
        """The oldest call that `node` has not answered."""
        for call in self.waiting:
            if call.node == node:
                return call
        raise AssertionError(f"no call waits for {node}")

    @property
    def asked(self) -> list[str]:
        """The nodes that have not answered."""
        return [call.node for call in self.waiting]

    def act(self, node: str) -> None:
        """The call reaches the node, which acts on it; the reply is under way (see `arrive`)."""
        call, link = self._take(node), self.cluster[node].link
        try:
            self.under_way.append((call, self.cluster[node].act(call), link))
        except NodeError as error:
            self.under_way.append((call, error, link))

    def arrive(self, node: str) -> list[str]:
        """A reply that was under way arrives."""
        (entry,) = (entry for entry in self.under_way if entry[0].node == node)
        self.under_way.remove(entry)
        call, result, link = entry
        if isinstance(result, NodeError):
            return self._send(self.round.failed(call, result, True))
        return self._send(self.round.replied(call, result, link))

    def deliver(self, *nodes: str) -> list[str]:
        """The call reaches each node, which acts on it, and its reply arrives."""
        more: list[str] = []
        for node in nodes:
            self.act(node)
            more += self.arrive(node)
        return more

    def reply(self, node: str, result: Any, link: FakeLink | None = None) -> list[str]:
        """An answer made up by the test arrives; the node never saw the call."""
        return self._send(self.round.replied(self._take(node), result, link or self.cluster[node].link))

    def fail(self, node: str, error: Exception | None = None, *, sent: bool = False) -> list[str]:
        """The call fails; the node never saw it, though with `sent` nobody knows."""
        error = ConnectionError("broken") if error is None else error
        return self._send(self.round.failed(self._take(node), error, sent))

    def late(self) -> list[str]:
        """Another quarter of the operation's time is gone."""
        return self._send(self.round.late())

    def expire(self) -> None:
        """The deadline came."""
        self.round.expire()

    def deliver_detached(self) -> None:
        """The calls not waited for reach their nodes."""
        calls, self.detached = self.detached, []
        for call in calls:
            _deliver_unwaited(self.cluster[call.node], call)

    def _take(self, node: str) -> Call:
        call = self.call(node)
        self.waiting.remove(call)
        return call

    # -- the rest by itself -------------------------------------------------------------------------------------------

    def finish(self) -> Any:
        """Deliver and answer everything in order, by the switches of the nodes; the result of the operation."""
        self.deliver_detached()
        while not self.done:
            self._run_round()
            try:
                self.resume()
            finally:
                self.deliver_detached()
        return self.result

    def _run_round(self) -> None:
        """What was sent reaches its node even if the round is over before; the reply is then dropped."""
        lost = self._answer_all()
        while not self.over:
            self.cluster.time.advance(TIMEOUT // 4)
            if self.cluster.time.ms >= self._deadline:
                self.expire()
            else:
                self.late()
                lost += self._answer_all()
        self.waiting += lost

    def _answer_all(self) -> list[Call]:
        lost = []
        while self.waiting:
            call = self.waiting[0]
            node = self.cluster[call.node]
            if node.silent or node.mute:
                self.waiting.remove(call)
                lost.append(call)
                if node.mute:
                    _deliver_unwaited(node, call)
            elif self.over:
                self.waiting.remove(call)
                _deliver_unwaited(node, call)
            elif node.down:
                self.fail(call.node, ConnectionRefusedError("refused"))
            elif node.error is not None:
                self.fail(call.node, node.error, sent=node.error_sent)
            else:
                self.deliver(call.node)
        return lost


def _deliver_unwaited(node: Node, call: Call) -> None:
    if not (node.down or node.silent or node.error is not None):
        try:
            node.act(call)
        except NodeError:
            return


def drive(op: Op[T], cluster: Cluster) -> T:
    """Run `op` with everything delivered and answered in order, by the switches of the nodes; its result.

    A silent or mute node is waited for as a driver would: spares are sent each quarter of `TIMEOUT`, then the round
    expires.
    """
    result: T = Hand(op, cluster).finish()
    return result
