"""Every order of steps, crashes and messages of one VM on two or three hosts, by exhaustion.

The ownership decisions are the product's own (`sterna.move.protocol`); what is modelled here is the
world around them: daemons that die between a durable write and its effect, hosts that lose their
power, QEMUs that end, a network that loses, delays, reorders and repeats, leases that expire,
users who cancel, move and start, an operator who fences. `explore` visits every state within the
bounds, `Broken` tells the first way to a state that must not be.

Run it for a larger search: `python tests/model/explore.py`.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from sterna.model.vm import Ownership, OwnershipState
from sterna.move import protocol
from sterna.move.protocol import Standing

OWNED, YIELDING, RELEASED = protocol.OWNED, protocol.YIELDING, protocol.RELEASED
RUNS = ("running", "lacking")
RESERVED, REFUSED = protocol.RESERVED, protocol.REFUSED


@dataclass(frozen=True)
class Rules:
    """The functions under test; a test replaces one of them by a wrong one."""

    source_yield: Callable[..., Standing | None] = protocol.source_yield
    source_answer: Callable[..., Standing] = protocol.source_answer
    source_undelivered: Callable[..., Standing] = protocol.source_undelivered
    admits: Callable[..., bool] = protocol.admits
    on_take: Callable[..., protocol.Taken] = protocol.on_take
    late_answer: Callable[..., OwnershipState] = protocol.late_answer
    refuse: Callable[..., Standing] = protocol.refuse
    not_run: Callable[..., Standing] = protocol.not_run
    on_restart: Callable[..., Standing] = protocol.on_restart
    fence: Callable[..., Standing | None] = protocol.fence
    blocks_fence: Callable[..., bool] = protocol.blocks_fence
    on_fenced: Callable[..., Standing | None] = protocol.on_fenced
    may_run: Callable[..., bool] = protocol.may_run
    is_truthful: bool = True  # the operator fences only a host that is off
    remembers_decisions: bool = True  # a daemon answers again what it has answered
    serves: bool = True  # a source's QEMU with pages that its target lacks is not ended


@dataclass(frozen=True)
class Bounds:
    hosts: int = 2
    moves: int = 2
    crashes: int = 1  # of a daemon alone
    power: int = 1  # of a host, its QEMU too
    deaths: int = 0  # of a QEMU
    fences: int = 1
    postcopy: bool = False  # moves may end in it
    messages: int = 3  # in flight at once; what is sent beyond is lost
    states: int = 5_000_000


class Source(NamedTuple):
    """What a daemon that moves the VM away has in mind; gone when it dies."""

    phase: str  # reserving, ready, stopped, yielded (take not sent yet), asking
    operation: int
    to: int


class Host(NamedTuple):
    disk: Standing | None
    up: bool = True  # its daemon
    off: bool = False  # no power: no QEMU, and only a restart ends it
    # incoming, paused, running; in post-copy: sending (the source: the guest stands still, its pages
    # are here), loaded (the target has all but pages), lacking (the guest runs there)
    qemu: str = ""
    source: Source | None = None
    arrival: int = 0  # operation whose reservation this daemon holds undecided
    decided: tuple[tuple[int, OwnershipState], ...] = ()
    early: frozenset[int] = frozenset()  # refused before they were asked for
    todo: tuple[tuple[Any, ...], ...] = ()  # effects that a durable write allowed, in order


class Message(NamedTuple):
    kind: str  # reserve, held, take, refuse, answer, fenced, told
    to: int
    sender: int
    operation: int = 0
    epoch: int = 0
    state: str = ""


class World(NamedTuple):
    hosts: tuple[Host, ...]
    net: frozenset[Message] = frozenset()
    moves: tuple[tuple[int, int], ...] = ()  # (from, to) of each operation
    crashes: int = 0
    power: int = 0
    deaths: int = 0
    fences: int = 0
    newest: int = 1  # highest epoch under which a vCPU could run


class Broken(Exception):
    """An invariant does not hold; `trace` leads there."""

    def __init__(self, what: str, trace: list[str]) -> None:
        super().__init__(what + "\n  " + "\n  ".join(trace))
        self.what, self.trace = what, trace


class Found(NamedTuple):
    states: int
    steps: int
    settled: int  # states with exactly one owner and no doubt
    seconds: float


REPEATED = frozenset({"take", "refuse", "answer", "fenced", "told"})
# `reserve` is sent once, over TLS, which repeats nothing by itself; its answer too.


class Explorer:
    def __init__(self, bounds: Bounds, rules: Rules) -> None:
        self.bounds, self.rules = bounds, rules

    # ---- changing a world ------------------------------------------------------------------

    def put(self, world: World, number: int, **changes: Any) -> World:
        hosts = list(world.hosts)
        hosts[number] = hosts[number]._replace(**changes)
        return world._replace(hosts=tuple(hosts))

    def send(self, world: World, message: Message) -> World:
        if message in world.net or len(world.net) >= self.bounds.messages:
            return world
        return world._replace(net=world.net | {message})

    # ---- all steps -------------------------------------------------------------------------

    def steps(self, world: World) -> Iterator[tuple[str, bool, World]]:
        """(what happens, whether it happens by itself if nothing fails, the world after it)."""
        for number, host in enumerate(world.hosts):
            if host.up:
                if host.todo:
                    yield from self.effect(world, number)
                else:
                    yield from self.source(world, number)
                    yield from self.target(world, number)
                    yield from self.user(world, number)
            else:
                yield f"{number} starts", True, self.restart(world, number)
            yield from self.faults(world, number)
        for message in world.net:
            gone = world._replace(net=world.net - {message})
            yield f"lost: {_words(message)}", False, gone
            host = world.hosts[message.to]
            if host.up and not host.todo:
                for what, after in self.deliver(gone, message):
                    yield f"{_words(message)}{what}", True, after
                    if message.kind in REPEATED and message not in after.net:
                        again = after._replace(net=after.net | {message})
                        yield f"{_words(message)}{what}, and again", False, again

    def faults(self, world: World, number: int) -> Iterator[tuple[str, bool, World]]:
        host, bounds = world.hosts[number], self.bounds
        dead = {"up": False, "source": None, "arrival": 0, "decided": (), "todo": ()}
        dead["early"] = frozenset()
        if host.up and world.crashes < bounds.crashes:
            after = self.put(world, number, **dead)._replace(crashes=world.crashes + 1)
            yield f"daemon of {number} dies", False, after
        if not host.off and world.power < bounds.power:
            after = self.put(world, number, off=True, qemu="", **dead)
            yield f"{number} loses power", False, after._replace(power=world.power + 1)
        if host.qemu and world.deaths < bounds.deaths:
            after = self.put(world, number, qemu="")._replace(deaths=world.deaths + 1)
            yield f"QEMU of {number} dies", False, after

    # ---- effects, one at a time: a crash may come between any two ----------------------------

    def effect(self, world: World, number: int) -> Iterator[tuple[str, bool, World]]:
        host = world.hosts[number]
        first, rest = host.todo[0], host.todo[1:]
        done = self.put(world, number, todo=rest)
        match first:
            case ("send", message):
                yield f"{number} sends {message.kind}", True, self.send(done, message)
            case ("launch",):
                yield f"{number} starts QEMU", True, self.put(done, number, qemu="incoming")
            case ("cont",):
                yield from self.go_on(done, number)
            case ("first-cont", operation, to, before):
                yield from self.first_run(done, number, operation, to, before)
            case ("decide", operation, state, to):
                yield (
                    f"{number} answers {state}",
                    True,
                    self.decide(done, number, operation, state, to),
                )
            case ("unmark",):
                disk = protocol.give_up(host.disk) if host.disk else None
                yield f"{number} clears its mark", True, self.put(done, number, disk=disk)
            case ("quit",) if host.qemu == "sending" and self.rules.serves:
                yield from self.serve(done, number)
            case ("quit",):
                yield f"{number} ends its QEMU", True, self.put(done, number, qemu="")
            case ("clear",):
                keeps = host.disk is not None and protocol.remembers(host.disk)
                disk = host.disk if keeps else None
                yield f"{number} clears", True, self.put(done, number, qemu="", disk=disk)

    def go_on(self, done: World, number: int) -> Iterator[tuple[str, bool, World]]:
        """Continue; in post-copy QEMU gives the guest back only through its connection."""
        host = done.hosts[number]
        runs = host.qemu and self.rules.may_run(host.disk)
        if not runs:
            yield f"{number} continues", True, done
        elif host.qemu != "sending":
            qemu = "lacking" if host.qemu in ("loaded", "lacking") else "running"
            yield f"{number} continues", True, self.put(done, number, qemu=qemu)
        else:
            yield f"{number} is off, torn apart", True, self.put(done, number, qemu="")
            if any(one.qemu == "loaded" for one in done.hosts):
                yield f"{number} takes it back", True, self.put(done, number, qemu="running")

    def serve(self, done: World, number: int) -> Iterator[tuple[str, bool, World]]:
        """The target gets the rest; or it is gone, and the rest of no use. Else wait."""
        gone = self.put(done, number, qemu="")
        others = [one for one in done.hosts if one.qemu in ("lacking", "loaded")]
        for other, one in enumerate(done.hosts):
            if one.qemu == "lacking":
                whole = self.put(gone, other, qemu="running")
                yield f"all memory comes from {number} to {other}", True, whole
        if not others:
            yield f"{number} ends its QEMU, memory is lost", True, gone

    def first_run(
        self, done: World, number: int, operation: int, to: int, before: int
    ) -> Iterator[tuple[str, bool, World]]:
        host = done.hosts[number]
        if host.qemu and self.rules.may_run(host.disk):
            qemu = "lacking" if host.qemu == "loaded" else "running"
            yield f"{number} runs it", True, self.put(done, number, qemu=qemu)
            refused = self.rules.not_run(host.disk, before)
            todo = (("decide", operation, REFUSED, to), ("clear",))
            yield (
                f"{number} cannot run it",
                False,
                self.put(done, number, disk=refused, todo=todo),
            )
        else:
            yield f"{number} owns it, off", True, done

    def decide(
        self, world: World, number: int, operation: int, state: OwnershipState, to: int
    ) -> World:
        host = world.hosts[number]
        arrival = 0 if host.arrival == operation else host.arrival
        decided = (*host.decided, (operation, state)) if self.rules.remembers_decisions else ()
        world = self.put(world, number, arrival=arrival, decided=decided)
        return self.answer(world, number, to, operation, state)

    def answer(
        self, world: World, number: int, to: int, operation: int, state: OwnershipState
    ) -> World:
        if to < 0:
            return world
        return self.send(world, Message("answer", to, number, operation, state=str(state)))

    # ---- the source ------------------------------------------------------------------------

    def source(self, world: World, number: int) -> Iterator[tuple[str, bool, World]]:
        host = world.hosts[number]
        if (now := host.source) is None or host.disk is None:
            return
        take = Message("take", now.to, number, now.operation, self.given(host.disk, now))
        if now.phase in ("reserving", "ready", "stopped"):
            yield f"{number} gives up or is cancelled", True, self.undo(world, number)
        if now.phase == "ready":
            after = self.put(world, number, source=now._replace(phase="stopped"))
            if host.qemu == "running":
                after = self.put(after, number, qemu="paused")
            yield f"{number} stops its guest", True, after
        elif now.phase == "stopped":
            yield from self.leave_pages(world, number, now)
            disk = self.rules.source_yield(host.disk, str(now.operation), str(now.to))
            if disk is not None:
                source = now._replace(phase="yielded")
                yield f"{number} yields", True, self.put(world, number, disk=disk, source=source)
        elif now.phase == "yielded":
            asking = self.put(world, number, source=now._replace(phase="asking"))
            yield f"{number} sends take", True, self.send(asking, take)
            yield from self.undelivered(world, number, asked_before=False)
        elif now.phase == "asking":
            if take not in world.net:
                yield f"{number} asks again", True, self.send(world, take)
            yield from self.undelivered(world, number, asked_before=True)
            yield from self.fence(world, number)

    def leave_pages(
        self, world: World, number: int, now: Source
    ) -> Iterator[tuple[str, bool, World]]:
        """All but pages is sent. (A migration that was completed needs no step of its own.)"""
        target = world.hosts[now.to]
        is_ready = target.arrival == now.operation and target.qemu == "incoming"
        if self.bounds.postcopy and world.hosts[number].qemu == "paused" and is_ready:
            after = self.put(world, number, qemu="sending")
            yield f"{number} begins post-copy", True, self.put(after, now.to, qemu="loaded")

    @staticmethod
    def given(disk: Standing, now: Source) -> int:
        return disk.epoch if disk.state is YIELDING else disk.epoch + 1

    def undelivered(
        self, world: World, number: int, *, asked_before: bool
    ) -> Iterator[tuple[str, bool, World]]:
        host = world.hosts[number]
        disk = self.rules.source_undelivered(host.disk, asked_before=asked_before)
        if disk != host.disk:
            after = self.undo(self.put(world, number, disk=disk), number)
            yield f"{number} cannot connect", False, after

    def undo(self, world: World, number: int) -> World:
        host = world.hosts[number]
        now, disk = host.source, host.disk
        assert now is not None
        assert disk is not None
        refuse = Message("refuse", now.to, number, now.operation, disk.epoch + 1)
        todo = (("cont",), ("send", refuse), ("unmark",))
        return self.put(world, number, source=None, todo=todo)

    def fence(self, world: World, number: int) -> Iterator[tuple[str, bool, World]]:
        """By the operator: the target is off, and no other host has the VM from there."""
        host = world.hosts[number]
        now = host.source
        if now is None or host.disk is None or world.fences >= self.bounds.fences:
            return
        target = world.hosts[now.to]
        others = [one for other, one in enumerate(world.hosts) if other not in (number, now.to)]
        if not target.off and self.rules.is_truthful:
            return
        for other in others:
            seen = other.disk.state if other.disk else None
            epoch = other.disk.epoch if other.disk else 0
            if not other.up or self.rules.blocks_fence(seen, epoch, host.disk.epoch):
                return
        disk = self.rules.fence(host.disk)
        if disk is not None:
            todo = (("cont",), ("unmark",))
            after = self.put(world, number, disk=disk, source=None, todo=todo)
            yield f"{number} fences {now.to}", False, after._replace(fences=world.fences + 1)

    def user(self, world: World, number: int) -> Iterator[tuple[str, bool, World]]:
        host = world.hosts[number]
        disk = host.disk
        if disk is None:
            return
        for fence in disk.fenced:
            message = Message("fenced", int(fence.peer), number, epoch=fence.epoch)
            if message not in world.net:
                yield f"{number} tells {fence.peer}", True, self.send(world, message)
        is_idle = (
            disk.state is OWNED and host.source is None and not self.is_declared(world, number)
        )
        if is_idle and not host.qemu:
            yield f"{number} boots it", False, self.put(world, number, qemu="running")
        if is_idle and host.qemu != "lacking" and len(world.moves) < self.bounds.moves:
            operation = len(world.moves) + 1
            for to in range(len(world.hosts)):
                if to != number:
                    marked = self.put(
                        world,
                        number,
                        disk=protocol.begin(disk, str(operation)),
                        source=Source("reserving", operation, to),
                        todo=(("send", Message("reserve", to, number, operation, disk.epoch + 1)),),
                    )
                    moves = (*world.moves, (number, to))
                    yield f"{number} moves it to {to}", False, marked._replace(moves=moves)

    @staticmethod
    def is_declared(world: World, number: int) -> bool:
        """Somebody promised that nobody touches this host until it has been told."""
        return any(
            fence.peer == str(number)
            for host in world.hosts
            if host.disk
            for fence in host.disk.fenced
        )

    # ---- the target ------------------------------------------------------------------------

    def target(self, world: World, number: int) -> Iterator[tuple[str, bool, World]]:
        host = world.hosts[number]
        if host.qemu == "lacking" and all(one.qemu != "sending" for one in world.hosts):
            yield f"{number} is off, memory is lost", True, self.put(world, number, qemu="")
        if host.arrival and host.disk is not None:
            yield (
                f"lease of {host.arrival} at {number} ends",
                True,
                self.refused(world, number, host.arrival, -1),
            )

    def refused(self, world: World, number: int, operation: int, to: int) -> World:
        host = world.hosts[number]
        assert host.disk is not None
        todo = (("decide", operation, REFUSED, to), ("clear",))
        return self.put(world, number, disk=self.rules.refuse(host.disk), todo=todo)

    def deliver(self, world: World, message: Message) -> Iterator[tuple[str, World]]:
        number, host = message.to, world.hosts[message.to]
        match message.kind:
            case "reserve":
                yield "", self.reserve(world, message)
            case "held":
                yield "", self.held(world, message)
            case "take":
                yield from self.take(world, message)
            case "refuse":
                if host.arrival == message.operation:
                    yield "", self.refused(world, number, message.operation, -1)
                else:
                    yield "", self.put(world, number, early=host.early | {message.operation})
            case "answer":
                yield "", self.answered(world, message)
            case "fenced":
                yield "", self.fenced(world, message)
            case "told":
                if host.disk is not None:
                    disk = protocol.on_told(host.disk, str(message.sender), message.epoch)
                    yield "", self.put(world, number, disk=disk)

    def reserve(self, world: World, message: Message) -> World:
        number, host = message.to, world.hosts[message.to]
        is_free = not host.arrival and host.source is None and not host.qemu
        is_new = message.operation not in host.early | {one for one, _ in host.decided}
        if is_free and is_new and self.rules.admits(host.disk, message.epoch):
            disk = protocol.on_reserve(
                host.disk, str(message.operation), message.epoch, str(message.sender)
            )
            held = Message("held", message.sender, number, message.operation, state="yes")
            return self.put(
                world,
                number,
                disk=disk,
                arrival=message.operation,
                todo=(("launch",), ("send", held)),
            )
        no = Message("held", message.sender, number, message.operation, state="no")
        return self.send(world, no)

    def held(self, world: World, message: Message) -> World:
        number, now = message.to, world.hosts[message.to].source
        if now is None or now.phase != "reserving" or now.operation != message.operation:
            return world
        if message.state == "no":
            return self.undo(world, number)
        return self.put(world, number, source=now._replace(phase="ready"))

    def take(self, world: World, message: Message) -> Iterator[tuple[str, World]]:
        number, host = message.to, world.hosts[message.to]
        operation, to = message.operation, message.sender
        if host.arrival != operation:
            known = dict(host.decided).get(operation)
            taken = self.rules.on_take(host.disk, str(operation), message.epoch, is_whole=False)
            if known is not None:
                yield "", self.answer(world, number, to, operation, known)
            else:
                after = self.put(world, number, disk=taken.standing)
                yield "", self.answer(after, number, to, operation, taken.answer)
            return
        yield " which is not whole", self.taken(world, message, is_whole=False)
        if host.qemu in ("incoming", "loaded"):
            yield "", self.taken(world, message, is_whole=True)

    def taken(self, world: World, message: Message, *, is_whole: bool) -> World:
        number, host = message.to, world.hosts[message.to]
        operation, to = message.operation, message.sender
        before = host.disk.owned_epoch if host.disk else 0
        taken = self.rules.on_take(host.disk, str(operation), message.epoch, is_whole=is_whole)
        todo: tuple[tuple[Any, ...], ...]
        if taken.answer is OWNED:
            todo = (
                ("first-cont", operation, to, before),
                ("decide", operation, OWNED, to),
            )
        else:
            todo = (("decide", operation, REFUSED, to), ("clear",))
        if taken.standing == host.disk and taken.answer is REFUSED:  # told, but not written
            return self.answer(world, number, to, operation, REFUSED)
        return self.put(world, number, disk=taken.standing, todo=todo)

    def answered(self, world: World, message: Message) -> World:
        number, host = message.to, world.hosts[message.to]
        if host.disk is None or host.source is None or host.source.phase != "asking":
            return world
        disk = self.rules.source_answer(
            host.disk, str(message.operation), host.disk.epoch, OwnershipState(message.state)
        )
        if disk == host.disk:
            return world
        if disk.state is RELEASED:
            return self.put(world, number, disk=disk, source=None, todo=(("quit",),))
        return self.undo(self.put(world, number, disk=disk), number)

    def fenced(self, world: World, message: Message) -> World:
        number, host = message.to, world.hosts[message.to]
        disk = self.rules.on_fenced(host.disk, message.epoch)
        told = Message("told", message.sender, number, epoch=message.epoch)
        if disk == host.disk:
            return self.send(world, told)
        todo = (("quit",), ("send", told))
        decided = host.decided
        if host.arrival:
            decided = (*decided, (host.arrival, REFUSED))
            todo = (("clear",), ("send", told))
        return self.put(
            world, number, disk=disk, source=None, arrival=0, decided=decided, todo=todo
        )

    def restart(self, world: World, number: int) -> World:
        host = world.hosts[number]
        disk = self.rules.on_restart(host.disk) if host.disk else None
        world = self.put(world, number, up=True, off=False, disk=disk)
        if disk is None or host.disk is None:
            return self.put(world, number, qemu="")  # a QEMU that no record names is ended
        todo: tuple[tuple[Any, ...], ...] = ()
        source = None
        match disk.state:
            case OwnershipState.OWNED:
                todo = (("cont",),)
                if host.disk.moving:
                    operation = int(host.disk.moving)
                    to = world.moves[operation - 1][1]
                    refuse = Message("refuse", to, number, operation, disk.epoch + 1)
                    todo = (("cont",), ("send", refuse))
            case OwnershipState.YIELDING:
                peer = int(disk.ownership.peer)
                source = Source("asking", int(disk.ownership.operation), peer)
            case OwnershipState.RELEASED:
                todo = (("quit",),)
            case OwnershipState.RESERVED | OwnershipState.REFUSED:
                todo = (("clear",),)
        return self.put(world, number, todo=todo, source=source)

    # ---- what must hold --------------------------------------------------------------------

    def broken(self, before: World, world: World) -> str:
        """What is wrong with `world`, if anything."""
        owners = [
            number
            for number, host in enumerate(world.hosts)
            if host.disk is not None
            and host.disk.state is OWNED
            and not self.is_declared(world, number)
        ]
        running = [n for n, host in enumerate(world.hosts) if host.qemu in RUNS]
        if len(owners) > 1:
            return f"hosts {owners} own it"
        if len(running) > 1:
            return f"its vCPUs run on {running}"
        for number in running:
            host = world.hosts[number]
            if not protocol.may_run(host.disk) and not self.ends(host):
                return f"its vCPUs run on {number}, which does not own it"
        if self.is_thrown_away(before, world):
            return "pages were thrown away that a running guest lacks"
        for old, new in zip(before.hosts, world.hosts, strict=True):
            if old.disk and new.disk and new.disk.owned_epoch < old.disk.owned_epoch:
                undone = any(effect[0] == "first-cont" for effect in old.todo)
                if not undone:
                    return "an epoch that was owned is forgotten"
        return ""

    @staticmethod
    def is_thrown_away(before: World, world: World) -> bool:
        """Without a fault, and without anybody who runs with all of them."""
        had = [any(host.qemu == "sending" for host in one.hosts) for one in (before, world)]
        lacks = any(host.qemu == "lacking" for host in world.hosts)
        faults = (before.deaths, before.power) != (world.deaths, world.power)
        return had == [True, False] and lacks and not faults

    @staticmethod
    def ends(host: Host) -> bool:
        """It was told that it owns it no more, or wakes to that: its QEMU is ended next."""
        return not host.up or any(effect[0] in ("quit", "clear") for effect in host.todo)

    def newest(self, world: World) -> World | None:
        """`world` with the highest epoch that ran; None if a lower one runs now."""
        for host in world.hosts:
            if host.qemu in RUNS and host.disk is not None and host.disk.state is OWNED:
                if host.disk.epoch < world.newest:
                    return None
                world = world._replace(newest=max(world.newest, host.disk.epoch))
        return world

    @staticmethod
    def is_settled(world: World) -> bool:
        """Exactly one owner, no doubt, nothing left to do or to tell."""
        owners = 0
        for host in world.hosts:
            if not host.up or host.todo or host.source or host.arrival:
                return False
            if host.qemu in ("sending", "loaded", "lacking"):
                return False
            if host.disk is not None:
                if host.disk.fenced or host.disk.state in (YIELDING, RESERVED):
                    return False
                owners += host.disk.state is OWNED
        return owners == 1

    # ---- the search ------------------------------------------------------------------------

    def run(self, first: World) -> Found:
        began = time.monotonic()
        seen: dict[World, int] = {first: 0}
        order: list[World] = [first]
        came: list[tuple[int, str]] = [(-1, "")]
        helps: list[list[int]] = [[]]  # by themselves these lead here
        steps = 0
        at = 0
        while at < len(order):
            world = order[at]
            for what, by_itself, raw in self.steps(world):
                steps += 1
                after = self.newest(raw)
                wrong = self.broken(world, raw) if after else "an older epoch runs again"
                if wrong or after is None:
                    raise Broken(wrong, [*_trace(came, order, at), what])
                number = seen.get(after)
                if number is None:
                    number = seen[after] = len(order)
                    order.append(after)
                    came.append((at, what))
                    helps.append([])
                    if number > self.bounds.states:
                        raise RuntimeError(f"more than {self.bounds.states} states")
                if by_itself:
                    helps[number].append(at)
            at += 1
        settled = [number for number, world in enumerate(order) if self.is_settled(world)]
        self._nobody_stuck(order, came, helps, settled)
        return Found(len(order), steps, len(settled), time.monotonic() - began)

    @staticmethod
    def _nobody_stuck(
        order: list[World],
        came: list[tuple[int, str]],
        helps: list[list[int]],
        settled: list[int],
    ) -> None:
        reached = bytearray(len(order))
        queue = deque(settled)
        for number in settled:
            reached[number] = 1
        while queue:
            for number in helps[queue.popleft()]:
                if not reached[number]:
                    reached[number] = 1
                    queue.append(number)
        for number in range(len(order)):
            if not reached[number]:
                raise Broken("no way leads to one owner", _trace(came, order, number))


def _trace(came: list[tuple[int, str]], order: list[World], at: int) -> list[str]:
    trace = []
    while at > 0:
        at, what = came[at]
        trace.append(what)
    return trace[::-1]


def _words(message: Message) -> str:
    return f"{message.kind} {message.state}({message.sender}->{message.to})"


def at_home(hosts: int) -> World:
    """The VM was made on host 0, and runs there; the others have never heard of it."""
    made = Standing(ownership=Ownership(state=OWNED, epoch=1))
    return World((Host(made, qemu="running"), *(Host(None) for _ in range(hosts - 1))))


def explore(bounds: Bounds, rules: Rules | None = None, first: World | None = None) -> Found:
    """Raises Broken with the way to it."""
    return Explorer(bounds, rules or Rules()).run(first or at_home(bounds.hosts))


LARGE = [  # docs/internals/ownership.md has their counts
    Bounds(hosts=2, moves=2, crashes=1, power=1, deaths=0, fences=1, messages=2),
    Bounds(hosts=3, moves=2, crashes=0, power=1, deaths=0, fences=1, messages=2),
    Bounds(hosts=2, moves=1, crashes=2, power=1, deaths=1, fences=1, messages=3),
    Bounds(hosts=2, moves=3, crashes=1, power=0, deaths=0, fences=0, messages=1),
    Bounds(hosts=2, moves=2, crashes=1, power=1, deaths=0, fences=1, messages=2, postcopy=True),
    Bounds(hosts=2, moves=1, crashes=2, power=1, deaths=1, fences=1, messages=2, postcopy=True),
]


def main() -> int:
    total = 0
    for bounds in LARGE:
        found = explore(bounds)
        total += found.states
        print(f"{bounds}\n  {found}", flush=True)
    print(f"{total} states, no host too many, none for ever")
    return 0


if __name__ == "__main__":
    sys.exit(main())
