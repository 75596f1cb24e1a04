"""Coverage-guided search for a message between hosts that is neither taken nor refused: atheris (libFuzzer).

    python tests/fuzz/fuzz_messages.py ask|answer [libFuzzer's options]

`ask`: what a peer sends to this host. `answer`: what it answers. Each begins as a message that is
right, of which some places get other values. Refused is BadSpec, one sentence; all else is a bug.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import atheris

with atheris.instrument_imports(include=["sterna.model"]):
    from sterna.errors import BadSpec
    from sterna.model import edge
    from sterna.model.check import Check
    from sterna.model.host import HostFacts, QEMUFacts
    from sterna.model.operation import Operation
    from sterna.model.reservation import (
        FileOffer,
        Look,
        Looked,
        MirrorOffer,
        Probe,
        Rejoin,
        Rejoined,
        Reservation,
        ReservationStatus,
        Take,
    )
    from sterna.model.vm import NIC, Disk, VMSpec

ID = "5d2b8f5e-6a51-4f0c-8d5e-1f2a3b4c5d6e"
SPEC = VMSpec(
    name="web",
    id=ID,
    machine="pc-q35-7.2",
    tpm=True,
    disks=(Disk(name="vda", pool="local", volume="web-vda.qcow2"),),
    nics=(NIC(name="net0", switch="lan", mac="52:54:00:00:00:01"),),
)
RESERVATION = Reservation(
    operation=ID, epoch=2, source="hv-a", spec=SPEC, live=True, paused=False, accel="kvm",
    protector={"QQ==": "QQ=="},
)  # fmt: skip
FACTS = HostFacts(
    name="hv-b", sterna="0.1", api=1, time="2026-01-01T00:00:00Z", cpus=2, memory_total=1 << 30,
    memory_free=1 << 29, switches=(), pools=(), migration_address="192.0.2.1", vms=0,
    qemu=QEMUFacts(binary="qemu", version="7.2", accel="kvm", accel_reason="", machines=()),
)  # fmt: skip
KINDS: dict[str, dict[Any, Any]] = {
    "ask": {
        Reservation: edge.dump(RESERVATION),
        Take: {"vm_id": ID, "epoch": 2},
        Rejoin: {"vm_id": ID, "epoch": 2, "has_pages": True},
        Look: {},
    },
    "answer": {
        HostFacts: edge.dump(FACTS),
        ReservationStatus: {},
        Rejoined: {"memory": "waiting", "address": "192.0.2.1", "port": 1},
        Looked: {},
        Probe: {},
        Operation: {},
        tuple[Check, ...]: [{"id": "x", "severity": "warning", "finding": "y"}],
        FileOffer: {},
        MirrorOffer: {},
    },
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in it."""
    found = [path]
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, one in items:
        found += places(one, (*path, key))
    return found


def value(data: atheris.FuzzedDataProvider, depth: int = 0) -> Any:  # noqa: PLR0911 - a kind each
    kind = data.ConsumeIntInRange(0, 9 if depth < 4 else 6)
    match kind:
        case 0:
            return None
        case 1:
            return data.ConsumeBool()
        case 2:
            return data.ConsumeInt(20)
        case 3:
            return data.ConsumeFloat()
        case 4 | 5:
            return data.ConsumeUnicode(data.ConsumeIntInRange(0, 60))
        case 6:
            return data.PickValueInList(
                ["", "NaN", ID, "1e999", "../x", "-1", "9" * 5000, "52:54:00:00:00:01"]
            )
        case 7 | 8:
            return [value(data, depth + 1) for _ in range(data.ConsumeIntInRange(0, 4))]
        case _:
            return {
                data.ConsumeUnicode(12): value(data, depth + 1)
                for _ in range(data.ConsumeIntInRange(0, 4))
            }


def changed(message: Any, data: atheris.FuzzedDataProvider) -> Any:
    """A copy with other values in some places."""
    message = json.loads(json.dumps(message))
    for _ in range(data.ConsumeIntInRange(1, 4)):
        path = data.PickValueInList(places(message))
        new = value(data)
        if not path:
            return new
        parent = message
        for key in path[:-1]:
            parent = parent[key]
        if isinstance(parent, dict) and data.ConsumeBool() and data.ConsumeBool():
            del parent[path[-1]]
        else:
            parent[path[-1]] = new
    return message


def messages(kind: str) -> Any:
    known = list(KINDS[kind].items())

    def target(raw: bytes) -> None:
        data = atheris.FuzzedDataProvider(raw)
        cls, message = data.PickValueInList(known)
        raw = json.dumps(changed(message, data)).encode()
        try:
            edge.require_text(raw, "message")
            edge.dump_json(edge.parse(cls, json.loads(raw), "message"))
        except BadSpec:
            return

    return target


if __name__ == "__main__":
    for one in KINDS["ask"], KINDS["answer"]:
        for cls, message in one.items():
            if message:
                edge.parse(cls, message, "message")  # it is right, to begin with
    target = messages(sys.argv.pop(1))
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
