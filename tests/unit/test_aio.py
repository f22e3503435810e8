"""The asyncio driver's connections: when one counts as stalled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from dcache.drivers.aio import AsyncDriver
from dcache.drivers.driver import Books, Settings
from dcache.ops.backoff import Backoff
from dcache.ops.effects import Call, Link
from dcache.ops.topology import Topology
from dcache.wire import PROTOCOL, Decoder, encode_reply
from tests.conftest import Run

STALL = 0.3


def wall() -> int:
    return int(time.time() * 1000)


class Told:
    """A waiter that keeps what it was told."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.error: Exception | None = None

    def replied(self, call: Call, result: Any, link: Link) -> None:
        self.over.set()

    def failed(self, call: Call, error: Exception, sent: bool) -> None:
        self.error = error
        self.over.set()


@asynccontextmanager
async def asking(pause: float | None) -> AsyncIterator[tuple[AsyncDriver, Call]]:
    """A driver, and a call to a node that greets at once and answers one request each `pause` seconds; None: none."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = Decoder(1 << 20, 1024)
        while data := await reader.read(4096):
            decoder.feed(data)
            for _, message_id, method, _ in decoder.messages():
                if method == "hello":
                    hello = {"protocol": PROTOCOL, "node": "n", "time": wall(), "cluster": "", "limits": {}}
                    writer.write(encode_reply(message_id, hello))
                elif pause is not None:
                    await asyncio.sleep(pause)
                    writer.write(encode_reply(message_id, None))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    random = Random(1).random
    settings = Settings(time.monotonic, wall, connect_timeout=5.0, stall=STALL)
    driver = AsyncDriver(Books(Topology([address], random), Backoff(random), settings), asyncio.get_running_loop())
    try:
        yield driver, Call(address, "ping", ())
    finally:
        await driver.close()
        server.close()
        await server.wait_closed()


def test_a_node_that_answers_one_after_the_other_is_not_stalled_however_long_that_takes(run: Run) -> None:
    async def main() -> None:
        async with asking(STALL / 5) as (driver, call):
            waiters = [Told() for _ in range(12)]
            for waiter in waiters:
                driver.send(call, waiter)
            await waiters[8].over.wait()  # the last has waited for longer than a stall takes
            driver.send(call, another := Told())
            for waiter in (*waiters, another):
                await waiter.over.wait()
                assert waiter.error is None

    run(main())


def test_a_node_that_owes_answers_and_says_nothing_is_stalled(run: Run) -> None:
    async def main() -> None:
        async with asking(None) as (driver, call):
            driver.send(call, silent := Told())
            while not silent.over.is_set():
                await asyncio.sleep(STALL / 10)
                driver.send(call, Told())
            assert "does not answer" in str(silent.error)

    run(main())
