"""Log set-up: one line a record (time, level, logger, message) on stderr; never a secret.

Tokens of invitations, private keys, and whatever follows `Bearer`, are replaced before they are written.
"""

from __future__ import annotations

import logging
import re
import sys
from datetime import UTC, datetime
from typing import TextIO

HIDDEN = "***"
_BEARER = re.compile(r"(?i)(bearer\s+)[^\s'\",)\]}]+")
_TOKEN = re.compile(r"sterna1\.[A-Za-z0-9_-]+")
_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL
)
_QUIET = (
    "uvicorn",
    "asyncio",
    "httpx2",
    "qemu.qmp",
)  # their everyday words are of no use to an administrator


class OneLine(logging.Formatter):
    """`2026-11-22T19:47:05.885Z WARNING sterna.operations.journal: text`, tracebacks joined by ` | `."""

    def format(self, record: logging.LogRecord) -> str:
        text = _KEY.sub(HIDDEN, super().format(record))
        text = _TOKEN.sub(HIDDEN, text)
        text = _BEARER.sub(rf"\1{HIDDEN}", text)
        return " | ".join(line for line in text.splitlines() if line.strip())

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802, ARG002 - logging's name
        when = datetime.fromtimestamp(record.created, UTC)
        return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def setup(level: str = "info", stream: TextIO | None = None) -> None:
    """Send everything of `level` and above to `stream` (stderr); calling again replaces it."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one.formatter, OneLine)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
