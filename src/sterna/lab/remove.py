"""Takes a lab away, whatever state it is in, and looks whether anything of it is left.

Promises to end only processes inside the lab's own namespaces, to work on half-made labs and on
labs whose daemons or makers crashed, and to be right when it is asked twice. A lab that was made
for one process only (a test run, a demo) is swept away once that process is gone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from sterna.errors import LabFailed, LabLeftovers, SternaError
from sterna.lab import netns, processes
from sterna.lab.hosts import hosts_of
from sterna.lab.processes import Process
from sterna.lab.record import folder, read, root

_DAEMON_GRACE_S = 3.0
_ROUNDS = 20  # a process may start others while it is being ended


def remove(lab: str) -> bool:
    """Remove all of it; True if there was anything. Raises LabLeftovers, naming what stayed."""
    if not leftovers(lab):
        return False
    _end_processes(lab)
    for mount in _mounts(folder(lab)):
        with contextlib.suppress(LabFailed):
            netns.run(lab, ["umount", "--lazy", mount])
    for namespace in netns.named(lab):
        with contextlib.suppress(LabFailed):
            netns.delete(lab, namespace)
    shutil.rmtree(folder(lab), ignore_errors=True)
    with contextlib.suppress(OSError):
        root().rmdir()  # of the last lab
    if rest := leftovers(lab):
        raise LabLeftovers(lab=lab, leftovers=", ".join(rest))
    return True


def leftovers(lab: str) -> list[str]:
    """Everything of this lab that is on the machine, a phrase each; empty: nothing at all."""
    place = folder(lab)
    found = [f"namespace {name}" for name in netns.named(lab)]
    inside = _inside(lab)
    found += [f"process {process.pid}: {_command(process.pid)}" for process in inside]
    known = {process.pid for process in inside}
    found += [
        f"process {pid} outside of its namespace: {_command(pid)}"
        for pid in _users_of(place)
        if pid not in known
    ]
    found += [f"mount {mount}" for mount in _mounts(place)]
    if place.exists():
        found.append(f"folder {place}")
    return found


def sweep() -> list[str]:
    """Remove the labs whose only user has ended without removing them; their names."""
    gone = []
    for path in sorted(root().glob("*/lab.json")):
        record = read(path.parent.name)
        if record is not None and record.owner is not None and not record.owner.is_alive:
            with contextlib.suppress(SternaError):  # somebody else may be sweeping too
                remove(record.name)
                gone.append(record.name)
    return gone


def _inside(lab: str) -> list[Process]:
    """Processes in the lab's namespaces, be these still named or only held by a daemon of ours."""
    inodes = {netns.inode(name) for name in netns.named(lab)}
    inodes |= {processes.network_namespace(daemon.pid) for daemon in _daemons(lab)}
    own = processes.network_namespace(os.getpid())
    return processes.in_namespaces({inode for inode in inodes if inode and inode != own})


def _end_processes(lab: str) -> None:
    """Daemons first, so that none of them mourns its guests; then whatever is there."""
    inside = {process.pid for process in _inside(lab)}
    daemons = [daemon for daemon in _daemons(lab) if daemon.pid in inside]
    processes.end(daemons, _DAEMON_GRACE_S)
    for _ in range(_ROUNDS):
        rest = _inside(lab)
        if not rest:
            return
        processes.end(rest, 0.0)


def _daemons(lab: str) -> list[Process]:
    record = read(lab)
    found = [host.process for host in hosts_of(record)] if record else []
    return [process for process in found if process is not None]


def _mounts(place: Path) -> list[str]:
    """Mount points at or below `place`, the innermost first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    return [p for p in reversed(points) if p == str(place) or p.startswith(f"{place}/")]


def _users_of(place: Path) -> list[int]:
    """Our kinds of programs that were started with a path of this lab, wherever they run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            pid = int(path.parent.name)
            ours = path.read_text().startswith(("qemu", "sternad"))
            if ours and f"{place}/" in " ".join(processes.command(pid)):
                found.append(pid)
    return found


def _command(pid: int) -> str:
    return " ".join(processes.command(pid)[:3])[:100] or "ended meanwhile"
