"""`sternad` that stops, fails or dies at a named point, when a file beside its configuration says so.

It is the real daemon. Every point is a method of a class, before or after its call. At each passage
the file `fault` beside the daemon's configuration is looked at; if it names the point, it is taken
away and its act is done, once:

    hold   write the file `held` and wait until that is removed: whatever happens then, happens here
    raise  the step fails
    kill   the daemon ends as by kill -9
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sterna import daemon
from sterna.errors import Failed, StateNotWritten
from sterna.model.vm import OwnershipState
from sterna.move.disks import Mirrors
from sterna.move.peer import Peer
from sterna.move.storage.disks import Switchover
from sterna.qemu.commands import Monitor
from sterna.vms.machine import VM

POLL_S = 0.01
FAULT, HELD, UNREADABLE = "fault", "held", "unreadable"

Method = Callable[..., Awaitable[Any]]
When = Callable[..., bool]  # of the call's arguments, and of its answer for a point after it


def always(*_args: Any, **_changes: Any) -> bool:
    return True


def to(state: OwnershipState) -> When:
    """A write of the record that makes the ownership `state`."""

    def is_it(_vm: VM, **changes: Any) -> bool:
        ownership = changes.get("ownership")
        return ownership is not None and ownership.state is state

    return is_it


def under_way(info: Any, *_args: Any, **_changes: Any) -> bool:
    """QEMU is in the middle of sending memory."""
    return bool(info.status == "active")


def gives_up(_vm: VM, **changes: Any) -> bool:
    """The write that makes the new images the VM's, and the old ones to be removed."""
    return bool(changes.get("leaving"))


BEFORE, AFTER = True, False
S = OwnershipState
POINTS: dict[str, tuple[type, str, bool, When]] = {
    "reserve": (Peer, "reserve", AFTER, always),
    "disks": (Mirrors, "_look", AFTER, always),
    "memory": (Monitor, "query_migrate", AFTER, under_way),
    "handover": (Mirrors, "drain", BEFORE, always),
    "drained": (Mirrors, "drain", AFTER, always),
    "yielded": (Peer, "take", BEFORE, always),
    "tidy": (VM, "write", BEFORE, to(S.RELEASED)),
    "storage-copy": (Switchover, "progress", AFTER, always),
    "storage-pivot": (Switchover, "hold", AFTER, always),
    "storage-tidy": (VM, "write", AFTER, gives_up),
    "cold-reserve": (Peer, "reserve", AFTER, always),
    "cold-copy": (Peer, "put", AFTER, always),
    "cold-yielded": (Peer, "take", BEFORE, always),
    "cold-tidy": (VM, "write", BEFORE, to(S.RELEASED)),
}


def names_of(cls: type, name: str) -> list[str]:
    return [point for point, (of, method, _, _) in POINTS.items() if (of, method) == (cls, name)]


def instrument(folder: Path) -> None:
    """Look at FOLDER/fault around every method that is a point."""
    for cls, name in {(cls, name) for cls, name, _, _ in POINTS.values()}:
        _wrap(folder, cls, name)


def _wrap(folder: Path, cls: type, name: str) -> None:
    original: Method = getattr(cls, name)
    points = names_of(cls, name)

    async def watched(self: Any, *args: Any, **changes: Any) -> Any:
        await _pass(folder, points, BEFORE, self, *args, **changes)
        answer = await original(self, *args, **changes)
        if isinstance(self, VM):
            await _pass(folder, points, AFTER, self, *args, **changes)
        else:
            await _pass(folder, points, AFTER, answer, *args, **changes)
        return answer

    setattr(cls, name, watched)


async def _pass(folder: Path, points: list[str], moment: bool, *args: Any, **changes: Any) -> None:
    fault = folder / FAULT
    try:
        wanted, act = fault.read_text().split()
    except (FileNotFoundError, ValueError):
        return
    if wanted not in points:
        return
    _, _, when_moment, when = POINTS[wanted]
    if act == "raise" and isinstance(args[0], VM):
        when_moment = BEFORE  # a write that fails has not been done
    if when_moment is not moment or not when(*args, **changes):
        return
    fault.unlink()
    if act == "raise" and isinstance(args[0], VM):
        raise StateNotWritten(path=args[0].id, reason="it was made to fail")
    await _do(act, folder)


async def _do(act: str, folder: Path) -> None:
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "raise":
        raise Failed(detail="this step was made to fail")
    held = folder / HELD
    held.touch()
    while held.exists():  # noqa: ASYNC110 - another process removes it
        await asyncio.sleep(POLL_S)


if __name__ == "__main__":
    place = Path(sys.argv[sys.argv.index("--config") + 1]).parent
    os.environ["STERNA_UNREADABLE"] = str(place / UNREADABLE)  # of `unreadable.c`
    instrument(place)
    sys.exit(daemon.main(sys.argv[1:]))
