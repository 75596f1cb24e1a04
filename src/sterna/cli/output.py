"""How results are printed: tables and fields for people, JSON for programs.

Text that came from elsewhere never reaches the terminal with control characters in it. Colour is
used only on a terminal, and never when NO_COLOR is set.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

STYLES = {
    "well": "32", "blocked": "31", "blocker": "31", "warning": "33",
    "running": "32", "succeeded": "32", "up": "32", "done": "32",
    "paused": "33", "starting": "33", "moving-in": "33", "warned": "33", "cancelling": "33",
    "unknown": "31", "damaged": "31", "failed": "31", "partial": "31", "down": "31",
}  # fmt: skip


def printable(value: object) -> str:
    """`value` as text of one line without control characters."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " for char in text).strip()


def has_colour(stream: TextIO) -> bool:
    """Whether `stream` may be coloured."""
    return (
        stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") != "dumb"
    )


def line(text: object = "") -> None:
    """Print a line of the result."""
    sys.stdout.write(f"{text}\n")


def complaint(text: str) -> None:
    """Print a line of an error, beside the result."""
    sys.stdout.flush()
    sys.stderr.write(f"{printable(text)}\n")
    sys.stderr.flush()


def table(
    headers: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[int] = ()
) -> None:
    """Print `rows` under `headers`; the columns in `right` are aligned to the right."""
    cells = [[printable("-" if cell in ("", None) else cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]
    colour = has_colour(sys.stdout)
    for number, row in enumerate([list(headers), *cells]):
        parts = []
        for column, cell in enumerate(row):
            padding = " " * (widths[column] - len(cell))
            style = ("1" if number == 0 else STYLES.get(cell, "")) if colour else ""
            shown = f"\x1b[{style}m{cell}\x1b[0m" if style else cell
            parts.append(padding + shown if column in right else shown + padding)
        line("  ".join(parts).rstrip())


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Print `name  value` lines; a list or tuple value takes one line for each item."""
    rows = [
        (name, value if isinstance(value, (list, tuple)) else [value])
        for name, value in pairs
        if value not in ("", None, [], ())
    ]
    width = max((len(name) for name, _ in rows), default=0)
    colour = has_colour(sys.stdout)
    for name, values in rows:
        for number, value in enumerate(values):
            text = printable(value)
            if colour and (style := STYLES.get(text)):
                text = f"\x1b[{style}m{text}\x1b[0m"
            line(f"{name if number == 0 else '':{width}}  {text}")


def document(value: Any) -> None:
    """Print `value` as indented JSON."""
    line(json.dumps(value, indent=2, ensure_ascii=False))


def json_line(value: Mapping[str, Any]) -> None:
    """Print `value` as one line of JSON, at once."""
    line(json.dumps(value, ensure_ascii=False))
    sys.stdout.flush()


def note(text: str) -> None:
    """A remark for a person, kept out of the output that a program reads."""
    complaint(text)


def local_time(text: object) -> str:
    """An RFC 3339 time as this machine's wall clock, to the second."""
    if not text:
        return ""
    from datetime import datetime  # noqa: PLC0415 - start-up time

    try:
        return datetime.fromisoformat(str(text)).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return str(text)
