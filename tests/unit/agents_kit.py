"""Many hosts in one process on virtual time: any number of operations talk to each other over a network that may lose,
delay, double, hold and cut.  Deterministic from the seed; no socket, loop, thread or sleep.

    net = Network(seed=1)
    host = net.host("a", clock=+40_000)             # at address "a:7400", its wall clock 40 s ahead
    host.boot(agent.methods(), service.methods)     # a process begins: what others may call there
    task = host.run(op, timeout=1.0)                # a generator of Round/Detached/Sleep; each round has `timeout` s
    net.run(30.0)                                   # 30 s of virtual time
    net.run_until(lambda: task.done, 60.0)          # or until something is so; fails if it does not come about
    task.result()                                   # what the operation returned; raises what it raised

    net.path("a", "b").delay = (5, 50)              # ms, one way; also loss=0.1, twice=0.1 (requests only)
    net.default.loss = 0.1                          # of all paths that were not asked for by `path`
    net.cut("a", "b"); net.heal("a", "b")           # one way: messages from a to b are lost
    net.hold("a", "b"); net.release("a", "b")       # one way: they wait
    host.crash()                                    # the process ends: links break, operations end, calls are refused
    host.crash(silent=True)                         # the machine is gone: nobody is told, calls stay without an answer
    host.boot(...)                                  # a new process on the same host
    host.pause(); host.resume()                     # SIGSTOP, SIGCONT: messages and timers wait
    net.counts["exchange"], host.sent, host.bytes   # calls made by method; messages and bytes that left a host

What is given to `boot` is called as a node's service would call it, and all requests and replies pass through the bytes
of the wire.  A call's node is an address, or a name; a name is looked up in `host.table()` first, if the test gives the
host such a function, and the node found there must be of this name, as with real drivers.  An operation that raises a
`DcacheError` or `CannotJoin` keeps it for `result()`; everything else is a bug and comes out of `run`.

Not simulated: the handshake's other checks, the backoff of clients, the order of messages on one connection.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import attrs

from dcache.agent.agent import CannotJoin
from dcache.errors import ClusterMismatch, DcacheError, NodeError
from dcache.membership import MemberTable
from dcache.node.service import REFUSED, Refusal, as_refusal, refusal_to_wire
from dcache.ops.effects import Call, Detached, Op, Round, Sleep
from dcache.wire import Code, Decoder, Limits, encode_error, encode_reply, encode_request

WALL = 1_700_000_000_000
"""Milliseconds since 1970 when a network's time is 0."""

STALE = 2_000
"""A process that was stopped for longer (ms) breaks with its callers and does not act on what waited."""

PATIENCE = 0.25
Methods = Mapping[str, Callable[..., Any]]
Then = Callable[[], object]


@attrs.define
class Path:
    """How messages travel from one host to another; `delay` is the least and most ms, the others are chances."""

    delay: tuple[int, int] = (1, 1)
    loss: float = 0.0
    twice: float = 0.0
    cut: bool = False
    held: list[Then] | None = None


@attrs.define(eq=False)
class Link:
    """A connection of one process to another; `server` is known once the first message has arrived."""

    client: Process
    to: Host
    alive: bool = True
    shut: bool = False  # at the server's end; the client will hear of it
    server: Process | None = None
    waiting: dict[Request, None] = attrs.field(factory=dict)

    def broke(self) -> None:
        """Tell everybody who waits for a reply by this link."""
        self.alive = False
        if self.client.links.get(self.to) is self:
            del self.client.links[self.to]
        for request in list(self.waiting):
            request.fail(ConnectionError("the connection broke"), sent=True)


@attrs.define(eq=False)
class Process:
    host: Host
    methods: Methods
    alive: bool = True
    paused: bool = False
    tasks: list[Task] = attrs.field(factory=list)
    links: dict[Host, Link] = attrs.field(factory=dict)  # that it opened
    callers: list[Link] = attrs.field(factory=list)  # that others opened to it
    backlog: list[Then] = attrs.field(factory=list)  # what befell it while it was paused


