"""How long `sterna check` takes: for a pair of hosts, and for fifty.

    sudo .venv/bin/python bench/check.py [--runs 5] [--check]

A guest that writes memory and a disk, in a lab of two hosts. For fifty, one daemon answers the
other's questions over HTTPS under fifty names. Seconds are those of the whole command, its start
included. Prints a table and writes all runs as JSON to bench/results/.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import sys
import time
from pathlib import Path

import figures

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from checking import Administrator, configured
from sterna.lab.lab import Lab, Wanted, remove, undisturbed, up
from sterna.lab.vm import Load, spec

MANY = 50
PROMISED_S = {"a pair": 2.0, f"{MANY} hosts": 10.0}


def seconds(admin: Administrator, line: str, codes: set[int]) -> float:
    """Of one command, which must end with one of `codes`."""
    began = time.monotonic()
    done = admin.ask(line)
    took = time.monotonic() - began
    if done.returncode not in codes:
        raise RuntimeError(f"{line}: {done.stdout}{done.stderr}")
    return round(took, 3)


def measure(lab: Lab, runs: int) -> dict[str, list[float]]:
    """Seconds of each run, by case."""
    here, there = lab.hosts
    admin = Administrator(here)
    load = Load(memory_mb_s=5, memory_mb=16, disk_blocks_s=20)
    here.client.post("/v1/vms", spec(lab.guest(), "tern", load=load))
    here.client.post("/v1/vms/tern:start")
    pair = [seconds(admin, f"sterna check tern {there.name}", {0}) for _ in range(runs)]
    name = f"[peers.{there.name}]"
    entry = here.config.read_text().partition(f"{name}\n")[2].partition("\n[")[0]
    many = "".join(f"[peers.hv-{n:02}]\n{entry}\n" for n in range(MANY - 1))
    with configured(here, (name, f"{many}\n{name}")):
        fifty = [seconds(admin, "sterna check tern", {0}) for _ in range(runs)]
    return {"a pair": pair, f"{MANY} hosts": fifty}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="exit 1 if a promise is missed")
    parser.add_argument("--output", type=Path, help="file of the JSON")
    options = parser.parse_args()
    name = f"check{secrets.token_hex(3)}"
    lab = up(Wanted(name=name, ends_with_us=True))
    try:
        found = measure(lab, options.runs)
        facts = lab.hosts[0].client.get("/v1/host")
    finally:
        with undisturbed():
            remove(name)
    kept = {case: max(took) < PROMISED_S[case] for case, took in found.items()}
    for case, took in found.items():
        median, longest = statistics.median(took), max(took)
        print(
            f"{case:>10}  median {median:5.2f} s  longest {longest:5.2f} s  promised {PROMISED_S[case]:g} s"
        )
    figures.write("check", facts, options, {"seconds": found, "kept": kept})
    return 1 if options.check and not all(kept.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
