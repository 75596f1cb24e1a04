"""How checkpoints are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sterna.cli.command import Settings
from sterna.cli.output import document, line, local_time, note, printable, table
from sterna.units import format_size

Row = dict[str, Any]


def many(settings: Settings, rows: list[Row], vm: str) -> None:
    if settings.is_json:
        document(rows)
        return
    if not rows:
        _none(vm)
        return
    cells = [
        (
            row["name"],
            local_time(row["created"]),
            row["parent"],
            format_size(row["memory"]["size"]) if row["memory"] else "",
            len(row["disks"]),
            "here" if row["is_current"] else "",
        )
        for row in rows
    ]
    table(("NAME", "CREATED", "AFTER", "MEMORY", "DISKS", "NOW"), cells, right=(3, 4))


def tree(settings: Settings, rows: list[Row], vm: str) -> None:
    if settings.is_json:
        document(rows)
        return
    if not rows:
        _none(vm)
        return
    for text in branches(rows, ""):
        line(printable(text))


def branches(rows: Sequence[Row], parent: str, indent: str = "") -> list[str]:
    """The lines of all that came after `parent`; the VM itself is a leaf."""
    kids: list[Row | None] = [row for row in rows if row["parent"] == parent]
    here = any(row["name"] == parent and row["is_current"] for row in rows)
    lines: list[str] = []
    for number, row in enumerate([*kids, *([None] if here else [])]):
        is_last = number == len(kids) - (0 if here else 1)
        turn, below = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
        if not indent and not parent:
            turn, below = "", ""
        if row is None:
            lines.append(f"{indent}{turn}now")
            continue
        memory = ", with memory" if row["memory"] else ""
        lines.append(f"{indent}{turn}{row['name']} ({local_time(row['created'])}{memory})")
        lines += branches(rows, row["name"], f"{indent}{below}" or " ")
    return lines


def _none(vm: str) -> None:
    note(f"{vm} has no checkpoints; make one with: sterna vm checkpoint create {vm}")
