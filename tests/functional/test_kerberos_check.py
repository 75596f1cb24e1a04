"""`sterna kerberos check` against a real Active Directory (Samba) and a real MIT KDC.

Each row really makes a situation, the command names it, the commands that it prints are carried out,
and then all is well.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from functional import realms
from functional.realms import HERE, KDC, PASSWORD, THERE, USER, Domain, Realm

pytestmark = pytest.mark.functional
MACHINE, SERVICE, OTHER = "hv-a$", f"sterna/{HERE}", f"sterna/{THERE}"


@pytest.fixture(scope="module")
def ad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Domain]:
    with realms.domain(tmp_path_factory.mktemp("ad"), f"krb-{uuid.uuid4().hex[:8]}") as found:
        yield found


@pytest.fixture(scope="module")
def mit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KDC]:
    with realms.kdc(tmp_path_factory.mktemp("mit")) as found:
        yield found


def check(
    realm: Realm, *arguments: str, before: tuple[str, ...] = (), **env: str
) -> dict[str, Any]:
    """The report, as a program gets it."""
    done = realm.run(
        *before, sys.executable, "-m", "sterna.cli.main", "kerberos", "check", THERE,
        "--here", HERE, "--keytab", str(realm.keytab), "-o", "json", *arguments, **env,
    )  # fmt: skip
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == {"well": 0, "warned": 10, "blocked": 3}[report["outcome"]]
    return report


def obey(realm: Realm, command: str) -> None:
    """What was printed, where it belongs: samba-tool and kadmin on the server, all else on hv-a."""
    program, *arguments = shlex.split(command)
    if program == "sudo":
        program, *arguments = arguments
    if program == "samba-tool" and isinstance(realm, Domain):
        realm.tool(*arguments)
    elif program == "kadmin" and isinstance(realm, KDC):
        realm.admin(arguments[1])
    elif program == "scp":
        shutil.copy(realm.folder / arguments[0], arguments[1].partition(":")[2])
        (realm.folder / arguments[0]).unlink()
    elif program == "kinit":
        options = [one for one in arguments if one.startswith("-")]
        realm.log_in(*options)
    else:
        done = realm.run(program, *arguments)
        assert done.returncode == 0, f"{command}: {done.stderr}"


def roll(ad: Domain) -> None:
    """The password of hv-a changes, and nobody tells its keytab."""
    ad.tool("user", "setpassword", MACHINE, "--newpassword=Another!1x")
    ad.log_in()


def sensitive(ad: Domain) -> None:
    ad.tool("user", "sensitive", USER, "on")
    ad.log_in()


def protected(ad: Domain) -> None:
    ad.tool("group", "addmembers", "Protected Users", USER)
    ad.log_in()


def only_short(ad: Domain) -> None:
    ad.tool("spn", "delete", OTHER, "hv-b$")
    ad.tool("spn", "add", "sterna/hv-b", "hv-b$")


def delegated_short(ad: Domain) -> None:
    ad.tool("delegation", "del-service", MACHINE, OTHER)
    ad.tool("delegation", "add-service", MACHINE, "sterna/hv-b")


def elsewhere(ad: Domain) -> None:
    ad.tool("spn", "delete", SERVICE, MACHINE)
    ad.tool("spn", "add", SERVICE, "hv-b$")
    ad.log_in()


IN_AD: dict[str, Callable[[Domain], object]] = {
    "kerberos.no-ticket": lambda ad: ad.run("kdestroy"),
    "kerberos.ticket-not-forwardable": lambda ad: ad.log_in("-F"),
    "kerberos.user-revoked": lambda ad: ad.tool("user", "disable", USER),
    "kerberos.user-sensitive": sensitive,
    "kerberos.user-protected": protected,
    "kerberos.keytab-missing": lambda ad: ad.keytab.unlink(),
    "kerberos.keytab-damaged": lambda ad: ad.keytab.write_bytes(b"\x05\x02\0\0\0\x40cut"),
    "kerberos.keytab-other-host": lambda ad: ad.export("hv-b$", OTHER),
    "kerberos.keytab-outdated": roll,
    "kerberos.keytab-lacks-account": lambda ad: ad.export(SERVICE),
    "kerberos.account-disabled": lambda ad: ad.tool("user", "disable", MACHINE),
    "kerberos.service-missing": lambda ad: ad.tool("spn", "delete", OTHER, "hv-b$"),
    "kerberos.service-short": only_short,
    "kerberos.service-duplicate": lambda ad: ad.modify(
        "hv-a", f"add: servicePrincipalName\nservicePrincipalName: {OTHER}", is_raw=True
    ),
    "kerberos.service-elsewhere": elsewhere,
    "kerberos.delegation-missing": lambda ad: ad.tool("delegation", "del-service", MACHINE, OTHER),
    "kerberos.delegation-short": delegated_short,
    "kerberos.delegation-unconstrained": lambda ad: ad.tool(
        "delegation", "for-any-service", MACHINE, "on"
    ),
}


def test_what_is_well_is_called_well(ad: Domain, mit: KDC) -> None:
    assert check(ad)["findings"] == []
    assert check(mit, "--service", "sterna")["findings"][0]["id"] == "kerberos.delegation-refused"


@pytest.mark.parametrize("situation", IN_AD)
def test_a_situation_is_named_and_its_commands_mend_it(ad: Domain, situation: str) -> None:
    ad.log_in()
    assert check(ad)["outcome"] == "well"
    IN_AD[situation](ad)

    report = check(ad)

    assert [one["id"] for one in report["findings"]] == [situation], report
    for command in report["findings"][0]["commands"]:
        obey(ad, command)
    ad.log_in()  # tickets that were given before say what was true then
    assert check(ad)["findings"] == []


def test_an_hour_that_is_wrong_is_told(ad: Domain) -> None:
    ad.log_in()
    report = check(ad, before=("faketime", "-f", "+600s"))
    assert report["findings"][0]["id"] == "kerberos.clock", report
    assert check(ad)["outcome"] == "well"


def test_a_ticket_that_is_over(mit: KDC) -> None:
    mit.log_in("-l", "1s")
    deadline = time.monotonic() + 20
    while mit.run("klist", "-s").returncode == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)

    report = check(mit)

    assert [one["id"] for one in report["findings"]] == ["kerberos.ticket-expired"]
    mit.log_in()
    assert check(mit)["findings"][0]["id"] == "kerberos.delegation-refused"


IN_MIT: dict[str, tuple[Callable[[KDC], object], Callable[[KDC], object]]] = {
    "kerberos.service-missing": (
        lambda mit: mit.admin(f"delprinc -force {SERVICE}"),
        lambda mit: (mit.keytab.unlink(), mit.admin(f"ktadd -k {mit.keytab} {SERVICE}")),
    ),
    "kerberos.keytab-outdated": (lambda mit: mit.admin(f"cpw -randkey {SERVICE}"), lambda _: None),
    "kerberos.account-password": (
        lambda mit: mit.admin(f"modprinc -pwexpire yesterday {SERVICE}"),
        lambda _: None,
    ),
    "kerberos.keytab-unreadable": (
        lambda mit: (mit.keytab.rename(mit.folder / "aside"), mit.keytab.mkdir()),
        lambda mit: (mit.keytab.rmdir(), (mit.folder / "aside").rename(mit.keytab)),
    ),
}


@pytest.mark.parametrize("situation", IN_MIT)
def test_a_situation_of_another_realm(mit: KDC, situation: str) -> None:
    breaks, mends = IN_MIT[situation]
    mit.log_in()
    breaks(mit)

    report = check(mit)

    assert [one["id"] for one in report["findings"]] == [situation], report
    for command in report["findings"][0]["commands"]:
        obey(mit, command)
    mends(mit)
    mit.log_in()
    assert check(mit)["findings"][0]["id"] == "kerberos.delegation-refused"


@pytest.mark.parametrize(
    ("situation", "config"),
    [
        ("kerberos.no-realm", "[libdefaults]\n dns_lookup_realm = false\n"),
        ("kerberos.no-kdc", "[libdefaults]\n default_realm = MIT.TEST\n dns_lookup_kdc = false\n"),
        (
            "kerberos.kdc-silent",
            realms.CONFIG.format(realm="MIT.TEST", kdc="127.0.0.1:1"),
        ),
    ],
)
def test_this_machine_is_not_configured(
    mit: KDC, tmp_path: Path, situation: str, config: str
) -> None:
    mit.log_in()
    file = tmp_path / "krb5.conf"
    file.write_text(config)
    env = {"KRB5_CONFIG": str(file)}
    if situation == "kerberos.no-realm":
        env["KRB5CCNAME"] = str(tmp_path / "none")
    report = check(mit, **env)
    assert [one["id"] for one in report["findings"]] == [situation], report


def test_no_password_is_printed(ad: Domain) -> None:
    assert PASSWORD not in json.dumps(check(ad))
