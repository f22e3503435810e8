"""The event loop of one simulated process: what asyncio runs on, over virtual time.

Each process has a loop of its own, and all loops take their turns in one queue, `Simulation`.  So any asyncio program
runs in the simulator as it is: tasks, timeouts, locks, connections and servers.  What leaves the machine any other way
(threads, subprocesses, files, real sockets) raises `NotImplementedError`.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from dcache.testing.sim.simulation import Process

    class _Loop: ...

    class _Server: ...

else:  # what is not simulated raises NotImplementedError; a type checker would have it all written out
    _Loop, _Server = asyncio.AbstractEventLoop, asyncio.AbstractServer


class Event:
    """Something that will happen to a process, or to none, unless it is cancelled."""

    __slots__ = ("_when", "args", "callback", "context", "dropped", "process")

    def __init__(
        self,
        process: Process | None,
        callback: Callable[..., object],
        args: tuple[Any, ...] = (),
        context: contextvars.Context | None = None,
        when: float = 0.0,
    ) -> None:
        self.process, self.callback, self.args, self.context = process, callback, args, context
        self.dropped = False
        self._when = when

    def cancel(self) -> None:
        self.dropped = True

    def cancelled(self) -> bool:
        return self.dropped

    def when(self) -> float:
        """On the clock of its loop."""
        return self._when


class Listener(_Server):
    """Where a process takes connections.  `sockets` is one, of which only the address can be asked."""

    def __init__(self, process: Process, port: int, factory: Callable[[], asyncio.BaseProtocol]) -> None:
        self.process, self.port, self.factory = process, port, factory
        self.sockets = [self]

    def getsockname(self) -> tuple[str, int]:
        return self.process.host.name, self.port

    def close(self) -> None:
        if self.process.host.listeners.get(self.port) is self:
            del self.process.host.listeners[self.port]

    async def wait_closed(self) -> None:
        return

    async def serve_forever(self) -> None:
        await self.process.loop.create_future()


def _given_or_own(context: contextvars.Context | None) -> contextvars.Context:
    """One in which no variable is set is empty, and false."""
    return contextvars.copy_context() if context is None else context


class Loop(_Loop):
    """The loop of `process`.  `time()` is the monotonic clock of its host, in seconds."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._simulation = process.host.simulation
        self._signals: dict[int, Event] = {}

    @property
    def seen(self) -> asyncio.AbstractEventLoop:
        """This loop, as asyncio sees it."""
        return cast("asyncio.AbstractEventLoop", self)

    @property
    def name(self) -> str:
        """Of its process."""
        return self._process.name

    def time(self) -> float:
        return self._process.host.monotonic()

    def is_running(self) -> bool:
        return self._process.alive

    def is_closed(self) -> bool:
        return not self._process.alive

    def get_debug(self) -> bool:
        return False

    # -- callbacks ----------------------------------------------------------------------------------------------------

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        event = Event(self._process, callback, args, _given_or_own(context))
        self._simulation.soon(event)
        return event

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        event = Event(self._process, callback, args, _given_or_own(context), when)
        self._simulation.at(self._process.host.instant(when), event)
        return event

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._process.complain(context.get("exception") or RuntimeError(context["message"]))

    # -- futures and tasks --------------------------------------------------------------------------------------------

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self.seen)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None, **options: Any) -> Any:
        if not self._process.alive:  # its remains are being cleared away: nothing begins any more
            coro.close()
            return self.create_future()
        task = asyncio.Task(coro, loop=self.seen, name=name, context=context)
        self._process.tasks[task] = None
        task.add_done_callback(self._process.forget_task)
        return task

    # -- network and signals ------------------------------------------------------------------------------------------

    async def create_connection(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        _only_tcp(options)
        return await self._simulation.network.connect(self._process, host, port, protocol_factory)

    async def create_server(self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any) -> Any:
        _only_tcp(options)
        return self._process.listen(port, protocol_factory)

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: Any) -> None:
        self._signals[sig] = Event(self._process, callback, args)

    def signalled(self, number: int) -> bool:
        """Have the handler of a signal called; False if there is none."""
        handler = self._signals.get(number)
        if handler is not None:
            self._simulation.soon(handler)
        return handler is not None


def _only_tcp(options: dict[str, Any]) -> None:
    for name in ("ssl", "sock"):
        if options.get(name):
            raise NotImplementedError(f"simulated connections take no {name}")


Main = Callable[["Process"], Coroutine[Any, Any, Any]]
"""What a process runs."""
