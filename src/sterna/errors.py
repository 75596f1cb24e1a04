"""Everything that can go wrong, by what the caller must do about it.

The family of an error says what to do next (`Refused`: nothing happened; `Unknown`: look before
you act); the concrete class gives it a stable `code`, one sentence that names the thing, and a
hint with the fix. Attributes come first, the text is made from them. `PROBLEMS` lists every
concrete class; HTTP status and exit code come from the family, so there is one table only.
"""

from __future__ import annotations

from typing import Any, ClassVar


class SternaError(Exception):
    """Base of all errors that a user may see. Keyword arguments fill `text` and `hint`."""

    code: ClassVar[str] = "internal"
    text: ClassVar[str] = "{detail}"
    hint: ClassVar[str] = ""
    status: ClassVar[int] = 500  # HTTP, RFC 9457 problem details
    exit_code: ClassVar[int] = 1  # DESIGN: exit codes of the command line

    def __init__(self, **facts: Any) -> None:
        self.facts = facts
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """One sentence that names the thing."""
        return self.text.format_map(_Facts(self.facts))

    @property
    def advice(self) -> str:
        """The fix, often a command; empty if there is none to give."""
        return self.hint.format_map(_Facts(self.facts))

    def problem(self) -> dict[str, Any]:
        """RFC 9457 body; `from_problem` is its inverse."""
        return {
            "type": f"https://sterna.invalid/problems/{self.code}",
            "title": self.message,
            "status": self.status,
            "code": self.code,
            "exit_code": self.exit_code,
            "hint": self.advice,
            "facts": {key: _plain(value) for key, value in self.facts.items()},
        }


class _Facts(dict[str, Any]):
    """A fact that is missing (another version left it out) shows as `<name>`; never an error."""

    def __missing__(self, key: str) -> str:
        return _Missing(f"<{key}>")


class _Missing(str):
    __slots__ = ()

    def __format__(self, _spec: str) -> str:
        return str(self)


def _plain(value: Any) -> Any:
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value)


# ---- families: the class says what the caller must do ------------------------------------


class Invalid(SternaError):
    """The request itself is wrong; nothing happened. Correct it and ask again."""

    status = 400
    exit_code = 2


class Refused(SternaError):
    """Checks say no; nothing happened."""

    status = 422
    exit_code = 3


class NotFound(SternaError):
    """There is no such thing here."""

    status = 404
    exit_code = 4


class Conflict(SternaError):
    """The thing is in a state, or in use, that forbids this now; nothing happened."""

    status = 409
    exit_code = 4


class Denied(SternaError):
    """The caller may not do this."""

    status = 403
    exit_code = 5


class Unreachable(SternaError):
    """A host, daemon or socket does not answer; nothing is known to have happened."""

    status = 502
    exit_code = 6


class Failed(SternaError):
    """It was tried, it failed, it was undone: things are as before."""

    exit_code = 1


class TimedOut(Failed):
    """A deadline passed; what was begun has been undone."""

    status = 504


class Cancelled(SternaError):
    """A user stopped it; it was undone."""

    status = 409
    exit_code = 7


class Partial(SternaError):
    """Done or undone, but something was left behind: the text says what and how to clear it."""

    exit_code = 11


class Unknown(SternaError):
    """The outcome cannot be known now: look before you act."""

    exit_code = 9


class Corrupt(SternaError):
    """Something stored is damaged; it was set aside, not dropped."""


# ---- requests -------------------------------------------------------------------------------


class BadSpec(Invalid):
    code = "request.invalid"
    text = "{where}: {reason}"
    hint = "See: sterna vm create --help"


class Unconfirmed(Invalid):
    code = "request.unconfirmed"
    text = "{action} asks first, and this is not a terminal"
    hint = "Give --yes to do it without being asked"


class BadSize(Invalid):
    code = "request.bad-size"
    text = "{value!r} is not a size: {reason}"
    hint = "Write a positive number with a unit, such as 512MiB or 10GiB"


