"""One-time tokens: what an invitation says, and the proof that somebody was given it.

A token holds where the inviting host is, the fingerprint of its certificate and a secret of 256
bits. The joiner believes only a host with that fingerprint; the inviter believes only a MAC by that
secret of all that the joiner wants to be known by and of both fingerprints. Who sits between the
two without the token can neither read, nor change, nor pass on anything of use.

Invitations live in the daemon's memory: they end with it, and no secret is ever on a disk.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
from dataclasses import dataclass, field

from sterna import clock
from sterna.errors import BadToken, TokenRefused
from sterna.model.trust import JoinRequest, PeerRecord, require_url
from sterna.model.vm import require_name

PREFIX = "sterna1."
SECRET_BYTES = 32
CHECK_BYTES = 4  # of a hash: a token that was not copied whole is told from a wrong one
MAX_TOKEN = 2048  # characters
MAX_OPEN = 64
UNKNOWN = "it does not know it, or it was made for another host"
DAMAGED = "it is damaged or not whole"
_HASH = re.compile(r"[0-9a-f]{64}")
USED = "it has been used"
EXPIRED = "it has expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What the text holds."""

    id: str
    name: str  # of the inviting host
    url: str
    fingerprint: str
    expires: str  # by the inviting host's clock, for people
    secret: bytes = field(repr=False)

    def __str__(self) -> str:
        body = json.dumps(
            [self.id, self.name, self.url, self.fingerprint, self.expires, self.secret.hex()],
            separators=(",", ":"),
        ).encode()
        check = hashlib.sha256(body).digest()[:CHECK_BYTES]
        return PREFIX + base64.urlsafe_b64encode(body + check).decode().rstrip("=")


def read(text: str) -> Token:
    """The token in `text`. Raises BadToken, which never repeats it."""
    text = "".join(text.split())  # a terminal may have broken the line
    if not text.startswith(PREFIX) or len(text) > MAX_TOKEN:
        raise BadToken(reason=f"it does not begin with {PREFIX}")
    coded = text.removeprefix(PREFIX)
    try:
        data = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True)
        body, check = data[:-CHECK_BYTES], data[-CHECK_BYTES:]
        is_whole = hashlib.sha256(body).digest()[:CHECK_BYTES] == check
        key, name, url, fingerprint, expires, secret = json.loads(body)
        require_name(name, "a host")
        require_url(url)
        found = Token(
            id=str(key),
            name=name,
            url=url,
            fingerprint=fingerprint,
            expires=str(expires),
            secret=bytes.fromhex(secret),
        )
    except (binascii.Error, ValueError, TypeError) as error:
        raise BadToken(reason=DAMAGED) from error
    if not is_whole or len(found.secret) != SECRET_BYTES or not _HASH.fullmatch(fingerprint):
        raise BadToken(reason=DAMAGED)
    return found


def proof(secret: bytes, inviter: str, joiner: str, request: tuple[str, str, str]) -> str:
    """The MAC over both fingerprints and (invitation, name, url): HMAC-SHA-256, hexadecimal."""
    parts = ("sterna join 1", inviter, joiner, *request)
    message = b"".join(len(one.encode()).to_bytes(4, "big") + one.encode() for one in parts)
    return hmac.new(secret, message, hashlib.sha256).hexdigest()


@dataclass(slots=True)
class _Invitation:
    token: Token
    deadline: float  # of the monotonic clock: setting the time makes no token last longer
    joiner: str = ""  # fingerprint of the host that has used it
    is_done: bool = False


class Invitations:
    """Those of this host that are open, or were used a short while ago."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._all: dict[str, _Invitation] = {}

    def make(self, url: str, fingerprint: str, expires_s: float) -> Token:
        """A new one."""
        self._forget()
        token = Token(
            id=secrets.token_hex(8),
            name=self._host,
            url=url,
            fingerprint=fingerprint,
            expires=clock.later(expires_s),
            secret=secrets.token_bytes(SECRET_BYTES),
        )
        self._all[token.id] = _Invitation(token, clock.monotonic() + expires_s)
        return token

    def redeem(self, request: JoinRequest, joiner: str) -> PeerRecord:
        """Whom `request` makes known, if it proves the secret of an open invitation.

        The same host may ask again until it has confirmed: its answer may have been lost. Raises
        TokenRefused; why exactly is for those alone who have proved that they know the secret.
        """
        found = self._all.get(request.invitation)
        secret = found.token.secret if found else bytes(SECRET_BYTES)
        inviter = found.token.fingerprint if found else ""
        wanted = proof(secret, inviter, joiner, (request.invitation, request.name, request.url))
        if not hmac.compare_digest(wanted, request.proof) or found is None:
            raise TokenRefused(host=self._host, reason=UNKNOWN)
        if found.is_done or found.joiner not in ("", joiner):
            raise TokenRefused(host=self._host, reason=USED)
        if clock.monotonic() > found.deadline:
            raise TokenRefused(host=self._host, reason=EXPIRED)
        found.joiner = joiner
        return PeerRecord(
            name=request.name, url=request.url, certificate=request.certificate, since=clock.now()
        )

    def confirm(self, joiner: str) -> None:
        """That host is a peer now: its token is used up."""
        for one in self._all.values():
            if one.joiner == joiner:
                one.is_done = True

    def is_open(self, joiner: str) -> bool:
        """Whether that host has used a token, in time, and may still confirm."""
        return any(
            one.joiner == joiner and not one.is_done and clock.monotonic() <= one.deadline
            for one in self._all.values()
        )

    def drop(self, joiner: str) -> None:
        """That host is not wanted: what it has used is used up."""
        self.confirm(joiner)

    def _forget(self) -> None:
        """The oldest, when there are many: those that have ended first."""
        now = clock.monotonic()
        order = sorted(
            self._all.items(), key=lambda item: (item[1].deadline > now, item[1].deadline)
        )
        for key, _ in order[: max(0, len(order) - MAX_OPEN + 1)]:
            del self._all[key]
