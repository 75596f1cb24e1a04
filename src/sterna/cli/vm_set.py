"""`sterna vm set` and `sterna vm upgrade-version`: change what a VM is."""

from __future__ import annotations

import sys
from typing import Any

import click

from sterna.cli import complete, values
from sterna.cli.command import Command, Settings
from sterna.cli.placed import placed

LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4", "shared")
CANCELLED = 7  # DESIGN: exit codes
the_vm = click.argument("name", metavar="VM", shell_complete=complete.vms)


def _levels(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [level for level in LEVELS if level.startswith(incomplete)]


@click.command(
    "set",
    cls=Command,
    short_help="Change a VM: its processor, and where it may be.",
    examples=(
        "sterna vm set web --cpu-compat x86-64-v3",
        "sterna vm set web --cpu-compat shared",
        "sterna vm set web --cpu-compat shared --share-with host-b --share-with host-c",
        "sterna vm set db1 --anti-affinity db --allowed-hosts host-a,host-b --priority 90",
        "sterna vm set web --affinity shop --allowed-hosts none",
        "sterna vm set web --tag shop,public",
    ),
)
@the_vm
@click.option(
    "--cpu-compat",
    metavar="LEVEL",
    shell_complete=_levels,
    help="x86-64-v2, -v3 or -v4; shared: all that your hosts have in common; or a CPU model of "
    "QEMU.",
)
@click.option(
    "--share-with",
    metavar="HOST",
    multiple=True,
    shell_complete=complete.others,
    help="With shared: the hosts that it must be able to move to. Default: all known ones.",
)
@placed
@click.option(
    "--tag",
    "tags",
    type=values.names,
    metavar="TAG,...",
    help="Its labels: these and no others. Roles may be limited to a tag. none: it has none.",
)
@click.pass_obj
def set_(settings: Settings, /, name: str, share_with: tuple[str, ...], **wanted: Any) -> None:
    """Change a VM. A guest that runs, or is saved, sees its new processor from its next start.

    Where it may be, and beside whom, holds at once: for moves, and when a host is emptied.
    """
    from sterna.cli import vm_view  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    changes = {key: value for key, value in wanted.items() if value is not None}
    if not changes:
        problem = (
            "Say what shall change: --cpu-compat, --affinity, --anti-affinity, --allowed-hosts, "
            "--priority or --tag."
        )
        raise click.UsageError(problem, click.get_current_context())
    if share_with:
        changes["share_with"] = list(share_with)
    view = settings.client().patch(f"/v1/vms/{segment(name)}", changes)
    done = "set, from its next start, the processor of" if view.get("cpu_next") else "set"
    vm_view.changed(settings, view, done)


@click.command(
    "upgrade-version",
    cls=Command,
    short_help="Raise the machine version of a VM that is off, for good.",
    examples=(
        "sterna vm upgrade-version web",
        "sterna vm upgrade-version web --to pc-q35-9.2 --yes",
    ),
)
@the_vm
@click.option("--to", metavar="TYPE", default="", help="Machine type. Default: the newest here.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def upgrade_version(settings: Settings, /, name: str, to: str, yes: bool) -> int:
    """Raise the version of the machine that a VM is. It must be off, and it cannot be undone.

    Hosts with an older QEMU cannot run the VM any more; they are named before anything is done.
    """
    from sterna.cli import vm_view  # noqa: PLC0415 - start-up time
    from sterna.cli.output import line, note  # noqa: PLC0415
    from sterna.client import segment  # noqa: PLC0415
    from sterna.errors import Unconfirmed  # noqa: PLC0415

    client, path = settings.client(), f"/v1/vms/{segment(name)}"
    plan = client.get(f"{path}/upgrade", {"machine": to} if to else None)
    if plan["to"] == plan["machine"]:
        if settings.is_json:
            vm_view.one(settings, client.get(path))
        else:
            line(f"{name} is a {plan['machine']} already")
        return 0
    for text in _losses(plan):
        note(text)
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise Unconfirmed(action=f"raising the version of {name}")
        if not click.confirm(f"Make {name} a {plan['to']} for good?", err=True):
            note("nothing was changed")
            return CANCELLED
    view = client.post(f"{path}:upgrade-version", {"machine": plan["to"]})
    vm_view.changed(settings, view, f"raised the version to {plan['to']} of")
    return 0


def _losses(plan: dict[str, Any]) -> list[str]:
    """What will not be possible any more, a sentence each."""
    name, to = plan["vm"], plan["to"]
    told = [f"{name} is a {plan['machine']} and becomes a {to}; that cannot be taken back"]
    told += [
        f"{host} is left behind: it offers {newest} at most"
        for host, newest in plan["left_behind"].items()
    ]
    told += [
        f"whether {host} offers {to} is not known: {reason}"
        for host, reason in plan["unknown"].items()
    ]
    if plan["memory"]:
        told.append(f"the memory of checkpoints is of no use then: {', '.join(plan['memory'])}")
    return told
