"""What the daemons of both ends take while VMs with larger and larger disks and memory move.

A daemon only arranges: the bytes of disks and memory go from QEMU to QEMU. Its resident memory is
read fifty times a second during each move; the highest of each is what counts, and that it does not
follow the size of what moves.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import images
from sterna.lab.hosts import LOCAL_POOL, Host
from sterna.lab.lab import Lab
from sterna.lab.vm import Load, spec
from sterna.lab.witness import Witness
from sterna.units import GIB, MIB

PERIOD_S = 0.02
LITTLE = 256 * MIB  # of random data on most disks: they differ in size, not in what is sent
DISKS = ((1 * GIB, LITTLE), (4 * GIB, LITTLE), (16 * GIB, LITTLE), (16 * GIB, 2 * GIB))
RAM = (512 * MIB, 1024 * MIB, 4096 * MIB)
MORE = 8 * MIB  # what the allocator and the journal's cache may differ by between two moves


class Watched:
    """The highest resident memory of each host's daemon while the block runs."""

    def __init__(self, hosts: list[Host]) -> None:
        self.highest = {host.name: 0 for host in hosts}
        self._hosts = hosts
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._ends.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            for host in self._hosts:
                self.highest[host.name] = max(self.highest[host.name], resident(host))
            if self._ends.wait(PERIOD_S):
                return


def resident(host: Host) -> int:
    """Bytes of memory that the host's daemon has now."""
    process = host.process
    assert process is not None, f"sternad on {host.name} has ended"
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


def measure(lab: Lab) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts of a host; a row for each move, and whether the daemons stayed as they were."""
    with Witness(lab) as witness:
        _move(lab, witness, size=1 * GIB, allocated=16 * MIB, ram=128 * MIB)  # imports, caches
        cases = [(*disk, 128 * MIB) for disk in DISKS] + [(1 * GIB, LITTLE, ram) for ram in RAM]
        rows = [
            _move(lab, witness, size=size, allocated=allocated, ram=ram)
            for size, allocated, ram in cases
        ]
    first, rest = rows[0], rows[1:]
    growth = max(row[who] - first[who] for row in rest for who in ("source", "target"))
    print(
        f"\n{'disk':>8}{'data':>8}{'RAM':>8}{'source':>12}{'target':>12}   (MiB; highest of sternad)"
    )
    for row in rows:
        sizes = "".join(f"{row[key] >> 20:>8}" for key in ("disk", "allocated", "ram"))
        print(sizes + "".join(f"{row[key] / MIB:>12.1f}" for key in ("source", "target")))
    kept = {f"no daemon grew by more than {MORE >> 20} MiB": growth <= MORE}
    print("\n".join(f"{'kept' if ok else 'BROKEN'}: {promise}" for promise, ok in kept.items()))
    return lab.hosts[0].client.get("/v1/host"), {"moves": rows, "growth": growth, "kept": kept}


def _move(lab: Lab, witness: Witness, *, size: int, allocated: int, ram: int) -> dict[str, Any]:
    """One VM, made on the first host, moved to the second, and removed there."""
    source, target = lab.hosts[:2]
    images.make(
        source.folder / "pool" / "disk", size=size, allocated=allocated, image_format="qcow2"
    )
    body = spec(lab.guest(), "tern", memory=ram, load=Load(disk_blocks_s=50))
    body["disks"] = [{"name": "vda", "pool": LOCAL_POOL, "volume": "disk", "format": "qcow2"}]
    source.client.post("/v1/vms", body)
    began = time.time_ns()
    source.client.post("/v1/vms/tern:start")
    witness.wait_beat(began)
    with Watched([source, target]) as watched:
        operation = _ended(
            source, source.client.post("/v1/vms/tern/moves", {"target": target.name})
        )
    _ended(target, target.client.post("/v1/vms/tern:stop", {"force": True}))
    target.client.delete("/v1/vms/tern")
    return {
        "disk": size,
        "allocated": allocated,
        "ram": ram,
        "source": watched.highest[source.name],
        "target": watched.highest[target.name],
        "total_s": operation["result"]["total_s"],
    }


def _ended(host: Host, operation: dict[str, Any]) -> dict[str, Any]:
    """The operation when it has ended well."""
    while operation["state"] in ("queued", "running"):
        operation = host.client.get(f"/v1/operations/{operation['id']}", {"wait": 20})
    if operation["state"] not in ("succeeded", "warned"):
        raise RuntimeError(f"{operation['kind']} failed: {operation['error']}")
    return operation
