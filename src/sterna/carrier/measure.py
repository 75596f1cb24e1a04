"""What the codec did, counted by kind of page."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sterna.carrier.batch import Batch, Content
from sterna.carrier.blocks import HEAD, sizes
from sterna.carrier.segments import PAGE, Segment

KINDS = ("zero", "unchanged", "delta", "duplicate", "compressed", "raw", "other")


def _zeros() -> dict[str, int]:
    return dict.fromkeys(KINDS, 0)


@dataclass(slots=True)
class CodecStats:
    """Since the start. `feed` counts into some fields, `packed` into others."""

    stream_bytes: int = 0  # of QEMU's stream
    guest_bytes: int = 0  # of guest memory that the stream stands for, zero pages included
    packed_bytes: int = 0
    pages: dict[str, int] = field(default_factory=_zeros)
    encoded: dict[str, int] = field(default_factory=_zeros)  # bytes

    def count(self, batch: Batch) -> None:
        """A batch was made."""
        kinds = np.bincount(batch.contents, minlength=len(Content))
        zeros = int(batch.counts[batch.kinds == Segment.ZEROS].sum())
        self.guest_bytes += (len(batch.contents) + zeros) * PAGE
        self.pages["zero"] += zeros + int(kinds[Content.ZERO])
        self.pages["unchanged"] += int(kinds[Content.SAME])
        self.pages["delta"] += int(kinds[Content.SPARSE] + kinds[Content.DENSE])
        self.pages["duplicate"] += int(kinds[Content.COPY] + kinds[Content.TWIN])

    def packed(self, block: bytes) -> None:
        """A block was made of a batch. The plan counts as differences, the head as other."""
        parts = sizes(block)
        self.packed_bytes += len(block)
        self.pages["compressed"] += parts["fresh"][0] // PAGE
        self.pages["raw"] += parts["plain"][0] // PAGE
        self.encoded["delta"] += parts["plan"][1] + parts["dense"][1]
        self.encoded["compressed"] += parts["fresh"][1]
        self.encoded["raw"] += parts["plain"][1]
        self.encoded["other"] += parts["literals"][1] + HEAD.size
