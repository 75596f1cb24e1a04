"""Kerberos as a move would use it, tried step by step with real tickets; each no is told apart.

    user's ticket -> keytab -> this host's own ticket -> the user's ticket for this host, read with the keytab
    -> this host's ticket for the other one, in the user's name (constrained delegation)

What a KDC refuses is told by its number. Where a number has several causes the directory is asked.
Changes nothing anywhere. Blocking: for a thread, or a program of its own.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sterna.kerberos import directory, keytab, tickets
from sterna.kerberos.directory import Account, Directory
from sterna.kerberos.situations import Finding, Names, Realm, find, short
from sterna.kerberos.tickets import Refusal

SKEW_S = 300  # that Kerberos allows
SERVICE = "sterna"  # class of the service names
_ANYWHERE = {
    tickets.TICKET_EXPIRED: "kerberos.ticket-expired",
    tickets.CLOCK_SKEW: "kerberos.clock",
    tickets.TICKET_EARLY: "kerberos.clock",
    tickets.NO_KDC: "kerberos.no-kdc",
    tickets.KDC_SILENT: "kerberos.kdc-silent",
}
_OF_SERVICE = _ANYWHERE | {tickets.CLIENT_REVOKED: "kerberos.user-revoked"}
_OF_HOST = _ANYWHERE | {
    tickets.NO_SUCH_CLIENT: "kerberos.account-missing",
    tickets.CLIENT_REVOKED: "kerberos.account-disabled",
    tickets.PASSWORD_EXPIRED: "kerberos.account-password",
    tickets.WRONG_KEY: "kerberos.keytab-outdated",
    tickets.BAD_INTEGRITY: "kerberos.keytab-outdated",
}
_NOT_OPENED = {
    tickets.KEY_VERSION,
    tickets.WRONG_KEY,
    tickets.BAD_INTEGRITY,
    tickets.NOT_FOR_US,
    tickets.NO_ENTRY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be looked at."""

    here: str  # this host, as others call it: a full name
    there: str = ""  # the other; empty: this host alone
    service: str = SERVICE
    keytab: str = keytab.DEFAULT


def examine(question: Question) -> Iterator[Finding]:
    """All that is wrong, in the order of the steps; a step that fails ends it, unless the directory tells more."""
    if not tickets.is_installed():
        yield find("kerberos.no-library", Names())
        return
    yield from _Examination(question).run()


