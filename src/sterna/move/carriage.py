"""The data path of one move as its source uses it: where QEMU sends memory and disks to.

Promises: nothing of the guest crosses a network unencrypted unless the configuration says so; `end`
removes every trace here (keys, processes, settings of QEMU) and may be repeated; a path that fails
says why in `failure`. Keys are made for one move and are in no record, journal or log.
"""

from __future__ import annotations

import abc
import contextlib
import shutil
from pathlib import Path
from typing import Any

from sterna.config import Config
from sterna.errors import Failed, QEMULost, QEMUUnsupported, QMPError, SternaError, VMLost
from sterna.host import inventory
from sterna.model.reservation import CarrierKind, CarrierOffer, ReservationStatus
from sterna.move import multifd
from sterna.qemu.blocks import inet, nbd_node
from sterna.qemu.nodes import Options
from sterna.qemu.sockets import sent_bytes
from sterna.vms.machine import VM

UNLIMITED = 16 << 30  # bytes/s; QEMU's default would be 128 MiB/s
DISKS = "nbd"  # the service of a link that carries QEMU's disks
OUT_KEY = "move-out"  # credentials of QEMU as a move's source
IN_KEY = "move-in"  # and as its target
KEY_BYTES = 32  # of a pre-shared key: AES-256's worth
CACHE_SHARE = 4  # of the memory that is free, a relay takes one part at most
_KEY_USER = "qemu"  # the name that QEMU gives itself when it shows a pre-shared key
# ffdhe2048 of RFC 7919. QEMU would search for a group of its own, which takes up to seconds.
_GROUP = """-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""


def key_folder(vm: VM, name: str) -> Path:
    """Where the key of the credentials `name` lies for as long as QEMU needs the file."""
    return vm.paths.directory / name


def write_key(vm: VM, name: str, key: str) -> Path:
    """Put the key where QEMU reads it, for the owner of this process only."""
    folder = key_folder(vm, name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    file = folder / "keys.psk"
    file.touch(mode=0o600)
    file.write_text(f"{_KEY_USER}:{key}\n")
    (folder / "dh-params.pem").write_text(_GROUP)
    return folder


async def use_key(vm: VM, name: str, key: str, host: str) -> None:
    """Have QEMU ask for, or show, the key on the migration's connections. Raises QEMUUnsupported."""
    is_server = name == IN_KEY
    folder = write_key(vm, name, key)
    try:
        await vm.qmp.delete_object(name)
        await vm.qmp.add_key(name, str(folder), is_server=is_server)
    except QMPError as error:
        raise QEMUUnsupported(
            host=host,
            reason=f"it cannot encrypt a move with a pre-shared key: {error.message}",
            fix="Install a QEMU with TLS, or on both hosts: sterna host set --encryption off",
        ) from error
    finally:
        if not is_server:  # it has read it; a server reads it whenever somebody connects
            shutil.rmtree(folder)
    await vm.qmp.migrate_set_parameters(**{"tls-creds": name})


def remove_keys(vm: VM) -> None:
    """Whatever keys a move has left in the VM's run folder."""
    for name in (OUT_KEY, IN_KEY):
        shutil.rmtree(key_folder(vm, name), ignore_errors=True)


async def forget_key(vm: VM, name: str) -> None:
    """Take the credentials from QEMU, if it is there, and the key from the disk."""
    shutil.rmtree(key_folder(vm, name), ignore_errors=True)
    with contextlib.suppress(VMLost, QEMULost):
        await vm.qmp.migrate_set_parameters(**{"tls-creds": ""})
        await vm.qmp.delete_object(name)


