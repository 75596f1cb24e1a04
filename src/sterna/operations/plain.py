"""Anything as JSON, whatever it holds: telling what happened must never be what fails."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Any

from sterna.model.edge import dump_json

log = logging.getLogger(__name__)


def text(value: Any) -> str:
    """JSON text of a model object or of JSON types; of anything else, something close to it."""
    try:
        return dump_json(value).decode()
    except Exception as error:  # noqa: BLE001 - a path in bytes, a lone surrogate, an object
        log.error("something told is no JSON: %s", error)  # noqa: TRY400 - it says it all
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return clean(json.dumps(value, default=str, ensure_ascii=False, skipkeys=True))


def data(value: Any) -> Any:
    """The same as JSON types."""
    return json.loads(text(value))


def clean(words: str) -> str:
    """What QEMU or a file system said, without the bytes that are no text."""
    return str(words).encode("utf-8", "replace").decode()
