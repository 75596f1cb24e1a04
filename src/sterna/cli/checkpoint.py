"""`sterna vm checkpoint`: points in time of a VM to go back to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from sterna.cli import complete
from sterna.cli.command import Settings, command, group
from sterna.cli.values import duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from sterna.client import Client

checkpoint = group(
    "checkpoint",
    "Points in time of a VM: make them, go back to them.",
    "sterna vm checkpoint create web before-upgrade",
    "sterna vm checkpoint tree web",
    "sterna vm checkpoint apply web before-upgrade --force",
)
the_vm = click.argument("name", metavar="VM", shell_complete=complete.vms)
CANCELLED = 7  # DESIGN: exit codes


def _checkpoints(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Completion of the names of the checkpoints of the VM that is named before."""
    from sterna.client import segment  # noqa: PLC0415 - start-up time

    try:
        settings = context.find_object(Settings) or Settings()
        path = f"/v1/vms/{segment(str(context.params.get('name')))}/checkpoints"
        found = settings.client(complete.PATIENCE_S).get(path, wait_s=complete.PATIENCE_S)
        return sorted(one["name"] for one in found if one["name"].startswith(incomplete))
    except Exception:  # noqa: BLE001 - a completion never disturbs the line being typed
        return []


the_checkpoint = click.argument("point", metavar="CHECKPOINT", shell_complete=_checkpoints)
detach_option = click.option(
    "--detach", is_flag=True, help="Print the operation's id and do not wait."
)


def _path(name: str, point: str = "", action: str = "") -> str:
    from sterna.client import segment  # noqa: PLC0415 - start-up time

    path = f"/v1/vms/{segment(name)}/checkpoints"
    return f"{path}/{segment(point)}{action}" if point else path


def follow_to_end(settings: Settings, begin: Callable[[Client], Any], detach: bool) -> int:
    """Begin an operation and follow it; Ctrl-C cancels it."""
    from sterna.cli import follow  # noqa: PLC0415 - start-up time

    client = settings.client()
    with follow.Interrupts() as interrupts:
        operation = begin(client)
        if detach:
            return follow.detached(settings, operation)
        return follow.to_end(settings, client, operation, interrupts, on_interrupt="cancel")


@command(
    checkpoint,
    "create",
    "sterna vm checkpoint create web",
    "sterna vm checkpoint create web before-upgrade",
    "sterna vm checkpoint create web nightly --disks-only",
    "sterna vm checkpoint create web before-upgrade --max-downtime 100ms -o json | tail -n 1",
)
@the_vm
@click.argument("point", metavar="[CHECKPOINT]", required=False, default="")
@click.option(
    "--memory/--disks-only",
    "memory",
    default=None,
    help="With its memory, or its disks alone. Default: with memory if it runs.",
)
@click.option(
    "--max-downtime",
    type=duration,
    metavar="DURATION",
    help="Longest pause that is aimed for. Default: 300ms.",
)
@detach_option
@click.pass_obj
def create(settings: Settings, /, name: str, point: str, detach: bool, **wished: Any) -> int:
    """Make a checkpoint of a VM, running or off.

    A VM that runs goes on meanwhile and stands still for a moment only, as in a move. Without a
    name it is called after the time of day. Ctrl-C cancels it and waits until it is undone.
    """
    wishes: dict[str, Any] = {"name": point, "memory": wished["memory"]}
    if wished["max_downtime"] is not None:
        wishes["max_downtime_ms"] = round(wished["max_downtime"] * 1000)
    return follow_to_end(settings, lambda client: client.post(_path(name), wishes), detach)


@command(
    checkpoint,
    "list",
    "sterna vm checkpoint list web",
    "sterna vm checkpoint list web -o json",
)
@the_vm
@click.pass_obj
def list_(settings: Settings, name: str) -> None:
    """List the checkpoints of a VM."""
    from sterna.cli import checkpoint_view  # noqa: PLC0415 - start-up time

    checkpoint_view.many(settings, settings.client().get(_path(name)), name)


@command(checkpoint, "tree", "sterna vm checkpoint tree web")
@the_vm
@click.pass_obj
def tree(settings: Settings, name: str) -> None:
    """Show which checkpoint was made after which, and where the VM is now."""
    from sterna.cli import checkpoint_view  # noqa: PLC0415 - start-up time

    checkpoint_view.tree(settings, settings.client().get(_path(name)), name)


@command(
    checkpoint,
    "apply",
    "sterna vm checkpoint apply web before-upgrade",
    "sterna vm checkpoint apply web before-upgrade --force --keep after-upgrade",
    "sterna vm checkpoint apply web before-upgrade --force --no-memory",
)
@the_vm
@the_checkpoint
@click.option("--no-memory", is_flag=True, help="Its disks alone: the VM is off afterwards.")
@click.option("--keep", metavar="NAME", default="", help="First make a checkpoint of now.")
@click.option("--force", is_flag=True, help="Cut off a VM that runs; do not ask.")
@detach_option
@click.pass_obj
def apply(settings: Settings, /, name: str, point: str, detach: bool, **wished: Any) -> int:
    """Go back to a checkpoint; what the VM is now is lost but for --keep.

    With memory the VM goes on running from that instant; without, it is off. The checkpoint itself
    stays as it is. A VM that runs is cut off first: that is asked about on a terminal.
    """
    from sterna.cli.output import note  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    client, keep, force = settings.client(), wished["keep"], wished["force"]
    if not force and sys.stdin.isatty() and sys.stderr.isatty():
        view = client.get(f"/v1/vms/{segment(name)}")
        if view["state"] != "off" or view.get("saved"):
            state = "saved" if view.get("saved") else view["state"]
            kept = f"stays as {keep}" if keep else "is lost"
            if not click.confirm(
                f"{name} is {state}; what it is now {kept}. Go back to {point}?", err=True
            ):
                note("nothing was changed")
                return CANCELLED
            force = True
    wishes = {"memory": not wished["no_memory"], "force": force, "keep": keep}
    return follow_to_end(
        settings, lambda asked: asked.post(_path(name, point, ":apply"), wishes), detach
    )


@command(
    checkpoint,
    "delete",
    "sterna vm checkpoint delete web before-upgrade",
    "sterna vm checkpoint delete web before-upgrade --subtree",
)
@the_vm
@the_checkpoint
@click.option("--subtree", is_flag=True, help="And all that were made after it.")
@detach_option
@click.pass_obj
def delete(settings: Settings, name: str, point: str, subtree: bool, detach: bool) -> int:
    """Delete a checkpoint; the VM keeps its content and goes on running.

    What the checkpoint held is merged with what was written since. Ctrl-C stops the merging: the
    VM is as before, and the same command merges it later.
    """
    return follow_to_end(
        settings,
        lambda client: client.delete(_path(name, point), {"subtree": subtree}),
        detach,
    )


@command(checkpoint, "rename", "sterna vm checkpoint rename web 2026-11-22-231504 before-upgrade")
@the_vm
@the_checkpoint
@click.argument("new", metavar="NEW")
@click.pass_obj
def rename(settings: Settings, name: str, point: str, new: str) -> None:
    """Give a checkpoint another name."""
    from sterna.cli.output import document, line, printable  # noqa: PLC0415 - start-up time

    row = settings.client().post(_path(name, point, ":rename"), {"name": new})
    if settings.is_json:
        document(row)
    else:
        line(printable(f"checkpoint {point} of {name} is called {row['name']} now"))
