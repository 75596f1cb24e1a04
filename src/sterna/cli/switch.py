"""`sterna switch`: virtual switches of a host."""

from __future__ import annotations

from typing import Any

import click

from sterna.cli import complete
from sterna.cli.command import Settings, command, group

switch = group(
    "switch",
    "Virtual switches that VMs are plugged into.",
    "sterna switch create lan --uplink eth1",
    "sterna switch list",
)


TYPES = click.Choice(["external", "internal", "private"])


@command(
    switch,
    "create",
    "sterna switch create lan --uplink eth1",
    "sterna switch create office --type external --bridge br0",
    "sterna switch create inside --address 192.168.50.1/24",
    "sterna switch create cage --type private",
)
@click.argument("name")
@click.option(
    "--type",
    type=TYPES,
    help="external: reaches beyond the host; internal: the guests and their host; private: the "
    "guests alone. Default: external with --uplink, else internal.",
)
@click.option("--uplink", metavar="INTERFACE", help="Interface that joins it.")
@click.option("--bridge", metavar="BRIDGE", help="Name of its Linux bridge. Default: made up.")
@click.option("--address", metavar="ADDRESS/BITS", help="Of the host on an internal switch.")
@click.option("--mtu", type=int, metavar="BYTES", help="Largest packet. Default: as the uplink.")
@click.pass_obj
def create(settings: Settings, /, name: str, **wanted: Any) -> None:
    """Create a virtual switch, with an uplink if it reaches beyond the host."""
    given = {key: value for key, value in wanted.items() if value}
    _told(settings, settings.client().post("/v1/switches", {"name": name, **given}), "created")


@command(switch, "show", "sterna switch show lan", "sterna switch show lan -o json")
@click.argument("name", metavar="SWITCH", shell_complete=complete.switches)
@click.pass_obj
def show(settings: Settings, name: str) -> None:
    """Show one virtual switch, its state and the VMs on it."""
    from sterna.cli import place_view  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    place_view.switch(settings, settings.client().get(f"/v1/switches/{segment(name)}"))


@command(
    switch,
    "set",
    "sterna switch set lan --mtu 9000",
    "sterna switch set lan --uplink eth2",
    "sterna switch set lan --type private",
)
@click.argument("name", metavar="SWITCH", shell_complete=complete.switches)
@click.option("--type", type=TYPES, help="What it reaches.")
@click.option("--uplink", metavar="INTERFACE", help="Another one; none takes it away.")
@click.option("--address", metavar="ADDRESS/BITS", help="Of the host on it; none takes it away.")
@click.option("--mtu", type=int, metavar="BYTES", help="Largest packet; 0: as the uplink.")
@click.pass_obj
def set_(settings: Settings, /, name: str, **wanted: Any) -> None:
    """Change a virtual switch under the VMs on it.

    What would cut off those that run is refused.
    """
    from sterna.client import segment  # noqa: PLC0415 - start-up time

    given = {
        key: "" if text == "none" else text for key, text in wanted.items() if text is not None
    }
    if not given:
        problem = "Say what shall change: --type, --uplink, --address or --mtu."
        raise click.UsageError(problem, click.get_current_context())
    _told(settings, settings.client().patch(f"/v1/switches/{segment(name)}", given), "changed")


def _told(settings: Settings, view: dict[str, Any], done: str) -> None:
    from sterna.cli.output import document, line  # noqa: PLC0415 - start-up time
    from sterna.cli.place_view import switch_text  # noqa: PLC0415

    if settings.is_json:
        document(view)
    else:
        line(f"{done} switch {switch_text(view)}")


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
