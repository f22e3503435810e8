"""Which keys expire when: a wheel of one-second buckets.

Adding and discarding are O(1); a tick costs what expires in it and nothing for what does not, unlike scanning or
sampling the keys.  A bucket is due when its whole second has passed, so a key leaves at most a second late; until then
the store refuses it on access.
"""

from __future__ import annotations

from sortedcontainers import SortedDict

_BUCKET = 1000


class ExpiryWheel:
    """Keys by the second of their deadline; times are milliseconds on the store's clock."""

    def __init__(self) -> None:
        self._buckets: SortedDict[int, dict[bytes, None]] = SortedDict()  # dicts are sets with an order

    def __len__(self) -> int:
        return sum(map(len, self._buckets.values()))

    def add(self, key: bytes, deadline: int) -> None:
        second = deadline // _BUCKET
        bucket = self._buckets.get(second)
        if bucket is None:
            bucket = self._buckets[second] = {}
        bucket[key] = None

    def discard(self, key: bytes, deadline: int) -> None:
        """Take out what `add` put in with the same deadline."""
        second = deadline // _BUCKET
        bucket = self._buckets.get(second)
        if bucket is not None:
            bucket.pop(key, None)
            if not bucket:
                del self._buckets[second]

    def due(self, now: int, most: int) -> list[bytes]:
        """Take out and return up to `most` keys whose deadline has passed."""
        found: list[bytes] = []
        while self._buckets and len(found) < most:
            second, bucket = self._buckets.peekitem(0)
            if (second + 1) * _BUCKET > now:
                break
            while bucket and len(found) < most:
                found.append(bucket.popitem()[0])
            if not bucket:
                del self._buckets[second]
        return found
