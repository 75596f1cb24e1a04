"""For whom a VM is sent, shown to its target: a ticket in the user's name (constrained delegation).

Only for users who have shown this host a ticket of their own, and only to targets that take them.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from sterna import actor
from sterna.errors import TicketRefused
from sterna.kerberos import negotiate, tickets
from sterna.kerberos.tickets import Refusal
from sterna.move.peer import Peer

ANSWER_S = 10.0  # of the KDC
_REFUSED = (tickets.BAD_OPTION, tickets.POLICY)


async def ticket(peer: Peer, log: Callable[..., None]) -> str:
    """A header for one request to `peer`; empty: none is needed, or, which `log` is told, none is given.

    Raises TicketRefused if the peer takes no VM without.
    """
    make, service = actor.tickets(), peer.realm.service
    if make is None or not service:
        return ""
    shows = ssl.PEM_cert_to_DER_cert(peer.certificate())
    try:
        async with asyncio.timeout(ANSWER_S):
            return negotiate.header(await asyncio.to_thread(make, service, shows))
    except (Refusal, TimeoutError) as error:
        refused = _told(service, error)
    if peer.realm.is_required:
        raise refused
    log(f"{refused.message}: {peer.name} goes by this host's word alone", level="warning")
    return ""


def _told(service: str, error: Exception) -> TicketRefused:
    minor = error.minor if isinstance(error, Refusal) else tickets.KDC_SILENT
    reason = f"the realm says no ({error})"
    if minor in _REFUSED:
        reason = f"the realm does not let this host act there for {actor.now()}"
    elif minor == tickets.NO_SUCH_SERVER:
        reason = "the realm does not know it"
    elif minor in (tickets.NO_KDC, tickets.KDC_SILENT):
        reason = "no KDC answers"
    fix = f"See what is wrong: sudo -E sterna kerberos check {service.partition('/')[2]}"
    return TicketRefused(service=service, reason=reason, fix=fix)
