"""Streams of messages between two hosts over one or more TLS channels.

Promises: every message of a stream arrives once and in order, or the stream or the link ends with
a reason on both sides; a channel that dies costs no data while another is up, or comes up within
the grace period; memory is bounded whatever the peer sends. Two links never share their keys.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import ssl
import threading
from collections.abc import Callable, Sequence

from sterna.carrier import connect, frames
from sterna.carrier.channel import Channel
from sterna.carrier.connect import Dialer, Gate, Refusal
from sterna.carrier.duplex import Stream
from sterna.carrier.facts import (
    ChannelState,
    ChannelStats,
    Endpoint,
    LinkEvent,
    LinkEventKind,
    LinkStats,
    Route,
)
from sterna.carrier.frames import Hello
from sterna.carrier.meter import Meter
from sterna.carrier.tls import Tls, context, link_id
from sterna.carrier.traffic import Traffic
from sterna.clock import monotonic

__all__ = ["Endpoint", "Link", "LinkEvent", "LinkEventKind", "LinkStats", "Route", "Stream", "Tls"]

SILENCE_S = 3.0  # without a byte: a channel is dead
HEARTBEAT_S = 1.0
TICK_S = 0.05
_HELD_UP_S = 0.5  # a tick that comes so late: it was we who were silent
MAX_VIOLATIONS = 16  # channels that ended so; then the link does
_REMEMBERED = 1024  # numbers of channels
_CLOSING_S = 2.0  # for threads, when the link is closed

log = logging.getLogger(__name__)


class Link:
    """`lead`: the source, which connects; the other side listens. All methods are thread-safe.

    `grace_s`: seconds without any channel until it is given up; None: never. It counts from
    `connect`, or from the first channel's end. `limit`: bytes a second out, on the wire.
    `on_event` is called in threads of the link and must not wait. Raises ssl.SSLError or
    ValueError for texts that are no certificate and key.
    """

    def __init__(
        self,
        *,
        tls: Tls,
        grace_s: float | None,
        limit: int | None,
        on_event: Callable[[LinkEvent], None],
        lead: bool,
    ) -> None:
        self.peer = tls.peer
        self.ends = threading.Event()
        self._lead = lead
        self._grace_s = grace_s
        self._on_event = on_event
        self._context = context(tls, server=not lead)
        mine, theirs = tls.certificate, tls.peer
        self._id = link_id(mine, theirs) if lead else link_id(theirs, mine)
        self._instance = secrets.token_bytes(16)
        self._traffic = Traffic(lead=lead, limit=limit)
        self._meter = Meter(self._traffic)
        self._lock = threading.Lock()  # of what follows; taken before traffic.lock, if both
        self._peer_instance: bytes | None = None
        self._channels: dict[int, Channel] = {}  # live ones, by route
        self._dialers: list[Dialer] = []
        self._reasons: dict[int, str] = {}  # by route: why it is down
        self._numbers: set[int] = set()  # of channels, used
        self._last_number = 0
        self._violations = 0
        self._down_since: float | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._gate: Gate | None = None
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._keeper.start()

    # ---- for users

    def listen(self, addresses: Sequence[str]) -> list[Endpoint]:
        """One socket on each address, any port. The target, once. Raises OSError."""
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(connect.listen(address)) for address in addresses]
            stack.pop_all()
        self._gate = Gate(self, self._context, servers, self._wake)
        self._gate.thread.start()
        return [connect.endpoint(server) for server in servers]

    def connect(self, routes: Sequence[Route]) -> None:
        """Keep a channel up along each, until the link is closed. The source; returns at once."""
        with self._lock:
            if len(self._dialers) + len(routes) > frames.MAX_CHANNELS:
                raise ValueError(f"more than {frames.MAX_CHANNELS} routes")
            if not self._channels and self._down_since is None:
                self._down_since = monotonic()
            added = [
                Dialer(self, self._context, number, route)
                for number, route in enumerate(routes, len(self._dialers))
            ]
            self._dialers += added
        for dialer in added:
            dialer.thread.start()

    def open(self, service: str) -> Stream:
        """A new stream; the peer accepts it under this name. Raises LinkClosed, StreamReset."""
        with self._traffic.lock:
            return self._traffic.open(service)

    def accept(self) -> tuple[str, Stream]:
        """Wait for the next stream that the peer opens. Raises LinkClosed."""
        with self._traffic.lock:
            stream = self._traffic.accept()
        return stream.service, stream

    def set_limit(self, bytes_s: int | None) -> None:
        with self._traffic.lock:
            self._traffic.bucket.set_rate(bytes_s, monotonic())
            self._traffic.wake()

    def set_grace(self, seconds: float | None) -> None:
        self._grace_s = seconds

    def stats(self) -> LinkStats:
        """Figures of at most TICK_S ago; cheap."""
        with self._lock:
            live, reasons = list(self._channels.values()), dict(self._reasons)
            down_since, dialers = self._down_since, list(self._dialers)
        channels = self._meter.stats(live, reasons)
        known = {channel.route for channel in channels}
        channels += [
            _never(dialer, reasons.get(dialer.number, ""))
            for dialer in dialers
            if dialer.number not in known
        ]
        wire_out, wire_in = self._meter.wire
        traffic = self._traffic
        with traffic.lock:
            payload_out, payload_in = traffic.payload
            return LinkStats(
                wire_out=wire_out,
                wire_in=wire_in,
                payload_out=payload_out,
                payload_in=payload_in,
                retransmitted=traffic.retransmitted,
                channels=tuple(sorted(channels, key=lambda channel: channel.route)),
                limit=traffic.bucket.rate,
                limited=self._meter.is_limited,
                down_since=down_since,
                in_flight=traffic.in_flight,
                closed=traffic.closed,
            )

    def close(self, reason: str = "") -> None:
        """End it on both sides: what was not consumed is lost. See Stream.drain. Idempotent."""
        self._shut(reason or "closed", tell=True)
        deadline = monotonic() + _CLOSING_S
        with self._lock:
            threads = [channel.thread for channel in self._channels.values()]
            threads += [dialer.thread for dialer in self._dialers]
        threads.append(self._keeper)
        if self._gate is not None:
            threads.append(self._gate.thread)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - monotonic()))
        with self._lock:
            if self._wake >= 0:
                os.close(self._wake)
                self._wake = -1

    # ---- for Gate, Dialer and Channel

    def hello(self, route: int) -> Hello:
        with self._lock:
            self._last_number += 1
            return Hello(route, self._last_number, self._id, self._instance)

    def welcome(self, hello: Hello) -> Hello:
        """Our hello, if this one is right. Raises Refusal."""
        if hello.version != frames.VERSION:
            raise Refusal(f"version {hello.version} of the link, here it is {frames.VERSION}")
        if hello.link != self._id:
            raise Refusal("a channel for another link")
        if hello.route >= frames.MAX_CHANNELS:
            raise Refusal(f"route {hello.route}: at most {frames.MAX_CHANNELS} are possible")
        with self._lock:
            if self._traffic.closed is not None:
                raise Refusal(f"the link is closed: {self._traffic.closed}")
            if self._peer_instance not in {None, hello.instance}:
                raise Refusal("the other end has begun anew and lost what it had")
            if not self._lead:
                if hello.number in self._numbers or hello.number < self._last_number - _REMEMBERED:
                    raise Refusal(f"channel {hello.number} has been here before")
                self._last_number = max(self._last_number, hello.number)
                self._numbers.add(hello.number)
                if len(self._numbers) > 2 * _REMEMBERED:
                    least = self._last_number - _REMEMBERED
                    self._numbers = {number for number in self._numbers if number >= least}
            self._peer_instance = hello.instance
        return Hello(hello.route, hello.number, self._id, self._instance)

    def run(self, sock: ssl.SSLSocket, hello: Hello) -> None:
        """Hellos were exchanged: it is a channel. Takes the socket, unless it raises."""
        channel = Channel(sock, hello, self._traffic, self._lost, told=self._told)
        with self._lock:
            if self._traffic.closed is not None:
                raise Refusal(f"the link is closed: {self._traffic.closed}")
            replaced = self._channels.get(hello.route)
            self._channels[hello.route] = channel
            self._meter.add(channel)
            self._down_since = None
            with self._traffic.lock:
                self._traffic.attach(channel)
            channel.thread.start()
        if replaced is not None:
            replaced.end("replaced by a newer one")
        text = f"channel {channel.number} is up: {channel.local} to {channel.remote}"
        self._tell(LinkEventKind.CHANNEL_UP, text, channel.route)

    def refused(self, who: str, reason: str) -> None:
        if not self.ends.is_set():
            self._tell(LinkEventKind.REFUSED, f"{who} was refused: {reason}")

    def missed(self, route: int, reason: str) -> None:
        with self._lock:
            self._reasons[route] = reason

    def _lost(self, channel: Channel) -> None:
        """In the channel's thread, at its end."""
        is_down = False
        with self._lock:
            is_ours = self._channels.get(channel.route) is channel
            if is_ours:
                del self._channels[channel.route]
                self._reasons[channel.route] = channel.reason
                is_down = not self._channels
                if is_down:
                    self._down_since = monotonic()
                if channel.route < len(self._dialers):
                    self._dialers[channel.route].wanted.set()
            self._violations += channel.was_violated
            is_hopeless = self._violations >= MAX_VIOLATIONS
        if self.ends.is_set():
            return
        if is_hopeless:
            self._shut(f"the other end breaks the protocol: {channel.reason}", tell=True)
            return
        text = f"channel {channel.number} is down: {channel.reason}"
        self._tell(LinkEventKind.CHANNEL_DOWN, text, channel.route)
        if is_down:
            self._tell(LinkEventKind.DOWN, "no channel is up")

    def _told(self, reason: str) -> None:
        self._shut(f"the other end closed it: {reason}", tell=False)

    # ---- its own

    def _keep(self) -> None:
        try:
            self._watch()
        except Exception as error:  # without it nothing would ever be found dead
            log.exception("the keeper of the link failed")
            self._shut(f"an error of our own: {error}", tell=True)

    def _watch(self) -> None:
        """Heartbeats, silence, figures, the grace period."""
        last = pinged = monotonic()
        while not self.ends.wait(TICK_S):
            now = monotonic()
            with self._lock:
                live = list(self._channels.values())
            if now - last > TICK_S + _HELD_UP_S:
                for channel in live:
                    channel.heard = now
                if self._down_since is not None:
                    self._down_since += now - last - TICK_S
            last = now
            if now - pinged >= HEARTBEAT_S:
                pinged = now
                for channel in live:
                    channel.ping()
            for channel in live:
                if now - channel.heard > SILENCE_S:
                    channel.end(f"nothing heard for {SILENCE_S:.0f} s")
            self._meter.tick(live, now)
            down, grace = self._down_since, self._grace_s
            if down is not None and grace is not None and now - down > grace:
                self._shut(self._hopeless(grace), tell=False)

    def _hopeless(self, grace: float) -> str:
        with self._lock:
            reasons = sorted({reason for reason in self._reasons.values() if reason})
        said = f" ({'; '.join(reasons)})" if reasons else ""
        return f"no connection to the other host for {grace:g} s{said}"

    def _shut(self, reason: str, *, tell: bool) -> None:
        with self._lock:
            with self._traffic.lock:
                if self._traffic.closed is not None:
                    return
                words = self._traffic.farewell()
                self._traffic.close(reason)
            self.ends.set()
            os.eventfd_write(self._wake, 1)
            words = words + frames.with_text(frames.CLOSE, reason) if tell else b""
            for channel in self._channels.values():
                channel.end(reason, words)
            for dialer in self._dialers:
                dialer.wanted.set()
        self._tell(LinkEventKind.CLOSED, f"the link is closed: {reason}")

    def _tell(self, kind: LinkEventKind, text: str, route: int | None = None) -> None:
        try:
            self._on_event(LinkEvent(kind, text, route))
        except Exception:
            log.exception("a listener to events of the link failed")


def _never(dialer: Dialer, reason: str) -> ChannelStats:
    """Of a route that has never been up."""
    return ChannelStats(
        number=0,
        route=dialer.number,
        local=dialer.route.local,
        remote=str(dialer.route.endpoint),
        state=ChannelState.DOWN,
        bytes_out=0,
        bytes_in=0,
        rate=0,
        rtt_ms=0.0,
        reason=reason,
    )
