"""A user's ticket in a header of HTTP (RFC 4559), bound to the connection's TLS (RFC 5929). Blocking calls.

Both ends: `Asking` is the client's, `accept` the host's. Every refusal is a `tickets.Refusal`.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sterna.kerberos import tickets
from sterna.kerberos.tickets import Refusal, named, refusals

SCHEME = "Negotiate"
BAD_BINDINGS = 4 << 16  # GSS_S_BAD_BINDINGS, of the major code
_SHA384 = ("06082a8648ce3d040303", "06092a864886f70d01010c")  # OIDs of signatures with it, as DER
_SHA512 = ("06082a8648ce3d040304", "06092a864886f70d01010d")


def header(token: bytes) -> str:
    """`token` as a header says it."""
    return f"{SCHEME} {base64.b64encode(token).decode()}"


def endpoint(certificate: bytes) -> bytes:
    """What names a TLS server by its certificate (DER): tls-server-end-point of RFC 5929."""
    tail = certificate[_end_of_signed(certificate) :].hex()  # algorithm and signature
    if tail[4:].startswith(_SHA384):
        digest = hashlib.sha384(certificate)
    elif tail[4:].startswith(_SHA512):
        digest = hashlib.sha512(certificate)
    else:
        digest = hashlib.sha256(certificate)
    return b"tls-server-end-point:" + digest.digest()


def _end_of_signed(der: bytes) -> int:
    """Where the first element of the outermost sequence ends: X.690, definite lengths."""
    begin, _ = _content(der, 0)
    inner, size = _content(der, begin)
    return inner + size


def _content(der: bytes, at: int) -> tuple[int, int]:
    first = der[at + 1]
    if first < 0x80:
        return at + 2, first
    count = first & 0x7F
    return at + 2 + count, int.from_bytes(der[at + 2 : at + 2 + count], "big")


def _binding(certificate: bytes) -> Any:
    from gssapi.raw import ChannelBindings  # noqa: PLC0415 - an extra

    return ChannelBindings(application_data=endpoint(certificate))


class Asking:
    """A client's side of one request to `service` (sterna/hv-b.example.com), which shows `certificate`.

    `credential`: the user's own, unless it is given.
    """

    def __init__(self, service: str, certificate: bytes, credential: Any = None) -> None:
        import gssapi  # noqa: PLC0415 - an extra

        self.service = service
        with refusals():
            self._context = gssapi.SecurityContext(
                name=named(service),
                creds=credential or tickets.mine().credential,
                usage="initiate",
                # Not within SPNEGO, as browsers have it: of that, the numbers of refusals are lost.
                mech=gssapi.MechType.kerberos,
                flags=gssapi.RequirementFlag.mutual_authentication,
                channel_bindings=_binding(certificate),
            )
            self.token: bytes = self._context.step()

    def prove(self, reply: str) -> None:
        """`reply` is the header of the answer. Raises Refusal unless it comes from that service."""
        scheme, _, text = reply.partition(" ")
        if scheme != SCHEME:
            raise Refusal(0, 0, "it proves nothing")
        with refusals():
            try:
                self._context.step(base64.b64decode(text, validate=True))
            except ValueError as error:
                raise Refusal(0, 0, "its proof is none") from error
            if not self._context.complete:
                raise Refusal(0, 0, "its proof is not whole")


@dataclass(frozen=True, slots=True)
class Accepted:
    """Whose ticket it was."""

    principal: str
    service: str  # that it was for, without the realm
    is_bound: bool  # to this connection's TLS
    reply: bytes
    may_act_for: Any  # a credential for tickets in the user's name; None: there is none


def credential_of(keytab: Path) -> Any:
    """What opens tickets with the keys of that file, and asks nobody. Raises Refusal."""
    import gssapi  # noqa: PLC0415 - an extra

    with refusals():
        return gssapi.Credentials(usage="accept", store={"keytab": str(keytab)})


def accept(credential: Any, token: bytes, certificate: bytes) -> Accepted:
    """The user who shows `token` on a connection whose server shows `certificate` (DER). Raises Refusal.

    With a credential of `tickets.of_host` this host may act for the user, as far as the realm lets it.
    """
    import gssapi  # noqa: PLC0415 - an extra

    with refusals():
        context = gssapi.SecurityContext(
            creds=credential, usage="accept", channel_bindings=_binding(certificate)
        )
        reply = context.step(token)
        if not context.complete:
            raise Refusal(0, 0, "the exchange did not end with its first token")
        return Accepted(
            principal=str(context.initiator_name),
            service=str(context.target_name).rpartition("@")[0],
            is_bound=bool(context.actual_flags & gssapi.RequirementFlag.channel_bound),
            reply=reply or b"",
            may_act_for=context.delegated_creds,
        )
