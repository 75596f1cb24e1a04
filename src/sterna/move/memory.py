"""The memory phase on the source: rounds of pre-copy until QEMU stops the guest for the last one.

Promises: returns only with the guest stopped in QEMU's `pre-switchover`, where all can still be
undone; a target that takes no data, or a QEMU whose main loop hangs, ends in an error and never in
an endless wait; states that this version does not know count as "in progress".
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from sterna import clock
from sterna.errors import NotConverging, QMPError, QMPTimeout, Stalled, SternaError
from sterna.model.move import MemoryProgress, MoveWishes, Phase
from sterna.move import policy
from sterna.move.policy import Action, Decision, Kind, Measured, Policy
from sterna.qemu.commands import MigrationInfo, Monitor
from sterna.qemu.session import Events
from sterna.units import format_duration

UNLIMITED = 16 << 30  # bytes/s; QEMU's default would be 128 MiB/s
SAMPLE_S = 0.1
LOOK_S = 0.02  # rounds of an idle guest may be shorter; each is no news
POLL_S = 0.05  # for what no event tells
STALL_S = 20.0  # no byte taken for so long: the target is frozen or the link is dead
PING_S = 5.0  # QEMU's main loop answers within milliseconds when it has nothing else to do
FIGURES_TRIES = 20  # in all one second; seen: one in forty moves needs a second look
CANCEL_S = 5.0  # from migrate_cancel to the end; then yank
# QEMU may be told to throttle only if it was allowed to from the start, and looks at every other
# round of more than a second. So it is allowed to, begins with what no guest feels, and its first
# step and its limit are raised when the policy says so.
_THROTTLE_READY: dict[str, object] = {
    "cpu-throttle-initial": 1,
    "cpu-throttle-increment": 1,
    "max-cpu-throttle": 1,
    "throttle-trigger-threshold": 1,
}
AUTO_CONVERGE = "auto-converge"

ENDED = frozenset({"completed", "failed", "cancelled"})
COMPLETED = frozenset({"completed"})
# In post-copy all but pages has been sent then. If the connection breaks just now, whether the
# target has it all is for the target to say.
LEFT = COMPLETED | {"postcopy-active", "postcopy-paused"}


async def _nothing() -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What the rest of the move knows, asked at each sample. The defaults: nothing, no disks."""

    is_link_down: Callable[[], bool] = lambda: False
    final_rate: Callable[[], float | None] = lambda: None  # bytes/s of the last copy
    in_flight: Callable[[], int] = lambda: 0  # bytes that QEMU gave away and the target has not
    disks_ms: Callable[[], float] = lambda: 0.0  # that the mirrors will take of the pause
    say: Callable[[str], None] = lambda _: None  # a line for the log of the operation
    dirty_rate: float | None = None  # bytes/s that the guest changes at its own pace
    deadline_s: float | None = None  # from now
    max_downtime_ms: Callable[[], int] | None = None  # that the user accepts by now
    hold: Callable[[], Awaitable[None]] = _nothing  # what carries it must not give up from now on


@dataclass(slots=True)
class Sent:
    """What the memory phase came to. Monotonic times; ms."""

    stopped: float | None = None  # when the guest was
    forecast_ms: float | None = None  # the pause, as it was expected then
    allowed_ms: float = 0.0
    throttle: int = 0  # percent, the most
    is_postcopy: bool = False  # the rest of the memory follows when the target has taken the VM
    actions: list[Action] = field(default_factory=list)


async def prepare(
    qmp: Monitor,
    wishes: MoveWishes,
    capabilities: dict[str, bool],
    bitmaps: Sequence[dict[str, object]] = (),
) -> None:
    """Set capabilities and limits on the source. `bitmaps`: the `block-bitmap-mapping`."""
    throttles = policy.throttles(wishes.on_stall)
    if AUTO_CONVERGE in capabilities:
        capabilities = capabilities | {AUTO_CONVERGE: throttles}
    await qmp.migrate_set_capabilities(capabilities)
    await qmp.migrate_set_parameters(
        **{
            "max-bandwidth": wishes.bandwidth or UNLIMITED,
            "max-postcopy-bandwidth": wishes.bandwidth or 0,
            "downtime-limit": policy.first_limit(wishes.pause_ms),
            **_THROTTLE_READY,
            **({"block-bitmap-mapping": list(bitmaps)} if bitmaps else {}),
        }
    )


