"""Following an operation to its end, through restarts of the daemon and the user's Ctrl-C.

The operation lives in the daemon: nothing here can lose it. A broken event stream is resumed after
the last event seen; if the daemon is not back within REGAIN_S the command ends with exit code 6
and says how to go on. The exit code is the operation's outcome.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from types import FrameType
from typing import Any, Literal, Self

from sterna.cli.command import Settings
from sterna.cli.progress import Display, display
from sterna.client import QUIET_S, Client, Event, segment
from sterna.clock import monotonic
from sterna.errors import AnswerLost, Conflict, DaemonLost, Unreachable

REGAIN_S = 30.0  # a daemon restarts within seconds; longer is an outage
RETRY_S = 0.5
DOUBT_S = 30.0  # the other side is asked again and again; a short silence is no news
FINAL = ("succeeded", "warned", "failed", "cancelled", "partial")
EXIT = {"succeeded": 0, "warned": 10, "cancelled": 7, "partial": 11, "unknown": 9}
STILL_RUNNING = 8
IMPATIENT = 3  # times Ctrl-C


class Interrupts:
    """Ctrl-C as a count; it also ends the wait that is going on. Nothing is torn apart by it.

    Nothing is raised where the signal happens to arrive, so none is lost there; only a user who
    presses it again and again gets Python's own way, which ends at once.
    """

    def __init__(self) -> None:
        self.count = 0
        self._end_wait: Callable[[], None] | None = None
        self._previous: Any = None

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGINT, self._heard)
        return self

    def __exit__(self, *_error: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    @contextmanager
    def ending(self, wait: Callable[[], None]) -> Iterator[None]:
        """While this lasts, Ctrl-C calls `wait`, which must be safe in a signal handler."""
        self._end_wait = wait
        try:
            yield
        finally:
            self._end_wait = None

    def _heard(self, _signal: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self._end_wait is not None:
            self._end_wait()
        if self.count >= IMPATIENT:
            raise KeyboardInterrupt


class Follower:
    """One operation being followed. `on_interrupt` says what the first Ctrl-C does."""

    def __init__(
        self,
        client: Client,
        operation: Mapping[str, Any],
        shown: Display,
        interrupts: Interrupts,
        on_interrupt: Literal["cancel", "detach"] = "detach",
    ) -> None:
        self.client = client
        self.operation = dict(operation)
        self._path = f"/v1/operations/{segment(str(operation['id']))}"
        self._shown = shown
        self._interrupts = interrupts
        self._seen = 0
        self._cancels = on_interrupt == "cancel"
        self._owes_cancel = False
        self._after = ""
        self._lost_since: float | None = None
        self._doubt_since: float | None = None

    @property
    def state(self) -> str:
        return str(self.operation["state"])

    def run(self, timeout_s: float | None = None, doubt_s: float | None = None) -> dict[str, Any]:
        """The operation when it has ended, or as it is when a limit or the user says so.

        `timeout_s` limits the whole, `doubt_s` how long the state may be `unknown`. Raises
        DaemonLost.
        """
        deadline = None if timeout_s is None else monotonic() + timeout_s
        self._shown.state(self.operation)
        while self.state not in FINAL:
            try:
                self._stream(deadline, doubt_s)
            except TimeoutError:
                pass
            except Unreachable as error:
                if not self._is_interrupted:
                    self._wait_for_daemon(error)
            except KeyboardInterrupt:
                break
            if self.state in FINAL or _is_past(deadline) or self._doubts_longer_than(doubt_s):
                break
            if self._is_interrupted and not self._ask_to_cancel():
                break
        return self.operation

    def _stream(self, deadline: float | None, doubt_s: float | None) -> None:
        """Take events until the end of the operation, of the stream, or of a limit."""
        quiet_s = QUIET_S if doubt_s is None else min(QUIET_S, doubt_s)
        path, came = f"{self._path}/events", False
        with (
            closing(self.client.events(path, self._after, quiet_s, deadline)) as events,
            self._interrupts.ending(events.hang_up),
        ):
            if self._is_interrupted:  # before there was a stream to end
                return
            for event in events:
                came = True
                self._regained()
                self._take(event)
                if (
                    self._is_interrupted
                    or self.state in FINAL
                    or _is_past(deadline)
                    or self._doubts_longer_than(doubt_s)
                ):
                    return
        self._take_snapshot(self.client.get(self._path))
        if not came and self.state not in FINAL:
            raise DaemonLost(
                url=self.client.url, doing="the operation", seconds=REGAIN_S,
                reason="its events ended", operation=self.operation["id"],
            )  # fmt: skip

    @property
    def _is_interrupted(self) -> bool:
        return self._interrupts.count > self._seen

    def _take(self, event: Event) -> None:
        self._after = event.id or self._after
        if not isinstance(event.data, dict):
            return
        if event.name == "state":
            self._take_snapshot(event.data)
        elif event.name == "progress":
            self._shown.sample(event.data)
        elif event.name == "log":
            self._shown.log(event.data)

    def _take_snapshot(self, operation: dict[str, Any]) -> None:
        self.operation = operation
        in_doubt = self.state == "unknown"
        self._doubt_since = (self._doubt_since or monotonic()) if in_doubt else None
        self._shown.state(operation)

    def _doubts_longer_than(self, doubt_s: float | None) -> bool:
        since = self._doubt_since
        return doubt_s is not None and since is not None and monotonic() - since >= doubt_s

    def _ask_to_cancel(self) -> bool:
        """What Ctrl-C means now; whether to go on following."""
        self._seen += 1
        if not self._cancels or self._seen > 1:
            return False
        self._shown.say("cancelling, and waiting until it is undone; Ctrl-C again leaves it alone")
        self._cancel()
        return True

    def _cancel(self) -> None:
        """Ask the daemon to cancel; if it is away, it will be asked when it is back."""
        self._owes_cancel = False
        try:
            self._take_snapshot(self.client.post(f"{self._path}:cancel") or self.operation)
        except Conflict as error:
            self._shown.say(f"it is not cancelled: {error.message}")
        except (Unreachable, AnswerLost) as error:
            self._owes_cancel = True
            self._shown.say(f"the daemon is asked to cancel when it is back: {error.message}")

    def _regained(self) -> None:
        if self._lost_since is not None:
            self._lost_since = None
            self._shown.say("sternad is back")
        if self._owes_cancel:
            self._cancel()

    def _wait_for_daemon(self, error: Unreachable) -> None:
        if self._lost_since is None:
            self._lost_since = monotonic()
            reason = error.facts.get("reason", error.message)
            self._shown.say(f"sternad is away ({reason}); nothing is lost, waiting for it")
        elif monotonic() - self._lost_since >= REGAIN_S:
            raise DaemonLost(
                url=self.client.url,
                doing=f"{self.operation.get('kind', 'operation')} {self.operation['id']}",
                seconds=REGAIN_S,
                reason=str(error.facts.get("reason", error.message)),
                operation=self.operation["id"],
            ) from error
        time.sleep(RETRY_S)


def to_end(
    settings: Settings,
    client: Client,
    operation: Mapping[str, Any],
    interrupts: Interrupts,
    on_interrupt: Literal["cancel", "detach"] = "detach",
) -> int:
    """Show `operation` until it ends; print its result; the exit code that tells its outcome."""
    with display(settings.is_json) as shown:
        follower = Follower(client, operation, shown, interrupts, on_interrupt)
        ended = follower.run(doubt_s=DOUBT_S)
    return conclude(settings, ended)


def conclude(settings: Settings, operation: Mapping[str, Any]) -> int:
    """Print how `operation` stands at the end of following it, and return the exit code."""
    from sterna.cli import op_view  # noqa: PLC0415 - start-up time

    op_view.result(settings, operation)
    return exit_code(operation)


def exit_code(operation: Mapping[str, Any]) -> int:
    """DESIGN.md section 7, from the operation's state; a failure's own code if it has one."""
    state = str(operation["state"])
    if state == "failed":
        code = (operation.get("error") or {}).get("exit_code")
        return code if isinstance(code, int) and 0 < code < 128 else 1
    return EXIT.get(state, STILL_RUNNING)


def detached(settings: Settings, operation: Mapping[str, Any]) -> int:
    """What `--detach` prints: the id alone, so that a script can keep it."""
    from sterna.cli.output import json_line, line, note  # noqa: PLC0415 - start-up time

    if settings.is_json:
        json_line({
            "type": "result", "state": operation["state"],
            "operation": operation["id"], "vm": operation.get("vm"),
        })  # fmt: skip
    else:
        line(operation["id"])
        note(f"follow it with: sterna op wait {operation['id']}")
    return 0


def _is_past(deadline: float | None) -> bool:
    return deadline is not None and monotonic() >= deadline
