"""What TLS and knowing who asks cost a small request, in milliseconds.

    .venv/bin/python bench/requests.py [--runs 1000] [--check]

One process serves the real listeners, routes, roles and audit over VMs in memory; another asks for
one VM again and again, over each way in turns. "plain" is TCP without TLS to the same routes, who
asks being given. The promise is for warm connections, as consoles, programs and hosts have them; a
new connection for each request, as the command line makes it, is told beside it. A change writes
two lines of the audit (fsync): told beside it, too. Writes all as JSON to bench/results/.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

PROMISED_MS = 3.0  # more than plain, at the median
ASKED = "/v1/vms/web"
WARM = 50  # requests before the first that counts
PASSWORD = "a-password-of-a-benchmark"


async def serve(folder: Path) -> None:
    """Serve until standard input ends; where and for whom is printed."""
    from api_rig import an_api  # noqa: PLC0415 - the asking process needs none of it
    from sterna.api import access  # noqa: PLC0415
    from sterna.api.listeners import HTTPS, _Server, _tcp_socket  # noqa: PLC0415
    from sterna.model.access import Principal, Role, TokenWishes, UserWishes  # noqa: PLC0415
    from sterna.model.trust import PeerRecord  # noqa: PLC0415
    from sterna.security import identity  # noqa: PLC0415
    from sterna.security.trust import Trust  # noqa: PLC0415

    trust = Trust(folder / "peers", identity.ensure(folder / "identity", "alpha", "127.0.0.1"))
    peer = identity.ensure(folder / "beta", "beta", "127.0.0.1")
    await trust.put(PeerRecord(name="beta", url="https://127.0.0.1:7443", certificate=peer.pem))
    async with an_api(folder, HTTPS(address="127.0.0.1", port=0, trust=trust)) as api:
        accounts = api.authority.accounts
        wishes = UserWishes(name="alice", role=Role.OPERATOR, password=PASSWORD)
        await accounts.create_user(wishes)
        token, _ = await accounts.create_token(TokenWishes(name="ci", role=Role.OPERATOR), "bench")
        session, made = await api.authority.log_in("alice", PASSWORD, "127.0.0.1")
        given = Principal(kind="local", name="root", role=Role.ADMIN)

        async def known(scope: Any, receive: Any, send: Any) -> None:
            scope["state"][access.PRINCIPAL] = given
            await api.app(scope, receive, send)

        with _tcp_socket("127.0.0.1", 0) as listener:
            plain = _Server(known)
            serving = asyncio.create_task(plain.serve(sockets=[listener]))
            await plain.ready.wait()
            about = {
                "plain": listener.getsockname()[1],
                "https": api.port,
                "unix": str(api.socket),
                "token": token,
                "cookie": f"{access.COOKIE}={session}",
                "csrf": made.csrf,
            }
            sys.stdout.write(json.dumps(about) + "\n")
            sys.stdout.flush()
            await asyncio.to_thread(sys.stdin.read)
            plain.stop()
            await serving


class Asker:
    """One way to ask; `connect` makes a connection, which is kept unless `is_new`."""

    def __init__(
        self, connect: Callable[[], socket.socket], headers: str = "", *, is_new: bool = False
    ) -> None:
        self.connect, self.headers, self.is_new = connect, headers, is_new
        self.connection: socket.socket | None = None

    def ask(self, method: str = "GET", path: str = ASKED, body: bytes = b"") -> float:
        """Milliseconds of one request."""
        began = time.perf_counter()
        if self.connection is None or self.is_new:
            if self.connection is not None:
                self.connection.close()
            self.connection = self.connect()
        lines = f"Host: x\r\nContent-Type: application/json\r\n{self.headers}"
        head = f"{method} {path} HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
        self.connection.sendall(head.encode() + body)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self.connection.recv(65536)
        top, _, rest = answer.partition(b"\r\n\r\n")
        length = int(top.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(rest) < length:
            rest += self.connection.recv(65536)
        took = 1000 * (time.perf_counter() - began)
        if not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")):
            raise RuntimeError(answer[:300])
        return took


def ways(about: dict[str, Any], folder: Path) -> dict[str, Asker]:
    """All ways to ask, by name."""

    def tcp(port: int) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", port), 10)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def unix() -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.connect(about["unix"])
        return made

    def tls(with_key: bool = False) -> Callable[[], socket.socket]:
        context = ssl.create_default_context(cafile=str(folder / "identity" / "certificate.pem"))
        if with_key:
            context.load_cert_chain(folder / "beta/certificate.pem", folder / "beta/key.pem")
        return lambda: context.wrap_socket(tcp(about["https"]), server_hostname="127.0.0.1")

    token = f"Authorization: Bearer {about['token']}\r\n"
    session = f"Cookie: {about['cookie']}\r\nX-CSRF-Token: {about['csrf']}\r\n"
    return {
        "plain": Asker(lambda: tcp(about["plain"])),
        "unix socket": Asker(unix),
        "https, token": Asker(tls(), token),
        "https, session": Asker(tls(), session),
        "https, host": Asker(tls(with_key=True)),
        "plain, new connection": Asker(lambda: tcp(about["plain"]), is_new=True),
        "https, token, new connection": Asker(tls(), token, is_new=True),
        "https, host, new connection": Asker(tls(with_key=True), is_new=True),
    }


def measure(runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds by way. In turns, so that a busy moment of the machine hits them all."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        argv = [sys.executable, __file__, "--serve", name]
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as server:
            assert server.stdout is not None
            assert server.stdin is not None
            about = json.loads(server.stdout.readline())
            askers = ways(about, folder)
            askers["unix socket"].ask("POST", "/v1/vms", b'{"name": "web"}')
            took: dict[str, list[float]] = {name: [] for name in askers}
            for turn in range(WARM + runs):
                for way, asker in askers.items():
                    spent = asker.ask()
                    if turn >= WARM:
                        took[way].append(spent)
            took["a change, unix socket"] = [
                askers["unix socket"].ask("POST", f"{ASKED}:start") for _ in range(runs // 10)
            ]
            server.stdin.close()
            server.wait()
    return {
        way: {
            "median_ms": round(statistics.median(times), 3),
            "p95_ms": round(statistics.quantiles(times, n=20)[-1], 3),
        }
        for way, times in took.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--check", action="store_true", help="exit 1 if the promise is missed")
    parser.add_argument("--output", type=Path, help="file of the JSON")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve))
        return 0
    found = measure(options.runs)
    more = {
        way: round(one["median_ms"] - found["plain"]["median_ms"], 3)
        for way, one in found.items()
        if way.startswith("https") and "new" not in way
    }
    for way, one in found.items():
        over = f"  {more[way]:+.2f} ms, promised {PROMISED_MS:g}" if way in more else ""
        print(f"{way:<30} median {one['median_ms']:6.2f} ms  p95 {one['p95_ms']:6.2f} ms{over}")
    kept = {way: over < PROMISED_MS for way, over in more.items()}
    facts = {"qemu": {"version": "", "accel": ""}}
    figures.write("requests", facts, options, {"ms": found, "more_ms": more, "kept": kept})
    return 1 if options.check and not all(kept.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
