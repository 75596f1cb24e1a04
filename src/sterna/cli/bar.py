"""The live progress bar on a terminal: phase, bar, percentage, time; and the numbers beneath.

The only module that imports rich. It draws on stderr and leaves nothing behind when it stops.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from sterna.clock import monotonic
from sterna.units import format_duration

FRAMES_PER_S = 8  # smooth enough for a person, nothing for a CPU
PHASE_WIDTH = 12
SEPARATOR = " · "


class Bar:
    """State that is drawn again and again by rich's thread; plain assignments change it."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._live = Live(
            self, console=self._console, refresh_per_second=FRAMES_PER_S, transient=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        self._began = monotonic()
        self._head = ""
        self._total = 0
        self._done = 0
        self._parts: Sequence[str] = ()

    def start(self) -> None:
        self._live.start()

    def stop(self) -> None:
        self._live.stop()

    def head(self, text: str) -> None:
        self._head = text

    def numbers(self, total: int, done: int, parts: Sequence[str]) -> None:
        self._total, self._done, self._parts = total, min(done, total), parts

    def full(self) -> None:
        """The numbers are history: all is there."""
        self._total = self._done = self._total or 1
        self._parts = ()

    def print(self, text: str) -> None:
        """A line that stays, above the bar."""
        self._console.print(Text(text), soft_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        total, done = self._total, self._done
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(min_width=PHASE_WIDTH, no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(justify="right", no_wrap=True)
        row.add_column(justify="right", no_wrap=True)
        row.add_row(
            Text(self._head, style="bold"),
            ProgressBar(total=total or None, completed=done, pulse=not total),
            f"{done * 100 // total} %" if total else "",
            format_duration(monotonic() - self._began),
        )
        yield row
        if self._parts:
            yield Text(_fit(self._parts, options.max_width - 2), style="dim", no_wrap=True)
            yield Segment.line()


def _fit(parts: Sequence[str], width: int) -> str:
    """As many of `parts` as fit in a line, the first ones first."""
    line = ""
    for part in parts:
        longer = f"{line}{SEPARATOR}{part}" if line else f"  {part}"
        if len(longer) > width:
            break
        line = longer
    return line
