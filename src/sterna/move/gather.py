"""The facts that checks look at, as they are gathered: of a VM, of two hosts and of what is between.

Each takes a moment and changes nothing: a proof that was made in a pool is removed again.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from sterna.checks.facts import GuestFacts, Proof
from sterna.errors import SternaError
from sterna.host.registry import Pools
from sterna.model.host import HostFacts, Pool
from sterna.model.reservation import Look
from sterna.move.peer import Peer
from sterna.vms.machine import VM
from sterna.vms.tpm import TPMs


async def guest(vm: VM, doing: tuple[str, str]) -> GuestFacts:
    """The VM as it is now. Raises QEMULost, QMPTimeout."""
    process = vm.record.process
    facts = GuestFacts(
        state=vm.state,
        accel=process.accel if process else "",
        doing=doing[0],
        operation=doing[1],
        cpu_next=vm.record.cpu_next,
        guardians=frozenset(vm.record.protector),
    )
    if vm.process is None or vm.monitor is None:
        return facts
    lost = vm.record.spec.tpm and not TPMs.is_alive(vm.paths)
    info, status = await vm.qmp.query_migrate(), await vm.qmp.query_status()
    cpu = await vm.processor()
    return replace(
        facts, blocked=tuple(info.blocked_reasons), status=status, cpu=cpu, has_lost_tpm=lost
    )


async def facts_of(peer: Peer) -> tuple[HostFacts, float]:
    """Of another host; and by how many seconds its clock is certainly ahead of ours, or behind.

    It answered between two looks at our clock: only what is outside of that is certain.
    """
    asked = datetime.now(UTC)
    facts = await peer.facts()
    heard = datetime.now(UTC)
    there = datetime.fromisoformat(facts.time)
    if there > heard:
        return facts, (there - heard).total_seconds()
    return facts, min(0.0, (there - asked).total_seconds())


@dataclass(frozen=True, slots=True)
class Seen:
    """What the target sees of the source's storage."""

    proofs: dict[str, Proof] = field(default_factory=dict)
    files: frozenset[str] = frozenset()
    joinable: frozenset[str] = frozenset()


async def seen(
    pools: Pools, peer: Peer, shared: Iterable[str], files: Iterable[str], lacking: Iterable[Pool]
) -> Seen:
    """Which pools are the same storage there: a name is made in each, and looked for there.

    Of `files`, those that are there; of the pools that it is `lacking`, those whose storage is.
    """
    tokens = {pool: secrets.token_hex(16) for pool in shared}
    made: dict[str, str] = {}
    proofs: dict[str, Proof] = {}
    try:
        for pool, token in tokens.items():
            made[pool] = token
            try:
                await pools.make_proof(pool, token)
            except (OSError, SternaError) as error:
                reason = error.message if isinstance(error, SternaError) else str(error.strerror)
                proofs[pool] = Proof(is_same=None, reason=reason)
        asked = {pool: token for pool, token in tokens.items() if pool not in proofs}
        paths = {pool.path: pool for pool in lacking}
        looked = await peer.look(Look(tokens=asked, files=tuple(files), directories=tuple(paths)))
        proofs |= {pool: Proof(is_same=pool in looked.pools) for pool in asked}
        found = {
            paths[path].name
            for path, one in looked.identities.items()
            if paths[path].identity == one
        }
        return Seen(proofs, frozenset(looked.files), frozenset(found))
    finally:
        for pool, token in made.items():
            with contextlib.suppress(OSError, SternaError):
                await pools.remove_proof(pool, token)
