"""Relays between two real QEMUs: what moves through them arrives as it was, or not at all."""

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
from dataclasses import replace

import pytest
from qemu_rig import DISK_BYTES, in_a_loop, machine, until, until_status
from relay_rig import MIB, alive, begin, finish, guests, prepare, relays, services, start

from machines import SMALL, Variant, disks
from sterna.carrier.control import MEMORY
from sterna.carrier.facts import LinkEvent, Route
from sterna.carrier.link import Link, Tls
from sterna.carrier.process import Relay
from sterna.errors import CarrierFailed, QMPError, StreamReset
from sterna.lab.console import GuestConsole
from sterna.move import memory
from sterna.security import pair

pytestmark = [pytest.mark.functional]
SLOWLY = 12 * MIB  # bytes a second: the test does something meanwhile
TRICKLE = MIB // 4  # what a guest has left does not arrive before the test has acted
ENDS_S = 20.0


async def memory_of(machine, folder):
    """Digest of the guest's RAM as its QEMU sees it."""
    path = folder / "memory"
    await machine.session.execute("pmemsave", {"val": 0, "size": 256 << 20, "filename": str(path)})
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    finally:
        path.unlink()


async def is_right(machine, written, size_mib=64):
    """The guest runs, and the memory that it wrote is as it wrote it."""
    async with GuestConsole(machine.paths.serial) as console:
        checked = await console.ask("verify")
        assert (checked["pages"], checked["bad"]) == (size_mib << 8, 0)
        status = await console.ask("status")
        assert status["mem"]["bad"] == 0
        assert status["mem"]["writes"] > written


async def has_written(machine):
    async with GuestConsole(machine.paths.serial) as console:
        await console.ready()
        return (await console.ask("status"))["mem"]["writes"]


async def recovers(target, uri):
    """Out of band: QEMU's main loop may wait for a page itself."""

    async def done() -> bool:
        try:
            await target.session.execute_oob("migrate-recover", {"uri": uri})
        except QMPError:  # it has not noticed yet
            return False
        return True

    await until(done)


async def ended(relay):
    async with asyncio.timeout(ENDS_S):
        await relay.ended.wait()
    assert not alive(relay.pid)


@in_a_loop
async def test_a_guest_that_writes_to_its_memory_moves_and_every_byte_is_there(tmp_path):
    async with relays(tmp_path) as carried, guests(tmp_path, "64:50:touch") as (source, target):
        written = await has_written(source)
        await begin(source, target, carried)
        await finish(source, target)
        assert await memory_of(target, tmp_path) == await memory_of(source, tmp_path)
        await target.qmp.cont()
        await is_right(target, written)

        async def told() -> bool:
            stats = carried.source.stats
            return stats is not None and stats.memory is not None and not stats.memory.in_flight

        await until(told)
        memory = carried.source.stats.memory
        assert memory.pages["zero"] > 0
        assert memory.ratio > 2
        assert carried.target.stats.memory.stream_bytes == memory.stream_bytes
        assert carried.source.failure == carried.target.failure == ""


@in_a_loop
async def test_the_disk_of_a_mirror_goes_through_the_same_link_and_is_identical(tmp_path):
    spec = replace(SMALL, disks=disks(1, format="raw"))
    paths = services(tmp_path, "t")
    for side in "st":
        (tmp_path / side).mkdir()
    image = tmp_path / "s" / spec.disks[0].volume
    noise = os.urandom(8 * MIB) + b"compressible " * (1 << 20)
    image.write_bytes(noise.ljust(DISK_BYTES, b"\0"))
    async with (
        relays(tmp_path) as carried,
        machine(Variant(spec, folder="s"), tmp_path) as source,
        machine(Variant(spec, folder="t", incoming=True), tmp_path) as target,
    ):
        (top,) = [
            one["inserted"]["node-name"] for one in await source.session.execute("query-block")
        ]
        address = {"type": "unix", "data": {"path": paths["nbd"]}}
        await target.session.execute("nbd-server-start", {"addr": address})
        export = {"id": "e", "type": "nbd", "node-name": top, "name": "d", "writable": True}
        await target.session.execute("block-export-add", export)
        server = {"type": "unix", "path": services(tmp_path, "s")["nbd"]}
        node = {"driver": "nbd", "node-name": "there", "server": server, "export": "d"}
        await source.session.execute("blockdev-add", node)
        with source.session.listen("BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED") as events:
            job = {"job-id": "m", "device": top, "target": "there", "sync": "full"}
            await source.session.execute("blockdev-mirror", job)
            assert (await events.get(ENDS_S))["event"] == "BLOCK_JOB_READY"
            await source.session.execute("block-job-cancel", {"device": "m"})
            assert (await events.get(ENDS_S))["event"] == "BLOCK_JOB_COMPLETED"
        await source.session.execute("blockdev-del", {"node-name": "there"})

        async def closed() -> bool:
            return carried.source.stats.services["nbd"].streams == 0

        await until(closed)
        count = carried.source.stats.services["nbd"]
        assert count.bytes_in > len(noise)
        assert count.wire_out < 10 * MIB  # what can be compressed was
    copy = tmp_path / "t" / spec.disks[0].volume
    command = ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(image), str(copy)]
    assert await asyncio.to_thread(subprocess.call, command, stdout=subprocess.DEVNULL) == 0


