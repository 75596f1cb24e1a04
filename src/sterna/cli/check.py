"""`sterna check`: every reason why a move would fail or hurt, and its fix, before it begins."""

from __future__ import annotations

from typing import Any

import click

from sterna.cli import complete
from sterna.cli.command import Command, Settings
from sterna.cli.move import options, places, storage_wishes, wishes

EXIT = {"well": 0, "warned": 10, "blocked": 3}  # DESIGN: exit codes
CHECK_S = 60.0  # hosts that do not answer are given up long before


@click.command(
    "check",
    cls=Command,
    short_help="What a move would meet: every finding, and its fix.",
    examples=(
        "sterna check web host-b",
        "sterna check web",
        "sterna check web host-b --pool fast --disk vdb=archive:raw",
        "sterna check web host-b --fix",
        "sterna check web --storage fast",
        "sterna check web host-b -o json | jq .findings",
        "sterna check web host-b -o json > plan.json; sterna move --plan plan.json",
    ),
)
@click.argument("vm", metavar="VM", required=False, shell_complete=complete.vms)
@click.argument("hosts", metavar="[HOST]…", nargs=-1, shell_complete=places)
@click.option(
    "--storage",
    is_flag=True,
    help="Of a move to other pools of this host: instead of HOST give a POOL, or DISK=POOL[:FORMAT]…",
)
@options
@click.option(
    "--plan",
    type=click.Path(),
    metavar="FILE",
    help="Check a plan again: the report of a check, whose wishes may have been edited.",
)
@click.option(
    "--fix", is_flag=True, help="Run the commands of all fixes that are safe, then check."
)
@click.pass_obj
def check(
    settings: Settings,
    /,
    vm: str | None,
    hosts: tuple[str, ...],
    plan: str | None,
    fix: bool,
    **wished: Any,
) -> int:
    """Check whether a VM can move to HOST, as `sterna move` does before it begins.

    With several HOSTs, or none for all that are known, the result is a line for each.

    A blocker is a reason why the move would fail or hurt, and is not begun; a warning is worth to
    be known first. Nothing is changed, unless with --fix, which runs the fixes that change no
    guest and destroy nothing. With -o json the report is a plan, which `sterna move --plan` follows
    to the letter. Exit code: 0 all is well, 10 warnings, 3 blockers.
    """
    from sterna.cli.output import document  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    if plan is None and len(hosts) != 1 and not wished["storage"]:
        return _survey(settings, vm, hosts, fix, wished)
    vm, body = _asked(vm, hosts, plan, wished)
    kind = "storage-moves" if wished["storage"] else "moves"
    path = f"/v1/vms/{segment(vm)}/{kind}:check"
    report = settings.client().post(path, body, wait_s=CHECK_S)
    if fix and _mend(settings, report["findings"]):
        report = settings.client().post(path, body, wait_s=CHECK_S)
    if settings.is_json:
        document(report)
    else:
        _show(report)
    return EXIT[report["outcome"]]


