"""The journal's tables, as numbered steps: step N takes a file from version N-1 to N.

A step is never changed after a release; `PRAGMA user_version` says how far a file has come.
`event` numbers count everything that happened to one operation (log lines, samples, states) in
one row of numbers, so that a reader can say where it stopped.
"""

from __future__ import annotations

import sqlite3

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE operation (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        vm TEXT NOT NULL,
        vm_id TEXT NOT NULL,
        state TEXT NOT NULL,
        is_final INTEGER NOT NULL,
        event INTEGER NOT NULL,
        body TEXT NOT NULL
    );
    CREATE INDEX operation_unfinished ON operation (seq) WHERE is_final = 0;
    CREATE TABLE log (
        operation TEXT NOT NULL REFERENCES operation (id) ON DELETE CASCADE,
        event INTEGER NOT NULL,
        number INTEGER NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (operation, event)
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX log_number ON log (operation, number);
    CREATE TABLE sample (
        operation TEXT NOT NULL REFERENCES operation (id) ON DELETE CASCADE,
        event INTEGER NOT NULL,
        at REAL NOT NULL DEFAULT (julianday('now')),
        body TEXT NOT NULL,
        PRIMARY KEY (operation, event)
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE operation ADD COLUMN parent TEXT NOT NULL DEFAULT '';
    CREATE INDEX operation_parent ON operation (parent) WHERE parent <> '';
    """,
)
VERSION = len(MIGRATIONS)


OURS = "SELECT seq, is_final, event, body FROM operation LIMIT 1"  # in every version


class Unfit(Exception):
    """The file is damaged, was written by a newer Sterna, or is no journal at all."""


def check(connection: sqlite3.Connection) -> None:
    """SQLite's own check of the file's structure; its cost is bounded as the journal's size is."""
    (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if finding != "ok":
        raise Unfit(str(finding).replace("\n", " "))
    if connection.execute("PRAGMA user_version").fetchone()[0]:
        connection.execute(OURS)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring an open file up to VERSION, a transaction a step; Unfit if that cannot be."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if not 0 <= version <= VERSION:
        raise Unfit(f"its version is {version}, this Sterna knows up to {VERSION}")
    for number in range(version, VERSION):
        connection.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;"
        )
