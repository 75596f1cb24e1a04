"""Who asks, by all that a connection and its request show: one answer for every listener.

What is said explicitly counts alone: a request with an Authorization header is its token's, or
nobody's, whatever else it shows, and so is one with a Kerberos ticket; then the certificate of the
connection, then a session, then the process at the other end of a Unix socket.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sterna.actor import Tickets
from sterna.errors import Forged, LogInRefused, NotProven, StateNotWritten
from sterna.kerberos.negotiate import Asking
from sterna.model.access import Principal, Role, UserRecord
from sterna.model.host import RealmFacts
from sterna.security.accounts import Accounts
from sterna.security.local import Credentials, Locals
from sterna.security.lockout import Lockout
from sterna.security.realm import Realm
from sterna.security.sessions import Session, Sessions
from sterna.security.trust import Trust

SAFE = ("GET", "HEAD", "OPTIONS")
PAIR = (
    "Pair the two hosts (sterna host invite on one, sterna host join on the other), or show a token"
)
TICKETS_OFF = "Set [kerberos] keytab in its sternad.toml, or log in with a token: sterna login HOST"
TICKET = "kerberos:"  # keys of principals that tickets prove begin so
NOBODY = Principal(kind="nobody")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What came with a request. `token`, `session` and `csrf`: None if there is no such header."""

    method: str
    local: Credentials | None = None
    fingerprint: str = ""
    token: str | None = None
    session: str | None = None
    csrf: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """A user whom a ticket has proven. `reply` proves this host in return; with `tickets` it may show
    other hosts, in the user's name, who it is.
    """

    principal: Principal
    reply: bytes
    tickets: Tickets | None


