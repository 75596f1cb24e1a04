"""People who are proven by Kerberos tickets: SPNEGO in each request, one ticket for one connection.

A ticket counts if this host's keytab opens it, it was made for one of this host's services, it is
bound to the TLS connection on which it comes (unless the configuration says otherwise) and was not
shown before. Whom it names is for `Accounts`. Where the realm lets this host act for its users, their
tickets are also what it shows, in their name, to the hosts where their VMs go (constrained delegation).
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from sterna.config import Kerberos
from sterna.errors import NotProven
from sterna.kerberos import keytab as keys
from sterna.kerberos import negotiate, tickets
from sterna.kerberos.negotiate import Accepted
from sterna.kerberos.tickets import Refusal
from sterna.model.host import RealmFacts

log = logging.getLogger(__name__)

AT_ONCE = 4  # strangers may ask, too
ACCEPT_S = 10.0  # a keytab may be on a file server; a KDC that is silent is given up earlier
LEAST_S = 300  # that a host's own ticket counts still, to be used
MAX_TOKEN = 24 << 10  # bytes; a ticket of somebody in many groups has some 12 kB
LOOK = "See what is wrong: sterna kerberos check, here and with `sudo` on {host}"
BROWSERS = ("HTTP",)  # class of the services for which they get tickets, whatever ours is
_NOT_OPENED = (
    *(tickets.NOT_FOR_US, tickets.WRONG_KEY, tickets.KEY_VERSION, tickets.NO_ENTRY),
    tickets.BAD_INTEGRITY,
)
_REASONS = {
    **dict.fromkeys(_NOT_OPENED, "this host's keytab has no key that opens its ticket"),
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
        self._own: Any = None  # the host's credential, with a ticket of its own

    def facts(self) -> RealmFacts:
        """As what this host is known; nothing without a keytab that says so."""
        assert self._settings.keytab is not None
        begin = f"{self._settings.service}/"
        try:
            found = keys.read(self._settings.keytab)
        except (OSError, ValueError) as error:
            log.warning("%s: %s", self._settings.keytab, error)
            return RealmFacts()
        names = [one.principal.rpartition("@")[0] for one in found]
        return RealmFacts(
            service=next((name for name in names if name.startswith(begin)), ""),
            is_required=self._settings.delegation == "required",
        )

    def _accept(self, keytab: Path, token: bytes, certificate: bytes, *, may_act: bool) -> Accepted:
        if may_act and (own := self._of_host(keytab)) is not None:
            try:
                return negotiate.accept(own, token, certificate)
            except Refusal as error:
                if error.minor not in _NOT_OPENED:
                    raise  # else it may be for another service of this host: a browser's
        return negotiate.accept(negotiate.credential_of(keytab), token, certificate)

    def _of_host(self, keytab: Path) -> Any:
        """With a ticket of its own, so that it may act for others; None: the realm gives it none."""
        try:
            if self._own is None or (self._own.lifetime or 0) < LEAST_S:
                names = [one.principal for one in keys.read(keytab)]
                # In a directory all services of the host are one account, which asks for them.
                has_account = any(name.partition("@")[0].endswith("$") for name in names)
                self._own = tickets.of_host(
                    str(keytab), None if has_account else self.facts().service
                )
        except (Refusal, OSError, ValueError) as error:
            self._own = None
            log.warning("this host can act for no user: %s", error)
        return self._own

    async def prove(self, token: bytes, certificate: bytes, *, may_act: bool = False) -> Accepted:
        """Whose `token` it is; the connection's server has shown `certificate`. Raises NotProven.

        `may_act`: this host will do something for the user, perhaps at other hosts.
        """
        if len(token) > MAX_TOKEN:
            raise self._unproven(f"its ticket has more than {MAX_TOKEN >> 10} KiB")
        keytab = self._settings.keytab
        assert keytab is not None  # else nobody makes a Realm
        async with self._turn:
            try:
                async with asyncio.timeout(ACCEPT_S):
                    found = await asyncio.to_thread(
                        self._accept, keytab, token, certificate, may_act=may_act
                    )
            except TimeoutError as error:
                raise self._unproven(f"{keytab} was not read within {ACCEPT_S:g} s") from error
            except Refusal as error:
                if error.major & 0xFF0000 == negotiate.BAD_BINDINGS:
                    raise self._unproven("its ticket is bound to another connection") from error
                reason = _REASONS.get(error.minor, f"its ticket is not accepted ({error.text})")
                raise self._unproven(reason) from error
        begin, slash, _ = found.service.partition("/")
        if slash and begin not in (self._settings.service, *BROWSERS):  # an account has none
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
