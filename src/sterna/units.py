"""Sizes, rates and durations: how people write them, how we show them. Pure functions."""

from __future__ import annotations

import re

from sterna.errors import BadSize

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
LARGEST = 1 << 63  # bytes: files and QEMU count up to there

_SCALE = {
    "": 1, "b": 1,
    "k": KIB, "kib": KIB, "kb": 1000,
    "m": MIB, "mib": MIB, "mb": 1000**2,
    "g": GIB, "gib": GIB, "gb": 1000**3,
    "t": TIB, "tib": TIB, "tb": 1000**4,
}  # fmt: skip
_SIZE = re.compile(r"\s*([+-]?[0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*")


def parse_size(value: object) -> int:
    """Bytes of `10GiB`, `512M` (binary), `1GB` (decimal) or a plain number; always positive."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise BadSize(value=value, reason="it is neither a number nor a text")
    match = _SIZE.fullmatch(str(value))
    if match is None:
        raise BadSize(value=value, reason="it does not read as a number with a unit")
    number, unit = match.groups()
    scale = _SCALE.get(unit.lower())
    if scale is None:
        raise BadSize(value=value, reason=f"the unit {unit} is not known")
    if float(number) * scale >= LARGEST:
        raise BadSize(value=value, reason="it must be less than 8 EiB")
    size = int(float(number) * scale) if "." in number else int(number) * scale
    if size <= 0:
        raise BadSize(value=value, reason="it must be more than zero")
    return size


def format_size(size: float) -> str:
    """Shortest reading with a binary unit: `1.5 GiB`, `300 MiB`, `0 B`."""
    for unit, scale in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(size) >= scale:
            return f"{_three_digits(size / scale)} {unit}"
    return f"{size:.0f} B"


def format_rate(bytes_per_s: float) -> str:
    """`118 MB/s`: decimal, as links are measured."""
    for unit, scale in (("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3)):
        if abs(bytes_per_s) >= scale:
            return f"{_three_digits(bytes_per_s / scale)} {unit}"
    return f"{bytes_per_s:.0f} B/s"


def _three_digits(number: float) -> str:
    """`1.23`, `12.3`, `123`, `1234`, `1.5`; never with an exponent."""
    return f"{number:.3g}" if abs(number) < 999.5 else f"{number:.0f}"


def format_duration(seconds: float) -> str:
    """`850 ms`, `3.2 s`, `4 min 05 s`, `2 h 10 min`."""
    if round(seconds, 3) < 1:
        return f"{seconds * 1000:.0f} ms"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
