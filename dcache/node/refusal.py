"""How a node says no: `Refusal`, and what becomes one.

Methods check their parameters by using them; what Python raises over one of the wrong form is a bad request.
"""

from __future__ import annotations

from dcache.errors import InvalidKey, ValueTooLarge
from dcache.record import Version
from dcache.wire import MESSAGES, Code


class Refusal(Exception):
    """The request is refused; sent as `[code, message, detail]`."""

    def __init__(self, code: Code, detail: object = None) -> None:
        super().__init__(MESSAGES[code])
        self.code, self.detail = code, detail


REFUSED = (TypeError, ValueError, AttributeError)
"""What a method raises over parameters of the wrong form; the errors of the library among them are `ValueError`s."""


def as_refusal(error: Exception) -> Refusal:
    match error:
        case Refusal():
            return error
        case InvalidKey():
            return Refusal(Code.INVALID_KEY, str(error))
        case ValueTooLarge():
            return Refusal(Code.VALUE_TOO_LARGE, (error.size, error.limit))
    return Refusal(Code.BAD_REQUEST, str(error))


def refusal_to_wire(refusal: Refusal) -> tuple[int, str, object]:
    return int(refusal.code), MESSAGES[refusal.code], refusal.detail


def version_from_wire(version: bytes) -> Version:
    """`TypeError` for what is none."""
    if type(version) is not bytes or len(version) != 12:
        raise TypeError("a version has 12 bytes")
    return version  # type: ignore[return-value]  # to call a type that only checkers see takes as long as the rest
