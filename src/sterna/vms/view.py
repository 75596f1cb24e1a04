"""How a VM looks on the API."""

from __future__ import annotations

from typing import Any

from sterna.model import edge
from sterna.model.vm import RunState
from sterna.vms import chain
from sterna.vms.machine import VM


def view(vm: VM, host: str) -> dict[str, Any]:
    """JSON types; `console` and `vnc` are Unix sockets of the host while QEMU runs."""
    process = vm.record.process
    runs = vm.process is not None
    return {
        "name": vm.name,
        "id": vm.id,
        "state": vm.state,
        "doing": vm.doing,
        "host": host,
        "spec": edge.dump(vm.record.spec),
        "ownership": edge.dump(vm.record.ownership),
        "operation": vm.operation or vm.record.moving,
        "process": {"pid": process.pid, "accel": process.accel} if process and runs else None,
        "console": str(vm.paths.serial) if runs else "",
        "vnc": str(vm.paths.vnc) if runs and vm.record.spec.graphics else "",
        "notes": list(vm.record.notes),
        "checkpoints": [one.name for one in vm.record.checkpoints if not one.hidden],
        "at": next((one.name for one in chain.line(vm.record, vm.record.at) if not one.hidden), ""),
        "saved": edge.dump(vm.record.saved) if vm.record.saved else None,
        "damaged": None,
        "created": vm.record.created,
        "cpu_next": edge.dump(vm.record.cpu_next) if vm.record.cpu_next else None,
        "is_stopped_by_user": vm.record.paused and vm.state is RunState.PAUSED,
    }
