"""`sternad`: the daemon of one host. Puts the parts together, serves the API, stops on a signal.

Never touches a guest by starting, stopping or dying: QEMUs live in sessions of their own, and the
next start finds them again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sterna import __version__, clock, config, log
from sterna.api.app import build
from sterna.api.serve import serve
from sterna.api.services import Services
from sterna.checkpoint.seed import Seeds
from sterna.checkpoint.service import Checkpoints
from sterna.checkpoint.settle import settlers
from sterna.config import Config
from sterna.errors import BadConfig, SternaError
from sterna.fleet.drain import Drains
from sterna.fleet.hosts import Fleet
from sterna.fleet.pairing import Pairing
from sterna.fleet.several import Several
from sterna.host import inventory
from sterna.host.network import Network
from sterna.host.registry import Pools, Switches
from sterna.host.settings import Settings
from sterna.model.host import HostFacts, Moving, QEMUFacts, SwitchFacts
from sterna.model.placement import groups
from sterna.model.settings import HostSettings
from sterna.move.engine import Moves
from sterna.move.incoming import Incoming
from sterna.move.peer import Peers
from sterna.move.recovery import Recovery
from sterna.move.resolve import Doubts
from sterna.move.storage.engine import StorageMoves
from sterna.operations.journal import Journal
from sterna.operations.runner import Runner
from sterna.port.service import Ports
from sterna.qemu import capabilities, cpus
from sterna.security import identity
from sterna.security import local as local_users
from sterna.security.audit import Audit
from sterna.security.authority import Authority
from sterna.security.guardian import Guardian
from sterna.security.realm import Realm
from sterna.security.trust import Trust
from sterna.vms.drives import Drives
from sterna.vms.guardians import Guardians
from sterna.vms.inspection import Inspections
from sterna.vms.launch import Launcher
from sterna.vms.plug import Plugs
from sterna.vms.service import VMs
from sterna.vms.tpm import TPMs

API_VERSION = 1
PEER_S = 3.0  # for a list of hosts; one that is well answers in milliseconds
logger = logging.getLogger("sternad")


class Daemon:
    """All parts of one host's daemon, wired once."""

    def __init__(self, settings: Config, launcher: Launcher, qemu: QEMUFacts) -> None:
        self.config = settings
        self.launcher = launcher
        self.runner = launcher.runner
        self.idleness = inventory.Idleness()
        self.qemu = qemu
        migration = settings.migration
        installed = HostSettings(bandwidth=migration.limit or 0, encryption=migration.encryption)
        self.settings = Settings(
            settings.state_dir / "settings", installed, settings.name, settings.migration_addresses
        )
        self.vms = VMs(settings, launcher, self.runner)
        self.vms.settings = lambda: self.settings.now
        own = identity.ensure(*_identity(settings))
        self.trust = Trust(settings.state_dir / "peers", own)
        self.peers = Peers(settings.name, self.trust)
        self.incoming = Incoming(self.vms, lambda: self.facts(with_switches=False))
        self.vms.is_draining = lambda: self.settings.now.draining
        self.checkpoints = Checkpoints(self.vms)
        self.inspections = Inspections(self.vms)
        self.ports = Ports(self.vms, self.checkpoints)
        self.seeds = Seeds(self.vms, self.checkpoints)
        self.incoming.on_arrival = self.seeds.make_whole
        self.moves = Moves(
            self.vms, self.peers, self.facts, self.seeds, self.inspections, self.settings
        )
        self.several = Several(self.vms, self.moves)
        self.fleet = Fleet(self.vms, self.peers, self.facts)
        self.drains = Drains(self.vms, self.moves, self.peers, self.fleet, self.settings)
        self.plugs = Plugs(self.vms)
        self.drives = Drives(self.vms)
        self.doubts = Doubts(self.vms, self.peers, self.incoming)
        self.audit = Audit(settings.state_dir / "audit")
        who_is_local = local_users.of(settings)
        realm = Realm(settings.name, settings.kerberos) if settings.kerberos.keytab else None
        self.guardians = Guardians(self.vms)
        self.authority = Authority(
            settings.name, settings.state_dir, self.trust, who_is_local, realm
        )
        self.pairing = Pairing(settings, self.trust, self.peers, self.incoming, self.runner)

    async def facts(self, *, with_switches: bool = True) -> HostFacts:
        """This host at this moment. To look at the switches takes processes, so not for nothing."""
        memory = inventory.memory()
        (switches, uplinks), pools = await asyncio.gather(
            self._switches() if with_switches else _no_switches(),
            self.launcher.pools.facts(),
        )
        free = memory.available - self.config.migration.reserve_memory
        problems = [
            f"the record of {what} {item.key} is damaged: {item.path} ({item.reason})"
            for what, damaged in (
                ("VM", self.vms.damaged),
                ("kept copy", self.vms.kept.damaged),
                ("switch", self.launcher.switches.damaged),
                ("pool", self.launcher.pools.damaged),
                ("settings", self.settings.damaged),
                ("drained VM", self.drains.damaged),
                ("peer", self.trust.damaged),
                ("user or token", self.authority.accounts.damaged),
                ("guardian", self.guardians.damaged),
            )
            for item in damaged
        ]
        problems += [
            f"no address of this host is in its migration network {one}"
            for one in self.settings.lost
        ]
        problems += self.trust.problems
        if self.audit.problem:
            problems.append(self.audit.problem)
        journal = self.runner.journal
        problems += [error.message for error in journal.damaged]
        if journal.problem:
            problems.append(f"the journal cannot be written: {journal.problem}")
        return HostFacts(
            name=self.config.name,
            sterna=__version__,
            api=API_VERSION,
            time=clock.now(),
            cpus=inventory.cpus(),
            memory_total=memory.total,
            memory_free=max(0, free - self.incoming.promised_memory),
            qemu=self.qemu,
            switches=tuple(switches),
            pools=tuple(pools),
            migration_address=next(iter(self.vms.migration_addresses), ""),
            migration_addresses=self.vms.migration_addresses,
            vms=sum(vm.is_here for vm in self.vms.all()),
            cpu=self.launcher.cpu,
            cpus_idle=self.idleness.cpus,
            problems=tuple(problems),
            uplinks=uplinks,
            settings=self.settings.now,
            groups=groups(
                (vm.name, vm.record.spec.placement) for vm in self.vms.all() if vm.is_here
            ),
            moving=Moving(**self.moves.under_way, **self.incoming.under_way),
            file_limit=inventory.file_limit(),
            realm=self.authority.realm_facts,
            guardian=self.launcher.tpms.own.public,
            has_tpm=self.launcher.tpms.is_installed,
            macs={
                nic.mac: f"{vm.name} {nic.name}"
                for vm in self.vms.all()
                if vm.is_here
                for nic in vm.record.spec.nics
            },
        )

    async def _switches(self) -> tuple[tuple[SwitchFacts, ...], tuple[str, ...]]:
        switches = self.launcher.switches
        return await switches.facts(), await switches.uplinks()

    async def start(self) -> None:
        """Bring switches and VMs back to what their records say; then the API may answer."""
        self.ports.load()
        self.drains.load()
        self.moves.paces.load()
        ends = {
            **settlers(self.vms, self.checkpoints),
            **self.ports.settlers(),
            **self.several.settlers(),
            **self.drains.settlers(),
        }
        recovery = Recovery(self.vms, self.peers, self.incoming, ends)
        await recovery.run()
        await self.plugs.restore()
        await self.ports.clear()
        self.runner.background(self.seeds.sweep(), "make disks whole that a move had frozen")
        self.runner.background(self.idleness.watch(), "watch how busy the processors are")
        self.runner.background(self.doubts.tell(), "tell hosts that were fenced")
        self.runner.background(self.vms.kept.janitor(), "delete kept copies that have expired")
        self.runner.background(self.inspections.note(), "note what frozen images look like")
        self.runner.background(self.incoming.parts.janitor(), "delete parts of files of old moves")

    def services(self) -> Services:
        """What the API serves."""
        return Services(
            name=self.config.name,
            facts=self.facts,
            hosts=self.hosts,
            peer_facts=self.peer_facts,
            vms=self.vms,
            switches=self.launcher.switches,
            pools=self.launcher.pools,
            kept=self.vms.kept,
            operations=self.runner,
            moves=self.moves,
            checkpoints=self.checkpoints,
            inspections=self.inspections,
            ports=self.ports,
            storage_moves=StorageMoves(self.vms, self.moves.storage_slots),
            fleet=self.fleet,
            plugs=self.plugs,
            drives=self.drives,
            settings=self.settings,
            incoming=self.incoming,
            doubts=self.doubts,
            several=self.several,
            drains=self.drains,
            pairing=self.pairing,
            audit=self.audit,
            authority=self.authority,
            guardians=self.guardians,
        )

    async def hosts(self) -> list[dict[str, Any]]:
        """This host and its peers, each asked now, all at once."""
        here = {
            "name": self.config.name,
            "url": f"unix://{self.config.socket}",
            "state": "this",
            "reason": "",
            "version": __version__,
            "vms": sum(vm.is_here for vm in self.vms.all()),
            "draining": self.settings.now.draining,
            "certificate_ends": identity.end_of(self.trust.own.pem).isoformat(),
        }
        peers = await asyncio.gather(*(self._peer_row(name) for name in self.peers.names))
        return [here, *peers]

    async def _peer_row(self, name: str) -> dict[str, Any]:
        row: dict[str, Any] = {
            "name": name,
            "url": "",
            "version": "",
            "vms": None,
            "draining": False,
        }
        if (record := self.trust.get(name)) is not None:
            row["url"] = record.url
            row["certificate_ends"] = identity.end_of(record.certificate).isoformat()
            row["role"] = record.role
        try:
            async with asyncio.timeout(PEER_S):
                facts = await self.peers.get(name).facts()
        except TimeoutError:
            return row | {"state": "down", "reason": f"no answer within {PEER_S:g} s"}
        except SternaError as error:
            return row | {"state": "down", "reason": error.message}
        return row | {
            "state": "up",
            "reason": "",
            "version": facts.sterna,
            "vms": facts.vms,
            "draining": facts.settings.draining,
        }

    async def peer_facts(self, name: str) -> HostFacts:
        """Facts of this host or of a peer."""
        return await (self.facts() if name == self.config.name else self.peers.get(name).facts())


