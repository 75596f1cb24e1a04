"""What the HTTP surface needs of the daemon, as protocols: routes know nothing else of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from fastapi import Depends, Request

from sterna.model.check import MoveReport, StorageReport
from sterna.model.checkpoint import ApplyWishes, CheckpointWishes
from sterna.model.cpu import Baseline
from sterna.model.doubt import Doubt
from sterna.model.host import HostFacts, Pool, PoolFacts, Switch, SwitchChanges, SwitchFacts
from sterna.model.machine import Upgrade, UpgradeWishes
from sterna.model.move import MoveWishes, StorageWishes
from sterna.model.operation import Operation
from sterna.model.port import ExportWishes, ImportWishes
from sterna.model.settings import HostSettings, SettingsChanges
from sterna.model.several import DrainWishes, ResumeWishes, SeveralPlan, SeveralWishes
from sterna.model.vm import CDEjection, CDInsertion, NICChanges, VMChanges, VMSpec
from sterna.operations.runner import Runner

JSON = dict[str, Any]
Users = Callable[[str], Iterable[str]]


class VMs(Protocol):
    """The VMs of this host; `ref` is a name or an id. Views are the JSON of `VMView`."""

    def list(self) -> Sequence[JSON]: ...
    def view(self, ref: str) -> JSON: ...
    async def create(self, spec: VMSpec) -> JSON: ...
    async def delete(self, ref: str, *, keep_disks: bool) -> None: ...
    async def start(self, ref: str) -> JSON: ...
    async def pause(self, ref: str) -> JSON: ...
    async def resume(self, ref: str) -> JSON: ...
    def stop(self, ref: str, *, force: bool, timeout_s: float) -> Operation: ...
    def users_of_switch(self, switch: str) -> Iterable[str]: ...
    def running_on_switch(self, switch: str) -> Sequence[str]: ...
    def users_of_pool(self, pool: str) -> Iterable[str]: ...


class Switches(Protocol):
    async def facts(self) -> Sequence[SwitchFacts]: ...
    async def facts_of(self, name: str) -> SwitchFacts: ...
    async def create(self, switch: Switch) -> Switch: ...
    async def delete(self, name: str, users: Users) -> None: ...
    async def change(self, name: str, changes: SwitchChanges, running: Users) -> Switch: ...


class Settings(Protocol):
    """What is set of this host for moves."""

    async def change(self, changes: SettingsChanges) -> HostSettings: ...


class Plugs(Protocol):
    """How VMs are plugged into switches; `ref` is a VM's name or id."""

    async def change(self, ref: str, nic: str, changes: NICChanges) -> JSON: ...


class Drives(Protocol):
    """The CD drives of VMs; `ref` is a VM's name or id."""

    async def insert(self, ref: str, wanted: CDInsertion) -> JSON: ...
    async def eject(self, ref: str, wanted: CDEjection) -> JSON: ...


class Pools(Protocol):
    async def facts(self) -> Sequence[PoolFacts]: ...
    async def facts_of(self, name: str) -> PoolFacts: ...
    async def create(self, pool: Pool) -> Pool: ...
    async def delete(self, name: str, users: Users) -> None: ...


class Kept(Protocol):
    def list(self) -> Sequence[Any]: ...
    async def discard(self, copy_id: str) -> None: ...


class Inspections(Protocol):
    async def run(self, wishes: Any) -> JSON: ...


class Ports(Protocol):
    """VMs as folders; `ref` is a VM's name or id."""

    async def export(self, ref: str, wishes: ExportWishes) -> Operation: ...
    async def check(self, wishes: ImportWishes) -> Sequence[Any]: ...
    async def begin(self, wishes: ImportWishes) -> Operation: ...


class Moves(Protocol):
    async def check(self, ref: str, wishes: MoveWishes) -> MoveReport: ...
    async def survey(
        self, ref: str, wishes: MoveWishes, targets: Sequence[str]
    ) -> Sequence[MoveReport]: ...
    async def begin(self, ref: str, wishes: MoveWishes) -> Operation: ...


class Several(Protocol):
    """Moves of several VMs as one operation."""

    async def plan(self, wishes: SeveralWishes) -> SeveralPlan: ...
    async def begin(self, wishes: SeveralWishes) -> Operation: ...


class Drains(Protocol):
    """This host emptied for maintenance, and filled again."""

    async def plan(self, wishes: DrainWishes) -> SeveralPlan: ...
    async def begin(self, wishes: DrainWishes) -> Operation: ...
    async def plan_resume(self, wishes: ResumeWishes) -> SeveralPlan: ...
    async def resume(self, wishes: ResumeWishes) -> Operation: ...


class Doubts(Protocol):
    """Moves whose outcome is unknown."""

    async def explain(self, operation: str) -> Doubt: ...
    async def fence(self, operation: str) -> Operation: ...


class Fleet(Protocol):
    """What concerns several hosts; `ref` is a VM's name or id."""

    async def baseline(self, names: Sequence[str] = ()) -> Baseline: ...
    async def change(self, ref: str, changes: VMChanges) -> JSON: ...
    async def upgrade(self, ref: str, wishes: UpgradeWishes) -> Upgrade: ...
    async def raise_version(self, ref: str, wishes: UpgradeWishes) -> JSON: ...


class StorageMoves(Protocol):
    async def check(self, ref: str, wishes: StorageWishes) -> StorageReport: ...
    async def begin(self, ref: str, wishes: StorageWishes) -> Operation: ...


class Checkpoints(Protocol):
    """Checkpoints and saved states; `ref` is a VM's name or id."""

    def list(self, ref: str) -> Sequence[JSON]: ...
    def create(self, ref: str, wishes: CheckpointWishes) -> Operation: ...
    def apply(self, ref: str, name: str, wishes: ApplyWishes) -> Operation: ...
    async def rename(self, ref: str, name: str, new: str) -> JSON: ...
    def delete(self, ref: str, name: str, *, subtree: bool) -> Operation: ...
    def save(self, ref: str) -> Operation: ...
    def restore(self, ref: str) -> Operation: ...
    async def discard(self, ref: str) -> JSON: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    name: str  # of this host
    facts: Callable[[], Awaitable[HostFacts]]
    hosts: Callable[[], Awaitable[Sequence[JSON]]]  # JSON of `HostView`
    peer_facts: Callable[[str], Awaitable[HostFacts | JSON]]  # of a host by name
    vms: VMs
    switches: Switches
    pools: Pools
    operations: Runner
    moves: Moves
    storage_moves: StorageMoves
    kept: Kept | None = None
    checkpoints: Checkpoints | None = None
    inspections: Inspections | None = None
    ports: Ports | None = None
    fleet: Any = None  # a Fleet
    settings: Any = None  # a Settings
    plugs: Any = None  # a Plugs
    drives: Any = None  # a Drives
    incoming: Any = None  # what routes/peer.py serves
    doubts: Any = None  # a Doubts
    several: Any = None  # a Several
    drains: Any = None  # a Drains
    pairing: Any = None  # a Pairing
    audit: Any = None  # an Audit
    authority: Any = None  # an Authority
    guardians: Any = None  # a Guardians


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Here = Annotated[Services, Depends(_services)]
