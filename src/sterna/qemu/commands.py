"""QEMU's commands with types: what they take and answer, and in which units.

Promises: unknown fields and states of newer QEMUs are passed over, missing ones read as zero.
Never asks the out-of-band connection for anything but what QEMU allows there. Every command may
raise QMPError, QMPTimeout and QEMULost (`sterna.qemu.session`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sterna.errors import QEMULost, QMPError
from sterna.qemu.session import ANSWER_S, Session

PING_S = 2.0  # a healthy main loop answers in a millisecond
YANK_S = 5.0  # out of band: only shuts sockets down
# A pre-shared key goes with SHA-256 in TLS 1.3: GnuTLS passes over AES-256-GCM (SHA-384) and takes
# ChaCha20, for which it has no fast code. AES-128-GCM costs much less where processors have AES.
_TLS_PRIORITY = "NORMAL:-CHACHA20-POLY1305"
ANNOUNCE: dict[str, object] = {"initial": 50, "max": 550, "rounds": 5, "step": 100}  # ms


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationInfo:
    """`query-migrate`. Sizes in bytes, times in ms; zero or empty where QEMU says nothing (yet)."""

    status: str = "none"  # MigrationStatus; unknown ones count as in progress
    total: int = 0
    transferred: int = 0
    remaining: int = 0
    dirty_pages_rate: int = 0  # pages/s
    page_size: int = 4096
    rounds: int = 0
    mbps: float = 0.0  # Mbit/s, as QEMU measures
    total_time_ms: int = 0
    setup_ms: int = 0
    downtime_ms: int = 0
    expected_downtime_ms: int = 0
    throttle_percent: int = 0
    error_desc: str = ""
    blocked_reasons: tuple[str, ...] = ()  # why this guest cannot be migrated now
    socket_port: int = 0  # where an incoming QEMU listens

    @classmethod
    def parse(cls, answer: Mapping[str, Any]) -> MigrationInfo:
        """From QEMU's answer, of any version."""
        ram = answer.get("ram", {})
        return cls(
            status=str(answer.get("status", "none")),
            total=int(ram.get("total", 0)),
            transferred=int(ram.get("transferred", 0)),
            remaining=int(ram.get("remaining", 0)),
            dirty_pages_rate=int(ram.get("dirty-pages-rate", 0)),
            page_size=int(ram.get("page-size", 4096)),
            rounds=int(ram.get("dirty-sync-count", 0)),
            mbps=float(ram.get("mbps", 0.0)),
            total_time_ms=int(answer.get("total-time", 0)),
            setup_ms=int(answer.get("setup-time", 0)),
            downtime_ms=int(answer.get("downtime", 0)),
            expected_downtime_ms=int(answer.get("expected-downtime", 0)),
            throttle_percent=int(answer.get("cpu-throttle-percentage", 0)),
            error_desc=str(answer.get("error-desc", "")),
            blocked_reasons=tuple(str(reason) for reason in answer.get("blocked-reasons", ())),
            socket_port=_port(answer.get("socket-address", ())),
        )


def _port(addresses: Any) -> int:
    for address in addresses:
        if address.get("type") == "inet":
            return int(address["port"])
    return 0


