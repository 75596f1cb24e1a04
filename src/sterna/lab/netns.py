"""Network namespaces with names, by iproute2.

Every namespace of a lab is called `sterna-LAB-ROLE`, so that a lab is found again by its name
alone. Promises that no interface is ever made in, or passes through, the caller's namespace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from sterna.errors import LabFailed, LabNeedsRoot, LabToolMissing

FOLDER = Path("/run/netns")  # where iproute2 keeps the names
_TOOLS = {"ip": "iproute2", "tc": "iproute2", "qemu-system-x86_64": "qemu-system-x86"}


def require(command: str) -> None:
    """LabNeedsRoot, LabToolMissing, or nothing: the lab can work here."""
    if os.geteuid() != 0:
        raise LabNeedsRoot(command=command)
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            raise LabToolMissing(tool=tool, package=package)


def name(lab: str, role: str) -> str:
    return f"sterna-{lab}-{role}"


def named(lab: str) -> list[str]:
    """The namespaces of a lab, in order of their names, whatever state the lab is in."""
    # A lab's name has no dash, so no lab's prefix is another's.
    return sorted(path.name for path in FOLDER.glob(f"sterna-{lab}-*"))


def inode(namespace: str) -> int | None:
    """What /proc/PID/ns/net shows for processes inside; None if the name leads nowhere."""
    try:
        return (FOLDER / namespace).stat().st_ino
    except OSError:
        return None


def add(lab: str, namespace: str) -> None:
    """Make it, with its loopback up and IPv6 off: its chatter would only blur measurements."""
    run(lab, ["ip", "netns", "add", namespace])
    ip(lab, namespace, ["link set lo up"])
    off = "for f in all default; do echo 1 > /proc/sys/net/ipv6/conf/$f/disable_ipv6; done"
    if Path("/proc/sys/net/ipv6").exists():
        run(lab, [*entering(namespace), "sh", "-c", off])


def delete(lab: str, namespace: str) -> None:
    """Take its name away. It ends, with all its interfaces, when its last process does."""
    run(lab, ["ip", "netns", "delete", namespace])


def entering(namespace: str) -> list[str]:
    """Words to put before a command. `ip` becomes that command: the pid stays the same."""
    return ["ip", "netns", "exec", namespace]


def ip(lab: str, namespace: str, lines: list[str]) -> None:
    """Carry out these `ip` lines inside; the first that fails ends it."""
    run(lab, ["ip", "-n", namespace, "-batch", "-"], "\n".join(lines))


def tc(lab: str, namespace: str, lines: list[str]) -> None:
    """The same for `tc`."""
    run(lab, ["tc", "-n", namespace, "-batch", "-"], "\n".join(lines))


def run(lab: str, argv: list[str], text: str = "") -> str:
    """What the command printed. Raises LabFailed with its own words."""
    try:
        done = subprocess.run(
            argv, input=text, capture_output=True, text=True, timeout=30, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise LabFailed(
            lab=lab, action=f"run {argv[0]}", reason="no end in 30 s", fix=""
        ) from error
    if done.returncode:
        words = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        action = f"run `{' '.join(argv)}`" + (f" with `{text}`" if text else "")
        raise LabFailed(lab=lab, action=action, reason=words, fix="")
    return done.stdout
