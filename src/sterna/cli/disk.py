"""`sterna disk`: whether all images are well, and copies that moves have kept."""

from __future__ import annotations

import click

from sterna.cli import complete
from sterna.cli.command import Settings, command, group

disk = group(
    "disk",
    "Check the images of disks; copies that moves have kept.",
    "sterna disk check",
    "sterna disk kept",
    "sterna disk discard 3f2a9c01",
)
EXIT = {"well": 0, "warned": 10, "broken": 3}  # DESIGN: exit codes
CHECK_S = 3600.0  # tables of large images and, with --deep, whole files are read


@command(
    disk,
    "check",
    "sterna disk check",
    "sterna disk check web db --deep",
    "sterna disk check --pool fast -o json",
)
@click.argument("names", metavar="[VM]…", nargs=-1, shell_complete=complete.vms)
@click.option(
    "--pool", metavar="POOL", default="", help="Only VMs with a file there, and its files."
)
@click.option("--deep", is_flag=True, help="Read all of saved memory and compare it with its hash.")
@click.option("--trust", is_flag=True, help="What looks changed is well: take it as it is now.")
@click.pass_obj
def check(settings: Settings, names: tuple[str, ...], pool: str, deep: bool, trust: bool) -> int:
    """Check that no image of a VM is missing, changed or damaged."""
    from sterna.cli.output import document, fields, line, table  # noqa: PLC0415 - start-up time

    wishes = {"vms": list(names), "pool": pool, "is_deep": deep, "trust": trust}
    report = settings.client().post("/v1/disk-check", wishes, wait_s=CHECK_S)
    if settings.is_json:
        document(report)
        return EXIT[report["outcome"]]
    found = report["findings"]
    rows = [(one["severity"], one["vm"], one["disk"], one["place"], one["id"]) for one in found]
    if rows:
        table(("SEVERITY", "VM", "DISK", "FILE", "FINDING"), rows)
        for one in found:
            line()
            fields([(one["id"], one["finding"]), ("fix", one["fix"])])
        line()
    number, vms = report["images"], len(report["vms"])
    line(
        f"{number} image{'' if number == 1 else 's'} of {vms} VM{'' if vms == 1 else 's'}: {report['outcome']}"
    )
    return EXIT[report["outcome"]]


@command(disk, "kept", "sterna disk kept", "sterna --host host-b disk kept -o json")
@click.pass_obj
def kept(settings: Settings) -> None:
    """List the copies that moves have kept, and when each expires."""
    from sterna.cli.output import document, local_time, note, table  # noqa: PLC0415 - start-up time

    found = settings.client().get("/v1/kept")
    if settings.is_json:
        document(found)
        return
    if not found:
        note("no kept copies here; a move with --keep-source leaves one")
        return
    rows = [
        (
            copy["id"] if index == 0 else "",
            copy["vm"] if index == 0 else "",
            copy["label"] if index == 0 else "",
            local_time(copy["expires"]) if index == 0 else "",
            f"{file['was']['pool']}/{file['was']['volume']}",
            file["now"],
        )
        for copy in found
        for index, file in enumerate(copy["files"])
    ]
    table(("ID", "VM", "LABEL", "EXPIRES", "WAS", "FILE"), rows)


@command(disk, "discard", "sterna disk discard 3f2a9c01")
@click.argument("copy", metavar="ID")
@click.pass_obj
def discard(settings: Settings, copy: str) -> None:
    """Delete a kept copy and its files now."""
    from sterna.cli.output import document, line  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    settings.client().delete(f"/v1/kept/{segment(copy)}")
    if settings.is_json:
        document({"deleted": copy})
    else:
        line(f"deleted kept copy {copy}")
