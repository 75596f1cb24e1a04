"""The client outside the guests: receives their beats, echoes them, and measures what users felt.

    python -m sterna.lab.heartbeat --listen IP:PORT --record FILE [--ready-file FILE]

Promises: every beat that reaches the socket is recorded with the kernel's receive time
(CLOCK_REALTIME, ns), so a slow client measures no pause that was not there; a record is on file at
most 50 ms after its beat. SIGTERM and SIGINT end it with everything written. The analysis is pure.

A record is the receive time, the sender's IPv4 address and port, and the beat as it came (see
`guest/wire.py`). A last record that is only partly there is left out when reading.

What `measure` means, in the window from `start_ns` to `end_ns` (both count as touched, so a guest
that falls silent for good is silent until the end of the window):

- gap: the longest time between two beats received one after the other. The guest did not run, or
  could not be heard.
- round-trip gap: the longest time between two advances of the number that the guest says was
  echoed to it. The same, and also: the guest ran and was heard, but could not hear.
- felt: the larger of the two, the longest time in which a user got no answer.
- lost: numbers missing between the lowest and the highest received of a boot.
- duplicated: beats received again. Those that are not the same beat (another guest time under the
  same number) are *twins*: two copies of one guest ran at once. Any twin is a disaster.
- reordered: beats that came after one with a higher number of the same boot.
- boots: the boot ids seen, in order: a second one is a reboot, or another guest at this address.
"""

import argparse
import contextlib
import itertools
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from sterna.lab.guest import wire

_PREFIX = struct.Struct("<Q4sI")
_BEAT_BYTES = wire.BEAT_STRUCT.size
_RECORD = struct.Struct("<Q4sI" + wire.BEAT_STRUCT.format[1:])
_FILE_MAGIC = b"STRNREC1"
_FLUSH_NS = 50_000_000  # a reader that watches a move sees it at most this much later
_RECEIVE_BYTES = 1 << 20  # some ten seconds of beats: the client may be descheduled, not deaf
_SO_TIMESTAMPNS = 35  # asm-generic/socket.h; not in Python's socket module
_TIMESPEC = struct.Struct("@ll")