class NoSuchPath(NotFound):
    code = "request.no-such-path"
    text = "this API has nothing at {path}"
    hint = "See what it has at /v1/openapi.json"


class BadMethod(Invalid):
    code = "request.bad-method"
    text = "{path} does not know {method}"
    hint = "See what it knows at /v1/openapi.json"
    status = 405


class TooLarge(Invalid):
    code = "request.too-large"
    text = "the request is larger than {limit} bytes"
    status = 413


class TooSlow(Invalid):
    code = "request.too-slow"
    text = "the request did not arrive within {seconds:g} s"
    status = 408


class BadHost(Invalid):
    code = "request.bad-host"
    text = "{host!r} is not a host: {reason}"
    hint = "Give a known name, https://HOST:PORT or unix:///PATH"


class BadConfig(Invalid):
    code = "config.invalid"
    text = "{path}: {reason}"
    hint = "Correct the file and start again"


# ---- VMs ------------------------------------------------------------------------------------


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


# ---- QEMU -----------------------------------------------------------------------------------


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


class QEMUUnsupported(Refused):
    code = "qemu.unsupported"
    text = "the QEMU of {host} cannot do this: {reason}"
    hint = "{fix}"


class FirmwareMissing(Refused):
    code = "qemu.firmware-missing"
    text = "no UEFI firmware at {path}"
    hint = "apt-get install ovmf"


# ---- images, pools, switches ----------------------------------------------------------------


class ImageMissing(Refused):
    code = "image.missing"
    text = "{what} {path} does not exist on {host}"
    hint = "Put it there, or give another path"


class ImageRefused(Refused):
    code = "image.refused"
    text = "image {path} cannot be used: {reason}"
    hint = "Make one that stands alone with: qemu-img convert -O qcow2 {path} NEW.qcow2"


class ImageFailed(Failed):
    code = "image.failed"
    text = "qemu-img could not {action} {path}: {reason}"


class VolumeExists(Conflict):
    code = "volume.exists"
    text = "{path} exists already in pool {pool}"
    hint = "Use it with volume={volume} and no size, or choose another volume name"


class VolumeForbidden(Refused):
    code = "volume.forbidden"
    text = "{volume!r} cannot be a volume of pool {pool}: {reason}"
    hint = "Use a plain file name whose file lies in the pool"


class PoolNotFound(NotFound):
    code = "pool.not-found"
    text = "{host} has no pool called {pool}"
    hint = "Make it with: sterna pool create {pool} --path DIR"


class PoolExists(Conflict):
    code = "pool.exists"
    text = "{host} already has a pool called {pool}"
    hint = "See: sterna pool list"


class PoolInUse(Conflict):
    code = "pool.in-use"
    text = "pool {pool} is used by {users}"
    hint = "Delete or move these VMs first"


class PoolUnusable(Refused):
    code = "pool.unusable"
    text = "pool {pool} cannot be used: {reason}"
    hint = "{fix}"


class SwitchNotFound(NotFound):
    code = "switch.not-found"
    text = "{host} has no switch called {switch}"
    hint = "Make it with: sterna switch create {switch}"


class SwitchExists(Conflict):
    code = "switch.exists"
    text = "{host} already has a switch called {switch}"
    hint = "See: sterna switch list"


class SwitchInUse(Conflict):
    code = "switch.in-use"
    text = "switch {switch} is used by {users}"
    hint = "Delete or move these VMs first"


class SwitchHasPorts(Conflict):
    code = "switch.has-ports"
    text = "bridge {bridge} of switch {switch} still has the interfaces {ports}"
    hint = "Unplug each with: ip link set dev NAME nomaster"


class SwitchUnusable(Refused):
    code = "switch.unusable"
    text = "switch {switch} cannot be used: {reason}"
    hint = "{fix}"


class NetworkFailed(Failed):
    code = "network.failed"
    text = "could not {action}: {reason}"


