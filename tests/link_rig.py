"""Two ends of a link in one process, a cable between them to be cut, and peers that misbehave."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from sterna.carrier import frames, tls
from sterna.carrier.frames import Hello
from sterna.carrier.link import Endpoint, Link, LinkEvent, LinkEventKind, Route, Stream, Tls
from sterna.security.pair import make

SOON_S = 5.0  # for what is quick on a quiet machine


_SOURCE, _TARGET = make(), make()
SOURCE = Tls(_SOURCE.certificate, _SOURCE.key, _TARGET.certificate)
TARGET = Tls(_TARGET.certificate, _TARGET.key, _SOURCE.certificate)
LINK_ID = tls.link_id(_SOURCE.certificate, _TARGET.certificate)


def eventually(found: Callable[[], bool], seconds: float = SOON_S) -> bool:
    deadline = time.monotonic() + seconds
    while not found():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@dataclass
class End:
    """A link, and what it told."""

    link: Link
    events: list[LinkEvent] = field(default_factory=list)

    def texts(self, kind: LinkEventKind) -> list[str]:
        return [event.text for event in self.events if event.kind is kind]

    def is_up(self, channels: int = 1) -> bool:
        states = [channel.state for channel in self.link.stats().channels]
        return states.count("up") == channels


def end(pair: Tls, *, lead: bool, grace_s: float | None = 5.0, limit: int | None = None) -> End:
    events: list[LinkEvent] = []
    link = Link(tls=pair, grace_s=grace_s, limit=limit, on_event=events.append, lead=lead)
    return End(link, events)


@dataclass
class Pair:
    source: End
    target: End
    endpoints: list[Endpoint]

    def streams(self, service: str = "memory") -> tuple[Stream, Stream]:
        stream = self.source.link.open(service)
        found, other = self.target.link.accept()
        assert found == service
        return stream, other


@contextlib.contextmanager
def target(**options) -> Iterator[tuple[End, Endpoint]]:
    one = end(TARGET, lead=False, **options)
    try:
        yield one, one.link.listen(["127.0.0.1"])[0]
    finally:
        one.link.close("the test is over")
        for rogue in _rogues:
            rogue.close()
        _rogues.clear()


@contextlib.contextmanager
def pair(
    channels: int = 1,
    *,
    way: Callable[[Endpoint], Sequence[Endpoint]] | None = None,
    grace_s: float | None = 5.0,
    limit: int | None = None,
) -> Iterator[Pair]:
    """Both ends, connected. `way`: where the source connects to, given where the target listens."""
    with target(grace_s=grace_s) as (far, endpoint):
        near = end(SOURCE, lead=True, grace_s=grace_s, limit=limit)
        endpoints = way(endpoint) if way else [endpoint] * channels
        near.link.connect([Route("", one) for one in endpoints])
        try:
            assert eventually(lambda: near.is_up(len(endpoints)) and far.is_up(len(endpoints)))
            yield Pair(near, far, list(endpoints))
        finally:
            near.link.close("the test is over")


class Cable:
    """Carries bytes between who connects here and `endpoint`; can be cut and put back."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._to = (endpoint.address, endpoint.port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = Endpoint(*self._server.getsockname())
        self.is_cut = False
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Both sides are told so by TCP, and nobody gets through."""
        self.is_cut = True
        for one in self._ends:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._ends.clear()

    def restore(self) -> None:
        self.is_cut = False

    def remove(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = self._server.accept()
                if self.is_cut:
                    one.close()
                    continue
                other = socket.create_connection(self._to)
                self._ends += [one, other]
                for way in ((one, other), (other, one)):
                    threading.Thread(target=_carry, args=way, daemon=True).start()


def _carry(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(1 << 16):
            other.sendall(data)
    for each in (one, other):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
    one.close()


_rogues: list["Rogue"] = []  # closed with the target


class Rogue:
    """A peer of a target with the right keys, that writes what it likes."""

    def __init__(self, endpoint: Endpoint, pair: Tls = SOURCE) -> None:
        raw = socket.create_connection((endpoint.address, endpoint.port))
        context = tls.context(pair, server=False)
        deadline = time.monotonic() + SOON_S
        self.sock: ssl.SSLSocket = tls.handshake(
            context, raw, pair.peer, server=False, deadline=deadline
        )
        self.sock.settimeout(SOON_S)
        _rogues.append(self)

    def hello(self, **changes) -> None:
        fields = {"route": 0, "number": 1, "link": LINK_ID, "instance": b"i" * 16} | changes
        self.sock.sendall(Hello(**fields).pack())

    def send(self, *parts: bytes) -> None:
        self.sock.sendall(b"".join(parts))

    def data(self, stream: int, number: int, payload: bytes = b"", flags: int = 0) -> None:
        header = frames.pack(
            frames.DATA, flags=flags, stream=stream, length=len(payload), number=number
        )
        self.send(header, payload)

    def open(self, stream: int, service: bytes = b"memory") -> None:
        self.data(stream, 0, service, frames.OPEN)

    def frame(self) -> tuple[frames.Header, bytes]:
        """The next frame that comes, or ConnectionError."""
        header = frames.parse(self._exactly(frames.SIZE))
        return header, self._exactly(header.length)

    def last_words(self) -> str:
        """What the other end says before it hangs up."""
        said = ""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while True:
                header, payload = self.frame()
                if header.kind in {frames.BYE, frames.CLOSE}:
                    said = frames.text(payload)
        return said

    def close(self) -> None:
        self.sock.close()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            if not more:
                raise ConnectionError("closed")
            data += more
        return data