async def precopy(
    qmp: Monitor,
    uri: str,
    wishes: MoveWishes,
    report: Callable[[MemoryProgress], None],
    around: Around | None = None,
) -> Sent:
    """Send memory to `uri` until the guest is stopped in pre-switchover.

    Raises NotConverging (the policy gave up), Stalled (no progress, or with QEMU's own words if the
    migration failed), QEMULost. The caller undoes with `abort`.
    """
    rounds = _Rounds(qmp, wishes, around or Around(), report)
    with qmp.session.listen("MIGRATION", "MIGRATION_PASS", "STOP") as events:
        await qmp.migrate(uri)
        while True:
            event = await _event(events, rounds.next_look - clock.monotonic())
            match event:
                case ("STOP", _):
                    rounds.sent.stopped = clock.monotonic()
                    continue
                case ("MIGRATION", status):
                    pass
                case _:
                    status = await rounds.look()
            if status == "pre-switchover":
                rounds.sent.stopped = rounds.sent.stopped or clock.monotonic()
                return rounds.sent
            if status in ENDED:
                info = await qmp.query_migrate()
                raise Stalled(reason=info.error_desc or f"QEMU says the migration is {status}")


async def _event(events: Events, timeout_s: float) -> tuple[str, str]:
    """(name, status) of the next one; empty after `timeout_s`."""
    try:
        event = await events.get(max(0.0, timeout_s))
    except TimeoutError:
        return "", ""
    return str(event["event"]), str(event.get("data", {}).get("status", ""))


