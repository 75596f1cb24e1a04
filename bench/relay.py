"""The codec of pages alone, without QEMU and link.

    python bench/relay.py [--mib 256] [--large-gib 64] [--level 1] [-o json]

GB/s of guest memory for each second of one processor, apart and together, by kind of page; memory
with a large guest, whose stream is made on the fly; what each MiB of cache gains for a guest that
writes eight bytes into each page of 600 MB in turn, half of which compress, over 1 Gbit/s.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import numpy as np
from numpy.typing import NDArray

import figures
import made_stream
from sterna.carrier.codec import Decoder, Encoder, pack, unpack

PAGE = made_stream.PAGE
MIB = 1 << 20
READ = 256 << 10  # bytes that are given to the encoder at once
STEPS = ("encode", "pack", "unpack", "apply")
LINK = 117e6  # bytes/s of payload on 1 Gbit/s
PIPE = 400e6  # bytes/s of guest pages that QEMU itself moves here, emulated
LAST = 0.1  # s: what is left when the guest is stopped takes this long

Pages = NDArray[np.uint8]


class Pipe:
    """Both ends, and the seconds of CPU of each step."""

    def __init__(self, cache_bytes: int, level: int) -> None:
        self.encoder = Encoder(cache_bytes=cache_bytes)
        self.decoder = Decoder(cache_bytes=cache_bytes)
        self.level = level
        self.seconds = dict.fromkeys(STEPS, 0.0)
        self.packed = 0

    def __call__(self, stream: bytes, *, check: bool = False) -> None:
        out = bytearray()
        view = memoryview(stream)
        for at in range(0, len(view), READ):
            left = view[at : at + READ]
            while left:  # what a socket does, at no cost to the encoder
                room = self.encoder.room()
                size = min(len(room), len(left))
                room[:size] = left[:size]
                left = left[size:]
                self._take(self._timed("encode", self.encoder.received, size), out, check)
        self._take(self._timed("encode", self.encoder.flush), out, check)
        if check and out != stream:
            raise SystemExit("what came out is not what went in")

    def _take(self, batches: list[Any], out: bytearray, check: bool) -> None:
        for batch in batches:
            block = self._timed("pack", pack, batch, self.level)
            self.encoder.stats.packed(block)
            self.packed += len(block)
            parts = self._timed("apply", self.decoder.apply, self._timed("unpack", unpack, block))
            if check:
                for piece in parts:
                    out += piece

    def _timed(self, step: str, function: Callable[..., Any], *arguments: Any) -> Any:
        begun = time.thread_time()
        result = function(*arguments)
        self.seconds[step] += time.thread_time() - begun
        return result


def record(pages: Pages) -> bytes:
    """All of a guest's pages, in one part."""
    first = made_stream.first("pc.ram", 0, pages[0].tobytes())
    return made_stream.part(first + made_stream.run(range(1, len(pages)), pages[1:]))


def kinds(count: int) -> Iterator[tuple[str, list[bytes], bytes]]:
    """Name, what both ends have seen before, the stream."""
    random, text = made_stream.random_pages(count), made_stream.text_pages(count)
    yield (
        "zero",
        [],
        made_stream.part(made_stream.first("pc.ram", 0, None) + made_stream.zeros(range(1, count))),
    )
    yield "unchanged", [record(random)], record(random)
    changed = random.copy()
    changed[:, 800:808] = made_stream.random_pages(count)[:, :8]
    yield "slightly changed", [record(random)], record(changed)
    mixed = made_stream.first("pc.ram", 0, None) + b"".join(
        made_stream.run([n], random[n : n + 1]) if n % 2 else made_stream.zeros([n])
        for n in range(1, count)
    )
    yield "every other zero", [made_stream.part(mixed)], made_stream.part(mixed)
    yield "text", [], record(text)
    yield "random", [], record(random)


def throughput(mib: int, cache_bytes: int, level: int) -> dict[str, Any]:
    count = mib * MIB // PAGE
    found = {}
    heading = "".join(f"{step:>9}" for step in (*STEPS, "all", "CPU/GiB", "wire %"))
    print(f"GB/s of guest memory per core\n{'':18}{heading}")
    for name, before, stream in kinds(count):
        pipe = Pipe(cache_bytes, level)
        pipe(made_stream.setup({"pc.ram": count * PAGE}))
        for earlier in before:
            pipe(earlier)
        pipe.seconds = dict.fromkeys(STEPS, 0.0)
        pipe.packed = 0
        pipe(stream)
        total = sum(pipe.seconds.values())
        row = {step: count * PAGE / 1e9 / taken for step, taken in pipe.seconds.items()}
        row["all"] = count * PAGE / 1e9 / total
        row["cpu_s_per_gib"] = total / (mib / 1024)
        row["wire_percent"] = 100 * pipe.packed / (count * PAGE)
        found[name] = row
        print(f"{name:18}" + "".join(f"{value:9.2f}" for value in row.values()))
        pipe(stream, check=True)
    return found


