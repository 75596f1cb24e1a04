"""`sterna host`: this host and the hosts that it knows."""

from __future__ import annotations

from typing import Any

import click

from sterna.cli import complete, trust, values
from sterna.cli.baseline import baseline
from sterna.cli.command import Settings, command, group
from sterna.cli.drain import drain, resume

SOON_DAYS = 30  # as the check trust.certificate-ends
ON_OFF = click.Choice(["on", "off"])

host = group(
    "host",
    "This host and the hosts that it knows: look, set, empty for maintenance.",
    "sterna host list",
    "sterna host show host-b",
    "sterna host drain host-b",
    "sterna host invite",
    "sterna host join TOKEN",
)
host.add_command(baseline)
host.add_command(drain)
host.add_command(resume)
for _command in trust.COMMANDS:
    host.add_command(_command)


@command(host, "list", "sterna host list", "sterna host list -o json")
@click.pass_obj
def list_(settings: Settings) -> None:
    """List this host and its peers, and whether they answer."""
    from sterna.cli.output import document, table  # noqa: PLC0415 - start-up time

    hosts = settings.client().get("/v1/hosts")
    if settings.is_json:
        document(hosts)
        return
    keys = ("url", "version", "vms", "role")
    rows = [(h["name"], _state(h), *(h.get(key) for key in keys), _reason(h)) for h in hosts]
    table(("NAME", "STATE", "URL", "VERSION", "VMS", "ROLE", "REASON"), rows, right=(4,))


def _reason(row: dict[str, Any]) -> str:
    """Why it is down, or what its certificate needs soon."""
    ends = row.get("certificate_ends")
    if row.get("reason") or not ends:
        return str(row.get("reason") or "")
    from datetime import UTC, datetime  # noqa: PLC0415 - start-up time

    left = (datetime.fromisoformat(str(ends)) - datetime.now(UTC)).days
    if left >= SOON_DAYS:
        return ""
    return f"its certificate ends in {max(0, left)} days: sterna host rotate, there"


@command(host, "show", "sterna host show", "sterna host show host-b -o json")
@click.argument("name", metavar="[HOST]", required=False, shell_complete=complete.hosts)
@click.pass_obj
def show(settings: Settings, name: str | None) -> None:
    """Show what a host has: CPUs, memory, QEMU, switches, pools."""
    from sterna.cli.output import document, fields  # noqa: PLC0415 - start-up time
    from sterna.client import segment  # noqa: PLC0415
    from sterna.units import format_size  # noqa: PLC0415

    path = f"/v1/hosts/{segment(name)}" if name else "/v1/host"
    facts = settings.client().get(path)
    if settings.is_json:
        document(facts)
        return
    qemu: dict[str, Any] = facts.get("qemu") or {}
    machines = qemu.get("machines") or ()
    fields([
        ("name", facts["name"]),
        ("sterna", facts.get("sterna")),
        ("cpus", facts.get("cpus")),
        ("processor", _processor(facts.get("cpu") or {})),
        ("memory", f"{format_size(facts['memory_free'])} free of {format_size(facts['memory_total'])}"),
        ("vms", facts.get("vms")),
        ("qemu", f"{qemu.get('version')} ({qemu.get('binary')})" if qemu else ""),
        ("accel", f"{qemu.get('accel')}: {qemu.get('accel_reason')}" if qemu else ""),
        ("machines", f"{len(machines)}, newest {machines[0]}" if machines else ""),
        ("moves in", facts.get("migration_address") or "no: sternad has no migration address"),
        ("settings", _settings(facts.get("settings") or {})),
        ("switches", [_switch(item) for item in facts.get("switches") or ()]),
        ("pools", [_pool(item) for item in facts.get("pools") or ()]),
        ("problems", list(facts.get("problems") or ())),
    ])  # fmt: skip


@command(
    host,
    "certificate",
    "sterna host certificate > host-a.pem",
    "ssh host-b sterna host certificate | openssl x509 -noout -fingerprint -sha256",
)
@click.pass_obj
def certificate(settings: Settings) -> None:
    """Print this machine's certificate, by which others know it.

    It is read from this machine's own files and never asked for over a network: run it on the
    host whose certificate you want.
    """
    from sterna.cli.certificate import show_own  # noqa: PLC0415 - start-up time

    show_own(settings)


