"""What an Active Directory says of accounts and services, asked over LDAP with the caller's ticket.

Asked by OpenLDAP's `ldapsearch`, which signs and seals as directories demand. A directory that cannot be
asked is None and never an error: what it would have told is not known then.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

ASK_S = 10
_UNCONSTRAINED = 0x80000  # userAccountControl: TRUSTED_FOR_DELEGATION
_SENSITIVE = 0x100000  # NOT_DELEGATED
_DISABLED = 0x2
_PROTECTED = "cn=protected users,"
_ATTRIBUTES = (
    "sAMAccountName",
    "servicePrincipalName",
    "msDS-AllowedToDelegateTo",
    "userAccountControl",
    "memberOf",
    "msDS-KeyVersionNumber",
)


@dataclass(frozen=True, slots=True)
class Account:
    """A user or a computer."""

    name: str
    services: tuple[str, ...] = ()
    delegates_to: tuple[str, ...] = ()
    control: int = 0
    groups: tuple[str, ...] = ()
    key_version: int | None = None

    @property
    def is_disabled(self) -> bool:
        """Nobody can log on with it."""
        return bool(self.control & _DISABLED)

    @property
    def is_sensitive(self) -> bool:
        """Marked as one that cannot be delegated."""
        return bool(self.control & _SENSITIVE)

    @property
    def is_protected(self) -> bool:
        """A member of Protected Users."""
        return any(group.lower().startswith(_PROTECTED) for group in self.groups)

    @property
    def is_unconstrained(self) -> bool:
        """Trusted for delegation to any service."""
        return bool(self.control & _UNCONSTRAINED)


class Directory:
    """One that answers. Make it with `find`."""

    def __init__(self, server: str, root: dict[str, list[str]], seconds_ahead: float) -> None:
        self.server = server
        self.seconds_ahead = seconds_ahead  # its clock, to ours
        self.is_samba = any("samba" in one.lower() for one in root.get("vendorname", ()))
        self._base = root["defaultnamingcontext"][0]

    def account(self, name: str) -> Account | None:
        """Whose name for logging on it is; a computer's ends with a dollar sign."""
        found = self._search(f"(sAMAccountName={_quoted(name)})")
        return found[0] if found else None

    def holders(self, service: str) -> list[Account]:
        """Who has registered the service name."""
        return self._search(f"(servicePrincipalName={_quoted(service)})")

    def _search(self, what: str) -> list[Account]:
        answer = _ask(self.server, "-b", self._base, "-s", "sub", what, *_ATTRIBUTES)
        return [_account(entry) for entry in answer or () if "samaccountname" in entry]


def find(domain: str) -> Directory | None:
    """The directory of the domain, at a server that DNS names (SRV)."""
    if shutil.which("ldapsearch") is None:
        return None
    before = datetime.now(UTC)
    base = ",".join(f"dc={part}" for part in domain.split("."))
    server = f"ldap:///{quote(base, safe='')}"
    about = ("defaultNamingContext", "currentTime", "vendorName")
    answer = _ask(server, "-b", "", "-s", "base", "(objectClass=*)", *about)
    after = datetime.now(UTC)
    root = answer[0] if answer else {}
    if "defaultnamingcontext" not in root:
        return None
    now = root.get("currenttime", [""])[0]
    ahead = 0.0
    if now:
        there = datetime.strptime(now[:14], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
        ahead = (there - (before + (after - before) / 2)).total_seconds()
    return Directory(server, root, ahead)


def _ask(server: str, *query: str) -> list[dict[str, list[str]]] | None:
    command = ["ldapsearch", "-LLL", "-N", "-Q", "-Y", "GSSAPI", "-o", "ldif-wrap=no"]
    command += ["-o", f"nettimeout={ASK_S}", "-H", server, *query]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=2 * ASK_S, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return list(_records(answer.stdout.splitlines()))


def _records(lines: Sequence[str]) -> Iterator[dict[str, list[str]]]:
    """Entries of LDIF (RFC 2849), names of attributes in small letters."""
    entry: dict[str, list[str]] = {}
    for line in (*lines, ""):
        if not line:
            if entry:
                yield entry
            entry = {}
        elif not line.startswith("#"):
            name, _, value = line.partition(":")
            if value.startswith(":"):
                value = base64.b64decode(value[1:]).decode(errors="replace")
            entry.setdefault(name.lower(), []).append(value.strip())


def _account(entry: dict[str, list[str]]) -> Account:
    version = entry.get("msds-keyversionnumber")
    return Account(
        name=entry["samaccountname"][0],
        services=tuple(entry.get("serviceprincipalname", ())),
        delegates_to=tuple(entry.get("msds-allowedtodelegateto", ())),
        control=int(entry.get("useraccountcontrol", ["0"])[0]),
        groups=tuple(entry.get("memberof", ())),
        key_version=int(version[0]) if version else None,
    )


def _quoted(value: str) -> str:
    """As a filter's value (RFC 4515)."""
    return "".join(f"\\{ord(c):02x}" if c in "\\*()\0" else c for c in value)
