"""Whom this host trusts: a durable record a peer, and the TLS contexts that follow from them.

Promises: TLS 1.3 only, and a certificate counts only if a record holds exactly that one; a change
that returned survives a power cut, and holds for every connection that is made from then on. A
peer whose record is gone is not trusted by any connection that is still open (`who`).

Never trusts an authority: a certificate that a peer has signed is a stranger's.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from sterna.checks.facts import CertificateFacts
from sterna.host.store import Damaged, Store
from sterna.model.access import Role
from sterna.model.trust import PeerRecord, PeerRole
from sterna.security import identity, served
from sterna.security.identity import Identity
from sterna.security.web import Web

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is at the other end of a connection. `is_guest`: it joins, and is no peer yet."""

    name: str
    is_guest: bool = False
    role: Role | None = None


class Trust:
    """The records below `directory`, and what TLS makes of them with `own`."""

    def __init__(self, directory: Path, own: Identity) -> None:
        self.own = own
        self._store = Store(directory, PeerRecord, key_of=lambda one: one.name)
        records, self.damaged = self._store.load()
        self._peers = {name: one for name, one in records.items() if self._is_whole(one)}
        self._by_print: dict[str, str] = {}  # names, by the fingerprints that count
        self._guests: dict[str, PeerRecord] = {}  # by fingerprint; in memory only
        self._former: dict[str, str] = {}  # fingerprints replaced since: connections end with them
        self._followers: list[Callable[[], None]] = []
        self.programs: Callable[[], Iterable[str]] = tuple  # PEM; TLS lets them in, no more
        self.refused: Callable[[str], None] = lambda _reason: None  # in TLS already, and why
        self.generation = 0  # of this host's own certificate, since the daemon began
        self._server: ssl.SSLContext | None = None
        self._lock = asyncio.Lock()
        self._index()

    damaged: list[Damaged]

    # ---- who -------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        return sorted(self._peers)

    def get(self, name: str) -> PeerRecord | None:
        return self._peers.get(name)

    def of(self, fingerprint: str) -> PeerRecord | None:
        """The peer that is known by this certificate, in use or announced."""
        return self._peers.get(self._by_print.get(fingerprint, ""))

    def who(self, fingerprint: str) -> Caller | None:
        """Who is trusted by that certificate now."""
        if (peer := self.of(fingerprint)) is not None:
            return Caller(peer.name, role=peer.known_role)
        former = self._peers.get(self._former.get(fingerprint, ""))
        if former is not None:
            return Caller(former.name, role=former.known_role)
        guest = self._guests.get(fingerprint)
        return None if guest is None else Caller(guest.name, is_guest=True)

    async def seen(self, fingerprint: str) -> Caller | None:
        """`who`; a certificate that was announced is the peer's only one from now on."""
        peer = self.of(fingerprint)
        if peer is not None and peer.next and fingerprint == identity.fingerprint(peer.next):
            async with self._lock:
                now = self._peers.get(peer.name)
                if now is not None and now.next == peer.next:
                    await self._write(replace(now, certificate=now.next, next=""))
                    self._former[identity.fingerprint(now.certificate)] = now.name
                    log.info("%s uses its new certificate", now.name)
        return self.who(fingerprint)

    def certificates(self, host: str, target: str) -> tuple[CertificateFacts, ...]:
        """Of `host`, which is this one, and of the peer `target`, as far as they are known."""
        found = [CertificateFacts(host=host, days_left=identity.days_left(self.own.pem))]
        if (peer := self._peers.get(target)) is not None:
            left = identity.days_left(peer.certificate)
            found.append(CertificateFacts(host=target, days_left=left))
        return tuple(found)

    @property
    def problems(self) -> list[str]:
        """What an administrator should do something about, a sentence each."""
        if not self.own.is_rotating:
            return []
        return ["a new certificate is ready and not in use: sterna host rotate"]

    # ---- changes ---------------------------------------------------------------------------

    def follow(self, follower: Callable[[], None]) -> None:
        """`follower` is called after each change."""
        self._followers.append(follower)

    async def put(self, record: PeerRecord) -> None:
        """Trust that host; one that was trusted keeps its role. Raises StateNotWritten: then nothing has changed."""
        async with self._lock:
            former = self._peers.get(record.name)
            await self._write(replace(record, role=former.role) if former else record)

    async def move(self, name: str, url: str) -> PeerRecord | None:
        """Another address of a peer; None if it is none."""
        async with self._lock:
            if (record := self._peers.get(name)) is None:
                return None
            await self._write(replace(record, url=url))
            return self._peers[name]

    async def set_role(self, name: str, role: PeerRole) -> PeerRecord | None:
        """What that peer may do here besides moves; None if it is none."""
        async with self._lock:
            if (record := self._peers.get(name)) is None:
                return None
            await self._write(replace(record, role=role))
            return self._peers[name]

    async def announced(self, name: str, pem: str) -> bool:
        """That peer will show this certificate. False if it is no peer any more."""
        async with self._lock:
            if (record := self._peers.get(name)) is None:
                return False
            if pem not in (record.certificate, record.next):
                await self._write(replace(record, next=pem))
            return True

    async def remove(self, name: str) -> None:
        """Trust that host no more. Raises StateNotWritten: then nothing has changed."""
        async with self._lock:
            await self._store.delete(name)
            self._peers.pop(name, None)
            self._former = {key: who for key, who in self._former.items() if who != name}
            self._changed()

    def receive(self, guest: PeerRecord) -> None:
        """Let a host that joins connect by its certificate, to say that it is done."""
        self._guests[identity.fingerprint(guest.certificate)] = guest
        self._changed()

    def guest(self, fingerprint: str) -> PeerRecord | None:
        """The host that joins with this certificate."""
        return self._guests.get(fingerprint)

    def dismiss(self, fingerprint: str) -> None:
        if self._guests.pop(fingerprint, None) is not None:
            self._changed()

    def renewed(self) -> None:
        """This host's own certificate was replaced: it is shown from now on."""
        self.generation += 1
        self._changed()

    def refresh(self) -> None:
        """`programs` has changed."""
        self._changed()

    async def _write(self, record: PeerRecord) -> None:
        await self._store.write(record.name, record)
        self._peers[record.name] = record
        self._guests.pop(identity.fingerprint(record.certificate), None)
        self._changed()

    def _is_whole(self, record: PeerRecord) -> bool:
        """A record with a certificate that is none must not keep all others out."""
        try:
            _fingerprints(record)
        except ValueError as error:
            path = self._store.directory / f"{record.name}.json"
            log.error("%s is damaged: %s", path, error)  # noqa: TRY400 - no traceback needed
            self.damaged.append(Damaged(key=record.name, path=path, reason=str(error)))
            return False
        return True

    def _index(self) -> None:
        self._by_print = {
            print_: name for name, one in self._peers.items() for print_ in _fingerprints(one)
        }

    def _changed(self) -> None:
        self._index()
        self._server = None
        for follower in self._followers:
            follower()

    # ---- TLS -------------------------------------------------------------------------------

    def listener(self, web: Web | None = None) -> ssl.SSLContext:
        """For a listener's whole life: each connection that it accepts gets the trust of now.

        Who asks for a name of `web` meets that, and shows no certificate. Raises OSError, ssl.SSLError.
        """
        base = self._server_context()

        def choose(sock: ssl.SSLObject, name: str | None, _base: ssl.SSLContext) -> None:
            given = web.context(name) if web is not None else None
            sock.context = given or self._server_context()

        base.sni_callback = choose
        base.sslobject_class = _telling(lambda reason: self.refused(reason))  # noqa: PLW0108 - that of then
        return base

    def _server_context(self) -> ssl.SSLContext:
        if self._server is None:
            made = _context(ssl.PROTOCOL_TLS_SERVER, self.own)
            made.verify_mode = ssl.CERT_OPTIONAL  # who joins has shown its certificate to nobody
            made.num_tickets = 0  # a session that is resumed is not verified again
            made.set_alpn_protocols(["http/1.1"])
            for one in (*self._peers.values(), *self._guests.values()):
                _accept(made, one)
            for pem in self.programs():
                made.load_verify_locations(cadata=pem)
            self._server = made
        return self._server

    def client(self, record: PeerRecord) -> ssl.SSLContext:
        """To exactly that host, as this one."""
        made = _context(ssl.PROTOCOL_TLS_CLIENT, self.own)
        made.check_hostname = False  # the certificate itself is known
        made.verify_mode = ssl.CERT_REQUIRED
        _accept(made, record)
        return made

    def stranger(self, name: str) -> ssl.SSLContext:
        """To that peer, as nobody."""
        record = self._peers[name]
        return stranger(f"{record.certificate}\n{record.next}")


def stranger(pem: str) -> ssl.SSLContext:
    """To exactly the host with that certificate, as nobody."""
    made = _context(ssl.PROTOCOL_TLS_CLIENT, None)
    made.check_hostname = False
    made.load_verify_locations(cadata=pem)
    return made


def _context(protocol: int, own: Identity | None) -> ssl.SSLContext:
    made = ssl.SSLContext(protocol)
    made.minimum_version = made.maximum_version = ssl.TLSVersion.TLSv1_3
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if own is not None:
        served.load(made, own.certificate, own.key)
    return made


def _accept(context: ssl.SSLContext, record: PeerRecord) -> None:
    for pem in (record.certificate, record.next):
        if pem:
            context.load_verify_locations(cadata=pem)


def _telling(refused: Callable[[str], None]) -> type[ssl.SSLObject]:
    """Server's ends of TLS that tell why a handshake has failed."""

    class Telling(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLEOFError):
                raise
            except ssl.SSLError as error:
                refused(str(getattr(error, "verify_message", "") or error.reason or "no TLS"))
                raise

    return Telling


def _fingerprints(record: PeerRecord) -> set[str]:
    return {identity.fingerprint(pem) for pem in (record.certificate, record.next) if pem}
