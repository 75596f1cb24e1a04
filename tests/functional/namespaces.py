"""Network namespaces that a test makes and removes, and Ethernet frames through taps."""

import asyncio
import ctypes
import json
import os
import select
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

VNET_HEADER = bytes(10)  # before each frame of a tap: nothing to do
ETHERTYPE = 0x88B5  # IEEE 802, for local experiments
EVERYBODY = "ff:ff:ff:ff:ff:ff"
A, B, C = "52:54:00:00:00:0a", "52:54:00:00:00:0b", "52:54:00:00:00:0c"
PASSES_S = 5.0  # time for a busy machine; a bridge that is deaf at first would need 15 s
STAYS_AWAY_S = 0.2
CLONE_NEWNET = 0x40000000


class Namespace:
    """A network namespace, and threads inside it."""

    def __init__(self) -> None:
        self.name = f"sterna-t-{os.getpid()}-{time.monotonic_ns() % 10**9}"
        subprocess.run(["ip", "netns", "add", self.name], check=True)

    def remove(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=True)

    def do(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Run the coroutine of `work` in a thread (and its children) inside; its result."""
        outcome: list[Any] = []

        def inside() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            with Path(f"/run/netns/{self.name}").open() as namespace:
                assert libc.setns(namespace.fileno(), CLONE_NEWNET) == 0
            try:
                outcome.append((asyncio.run(_awaited(work)), None))
            except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
                outcome.append((None, error))

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        result, error = outcome[0]
        if error is not None:
            raise error
        return result

    def ip(self, words: str) -> Any:
        done = subprocess.run(
            ["ip", "-n", self.name, "-j", "-d", *words.split()],
            capture_output=True,
            text=True,
            check=True,
        )
        return [item for item in json.loads(done.stdout or "[]") if item]

    def links(self) -> set[str]:
        return {item["ifname"] for item in self.ip("link show")} - {"lo"}

    def link(self, name: str) -> dict[str, Any]:
        return self.ip(f"link show dev {name}")[0]


async def _awaited(work: Callable[[], Awaitable[Any]]) -> Any:
    return await work()


def frame(to: str, sender: str, text: bytes = b"hello") -> bytes:
    def address(mac: str) -> bytes:
        return bytes.fromhex(mac.replace(":", ""))

    return address(to) + address(sender) + ETHERTYPE.to_bytes(2) + text.ljust(46, b"\0")


def send(tap: int, data: bytes) -> None:
    os.write(tap, VNET_HEADER + data)


def receive(tap: int, wanted: bytes, seconds: float = PASSES_S) -> bool:
    """Whether `wanted` comes out of `tap` in time; other frames are let pass."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([tap], [], [], left)[0] and os.read(tap, 65536)[10:] == wanted:
            return True
    return False
