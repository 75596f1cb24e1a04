"""What the benchmarks have in common: where figures are written, and what is said beside them."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from sterna import __version__

FOLDER = Path(__file__).parent / "results"


def write(
    bench: str, facts: dict[str, Any], options: argparse.Namespace, found: dict[str, Any]
) -> Path:
    """All of `found` as JSON, with the machine (`facts` of a host) and the settings. Returns where.

    `options.output` is the file; without it one with the time in its name.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    output: Path = options.output or FOLDER / f"{bench}-{stamp}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "bench": bench,
        "time": stamp,
        "sterna": __version__,
        "machine": {
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "load_before": LOAD,
            "noise_before": NOISE,
            "qemu": facts["qemu"]["version"],
            "accel": facts["qemu"]["accel"],
        },
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
    }
    output.write_text(json.dumps({**about, **found}, indent=2) + "\n")
    print(f"written to {output}")
    return output


class Noise:
    """What disturbs a measurement, since it was made: share of CPU time that was in use, and that
    the machine below took for others (steal), in percent of all CPUs.
    """

    def __init__(self) -> None:
        self._before = self._ticks()

    def so_far(self) -> dict[str, float]:
        now = self._ticks()
        spent = [after - before for after, before in zip(now, self._before, strict=True)]
        total = sum(spent) or 1
        idle, steal = spent[3] + spent[4], spent[7]  # proc(5): user nice system idle iowait … steal
        return {
            "busy_percent": round(100 * (total - idle - steal) / total, 1),
            "steal_percent": round(100 * steal / total, 1),
        }

    @staticmethod
    def _ticks() -> list[int]:
        return [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]


def _look() -> dict[str, float]:
    noise = Noise()
    time.sleep(NOISE_S)
    return noise.so_far()


NOISE_S = 0.5
LOAD = round(os.getloadavg()[0], 2)  # at the start: tells whether the machine was quiet
NOISE = _look()
