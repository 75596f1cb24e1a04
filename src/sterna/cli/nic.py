"""`sterna vm nic`: how the network cards of a VM are plugged in."""

from __future__ import annotations

from typing import Any

import click

from sterna.cli import complete
from sterna.cli.command import Settings, command, group
from sterna.cli.values import trunk, vlan

nic = group(
    "nic",
    "How the network cards of a VM are plugged in.",
    "sterna vm nic set web net0 --switch dmz",
    "sterna vm nic set web net0 --vlan 20",
)


@command(
    nic,
    "set",
    "sterna vm nic set web net0 --switch dmz",
    "sterna vm nic set web net0 --switch lan --vlan 20",
    "sterna vm nic set router net1 --trunk 10,20-29",
    "sterna vm nic set web net0 --mac new",
)
@click.argument("name", metavar="VM", shell_complete=complete.vms)
@click.argument("card", metavar="NIC")
@click.option(
    "--switch", metavar="SWITCH", help="Plug it in there.", shell_complete=complete.switches
)
@click.option("--vlan", type=vlan, metavar="N", help="Its VLAN, on an access port; none: untagged.")
@click.option(
    "--trunk", type=trunk, metavar="LIST", help="VLANs that the guest tags itself; none: no trunk."
)
@click.option("--mac", metavar="MAC", help="Another address, or new; only while the VM is off.")
@click.pass_obj
def set_(settings: Settings, /, name: str, card: str, **wanted: Any) -> None:
    """Plug a network card into another switch or VLAN, while the VM runs or off.

    The link of a guest that runs stays up; it loses the packets of a few milliseconds. What is not
    given stays as it is.
    """
    from sterna.cli import vm_view  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    given = {key: value for key, value in wanted.items() if value is not None}
    if not given:
        problem = "Say what shall change: --switch, --vlan, --trunk or --mac."
        raise click.UsageError(problem, click.get_current_context())
    path = f"/v1/vms/{segment(name)}/nics/{segment(card)}"
    vm_view.changed(settings, settings.client().patch(path, given), f"plugged {card} of")
