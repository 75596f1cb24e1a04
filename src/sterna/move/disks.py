"""The disks of a running VM on their way: QEMU's mirrors from the source's images to the target's.

Promises: the guest's writes never wait for the target (background copy; if QEMU's main loop hangs
on a connection to the target, that is cut out of band within seconds); the source's images stay
complete, so that the guest can go on here until the very end; `drain` returns only when the target
has every byte.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from sterna import clock
from sterna.errors import BlockJobFailed, QMPError, QMPTimeout, Stalled
from sterna.model.disk import node_name
from sterna.model.move import DiskProgress, MoveWishes, Phase
from sterna.model.travel import Mirroring
from sterna.qemu.blocks import BlockJob, Blocks
from sterna.qemu.nodes import Options
from sterna.units import KIB

POLL_S = 0.1
# A healthy main loop answers within milliseconds. It may also be busy (the start of a migration
# takes 0.6 s per GiB under emulation), so the target is asked before anything is cut.
HANG_S = 1.0
STALL_S = (
    20.0  # not a byte for so long: the target is frozen or the link is dead; the guest runs on
)
DRAIN_STALL_S = 2.0  # the same while the guest stands still
DRAIN_POLL_S = 0.002  # every millisecond is the guest's
# As fine as guests write, so that a scattered write of 4 KiB costs 4 KiB on the wire; coarser for
# huge disks, whose bitmap is held in memory (2^26 bits are 8 MiB, and QEMU keeps a few of them).
GRANULARITY = 4 * KIB
MAX_BITS = 1 << 26


def granularity(size: int) -> int:
    """Bytes that one bit of a mirror's bitmap stands for, for a disk of `size` bytes."""
    found = GRANULARITY
    while size // found > MAX_BITS:
        found *= 2
    return found


@dataclass(slots=True)
class _One:
    """One mirror."""

    plan: Mirroring
    job: str
    node: str  # the target, opened here
    is_begun: bool = False
    seen: BlockJob | None = None

    @property
    def is_synced(self) -> bool:
        return self.seen is not None and self.seen.status == "ready"


@dataclass(slots=True)
class _Pace:
    """Since when nothing has moved, and how fast it did before."""

    done: int = -1
    moved_at: float = field(default_factory=clock.monotonic)
    samples: list[tuple[float, int]] = field(default_factory=list)

    def look(self, done: int, *, is_waiting: bool = False) -> float:
        """Seconds without any progress, and without a reason to wait."""
        now = clock.monotonic()
        if done != self.done or is_waiting:
            self.done, self.moved_at = done, now
        self.samples = [*self.samples[-10:], (now, done)]
        return now - self.moved_at

    @property
    def rate(self) -> float:
        """Bytes/s over the last samples."""
        if not self.samples:
            return 0.0
        (then, before), (last, after) = self.samples[0], self.samples[-1]
        return (after - before) / (last - then) if last > then else 0.0


