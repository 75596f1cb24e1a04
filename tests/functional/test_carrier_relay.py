"""Relays between two real QEMUs: what moves through them arrives as it was, or not at all."""

import hashlib

import pytest
from qemu_rig import in_a_loop, until
from relay_rig import begin, finish, guests, relays

from sterna.lab.console import GuestConsole

pytestmark = [pytest.mark.functional]


async def memory_of(machine, folder, name):
    """Digest of the guest's RAM as QEMU sees it, below the hole of q35."""
    path = folder / name
    await machine.session.execute("pmemsave", {"val": 0, "size": 256 << 20, "filename": str(path)})
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    finally:
        path.unlink()


@in_a_loop
async def test_a_guest_that_writes_to_its_memory_moves_and_every_byte_is_there(tmp_path):
    async with relays(tmp_path) as carried, guests(tmp_path, "64:50:touch") as (source, target):
        async with GuestConsole(source.paths.serial) as console:
            await console.ready()
            before = (await console.ask("status"))["mem"]["writes"]
            assert before > 0
        await begin(source, target, carried)
        await finish(source, target)
        here = await memory_of(source, tmp_path, "here")
        assert await memory_of(target, tmp_path, "there") == here
        await target.qmp.cont()
        async with GuestConsole(target.paths.serial) as console:
            checked = await console.ask("verify")
            assert (checked["pages"], checked["bad"]) == (64 << 8, 0)
            status = await console.ask("status")
            assert status["mem"]["writes"] > before
            assert status["mem"]["bad"] == 0

        async def told() -> bool:
            stats = carried.source.stats
            return stats is not None and stats.memory is not None and not stats.memory.in_flight

        await until(told)
        memory = carried.source.stats.memory
        assert memory.pages["zero"] > 0
        assert memory.ratio > 2
        assert carried.target.stats.memory.stream_bytes == memory.stream_bytes
        assert carried.source.failure == carried.target.failure == ""
