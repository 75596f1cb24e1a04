"""How switches and pools are shown, by themselves and as part of a host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sterna.cli.command import Settings
from sterna.cli.output import document, fields, note, table
from sterna.units import format_size


def switches(settings: Settings, found: list[dict[str, Any]]) -> None:
    if settings.is_json:
        document(found)
        return
    if not found:
        note("no switches here; make one with: sterna switch create NAME")
        return
    rows = [
        (
            view["switch"]["name"],
            view["switch"].get("type"),
            view["switch"].get("bridge"),
            view["switch"].get("uplink"),
            view.get("mtu") or "",
            "yes" if view.get("vlans") else "no",
            ", ".join(view.get("users") or ()),
            view.get("problem"),
        )
        for view in found
    ]
    table(("NAME", "TYPE", "BRIDGE", "UPLINK", "MTU", "VLANS", "VMS", "PROBLEM"), rows)


def switch(settings: Settings, view: dict[str, Any]) -> None:
    if settings.is_json:
        document(view)
        return
    made: dict[str, Any] = view["switch"]
    fields(
        [
            ("name", made["name"]),
            ("type", made.get("type")),
            ("bridge", made.get("bridge")),
            ("uplink", made.get("uplink")),
            ("host's address", made.get("address")),
            ("MTU", view.get("mtu") or ""),
            ("VLANs", "yes" if view.get("vlans") else "no: its kernel cannot keep them apart"),
            ("VMs", ", ".join(view.get("users") or ())),
            ("problem", view.get("problem")),
        ]
    )


def pools(settings: Settings, found: list[dict[str, Any]]) -> None:
    if settings.is_json:
        document(found)
        return
    if not found:
        note("no pools here; make one with: sterna pool create NAME --path DIR")
        return
    rows = [
        (
            view["pool"]["name"],
            "yes" if view["pool"].get("shared") else "no",
            format_size(view["free"]) if view.get("total") else "",
            format_size(view["total"]) if view.get("total") else "",
            view["pool"]["path"],
            ", ".join(view.get("users") or ()),
            view.get("problem"),
        )
        for view in found
    ]
    table(("NAME", "SHARED", "FREE", "SIZE", "PATH", "VMS", "PROBLEM"), rows, right=(2, 3))


def switch_text(facts: Mapping[str, Any]) -> str:
    switch: Mapping[str, Any] = facts["switch"]
    parts = [f"bridge {switch['bridge']}" if switch.get("bridge") else ""]
    parts.append(str(switch.get("type") or ""))
    parts.append(f"uplink {switch['uplink']}" if switch.get("uplink") else "")
    parts.append(f"host {switch['address']}" if switch.get("address") else "")
    parts.append(f"MTU {facts['mtu']}" if facts.get("mtu") else "")
    parts.append("" if facts.get("vlans") else "no VLANs")
    parts.append(str(facts.get("problem") or ""))
    return f"{switch['name']}: {', '.join(part for part in parts if part)}"


def pool_text(facts: Mapping[str, Any]) -> str:
    pool: Mapping[str, Any] = facts["pool"]
    parts = [str(pool["path"]), "shared" if pool.get("shared") else ""]
    if facts.get("total"):
        parts.append(f"{format_size(facts['free'])} free of {format_size(facts['total'])}")
    parts.append(str(facts.get("problem") or ""))
    return f"{pool['name']}: {', '.join(part for part in parts if part)}"
