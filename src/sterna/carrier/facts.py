"""What a link is told and what it tells: addresses, routes, figures, events."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a target listens."""

    address: str
    port: int

    def __str__(self) -> str:
        return (
            f"[{self.address}]:{self.port}"
            if ":" in self.address
            else f"{self.address}:{self.port}"
        )


@dataclass(frozen=True, slots=True)
class Route:
    """A channel is kept up from `local` (empty: the kernel chooses) to `endpoint`."""

    local: str
    endpoint: Endpoint


class ChannelState(StrEnum):
    UP = "up"
    STALLED = "stalled"  # TCP sends again and again: gets nothing more until it is heard
    DOWN = "down"  # the source tries to connect


@dataclass(frozen=True, slots=True)
class ChannelStats:
    number: int  # 0: has never been up
    route: int
    local: str
    remote: str
    state: ChannelState
    bytes_out: int  # on the wire, headers included, as all of these
    bytes_in: int
    rate: int  # bytes a second out, over the last half second
    rtt_ms: float
    reason: str  # why it is down


@dataclass(frozen=True, slots=True)
class LinkStats:
    """Cumulative since the link was made, unless it says otherwise."""

    wire_out: int  # bytes with the headers of TLS, TCP, IP and Ethernet
    wire_in: int
    payload_out: int  # bytes of messages, each counted once
    payload_in: int
    retransmitted: int  # frames
    channels: tuple[ChannelStats, ...]
    limit: int | None  # bytes a second
    limited: bool  # the limit is what holds it back, now
    down_since: float | None  # monotonic; no channel is up since then
    in_flight: int  # bytes sent and not yet consumed by the peer
    closed: str | None  # reason, once closed


class LinkEventKind(StrEnum):
    CHANNEL_UP = "channel-up"
    CHANNEL_DOWN = "channel-down"
    REFUSED = "refused"  # somebody came who may not
    DOWN = "down"  # the last channel is gone
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """`text` is one sentence for a log."""

    kind: LinkEventKind
    text: str
    route: int | None = None
