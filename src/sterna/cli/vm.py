"""`sterna vm`: create, run and look at virtual machines."""

from __future__ import annotations

import sys
from typing import Any

import click

from sterna.cli import complete
from sterna.cli.cd import eject, insert
from sterna.cli.checkpoint import checkpoint, follow_to_end
from sterna.cli.command import Settings, command, group
from sterna.cli.nic import nic as nic_group
from sterna.cli.placed import placed
from sterna.cli.port import export, import_
from sterna.cli.values import cd, disk, duration, nic, size
from sterna.cli.vm_set import set_, upgrade_version

vm = group(
    "vm",
    "Create, run and look at virtual machines.",
    "sterna vm create web --memory 2GiB --disk size=20GiB --nic switch=lan --start",
    "sterna vm list",
    "sterna vm show web -o json",
)
vm.add_command(checkpoint)
vm.add_command(eject)
vm.add_command(export)
vm.add_command(import_)
vm.add_command(insert)
vm.add_command(nic_group)
vm.add_command(set_)
vm.add_command(upgrade_version)
the_vm = click.argument("name", metavar="VM", shell_complete=complete.vms)
CANCELLED = 7  # DESIGN: exit codes
FILE = click.Path()  # completes names of files; whether one is there is found out later
FIRMWARE = click.Choice(["bios", "uefi"])


@command(
    vm,
    "create",
    "sterna vm create web --vcpus 2 --memory 2GiB --disk size=20GiB --nic switch=lan",
    "sterna vm create web --disk image=/images/debian.qcow2,size=20GiB --nic switch=lan --start",
    "sterna vm create web --disk base=golden.qcow2,size=20GiB --nic switch=lan",
    "sterna vm create web --nic switch=lan,vlan=20 --nic switch=lan,mac=52:54:00:12:34:56",
    "sterna vm create web --disk size=20GiB --cd isos/debian-12.iso --nic switch=lan --start",
    "sterna vm create rescue --kernel ./vmlinuz --initrd ./initrd.img --cmdline console=ttyS0",
    "sterna vm create -f web.toml",
    "sterna vm create -f - < web.json",
)
@click.argument("name", required=False)
@click.option(
    "-f", "--file", type=FILE, metavar="FILE", help="Spec as JSON or TOML; - reads standard input."
)
@click.option("--vcpus", type=int, help="Number of virtual CPUs. Default: 1.")
@click.option("--memory", type=size, metavar="SIZE", help="Memory, such as 2GiB. Default: 512MiB.")
@click.option(
    "--disk",
    "disks",
    type=disk,
    metavar="KEY=VALUE,…",
    multiple=True,
    help="A disk: pool=, size=, image= (copied), base= (a template in the same pool), "
    "format=qcow2|raw, volume= (a file that exists), read_only=, name=. Default: pool=default, name=vda, vdb …",
)
@click.option(
    "--nic",
    "nics",
    type=nic,
    metavar="KEY=VALUE,…",
    multiple=True,
    help="A network card: switch=, vlan=, trunk=10+20-29, mac=, name=.",
)
@click.option(
    "--cd",
    "cds",
    type=cd,
    metavar="POOL/FILE|none",
    multiple=True,
    help="A CD drive with that file in it, or an empty one; it boots after the disks.",
)
@click.option("--kernel", type=FILE, metavar="FILE", help="Boot this kernel instead of a disk.")
@click.option("--initrd", type=FILE, metavar="FILE", help="Its initial RAM disk.")
@click.option("--cmdline", metavar="TEXT", help="Its command line.")
@click.option("--firmware", type=FIRMWARE, help="Default: bios.")
@click.option("--tpm", is_flag=True, default=None, help="A TPM 2.0, whose state goes with the VM.")
@click.option("--cpu", metavar="MODEL", help="CPU model. Default: x86-64-v2, which can move.")
@click.option("--machine", metavar="TYPE", help="Versioned machine type. Default: the newest.")
@click.option("--no-graphics", "graphics", flag_value=False, default=None, help="No VGA, no VNC.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A label; may be repeated.")
@placed
@click.option("--start", is_flag=True, help="Start it at once.")
@click.pass_obj
def create(settings: Settings, /, file: str | None, start: bool, **options: Any) -> None:
    """Create a VM from options, from a spec file, or from both."""
    from sterna.cli import spec, vm_view  # noqa: PLC0415 - start-up time
    from sterna.cli.output import note  # noqa: PLC0415
    from sterna.client import segment  # noqa: PLC0415
    from sterna.errors import BadSpec  # noqa: PLC0415

    client = settings.client()
    wanted = spec.merge(spec.read(file) if file else {}, options, client.is_local)
    if not wanted.get("name"):
        raise click.UsageError("a VM needs a name", click.get_current_context())
    try:
        view = client.post("/v1/vms", wanted)
    except BadSpec as error:
        where = ("standard input" if file == "-" else file) or f"VM {wanted['name']}"
        raise BadSpec(where=where, reason=error.facts.get("reason", error.message)) from error
    if start:
        if not settings.is_json:
            note(f"created {view['name']}")
        view = client.post(f"/v1/vms/{segment(view['name'])}:start")
    vm_view.changed(settings, view, "started" if start else "created")


@command(vm, "list", "sterna vm list", "sterna --host host-b vm list -o json")
@click.pass_obj
def list_(settings: Settings) -> None:
    """List the VMs of a host."""
    from sterna.cli import vm_view  # noqa: PLC0415 - start-up time

    vm_view.many(settings, settings.client().get("/v1/vms"))


@command(vm, "show", "sterna vm show web", "sterna vm show web -o json")
@the_vm
@click.pass_obj
def show(settings: Settings, name: str) -> None:
    """Show everything that is known about a VM."""
    from sterna.cli import vm_view  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    vm_view.one(settings, settings.client().get(f"/v1/vms/{segment(name)}"))


