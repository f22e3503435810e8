"""Runs operations on blocking threads: one poll over all connections of an operation.

No hidden thread, no loop: an operation leases a connection per node, writes to all, waits for all together, always
reading while writing, and gives the connections back (`Leases`).  Never node after node: connecting, too, goes on at
all nodes at once.  Reads begin by a shorter way (`prompt`) where one is open, and where it ends the operation goes on.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from dcache.drivers import prompt
from dcache.drivers.driver import PATIENCE, Books, Execution
from dcache.drivers.leases import Leases
from dcache.drivers.pool import PROMPT, Connection, Held, Pool
from dcache.drivers.prompt import Sent, TakeOver
from dcache.errors import ClientClosed, DcacheError
from dcache.ops.context import Context, K, Key, key_to_bytes
from dcache.ops.effects import Detached, Op, Round
from dcache.ops.prompt import agreed, targets
from dcache.ops.prompt_many import Values, by_node, plan, requests, settle_many

T = TypeVar("T")


class BlockingDriver:
    """Shared by all threads of a client."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self.reset()

    def reset(self) -> None:
        """Start with no connections: at the beginning, and in a forked child, which must leave its parent's alone."""
        self._most = self._books.settings.max_connections
        self.pools: dict[str, Pool] = {}  # in a child that was forked amid an operation there is none for its nodes
        self._lock = threading.Lock()  # guards the making of pools
        self.connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self.closed = False

    def abandon(self) -> None:
        """Close this process's copies of the sockets, saying nothing to the nodes.  For a forked child."""
        for connection in list(self.connections):
            connection.close()
        self.reset()

    def close(self) -> None:
        with self._lock:
            self.closed = True
            pools = list(self.pools.values())
        for pool in pools:
            for connection in pool.drain():
                connection.close()

    def pool(self, node: str) -> Pool:
        made = self.pools.get(node)
        if made is not None and not self.closed:
            return made
        with self._lock:
            if self.closed:
                raise ClientClosed("the client was closed")
            pool = self.pools.get(node)
            if pool is None:
                pool = self.pools[node] = Pool(node, self._most)
            return pool

    def give(self, held: Held, connection: Connection) -> bool:
        """See `Pool.give`."""
        pool = self.pools.get(connection.node)
        return pool is not None and pool.give(held, connection)

    def forget(self, connection: Connection) -> None:
        """See `Pool.forget`."""
        pool = self.pools.get(connection.node)
        if pool is not None:
            pool.forget(connection)

    def run(self, operation: Op[T], deadline: float, timeout: float) -> T:
        """Run `operation`, whose whole time is `timeout` seconds, until `deadline` on the monotonic clock."""
        leases = Leases(self, self._books, deadline)
        try:
            return self._drive(operation, leases, deadline, timeout)
        except BaseException:
            leases.close()  # what was not given back before
            raise

    def read(
        self,
        ctx: Context,
        since: float,
        timeout: float,
        told: Callable[..., T],
        operation: Callable[..., Op[T]],
        key: Key,
        *args: Any,
    ) -> T:
        """Read `key`: `told(ctx, answer, *args)` if an answer is to be had promptly, else run `operation(ctx, key,
        *args)`.  The time counts from `since` on the monotonic clock."""
        raw, deadline, patience = key_to_bytes(key, ctx.shared.limits), since + timeout, timeout * PATIENCE
        leases = Leases(self, self._books, deadline)
        try:
            nodes = targets(ctx, raw, since) if PROMPT else None
            calls = ctx.calls(nodes, "get", raw) if nodes else []
            asked = leases.begin(calls, since, patience, raced=ctx.raced)
            if not asked:
                return self._drive(operation(ctx, key, *args), leases, deadline, timeout)
            answers, begun = prompt.answers(calls, asked, self._books, since, patience, raced=ctx.raced)
            answer = None if answers is None else agreed(answers)
            if answer is None:
                begun = begun or prompt.sent(calls, asked, answers or (), since)
                return self._drive(operation(ctx, key, *args, first=nodes), leases, deadline, timeout, begun)
            leases.end_promptly(asked, since, patience)
        except BaseException:
            leases.close()
            raise
        return told(ctx, answer, *args)

    def read_many(
        self,
        ctx: Context,
        since: float,
        timeout: float,
        told: Callable[[Context, Mapping[K, bytes], Mapping[bytes, Any]], Values[K]],
        operation: Callable[..., Op[dict[K, Any]]],
        keys: Sequence[K],
    ) -> dict[K, Any]:
        """As `read`, for many keys: only for those that are not to be had promptly the operation is run."""
        raws = ctx.keys(keys)
        deadline, patience = since + timeout, timeout * PATIENCE
        leases = Leases(self, self._books, deadline)
        try:
            wanted, others = plan(ctx, dict.fromkeys(raws.values()), since) if PROMPT else ({}, [])
            calls = [] if others else requests(ctx, wanted)
            asked = leases.begin(calls, since, patience, raced=False)
            if not asked:
                return self._drive(operation(ctx, keys), leases, deadline, timeout)
            answers, begun = prompt.answers(calls, asked, self._books, since, patience, raced=False)
            given = None if answers is None else by_node(calls, answers)
            if given is None:
                begun = begun or prompt.sent(calls, asked, answers or (), since)
                return self._drive(operation(ctx, keys, wanted), leases, deadline, timeout, begun)
            leases.end_promptly(asked, since, patience)
        except BaseException:
            leases.close()
            raise
        values = told(ctx, raws, settle_many(wanted, given))  # may call the user's serializer, so nothing is held
        rest = self.run(operation(ctx, values.left), deadline, timeout) if values.left else {}
        values.count(ctx)
        return values.found | rest

    def _drive(
        self, operation: Op[T], leases: Leases, deadline: float, timeout: float, begun: Sequence[Sent] = ()
    ) -> T:
        """The first round takes over what was `begun`."""
        try:
            while True:
                effect = next(operation)
                if isinstance(effect, Round):
                    self._round(effect, leases, deadline, timeout, begun)
                    begun = ()
                elif isinstance(effect, Detached):
                    for call in effect.calls:
                        if self._books.keep_away(call) is None:
                            leases.send(call, None)
                else:
                    time.sleep(max(0.0, min(effect.seconds, deadline - time.monotonic())))
        except StopIteration as stop:
            leases.end(timeout * PATIENCE)
            result: T = stop.value
            return result
        except (DcacheError, ValueError, TypeError):
            leases.probe()
            leases.give_back(0.0)
            raise

    def _round(self, round_: Round, leases: Leases, deadline: float, timeout: float, begun: Sequence[Sent]) -> None:
        patience = timeout * PATIENCE
        if begun:
            execution: Execution = TakeOver(round_, self._books, leases.send, patience, begun)
            execution.start()
            leases.drop_broken(begun)
            late = begun[0].since + patience
        else:
            execution = Execution(round_, self._books, leases.send, None, patience)
            execution.start()
            late = time.monotonic() + patience
        while not round_.over():
            if not round_.pending:  # what had sufficed has broken off since: ask others at once
                execution.late()
                continue
            now = time.monotonic()
            hedge_at = execution.hedge_at()
            leases.wait(max(0.0, min(deadline, late, hedge_at) - now))
            now = time.monotonic()
            if now < late and now < deadline and now < hedge_at:
                continue
            if round_.over():
                break
            if now >= deadline:
                leases.give_up(call.node for call in round_.pending)
                execution.expire()
                break
            if now >= late:
                late = now + patience
                execution.late()
            if now >= hedge_at:
                execution.hedge()
        execution.close()
        if round_.failures and time.monotonic() >= deadline:
            round_.expired = True  # calls that fail at once never meet the deadline, and who tries again must
