"""What a move did, in figures: filled while it runs, the operation's result when it has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from sterna import clock
from sterna.model.move import Phase
from sterna.model.reservation import ReservationStatus
from sterna.move.carriers import NEVER_S, Choice
from sterna.move.memory import Sent
from sterna.qemu.commands import MigrationInfo
from sterna.units import format_duration, format_size


class Report:
    """Times in seconds or, where the name says so, milliseconds; sizes in bytes."""

    def __init__(
        self, *, source: str, target: str, is_live: bool, choice: Choice | None = None
    ) -> None:
        self._choice = choice
        self._wire: int | None = None
        self._carried: dict[str, Any] = {}
        self.source = source
        self.target = target
        self.is_live = is_live
        self.stopped: float | None = None  # monotonic, of the guest's stop
        self._began = clock.monotonic()
        self._phases: dict[str, float] = {}
        self._parts: dict[str, float] = {}
        self._info: MigrationInfo | None = None
        self._sent = Sent()
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

    def converged(self, sent: Sent) -> None:
        """What the convergence policy did and expected."""
        self._sent = sent

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

    def carried(self, wire: int | None, facts: dict[str, Any]) -> None:
        """What the carrier counted: all bytes on the wire, if it knows, and what became of pages."""
        self._wire, self._carried = wire, facts

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
                "carrier": self._choice.kind if self._choice else "direct",
                "carrier_reason": self._choice.reason if self._choice else "",
                "forecasts": self._forecasts(),
                "forecast": None,
                **self._carried,
                "pause_ms": round(self._pause_ms, 1),
                "pause_parts_ms": {name: round(ms, 1) for name, ms in self._parts.items()},
                "pause_forecast_ms": _rounded(self._sent.forecast_ms),
                "pause_allowed_ms": _rounded(self._sent.allowed_ms),
                "throttle": self._sent.throttle,  # percent, the most
                "qemu_pause_ms": self._info.downtime_ms,
                "bytes_memory": self._info.total,
                "bytes_wire": self._bytes_wire(self._info),
                "rounds": self._info.rounds,
            }
            result["forecast"] = self._compared(result)
        result["text"] = self._text(result)
        return result

    def _bytes_wire(self, info: MigrationInfo) -> int:
        if self._wire is not None:
            return self._wire + self._files
        return info.transferred + self._mirrored + self._files

    def _forecasts(self) -> dict[str, dict[str, float]]:
        """What was expected of each carrier, by its name."""
        return {
            one.kind: {
                "total_s": round(one.total_s, 2),
                "pause_ms": round(one.pause_ms, 1),
                "bytes_wire": one.wire,
            }
            for one in (self._choice.forecasts if self._choice else ())
        }

    def _compared(self, result: dict[str, Any]) -> dict[str, dict[str, float]] | None:
        """What was expected of the carrier that was chosen, what it was, and by how much it is off.

        The error is what was measured less what was expected: for the pause in ms, else in percent.
        """
        expected = self._forecasts().get(str(result["carrier"]))
        if expected is None or expected["total_s"] >= NEVER_S:
            return None
        compared = {}
        for name, said in expected.items():
            was = result[name]
            off = was - said if name == "pause_ms" else (was / said - 1) * 100 if said else 0.0
            compared[name] = {"expected": said, "measured": was, "error": round(off, 1)}
        return compared

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


def _rounded(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 1)
