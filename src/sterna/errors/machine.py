"""What keeps a VM from having the processor or the machine that is wished for it."""

from __future__ import annotations

from sterna.errors.family import Refused


class CPULacking(Refused):
    code = "vm.cpu-lacking"
    text = "{host} cannot give {vm} the processor {cpu}: it lacks {missing}"
    hint = "See what your hosts share: sterna host baseline; set it: sterna vm set {vm} --cpu-compat shared"


class NoBaseline(Refused):
    code = "host.no-baseline"
    text = "{hosts} have no level of the x86-64 processor in common"
    hint = "See what each of them gives: sterna host show HOST"


class VersionRefused(Refused):
    code = "vm.version-refused"
    text = "the version of {vm} cannot be raised from {machine} to {to}: {reason}"
    hint = "{fix}"


class MemoryForeign(Refused):
    code = "saved.machine"
    text = "{what} of {vm} was made as {made}, and {vm} is {now} now"
    hint = "{fix}"