class Beat(NamedTuple):
    """One beat as the client received it."""

    t_ns: int
    source: str
    boot_id: int
    seq: int
    mono_ns: int
    acked: int
    mem_writes: int
    mem_dirtied_bytes: int
    mem_bad: int
    durable_vda: int = 0
    durable_vdb: int = 0
    durable_vdc: int = 0
    durable_vdd: int = 0

    @property
    def durable(self) -> dict[str, int]:
        """By disk: the highest block whose write had returned in the guest."""
        return {disk: getattr(self, f"durable_{disk}") for disk in wire.DISKS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Felt:
    """What the users of one guest felt in a window; the module says what each number means."""

    felt_ms: float
    gap_ms: float
    roundtrip_gap_ms: float
    beats: int
    lost_beats: int
    duplicated_beats: int
    twins: int
    reordered: int
    boots: tuple[int, ...]


@dataclass(slots=True)
class _Boot:
    """What was seen of one boot so far."""

    seen: dict[int, int] = field(default_factory=dict)  # seq -> the guest's time of it
    highest: int = 0
    acked: int | None = None

    def lost(self) -> int:
        return max(self.seen) - min(self.seen) + 1 - len(self.seen) if self.seen else 0


def read(path: Path, skip: int = 0) -> list[Beat]:
    """All complete records of a file but the first `skip`, in the order of receipt.

    Raises ValueError on another file.
    """
    with path.open("rb") as file:
        if file.read(len(_FILE_MAGIC)) != _FILE_MAGIC:
            raise ValueError(f"{path} is not a record of beats")
        file.seek(skip * _RECORD.size, os.SEEK_CUR)
        data = file.read()
    whole = len(data) - len(data) % _RECORD.size
    return [_beat(fields) for fields in _RECORD.iter_unpack(data[:whole])]


def _beat(fields: tuple[int | bytes, ...]) -> Beat:
    time_ns, address, _port, _magic, _version, _kind, *rest = fields
    assert isinstance(address, bytes)
    return Beat(time_ns, socket.inet_ntoa(address), *rest)  # type: ignore[arg-type]


def sources(beats: Iterable[Beat]) -> dict[str, list[Beat]]:
    """The beats of each guest, by its address: `measure` wants those of one."""
    by_source: dict[str, list[Beat]] = {}
    for beat in beats:
        by_source.setdefault(beat.source, []).append(beat)
    return by_source


def _longest_ms(times: list[int]) -> float:
    return max(b - a for a, b in itertools.pairwise(times)) / 1e6


def measure(beats: Iterable[Beat], start_ns: int, end_ns: int) -> Felt:
    """What was felt of one guest from `start_ns` to `end_ns` (CLOCK_REALTIME, as `time.time_ns`).

    The beats must be in order of receipt and of one address, else ValueError: beats of one guest
    would hide the silence of another.
    """
    if end_ns < start_ns:
        raise ValueError("the window ends before it starts")
    window = [beat for beat in beats if start_ns <= beat.t_ns <= end_ns]
    if len({beat.source for beat in window}) > 1:
        raise ValueError("the beats of several guests: choose one with `sources`")
    boots: dict[int, _Boot] = {}
    heard, answered = [start_ns], [start_ns]
    duplicated = twins = reordered = 0
    for beat in window:
        boot = boots.setdefault(beat.boot_id, _Boot())
        heard.append(beat.t_ns)
        if boot.acked is None or beat.acked > boot.acked:
            if boot.acked is not None:
                answered.append(beat.t_ns)
            boot.acked = beat.acked
        if beat.seq in boot.seen:
            duplicated += 1
            twins += boot.seen[beat.seq] != beat.mono_ns
            continue
        reordered += beat.seq < boot.highest
        boot.seen[beat.seq] = beat.mono_ns
        boot.highest = max(boot.highest, beat.seq)
    # The kernel's clock may step back; a negative gap would hide nothing, an unsorted list could.
    gap = _longest_ms([*sorted(heard), end_ns])
    roundtrip = _longest_ms([*sorted(answered), end_ns])
    return Felt(
        felt_ms=max(gap, roundtrip),
        gap_ms=gap,
        roundtrip_gap_ms=roundtrip,
        beats=len(window),
        lost_beats=sum(boot.lost() for boot in boots.values()),
        duplicated_beats=duplicated,
        twins=twins,
        reordered=reordered,
        boots=tuple(boots),
    )


# ---- the client -----------------------------------------------------------------------------


def _receive(sock: socket.socket) -> Iterator[tuple[int, tuple[str, int], bytes] | None]:
    """Beats as they come, with the kernel's time; None when none came for a while."""
    space = socket.CMSG_SPACE(_TIMESPEC.size)
    recvmsg = sock.recvmsg
    while True:
        try:
            data, ancillary, _, sender = recvmsg(_BEAT_BYTES + 1, space)
        except BlockingIOError:
            yield None
            continue
        if len(data) != _BEAT_BYTES:
            continue
        magic, version, kind = wire.HEAD_STRUCT.unpack_from(data)[:3]
        if (magic, version, kind) != (wire.MAGIC, wire.VERSION, wire.KIND_BEAT):
            continue
        seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
        yield seconds * 1_000_000_000 + nanoseconds, sender, data


def _listening(address: tuple[str, int]) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
    # One system call a beat: the socket itself ends a silent wait, in time to flush.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, _FLUSH_NS // 1000))
    sock.bind(address)
    return sock


def run(address: tuple[str, int], record: Path, ready_file: Path | None = None) -> None:
    """Receives and echoes until SIGTERM or SIGINT; only for a process of its own."""
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    # The echo is the beat's head with another kind, in the first 8 bytes of every datagram.
    echo_start = wire.HEAD_STRUCT.pack(wire.MAGIC, wire.VERSION, wire.KIND_ECHO, 0, 0)[:8]
    head_bytes = wire.HEAD_STRUCT.size
    with _listening(address) as sock, record.open("ab", buffering=0) as file:
        if not file.tell():
            file.write(_FILE_MAGIC)
        if ready_file is not None:
            ready_file.write_text(f"{os.getpid()}\n")
        pending: list[bytes] = []
        flushed_ns = 0
        for received in _receive(sock):
            if received is not None:
                t_ns, sender, data = received
                # The network to the guest may be down: that is what the round trip is to show.
                with contextlib.suppress(OSError):
                    sock.sendto(echo_start + data[8:head_bytes], socket.MSG_DONTWAIT, sender)
                pending.append(_PREFIX.pack(t_ns, socket.inet_aton(sender[0]), sender[1]) + data)
            if pending and (received is None or not 0 <= t_ns - flushed_ns < _FLUSH_NS or stopping):
                file.write(b"".join(pending))
                pending.clear()
                flushed_ns = t_ns
            if stopping:
                return


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="sterna.lab.heartbeat", description="Client of beats.")
    parser.add_argument("--listen", required=True, metavar="IP:PORT")
    parser.add_argument("--record", required=True, type=Path, metavar="FILE")
    parser.add_argument("--ready-file", type=Path, metavar="FILE")
    options = parser.parse_args(argv)
    host, _, port = options.listen.rpartition(":")
    run((host, int(port)), options.record, options.ready_file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
