"""Any number of machines in one thread, on virtual time, from one seed.

    with Simulation(seed=7) as sim:
        host = sim.host("h1", clock=Clock(offset_ms=-3000, drift=1e-4))
        process = host.start(main)          # `async def main(process)` runs there
        sim.network.cut("h1", "h2")         # and more: see `Network`
        host.kill(); host.pause(); host.resume(); host.power_off(); host.signal(SIGTERM); host.start(main)
        sim.run(30.0)                       # 30 s of virtual time
        sim.run_until(lambda: process.done, 60.0)

Processes run asyncio programs as they are (see `loop`), and the real code of dcache with them (see `cluster`).  A
program takes no time by itself: time passes where it waits, for others or for a timer.

Everything random comes from the seed, by one stream per use: a new draw in one place does not shift what another draws.
The same seed and the same code give the same run, which `digest` tells: a hash of every packet that arrived, and of
what `mark` was told.  An exception that nobody handles in a process ends up in `complaints`.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from hashlib import blake2b
from math import ceil
from random import Random
from types import TracebackType
from typing import Any, Self

import attrs

from dcache.drivers.machine import Machine
from dcache.testing.sim.loop import Event, Listener, Loop, Main
from dcache.testing.sim.network import End, Network

DEPTH = 10
"""How often a task that is cleared away may wait for something on its way out."""

FREE_PORTS = 49_152
"""The first of the ports for whoever does not care which."""

COLLECT_AFTER = 20_000
"""Events between two collections of garbage."""

WALL_MS = 1_700_000_000_000
"""What a clock without an error shows when a simulation begins."""


@attrs.define
class Clock:
    """How a host's clocks go wrong: `offset_ms` is how far its wall clock is ahead, `drift` how much too fast both of
    its clocks run, as a fraction."""

    offset_ms: int = 0
    drift: float = 0.0


class Process:
    """A program that runs on a host: its loop, what it has of randomness, and how it ends."""

    def __init__(self, host: Host, number: int) -> None:
        self.host, self.name = host, f"{host.name}#{number}"
        self.alive = True
        self.paused = False
        self.ends: dict[End, None] = {}
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.backlog: list[Event] = []  # what befell it while it was paused
        self.loop = Loop(self)
        random = host.simulation.stream(f"process {self.name}")
        self.machine = Machine(host.monotonic, host.wall, random.random, random.getrandbits)
        self._main: asyncio.Task[Any] | None = None

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._main = self.loop.create_task(coroutine)
        self._main.add_done_callback(self._ended)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something else in this process, beside its program."""
        task: asyncio.Task[Any] = self.loop.create_task(coroutine)
        return task

    @property
    def done(self) -> bool:
        """Whether the program has ended by itself."""
        return self._main is not None and self._main.done()

    def result(self) -> Any:
        """What the program returned; raises what it raised."""
        assert self._main is not None, "it was not started"
        return self._main.result()

    def listen(self, port: int, factory: Callable[[], asyncio.BaseProtocol]) -> Listener:
        """On a port, 0 for any that is free."""
        port = port or next(free for free in itertools.count(FREE_PORTS) if free not in self.host.listeners)
        if port in self.host.listeners:
            raise OSError(f"{self.host.name}:{port} is taken")
        listener = self.host.listeners[port] = Listener(self, port, factory)
        return listener

    def forget_task(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task, None)

    def complain(self, error: BaseException) -> None:
        if self.alive:
            self.host.simulation.complaints.append((self.name, error))

    def _ended(self, main: asyncio.Task[Any]) -> None:
        """The program is over: so is the process."""
        error = None if main.cancelled() else main.exception()
        if error is not None:
            self.complain(error)
        self.end()

    def end(self) -> None:
        """Now, whatever it was at.  The system closes its connections."""
        if not self.alive:
            return
        self.alive = False
        self.backlog.clear()
        listeners = self.host.listeners
        for listener in [one for one in listeners.values() if one.process is self]:
            listener.close()
        for end in list(self.ends):
            end.drop()

    def clear_away(self) -> None:
        """Let go of tasks that will never go on.  What they do in the end reaches nobody any more."""
        for task in list(self.tasks):
            coroutine: Any = task.get_coro()
            for _ in range(DEPTH):
                with suppress(Exception):
                    coroutine.close()
                    break
        self.tasks.clear()