class _Rounds:
    """Watches a running migration, asks the policy, and does what it says."""

    def __init__(
        self,
        qmp: Monitor,
        wishes: MoveWishes,
        around: Around,
        report: Callable[[MemoryProgress], None],
    ) -> None:
        self.sent = Sent()
        self.next_look = 0.0  # monotonic
        self._qmp = qmp
        self._around = around
        self._report = report
        self._policy = Policy(wishes.on_stall, wishes.pause_ms, deadline_s=around.deadline_s)
        self._began = self._moved = clock.monotonic()
        self._sampled = 0.0
        self._transferred = -1
        self._limit_ms = policy.first_limit(wishes.pause_ms)
        self._action = ""

    async def look(self) -> str:
        """Measure, decide, act; QEMU's status. Raises Stalled."""
        now = clock.monotonic()
        self.next_look = now + SAMPLE_S
        try:
            info = await self._qmp.query_migrate(timeout_s=PING_S)
        except QMPTimeout:  # a sync of a large guest, or of one under emulation, takes its time
            if clock.monotonic() - self._moved > STALL_S:
                raise
            return "active"
        self._require_progress(info, now)
        if info.status != "active":
            return info.status
        measured = self._measured(info, now)
        if self._around.max_downtime_ms is not None:
            self._policy.aim(self._around.max_downtime_ms())
        decision = self._policy.look(measured)
        self.sent.forecast_ms, self.sent.allowed_ms = decision.pause_ms, decision.allowed_ms
        self.sent.throttle = max(self.sent.throttle, info.throttle_percent)
        if now - self._sampled >= SAMPLE_S or decision.action is not None:
            self._sampled = now
            self._tell(decision)
            self._report(self._sample(info, measured, decision))
        await self._act(decision)
        return info.status

    def _require_progress(self, info: MigrationInfo, now: float) -> None:
        if info.transferred != self._transferred or self._around.is_link_down():
            self._transferred, self._moved = info.transferred, now
        elif now - self._moved > STALL_S:
            if info.status == "setup":
                raise Stalled(reason=f"the target could not be connected to within {STALL_S:g} s")
            raise Stalled(reason=f"the target took no data for {STALL_S:g} s")

    def _measured(self, info: MigrationInfo, now: float) -> Measured:
        around = self._around
        return Measured(
            time_s=now - self._began,
            passes=info.rounds,
            remaining=info.remaining,
            sent=info.transferred,
            observed=info.mbps * 1e6 / 8,
            final_rate=around.final_rate(),
            in_flight=around.in_flight(),
            throttle=info.throttle_percent,
            disks_ms=around.disks_ms(),
            is_link_down=around.is_link_down(),
            dirty_rate=around.dirty_rate,
        )

    def _tell(self, decision: Decision) -> None:
        action = decision.action
        if action is None:
            return
        self.sent.actions.append(action)
        self._action = f"{_words(action)}: {action.reason}"
        self._around.say(self._action)

    async def _act(self, decision: Decision) -> None:
        parameters: dict[str, object] = {}
        if policy.differs(self._limit_ms, decision.limit_ms):
            self._limit_ms = decision.limit_ms
            parameters["downtime-limit"] = decision.limit_ms
        action = decision.action
        if action is not None and action.kind is Kind.THROTTLE:
            parameters |= {
                "max-cpu-throttle": decision.throttle,
                "cpu-throttle-initial": decision.throttle,
                "cpu-throttle-increment": 99,
            }
        if action is not None and action.kind is Kind.POSTCOPY:
            await self._around.hold()
            self.sent.is_postcopy = True
            await self._qmp.migrate_start_postcopy()
        if parameters:
            await self._qmp.migrate_set_parameters(**parameters)
        if action is not None and action.kind is Kind.GIVE_UP:
            raise NotConverging(reason=action.reason)

    def _sample(self, info: MigrationInfo, m: Measured, decision: Decision) -> MemoryProgress:
        pause = decision.pause_ms
        return MemoryProgress(
            time_s=round(m.time_s, 3),
            phase=Phase.MEMORY,
            transferred=info.transferred,
            remaining=info.remaining,
            total=info.total,
            rate=round(self._policy.rate(m)),
            dirty_rate=info.dirty_pages_rate * info.page_size,
            rounds=info.rounds,
            expected_pause_ms=round(pause, 1) if pause is not None else None,
            bytes_wire=info.transferred,
            allowed_pause_ms=round(decision.allowed_ms, 1),
            throttle=info.throttle_percent,
            action=self._action,
        )


def _words(action: Action) -> str:
    match action.kind:
        case Kind.PAUSE:
            return f"a pause of {format_duration(action.amount / 1000)} is allowed now"
        case Kind.THROTTLE:
            return f"the guest is slowed down by {action.amount:g} %"
        case Kind.POSTCOPY:
            return "it goes on with post-copy"
        case Kind.GIVE_UP:
            return "the move is given up"


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
        await asyncio.sleep(POLL_S)


async def figures(qmp: Monitor) -> MigrationInfo:
    """QEMU's account of a completed migration, which it has ready a moment after `completed`."""
    for _ in range(FIGURES_TRIES):
        info = await qmp.query_migrate()
        if info.total_time_ms:
            break
        await asyncio.sleep(POLL_S)
    return info


async def switch_over(qmp: Monitor, deadline_s: float, wanted: frozenset[str] = COMPLETED) -> None:
    """From pre-switchover to a `wanted` state: the last pages and the device state.

    The target of a migration that is `completed` has confirmed that it loaded them (return-path).
    On any failure the migration is torn down, so that the guest can be continued here; then raises
    Stalled.
    """
    silence_s = max(PING_S, deadline_s - PING_S)  # QEMU's main loop waits for the last pages too
    try:
        with qmp.session.listen("MIGRATION") as events:
            async with asyncio.timeout(deadline_s):
                await qmp.migrate_continue("pre-switchover")
                while (status := await _next_status(events, qmp, silence_s)) not in wanted:
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


async def _next_status(events: Events, qmp: Monitor, silence_s: float) -> str:
    """The next status; a poll stands in for an event that was emitted before we listened."""
    try:
        event = await events.get(1.0)
    except TimeoutError:
        return (await qmp.query_migrate(timeout_s=silence_s)).status
    return str(event["data"]["status"])
