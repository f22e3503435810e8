"""Every error that dcache raises, under one root.

A miss is a value, never an exception.  These are for misuse, broken protocol, the network and lost quorums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class DcacheError(Exception):
    """The root of all errors of this library.  All of them can be pickled, so they cross process pools intact."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[DcacheError], args: tuple[Any, ...], state: dict[str, Any]) -> DcacheError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidKey(DcacheError, ValueError):
    """A key (or namespace) is empty or too long; nothing was sent."""


class ValueTooLarge(DcacheError, ValueError):
    """An encoded value exceeds the limit; nothing was stored and nothing evicted.  Sizes are in bytes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"the encoded value has {size} bytes, the limit is {limit}: store less or raise max_value")
        self.size, self.limit = size, limit


class SerializationError(DcacheError, TypeError):
    """A value cannot be encoded; the message names the type.  Nothing was sent."""


class DecodingError(DcacheError, ValueError):
    """Stored bytes cannot be turned back into a value.  Reads turn this into a counted miss."""


class NotACounter(DcacheError, TypeError):
    """`incr` or `decr` met a value that is not an integer; the value is untouched."""


class ProtocolError(DcacheError):
    """A peer sent what the protocol does not allow; its connection was closed."""


class NodeError(DcacheError):
    """A node refused a request.  `code` is one of `dcache.wire.Code`; `detail` depends on the code."""

    def __init__(self, code: int, message: str, detail: object = None) -> None:
        super().__init__(f"{message} (code {code})")
        self.code, self.message, self.detail = code, message, detail


class NoNodesAvailable(DcacheError):
    """No seed and no known member could be reached.  `reasons` maps each address to what went wrong there."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        told = "; ".join(f"{address}: {reason}" for address, reason in reasons.items()) or "no address was given"
        super().__init__(f"no node could be reached ({told})")
        self.reasons = dict(reasons)


class QuorumError(DcacheError):
    """Too few nodes answered as needed.

    `needed` and `got` count answers, `reasons` maps node names to what went wrong there.  With `in_doubt` a write may
    have been stored at some nodes and may show up later; without it, it was certainly not made.
    """

    def __init__(self, what: str, *, needed: int, got: int, reasons: Mapping[str, str], in_doubt: bool) -> None:
        self.needed, self.got, self.reasons, self.in_doubt = needed, got, dict(reasons), in_doubt
        self._what = what
        super().__init__(self._message())

    def doubt(self) -> None:
        """Put it in doubt: an earlier attempt, or another part of the same write, may have been stored."""
        self.in_doubt = True
        self.args = (self._message(),)

    def _message(self) -> str:
        told = "; ".join(f"{node}: {reason}" for node, reason in self.reasons.items()) or "no node answered"
        doubt = ", in doubt: it may have been stored" if self.in_doubt else ""
        return f"{self._what}: {self.got} of {self.needed} needed answers{doubt} ({told})"


class DeadlineExceeded(QuorumError, TimeoutError):
    """A `QuorumError` because time ran out."""


class ClockSkew(DcacheError):
    """This machine's clock and the nodes' differ by more than is allowed; set the clock (NTP) and try again."""


class ClusterMismatch(DcacheError):
    """A node belongs to another cluster, or has other cluster settings, than expected.

    `cluster_id` is the cluster that it belongs to, where that is what differs.
    """

    def __init__(self, message: str, cluster_id: str = "") -> None:
        super().__init__(message)
        self.cluster_id = cluster_id


class ClientClosed(DcacheError):
    """The client was used after `close()`."""
