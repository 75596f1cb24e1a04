"""The parts that the guest's image and console are made of, without building or booting it."""

import asyncio
import functools
import lzma
import shutil
import subprocess

import pytest

from sterna.lab.console import ConsoleSilent, GuestConsole, OrderRefused, answer_in
from sterna.lab.guest import cpio, modules
from sterna.lab.guest.debian import GuestBuildError, need
from sterna.lab.guest.image import cmdline


def test_the_archive_is_what_cpio_reads():
    archive = cpio.archive(
        [cpio.folder("bin"), cpio.file("bin/a", b"odd", executable=True), cpio.link("b", "bin/a")]
    )
    assert archive.startswith(b"070701")
    assert len(archive) % 4 == 0
    assert archive.count(b"070701") == 4
    assert b"TRAILER!!!\0" in archive


def _module(folder, name, depends="", compress=False):
    content = b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"
    path = folder / f"{name}.ko{'.xz' if compress else ''}"
    path.write_bytes(lzma.compress(content) if compress else content)


def test_modules_come_after_what_they_depend_on(tmp_path):
    _module(tmp_path, "virtio_net", "net-failover,virtio", compress=True)
    _module(tmp_path, "net_failover", "failover")
    _module(tmp_path, "failover")
    _module(tmp_path, "virtio")
    (tmp_path / "modules.builtin").write_text("kernel/drivers/input/evdev.ko\n")
    found = modules.needed(tmp_path, ["virtio-net", "evdev"], ["virtio_rng"])
    assert [name for name, _ in found] == ["failover", "net_failover", "virtio", "virtio_net"]
    assert all(content.startswith(b"\x7fELF") for _, content in found)


def test_a_missing_module_is_named(tmp_path):
    with pytest.raises(GuestBuildError, match="no module virtio_blk"):
        modules.needed(tmp_path, ["virtio_blk"])


def test_a_missing_tool_is_named_with_its_package():
    with pytest.raises(GuestBuildError, match="apt-get install some-package"):
        need("a-tool-that-is-nowhere", "some-package")


def test_the_command_line_has_only_what_was_asked_for():
    line = cmdline(ip="10.0.0.9/24", mem="64:20:touch")
    assert "sterna.ip=10.0.0.9/24 sterna.mem=64:20:touch" in line
    assert "sterna.disk" not in line


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b'[    2.1] noise STERNA {"ok":true}\r\n', {"ok": True}),
        (b'STERNA {"ok":tr[  2.0] usb 1-1\n', None),
        (b"nothing\n", None),
    ],
)
def test_answers_are_found_among_noise(line, answer):
    assert answer_in(line) == answer


def in_a_loop(test):
    @functools.wraps(test)
    def run(**fixtures):
        asyncio.run(test(**fixtures))

    return run


class FakeGuest:
    """A serial socket whose other end is scripted: each connection gets the next behaviour."""

    def __init__(self, path, behaviours):
        self.path, self.behaviours, self.heard = path, list(behaviours), []

    async def __aenter__(self):
        self.server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_):
        self.server.close()
        await self.server.wait_closed()

    async def _serve(self, reader, writer):
        behaviour = self.behaviours.pop(0)
        while line := (await reader.readline()).strip().decode():
            pass  # the empty line that each order starts with ends this loop
        while line := (await reader.readline()).strip().decode():
            self.heard.append(line)
            reply = behaviour(line)
            if reply is None:
                break
            writer.write(reply)
        writer.close()


def _answer(line, text='"ok":true'):
    return f'noise\nSTERNA {{{text},"id":{line.split("id=")[1].split(".")[0]}}}\n'.encode()


@in_a_loop
async def test_the_console_says_an_order_again_when_the_other_end_goes_away(tmp_path):
    path = tmp_path / "serial"
    async with FakeGuest(path, [lambda _: None, _answer]) as guest, GuestConsole(path) as console:
        answer = await console.ask("status", timeout_s=10)
    assert answer["ok"] is True
    assert len(guest.heard) == 2
    assert guest.heard[0] == guest.heard[1]


@in_a_loop
async def test_an_answer_to_another_order_is_not_taken(tmp_path):
    path = tmp_path / "serial"

    def late(line):
        return b'STERNA {"ok":true,"id":1}\n' + _answer(line, '"ok":true,"mine":1')

    async with FakeGuest(path, [late]), GuestConsole(path) as console:
        assert (await console.ask("status", timeout_s=10))["mine"] == 1


@in_a_loop
async def test_a_refusal_has_the_guests_reason(tmp_path):
    path = tmp_path / "serial"

    def refuse(line):
        return _answer(line, '"ok":false,"error":"no disk"')

    async with FakeGuest(path, [refuse]), GuestConsole(path) as console:
        with pytest.raises(OrderRefused, match="no disk"):
            await console.ask("disk rate=1", timeout_s=10)


@in_a_loop
async def test_a_silent_guest_is_reported_in_time(tmp_path):
    async with GuestConsole(tmp_path / "nobody") as console:
        with pytest.raises(ConsoleSilent, match="status"):
            await console.ask("status", timeout_s=0.2)


@pytest.mark.skipif(shutil.which("busybox") is None, reason="needs busybox")
def test_the_archive_unpacks_with_another_program(tmp_path):
    archive = cpio.archive([cpio.folder("d"), cpio.file("d/f", b"content"), cpio.link("l", "d/f")])
    argv = ["busybox", "cpio", "-id"]
    subprocess.run(argv, cwd=tmp_path, input=archive, check=True, capture_output=True)
    assert (tmp_path / "l").read_bytes() == b"content"
