"""Requests that fit the description of the API, and that nearly do, against a real daemon: schemathesis.

    python tests/fuzz/fuzz_api.py SCHEMATHESIS [ROLE] [its options]

A lab of one host, of which the daemon may write to its own folders only: an administrator may name
any path of the host. What is looked for: no answer says 500, every answer is described, and the
daemon that answered the first request answers the last.
"""

from __future__ import annotations

import subprocess
import sys

from sterna.lab import hosts as lab_hosts
from sterna.lab.lab import Wanted, remove, up

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
ENDLESS = ("/v1/events", "/v1/operations/{operation}/events")  # streams
DOORS = ("/v1/peer/.*", "/v1/sessions.*")  # of hosts; of passwords, which lock the address out
ROOT_IS_READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind / && exec "$@"'


def main(tool: str, role: str = "admin", *options: str) -> int:
    lab = up(Wanted(name="fuzz", hosts=1, ends_with_us=True), print)
    try:
        (host,) = lab.hosts
        ordinary = lab_hosts._daemon
        shell = ["unshare", "-m", "sh", "-c", ROOT_IS_READ_ONLY, str(lab.folder)]
        lab_hosts._daemon = lambda: [*shell, *ordinary()]
        host.stop()
        host.start()
        host.wait_ready()
        before = host.process
        token = host.client.post("/v1/tokens", {"name": "fuzz", "role": role})["token"]
        certificate = host.folder / "state" / "identity" / "certificate.pem"
        excluded = [f"--exclude-path={path}" for path in ENDLESS]
        excluded += [f"--exclude-path-regex={path}" for path in DOORS]
        done = subprocess.run(
            host.command([
                tool, "run", "docs/openapi.json", "--url", f"https://{host.address}:{lab_hosts.PORT}",
                "--header", f"Authorization: Bearer {token}", "--tls-verify", str(certificate),
                "--checks", CHECKS, "--continue-on-failure", "--no-color",
                "--generation-database", "none", *excluded, *options,
            ]),
            check=False,
        )  # fmt: skip
        assert host.process is not None, "sternad has ended"
        assert host.process == before, "sternad is another"
        said = [line for line in host.log.read_text().splitlines() if "Traceback" in line]
        print(f"sternad is well; {len(said)} tracebacks in its log")
        if said:
            print(host.log.read_text()[-6000:])
        return done.returncode or bool(said)
    finally:
        lab_hosts._daemon = ordinary
        remove(lab.name)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
