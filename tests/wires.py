"""Two hosts as namespaces with cables between them, and a link's two ends as processes in them.

Each cable goes over a bridge in a namespace between the two, so that it can be pulled without
either host's interface being down: one loses its carrier, the other hears nothing.
"""

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slow_wire
from link_rig import eventually
from sterna.carrier.link import Endpoint, Link, Route, Tls
from sterna.errors import LinkClosed, StreamReset
from sterna.security.pair import make

MBIT = 125_000  # bytes a second
MESSAGE = 1 << 20  # bytes
_ROLES = ("a", "fabric", "b")
_LONG_S = 60.0


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


class Wires:
    """`count` cables; the source is on `10.99.N.1`, the target on `10.99.N.2`."""

    def __init__(self, count: int) -> None:
        stem = f"sterna-t-{os.getpid()}-{time.monotonic_ns() % 10**9}"
        self.count = count
        self._slow: subprocess.Popen[bytes] | None = None
        self._names = {role: f"{stem}-{role}" for role in _ROLES}
        for name in self._names.values():
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        for number in range(count):
            self._lay(number)

    def remove(self) -> None:
        if self._slow is not None:
            self._slow.kill()
            self._slow.communicate()
        for name in self._names.values():
            run("ip", "netns", "del", name)

    def inside(self, role: str) -> list[str]:
        return ["ip", "netns", "exec", self._names[role]]

    def shape(self, rate: str | None) -> None:
        """Each direction of each cable; None: as fast as the machine is."""
        tbf = ["tbf", "rate", rate, "burst", "128kb", "latency", "20ms"] if rate else ["noqueue"]
        for role in ("a", "b"):
            for number in range(self.count):
                name = self._names[role]
                run("tc", "-n", name, "qdisc", "replace", "dev", f"eth{number}", "root", *tbf)

    def exact(self) -> None:
        """Every packet is one on the wire, as a real card counts it."""
        for role in ("a", "b"):
            for number in range(self.count):
                name = self._names[role]
                run("ip", "-n", name, "link", "set", f"eth{number}", "gso_max_segs", "1")

    def delay(self, seconds: float) -> None:
        """Each way of cable 0, from now on; once. A process stands in for the bridge."""
        if not seconds:
            return
        fabric, program = self._names["fabric"], str(Path(__file__).with_name("slow_wire.py"))
        for role in ("a", "b"):
            for name, end in ((self._names[role], "eth0"), (fabric, f"{role}0")):
                run("ip", "-n", name, "link", "set", end, "mtu", str(slow_wire.LARGEST))
                run("ip", "netns", "exec", name, sys.executable, program, "off", end)
            run("ip", "-n", fabric, "link", "set", f"{role}0", "nomaster")
        process = subprocess.Popen(
            [*self.inside("fabric"), sys.executable, program, str(seconds), "a0", "b0"],
            stdout=subprocess.PIPE,
        )
        assert process.stdout.readline() == b"ready\n"
        self._slow = process

    def pull(self, number: int) -> None:
        run("ip", "-n", self._names["fabric"], "link", "set", f"a{number}", "down")

    def plug(self, number: int) -> None:
        run("ip", "-n", self._names["fabric"], "link", "set", f"a{number}", "up")

    def sent(self) -> int:
        """Bytes that the source's interfaces have sent so far."""
        text = run(*self.inside("a"), "cat", "/proc/net/dev")
        lines = [line.split(":") for line in text.splitlines() if "eth" in line.split(":")[0]]
        return sum(int(numbers.split()[8]) for _, numbers in lines)

    def rate(self, seconds: float) -> float:
        """Bytes a second over so long."""
        begun, before = time.monotonic(), self.sent()
        time.sleep(seconds)
        return (self.sent() - before) / (time.monotonic() - begun)

    @contextlib.contextmanager
    def transfer(self, **options: Any) -> "Iterator[Transfer]":
        transfer = Transfer(self, **options)
        try:
            yield transfer
        finally:
            transfer.end()

    def _lay(self, number: int) -> None:
        fabric = self._names["fabric"]
        run(
            "ip",
            "-n",
            fabric,
            "link",
            "add",
            f"br{number}",
            "type",
            "bridge",
            "mcast_snooping",
            "0",
        )
        run("ip", "-n", fabric, "link", "set", f"br{number}", "up")
        for role, last in (("a", 1), ("b", 2)):
            name, outer, inner = self._names[role], f"{role}{number}", f"eth{number}"
            run(
                "ip",
                "-n",
                fabric,
                "link",
                "add",
                outer,
                "type",
                "veth",
                "peer",
                inner,
                "netns",
                name,
            )
            run("ip", "-n", fabric, "link", "set", outer, "master", f"br{number}", "up")
            run("ip", "-n", name, "addr", "add", f"10.99.{number}.{last}/24", "dev", inner)
            run("ip", "-n", name, "link", "set", inner, "up")


@dataclass(frozen=True)
class Done:
    rate: float  # bytes of payload a second
    is_whole: bool
    retransmitted: int
    events: list[str]
    cpu_s: float  # of both processes
    wire: int
    seconds: float


