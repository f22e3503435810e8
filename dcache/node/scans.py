"""Walks over the keys of a namespace, page by page, each over a snapshot made with its first page."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Any

from dcache.node.refusal import Refusal
from dcache.node.store import Store
from dcache.wire import Code

SCAN_CHUNK = 4096  # keys looked at per page: some 2 ms
SCANS_AT_ONCE = 32


class Scans:
    """The walks under way in a store; the oldest gives way to one too many."""

    def __init__(self, store: Store, max_batch: int) -> None:
        self._store, self._max_batch = store, max_batch
        self._left: OrderedDict[int, list[bytes]] = OrderedDict()  # what each has not looked at
        self._ids = itertools.count(1)

    def page(self, namespace: bytes, wanted: bytes, cursor: Any, now: int) -> tuple[Any, list[bytes]]:
        """Keys without their namespace (which ends with a NUL) that start with `wanted`, which includes it; and the
        cursor of the next page, None at the end."""
        scan_id, keys = self._go_on(cursor)
        found: list[bytes] = []
        for _ in range(min(SCAN_CHUNK, len(keys))):
            key = keys.pop()
            if key.startswith(wanted) and self._store.peek(key, now) is not None:
                found.append(key[len(namespace) :])
                if len(found) >= self._max_batch:
                    break
        if not keys:
            return None, found
        self._left[scan_id] = keys
        return (scan_id, len(keys)), found

    def _go_on(self, cursor: Any) -> tuple[int, list[bytes]]:
        if cursor is None:
            while len(self._left) >= SCANS_AT_ONCE:
                self._left.popitem(last=False)
            return next(self._ids), self._store.snapshot()
        scan_id, left = cursor
        keys = self._left.pop(scan_id, None)
        if keys is None or len(keys) != left:
            raise Refusal(Code.UNKNOWN_CURSOR)
        return scan_id, keys
