"""`sterna lab`: hosts on this one machine, to try everything; and the demo that moves a VM there.

Only turns arguments into calls of `sterna.lab` and its outcomes into lines; needs root.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from sterna.cli.command import Settings, command, group
from sterna.cli.output import document, fields, json_line, printable, table

if TYPE_CHECKING:
    from sterna.lab.lab import Lab

lab = group(
    "lab",
    "Hosts on this one machine, to try everything.",
    "sterna lab demo",
    "sterna lab up --hosts 3",
    "sterna lab vm web && sterna --host $(sterna lab url hv-a) move web hv-b",
    "sterna lab down",
)

_name = click.option(
    "--name", "--lab", "name", default="demo", show_default=True, help="Which lab."
)


def _or_none(_context: click.Context, _parameter: click.Parameter, value: str) -> str | None:
    return None if value == "none" else value


_rate = click.option(
    "--rate",
    callback=_or_none,
    default="1gbit",
    show_default=True,
    metavar="RATE",
    help="Speed of the migration network in each direction, or none for no limit.",
)


@command(lab, "up", "sterna lab up", "sterna lab up --name wide --hosts 4 --rate none")
@_name
@click.option("--hosts", default=2, show_default=True, help="How many.")
@_rate
@click.pass_obj
def up(settings: Settings, name: str, hosts: int, rate: str | None) -> None:
    """Make a lab: hosts with a sternad each, and the networks between them."""
    from sterna.clock import monotonic  # noqa: PLC0415 - start-up time
    from sterna.lab import lab as labs  # noqa: PLC0415 - start-up time

    began = monotonic()
    made = labs.up(labs.Wanted(name=name, hosts=hosts, rate=rate), _say(settings))
    if settings.is_json:
        json_line({"type": "result", "state": "succeeded", **_view(made)})
        return
    first = made.hosts[0]
    click.echo(f"lab {name} is ready after {monotonic() - began:.1f} s. Use it:")
    for host in made.hosts:
        click.echo(f"  sterna --host {host.url} vm list")
    click.echo(f"  export STERNA_HOST={first.url}")
    click.echo(f"  sterna lab vm web --lab {name}    # a small guest on {first.name}, that beats")
    if len(made.hosts) > 1:
        click.echo(f"  sterna --host {first.url} move web {made.hosts[1].name}")
    click.echo(f"  sterna lab down --name {name}")


@command(lab, "down", "sterna lab down", "sterna lab down --name wide -o json")
@_name
@click.pass_obj
def down(settings: Settings, name: str) -> None:
    """Remove a lab with all its VMs; also what is left of one that crashed."""
    from sterna.lab import lab as labs  # noqa: PLC0415 - start-up time
    from sterna.lab import netns, record  # noqa: PLC0415 - start-up time

    netns.require("down")
    record.check_name(name)
    with labs.undisturbed():
        there = labs.remove(name)
    if settings.is_json:
        json_line({"type": "result", "state": "succeeded", "removed": there})
    else:
        click.echo(f"lab {name} is gone" if there else f"there is no lab called {name}")


@command(lab, "status", "sterna lab status", "sterna lab status -o json")
@_name
@click.pass_obj
def status(settings: Settings, name: str) -> None:
    """Show the hosts of a lab, whether their daemons run, and their VMs."""
    from sterna.lab import lab as labs  # noqa: PLC0415 - start-up time

    view = _view(labs.find(name))
    if settings.is_json:
        document(view)
        return
    fields(
        [
            ("lab", name),
            ("migration network", view["rate"] or "no limit"),
            ("folder", view["folder"]),
        ]
    )
    table(
        ["HOST", "STATE", "PID", "ADDRESS", "VMS", "URL"],
        [
            (h["name"], h["state"], h["pid"], h["address"], ", ".join(h["vms"]), h["url"])
            for h in view["hosts"]
        ],
    )  # fmt: skip


@command(lab, "url", "sterna --host $(sterna lab url hv-b) vm list")
@_name
@click.argument("host", default="hv-a")
def url(name: str, host: str) -> None:
    """Print where a host of a lab answers, for --host and $STERNA_HOST."""
    from sterna.lab import lab as labs  # noqa: PLC0415 - start-up time

    click.echo(labs.find(name)[host].url)


@command(lab, "vm", "sterna lab vm web", "sterna lab vm db --on hv-b --touch 100 --blocks 50")
@click.argument("vm")
@_name
@click.option("--on", "host", default="hv-a", show_default=True, help="The host that starts it.")
@click.option(
    "--touch",
    type=click.IntRange(0),
    default=0,
    metavar="MB/S",
    help="Memory that the guest dirties.",
)
@click.option(
    "--blocks",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Blocks a second that it writes to a disk.",
)
@click.pass_obj
def vm(settings: Settings, /, vm: str, name: str, host: str, **load: int) -> None:
    """Create and start a small Linux guest that sends beats to the lab's client."""
    from sterna.lab import lab as labs  # noqa: PLC0415 - start-up time
    from sterna.lab.vm import Load, free_number, spec  # noqa: PLC0415 - start-up time

    found = labs.find(name)
    client = found[host].client
    wanted = Load(memory_mb_s=load["touch"], disk_blocks_s=load["blocks"])
    client.post("/v1/vms", spec(found.guest(), vm, free_number(found), load=wanted))
    view = client.post(f"/v1/vms/{vm}:start")
    if settings.is_json:
        document(view)
    else:
        click.echo(f"{vm} is {view['state']} on {view['host']}")


