"""A lab: hosts on this one machine that know, trust and reach each other.

`up` makes one and leaves it running, `find` gives an existing one, `remove.remove` ends it.
Promises that nothing in the caller's own network changes, that a failed or interrupted `up`
leaves nothing behind, and that labs with different names do not notice each other.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sterna.errors import HostUnknown, LabExists, LabFailed, LabNotFound
from sterna.lab import netns, record
from sterna.lab.guest.image import GuestImage, build
from sterna.lab.hosts import Host, hosts_of
from sterna.lab.links import CLIENT, Links, Network, bits_per_s, subnet
from sterna.lab.processes import identify
from sterna.lab.record import Record
from sterna.lab.remove import leftovers, remove, sweep

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The lab to make. `ends_with_us`: it is removed when this process is gone."""

    name: str = "demo"
    hosts: int = 2
    rate: str | None = None  # of the migration network, such as 1gbit; None: as fast as it goes
    accel: str = "auto"
    ends_with_us: bool = False
    migrations: int = 1  # migration networks: 1 or 2, each of `rate`


class Lab:
    """A lab that is there. `lab["hv-a"]` is a host; cables are named by host and network."""

    def __init__(self, found: Record) -> None:
        self.name = found.name
        self.folder = found.folder
        self.record = found
        self.hosts = hosts_of(found)
        self.links = Links(found.name, list(found.hosts), found.migrations)

    def __getitem__(self, name: str) -> Host:
        for host in self.hosts:
            if host.name == name:
                return host
        known = ", ".join(self.record.hosts)
        raise HostUnknown(host=f"the lab {self.name}", peer=name, known=known)

    @property
    def client_netns(self) -> str:
        """The namespace beside the guests, on the data network."""
        return netns.name(self.name, CLIENT)

    def guest(self) -> GuestImage:
        """What the lab's guests boot."""
        return build()

    def cut(self, host: str, network: Network | str) -> None:
        """Pull the host's cable to that network."""
        self.links.cut(host, Network(network))

    def restore(self, host: str, network: Network | str) -> None:
        self.links.restore(host, Network(network))

    def shape(self, network: Network | str, rate: str | None) -> None:
        """Limit the cables of that network, in each direction; None: no limit."""
        self.links.shape(Network(network), rate)


def find(name: str) -> Lab:
    """The lab with that name. Raises LabNotFound, or LabFailed if only parts of it are there."""
    record.check_name(name)
    found = record.read(name)
    if found is None:
        if leftovers(name):
            raise LabFailed(
                lab=name,
                action="be used",
                reason="only parts of it are there",
                fix=f"Remove them with: sterna lab down --name {name}",
            )
        raise LabNotFound(lab=name)
    return Lab(found)


def up(wanted: Wanted, say: Say = lambda _: None) -> Lab:
    """Make it. Returns when every daemon answers; on any failure nothing is left."""
    netns.require("up")
    record.check_name(wanted.name)
    names = record.host_names(wanted.hosts)
    if wanted.rate:
        bits_per_s(wanted.rate)
    for old in sweep():
        say(f"removed the lab {old}, whose owner had ended without doing so")
    if leftovers(wanted.name):
        raise LabExists(lab=wanted.name)
    guest = build(say=say)
    try:
        return _make(wanted, names, guest, say)
    except BaseException:
        with undisturbed():
            remove(wanted.name)
        raise


def _make(wanted: Wanted, names: tuple[str, ...], guest: GuestImage, say: Say) -> Lab:
    place = record.folder(wanted.name)
    place.mkdir(mode=0o700, parents=True)
    made = Record(
        name=wanted.name,
        hosts=names,
        rate=wanted.rate,
        accel=wanted.accel,
        probe_kernel=str(guest.kernel),
        owner=identify(os.getpid()) if wanted.ends_with_us else None,
        migrations=wanted.migrations,
    )
    made.write()
    lab = Lab(made)
    networks = ", ".join(f"{network} {subnet(network)}" for network in lab.links.networks)
    say(f"making the networks {networks}")
    lab.links.make()
    if wanted.rate:
        for network in lab.links.migrations:
            lab.shape(network, wanted.rate)
        say(f"the migration network carries {wanted.rate} in each direction")
    _furnish(lab)
    say(f"starting sternad on {', '.join(names)}")
    for host in lab.hosts:
        host.start()
    for host in lab.hosts:
        host.wait_ready()
        host.declare()
    for number, host in enumerate(lab.hosts):
        for other in lab.hosts[:number]:
            host.pair(other)
    return lab


def _furnish(lab: Lab) -> None:
    """Folders and configurations."""
    (lab.folder / "shared").mkdir(mode=0o700)
    for host in lab.hosts:
        host.prepare()
    for host in lab.hosts:
        host.configure()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not tear a removal apart. For the main thread."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    old = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


__all__ = ["Lab", "Wanted", "find", "leftovers", "remove", "sweep", "undisturbed", "up"]
