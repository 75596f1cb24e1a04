"""What would make a move fail, found before anything happens. Pure functions over facts.

Each check looks at one thing and yields findings with the actual values and the fix. The target
asks the same questions again when it reserves, because facts age.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sterna.errors import MoveRefused
from sterna.model.disk import Volume
from sterna.model.host import HostFacts, PoolFacts
from sterna.model.move import Check, MoveWishes, Severity
from sterna.model.vm import RunState, VMSpec
from sterna.move.travel import Travel
from sterna.units import format_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """May this VM go from here to there?"""

    spec: VMSpec
    travel: Travel
    state: RunState
    accel: str  # of the running VM; empty when it is off
    blocked: tuple[str, ...]  # QEMU's own migration blockers
    source: HostFacts
    target: HostFacts
    wishes: MoveWishes
    users: Mapping[Volume, str] = field(default_factory=dict)  # files that other VMs use too

    @property
    def travelling(self) -> frozenset[str]:
        """Names of the disks that are somewhere else afterwards, on another storage."""
        return self.travel.disks


def _blocker(identity: str, finding: str, fix: str) -> Check:
    return Check(id=identity, severity=Severity.BLOCKER, finding=finding, fix=fix)


def same_host(q: Question) -> Iterator[Check]:
    if q.source.name == q.target.name:
        yield _blocker(
            "host.same",
            f"{q.spec.name} is on {q.target.name} already",
            "Name another host: sterna host list",
        )


def api(q: Question) -> Iterator[Check]:
    if q.source.api != q.target.api:
        yield _blocker(
            "host.api",
            f"{q.source.name} speaks API {q.source.api}, {q.target.name} speaks {q.target.api}",
            "Bring both hosts to the same version of Sterna",
        )


def state(q: Question) -> Iterator[Check]:
    if q.state not in (RunState.RUNNING, RunState.PAUSED, RunState.OFF):
        yield _blocker(
            "vm.state", f"{q.spec.name} is {q.state}", f"See: sterna vm show {q.spec.name}"
        )
    for reason in q.blocked:
        yield _blocker(
            "vm.qemu-blocks",
            f"QEMU cannot move {q.spec.name} now: {reason}",
            "Stop it, move it off",
        )


def machine(q: Question) -> Iterator[Check]:
    if q.spec.machine not in q.target.qemu.machines:
        yield _blocker(
            "qemu.machine-type",
            f"{q.spec.name} is a {q.spec.machine}; QEMU {q.target.qemu.version} of {q.target.name} "
            f"does not offer that",
            f"Install a newer QEMU on {q.target.name}",
        )


def acceleration(q: Question) -> Iterator[Check]:
    if q.accel and q.accel != q.target.qemu.accel:
        yield _blocker(
            "qemu.accel",
            f"{q.spec.name} runs under {q.accel}, {q.target.name} offers {q.target.qemu.accel} "
            f"({q.target.qemu.accel_reason})",
            f"Stop it and move it off, or make {q.accel} work on {q.target.name}",
        )


def saved(q: Question) -> Iterator[Check]:
    """Memory in files can be loaded only where guests run as they did when it was written."""
    there = q.target.qemu.accel
    state = q.travel.saved
    if state is not None and state.accel != there:
        yield _blocker(
            "qemu.saved-accel",
            f"the saved state of {q.spec.name} was made under {state.accel}, and {q.target.name} "
            f"runs guests under {there}",
            f"Start it and shut it down first, or throw the state away: sterna vm discard "
            f"{q.spec.name}",
        )
    if any(one.memory and one.memory.accel != there for one in q.travel.checkpoints):
        yield Check(
            id="qemu.checkpoint-accel",
            severity=Severity.WARNING,
            finding=f"the memory of its checkpoints cannot be used on {q.target.name}, which runs "
            f"guests under {there}; their disks can",
        )


def memory(q: Question) -> Iterator[Check]:
    if q.state is not RunState.OFF and q.spec.memory > q.target.memory_free:
        yield _blocker(
            "host.memory",
            f"{q.spec.name} needs {format_size(q.spec.memory)}, {q.target.name} has "
            f"{format_size(q.target.memory_free)} to give",
            f"Stop or move a VM of {q.target.name} first",
        )


def switches(q: Question) -> Iterator[Check]:
    have = {facts.switch.name: facts for facts in q.target.switches}
    for nic in q.spec.nics:
        facts = have.get(nic.switch)
        if facts is None:
            yield _blocker(
                "network.switch-missing",
                f"{nic.name} is on switch {nic.switch}, which {q.target.name} lacks",
                f"Make it there: sterna switch create {nic.switch}",
            )
        elif facts.problem:
            yield _blocker(
                "network.switch-broken",
                f"switch {nic.switch} of {q.target.name}: {facts.problem}",
                f"Mend it, then see: sterna --host {q.target.name} switch list",
            )
        elif nic.vlan is not None and not facts.vlans:
            yield _blocker(
                "network.vlan",
                f"{nic.name} is on VLAN {nic.vlan}; switch {nic.switch} of {q.target.name} "
                f"cannot tag",
                "Boot a kernel with bridge VLAN filtering there",
            )


def storage(q: Question) -> Iterator[Check]:
    """Every disk finds a pool there, which can be used and is what it is taken for."""
    here = {facts.pool.name: facts for facts in q.source.pools}
    there = {facts.pool.name: facts for facts in q.target.pools}
    travelling = q.travelling
    for disk in q.travel.spec.disks:
        mine, other = here.get(disk.pool), there.get(disk.pool)
        if other is None:
            yield _blocker(
                "storage.pool-missing",
                f"disk {disk.name} is to be in pool {disk.pool}, which {q.target.name} lacks",
                f"Make it there: sterna --host {q.target.name} pool create {disk.pool} --path DIR; "
                f"or name another: sterna move {q.spec.name} {q.target.name} --pool POOL",
            )
        elif other.problem:
            yield _blocker(
                "storage.pool-broken",
                f"pool {disk.pool} of {q.target.name}: {other.problem}",
                "Mend it, then see: sterna pool list",
            )
        elif disk.name in travelling and mine is not None and _is_declared_shared(mine, other):
            yield _blocker(
                "storage.not-the-same",
                f"pool {disk.pool} is declared shared, but is not the same storage on "
                f"{q.source.name} ({mine.pool.identity}) and {q.target.name} "
                f"({other.pool.identity})",
                "Mount the same storage on both hosts, or name another pool with --pool",
            )


def use(q: Question) -> Iterator[Check]:
    """Nobody else writes to what goes as files, or needs what leaves."""
    for volume in q.travel.leaving:
        if other := q.users.get(volume):
            yield _blocker(
                "storage.disk-shared",
                f"{volume} is used by {other} too",
                f"Give each its own disk; see: sterna vm show {other}",
            )
    for volume in q.travel.locked:
        yield _blocker(
            "storage.disk-locked",
            f"{q.spec.name} is off, but another program has {volume} open",
            "End that program; find it with: lsof",
        )


def snapshots(q: Question) -> Iterator[Check]:
    """Those that other programs have made within an image are not lost with it."""
    for mirror in q.travel.mirrors:
        if mirror.snapshots:
            yield _blocker(
                "storage.snapshots-lost",
                f"the image of disk {mirror.disk.name} holds snapshots, which only a move of a VM "
                f"that is off carries: {', '.join(mirror.snapshots)}",
                "Stop it and move it off; or, when it is off, delete them: qemu-img snapshot -d",
            )


def bitmaps(q: Question) -> Iterator[Check]:
    for mirror in q.travel.mirrors:
        if mirror.lost:
            yield Check(
                id="storage.bitmaps-lost",
                severity=Severity.WARNING,
                finding=f"disk {mirror.disk.name} becomes raw and loses its dirty bitmaps: "
                f"{', '.join(mirror.lost)}",
                fix="Leave it qcow2, or let the next backup be a full one",
            )


def _is_declared_shared(mine: PoolFacts, other: PoolFacts) -> bool:
    return mine.pool.shared and other.pool.shared and mine.pool.identity != other.pool.identity


def room(q: Question) -> Iterator[Check]:
    """What travels fits, with what it may grow while it is copied."""
    there = {facts.pool.name: facts for facts in q.target.pools}
    for pool, needed in q.travel.needs().items():
        facts = there.get(pool)
        if facts is None or facts.problem:
            continue  # said by `storage`
        if needed > facts.free:
            yield _blocker(
                "storage.no-room",
                f"{q.spec.name} needs {format_size(needed)} in pool {pool} of {q.target.name}, "
                f"which has {format_size(facts.free)} free",
                "Make room there, or name another pool with --pool",
            )
        elif (whole := q.travel.grown(pool)) > facts.free:
            yield Check(
                id="storage.may-fill-up",
                severity=Severity.WARNING,
                finding=f"pool {pool} of {q.target.name} has {format_size(facts.free)} free; the "
                f"disks of {q.spec.name} may grow to {format_size(whole)}",
                fix="Make room there before they do",
            )


def network(q: Question) -> Iterator[Check]:
    if not q.target.migration_address:
        yield _blocker(
            "host.no-migration-address",
            f"{q.target.name} has no address where it receives moves",
            f"Set [listen] address or [migration] address in sternad.toml of {q.target.name}",
        )


CHECKS: tuple[Callable[[Question], Iterator[Check]], ...] = (
    same_host,
    api,
    state,
    machine,
    acceleration,
    saved,
    memory,
    switches,
    storage,
    use,
    snapshots,
    bitmaps,
    room,
    network,
)


def run(question: Question) -> list[Check]:
    """All findings, blockers first."""
    found = [finding for check in CHECKS for finding in check(question)]
    return sorted(found, key=lambda finding: finding.severity is not Severity.BLOCKER)


def require(question: Question) -> list[Check]:
    """The findings that do not stand in the way. Raises MoveRefused if one does."""
    return refuse_blockers(question.spec.name, question.target.name, run(question))


def refuse_blockers(vm: str, target: str, found: Sequence[Check]) -> list[Check]:
    """`found` without a blocker. Raises MoveRefused with all of them if there is one."""
    blockers = [finding for finding in found if finding.severity is Severity.BLOCKER]
    if blockers:
        first = blockers[0]
        more = f" (and {len(blockers) - 1} more)" if len(blockers) > 1 else ""
        raise MoveRefused(
            vm=vm,
            target=target,
            summary=first.finding + more,
            fix=first.fix,
            findings=[
                {
                    "id": item.id,
                    "severity": str(item.severity),
                    "finding": item.finding,
                    "fix": item.fix,
                }
                for item in found
            ],
        )
    return list(found)