def _identity(settings: Config) -> tuple[Path, str, str]:
    address = settings.listen.address if settings.listen else ""
    return settings.state_dir / "identity", settings.name, address


async def _no_switches() -> tuple[tuple[SwitchFacts, ...], tuple[str, ...]]:
    return (), ()


async def assemble(settings: Config) -> Daemon:
    """Look at the machine, then put the parts together. Raises what makes the host unusable."""
    cache = settings.state_dir / "cache"
    offers = await capabilities.probe(settings.qemu.binary, settings.qemu.arguments, cache)
    accel, reason = await capabilities.choose_accel(settings.qemu, cache, logger.info)
    network = Network(host=settings.name)
    switches = Switches(settings.state_dir / "switches", network, host=settings.name)
    pools = Pools(settings.state_dir / "pools", host=settings.name)
    switches.load()
    pools.load()
    await switches.ensure()
    launcher = Launcher(
        config=settings,
        host=settings.name,
        capabilities=offers,
        accel=accel,
        network=network,
        switches=switches,
        pools=pools,
        runner=Runner(Journal(settings.state_dir / "journal.db"), settings.name),
        tpms=TPMs(
            settings.name,
            settings.state_dir / "tpm",
            Guardian.ensure(settings.state_dir / "identity"),
        ),
        cpu=await cpus.facts(settings.qemu, offers.binary, accel, cache),
    )
    qemu = QEMUFacts(
        binary=offers.binary,
        version=offers.version,
        accel=accel,
        accel_reason=reason,
        machines=offers.machines,
    )
    return Daemon(settings, launcher, qemu)


