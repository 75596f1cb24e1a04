"""Two hosts begin to trust each other, go on to with new keys, and end it.

    joiner                                        inviter (has made the token)
    looks at the certificate: the token's?
    POST /v1/pairing, as nobody  ───────────────► proof right, token unused and in time?
    writes its record of the inviter ◄─────────── takes the joiner for a guest, in memory
    POST /v1/peer/paired, as itself ────────────► asks the joiner back, as itself
                                 ◄─────────────── writes its record of the joiner; token used up

Whoever dies on the way: what is in memory only is gone, and the token with it; a record that was
written stays, and the same command ends what was begun (`join` first asks whether it is done).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from contextlib import suppress
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import httpx2

from sterna import clock
from sterna.config import Config
from sterna.errors import (
    BadSpec,
    HostUnknown,
    HostUnreachable,
    NotAllowed,
    NotAnnounced,
    NotListening,
    NotReached,
    PeerExists,
    SternaError,
    TokenRefused,
    WrongHost,
    from_problem,
)
from sterna.model.trust import (
    InviteWishes,
    JoinRequest,
    JoinWishes,
    PeerChanges,
    PeerRecord,
    RotateWishes,
)
from sterna.model.vm import require_name
from sterna.move.incoming import Incoming
from sterna.move.peer import Peers, problem_of, words_of
from sterna.operations.runner import Runner
from sterna.security import identity, invitation, trust
from sterna.security.invitation import Invitations, Token
from sterna.security.trust import Trust

log = logging.getLogger(__name__)

ANSWER_S = 10.0  # a host that is well answers in milliseconds; it may ask this one back meanwhile


class Pairing:
    """What administrators do about the trust of this host."""

    def __init__(
        self, config: Config, own: Trust, peers: Peers, incoming: Incoming, runner: Runner
    ) -> None:
        self._config = config
        self._trust = own
        self._peers = peers
        self._incoming = incoming
        self._runner = runner
        self._invitations = Invitations(config.name)
        self._lock = asyncio.Lock()  # one change of this kind at a time

    # ---- invite ----------------------------------------------------------------------------

    def invite(self, wishes: InviteWishes) -> Token:
        """A one-time token for the administrator of another host. Raises NotListening, BadSpec."""
        self._require_name()
        url = self._url(wishes.address)
        return self._invitations.make(url, self._trust.own.fingerprint, wishes.expires_s)

    def redeem(self, request: JoinRequest) -> dict[str, Any]:
        """A host that nobody knows wants to join. Raises TokenRefused, PeerExists, BadSpec."""
        joiner = _fingerprint(request.certificate)
        guest = self._invitations.redeem(request, joiner)
        self._require_free(guest.name, joiner)
        self._trust.receive(guest)
        log.info("%s at %s was given a token of this host and joins", guest.name, guest.url)
        return {"name": self._config.name}

    async def paired(self, fingerprint: str) -> dict[str, Any]:
        """It has written down that it trusts this host. May be repeated."""
        guest = self._trust.guest(fingerprint)
        if guest is not None:
            async with self._lock:
                await self._accept(guest, fingerprint)
        return {"name": self._config.name}

    async def _accept(self, guest: PeerRecord, fingerprint: str) -> None:
        if not self._invitations.is_open(fingerprint):
            self._trust.dismiss(fingerprint)
            raise TokenRefused(host=self._config.name, reason=invitation.EXPIRED)
        self._require_free(guest.name, fingerprint)
        try:
            await _ask(guest, self._trust.client(guest), "GET /v1")
        except SternaError as error:
            raise NotReached(
                host=self._config.name,
                peer=guest.name,
                url=guest.url,
                reason=str(error.facts.get("reason") or error.message),
            ) from error
        await self._trust.put(guest)
        self._invitations.confirm(fingerprint)
        log.info("%s at %s is trusted from now on", guest.name, guest.url)

    # ---- join ------------------------------------------------------------------------------

    async def join(self, wishes: JoinWishes) -> PeerRecord:
        """Let this host and the one that made the token trust each other.

        Raises BadToken, WrongHost, TokenRefused, PeerExists, NotListening, NotReached: then this
        host trusts nobody whom it did not trust before. After HostUnreachable it may trust the
        other, and the other it: the same command tells, and ends it.
        """
        token = invitation.read(wishes.token)
        self._require_name()
        url = self._url(wishes.address)
        async with self._lock:
            former = self._require_free(token.name, token.fingerprint)
            if former is not None and await self._is_done(former):
                return former
            certificate = await _certificate(token)
            await self._apply(token, certificate, url)
            record = PeerRecord(
                name=token.name, url=token.url, certificate=certificate, since=clock.now()
            )
            await self._trust.put(record)
            try:
                await _ask(record, self._trust.client(record), "POST /v1/peer/paired")
            except HostUnreachable:
                raise  # it may trust this host now; the same command finds out
            except SternaError:
                if former is None:
                    await self._trust.remove(record.name)
                raise
            log.info("%s at %s is trusted from now on", record.name, record.url)
            return record

    async def _is_done(self, former: PeerRecord) -> bool:
        """Whether that host trusts this one already, or does by this very question."""
        try:
            await _ask(former, self._trust.client(former), "POST /v1/peer/paired")
        except SternaError:
            return False
        return True

    async def _apply(self, token: Token, certificate: str, url: str) -> None:
        own = self._trust.own
        name = self._config.name
        proof = invitation.proof(
            token.secret, token.fingerprint, own.fingerprint, (token.id, name, url)
        )
        body = {
            "invitation": token.id,
            "name": name,
            "url": url,
            "certificate": own.pem,
            "proof": proof,
        }
        inviter = PeerRecord(name=token.name, url=token.url, certificate=certificate)
        await _ask(inviter, trust.stranger(certificate), "POST /v1/pairing", body)

    # ---- afterwards ------------------------------------------------------------------------

    async def change(self, name: str, changes: PeerChanges) -> PeerRecord:
        """That peer is at another address now, or has another role. Raises HostUnknown."""
        record = self._trust.get(name)
        if changes.url is not None:
            record = await self._trust.move(name, changes.url)
        if changes.role is not None:
            record = await self._trust.set_role(name, changes.role)
        if record is None:
            raise self._unknown(name)
        return record

    async def distrust(self, name: str) -> list[str]:
        """Trust that host no more, at once; the moves under way with it, which are undone now.

        Raises HostUnknown, StateNotWritten: then nothing has changed.
        """
        record = self._trust.get(name)
        if record is None:
            raise self._unknown(name)
        await self._trust.remove(name)  # what it has open here ends with it
        await self._peers.hang_up()
        for pem in (record.certificate, record.next):
            if pem:
                self._invitations.confirm(identity.fingerprint(pem))
        ended = []
        for arrival in self._incoming.undecided():
            if arrival.source == name:
                await self._incoming.refuse(arrival.operation, f"{name} is not trusted any more")
                ended.append(arrival.operation)
        for operation in self._runner.active():
            if operation.peer == name and operation.kind == "move":
                with suppress(SternaError):  # over, or given away: its doubt says so
                    await self._runner.cancel(operation.id)
                    ended.append(operation.id)
        log.warning("%s is not trusted any more; moves ended by that: %d", name, len(ended))
        return ended

    async def announced(self, name: str, certificate: str) -> None:
        """That peer will show this certificate. Raises BadSpec, NotAllowed."""
        fingerprint = _fingerprint(certificate)
        known = self._trust.of(fingerprint)
        if known is not None and known.name != name:
            raise BadSpec(where="certificate", reason="it is another host's")
        if not await self._trust.announced(name, certificate):
            raise NotAllowed(what="this", reason="it is not trusted any more", fix="Pair it anew")

    async def rotate(self, wishes: RotateWishes) -> dict[str, Any]:
        """Give this host a new key and certificate, without a pause for anybody.

        All peers are told over connections that they trust; when all know it, it is used. What was
        begun is gone on with: a restart, or a peer that did not answer, loses nothing. Raises
        NotAnnounced: then the old one stays in use.
        """
        async with self._lock:
            listen = self._config.listen
            own = self._trust.own
            new = await asyncio.to_thread(
                identity.prepare, own, self._config.name, listen.address if listen else ""
            )
            pem = new.pem
            failed = await self._announce(pem)
            if failed and not wishes.force:
                raise NotAnnounced(
                    peers=", ".join(failed), reason=next(iter(failed.values())), names=list(failed)
                )
            identity.switch(own)  # nothing else of this daemon sees the one file without the other
            self._trust.renewed()
        log.info("this host has a new certificate, %s", own.fingerprint)
        for name in self._trust.names:  # who sees it needs the old one no more
            if name not in failed:
                with suppress(SternaError):
                    await self._peers.get(name).hello()
        return {
            "fingerprint": own.fingerprint,
            "ends": identity.end_of(pem).isoformat(),
            "told": [name for name in self._trust.names if name not in failed],
            "not_told": sorted(failed),
        }

    async def _announce(self, pem: str) -> dict[str, str]:
        """Tell all peers; why those that could not be told could not."""

        async def tell(name: str) -> tuple[str, str]:
            try:
                await self._peers.get(name).announce(pem)
            except SternaError as error:
                return name, str(error.facts.get("reason") or error.message)
            return name, ""

        answers = await asyncio.gather(*(tell(name) for name in self._trust.names))
        return {name: reason for name, reason in answers if reason}

    # ---- what is asked of names and addresses ------------------------------------------------

    def _require_name(self) -> None:
        try:
            require_name(self._config.name, "a host")
        except ValueError as error:
            raise BadSpec(where="name in sternad's configuration", reason=str(error)) from error

    def _url(self, address: str) -> str:
        listen = self._config.listen
        where = address or (listen.address if listen else "")
        if listen is None or not where:
            raise NotListening(host=self._config.name)
        try:
            found = ip_address(where)
        except ValueError as error:
            raise BadSpec(where="address", reason=str(error)) from error
        if found.is_unspecified:  # it listens everywhere: nobody else knows where that is
            raise NotListening(host=self._config.name)
        host = f"[{found}]" if found.version == 6 else str(found)
        return f"https://{host}:{listen.port}"

    def _require_free(self, name: str, fingerprint: str) -> PeerRecord | None:
        """The peer that it is already, if it is. Raises PeerExists if it would be somebody else."""
        known, named = self._trust.of(fingerprint), self._trust.get(name)
        if name == self._config.name or fingerprint == self._trust.own.fingerprint:
            reason, fix = "both are called so", "Give one of them another name in its configuration"
        elif named is not None and known is not named:
            reason = f"it knows another host called {name}"
            fix = f"If {name} was made anew: sterna host distrust {name}, and pair it again"
        elif known is not None and known is not named:
            reason = f"it knows it as {known.name}"
            fix = f"First: sterna host distrust {known.name}"
        else:
            return named
        raise PeerExists(host=self._config.name, peer=name, reason=reason, fix=fix)

    def _unknown(self, name: str) -> HostUnknown:
        known = ", ".join(self._trust.names) or "none"
        return HostUnknown(host=self._config.name, peer=name, known=known)


async def _ask(peer: PeerRecord, context: ssl.SSLContext, asked: str, body: Any = None) -> None:
    """One question, such as "GET /v1", on a connection of its own.

    Raises HostUnreachable, and what it answers.
    """
    method, _, path = asked.partition(" ")
    try:
        async with httpx2.AsyncClient(verify=context, trust_env=False) as http:
            answer = await http.request(method, peer.url + path, json=body, timeout=ANSWER_S)
    except (httpx2.HTTPError, OSError) as error:
        reason = words_of(error)
        raise HostUnreachable(peer=peer.name, url=peer.url, reason=reason) from error
    if answer.is_error:
        raise from_problem(problem_of(answer))


async def _certificate(token: Token) -> str:
    """The certificate of the host at the token's address, if it is the token's. Sends nothing.

    Raises WrongHost, HostUnreachable.
    """
    parts = urlsplit(token.url)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the fingerprint decides, two lines below
    try:
        async with asyncio.timeout(ANSWER_S):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=context)
    except (OSError, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        raise HostUnreachable(peer=token.name, url=token.url, reason=reason) from error
    shown: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
    writer.transport.abort()
    if identity.fingerprint_of(shown) != token.fingerprint:
        raise WrongHost(host=token.name, url=token.url, reason="it shows another certificate")
    return ssl.DER_cert_to_PEM_cert(shown)


def _fingerprint(pem: str) -> str:
    try:
        return identity.fingerprint(pem)
    except ValueError as error:
        raise BadSpec(where="certificate", reason=str(error)) from error
