"""What a node has promised about keys: to refuse versions below a promise, and to accept the promised ones.

Two kinds, told apart by who may stand beside whom:

* A **claim** is made for an absent key by a reader about to compute its value.  Any number of claims on a key stand
  side by side, and whichever computation ends first may store its value.  Were a later claim to push out an earlier
  one, two processes that compute the same key in turns would refuse each other's values for ever.
* A **ballot** is made by a conditional change (CASPaxos).  It pushes out claims and older ballots, but for its first
  moments it is left alone: of two changes at once the second waits, instead of leaving the first half accepted.

Any other write of the key voids all of its promises.  Promises are bounded in number and time; `forgotten` is told of
those that go for want of either, for their barrier must outlive them: the promised version may have been accepted
elsewhere, and a write that came in below it here would lose against it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import attrs

from dcache.record import Version

CLAIMS_PER_KEY = 64


@attrs.define(eq=False)
class Promise:
    """The promises on one key.  `top` is the highest version promised; `standing` are those that may be accepted."""

    top: Version
    standing: tuple[Version, ...]
    ballot: bool
    since: int


class Promises:
    """All promises of a node.  `most` keys at a time, each for `life` ms; a ballot is left alone for `patience` ms."""

    def __init__(self, most: int, life: int, patience: int) -> None:
        self._most, self._life, self._patience = most, life, patience
        self._by_key: OrderedDict[bytes, Promise] = OrderedDict()
        self.forgotten: Callable[[bytes, Version], None] = lambda key, top: None

    def __len__(self) -> int:
        return len(self._by_key)

    def find(self, key: bytes, now: int) -> Promise | None:
        """The promise on `key` that still stands."""
        promise = self._by_key.get(key)
        if promise is not None and now - promise.since >= self._life:
            del self._by_key[key]
            self.forgotten(key, promise.top)
            return None
        return promise

    def stands(self, key: bytes, version: Version, now: int) -> bool:
        """Whether `version` is promised: asking for it again is a retry."""
        promise = self.find(key, now)
        return promise is not None and version in promise.standing

    def claim(self, key: bytes, version: Version, now: int) -> bool:
        """Promise `version` to a reader of an absent key; False if a ballot or many higher claims are in the way."""
        promise = self.find(key, now)
        if promise is None or (promise.ballot and version > promise.top and not self._young(promise, now)):
            self._put(key, Promise(version, (version,), False, now))
        elif promise.ballot:
            return False
        elif version not in promise.standing:
            kept = sorted((*promise.standing, version))[-CLAIMS_PER_KEY:]
            self._put(key, Promise(max(promise.top, version), tuple(kept), False, now))
            return version in kept
        return True

    def ballot(self, key: bytes, version: Version, now: int) -> Version | None:
        """Promise `version` to a conditional change and return None, or return the promise that is in the way."""
        promise = self.find(key, now)
        if promise is not None:
            if promise.ballot and promise.top == version:
                return None
            if version < promise.top or (promise.ballot and self._young(promise, now)):
                return promise.top
        self._put(key, Promise(version, (version,), True, now))
        return None

    def release(self, key: bytes, ballot: Version) -> None:
        """Whoever made `ballot` gives it up, having accepted nothing with it: others need not wait."""
        promise = self._by_key.get(key)
        if promise is not None and promise.ballot and promise.top == ballot:
            del self._by_key[key]

    def void(self, key: bytes) -> None:
        """Some other write came: nothing that was promised on `key` will be accepted."""
        self._by_key.pop(key, None)

    def redeemed(self, key: bytes, version: Version) -> None:
        """`version` was accepted: claims above it still stand, whatever is below can no longer win."""
        promise = self._by_key[key]
        above = tuple(standing for standing in promise.standing if standing > version)
        if above:
            promise.standing = above
        else:
            del self._by_key[key]

    def void_prefix(self, prefix: bytes) -> None:
        """Void the promises of all keys that start with `prefix`; their barrier outlives them."""
        for key in [key for key in self._by_key if key.startswith(prefix)]:
            self.forgotten(key, self._by_key.pop(key).top)

    def expire(self, now: int) -> None:
        """Drop those whose time is over, oldest first."""
        while self._by_key:
            key, promise = next(iter(self._by_key.items()))
            if now - promise.since < self._life:
                break
            del self._by_key[key]
            self.forgotten(key, promise.top)

    def _young(self, promise: Promise, now: int) -> bool:
        return now - promise.since < self._patience

    def _put(self, key: bytes, promise: Promise) -> None:
        self._by_key[key] = promise
        self._by_key.move_to_end(key)
        if len(self._by_key) > self._most:
            oldest, promise = self._by_key.popitem(last=False)
            self.forgotten(oldest, promise.top)
