"""Nodes with real services and stores on the network of `agents_kit`, to complete and repair each other.

owners = Owners("abc")                  # complete, empty, three replicas
owners.write("k", 5)                    # version 5 (of `v`), at all, or at=("a", "b")
owners["a"].restart()                   # empty, incomplete; it begins to complete
owners.until(lambda: owners["a"].store.all_complete)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import attrs

from dcache.agent.completing import Completing
from dcache.agent.repair import Repair
from dcache.membership import Health, Member, MemberTable, RingState, Settings
from dcache.node.service import Identity, Service, View
from dcache.node.store import Store
from dcache.ops.effects import Reply
from dcache.ops.listing import Pace
from dcache.ops.quorum import judge
from dcache.record import Version, make_version
from dcache.ring import SLOTS, slot_of
from tests.unit.agents_kit import WALL, Host, Network

MEMORY = 64 << 20
RATE = 1 << 30


def v(n: int) -> Version:
    """A version of `n` milliseconds after (negative: before) a test's time 0."""
    return make_version(WALL + n, 0, 0)


def full(key: str) -> bytes:
    """The storage key of `key` in the namespace ""."""
    return b"\0" + key.encode()


def make_table(
    names: Iterable[str],
    replicas: int = 3,
    *,
    following: Iterable[str] | None = None,
    epoch: int = 1,
    forgotten: bool = False,
    down: str = "",
) -> MemberTable:
    rows = {
        name: Member(name, f"{name}:7400", health=Health.DOWN if name in down else Health.UP)
        for name in sorted({*names, *(following or ())})
    }
    state = RingState(
        epoch,
        tuple(rows[name].placed() for name in names),
        None if following is None else tuple(rows[name].placed() for name in following),
        forgotten,
    )
    return MemberTable(Settings("kit", replicas=replicas, vnodes=16), state, rows)


@attrs.define(eq=False)
class Agent:
    """What completing and repair need to know of one."""

    me: Member
    table: MemberTable | None = None
    leftover: set[int] = attrs.field(factory=set)
    regained: set[int] = attrs.field(factory=set)


class Owner:
    """A node.  `completes` and `repairs` say whether it runs these; `memory` is its limit."""

    def __init__(self, net: Network, name: str, memory: int, start_over: float, interval: float) -> None:
        self.net, self.name, self.memory = net, name, memory
        self.start_over, self.interval = start_over, interval
        self.host: Host = net.host(name)
        self.boots = 0
        self.rate: float = RATE
        self.agent = Agent(Member(name, self.host.address))
        self.host.table = lambda: self.agent.table
        self._boot()

    def _boot(self) -> None:
        self.boots += 1
        self.store = Store(self.memory, slot_of, SLOTS)
        identity = Identity(self.name, f"{self.name}-{self.boots}")
        self.service = Service(self.store, identity, self.host.now, self.host.wall)
        random = self.net.random.random
        pace = Pace(self.rate)
        self.pace = pace
        self.completing = Completing(self.agent, self.service, self.host.now, random, pace, self.start_over)
        self.repair = Repair(self.agent, self.service, self.host.now, random, pace, self.interval)
        self.host.boot(self.service.methods, self.repair.methods())
        if self.agent.table is not None:
            self.learn(self.agent.table)

    def begin(self) -> None:
        """Complete and repair from now on."""
        self.host.run(self.completing.run())
        self.host.run(self.repair.run())

    def restart(self, *, begin: bool = True, only: str | None = None) -> None:
        """Start again, empty; with `only` just the slot of that key is incomplete then, which saves much time."""
        self._boot()
        if only is not None:
            self.store.complete(set(range(SLOTS)) - {slot_of(full(only))})
        if begin:
            self.begin()

    def learn(self, table: MemberTable) -> None:
        """As an agent does when it adopts a table."""
        self.agent.table = table
        self.store.own(table.slots_of(self.name))
        self.service.view = View("kit", table.fingerprint, table.to_wire())

    def put(self, key: str, version: int, value: bytes = b"x" * 10, ttl: int | None = None) -> None:
        self.store.set(full(key), v(version), value, 0, ttl, self.host.now())

    def forget(self, key: str) -> None:
        entry = self.store.peek(full(key), self.host.now())
        assert entry is not None
        self.store.drop(full(key), entry.version, self.host.now())

    def version(self, key: str) -> Version | None:
        entry = self.store.peek(full(key), self.host.now())
        return None if entry is None else entry.version

    def held(self) -> set[bytes]:
        return set(self.store.keys())


class Owners:
    """See the module."""

    def __init__(
        self,
        names: Iterable[str] = "abc",
        replicas: int = 3,
        *,
        memory: int = MEMORY,
        start_over: float = 30.0,
        interval: float = 60.0,
        seed: int = 1,
        begin: bool = True,
    ) -> None:
        self.net = Network(seed)
        self.names = list(names)
        self.table = make_table(self.names, replicas)
        self.by_name = {name: Owner(self.net, name, memory, start_over, interval) for name in self.names}
        for owner in self.by_name.values():
            owner.learn(self.table)
            owner.store.complete(range(SLOTS))
            if begin:
                owner.begin()

    def __getitem__(self, name: str) -> Owner:
        return self.by_name[name]

    def learn(self, table: MemberTable) -> None:
        self.table = table
        for owner in self.by_name.values():
            owner.learn(table)

    def of(self, key: str) -> Sequence[str]:
        return self.table.owners(slot_of(full(key)))[0]

    def write(self, key: str, version: int, value: bytes = b"x" * 10, *, at: Iterable[str] | None = None) -> None:
        for name in self.of(key) if at is None else at:
            self[name].put(key, version, value)

    def delete(self, key: str, version: int, *, at: Iterable[str]) -> None:
        for name in at:
            self[name].store.delete(full(key), v(version), self.net.ms)

    def until(self, condition: Callable[[], object], seconds: float = 20.0) -> float:
        return self.net.run_until(condition, seconds, 0.05)

    def reads(self, key: str) -> set[Version | None]:
        """What strict reads of any majority of the owners would return, or have to take for a miss."""
        owners = self.of(key)
        found: set[Version | None] = set()
        for asked in itertools.combinations(owners, len(owners) // 2 + 1):
            replies = [Reply(name, self[name].service.handle("get", self._get(key)), self) for name in asked]
            verdict = judge(replies)
            if len(verdict.heard) < len(asked):
                continue
            enough = verdict.candidate is not None and len(verdict.voters) >= len(asked)
            found.add(verdict.candidate[1] if verdict.candidate is not None and enough else None)
        return found

    alive = True

    def _get(self, key: str) -> tuple[bytes, bytes, bytes]:
        return self.table.fingerprint, b"", key.encode()