@pytest.mark.parametrize("side", ["source", "target"])
@in_a_loop
async def test_a_relay_that_is_killed_ends_the_move_and_the_guest_runs_on(tmp_path, side):
    async with (
        relays(tmp_path, grace_s=1.0, limit=SLOWLY) as carried,
        guests(tmp_path, "64:50:touch") as (source, target),
    ):
        written = await has_written(source)
        await prepare(source, target, carried)
        with source.session.listen("MIGRATION") as events:
            await source.qmp.migrate(carried.outgoing)
            await until_status(events, "active")
            killed = getattr(carried, side)
            os.kill(killed.pid, signal.SIGKILL)
            while (await events.get(ENDS_S))["data"]["status"] != "failed":
                pass
        await ended(killed)
        assert "signal 9" in killed.failure
        with pytest.raises(CarrierFailed):
            await killed.set_limit(None)
        other = carried.target if side == "source" else carried.source
        await ended(other)
        assert "no connection to the other host for 1 s" in other.failure
        assert await source.qmp.query_status() == "running"
        await is_right(source, written)


@in_a_loop
async def test_a_migration_that_is_cancelled_leaves_both_relays_free_for_nothing_more(tmp_path):
    async with (
        relays(tmp_path, limit=SLOWLY) as carried,
        guests(tmp_path, "64:50:touch") as (source, target),
    ):
        written = await has_written(source)
        await prepare(source, target, carried)
        with source.session.listen("MIGRATION") as events:
            await source.qmp.migrate(carried.outgoing)
            await until_status(events, "active")
            # Ended is enough: QEMU 7.2 shuts the return path before it says that it cancels, and if
            # its migration sees that first it calls itself failed.
            await memory.abort(source.qmp)
        await target.process.wait()

        async def closed() -> bool:
            ends = (carried.source, carried.target)
            return all(one.stats.services[MEMORY].streams == 0 for one in ends)

        await until(closed)
        await is_right(source, written)


@in_a_loop
async def test_a_cable_that_is_pulled_in_mid_move_costs_nothing_but_time(tmp_path):
    async with (
        relays(tmp_path, limit=SLOWLY) as carried,
        guests(tmp_path, "64:50:touch") as (source, target),
    ):
        written = await has_written(source)
        await prepare(source, target, carried)
        with source.session.listen("MIGRATION") as events:
            await source.qmp.migrate(carried.outgoing)
            await until_status(events, "active")
            await carried.cable.pull()

            async def down() -> bool:
                return carried.source.stats.link.down_since is not None

            await until(down)
            await carried.cable.plug()
            await carried.source.set_limit(None)
            await until_status(events, "pre-switchover")
        await finish(source, target)
        assert await memory_of(target, tmp_path) == await memory_of(source, tmp_path)
        await target.qmp.cont()
        await is_right(target, written)


@pytest.mark.parametrize("breaks", ["cable", "connection"])
@in_a_loop
async def test_post_copy_goes_on_after_a_break(tmp_path, breaks):
    async with (
        relays(tmp_path, grace_s=None, limit=SLOWLY) as carried,
        guests(tmp_path, "128:50:touch:random") as (source, target),
    ):
        written = await has_written(source)
        await prepare(
            source, target, carried, **{"postcopy-ram": True, "pause-before-switchover": False}
        )
        await target.qmp.cont()  # as soon as it can: its main loop may wait for pages then
        with source.session.listen("MIGRATION") as events, target.session.listen("RESUME") as runs:
            await source.qmp.migrate(carried.outgoing)
            await until_status(events, "active")
            await source.qmp.migrate_start_postcopy()
            await until_status(events, "postcopy-active")
            await runs.get(ENDS_S)  # before, a break would be the end of it
            await carried.source.set_limit(TRICKLE)
            if breaks == "cable":
                await carried.cable.pull()

                async def down() -> bool:
                    return carried.source.stats.link.down_since is not None

                await until(down)
                await carried.cable.plug()
            else:
                await source.qmp.migrate_pause()
                await until_status(events, "postcopy-paused")
                await recovers(target, carried.incoming)
                await source.qmp.migrate_resume(carried.outgoing)
            await carried.source.set_limit(None)
            await until_status(events, "completed")
        await target.has_status("completed")
        await is_right(target, written, size_mib=128)


