"""`sterna move`: carry a VM to another host."""

from __future__ import annotations

from typing import Any

import click

from sterna.cli import complete
from sterna.cli.command import Command, Settings
from sterna.cli.values import duration, place, rate

DAY_S = 86400


@click.command(
    "move",
    cls=Command,
    short_help="Move a VM to another host, running or off.",
    examples=(
        "sterna move web host-b",
        "sterna move web host-b --max-downtime 100ms --bandwidth 1Gbit",
        "sterna move web host-b --pool fast --disk vdb=archive:raw",
        "sterna move web host-b --keep-source --keep-for 48h",
        "sterna move web host-b --deadline 10m -o json | tail -n 1",
        "sterna op wait $(sterna move web host-b --detach)",
    ),
)
@click.argument("vm", metavar="VM", shell_complete=complete.vms)
@click.argument("target", metavar="HOST", shell_complete=complete.others)
@click.option(
    "--max-downtime",
    type=duration,
    metavar="DURATION",
    help="Longest pause that is aimed for. Default: 300ms.",
)
@click.option(
    "--bandwidth", type=rate, metavar="RATE", help="Use at most so much: 100MB (a second), 1Gbit."
)
@click.option(
    "--deadline",
    type=duration,
    metavar="DURATION",
    help="Give up and undo if it is not done by then: 10m.",
)
@click.option(
    "--pool",
    metavar="POOL",
    help="Put disks that travel there. Default: the pool of the same name.",
)
@click.option(
    "--disk",
    "places",
    type=place,
    metavar="DISK=POOL[:FORMAT]",
    multiple=True,
    help="Put this disk there, even if it is on a shared pool; FORMAT is qcow2 or raw.",
)
@click.option("--flatten", is_flag=True, help="Make one image of each disk and what it rests on.")
@click.option(
    "--keep-source", is_flag=True, help="Keep the disks here, under another name: sterna disk kept."
)
@click.option(
    "--keep-for", type=duration, metavar="DURATION", help="How long. Default: 168h, a week."
)
@click.option("--parallel-disks", type=int, metavar="N", help="Disks at a time. Default: 2.")
@click.option("--detach", is_flag=True, help="Print the operation's id and do not wait.")
@click.pass_obj
def move(settings: Settings, /, vm: str, target: str, detach: bool, **wished: Any) -> int:
    """Move a VM to another host, live if it runs, with its disks unless the hosts share them.

    A move that fails is undone and the VM goes on here. Ctrl-C cancels the move and waits until
    it is undone; a second Ctrl-C leaves it alone and says how to follow it.
    """
    from sterna.cli import follow  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    pause, deadline_s = wished["max_downtime"], wished["deadline"]
    given = {
        "max_downtime_ms": None if pause is None else round(pause * 1000),
        "bandwidth": wished["bandwidth"],
        "deadline_s": deadline_s,
        "pool": wished["pool"],
        "disks": dict(wished["places"]) or None,
        "flatten": wished["flatten"] or None,
        "keep_source": wished["keep_source"] or None,
        "keep_days": None if wished["keep_for"] is None else wished["keep_for"] / DAY_S,
        "parallel_disks": wished["parallel_disks"],
    }
    wishes = {"target": target} | {key: value for key, value in given.items() if value is not None}
    client = settings.client()
    with follow.Interrupts() as interrupts:
        operation = client.post(f"/v1/vms/{segment(vm)}/moves", wishes)
        if detach:
            return follow.detached(settings, operation)
        return follow.to_end(settings, client, operation, interrupts, on_interrupt="cancel")
