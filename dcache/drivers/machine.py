"""What a machine gives its programs beside a network: clocks and randomness."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable

import attrs


@attrs.frozen(eq=False)
class Machine:
    """`monotonic` gives seconds that never go back, `wall` milliseconds since 1970, `random` numbers in [0, 1), and
    `bits(n)` a number of n bits that nobody else has drawn."""

    monotonic: Callable[[], float]
    wall: Callable[[], int]
    random: Callable[[], float]
    bits: Callable[[int], int]

    def milliseconds(self) -> int:
        """`monotonic`, in whole milliseconds."""
        return int(self.monotonic() * 1000)

    def new_id(self) -> str:
        """16 hexadecimal digits that nothing else is called."""
        return f"{self.bits(64):016x}"

    def new_writer(self) -> int:
        """The id of a writer of versions; see `dcache.record`."""
        return self.bits(32)


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


THIS_MACHINE = Machine(time.monotonic, wall_ms, random.random, secrets.randbits)