class NoSlots:
    """A store that is not asked what it holds."""

    def own(self, slots: object) -> None: ...
    def doubt(self) -> None: ...
    def complete(self, slots: object) -> None: ...


class Host:
    """A place with an address where processes run, one at a time.  See the module."""

    def __init__(self, net: Network, name: str, address: str, clock: int) -> None:
        self.net, self.name, self.address, self.clock = net, name, address, clock
        self.process: Process | None = None
        self.silent = False
        self.table: Callable[[], MemberTable | None] = lambda: None
        self.sent = self.bytes = 0
        self._paused_at = 0

    def now(self) -> int:
        """Milliseconds that never go back."""
        return self.net.ms

    def wall(self) -> int:
        return WALL + self.net.ms + self.clock

    def boot(self, *methods: Methods) -> None:
        self.crash()
        merged = {name: function for mapping in methods for name, function in mapping.items()}
        self.process, self.silent = Process(self, merged), False

    def run(self, op: Op[Any], timeout: float = 1.0) -> Task:
        process = self.process
        assert process is not None, f"nothing runs on {self.name}: boot it first"
        task = Task(process, op, round(timeout * 1000))
        process.tasks.append(task)
        self.net.after(0, task.step, process)
        return task

    def crash(self, *, silent: bool = False) -> None:
        process, self.process = self.process, None
        self.silent = silent
        if process is None:
            return
        process.alive = False
        for task in process.tasks:
            task.stop()
        for link in list(process.links.values()):
            link.alive = False
        if not silent:
            self.shut(process.callers)

    def shut(self, callers: Sequence[Link]) -> None:
        """Close the connections of these callers, who hear of it if the way to them is free."""
        for link in callers:
            if link.alive:
                link.shut = True
                self.net.travel(self, link.client.host, link.broke, link.client)

    def pause(self) -> None:
        assert self.process is not None
        self.process.paused, self._paused_at = True, self.net.ms

    def resume(self) -> None:
        process = self.process
        assert process is not None
        process.paused = False
        if self.net.ms - self._paused_at > STALE:
            self.shut(process.callers)
        backlog, process.backlog = process.backlog, []
        for then in backlog:
            self.net.after(0, then, process)


class Request:
    """A call on its way."""

    def __init__(self, task: Task, round_: Round | None, call: Call, link: Link) -> None:
        self.task, self.round, self.call, self.link = task, round_, call, link
        self.net, self.link.waiting[self] = link.to.net, None

    def send(self) -> None:
        here, there = self.link.client.host, self.link.to
        frame = encode_request(1, self.call.method, self.call.params)
        self.net.counts[self.call.method] += 1
        again = self.net.path_between(here, there).twice
        for _ in range(2 if again and self.net.random.random() < again else 1):
            self.net.travel(here, there, lambda: self._arrive(frame), lambda: there.process, len(frame))

    def _arrive(self, frame: bytes) -> None:
        link, there, client = self.link, self.link.to, self.link.client
        process = there.process
        if process is None:
            if not there.silent:
                refused = ConnectionRefusedError("refused")
                self.net.travel(there, client.host, lambda: self.fail(refused, sent=False), client)
            return
        if link.server is None:
            link.server = process
            process.callers.append(link)
        if link.server is not process or link.shut:
            there.shut([link])
        elif link.alive:
            reply = self.net.answer(process.methods, frame)
            self.net.travel(there, client.host, lambda: self._replied(reply), client, len(reply))

    def _replied(self, frame: bytes) -> None:
        _, _, error, result = self.net.decode(frame)
        if error is not None:
            self.fail(NodeError(*error), sent=True)
        elif self._over():
            self.task.send(self.task.round.replied(self.call, result, self.link))
            self.task.look()

    def fail(self, error: Exception, *, sent: bool) -> None:
        if self._over():
            self.task.send(self.task.round.failed(self.call, error, sent))
            self.task.look()

    def _over(self) -> bool:
        """Whether this is the first that is heard of it, and its round still waits for it."""
        first = self.link.waiting.pop(self, self) is None
        waited_for = self.round is not None and self.round is self.task.round and not self.round.expired
        return first and waited_for