class Transfer:
    """So many bytes in messages from the source to the target, checked there."""

    def __init__(
        self,
        wires: Wires,
        *,
        routes: int,
        size: int,
        grace_s: float | None = 30.0,
        limit: int | None = None,
    ) -> None:
        near, far = make(), make()
        self.stats: dict[str, Any] = {"down_since": None, "channels": [], "limited": False}
        self.received = 0
        self._events: list[str] = []
        self._done: dict[str, dict[str, Any]] = {}
        self._size = size
        self._started: list[tuple[subprocess.Popen[str], threading.Thread]] = []
        addresses = [f"10.99.{number}.2" for number in range(routes)]
        common = {"grace_s": grace_s, "limit": limit, "size": size}
        self._start(
            wires,
            "b",
            {**common, "tls": [far.certificate, far.key, near.certificate], "addresses": addresses},
        )
        assert eventually(lambda: "endpoints" in self.stats, _LONG_S)
        self._source = self._start(
            wires, "a",
            {**common, "tls": [near.certificate, near.key, far.certificate], "endpoints": self.stats["endpoints"]},
        )  # fmt: skip

    def limit(self, rate: int | None) -> None:
        print(json.dumps(rate), file=self._source.stdin, flush=True)

    def wait_for(self, size: int) -> None:
        """Until so many bytes have come."""
        assert eventually(lambda: self.received >= size or self._done, _LONG_S)
        assert self.received >= size, self._done

    def states(self) -> list[str]:
        return [channel["state"] for channel in self.stats["channels"]]

    def result(self) -> Done:
        assert eventually(lambda: len(self._done) == 2, _LONG_S), (self.stats, self._events)
        assert "failed" not in self._done["a"], self._done
        source, target = self._done["a"], self._done["b"]
        return Done(
            rate=self._size / source["seconds"],
            is_whole=target.get("whole") == self._size,
            retransmitted=source["retransmitted"],
            events=self._events,
            cpu_s=source["cpu_s"] + target["cpu_s"],
            wire=source["wire"],
            seconds=source["seconds"],
        )

    def failures(self) -> list[str]:
        """What both sides say that went wrong."""
        assert eventually(lambda: len(self._done) == 2, _LONG_S), (self.stats, self._events)
        return [done["failed"] for done in self._done.values()]

    def end(self) -> None:
        for process, listener in self._started:
            process.kill()
            process.wait()
            listener.join()
            process.stdin.close()
            process.stdout.close()

    def _start(self, wires: Wires, role: str, orders: dict[str, Any]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*wires.inside(role), sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        print(json.dumps(orders), file=process.stdin, flush=True)
        listener = threading.Thread(target=self._listen, args=(role, process), daemon=True)
        listener.start()
        self._started.append((process, listener))
        return process

    def _listen(self, role: str, process: subprocess.Popen[str]) -> None:
        for line in process.stdout:
            said = json.loads(line)
            if "event" in said:
                self._events.append(said["event"])
            elif "done" in said:
                self._done[role] = said["done"]
            else:
                self.stats.update(said)
                self.received = self.stats.get("received", 0)


# ---- in the namespaces


def tell(**facts: Any) -> None:
    with _telling:
        print(json.dumps(facts), flush=True)


_telling = threading.Lock()


def work(orders: dict[str, Any]) -> dict[str, Any]:
    certificate, key, peer = orders["tls"]
    is_source = "endpoints" in orders
    link = Link(
        tls=Tls(certificate, key, peer),
        grace_s=orders["grace_s"],
        limit=orders["limit"] if is_source else None,
        on_event=lambda event: tell(event=event.text),
        lead=is_source,
    )
    begun = time.process_time()
    try:
        found = (send if is_source else receive)(link, orders)
    except (LinkClosed, StreamReset) as error:
        found = {"failed": str(error)}
    found["cpu_s"] = time.process_time() - begun
    link.close("done")
    return found


def payload() -> bytes:
    return random.Random(0).randbytes(MESSAGE - 8)


def send(link: Link, orders: dict[str, Any]) -> dict[str, Any]:
    link.connect([Route("", Endpoint(*endpoint)) for endpoint in orders["endpoints"]])
    stream = link.open("bulk")
    threading.Thread(target=report, args=(link,), daemon=True).start()
    threading.Thread(target=obey, args=(link,), daemon=True).start()
    stream.receive()  # the other side is ready
    data = payload()
    begun = time.monotonic()
    for number in range(orders["size"] // MESSAGE):
        stream.send(number.to_bytes(8) + data)
    stream.finish()
    stream.drain()
    seconds = time.monotonic() - begun
    stream.receive()
    time.sleep(0.1)  # for the last figures
    stats = link.stats()
    return {"seconds": seconds, "retransmitted": stats.retransmitted, "wire": stats.wire_out}


def receive(link: Link, orders: dict[str, Any]) -> dict[str, Any]:
    endpoints = link.listen(orders["addresses"])
    tell(endpoints=[[one.address, one.port] for one in endpoints])
    _, stream = link.accept()
    data, received, told = payload(), 0, 0.0
    stream.send(b"ready")
    while (message := stream.receive()) is not None:
        is_next = int.from_bytes(message[:8]) == received // MESSAGE
        if not (is_next and len(message) == MESSAGE and message.endswith(data)):
            raise AssertionError(f"message {received // MESSAGE} is another one")
        received += len(message)
        if time.monotonic() - told > 0.02:
            told = time.monotonic()
            tell(received=received)
    tell(received=received)
    stream.finish()
    stream.drain()
    return {"whole": received}


def report(link: Link) -> None:
    while not link.ends.wait(0.05):
        stats = link.stats()
        tell(
            down_since=stats.down_since,
            limited=stats.limited,
            in_flight=stats.in_flight,
            channels=[
                {"state": one.state, "rate": one.rate, "rtt_ms": one.rtt_ms}
                for one in stats.channels
            ],
        )


def obey(link: Link) -> None:
    for line in sys.stdin:
        link.set_limit(json.loads(line))


if __name__ == "__main__":
    tell(done=work(json.loads(sys.stdin.readline())))
