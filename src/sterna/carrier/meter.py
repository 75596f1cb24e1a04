"""What TCP knows about the channels, some times a second: figures, the limit's truth, windows."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from sterna.carrier import frames
from sterna.carrier.channel import Channel
from sterna.carrier.facts import ChannelState, ChannelStats
from sterna.carrier.tcpinfo import HEADERS, TcpInfo
from sterna.carrier.traffic import Traffic
from sterna.clock import monotonic

_IPV6_MORE = 20  # bytes of its header beyond IPv4's
_SEGMENT = 1448  # bytes, for what TCP has not cut yet
_RATE_S = 0.5
_FRAME_S = 0.005  # a frame takes a channel about so long
_LIMITED_FRAME_S = 0.01  # and the limit: it must not come in bursts
_MIN_FRAME = 2 << 10  # bytes
_UNSENT_S = 0.01  # of work wait in the kernel
_MIN_UNSENT, _MAX_UNSENT = 64 << 10, 512 << 10
_LIMITED_S = 0.3  # since the limit last held something back
_ADAPT_S = 0.1
_NO_RTT_US = 60_000_000  # above: the kernel has none yet


@dataclass(slots=True)
class _Route:
    """Figures of one route: of channels that have ended, and of the one that is."""

    channel: Channel
    done_out: int = 0
    done_in: int = 0
    past: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=64))
    rate: int = 0


class Meter:
    """`tick` is called by one thread, the rest by any."""

    def __init__(self, traffic: Traffic) -> None:
        self.is_limited = False
        self._traffic = traffic
        self._routes: dict[int, _Route] = {}
        self._waits = 0
        self._waited = -_LIMITED_S
        self._adapted = monotonic()

    def add(self, channel: Channel) -> None:
        """It is the channel of its route from now on."""
        route = self._routes.get(channel.route)
        if route is None:
            self._routes[channel.route] = _Route(channel)
            return
        sent, came = _wire(route.channel)
        route.done_out += sent
        route.done_in += came
        route.channel = channel

    @property
    def wire(self) -> tuple[int, int]:
        """Bytes out and in on all channels, those that have ended too."""
        sums = [(route, *_wire(route.channel)) for route in list(self._routes.values())]
        return (
            sum(route.done_out + sent for route, sent, _ in sums),
            sum(route.done_in + came for route, _, came in sums),
        )

    def tick(self, live: Collection[Channel], now: float) -> None:
        for channel in live:
            channel.look()
        for route in list(self._routes.values()):
            self._rate(route, now)
        self._judge(live)
        with self._traffic.lock:
            self._settle(live, now)
            if now - self._adapted >= _ADAPT_S:
                rtt_s = max((_rtt_us(channel) for channel in live), default=0) / 1e6
                queue_s = max((_queue_us(channel) for channel in live), default=0) / 1e6
                self._traffic.tick(now - self._adapted, rtt_s, queue_s)
                self._adapted = now

    def stats(self, live: Collection[Channel], reasons: dict[int, str]) -> list[ChannelStats]:
        """Of every route that was ever up."""
        found = []
        for number, route in sorted(self._routes.items()):
            channel = route.channel
            sent, came = _wire(channel)
            state = ChannelState.STALLED if channel.is_stalled else ChannelState.UP
            is_up = channel in live
            info = channel.info
            found.append(
                ChannelStats(
                    number=channel.number,
                    route=number,
                    local=channel.local,
                    remote=channel.remote,
                    state=state if is_up else ChannelState.DOWN,
                    bytes_out=route.done_out + sent,
                    bytes_in=route.done_in + came,
                    rate=route.rate,
                    rtt_ms=round(info.rtt_us / 1000, 3) if info and is_up else 0.0,
                    reason="" if is_up else reasons.get(number, ""),
                )
            )
        return found

    def _rate(self, route: _Route, now: float) -> None:
        out = route.done_out + _wire(route.channel)[0]
        route.past.append((now, out))
        while len(route.past) > 2 and now - route.past[1][0] >= _RATE_S:
            route.past.popleft()
        begun, first = route.past[0]
        route.rate = int((out - first) / (now - begun)) if now > begun else 0

    def _judge(self, live: Collection[Channel]) -> None:
        """How much suits each channel, and which must not get anything new."""
        limit = self._traffic.bucket.rate
        stuck = {channel for channel in live if channel.info and channel.info.backoff}
        for channel in live:
            if channel.info is None:
                continue
            speed = channel.info.delivery_rate
            size = min(max(int(speed * _FRAME_S), frames.RECORD - frames.SIZE), frames.MAX_PAYLOAD)
            if limit is not None:
                size = min(size, max(_MIN_FRAME, int(limit * _LIMITED_FRAME_S)))
            channel.frame_size = size
            channel.set_unsent(min(max(int(speed * _UNSENT_S), _MIN_UNSENT), _MAX_UNSENT))
            is_stalled = channel in stuck and len(stuck) < len(live)
            if is_stalled != channel.is_stalled:
                with self._traffic.lock:
                    channel.is_stalled = is_stalled
                    if is_stalled:
                        self._traffic.send_again(channel)
                    else:
                        channel.is_idle = False
                channel.wake()

    def _settle(self, live: Collection[Channel], now: float) -> None:
        """The limit counts what really went: estimates are made good."""
        traffic = self._traffic
        true = float(self.wire[0])
        for channel in live:
            if channel.info is not None:
                true += channel.info.unsent * (1 + HEADERS / _SEGMENT)
        traffic.bucket.charge(true - traffic.charged)
        traffic.charged = true
        if traffic.bucket.waits != self._waits:
            self._waits, self._waited = traffic.bucket.waits, now
        self.is_limited = now - self._waited < _LIMITED_S


def _wire(channel: Channel) -> tuple[int, int]:
    info: TcpInfo | None = channel.info
    if info is None:
        return 0, 0
    headers = HEADERS + (_IPV6_MORE if channel.local.startswith("[") else 0)
    return (
        info.bytes_out + info.segments_out * headers,
        info.bytes_in + info.segments_in * headers,
    )


def _queue_us(channel: Channel) -> int:
    """By how much packets are late: they stand in a queue on the way."""
    return max(0, channel.info.rtt_us - _rtt_us(channel)) if channel.info else 0


def _rtt_us(channel: Channel) -> int:
    if channel.info is None:
        return 0
    least = channel.info.min_rtt_us
    return least if least < _NO_RTT_US else channel.info.rtt_us
