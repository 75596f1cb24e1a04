"""Real Kerberos realms for tests: a Samba AD domain in a namespace of its own, and an MIT KDC on loopback.

Both live in a folder and end with their context, pass or fail.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

READY_S = 60.0
ADDRESS = "10.77.0.10"
REALM, DOMAIN = "LAB.TEST", "lab.test"
HERE, THERE = "hv-a.lab.test", "hv-b.lab.test"
USER, PASSWORD = "alice", "Al1ce!pass"
CONFIG = """[libdefaults]
 default_realm = {realm}
 dns_lookup_kdc = false
 dns_lookup_realm = false
 dns_canonicalize_hostname = false
 rdns = false
 forwardable = true
 udp_preference_limit = 0
[realms]
 {realm} = {{
  kdc = {kdc}
 }}
"""


class Realm:
    """What both have: a configuration, a user with tickets, keytabs."""

    def __init__(self, folder: Path, realm: str, kdc: str, entering: Sequence[str] = ()) -> None:
        self.folder, self.realm, self.entering = folder, realm, list(entering)
        self.keytab = folder / "hv-a.keytab"
        self.config = folder / "krb5.conf"
        self.config.write_text(CONFIG.format(realm=realm, kdc=kdc))
        self.env = {
            **os.environ,
            "KRB5_CONFIG": str(self.config),
            "KRB5CCNAME": str(folder / "tickets"),
            "KRB5RCACHEDIR": str(folder),
        }

    def run(self, *command: str, text: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        """A program on a host of the realm."""
        return subprocess.run(
            [*self.entering, *command],
            input=text,
            capture_output=True,
            text=True,
            env=self.env | env,
            cwd=self.folder,
            timeout=60,
            check=False,
        )

    def log_in(self, *options: str) -> None:
        """The user gets new tickets."""
        done = self.run("kinit", *options, USER, text=f"{PASSWORD}\n")
        assert done.returncode == 0, done.stderr


class Domain(Realm):
    """An Active Directory of Samba's. hv-a may act for users at hv-b."""

    def __init__(self, folder: Path, namespace: str) -> None:
        super().__init__(folder, REALM, ADDRESS, ["ip", "netns", "exec", namespace])
        self._smb = folder / "dc/etc/smb.conf"
        self._ldb = ["-H", str(folder / "dc/private/sam.ldb"), "-s", str(self._smb)]

    def tool(self, *command: str) -> None:
        """samba-tool on the domain controller."""
        where = ["-s", str(self._smb)] if "exportkeytab" in command else self._ldb
        done = self.run("samba-tool", *command, *where)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    def modify(self, computer: str, change: str, *, is_raw: bool = False) -> None:
        """What samba-tool refuses to do: LDIF without its first line. `is_raw`: past all rules, too."""
        text = f"dn: CN={computer},CN=Computers,DC=lab,DC=test\nchangetype: modify\n{change}\n"
        raw = self.folder / "dc/private/sam.ldb.d/DC=LAB,DC=TEST.ldb"
        where = ["-H", str(raw)] if is_raw else self._ldb[:2]
        done = self.run("ldbmodify", *where, text=text)
        assert done.returncode == 0, done.stderr

    def export(self, *principals: str, file: str = "hv-a.keytab") -> None:
        """Write a keytab of these principals anew."""
        (self.folder / file).unlink(missing_ok=True)
        for one in principals:
            self.tool("domain", "exportkeytab", file, f"--principal={one}")


@contextmanager
def domain(folder: Path, namespace: str, *, is_new: bool = True) -> Iterator[Domain]:
    """Provisioned, started, filled; on the loopback of a namespace that has nothing else, unless it is there."""
    etc = Path("/etc/netns") / namespace
    if is_new:
        subprocess.run(["ip", "netns", "add", namespace], check=True)
    controller = None
    try:
        for what in ("link set lo up", f"addr add {ADDRESS}/24 dev lo"):
            subprocess.run(["ip", "-n", namespace, *what.split()], check=True)
        etc.mkdir(parents=True)
        (etc / "resolv.conf").write_text(f"nameserver {ADDRESS}\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{ADDRESS} dc1.lab.test {HERE} {THERE}\n")
        found = Domain(folder, namespace)
        _provision(found, folder)
        controller = _start(found, folder)
        _fill(found)
        _until(lambda: found.run("kinit", USER, text=f"{PASSWORD}\n").returncode == 0, controller)
        _until(
            lambda: found.run("host", "-t", "SRV", f"_ldap._tcp.{DOMAIN}").returncode == 0,
            controller,
        )
        yield found
    finally:
        if controller is not None:
            os.killpg(controller.pid, signal.SIGKILL)
            controller.wait()
        if is_new:
            subprocess.run(["ip", "netns", "delete", namespace], check=True)
        shutil.rmtree(etc, ignore_errors=True)


