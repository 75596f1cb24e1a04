"""What QEMU says no to, or dies of."""

from __future__ import annotations

from sterna.errors.family import Failed, Refused, TimedOut


class QEMUMissing(Refused):
    code = "qemu.missing"
    text = "no QEMU at {path}: {reason}"
    hint = "apt-get install qemu-system-x86 qemu-utils"


class QEMULost(Failed):
    """The connection to a QEMU ended, mostly because the process did."""

    code = "qemu.lost"
    text = "QEMU of {name} is gone: {reason}"


class QMPError(Failed):
    """QEMU answered a command with an error; `command` and `reason` say which and why."""

    code = "qemu.command-failed"
    text = "QEMU of {name} refused {command}: {reason}"


class QMPTimeout(TimedOut):
    code = "qemu.silent"
    text = "QEMU of {name} did not answer {command} within {seconds:g} s"


class BlockJobFailed(Failed):
    code = "qemu.block-job-failed"
    text = "QEMU of {name} could not copy a disk ({job}): {reason}"
    hint = "Look at both disks and the link between them; it may be tried again at any time"


class QEMUUnsupported(Refused):
    code = "qemu.unsupported"
    text = "the QEMU of {host} cannot do this: {reason}"
    hint = "{fix}"


class FirmwareMissing(Refused):
    code = "qemu.firmware-missing"
    text = "no UEFI firmware at {path}"
    hint = "apt-get install ovmf"
