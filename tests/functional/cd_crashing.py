"""`sternad` that ends itself, as kill -9 would, when a drive is about to be opened, the record written."""

from __future__ import annotations

import os
import signal
import sys

from sterna import daemon
from sterna.qemu.blocks import Blocks


async def crash(_blocks: Blocks, _device: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    Blocks.open_tray = crash  # type: ignore[method-assign]
    sys.exit(daemon.main(sys.argv[1:]))
