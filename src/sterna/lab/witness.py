"""The client beside the guests, as a process in a lab's client namespace, and what it saw.

Promises that the process ends with the block that started it, and that whatever is asked about a
guest is asked about one address: that of its number in the lab.
"""

from __future__ import annotations

import subprocess
import sys
import time
from bisect import bisect_right
from pathlib import Path
from types import TracebackType
from typing import Self

from sterna.clock import monotonic
from sterna.errors import LabFailed, LabProofFailed
from sterna.lab import heartbeat, netns
from sterna.lab.heartbeat import Beat, Felt
from sterna.lab.lab import Lab
from sterna.lab.links import CLIENT_ADDRESS
from sterna.lab.vm import BEAT_PORT, address

BOOT_S = 60.0  # a guest boots in 3 s under emulation; a loaded machine may take many times that
# The client stands for a machine of its own: it must not wait for the CPUs that the hosts share.
_SOONER = ("nice", "-n", "-10")
_END_S = 5.0
_READY_S = 10.0
_POLL_S = 0.1
_SETTLED_NS = 500_000_000  # what comes after a move belongs to it for so long: late traffic shows


class Witness:
    """Receives the beats of all guests of a lab while the `with` block runs."""

    def __init__(self, lab: Lab, record: Path | None = None) -> None:
        self._lab = lab
        self.record = record or lab.folder / f"beats-{time.time_ns()}"
        self._ready = self.record.with_name(f"{self.record.name}.ready")
        self._log = self.record.with_name(f"{self.record.name}.log")
        self._process: subprocess.Popen[bytes] | None = None
        self._beats: dict[str, list[Beat]] = {}
        self._seen = 0

    def __enter__(self) -> Self:
        listen = f"{CLIENT_ADDRESS}:{BEAT_PORT}"
        words = ["--listen", listen, "--record", str(self.record), "--ready-file", str(self._ready)]
        argv = [sys.executable, "-m", "sterna.lab.heartbeat", *words]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*netns.entering(self._lab.client_netns), *_SOONER, *argv],
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us: the client ends when we say so
            )
        try:
            self._wait_ready(self._process)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._end()

    def beats(self, number: int = 0) -> list[Beat]:
        """All beats of guest `number` so far, in order of receipt."""
        new = heartbeat.read(self.record, self._seen)
        self._seen += len(new)
        for source, beats in heartbeat.sources(new).items():
            self._beats.setdefault(source, []).extend(beats)
        return self._beats.get(address(number), [])

    def wait_beat(self, after_ns: int, number: int = 0, timeout_s: float = BOOT_S) -> Beat:
        """The first beat of that guest received after `after_ns` (as `time.time_ns`).

        Raises LabProofFailed if none comes in time.
        """
        deadline = monotonic() + timeout_s
        while True:
            beats = self.beats(number)
            first = bisect_right(beats, after_ns, key=lambda beat: beat.t_ns)
            if first < len(beats):
                return beats[first]
            if monotonic() > deadline:
                raise LabProofFailed(
                    vm=f"the guest at {address(number)}",
                    reason=f"it sent no beat for {timeout_s:g} s",
                    folder=self._lab.folder,
                )
            time.sleep(_POLL_S)

    def felt(self, start_ns: int, number: int = 0) -> Felt:
        """What that guest's users felt from `start_ns` until now, late traffic included.

        Waits until the guest is heard half a second from now, so that a window never ends within
        the silence that it is to measure.
        """
        end_ns = self.wait_beat(time.time_ns() + _SETTLED_NS, number).t_ns
        return heartbeat.measure(self.beats(number), start_ns, end_ns)

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = monotonic() + _READY_S
        while not self._ready.exists():
            if process.poll() is not None or monotonic() > deadline:
                words = self._log.read_text(errors="replace").splitlines()
                raise LabFailed(
                    lab=self._lab.name,
                    action="start the client of its guests",
                    reason=words[-1] if words else "it does not get ready",
                    fix=f"If it runs already, end what uses it, or: sterna lab down --name "
                    f"{self._lab.name}",
                )
            time.sleep(_POLL_S / 5)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
