"""Passwords as Argon2id hashes (RFC 9106): one at a time, and never on the event loop.

Promises: a log-in costs the same for a user who is not there as for one who is. Few wait for their
turn; more are sent away, so that log-ins never take the host's memory from its guests.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from sterna.errors import LockedOut

MEMORY = 64 << 10  # KiB
ROUNDS = 3
MAX_WAITING = 8
BUSY_S = 2.0  # told to those who are sent away


def make(password: str) -> str:
    """The hash of it, with salt and parameters, as PHC text. Takes a quarter of a second."""
    kdf = Argon2id(salt=os.urandom(16), length=32, iterations=ROUNDS, lanes=1, memory_cost=MEMORY)
    return str(kdf.derive_phc_encoded(password.encode()))


def is_right(password: str, phc: str) -> bool:
    """Whether `phc` is its hash; for an empty one no, after the same work."""
    try:
        Argon2id.verify_phc_encoded(password.encode(), phc or _nobodys())
    except (InvalidKey, ValueError):
        return False
    return bool(phc)


@cache
def _nobodys() -> str:
    return make(os.urandom(16).hex())


class Lane:
    """The one thread that hashes."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="passwords")
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def make(self, password: str) -> str:
        """As `make`."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, make, password)

    async def __aenter__(self) -> None:
        """Wait for one's turn to log in. Raises LockedOut when too many do."""
        if self._waiting >= MAX_WAITING:
            raise LockedOut(host=self._host, seconds=BUSY_S)
        self._waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self._waiting -= 1

    async def __aexit__(self, *_: object) -> None:
        self._turn.release()

    async def is_right(self, password: str, phc: str) -> bool:
        """As `is_right`, by whose turn it is."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, is_right, password, phc)