class VLANUnsupported(Refused):
    code = "switch.vlan-unsupported"
    text = (
        "switch {switch} cannot tag VLAN {vlan}: the kernel of {host} has no bridge VLAN filtering"
    )
    hint = "Boot a kernel with CONFIG_BRIDGE_VLAN_FILTERING, or remove the VLAN from the NIC"


# ---- hosts ----------------------------------------------------------------------------------


class HostUnknown(NotFound):
    code = "host.unknown"
    text = "{host} does not know a host called {peer}"
    hint = "Add it to the [peers] of sternad's configuration; known hosts: {known}"


class HostUnreachable(Unreachable):
    code = "host.unreachable"
    text = "{peer} does not answer at {url}: {reason}"
    hint = "Check that sternad runs there and that the address and port are right"
    delivered: bool = True  # the host may have received the request all the same


class DaemonUnreachable(Unreachable):
    code = "daemon.unreachable"
    text = "no sternad answers at {url}: {reason}"
    hint = "Start it with: systemctl start sternad (or name another with --host)"


class DaemonLost(Unreachable):
    code = "daemon.lost"
    text = (
        "sternad at {url} went away during {doing} and was not back within {seconds:g} s: {reason}"
    )
    hint = "The work goes on, or is settled when sternad is back: sterna op wait {operation}"


class AnswerLost(Unknown):
    """A request was sent, and the connection ended before its answer came."""

    code = "daemon.answer-lost"
    text = "sternad at {url} did not answer {request}: {reason}; it may or may not have been done"
    hint = "Look before you ask again: sterna vm list, sterna op list"


class HostNotTrusted(Denied):
    code = "host.not-trusted"
    text = "the certificate of {url} is not trusted: {reason}"
    hint = (
        "Run this on that host: sterna host certificate; "
        "then give the file that it prints with --certificate"
    )


class NotAllowed(Denied):
    code = "access.denied"
    text = "{what} is not allowed: {reason}"
    hint = "{fix}"


# ---- operations and moves ---------------------------------------------------------------------


class OperationNotFound(NotFound):
    code = "operation.not-found"
    text = "there is no operation {operation} on {host}"
    hint = "List them with: sterna op list"


class OperationEnded(Conflict):
    code = "operation.ended"
    text = "operation {operation} has already ended: {state}"
    hint = "See: sterna op show {operation}"


class TooLateToCancel(Conflict):
    code = "operation.too-late"
    text = "operation {operation} is in its handover and ends within seconds"
    hint = "Wait for it with: sterna op wait {operation}"


class ListenFailed(Failed):
    code = "daemon.cannot-listen"
    text = "cannot listen on {where}: {reason}"
    hint = "{fix}"


class OperationExists(Conflict):
    code = "operation.exists"
    text = "{host} already has an operation {operation}"
    hint = "See: sterna op show {operation}"


class OperationCancelled(Cancelled):
    code = "operation.cancelled"
    text = "operation {operation} was cancelled and undone"


class NotCancellable(Conflict):
    code = "operation.not-cancellable"
    text = "operation {operation} ({kind}) cannot be cancelled"
    hint = "Wait for it with: sterna op wait {operation}"


class Stopping(Unreachable):
    """The daemon is on its way down and begins nothing new."""

    code = "daemon.stopping"
    text = "sternad on {host} is stopping and begins no new work"
    hint = "Ask again when it has started: systemctl status sternad"
    status = 503


class MoveRefused(Refused):
    """Checks found blockers; `findings` holds each check's id, finding and fix."""

    code = "move.refused"
    text = "{vm} cannot move to {target}: {summary}"
    hint = "{fix}"


class MoveFailed(Failed):
    code = "move.failed"
    text = "the move of {vm} to {target} failed in phase {phase} and was undone: {reason}"
    hint = "{fix}"


