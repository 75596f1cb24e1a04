"""The little of HTTP/1.1 (RFC 9112) that a client of sternad needs: one request, one answer.

It exists because `http.client` costs half of the start-up of every command (it imports the email
package to parse headers). Strict where strictness protects: an answer that is not HTTP, or ends
before its length, is BadAnswer or ConnectionError, never a short body.
"""

from __future__ import annotations

import socket
from collections.abc import Generator, Mapping
from contextlib import suppress
from typing import BinaryIO, cast

MAX_LINE = 1 << 16  # bytes of a status, header or chunk-size line
MAX_HEADERS = 100
PIECE = 1 << 16


class BadAnswer(Exception):
    """What came is not HTTP/1.1 as we understand it."""


class Connection:
    """A connected socket that carries one request and its answer; owns it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._stream = cast("BinaryIO", sock.makefile("rb"))

    @property
    def certificate(self) -> bytes:
        """What the other side has shown in TLS, as DER; empty without TLS."""
        shown = getattr(self._sock, "getpeercert", None)
        return (shown(binary_form=True) or b"") if shown is not None else b""

    def limit(self, seconds: float) -> None:
        """How long each read or write may wait; TimeoutError after that."""
        self._sock.settimeout(seconds)

    def ask(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Answer:
        """Send the request and read the head of its answer. Raises OSError or BadAnswer."""
        lines = [
            f"{method} {target} HTTP/1.1",
            *(f"{key}: {text}" for key, text in headers.items()),
        ]
        if body is not None or method != "GET":
            lines.append(f"Content-Length: {len(body or b'')}")
        if any(char in line for line in lines for char in "\r\n\0"):
            raise BadAnswer("the request would not be one request")
        self._sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))
        return Answer(self._stream)

    def hang_up(self) -> None:
        """End a read that is waiting, as if the other side had; safe in a signal handler."""
        with suppress(OSError):  # it may be closed already; not SSLSocket's own, which clears state
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of the connection; what was not read is lost."""
        self._stream.close()
        self._sock.close()


class Answer:
    """Status and headers (names in lower case) have come; the body is read by `pieces`."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.status = 0
        while self.status < 200:  # 1xx: more will come
            self.status = _status(_line(stream))
            self.headers = _headers(stream)

    def pieces(self) -> Generator[bytes]:
        """The body as it comes. ConnectionError if it ends early."""
        length = self.headers.get("content-length", "")
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            yield from self._chunks()
        elif self.status in (204, 304):
            return
        elif length:
            if not length.isdecimal():
                raise BadAnswer(f"the length {length!r} is no number")
            yield from _exactly(self._stream, int(length))
        else:
            while piece := self._stream.read(PIECE):
                yield piece

    def read(self) -> bytes:
        """The whole body."""
        return b"".join(self.pieces())

    def lines(self) -> Generator[bytes]:
        """The body line by line without line ends, each as soon as it is there."""
        rest = b""
        for piece in self.pieces():
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line.removesuffix(b"\r")

    def _chunks(self) -> Generator[bytes]:
        while True:
            text = _line(self._stream).partition(";")[0].strip()
            try:
                size = int(text, 16)
            except ValueError as error:
                raise BadAnswer(f"{text[:20]!r} is no size of a chunk") from error
            if size == 0:
                _headers(self._stream)
                return
            yield from _exactly(self._stream, size)
            _line(self._stream)


def _line(stream: BinaryIO) -> str:
    line = stream.readline(MAX_LINE)
    if not line:
        raise ConnectionResetError("the connection ended before the answer")
    if not line.endswith(b"\n"):
        raise BadAnswer("its answer is cut off or not HTTP")
    return line.decode("latin-1").rstrip("\r\n")


def _status(line: str) -> int:
    version, _, rest = line.partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not code.isdecimal() or len(code) != 3:
        raise BadAnswer("its answer is not HTTP")
    return int(code)


def _headers(stream: BinaryIO) -> dict[str, str]:
    headers: dict[str, str] = {}
    for _ in range(MAX_HEADERS):
        line = _line(stream)
        if not line:
            return headers
        name, _, text = line.partition(":")
        headers[name.strip().lower()] = text.strip()
    raise BadAnswer("its answer has too many headers")


def _exactly(stream: BinaryIO, size: int) -> Generator[bytes]:
    while size > 0:
        piece = stream.read(min(size, PIECE))
        if not piece:
            raise ConnectionResetError("the connection ended in the middle of the answer")
        size -= len(piece)
        yield piece