@in_a_loop
async def test_keys_of_another_move_are_refused_and_the_relay_says_so(tmp_path):
    here, there, wrong = pair.make(), pair.make(), pair.make()
    target = await Relay.start(
        start(tmp_path, "t", there, here.certificate, addresses=("127.0.0.1",)),
        log=tmp_path / "t.log",
    )
    source = await Relay.start(start(tmp_path, "s", wrong, grace_s=1.0), log=tmp_path / "s.log")
    await source.connect([Route("", target.endpoints[0])], there.certificate, 0)
    await ended(source)
    assert "no connection to the other host for 1 s" in source.failure
    assert not source.up.is_set()
    assert not target.ended.is_set()
    await target.stop()
    assert not alive(target.pid)


@in_a_loop
async def test_garbage_from_a_peer_with_the_right_keys_breaks_its_stream_alone(tmp_path):
    here, there = pair.make(), pair.make()
    paths = services(tmp_path, "t")
    servers = {name: socket.socket(socket.AF_UNIX) for name in paths}
    for name, path in paths.items():
        servers[name].bind(path)
        servers[name].listen()
    order = start(tmp_path, "t", there, here.certificate, addresses=("127.0.0.1",))
    target = await Relay.start(order, log=tmp_path / "t.log", on_event=[].append)
    tls = Tls(certificate=here.certificate, key=here.key, peer=there.certificate)

    def attack(link: Link, service: str, message: bytes) -> str:
        stream = link.open(service)
        with pytest.raises(StreamReset) as told:
            while stream.send(message) is None:
                stream.receive()
        return str(told.value)

    def ignore(event: LinkEvent) -> None:
        pass

    link = Link(tls=tls, grace_s=5.0, limit=None, on_event=ignore, lead=True)
    try:
        link.connect([Route("", target.endpoints[0])])
        for service, message, reason in (
            (MEMORY, b"garbage", "not a block of memory pages"),
            (MEMORY, b"", "not a block of memory pages"),
            ("nbd", b"", "no known kind"),
            ("nbd", b"\7...", "no known kind"),
            ("nbd", b"\1garbage", "cannot be decompressed"),
            ("nbd", BOMB, "claims to be 1073741824 bytes long"),
            ("shell", b"x", "no such service"),
        ):
            assert reason in await asyncio.to_thread(attack, link, service, message)
    finally:
        await asyncio.to_thread(link.close)
        for one in servers.values():
            one.close()
    assert target.stats is None or target.stats.peak_rss < 300 * MIB
    await target.stop()
    assert (tmp_path / "t.log").read_text() == ""


BOMB = b"\1(\xb5/\xfd\xa0\0\0\0@" + b"\x02\0\x10\0" * 3  # zstd's frame of 1 GiB of zeroes


@in_a_loop
async def test_a_relay_ends_with_its_daemon(tmp_path):
    keys = pair.make()
    relay = await Relay.start(start(tmp_path, "s", keys), log=tmp_path / "s.log")
    assert sorted(path.name for path in tmp_path.glob("s-*")) == ["s-memory", "s-nbd"]
    relay._writer.close()
    await ended(relay)
    assert not list(tmp_path.glob("s-*"))


@in_a_loop
async def test_a_relay_without_grace_goes_on_without_its_daemon_until_its_streams_end(tmp_path):
    async with (
        relays(tmp_path, grace_s=None, limit=SLOWLY) as carried,
        guests(tmp_path, "64:50:touch") as (source, target),
    ):
        written = await has_written(source)
        await prepare(source, target, carried)
        with source.session.listen("MIGRATION") as events:
            await source.qmp.migrate(carried.outgoing)
            await until_status(events, "active")
            await carried.source.set_limit(None)
            for relay in (carried.source, carried.target):
                relay._writer.close()
            await until_status(events, "pre-switchover")
            await source.qmp.migrate_continue("pre-switchover")
            await until_status(events, "completed")
        await target.has_status("completed")
        await ended(carried.source)
        await ended(carried.target)
        await target.qmp.cont()
        await is_right(target, written)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"certificate": "nonsense"}, ""),
        ({"services": {MEMORY: "/nonexistent/path"}}, "/nonexistent/path cannot be listened on"),
        ({"services": {MEMORY: "/tmp/" + "x" * 200}}, "cannot be listened on"),
    ],
)
@in_a_loop
async def test_a_relay_that_cannot_start_says_why(tmp_path, change, reason):
    keys = pair.make()
    order = replace(start(tmp_path, "s", keys, keys.certificate), **change)
    with pytest.raises(CarrierFailed) as failed:
        await Relay.start(order, log=tmp_path / "s.log")
    assert reason in str(failed.value)
    assert not list(tmp_path.glob("s-*"))
