"""Block nodes: how QEMU is told to open an image, on its command line or while it runs.

Every image is two nodes: `NODE` reads the format, `NODE-file` the file. The format is never guessed
(a guest could write the header of another one into a raw disk, and read the host's files), and
what a qcow2 image rests on is named by us, never taken from its header.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sterna.model.disk import ImageFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One image of a chain, where this host has it."""

    node: str
    path: Path
    format: ImageFormat


Options = dict[str, Any]  # arguments of blockdev-add


def file_of(node: str) -> str:
    """Name of the node below a format node."""
    return f"{node}-file"


def image(
    layer: Layer, *, backing: str | None, read_only: bool = False, is_frozen: bool = False
) -> tuple[Options, Options]:
    """The file's node and the format's. `backing`: the node below, for a qcow2 image.

    A frozen image is read-only, but may become writable for as long as a merge writes into it.
    """
    file: Options = {
        "driver": "file",
        "node-name": file_of(layer.node),
        "filename": str(layer.path),
        "discard": "unmap",
        # Opened for reading until somebody writes, if anybody ever does.
        **({"auto-read-only": True} if is_frozen else {"read-only": read_only}),
    }
    format_node: Options = {
        "driver": layer.format,
        "node-name": layer.node,
        "file": file_of(layer.node),
        "read-only": read_only or is_frozen,
        "discard": "unmap",
    }
    if layer.format == "qcow2":
        format_node["backing"] = backing
    return file, format_node


def chain(layers: Sequence[Layer], *, read_only: bool) -> list[Options]:
    """Nodes of a whole chain (`layers`: the top first), in the order in which to add them."""
    nodes: list[Options] = []
    below: str | None = None
    for depth, layer in reversed(list(enumerate(layers))):
        nodes += image(layer, backing=below, read_only=read_only, is_frozen=depth > 0)
        below = layer.node
    return nodes
