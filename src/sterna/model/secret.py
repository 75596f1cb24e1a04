"""Guardians: hosts' public keys for which the keys of VMs are sealed. No I/O."""

from __future__ import annotations

from dataclasses import dataclass

from sterna.model.disk import STRICT
from sterna.model.vm import require_name


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardianRecord:
    """Of another host, as an administrator has imported it. Body of POST /v1/guardians."""

    __pydantic_config__ = STRICT

    name: str
    key: str  # X25519, base64

    def __post_init__(self) -> None:
        require_name(self.name, "a guardian")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardianWishes:
    """Body of POST /v1/vms/{vm}:authorize and :revoke."""

    __pydantic_config__ = STRICT

    guardian: str
