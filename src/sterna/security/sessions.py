"""Sessions of people in browsers. In memory: a daemon that ends, ends them.

Promises: an id is new at each log-in and was never seen before; what a client brings along is
never taken for one. A session ends when it was idle for IDLE_S, after LONGEST_S, at log-out, and
with all others of its user when that one changes in any way.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

from sterna import clock

IDLE_S = 1800.0
LONGEST_S = 12 * 3600.0
MAX_OPEN = 1024
MAX_OF_ONE = 16  # of one user: the oldest ends


@dataclass(slots=True)
class Session:
    """`csrf` is told to the page, and comes back as a header with whatever changes something."""

    key: str  # SHA-256 of the id; the id itself is the browser's
    user: str
    csrf: str = field(repr=False)
    began: float  # of the monotonic clock, as `seen`
    seen: float

    @property
    def is_over(self) -> bool:
        now = clock.monotonic()
        return now - self.seen > IDLE_S or now - self.began > LONGEST_S

    def proves(self, csrf: str) -> bool:
        return hmac.compare_digest(self.csrf.encode(), csrf.encode(errors="replace"))


class Sessions:
    """Those that are open."""

    def __init__(self) -> None:
        self._open: dict[str, Session] = {}  # by key, the oldest first

    def begin(self, user: str) -> tuple[str, Session]:
        """A new one, and its id, which is told to the browser once."""
        self._forget()
        own = [one for one in self._open.values() if one.user == user]
        for old in own[: max(0, len(own) - MAX_OF_ONE + 1)]:
            self.end(old.key)
        name = secrets.token_urlsafe(32)
        now = clock.monotonic()
        made = Session(_key(name), user, secrets.token_urlsafe(32), now, now)
        self._open[made.key] = made
        return name, made

    def of(self, name: str) -> Session | None:
        """The session of that id, which is in use now."""
        found = self.by_key(_key(name))
        if found is not None:
            found.seen = clock.monotonic()
        return found

    def by_key(self, key: str) -> Session | None:
        """The same, only looked at."""
        found = self._open.get(key)
        if found is not None and found.is_over:
            self.end(key)
            return None
        return found

    def end(self, key: str) -> None:
        self._open.pop(key, None)

    def end_of(self, user: str) -> None:
        """All of that user."""
        self._open = {key: one for key, one in self._open.items() if one.user != user}

    def _forget(self) -> None:
        self._open = {key: one for key, one in self._open.items() if not one.is_over}
        for key in list(self._open)[: max(0, len(self._open) - MAX_OPEN + 1)]:
            self.end(key)


def _key(name: str) -> str:
    return hashlib.sha256(name.encode(errors="replace")).hexdigest()
