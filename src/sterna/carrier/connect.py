"""How channels come to be: the source dials and dials again, the target listens and lets in.

Whoever comes has a few seconds to prove who it is. Nothing that it does harms what is there.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections import Counter
from typing import Protocol

from sterna.carrier import frames, tls
from sterna.carrier.facts import Endpoint, Route
from sterna.carrier.frames import BadFrame, Hello
from sterna.clock import monotonic

HANDSHAKE_S = 5.0  # from connect to hello, both ways
_AT_ONCE = 16  # handshakes; more are turned away
_FROM_ONE = 8  # of them from one address: no stranger takes all places
_FIRST_WAIT_S, _LAST_WAIT_S = 0.2, 1.0  # between attempts, doubling
_USER_TIMEOUT_MS = 5000  # TCP's own patience; heartbeats are quicker
_BACKLOG = 16
_EXHAUSTED_S = 0.2  # pause when the process has no file descriptor left


class Refusal(Exception):
    """The other end may not have this channel; it is told the text."""


class Owner(Protocol):
    """The link, as far as this module needs it. All methods are thread-safe."""

    @property
    def peer(self) -> str: ...
    @property
    def ends(self) -> threading.Event: ...
    def hello(self, route: int) -> Hello: ...
    def welcome(self, hello: Hello) -> Hello: ...
    def run(self, sock: ssl.SSLSocket, hello: Hello) -> None: ...
    def refused(self, who: str, reason: str) -> None: ...
    def missed(self, route: int, reason: str) -> None: ...


def listen(address: str) -> socket.socket:
    """A socket on any free port. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.bind((address, 0))
        server.listen(_BACKLOG)
        server.setblocking(False)
    except BaseException:
        server.close()
        raise
    return server


def endpoint(server: socket.socket) -> Endpoint:
    address, port = server.getsockname()[:2]
    return Endpoint(address, port)


class Gate:
    """Lets the peer in on all listening sockets, in a thread of its own, until `owner.ends`."""

    def __init__(
        self, owner: Owner, context: ssl.SSLContext, servers: list[socket.socket], wake: int
    ) -> None:
        self._owner = owner
        self._context = context
        self._servers = servers
        self._wake = wake
        self._lock = threading.Lock()
        self._guests: Counter[str] = Counter()  # by address, in a handshake
        self.thread = threading.Thread(target=self._run, name="gate", daemon=True)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        servers = {server.fileno(): server for server in self._servers}
        for fd in servers:
            poll.register(fd, select.POLLIN)
        while not self._owner.ends.is_set():
            for fd, _event in poll.poll():
                if fd in servers:
                    self._accept(servers[fd])
        for server in self._servers:
            server.close()

    def _accept(self, server: socket.socket) -> None:
        try:
            sock, (address, *_) = server.accept()
        except BlockingIOError:
            return
        except OSError:
            self._owner.ends.wait(_EXHAUSTED_S)
            return
        with self._lock:
            if self._guests.total() >= _AT_ONCE or self._guests[address] >= _FROM_ONE:
                sock.close()
                return
            self._guests[address] += 1
        try:
            threading.Thread(
                target=self._receive, args=(sock, address), name="admit", daemon=True
            ).start()
        except RuntimeError:  # no thread left
            self._leave(address)
            sock.close()

    def _receive(self, raw: socket.socket, address: str) -> None:
        try:
            self._admit(raw)
        finally:
            self._leave(address)

    def _leave(self, address: str) -> None:
        with self._lock:
            self._guests[address] -= 1
            self._guests += Counter()  # keeps only those above 0

    def _admit(self, raw: socket.socket) -> None:
        who = "somebody"
        sock: ssl.SSLSocket | None = None
        deadline = monotonic() + HANDSHAKE_S
        try:
            name = raw.getpeername()
            who = str(Endpoint(name[0], name[1]))
            _tune(raw)
            sock = tls.handshake(
                self._context, raw, self._owner.peer, server=True, deadline=deadline
            )
            hello = _read_hello(sock, deadline)
            try:
                answer = self._owner.welcome(hello)
            except Refusal as error:
                with contextlib.suppress(OSError):
                    tls.write(sock, frames.with_text(frames.BYE, str(error)), deadline)
                raise
            tls.write(sock, answer.pack(), deadline)
            self._owner.run(sock, hello)
        except (Refusal, BadFrame) as error:
            self._owner.refused(who, str(error))
            _drop(sock or raw)
        except OSError as error:
            self._owner.refused(who, tls.words(error))
            _drop(sock or raw)


class Dialer:
    """Keeps one channel up along `route`: `wanted` is set when there is none."""

    def __init__(self, owner: Owner, context: ssl.SSLContext, number: int, route: Route) -> None:
        self.route = route
        self.number = number
        self.wanted = threading.Event()
        self.wanted.set()
        self._owner = owner
        self._context = context
        self.thread = threading.Thread(target=self._run, name=f"dialer-{number}", daemon=True)

    def _run(self) -> None:
        wait = _FIRST_WAIT_S
        ends = self._owner.ends
        while not ends.is_set():
            self.wanted.wait()
            if ends.is_set():
                return
            begun = monotonic()
            self.wanted.clear()
            try:
                self._dial(begun + HANDSHAKE_S)
                wait = _FIRST_WAIT_S
                # One that dies at once is not tried at full speed.
                if self.wanted.wait(_LAST_WAIT_S):
                    ends.wait(_FIRST_WAIT_S)
                continue
            except (Refusal, BadFrame) as error:
                self._owner.missed(self.number, str(error))
            except OSError as error:
                self._owner.missed(self.number, tls.words(error))
            self.wanted.set()
            ends.wait(max(0.0, wait - (monotonic() - begun)))
            wait = min(2 * wait, _LAST_WAIT_S)

    def _dial(self, deadline: float) -> None:
        target = self.route.endpoint
        family = socket.AF_INET6 if ":" in target.address else socket.AF_INET
        raw = socket.socket(family, socket.SOCK_STREAM)
        try:
            _tune(raw)
            raw.settimeout(HANDSHAKE_S / 2)
            if self.route.local:
                raw.bind((self.route.local, 0))
            raw.connect((target.address, target.port))
        except BaseException:
            raw.close()
            raise
        sock = tls.handshake(self._context, raw, self._owner.peer, server=False, deadline=deadline)
        try:
            hello = self._owner.hello(self.number)
            tls.write(sock, hello.pack(), deadline)
            self._owner.welcome(_read_hello(sock, deadline))
            self._owner.run(sock, hello)
        except BaseException:
            sock.close()
            raise


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)


def _read_hello(sock: ssl.SSLSocket, deadline: float) -> Hello:
    """Raises BadFrame, Refusal if the other end says why it will not, OSError."""
    header = frames.parse(tls.read(sock, frames.SIZE, deadline))
    if header.kind in {frames.BYE, frames.CLOSE}:
        raise Refusal(f"refused: {frames.text(tls.read(sock, header.length, deadline))}")
    if header.kind != frames.HELLO:
        raise BadFrame(f"a {frames.NAMES[header.kind]} frame before the hello")
    return Hello.parse(tls.read(sock, header.length, deadline))


def _drop(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.close()