def _act(settings: Settings, name: str, action: str, done: str) -> None:
    from sterna.cli import vm_view  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    vm_view.changed(settings, settings.client().post(f"/v1/vms/{segment(name)}:{action}"), done)


@command(vm, "start", "sterna vm start web")
@the_vm
@click.pass_obj
def start(settings: Settings, name: str) -> int:
    """Start a VM that is off; one that was saved goes on from there."""
    from sterna.cli.output import note  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    if settings.client().get(f"/v1/vms/{segment(name)}").get("saved"):
        note(f"{name} was saved and goes on from there")
        return _operate(settings, name, "restore", detach=False)
    _act(settings, name, "start", "started")
    return 0


@command(vm, "pause", "sterna vm pause web")
@the_vm
@click.pass_obj
def pause(settings: Settings, name: str) -> None:
    """Freeze a running VM; its memory stays."""
    _act(settings, name, "pause", "paused")


@command(vm, "resume", "sterna vm resume web")
@the_vm
@click.pass_obj
def resume(settings: Settings, name: str) -> None:
    """Let a paused VM go on."""
    _act(settings, name, "resume", "resumed")


@command(
    vm,
    "stop",
    "sterna vm stop web",
    "sterna vm stop web --timeout 5m",
    "sterna vm stop web --force",
)
@the_vm
@click.option("--force", is_flag=True, help="Pull the plug: the guest is not asked.")
@click.option(
    "--timeout",
    type=duration,
    metavar="DURATION",
    default=60.0,
    help="How long the guest may take to shut down. Default: 60s.",
)
@click.option("--detach", is_flag=True, help="Print the operation's id and do not wait.")
@click.pass_obj
def stop(settings: Settings, name: str, force: bool, timeout: float, detach: bool) -> int:
    """Shut a VM down as its guest does it, or with --force at once."""
    from sterna.cli import follow  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415

    client = settings.client()
    with follow.Interrupts() as interrupts:
        operation = client.post(
            f"/v1/vms/{segment(name)}:stop", {"force": force, "timeout_s": timeout}
        )
        if detach:
            return follow.detached(settings, operation)
        return follow.to_end(settings, client, operation, interrupts)


def _operate(settings: Settings, name: str, action: str, detach: bool) -> int:
    from sterna.client import segment  # noqa: PLC0415 - start-up time

    path = f"/v1/vms/{segment(name)}:{action}"
    return follow_to_end(settings, lambda client: client.post(path), detach)


@command(vm, "save", "sterna vm save web")
@the_vm
@click.option("--detach", is_flag=True, help="Print the operation's id and do not wait.")
@click.pass_obj
def save(settings: Settings, name: str, detach: bool) -> int:
    """Write the memory of a VM into a file and switch it off, to go on later."""
    return _operate(settings, name, "save", detach)


@command(vm, "restore", "sterna vm restore web")
@the_vm
@click.option("--detach", is_flag=True, help="Print the operation's id and do not wait.")
@click.pass_obj
def restore(settings: Settings, name: str, detach: bool) -> int:
    """Let a saved VM go on; `sterna vm start` does the same."""
    return _operate(settings, name, "restore", detach)


@command(vm, "discard", "sterna vm discard web", "sterna vm discard web --yes")
@the_vm
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def discard(settings: Settings, name: str, yes: bool) -> int:
    """Throw the saved state of a VM away; it boots when it is started."""
    from sterna.cli import vm_view  # noqa: PLC0415 - start-up time
    from sterna.cli.output import note  # noqa: PLC0415
    from sterna.client import segment  # noqa: PLC0415
    from sterna.errors import Unconfirmed  # noqa: PLC0415

    client = settings.client()
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise Unconfirmed(action=f"throwing the saved state of {name} away")
        client.get(f"/v1/vms/{segment(name)}")  # nobody is asked about a VM that is not there
        if not click.confirm(f"Throw the memory of {name} away?", err=True):
            note("nothing was changed")
            return CANCELLED
    view = client.post(f"/v1/vms/{segment(name)}:discard")
    vm_view.changed(settings, view, "discarded the saved state of")
    return 0


@command(vm, "console", "sterna vm console web")
@the_vm
@click.pass_obj
def console(settings: Settings, name: str) -> None:
    """Attach this terminal to the serial console of a VM; Ctrl-] leaves."""
    from sterna.cli.console import attach  # noqa: PLC0415 - start-up time

    attach(settings.client(), name)


@command(
    vm,
    "delete",
    "sterna vm delete web",
    "sterna vm delete web --yes --keep-disks",
)
@the_vm
@click.option("--keep-disks", is_flag=True, help="Leave the files of its disks in their pools.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def delete(settings: Settings, name: str, keep_disks: bool, yes: bool) -> int:
    """Delete a VM that is off, and its disks unless they are to be kept."""
    from sterna.cli.output import document, line, note  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415
    from sterna.errors import Unconfirmed  # noqa: PLC0415

    client = settings.client()
    what = f"{name}, and keep its disks" if keep_disks else f"{name} and its disks"
    if not yes:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise Unconfirmed(action=f"deleting {name}")
        client.get(f"/v1/vms/{segment(name)}")  # nobody is asked about a VM that is not there
        if not click.confirm(f"Delete {what}?", err=True):
            note("nothing was deleted")
            return CANCELLED
    client.delete(f"/v1/vms/{segment(name)}", {"keep_disks": keep_disks})
    if settings.is_json:
        document({"deleted": name, "keep_disks": keep_disks})
    else:
        line(f"deleted {what}")
    return 0