def large(gib: int, cache_bytes: int, level: int) -> dict[str, Any]:
    """A guest that is larger than any cache; half zero, the rest random, text and sent before."""
    step = 64 * MIB // PAGE
    pages = made_stream.random_pages(step)
    pages[::4] = made_stream.text_pages(len(pages[::4]))
    marks = pages.view(np.uint64)[:, 100]
    pipe = Pipe(cache_bytes, level)
    pipe(made_stream.setup({"pc.ram": gib << 30}))
    begun = time.monotonic()
    for number in range(0, gib << 30, 2 * step * PAGE):
        first = number // PAGE
        marks[:] = np.arange(first, first + step)
        pipe(
            made_stream.part(
                made_stream.first("pc.ram", first, None)
                + made_stream.run(range(first, first + step), pages)
                + made_stream.zeros(range(first + step, first + 2 * step))
            )
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    took = time.monotonic() - begun
    print(
        f"{gib} GiB guest, cache {cache_bytes // MIB} MiB: peak {peak // MIB} MiB for both ends "
        f"and the stream's maker, {sum(pipe.seconds.values()) / gib:.2f} CPU s/GiB, {took:.0f} s"
    )
    return {
        "gib": gib,
        "peak_bytes": peak,
        "cpu_s": pipe.seconds,
        "took_s": took,
        "packed_bytes": pipe.packed,
    }


def gain(caches: list[int], rates: list[float], level: int) -> list[dict[str, Any]]:
    """A move in rounds: each sends what was written while the one before was on its way."""
    print(f"{'cache':>6}{'rate':>6}{'rounds':>8}{'wire MB':>9}{'total s':>9}{'RSS MiB':>9}")
    found = []
    for rate, cache in itertools.product(rates, caches):
        row = one_move(cache * MIB, rate, level)
        found.append({"cache_mib": cache, "rate": rate, **row})
        print(
            f"{cache:6}{rate / 1e6:6.0f}{row['rounds']:8}{row['wire_bytes'] / 1e6:9.0f}"
            f"{row['total_s']:9.1f}"
        )
    return found


def one_move(cache_bytes: int, rate: float, level: int) -> dict[str, Any]:
    count = 600_000_000 // PAGE
    pages = made_stream.random_pages(count)
    pages[: count // 2] = made_stream.text_pages(count // 2)
    marks = pages.view(np.uint64)[:, 0]
    pipe = Pipe(cache_bytes, level)
    pipe(made_stream.setup({"pc.ram": 1 << 30}))
    total, cursor, dirty, rounds = 0.0, 0, np.arange(count), 0
    while len(dirty) * PAGE > LAST * PIPE and total < 40:
        before = pipe.packed
        for begin in range(0, len(dirty), 1 << 14):
            chunk = dirty[begin : begin + (1 << 14)]
            first = made_stream.first("pc.ram", int(chunk[0]), pages[chunk[0]].tobytes())
            pipe(made_stream.part(first + made_stream.run(chunk[1:].tolist(), pages[chunk[1:]])))
        took = max((pipe.packed - before) / LINK, len(dirty) * PAGE / PIPE)
        total += took
        rounds += 1
        written = int(took * rate / PAGE)
        marks[(cursor + np.arange(min(written, count))) % count] += np.uint64(1)
        dirty = np.sort((cursor + np.arange(min(written, count))) % count)
        cursor = (cursor + written) % count
    return {"rounds": rounds, "wire_bytes": pipe.packed, "total_s": total}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=256, help="guest memory of each kind")
    parser.add_argument("--cache", type=int, default=512, help="MiB on each end")
    parser.add_argument(
        "--caches", type=int, nargs="*", default=[0, 64, 128, 256, 384, 512, 640, 768]
    )
    parser.add_argument("--rates", type=float, nargs="*", default=[100e6, 400e6])
    parser.add_argument("--large-gib", type=int, default=64)
    parser.add_argument("--level", type=int, default=1)
    parser.add_argument("--only-large", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    cache = options.cache * MIB
    if options.only_large:
        large(options.large_gib, cache, options.level)
        return 0
    found: dict[str, Any] = {"throughput": throughput(options.mib, cache, options.level)}
    if options.large_gib:  # in a process of its own, whose memory is its own
        command = [sys.executable, __file__, "--only-large", "--cache", str(options.cache)]
        subprocess.run([*command, "--large-gib", str(options.large_gib)], check=True)
    if options.caches:
        found["gain"] = gain(options.caches, options.rates, options.level)
    figures.write("relay", {"qemu": {"version": None, "accel": None}}, options, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