class Host:
    """A machine with a name, which is its address, its own clocks, and one process at a time."""

    def __init__(self, simulation: Simulation, name: str, clock: Clock) -> None:
        self.simulation, self.name, self.clock = simulation, name, clock
        self.process: Process | None = None
        self.listeners: dict[int, Listener] = {}
        self.off = False
        self.slept_us = 0  # for how long processes were paused
        self._paused_us = 0
        self._numbers = itertools.count(1)
        self._rate = 1.0 + clock.drift

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.alive

    # -- its clocks ---------------------------------------------------------------------------------------------------

    def monotonic(self) -> float:
        return self.simulation.now_us * 1e-6 * self._rate

    def wall(self) -> int:
        return WALL_MS + self.clock.offset_ms + int(self.simulation.now_us * self._rate) // 1000

    def instant(self, monotonic: float) -> int:
        """When, in microseconds of the simulation, its monotonic clock shows this.

        Never before: who sleeps until a time and wakes too early, by a rounding, would sleep again and again for no
        time at all.
        """
        us = ceil(monotonic * 1e6 / self._rate)
        while us * 1e-6 * self._rate < monotonic:
            us += 1
        return us

    def step_clock(self, ms: int) -> None:
        """Set its wall clock, forward or back."""
        self.clock.offset_ms += ms

    # -- its process --------------------------------------------------------------------------------------------------

    def start(self, main: Main) -> Process:
        """Run a program; if the power was off, it is on again."""
        if self.running:
            raise RuntimeError(f"a process runs on {self.name}: kill it first")
        self.off = False
        process = self.process = Process(self, next(self._numbers))
        self.simulation.add(process)
        process.start(main(process))
        return process

    def kill(self) -> None:
        """As SIGKILL: the process ends at once, and its connections are reset."""
        if self.process is not None:
            self.process.end()

    def power_off(self) -> None:
        """The machine is gone: nobody is told, and nothing is answered."""
        if self.process is not None:
            self.process.ends, ends = {}, self.process.ends
            for end in ends:
                end.out.clear()
            self.process.end()
        self.off = True

    def pause(self) -> None:
        """As SIGSTOP: the process stands still, its connections stay."""
        if self.process is not None and self.process.alive and not self.process.paused:
            self.process.paused, self._paused_us = True, self.simulation.now_us

    def resume(self) -> None:
        """As SIGCONT: what came, and the timers that struck, have their turn now."""
        process = self.process
        if process is None or not process.paused:
            return
        process.paused = False
        self.slept_us += self.simulation.now_us - self._paused_us
        backlog, process.backlog = process.backlog, []
        for event in backlog:
            self.simulation.soon(event)

    def signal(self, number: int) -> None:
        """Have a signal handled by the process; one that has no handler for it ends."""
        if self.process is not None and not self.process.loop.signalled(number):
            self.kill()


class Simulation:
    """See the module.  `story` is called with every line of what happens, if it is given."""

    def __init__(self, seed: int = 0, story: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.now_us = 0
        self.events = 0
        self.hosts: dict[str, Host] = {}
        self.complaints: list[tuple[str, BaseException]] = []
        self._story = story
        self._processes: list[Process] = []
        self._soon: deque[Event] = deque()
        self._plan: list[tuple[int, int, Event]] = []
        self._numbers = itertools.count()
        self._digest = blake2b(digest_size=8)
        self._collected = 0
        self._collecting = False
        self.network = Network(self, self.stream("network"))

    def __enter__(self) -> Self:
        """Garbage is then collected after so many events, not when the interpreter finds it is time: what comes of it,
        such as complaints about errors that nobody asked for, happens at the same moment of every run."""
        self._collecting = gc.isenabled()
        gc.disable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self._collecting:
            gc.enable()

    def stream(self, name: str) -> Random:
        """Randomness for one use."""
        return Random(f"{self.seed}/{name}")  # to be repeated, not to be secret

    def host(self, name: str, clock: Clock | None = None) -> Host:
        """A new machine, without a process."""
        if name in self.hosts:
            raise ValueError(f"there is a host {name} already")
        host = self.hosts[name] = Host(self, name, clock or Clock())
        return host

    def add(self, process: Process) -> None:
        self._processes.append(process)

    @property
    def now(self) -> float:
        """Virtual seconds since the beginning."""
        return self.now_us * 1e-6

    # -- the trace ----------------------------------------------------------------------------------------------------

    def mark(self, what: str, data: bytes = b"") -> None:
        """Let this be part of what must be the same every time."""
        self._digest.update(b"%d %s " % (self.now_us, what.encode()) + data)

    def tell(self, who: str, what: str) -> None:
        """A line of the story.  It is part of what must be the same every time."""
        line = f"{who}: {what}"
        self.mark(line)
        if self._story is not None:
            self._story(f"{self.now:10.4f} {line}")

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    # -- time ---------------------------------------------------------------------------------------------------------

    def soon(self, event: Event) -> None:
        self._soon.append(event)

    def at(self, us: int, event: Event) -> None:
        heapq.heappush(self._plan, (us, next(self._numbers), event))

    def later(self, us: int, callback: Callable[..., object], *args: Any) -> None:
        """Have something happen that is no process's."""
        self.at(us, Event(None, callback, args))

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.now_us + round(seconds * 1e6)
        soon, plan, happen = self._soon, self._plan, self.happen
        try:
            while True:
                if soon:
                    happen(soon.popleft())
                elif plan and plan[0][0] <= end:
                    us, _, event = heapq.heappop(plan)
                    if not event.dropped:
                        self.now_us = max(us, self.now_us)
                        happen(event)
                else:
                    break
        finally:
            asyncio._set_running_loop(None)
        self.now_us = end
        if self.events - self._collected >= COLLECT_AFTER:
            self._collected = self.events
            gc.collect()

    def run_until(self, condition: Callable[[], object], seconds: float, every: float = 0.01) -> bool:
        """Let time pass until `condition()` holds, which is looked at each `every` seconds; whether it came to hold
        within `seconds`."""
        end = self.now_us + round(seconds * 1e6)
        while not condition():
            if self.now_us >= end:
                return False
            self.run(every)
        return True

    def happen(self, event: Event) -> None:
        """Now; later if its process is paused, never if it has ended."""
        process = event.process
        if event.dropped:
            return
        self.events += 1
        if process is None:
            asyncio._set_running_loop(None)
            event.callback(*event.args)
        elif process.paused:
            process.backlog.append(event)
        elif process.alive:
            asyncio._set_running_loop(process.loop.seen)
            try:
                if event.context is None:
                    event.callback(*event.args)
                else:
                    event.context.run(event.callback, *event.args)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # noqa: BLE001  # what a program does not handle is for the tests to see
                process.complain(error)

    def close(self) -> None:
        """End all processes, and clear away what is left of them."""
        for host in self.hosts.values():
            host.power_off()
        self._soon.clear()
        self._plan.clear()
        for process in self._processes:
            process.clear_away()
