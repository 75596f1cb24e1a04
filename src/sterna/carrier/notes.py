"""What is to be said beside data: acknowledgements, ends of streams. Not thread-safe."""

from __future__ import annotations

from typing import Final

from sterna.carrier import frames
from sterna.carrier.duplex import Stream
from sterna.carrier.numbers import LATE

_AT_ONCE: Final = 64  # frames before the next data


class Notes:
    def __init__(self) -> None:
        self._acks: dict[int, Stream] = {}
        self._resets: dict[int, str] = {}  # the peer has not said that it knows
        self._resets_due: dict[int, None] = {}
        self._gone: dict[int, None] = {}

    def __bool__(self) -> bool:
        return bool(self._acks or self._resets_due or self._gone)

    def acknowledge(self, stream: Stream) -> None:
        self._acks[stream.number] = stream

    def acknowledged(self, number: int) -> None:
        """A data frame says it, or there is nothing to say any more."""
        self._acks.pop(number, None)

    def reset(self, number: int, reason: str) -> None:
        self._resets[number] = reason
        self._resets_due[number] = None

    def knows(self, number: int) -> None:
        """The peer knows that it is over."""
        self._resets.pop(number, None)

    def gone(self, number: int) -> None:
        """We do not know this stream any more; a reset says more than that."""
        if number not in self._resets and len(self._gone) < LATE:
            self._gone[number] = None

    def repeat(self, streams: dict[int, Stream]) -> None:
        """What was said may be lost."""
        self._acks.update(streams)
        self._resets_due.update(dict.fromkeys(self._resets))

    def take(self) -> bytes:
        """Frames, some at most."""
        found: list[bytes] = []
        while self._acks and len(found) < _AT_ONCE:
            stream = self._acks.pop(next(iter(self._acks)))
            consumed, ahead = stream.inbox.acknowledge()
            found.append(
                frames.pack(frames.ACK, stream=stream.number, consumed=consumed, ahead=ahead)
            )
        while self._gone and len(found) < _AT_ONCE:
            number = next(iter(self._gone))
            del self._gone[number]
            found.append(frames.pack(frames.GONE, stream=number))
        while self._resets_due and len(found) < _AT_ONCE:
            number = next(iter(self._resets_due))
            del self._resets_due[number]
            if number in self._resets:
                found.append(frames.with_text(frames.RESET, self._resets[number], number))
        return b"".join(found)
