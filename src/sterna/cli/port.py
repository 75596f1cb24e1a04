"""`sterna vm export` and `sterna vm import`: VMs as folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from sterna.cli import complete
from sterna.cli.checkpoint import detach_option, follow_to_end
from sterna.cli.command import Command, Settings

if TYPE_CHECKING:
    from sterna.client import Client

FOLDER = click.Path(file_okay=False)
BLOCKED, WARNED = 3, 10  # DESIGN: exit codes


def _absolute(client: Client, folder: str) -> str:
    """As the user sees it from the current folder, spelt out for the daemon."""
    return os.path.abspath(folder) if client.is_local else folder  # noqa: PTH100 - keeps links


def _pairs(given: tuple[str, ...], what: str) -> dict[str, str]:
    pairs = {}
    for text in given:
        there, equals, here = text.partition("=")
        if not (there and equals and here):
            raise click.BadParameter(f"{text!r} does not read; write --{what} THERE=HERE")
        pairs[there] = here
    return pairs


@click.command(
    "export",
    cls=Command,
    short_help="Write a VM into a new folder.",
    examples=(
        "sterna vm export web /backup/web",
        "sterna vm export web /backup/web-monday --checkpoint before-upgrade --no-memory",
    ),
)
@click.argument("name", metavar="VM", shell_complete=complete.vms)
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--checkpoint", metavar="CHECKPOINT", default="", help="As it was then.")
@click.option("--no-memory", is_flag=True, help="Leave saved state and memory of checkpoints out.")
@detach_option
@click.pass_obj
def export(settings: Settings, /, name: str, folder: str, detach: bool, **options: Any) -> int:
    """Write a VM with its disks and checkpoints into a new folder of its host.

    The VM stays. One that runs is exported as it is now, through a checkpoint that is merged then.
    """
    from sterna.client import segment  # noqa: PLC0415 - start-up time

    def begin(client: Client) -> Any:
        wishes = {
            "folder": _absolute(client, folder),
            "checkpoint": options["checkpoint"],
            "memory": not options["no_memory"],
        }
        return client.post(f"/v1/vms/{segment(name)}/exports", wishes)

    return follow_to_end(settings, begin, detach)


@click.command(
    "import",
    cls=Command,
    examples=(
        "sterna vm import /backup/web",
        "sterna vm import /backup/web --check",
        "sterna vm import /backup/web --name web2 --new-identity",
        "sterna vm import /backup/web --pool fast --switch lan=office",
        "sterna vm import /backup/web --register --pool web-disks",
    ),
)
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option(
    "--copy/--register",
    "copies",
    default=True,
    help="Copy its files into pools (the default), or use them where they are: the folder "
    "becomes a pool.",
)
@click.option("--new-identity", is_flag=True, help="Another id and other MAC addresses.")
@click.option("--name", metavar="NAME", default="", help="Another name.")
@click.option(
    "--pool",
    "pools",
    metavar="POOL|THERE=HERE",
    multiple=True,
    help="For all files, or for those that were in pool THERE. With --register: the name of the "
    "folder's pool. Default: pools of the same names.",
)
@click.option(
    "--switch", "switches", metavar="THERE=HERE", multiple=True, help="Plug into another switch."
)
@click.option("--no-memory", is_flag=True, help="Leave saved state and memory of checkpoints out.")
@click.option("--check", is_flag=True, help="Only show what stands in the way.")
@detach_option
@click.pass_obj
def import_(settings: Settings, /, folder: str, check: bool, detach: bool, **options: Any) -> int:
    """Make a VM of an exported folder, after all that the host lacks is known."""
    pairs = tuple(one for one in options["pools"] if "=" in one)
    whole = [one for one in options["pools"] if "=" not in one]
    if len(whole) > 1:
        raise click.UsageError("one pool for all files, please", click.get_current_context())
    wishes = {
        "register": not options["copies"],
        "new_identity": options["new_identity"],
        "memory": not options["no_memory"],
        "name": options["name"],
        "pool": whole[0] if whole else "",
        "pools": _pairs(pairs, "pool"),
        "switches": _pairs(options["switches"], "switch"),
    }
    if check:
        return _show(settings, folder, wishes)

    def begin(client: Client) -> Any:
        return client.post("/v1/imports", {**wishes, "folder": _absolute(client, folder)})

    return follow_to_end(settings, begin, detach)


def _show(settings: Settings, folder: str, wishes: Mapping[str, Any]) -> int:
    from sterna.cli.output import document, fields, line  # noqa: PLC0415 - start-up time

    client = settings.client()
    found = client.post("/v1/imports:check", {**wishes, "folder": _absolute(client, folder)})
    severities = {one["severity"] for one in found}
    if settings.is_json:
        document(found)
    elif not found:
        line("nothing stands in the way")
    else:
        for one in found:
            fields([(one["severity"], one["finding"]), ("fix", one["fix"])])
    return BLOCKED if "blocker" in severities else WARNED if "warning" in severities else 0