@command(lab, "demo", "sterna lab demo", "sterna lab demo --rate none -o json | tail -n 1")
@_name
@_rate
@click.option(
    "--moves",
    type=click.IntRange(1, 1000),
    default=2,
    show_default=True,
    help="How many times it moves.",
)
@click.option(
    "--touch",
    type=click.IntRange(0),
    default=50,
    show_default=True,
    metavar="MB/S",
    help="As for `lab vm`.",
)
@click.option(
    "--blocks",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="As for `lab vm`.",
)
@click.option("--keep", is_flag=True, help="Leave the lab and the VM running at the end.")
@click.pass_obj
def demo(settings: Settings, /, name: str, rate: str | None, **wanted: Any) -> None:
    """Move a running VM from host to host and back, and measure what its users felt.

    Makes a lab, and removes it at the end, unless there is one with that name.
    """
    from itertools import cycle, islice  # noqa: PLC0415 - start-up time

    from sterna.lab import demo as demos  # noqa: PLC0415
    from sterna.lab import netns  # noqa: PLC0415
    from sterna.lab.vm import Load  # noqa: PLC0415

    netns.require("demo")
    options = demos.Options(
        lab=name,
        rate=rate,
        keep=wanted["keep"],
        route=tuple(islice(cycle(("hv-a", "hv-b")), wanted["moves"] + 1)),
        load=Load(memory_mb_s=wanted["touch"], disk_blocks_s=wanted["blocks"]),
    )
    told = _told(settings)
    with _ending_on_signals():
        moves = demos.run(options, _say(settings), _follower(settings), told)
    if settings.is_json:
        json_line({"type": "result", "state": "succeeded", "moves": moves})
    else:
        _table_of(moves)


def _told(settings: Settings) -> Callable[[dict[str, Any]], None]:
    """Tells of one move at once; the table comes at the end."""
    if settings.is_json:
        return lambda move: json_line({"type": "move", **move})
    return lambda move: click.echo(
        f"{move['from']} to {move['to']}: its users felt {move['felt_ms']:.0f} ms, "
        f"{move['lost_beats']} beats were lost, its memory is as it was"
    )


def _table_of(moves: list[dict[str, Any]]) -> None:
    from sterna.units import format_duration, format_size  # noqa: PLC0415 - start-up time

    headers = [
        "MOVE",
        "TOTAL",
        "PAUSE OF QEMU",
        "PAUSE FELT",
        "BEATS LOST",
        "SENT",
        "ROUNDS",
        "MEMORY",
    ]
    rows = [
        (
            f"{move['from']} to {move['to']}",
            format_duration(move["total_s"]),
            f"{move.get('qemu_pause_ms', move['pause_ms']):.0f} ms",
            f"{move['felt_ms']:.0f} ms",
            move["lost_beats"],
            format_size(move["bytes_wire"]),
            move["rounds"],
            f"{move['memory_pages_good']} pages verified",
        )
        for move in moves
    ]
    table(headers, rows, right=(1, 2, 3, 4, 5, 6))


def _follower(settings: Settings) -> Callable[[Any, dict[str, Any]], dict[str, Any]]:
    """Follows an operation as `sterna move` does; Ctrl-C ends the demo, and with it the move."""
    from sterna.cli.follow import DOUBT_S, FINAL, Follower, Interrupts  # noqa: PLC0415
    from sterna.cli.progress import display  # noqa: PLC0415

    def follow(client: Any, operation: dict[str, Any]) -> dict[str, Any]:
        with display(settings.is_json) as shown, Interrupts() as interrupts:
            ended = Follower(client, operation, shown, interrupts).run(doubt_s=DOUBT_S)
        if ended["state"] not in (*FINAL, "unknown"):
            raise KeyboardInterrupt
        return ended

    return follow


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end it as Ctrl-C does: with all removed."""
    old = {n: signal.signal(n, signal.default_int_handler) for n in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _say(settings: Settings) -> Callable[[str], None]:
    """Tells what is being done: a line for a person, a line of JSON for a program."""
    if settings.is_json:
        return lambda text: json_line({"type": "progress", "text": text})
    return lambda text: click.echo(printable(text))


def _view(found: Lab) -> dict[str, Any]:
    """A lab as JSON; a host that does not answer is down, whatever the reason."""
    from sterna.errors import Unreachable  # noqa: PLC0415 - start-up time

    hosts = []
    for host in found.hosts:
        process = host.process
        view: dict[str, Any] = {
            "name": host.name,
            "state": "down",
            "pid": process.pid if process else None,
            "address": host.address,
            "vms": [],
            "url": host.url,
        }
        try:
            view["vms"] = [vm["name"] for vm in host.client.get("/v1/vms")]
            view["state"] = "up"
        except Unreachable:
            pass  # which is what `down` says
        hosts.append(view)
    record = found.record
    return {"name": found.name, "folder": str(found.folder), "rate": record.rate, "hosts": hosts}