async def run(settings: Config) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    daemon = await assemble(settings)
    await daemon.start()
    try:
        app = build(daemon.services())
        async with serve(app, settings, daemon.trust, daemon.authority, daemon.audit):
            logger.info("sternad %s of host %s is ready", __version__, settings.name)
            await stop.wait()
            logger.info("stopping; guests run on")
            await daemon.runner.close()
    finally:
        daemon.incoming.parts.close()
        await daemon.peers.close()
        await daemon.runner.journal.close()
        await daemon.audit.close()


@contextlib.contextmanager
def only_one(settings: Config) -> Iterator[None]:
    """Two daemons must never manage the same VMs. Raises BadConfig if one runs already."""
    for folder, mode in ((settings.state_dir, 0o700), (settings.run_dir, 0o755)):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(mode)  # whatever the umask; the socket is in the second
    lock = settings.state_dir / "lock"
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise BadConfig(
            path=lock, reason="another sternad already runs with this state folder"
        ) from error
    try:
        yield
    finally:
        os.close(fd)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="sternad", description="The daemon of a Sterna host: owns its VMs, serves the API."
    )
    parser.add_argument("--config", type=Path, default=config.DEFAULT_PATH, help="%(default)s")
    parser.add_argument("--version", action="version", version=__version__)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Errors are two lines on standard error and the exit code of their family."""
    arguments = _arguments(argv)
    try:
        settings = config.load(arguments.config)
        log.setup(settings.log_level)
        with only_one(settings):
            asyncio.run(run(settings))
    except SternaError as error:
        print(f"sternad: {error.message}", file=sys.stderr)  # noqa: T201
        if error.advice:
            print(f"fix: {error.advice}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
