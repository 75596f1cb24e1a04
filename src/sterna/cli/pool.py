"""`sterna pool`: places for disks."""

from __future__ import annotations

import os

import click

from sterna.cli import complete
from sterna.cli.command import Settings, command, group

pool = group(
    "pool",
    "Places for the disks of VMs.",
    "sterna pool create default --path /var/lib/sterna/disks",
    "sterna pool create san --path /mnt/san --shared",
)


@command(
    pool,
    "create",
    "sterna pool create default --path /var/lib/sterna/disks",
    "sterna pool create san --path /mnt/san --shared",
)
@click.argument("name")
@click.option(
    "--path",
    required=True,
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Directory that holds the disks.",
)
@click.option("--shared", is_flag=True, help="Other hosts mount the same directory.")
@click.pass_obj
def create(settings: Settings, name: str, path: str, shared: bool) -> None:
    """Declare a directory as a pool, shared if other hosts have the same one."""
    from sterna.cli.output import document, line  # noqa: PLC0415 - start-up time
    from sterna.cli.place_view import pool_text  # noqa: PLC0415

    client = settings.client()
    if client.is_local:
        path = os.path.abspath(path)  # noqa: PTH100 - keeps symbolic links
    view = client.post("/v1/pools", {"name": name, "path": path, "shared": shared})
    if settings.is_json:
        document(view)
    else:
        line(f"created pool {pool_text(view) if 'pool' in view else name}")


@command(pool, "list", "sterna pool list", "sterna --host host-b pool list -o json")
@click.pass_obj
def list_(settings: Settings) -> None:
    """List the pools of a host, their space and the VMs in them."""
    from sterna.cli import place_view  # noqa: PLC0415 - start-up time

    place_view.pools(settings, settings.client().get("/v1/pools"))


@command(pool, "delete", "sterna pool delete san")
@click.argument("name", metavar="POOL", shell_complete=complete.pools)
@click.pass_obj
def delete(settings: Settings, name: str) -> None:
    """Forget a pool that no VM uses; its files stay where they are."""
    from sterna.cli.output import document, line  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    settings.client().delete(f"/v1/pools/{segment(name)}")
    if settings.is_json:
        document({"deleted": name})
    else:
        line(f"deleted pool {name}; its files stay")