def _asked(
    vm: str | None, hosts: tuple[str, ...], file: str | None, wished: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """VM and body of the check."""
    if file is not None:
        from sterna.cli import plan  # noqa: PLC0415 - start-up time

        plan.require_alone({"VM": vm, "HOST": hosts, **wished})
        old = plan.read(file)
        return old["vm_id"], plan.again(old)
    if vm is None:
        raise click.UsageError("Missing argument 'VM'.", click.get_current_context())
    return vm, storage_wishes(hosts, wished) if wished["storage"] else wishes(hosts[0], wished)


def _survey(
    settings: Settings,
    vm: str | None,
    hosts: tuple[str, ...],
    fix: bool,
    wished: dict[str, Any],
) -> int:
    """Where can it go? The exit code is that of the best host."""
    from urllib.parse import quote  # noqa: PLC0415 - start-up time

    from sterna.cli.output import document, note, table  # noqa: PLC0415
    from sterna.client import segment  # noqa: PLC0415

    if vm is None or fix:
        problem = "--fix is for one HOST." if vm else "Missing argument 'VM'."
        raise click.UsageError(problem, click.get_current_context())
    query = "&".join(f"host={quote(host)}" for host in hosts)
    path = f"/v1/vms/{segment(vm)}/moves:survey{f'?{query}' if query else ''}"
    reports = settings.client().post(path, wishes("*", wished), wait_s=CHECK_S)
    order = list(EXIT)
    reports.sort(key=lambda one: (order.index(one["outcome"]), one["target"]))
    if settings.is_json:
        document(reports)
    elif reports:
        rows = [(one["target"], one["outcome"], *_first(one["findings"])) for one in reports]
        table(("HOST", "OUTCOME", "ID", "FINDING"), rows)
    else:
        note("no other host is known here; pair one: sterna host invite")
    return EXIT[reports[0]["outcome"]] if reports else EXIT["blocked"]


def _first(found: list[dict[str, Any]]) -> tuple[str, str]:
    """Id and text of the worst finding, and how many more there are."""
    if not found:
        return "", ""
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return found[0]["id"], found[0]["finding"] + more


def _mend(settings: Settings, found: list[dict[str, Any]]) -> bool:
    """Run the commands of the fixes that are safe, each once; whether there were any."""
    from contextlib import redirect_stdout  # noqa: PLC0415 - start-up time
    from copy import copy  # noqa: PLC0415
    from shlex import split  # noqa: PLC0415
    from sys import stderr  # noqa: PLC0415

    from sterna.cli.failure import report  # noqa: PLC0415
    from sterna.cli.main import sterna  # noqa: PLC0415
    from sterna.cli.output import note  # noqa: PLC0415

    commands = dict.fromkeys(one["command"] for one in found if one["is_safe"] and one["command"])
    for command in commands:
        note(f"+ {command}")
        arguments = split(command)[1:]
        # The host that was asked, unless the command names another.
        same = Settings() if "--host" in arguments else copy(settings)
        same.output = "table"
        try:
            with redirect_stdout(stderr):
                sterna.main(args=arguments, prog_name="sterna", standalone_mode=False, obj=same)
        except Exception as error:  # noqa: BLE001 - the check that follows tells what is left
            report(error, same, arguments)
    return bool(commands)


def _show(report: dict[str, Any]) -> None:
    from sterna.cli.output import line, table  # noqa: PLC0415 - start-up time
    from sterna.units import format_size  # noqa: PLC0415

    found = report["findings"]
    if found:
        rows = [(one["severity"], one["id"], one["finding"], one["fix"]) for one in found]
        table(("SEVERITY", "ID", "FINDING", "FIX"), rows)
        line()
    for way in report.get("ways") or ():
        if way["state"] == "open":
            speed = f", {format_size(report['rate'])}/s" if report.get("rate") else ""
            line(f"from {way['local']} to {way['address']}: {way['rtt_ms']:g} ms{speed}")
    for one in report.get("forecasts") or ():
        line(_forecast(one, is_chosen=one["kind"] == report["carrier"]))
    line(_sentence(report))


def _forecast(one: dict[str, Any], *, is_chosen: bool) -> str:
    from sterna.units import format_duration, format_size  # noqa: PLC0415 - start-up time

    kind = f"by {one['kind']}{' (chosen)' if is_chosen else ''}"
    if one["total_s"] is None:
        needed = one.get("needs_pause_ms")
        pause = f" below a pause of {format_duration(needed / 1000)}" if needed else ""
        faster = f"a link of {format_size(rate)}/s" if (rate := one.get("needs_rate")) else ""
        way = f"; {faster} would do as well" if faster else "; a faster link would not help"
        return (
            f"{kind}: will not converge{pause}, because the guest changes its memory faster than "
            f"it would be sent{way}"
        )
    return (
        f"{kind}: about {format_duration(one['total_s'])}, a pause of "
        f"{format_duration(one['pause_ms'] / 1000)}, {format_size(one['bytes_wire'])} on the wire"
    )


def _sentence(report: dict[str, Any]) -> str:
    who = report["vm"] if "target" in report else f"the disks of {report['vm']}"
    can = f"can move to {report['target']}" if "target" in report else "can move"
    counts = dict.fromkeys(("blocker", "warning"), 0)
    for one in report["findings"]:
        if one["severity"] in counts:
            counts[one["severity"]] += 1
    told = ", ".join(
        f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in counts.items() if count
    )
    if report["outcome"] == "blocked":
        return f"{who} {can.replace('can', 'cannot', 1)}: {told}"
    way = "its" if "target" in report else "their"
    return f"{who} {can}: {told or f'nothing in {way} way'}"
