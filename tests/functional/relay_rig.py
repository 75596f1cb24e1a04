"""Two real relays, on loopback or where a test wants them, and a guest that moves through them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from qemu_rig import SOURCE, TARGET, Machine, machine, until_status

from machines import SMALL, Variant
from sterna.carrier.control import MEMORY, Event, Role, Start
from sterna.carrier.facts import Endpoint, Route
from sterna.carrier.process import Relay
from sterna.lab.guest import image
from sterna.model.vm import DirectBoot
from sterna.security import pair
from sterna.security.pair import Pair

CACHE_BYTES = 128 << 20
MIB = 1 << 20


@dataclass
class Relays:
    source: Relay
    target: Relay
    folder: Path
    cable: Cable
    events: list[Event] = field(default_factory=list)

    @property
    def outgoing(self) -> str:
        """For `migrate` of the source's QEMU."""
        return f"unix:{self.folder}/s-memory"

    @property
    def incoming(self) -> str:
        return f"unix:{self.folder}/t-memory"

    def logs(self) -> str:
        return "".join((self.folder / f"{side}.log").read_text() for side in "st")


def services(folder: Path, side: str) -> dict[str, str]:
    return {name: f"{folder}/{side}-{name}" for name in (MEMORY, "nbd")}


def start(folder: Path, side: str, keys: Pair, peer: str = "", **more: object) -> Start:
    return Start(
        role=Role.SOURCE if side == "s" else Role.TARGET,
        certificate=keys.certificate,
        key=keys.key,
        peer_certificate=peer,
        services=services(folder, side),
        **more,  # type: ignore[arg-type]
    )


class Cable:
    """A TCP relay between the two hosts that can be pulled: nothing goes through then."""

    def __init__(self, to: Endpoint) -> None:
        self._to = to
        self._live: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._port = 0

    async def plug(self) -> Endpoint:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return Endpoint("127.0.0.1", self._port)

    async def pull(self) -> None:
        assert self._server is not None
        self._server.close()
        for one in list(self._live):
            one.transport.abort()
        await self._server.wait_closed()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(self._to.address, self._to.port)
        except OSError:
            writer.transport.abort()
            return
        self._live |= {writer, back}
        await asyncio.gather(_carry(reader, back), _carry(there, writer))
        self._live -= {writer, back}


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def relays(
    folder: Path, *, grace_s: float | None = 10.0, cache_bytes: int = CACHE_BYTES, **more: object
) -> AsyncIterator[Relays]:
    """Both, connected; gone at the end, and nothing of theirs is left."""
    events: list[Event] = []
    here, there = pair.make(), pair.make()
    async with contextlib.AsyncExitStack() as stack:
        order = start(folder, "s", here, grace_s=grace_s, **more)
        source = await Relay.start(order, log=folder / "s.log", on_event=events.append)
        stack.push_async_callback(source.stop)
        order = start(
            folder,
            "t",
            there,
            here.certificate,
            grace_s=grace_s,
            cache_bytes=cache_bytes,
            addresses=("127.0.0.1",),
            **more,
        )
        target = await Relay.start(order, log=folder / "t.log", on_event=events.append)
        stack.push_async_callback(target.stop)
        cable = Cable(target.endpoints[0])
        await source.connect([Route("", await cable.plug())], there.certificate, cache_bytes)
        await source.up.wait()
        made = Relays(source, target, folder, cable, events)
        yield made
    await cable.pull()
    assert not alive(source.pid)
    assert not alive(target.pid)
    assert not [path.name for path in sorted(folder.glob("s-*"))]  # noqa: ASYNC240
    assert made.logs() == "", made.logs()


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def variant(side: str, mem: str = "", *, memory: int = 256 * MIB) -> Variant:
    """The lab's guest: of folder `side`, with a load on its memory from the start."""
    guest = image.build()
    boot = DirectBoot(
        kernel=str(guest.kernel), initrd=str(guest.initrd), cmdline=image.cmdline(mem=mem or None)
    )
    spec = replace(SMALL, memory=memory, boot=boot)
    return Variant(spec, incoming=side == "t", folder=side)


async def prepare(source: Machine, target: Machine, carried: Relays, **more: bool) -> None:
    """All before `migrate`. `more` are capabilities of both."""
    await source.qmp.migrate_set_capabilities(SOURCE | more)
    await target.qmp.migrate_set_capabilities(TARGET | more)
    await source.qmp.migrate_set_parameters(**{"max-bandwidth": 16 << 30, "downtime-limit": 300})
    await target.qmp.migrate_incoming(carried.incoming)


async def begin(source: Machine, target: Machine, carried: Relays) -> None:
    """All before the last copy: the guest is stopped, what it has not sent yet is to follow."""
    await prepare(source, target, carried)
    with source.session.listen("MIGRATION") as events:
        await source.qmp.migrate(carried.outgoing)
        await until_status(events, "pre-switchover")


async def finish(source: Machine, target: Machine) -> None:
    with source.session.listen("MIGRATION") as events:
        await source.qmp.migrate_continue("pre-switchover")
        await until_status(events, "completed")
    await target.has_status("completed")


@contextlib.asynccontextmanager
async def guests(
    folder: Path, mem: str = "", **more: int
) -> AsyncIterator[tuple[Machine, Machine]]:
    """A source that boots the guest, and a target that waits for it."""
    async with (
        machine(variant("s", mem, **more), folder) as source,
        machine(variant("t", mem, **more), folder) as target,
    ):
        await source.qmp.cont()
        yield source, target
