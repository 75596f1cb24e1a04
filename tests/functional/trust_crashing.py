"""`sternad` that ends itself, as kill -9 would, at one line of join, rotate or distrust:
`trust_crashing.py POINT …`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from sterna import daemon
from sterna.move.peer import Peer
from sterna.security import identity
from sterna.security.trust import Trust

# Where: the method, and whether it ends before it or after it.
POINTS: dict[str, tuple[type, str, bool]] = {
    "unrecorded": (Trust, "put", True),
    "recorded": (Trust, "put", False),
    "prepared": (Peer, "announce", True),
    "announced": (Peer, "announce", False),
    "removed": (Trust, "remove", False),
}


def end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash(cls: type, name: str, *, before: bool) -> None:
    original = getattr(cls, name)

    async def crashing(self: Any, *args: Any) -> Any:
        if before:
            end()
        await original(self, *args)
        end()

    setattr(cls, name, crashing)


def crash_between_key_and_certificate() -> None:
    original = identity._rename

    def crashing(old: Path, new: Path) -> None:
        original(old, new)
        if old.name == "next-key.pem":
            end()

    identity._rename = crashing


if __name__ == "__main__":
    point = sys.argv.pop(1)
    if point == "half":
        crash_between_key_and_certificate()
    else:
        where, method, is_before = POINTS[point]
        crash(where, method, before=is_before)
    sys.exit(daemon.main())
