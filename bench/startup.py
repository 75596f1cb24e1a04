"""What `sterna` costs to start: CPU milliseconds (user + system) of real processes.

    python bench/startup.py [--runs 15] [-o json]

`vm list` talks to a real HTTP server on a Unix socket, whose CPU is not counted. Modules are
compiled before, as an installer does it. The limit is for the median; an empty Python and
`import click` beside it tell how much of it is ours. Exits 1 when a median is over the limit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from standin import Standin

LIMIT_MS = 100.0
PYTHON = (sys.executable, "-c")
SCRIPT = Path(sys.executable).with_name("sterna")
CASES = {
    "python": (*PYTHON, "pass"),
    "import click": (*PYTHON, "import click"),
    "import click, http.client": (*PYTHON, "import click, http.client"),
    "sterna --version": (str(SCRIPT), "--version"),
    "sterna --help": (str(SCRIPT), "--help"),
    "sterna vm --help": (str(SCRIPT), "vm", "--help"),
    "sterna move --help": (str(SCRIPT), "move", "--help"),
    "sterna vm list": (str(SCRIPT), "vm", "list"),
    "sterna vm list -o json": (str(SCRIPT), "vm", "list", "-o", "json"),
    "completion of a VM's name": (str(SCRIPT),),
}
COMPLETION = {
    "_STERNA_COMPLETE": "bash_complete",
    "COMP_WORDS": "sterna vm show ",
    "COMP_CWORD": "3",
}


def cost_ms(command: tuple[str, ...], environment: dict[str, str]) -> float:
    """CPU of one run; wait4 counts exactly this child."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return (usage.ru_utime + usage.ru_stime) * 1000


def measure(runs: int) -> list[dict[str, object]]:
    """Runs are interleaved, so that a busy moment of the machine hits every case."""
    with tempfile.TemporaryDirectory() as folder:
        daemon = Standin(Path(folder) / "sternad.sock")
        for number in range(20):
            daemon.add_vm(f"vm-{number:02}")
        daemon.start()
        environment = {**os.environ, "STERNA_HOST": daemon.url, "PYTHONPYCACHEPREFIX": folder}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        costs: dict[str, list[float]] = {name: [] for name in CASES}
        try:
            for command in CASES.values():
                cost_ms(command, environment | (COMPLETION if len(command) == 1 else {}))
            for _ in range(runs):
                for name, command in CASES.items():
                    extra = COMPLETION if len(command) == 1 else {}
                    costs[name].append(cost_ms(command, environment | extra))
        finally:
            daemon.close()
    return [
        {"case": name, "min_ms": round(min(values), 1),
         "median_ms": round(statistics.median(values), 1), "limit_ms": LIMIT_MS}
        for name, values in costs.items()
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("-o", "--output", choices=["table", "json"], default="table")
    arguments = parser.parse_args()
    results = measure(arguments.runs)
    if arguments.output == "json":
        print(json.dumps({"benchmark": "startup", "runs": arguments.runs, "results": results}))
    else:
        print(f"{'CASE':<28} {'MIN':>8} {'MEDIAN':>8}   CPU ms, {arguments.runs} runs")
        for row in results:
            print(f"{row['case']:<28} {row['min_ms']:>8} {row['median_ms']:>8}")
    return int(any(row["median_ms"] > LIMIT_MS for row in results))  # type: ignore[operator]


if __name__ == "__main__":
    sys.exit(main())
