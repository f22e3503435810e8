"""Keeping the machine's cores from going to sleep between two messages.

A core with nothing to do is put to sleep at once, and every request and reply then waits until another one is woken,
with cold caches: tens of microseconds which differ from minute to minute, and beside which a client's own work is
hardly seen.  A server that has something to do is not in that state.  Linux has an interface for who cannot bear the
delay: while a program holds `/dev/cpu_dma_latency` open, having written how many microseconds it may take, no deeper
sleep is entered ("PM Quality Of Service Interface" in the kernel's documentation).  Profiles for low latency of tuned
use it too.  With 0 an idle core looks for work in a loop.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

DEVICE = "/dev/cpu_dma_latency"


@contextmanager
def awake(wanted: bool = True) -> Iterator[str]:
    """Keep all cores awake meanwhile, if that is wanted and allowed; gives what is to be told of it."""
    if not wanted:
        yield "may sleep, as is usual"
        return
    try:
        device = os.open(DEVICE, os.O_WRONLY)
    except OSError as error:
        yield f"may sleep, for they cannot be kept awake: {DEVICE}: {error.strerror}"
        return
    try:
        os.write(device, bytes(4))
        yield f"kept awake ({DEVICE})"
    finally:
        os.close(device)
