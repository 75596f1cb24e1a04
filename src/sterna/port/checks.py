"""What stands in the way of an import, each with its fix. Pure functions over gathered facts."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sterna.model.check import Check, Severity
from sterna.model.disk import Volume
from sterna.model.host import PoolFacts
from sterna.model.port import ImportWishes, Manifest
from sterna.model.vm import Firmware, VMRecord
from sterna.port.export import places
from sterna.port.plan import Plan, record_of
from sterna.qemu.image import ImageInfo
from sterna.units import format_size
from sterna.vms.inspect import is_endless, links, plain_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found in the folder and on this host, at one moment."""

    host: str
    sizes: Mapping[str, int]  # of the plain files of the folder
    headers: Mapping[str, ImageInfo | None]  # of its qcow2 images; None: unreadable
    spoilt: frozenset[str] = frozenset()  # files whose content is not what was exported
    in_use: Mapping[str, str] = field(default_factory=dict)  # register: file -> VM that uses it
    pools: Mapping[str, PoolFacts] = field(default_factory=dict)
    taken: frozenset[Volume] = frozenset()  # targets that are there already
    templates: frozenset[Volume] = frozenset()  # those of them that are the same template
    switches: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # NIC -> problem, fix
    machines: tuple[str, ...] = ()
    newest: str = ""
    firmware: str = ""  # why the VM's firmware cannot be had; empty: it can
    accel: str = ""
    name_taken: bool = False
    id_taken: str = ""  # name of the VM that has it
    went_to: str = ""  # a VM of that id left this host for there
    macs: Mapping[str, str] = field(default_factory=dict)  # MAC -> VM of this host that has it
    boot_missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    manifest: Manifest
    wishes: ImportWishes
    plan: Plan
    facts: Facts

    @property
    def record(self) -> VMRecord:
        return self.plan.record

    @property
    def name(self) -> str:
        return self.plan.record.spec.name


def _blocker(identity: str, finding: str, fix: str) -> Check:
    return Check(id=identity, severity=Severity.BLOCKER, finding=finding, fix=fix)


def _warning(identity: str, finding: str, fix: str = "") -> Check:
    return Check(id=identity, severity=Severity.WARNING, finding=finding, fix=fix)


def consistent(manifest: Manifest) -> str:
    """Why the manifest contradicts itself; empty: it does not."""
    if is_endless(record_of(manifest)):
        return "its checkpoints lead back to themselves"
    return next(_contradictions(manifest), "") or next(_unlisted(manifest), "")


def _contradictions(manifest: Manifest) -> Iterator[str]:
    if not manifest.spec.id or not manifest.spec.machine:
        yield "its VM has no identity"
    points = [name for one in manifest.checkpoints for name in {one.id, one.name}]
    if len(set(points)) != len(points):
        yield "two of its checkpoints have the same name or id"
    disks = {disk.name for disk in manifest.spec.disks}
    if strange := {name for one in manifest.checkpoints for name in one.images} - disks:
        yield f"its checkpoints have images of {', '.join(sorted(strange))}, which its VM lacks"
    try:
        base64.b64decode(manifest.nvram, validate=True)
    except ValueError:
        yield "its UEFI variables cannot be read"


def _unlisted(manifest: Manifest) -> Iterator[str]:
    """Files that its VM needs, and that it does not list once."""
    record = record_of(manifest)
    names = [one.name for one in manifest.files]
    if len(set(names)) != len(names):
        yield "it lists a file twice"
    for disk in manifest.spec.disks:
        for link in links(record, disk):
            if link.image.volume not in names:
                yield f"it does not list {link.image.volume}, which disk {disk.name} needs"
    for state in (record.saved, *(one.memory for one in record.checkpoints)):
        if state is not None and state.volume not in names:
            yield f"it does not list {state.volume}"


def names(q: Question) -> Iterator[Check]:
    """What is to be translated is there: a slip of the pen would leave it where it was."""
    pools = {place.pool for place, _ in places(record_of(q.manifest))}
    switches = {nic.switch for nic in q.manifest.spec.nics}
    for what, given, known in (
        ("pool", q.wishes.pools, pools),
        ("switch", q.wishes.switches, switches),
    ):
        for name in given.keys() - known:
            there = ", ".join(sorted(known)) or "none"
            finding = f"nothing of {q.name} was in a {what} called {name}; there were: {there}"
            yield _blocker(f"import.{what}-unknown", finding, f"Write --{what} THERE=HERE")


def files(q: Question) -> Iterator[Check]:
    again = "Copy the folder here again, or export the VM once more"
    sizes = {one.name: one.size for one in q.manifest.files}
    for name in dict.fromkeys(one.name for one in q.plan.arrivals):
        found = q.facts.sizes.get(name)
        if found is None:
            yield _blocker("import.file-missing", f"{name} is not in the folder", again)
        elif found != sizes[name]:
            finding = f"{name} has {found} bytes instead of {sizes[name]}"
            yield _blocker("import.file-differs", finding, again)
        elif name in q.facts.spoilt:
            finding = f"the content of {name} is not what was exported"
            yield _blocker("import.file-differs", finding, again)
        if user := q.facts.in_use.get(name):
            finding = f"{name} is a disk of {user} already"
            yield _blocker("import.in-use", finding, "Import a copy: leave --register out")


