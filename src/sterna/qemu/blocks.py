"""Block commands of a QEMU or of a qemu-storage-daemon: nodes, jobs, exports.

Promises: a job is waited for by looking at it, so no event can be missed; a job that concluded with
an error raises BlockJobFailed with QEMU's words; `abandon` ends a mirror whatever its target does,
without ever waiting for the target. Sizes in bytes, speeds in bytes/s (0: no limit).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sterna.errors import BlockJobFailed, QMPError
from sterna.qemu.nodes import Options
from sterna.qemu.session import ANSWER_S, Session

POLL_S = 0.05
YANK_S = 2.0  # out of band: only shuts a socket down
ABANDON_S = 5.0  # for a job to end after its target was cut off


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockJob:
    """`query-jobs`. `status`: created, running, ready, standby, waiting, pending, concluded …"""

    id: str
    status: str
    done: int  # bytes
    total: int  # bytes; grows while the guest writes
    error: str = ""

    @property
    def remaining(self) -> int:
        return max(0, self.total - self.done)


class Blocks:
    """The block commands of one process, over its `session`."""

    def __init__(self, session: Session) -> None:
        self.session = session

    async def _do(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        return await self.session.execute(command, arguments)

    # ---- nodes -----------------------------------------------------------------------------

    async def add(self, nodes: Sequence[Options]) -> None:
        """Open nodes, in order; on failure those that were opened are closed again."""
        added: list[str] = []
        try:
            for node in nodes:
                await self._do("blockdev-add", node)
                added.append(str(node["node-name"]))
        except BaseException:
            for name in reversed(added):
                with contextlib.suppress(QMPError):
                    await self.delete(name)
            raise

    async def delete(self, *nodes: str) -> None:
        """Close nodes, in order. QMPError for one that is in use or not there."""
        for node in nodes:
            await self._do("blockdev-del", {"node-name": node})

    async def flush(self, node: Options) -> None:
        """Everything that was written to an open node is on the disk; QMPError says why not.

        QEMU has no command for that alone; opening it again as it is (`node`) begins with it.
        """
        await self._do("blockdev-reopen", {"options": [node]})

    async def sync(self, node: str) -> None:
        """As `flush`, for a node that a job writes to, which cannot be opened again meanwhile."""
        line = f'qemu-io {node} "flush"'
        said = str(await self._do("human-monitor-command", {"command-line": line})).strip()
        if said:
            raise QMPError(name=self.session.name, command=line, reason=said)

    async def names(self) -> frozenset[str]:
        """All named nodes."""
        return frozenset(item["node-name"] for item in await self._nodes())

    async def _nodes(self) -> list[dict[str, Any]]:
        answer = await self._do("query-named-block-nodes", {"flat": True})
        return [dict(item) for item in answer]

    async def top_nodes(self) -> dict[str, str]:
        """What each of a VM's disks has on top now: name of the disk -> node."""
        tops: dict[str, str] = {}
        for item in await self._do("query-block"):
            device = str(item.get("qdev", "")).removesuffix("/virtio-backend")
            name = device.rsplit("/", 1)[-1]
            if name.startswith("blk-") and (inserted := item.get("inserted")):
                tops[name.removeprefix("blk-")] = str(inserted["node-name"])
        return tops

    async def media(self) -> dict[str, str]:
        """What is in each of a VM's CD drives now: name of the drive -> node, empty for an empty one."""
        found: dict[str, str] = {}
        for item in await self._do("query-block"):
            device = str(item.get("qdev", "")).rsplit("/", 1)[-1]
            if device.startswith("cd-"):
                inserted = item.get("inserted") or {}
                found[device.removeprefix("cd-")] = str(inserted.get("node-name", ""))
        return found

    async def is_tray_open(self, device: str) -> bool:
        """Of a CD drive; its guest may move it at any time."""
        for item in await self._do("query-block"):
            if str(item.get("qdev", "")).rsplit("/", 1)[-1] == device:
                return bool(item.get("tray_open"))
        return False

    async def open_tray(self, device: str) -> None:
        """Open a CD drive, though its guest has locked it."""
        await self._do("blockdev-open-tray", {"id": device, "force": True})

    async def close_tray(self, device: str) -> None:
        await self._do("blockdev-close-tray", {"id": device})

    async def remove_medium(self, device: str) -> None:
        """Out of an open drive, be it empty; the node stays open."""
        await self._do("blockdev-remove-medium", {"id": device})

    async def insert_medium(self, device: str, node: str) -> None:
        """Into an open, empty drive."""
        await self._do("blockdev-insert-medium", {"id": device, "node-name": node})

    async def bitmaps(self, node: str) -> tuple[str, ...]:
        """Names of the node's dirty bitmaps that are kept in its file and can be trusted."""
        for item in await self._nodes():
            if item["node-name"] == node:
                return tuple(
                    str(bitmap["name"])
                    for bitmap in item.get("dirty-bitmaps", ())
                    if bitmap.get("persistent") and not bitmap.get("inconsistent")
                )
        return ()

    async def copy_bitmaps(self, source: str, target: str) -> None:
        """Give `target`, of the same size, the bitmaps of `source` that are kept in its file.

        While neither is written to: both say the same then, and go on from there.
        """
        names = await self.bitmaps(source)
        for item in await self._nodes():
            if item["node-name"] != source:
                continue
            for bitmap in item.get("dirty-bitmaps", ()):
                if bitmap.get("name") in names:
                    name = str(bitmap["name"])
                    added: dict[str, object] = {
                        "node": target,
                        "name": name,
                        "granularity": int(bitmap["granularity"]),
                        "persistent": True,
                        "disabled": not bitmap.get("recording", True),
                    }
                    await self._do("block-dirty-bitmap-add", added)
                    merged = {
                        "node": target,
                        "target": name,
                        "bitmaps": [{"node": source, "name": name}],
                    }
                    await self._do("block-dirty-bitmap-merge", merged)

    async def network_nodes(self) -> list[str]:
        """Nodes whose data comes from another host."""
        return [node for node, driver in (await self.formats()).items() if driver == "nbd"]

    async def formats(self) -> dict[str, str]:
        """The driver of each node: qcow2, raw, file, nbd …"""
        return {item["node-name"]: str(item["drv"]) for item in await self._nodes()}

    async def chains(self) -> dict[str, list[str]]:
        """The files that each of a VM's disks has open now, the top first, by the disk's name."""
        found: dict[str, list[str]] = {}
        for item in await self._do("query-block"):
            device = str(item.get("qdev", "")).removesuffix("/virtio-backend")
            name = device.rsplit("/", 1)[-1]
            if name.startswith("blk-") and (inserted := item.get("inserted")):
                files, image = [], inserted.get("image")
                while image:
                    files.append(_file_name(str(image["filename"])))
                    image = image.get("backing-image")
                found[name.removeprefix("blk-")] = files
        return found

    async def snapshot(self, overlays: Mapping[str, str]) -> None:
        """All at once: each node (key) gets the opened overlay (value) on top of it."""
        actions = [
            {"type": "blockdev-snapshot", "data": {"node": node, "overlay": overlay}}
            for node, overlay in overlays.items()
        ]
        await self._do("transaction", {"actions": actions})

    # ---- jobs ------------------------------------------------------------------------------

    async def mirror(  # noqa: PLR0913 - QEMU's own arguments
        self,
        job: str,
        node: str,
        target: str,
        *,
        sync: str = "full",
        speed: int = 0,
        granularity: int = 0,
        is_held: bool = False,
    ) -> None:
        """Copy `node` to `target` and keep it up to date, without delaying the guest's writes.

        `sync`: full, or top (only the image on top). With `is_held` a job that completes stays
        `pending`, with the guest's writes held back, until `finalize`.
        """
        await self._do(
            "blockdev-mirror",
            {
                "job-id": job,
                "device": node,
                "target": target,
                "sync": sync,
                "speed": speed,
                **({"granularity": granularity} if granularity else {}),
                "copy-mode": "background",
                "on-source-error": "report",
                "on-target-error": "report",
                "auto-finalize": not is_held,
                "auto-dismiss": False,
            },
        )

    async def commit(  # noqa: PLR0913 - QEMU's own arguments
        self, job: str, node: str, *, top: str, base: str, base_file: str, is_held: bool = False
    ) -> None:
        """Merge the image `top` down into `base`, in the chain that `node` is the top of.

        If `top` is not `node`, the image above is made to rest on `base` (`base_file` in its
        header). If it is, the job gets ready and then waits for `complete`, as a mirror does.
        """
        arguments = {
            "job-id": job,
            "device": node,
            "top-node": top,
            "base-node": base,
            "auto-finalize": not is_held,
            "auto-dismiss": False,
        }
        if top != node:
            arguments["backing-file"] = base_file
        await self._do("block-commit", arguments)

    async def jobs(self, timeout_s: float = ANSWER_S) -> dict[str, BlockJob]:
        """All jobs by id."""
        answer = await self.session.execute("query-jobs", timeout_s=timeout_s)
        return {
            item["id"]: BlockJob(
                id=item["id"],
                status=str(item["status"]),
                done=int(item.get("current-progress", 0)),
                total=int(item.get("total-progress", 0)),
                error=str(item.get("error", "")),
            )
            for item in answer
        }

    async def job(self, job: str) -> BlockJob:
        """One job. Raises BlockJobFailed if it has failed or is gone."""
        found = (await self.jobs()).get(job)
        if found is None:
            raise BlockJobFailed(job=job, name=self.session.name, reason="it is gone")
        if found.error:
            raise BlockJobFailed(job=job, name=self.session.name, reason=found.error)
        return found

    async def wait(self, job: str, statuses: Collection[str]) -> BlockJob:
        """Until the job is in one of `statuses`. Raises BlockJobFailed, QEMULost; no deadline."""
        while (found := await self.job(job)).status not in statuses:
            if found.status == "concluded":
                raise BlockJobFailed(job=job, name=self.session.name, reason="it ended early")
            await asyncio.sleep(POLL_S)
        return found

    async def set_speed(self, job: str, speed: int) -> None:
        await self._do("block-job-set-speed", {"device": job, "speed": speed})

    async def complete(self, job: str) -> None:
        """Let a ready job switch over to its target."""
        await self._do("job-complete", {"id": job})

    async def finalize(self, job: str) -> None:
        """Let a pending job take effect."""
        await self._do("job-finalize", {"id": job})

    async def cancel(self, job: str, *, force: bool) -> None:
        """Without `force` a ready mirror writes what is left and ends well, its source unchanged."""
        await self._do("block-job-cancel", {"device": job, "force": force})

    async def cancel_now(self, job: str) -> None:
        """In any of its states, undoing what it would have brought about; it concludes soon."""
        await self._do("job-cancel", {"id": job})

    async def dismiss(self, job: str) -> None:
        """Forget a concluded job."""
        await self._do("job-dismiss", {"id": job})

    async def abandon(self, job: str, target: str, *, is_remote: bool) -> None:
        """End a mirror and close its target, which may hang or be gone. Returns when it is so.

        Raises QMPTimeout, QEMULost. Nothing to end is fine.
        """
        if is_remote:
            await self.yank(target)
        with contextlib.suppress(QMPError):
            await self.cancel(job, force=True)
        async with asyncio.timeout(ABANDON_S):
            while (found := (await self.jobs()).get(job)) is not None:
                if found.status == "concluded":
                    await self.dismiss(job)
                    break
                if found.status == "pending":
                    await self._do("job-cancel", {"id": job})
                await asyncio.sleep(POLL_S)
        with contextlib.suppress(QMPError):
            await self.delete(target)

    # ---- network block devices -------------------------------------------------------------

    async def nbd_server_start(
        self, connections: int, *, host: str = "", path: str = "", tls: str = ""
    ) -> None:
        """Listen on the Unix socket `path`, or on `host` at a port that the system chooses.

        `sterna.qemu.sockets` finds that port. `tls` names the credentials to ask for.
        """
        where = {"path": path} if path else {"host": host, "port": "0"}
        address = {"type": "unix" if path else "inet", "data": where}
        await self._do(
            "nbd-server-start",
            {
                "addr": address,
                "max-connections": connections,
                **({"tls-creds": tls} if tls else {}),
            },
        )

    async def nbd_server_stop(self) -> None:
        """Hang up on all clients, drop all exports."""
        await self._do("nbd-server-stop")

    async def export(self, export: str, node: str, name: str, *, writable: bool) -> None:
        """Offer `node` as `name`."""
        await self._do(
            "block-export-add",
            {"type": "nbd", "id": export, "node-name": node, "name": name, "writable": writable},
        )

    async def unexport(self, export: str) -> None:
        """Withdraw it at once, whoever is connected."""
        await self._do("block-export-del", {"id": export, "mode": "hard"})

    async def exports(self) -> tuple[str, ...]:
        """Ids of what is offered now."""
        return tuple(str(item["id"]) for item in await self._do("query-block-exports"))

    async def yank(self, node: str) -> None:
        """Out of band: cut the connection of an NBD node, which frees whatever waits for it."""
        instance = {"type": "block-node", "node-name": node}
        with contextlib.suppress(QMPError):
            await self.session.execute_oob("yank", {"instances": [instance]}, timeout_s=YANK_S)


def _file_name(name: str) -> str:
    """The plain file of an image that QEMU names by all its options, because we gave them."""
    if not name.startswith("json:"):
        return name
    return str(json.loads(name.removeprefix("json:")).get("file", {}).get("filename", name))


def inet(host: str, port: int) -> Options:
    """An NBD server that listens on TCP."""
    return {"type": "inet", "host": host, "port": str(port)}


def nbd_node(node: str, *, server: Options, export: str, tls: str = "") -> Options:
    """A disk that another QEMU offers at `server`; `tls` names the credentials, if it wants any.

    A connection that breaks fails at once: we decide.
    """
    return {
        "driver": "nbd",
        "node-name": node,
        "server": server,
        "export": export,
        **({"tls-creds": tls} if tls else {}),
        "reconnect-delay": 0,
        "discard": "unmap",
        "detect-zeroes": "unmap",
    }
