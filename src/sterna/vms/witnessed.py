"""What frozen images looked like when they were first seen: evidence for whether one was changed.

An image that others rest on must never change. Its size and its time of change are noted when it is
first seen so, by whoever inspects it: at the start of sternad, every hour, and when it is asked.
What happened before that is not known. An image that a merge gave to another checkpoint counts as
new. Evidence only: if the notes are lost or damaged, they begin anew.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sterna.host.store import replace_file
from sterna.model.disk import Volume

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One file at one moment."""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Sight:
        """Raises OSError."""
        stat = path.stat()
        return cls(size=stat.st_size, mtime_ns=stat.st_mtime_ns, inode=stat.st_ino)


class Witnessed:
    """The notes of one host."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._notes: dict[str, Sight] = {}
        self._is_changed = False

    def load(self) -> None:
        """Read the notes; damaged ones are forgotten."""
        try:
            data: dict[str, Any] = json.loads(self._file.read_bytes())
            self._notes = {key: Sight(**value) for key, value in data["images"].items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("%s cannot be read and begins anew: %s", self._file, error)

    def first(self, place: Volume, frozen_by: str, now: Sight) -> Sight:
        """How it looked when it was first seen frozen by that checkpoint: perhaps just `now`."""
        key = _key(place, frozen_by)
        if key not in self._notes:
            self._notes[key] = now
            self._is_changed = True
        return self._notes[key]

    def keep(self, frozen: Iterable[tuple[Volume, str]]) -> None:
        """Forget all but these, and write the notes if they changed. Raises OSError; blocks."""
        keys = {_key(place, by) for place, by in frozen}
        gone = self._notes.keys() - keys
        for key in gone:
            del self._notes[key]
        if gone or self._is_changed:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            images = {
                key: {"size": one.size, "mtime_ns": one.mtime_ns, "inode": one.inode}
                for key, one in sorted(self._notes.items())
            }
            replace_file(self._file, json.dumps({"version": 1, "images": images}).encode())
            self._is_changed = False

    def forget(self, place: Volume) -> None:
        """What it looks like the next time is taken for what it was."""
        for key in [key for key in self._notes if key.startswith(f"{place}#")]:
            del self._notes[key]
            self._is_changed = True


def _key(place: Volume, frozen_by: str) -> str:
    return f"{place}#{frozen_by}"
