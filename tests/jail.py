"""Run a command as systemd would run it by packaging/sternad.service, where systemd is not.

    python tests/jail.py COMMAND ...

Reads the unit and does what of it needs no systemd: capabilities, no new privileges, system calls,
address families, umask. Namespaces of mounts and the list of devices are left out.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

UNIT = Path(__file__).parent.parent / "packaging" / "sternad.service"
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38  # linux/prctl.h
CAPABILITIES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"),
    *("SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW"),
    *("IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT"),
    *("SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD"),
    *("LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG"),
    *("WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"),
)  # by number: linux/capability.h
ALLOW, EPERM, EQUAL = 0x7FFF0000, 0x00050001, 4  # seccomp.h


def setting(name: str) -> list[str]:
    """Words of that setting."""
    found = [line.partition("=")[2] for line in UNIT.read_text().splitlines()
             if line.startswith(f"{name}=")]  # fmt: skip
    assert found, f"{UNIT} has no {name}"
    return " ".join(found).split()


def calls(words: list[str]) -> Iterator[str]:
    """Names of system calls, groups as systemd has them."""
    for word in words:
        if not word.startswith("@"):
            yield word
            continue
        listed = subprocess.run(
            ["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True
        ).stdout.split("\n")
        yield from calls([line.strip() for line in listed[1:]
                          if line.strip() and not line.strip().startswith("#")])  # fmt: skip


class Compared(ctypes.Structure):
    """An argument of a system call, and what it must be: struct scmp_arg_cmp."""

    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    ]


def filtered(names: set[str], families: list[str]) -> None:
    """From now on only those system calls, and sockets of those families."""
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(EPERM)))

    def allow(name: str, *compared: Compared) -> None:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # of this machine
            array = (Compared * len(compared))(*compared)
            done = seccomp.seccomp_rule_add_array(context, ALLOW, number, len(compared), array)
            assert done == 0, name

    for name in sorted(names - {"socket", "setns", "unshare"}):  # RestrictNamespaces=yes
        allow(name)
    for family in families:
        allow("socket", Compared(0, EQUAL, getattr(socket, family), 0))
    assert seccomp.seccomp_load(context) == 0


def main(argv: list[str]) -> None:
    names = set(calls(setting("SystemCallFilter"))) | set(calls(["@default"]))
    kept = {word.removeprefix("CAP_") for word in setting("CapabilityBoundingSet")}
    libc = ctypes.CDLL(None)
    for number, name in enumerate(CAPABILITIES):
        if name not in kept:
            libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    assert setting("NoNewPrivileges") == ["yes"]
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    os.umask(int(setting("UMask")[0], 8))
    filtered(names, setting("RestrictAddressFamilies"))
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main(sys.argv[1:])
