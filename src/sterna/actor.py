"""On whose behalf this task works: set where a request comes in, inherited by all that it begins."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

# Makes a ticket in the actor's name for a service, bound to the certificate (DER) that its host
# shows. Blocking; raises sterna.kerberos.tickets.Refusal.
Tickets = Callable[[str, bytes], bytes]

_BY: ContextVar[str] = ContextVar("by", default="")
_TICKETS: ContextVar[Tickets | None] = ContextVar("tickets", default=None)


def now() -> str:
    """Such as `local:root`, or `alice through host:hv-a`; empty: the daemon itself."""
    return _BY.get()


def tickets() -> Tickets | None:
    """What shows other hosts who that is; None: the actor has shown this host no ticket itself."""
    return _TICKETS.get()


def become(by: str, tickets: Tickets | None = None) -> None:
    """For the rest of this task, and for the tasks that it begins."""
    _BY.set(by)
    _TICKETS.set(tickets)
