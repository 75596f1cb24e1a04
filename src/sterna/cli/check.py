"""`sterna check`: every reason why a move would fail or hurt, and its fix, before it begins."""

from __future__ import annotations

from typing import Any

import click

from sterna.cli import complete
from sterna.cli.command import Command, Settings
from sterna.cli.move import options, wishes

EXIT = {"well": 0, "warned": 10, "blocked": 3}  # DESIGN: exit codes
CHECK_S = 60.0  # hosts that do not answer are given up long before


@click.command(
    "check",
    cls=Command,
    short_help="What a move would meet: every finding, and its fix.",
    examples=(
        "sterna check web host-b",
        "sterna check web host-b --pool fast --disk vdb=archive:raw",
        "sterna check web host-b -o json | jq .findings",
    ),
)
@click.argument("vm", metavar="VM", shell_complete=complete.vms)
@click.argument("target", metavar="HOST", shell_complete=complete.others)
@options
@click.pass_obj
def check(settings: Settings, /, vm: str, target: str, **wished: Any) -> int:
    """Check whether a VM can move to HOST, as `sterna move` does before it begins.

    Nothing is changed. A blocker is a reason why the move would fail or hurt and is not begun; a
    warning is worth to be known first. Exit code: 0 all is well, 10 warnings, 3 blockers.
    """
    from sterna.cli.output import document  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    body = wishes(target, wished)
    report = settings.client().post(f"/v1/vms/{segment(vm)}/moves:check", body, wait_s=CHECK_S)
    if settings.is_json:
        document(report)
    else:
        _show(report)
    return EXIT[report["outcome"]]


def _show(report: dict[str, Any]) -> None:
    from sterna.cli.output import line, table  # noqa: PLC0415 - start-up time

    found = report["findings"]
    if found:
        rows = [(one["severity"], one["id"], one["finding"], one["fix"]) for one in found]
        table(("SEVERITY", "ID", "FINDING", "FIX"), rows)
        line()
    line(_sentence(report))


def _sentence(report: dict[str, Any]) -> str:
    name, target = report["vm"], report["target"]
    counts = dict.fromkeys(("blocker", "warning"), 0)
    for one in report["findings"]:
        if one["severity"] in counts:
            counts[one["severity"]] += 1
    told = ", ".join(
        f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in counts.items() if count
    )
    if report["outcome"] == "blocked":
        return f"{name} cannot move to {target}: {told}"
    return f"{name} can move to {target}: {told or 'nothing in its way'}"
