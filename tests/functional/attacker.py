"""Somebody in the network of a lab who tries what he may not, and looks whether anything changed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from namespaces import Namespace

from api_rig import hang_up
from sterna.security import identity, invitation

PORT = 7443


class Attacker:
    """Somebody in the network of hv-b who talks to hv-a; with a certificate, or without."""

    def __init__(self, lab, folder: Path) -> None:
        self.victim, self.peer = lab.hosts
        self.folder = folder
        self._inside = Namespace.__new__(Namespace)  # that of the peer, which is there already
        self._inside.name = self.peer.netns
        self.before = self.state()

    def state(self) -> dict[str, Any]:
        """All that hv-a has durably, its VMs, and whom it trusts."""
        folder = self.victim.folder / "state"
        files = {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
            and not path.name.startswith("journal")
            and not {"cache", "audit", "lockout"} & set(path.parts)
        }
        hosts = [(one["name"], one["state"]) for one in self.victim.client.get("/v1/hosts")]
        return {"files": files, "hosts": hosts, "vms": self.victim.client.get("/v1/vms")}

    def invite(self, **wishes: Any) -> invitation.Token:
        return invitation.read(self.victim.client.post("/v1/invitations", wishes)["token"])

    def stranger(self, name: str = "mallory") -> identity.Identity:
        return identity.ensure(self.folder / name, name, self.peer.address)

    def thief(self) -> identity.Identity:
        """The key of hv-b itself."""
        return identity.ensure(self.peer.folder / "state" / "identity", "hv-b", "")

    def request(
        self, token: invitation.Token, own: identity.Identity, **changes: str
    ) -> dict[str, str]:
        """What an honest joiner would send, with changes that its proof covers."""
        wanted = {
            "invitation": token.id,
            "name": "mallory",
            "url": "https://10.91.0.12:7999",
            "certificate": own.pem,
            **changes,
        }
        known = (wanted["invitation"], wanted["name"], wanted["url"])
        made = invitation.proof(token.secret, token.fingerprint, own.fingerprint, known)
        return {**wanted, "proof": changes.get("proof", made)}

    def send(
        self,
        data: bytes | list[bytes],
        own: identity.Identity | None = None,
        newest: ssl.TLSVersion | None = None,
    ) -> bytes:
        """All that hv-a answers to these bytes until it hangs up; pieces are sent 0.5 s apart."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if newest is not None:
            context.minimum_version = context.maximum_version = newest
        if own is not None:
            context.load_cert_chain(own.certificate, own.key)

        async def talk() -> bytes:
            reader, writer = await asyncio.open_connection(self.victim.address, PORT, ssl=context)
            answer = b""
            with contextlib.suppress(OSError, TimeoutError):
                for number, piece in enumerate([data] if isinstance(data, bytes) else data):
                    await asyncio.sleep(0.5 if number else 0)
                    writer.write(piece)
                    await writer.drain()
                async with asyncio.timeout(8):
                    while piece := await reader.read(65536):
                        answer += piece
            writer.transport.abort()
            await hang_up(writer)
            return answer

        return bytes(self.inside(talk))

    def inside(self, work: Callable[[], Awaitable[Any]]) -> Any:
        return self._inside.do(work)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        own: identity.Identity | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, str]:
        """Status and code of one request; 0: it hung up."""
        status, _, found = self.exchange(method, path, body, own, headers)
        return status, str(found.get("code", "")) if isinstance(found, dict) else ""

    def exchange(
        self,
        method: str,
        path: str,
        body: Any = None,
        own: identity.Identity | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, str, Any]:
        """Status, head and JSON of one request."""
        data = b"" if body is None else json.dumps(body).encode()
        lines = {"Host": "x", "Connection": "close", "Content-Length": str(len(data))}
        lines |= {"Content-Type": "application/json"} if data else {}
        lines |= headers or {}
        head = "".join(f"{key}: {value}\r\n" for key, value in lines.items())
        answer = self.send(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + data, own)
        if not answer:
            return 0, "", None
        top, _, rest = answer.partition(b"\r\n\r\n")
        found = json.loads(rest) if rest[:1] in (b"{", b"[") else None
        return int(top.split()[1]), top.decode(), found

    def has_changed_nothing(self) -> None:
        assert self.state() == self.before
        assert self.ask("GET", "/v1/vms", own=self.thief())[0] == 200  # it is well, and its peer's
