"""The memory phase on the source: rounds of pre-copy until QEMU stops the guest for the last one.

Promises: returns only with the guest stopped in QEMU's `pre-switchover`, where all can still be
undone; a target that takes no data, or a QEMU whose main loop hangs, ends in an error and never in
an endless wait; states that this version does not know count as "in progress".
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sterna import clock
from sterna.errors import QMPError, QMPTimeout, Stalled, SternaError
from sterna.model.move import MemoryProgress, MoveWishes, Phase
from sterna.qemu.commands import MigrationInfo, Monitor
from sterna.qemu.session import Events

UNLIMITED = 16 << 30  # bytes/s; QEMU's default would be 128 MiB/s
POLL_S = 0.1
STALL_S = 20.0  # no byte taken for so long: the target is frozen or the link is dead
PING_S = 5.0  # QEMU's main loop answers within milliseconds when it is well
FIGURES_TRIES = 20  # in all one second; seen: one in forty moves needs a second look
CANCEL_S = 5.0  # from migrate_cancel to the end; then yank
# The guest is stopped when the rest would take so long. It starts at half of the pause allowed,
# because device state, ownership and the network need their share of it too, and becomes the whole
# when two rounds have gained nothing.
FIRST_SHARE = 0.5
PATIENCE_ROUNDS = 2

ENDED = frozenset({"completed", "failed", "cancelled"})


@dataclass(slots=True, kw_only=True)
class Pass:
    """What is known of a running migration; filled by events and polls."""

    began: float = field(default_factory=clock.monotonic)
    stopped: float | None = None  # monotonic time of the guest's stop
    info: MigrationInfo | None = None
    best_remaining: int | None = None
    rounds_without_gain: int = 0
    last_round: int = 0
    last_transferred: int = -1
    moved_at: float = field(default_factory=clock.monotonic)
    is_whole_limit: bool = False
    samples: list[tuple[float, int]] = field(default_factory=list)


async def prepare(
    qmp: Monitor,
    wishes: MoveWishes,
    capabilities: dict[str, bool],
    bitmaps: Sequence[dict[str, object]] = (),
) -> None:
    """Set capabilities and limits on the source. `bitmaps`: the `block-bitmap-mapping`."""
    await qmp.migrate_set_capabilities(capabilities)
    await qmp.migrate_set_parameters(
        **{
            "max-bandwidth": wishes.bandwidth or UNLIMITED,
            "downtime-limit": max(1, int(wishes.max_downtime_ms * FIRST_SHARE)),
            **({"block-bitmap-mapping": list(bitmaps)} if bitmaps else {}),
        }
    )


async def precopy(
    qmp: Monitor,
    uri: str,
    wishes: MoveWishes,
    report: Callable[[MemoryProgress], None],
) -> Pass:
    """Send memory to `uri` until the guest is stopped in pre-switchover.

    Raises Stalled (no progress, or with QEMU's own words if the migration failed), QEMULost. The
    caller undoes with `abort`.
    """
    state = Pass()
    with qmp.session.listen("MIGRATION", "STOP") as events:
        await qmp.migrate(uri)
        while True:
            try:
                event = await events.get(POLL_S)
            except TimeoutError:
                event = None
            if event is not None:
                if event["event"] == "STOP":
                    state.stopped = clock.monotonic()
                    continue
                status = str(event["data"]["status"])
            else:
                status = await _poll(qmp, state, wishes, report)
            if status == "pre-switchover":
                state.stopped = state.stopped or clock.monotonic()
                return state
            if status in ENDED:
                info = await qmp.query_migrate()
                raise Stalled(reason=info.error_desc or f"QEMU says the migration is {status}")


async def _poll(
    qmp: Monitor, state: Pass, wishes: MoveWishes, report: Callable[[MemoryProgress], None]
) -> str:
    info = state.info = await qmp.query_migrate(timeout_s=PING_S)
    now = clock.monotonic()
    if info.transferred != state.last_transferred:
        state.last_transferred, state.moved_at = info.transferred, now
    elif now - state.moved_at > STALL_S:
        raise Stalled(reason=f"the target took no data for {STALL_S:g} s")
    report(_sample(state, info, now))
    await _converge(qmp, state, info, wishes)
    return info.status


async def _converge(qmp: Monitor, state: Pass, info: MigrationInfo, wishes: MoveWishes) -> None:
    """After rounds without gain allow the whole pause that the user accepts."""
    if info.rounds <= state.last_round or state.is_whole_limit:
        return
    state.last_round = info.rounds
    if state.best_remaining is None or info.remaining < state.best_remaining * 0.9:
        state.best_remaining, state.rounds_without_gain = info.remaining, 0
        return
    state.rounds_without_gain += 1
    if state.rounds_without_gain >= PATIENCE_ROUNDS:
        await qmp.migrate_set_parameters(**{"downtime-limit": wishes.max_downtime_ms})
        state.is_whole_limit = True


def _sample(state: Pass, info: MigrationInfo, now: float) -> MemoryProgress:
    state.samples = [*state.samples[-10:], (now, info.transferred)]
    (then, before), (last, after) = state.samples[0], state.samples[-1]
    rate = (after - before) / (last - then) if last > then else 0.0
    pause = info.remaining / rate * 1000 if rate > 0 else None
    return MemoryProgress(
        time_s=round(now - state.began, 3),
        phase=Phase.MEMORY,
        transferred=info.transferred,
        remaining=info.remaining,
        total=info.total,
        rate=round(rate),
        dirty_rate=info.dirty_pages_rate * info.page_size,
        rounds=info.rounds,
        expected_pause_ms=round(pause, 1) if pause is not None else None,
        bytes_wire=info.transferred,
    )


async def abort(qmp: Monitor) -> None:
    """End a migration that may run, be stopped in pre-switchover, or hang; the guest stays here.

    First QEMU is asked; if its main loop is blocked by a frozen target, the connection is torn
    out of band. Raises QMPTimeout, QEMULost.
    """
    try:
        async with asyncio.timeout(CANCEL_S):
            await qmp.migrate_cancel(timeout_s=CANCEL_S)
            await _wait_ended(qmp)
            return
    except (TimeoutError, QMPTimeout):
        pass
    await _yank(qmp)
    await _ended_within(qmp)


async def _ended_within(qmp: Monitor) -> MigrationInfo:
    try:
        async with asyncio.timeout(CANCEL_S):
            return await _wait_ended(qmp)
    except TimeoutError as error:
        raise QMPTimeout(
            name=qmp.session.name, command="the end of its migration", seconds=CANCEL_S
        ) from error


async def _yank(qmp: Monitor) -> None:
    """Out of band; a migration that has just ended has nothing left to cut."""
    with contextlib.suppress(QMPError):
        await qmp.yank_migration()


async def _wait_ended(qmp: Monitor) -> MigrationInfo:
    while True:
        info = await qmp.query_migrate(timeout_s=CANCEL_S)
        if info.status in ENDED or info.status in ("none", ""):
            return info
        await asyncio.sleep(POLL_S / 2)


async def figures(qmp: Monitor) -> MigrationInfo:
    """QEMU's account of a completed migration, which it has ready a moment after `completed`."""
    for _ in range(FIGURES_TRIES):
        info = await qmp.query_migrate()
        if info.total_time_ms:
            break
        await asyncio.sleep(POLL_S / 2)
    return info


async def switch_over(qmp: Monitor, deadline_s: float) -> None:
    """From pre-switchover to `completed`: the last pages and the device state.

    The target has confirmed that it loaded them (return-path). On any failure the migration is
    torn down, so that the guest can be continued here; then raises Stalled.
    """
    try:
        with qmp.session.listen("MIGRATION") as events:
            async with asyncio.timeout(deadline_s):
                await qmp.migrate_continue("pre-switchover")
                while (status := await _next_status(events, qmp)) != "completed":
                    if status in ENDED:
                        info = await qmp.query_migrate()
                        raise Stalled(reason=info.error_desc or f"the last copy was {status}")
    except (TimeoutError, QMPTimeout) as error:
        await _yank(qmp)
        ended = await _ended_within(qmp)
        if ended.status == "completed":  # it won the race against us
            return
        raise Stalled(
            reason=f"the target did not load the last state in {deadline_s:g} s"
        ) from error
    except SternaError:
        await abort(qmp)
        raise


async def _next_status(events: Events, qmp: Monitor) -> str:
    """The next status; a poll stands in for an event that was emitted before we listened."""
    try:
        event = await events.get(1.0)
    except TimeoutError:
        return (await qmp.query_migrate(timeout_s=PING_S)).status
    return str(event["data"]["status"])
