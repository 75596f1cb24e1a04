"""Migration capabilities of each end, and the combinations that would lose the VM.

QEMU 7.2's own checker accepts some sets and then loses the guest (seen by running them); a set is
therefore never given to QEMU unless it passed `refuse_losing`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from sterna.errors import QEMUUnsupported

# Always: without return-path a target that fails to load still lets the source say "completed";
# without pause-before-switchover there is no moment at which everything can still be undone.
SOURCE = frozenset({"events", "return-path", "pause-before-switchover"})
# late-block-activate: the target takes the image locks when it is continued, not when it loads.
TARGET = frozenset({"events", "return-path", "late-block-activate"})
# On both ends when a disk has dirty bitmaps that are to arrive with it.
BITMAPS = "dirty-bitmaps"

# On both ends before a migration that may have to end in post-copy.
POSTCOPY = "postcopy-ram"

# What each pair does on a QEMU that accepts it, and from when on it is safe, by a feature to ask
# for; an empty feature: never.
_LOSING: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"multifd", "postcopy-ram"}), "the target's QEMU aborts when post-copy begins"),
    (frozenset({"multifd", "xbzrle"}), "xbzrle silently does nothing"),
    (frozenset({"release-ram", "postcopy-ram"}), "a broken post-copy cannot be recovered"),
    (frozenset({"block"}), "the old block migration copies disks that are shared"),
    (frozenset({"x-colo"}), "it is not a move"),
    (frozenset({"x-ignore-shared"}), "guest memory would not travel"),
)


def refuse_losing(capabilities: Collection[str], host: str) -> None:
    """Raises QEMUUnsupported for a set that QEMU may accept and then lose the VM with."""
    wanted = frozenset(capabilities)
    for losing, harm in _LOSING:
        if losing <= wanted:
            raise QEMUUnsupported(
                host=host,
                reason=f"{' with '.join(sorted(losing))} is not safe: {harm}",
                fix="Move without it",
            )


def settings(wanted: frozenset[str], known: Collection[str], host: str) -> Mapping[str, bool]:
    """Every capability that this QEMU knows, on or off: nothing is left over from a former move.

    Raises QEMUUnsupported if it lacks one that is wanted.
    """
    refuse_losing(wanted, host)
    if missing := wanted - frozenset(known):
        raise QEMUUnsupported(
            host=host,
            reason=f"it has no migration capability {', '.join(sorted(missing))}",
            fix="Install QEMU 7.2 or newer",
        )
    return {name: name in wanted for name in sorted(known)}


def bitmap_mapping(node: str, disk: str, bitmaps: Collection[str]) -> dict[str, object]:
    """One entry of `block-bitmap-mapping`: a disk is called by its name on the way."""
    return {
        "node-name": node,
        "alias": disk,
        "bitmaps": [{"name": name, "alias": name} for name in bitmaps],
    }
