"""MessagePack-RPC: bytes <-> messages, without sockets.

A request is `[0, id, method, params]`, a reply `[1, id, error, result]`, a notification `[2, method, params]`, as the
MessagePack-RPC specification has them.  An error is `[code, message, detail]`.  Bad bytes are never repaired: after any
`ProtocolError` the decoder, and with it the connection, is of no further use.

The numbers and names below travel between versions of this program: only append.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import attrs
import msgpack

from dcache.errors import InvalidKey, ProtocolError

PROTOCOL = 1
"""The protocol version that `hello` carries; a node refuses a client whose version it does not speak."""

DEFAULT_PORT = 7400
REQUEST, REPLY, NOTIFICATION = 0, 1, 2
IDS = 1 << 32  # there are so many message ids


class Code(enum.IntEnum):
    """What an error reply says.  Only append."""

    BAD_REQUEST = 1  # the bytes or parameters are not what the protocol allows
    UNKNOWN_METHOD = 2
    INVALID_KEY = 3
    VALUE_TOO_LARGE = 4  # detail: [size, limit]
    WRONG_RING = 5  # detail: the node's member table
    NOT_READY = 6  # the node belongs to no cluster yet
    CLOCK_SKEW = 7  # detail: [version's milliseconds, node's milliseconds]
    OVERLOADED = 8
    UNKNOWN_CURSOR = 9  # start the scan of this node again
    CLUSTER_MISMATCH = 10  # detail: the node's cluster id and settings
    INTERNAL = 11


MESSAGES = {
    Code.BAD_REQUEST: "bad request",
    Code.UNKNOWN_METHOD: "unknown method",
    Code.INVALID_KEY: "invalid key",
    Code.VALUE_TOO_LARGE: "value too large",
    Code.WRONG_RING: "wrong ring",
    Code.NOT_READY: "not ready",
    Code.CLOCK_SKEW: "clock skew",
    Code.OVERLOADED: "overloaded",
    Code.UNKNOWN_CURSOR: "unknown cursor",
    Code.CLUSTER_MISMATCH: "cluster mismatch",
    Code.INTERNAL: "internal error",
}
"""The constant message of each code."""


class Status(enum.IntEnum):
    """How a node answers a write.  Only append."""

    STORED = 0  # done, or done before by the same version
    NEWER = 1  # refused: something newer is held, forgotten or promised; its version comes with the answer
    PROMISED = 2  # as NEWER, but the key is promised: what was promised may have been computed before, or never come


@attrs.frozen
class Limits:
    """What one frame may hold; sizes in bytes.  A node tells its own in `hello`."""

    max_key: int = 1024
    max_namespace: int = 255
    max_value: int = 1024 * 1024
    max_batch: int = 1024
    """Items of a batch, and elements of any array on the wire."""
    frame_room: int = 7 * 1024 * 1024
    """What a frame may hold beside the largest value."""

    @property
    def max_frame(self) -> int:
        return self.max_value + self.frame_room


FRAME_CEILING = 1 << 30
"""No peer's word makes a decoder accept frames larger than this."""

pack: Callable[[object], bytes] = msgpack.Packer(use_bin_type=True, autoreset=True).pack
"""One MessagePack object as bytes."""

_array_head: Callable[[int], bytes] = msgpack.Packer(autoreset=True).pack_array_header
_reply_head = struct.Struct(">3sIB").pack
_TO_ID, _NIL, _HEAD = b"\x94\x01\xce", 0xC0, 8  # an array of four, REPLY, an id of 32 bits; no error; their bytes


def check_key(key: bytes, limits: Limits) -> None:
    """Raise `InvalidKey` for an empty key or one over the limit."""
    if not 0 < len(key) <= limits.max_key:
        raise InvalidKey(f"a key has 1 to {limits.max_key} bytes, this one has {len(key)}")


def storage_key(namespace: bytes, key: bytes) -> bytes:
    """What is hashed and stored: namespaces hold no NUL, so the first NUL ends the namespace."""
    return namespace + b"\0" + key


def encode_request(message_id: int, method: str, params: Sequence[Any]) -> bytes:
    return pack((REQUEST, message_id, method, params))


def encode_reply(message_id: int, result: object) -> bytes:
    return pack((REPLY, message_id, None, result))


def reply_head(message_id: int) -> bytes:
    """What stands before the result in a reply, as nodes write it."""
    return _reply_head(_TO_ID, message_id, _NIL)


