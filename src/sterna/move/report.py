"""What a move did, in figures: filled while it runs, the operation's result when it has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from sterna import clock
from sterna.model.move import Phase
from sterna.model.reservation import ReservationStatus
from sterna.qemu.commands import MigrationInfo
from sterna.units import format_duration, format_size


class Report:
    """Times in seconds or, where the name says so, milliseconds; sizes in bytes."""

    def __init__(self, *, source: str, target: str, is_live: bool) -> None:
        self.source = source
        self.target = target
        self.is_live = is_live
        self.stopped: float | None = None  # monotonic, of the guest's stop
        self._began = clock.monotonic()
        self._phases: dict[str, float] = {}
        self._parts: dict[str, float] = {}
        self._info: MigrationInfo | None = None
        self._pause_ms = 0.0
        self._mirrored = self._files = self._present = 0

    @asynccontextmanager
    async def phase(self, phase: Phase) -> AsyncIterator[None]:
        """Measures one phase."""
        began = clock.monotonic()
        try:
            yield
        finally:
            self._phases[phase] = round(clock.monotonic() - began, 3)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measures one part of the pause."""
        began = clock.monotonic()
        try:
            yield
        finally:
            self._parts[name] = (clock.monotonic() - began) * 1000

    def guest_stopped(self, since: float) -> None:
        """It stands still since then (monotonic); what it wrote to its disks has ended by now."""
        self.stopped = since
        self._parts["stop"] = (clock.monotonic() - since) * 1000

    def migrated(self, info: MigrationInfo) -> None:
        """QEMU's own figures, when it says completed."""
        self._info = info

    def taken(self, answer: ReservationStatus) -> None:
        """The target owns the VM. Its clock is not ours: durations are added, never instants."""
        self._parts |= answer.parts_ms or {}
        if self.stopped is not None:
            self._pause_ms = (clock.monotonic() - self.stopped) * 1000
            known = sum(self._parts.values())
            self._parts["ownership"] = max(0.0, self._pause_ms - known)

    def mirrored(self, transferred: int) -> None:
        """Bytes that mirrors have put on the wire so far."""
        self._mirrored = transferred

    def sent(self, wire: int, present: int) -> None:
        """Of the files: bytes on the wire, and bytes that the target had already."""
        self._files, self._present = wire, present

    def disks_sentence(self) -> str:
        """What the phase of the disks did."""
        had = f"; {format_size(self._present)} were there already" if self._present else ""
        copied = format_size(self._files + self._mirrored)
        return f"the disks are on {self.target}, {copied} were copied{had}"

    def memory_sentence(self) -> str:
        """What the memory phase did."""
        return f"the guest's memory is on {self.target}, but for the last changes"

    def pause_sentence(self, vm: str) -> str:
        """What the handover did."""
        if self.stopped is None:
            return f"{vm} belongs to {self.target} now"
        return f"{vm} runs on {self.target} now, after a pause of {format_duration(self._pause_ms / 1000)}"

    def _since(self) -> float:
        return clock.monotonic() - self._began

    def finish(self) -> dict[str, Any]:
        """The operation's result."""
        result: dict[str, Any] = {
            "from": self.source,
            "to": self.target,
            "live": self.is_live,
            "total_s": round(self._since(), 3),
            "phases": {str(phase): seconds for phase, seconds in self._phases.items()},
        }
        if self._mirrored or self._files or self._present:
            result |= {
                "bytes_disks": self._mirrored + self._files,  # on the wire
                "bytes_present": self._present,
            }
        if self.is_live and self._info is not None:
            result |= {
                "carrier": "direct",
                "carrier_reason": "the only carrier of this version: QEMU to QEMU over TCP",
                "pause_ms": round(self._pause_ms, 1),
                "pause_parts_ms": {name: round(ms, 1) for name, ms in self._parts.items()},
                "qemu_pause_ms": self._info.downtime_ms,
                "bytes_memory": self._info.total,
                "bytes_wire": self._info.transferred + self._mirrored + self._files,
                "rounds": self._info.rounds,
            }
        result["text"] = self._text(result)
        return result

    def _text(self, result: dict[str, Any]) -> str:
        took = format_duration(result["total_s"])
        if not self.is_live:
            return f"moved from {self.source} to {self.target} in {took}, off"
        if "pause_ms" not in result:  # the QEMU that would have said more was gone by then
            return f"moved from {self.source} to {self.target} in {took}"
        return (
            f"moved from {self.source} to {self.target} in {took}, pause "
            f"{format_duration(result['pause_ms'] / 1000)}, {format_size(result['bytes_wire'])} "
            f"on the wire in {result['rounds']} rounds"
        )
