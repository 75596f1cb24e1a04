"""Every phase of a move with every fault: what is done, and what must be true after it.

A cell holds the source's daemon at the point of its phase, does the fault there, lets go, and waits
until the operation has ended and the fault is over. Then: exactly one VM, running (or off, if its
QEMU was killed), with all that it was told is durable on both disks and its memory whole; nothing
left over on either host; and an operation that says what happened.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from subprocess import CalledProcessError

from stage import LOCAL_POOL, SPARE_POOL, Bad, Ended, Stage

from moving import wait_until
from sterna.errors import SternaError
from sterna.lab.hosts import Host
from sterna.units import MIB

# Slow enough that memory and disks are still on their way when the fault comes.
WISHES = {"bandwidth": 32 * MIB, "max_downtime_ms": 1000}
SHORT_S = 10.0
FROZEN_S = 20.0


@dataclass(frozen=True)
class Phase:
    """`point` is one of `holding.py`'s."""

    point: str
    what: str  # where it is
    kind: str  # of the move: live, storage, cold
    is_given: bool = False  # the VM is the target's, or may be


PHASES = {
    phase.point: phase
    for phase in (
        Phase("reserve", "the target has reserved", "live"),
        Phase("disks", "mirrors are running", "live"),
        Phase("memory", "memory is on its way", "live"),
        Phase("handover", "the guest is stopped, the mirrors are to finish", "live"),
        Phase("yielded", "the source has written that it yields", "live", is_given=True),
        Phase("tidy", "the target has taken the VM", "live", is_given=True),
        Phase("storage-copy", "mirrors to another pool are running", "storage"),
        Phase("storage-pivot", "both images are equal, writes wait", "storage"),
        Phase("storage-tidy", "the record names the new images", "storage", is_given=True),
        Phase("cold-reserve", "the target has reserved", "cold"),
        Phase("cold-copy", "files are being sent", "cold"),
        Phase("cold-yielded", "the source has written that it yields", "cold", is_given=True),
        Phase("cold-tidy", "the target has taken the VM", "cold", is_given=True),
    )
}


@dataclass
class Scene:
    """One cell under way."""

    stage: Stage
    phase: Phase
    source: Host
    target: Host
    operation: str = ""
    ended: Ended = None  # type: ignore[assignment]

    @property
    def pools(self) -> tuple[str, str]:
        """Where the disks are, and where they go."""
        here = self.stage.view(self.stage.home)["spec"]["disks"][0]["pool"]
        if self.phase.kind != "storage":
            return here, here
        return here, SPARE_POOL if here == LOCAL_POOL else LOCAL_POOL


Act = Callable[[Scene], None]


def nothing(_scene: Scene) -> None:
    return


@dataclass(frozen=True)
class Fault:
    """Done at the point; then, when the daemon goes on; then, when the operation has ended."""

    name: str
    at_once: Act
    then: Act = nothing
    at_last: Act = nothing
    in_doubt: Act = nothing  # while the operation is `unknown`
    kills_guest_of: str = ""  # source, target
    act: str = "hold"
    lasts: bool = False  # until the operation has ended, or is in doubt


def kill_daemon(scene: Scene, host: Host) -> None:
    host.kill()


def kill_qemu(scene: Scene, host: Host) -> None:
    pid = scene.stage.qemu(host)
    if pid is None:
        raise Bad(f"{host.name} has no QEMU to kill")
    os.kill(pid, signal.SIGKILL)


def freeze(scene: Scene) -> None:
    scene.target.freeze()
    if (pid := scene.stage.qemu(scene.target)) is not None:
        os.kill(pid, signal.SIGSTOP)


def thaw_later(scene: Scene) -> None:
    time.sleep(FROZEN_S)  # the length of the fault, not a wait
    with contextlib.suppress(ProcessLookupError):
        if (pid := scene.stage.qemu(scene.target)) is not None:
            os.kill(pid, signal.SIGCONT)
    scene.target.thaw()


def join_later(scene: Scene) -> None:
    time.sleep(SHORT_S)  # the length of the fault, not a wait
    scene.stage.join(scene.target)


def cancel(scene: Scene) -> None:
    try:
        scene.source.client.post(f"/v1/operations/{scene.operation}:cancel")
    except SternaError as error:
        scene.ended.notes.append(f"cancel refused: {error.message}")


def turn_off(scene: Scene) -> None:
    """The target's machine: its daemon, and its QEMU."""
    scene.target.kill()
    if (pid := scene.stage.qemu(scene.target)) is not None:
        os.kill(pid, signal.SIGKILL)


