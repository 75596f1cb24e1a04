"""How operations are shown: in lists, in full, and as the result at the end of following one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from sterna.cli.command import Settings
from sterna.cli.output import document, fields, json_line, line, local_time, note, printable, table
from sterna.units import format_duration, format_size

ENVELOPE = ("type", "state", "operation", "vm", "error")  # keys that a report never overwrites


def many(settings: Settings, operations: list[dict[str, Any]]) -> None:
    if settings.is_json:
        document(operations)
        return
    if not operations:
        note("no operations")
        return
    headers = ("ID", "KIND", "VM", "PEER", "STATE", "PHASE", "BEGAN", "TOOK")
    table(headers, [_row(op) for op in operations], right=(7,))


def one(settings: Settings, operation: Mapping[str, Any]) -> None:
    if settings.is_json:
        document(operation)
        return
    from sterna.cli.progress import sample_text, step_line  # noqa: PLC0415 - start-up time

    error: Mapping[str, Any] = operation.get("error") or {}
    progress: Mapping[str, Any] = operation.get("progress") or {}
    fields([
        ("id", operation["id"]),
        ("kind", operation.get("kind")),
        ("vm", operation.get("vm")),
        ("peer", operation.get("peer")),
        ("by", operation.get("by")),
        ("state", operation["state"]),
        ("phase", operation.get("phase")),
        ("began", local_time(operation.get("created"))),
        ("ended", local_time(operation.get("ended"))),
        ("took", _took(operation)),
        ("progress", ", ".join(sample_text(progress)) if not operation.get("ended") else ""),
        ("steps", [step_line(step).strip() for step in operation.get("steps") or ()]),
        ("vms", _parts(operation)),
        ("part of", operation.get("parent")),
        ("error", error.get("title")),
        ("fix", error.get("hint")),
    ])  # fmt: skip
    if report := operation.get("result"):
        move_report(report)


def doubt(settings: Settings, found: Mapping[str, Any]) -> None:
    """What is known of a move whose outcome is unknown, and the ways out."""
    if settings.is_json:
        document(found)
        return
    target = found["target"]
    line(
        f"{found['vm']} was given to {target} (epoch {found['epoch']}), and {target} has not said "
        "whether it took it."
    )
    line()
    fields([
        ("since", local_time(found["since"])),
        ("here", f"the guest is {found['guest']}"),
        (target, found["target_says"]),
        ("others", list(found["others"])),
        ("own disks there", ", ".join(found["travelling"])),
    ])  # fmt: skip
    line()
    for text in _ways(found):
        line(printable(text))
    if found["blocker"]:
        line(f"It cannot be taken back now: {found['blocker']}")


def ways(found: Mapping[str, Any]) -> None:
    """The ways out of a doubt, for whoever must choose."""
    for text in _ways(found):
        note(text)


def _ways(found: Mapping[str, Any]) -> Iterator[str]:
    for number, way in enumerate(found["ways"], 1):
        yield f"{number}. {way['name']}: {way['what']}."
        yield f"   It loses: {way['loses']}."


def result(settings: Settings, operation: Mapping[str, Any]) -> None:
    """The last words about an operation that was followed: its report, or how to go on."""
    from sterna.cli.failure import tell  # noqa: PLC0415 - start-up time

    state, error = str(operation["state"]), operation.get("error") or {}
    if settings.is_json:
        json_line(_line(operation))
    if error and state not in ("succeeded", "warned"):
        tell(error)
        _tell_parts(operation)
    elif state not in ("succeeded", "warned"):
        tell({"title": _still(operation), "hint": _hint(operation)})
    if settings.is_json or state not in ("succeeded", "warned"):
        return
    if operation.get("kind") == "move":
        move_summary(operation)
    else:
        told = (operation.get("result") or {}).get("text")
        line(printable(told or f"{operation.get('kind')} of {operation.get('vm')}: {state}"))
        fields([("  vms", _parts(operation))])
        fields([("  disks", _disks(operation.get("result") or {}))])
        for warning in _warnings(operation):
            line(printable(f"warning: {warning}"))


def _parts(operation: Mapping[str, Any]) -> list[str]:
    """What became of each VM of an operation about several."""
    parts = (operation.get("result") or {}).get("vms")
    if not isinstance(parts, list):
        return []
    from sterna.cli.several import sentences  # noqa: PLC0415 - start-up time

    return sentences(parts)


def _tell_parts(operation: Mapping[str, Any]) -> None:
    parts = (operation.get("result") or {}).get("vms")
    if isinstance(parts, list):
        from sterna.cli.several import tell  # noqa: PLC0415 - start-up time

        tell(parts)


def move_summary(operation: Mapping[str, Any]) -> None:
    """One sentence, then the report."""
    report: Mapping[str, Any] = operation.get("result") or {}
    how = "" if report.get("live", True) else ", switched off,"
    pause = report.get("pause_ms")
    line(
        printable(
            f"{operation.get('vm')}{how} moved from {report.get('from', '?')} to "
            f"{report.get('to', operation.get('peer') or '?')}"
            + (f" in {format_duration(report['total_s'])}" if "total_s" in report else "")
            + (f"; the pause was {_ms(pause)}" if pause is not None else "")
        )
    )
    move_report(report)


def move_report(report: Mapping[str, Any]) -> None:
    """The parts of a report that a person reads, as far as they are there."""
    parts: Mapping[str, Any] = report.get("pause_parts_ms") or {}
    phases: Mapping[str, Any] = report.get("phases") or {}
    rows: list[tuple[str, object]] = [
        ("  phases", ", ".join(f"{name} {format_duration(s)}" for name, s in phases.items())),
        ("  pause", ", ".join(f"{_words(name)} {_ms(ms)}" for name, ms in parts.items())),
        ("  memory", _memory(report)),
        ("  disks", _disks(report)),
        ("  carrier", _carrier(report)),
        ("  forecast", _forecast(report)),
        ("  warning", list(report.get("warnings") or ())),
    ]
    fields(rows)


def log_line(settings: Settings, entry: Mapping[str, Any]) -> None:
    if settings.is_json:
        json_line(entry)
        return
    level = "" if entry.get("level") == "info" else f"{entry.get('level')}: "
    line(printable(f"{local_time(entry.get('time'))}  {level}{entry.get('text', '')}"))
    sys.stdout.flush()


def _line(operation: Mapping[str, Any]) -> dict[str, Any]:
    report: Mapping[str, Any] = operation.get("result") or {}
    last = {
        "type": "result",
        "state": operation["state"],
        "operation": operation["id"],
        "vm": operation.get("vm"),
        **{key: value for key, value in report.items() if key not in ENVELOPE},
    }
    if operation.get("error"):
        last["error"] = operation["error"]
    return last


def _row(operation: Mapping[str, Any]) -> tuple[object, ...]:
    return (
        operation["id"],
        operation.get("kind"),
        operation.get("vm"),
        operation.get("peer"),
        operation["state"],
        operation.get("phase"),
        local_time(operation.get("created")),
        _took(operation),
    )


def _took(operation: Mapping[str, Any]) -> str:
    began, ended = operation.get("created"), operation.get("ended")
    if not began or not ended:
        return ""
    from datetime import datetime  # noqa: PLC0415 - start-up time

    try:
        took = datetime.fromisoformat(str(ended)) - datetime.fromisoformat(str(began))
    except ValueError:
        return ""
    return format_duration(max(0.0, took.total_seconds()))


def _memory(report: Mapping[str, Any]) -> str:
    parts = []
    if report.get("bytes_memory"):
        parts.append(f"{format_size(report['bytes_memory'])} of guest memory")
    if report.get("rounds"):
        parts.append(f"{report['rounds']} rounds")
    if report.get("bytes_wire"):
        parts.append(f"{format_size(report['bytes_wire'])} on the wire")
    return ", ".join(parts)


def _carrier(report: Mapping[str, Any]) -> str:
    """Which it was, and why."""
    kind, reason = report.get("carrier"), report.get("carrier_reason")
    return f"{kind}: {reason}" if kind and reason else str(kind or "")


def _forecast(report: Mapping[str, Any]) -> list[str]:
    """What had been expected, what it was, and by how much that was wrong."""
    compared: Mapping[str, Any] = report.get("forecast") or {}
    shown = {
        "total_s": ("time", format_duration, "{:+.0f} %"),
        "pause_ms": ("pause", _ms, "{:+.0f} ms"),
        "bytes_wire": ("on the wire", format_size, "{:+.0f} %"),
    }
    return [
        f"{words}: {text(compared[name]['expected'])} expected, {text(compared[name]['measured'])} "
        f"measured ({off.format(compared[name]['error'])})"
        for name, (words, text, off) in shown.items()
        if name in compared
    ]


def _disks(report: Mapping[str, Any]) -> list[str]:
    """Of a move within a host each disk; of one between hosts the bytes of all."""
    moved = report.get("disks")
    moved = moved if isinstance(moved, dict) else {}  # others count them
    rows = [
        f"{name}: {disk['from']} to {disk['to']}, {format_size(disk['bytes'])} in "
        f"{format_duration(disk['seconds'])}"
        for name, disk in moved.items()
        if isinstance(disk, dict) and disk.keys() >= {"from", "to", "bytes", "seconds"}
    ]
    if not rows and report.get("bytes_disks"):
        return [f"{format_size(report['bytes_disks'])} on the wire"]
    return rows


def _warnings(operation: Mapping[str, Any]) -> list[Any]:
    return list((operation.get("result") or {}).get("warnings") or ())


def _words(name: str) -> str:
    return name.replace("_", " ")


def _ms(milliseconds: float) -> str:
    return format_duration(milliseconds / 1000)


def _still(operation: Mapping[str, Any]) -> str:
    what = f"the {operation.get('kind', 'operation')} of {operation.get('vm') or 'several VMs'}"
    state = str(operation["state"])
    if state == "unknown":
        return f"the outcome of {what} is not known yet"
    if state in ("failed", "cancelled", "partial"):
        return f"{what} ended: {state}"
    return f"{what} goes on by itself: {state}"


def _hint(operation: Mapping[str, Any]) -> str:
    if operation["state"] in ("failed", "cancelled", "partial"):
        return f"See what happened with: sterna op log {operation['id']}"
    return f"Follow it with: sterna op wait {operation['id']}"
