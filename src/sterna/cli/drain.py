"""`sterna host drain` and `sterna host resume`: empty a host for maintenance, and fill it again."""

from __future__ import annotations

from typing import Any

import click

from sterna.cli import complete
from sterna.cli.command import Command, Settings
from sterna.cli.move import options, wishes

the_host = click.argument("name", metavar="[HOST]", required=False, shell_complete=complete.hosts)
dry_run_ = click.option(
    "--dry-run", is_flag=True, help="Show what would become of each VM, and do nothing."
)
detach_ = click.option("--detach", is_flag=True, help="Print the operation's id and do not wait.")


@click.command(
    "drain",
    cls=Command,
    short_help="Empty a host for maintenance.",
    examples=(
        "sterna host drain",
        "sterna host drain host-b --dry-run",
        "sterna host drain --to host-b --to host-c",
        "sterna host drain --keep-off -o json | tail -n 1",
        "sterna host drain --max-downtime 2s --on-stall throttle --bandwidth 1Gbit",
    ),
)
@the_host
@click.option(
    "--to",
    multiple=True,
    metavar="HOST",
    shell_complete=complete.others,
    help="A host that may take VMs; may be repeated. Default: all that the host knows.",
)
@click.option("--keep-off", is_flag=True, help="VMs that are off stay where they are.")
@options
@dry_run_
@detach_
@click.pass_obj
def drain(  # noqa: PLR0913 - click hands over each
    settings: Settings,
    /,
    *,
    name: str | None,
    to: tuple[str, ...],
    keep_off: bool,
    dry_run: bool,
    detach: bool,
    **wished: Any,
) -> int:
    """Move all VMs of a host, of this one by default, to the others, and let it take none.

    Each VM goes where it fits: by memory, processor and all other checks, by its affinity and
    anti-affinity groups and allowed hosts (sterna vm set), those of high priority first. What is
    planned is shown, then done. A VM that cannot leave stays as it is, and is explained; one whose
    move fails is sent to another host that will do. The options of a move are for each of them.

    From then on the host takes no VM and starts none, also after a restart, until it is resumed.
    Ctrl-C cancels what is under way; the host is draining still, and what has left stays where it
    is. A drain that was not complete can be given again.
    """
    from sterna.cli import several  # noqa: PLC0415 - start-up time

    _choose(settings, name)
    body = {"to": list(to), "keep_off": keep_off, "wishes": wishes("*", wished)}
    return several.carry_out(settings, "/v1/host/drain", body, dry_run=dry_run, detach=detach)


@click.command(
    "resume",
    cls=Command,
    short_help="Bring back the VMs of a host that was drained.",
    examples=(
        "sterna host resume",
        "sterna host resume host-b --dry-run",
        "sterna host resume --no-fail-back",
    ),
)
@the_host
@click.option("--no-fail-back", is_flag=True, help="What has left stays where it is, for good.")
@dry_run_
@detach_
@click.pass_obj
def resume(
    settings: Settings, name: str | None, no_fail_back: bool, dry_run: bool, detach: bool
) -> int:
    """Let a host take and start VMs again, and bring back those that its drain has sent away.

    A VM that has moved on meanwhile, or was deleted, is left alone. One that cannot come back now
    stays where it is; give the command again when what it met is mended.
    """
    from sterna.cli import several  # noqa: PLC0415 - start-up time

    _choose(settings, name)
    body = {"fail_back": not no_fail_back}
    return several.carry_out(settings, "/v1/host/resume", body, dry_run=dry_run, detach=detach)


def _choose(settings: Settings, name: str | None) -> None:
    """Talk to the host of that name, unless it is the one that is talked to anyhow."""
    if name is None:
        return
    from sterna.cli.target import known  # noqa: PLC0415 - start-up time
    from sterna.errors import HostUnknown  # noqa: PLC0415

    if name in known():
        settings.host = name
    elif settings.client().get("/v1")["name"] != name:
        raise HostUnknown(host="this machine", peer=name, known=", ".join(known()) or "none")