def explain(scene: Scene) -> None:
    """The two ways out are told."""
    doubt = scene.source.client.get(f"/v1/operations/{scene.operation}/doubt")
    if len(doubt["ways"]) < 2 or doubt["blocker"]:
        raise Bad(f"op resolve says {doubt}")
    scene.ended.notes.append("op resolve told the ways out")


def fence(scene: Scene) -> None:
    turn_off(scene)
    explain(scene)
    scene.source.client.post(f"/v1/operations/{scene.operation}:resolve", {"fenced": True})
    scene.ended.notes.append("fenced")


def turn_on(scene: Scene) -> None:
    scene.stage.join(scene.target)
    scene.stage.revive(scene.target)


def refill(scene: Scene) -> None:
    host = scene.source if scene.phase.kind == "storage" else scene.target
    scene.stage.fill(scene.stage.pool(host, scene.pools[1]))


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("step-raises", nothing, act="raise"),
        Fault(
            "source-daemon-killed",
            lambda s: s.source.kill(),
            lambda s: s.stage.revive(s.source),
        ),
        Fault(
            "target-daemon-killed",
            lambda s: s.target.kill(),
            lambda s: s.stage.revive(s.target),
        ),
        Fault("source-qemu-killed", lambda s: kill_qemu(s, s.source), kills_guest_of="source"),
        Fault("target-qemu-killed", lambda s: kill_qemu(s, s.target), kills_guest_of="target"),
        Fault("target-disk-full", refill, at_last=lambda s: s.stage.give_room(s.ended)),
        Fault(
            "source-read-error",
            lambda s: s.stage.spoil(s.source, s.pools[0]),
            at_last=lambda s: s.stage.mend(s.source),
        ),
        Fault(
            "link-cut",
            lambda s: s.stage.cut(s.target),
            at_last=lambda s: s.stage.join(s.target),
            in_doubt=explain,
            lasts=True,
        ),
        Fault("link-cut-10s", lambda s: s.stage.cut(s.target), join_later),
        Fault("target-frozen-20s", freeze, thaw_later),
        Fault("cancel", cancel),
    )
}
# Only where the VM has been given away, and nobody can say whether it was taken.
FENCED = Fault(
    "target-lost-fenced",
    lambda s: s.stage.cut(s.target),
    at_last=turn_on,
    in_doubt=fence,
    lasts=True,
)

NO_QEMU_YET = "the target starts its QEMU when the disks begin"
ALL_THERE = "the target has every byte by then and makes no more files"
ONE_HOST = "one host alone does it"
NO_QEMU = "the VM is off"
RECORD_ONLY = "nothing is read from the disks any more"
NOT_APPLICABLE: dict[tuple[str, str], str] = {
    ("reserve", "target-qemu-killed"): NO_QEMU_YET,
    ("yielded", "target-disk-full"): ALL_THERE,
    ("tidy", "target-disk-full"): ALL_THERE,
    ("yielded", "source-read-error"): RECORD_ONLY,
    ("tidy", "source-read-error"): RECORD_ONLY,
    ("storage-tidy", "target-disk-full"): ALL_THERE,
    ("storage-tidy", "source-read-error"): RECORD_ONLY,
    ("cold-yielded", "target-disk-full"): ALL_THERE,
    ("cold-tidy", "target-disk-full"): ALL_THERE,
    ("cold-yielded", "source-read-error"): RECORD_ONLY,
    ("cold-tidy", "source-read-error"): RECORD_ONLY,
}
OF_TWO_HOSTS = {
    "target-daemon-killed",
    "target-qemu-killed",
    "link-cut",
    "link-cut-10s",
    "target-frozen-20s",
}


@dataclass(frozen=True)
class Cell:
    phase: str
    fault: str

    @property
    def name(self) -> str:
        return f"{self.phase}/{self.fault}"

    @property
    def not_applicable(self) -> str:
        """Why; empty: it applies."""
        kind = PHASES[self.phase].kind
        if kind == "storage" and self.fault in OF_TWO_HOSTS:
            return ONE_HOST
        if kind == "cold" and self.fault in ("source-qemu-killed", "target-qemu-killed"):
            return NO_QEMU
        return NOT_APPLICABLE.get((self.phase, self.fault), "")


CELLS = [
    *(Cell(phase, fault) for phase in PHASES for fault in FAULTS),
    *(Cell(phase, FENCED.name) for phase in ("yielded", "cold-yielded")),
]


