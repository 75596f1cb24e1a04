"""People who are proven by Kerberos tickets: SPNEGO in each request, one ticket for one connection.

A ticket counts if this host's keytab opens it, it was made for one of this host's services, it is
bound to the TLS connection on which it comes (unless the configuration says otherwise) and was not
shown before. Whom it names is for `Accounts`.
"""

from __future__ import annotations

import asyncio

from sterna.config import Kerberos
from sterna.errors import NotProven
from sterna.kerberos import negotiate, tickets
from sterna.kerberos.negotiate import Accepted
from sterna.kerberos.tickets import Refusal

AT_ONCE = 4  # strangers may ask, too
ACCEPT_S = 5.0  # a keytab is a file, perhaps of a file server
MAX_TOKEN = 24 << 10  # bytes; a ticket of somebody in many groups has some 12 kB
LOOK = "See what is wrong: sterna kerberos check, here and with `sudo` on {host}"
BROWSERS = ("HTTP",)  # class of the services for which they get tickets, whatever ours is
_REASONS = {
    **dict.fromkeys(
        (
            tickets.NOT_FOR_US,
            tickets.WRONG_KEY,
            tickets.KEY_VERSION,
            tickets.NO_ENTRY,
            tickets.BAD_INTEGRITY,
        ),
        "this host's keytab has no key that opens its ticket",
    ),
    tickets.NO_KEYTAB: "this host's keytab cannot be read",
    tickets.CLOCK_SKEW: "its clock and this host's are too far apart",
    tickets.TICKET_EARLY: "its ticket does not count yet",
    tickets.TICKET_EXPIRED: "its ticket has expired",
    tickets.REPEATED: "its ticket was shown before",
}


class Realm:
    """What tickets prove to this host."""

    def __init__(self, host: str, settings: Kerberos) -> None:
        self._host = host
        self._settings = settings
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def prove(self, token: bytes, certificate: bytes) -> Accepted:
        """Whose `token` it is; the connection's server has shown `certificate`. Raises NotProven."""
        if len(token) > MAX_TOKEN:
            raise self._unproven(f"its ticket has more than {MAX_TOKEN >> 10} KiB")
        keytab = self._settings.keytab
        assert keytab is not None  # else nobody makes a Realm
        async with self._turn:
            try:
                async with asyncio.timeout(ACCEPT_S):
                    found = await asyncio.to_thread(negotiate.accept, keytab, token, certificate)
            except TimeoutError as error:
                raise self._unproven(f"{keytab} was not read within {ACCEPT_S:g} s") from error
            except Refusal as error:
                if error.major & 0xFF0000 == negotiate.BAD_BINDINGS:
                    raise self._unproven("its ticket is bound to another connection") from error
                reason = _REASONS.get(error.minor, f"its ticket is not accepted ({error.text})")
                raise self._unproven(reason) from error
        if found.service.partition("/")[0] not in (self._settings.service, *BROWSERS):
            raise self._unproven(f"its ticket is for {found.service}")
        if not found.is_bound and self._settings.channel_binding == "required":
            raise self._unproven(
                "its ticket is bound to no connection",
                'Use sterna, or a browser that binds; or set channel_binding = "offered" in [kerberos] '
                f"on {self._host}",
            )
        return found

    def _unproven(self, reason: str, fix: str = "") -> NotProven:
        return NotProven(host=self._host, reason=reason, fix=fix or LOOK.format(host=self._host))
