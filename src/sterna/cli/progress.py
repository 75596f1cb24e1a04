"""How an operation's progress is shown: a bar on a terminal, a line per phase and step elsewhere,
JSON lines for programs. Progress goes to stderr, results to stdout; JSON lines all go to stdout.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sterna.cli.output import json_line, note, printable
from sterna.units import format_duration, format_rate, format_size

if TYPE_CHECKING:
    from sterna.cli.bar import Bar


WHOLE = 1000  # steps of a bar that shows a share
AFTER_MEMORY = ("handover", "tidy")  # the last numbers of the memory phase are history then


class Display:
    """What a follower tells. The base shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        return

    def state(self, operation: Mapping[str, Any]) -> None:
        """The operation changed: its state, phase or steps."""

    def sample(self, sample: Mapping[str, Any]) -> None:
        """New numbers."""

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of the operation's log."""

    def say(self, text: str) -> None:
        """Something about the following itself."""


class JSONLines(Display):
    """One JSON object a line: `state`, `progress`, `log`, `note`."""

    def __init__(self) -> None:
        self._operation = ""
        self._last: tuple[object, ...] = ()

    def state(self, operation: Mapping[str, Any]) -> None:
        self._operation = str(operation["id"])
        now = (operation["state"], operation.get("phase"))
        if now != self._last:
            self._last = now
            json_line({
                "type": "state", "operation": self._operation, "vm": operation.get("vm"),
                "state": now[0], "phase": now[1],
            })  # fmt: skip

    def sample(self, sample: Mapping[str, Any]) -> None:
        json_line({"type": "progress", "operation": self._operation, **sample})

    def log(self, line: Mapping[str, Any]) -> None:
        json_line({"type": "log", "operation": self._operation, **line})

    def say(self, text: str) -> None:
        json_line({"type": "note", "operation": self._operation, "text": text})


class Lines(Display):
    """A line when a phase begins, a step ends or a warning comes."""

    def __init__(self) -> None:
        self._last: tuple[object, ...] = ()
        self._told: set[int] = set()  # steps, by their place

    def state(self, operation: Mapping[str, Any]) -> None:
        for place, step in new_steps(operation, self._told):
            self._told.add(place)
            self.print(step_line(step))
        now = (operation["state"], operation.get("phase"))
        if now != self._last and not operation.get("ended"):
            self._last = now
            self.began(operation)

    def began(self, operation: Mapping[str, Any]) -> None:
        self.print(head_line(operation))

    def log(self, line: Mapping[str, Any]) -> None:
        if line.get("level") in ("warning", "error"):
            self.print(f"{line['level']}: {line.get('text', '')}")

    def say(self, text: str) -> None:
        self.print(text)

    def print(self, text: str) -> None:
        note(text)


class Terminal(Lines):
    """The lines of `Lines` with a live bar beneath them."""

    def __init__(self) -> None:
        super().__init__()
        from sterna.cli.bar import Bar  # noqa: PLC0415 - rich, only where it is seen

        self._bar: Bar = Bar()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def began(self, operation: Mapping[str, Any]) -> None:
        self._bar.head(printable(phase_text(operation)))
        if operation.get("phase") in AFTER_MEMORY:
            self._bar.full()

    def sample(self, sample: Mapping[str, Any]) -> None:
        if "share" in sample:  # of several VMs
            self._bar.numbers(WHOLE, round(WHOLE * sample["share"]), sample_text(sample))
            return
        self._bar.numbers(int(sample.get("total") or 0), done(sample), sample_text(sample))

    def print(self, text: str) -> None:
        self._bar.print(printable(text))


def display(is_json: bool) -> Display:
    """The display that suits where the output goes."""
    if is_json:
        return JSONLines()
    if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return Terminal()
    return Lines()


def new_steps(
    operation: Mapping[str, Any], told: AbstractSet[int]
) -> list[tuple[int, Mapping[str, Any]]]:
    """Steps that have ended, but for those at the places `told`; each with its place."""
    return [
        (place, step)
        for place, step in enumerate(operation.get("steps") or ())
        if place not in told and step.get("state") != "running"
    ]


def phase_text(operation: Mapping[str, Any]) -> str:
    state, phase = str(operation["state"]), str(operation.get("phase") or "")
    if state == "running":
        return phase or state
    return f"{state} ({phase})" if phase and state in ("cancelling", "unknown") else state


def head_line(operation: Mapping[str, Any]) -> str:
    """`move of web to b: memory`"""
    peer = f" to {operation['peer']}" if operation.get("peer") else ""
    of = f" of {operation['vm']}" if operation.get("vm") else ""
    what = f"{operation.get('kind', 'operation')}{of}{peer}"
    return f"{what}: {phase_text(operation)}"


def step_line(step: Mapping[str, Any]) -> str:
    seconds = step.get("seconds")
    took = f" ({format_duration(seconds)})" if isinstance(seconds, (int, float)) else ""
    state = "" if step.get("state") == "done" else f"{step.get('state')}: "
    return f"  {step.get('name', ''):<10}  {state}{step.get('text') or ''}{took}"


def done(sample: Mapping[str, Any]) -> int:
    """Bytes of guest memory that need not be sent again, as far as is known."""
    return max(0, int(sample.get("total") or 0) - int(sample.get("remaining") or 0))


def sample_text(sample: Mapping[str, Any]) -> list[str]:
    """What a person wants to know of a sample, the most important first."""
    parts = []
    if "vms" in sample:
        parts.append(f"{sample.get('vms_ended', 0)} of {sample['vms']} VMs")
        under_way = sample.get("under_way") or {}
        parts += [f"{name} {round(100 * share)} %" for name, share in under_way.items()]
    if total := sample.get("total"):
        parts.append(f"{format_size(done(sample))} of {format_size(total)}")
    if rate := sample.get("rate"):
        parts.append(format_rate(rate))
    if sample.get("remaining"):
        parts.append(f"{format_size(sample['remaining'])} left")
    parts += _wire(sample)
    if dirty := sample.get("dirty_rate"):
        parts.append(f"dirties {format_rate(dirty)}")
    if (pause := sample.get("expected_pause_ms")) is not None:
        parts.append(f"pause ~{format_duration(pause / 1000)}")
    if throttle := sample.get("throttle"):
        parts.append(f"slowed down {throttle} %")
    if rounds := sample.get("rounds"):
        parts.append(f"round {rounds}")
    return parts


def _wire(sample: Mapping[str, Any]) -> list[str]:
    """The network: what goes over it now, what holds that back, and whether it is there."""
    if sample.get("link") == "down":
        return [f"link down for {format_duration(sample.get('down_s') or 0)}"]
    limit = sample.get("limit")
    held = "held by limit" if sample.get("is_limited") else "limit"
    said = [f"{held} {format_rate(limit)}"] if limit else []
    if not sample.get("wire_rate"):
        return said
    channels = sample.get("channels") or ()
    if len(channels) > 1:
        up = sum(channel.get("state") == "up" for channel in channels)
        said.append(f"{up} of {len(channels)} channels")
    if ratio := sample.get("ratio"):
        said.append(f"{ratio * 100:.0f} % of the guest's bytes")
    details = f" ({', '.join(said)})" if said else ""
    return [f"{format_rate(sample['wire_rate'])} on the wire{details}"]
