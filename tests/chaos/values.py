"""Values that betray themselves: each carries its key, an id that is given once, and a checksum over all of it."""

from __future__ import annotations

import random
import zlib
from typing import Any

SIZES = (0, 0, 0, 40, 400, 4000)
"""Bytes of padding; most values are small."""


def seal(key: str, id: str, padding: int = 0) -> str:
    """The value to store for `id` under `key`."""
    body = f"{key}|{id}|{id[-1] * padding}"
    return f"{body}|{zlib.crc32(body.encode())}"


def unseal(key: str, value: Any) -> str | None:
    """The id in `value`, None if it is not whole, or was written under another key."""
    if type(value) is not str:
        return None
    body, _, checksum = value.rpartition("|")
    parts = body.split("|")
    whole = len(parts) == 3 and checksum == str(zlib.crc32(body.encode()))
    return parts[1] if whole and parts[0] == key else None


def any_size(rng: random.Random) -> int:
    return rng.choice(SIZES)
