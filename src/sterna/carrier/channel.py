"""One TLS connection of a link, from the exchanged hellos to its end: one thread, one socket.

The thread alone touches the socket: OpenSSL's connections are not thread-safe. Others wake it.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable

from sterna.carrier import frames, tcpinfo, tls
from sterna.carrier.frames import BadFrame, Header, Hello
from sterna.carrier.outbox import Frame
from sterna.carrier.traffic import Load, Traffic
from sterna.clock import monotonic

_BURST = 64  # frames read before something is sent
_LOADS = 4  # and sent before something is read
_LINGER_S = 1.0  # that the last words get to leave
_NOTSENT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)


class _End(Exception):
    """The channel ends; the text says why."""


class Channel:
    """`closing` is called once, by the thread, when the channel has ended and is detached."""

    def __init__(
        self,
        sock: ssl.SSLSocket,
        hello: Hello,
        traffic: Traffic,
        closing: Callable[[Channel], None],
        *,
        told: Callable[[str], None],
    ) -> None:
        self.number = hello.number
        self.route = hello.route
        self.local = _address(sock.getsockname())
        self.remote = _address(sock.getpeername())
        self.flying: dict[Frame, None] = {}
        self.is_idle = False
        self.is_stalled = False
        self.frame_size = frames.RECORD - frames.SIZE  # until its speed is known
        self.heard = monotonic()
        self.reason = ""  # of its end
        self.was_violated = False  # the peer broke the protocol here
        self.info: tcpinfo.TcpInfo | None = None
        self._sock = sock
        self._traffic = traffic
        self._closing = closing
        self._told = told
        self._ends: str | None = None
        self._last_words = b""
        self._ping = False
        self._lowat = 0
        self._expected = 1
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake_lock = threading.Lock()  # of the number `_wake`
        self._scratch = bytearray(frames.RECORD)
        self._outgoing: list[memoryview] = []
        self._head = memoryview(bytearray(frames.SIZE))
        self._header: Header | None = None
        self._target: bytearray | None = None
        self._view = self._head
        self._at = 0
        self._is_bulk = False  # large frames come: there is likely to be more
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.set_unsent(128 << 10)
        self.thread = threading.Thread(target=self._run, name=f"channel-{self.number}", daemon=True)

    # ---- for other threads

    def wake(self) -> None:
        with self._wake_lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def ping(self) -> None:
        """Say something, so that the other end knows that we are here."""
        self._ping = True
        self.is_idle = False
        self.wake()

    def end(self, reason: str, last_words: bytes = b"") -> None:
        """Let it end. `last_words` is a frame that goes out before, if that is quick."""
        self._last_words = last_words
        self._ends = reason
        self.wake()

    def look(self) -> tcpinfo.TcpInfo | None:
        """Fresh figures of TCP; the last ones if it has ended."""
        with contextlib.suppress(OSError, struct.error):
            info = tcpinfo.read(self._sock)
            if self.info is None or info.bytes_in != self.info.bytes_in:
                self.heard = monotonic()
            self.info = info
        return self.info

    def set_unsent(self, size: int) -> None:
        """Bytes that may wait in the kernel: small, so that little is late and much is shared."""
        if not self._lowat // 2 < size < self._lowat * 2:
            self._lowat = size
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT, size)

    # ---- its thread

    def _run(self) -> None:
        try:
            self._serve()
        except _End as error:
            self.reason = str(error)
        except BadFrame as error:
            self.reason = f"the peer sent {error}"
            self.was_violated = True
            self._say(frames.with_text(frames.BYE, f"got {error}"))
        except OSError as error:
            self.reason = tls.words(error)
        finally:
            with self._traffic.lock:
                self._traffic.detach(self)
            self.look()
            self._close()
            self._closing(self)

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        fd = self._sock.fileno()
        poll.register(fd, select.POLLIN)
        was_blocked = False
        more = True  # OpenSSL may have read more than the hello
        while True:
            if self._ends is not None:
                self._say(self._last_words)
                raise _End(self._ends)
            is_blocked, delay = self._write()
            if is_blocked != was_blocked:
                poll.register(fd, select.POLLIN | (select.POLLOUT if is_blocked else 0))
                was_blocked = is_blocked
            timeout = None
            if more or not (is_blocked or delay or self.is_idle):
                timeout = 0
            elif delay:
                timeout = max(1, round(delay * 1000))
            self._expect(self._missing())
            events = dict(poll.poll(timeout))
            if self._wake in events:
                os.eventfd_read(self._wake)
            if more or events.get(fd, 0) & ~select.POLLOUT:
                more = self._read()

    def _write(self) -> tuple[bool, float]:
        """Send what can go now, some frames at most. Whether the socket is full; a delay."""
        for _ in range(_LOADS):
            if not self._outgoing:
                if self._ping:
                    self._ping = False
                    self._outgoing.append(memoryview(frames.pack(frames.PING)))
                else:
                    with self._traffic.lock:
                        load = self._traffic.take(self)
                    self._fill(load)
                    if not self._outgoing:
                        return False, load.delay
            try:
                while self._outgoing:
                    self._sock.send(self._outgoing[0])
                    del self._outgoing[0]
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return True, 0.0
        return False, 0.0

    def _fill(self, load: Load) -> None:
        """As few writes as possible: what is small, and the first of the payload, go together."""
        small = load.control + load.header
        payload = load.payload
        if payload is None:
            if small:
                self._outgoing.append(memoryview(small))
            return
        end = min(len(self._scratch), len(small) + len(payload))
        self._scratch[: len(small)] = small
        self._scratch[len(small) : end] = payload[: end - len(small)]
        self._outgoing.append(memoryview(self._scratch)[:end])
        if end - len(small) < len(payload):
            self._outgoing.append(payload[end - len(small) :])

    def _missing(self) -> int:
        """Bytes that will surely come and without which there is nothing to do: 1 or many."""
        left = len(self._view) - self._at - frames.RECORD  # OpenSSL may have read a record of it
        return left if self._header is not None and left > frames.RECORD else 1

    def _expect(self, size: int) -> None:
        """Sleep until so much has come: to wake for each packet costs more than to decrypt it."""
        if size != self._expected:
            self._expected = size
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def _read(self) -> bool:
        """Take what has come. Whether there may be more."""
        left = _BURST
        while left:
            try:
                size = self._sock.recv_into(self._view[self._at :])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
            if not size:
                raise _End("the other end hung up")
            self._at += size
            if self._at == len(self._view):
                self._advance()
                left -= 1
                if not self._is_bulk and not self._sock.pending():
                    return False  # poll is cheaper than to fail
        return True

    def _advance(self) -> None:
        """A header or a payload is complete."""
        if self._header is None:
            header = frames.parse(self._head)
            if header.length:
                is_wanted = True
                if header.kind == frames.DATA:
                    with self._traffic.lock:
                        is_wanted = self._traffic.admit(header)
                # What it acknowledges counts, even if its payload is here already.
                self._header = header if is_wanted else header._replace(kind=frames.ACK)
                self._target = self._traffic.buffers.get(header.length)
                self._view = memoryview(self._target)[: header.length]
                self._is_bulk = header.length > frames.RECORD
                self._at = 0
                return
            self._is_bulk = False
            self._dispatch(header, bytearray())
        else:
            header, target = self._header, self._target
            self._header = self._target = None
            assert target is not None
            self._dispatch(header, target)
        self._view, self._at = self._head, 0

    def _dispatch(self, header: Header, data: bytearray) -> None:
        kind = header.kind
        if kind == frames.PING:
            return
        if kind in {frames.BYE, frames.CLOSE}:
            reason = frames.text(memoryview(data)[: header.length])
            if kind == frames.CLOSE:
                self._told(reason)
            raise _End(f"the other end says: {reason}" if reason else "closed by the other end")
        if kind == frames.HELLO:
            raise BadFrame("a second hello")
        with self._traffic.lock:
            self._traffic.arrive(header, data)

    def _say(self, words: bytes) -> None:
        """Last words, if the peer takes them; only between frames can it understand them."""
        if not words:
            return
        deadline = monotonic() + _LINGER_S
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT, 1 << 20)
            poll = select.poll()
            poll.register(self._sock, select.POLLOUT)
            self._outgoing.append(memoryview(words))
            while self._outgoing and (left := deadline - monotonic()) > 0:
                try:
                    self._sock.send(self._outgoing[0])
                    del self._outgoing[0]
                except ssl.SSLWantWriteError:
                    poll.poll(left * 1000)
                except ssl.SSLWantReadError:
                    return

    def _close(self) -> None:
        with self._wake_lock:
            os.close(self._wake)
            self._wake = -1
        if not (self._last_words or self.was_violated):
            # What waits in the kernel goes elsewhere; it need not try for minutes.
            with contextlib.suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            self._sock.close()


def _address(name: tuple[str, int]) -> str:
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
