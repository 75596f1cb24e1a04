"""What a daemon and its relay say to each other: JSON lines over a socketpair.

Promises: `decode` returns a message that is right in every type, or raises BadMessage; it needs no
library, for the relay starts while a guest's move waits for it. Keys travel here and nowhere else:
not on a command line, not in the environment, not in a file.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import Enum, StrEnum
from functools import cache
from typing import Any, Final, TypeAlias, Union, get_args, get_origin, get_type_hints

from sterna.carrier.facts import Endpoint, LinkStats, Route

MAX_LINE: Final = 1 << 20  # bytes; the longest is a Start with two certificates and some routes
MEMORY: Final = "memory"  # the service whose stream is QEMU's migration


class BadMessage(ValueError):
    """The line is no message; the text says why."""


class Role(StrEnum):
    SOURCE = "source"
    TARGET = "target"


class Bottleneck(StrEnum):
    """Who is waited for."""

    IDLE = "idle"  # nothing is under way
    QEMU = "qemu"  # the source's: it gives no more
    ENCODE = "encode"  # this relay's processors
    LINK = "link"
    LIMIT = "limit"  # the bytes a second that were allowed
    TARGET = "target"  # the other relay, or the QEMU that loads


class Level(StrEnum):
    INFO = "info"
    WARNING = "warning"


# ---- from the daemon


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The first message. A target listens on `addresses`; a source connects along `routes`, or
    later, when it is told by Connect.

    `services`: name -> path of a Unix socket. A source listens there; a target connects there when
    a stream of that name arrives. `limit` is in bytes a second; `grace_s` None: never give up.
    """

    role: Role
    certificate: str  # PEM, of this side
    key: str = field(repr=False)
    peer_certificate: str = ""  # a source may learn it with Connect
    addresses: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    services: Mapping[str, str]
    cache_bytes: int = 0  # for pages sent before; the same on both sides
    limit: int | None = None
    grace_s: float | None = 30.0
    workers: int | None = None  # threads that compress; None: what suits this host


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """To a source that was started without routes."""

    routes: tuple[Route, ...]
    certificate: str  # PEM, of the target
    cache_bytes: int


@dataclass(frozen=True, slots=True)
class Limit:
    bytes_s: int | None


@dataclass(frozen=True, slots=True)
class Grace:
    """None: never give up, not even when the daemon ends. For post-copy."""

    seconds: float | None


@dataclass(frozen=True, slots=True)
class Stop:
    """The move is over, one way or the other: end now."""


# ---- from the relay


