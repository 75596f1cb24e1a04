"""Where outside data becomes model objects and back: the only user of pydantic on the model."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from sterna.errors import BadSize, BadSpec

T = TypeVar("T")

_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def _adapter(cls: Any) -> TypeAdapter[Any]:
    if cls not in _ADAPTERS:
        _ADAPTERS[cls] = TypeAdapter(cls)
    return _ADAPTERS[cls]


def require_text(raw: bytes, where: str) -> None:
    """Raises BadSpec if `raw` is JSON that spells halves of characters, which nobody can write down."""
    if b"\\u" not in raw:
        return
    try:
        json.dumps(json.loads(raw), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadSpec(where=where, reason="it has half a character, such as \\ud800") from error
    except ValueError:
        return  # no JSON: others say so


def parse(cls: type[T], data: Any, where: str) -> T:
    """`data` (JSON types) as a `cls`. Raises BadSpec with one sentence that names the field."""
    try:
        value: T = _adapter(cls).validate_python(data)
    except BadSize as error:
        raise BadSpec(where=where, reason=error.message) from error
    except ValidationError as error:
        raise BadSpec(where=where, reason=sentence(error)) from error
    return value


def parse_json(cls: type[T], text: str | bytes, where: str) -> T:
    """Like `parse`, from JSON text."""
    try:
        value: T = _adapter(cls).validate_json(text)
    except BadSize as error:
        raise BadSpec(where=where, reason=error.message) from error
    except ValidationError as error:
        raise BadSpec(where=where, reason=sentence(error)) from error
    return value


def dump(value: Any) -> Any:
    """JSON types of a model object."""
    return _adapter(type(value)).dump_python(value, mode="json")


def dump_json(value: Any, indent: int | None = None) -> bytes:
    """JSON text of a model object."""
    return _adapter(type(value)).dump_json(value, indent=indent)


def sentence(error: ValidationError) -> str:
    """The first finding of pydantic as a person would say it, and how many more there are."""
    findings = error.errors(include_url=False)
    first = findings[0]
    place = ".".join(str(part) for part in first["loc"])
    match first["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            text = f"unknown field {place!r}"
        case "missing" | "missing_keyword_only_argument" | "missing_argument":
            text = f"field {place!r} is missing"
        case "value_error":
            text = str(first["ctx"]["error"])
            text = f"{place}: {text}" if place else text
        case _:
            text = f"{place}: {first['msg']}" if place else str(first["msg"])
    more = len(findings) - 1
    return text if not more else f"{text} (and {more} more)"
