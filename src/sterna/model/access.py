"""Who may do what here: roles, and those who have them. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from sterna.model.disk import STRICT
from sterna.model.vm import require_name

MIN_PASSWORD, MAX_PASSWORD = 12, 256  # characters, bytes
MAX_CERTIFICATES = 16  # of one user
MAX_PEM = 8192
TOKEN_S = 90 * 86400.0  # how long a token lasts, unless the administrator says otherwise
MAX_TOKEN_S = 3660 * 86400.0
MAX_REASON = 200  # characters
_HASH = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[0-9a-f]{16}")
_KERBEROS = re.compile(r"[^@\s]{1,200}@[^@\s]{1,200}")


class Role(StrEnum):
    """Each may do all that those before it may.

    A viewer looks. An operator makes, starts, stops and changes VMs. A migrator moves VMs and
    disks, and empties hosts. An admin changes the host itself: whom it trusts, who may do what, its
    pools, switches and settings, and reads and writes files of the host by their paths.
    """

    VIEWER = "viewer"
    OPERATOR = "operator"
    MIGRATOR = "migrator"
    ADMIN = "admin"

    def covers(self, needed: Role) -> bool:
        """Whether who has this role may do what `needed` may."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


Kind = Literal["local", "user", "token", "host", "guest", "nobody"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks, as proven. A `tag` limits the role to VMs that have it; empty: all of the host.

    `key` is what it was proven by (a session, a token's id, a fingerprint); no secret.
    """

    kind: Kind
    name: str = ""
    role: Role | None = None
    tag: str = ""
    key: str = ""

    @property
    def text(self) -> str:
        """As the audit and operations name it: alice, token:ci, host:hv-b, local:root, nobody."""
        if self.kind == "user":
            return self.name
        return f"{self.kind}:{self.name}" if self.name else self.kind

    @property
    def grant(self) -> str:
        """Its role in words."""
        if self.role is None:
            return "no role"
        return f"the role {self.role}" + (f" for VMs tagged {self.tag}" if self.tag else "")

    def has(self, needed: Role) -> bool:
        """Whether its role is enough, for VMs that it may see."""
        return self.role is not None and self.role.covers(needed)


def _require_kerberos(principal: str) -> None:
    if principal and not _KERBEROS.fullmatch(principal):
        raise ValueError("a Kerberos principal is NAME@REALM")


def _require_tag(tag: str) -> None:
    if tag:
        require_name(tag, "a tag")


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRecord:
    """A person, or a program with a certificate. `password` is an Argon2id hash; empty: none."""

    __pydantic_config__ = STRICT

    name: str
    role: Role
    tag: str = ""  # of the VMs that the role is for; empty: all
    password: str = field(default="", repr=False)
    certificates: tuple[str, ...] = ()  # PEM; who shows one of them is this user
    kerberos: str = ""  # principal, with its realm; who shows a ticket of it is this user
    created: str = ""

    def __post_init__(self) -> None:
        require_name(self.name, "a user")
        _require_tag(self.tag)
        _require_kerberos(self.kerberos)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """An API token: its secret is known to its holder alone."""

    __pydantic_config__ = STRICT

    id: str
    name: str
    role: Role
    tag: str = ""
    digest: str = field(repr=False)  # SHA-256 of the secret, which has 256 random bits
    created: str = ""
    expires: str = ""
    by: str = ""

    def __post_init__(self) -> None:
        require_name(self.name, "a token")
        _require_tag(self.tag)
        if not _ID.fullmatch(self.id) or not _HASH.fullmatch(self.digest):
            raise ValueError("id or digest is not one")


def require_password(password: str) -> None:
    """ValueError unless it may be one; it never repeats it."""
    if len(password) < MIN_PASSWORD or len(password.encode()) > MAX_PASSWORD:
        raise ValueError(
            f"a password has {MIN_PASSWORD} characters at least, {MAX_PASSWORD} bytes at most"
        )


def _require_pems(certificates: tuple[str, ...]) -> None:
    if len(certificates) > MAX_CERTIFICATES or any(len(one) > MAX_PEM for one in certificates):
        raise ValueError(
            f"at most {MAX_CERTIFICATES} certificates of at most {MAX_PEM} characters each"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UserWishes:
    """Body of POST /v1/users. Without a password, a certificate or a ticket proves the user."""

    __pydantic_config__ = STRICT

    name: str
    role: Role
    tag: str = ""
    password: str = field(default="", repr=False)
    certificates: tuple[str, ...] = ()
    kerberos: str = ""

    def __post_init__(self) -> None:
        require_name(self.name, "a user")
        _require_tag(self.tag)
        _require_kerberos(self.kerberos)
        _require_pems(self.certificates)
        if self.password:
            require_password(self.password)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserChanges:
    """Body of PATCH /v1/users/{name}. What is left out stays as it is. `tag` empty: all VMs."""

    __pydantic_config__ = STRICT

    role: Role | None = None
    tag: str | None = None
    certificates: tuple[str, ...] | None = None
    kerberos: str | None = None  # empty: no ticket proves the user

    def __post_init__(self) -> None:
        if (self.role, self.tag, self.certificates, self.kerberos) == (None, None, None, None):
            raise ValueError("say what shall change: role, tag, certificates, kerberos")
        _require_tag(self.tag or "")
        _require_kerberos(self.kerberos or "")
        _require_pems(self.certificates or ())


@dataclass(frozen=True, slots=True, kw_only=True)
class PasswordWishes:
    """Body of PUT /v1/users/{name}/password. `current` is asked of all but administrators."""

    __pydantic_config__ = STRICT

    password: str = field(repr=False)
    current: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        require_password(self.password)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenWishes:
    """Body of POST /v1/tokens."""

    __pydantic_config__ = STRICT

    name: str
    role: Role
    tag: str = ""
    expires_s: float = TOKEN_S

    def __post_init__(self) -> None:
        require_name(self.name, "a token")
        _require_tag(self.tag)
        if not 1 <= self.expires_s <= MAX_TOKEN_S:
            raise ValueError(f"expires_s must be between 1 and {MAX_TOKEN_S:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogIn:
    """Body of POST /v1/sessions. Whatever is no user's name is nobody's, not an error of form."""

    __pydantic_config__ = STRICT

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """Log-ins that failed, by whom they were for or where they came from (hashes)."""

    __pydantic_config__ = STRICT

    count: dict[str, int] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)  # seconds since 1970
