"""The one description of what the guest sends and writes: beats, echoes and disk blocks.

Promises that Python and C agree: the C header is generated from the tables below when the guest is
built (`c_header`), and `struct` formats are made from the same tables. All numbers are little
endian and nothing is padded. A change of any table needs a new `VERSION`.

A *beat* is one UDP datagram from the guest to the client, about every millisecond. `seq` counts
the beats that the guest sent since boot, from 1, so a missing number is a lost beat and never a
skipped tick. An *echo* is the first three fields of a beat, with its own kind, sent back by the
client; the guest reports the highest echo it saw as `acked`.

A *block* is 4096 bytes of one of the guest's disks: the header, then bytes that follow from `seq`
and `disk`, the position of its disk in `DISKS`: a block of another disk is damage. Block `seq` lies
in slot `(seq - 1) % slots`, the slots being the first blocks of the disk. `first` is the lowest
number written with this number of slots: a log of another size is stale, not damaged. `crc` is
CRC-32 (as in zlib) of the whole block with the field itself zero.
"""

import struct

VERSION = 2
PERIOD_NS = 1_000_000  # one beat a millisecond: the resolution of every pause we report
DISKS = ("vda", "vdb", "vdc", "vdd")  # as the guest names them; each has a log of its own
BLOCK_BYTES = 4096  # a page, and the largest logical block size of common disks
PAGE_BYTES = 4096

MAGIC = 0x4E525453  # "STRN"
BLOCK_MAGIC = 0x314B4C424E525453  # "STRNBLK1"
KIND_BEAT = 1
KIND_ECHO = 2

HEAD = (("magic", "I"), ("version", "H"), ("kind", "H"), ("boot_id", "Q"), ("seq", "Q"))
BEAT = (
    *HEAD,
    ("mono_ns", "Q"),  # the guest's CLOCK_MONOTONIC when it sent the beat
    ("acked", "Q"),  # highest seq whose echo came back
    ("mem_writes", "Q"),  # pages written by the memory workload since boot
    ("mem_dirtied_bytes", "Q"),  # whole pages, in bytes, of the workload that runs now
    ("mem_bad", "Q"),  # pages found wrong, ever: anything but 0 is corruption
    *((f"durable_{disk}", "Q") for disk in DISKS),  # highest block whose write has returned
)
BLOCK = (
    ("magic", "Q"),
    ("boot_id", "Q"),
    ("seq", "Q"),
    ("slots", "Q"),
    ("first", "Q"),
    ("crc", "I"),
    ("version", "H"),
    ("disk", "H"),
)

_C_TYPES = {"H": "uint16_t", "I": "uint32_t", "Q": "uint64_t"}


def _struct(fields: tuple[tuple[str, str], ...]) -> struct.Struct:
    return struct.Struct("<" + "".join(code for _, code in fields))


HEAD_STRUCT = _struct(HEAD)
BEAT_STRUCT = _struct(BEAT)
BLOCK_STRUCT = _struct(BLOCK)
CRC_OFFSET = struct.calcsize("<QQQQQ")


def c_header() -> str:
    """The same layouts for C, as the text of `wire.h`."""
    lines = ["/* Generated from wire.py: change it there. */", "#include <stdint.h>"]
    numbers = {
        "WIRE_VERSION": VERSION,
        "WIRE_MAGIC": MAGIC,
        "WIRE_BLOCK_MAGIC": BLOCK_MAGIC,
        "WIRE_BEAT": KIND_BEAT,
        "WIRE_ECHO": KIND_ECHO,
        "PERIOD_NS": PERIOD_NS,
        "DISKS": len(DISKS),
        "BLOCK_BYTES": BLOCK_BYTES,
        "PAGE_BYTES": PAGE_BYTES,
    }
    for name, value in numbers.items():
        lines.append(f"#define {name} {value}{'UL' if value >= 1 << 31 else ''}")
    for name, fields in (("echo", HEAD), ("beat", BEAT), ("block", BLOCK)):
        lines.append(f"struct wire_{name} {{")
        lines += [f"    {_C_TYPES[code]} {field};" for field, code in fields]
        lines.append("} __attribute__((packed));")
    return "\n".join(lines) + "\n"
