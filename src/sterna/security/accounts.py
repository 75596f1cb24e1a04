"""The users and API tokens of this host: durable records, and who is proven by what.

Promises: a change that returned survives a power cut and holds for the next request; a password or
a token is on no disk, only their hashes are. Whoever follows is told of each change, and ends what
rested on the old state.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from pathlib import Path

from sterna import clock
from sterna.errors import (
    APITokenExists,
    APITokenNotFound,
    BadSpec,
    CertificateTaken,
    PrincipalTaken,
    UserExists,
    UserNotFound,
)
from sterna.host.store import Store
from sterna.model.access import (
    PasswordWishes,
    Role,
    TokenRecord,
    TokenWishes,
    UserChanges,
    UserRecord,
    UserWishes,
)
from sterna.security import identity
from sterna.security.passwords import Lane

PREFIX = "sternat1"
_TOKEN = re.compile(r"sternat1\.(?P<id>[0-9a-f]{16})\.(?P<secret>[A-Za-z0-9_-]{43})")


class Accounts:
    """The records below `state`, in `users` and `tokens`. `host` is the name of this one."""

    def __init__(self, state: Path, host: str) -> None:
        self._host = host
        self._users = Store(state / "users", UserRecord, key_of=lambda one: one.name)
        self._tokens = Store(state / "tokens", TokenRecord, key_of=lambda one: one.id)
        self.lane = Lane(host)
        users, damaged_users = self._users.load()
        tokens, damaged_tokens = self._tokens.load()
        self.users: dict[str, UserRecord] = users
        self.tokens: dict[str, TokenRecord] = tokens  # by id
        self.damaged = [*damaged_users, *damaged_tokens]
        self._prints: dict[str, str] = {}  # names, by fingerprint
        self._followers: list[Callable[[str], None]] = []
        self._lock = asyncio.Lock()
        self._index()

    # ---- who -------------------------------------------------------------------------------

    def user(self, name: str) -> UserRecord:
        """Raises UserNotFound."""
        if name not in self.users:
            raise UserNotFound(host=self._host, user=name)
        return self.users[name]

    def by_certificate(self, fingerprint: str) -> UserRecord | None:
        """Whoever shows that certificate."""
        return self.users.get(self._prints.get(fingerprint, ""))

    def by_kerberos(self, principal: str) -> UserRecord | None:
        """Whom a ticket of `principal` proves."""
        if not principal:
            return None
        return next((one for one in self.users.values() if one.kerberos == principal), None)

    def by_token(self, text: str) -> TokenRecord | None:
        """Whose secret `text` holds, if it counts now."""
        parts = _TOKEN.fullmatch(text)
        found = self.token(parts["id"]) if parts else None
        if parts is None or found is None:
            return None
        return found if hmac.compare_digest(_digest(parts["secret"]), found.digest) else None

    def token(self, key: str) -> TokenRecord | None:
        """By its id, if it counts now."""
        found = self.tokens.get(key)
        return found if found is not None and clock.now() < found.expires else None

    @property
    def certificates(self) -> Iterable[str]:
        """PEM of all programs: TLS must let them in to be asked who they are."""
        return [pem for user in self.users.values() for pem in user.certificates]

    def follow(self, follower: Callable[[str], None]) -> None:
        """`follower` is called after each change; with the user's name if it is one's, else ""."""
        self._followers.append(follower)

    # ---- users -----------------------------------------------------------------------------

    async def create_user(self, wishes: UserWishes) -> UserRecord:
        """Raises UserExists, CertificateTaken, PrincipalTaken, BadSpec, StateNotWritten."""
        phc = await self.lane.make(wishes.password) if wishes.password else ""
        async with self._lock:
            if wishes.name in self.users:
                raise UserExists(host=self._host, user=wishes.name)
            self._require_free(wishes.name, wishes.certificates, wishes.kerberos)
            record = UserRecord(
                name=wishes.name,
                role=wishes.role,
                tag=wishes.tag,
                password=phc,
                certificates=wishes.certificates,
                kerberos=wishes.kerberos,
                created=clock.now(),
            )
            return await self._write(record)

    async def change_user(self, name: str, changes: UserChanges) -> UserRecord:
        """Raises UserNotFound, CertificateTaken, PrincipalTaken, BadSpec, StateNotWritten."""
        given = {one.name: getattr(changes, one.name) for one in fields(changes)}
        async with self._lock:
            self._require_free(name, changes.certificates or (), changes.kerberos or "")
            wanted = {key: value for key, value in given.items() if value is not None}
            return await self._write(replace(self.user(name), **wanted))

    async def set_password(self, name: str, wishes: PasswordWishes) -> UserRecord:
        """Raises UserNotFound, StateNotWritten."""
        self.user(name)
        phc = await self.lane.make(wishes.password)
        async with self._lock:
            return await self._write(replace(self.user(name), password=phc))

    async def delete_user(self, name: str) -> None:
        """Raises UserNotFound, StateNotWritten."""
        async with self._lock:
            self.user(name)
            await self._users.delete(name)
            del self.users[name]
            self._changed(name)

    async def _write(self, record: UserRecord) -> UserRecord:
        await self._users.write(record.name, record)
        self.users[record.name] = record
        self._changed(record.name)
        return record

    def _require_free(self, name: str, certificates: Iterable[str], kerberos: str) -> None:
        known = self.by_kerberos(kerberos)
        if known is not None and known.name != name:
            raise PrincipalTaken(principal=kerberos, owner=known.name)
        for pem in certificates:
            try:
                owner = self.by_certificate(identity.fingerprint(pem))
            except ValueError as error:
                raise BadSpec(where="certificates", reason=str(error)) from error
            if owner is not None and owner.name != name:
                raise CertificateTaken(owner=owner.name, user=name)

    # ---- tokens ----------------------------------------------------------------------------

    async def create_token(self, wishes: TokenWishes, by: str) -> tuple[str, TokenRecord]:
        """A new one, and its text, which nobody can tell again. Raises APITokenExists, StateNotWritten."""
        secret = secrets.token_urlsafe(32)
        async with self._lock:
            if any(one.name == wishes.name for one in self.tokens.values()):
                raise APITokenExists(host=self._host, token=wishes.name)
            record = TokenRecord(
                id=secrets.token_hex(8),
                name=wishes.name,
                role=Role(wishes.role),
                tag=wishes.tag,
                digest=_digest(secret),
                created=clock.now(),
                expires=clock.later(wishes.expires_s),
                by=by,
            )
            await self._tokens.write(record.id, record)
            self.tokens[record.id] = record
        return f"{PREFIX}.{record.id}.{secret}", record

    async def revoke(self, name: str) -> None:
        """Raises APITokenNotFound, StateNotWritten."""
        async with self._lock:
            found = next((one for one in self.tokens.values() if one.name == name), None)
            if found is None:
                raise APITokenNotFound(host=self._host, token=name)
            await self._tokens.delete(found.id)
            del self.tokens[found.id]
            self._changed("")

    # ---- after a change --------------------------------------------------------------------

    def _index(self) -> None:
        self._prints = {}
        for user in self.users.values():
            for pem in user.certificates:
                try:
                    self._prints[identity.fingerprint(pem)] = user.name
                except ValueError:  # a record that somebody has written by hand
                    continue

    def _changed(self, user: str) -> None:
        self._index()
        for follower in self._followers:
            follower(user)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
