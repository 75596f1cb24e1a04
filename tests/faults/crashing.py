"""`sternad` that ends itself, as kill -9 would, at one line of a move: `crashing.py POINT …`.

It is the real daemon; only the line named by POINT is preceded or followed by the end. A point is
SIDE-MOMENT: before or after a durable change of ownership, or around what is said to the other host.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from sterna import daemon
from sterna.model.vm import OwnershipState
from sterna.move.peer import Peer
from sterna.qemu.commands import Monitor
from sterna.vms.launch import Launcher
from sterna.vms.machine import VM

Method = Callable[..., Awaitable[Any]]


def end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def around(cls: type, name: str, *, before: bool, when: Callable[..., bool]) -> None:
    """End before or after `cls.name` runs, at the first call for which `when` holds."""
    original: Method = getattr(cls, name)

    async def crashing(self: Any, *args: Any, **changes: Any) -> Any:
        hit = when(self, *args, **changes)
        if hit and before:
            end()
        answer = await original(self, *args, **changes)
        if hit:
            end()
        return answer

    setattr(cls, name, crashing)


def always(*_args: Any, **_changes: Any) -> bool:
    return True


def to(state: OwnershipState) -> Callable[..., bool]:
    """A write of the record that makes the ownership `state`."""

    def is_it(vm: VM, **changes: Any) -> bool:
        ownership = changes.get("ownership", vm.record.ownership if not changes else None)
        return ownership is not None and ownership.state is state

    return is_it


def with_process(_vm: VM, **changes: Any) -> bool:
    """The write that names the VM's QEMU, which has just been started."""
    return changes.get("process") is not None


S = OwnershipState
POINTS: dict[str, tuple[type, str, bool, Callable[..., bool]]] = {
    "source-before-reserve": (Peer, "reserve", True, always),
    "source-after-reserve": (Peer, "reserve", False, always),
    "source-before-last-copy": (Monitor, "migrate_continue", True, always),
    "source-after-last-copy-began": (Monitor, "migrate_continue", False, always),
    "source-before-yielding": (VM, "write", True, to(S.YIELDING)),
    "source-after-yielding": (VM, "write", False, to(S.YIELDING)),
    "source-after-take": (Peer, "take", False, always),
    "source-before-released": (VM, "write", True, to(S.RELEASED)),
    "source-after-released": (VM, "write", False, to(S.RELEASED)),
    "target-after-reserved": (VM, "write", False, to(S.RESERVED)),
    "target-before-process-known": (VM, "write", True, with_process),
    "target-after-launch": (Launcher, "launch", False, always),
    "target-before-owned": (VM, "write", True, to(S.OWNED)),
    "target-after-owned": (VM, "write", False, to(S.OWNED)),
    "target-after-continue": (VM, "resume_as_recorded", False, always),
}

if __name__ == "__main__":
    cls, name, before, when = POINTS[sys.argv[1]]
    around(cls, name, before=before, when=when)
    sys.exit(daemon.main(sys.argv[2:]))
