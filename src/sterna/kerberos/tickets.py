"""GSSAPI and nothing else: credentials, tickets and what a KDC or a keytab answers. Blocking calls.

Needs the extra `kerberos` (python-gssapi). Every refusal is a `Refusal` with GSSAPI's minor code, which for
Kerberos is an error number of RFC 4120 on top of a base of MIT's table; texts are never looked at.
"""

from __future__ import annotations

import importlib.util
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_BASE = 0x96C73A00  # of the numbers of RFC 4120 among com_err's
NO_SUCH_CLIENT = _BASE + 6
NO_SUCH_SERVER = _BASE + 7
POLICY = _BASE + 12
BAD_OPTION = _BASE + 13
NO_ENCRYPTION = _BASE + 14
CLIENT_REVOKED = _BASE + 18
PASSWORD_EXPIRED = _BASE + 23
WRONG_KEY = _BASE + 24
TICKET_EXPIRED = _BASE + 32
BAD_INTEGRITY = _BASE + 31
TICKET_EARLY = _BASE + 33
REPEATED = _BASE + 34
NOT_FOR_US = _BASE + 35
CLOCK_SKEW = _BASE + 37
KEY_VERSION = _BASE + 44
NO_REALM = _BASE + 158  # from here on the library's own
NO_KDC = _BASE + 154
KDC_SILENT = _BASE + 156
NO_CACHE = _BASE + 195
EMPTY_CACHE = _BASE + 141
NO_KEYTAB = _BASE + 181
EXPIRED = 100001  # of GSSAPI itself
NO_ENTRY = 39756033  # of the mechanism's own table


class Refusal(Exception):
    """Somebody said no. `minor` says why, `text` is for a log."""

    def __init__(self, major: int, minor: int, text: str) -> None:
        super().__init__(text)
        self.major, self.minor, self.text = major, minor, text


@dataclass(frozen=True, slots=True)
class Mine:
    """The caller's ticket-granting ticket."""

    principal: str
    lifetime_s: int
    credential: Any


@dataclass(frozen=True, slots=True)
class Met:
    """A user has shown a ticket to this host."""

    principal: str
    may_act_for: (
        Any  # a credential with which this host asks for tickets in the user's name; or None
    )


def is_installed() -> bool:
    """Whether python-gssapi is there."""
    return importlib.util.find_spec("gssapi") is not None


def default_realm() -> str:
    """What this machine belongs to. Raises Refusal."""
    import gssapi  # noqa: PLC0415 - an extra

    with refusals():
        name = named("nobody").canonicalize(gssapi.MechType.kerberos)
        return str(name).rpartition("@")[2]


def mine() -> Mine:
    """What the caller's ticket cache (KRB5CCNAME) holds. Raises Refusal."""
    import gssapi  # noqa: PLC0415 - an extra

    with refusals():
        credential = gssapi.Credentials(usage="initiate", mechs=[gssapi.MechType.kerberos])
        return Mine(str(credential.name), credential.lifetime or 0, credential)


def of_host(keytab: str, principal: str | None) -> Any:
    """This host's credential from its keytab, to be asked and to ask with. Raises Refusal.

    `principal`: None for a directory whose accounts have one key for all services.
    """
    import gssapi  # noqa: PLC0415

    store: dict[bytes | str, bytes | str] = {
        "keytab": keytab,
        "client_keytab": keytab,
        "ccache": f"MEMORY:{uuid.uuid4()}",
    }
    with refusals():
        name = None if principal is None else named(principal)
        credential = gssapi.Credentials(
            name=name, usage="both", store=store, mechs=[gssapi.MechType.kerberos]
        )
        if not credential.lifetime:
            raise Refusal(0, TICKET_EXPIRED, "the host's ticket is over")
        return credential


def ticket(credential: Any, service: str) -> bytes:
    """What shows `service` who the holder of `credential` is. Raises Refusal: the KDC gave none."""
    import gssapi  # noqa: PLC0415

    with refusals():
        context = gssapi.SecurityContext(
            name=named(service),
            creds=credential,
            usage="initiate",
            mech=gssapi.MechType.kerberos,
            flags=gssapi.RequirementFlag.mutual_authentication,
        )
        token: bytes = context.step()
        return token


def meet(credential: Any, token: bytes) -> Met:
    """The user whose `token` is shown to the host with this credential. Raises Refusal."""
    import gssapi  # noqa: PLC0415

    with refusals():
        context = gssapi.SecurityContext(creds=credential, usage="accept")
        context.step(token)
        if not context.complete:
            raise Refusal(0, 0, "the exchange did not end with its first token")
        return Met(str(context.initiator_name), context.delegated_creds)


def named(principal: str) -> Any:
    import gssapi  # noqa: PLC0415

    return gssapi.Name(principal, gssapi.NameType.kerberos_principal)


@contextmanager
def refusals() -> Iterator[None]:
    import gssapi  # noqa: PLC0415
    from gssapi.raw.misc import GSSError  # noqa: PLC0415

    # Else a token that is refused is answered and the refusal not raised.
    gssapi.SecurityContext.__DEFER_STEP_ERRORS__ = False  # type: ignore[attr-defined]
    try:
        yield
    except GSSError as error:
        minor = error.min_code & 0xFFFFFFFF
        raise Refusal(error.maj_code, minor, str(error)) from error