def images(q: Question) -> Iterator[Check]:
    """Headers name what the manifest does: nothing leads out of the folder."""
    record = record_of(q.manifest)
    for disk in record.spec.disks:
        for link in links(record, disk):
            name = link.image.volume
            if link.image.format != "qcow2" or name not in q.facts.sizes:
                continue
            info = q.facts.headers.get(name)
            wanted = link.below.volume if link.below else ""
            if info is None:
                finding = f"{name} is no qcow2 image"
            elif info.data_file:
                finding = f"the data of {name} are in another file, {info.data_file}"
            elif plain_name(info.backing, Path(name)) != wanted:
                finding = (
                    f"{name} rests on {info.backing or 'nothing'}, not on {wanted or 'nothing'}"
                )
            else:
                continue
            yield _blocker("import.chain", finding, "Export the VM once more")


def pools(q: Question) -> Iterator[Check]:
    if q.wishes.register:
        if q.plan.new_pool in q.facts.pools:
            yield _blocker(
                "import.pool-exists",
                f"{q.facts.host} has a pool called {q.plan.new_pool} already",
                "Give the folder's pool another name with --pool",
            )
        return
    for name in dict.fromkeys(one.place.pool for one in q.plan.arrivals):
        facts = q.facts.pools.get(name)
        if facts is None:
            yield _blocker(
                "import.pool-missing",
                f"{q.facts.host} has no pool called {name}",
                f"Name another with --pool {name}=POOL, or make it: sterna pool create {name} "
                f"--path DIR",
            )
        elif facts.problem:
            fix = "Mend it, or name another with --pool"
            yield _blocker("import.pool-broken", f"pool {name}: {facts.problem}", fix)
        else:
            yield from _room(q, name, facts)


def _room(q: Question, pool: str, facts: PoolFacts) -> Iterator[Check]:
    sizes = {one.name: one.allocated for one in q.manifest.files}
    coming = [one for one in q.plan.arrivals if one.place.pool == pool]
    needed = sum(sizes[one.name] for one in coming if one.place not in q.facts.templates)
    if needed > facts.free:
        yield _blocker(
            "import.no-room",
            f"pool {pool} has {format_size(facts.free)} free; the files take {format_size(needed)}",
            "Make room there, or name another with --pool",
        )
    for one in coming:
        if one.place in q.facts.taken and one.place not in q.facts.templates:
            yield _blocker(
                "import.file-exists",
                f"{one.place} exists already"
                + (", and is not the same template" if one.is_template else ""),
                "Import into another pool with --pool"
                + ("" if one.is_template else ", or under another name with --name"),
            )


def host(q: Question) -> Iterator[Check]:
    spec, facts = q.record.spec, q.facts
    if spec.machine not in facts.machines:
        yield _blocker(
            "import.machine",
            f"the QEMU of {facts.host} offers no machine type {spec.machine}",
            f"Install a QEMU that does; its newest is {facts.newest}",
        )
    if facts.firmware:
        yield _blocker("import.firmware", facts.firmware, "Install it: apt-get install ovmf")
    elif spec.firmware is Firmware.UEFI and not q.manifest.nvram:
        finding = f"the UEFI variables of {q.name} were not exported: it boots with new ones"
        yield _warning("import.no-variables", finding, "Set its boot entries again if it needs any")
    for nic, (problem, fix) in facts.switches.items():
        yield _blocker("import.switch", f"{nic}: {problem}", f"Name another with --switch; {fix}")
    for path in facts.boot_missing:
        finding = f"{q.name} boots {path}, which {facts.host} does not have"
        yield _blocker("import.boot-missing", finding, "Put it there")
    saved = q.record.saved
    if saved is not None and saved.accel != facts.accel:
        yield _blocker(
            "import.accel",
            f"its saved state was made under {saved.accel}, and {facts.host} runs guests under "
            f"{facts.accel}",
            "Leave the memory out with --no-memory: it boots then",
        )
    if any(one.memory and one.memory.accel != facts.accel for one in q.record.checkpoints):
        yield _warning(
            "import.accel",
            f"the memory of its checkpoints cannot be used under {facts.accel}; their disks can",
        )
    if q.plan.dropped_memory and q.wishes.new_identity:
        yield _warning(
            "import.memory-dropped",
            "saved memory is left out: the identity of the machine is part of it",
        )


def identity(q: Question) -> Iterator[Check]:
    facts = q.facts
    if facts.name_taken:
        finding = f"{facts.host} already has a VM called {q.name}"
        yield _blocker("import.name-taken", finding, "Give it another name with --name")
    if facts.id_taken:
        yield _blocker(
            "import.same-vm",
            f"{facts.id_taken} on {facts.host} is the same VM: it has the same id",
            "Make another VM of it with --new-identity",
        )
    for mac, vm in facts.macs.items():
        if vm != facts.id_taken:
            finding = f"{vm} on {facts.host} has the same MAC address {mac}"
            yield _blocker("import.mac-taken", finding, "Give it others with --new-identity")
    if facts.went_to:
        yield _warning(
            "import.elsewhere",
            f"{q.name} moved from {facts.host} to {facts.went_to}, and may be there still",
            "Two VMs with one identity must not run: look there, or use --new-identity",
        )


CHECKS = (names, files, images, identity, pools, host)


def check(question: Question) -> list[Check]:
    """All findings, blockers first."""
    found = [finding for look in CHECKS for finding in look(question)]
    return sorted(found, key=lambda finding: finding.severity is not Severity.BLOCKER)
