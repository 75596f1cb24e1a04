"""`sterna guardian`: which hosts open the keys of VMs with a TPM."""

from __future__ import annotations

from typing import TextIO

import click

from sterna.cli.command import Settings, command, group

MAX = 200  # characters of a key; ours have 44

guardian = group(
    "guardian",
    "Which hosts open the keys of VMs with a TPM.",
    "sterna --host host-b guardian export | sterna guardian import host-b -",
    "sterna guardian authorize web host-b",
)


@command(guardian, "list", "sterna guardian list", "sterna guardian list -o json")
@click.pass_obj
def list_(settings: Settings) -> None:
    """List this host's guardian and those it knows."""
    from sterna.cli.output import document, table  # noqa: PLC0415 - start-up time

    found = settings.client().get("/v1/guardians")
    if settings.is_json:
        document(found)
        return
    rows = [
        (one["name"] + " (this host)" * one["is_own"], one["fingerprint"], ", ".join(one["vms"]))
        for one in found
    ]
    table(("NAME", "FINGERPRINT", "OPENS"), rows)


@command(guardian, "export", "sterna --host host-b guardian export")
@click.pass_obj
def export(settings: Settings) -> None:
    """Print the public key of this host's guardian."""
    from sterna.cli.output import document, line  # noqa: PLC0415 - start-up time

    own = next(one for one in settings.client().get("/v1/guardians") if one["is_own"])
    if settings.is_json:
        document(own)
    else:
        line(own["key"])


@command(guardian, "import", "sterna --host host-b guardian export | sterna guardian import host-b -", "sterna guardian import host-b host-b.guardian")  # fmt: skip
@click.argument("name")
@click.argument("file", type=click.File())
@click.pass_obj
def import_(settings: Settings, name: str, file: TextIO) -> None:
    """Know the guardian of another host. It opens nothing yet.

    FILE holds what `sterna guardian export` printed there; - reads standard input.
    """
    key = file.read(MAX).strip()
    made = settings.client().post("/v1/guardians", {"name": name, "key": key})
    _say(settings, made, f"{name} is known by the fingerprint {made['fingerprint']}")


@command(guardian, "forget", "sterna guardian forget host-b")
@click.argument("name")
@click.pass_obj
def forget(settings: Settings, name: str) -> None:
    """Know a guardian no more. What it may open, it still may: revoke that first."""
    from sterna.client import segment  # noqa: PLC0415 - start-up time

    settings.client().delete(f"/v1/guardians/{segment(name)}")
    _say(settings, {"forgotten": name}, f"{name} is known no more")


@command(guardian, "authorize", "sterna guardian authorize web host-b")
@click.argument("vm")
@click.argument("name")
@click.pass_obj
def authorize(settings: Settings, vm: str, name: str) -> None:
    """Let a guardian open the keys of a VM: the VM may move to its host."""
    _change(settings, vm, name, "authorize", f"{vm} may move to {name}")


@command(guardian, "revoke", "sterna guardian revoke web host-b")
@click.argument("vm")
@click.argument("name")
@click.pass_obj
def revoke(settings: Settings, vm: str, name: str) -> None:
    """Let a guardian open the keys of a VM no more.

    A host that has had the VM has seen its key: make a new VM if that host is not to be trusted any more.
    """
    _change(settings, vm, name, "revoke", f"{vm} does not move to {name} any more")


def _change(settings: Settings, vm: str, name: str, action: str, text: str) -> None:
    from sterna.client import segment  # noqa: PLC0415 - start-up time

    made = settings.client().post(f"/v1/vms/{segment(vm)}:{action}", {"guardian": name})
    _say(settings, made, text)


def _say(settings: Settings, made: object, text: str) -> None:
    from sterna.cli.output import document, line  # noqa: PLC0415 - start-up time

    if settings.is_json:
        document(made)
    else:
        line(text)
