"""The guardians that this host knows, and which of them open the keys of its VMs.

Promises: a VM's key is nowhere but sealed in its record; who is authorized can be told from the
record; what was revoked cannot be opened by a record that is sent from then on.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from sterna.errors import (
    BadSpec,
    GuardianExists,
    GuardianIsOwn,
    GuardianNotFound,
    NoSecrets,
)
from sterna.host.store import Store
from sterna.model.secret import GuardianRecord
from sterna.security import guardian
from sterna.vms.machine import VM
from sterna.vms.service import VMs


@dataclass(frozen=True, slots=True)
class Known:
    """One guardian, as people see it."""

    name: str
    key: str
    fingerprint: str
    is_own: bool
    vms: tuple[str, ...]  # of this host, whose keys it opens


class Guardians:
    """Of this host."""

    def __init__(self, vms: VMs) -> None:
        self._vms = vms
        self._host = vms.config.name
        self._own = vms.launcher.tpms.own
        folder = vms.config.state_dir / "guardians"
        self._store = Store(folder, GuardianRecord, key_of=lambda one: one.name)
        self._records, self.damaged = self._store.load()
        self._lock = asyncio.Lock()

    def all(self) -> list[Known]:
        """This host's own first."""
        own = GuardianRecord(name=self._host, key=self._own.public)
        others = [record for _, record in sorted(self._records.items())]
        return [self._known(one) for one in (own, *others)]

    def _known(self, record: GuardianRecord) -> Known:
        vms = [
            vm.name for vm in self._vms.all() if record.key in vm.record.protector and vm.is_here
        ]
        return Known(
            record.name,
            record.key,
            guardian.fingerprint(record.key),
            record.key == self._own.public,
            tuple(sorted(vms)),
        )

    async def add(self, record: GuardianRecord) -> Known:
        """Know it by that name. May be repeated. Raises GuardianExists, BadSpec, StateNotWritten."""
        try:
            guardian.public(record.key)
        except ValueError as error:
            raise BadSpec(where="key", reason=str(error)) from error
        async with self._lock:
            known = self._records.get(record.name)
            if record.name == self._host or (known is not None and known.key != record.key):
                key = known.key if known is not None else self._own.public
                raise GuardianExists(
                    host=self._host, guardian=record.name, fingerprint=guardian.fingerprint(key)
                )
            await self._store.write(record.name, record)
            self._records[record.name] = record
        return self._known(record)

    async def forget(self, name: str) -> None:
        """What it was authorized for, it still is. Raises GuardianNotFound, StateNotWritten."""
        async with self._lock:
            self._get(name)
            await self._store.delete(name)
            del self._records[name]

    async def authorize(self, ref: str, name: str) -> VM:
        """That guardian opens the VM's keys. Raises VMNotFound, GuardianNotFound, GuardianMissing, NoSecrets."""
        vm, record = self._with_secrets(ref), self._get(name)
        key = self._vms.launcher.tpms.key(vm.record)
        sealed = guardian.seal(key, record.key, vm.id)
        async with self._lock:
            await vm.write(protector={**vm.record.protector, record.key: sealed})
        return vm

    async def revoke(self, ref: str, name: str) -> VM:
        """It opens them no more. Raises VMNotFound, GuardianNotFound, GuardianIsOwn, NoSecrets.

        What a host has received before stays known to it: its VM's key does not change.
        """
        vm = self._with_secrets(ref)
        if name == self._host:
            raise GuardianIsOwn(host=self._host, vm=vm.name)
        key = self._get(name).key
        async with self._lock:
            left = {one: sealed for one, sealed in vm.record.protector.items() if one != key}
            await vm.write(protector=left)
        return vm

    def _with_secrets(self, ref: str) -> VM:
        vm = self._vms.get(ref)
        if not vm.record.protector:
            raise NoSecrets(vm=vm.name)
        return vm

    def _get(self, name: str) -> GuardianRecord:
        if name not in self._records:
            raise GuardianNotFound(host=self._host, guardian=name)
        return self._records[name]
