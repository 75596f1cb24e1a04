"""`sternad` that ends itself, as kill -9 would, at one line of a storage move: `storage_crashing.py POINT …`."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from sterna import daemon
from sterna.qemu.blocks import Blocks
from sterna.vms.kept import Kept
from sterna.vms.machine import VM

# Where: the method, and whether it ends before it or after it.
POINTS: dict[str, tuple[type, str, bool]] = {
    "made": (VM, "write", False),
    "pending": (Blocks, "flush", False),
    "recorded": (Blocks, "finalize", True),
    "one-finalized": (Blocks, "finalize", False),
    "clearing": (Kept, "clear", True),
    "cleared": (Kept, "clear", False),
}


def crash(cls: type, name: str, *, before: bool) -> None:
    original = getattr(cls, name)

    async def crashing(self: Any, *args: Any, **changes: Any) -> Any:
        counts = cls is not VM or bool(changes.get("made"))
        if cls is Kept and not args[1]:
            counts = False  # nothing leaves: the look at the start
        if counts and before:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await original(self, *args, **changes)
        if counts:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(cls, name, crashing)


if __name__ == "__main__":
    cls, name, before = POINTS[sys.argv[1]]
    crash(cls, name, before=before)
    sys.exit(daemon.main(sys.argv[2:]))