class Monitor:
    """The commands of one QEMU, over its `session`."""

    def __init__(self, session: Session) -> None:
        self.session = session

    # ---- the machine -----------------------------------------------------------------------

    async def query_status(self, timeout_s: float = ANSWER_S) -> str:
        """QEMU's run state: running, paused, prelaunch, inmigrate, postmigrate …"""
        answer = await self.session.execute("query-status", timeout_s=timeout_s)
        return str(answer["status"])

    async def cont(self, timeout_s: float = ANSWER_S) -> None:
        """Let the vCPUs run. Only for who owns the VM."""
        await self.session.execute("cont", timeout_s=timeout_s)

    async def stop(self, timeout_s: float = ANSWER_S) -> None:
        """Halt the vCPUs; outstanding disk I/O is done when this returns."""
        await self.session.execute("stop", timeout_s=timeout_s)

    async def quit(self, timeout_s: float = ANSWER_S) -> None:
        """Ask QEMU to end; one that is gone already is fine. The process ends a little later."""
        with contextlib.suppress(QEMULost):
            await self.session.execute("quit", timeout_s=timeout_s)

    async def system_powerdown(self) -> None:
        """Press the power button; what follows is up to the guest."""
        await self.session.execute("system_powerdown")

    async def announce_self(self) -> None:
        """Tell the switches where the guest's MAC addresses are: at once, then four times more."""
        await self.session.execute("announce-self", ANNOUNCE)

    async def ping(self, timeout_s: float = PING_S) -> None:
        """Returns when the main loop answers; QMPTimeout: it is blocked."""
        await self.query_status(timeout_s)

    async def ping_oob(self, timeout_s: float = PING_S) -> None:
        """Returns when the process answers at all, its main loop blocked or not."""
        await self.query_yank(timeout_s)

    # ---- migration -------------------------------------------------------------------------

    async def query_migrate(self, timeout_s: float = ANSWER_S) -> MigrationInfo:
        return MigrationInfo.parse(await self.session.execute("query-migrate", timeout_s=timeout_s))

    async def query_migrate_capabilities(self) -> frozenset[str]:
        """Those that are switched on."""
        answer = await self.session.execute("query-migrate-capabilities")
        return frozenset(one["capability"] for one in answer if one["state"])

    async def migrate_set_capabilities(self, capabilities: Mapping[str, bool]) -> None:
        await self.session.execute(
            "migrate-set-capabilities",
            {
                "capabilities": [
                    {"capability": name, "state": state} for name, state in capabilities.items()
                ]
            },
        )

    async def migrate_set_parameters(self, **parameters: object) -> None:
        """Parameters by QEMU's names (`**{"max-bandwidth": …}`): bytes/s, milliseconds."""
        await self.session.execute("migrate-set-parameters", parameters)

    async def migrate(self, uri: str) -> None:
        """Begin to send; returns at once, follow the MIGRATION events."""
        await self.session.execute("migrate", {"uri": uri})

    async def give_fd(self, name: str, fd: int) -> None:
        """Hand over an open file, for `fd:NAME` as a URI of a migration; ours stays open."""
        await self.session.give_fd(name, fd)

    async def close_fd(self, name: str) -> None:
        """Close a file that was given and not used; one that was used is not there any more."""
        with contextlib.suppress(QMPError):
            await self.session.execute("closefd", {"fdname": name})

    async def migrate_incoming(self, uri: str) -> None:
        """Listen at `uri`. Once in the life of a QEMU started with `-incoming defer`."""
        await self.session.execute("migrate-incoming", {"uri": uri})

    async def migrate_continue(self, state: str) -> None:
        """Go on from the pause in `state` (pre-switchover)."""
        await self.session.execute("migrate-continue", {"state": state})

    async def migrate_start_postcopy(self) -> None:
        """Stop sending rounds: the guest is to run on the target while its memory follows."""
        await self.session.execute("migrate-start-postcopy")

    async def migrate_pause(self) -> None:
        """Out of band: break the connection of a post-copy, on either end, for a new one."""
        await self.session.execute_oob("migrate-pause")

    async def migrate_recover(self, uri: str) -> None:
        """Out of band, because the main loop may itself wait for a page: on the target of a broken
        post-copy, await a new connection at `uri`. May be repeated.
        """
        await self.session.execute_oob("migrate-recover", {"uri": uri})

    async def migrate_resume(self, uri: str) -> None:
        """On the source of a broken post-copy: go on through a new connection."""
        await self.session.execute("migrate", {"uri": uri, "resume": True})

    async def migrate_cancel(self, timeout_s: float = ANSWER_S) -> None:
        """Ask for the end of a migration; it has ended when its status says so."""
        await self.session.execute("migrate_cancel", timeout_s=timeout_s)

    async def yank_migration(self, timeout_s: float = YANK_S) -> None:
        """Out of band: cut the migration's sockets, which frees a main loop that hangs on them.

        QMPError if no migration is connected.
        """
        await self.session.execute_oob(
            "yank", {"instances": [{"type": "migration"}]}, timeout_s=timeout_s
        )

    async def query_yank(self, timeout_s: float = YANK_S) -> tuple[dict[str, Any], ...]:
        """Out of band: what can be yanked now."""
        return tuple(await self.session.execute_oob("query-yank", timeout_s=timeout_s))

    # ---- keys ------------------------------------------------------------------------------

    async def add_key(self, name: str, directory: str, *, is_server: bool) -> None:
        """Credentials called `name`: the pre-shared key in `directory`/keys.psk, for QEMU's own TLS."""
        await self.session.execute(
            "object-add",
            {
                "qom-type": "tls-creds-psk",
                "id": name,
                "dir": directory,
                "endpoint": "server" if is_server else "client",
                "priority": _TLS_PRIORITY,
            },
        )

    async def delete_object(self, name: str) -> None:
        """Remove an object that was added; one that is not there is fine."""
        with contextlib.suppress(QMPError):
            await self.session.execute("object-del", {"id": name})
