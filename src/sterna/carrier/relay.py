"""The process between a QEMU and the other host: one for each move and side.

    python -m sterna.carrier.relay FD        FD: one end of a socketpair, for control

Promises: it ends when the daemon stops it, when the control socket closes, or when the link is
closed; then nothing of it is left. With a grace of None it outlives the daemon, until its streams
have ended: a guest that is on both hosts at once needs it. Memory is bounded by the settings and
the link, whatever QEMU or the other host do.

The main thread talks to the daemon and looks at everything ten times a second; threads of pumps and
of the link do the work. Imports are few: it starts while a move waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import ssl
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from sterna.carrier import control
from sterna.carrier.control import BadMessage, Failed, Level, Ready, Role, Start, Stats, Up
from sterna.carrier.facts import Endpoint, LinkEvent, LinkEventKind
from sterna.carrier.link import Link, Tls
from sterna.carrier.services import Services, Unusable
from sterna.clock import monotonic

OVER = "the move is over"  # reason of a link's end that is no failure
TICK_S = 0.1
_SWITCH_S = 0.0005  # that a thread may keep the interpreter; more costs the link throughput
_EVENTS = 256  # that wait for a daemon that does not read
_GOODBYE_S = 1.0
_MAX_WORKERS = 4


class Ended(Exception):
    """The relay ends; the text says why, and is empty if it is no failure."""


class Relay:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._start: Start | None = None
        self._link: Link | None = None
        self._services: Services | None = None
        self._limit: int | None = None
        self._grace_s: float | None = 0.0
        self._news: deque[control.FromRelay] = deque(maxlen=_EVENTS)
        self._is_up = False
        self._in = b""
        self._out = b""
        self._is_orphan = False  # the daemon is gone

    def run(self) -> int:
        """Until it ends; the exit status."""
        reason = ""
        try:
            self._serve()
        except Ended as ended:
            reason = str(ended)
        except (BadMessage, Unusable, OSError, ssl.SSLError, ValueError) as error:
            reason = str(error)
        finally:
            if self._services is not None:
                self._services.close()
            if self._link is not None:
                self._link.close(reason or OVER)
        self._say_goodbye(reason)
        return 1 if reason else 0

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        looked = monotonic()
        while True:
            if self._is_orphan:
                self._require_use()
            else:
                poll.register(self._sock, select.POLLIN | (select.POLLOUT if self._out else 0))
            left = TICK_S - (monotonic() - looked)
            events = dict(poll.poll(max(0.0, left) * 1000))
            if self._wake in events:
                os.eventfd_read(self._wake)
            if events.get(self._sock.fileno(), 0) & ~select.POLLOUT:
                self._listen()
                if self._is_orphan:
                    poll.unregister(self._sock)
            if left <= 0:
                looked = monotonic()
                self._look()
            self._speak()

    def _require_use(self) -> None:
        """Orphans go with their last stream; if the link is away, as soon as QEMU has gone."""
        if self._services is None or not self._services.live:
            raise Ended("")
        seen = self._link.stats() if self._link is not None else None
        if self._services.is_deserted and (seen is None or seen.down_since is not None):
            raise Ended("")

    # ---- from the daemon

    def _listen(self) -> None:
        try:
            data = self._sock.recv(control.MAX_LINE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            if self._grace_s is not None:
                raise Ended("")
            self._is_orphan = True
            return
        *lines, self._in = (self._in + data).split(b"\n")
        if len(self._in) > control.MAX_LINE:
            raise BadMessage("a line without end")
        for line in lines:
            self._obey(control.decode(line))

    def _obey(self, order: control.ToRelay | control.FromRelay) -> None:
        match order:
            case Start() if self._start is None:
                self._begin(order)
            case control.Connect() if self._services is not None and self._link is None:
                self._make_link(order.certificate, order.cache_bytes).connect(order.routes)
            case control.Limit(bytes_s):
                self._limit = bytes_s
                if self._link is not None:
                    self._link.set_limit(bytes_s)
            case control.Grace(seconds):
                self._grace_s = seconds
                if self._link is not None:
                    self._link.set_grace(seconds)
                if seconds is None and self._services is not None:
                    self._services.hurry()
            case control.Stop():
                raise Ended("")
            case _:
                raise BadMessage(f"{type(order).__name__} is not possible now")

    def _begin(self, start: Start) -> None:
        self._start = start
        self._limit, self._grace_s = start.limit, start.grace_s
        workers = start.workers
        if workers is None:
            workers = min(_MAX_WORKERS, len(os.sched_getaffinity(0)) - 1)
        self._services = Services(start.role, start.services, workers, self._warn)
        endpoints: Sequence[Endpoint] = ()
        if start.role is Role.SOURCE:
            self._services.listen()
        if start.peer_certificate:
            link = self._make_link(start.peer_certificate, start.cache_bytes)
            if start.role is Role.TARGET:
                endpoints = link.listen(start.addresses)
            else:
                link.connect(start.routes)
        self._news.append(Ready(tuple(endpoints)))
        self._speak()
        threading.Thread(target=_prepare, name="prepare", daemon=True).start()

    def _make_link(self, peer_certificate: str, cache_bytes: int) -> Link:
        assert self._start is not None
        assert self._services is not None
        start = self._start
        self._link = Link(
            tls=Tls(certificate=start.certificate, key=start.key, peer=peer_certificate),
            grace_s=self._grace_s,
            limit=self._limit,
            on_event=self._on_event,
            lead=start.role is Role.SOURCE,
        )
        self._services.run(self._link, cache_bytes)
        return self._link

    # ---- to the daemon

    def _look(self) -> None:
        """Figures; and has the link come to its end?"""
        link, services = self._link, self._services
        if services is None:
            return
        seen = link.stats() if link is not None else None
        if seen is not None:
            if seen.closed is not None:
                raise Ended("" if OVER in seen.closed else seen.closed)
            rtt_ms = max((channel.rtt_ms for channel in seen.channels), default=0.0)
            services.tick(rtt_ms / 1000, is_limited=seen.limited)
        if self._out or self._is_orphan:  # nobody reads them
            return
        stats = Stats(
            time_s=monotonic(),
            bottleneck=services.bottleneck,
            link=seen,
            services=services.stats,
            memory=services.memory,
            cpu_s=sum(os.times()[:2]),
            peak_rss=_peak_rss(),
        )
        self._news.append(stats)

    def _speak(self) -> None:
        if self._is_orphan:
            self._news.clear()
            return
        while self._news or self._out:
            if not self._out:
                self._out = control.encode(self._news.popleft())
            try:
                sent = self._sock.send(self._out, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:  # `_listen` sees it too
                self._out = b""
                return
            self._out = self._out[sent:]

    def _say_goodbye(self, reason: str) -> None:
        """The last words, if the daemon still listens."""
        last = [*self._news, *([Failed(reason)] if reason else [])]
        with contextlib.suppress(OSError):
            self._sock.settimeout(_GOODBYE_S)
            self._sock.sendall(self._out + b"".join(control.encode(one) for one in last))

    def _warn(self, text: str) -> None:
        """In any thread."""
        self._news.append(control.Event(text, Level.WARNING))
        os.eventfd_write(self._wake, 1)

    def _on_event(self, event: LinkEvent) -> None:
        """In threads of the link."""
        if event.kind is not LinkEventKind.CHANNEL_UP:
            self._warn(event.text)
            return
        self._news.append(control.Event(event.text))
        if not self._is_up:
            self._is_up = True
            self._news.append(Up())
        os.eventfd_write(self._wake, 1)


def _prepare() -> None:
    """Import numpy before it is needed."""
    import sterna.carrier.memory  # noqa: F401, PLC0415


def _peak_rss() -> int:
    """Bytes. (getrusage would tell of the daemon that started us, if that was larger.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def main() -> None:
    os.umask(0o177)
    sys.setswitchinterval(_SWITCH_S)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    status = Relay(socket.socket(fileno=int(sys.argv[1]))).run()
    sys.stderr.flush()
    os._exit(status)  # threads of a link that is closed need not be waited for


if __name__ == "__main__":
    main()
