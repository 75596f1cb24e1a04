"""On whose behalf this task works: set where a request comes in, inherited by all that it begins."""

from __future__ import annotations

from contextvars import ContextVar

_BY: ContextVar[str] = ContextVar("by", default="")


def now() -> str:
    """Such as `local:root`, or `alice through host:hv-a`; empty: the daemon itself."""
    return _BY.get()


def become(by: str) -> None:
    """For the rest of this task, and for the tasks that it begins."""
    _BY.set(by)
