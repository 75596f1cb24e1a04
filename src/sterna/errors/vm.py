"""What goes wrong with a VM."""

from __future__ import annotations

from sterna.errors.family import Conflict, Corrupt, Failed, NotFound, Partial


class VMNotFound(NotFound):
    code = "vm.not-found"
    text = "{host} has no VM called {vm}"
    hint = "List its VMs with: sterna vm list"


class VMExists(Conflict):
    code = "vm.exists"
    text = "{host} already has a VM called {vm}"
    hint = "Choose another name, or look at it with: sterna vm show {vm}"


class VMBusy(Conflict):
    code = "vm.busy"
    text = "{vm} is busy: {doing}"
    hint = "Follow it with: sterna op show {operation}"


class VMWrongState(Conflict):
    code = "vm.wrong-state"
    text = "cannot {action} {vm}: it is {state}"
    hint = "{fix}"


class VMNotOwned(Conflict):
    code = "vm.not-owned"
    text = "{vm} may not run on {host}: {reason}"
    hint = "{fix}"


class VMDamaged(Corrupt):
    code = "vm.damaged"
    text = "the record of VM {vm} on {host} is damaged and was set aside at {path}: {reason}"
    hint = "Mend the file and move it back, or delete it, then restart sternad"


class VMStartFailed(Failed):
    code = "vm.start-failed"
    text = "{vm} did not start: {reason}"
    hint = "QEMU's own words are in {log}"


class VMLost(Failed):
    code = "vm.qemu-ended"
    text = "the QEMU of {vm} ended while {doing}: {reason}"
    hint = "Look at {log}, then start it with: sterna vm start {vm}"


class VMFilesLeft(Partial):
    code = "vm.files-left"
    text = "{vm} is deleted, but not all of its files: {leftovers}"
    hint = "Delete them when their storage is well again; find them with: sterna disk check"
