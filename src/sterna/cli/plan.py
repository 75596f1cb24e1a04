"""A plan: the report of a check in a file, to be edited, checked again, and done as approved."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sterna.errors import BadSpec

DEFAULTS = (None, "", (), False)


def read(file: str) -> dict[str, Any]:
    """The plan in `file`, or on standard input if that is `-`. Raises BadSpec."""
    where = f"plan {'on standard input' if file == '-' else file}"
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        plan: dict[str, Any] = json.loads(text)
    except OSError as error:
        raise BadSpec(where=where, reason=f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadSpec(where=where, reason=f"not JSON: {error}") from error
    parts = {"vm_id": str, "target": str, "wishes": dict, "facts": dict, "findings": list}
    for name, kind in parts.items():
        if not isinstance(plan, dict) or not isinstance(plan.get(name), kind):
            raise BadSpec(where=where, reason=f"it has no {name}: it is no report of sterna check")
    for one in plan["findings"]:
        if not isinstance(one, dict) or not isinstance(one.get("id"), str):
            raise BadSpec(where=where, reason="a finding in it has no id; check anew")
    if plan["wishes"].get("target") != plan["target"]:
        raise BadSpec(where=where, reason="wishes.target is another host than target; check anew")
    return plan


def again(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Body of a check of what is wished for now."""
    return {**plan["wishes"], "approved": None}


def approved(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Body of a move that is done exactly so, or refused."""
    findings = [one["id"] for one in plan["findings"]]
    return {**plan["wishes"], "approved": {"facts": plan["facts"], "findings": findings}}


def require_alone(given: Mapping[str, Any]) -> None:
    """UsageError if anything is given beside a plan, which says it all."""
    for name, value in given.items():
        if value not in DEFAULTS:
            problem = f"--plan says all; leave {name.replace('_', '-')} out, or edit the plan."
            raise click.UsageError(problem, click.get_current_context())
