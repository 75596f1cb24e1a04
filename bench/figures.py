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
            "qemu": facts["qemu"]["version"],
            "accel": facts["qemu"]["accel"],
        },
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()},
    }
    output.write_text(json.dumps({**about, **found}, indent=2) + "\n")
    print(f"written to {output}")
    return output


LOAD = round(os.getloadavg()[0], 2)  # at the start: tells whether the machine was quiet