class Task:
    """An operation that a process runs.  `round` is the one it waits for."""

    def __init__(self, process: Process, op: Op[Any], timeout: int) -> None:
        self.process, self._op, self._timeout = process, op, timeout
        self.net = process.host.net
        self.round: Any = None
        self.done = False
        self._result: Any = None
        self._error: Exception | None = None
        self._resuming = False

    def result(self) -> Any:
        assert self.done, "the operation is not over"
        if self._error is not None:
            raise self._error
        return self._result

    def stop(self) -> None:
        """Cancel it."""
        if not self.done:
            self.done, self.round = True, None
            self._op.close()

    def step(self) -> None:
        """On to the next effect, unless what had sufficed broke off in the meantime."""
        self._resuming = False
        if self.done or (self.round is not None and not (self.round.over() or self.round.expired)):
            return
        self.round = None
        try:
            effect = next(self._op)
        except StopIteration as stop:
            self.done, self._result = True, stop.value
        except (DcacheError, CannotJoin) as error:
            self.done, self._error = True, error
        else:
            self._begin(effect)

    def _begin(self, effect: Round | Detached | Sleep) -> None:
        if isinstance(effect, Sleep):
            self.net.after(round(effect.seconds * 1000), self.step, self.process)
        elif isinstance(effect, Detached):
            self.send(effect.calls)
            self.net.after(0, self.step, self.process)
        else:
            self.round = effect
            self._tick(effect, self.net.ms + self._timeout)
            self.send(effect.begin())
            self.look()

    def send(self, calls: Sequence[Call]) -> None:
        queue = list(calls)
        for call in queue:
            link = self.net.connect(self.process, call.node)
            if isinstance(link, Link):
                Request(self, self.round, call, link).send()
            elif self.round is not None:
                queue.extend(self.round.failed(call, link, False))

    def look(self) -> None:
        """Go on if the round is over; if what had sufficed broke off and nobody is asked, ask others."""
        round_ = self.round
        while round_ is not None and not round_.pending and not (round_.over() or round_.expired):
            self.send(round_.late())
        if round_ is not None and not self._resuming and (round_.over() or round_.expired):
            self._resuming = True
            self.net.after(0, self.step, self.process)

    def _tick(self, round_: Round, deadline: int) -> None:
        pause = min(max(1, round(self._timeout * PATIENCE)), max(0, deadline - self.net.ms))

        def then() -> None:
            if self.round is not round_ or self._resuming:
                return
            if self.net.ms >= deadline:
                round_.expire()
            else:
                self._tick(round_, deadline)
                self.send(round_.late())
            self.look()

        self.net.after(pause, then, self.process)