@command(
    host,
    "set",
    "sterna host set --inbound off",
    "sterna host set --live-moves 4 --bandwidth 1Gbit",
    "sterna --host host-b host set --outbound on --bandwidth none",
)
@click.option("--inbound", type=ON_OFF, help="Whether VMs may come here.")
@click.option("--outbound", type=ON_OFF, help="Whether VMs may leave.")
@click.option("--live-moves", type=int, metavar="N", help="VMs that run: so many at a time.")
@click.option(
    "--storage-moves", type=int, metavar="N", help="Disks, and VMs that are off: so many at a time."
)
@click.option("--bandwidth", type=values.limit, metavar="RATE", help="Of all moves away; or none.")
@click.option(
    "--migration-networks",
    metavar="CIDR,...",
    help="Of this host's addresses moves use those in these networks, the first before the next; "
    "or any.",
)
@click.option(
    "--carrier",
    type=click.Choice(["auto", "direct", "compression"]),
    help="Of moves away that name none.",
)
@click.option(
    "--max-downtime",
    type=values.duration,
    metavar="TIME",
    help="Longest pause of moves away that name none.",
)
@click.option(
    "--encryption",
    type=click.Choice(["required", "off"]),
    help="Whether QEMU's own connections must be encrypted, away and hither.",
)
@click.pass_obj
def set_(settings: Settings, /, **wanted: Any) -> None:
    """Change what a host does about moves, at once and for good.

    Moves beyond the limit wait for their turn; what is under way goes on.
    """
    from sterna.cli.output import document, line  # noqa: PLC0415 - start-up time

    given = _wanted(wanted)
    if not given:
        problem = "Say what shall change: --inbound, --live-moves, --migration-networks or another."
        raise click.UsageError(problem, click.get_current_context())
    changed = settings.client().patch("/v1/host/settings", given)
    if settings.is_json:
        document(changed)
    else:
        line(f"moves: {'; '.join(_settings(changed))}")


def _state(found: dict[str, Any]) -> str:
    return f"{found['state']}, draining" if found.get("draining") else str(found["state"])


def _wanted(options: dict[str, Any]) -> dict[str, Any]:
    """What was asked for, as the API wants it."""
    given = {key: value for key, value in options.items() if value is not None}
    for key in given.keys() & {"inbound", "outbound"}:
        given[key] = given[key] == "on"
    if "max_downtime" in given:
        given["max_downtime_ms"] = round(given.pop("max_downtime") * 1000)
    networks = given.get("migration_networks", "any")
    if networks != "any":
        given["migration_networks"] = [one.strip() for one in networks.split(",")]
    return given


def _settings(found: dict[str, Any]) -> list[str]:
    from sterna.units import format_duration, format_rate  # noqa: PLC0415 - start-up time

    if not found:
        return []
    rate = format_rate(found["bandwidth"]) if found["bandwidth"] else "no limit"
    networks = ", then ".join(found.get("migration_networks") or ()) or "any"
    pause = format_duration(found.get("max_downtime_ms", 300) / 1000)
    at_once = f"{found['live_moves']} live and {found['storage_moves']} of storage"
    inbound, outbound = ("on" if found[way] else "off" for way in ("inbound", "outbound"))
    carrier, encryption = found.get("carrier", "auto"), found.get("encryption", "required")
    draining = ["draining: it takes and starts no VM, until sterna host resume"]
    return [
        *(draining if found.get("draining") else []),
        f"inbound {inbound}, outbound {outbound}, at a time {at_once}, {rate}",
        f"networks {networks}, carrier {carrier}, pause up to {pause}, encryption {encryption}",
    ]


def _processor(cpu: dict[str, Any]) -> str:
    """The host's, and what guests get of it."""
    if not cpu.get("features"):
        return ""
    masked = f" (without {', '.join(cpu['masked'])})" if cpu.get("masked") else ""
    return f"{cpu.get('name')}; guests get up to {cpu.get('level') or 'no level'}{masked}"


def _switch(facts: dict[str, Any]) -> str:
    from sterna.cli.place_view import switch_text  # noqa: PLC0415 - start-up time

    return switch_text(facts)


def _pool(facts: dict[str, Any]) -> str:
    from sterna.cli.place_view import pool_text  # noqa: PLC0415 - start-up time

    return pool_text(facts)