def lone_result(data: bytes, message_id: int) -> Any:
    """The result in `data`, if that is a reply with the `reply_head` of this id, whole and alone; None for whatever
    else it is, which a `Decoder` is to look at then."""
    if data[:_HEAD] == _reply_head(_TO_ID, message_id, _NIL):
        try:
            return _unpack_result(data[_HEAD:])
        except (ValueError, TypeError):  # not all of it, or more than that, or nothing that we take
            return None
    return None


def encode_error(message_id: int | None, code: Code, detail: object = None) -> bytes:
    """An error reply; the id is nil where the request's own could not be read."""
    return pack((REPLY, message_id, (int(code), MESSAGES[code], detail), None))


def encode_notification(method: str, params: Sequence[Any]) -> bytes:
    return pack((NOTIFICATION, method, params))


def pack_array(encoded: Sequence[bytes], head: bytes = b"") -> bytes:
    """`head`, then the array of these objects, each MessagePack already."""
    return b"".join((head, _array_head(len(encoded)), *encoded))


_unpack_result = partial(
    msgpack.unpackb, use_list=False, max_array_len=Limits().max_batch, max_map_len=Limits().max_batch, max_ext_len=0
)


class Decoder:
    """A stream of bytes -> complete messages, as tuples.  Thrown away after any error.

    `max_frame` bounds a single message and what is buffered, `max_batch` the elements of any array in it.
    Requests hold no maps, so a node takes none (`maps=False`): an empty one costs a byte here and 64 in memory.
    """

    def __init__(self, max_frame: int, max_batch: int, *, maps: bool = True) -> None:
        self._max_frame = max_frame
        self._fed = self._done = 0
        self.partial = False  # whether a frame has begun and not ended; exact once `messages` has run dry
        self._unpacker = msgpack.Unpacker(
            use_list=False,
            raw=False,
            strict_map_key=True,
            max_buffer_size=max_frame,
            max_str_len=max_frame,
            max_bin_len=max_frame,
            max_array_len=max_batch,
            max_map_len=max_batch,
            max_ext_len=0,
            object_hook=None if maps else _refuse_map,
            read_size=16384,  # of which it reserves a multiple at once
        )
        self._unpack, self._tell = self._unpacker.unpack, self._unpacker.tell

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        try:
            self._unpacker.feed(data)
        except (msgpack.BufferFull, ValueError) as error:
            raise ProtocolError(f"a frame is larger than {self._max_frame} bytes") from error
        self._fed += len(data)
        self.partial = self._fed != self._done

    def widened(self, max_frame: int, max_batch: int) -> Decoder:
        """A decoder with other limits for the rest of this stream; only between two messages."""
        wider = Decoder(max_frame, max_batch)
        wider.feed(self._unpacker.read_bytes(self._fed - self._done))
        return wider

    def messages(self) -> Iterator[tuple[Any, ...]]:
        """Every message that is complete by now; may be left early and called again."""
        return iter(self.next, None)

    def next(self) -> tuple[Any, ...] | None:
        """The next message, or None if none is complete by now."""
        if not self.partial:  # to ask the unpacker for what it has not costs an exception
            return None
        try:
            message = self._unpack()
        except msgpack.OutOfData:
            self._check_size(self._fed)
            return None
        except Exception as error:
            why = str(error) or type(error).__name__
            raise ProtocolError(f"not MessagePack within the limits: {why}") from error
        end = self._tell()
        if end - self._done > self._max_frame:
            self._check_size(end)
        self._done = end
        self.partial = end != self._fed
        return check_message(message)

    def _check_size(self, end: int) -> None:
        # The unpacker's own limit is on bytes it has not looked at yet, so a frame of many small parts passes it.
        if end - self._done > self._max_frame:
            raise ProtocolError(f"a frame is larger than {self._max_frame} bytes")


def _refuse_map(_: object) -> None:
    raise ProtocolError("requests hold no maps")


def check_message(message: Any) -> tuple[Any, ...]:
    """The message, if its envelope is one of the three kinds; `ProtocolError` otherwise."""
    if type(message) is tuple:
        if len(message) == 4:
            kind, message_id, third, last = message
            numbered = type(message_id) is int and 0 <= message_id < IDS
            if type(kind) is int:
                if kind == REQUEST and numbered and type(third) is str and type(last) is tuple:
                    return message
                if kind == REPLY and (numbered or message_id is None) and (third is None or _is_error(third)):
                    return message
        elif len(message) == 3:
            kind, method, params = message
            if type(kind) is int and kind == NOTIFICATION and type(method) is str and type(params) is tuple:
                return message
    raise ProtocolError("a message is neither request, reply nor notification")


def _is_error(error: object) -> bool:
    return type(error) is tuple and len(error) == 3 and type(error[0]) is int
