"""How a VM is shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sterna.cli.command import Settings
from sterna.cli.output import document, fields, line, note, printable, table
from sterna.units import format_size


def many(settings: Settings, views: list[dict[str, Any]]) -> None:
    if settings.is_json:
        document(views)
        return
    if not views:
        note("no VMs here; make one with: sterna vm create --help")
        return
    rows = []
    for view in views:
        spec = view.get("spec") or {}
        rows.append((
            view["name"], shown_state(view), view.get("host"), spec.get("vcpus"),
            format_size(spec["memory"]) if spec.get("memory") else "",
            len(spec.get("disks") or ()), len(spec.get("nics") or ()), view.get("operation"),
        ))  # fmt: skip
    headers = ("NAME", "STATE", "HOST", "VCPUS", "MEMORY", "DISKS", "NICS", "OPERATION")
    table(headers, rows, right=(3, 4, 5, 6))


def shown_state(view: Mapping[str, Any]) -> str:
    """A VM that is off and goes on from a saved state is called saved."""
    return "saved" if view["state"] == "off" and view.get("saved") else str(view["state"])


def one(settings: Settings, view: Mapping[str, Any]) -> None:
    if settings.is_json:
        document(view)
        return
    spec: Mapping[str, Any] = view.get("spec") or {}
    process: Mapping[str, Any] = view.get("process") or {}
    ownership: Mapping[str, Any] = view.get("ownership") or {}
    fields([
        ("name", view["name"]),
        ("id", view.get("id")),
        ("state", shown_state(view)),
        ("host", view.get("host")),
        ("damaged", _damaged(view.get("damaged"))),
        ("operation", view.get("operation")),
        ("vcpus", f"{spec.get('vcpus')} of {_processor(spec.get('cpu'), spec.get('cpu_features'))}" if spec else ""),
        ("from next start", _cpu(view.get("cpu_next"))),
        ("memory", format_size(spec["memory"]) if spec.get("memory") else ""),
        ("machine", spec.get("machine")),
        ("firmware", spec.get("firmware")),
        ("tpm", "2.0" if spec.get("tpm") else ""),
        ("boot", _boot(spec.get("boot"))),
        ("disks", [_disk(disk) for disk in spec.get("disks") or ()]),
        ("cds", [_cd(cd) for cd in spec.get("cds") or ()]),
        ("nics", [_nic(nic) for nic in spec.get("nics") or ()]),
        ("checkpoints", ", ".join(view.get("checkpoints") or ())),
        ("at", view.get("at")),
        ("saved", _saved(view.get("saved"))),
        ("console", view.get("console")),
        ("vnc", view.get("vnc")),
        ("process", f"pid {process['pid']}, {process.get('accel')}" if process else ""),
        ("ownership", f"{ownership.get('state')}, epoch {ownership.get('epoch')}" if ownership else ""),
        ("placement", _placement(spec.get("placement"))),
        ("tags", ", ".join(spec.get("tags") or ())),
        ("notes", list(view.get("notes") or ())),
    ])  # fmt: skip


def changed(settings: Settings, view: Mapping[str, Any], done: str) -> None:
    """What a command did to a VM, in a line."""
    if settings.is_json:
        document(view)
    else:
        line(printable(f"{done} {view['name']}, it is {shown_state(view)}"))


def _damaged(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" for key, item in value.items())
    return value


def _processor(model: Any, features: Any) -> str:
    return f"{model} and {', '.join(features)}" if features else str(model)


def _cpu(choice: Mapping[str, Any] | None) -> str:
    return _processor(choice["model"], choice.get("features")) if choice else ""


def _saved(state: Mapping[str, Any] | None) -> str:
    if not state:
        return ""
    return f"{format_size(state['size'])} in {state['volume']} of pool {state['pool']}"


def _placement(rules: Mapping[str, Any] | None) -> list[str]:
    """Its rules, as far as they are not those of every VM."""
    if not rules:
        return []
    said = [
        f"{name}: {', '.join(rules[key])}"
        for name, key in (
            ("affinity", "affinity"),
            ("anti-affinity", "anti_affinity"),
            ("allowed hosts", "allowed_hosts"),
        )
        if rules.get(key)
    ]
    return [*said, f"priority {rules['priority']}"] if said or rules["priority"] != 50 else []


def _boot(boot: Mapping[str, Any] | None) -> str:
    return " ".join(str(part) for part in (boot or {}).values() if part)


def _disk(disk: Mapping[str, Any]) -> str:
    parts = [f"{disk['name']}: {disk.get('volume') or 'new'} in pool {disk['pool']}"]
    parts.append(str(disk.get("format", "")))
    if disk.get("size"):
        parts.append(format_size(disk["size"]))
    if disk.get("read_only"):
        parts.append("read-only")
    return ", ".join(part for part in parts if part)


def _cd(cd: Mapping[str, Any]) -> str:
    return f"{cd['name']}: " + (
        f"{cd['volume']} in pool {cd['pool']}" if cd.get("pool") else "empty"
    )


def _nic(nic: Mapping[str, Any]) -> str:
    vlan = f" VLAN {nic['vlan']}" if nic.get("vlan") is not None else ""
    vlan += f" trunk {nic['trunk']}" if nic.get("trunk") else ""
    mac = f", {nic['mac']}" if nic.get("mac") else ""
    return f"{nic['name']}: switch {nic['switch']}{vlan}{mac}"
