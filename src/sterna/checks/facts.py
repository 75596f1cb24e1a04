"""What checks look at: facts that were gathered once, of the VM and both hosts. Nothing here looks.

`sterna.move.preflight` gathers them. What a host says of itself is in `HostFacts`
(`sterna.model.host`), so that a peer can ask for it; what is known of the VM in `GuestFacts`; what
was tried between the two hosts in `LinkFacts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sterna.model.check import Way
from sterna.model.cpu import CPUChoice, GuestCPU
from sterna.model.disk import Volume
from sterna.model.host import HostFacts
from sterna.model.move import MoveWishes
from sterna.model.travel import Travel
from sterna.model.vm import RunState, VMSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestFacts:
    """The VM as its host sees it now."""

    state: RunState
    accel: str = ""  # of the running VM; empty when it is off
    blocked: tuple[str, ...] = ()  # QEMU's own migration blockers
    status: str = ""  # QEMU's own word for its run state, such as io-error; empty when it is off
    doing: str = ""  # what another operation does with it now
    operation: str = ""  # that one
    cpu: GuestCPU | None = None  # what the running guest sees as its processor
    cpu_next: CPUChoice | None = None  # what it will see from its next start, if that differs
    guardians: frozenset[str] = frozenset()  # public keys of those that open its keys
    has_lost_tpm: bool = False  # it runs, and its swtpm has ended


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFacts:
    """What was tried from the source to the target's migration network."""

    rate: float | None = None  # bytes/s that it carries now; None: not measured
    ways: tuple[Way, ...] = ()  # what was tried, for each address of the target; empty: nothing
    is_busy: bool = False  # the target is asked by too many others: nothing could be tried
    addresses: tuple[str, ...] = ()  # of the target, those that both hosts allow, in their order
    clock_ahead_s: float = 0.0  # the target's clock, certainly; negative: behind


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Whether the target saw what the source had just made in a pool that both have."""

    is_same: bool | None  # None: nothing could be made there
    reason: str = ""  # why not


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """By which one of the two hosts is known to the other."""

    host: str
    days_left: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """May this VM go from here to there?"""

    spec: VMSpec  # as it is here
    guest: GuestFacts
    travel: Travel  # what goes, where to; has the spec as the target shall have it
    source: HostFacts
    target: HostFacts
    wishes: MoveWishes
    link: LinkFacts = field(default_factory=LinkFacts)
    proofs: Mapping[str, Proof] = field(default_factory=dict)  # of pools that both say to share
    joinable: frozenset[str] = (
        frozenset()
    )  # shared pools that it could have: their storage is there
    files: frozenset[str] = frozenset()  # of `boot`, those that the target has
    certificates: tuple[CertificateFacts, ...] = ()
    users: Mapping[Volume, str] = field(default_factory=dict)  # files that other VMs use too

    @property
    def is_off(self) -> bool:
        """Whether nothing but definition and files goes."""
        return self.guest.state is RunState.OFF
