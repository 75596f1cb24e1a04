"""Requests by the user's own Kerberos ticket, for hosts that `sterna login --kerberos` was told of."""

from __future__ import annotations

from collections.abc import Callable

from sterna.client import Proof
from sterna.errors import HostNotTrusted, TicketRefused

CLASS = "sterna"  # of the service names


def by_ticket(url: str, service: str) -> Callable[[bytes], Proof]:
    """What shows a ticket for `service` to the host at `url`. Raises TicketRefused, HostNotTrusted."""
    from sterna.kerberos import negotiate, tickets  # noqa: PLC0415 - start-up time, and an extra

    if not tickets.is_installed():
        fix = "Install it beside sterna: pip install gssapi"
        raise TicketRefused(service=service, reason="python-gssapi is missing", fix=fix)

    class Shown:
        def __init__(self, certificate: bytes) -> None:
            try:
                self._asking = negotiate.Asking(service, certificate)
            except tickets.Refusal as error:
                raise _refused(service, error) from error
            self.authorization = negotiate.header(self._asking.token)

        def prove(self, reply: str) -> None:
            try:
                self._asking.prove(reply)
            except tickets.Refusal as error:
                reason = f"it does not prove that it is {service} ({error.text})"
                raise HostNotTrusted(url=url, reason=reason) from error

    return Shown


def _refused(service: str, error: Exception) -> TicketRefused:
    from sterna.kerberos import tickets  # noqa: PLC0415

    minor = getattr(error, "minor", 0)
    look = f"See what is wrong: sterna kerberos check {service.partition('/')[2]}"
    if minor in (tickets.NO_CACHE, tickets.EMPTY_CACHE, tickets.TICKET_EXPIRED, tickets.EXPIRED):
        return TicketRefused(
            service=service, reason="you have none of your own", fix="Get one: kinit"
        )
    if minor == tickets.NO_SUCH_SERVER:
        return TicketRefused(service=service, reason="the realm does not know it", fix=look)
    return TicketRefused(service=service, reason=f"the realm says no ({error})", fix=look)