@dataclass
class Row:
    """A line of the table."""

    cell: Cell
    verdict: str  # good, BAD, n/a
    outcome: str = ""
    said: str = ""
    seconds: float = 0.0
    felt_ms: float = 0.0  # longest time in which nobody heard the guest
    wrote_ms: float = 0.0  # longest time that one of its writes took


def run(stage: Stage, cell: Cell) -> Row:
    """Raises nothing: whatever goes wrong is a bad row."""
    began = time.monotonic()
    ended = Ended()
    try:
        felt = _run(stage, cell, ended)
    except (
        Bad,
        AssertionError,
        SternaError,
        LookupError,
        OSError,
        ValueError,
        CalledProcessError,
    ) as error:
        text = f"{type(error).__name__}: {error}"
        return Row(cell, "BAD", text, ended.said, time.monotonic() - began)
    return Row(cell, "good", _outcome(ended), ended.said, time.monotonic() - began, *felt)


def _outcome(ended: Ended) -> str:
    doubt = "in doubt, then " if ended.was_unknown else ""
    notes = f" ({'; '.join(ended.notes)})" if ended.notes else ""
    return f"{doubt}{ended.state}: {ended.guest} on {ended.owner}{notes}"


def _begin(scene: Scene) -> str:
    client, kind = scene.source.client, scene.phase.kind
    if kind == "storage":
        body = {"pool": scene.pools[1], "bandwidth": WISHES["bandwidth"]}
        return str(client.post("/v1/vms/tern/storage-moves", body)["id"])
    body = {"target": scene.target.name, **WISHES}
    return str(client.post("/v1/vms/tern/moves", body)["id"])


def _run(stage: Stage, cell: Cell, ended: Ended) -> tuple[float, float]:
    phase, fault = PHASES[cell.phase], FAULTS.get(cell.fault, FENCED)
    is_live = phase.kind != "cold"
    stage.ready(running=is_live)
    scene = Scene(stage, phase, stage.home, stage.other, ended=ended)
    began = time.time_ns()
    stage.arm(scene.source, phase.point, fault.act)
    scene.operation = _begin(scene)
    if fault.act == "raise":
        wait_until(lambda: _is_past(scene), f"{phase.what}")
    else:
        wait_until(lambda: _is_held(scene), f"{phase.what}")
        fault.at_once(scene)
        stage.release(scene.source)
        fault.then(scene)
    stage.settle(scene.source, scene.operation, ended, patient=not fault.lasts)
    if ended.state == "unknown":
        fault.in_doubt(scene)
    fault.at_last(scene)
    if ended.state == "unknown":
        stage.settle(scene.source, scene.operation, ended, patient=True)
    may_be_off = not is_live or bool(fault.kills_guest_of)
    stage.find(ended, may_be_off=may_be_off)
    _require_right_host(scene, fault)
    if ended.guest == "off":
        durable = stage.last_told() if is_live else stage.durable
        wait_until(lambda: stage.qemu(stage.home) is None, "its QEMU has ended")
        stage.must_have(durable)
        stage.must_be_clean()
        return 0.0, 0.0
    felt = stage.felt_ms(began)
    stage.prove()
    stage.must_be_clean()
    return felt, stage.slowest_ms


def _is_past(scene: Scene) -> bool:
    return not scene.stage.is_armed(scene.source) or _is_under_way(scene)


def _is_held(scene: Scene) -> bool:
    return scene.stage.is_held(scene.source) or _is_under_way(scene)


def _is_under_way(scene: Scene) -> bool:
    """Never true: the point is still ahead. Bad if it will never come."""
    found = scene.source.client.get(f"/v1/operations/{scene.operation}")
    if not scene.stage.is_armed(scene.source):
        return False  # it has been passed meanwhile
    if found["state"] not in ("queued", "running"):
        raise Bad(f"the move was over before the fault: {found['state']} {found['error']}")
    return False


def _require_right_host(scene: Scene, fault: Fault) -> None:
    """What the operation says about the VM's place is so."""
    ended = scene.ended
    if scene.phase.kind == "storage":
        place = scene.stage.view(scene.source)["spec"]["disks"][0]["pool"]
        ended.notes.append(f"disks in {place}")
        return
    went = ended.state in ("succeeded", "warned") and "fenced" not in ended.notes
    if went != (ended.owner == scene.target.name) and ended.state != "partial":
        raise Bad(f"the operation has {ended.state}, and the VM is on {ended.owner}")
