"""The journal's statements: plain functions on a connection, each bounded in time by its index."""

from __future__ import annotations

import json
import logging
import sqlite3
from dataclasses import dataclass
from typing import Any, Literal

from sterna.errors import BadSpec
from sterna.model.edge import parse_json
from sterna.model.operation import LogLine, Operation

logger = logging.getLogger(__name__)

FIRST_LINES = 100  # never dropped: how it began


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much is kept. A move of ten minutes has some 2,400 samples of 250 bytes and 50 lines."""

    operations: int = 1000
    samples: int = 1000  # of one operation; then every second one goes
    lines: int = 5000  # of one operation: the first hundred and the newest


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One event of an operation as it is replayed: `data` is JSON text."""

    number: int
    kind: Literal["state", "log", "progress"]
    data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """An operation without an end, and where its numbers stopped."""

    operation: Operation
    event: int
    line: int
    samples: int


def save(
    connection: sqlite3.Connection, operation: Operation, told: tuple[int, str], limits: Limits
) -> None:
    event, body = told
    updated = connection.execute(
        "UPDATE operation SET state = ?, is_final = ?, event = ?, body = ? WHERE id = ?",
        (operation.state, operation.state.is_final, event, body, operation.id),
    )
    if updated.rowcount:
        return
    added = connection.execute(
        "INSERT INTO operation (id, kind, vm, vm_id, parent, state, is_final, event, body)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            operation.id,
            operation.kind,
            operation.vm,
            operation.vm_id,
            operation.parent,
            operation.state,
            operation.state.is_final,
            event,
            body,
        ),
    )
    oldest = (added.lastrowid or 0) - limits.operations
    connection.execute("DELETE FROM operation WHERE seq <= ? AND is_final", (oldest,))


def add_line(
    connection: sqlite3.Connection,
    operation: str,
    place: tuple[int, int],
    body: str,
    limits: Limits,
) -> None:
    event, number = place
    connection.execute(
        "INSERT INTO log (operation, event, number, body) VALUES (?, ?, ?, ?)",
        (operation, event, number, body),
    )
    if number > limits.lines:
        connection.execute(
            "DELETE FROM log WHERE operation = ? AND number > ? AND number <= ?",
            (operation, FIRST_LINES, number - limits.lines + FIRST_LINES),
        )


def add_sample(connection: sqlite3.Connection, operation: str, event: int, body: str) -> None:
    connection.execute(
        "INSERT INTO sample (operation, event, body) VALUES (?, ?, ?)",
        (operation, event, body),
    )


def thin(connection: sqlite3.Connection, operation: str, keep: int) -> None:
    """At most `keep` + 1 samples stay, one of each equal stretch, and the first and last."""
    connection.execute(
        """
        WITH span AS (
            SELECT MIN(at) AS a, MAX(at) - MIN(at) AS long, MAX(event) AS newest
            FROM sample WHERE operation = :id
        )
        DELETE FROM sample WHERE operation = :id
            AND event <> (SELECT newest FROM span)
            AND event NOT IN (
                SELECT MIN(event) FROM sample, span WHERE operation = :id
                GROUP BY MIN(CAST((at - a) * :keep / long AS INTEGER), :keep - 1)
            )
        """,
        {"id": operation, "keep": keep},
    )


def get(connection: sqlite3.Connection, operation: str) -> Operation | None:
    row = connection.execute("SELECT body FROM operation WHERE id = ?", (operation,)).fetchone()
    return _read(row[0]) if row else None


def parts(connection: sqlite3.Connection, parent: str) -> list[Operation]:
    """The operations that `parent` consists of, oldest first."""
    rows = connection.execute(
        "SELECT body FROM operation WHERE parent = ? AND parent <> '' ORDER BY seq", (parent,)
    )
    return [found for (body,) in rows if (found := _read(body))]


def list_operations(
    connection: sqlite3.Connection, vm: str, kind: str, state: str, limit: int
) -> list[Operation]:
    rows = connection.execute(
        "SELECT body FROM operation WHERE (:vm = '' OR vm = :vm OR vm_id = :vm)"
        " AND (:kind = '' OR kind = :kind) AND (:state = '' OR state = :state)"
        " ORDER BY seq DESC LIMIT :limit",
        {"vm": vm, "kind": kind, "state": state, "limit": limit},
    )
    return [found for (body,) in rows if (found := _read(body))]


def unfinished(connection: sqlite3.Connection) -> list[Unfinished]:
    rows = connection.execute(
        """
        SELECT body, event,
            (SELECT IFNULL(MAX(event), 0) FROM log WHERE operation = id),
            (SELECT IFNULL(MAX(event), 0) FROM sample WHERE operation = id),
            (SELECT IFNULL(MAX(number), 0) FROM log WHERE operation = id),
            (SELECT COUNT(*) FROM sample WHERE operation = id)
        FROM operation WHERE is_final = 0 ORDER BY seq
        """
    )
    return [
        Unfinished(operation=found, event=max(state, log, sample), line=line, samples=samples)
        for body, state, log, sample, line, samples in rows
        if (found := _read(body))
    ]


def _read(body: str) -> Operation | None:
    """One row that cannot be read is reported, and hides no other."""
    try:
        return parse_json(Operation, body, "an operation")
    except BadSpec as error:
        logger.error("a row of the journal cannot be read: %s (%.200s)", error, body)  # noqa: TRY400
        return None


def lines(connection: sqlite3.Connection, operation: str, after: int, limit: int) -> list[LogLine]:
    rows = connection.execute(
        "SELECT body FROM log WHERE operation = ? AND number > ? ORDER BY number LIMIT ?",
        (operation, after, limit),
    )
    return [parse_json(LogLine, body, "a log line") for (body,) in rows]


def samples(connection: sqlite3.Connection, operation: str) -> list[dict[str, Any]]:
    rows = connection.execute(
        "SELECT body FROM sample WHERE operation = ? ORDER BY event", (operation,)
    )
    return [json.loads(body) for (body,) in rows]


def events(
    connection: sqlite3.Connection, operation: str, after: int, upto: int | None, limit: int
) -> list[Recorded]:
    rows = connection.execute(
        """
        SELECT event, 'log', body FROM log
            WHERE operation = :id AND event > :after AND event <= :upto
        UNION ALL SELECT event, 'progress', body FROM sample
            WHERE operation = :id AND event > :after AND event <= :upto
        UNION ALL SELECT event, 'state', body FROM operation
            WHERE id = :id AND event > :after AND event <= :upto
        ORDER BY 1 LIMIT :limit
        """,
        {
            "id": operation,
            "after": after,
            "upto": (1 << 62) if upto is None else upto,
            "limit": limit,
        },
    )
    return [Recorded(number=number, kind=kind, data=body) for number, kind, body in rows]
