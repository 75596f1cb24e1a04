"""Proof that two hosts mean the same storage: one makes a name in a pool, the other must see it.

A pool's identity says what a directory was made as; a copy of the directory, such as a restored
backup or a snapshot that was mounted, says the same of itself. A name that nobody can guess and
that has only just been made is seen in no copy. It is an empty file, so that a full pool can prove
itself, too. All functions block on the file system.
"""

from __future__ import annotations

import os
from pathlib import Path

from sterna.model.host import Pool
from sterna.model.reservation import TOKEN

PREFIX = ".sterna-proof-"
OLD_S = 3600.0  # of a host that died between making and removing it


def make(pool: Pool, token: str) -> None:
    """Make the name. Raises OSError."""
    with _place(pool, token).open("xb") as file:
        made = os.fstat(file.fileno())
    for other in Path(pool.path).glob(f"{PREFIX}*"):
        try:
            if made.st_mtime - other.stat().st_mtime > OLD_S:  # by the storage's own clock
                other.unlink()
        except FileNotFoundError:
            continue


def remove(pool: Pool, token: str) -> None:
    """Undo `make`. Raises OSError."""
    _place(pool, token).unlink(missing_ok=True)


def is_seen(pool: Pool, token: str) -> bool:
    """Whether the name is there. Raises OSError."""
    return _place(pool, token).exists()


def _place(pool: Pool, token: str) -> Path:
    if not TOKEN.fullmatch(token):
        raise ValueError(f"{token!r} is no token")
    return Path(pool.path) / f"{PREFIX}{token}"
