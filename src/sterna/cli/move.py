"""`sterna move`: carry VMs to another host, or the disks of one to other pools of its host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from sterna.cli import complete
from sterna.cli.command import Command, Settings
from sterna.cli.values import duration, place, plugged, rate

DAY_S = 86400
OPTIONS = (
    click.option(
        "--max-downtime",
        type=duration,
        metavar="DURATION",
        help="Longest pause that is aimed for. Default: the host's, 300ms at first.",
    ),
    click.option(
        "--bandwidth",
        type=rate,
        metavar="RATE",
        help="Use at most so much: 100MB (a second), 1Gbit.",
    ),
    click.option(
        "--deadline",
        type=duration,
        metavar="DURATION",
        help="Give up and undo if it is not done by then: 10m.",
    ),
    click.option(
        "--on-stall",
        type=click.Choice(["auto", "wait", "throttle", "postcopy", "abort"]),
        help="If the guest changes memory as fast as it travels. Default: auto, which slows it down "
        "before it gives up. With postcopy it runs on HOST before all its memory is there: it is off "
        "if one of both hosts fails then.",
    ),
    click.option(
        "--pool",
        metavar="POOL",
        help="Put disks that travel there. Default: the pool of the same name.",
    ),
    click.option(
        "--disk",
        "places",
        type=place,
        metavar="DISK=POOL[:FORMAT]",
        multiple=True,
        help="Put this disk there, even if it is on a shared pool; FORMAT is qcow2 or raw.",
    ),
    click.option(
        "--network",
        "networks",
        type=plugged,
        metavar="NIC=SWITCH",
        multiple=True,
        help="Plug this NIC into that switch there. Default: the switch of the same name.",
    ),
    click.option(
        "--flatten", is_flag=True, help="Make one image of each disk and what it rests on."
    ),
    click.option(
        "--keep-source",
        is_flag=True,
        help="Keep the disks here, under another name: sterna disk kept.",
    ),
    click.option(
        "--keep-for",
        type=duration,
        metavar="DURATION",
        help="With --keep-source: how long. Default: 168h, a week.",
    ),
    click.option("--parallel-disks", type=int, metavar="N", help="Disks at a time. Default: 2."),
    click.option(
        "--disk-copy",
        type=click.Choice(["auto", "mirror", "seed"]),
        help="How disks of a running VM go: by QEMU's mirror; or as frozen files, compressed, which a "
        "second try goes on with, and a mirror of what is written meanwhile.",
    ),
    click.option(
        "--carrier",
        type=click.Choice(["auto", "direct", "compression"]),
        help="How memory and disks of a running VM go: from QEMU to QEMU; or through relays that send "
        "only what the target lacks; or auto, by what is measured. Default: the host's, auto at first.",
    ),
)


def places(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Hosts, or with --storage pools."""
    names = complete.pools if context.params.get("storage") else complete.others
    return names(context, parameter, incomplete)


