"""Frames on the wire: 32 bytes of header, then the payload. Pure; the limits are here too.

Numbers count the frames of one direction of one stream, from 0, which opens it. `consumed` and
`ahead` acknowledge the other direction of the same stream: all frames below `consumed` have been
used up by whoever reads the stream, the next `ahead` ones have arrived and are kept.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

VERSION: Final = 1

HEADER: Final = struct.Struct("!BBHIIQQI")  # kind flags 0 stream length number consumed ahead
SIZE: Final = HEADER.size
RECORD: Final = 16 << 10  # bytes, the largest TLS record
MAX_PAYLOAD: Final = 8 * RECORD - SIZE  # a full frame is eight full records
MAX_MESSAGE: Final = 8 << 20  # bytes
MAX_SERVICE: Final = 64  # bytes of a service's name
MAX_REASON: Final = 512  # bytes of text beside an end

MIN_WINDOW: Final = 256 << 10  # bytes that a stream may always have unconsumed
MAX_WINDOW: Final = 16 << 20  # and at most
POOL: Final = 64 << 20  # bytes above MIN_WINDOW that all streams of one side have together
OVERHEAD: Final = 512  # bytes that a frame counts beside its payload: what its objects take
MAX_STREAMS: Final = 32  # that one side may have open
MAX_CHANNELS: Final = 16  # of a link at once
_FAR: Final = MAX_WINDOW // OVERHEAD + 1  # frames that can be unconsumed

HELLO, DATA, ACK, RESET, GONE, PING, BYE, CLOSE = range(1, 9)
NAMES: Final = {
    HELLO: "hello", DATA: "data", ACK: "ack", RESET: "reset", GONE: "gone", PING: "ping",
    BYE: "bye", CLOSE: "close",
}  # fmt: skip

END: Final = 1  # of DATA: the last frame of a message
OPEN: Final = 2  # frame 0: its payload is the service's name
FINISH: Final = 4  # nothing follows; no payload
ASK: Final = 8  # tell when this one has been consumed
_PARTS = {0, END, OPEN, FINISH}

_MAX_LENGTH = {DATA: MAX_PAYLOAD, RESET: MAX_REASON, BYE: MAX_REASON, CLOSE: MAX_REASON}
_OF_STREAM = {DATA, ACK, RESET, GONE}


class BadFrame(ValueError):
    """The peer broke the protocol; the text says how."""


class Header(NamedTuple):
    kind: int
    flags: int
    zero: int
    stream: int
    length: int
    number: int
    consumed: int
    ahead: int


def cost(length: int) -> int:
    """Bytes that a frame counts against windows, on both sides alike."""
    return length + OVERHEAD


def pack(  # noqa: PLR0913 - the fields of a header
    kind: int,
    *,
    flags: int = 0,
    stream: int = 0,
    length: int = 0,
    number: int = 0,
    consumed: int = 0,
    ahead: int = 0,
) -> bytes:
    return HEADER.pack(kind, flags, 0, stream, length, number, consumed, ahead)


def with_text(kind: int, text: str, stream: int = 0) -> bytes:
    """A whole frame that says why something ends; a long text is cut."""
    data = text.encode()[:MAX_REASON].decode(errors="ignore").encode()
    return pack(kind, stream=stream, length=len(data)) + data


def text(payload: Buffer) -> str:
    """What `with_text` said: one line, whatever the peer sent."""
    found = bytes(payload).decode(errors="replace")
    return "".join(letter if letter.isprintable() else " " for letter in found)


def parse(data: Buffer) -> Header:
    """Of exactly SIZE bytes. Raises BadFrame unless all that can be judged here is right."""
    header = Header._make(HEADER.unpack(data))
    kind, flags, zero, stream, length, number, consumed, ahead = header
    if kind not in NAMES or zero:
        raise BadFrame(f"not a frame (kind {kind})")
    name = NAMES[kind]
    if kind == HELLO:
        if length != HELLO_SIZE:
            raise BadFrame(f"a hello of {length} bytes")
    elif length > _MAX_LENGTH.get(kind, 0):
        raise BadFrame(f"a {name} frame of {length} bytes")
    if (stream != 0) != (kind in _OF_STREAM):
        raise BadFrame(f"a {name} frame for stream {stream}")
    if kind == DATA:
        _check_data(flags, length, number)
    elif flags or number:
        raise BadFrame(f"a {name} frame with flags {flags} and number {number}")
    if (consumed or ahead) and kind not in {DATA, ACK}:
        raise BadFrame(f"a {name} frame that acknowledges")
    if ahead > _FAR:
        raise BadFrame(f"{ahead} frames held: more than fit")
    return header


def _check_data(flags: int, length: int, number: int) -> None:
    part = flags & ~ASK
    if part not in _PARTS:
        raise BadFrame(f"a data frame with flags {flags}")
    if (part == OPEN) != (number == 0):
        raise BadFrame(f"a data frame with flags {flags} and number {number}")
    if part == OPEN and not 0 < length <= MAX_SERVICE:
        raise BadFrame(f"a service's name of {length} bytes")
    if (part == FINISH and length) or (part == 0 and not length):
        raise BadFrame(f"a data frame with flags {flags} and {length} bytes")


def check_number(number: int, consumed: int) -> None:
    """BadFrame if no honest peer can have sent a frame of this number yet."""
    if number >= consumed + _FAR:
        raise BadFrame(f"frame {number} where {consumed} is awaited")


_HELLO = struct.Struct("!HHI16s16s")
HELLO_SIZE: Final = _HELLO.size


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame in each direction of a channel. The answer repeats route and number."""

    route: int  # of the source's list: a newer channel of a route replaces the older one
    number: int  # of the channel in its link, never used twice
    link: bytes  # 16 bytes, made of both certificates
    instance: bytes  # 16 random bytes of the sender: a peer that has lost its state has others
    version: int = VERSION

    def pack(self) -> bytes:
        payload = _HELLO.pack(self.version, self.route, self.number, self.link, self.instance)
        return pack(HELLO, length=HELLO_SIZE) + payload

    @staticmethod
    def parse(payload: Buffer) -> Hello:
        version, route, number, link, instance = _HELLO.unpack(payload)
        return Hello(route, number, link, instance, version)
