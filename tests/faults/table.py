"""The fault table: every phase of a move with every fault, one row each.

    sudo .venv/bin/python tests/faults/table.py [--cell PHASE/FAULT …] [--json FILE]
        [--workers 2] [--logs FOLDER]

Ends with exit status 1 if a row is bad; what its daemons said is then in FOLDER. A cell's name may have wildcards: `memory/*`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from queue import Empty
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from cells import CELLS, Cell, Row, run
from stage import Bad, Stage, faulty_daemons

from sterna.errors import SternaError


class Player:
    """Plays cells on one stage; one that may be dirty is replaced."""

    def __init__(self, logs: Path) -> None:
        self._stage: Stage | None = None
        self._logs = logs

    def play(self, cell: Cell) -> Row:
        if cell.not_applicable:
            return Row(cell, "n/a", cell.not_applicable)
        if self._stage is None:
            self._stage = Stage()
        row = run(self._stage, cell)
        if row.verdict == "BAD":
            self._keep_logs(cell)
            self.close()
        return row

    def _keep_logs(self, cell: Cell) -> None:
        """Before the lab goes: what its daemons said."""
        place = self._logs / cell.name.replace("/", "-")
        place.mkdir(parents=True, exist_ok=True)
        assert self._stage is not None
        for host in self._stage.lab.hosts:
            (place / f"{host.name}.log").write_bytes(host.log.read_bytes())
            with contextlib.suppress(SternaError):
                found = host.client.get("/v1/operations", {"limit": 4})
                lines = [host.client.get(f"/v1/operations/{one['id']}/log") for one in found]
                text = json.dumps([*found, *lines, host.client.get("/v1/vms")], indent=1)
                (place / f"{host.name}.json").write_text(text)

    def close(self) -> None:
        stage, self._stage = self._stage, None
        if stage is not None:
            stage.close()


def work(cells: Any, rows: Any, logs: Path) -> None:
    player = Player(logs)
    with faulty_daemons():
        try:
            while True:
                try:
                    cell = cells.get(timeout=0.2)
                except Empty:
                    return
                try:
                    rows.put(player.play(cell))
                except Exception as error:  # noqa: BLE001 - a row for every cell
                    rows.put(Row(cell, "BAD", f"{type(error).__name__}: {error}"))
                    with contextlib.suppress(Exception):
                        player.close()
        finally:
            with contextlib.suppress(Bad, SternaError):
                player.close()


def play_all(cells: list[Cell], workers: int, logs: Path) -> Iterator[Row]:
    """Rows as they come."""
    context = multiprocessing.get_context("spawn")
    todo, rows = context.Queue(), context.Queue()
    for cell in cells:
        todo.put(cell)
    processes = [context.Process(target=work, args=(todo, rows, logs)) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        for _ in cells:
            yield rows.get()
    finally:
        for process in processes:
            process.join()


def line(row: Row) -> str:
    felt = f"{row.felt_ms:6.0f} ms {row.wrote_ms:6.0f} ms" if row.felt_ms else " " * 19
    seconds = f"{row.seconds:5.1f} s" if row.seconds else " " * 7
    said = row.said if len(row.said) <= 150 else row.said[:149] + "…"
    return (
        f"{row.verdict:4}  {row.cell.phase:13}  {row.cell.fault:20}  {seconds} {felt}  {row.outcome}"
        + (f"\n{'':76}“{said}”" if said else "")
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cell", action="append", default=[], metavar="PHASE/FAULT")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--logs", type=Path, default="/tmp/sterna-faults", metavar="FOLDER")
    options = parser.parse_args()
    wanted = options.cell or ["*"]
    chosen = [cell for cell in CELLS if any(fnmatch(cell.name, one) for one in wanted)]
    if not chosen:
        parser.error(f"no cell is called {' or '.join(wanted)}")
    began = time.monotonic()
    found: list[Row] = []
    for row in play_all(chosen, min(options.workers, len(chosen)), options.logs):
        found.append(row)
        print(line(row), flush=True)
    took = time.monotonic() - began
    order = {cell: number for number, cell in enumerate(chosen)}
    found.sort(key=lambda row: order[row.cell])
    print(
        f"\n{'':6}{'phase':13}  {'fault':20}  {'took':>7} {'not heard':>9} {'a write':>9}  outcome"
    )
    for row in found:
        print(line(row))
    counts = {
        verdict: sum(row.verdict == verdict for row in found) for verdict in ("good", "BAD", "n/a")
    }
    print(
        f"\n{counts['good'] + counts['BAD']} cells in {took / 60:.1f} minutes: {counts['good']} good, "
        f"{counts['BAD']} bad; {counts['n/a']} do not apply"
    )
    if options.json:
        rows = [{**asdict(row), "cell": row.cell.name} for row in found]
        options.json.write_text(
            json.dumps({"seconds": took, **counts, "rows": rows}, indent=1) + "\n"
        )
    return 1 if counts["BAD"] else 0


if __name__ == "__main__":
    sys.exit(main())
