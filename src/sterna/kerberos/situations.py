"""What can be wrong with Kerberos between two hosts, each with the command that mends it. Pure.

The commands are for the realm that was found: `windows` (to be typed in PowerShell on a domain controller or with
RSAT), `samba` (on the Samba domain controller, in a shell) or `mit` (kadmin). Those that are the same
everywhere are `any`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Realm(StrEnum):
    """Who keeps the accounts."""

    WINDOWS = "windows"
    SAMBA = "samba"
    MIT = "mit"


class Weight(StrEnum):
    """As of a check before a move."""

    BLOCKER = "blocker"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One situation that was found, with the names filled in."""

    id: str
    severity: str
    finding: str  # a sentence
    commands: tuple[str, ...]  # in this order


@dataclass(frozen=True, slots=True)
class Situation:
    """`says` and the commands are templates of `Names`."""

    says: str
    any: tuple[str, ...] = ()
    windows: tuple[str, ...] = ()
    samba: tuple[str, ...] = ()
    mit: tuple[str, ...] = ()
    weight: Weight = Weight.BLOCKER


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Who and what a situation is about; empty what is not known."""

    realm: Realm = Realm.MIT
    domain: str = ""  # the Kerberos realm
    user: str = ""  # with its realm
    account: str = ""  # of this host, as the directory has it: hv-a$
    here: str = ""  # service name of this host: sterna/hv-a.lab.test
    there: str = ""  # and of the other
    service: str = ""  # the one of the two that a situation is about
    owner: str = ""  # the account that should have it
    keytab: str = ""
    more: Mapping[str, str] = field(default_factory=dict)


_KEYTAB_AD = (
    (
        "ktpass -princ {here}@{domain} -mapuser '{account}' -crypto AES256-SHA1 "
        "-ptype KRB5_NT_PRINCIPAL -pass * -out sterna.keytab"
    ),
    "scp sterna.keytab root@{host}:{keytab}",
)
_KEYTAB_SAMBA = (
    "samba-tool domain exportkeytab sterna.keytab --principal='{account}'",
    "samba-tool domain exportkeytab sterna.keytab --principal='{here}'",
    "scp sterna.keytab root@{host}:{keytab}",
)
_KEYTAB_MIT = ("kadmin -q 'ktadd -k {keytab} {here}'",)
_SPN_WINDOWS = ("setspn -S {service} '{owner}'",)
_SPN_SAMBA = ("samba-tool spn add '{service}' '{owner}'",)
_SPN_MIT = ("kadmin -q 'addprinc -randkey {service}'",)
_DELEGATE_WINDOWS = (
    "Set-ADComputer -Identity '{account}' -Add @{{'msDS-AllowedToDelegateTo'='{there}'}}",
)
_DELEGATE_SAMBA = ("samba-tool delegation add-service '{account}' '{there}'",)
_DELEGATE_MIT = ("kadmin -q 'modprinc +ok_to_auth_as_delegate {here}'",)
_NEW_TICKETS = ("kdestroy", "kinit {user}")

SITUATIONS: dict[str, Situation] = {
    # ---- this machine --------------------------------------------------------------------
    "kerberos.no-library": Situation(
        "python-gssapi is not installed here, and nothing of Kerberos works without it",
        any=("pip install 'sterna[kerberos]'",),
    ),
    "kerberos.no-realm": Situation(
        "this machine belongs to no realm: there is no default_realm in {config}",
        any=("printf '[libdefaults]\\n default_realm = EXAMPLE.COM\\n' >> {config}",),
    ),
    "kerberos.no-kdc": Situation(
        "no key distribution center of realm {domain} is known here: neither {config} nor DNS names one",
        any=("host -t SRV _kerberos._udp.{domain}",),
    ),
    "kerberos.kdc-silent": Situation(
        "no key distribution center of realm {domain} answers",
        any=("KRB5_TRACE=/dev/stderr kinit {user}",),
    ),
    "kerberos.clock": Situation(
        "the clocks of this host and of the realm are {seconds} s apart; Kerberos allows 300",
        any=("chronyc makestep",),
    ),
    # ---- the user ------------------------------------------------------------------------
    "kerberos.no-ticket": Situation("you have no ticket of a realm", any=("kinit",)),
    "kerberos.ticket-expired": Situation("the ticket of {user} is over", any=("kinit {user}",)),
    "kerberos.ticket-not-forwardable": Situation(
        "the ticket of {user} is not forwardable, so that no host can act in this name",
        any=("kdestroy", "kinit -f {user}"),
    ),
    "kerberos.user-revoked": Situation(
        "the account of {user} is disabled, locked or has expired",
        windows=("Enable-ADAccount -Identity {login}", "Unlock-ADAccount -Identity {login}"),
        samba=("samba-tool user enable {login}", "samba-tool user unlock {login}"),
        mit=("kadmin -q 'modprinc +allow_tix -expire never -unlock {user}'",),
    ),
    "kerberos.user-sensitive": Situation(
        "the account of {user} is sensitive and cannot be delegated, so that no host can act in its name",
        windows=("Set-ADAccountControl -Identity {login} -AccountNotDelegated $false",),
        samba=("samba-tool user sensitive {login} off",),
    ),
    "kerberos.user-protected": Situation(
        "{user} is in the group Protected Users, whose members no host can act for",
        windows=("Remove-ADGroupMember -Identity 'Protected Users' -Members {login}",),
        samba=("samba-tool group removemembers 'Protected Users' {login}",),
    ),
    # ---- this host's keytab and account ----------------------------------------------------
    "kerberos.keytab-missing": Situation(
        "there is no keytab {keytab}, so that this host can read no ticket that it is shown",
        windows=_KEYTAB_AD,
        samba=_KEYTAB_SAMBA,
        mit=_KEYTAB_MIT,
    ),
    "kerberos.keytab-unreadable": Situation(
        "the keytab {keytab} cannot be read: {reason}",
        any=("sudo chown root:root {keytab}", "sudo chmod 600 {keytab}"),
    ),
    "kerberos.keytab-damaged": Situation(
        "{keytab} cannot be used: {reason}",
        windows=_KEYTAB_AD,
        samba=_KEYTAB_SAMBA,
        mit=_KEYTAB_MIT,
    ),
    "kerberos.keytab-other-host": Situation(
        "the keytab {keytab} is another host's: it has keys of {found} and none of {here}",
        windows=_KEYTAB_AD,
        samba=_KEYTAB_SAMBA,
        mit=_KEYTAB_MIT,
    ),
    "kerberos.keytab-outdated": Situation(
        "the keytab {keytab} has old keys (version {found}) of {here}: its password was changed since",
        windows=(*_KEYTAB_AD, "klist purge"),
        samba=(*_KEYTAB_SAMBA, "kdestroy"),
        mit=(*_KEYTAB_MIT, "kdestroy"),
    ),
    "kerberos.keytab-lacks-account": Situation(
        "the keytab {keytab} has keys of {here}, and none of the account {account}: tickets can be read, "
        "but this host gets none of its own",
        windows=_KEYTAB_AD,
        samba=_KEYTAB_SAMBA,
    ),
    "kerberos.keytab-weak": Situation(
        "the keytab {keytab} has only outdated kinds of keys (RC4, DES) for {here}",
        windows=(
            "Set-ADComputer -Identity '{account}' -KerberosEncryptionType AES256",
            *_KEYTAB_AD,
        ),
        samba=(
            "net ads enctypes set '{account}' 24",
            *_KEYTAB_SAMBA,
        ),
        mit=("kadmin -q 'cpw -randkey -e aes256-cts:normal {here}'", *_KEYTAB_MIT),
        weight=Weight.WARNING,
    ),
    "kerberos.account-missing": Situation(
        "the realm has no account {owner} for this host",
        windows=("New-ADComputer -Name {computer}",),
        samba=("samba-tool computer create {computer}",),
        mit=_SPN_MIT,
    ),
    "kerberos.account-disabled": Situation(
        "the account {owner} of this host is disabled",
        windows=("Enable-ADAccount -Identity '{account}'",),
        samba=("samba-tool user enable '{account}'",),
        mit=("kadmin -q 'modprinc +allow_tix -expire never {here}'",),
    ),
    "kerberos.account-password": Situation(
        "the password of the account {owner} of this host has expired",
        windows=("Set-ADAccountPassword -Identity '{account}' -Reset", *_KEYTAB_AD),
        samba=("samba-tool user setpassword '{account}' --random-password", *_KEYTAB_SAMBA),
        mit=("kadmin -q 'modprinc -pwexpire never {here}'",),
    ),
    # ---- services --------------------------------------------------------------------------
    "kerberos.service-missing": Situation(
        "the realm does not know the service {service}",
        windows=_SPN_WINDOWS,
        samba=_SPN_SAMBA,
        mit=_SPN_MIT,
    ),
    "kerberos.service-short": Situation(
        "the service is registered as {short} alone; it is asked for as {service}",
        windows=_SPN_WINDOWS,
        samba=_SPN_SAMBA,
    ),
    "kerberos.service-duplicate": Situation(
        "the service {service} is registered by several accounts: {found}",
        windows=("setspn -D {service} '{other}'",),
        samba=("samba-tool spn delete '{service}' '{other}'",),
    ),
    "kerberos.service-elsewhere": Situation(
        "the service {service} is registered by {found}, not by the account {owner} of that host",
        windows=("setspn -D {service} '{other}'", *_SPN_WINDOWS),
        samba=("samba-tool spn delete '{service}' '{other}'", *_SPN_SAMBA),
    ),
    # ---- delegation ------------------------------------------------------------------------
    "kerberos.delegation-missing": Situation(
        "the account {account} may not act for users at {there}; it may at: {found}",
        windows=_DELEGATE_WINDOWS,
        samba=_DELEGATE_SAMBA,
        mit=_DELEGATE_MIT,
    ),
    "kerberos.delegation-short": Situation(
        "the account {account} may act for users at {short} alone, which is another name than {there}",
        windows=_DELEGATE_WINDOWS,
        samba=_DELEGATE_SAMBA,
    ),
    "kerberos.delegation-refused": Situation(
        "the realm does not let this host act for {user} at {there}, and does not say why",
        mit=(*_DELEGATE_MIT, "kadmin -q 'getprinc {here}'"),
        windows=("Get-ADComputer '{account}' -Properties msDS-AllowedToDelegateTo",),
        samba=("samba-tool delegation show '{account}'",),
    ),
    "kerberos.delegation-unavailable": Situation(
        "this host can read the ticket of {user}, but gets no credential to act with",
        mit=_KEYTAB_MIT,
        windows=_KEYTAB_AD,
        samba=_KEYTAB_SAMBA,
    ),
    "kerberos.delegation-unconstrained": Situation(
        "the account {account} may act for users at every service: whoever takes this host can be anybody",
        windows=("Set-ADComputer -Identity '{account}' -TrustedForDelegation $false",),
        samba=("samba-tool delegation for-any-service '{account}' off",),
        weight=Weight.WARNING,
    ),
    # ---- the rest ----------------------------------------------------------------------------
    "kerberos.refused": Situation(
        "{who} said no when {what}: {reason}", any=("KRB5_TRACE=/dev/stderr kvno {service}",)
    ),
}


def find(situation: str, names: Names, **more: str) -> Finding:
    """The situation of that id with these names. Raises KeyError for a name that it lacks."""
    known = SITUATIONS[situation]
    words = _words(names) | more
    own: tuple[str, ...] = getattr(known, names.realm.value)
    return Finding(
        id=situation,
        severity=known.weight.value,
        finding=known.says.format(**words),
        commands=tuple(one.format(**words) for one in (*known.any, *own)),
    )


def _words(names: Names) -> dict[str, str]:
    service = names.service or names.here
    return {
        "domain": names.domain,
        "user": names.user,
        "login": names.user.partition("@")[0],
        "account": names.account,
        "computer": (names.owner or names.account).rstrip("$"),
        "here": names.here,
        "host": names.here.partition("/")[2],
        "there": names.there,
        "service": service,
        "short": short(service),
        "owner": names.owner or names.account,
        "keytab": names.keytab,
    } | dict(names.more)


def short(service: str) -> str:
    """The service with the host's name alone, without its domain."""
    kind, _, host = service.partition("/")
    return f"{kind}/{host.partition('.')[0]}"
