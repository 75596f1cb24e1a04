"""The switches and pools that this host knows by name, and their records.

Promises: what `create` returned from is there after a reboot; what it raised from left nothing;
nothing is deleted while somebody uses it; a record that is damaged is reported and does not hide
the others; a share that hangs costs its caller seconds, never the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from sterna.errors import (
    BadSpec,
    PoolExists,
    PoolInUse,
    PoolNotFound,
    PoolUnusable,
    RecordDamaged,
    StateNotWritten,
    SternaError,
    SwitchExists,
    SwitchInUse,
    SwitchNotFound,
    SwitchUnusable,
    SwitchWouldCut,
    VLANUnsupported,
)
from sterna.host import proof, storage
from sterna.host.bridges import bridge_name
from sterna.host.network import Network
from sterna.host.store import Damaged, Store
from sterna.model.disk import STRICT
from sterna.model.host import Pool, PoolFacts, Switch, SwitchChanges, SwitchFacts

log = logging.getLogger(__name__)
T = TypeVar("T")

PROBE_S = 2.0  # a share that needs longer to show one small file is of no use to a VM
UNDECLARED = "not-declared-here"  # one that hangs keeps others of its kind from being looked at
CHANGE_S = 30.0  # unlinking a large file or waking an automount takes seconds

# Name of a switch or pool -> names of the VMs that use it.
Users = Callable[[str], Iterable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchRecord:
    __pydantic_config__ = STRICT

    version: Literal[1] = 1
    switch: Switch
    former: Switch | None = None  # as it was before a change that is under way


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolRecord:
    __pydantic_config__ = STRICT

    version: Literal[1] = 1
    pool: Pool


class Switches:
    """The switches of this host. `load`, then `ensure`, before anything else."""

    def __init__(self, directory: Path, network: Network, *, host: str) -> None:
        self.damaged: list[Damaged] = []
        self._store = Store(directory, SwitchRecord, key_of=lambda record: record.switch.name)
        self._network = network
        self._host = host
        self._switches: dict[str, Switch] = {}
        self._former: dict[str, Switch] = {}
        self._changing = asyncio.Lock()  # a change starts from what the one before it left

    def load(self) -> list[Damaged]:
        """Read the records; what is damaged, set aside."""
        records, self.damaged = self._store.load()
        self._switches = {name: record.switch for name, record in records.items()}
        self._former = {name: one.former for name, one in records.items() if one.former}
        return self.damaged

    async def ensure(self) -> None:
        """Make the bridges that a reboot took away; one that fails is logged, and in its facts."""
        for switch in self.list():
            try:
                if (former := self._former.get(switch.name)) is not None:  # we died in a change
                    await self._network.change(former, switch)
                    await self._store.write(switch.name, SwitchRecord(switch=switch))
                    del self._former[switch.name]
                await self._network.ensure(switch)
            except SternaError as error:
                log.error("switch %s: %s", switch.name, error)  # noqa: TRY400 - it says it all

    def list(self) -> list[Switch]:
        """All, by name."""
        return [self._switches[name] for name in sorted(self._switches)]

    def get(self, name: str) -> Switch:
        """The switch called `name`. Raises SwitchNotFound, RecordDamaged."""
        switch = self._switches.get(name)
        if switch is None:
            _raise_if_damaged("switch", name, self._host, self.damaged)
            raise SwitchNotFound(switch=name, host=self._host)
        return switch

    def require(self, name: str, vlan: int | None = None, trunk: str = "") -> Switch:
        """`get`, for a NIC on `vlan`, or with that trunk. Raises VLANUnsupported too."""
        switch = self.get(name)
        if (vlan is not None or trunk) and self._network.can_tag is False:
            raise VLANUnsupported(switch=name, vlan=vlan or trunk, host=self._host)
        return switch

    async def create(self, switch: Switch) -> Switch:
        """Make `switch`, its bridge named. Raises SwitchExists, SwitchUnusable, NetworkFailed."""
        if switch.name in self._switches:
            raise SwitchExists(switch=switch.name, host=self._host)
        bridge = bridge_name(switch)
        for other in self._switches.values():
            if bridge_name(other) == bridge:
                raise SwitchUnusable(
                    switch=switch.name,
                    reason=f"{bridge} is the bridge of switch {other.name}",
                    fix="Give it another bridge name",
                )
        if not switch.bridge:
            await self._network.require_free(switch)
        switch = replace(switch, bridge=bridge)
        self._switches[switch.name] = switch  # holds the name meanwhile
        try:
            # The record first: a bridge without a record is litter, one without a bridge is mended.
            await self._store.write(switch.name, SwitchRecord(switch=switch))
            await self._network.ensure(switch)
        except BaseException:
            self._switches.pop(switch.name, None)
            await self._store.delete(switch.name)
            raise
        log.info("switch %s was made (bridge %s)", switch.name, bridge)
        return switch

    async def delete(self, name: str, users: Users) -> None:
        """Forget the switch, and its bridge if Sterna made it. Raises SwitchInUse."""
        async with self._changing:
            switch = self.get(name)
            if using := sorted(users(name)):
                raise SwitchInUse(switch=name, users=", ".join(using))
            await self._network.remove(switch)
            await self._store.delete(name)
            self._switches.pop(name, None)
            log.info("switch %s was deleted", name)

    async def change(self, name: str, changes: SwitchChanges, running: Users) -> Switch:
        """Change the switch under the guests that are plugged in, if that does not cut them off.

        `running`: those among its users that run. Raises SwitchNotFound, SwitchWouldCut, BadSpec,
        SwitchUnusable, NetworkFailed; then it is as it was.
        """
        async with self._changing:
            return await self._change(name, changes, running)

    async def _change(self, name: str, changes: SwitchChanges, running: Users) -> Switch:
        old = self.get(name)
        given = {key: value for key, value in asdict(changes).items() if value is not None}
        if given.get("type", old.type) != "external":
            given.setdefault("uplink", "")
        if given.get("type", old.type) != "internal":
            given.setdefault("address", "")
        try:
            new = replace(old, **given)
        except ValueError as error:
            raise BadSpec(where=f"switch {name}", reason=str(error)) from error
        if new == old:
            return old
        if guests := sorted(running(name)):
            await self._refuse_cut(old, new, ", ".join(guests))
        self._former[name] = old
        await self._store.write(name, SwitchRecord(switch=new, former=old))
        try:
            await self._network.change(old, new)
        except BaseException:
            await self._store.write(name, SwitchRecord(switch=old, former=new))
            try:
                await self._network.change(new, old)
                await self._store.write(name, SwitchRecord(switch=old))
            except SternaError as error:  # the record says what is to be done at the next start
                log.error("switch %s is not as it was again: %s", name, error)  # noqa: TRY400
            raise
        finally:
            self._former.pop(name, None)
        self._switches[name] = new
        await self._store.write(name, SwitchRecord(switch=new))
        log.info("switch %s was changed: %s", name, given)
        return new

    async def _refuse_cut(self, old: Switch, new: Switch, guests: str) -> None:
        """Raises SwitchWouldCut if guests that run would lose what they reach."""
        now = await self._network.facts(old)
        reason = ""
        if new.type != old.type:
            reason = f"they would be on an {new.type} switch, and are on an {old.type} one"
        elif new.mtu and new.mtu < now.mtu:
            reason = f"their packets may have {now.mtu} bytes, and only {new.mtu} would pass"
        elif old.mtu and not new.mtu:
            reason = f"their packets may have {now.mtu} bytes, and fewer might pass"
        elif old.address and new.address != old.address:
            reason = f"they may use {old.address} of the host"
        elif new.uplink != old.uplink and not await self._network.has_link(new.uplink):
            reason = f"{new.uplink or 'no uplink'} has no link"
        elif new.uplink != old.uplink and not new.mtu:  # the bridge becomes as narrow as its uplink
            mtu = await self._network.mtu_of(new.uplink)
            if 0 < mtu < now.mtu:
                reason = f"their packets may have {now.mtu} bytes, and {new.uplink} passes {mtu}"
        if reason:
            raise SwitchWouldCut(switch=old.name, users=guests, reason=reason)

    async def uplinks(self) -> tuple[str, ...]:
        """Interfaces of this host that are free to be the uplink of a switch."""
        return await self._network.uplinks()

    async def facts(self) -> tuple[SwitchFacts, ...]:
        """The state of each now, by name."""
        return tuple([await self._network.facts(switch) for switch in self.list()])

    async def facts_of(self, name: str) -> SwitchFacts:
        """The state of one. Raises SwitchNotFound."""
        return await self._network.facts(self.get(name))


class Pools:
    """The pools of this host. `load` before anything else."""

    def __init__(self, directory: Path, *, host: str) -> None:
        self.damaged: list[Damaged] = []
        self._store = Store(directory, PoolRecord, key_of=lambda record: record.pool.name)
        self._host = host
        self._pools: dict[str, Pool] = {}
        self._hanging: dict[str, Future[Any]] = {}

    def load(self) -> list[Damaged]:
        """Read the records; what is damaged, set aside."""
        records, self.damaged = self._store.load()
        self._pools = {name: record.pool for name, record in records.items()}
        return self.damaged

    def list(self) -> list[Pool]:
        """All, by name."""
        return [self._pools[name] for name in sorted(self._pools)]

    def get(self, name: str) -> Pool:
        """The pool called `name`. Raises PoolNotFound, RecordDamaged."""
        pool = self._pools.get(name)
        if pool is None:
            _raise_if_damaged("pool", name, self._host, self.damaged)
            raise PoolNotFound(pool=name, host=self._host)
        return pool

    def require(self, name: str) -> Pool:
        """`get`, of a pool that can be used now. Raises PoolUnusable too."""
        pool = self.get(name)
        self._within(PROBE_S, pool, storage.check)
        return pool

    def volume_path(self, name: str, volume: str) -> Path:
        """Where `volume` of the pool called `name` is. Raises PoolNotFound, VolumeForbidden."""
        return storage.volume_path(self.get(name), volume)

    async def peek(self, name: str, volume: str, length: int = 0) -> tuple[int, bytes]:
        """Size of `volume`, and its first bytes.

        Raises PoolNotFound, PoolUnusable, VolumeForbidden, OSError.
        """
        return await self._soon(self.get(name), lambda pool: storage.peek(pool, volume, length))

    async def delete_volume(self, name: str, volume: str) -> None:
        """Delete `volume`, gone already or not. Raises PoolUnusable while its pool is not there."""
        await self._bounded(self.get(name), lambda pool: storage.delete_volume(pool, volume))

    async def create(self, pool: Pool) -> Pool:
        """Make or join `pool`: with its identity. Raises PoolExists, PoolUnusable."""
        if pool.name in self._pools:
            raise PoolExists(pool=pool.name, host=self._host)
        self._pools[pool.name] = pool  # holds the name meanwhile
        try:
            declared = await self._bounded(pool, storage.declare)
            self._refuse_twin(declared)
            try:
                await self._store.write(pool.name, PoolRecord(pool=declared))
            except StateNotWritten:
                await self._bounded(declared, storage.withdraw)
                raise
        except BaseException:
            self._pools.pop(pool.name, None)
            raise
        self._pools[pool.name] = declared
        log.info("pool %s was made at %s (%s)", pool.name, declared.path, declared.identity)
        return declared

    def _refuse_twin(self, pool: Pool) -> None:
        for other in self._pools.values():
            if other.name != pool.name and other.identity == pool.identity:
                raise PoolUnusable(
                    pool=pool.name,
                    reason=f"{pool.path} is the pool {other.name} already",
                    fix=f"Use pool {other.name}, or another directory",
                )

    async def delete(self, name: str, users: Users) -> None:
        """Forget the pool; its volumes stay where they are. Raises PoolInUse."""
        pool = self.get(name)
        if using := sorted(users(name)):
            raise PoolInUse(pool=name, users=", ".join(using))
        await self._store.delete(name)
        self._pools.pop(name, None)
        with contextlib.suppress(PoolUnusable):
            await self._bounded(pool, storage.withdraw)
        log.info("pool %s was deleted", name)

    async def facts(self) -> tuple[PoolFacts, ...]:
        """Space and state of each now, by name."""
        return tuple(await asyncio.gather(*(self.facts_of(pool.name) for pool in self.list())))

    async def facts_of(self, name: str) -> PoolFacts:
        """Space and state of one. Raises PoolNotFound."""
        return await asyncio.to_thread(self._probe, self.get(name))

    # ---- is it the same on another host? -----------------------------------------------------

    async def make_proof(self, name: str, token: str) -> None:
        """Make a name there that another host can look for. Raises PoolNotFound, PoolUnusable, OSError."""
        await self._soon(self.get(name), lambda pool: proof.make(pool, token))

    async def remove_proof(self, name: str, token: str) -> None:
        """Remove it. Raises PoolNotFound, PoolUnusable, OSError."""
        await self._soon(self.get(name), lambda pool: proof.remove(pool, token))

    async def sees_proof(self, name: str, token: str) -> bool:
        """Whether that name is in the pool here."""
        try:
            return await self._soon(self.get(name), lambda pool: proof.is_seen(pool, token))
        except (PoolNotFound, PoolUnusable, RecordDamaged, OSError):
            return False

    async def identity_in(self, path: str) -> str:
        """Of the pool that the directory `path` is, be it declared here or not; empty: none."""
        try:
            found = await self._soon(Pool(name=UNDECLARED, path=path), storage.read_identity)
        except (PoolUnusable, OSError):
            return ""
        return found.identity if found else ""

    # ---- a share may hang --------------------------------------------------------------------

    def _probe(self, pool: Pool) -> PoolFacts:
        try:
            return self._within(PROBE_S, pool, storage.facts)
        except PoolUnusable as error:
            return PoolFacts(pool=pool, total=0, free=0, problem=str(error.facts["reason"]))

    async def _soon(self, pool: Pool, work: Callable[[Pool], T]) -> T:
        return await asyncio.to_thread(self._within, PROBE_S, pool, work)

    async def _bounded(self, pool: Pool, work: Callable[[Pool], T]) -> T:
        return await asyncio.to_thread(self._within, CHANGE_S, pool, work)

    def _within(self, seconds: float, pool: Pool, work: Callable[[Pool], T]) -> T:
        """`work(pool)`, given up after `seconds`; nothing more is tried while that one hangs.

        Raises PoolUnusable then, and what `work` raises.
        """
        hanging = self._hanging.get(pool.name)
        if hanging is None or hanging.done():
            future: Future[T] = Future()
            threading.Thread(
                target=_fulfil,
                args=(future, lambda: work(pool)),
                name=f"pool-{pool.name}",
                daemon=True,  # a dead share must not keep the daemon from ending
            ).start()
            try:
                return future.result(seconds)
            except TimeoutError:
                self._hanging[pool.name] = future
        raise PoolUnusable(
            pool=pool.name,
            reason=f"{pool.path} does not answer: its mount hangs",
            fix=f"Look at it with: findmnt -T {pool.path}",
        )


def _fulfil(future: Future[T], work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
        future.set_exception(error)


def _raise_if_damaged(what: str, name: str, host: str, damaged: Iterable[Damaged]) -> None:
    for record in damaged:
        if record.key == name:
            raise RecordDamaged(
                what=what, name=name, host=host, path=record.path, reason=record.reason
            )