class Network:
    """Hosts, the paths between them, and the one clock `ms`.  See the module."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.ms = 0
        self.default = Path()
        self.counts: Counter[str] = Counter()
        self.hosts: dict[str, Host] = {}
        self._by_name: dict[str, Host] = {}
        self._paths: dict[tuple[str, str], Path] = {}
        self._plan: list[tuple[int, int, Then, Any]] = []
        self._numbers = itertools.count()
        limits = Limits()
        self._decoder = Decoder(limits.max_frame, limits.max_batch)

    def host(self, name: str, address: str | None = None, clock: int = 0) -> Host:
        """A new host; `clock` is how many ms its wall clock is ahead."""
        host = Host(self, name, address or f"{name}:7400", clock)
        self.hosts[host.address] = self._by_name[name] = host
        return host

    def path(self, here: str, there: str) -> Path:
        """The path of messages from one host to another (names), to be changed."""
        return self._paths.setdefault((here, there), attrs.evolve(self.default))

    def cut(self, here: str, there: str) -> None:
        self.path(here, there).cut = True

    def heal(self, here: str, there: str) -> None:
        self.path(here, there).cut = False

    def hold(self, here: str, there: str) -> None:
        self.path(here, there).held = []

    def release(self, here: str, there: str) -> None:
        path = self.path(here, there)
        held, path.held = path.held or [], None
        for then in held:
            then()

    # -- time ---------------------------------------------------------------------------------------------------------

    def after(self, ms: int, then: Then, process: Process | Callable[[], Process | None] | None = None) -> None:
        """Have `then` happen to `process`: not if that has ended, and later if it is paused.  A function in its place
        says at that time which process it is, or that it is none: then it happens all the same."""
        heapq.heappush(self._plan, (self.ms + ms, next(self._numbers), then, process))

    def run(self, seconds: float) -> None:
        end = self.ms + round(seconds * 1000)
        while self._plan and self._plan[0][0] <= end:
            self.ms, _, then, process = heapq.heappop(self._plan)
            self._happen(then, process)
        self.ms = end

    def run_until(self, condition: Callable[[], object], seconds: float, every: float = 0.01) -> float:
        """The virtual seconds that it took; `condition` is looked at each `every` seconds."""
        begun = self.ms
        while not condition():
            assert self.ms - begun < seconds * 1000, f"this has not come about within {seconds} s"
            self.run(every)
        return (self.ms - begun) / 1000

    def _happen(self, then: Then, whose: Any) -> None:
        process = whose if isinstance(whose, Process) or whose is None else whose()
        if process is None:
            then()
        elif process.paused:
            process.backlog.append(then)
        elif process.alive:
            then()

    # -- messages -----------------------------------------------------------------------------------------------------

    def path_between(self, here: Host, there: Host) -> Path:
        return self._paths.get((here.name, there.name), self.default) if self._paths else self.default

    def travel(self, here: Host, there: Host, then: Then, process: Any, size: int = 0) -> None:
        """Have `then` happen to `process` once a message of `size` bytes has arrived, if it does."""
        if size:
            here.sent += 1
            here.bytes += size
        path = self.path_between(here, there)
        if path.cut or (path.loss and self.random.random() < path.loss):
            return
        if path.held is not None:
            path.held.append(lambda: self.after(path.delay[0], then, process))
            return
        least, most = path.delay
        self.after(least if least == most else self.random.randint(least, most), then, process)

    def connect(self, process: Process, node: str) -> Link | Exception:
        """The link of `process` to a node, by name or address, or why there can be none."""
        table = process.host.table()
        row = None if table is None else table.members.get(node)
        there = self.hosts.get(row.address) if row is not None else self.hosts.get(node, self._by_name.get(node))
        if there is None:
            return ConnectionError(f"there is no host {node}")
        if row is not None and there.name != node:
            return ClusterMismatch(f"the node at this address is called {there.name}, not {node}")
        link = process.links.get(there)
        if link is None:
            link = process.links[there] = Link(process, there)
        return link

    def decode(self, frame: bytes) -> tuple[Any, ...]:
        """The message in `frame`, with the types that the other side sees."""
        self._decoder.feed(frame)
        (message,) = self._decoder.messages()
        return cast("tuple[Any, ...]", message)

    def answer(self, methods: Methods, frame: bytes) -> bytes:
        _, message_id, method, params = self.decode(frame)
        try:
            if method not in methods:
                raise Refusal(Code.UNKNOWN_METHOD, method)
            return encode_reply(message_id, methods[method](*params))
        except (Refusal, *REFUSED) as error:
            code, _, detail = refusal_to_wire(as_refusal(error))
            return encode_error(message_id, Code(code), detail)