@dataclass(frozen=True, slots=True)
class Ready:
    """A source: its services can be connected to. A target: it listens at `endpoints`."""

    endpoints: tuple[Endpoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Up:
    """The first channel is up."""


@dataclass(frozen=True, slots=True)
class Event:
    text: str  # one sentence
    level: Level = Level.INFO


@dataclass(frozen=True, slots=True)
class Failed:
    """The last message, if it did not end as it should."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStats:
    """Bytes between QEMU and this relay, since the start."""

    streams: int = 0  # open now
    opened: int = 0
    bytes_in: int = 0  # read from QEMU
    bytes_out: int = 0  # written to QEMU
    wire_out: int = 0  # of messages that they became
    wire_in: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStats:
    """Of QEMU's stream. On a target only the byte counts are known."""

    stream_bytes: int = 0  # as QEMU wrote them, or were given to QEMU
    guest_bytes: int = 0  # of pages, those of zeroes too
    packed_bytes: int = 0  # what was sent instead
    in_flight: int = 0  # of `stream_bytes`, not yet given to the target's QEMU
    rate: int = 0  # stream bytes a second given to the target's QEMU, over the last half second
    level: int = 0  # of compression, now
    pages: Mapping[str, int] = field(default_factory=dict)  # by kind
    encoded: Mapping[str, int] = field(default_factory=dict)  # bytes by kind

    @property
    def ratio(self) -> float:
        """Bytes of guest memory for each byte sent; 0 at the start."""
        return self.guest_bytes / self.packed_bytes if self.packed_bytes else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Ten times a second. Counts are since the relay's start."""

    time_s: float  # CLOCK_MONOTONIC
    bottleneck: Bottleneck = Bottleneck.IDLE
    link: LinkStats | None = None  # none before Connect
    services: Mapping[str, ServiceStats] = field(default_factory=dict)
    memory: MemoryStats | None = None  # none before its first byte
    cpu_s: float = 0.0  # of the relay's process
    peak_rss: int = 0  # bytes


ToRelay: TypeAlias = Start | Connect | Limit | Grace | Stop
FromRelay: TypeAlias = Ready | Up | Event | Failed | Stats
_NAMES: Final[dict[str, type[Any]]] = {
    cls.__name__.lower(): cls
    for cls in (Start, Connect, Limit, Grace, Stop, Ready, Up, Event, Failed, Stats)
}


def encode(message: ToRelay | FromRelay) -> bytes:
    """One line, its end included."""
    body = _plain(message) | {"message": type(message).__name__.lower()}
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> ToRelay | FromRelay:
    """The message of a line. Raises BadMessage."""
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        raise BadMessage("not JSON") from None
    if not isinstance(body, dict):
        raise BadMessage("not an object")
    name = body.pop("message", None)
    cls: Any = _NAMES.get(name) if isinstance(name, str) else None
    if cls is None:
        raise BadMessage("of no known kind")
    made: ToRelay | FromRelay = _reader(cls)(body, str(name))
    return made


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.value if isinstance(value, Enum) else value


_Reader: TypeAlias = Callable[[Any, str], Any]


@cache
def _reader(wanted: Any) -> _Reader:
    """What makes a value of the type `wanted` of JSON, or raises BadMessage with its place."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if is_dataclass(wanted):
        return _object(wanted)
    if origin in {Union, types.UnionType}:
        (some,) = (one for one in arguments if one is not type(None))
        inner = _reader(some)
        return lambda value, place: None if value is None else inner(value, place)
    if origin in {tuple, Mapping}:
        return _collection(origin, _reader(arguments[-1 if origin is Mapping else 0]))
    if isinstance(wanted, type) and issubclass(wanted, Enum):
        return lambda value, place: _member(wanted, value, place)
    if wanted is float:
        return lambda value, place: float(_of(value, (int, float), place, "a number"))
    return lambda value, place: _of(value, wanted, place, wanted.__name__)


def _collection(origin: Any, item: _Reader) -> _Reader:
    if origin is tuple:
        return lambda value, place: tuple(
            item(one, place) for one in _of(value, list, place, "a list")
        )
    return lambda value, place: {
        key: item(one, f"{place}.{key}")
        for key, one in _of(value, dict, place, "an object").items()
    }


def _object(cls: Any) -> _Reader:
    hints = get_type_hints(cls)
    readers = {one.name: _reader(hints[one.name]) for one in fields(cls)}
    needed = {
        one.name for one in fields(cls) if one.default is MISSING and one.default_factory is MISSING
    }

    def read(value: Any, place: str) -> Any:
        body = _of(value, dict, place, "an object")
        if body.keys() - readers.keys() or needed - body.keys():
            wrong = sorted((body.keys() - readers.keys()) | (needed - body.keys()))
            raise BadMessage(f"{place}: unknown or missing: {', '.join(wrong)}")
        return cls(**{key: readers[key](one, f"{place}.{key}") for key, one in body.items()})

    return read


def _member(wanted: type[Enum], value: Any, place: str) -> Enum:
    try:
        return wanted(value)
    except ValueError:
        raise BadMessage(f"{place}: not one of {', '.join(str(one) for one in wanted)}") from None


def _of(value: Any, wanted: Any, place: str, name: str) -> Any:
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise BadMessage(f"{place}: not {name}")
    return value