class _Examination:
    def __init__(self, question: Question) -> None:
        self._q = question
        self._directory: Directory | None = None
        self._names = Names(
            here=f"{question.service}/{question.here}",
            there=f"{question.service}/{question.there}" if question.there else "",
            account=_account_of(question.here),
            keytab=question.keytab,
            more={"config": os.environ.get("KRB5_CONFIG", "/etc/krb5.conf")},
        )

    def run(self) -> Iterator[Finding]:
        try:
            mine = tickets.mine()
        except Refusal as refusal:
            yield self._of_user(refusal)
            return
        self._meet_realm(mine.principal)
        if mine.lifetime_s <= 0:
            yield self._find("kerberos.ticket-expired")
            return
        yield from self._of_directory()
        try:
            keys = self._keys()
        except _Found as found:
            yield found.finding
            return
        if keys and all(one.encryption in keytab.WEAK for one in keys):
            yield self._find("kerberos.keytab-weak")
        yield from self._of_tickets(mine, keys)

    # ---- the user and the realm --------------------------------------------------------------

    def _of_user(self, refusal: Refusal) -> Finding:
        if refusal.minor in {tickets.TICKET_EXPIRED, tickets.EXPIRED}:
            return self._find("kerberos.ticket-expired", user="you")
        if refusal.minor in {tickets.NO_CACHE, tickets.EMPTY_CACHE}:
            try:
                tickets.default_realm()
            except Refusal:
                return self._find("kerberos.no-realm")
            return self._find("kerberos.no-ticket")
        what = "your ticket was looked for"
        return _told(_ANYWHERE, refusal, self._names, who="this machine", what=what)

    def _meet_realm(self, user: str) -> None:
        domain = user.rpartition("@")[2]
        self._names = replace(self._names, user=user, domain=domain)
        found = self._directory = directory.find(domain.lower())
        if found is not None:
            kind = Realm.SAMBA if found.is_samba else Realm.WINDOWS
            self._names = replace(self._names, realm=kind)

    def _of_directory(self) -> Iterator[Finding]:
        """What it shows without being asked for a reason."""
        found = self._directory
        if found is None:
            return
        if abs(found.seconds_ahead) > SKEW_S:
            yield self._find("kerberos.clock", seconds=f"{abs(found.seconds_ahead):.0f}")
        account = found.account(self._names.account)
        if account is not None and account.is_unconstrained:
            yield self._find("kerberos.delegation-unconstrained")

    # ---- the keytab ----------------------------------------------------------------------------

    def _keys(self) -> list[keytab.Entry]:
        """Of this host. Raises _Found."""
        file = Path(self._q.keytab)
        try:
            entries = keytab.read(file)
        except FileNotFoundError:
            raise _Found(self._find("kerberos.keytab-missing")) from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise _Found(self._find("kerberos.keytab-unreadable", reason=reason)) from error
        except ValueError as error:
            raise _Found(self._find("kerberos.keytab-damaged", reason=str(error))) from error
        own = {self._names.here.lower(), self._names.account.lower()}
        keys = [one for one in entries if one.principal.rpartition("@")[0].lower() in own]
        if not keys:
            found = _list({one.principal for one in entries}) or "nobody"
            raise _Found(self._find("kerberos.keytab-other-host", found=found))
        return keys

    # ---- tickets -------------------------------------------------------------------------------

    def _of_tickets(self, mine: tickets.Mine, keys: list[keytab.Entry]) -> Iterator[Finding]:
        has_account = any(one.principal.partition("@")[0].endswith("$") for one in keys)
        if self._names.there and self._names.realm is not Realm.MIT and not has_account:
            yield self._find("kerberos.keytab-lacks-account")
            return
        try:
            token = tickets.ticket(mine.credential, self._full(self._names.here))
        except Refusal as refusal:
            yield self._of_service(refusal, self._names.here, self._names.account)
            return
        try:
            name = None if has_account else self._full(self._names.here)
            host = tickets.of_host(self._q.keytab, name)
        except Refusal as refusal:
            yield self._of_host(refusal, keys)
            return
        try:
            met = tickets.meet(host, token)
        except Refusal as refusal:
            yield self._of_keys(refusal, keys)
            return
        if self._names.there:
            yield from self._of_delegation(met)

    def _of_delegation(self, met: tickets.Met) -> Iterator[Finding]:
        if met.may_act_for is None:
            yield self._find("kerberos.delegation-unavailable")
            return
        try:
            tickets.ticket(met.may_act_for, self._full(self._names.there))
        except Refusal as refusal:
            if refusal.minor in {tickets.BAD_OPTION, tickets.POLICY}:
                yield self._why_not_delegated()
            else:
                yield self._of_service(refusal, self._names.there, _account_of(self._q.there))

    def _of_service(self, refusal: Refusal, service: str, owner: str) -> Finding:
        """The KDC gives no ticket for that service."""
        about = replace(self._names, service=service, owner=owner)
        if refusal.minor == tickets.NO_SUCH_SERVER:
            return self._why_unknown(about)
        what = f"a ticket for {service} was asked for"
        return _told(_OF_SERVICE, refusal, about, who="the realm", what=what)

    def _why_unknown(self, about: Names) -> Finding:
        """A KDC does not know a service that is missing, and none that several accounts have."""
        if self._directory is not None:
            holders = [one.name for one in self._directory.holders(about.service)]
            if len(holders) > 1:
                others = [one for one in holders if one.lower() != about.owner.lower()]
                return find(
                    "kerberos.service-duplicate", about, found=_list(holders), other=others[0]
                )
            if not holders and self._directory.holders(short(about.service)):
                return find("kerberos.service-short", about)
        return find("kerberos.service-missing", about)

    def _of_host(self, refusal: Refusal, keys: list[keytab.Entry]) -> Finding:
        """The KDC gives this host no ticket of its own."""
        about = replace(self._names, owner=keys[0].principal.partition("@")[0])
        words = {"what": f"{about.owner} asked for a ticket", "found": _versions(keys)}
        return _told(_OF_HOST, refusal, about, who="the realm", **words)

    def _of_keys(self, refusal: Refusal, keys: list[keytab.Entry]) -> Finding:
        """The keytab does not open a ticket for this host."""
        if refusal.minor in _NOT_OPENED:
            return self._not_ours(keys)
        what = "it read your ticket with its keytab"
        return _told(_ANYWHERE, refusal, self._names, who="this host", what=what)

    def _not_ours(self, keys: list[keytab.Entry]) -> Finding:
        """No key opens it: the service is another account's, or the keytab is old."""
        if self._directory is not None:
            holders = [one.name for one in self._directory.holders(self._names.here)]
            if holders and self._names.account.lower() not in (one.lower() for one in holders):
                about = replace(self._names, service=self._names.here, owner=self._names.account)
                return find(
                    "kerberos.service-elsewhere", about, found=_list(holders), other=holders[0]
                )
        return self._find("kerberos.keytab-outdated", found=_versions(keys))

    def _why_not_delegated(self) -> Finding:
        """One number stands for all of these."""
        found = self._directory
        user = found.account(self._names.user.partition("@")[0]) if found is not None else None
        account = found.account(self._names.account) if found is not None else None
        if user is not None and (situation := _hindrance(user)):
            return self._find(situation)
        if _is_forwardable() is False:
            return self._find("kerberos.ticket-not-forwardable")
        if account is None or _may(account, self._names.there):
            return self._find("kerberos.delegation-refused")
        if _may(account, short(self._names.there)):
            return find(
                "kerberos.delegation-short", replace(self._names, service=self._names.there)
            )
        listed = _list(account.delegates_to) or "none"
        return self._find("kerberos.delegation-missing", found=listed)

    # ---- words ---------------------------------------------------------------------------------

    def _find(self, situation: str, **more: str) -> Finding:
        return find(situation, self._names, **more)

    def _full(self, service: str) -> str:
        return f"{service}@{self._names.domain}"