def _as_controller(*command: str) -> list[str]:
    hostname = 'hostname dc1; mkdir -p /run/samba; mount -t tmpfs x /run/samba; exec "$@"'
    return ["unshare", "--uts", "--mount", "sh", "-c", hostname, "sh", *command]


def _provision(found: Domain, folder: Path) -> None:
    (folder / "empty.conf").touch()  # else the machine's own configuration is merged in
    done = found.run(
        *_as_controller(
            "samba-tool", "domain", "provision", f"--configfile={folder / 'empty.conf'}",
            f"--realm={REALM}", "--domain=LAB", "--server-role=dc", "--dns-backend=SAMBA_INTERNAL",
            "--adminpass=Passw0rd!x", "--host-name=dc1", f"--host-ip={ADDRESS}",
            f"--targetdir={folder / 'dc'}", "--option=interfaces=lo",
            "--option=bind interfaces only=yes",
        )
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    smb = folder / "dc/etc/smb.conf"
    lines = [line for line in smb.read_text().splitlines() if "dns forwarder" not in line]
    at = lines.index("[global]") + 1
    lines.insert(at, "\tserver services = rpc, ldap, cldap, kdc, dns")
    lines.insert(at, "\tdcerpc endpoint servers = drsuapi, samr, lsarpc, netlogon")
    smb.write_text("\n".join(lines) + "\n")


def _start(found: Domain, folder: Path) -> subprocess.Popen[bytes]:
    samba = ["samba", "-F", "--no-process-group", "-M", "single", "--debug-stdout", "-s"]
    with (folder / "samba.log").open("wb") as log:
        return subprocess.Popen(
            [*found.entering, *_as_controller(*samba, str(folder / "dc/etc/smb.conf"))],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _fill(found: Domain) -> None:
    found.tool("domain", "passwordsettings", "set", "--max-pwd-age=0")
    found.tool("spn", "add", "ldap/dc1.lab.test", "dc1$")
    found.tool("user", "create", USER, PASSWORD)
    for number, host in enumerate((HERE, THERE)):
        name = host.partition(".")[0]
        found.tool("computer", "create", name)
        found.tool("user", "setpassword", f"{name}$", f"--newpassword=Secret!{number}x")
        found.modify(
            name, "replace: msDS-SupportedEncryptionTypes\nmsDS-SupportedEncryptionTypes: 24"
        )
        found.tool("spn", "add", f"sterna/{host}", f"{name}$")
    found.tool("delegation", "add-service", "hv-a$", f"sterna/{THERE}")
    found.export("hv-a$", f"sterna/{HERE}")
    found.export("hv-b$", f"sterna/{THERE}", file="hv-b.keytab")


class KDC(Realm):
    """MIT's, with a database of its own."""

    def admin(self, query: str) -> None:
        """kadmin on the KDC itself."""
        done = self.run("kadmin.local", "-q", query)
        assert done.returncode == 0, done.stderr
        assert "kadmin" not in done.stderr, done.stderr


@contextmanager
def kdc(folder: Path) -> Iterator[KDC]:
    """A realm with hv-a, hv-b and a user."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = KDC(folder, "MIT.TEST", f"127.0.0.1:{port}")
    profile = folder / "kdc.conf"
    profile.write_text(
        f"[kdcdefaults]\n kdc_listen = 127.0.0.1:{port}\n kdc_tcp_listen = 127.0.0.1:{port}\n"
        f"[realms]\n MIT.TEST = {{\n  database_name = {folder}/db\n  key_stash_file = {folder}/stash\n"
        f"  acl_file = {folder}/acl\n  supported_enctypes = aes256-cts:normal\n }}\n"
    )
    found.env["KRB5_KDC_PROFILE"] = str(profile)
    assert found.run("kdb5_util", "create", "-s", "-P", "master").returncode == 0
    for query in (
        f"addprinc -pw {PASSWORD} {USER}",
        f"addprinc -randkey sterna/{HERE}",
        f"addprinc -randkey sterna/{THERE}",
        f"ktadd -k {found.keytab} sterna/{HERE}",
    ):
        found.admin(query)
    with (folder / "kdc.log").open("wb") as log:
        process = subprocess.Popen(
            ["krb5kdc", "-n"], env=found.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        _until(lambda: found.run("kinit", USER, text=f"{PASSWORD}\n").returncode == 0, process)
        yield found
    finally:
        process.kill()
        process.wait()


def _until(is_true: object, process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + READY_S
    while not is_true():  # type: ignore[operator]
        assert process.poll() is None, "it has ended; see its log"
        assert time.monotonic() < ends, "it does not answer"
        time.sleep(0.1)
