"""Moves of several VMs: the plan that is shown first, and what became of each."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any, Literal

from sterna.cli.command import Settings
from sterna.cli.output import document, json_line, line, note, table
from sterna.units import format_size

CHECK_S = 300.0  # all VMs are looked at, a few at a time; hosts that are silent are given up soon
EXIT = {"well": 0, "warned": 10, "blocked": 3}  # DESIGN: exit codes
MARKS = {"moved": "moved", "leftovers": "moved, with leftovers"}


def carry_out(  # noqa: PLR0913 - the last three are how it is followed
    settings: Settings,
    path: str,
    body: Mapping[str, Any],
    *,
    dry_run: bool,
    detach: bool,
    on_interrupt: Literal["cancel", "detach"] = "cancel",
) -> int:
    """Show the plan of `POST path`, then do it and follow it, unless `dry_run`."""
    from sterna.cli import follow  # noqa: PLC0415 - start-up time

    client = settings.client()
    plan = client.post(f"{path}:check", body, wait_s=CHECK_S)
    if dry_run:
        if settings.is_json:
            document(plan)
        else:
            show(plan)
        return EXIT[worst(plan)]
    if settings.is_json:
        json_line({"type": "plan", **plan})
    else:
        with redirect_stdout(sys.stderr):  # the result is what became of it
            show(plan)
    with follow.Interrupts() as interrupts:
        operation = client.post(path, body, wait_s=CHECK_S)
        if detach:
            return follow.detached(settings, operation)
        return follow.to_end(settings, client, operation, interrupts, on_interrupt)


def show(plan: Mapping[str, Any]) -> None:
    """A line for each VM, in the order in which they go."""
    if not plan["vms"]:
        line(f"{plan['source']}: there is no VM to move")
    else:
        rows = [
            (
                one["vm"],
                one["state"],
                format_size(one["memory"]) if one["memory"] else "",
                one["priority"],
                one["target"],
                one["outcome"],
                one["reason"],
            )
            for one in plan["vms"]
        ]
        headers = ("VM", "STATE", "MEMORY", "PRIORITY", "TO", "OUTCOME", "FINDING")
        table(headers, rows, right=(2, 3))
    for text in plan.get("notes") or ():
        line(text)


def worst(plan: Mapping[str, Any]) -> str:
    """Of all that is planned."""
    order = list(EXIT)
    return max((one["outcome"] for one in plan["vms"]), key=order.index, default="well")


def sentences(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """What became of each VM, a sentence each."""
    return [_sentence(one) for one in parts]


def tell(parts: Sequence[Mapping[str, Any]]) -> None:
    """The fix of each VM that did not move, if there are several of them."""
    stayed = [one for one in parts if one["state"] not in (*MARKS, "skipped")]
    for one in stayed if len(stayed) > 1 else ():
        note(f"  {_sentence(one)}" + (f" ({one['fix']})" if one.get("fix") else ""))


def _sentence(one: Mapping[str, Any]) -> str:
    to = f" to {one['target']}" if one.get("target") else ""
    state = f"{MARKS[one['state']]}{to}" if one["state"] in MARKS else one["state"]
    return f"{one['vm']}: {state}" + (f", {one['reason']}" if one.get("reason") else "")