class Mirrors:
    """All mirrors of one move. `run` in a task; `synced` is set once all are; then `drain` and `close`."""

    def __init__(  # noqa: PLR0913 - what, how, and whom to ask meanwhile
        self,
        blocks: Blocks,
        plans: Sequence[Mirroring],
        wishes: MoveWishes,
        *,
        report: Callable[[DiskProgress], None],
        probe: Callable[[], Awaitable[bool]],
        is_link_down: Callable[[], bool] = lambda: False,
        cut: Callable[[], None] = lambda: None,
    ) -> None:
        self.synced = asyncio.Event()
        self._blocks = blocks
        self._parallel = min(wishes.parallel_disks, len(plans))
        self._speed = self._split(wishes.bandwidth)
        self._report = report
        self._probe = probe  # whether the target's QEMU answers; within a second
        self._cut = cut  # what `yank` does not reach
        self._is_link_down = is_link_down  # then they wait for it, as long as it may be away
        self._began = clock.monotonic()
        self._pace = _Pace()
        self._all = [self._plan(plan) for plan in plans]

    @staticmethod
    def _plan(plan: Mirroring) -> _One:
        node = f"to-{plan.disk.name}"
        return _One(plan=plan, job=f"mirror-{node}", node=node)

    def _split(self, bandwidth: int | None) -> int:
        return max(1, bandwidth // self._parallel) if bandwidth else 0

    async def limit(self, bandwidth: int | None) -> None:
        """All together may use so many bytes/s from now on."""
        self._speed = self._split(bandwidth)
        for one in self._all:
            if one.is_begun:
                await self._blocks.set_speed(one.job, self._speed)

    @property
    def transferred(self) -> int:
        """Bytes copied so far."""
        return sum(one.seen.done for one in self._all if one.seen is not None)

    @property
    def drain_ms(self) -> float:
        """What is left now would take so long, with the guest standing still."""
        left = sum(one.seen.remaining for one in self._all if one.seen is not None)
        return left / self._pace.rate * 1000 if left and self._pace.rate else 0.0

    async def run(self, node: Callable[[str, str], Options]) -> None:
        """Begin and watch them, until cancelled. `node` makes the target of (node, export).

        Raises Stalled, BlockJobFailed (the target or an image failed), QMPError, QEMULost. Each
        leaves everything as it is: the caller abandons.
        """
        with self._blocks.session.listen("BLOCK_JOB_READY", "BLOCK_JOB_ERROR") as events:
            while True:
                await self._begin_more(node)
                await self._look()
                if all(one.is_synced for one in self._all):
                    self.synced.set()
                with contextlib.suppress(TimeoutError):
                    await events.get(POLL_S)

    async def _begin_more(self, node: Callable[[str, str], Options]) -> None:
        busy = sum(one.is_begun and not one.is_synced for one in self._all)
        waiting = [one for one in self._all if not one.is_begun]
        for one in waiting[: max(0, self._parallel - busy)]:
            disk = one.plan.disk
            one.is_begun = True  # from here on there may be something to abandon
            await self._open(node(one.node, disk.name))
            await self._blocks.mirror(
                one.job,
                node_name(disk.pool, disk.volume),
                one.node,
                sync="full" if one.plan.is_whole else "top",
                speed=self._speed,
                granularity=granularity(one.plan.offer.size),
            )

    async def _open(self, target: Options) -> None:
        """Open the target's disk. QEMU's main loop waits for the target in it, and its guest then
        waits for QEMU: a target that does not answer is cut, and tried again if its link was down.
        """
        while True:
            while self._is_link_down():
                self._report(self._sample(0))
                await asyncio.sleep(POLL_S)
            guard = asyncio.ensure_future(self._guard(str(target["node-name"])))
            try:
                return await self._blocks.add([target])
            except QMPError:
                if not self._is_link_down():
                    raise
            finally:
                guard.cancel()

    async def _guard(self, node: str) -> None:
        while True:
            await asyncio.sleep(HANG_S)
            if self._is_link_down() or not await self._probe():
                await self._blocks.yank(node)
                self._cut()

    async def _look(self) -> None:
        """Where they stand now; a main loop that hangs is freed."""
        await self._ask()
        begun = [one for one in self._all if one.is_begun]
        remaining = sum(one.seen.remaining for one in begun if one.seen is not None)
        idle = self._pace.look(self.transferred, is_waiting=self._is_link_down())
        if remaining and idle > STALL_S:
            raise Stalled(reason=f"the target's storage took no data for {STALL_S:g} s")
        self._report(self._sample(remaining))

    async def _ask(self) -> None:
        try:
            jobs = await self._blocks.jobs(timeout_s=HANG_S)
        except QMPTimeout as error:
            if await self._probe():
                return
            await self.cut()
            raise Stalled(
                reason="QEMU hung on its connection to the target's disks, which was cut"
            ) from error
        for one in self._all:
            if not one.is_begun:
                continue
            one.seen = found = jobs.get(one.job)
            if found is None or found.error or found.status == "concluded":
                reason = found.error if found is not None else ""
                raise BlockJobFailed(
                    job=one.job,
                    name=self._blocks.session.name,
                    reason=f"disk {one.plan.disk.name}: {reason or 'the copy ended early'}",
                )

    def _sample(self, remaining: int) -> DiskProgress:
        expected = [one.plan.offer.allocated for one in self._all if not one.is_begun]
        return DiskProgress(
            time_s=round(clock.monotonic() - self._began, 3),
            phase=Phase.DISKS,
            transferred=self.transferred,
            remaining=remaining + sum(expected),
            total=self.transferred + remaining + sum(expected),
            rate=round(self._pace.rate),
            disks={one.plan.disk.name: _share(one.seen) for one in self._all},
        )

    async def drain(self) -> None:
        """With the guest stopped: the last bytes. The target has all of them when this returns.

        Raises Stalled, BlockJobFailed, QEMULost; the source's images are whole in any case.
        """
        try:
            await self._drain()
        except (QMPTimeout, Stalled):
            await self.cut()
            raise

    async def close(self) -> None:
        """After `drain`: nothing here is connected to the target any more."""
        for one in self._all:
            await self._blocks.dismiss(one.job)
            await self._blocks.delete(one.node)
            one.is_begun = False

    async def _drain(self) -> None:
        pace = _Pace()
        for one in self._all:
            await self._blocks.set_speed(one.job, 0)
            await self._blocks.cancel(one.job, force=False)
        while not await self._is_drained():
            if pace.look(self.transferred) > DRAIN_STALL_S:
                raise Stalled(
                    reason=f"the target's storage took no data for {DRAIN_STALL_S:g} s "
                    f"while the guest stood still"
                )
            await asyncio.sleep(DRAIN_POLL_S)

    async def _is_drained(self) -> bool:
        jobs = await self._blocks.jobs(timeout_s=DRAIN_STALL_S)
        for one in self._all:
            one.seen = jobs.get(one.job)
            if one.seen is None or one.seen.error:
                reason = one.seen.error if one.seen is not None else "it is gone"
                raise BlockJobFailed(
                    job=one.job,
                    name=self._blocks.session.name,
                    reason=f"disk {one.plan.disk.name}: {reason}",
                )
        return all(one.seen is not None and one.seen.status == "concluded" for one in self._all)

    async def cut(self) -> None:
        """Out of band: break all connections to the target, which frees whatever waits for them."""
        for one in self._all:
            if one.is_begun:
                await self._blocks.yank(one.node)
        self._cut()  # not before: a connection that was not yanked is made anew

    async def abandon(self) -> None:
        """End them all, whatever the target does. Raises QMPTimeout, QEMULost."""
        await self.cut()
        for one in self._all:
            if one.is_begun:
                await self._blocks.abandon(one.job, one.node, is_remote=True)
                one.is_begun = False


def _share(job: BlockJob | None) -> float:
    if job is None or not job.total:
        return 0.0
    return round(job.done / job.total, 4)
