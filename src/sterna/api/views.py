"""Shapes of the API that are no model objects: for OpenAPI, and bodies that only routes know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sterna.model.access import Role
from sterna.model.check import Severity
from sterna.model.disk import STRICT, Volume
from sterna.model.host import Pool, Switch
from sterna.model.trust import PeerRole
from sterna.model.vm import Ownership, RunState, VMSpec

MAX_STOP_S = 3600.0  # who wants to wait longer for a guest wants to be asked again


class View(BaseModel):
    """Documents an answer; answers may have more fields, as an API that grows does."""

    model_config = ConfigDict(extra="allow")


class Root(View):
    api: int
    extensions: list[str] = Field(description="What this daemon has beyond the first version of v1")
    name: str
    version: str


class HostView(View):
    name: str
    url: str
    state: Literal["this", "up", "down"]
    reason: str = Field(description="Why it is down")
    certificate_ends: str = Field(
        "", description="When nobody trusts it any more, unless it rotates"
    )
    version: str
    vms: int | None
    role: str = Field("", description="What who speaks for it may do here; empty: it is this one")
    draining: bool = Field(False, description="It is being emptied: it takes and starts no VM")


class PeerView(View):
    name: str
    url: str
    fingerprint: str = Field(description="SHA-256 of its certificate")
    ends: str = Field(description="When its certificate does")
    since: str
    role: PeerRole = Field(description="What who speaks for that host may do here; none: move VMs")


class MeView(View):
    who: str = Field(description="As the audit names it: alice, token:ci, host:hv-b, local:root")
    kind: Literal["local", "user", "token", "host"]
    role: Role | None
    tag: str = Field(description="Of the VMs that the role is for; empty: all")
    host: str
    csrf: str = Field(description="For X-CSRF-Token; empty: not in a session")


class UserView(View):
    name: str
    role: Role
    tag: str
    has_password: bool
    certificates: list[str] = Field(description="SHA-256 fingerprints")
    kerberos: str
    created: str


class TokenView(View):
    name: str
    id: str
    role: Role
    tag: str
    created: str
    expires: str
    by: str


class NewTokenView(TokenView):
    token: str = Field(description="A secret; it is shown once")


class SessionView(View):
    user: str
    role: Role
    tag: str
    csrf: str


class AuditView(View):
    n: int = Field(description="Number of its line")
    time: str
    what: Literal["asked", "done", "refused", "torn", "damaged"]
    who: str = ""
    via: str = Field("", description="The host that asked for `who`")
    status: int | None = Field(None, description="HTTP status; null: not known")
    reason: str = Field("", description="As who asked gave it")


class VerdictView(View):
    entries: int
    first: int
    last: int
    head: str = Field(description="Hash of the last line: note it elsewhere")
    broken: str = Field(description="The first place that is not as it was written; empty: none")


class InvitationView(View):
    token: str = Field(description="A secret; it is shown once")
    name: str
    url: str
    fingerprint: str
    expires: str


class DistrustView(View):
    operations: list[str] = Field(description="Moves that are ended by it")


class RotationView(View):
    fingerprint: str
    ends: str
    told: list[str]
    not_told: list[str]


class ProcessView(View):
    pid: int
    accel: Literal["kvm", "tcg"]


class VMView(View):
    name: str
    id: str
    state: RunState
    host: str
    spec: VMSpec | None = Field(description="null if its record is damaged")
    ownership: Ownership | None
    operation: str = Field(description="Operation that has it now; empty: none")
    cpu_next: Any = Field(None, description="Its processor from its next start; null: as it is")
    process: ProcessView | None
    console: str = Field(description="Unix socket of its serial console on its host")
    vnc: str = Field(description="Unix socket of its screen on its host")
    notes: list[str]
    checkpoints: list[str] = Field(description="Their names, parents before children")
    at: str = Field(description="Checkpoint that it goes on from now; empty: none")
    saved: Any = Field(description="Saved state that it goes on from when started; null: none")
    damaged: Any = Field(description="What is wrong with its record; null: nothing")


class CheckpointView(View):
    id: str
    name: str
    created: str
    parent: str = Field(description="Name of the one before it; empty: none")
    is_current: bool = Field(description="The VM goes on from it now")
    memory: Any = Field(description="Where its memory is; null: disks only")
    disks: dict[str, str] = Field(description="The frozen image of each disk, a file in its pool")


class SwitchView(View):
    switch: Switch
    vlans: bool
    problem: str
    mtu: int = Field(0, description="Largest packet that passes it now, bytes; 0: unknown")
    users: list[str] = Field(description="VMs plugged in here")


class PoolView(View):
    pool: Pool
    total: int
    free: int
    problem: str
    users: list[str] = Field(description="VMs with a disk or a CD here")


class GuardianView(View):
    name: str
    key: str = Field(description="X25519 public key, base64")
    fingerprint: str
    is_own: bool
    vms: list[str] = Field(description="VMs of this host whose keys it opens")


class KeptFileView(View):
    was: Volume
    now: str = Field(description="Its file name in the same pool")


class KeptView(View):
    id: str
    vm: str
    vm_id: str
    label: str
    created: str
    expires: str
    files: list[KeptFileView]


class CheckView(View):
    id: str = Field(description="Stable, such as disk.image-missing")
    severity: Severity
    finding: str
    fix: str
    command: str = Field("", description="The fix as one complete command line, if it is one")
    is_safe: bool = Field(False, description="It changes no guest and destroys nothing")


class FindingView(CheckView):
    vm: str
    disk: str
    place: str = Field(description="POOL/FILE")


class DiskCheckView(View):
    vms: list[str] = Field(description="Names of those that were looked at")
    images: int = Field(description="How many images were looked at")
    outcome: Literal["well", "warned", "broken"]
    findings: list[FindingView] = Field(description="The first broken link of each chain first")


class Problem(View):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    code: str = Field(description="Stable, such as vm.not-found")
    exit_code: int = Field(description="Of the sterna command")
    hint: str
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """Body of :resolve. `fenced`: the target is off, and stays off until it has been told."""

    __pydantic_config__ = STRICT

    fenced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StopWishes:
    """Body of :stop. By force pulls the plug; else the guest is asked, and given `timeout_s`."""

    __pydantic_config__ = STRICT

    force: bool = False
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s <= MAX_STOP_S:
            raise ValueError(
                f"timeout_s is {self.timeout_s:g}; it must be more than 0 and at most {MAX_STOP_S:g}"
            )
