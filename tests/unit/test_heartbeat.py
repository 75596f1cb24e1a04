"""What users felt, from made-up beats; and the client itself over the loopback interface."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.lab import heartbeat
from sterna.lab.guest import wire
from sterna.lab.heartbeat import Beat, measure

MS = 1_000_000
START = 1_700_000_000_000_000_000


def beat(ms: float, seq: int, *, acked: int | None = None, boot: int = 1, mono: int | None = None):
    return Beat(
        t_ns=START + int(ms * MS),
        source="10.0.0.9",
        boot_id=boot,
        seq=seq,
        mono_ns=seq * MS if mono is None else mono,
        acked=seq - 1 if acked is None else acked,
        mem_writes=0,
        mem_dirtied_bytes=0,
        mem_bad=0,
    )


def felt(beats, end_ms: float = 100):
    return measure(beats, START, START + int(end_ms * MS))


def steady(first: int, last: int):
    return [beat(ms, ms) for ms in range(first, last + 1)]


def test_a_steady_guest_is_felt_for_one_period_only():
    seen = felt(steady(0, 100))
    assert (seen.felt_ms, seen.lost_beats, seen.duplicated_beats) == (1, 0, 0)
    assert seen.beats == 101


def test_a_pause_is_the_gap_between_the_beats_around_it():
    paused = [*steady(0, 20), *(beat(ms + 30, ms) for ms in range(21, 70))]
    seen = felt(paused)
    assert seen.gap_ms == 31
    assert seen.felt_ms == 31
    assert seen.lost_beats == 0


def test_beats_that_never_came_are_lost_and_felt():
    seen = felt([b for b in steady(0, 100) if not 40 <= b.seq < 50])
    assert seen.lost_beats == 10
    assert seen.gap_ms == 11


def test_a_guest_that_hears_nothing_is_felt_though_it_beats():
    deaf = [beat(ms, ms, acked=min(ms, 30) if ms < 60 else ms) for ms in range(1, 101)]
    seen = felt(deaf)
    assert seen.gap_ms == 1
    assert seen.roundtrip_gap_ms == 30
    assert seen.felt_ms == 30


def test_a_guest_that_falls_silent_is_silent_until_the_end_of_the_window():
    assert felt(steady(0, 40)).felt_ms == 60


def test_no_beat_at_all_is_felt_for_the_whole_window():
    seen = felt([])
    assert (seen.felt_ms, seen.beats, seen.boots) == (100, 0, ())


def test_beats_outside_the_window_do_not_count():
    beats = [beat(-500, 1), *steady(2, 100), beat(900, 5000)]
    assert felt(beats).lost_beats == 0


def test_a_beat_received_twice_is_duplicated_but_no_twin():
    seen = felt([*steady(0, 50), beat(50.5, 50), *steady(51, 100)])
    assert (seen.duplicated_beats, seen.twins, seen.lost_beats) == (1, 0, 0)


def test_one_number_with_two_guest_times_shows_two_copies_of_a_guest():
    twins = [beat(ms + 0.5, ms, mono=ms * MS + 77) for ms in range(50, 60)]
    seen = felt(sorted([*steady(0, 100), *twins]))
    assert seen.twins == 10
    assert seen.boots == (1,)


def test_a_reboot_shows_as_a_second_boot_and_its_numbers_do_not_mix():
    reborn = [beat(60 + ms, ms, boot=2) for ms in range(1, 41)]
    seen = felt([*steady(0, 40), *reborn])
    assert seen.boots == (1, 2)
    assert (seen.lost_beats, seen.duplicated_beats, seen.reordered) == (0, 0, 0)
    assert seen.gap_ms == 21


def test_an_overtaken_beat_is_reordered_and_not_lost():
    beats = [*steady(0, 9), beat(10, 11), beat(11, 10), *steady(12, 100)]
    seen = felt(beats)
    assert (seen.reordered, seen.lost_beats) == (1, 0)


def test_the_beats_of_two_guests_must_be_told_apart_first():
    other = [b._replace(source="10.0.0.8") for b in steady(0, 50)]
    both = sorted([*steady(0, 100), *other])
    with pytest.raises(ValueError, match="several guests"):
        felt(both)
    by_guest = heartbeat.sources(both)
    assert felt(by_guest["10.0.0.8"]).felt_ms == 50
    assert felt(by_guest["10.0.0.9"]).felt_ms == 1


@given(st.sets(st.integers(1, 99)), st.data())
def test_whatever_is_lost_and_doubled_is_counted_exactly(lost, data):
    kept = [b for b in steady(0, 100) if b.seq not in lost]
    doubled = data.draw(st.lists(st.sampled_from(kept), unique=True))
    seen = felt(sorted([*kept, *doubled]))
    assert seen.lost_beats == len(lost)
    assert seen.duplicated_beats == len(doubled)
    longest = max((b.seq - a.seq for a, b in itertools.pairwise(kept)), default=0)
    assert seen.gap_ms == longest
    assert seen.felt_ms >= seen.gap_ms


def test_the_c_header_and_the_structs_have_one_source():
    header = wire.c_header()
    assert wire.BEAT_STRUCT.size == 96
    assert all(f" {name};" in header for name, _ in (*wire.BEAT, *wire.BLOCK))


DURABLE = (5, 6, 0, 0)


def _datagram(seq: int, acked: int) -> bytes:
    return wire.BEAT_STRUCT.pack(
        wire.MAGIC, wire.VERSION, wire.KIND_BEAT, 77, seq, seq * MS, acked, 0, 0, 0, *DURABLE
    )


def _wait_for(path: Path, client: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert client.poll() is None, "the client ended"
        assert time.monotonic() < deadline, f"no {path}"
        os.sched_yield()


def test_the_client_echoes_each_beat_and_records_it_when_told_to_stop(tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    record, ready = tmp_path / "beats", tmp_path / "ready"
    argv = ["-m", "sterna.lab.heartbeat", "--listen", f"127.0.0.1:{port}"]
    argv += ["--record", str(record), "--ready-file", str(ready)]
    before = time.time_ns()
    client = subprocess.Popen([sys.executable, *argv])
    try:
        _wait_for(ready, client)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as guest:
            guest.settimeout(10)
            guest.connect(("127.0.0.1", port))
            guest.send(b"noise")
            for seq in range(1, 51):
                guest.send(_datagram(seq, seq - 1))
                echo = wire.HEAD_STRUCT.unpack(guest.recv(100))
                assert echo == (wire.MAGIC, wire.VERSION, wire.KIND_ECHO, 77, seq)
        client.send_signal(signal.SIGTERM)
        assert client.wait(10) == 0
    finally:
        client.kill()
        client.wait()
    beats = heartbeat.read(record)
    assert [(b.seq, b.acked, b.boot_id, b.source) for b in beats] == [
        (seq, seq - 1, 77, "127.0.0.1") for seq in range(1, 51)
    ]
    assert beats[0].durable == dict(zip(wire.DISKS, DURABLE, strict=True))
    assert all(before <= b.t_ns <= time.time_ns() for b in beats)
    record.write_bytes(record.read_bytes()[:-5])
    assert len(heartbeat.read(record)) == 49
    assert measure(beats, beats[0].t_ns, beats[-1].t_ns).lost_beats == 0


def test_another_file_is_not_taken_for_a_record(tmp_path):
    (tmp_path / "x").write_bytes(b"something else")
    with pytest.raises(ValueError, match="not a record"):
        heartbeat.read(tmp_path / "x")
