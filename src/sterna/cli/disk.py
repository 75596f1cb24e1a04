"""`sterna disk`: files of disks, and copies that moves have kept."""

from __future__ import annotations

import click

from sterna.cli.command import Settings, command, group

disk = group(
    "disk",
    "Files of disks, and copies that moves have kept.",
    "sterna disk kept",
    "sterna disk discard 3f2a9c01",
)


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
