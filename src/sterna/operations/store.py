"""The journal's file: opened, checked, and set aside when it is damaged. Used by one thread.

Promises: a file that SQLite cannot trust is renamed (with its WAL) to NAME.damaged-TIMESTAMP and
a new one is begun; a folder that cannot be written costs the history, never the daemon.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from pathlib import Path

from sterna import clock
from sterna.errors import JournalCorrupt
from sterna.operations.schema import OURS, Unfit, check, migrate

log = logging.getLogger(__name__)

SUFFIXES = ("", "-wal", "-shm")
BUSY_S = 5.0  # nobody else writes; a curious sqlite3 shell may read
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def is_damage(error: BaseException) -> bool:
    """The file itself is bad, as opposed to a full disk or a refused write."""
    return isinstance(error, sqlite3.DatabaseError) and (
        getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE
    )


def open_file(path: Path) -> tuple[sqlite3.Connection, JournalCorrupt | None]:
    """A checked connection to `path`, and what was wrong with the file before it, if anything."""
    try:
        return _open(path), None
    except Unfit as error:
        damaged = set_aside(path, str(error))
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        damaged = set_aside(path, str(error))
    return _open(path), damaged


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=BUSY_S
    )
    try:
        check(connection)  # nothing is changed in a file that is not ours
        migrate(connection)
        connection.execute(OURS)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.OperationalError as error:
        connection.close()
        if "no such" in str(error) or "already exists" in str(error):
            raise Unfit(f"its tables are not ours: {error}") from error
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def open_memory() -> sqlite3.Connection:
    """A journal that lasts as long as the daemon, for when no file can be had."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA foreign_keys = ON")
    migrate(connection)
    return connection


def set_aside(path: Path, reason: str) -> JournalCorrupt:
    """Rename the file and what belongs to it; the error says where it is now."""
    stamp = clock.now().replace(":", "").replace("-", "")
    kept = path.with_name(f"{path.name}.damaged-{stamp}")
    for suffix in SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{kept}{suffix}")
    damaged = JournalCorrupt(path=str(kept), reason=reason)
    log.error("%s", damaged.message)
    return damaged


def earlier(path: Path) -> list[JournalCorrupt]:
    """Files set aside by earlier starts: reported until somebody removes them."""
    found = sorted(path.parent.glob(f"{path.name}.damaged-*"))
    return [
        JournalCorrupt(path=str(file), reason="found at an earlier start")
        for file in found
        if not file.name.endswith(SUFFIXES[1:])
    ]
