"""The settings of this host for moves: durable, and followed by whoever acts on them.

Promises: a change that `change` returned from survives a power cut. Until the first change the
configuration file's values hold. A record that cannot be read is set aside and reported; then the
file's values hold again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from sterna.errors import BadSpec
from sterna.host.store import Damaged, Store
from sterna.model.settings import HostSettings, SettingsChanges, preferred

KEY = "moves"
Follower = Callable[[HostSettings], Awaitable[None]]


class Settings:
    """What is set now, and its record below `directory`. `addresses`: where moves can arrive."""

    def __init__(
        self, directory: Path, initial: HostSettings, host: str = "", addresses: Sequence[str] = ()
    ) -> None:
        self._host = host
        self._addresses = addresses
        self._store = Store(directory, HostSettings)
        self._followers: list[Follower] = []
        self._lock = asyncio.Lock()  # changes are made one after the other, each of the newest
        records, self.damaged = self._store.load()
        self.now: HostSettings = records.get(KEY, initial)

    damaged: list[Damaged]

    @property
    def lost(self) -> list[str]:
        """Migration networks in which this host has no address (any more)."""
        networks = self.now.migration_networks
        return [one for one in networks if not preferred(self._addresses, [one])]

    def _require_networks(self, new: HostSettings) -> None:
        """A network that is misspelt must not be a silent nothing. Raises BadSpec."""
        for network in new.migration_networks:
            if not preferred(self._addresses, [network]):
                have = ", ".join(self._addresses) or "no address for moves"
                raise BadSpec(
                    where="migration_networks",
                    reason=f"{network} matches no address where moves reach {self._host}, "
                    f"which has {have} ([migration] addresses of its configuration)",
                )

    def follow(self, follower: Follower) -> None:
        """`follower` is awaited after each change."""
        self._followers.append(follower)

    async def change(self, changes: SettingsChanges) -> HostSettings:
        """What holds from now on. Raises BadSpec, StateNotWritten: then nothing has changed."""
        given = {one.name: getattr(changes, one.name) for one in fields(changes)}
        return await self._change({name: one for name, one in given.items() if one is not None})

    async def drain(self, *, is_draining: bool) -> HostSettings:
        """From now on the host takes and starts no VM, or does so again. Raises StateNotWritten."""
        return await self._change({"draining": is_draining})

    async def _change(self, given: dict[str, Any]) -> HostSettings:
        async with self._lock:
            try:
                new = replace(self.now, **given)
            except ValueError as error:
                raise BadSpec(where="settings", reason=str(error)) from error
            if given.get("migration_networks"):
                self._require_networks(new)
            await self._store.write(KEY, new)
            self.now = new
            for follower in self._followers:
                await follower(new)
        return new
