"""What hosts know of each other, and say to each other to begin with. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from sterna.model.access import Role
from sterna.model.disk import STRICT
from sterna.model.vm import require_name

EXPIRES_S = 600.0  # of a token, unless the administrator says otherwise
MAX_EXPIRES_S = 86400.0
MAX_PEM = 8192
PeerRole = Literal["none", "viewer", "operator", "migrator", "admin"]
_INVITATION = re.compile(r"[0-9a-f]{16}")
_PROOF = re.compile(r"[0-9a-f]{64}")


def require_url(url: str) -> None:
    """ValueError unless it is https://ADDRESS:PORT and nothing more."""
    parts = urlsplit(url)
    if (
        parts.scheme != "https"
        or not parts.hostname
        or not parts.port
        or url != f"https://{parts.netloc}"
        or "@" in parts.netloc
        or not url.isprintable()
    ):
        raise ValueError(f"{url!r} is not https://ADDRESS:PORT")


def _require_pem(what: str, pem: str) -> None:
    if len(pem) > MAX_PEM:
        raise ValueError(f"{what} is longer than {MAX_PEM} characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRecord:
    """A host that this one trusts: who talks TLS with its key is that host.

    `next` is the certificate that it has announced; both count until it has shown it.
    """

    __pydantic_config__ = STRICT

    name: str  # as it calls itself
    url: str  # https://ADDRESS:PORT
    certificate: str  # PEM
    next: str = ""  # PEM; empty: none
    since: str = ""  # when the two began to trust each other
    role: PeerRole = "admin"  # what who speaks for that host may do here; "none": only move VMs

    def __post_init__(self) -> None:
        require_name(self.name, "a host")
        require_url(self.url)
        _require_pem("certificate", self.certificate)
        _require_pem("next", self.next)

    @property
    def known_role(self) -> Role | None:
        """None: it may do what moves between the two hosts need, and nothing else."""
        return None if self.role == "none" else Role(self.role)


@dataclass(frozen=True, slots=True, kw_only=True)
class InviteWishes:
    """Body of POST /v1/invitations."""

    __pydantic_config__ = STRICT

    expires_s: float = EXPIRES_S
    address: str = ""  # of this host, as others reach it; empty: the listener's

    def __post_init__(self) -> None:
        if not 1 <= self.expires_s <= MAX_EXPIRES_S:
            raise ValueError(f"expires_s must be between 1 and {MAX_EXPIRES_S:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinWishes:
    """Body of POST /v1/peers."""

    __pydantic_config__ = STRICT

    token: str = field(repr=False)
    address: str = ""  # of this host, as the other reaches it; empty: the listener's


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerChanges:
    """Body of PATCH /v1/peers/{name}. What is left out stays as it is."""

    __pydantic_config__ = STRICT

    url: str | None = None
    role: PeerRole | None = None

    def __post_init__(self) -> None:
        if self.url is None and self.role is None:
            raise ValueError("say what shall change: url, role")
        if self.url is not None:
            require_url(self.url)


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateWishes:
    """Body of POST /v1/host:rotate. `force`: even if some peers cannot be told."""

    __pydantic_config__ = STRICT

    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinRequest:
    """Joiner to inviter: what it wants to be known by, and the proof that it was given the token.

    `proof` is a MAC of everything else here and of both fingerprints, by the token's secret.
    """

    __pydantic_config__ = STRICT

    invitation: str
    name: str
    url: str
    certificate: str
    proof: str = field(repr=False)

    def __post_init__(self) -> None:
        if not _INVITATION.fullmatch(self.invitation):
            raise ValueError("invitation is not 16 hexadecimal digits")
        if not _PROOF.fullmatch(self.proof):
            raise ValueError("proof is not 64 hexadecimal digits")
        PeerRecord(name=self.name, url=self.url, certificate=self.certificate)


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """A host to its peers: the certificate that it will show from some moment on."""

    __pydantic_config__ = STRICT

    certificate: str

    def __post_init__(self) -> None:
        _require_pem("certificate", self.certificate)