class _Found(Exception):
    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.finding)
        self.finding = finding


def _told(
    known: Mapping[int, str], refusal: Refusal, about: Names, *, who: str, **words: str
) -> Finding:
    """What that number stands for at this step."""
    situation = known.get(refusal.minor, "kerberos.refused")
    reason = f"{refusal.text} (code {refusal.minor})"
    return find(situation, about, who=who, reason=reason, seconds="more than 300", **words)


def _hindrance(user: Account) -> str:
    """What of a user's account keeps hosts from acting in its name; empty: nothing."""
    if user.is_disabled:
        return "kerberos.user-revoked"
    if user.is_protected:
        return "kerberos.user-protected"
    return "kerberos.user-sensitive" if user.is_sensitive else ""


def _account_of(host: str) -> str:
    """The name of a computer's account."""
    return f"{host.partition('.')[0]}$"


def _may(account: Account, service: str) -> bool:
    return service.lower() in (one.lower() for one in account.delegates_to)


def _is_forwardable() -> bool | None:
    """Whether the caller's ticket-granting ticket is; None: not known. GSSAPI does not tell, klist does."""
    try:
        answer = subprocess.run(
            ["klist", "-f"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    is_granting = False
    for line in answer.stdout.splitlines():
        if "Flags:" in line and is_granting:
            return "F" in line.partition("Flags:")[2]
        is_granting = "krbtgt/" in line or (is_granting and line.startswith("\t"))
    return None


def _list(names: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, names)))


def _versions(keys: list[keytab.Entry]) -> str:
    return _list({one.version for one in keys})
