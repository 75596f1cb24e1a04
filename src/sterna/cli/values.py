"""Sizes, rates, durations and `key=value,...` lists as they are written on a command line.

Each is a function that click uses as a type: it turns text into the number that the API wants, or says what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import click

from sterna.errors import BadSize
from sterna.units import parse_size

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|m|min|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BITS = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmg])bit(?:/s|ps)?", re.IGNORECASE)
_BIT_SCALE = {"k": 1e3, "m": 1e6, "g": 1e9}


class BadValue(click.BadParameter):
    """A value that does not read; `advice` says how to write it."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.advice = advice


def size(value: Any) -> int:
    """Bytes of `10GiB`, `512M` or `1GB`."""
    try:
        return parse_size(value)
    except BadSize as error:
        raise BadValue(error.message, error.advice) from error


def rate(value: Any) -> int:
    """Bytes per second of `100MB`, `100MB/s` or `1Gbit`."""
    text = str(value).strip()
    if match := _BITS.fullmatch(text):
        return int(float(match[1]) * _BIT_SCALE[match[2].lower()] / 8)
    try:
        return size(text.removesuffix("/s"))
    except BadValue as error:
        problem = f"{text!r} is not a rate"
        raise BadValue(problem, "Write bits or bytes a second: 1Gbit, 200Mbit, 100MB") from error


def limit(value: Any) -> int | str:
    """A `rate`, or `none`."""
    return "none" if str(value).strip().lower() == "none" else rate(value)


def names(value: Any) -> list[str]:
    """`a,b`, or `none`."""
    text = str(value).strip()
    return [] if text.lower() == "none" else [name.strip() for name in text.split(",")]


def duration(value: Any) -> float:
    """Seconds of `300ms`, `90s`, `10m`, `2h` or `7d`; a bare number is seconds."""
    match = _DURATION.fullmatch(str(value).strip())
    if match is None:
        raise BadValue(f"{value!r} is not a duration", "Write 300ms, 90s, 10m, 2h or 7d")
    return float(match[1]) * _SECONDS[match[2] or "s"]


def disk(value: Any) -> dict[str, Any]:
    """A disk of `pool=default,size=10GiB,...`."""
    return _pairs(value, _DISK)


def nic(value: Any) -> dict[str, Any]:
    """A network card of `switch=lan,vlan=20,...`."""
    return _pairs(value, _NIC)


def medium(value: Any) -> dict[str, str]:
    """A CD of `isos/debian.iso`: pool and file."""
    text = str(value)
    pool, slash, volume = text.partition("/")
    if text.startswith(("/", "./", "../", "~")):
        folder = text.rpartition("/")[0] or "/"
        raise BadValue(
            f"{text} is a path, and a CD is named by its pool",
            f"Make a pool of its directory: sterna pool create isos --path {folder}; then write "
            f"isos/{text.rpartition('/')[2]}",
        )
    if not (pool and slash and volume) or "/" in volume:
        raise BadValue(f"{text!r} does not name a CD", "Write POOL/FILE, such as isos/debian.iso")
    return {"pool": pool, "volume": volume}


def cd(value: Any) -> dict[str, str]:
    """A CD drive of `isos/debian.iso`, or an empty one of `none`."""
    return {} if str(value) == "none" else medium(value)


def place(value: Any) -> tuple[str, dict[str, Any]]:
    """Where a disk shall go, of `vda=fast`, `vda=fast:raw` or `vda=:raw`: its name and the wish."""
    name, equals, rest = str(value).partition("=")
    pool, _, image_format = rest.partition(":")
    if not name or not equals or not (pool or image_format):
        raise BadValue(
            f"{value!r} does not say where a disk shall go",
            "Write DISK=POOL, DISK=POOL:FORMAT or DISK=:FORMAT, such as vda=fast:raw",
        )
    return name, {"pool": pool, "format": image_format or None}


def _pairs(value: Any, keys: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for part in str(value).split(","):
        key, _, text = part.partition("=")
        if key not in keys:
            raise click.BadParameter(f"{key!r} is not one of its keys: {', '.join(keys)}")
        if not text:
            raise click.BadParameter(f"{key} has no value; write {key}=VALUE")
        if key in pairs:
            raise click.BadParameter(f"{key} is given twice")
        pairs[key] = keys[key](text)
    return pairs


def _vlan(text: str) -> int:
    if not text.isdecimal():
        raise click.BadParameter(f"VLAN {text!r} is not a number between 1 and 4094")
    return int(text)


def vlan(value: Any) -> int | str:
    """A VLAN, or `none`."""
    return "none" if str(value) == "none" else _vlan(str(value))


def trunk(value: Any) -> str:
    """VLANs of `10+20-29`, where a comma would end the value, or of `10,20-29`; empty of `none`."""
    return "" if str(value) == "none" else str(value).replace("+", ",")


def plugged(value: Any) -> tuple[str, str]:
    """Where a NIC shall be plugged in, of `net0=dmz`: its name and the switch."""
    name, _, switch = str(value).partition("=")
    if not name or not switch:
        raise BadValue(
            f"{value!r} does not say where a NIC shall be plugged in",
            "Write NIC=SWITCH, such as net0=lan",
        )
    return name, switch


def _base(text: str) -> list[dict[str, str]]:
    return [{"volume": text}]


def _truth(text: str) -> bool:
    if text not in ("true", "false", "yes", "no"):
        raise click.BadParameter(f"{text!r} is neither yes nor no")
    return text in ("true", "yes")


_DISK: dict[str, Callable[[str], Any]] = {
    "name": str,
    "pool": str,
    "size": size,
    "image": str,
    "base": _base,
    "format": str,
    "volume": str,
    "read_only": _truth,
}
_NIC: dict[str, Callable[[str], Any]] = {
    "name": str,
    "switch": str,
    "mac": str,
    "vlan": _vlan,
    "trunk": trunk,
}