class MoveCancelled(Cancelled):
    code = "move.cancelled"
    text = "the move of {vm} to {target} was cancelled in phase {phase} and undone"


class MoveLeftovers(Partial):
    code = "move.leftovers"
    text = "{vm} {outcome}, but something was left behind: {leftovers}"
    hint = "{fix}"


class MoveUnknown(Unknown):
    code = "move.unknown"
    text = "{vm} is paused: {target} was told to take it over and does not answer"
    hint = "Bring {target} back: the move then ends by itself. Follow it with: sterna op show {operation}"


class Stalled(Failed):
    code = "move.stalled"
    text = "{reason}"


class HandoverFailed(Failed):
    """The handover ended with the VM still owned by its source."""

    code = "move.handover-failed"
    text = "{reason}"


class TargetLost(Failed):
    code = "move.target-lost"
    text = "{target} gave the move up: {reason}"


class ReservationNotFound(NotFound):
    code = "move.no-reservation"
    text = "{host} holds no reservation {operation}"


class StateNotWritten(Failed):
    code = "state.not-written"
    text = "could not write {path}: {reason}"
    hint = "Free space on that file system, or mend it, and try again"


class RecordDamaged(Corrupt):
    code = "state.damaged"
    text = "the record of {what} {name} on {host} is damaged and was set aside at {path}: {reason}"
    hint = "Mend the file and rename it back, or delete it, then restart sternad"


class JournalCorrupt(Corrupt):
    code = "journal.corrupt"
    text = "the journal of operations was damaged and set aside at {path}: {reason}"
    hint = "VMs are not affected; the history of operations starts anew"


# ---- the lab ----------------------------------------------------------------------------------


class LabNeedsRoot(Denied):
    code = "lab.needs-root"
    text = "the lab makes network namespaces, which only root may do"
    hint = "Run it again with: sudo sterna lab {command}"


class LabToolMissing(Refused):
    code = "lab.tool-missing"
    text = "the lab needs the command {tool}, which is not installed"
    hint = "apt-get install {package}"


class LabNotFound(NotFound):
    code = "lab.not-found"
    text = "there is no lab called {lab}"
    hint = "Make it with: sterna lab up --name {lab}"


class LabExists(Conflict):
    code = "lab.exists"
    text = "there is a lab called {lab} already"
    hint = "Use it (sterna lab status --name {lab}) or remove it (sterna lab down --name {lab})"


class LabFailed(Failed):
    code = "lab.failed"
    text = "the lab {lab} could not {action}: {reason}"
    hint = "{fix}"


class LabLeftovers(Partial):
    code = "lab.leftovers"
    text = "the lab {lab} left something behind: {leftovers}"
    hint = "Run it again: sterna lab down --name {lab}"


class LabProofFailed(Failed):
    """What the guest felt or says contradicts what a move must keep."""

    code = "lab.proof-failed"
    text = "{vm} did not come through: {reason}"
    hint = "Run it again with --keep and look at the logs in {folder}"


def _concrete(cls: type[SternaError]) -> dict[str, type[SternaError]]:
    found = {cls.code: cls} if "code" in vars(cls) else {}
    for child in cls.__subclasses__():
        found |= _concrete(child)
    return found


PROBLEMS: dict[str, type[SternaError]] = _concrete(SternaError)


class RemoteError(SternaError):
    """A problem that another daemon reported, with its words kept as they were."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        super().__init__(**body.get("facts", {}))

    @property
    def message(self) -> str:
        return str(self.body.get("title", "the daemon answered with an error"))

    @property
    def advice(self) -> str:
        return str(self.body.get("hint", ""))

    def problem(self) -> dict[str, Any]:
        return self.body


def from_problem(body: dict[str, Any]) -> SternaError:
    """The error that a problem body describes; of its own class if this version knows the code."""
    cls = PROBLEMS.get(str(body.get("code")))
    if cls is None:
        return RemoteError(body)
    return cls(**body.get("facts", {}))
