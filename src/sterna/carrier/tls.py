"""TLS 1.3 between two ends that know each other's certificate, and nobody else's.

Certificates and the key come as PEM text. The key never touches a disk: OpenSSL wants a file, so
it gets one that is memory. Sockets come out non-blocking; every wait here has a deadline.
"""

from __future__ import annotations

import functools
import hashlib
import os
import select
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from sterna.clock import monotonic

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM texts: our certificate and key, and the only certificate that we accept."""

    certificate: str
    key: str = field(repr=False)
    peer: str


class Untrusted(OSError):
    """The other end is not the one that we wait for."""


def link_id(lead: str, other: str) -> bytes:
    """16 bytes, the same on both sides: of the certificates of the source and of the target."""
    ders = b"".join(ssl.PEM_cert_to_DER_cert(pem) for pem in (lead, other))
    return hashlib.sha256(b"sterna link 1" + ders).digest()[:16]


def context(tls: Tls, *, server: bool) -> ssl.SSLContext:
    """Raises ssl.SSLError or ValueError if one of the texts is none that OpenSSL understands."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False  # the certificate itself is pinned
    made.verify_mode = ssl.CERT_REQUIRED
    made.minimum_version = made.maximum_version = ssl.TLSVersion.TLSv1_3
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    made.load_verify_locations(cadata=tls.peer)
    if server:
        made.num_tickets = 0  # nothing is ever resumed
    fd = os.memfd_create("pair", os.MFD_CLOEXEC)
    try:
        os.write(fd, f"{tls.certificate.strip()}\n{tls.key.strip()}\n".encode())
        made.load_cert_chain(f"/proc/self/fd/{fd}", password=_no_password)
    finally:
        os.close(fd)
    return made


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # OpenSSL would ask at the terminal


def handshake(
    context: ssl.SSLContext, raw: socket.socket, peer: str, *, server: bool, deadline: float
) -> ssl.SSLSocket:
    """TLS over a connected socket, which is closed on failure. OSError says what was wrong."""
    raw.setblocking(False)
    sock = context.wrap_socket(raw, server_side=server, do_handshake_on_connect=False)
    try:
        until(sock, sock.do_handshake, deadline)
        _check(sock, peer)
    except BaseException:
        sock.close()
        raise
    return sock


def _check(sock: ssl.SSLSocket, peer: str) -> None:
    """OpenSSL would take any certificate that this one has signed."""
    if sock.getpeercert(binary_form=True) != ssl.PEM_cert_to_DER_cert(peer):
        raise Untrusted("it has another certificate")


def read(sock: ssl.SSLSocket, size: int, deadline: float) -> bytes:
    """Exactly `size` bytes, or OSError."""
    data = bytearray(size)
    left = memoryview(data)
    while left:
        got = until(sock, functools.partial(sock.recv_into, left), deadline)
        if not got:
            raise ConnectionError("the other end hung up")
        left = left[got:]
    return bytes(data)


def write(sock: ssl.SSLSocket, data: bytes, deadline: float) -> None:
    """All of it, or OSError."""
    until(sock, lambda: sock.send(data), deadline)


def until(sock: ssl.SSLSocket, call: Callable[[], T], deadline: float) -> T:
    """Try `call` again whenever the socket allows it. TimeoutError at `deadline`."""
    poll = select.poll()
    while True:
        try:
            return call()
        except ssl.SSLWantReadError:
            poll.register(sock, select.POLLIN)
        except ssl.SSLWantWriteError:
            poll.register(sock, select.POLLOUT)
        left = deadline - monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError("no answer in time")


def words(error: OSError) -> str:
    """What a socket said, in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"it has another certificate ({error.verify_message})"
    if isinstance(error, ssl.SSLEOFError):
        return "the other end hung up"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or str(error)).lower().replace('_', ' ')}"
    return (error.strerror or str(error)).lower()
