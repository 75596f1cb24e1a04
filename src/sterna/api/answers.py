"""How routes answer: model objects as JSON, an operation with its place."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from sterna.model.edge import dump_json
from sterna.model.operation import Operation


def answer(value: Any, status: int = 200, location: str = "") -> Response:
    """`value` (model objects, JSON types, lists of them) as JSON."""
    headers = {"Location": location} if location else None
    return Response(dump_json(value), status, headers=headers, media_type="application/json")


def accepted(operation: Operation) -> Response:
    """202: the work goes on in the operation at Location."""
    return answer(operation, 202, f"/v1/operations/{operation.id}")