class Authority:
    """For one host; `state` is its state folder."""

    def __init__(
        self,
        host: str,
        state: Path,
        trust: Trust | None,
        locals_: Locals,
        realm: Realm | None = None,
    ) -> None:
        self.host = host
        self.accounts = Accounts(state, host)
        self.sessions = Sessions()
        self.lockout = Lockout(state / "lockout", host)
        self.locals = locals_
        self.realm = realm
        self._trust = trust
        self._followers: list[Callable[[], None]] = []
        self.accounts.follow(self._account_changed)
        if trust is not None:
            trust.programs = lambda: self.accounts.certificates
            trust.follow(self._tell)

    # ---- requests --------------------------------------------------------------------------

    async def who(self, shown: Shown) -> Principal:
        """NOBODY if nothing is shown. Raises NotProven for what does not count, Forged."""
        if shown.token is not None:
            record = self.accounts.by_token(shown.token)
            if record is None:
                raise self._unproven("this token is not one of its own, has expired or was revoked")
            return self._again(Principal(kind="token", key=record.id)) or NOBODY
        if shown.fingerprint:
            return await self._by_certificate(shown.fingerprint)
        if shown.session is not None:
            return self._by_session(shown)
        if shown.local is not None:
            found = self.locals.who(shown.local)
            if found is None:
                raise self._unproven(
                    f"uid {shown.local.uid} is neither root nor in the group that may use the socket",
                    "Run the command with sudo, or let an administrator add you to the group",
                )
            return found
        return NOBODY

    @property
    def realm_facts(self) -> RealmFacts:
        """As what this host is known to Kerberos."""
        return self.realm.facts() if self.realm is not None else RealmFacts()

    @property
    def takes_tickets(self) -> bool:
        """Whether Kerberos tickets prove people here."""
        return self.realm is not None

    async def by_ticket(self, token: bytes, certificate: bytes, shown: Shown) -> Met:
        """Whose Kerberos `token` that is.

        `certificate` (DER) is what the connection's server has shown. Raises NotProven, Forged.
        """
        if self.realm is None:
            raise self._unproven("it takes no Kerberos tickets", TICKETS_OFF)
        found = await self.realm.prove(token, certificate, may_act=shown.method not in SAFE)
        who = self._again_by_key(Principal(kind="user", key=f"{TICKET}{found.principal}"))
        if who is None:
            raise self._unproven(
                f"{found.principal} is no user of it",
                f"An administrator of it lets tickets in: sterna user create NAME --role ROLE "
                f"--kerberos {found.principal}",
            )
        # Browsers show tickets by themselves; what another page sends has no header of ours.
        if shown.method not in SAFE and not shown.csrf:
            raise Forged(what=f"this {shown.method}")
        act = found.may_act_for
        return Met(
            principal=who,
            reply=found.reply,
            tickets=act and (lambda service, shows: Asking(service, shows, act).token),
        )

    async def _by_certificate(self, fingerprint: str) -> Principal:
        if self._trust is not None:
            await self._trust.seen(fingerprint)
        found = self._again(Principal(kind="host", key=fingerprint))
        if found is None:
            raise self._unproven("its certificate is not known")
        return found

    def _by_session(self, shown: Shown) -> Principal:
        session = self.sessions.of(shown.session or "")
        user = self.accounts.users.get(session.user) if session is not None else None
        if session is None or user is None:
            raise self._unproven("this session has ended", "Log in again: POST /v1/sessions")
        if shown.method not in SAFE and not session.proves(shown.csrf or ""):
            raise Forged(what=f"this {shown.method}")
        return _of_user(user, session.key)

    def is_valid(self, principal: Principal) -> bool:
        """Whether it would still be the same now, for what goes on after its request."""
        return principal == self._again(principal)

    def _again(self, one: Principal) -> Principal | None:
        if one.kind in ("local", "nobody"):
            return one
        if one.kind == "token":
            token = self.accounts.token(one.key)
            if token is None:
                return None
            return Principal(
                kind="token", name=token.name, role=token.role, tag=token.tag, key=token.id
            )
        return self._again_by_key(one)

    def _again_by_key(self, one: Principal) -> Principal | None:
        if one.key.startswith(TICKET):
            ours = self.accounts.by_kerberos(one.key.removeprefix(TICKET))
            return None if ours is None else _of_user(ours, one.key)
        caller = self._trust.who(one.key) if self._trust is not None else None
        if caller is not None and caller.is_guest:
            return Principal(kind="guest", name=caller.name, key=one.key)
        if caller is not None:
            return Principal(kind="host", name=caller.name, role=caller.role, key=one.key)
        session = self.sessions.by_key(one.key)
        user = self.accounts.by_certificate(one.key) or (
            self.accounts.users.get(session.user) if session else None
        )
        return None if user is None else _of_user(user, one.key)

    def shows_somebody(self, fingerprint: str) -> bool:
        """Whether that certificate still proves anybody."""
        return self._again(Principal(kind="host", key=fingerprint)) is not None

    def follow(self, follower: Callable[[], None]) -> None:
        """`follower` is called when somebody may not be anymore who they were."""
        self._followers.append(follower)

    def _account_changed(self, user: str) -> None:
        if user:
            self.sessions.end_of(user)
        if self._trust is not None:
            self._trust.refresh()  # tells `_tell`
        else:
            self._tell()

    def _tell(self) -> None:
        for follower in self._followers:
            follower()

    # ---- people ----------------------------------------------------------------------------

    async def log_in(self, name: str, password: str, address: str) -> tuple[str, Session]:
        """A new session and its id. Raises LogInRefused, LockedOut, StateNotWritten."""
        self.lockout.require_open(name, address)
        user = await self.check(name, password, address)
        return self.sessions.begin(user.name)

    async def check(self, name: str, password: str, address: str) -> UserRecord:
        """The user, if that is the password. Raises as `log_in`."""
        async with self.accounts.lane:
            self.lockout.require_open(name, address)  # those before us may have failed
            user = self.accounts.users.get(name)
            phc = user.password if user is not None else ""
            is_right = await self.accounts.lane.is_right(password, phc)
            now = self.accounts.users.get(name)
            if not is_right or now is None or now.password != phc:
                await self.lockout.failed(name, address)
                raise LogInRefused
            with contextlib.suppress(StateNotWritten):  # who knows the password gets in
                await self.lockout.forgive(name)
            return now

    def end(self, principal: Principal) -> None:
        """Log out."""
        self.sessions.end(principal.key)
        self._tell()

    def _unproven(self, reason: str, fix: str = PAIR) -> NotProven:
        return NotProven(host=self.host, reason=reason, fix=fix)


def _of_user(user: UserRecord, key: str) -> Principal:
    return Principal(kind="user", name=user.name, role=Role(user.role), tag=user.tag, key=key)
