"""Talks to the lab guest's agent over the VM's serial console.

Promises that an answer belongs to the order it is given for (orders are numbered, and the agent
does a numbered order once, however often it hears it), so an order survives lost lines, noise from
the kernel and the console's other end going away, as it does when the VM moves. Every wait has a
deadline. The console has one user at a time, here and in QEMU.
"""

import asyncio
import itertools
import json
import secrets
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sterna.errors import Failed, TimedOut

_MARK = b"STERNA {"
_AGAIN_S = 1.0  # an order without an answer is said again: a boot or a move may have lost it
_RECONNECT_S = 0.05  # QEMU's socket appears, or is freed by its last user, in about this time
_LINE_BYTES = 1 << 16


class ConsoleSilent(TimedOut):
    """The guest's agent did not answer in time; whether it obeyed is not known."""

    code = "lab.console-silent"
    text = "The guest on {path} did not answer '{order}' within {seconds} s."
    hint = "Look at the VM's console: the guest may be down, paused or still booting."


class OrderRefused(Failed):
    """The guest's agent understood the order, and says why it did nothing."""

    code = "lab.order-refused"
    text = "The guest on {path} refused '{order}': {reason}"


def answer_in(line: bytes) -> dict[str, Any] | None:
    """The agent's answer or event in a line of console output; None if there is none, or half."""
    at = line.find(_MARK)
    if at < 0:
        return None
    try:
        said = json.loads(line[at + len(_MARK) - 1 :])
    except ValueError:
        return None
    return said if isinstance(said, dict) else None


class GuestConsole:
    """The agent behind one serial socket; also an async context manager, which closes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._lock = asyncio.Lock()
        # Other users of this console number their orders elsewhere.
        self._ids = itertools.count(secrets.randbelow(1 << 40) * 1000)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def ready(self, timeout_s: float = 60.0) -> dict[str, Any]:
        """Waits until the agent answers, from a boot on if need be; its status."""
        return await self.ask("status", timeout_s=timeout_s)

    async def ask(self, order: str, *, timeout_s: float = 10.0) -> dict[str, Any]:
        """The answer to one order; see the agent's `help`.

        Raises OrderRefused with the guest's reason, ConsoleSilent after `timeout_s`.
        """
        number = next(self._ids)
        async with self._lock:
            try:
                async with asyncio.timeout(timeout_s):
                    answer = await self._until_answered(order, number)
            except TimeoutError as error:
                raise ConsoleSilent(path=str(self._path), order=order, seconds=timeout_s) from error
        if not answer.get("ok"):
            raise OrderRefused(path=str(self._path), order=order, reason=answer.get("error"))
        return answer

    async def end(self, order: str = "poweroff", *, timeout_s: float = 10.0) -> None:
        """Says `poweroff` or `reboot`; returns when the agent has agreed to it."""
        await self.ask(order, timeout_s=timeout_s)

    async def close(self) -> None:
        """Leaves the console to its next user. May be used again: it reconnects by itself."""
        if self._streams is None:
            return
        _, writer = self._streams
        self._streams = None
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            return  # QEMU was gone before us

    async def _until_answered(self, order: str, number: int) -> dict[str, Any]:
        while True:
            try:
                reader, writer = await self._connected()
                # The empty line ends whatever half line the guest may have heard before; the
                # length tells it when a port that was just being opened lost the beginning.
                writer.write(f"\n{order} id={number}.{len(order)}\n".encode())
                await writer.drain()
                async with asyncio.timeout(_AGAIN_S):
                    return await self._answer(reader, number)
            except TimeoutError:
                continue
            except (OSError, EOFError):
                await self.close()
                await asyncio.sleep(_RECONNECT_S)

    async def _answer(self, reader: asyncio.StreamReader, number: int) -> dict[str, Any]:
        while True:
            try:
                line = await reader.readuntil(b"\n")
            except asyncio.LimitOverrunError as error:
                await reader.read(error.consumed)  # noise without an end
                continue
            said = answer_in(line)
            if said is not None and said.get("id") == number:
                return said

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(self._path, limit=_LINE_BYTES)
        return self._streams