def cache_bytes(settings: Config, guest: int) -> int:
    """What a relay here may take for pages of a guest with so much memory. It is less than the
    setting if the guest has less, and if this host has little to give.
    """
    free = inventory.memory().available
    return max(0, min(settings.migration.cache, guest + guest // 128, free // CACHE_SHARE))


class Carriage(abc.ABC):
    """One move's data path. `begin` when the target is open, then memory and disks; `end` always."""

    kind: CarrierKind
    failure: str = ""  # why it failed, in a sentence

    @property
    @abc.abstractmethod
    def offer(self) -> CarrierOffer:
        """What the target is told of it."""

    async def start(self) -> None:  # noqa: B027 - not all have anything to start
        """What must be there before the target is open. Raises CarrierFailed."""

    @abc.abstractmethod
    async def begin(self, opened: ReservationStatus) -> None:
        """The target's end is there. Raises Failed, CarrierFailed."""

    @property
    def capabilities(self) -> frozenset[str]:
        """What QEMU must switch on for it, beside what every move wants; known from `begin` on."""
        return frozenset()

    @property
    @abc.abstractmethod
    def uri(self) -> str:
        """Where QEMU shall send the memory to."""

    @abc.abstractmethod
    def disk(self, node: str, export: str) -> Options:
        """The node through which QEMU writes the target's disk `export`."""

    async def sever(self) -> None:  # noqa: B027 - `yank` does for what QEMU has on TCP
        """The move is undone: QEMU must not wait for what goes this way, nor connect anew."""

    def cut_disks(self) -> None:  # noqa: B027 - `yank` does for what QEMU has on TCP
        """Break the connections of disks, those too that QEMU is about to make."""

    @abc.abstractmethod
    def disk_bytes(self) -> int:
        """Bytes that disks have put on the wire, as far as can be told now."""

    def wire_bytes(self) -> int | None:
        """All bytes on the wire; None if only QEMU knows."""
        return None

    @property
    def is_link_down(self) -> bool:
        """Whether the network is away and waited for: then nothing that stands still has stalled."""
        return False

    @property
    def final_rate(self) -> float | None:
        """Bytes/s of guest memory that the last copy will go at; None: as the rounds do."""
        return None

    @property
    def in_flight(self) -> int:
        """Bytes of guest memory that QEMU has given away, and the target's has not got yet."""
        return 0

    async def limit(self, bytes_s: int | None) -> None:  # noqa: B027 - QEMU may keep it
        """Use no more than that from now on; None: no limit."""

    @property
    def limits_itself(self) -> bool:
        """Whether `limit` is kept here, and QEMU must not be limited."""
        return False

    def view(self) -> dict[str, Any]:
        """What progress tells of it now, by the names of `MemoryProgress`."""
        return {}

    async def hold(self) -> None:  # noqa: B027 - QEMU holds by itself
        """Post-copy begins: from now on the guest is on both hosts, and a link is waited for."""

    async def run(self) -> None:  # noqa: B027 - QEMU notices by itself
        """Until cancelled. Raises when the path has failed."""

    @abc.abstractmethod
    async def end(self, *, is_undone: bool = True) -> None:
        """Nothing of it is left here. `is_undone`: because the move is, perhaps by its failure."""


class Direct(Carriage):
    """QEMU to QEMU over TCP, by QEMU's own TLS with a key that the target makes for this move."""

    kind: CarrierKind = "direct"

    def __init__(self, vm: VM, host: str, *, is_encrypted: bool, channels: int = 0) -> None:
        self._vm = vm
        self._wished = channels
        self._host = host
        self._is_encrypted = is_encrypted
        self._opened: ReservationStatus | None = None
        self._has_key = False

    @property
    def offer(self) -> CarrierOffer:
        return CarrierOffer(kind="direct", encrypted=self._is_encrypted, channels=self._wished)

    @property
    def channels(self) -> int:
        """That both ends have agreed on; 0: a single stream."""
        ready = self._opened.carrier if self._opened is not None else None
        return ready.channels if ready is not None else 0

    @property
    def capabilities(self) -> frozenset[str]:
        return multifd.capability(self.channels)

    async def begin(self, opened: ReservationStatus) -> None:
        self._opened = opened
        if self.channels > self._wished:
            raise Failed(detail=f"the target awaits {self.channels} channels, not {self._wished}")
        await multifd.prepare(self._vm.qmp, self.channels)
        if not self._is_encrypted:
            await self._vm.qmp.migrate_set_parameters(**{"tls-creds": ""})
            return
        ready = opened.carrier
        if ready is None or not ready.key:
            raise Failed(detail="the target made no key for the encryption of the move")
        self._has_key = True
        await use_key(self._vm, OUT_KEY, ready.key, self._host)

    @property
    def uri(self) -> str:
        opened = self._there()
        address = f"[{opened.address}]" if ":" in opened.address else opened.address
        return f"tcp:{address}:{opened.port}"

    async def limit(self, bytes_s: int | None) -> None:
        if self._opened is not None:
            with contextlib.suppress(VMLost, QEMULost):  # whoever moves it is told elsewhere
                await self._vm.qmp.migrate_set_parameters(**{"max-bandwidth": bytes_s or UNLIMITED})

    def disk(self, node: str, export: str) -> Options:
        opened = self._there()
        server = inet(opened.address, opened.nbd_port)
        return nbd_node(node, server=server, export=export, tls=OUT_KEY if self._has_key else "")

    def disk_bytes(self) -> int:
        if self._opened is None or self._vm.process is None or not self._opened.nbd_port:
            return 0
        return sent_bytes(self._vm.process.pid, frozenset({self._opened.nbd_port}))

    def _there(self) -> ReservationStatus:
        if self._opened is None:
            raise AssertionError("begin comes first")
        return self._opened

    async def end(self, *, is_undone: bool = True) -> None:  # noqa: ARG002
        if self._has_key:
            with contextlib.suppress(SternaError):
                await forget_key(self._vm, OUT_KEY)
        self._has_key = False
