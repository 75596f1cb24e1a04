"""`sterna vm insert` and `sterna vm eject`: CDs in the drives of a VM."""

from __future__ import annotations

import click

from sterna.cli import complete
from sterna.cli.command import Command, Settings
from sterna.cli.values import medium

the_vm = click.argument("name", metavar="VM", shell_complete=complete.vms)


@click.command(
    "insert",
    cls=Command,
    short_help="Put a CD into a drive of a VM.",
    examples=(
        "sterna vm insert web isos/debian-12.iso",
        "sterna vm insert web cd1 isos/drivers.iso",
        "sterna vm insert web isos/rescue.iso --new-drive",
    ),
)
@the_vm
@click.argument("first", metavar="[DRIVE]")
@click.argument("second", metavar="POOL/FILE", required=False)
@click.option("--new-drive", is_flag=True, help="Give a VM that is off one more drive for it.")
@click.pass_obj
def insert(settings: Settings, name: str, first: str, second: str | None, new_drive: bool) -> None:
    """Put a CD, a file in a pool of the VM's host, into one of its drives, while it runs or off.

    What is in the drive goes out. The drive need not be named if the VM has one, or one that is
    empty. The same CD may be in drives of many VMs.
    """
    from sterna.cli import vm_view  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    place = medium(second or first)
    wanted = {"drive": first if second else "", "new_drive": new_drive, **place}
    view = settings.client().post(f"/v1/vms/{segment(name)}:insert", wanted)
    vm_view.changed(settings, view, f"inserted {place['pool']}/{place['volume']} into")


@click.command(
    "eject",
    cls=Command,
    short_help="Take a CD out of a drive of a VM.",
    examples=("sterna vm eject web", "sterna vm eject web cd1"),
)
@the_vm
@click.argument("drive", metavar="[DRIVE]", required=False, default="")
@click.pass_obj
def eject(settings: Settings, name: str, drive: str) -> None:
    """Take a CD out of a drive, while the VM runs or off, though its guest has it locked.

    The drive need not be named if the VM has one, or one that is not empty.
    """
    from sterna.cli import vm_view  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    view = settings.client().post(f"/v1/vms/{segment(name)}:eject", {"drive": drive})
    vm_view.changed(settings, view, "ejected the CD of")
