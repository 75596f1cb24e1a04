"""The carriers: what takes a VM's memory and disks from one host to another."""

from __future__ import annotations

from sterna.errors.family import Corrupt


class BadBlock(Corrupt):
    """What arrived is no block of pages: the peer is broken or hostile."""

    code = "carrier.bad-block"
    text = "what arrived over the link is not a block of memory pages: {reason}"
    hint = "Run the same version of sternad on both hosts"