def _places(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """More VMs, and hosts; or with --storage pools."""
    names = places(context, parameter, incomplete)
    if context.params.get("storage"):
        return names
    given = {context.params.get("vm"), *(context.params.get("where") or ())}
    names += complete.vms(context, parameter, incomplete)
    return [name for name in names if name not in given]


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: what can be wished for in a move, and in a check of one."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.command(
    "move",
    cls=Command,
    short_help="Move VMs to another host, or disks of one to other pools.",
    examples=(
        "sterna move web host-b",
        "sterna move web host-b --max-downtime 100ms --bandwidth 1Gbit",
        "sterna move web host-b --pool fast --disk vdb=archive:raw",
        "sterna move web host-b --network net0=dmz",
        "sterna move web host-b --keep-source --keep-for 48h",
        "sterna move web host-b --carrier compression",
        "sterna move web host-b --deadline 10m -o json | tail -n 1",
        "sterna move web1 web2 db host-b",
        "sterna move web1 web2 db host-b --dry-run",
        "sterna move web --storage fast",
        "sterna move web --storage vda=fast vdb=archive:raw --keep-source",
        "sterna check web host-b -o json > plan.json; sterna move --plan plan.json",
        "sterna op wait $(sterna move web host-b --detach)",
    ),
)
@click.argument("vm", metavar="VM", required=False, shell_complete=complete.vms)
@click.argument(
    "where", metavar="[VM...] HOST | POOL | DISK=POOL...", nargs=-1, shell_complete=_places
)
@click.option(
    "--storage",
    is_flag=True,
    help="Stay on this host; instead of HOST give a POOL for all disks, or DISK=POOL[:FORMAT]...",
)
@options
@click.option(
    "--plan",
    type=click.Path(),
    metavar="FILE",
    help="Move exactly as `sterna check -o json` has planned, or not at all; instead of VM and HOST.",
)
@click.option("--dry-run", is_flag=True, help="Show what would become of each VM, and do nothing.")
@click.option("--detach", is_flag=True, help="Print the operation's id and do not wait.")
@click.pass_obj
def move(
    settings: Settings,
    /,
    vm: str | None,
    where: tuple[str, ...],
    plan: str | None,
    detach: bool,
    **wished: Any,
) -> int:
    """Move a VM to another host, live if it runs, with its disks unless the hosts share them.

    Several VMs are one operation: what is planned for each is shown first, they go in the order
    given, as many at a time as both hosts allow, and one that fails stops no other.

    With --storage the VM stays where it is and its disks go to other pools of that host, all of
    them or those that are named.

    A move that fails is undone and the VM goes on here. Ctrl-C cancels the move and waits until
    it is undone; a second Ctrl-C leaves it alone and says how to follow it.
    """
    from sterna.cli import follow  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    if plan is not None:
        vm, body = _planned(plan, {"VM": vm, "HOST": where, **wished})
    elif vm is None:
        raise click.UsageError("Missing argument 'VM'.", click.get_current_context())
    elif wished["dry_run"] and wished["storage"]:
        problem = "--dry-run is for moves to another host."
        raise click.UsageError(problem, click.get_current_context())
    elif (len(where) > 1 or wished["dry_run"]) and not wished["storage"]:
        from sterna.cli import several  # noqa: PLC0415 - start-up time

        body = {"vms": [vm, *where[:-1]], "wishes": _host(where[-1:], wished)}
        return several.carry_out(
            settings, "/v1/moves", body, dry_run=wished["dry_run"], detach=detach
        )
    else:
        body = storage_wishes(where, wished) if wished["storage"] else _host(where, wished)
    kind = "storage-moves" if wished["storage"] else "moves"
    client = settings.client()
    with follow.Interrupts() as interrupts:
        operation = client.post(f"/v1/vms/{segment(vm)}/{kind}", body)
        if detach:
            return follow.detached(settings, operation)
        return follow.to_end(settings, client, operation, interrupts, on_interrupt="cancel")


def _planned(file: str, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """VM and body of a move that a plan describes."""
    from sterna.cli import plan  # noqa: PLC0415 - start-up time

    plan.require_alone(given)
    approved = plan.read(file)
    return approved["vm_id"], plan.approved(approved)


def _host(where: tuple[str, ...], wished: Mapping[str, Any]) -> dict[str, Any]:
    """Body of a move to another host."""
    if not where:
        raise click.UsageError("Missing argument 'HOST'.", click.get_current_context())
    return wishes(where[0], wished)


def wishes(host: str, wished: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for with `options`, as the API wants it."""
    pause = wished["max_downtime"]
    given = {
        "max_downtime_ms": None if pause is None else round(pause * 1000),
        "deadline_s": wished["deadline"],
        "on_stall": wished["on_stall"],
        "pool": wished["pool"],
        "disks": dict(wished["places"]) or None,
        "networks": dict(wished["networks"]) or None,
        "disk_copy": wished["disk_copy"],
        "carrier": wished["carrier"],
    }
    return {"target": host} | _given(given) | _common(wished)


def storage_wishes(where: tuple[str, ...], wished: Mapping[str, Any]) -> dict[str, Any]:
    """Body of a move of disks within the host, and of its check."""
    context = click.get_current_context()
    for option in ("max_downtime", "deadline", "on_stall", "disk_copy"):
        if wished[option] is not None:
            name = option.replace("_", "-")
            raise click.UsageError(f"--{name} is for moves to another host.", context)
    if wished["networks"]:
        raise click.UsageError("--network is for moves to another host.", context)
    pools = [text for text in where if "=" not in text] + [wished["pool"]] * bool(wished["pool"])
    places = [place(text) for text in where if "=" in text] + list(wished["places"])
    if len(pools) > 1:
        problem = f"All disks cannot go to {' and to '.join(pools)}; write DISK=POOL."
        raise click.UsageError(problem, context)
    if not pools and not places:
        problem = "Say where the disks shall go: POOL, or DISK=POOL for each."
        raise click.UsageError(problem, context)
    given = {"pool": pools[0] if pools else None, "disks": dict(places) or None}
    return _given(given) | _common(wished)


def _common(wished: Mapping[str, Any]) -> dict[str, Any]:
    keep = wished["keep_for"]
    if keep is not None and not wished["keep_source"]:
        problem = "--keep-for says how long to keep the disks here; that needs --keep-source."
        raise click.UsageError(problem, click.get_current_context())
    return _given({
        "bandwidth": wished["bandwidth"],
        "flatten": wished["flatten"] or None,
        "keep_source": wished["keep_source"] or None,
        "keep_days": None if keep is None else keep / DAY_S,
        "parallel_disks": wished["parallel_disks"],
    })  # fmt: skip


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
