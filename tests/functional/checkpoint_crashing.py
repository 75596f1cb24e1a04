"""`sternad` that ends itself, as kill -9 would, at one line of a step with checkpoints or a saved
state, or of an export: `checkpoint_crashing.py POINT …`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from sterna import daemon
from sterna.port.export import Writing
from sterna.qemu.blocks import Blocks
from sterna.qemu.commands import Monitor
from sterna.vms.machine import VM

When = Callable[..., bool]


def always(*_args: Any, **_changes: Any) -> bool:
    return True


def writes(**wanted: bool) -> When:
    """A write of the record that sets these fields, to something or to nothing."""

    def is_it(_vm: VM, **changes: Any) -> bool:
        return all(key in changes and bool(changes[key]) is full for key, full in wanted.items())

    return is_it


# Where: the method, whether it ends before it or after it, and at which call.
POINTS: dict[str, tuple[type, str, bool, When]] = {
    "create-files-named": (VM, "write", False, writes(made=True)),
    "create-recorded": (VM, "write", False, writes(at=True)),
    "create-stacked": (Blocks, "snapshot", False, always),
    "create-last-memory": (Monitor, "migrate_continue", False, always),
    "create-memory-unrecorded": (VM, "write", True, writes(made=False, checkpoints=True)),
    "merge-pending": (VM, "write", True, writes(spec=True, leaving=True)),
    "merge-recorded": (Blocks, "finalize", True, always),
    "merge-finalized": (Blocks, "finalize", False, always),
    "save-unrecorded": (VM, "write", True, writes(saved=True)),
    "save-recorded": (VM, "write", False, writes(saved=True)),
    "restore-loading": (Monitor, "migrate_incoming", False, always),
    "restore-loaded": (VM, "write", True, writes(saved=False)),
    "restore-recorded": (VM, "write", False, writes(saved=False)),
    "export-copying": (Writing, "run", True, always),
}


def crash(cls: type, name: str, *, before: bool, when: When) -> None:
    original = getattr(cls, name)

    async def crashing(self: Any, *args: Any, **changes: Any) -> Any:
        hit = when(self, *args, **changes)
        if hit and before:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await original(self, *args, **changes)
        if hit:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(cls, name, crashing)


if __name__ == "__main__":
    cls, name, before, when = POINTS[sys.argv[1]]
    crash(cls, name, before=before, when=when)
    sys.exit(daemon.main(sys.argv[2:]))
