"""Memory for payloads that arrive: that of large frames is used again and again."""

from __future__ import annotations

from sterna.carrier import frames
from sterna.carrier.inbox import Piece

_SPARE = 64  # that are kept
_POOLED = frames.MAX_PAYLOAD // 2  # bytes; a smaller payload gets memory of its own size


class Buffers:
    """Thread-safe, as far as lists are."""

    def __init__(self) -> None:
        self._spare: list[bytearray] = []

    def get(self, length: int) -> bytearray:
        """At least so many bytes."""
        if length <= _POOLED:
            return bytearray(length)
        try:
            return self._spare.pop()
        except IndexError:
            return bytearray(frames.MAX_PAYLOAD)

    def give_back(self, parts: list[Piece]) -> None:
        """Those of a message that was copied."""
        for part in parts:
            if (
                isinstance(part.data, bytearray)
                and len(part.data) == frames.MAX_PAYLOAD
                and len(self._spare) < _SPARE
            ):
                self._spare.append(part.data)
