"""The spec of a new VM, from a file, from options, or from both: options win over the file.

The daemon is the judge of a spec; here is only what makes it well-formed. Paths are made absolute
when the daemon is on this machine.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sterna.cli.placed import NAMES
from sterna.errors import BadSpec

FIRST = {"disks": "vda", "cds": "cd0", "nics": "net0"}


def read(file: str) -> dict[str, Any]:
    """The spec in `file`: JSON or TOML by its name, or by its first character if it is `-`.

    Raises BadSpec if the file is missing, damaged or not an object.
    """
    where = "standard input" if file == "-" else file
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except OSError as error:
        raise BadSpec(where=where, reason=f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadSpec(where=where, reason="is not a text file") from error
    is_json = file.endswith(".json") or (
        not file.endswith(".toml") and text.lstrip()[:1] in ("{", "[", "")
    )
    value = _json(text, where) if is_json else _toml(text, where)
    if not isinstance(value, dict):
        raise BadSpec(where=where, reason='must hold one object such as {"name": "web"}')
    return value


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadSpec(where=where, reason=f"is not valid JSON: {error}") from error


def _toml(text: str, where: str) -> Any:
    import tomllib  # noqa: PLC0415 - start-up time

    try:
        return json.loads(json.dumps(tomllib.loads(text)))
    except tomllib.TOMLDecodeError as error:
        raise BadSpec(where=where, reason=f"is not valid TOML: {error}") from error
    except TypeError as error:
        raise BadSpec(where=where, reason="a spec has no dates or times") from error


def merge(spec: dict[str, Any], options: Mapping[str, Any], is_local: bool) -> dict[str, Any]:
    """`spec` with the options that were given. Disks, CDs, NICs and tags are added to the file's."""
    result = dict(spec)
    result |= _chosen(options, ("name", "vcpus", "memory", "cpu", "machine", "firmware", "tpm"))
    if options.get("graphics") is False:
        result["graphics"] = False
    boot = {key: options[key] for key in ("kernel", "initrd", "cmdline") if options.get(key)}
    if boot:
        result["boot"] = {**(result.get("boot") or {}), **boot}
    if placement := _chosen(options, NAMES):
        result["placement"] = {**(result.get("placement") or {}), **placement}
    for key in ("disks", "cds", "nics", "tags"):
        if options.get(key):
            result[key] = [*_items(result, key), *options[key]]
            if key in FIRST:
                _name(result[key], FIRST[key])
    if options.get("disks"):
        result["disks"] = [{"pool": "default", **disk} for disk in result["disks"]]
    if is_local:
        _absolute(result)
    return result


def _chosen(options: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: options[key] for key in keys if options.get(key) is not None}


def _items(spec: Mapping[str, Any], key: str) -> list[Any]:
    value = spec.get(key) or []
    if not isinstance(value, list):
        raise BadSpec(where=key, reason="must be a list")
    return value


def _name(items: list[Any], first: str) -> None:
    """Give the nameless devices the next free name after `first`: vda, vdb …; cd0, cd1 …; net0, net1 …"""
    stem, start = first[:-1], ord(first[-1])
    taken = {item.get("name") for item in items if isinstance(item, dict)}
    names = (f"{stem}{chr(start + step)}" for step in range(26))
    free = (name for name in names if name not in taken)
    for number, item in enumerate(items):
        if isinstance(item, dict) and not item.get("name"):
            items[number] = {"name": next(free, ""), **item}


def _absolute(spec: dict[str, Any]) -> None:
    """Paths as the user sees them from the current folder, spelt out for the daemon."""
    boot = spec.get("boot")
    if isinstance(boot, dict):
        for key in ("kernel", "initrd"):
            if isinstance(boot.get(key), str) and boot[key]:
                boot[key] = os.path.abspath(boot[key])  # noqa: PTH100 - keeps symbolic links
    for disk in spec.get("disks") or ():
        if isinstance(disk, dict) and isinstance(disk.get("image"), str) and disk["image"]:
            disk["image"] = os.path.abspath(disk["image"])  # noqa: PTH100
