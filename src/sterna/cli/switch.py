"""`sterna switch`: virtual switches of a host."""

from __future__ import annotations

import click

from sterna.cli import complete
from sterna.cli.command import Settings, command, group

switch = group(
    "switch",
    "Virtual switches that VMs are plugged into.",
    "sterna switch create lan --uplink eth1",
    "sterna switch list",
)


@command(switch, "create", "sterna switch create lan --uplink eth1", "sterna switch create inside")
@click.argument("name")
@click.option("--uplink", metavar="INTERFACE", help="Interface that joins it. Default: internal.")
@click.option("--bridge", metavar="BRIDGE", help="Name of its Linux bridge. Default: made up.")
@click.pass_obj
def create(settings: Settings, name: str, uplink: str | None, bridge: str | None) -> None:
    """Create a virtual switch, with an uplink if it reaches beyond the host."""
    from sterna.cli.output import document, line  # noqa: PLC0415 - start-up time
    from sterna.cli.place_view import switch_text  # noqa: PLC0415

    wanted = {"name": name, "uplink": uplink, "bridge": bridge}
    view = settings.client().post("/v1/switches", {k: v for k, v in wanted.items() if v})
    if settings.is_json:
        document(view)
    else:
        line(f"created switch {switch_text(view) if 'switch' in view else name}")


@command(switch, "list", "sterna switch list", "sterna --host host-b switch list -o json")
@click.pass_obj
def list_(settings: Settings) -> None:
    """List the virtual switches of a host and the VMs on them."""
    from sterna.cli import place_view  # noqa: PLC0415 - start-up time

    place_view.switches(settings, settings.client().get("/v1/switches"))


@command(switch, "delete", "sterna switch delete lan")
@click.argument("name", metavar="SWITCH", shell_complete=complete.switches)
@click.pass_obj
def delete(settings: Settings, name: str) -> None:
    """Delete a virtual switch that no VM uses."""
    from sterna.cli.output import document, line  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    settings.client().delete(f"/v1/switches/{segment(name)}")
    if settings.is_json:
        document({"deleted": name})
    else:
        line(f"deleted switch {name}")
