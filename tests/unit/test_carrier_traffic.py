"""Both ends of a link without sockets: channels that delay, stall and die, in any order."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sterna.carrier import frames
from sterna.carrier.traffic import Traffic

ROUNDS = 400


class End:
    """One end of a channel, as traffic knows it, and what is on its way to the other one."""

    def __init__(self) -> None:
        self.flying = {}
        self.is_idle = False
        self.is_stalled = False
        self.frame_size = 1000
        self.way: list[tuple[frames.Header, bytearray]] = []

    def wake(self) -> None:
        pass

    def send(self, traffic: Traffic) -> bool:
        load = traffic.take(self)
        data = load.control + load.header + bytes(load.payload or b"")
        sent = bool(data)
        while data:
            header = frames.parse(data[: frames.SIZE])
            end = frames.SIZE + header.length
            self.way.append((header, bytearray(data[frames.SIZE : end])))
            data = data[end:]
        return sent

    def arrive(self, traffic: Traffic) -> bool:
        if not self.way:
            return False
        header, data = self.way.pop(0)
        if header.kind != frames.DATA or traffic.admit(header):
            traffic.arrive(header, data)
        else:
            traffic.arrive(header._replace(kind=frames.ACK), data)
        return True


class World:
    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.sides = (Traffic(lead=True, limit=None), Traffic(lead=False, limit=None))
        for side in self.sides:
            side.lock.acquire()  # there is one thread only
        self.channels: list[tuple[End, End]] = []
        self.sent: dict[tuple[int, int], list[bytes]] = {}
        self.found: dict[tuple[int, int], list[bytes]] = {}

    def plug(self) -> None:
        ends = End(), End()
        self.channels.append(ends)
        for side, end in zip(self.sides, ends, strict=True):
            side.attach(end)

    def cut(self) -> None:
        """What was on its way is lost; one side may notice later than the other."""
        ends = self.channels.pop(self.chance.randrange(len(self.channels)))
        for side, end in zip(self.sides, ends, strict=True):
            side.detach(end)

    def stall(self) -> None:
        side, end = self.any_end()
        end.is_stalled = not end.is_stalled
        if end.is_stalled:
            side.send_again(end)

    def any_end(self) -> tuple[Traffic, End]:
        number = self.chance.randrange(2)
        return self.sides[number], self.chance.choice(self.channels)[number]

    def write(self, number: int) -> None:
        side = self.sides[number]
        for stream in list(side.streams.values()):
            if stream.service and not stream.outbox.finishing and self.chance.random() < 0.5:
                message = self.chance.randbytes(self.chance.choice([0, 10, 5000]))
                stream.outbox.push(message)
                self.sent.setdefault((number, stream.number), []).append(message)

    def read(self, number: int) -> bool:
        side, some = self.sides[number], False
        for stream in list(side.streams.values()):
            if not stream.service or stream.inbox.finished:
                continue
            side.release(stream)
            parts = side.collect(stream)
            if parts is not None:
                some = True
                message = b"".join(bytes(part.data) for part in parts)
                self.found.setdefault((number, stream.number), []).append(message)
        return some

    def step(self) -> None:  # noqa: C901 - one branch for each thing that happens
        what = self.chance.randrange(12)
        if what == 0 and len(self.channels) < 3:
            self.plug()
        elif what == 1 and self.channels:
            self.cut()
        elif what == 2 and self.channels:
            self.stall()
        elif what == 3:
            self.chance.choice(self.sides).tick(0.1, 0.01, 0.0)
        elif what == 4:
            side = self.chance.choice(self.sides)
            if len(side.streams) < 4:
                side.open("memory")
        elif what == 5:
            self.write(self.chance.randrange(2))
        elif what == 6:
            self.read(self.chance.randrange(2))
        elif self.channels:
            side, end = self.any_end()
            if what < 9:
                end.send(side)
            else:
                other = self.sides[1 - self.sides.index(side)]
                end.arrive(other)

    def settle(self) -> None:
        """Everybody finishes; all that is on its way arrives."""
        if not self.channels:
            self.plug()
        quiet = 0
        while quiet < 3:
            moves = [self.carry(*way) for ends in self.channels for way in enumerate(ends)]
            for number, side in enumerate(self.sides):
                for stream in side.streams.values():
                    stream.outbox.finishing = True
                moves.append(self.read(number))
                side.tick(0.1, 0.01, 0.0)
            quiet = 0 if any(moves) else quiet + 1

    def carry(self, number: int, end: End) -> bool:
        """All that this end has to send, to its reader. Whether there was something."""
        end.is_stalled, moves = False, False
        while end.send(self.sides[number]):
            moves = True
        while end.arrive(self.sides[1 - number]):
            moves = True
        return moves


@settings(max_examples=150)
@given(st.integers(0, 2**32))
def test_every_message_arrives_once_and_in_order_and_every_stream_ends(seed):
    world = World(seed)
    world.plug()
    for _ in range(ROUNDS):
        world.step()
    world.settle()
    for (number, stream), messages in world.sent.items():
        assert world.found.get((1 - number, stream), []) == messages
    for side in world.sides:
        assert not side.streams
        assert side._kept == 0
        assert not side._again or all(not frame.outbox.is_wanted(frame) for frame in side._again)
    for ends in world.channels:
        for end in ends:
            assert not end.flying


@pytest.mark.parametrize("seed", range(5))
def test_streams_broken_off_are_forgotten_on_both_sides(seed):
    world = World(seed)
    world.plug()
    for turn in range(ROUNDS):
        world.step()
        side = world.sides[turn % 2]
        if turn % 7 == 0 and side.streams:
            side.reset(world.chance.choice(list(side.streams.values())), "no more")
    world.settle()
    for side in world.sides:
        assert not side.streams
        assert side._kept == 0
        assert not side._notes._resets
