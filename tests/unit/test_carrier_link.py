"""A link between two ends in this process: streams, cut cables, and peers that misbehave."""

import contextlib
import random
import resource
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from link_rig import (
    LINK_ID,
    SOON_S,
    SOURCE,
    TARGET,
    Cable,
    End,
    Rogue,
    end,
    eventually,
    pair,
    target,
)
from sterna.carrier import connect, frames, tls, traffic
from sterna.carrier.frames import Hello
from sterna.carrier.link import Endpoint, Link, LinkEventKind, Route, Tls
from sterna.errors import LinkClosed, StreamReset
from sterna.security.pair import make

MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No thread and no file descriptor outlives a link."""
    threads, fds = set(threading.enumerate()), open_files()
    yield
    assert eventually(lambda: set(threading.enumerate()) <= threads), threading.enumerate()
    assert eventually(lambda: open_files() <= fds)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Doing(threading.Thread):
    """Work beside the test; `result()` raises what it raised."""

    def __init__(self, work, *args) -> None:
        super().__init__(daemon=True)
        self._work, self._args = work, args
        self._found = self._error = None
        self.start()

    def run(self) -> None:
        try:
            self._found = self._work(*self._args)
        except BaseException as error:  # noqa: BLE001 - raised by result()
            self._error = error

    def result(self, seconds: float = 30.0):
        self.join(seconds)
        assert not self.is_alive(), "it hangs"
        if self._error is not None:
            raise self._error
        return self._found


def everything(stream) -> list[bytes]:
    found = []
    while (message := stream.receive()) is not None:
        found.append(message)
    return found


def send_all(stream, messages) -> None:
    for message in messages:
        stream.send(message)
    stream.finish()


def some(count: int, most: int, seed: int = 1) -> list[bytes]:
    chance = random.Random(seed)
    return [chance.randbytes(chance.randrange(most)) for _ in range(count)]


# ---- streams


@pytest.mark.parametrize("channels", [1, 2])
def test_messages_arrive_once_and_in_order_in_both_directions(channels):
    there = [b"", b"x", bytes(frames.MAX_MESSAGE), *some(40, MIB)]
    back = some(200, 2000, seed=2)
    with pair(channels) as ends:
        near, far = ends.streams()
        work = [Doing(send_all, near, there), Doing(send_all, far, back), Doing(everything, near)]
        assert everything(far) == there
        assert work[2].result() == back
        for each in work:
            each.result()
        assert near.drain(SOON_S)
        assert far.drain(SOON_S)
        stats = ends.source.link.stats()
        assert stats.payload_out == sum(map(len, there))
        assert stats.payload_in == sum(map(len, back))
        assert stats.retransmitted == stats.in_flight == 0
        assert eventually(lambda: ends.source.link.stats().wire_out > stats.payload_out)
        assert ends.source.link.stats().wire_out < stats.payload_out * 1.03


def test_either_side_opens_streams_and_they_are_told_apart():
    with pair() as ends:
        near = [ends.source.link.open(f"disk{n}") for n in range(5)]
        far = ends.target.link.open("back")
        for _ in range(5):
            service, stream = ends.target.link.accept()
            stream.send(service.encode())
        assert [stream.receive() for stream in near] == [b"disk%d" % n for n in range(5)]
        service, stream = ends.source.link.accept()
        assert service == "back"
        far.send(bytearray(b"hello"))
        assert stream.receive() == b"hello"


def test_many_streams_one_after_the_other_leave_nothing():
    with pair(2) as ends:
        for n in range(80):
            near, far = ends.streams()
            near.send(b"%d" % n)
            near.finish()
            assert everything(far) == [b"%d" % n]
            far.finish()
            assert near.receive() is None
        assert eventually(lambda: not ends.source.link._traffic.streams)
        assert eventually(lambda: not ends.target.link._traffic.streams)
        assert ends.target.link._traffic._kept == 0


def test_more_streams_than_are_allowed_are_not_opened():
    with pair() as ends:
        for _ in range(frames.MAX_STREAMS):
            ends.source.link.open("disk")
        with pytest.raises(StreamReset, match="too many"):
            ends.source.link.open("disk")


def test_a_reader_that_is_slow_slows_its_own_stream_only():
    with pair(2) as ends:
        slow, slow_far = ends.streams("slow")
        fast, fast_far = ends.streams("fast")
        sent = []

        def fill() -> None:
            with contextlib.suppress(LinkClosed):
                while True:
                    slow.send(bytes(MIB))
                    sent.append(MIB)

        filling = Doing(fill)
        count = -1

        def stands() -> bool:
            nonlocal count
            before, count = count, len(sent)
            time.sleep(0.1)
            return before == count

        assert eventually(stands)
        assert sum(sent) <= frames.MAX_WINDOW + 2 * MIB
        assert ends.target.link._traffic._kept <= frames.MAX_WINDOW + MIB
        messages = some(30, MIB)
        Doing(send_all, fast, messages)
        assert everything(fast_far) == messages
        got = len(sent)
        for _ in range(4):
            slow_far.receive()
        assert eventually(lambda: len(sent) > got)
        ends.source.link.close()
        filling.result()


def test_a_small_message_passes_bulk():
    with pair(limit=20_000_000) as ends:
        bulk, bulk_far = ends.streams("bulk")
        small, small_far = ends.streams("small")
        reading = Doing(everything, bulk_far)
        sending = Doing(send_all, bulk, [bytes(4 * MIB)] * 3)
        took = []
        for _ in range(10):
            begun = time.monotonic()
            small.send(b"ping")
            assert small_far.receive() == b"ping"
            took.append(time.monotonic() - begun)
        assert sorted(took)[5] < 0.1  # 12 MiB take 600 ms
        sending.result()
        assert len(reading.result()) == 3


def test_a_reset_is_told_with_its_reason_and_the_link_goes_on():
    with pair() as ends:
        near, far = ends.streams()
        blocked = Doing(send_all, near, [bytes(MIB)] * 100)
        assert far.receive()
        far.reset("the disk is full")
        for stream in (near, far):
            with pytest.raises(StreamReset, match="memory was broken off: the disk is full"):
                everything(stream)
        with pytest.raises(StreamReset):
            blocked.result()
        near, far = ends.streams("again")
        near.send(b"x")
        assert far.receive() == b"x"
        assert eventually(lambda: not ends.target.link._traffic._notes._resets)
        assert ends.source.link.stats().in_flight < 4096  # of the new stream only


def test_wrong_use_is_refused():
    with pair() as ends:
        near, _ = ends.streams()
        with pytest.raises(ValueError, match="at most"):
            near.send(bytes(frames.MAX_MESSAGE + 1))
        near.finish()
        with pytest.raises(ValueError, match="after finish"):
            near.send(b"x")
        for name in ("", "x" * 65):
            with pytest.raises(ValueError, match="no name"):
                ends.source.link.open(name)
        with pytest.raises(ValueError, match="routes"):
            ends.source.link.connect([Route("", ends.endpoints[0])] * 16)
    for wrong in ({"key": "nonsense"}, {"certificate": ""}, {"peer": "nonsense"}):
        pems = {"certificate": SOURCE.certificate, "key": SOURCE.key, "peer": SOURCE.peer} | wrong
        with pytest.raises((ssl.SSLError, ValueError)):
            end(Tls(**pems), lead=True)


def test_addresses_of_ipv6_serve_as_well():
    far = end(TARGET, lead=False)
    near = end(SOURCE, lead=True)
    try:
        try:
            endpoint = far.link.listen(["::1"])[0]
        except OSError:
            pytest.skip("no IPv6 here")
        near.link.connect([Route("::1", endpoint)])
        near.link.open("memory").send(b"x")
        assert far.link.accept()[1].receive() == b"x"
        assert near.link.stats().channels[0].remote == str(endpoint)
        assert str(endpoint).startswith("[::1]:")
    finally:
        near.link.close()
        far.link.close()


# ---- ends


def test_a_link_that_one_side_closes_ends_every_wait_on_both():
    with pair() as ends:
        near, far = ends.streams()
        waiting = [
            Doing(near.receive),
            Doing(far.receive),
            Doing(ends.target.link.accept),
            Doing(ends.source.link.accept),
            Doing(send_all, near, [bytes(MIB)] * 100),
        ]
        ends.source.link.close("the VM was deleted")
        for each in waiting:
            with pytest.raises(LinkClosed, match="the VM was deleted"):
                each.result()
        for one in (ends.source, ends.target):
            with pytest.raises(LinkClosed):
                one.link.open("x")
            assert "deleted" in one.link.stats().closed
            assert len(one.texts(LinkEventKind.CLOSED)) == 1


def test_who_waits_for_the_last_words_to_be_read_is_told_by_the_close():
    for _ in range(20):
        with pair() as ends:
            near, far = ends.streams()
            far.send(b"bye")
            far.finish()
            near.finish()
            assert far.receive() is None
            draining = Doing(far.drain)
            assert everything(near) == [b"bye"]
            ends.source.link.close()
            assert draining.result()


def test_without_any_channel_for_the_grace_period_both_ends_give_up():
    cables = []

    def way(endpoint: Endpoint) -> list[Endpoint]:
        cables.append(Cable(endpoint))
        return [cables[0].endpoint]

    with pair(way=way, grace_s=0.4) as ends:
        near, far = ends.streams()
        begun = time.monotonic()
        cables[0].remove()
        for stream in (near, far):
            with pytest.raises(LinkClosed, match=r"no connection to the other host for 0\.4 s"):
                stream.receive()
        assert 0.35 < time.monotonic() - begun < SOON_S
        assert ends.source.texts(LinkEventKind.DOWN)


def test_a_source_that_reaches_nobody_gives_up_after_the_grace_period():
    with socket.create_server(("127.0.0.1", 0)) as server:
        nobody = Endpoint(*server.getsockname())
    one = end(SOURCE, lead=True, grace_s=0.3)
    one.link.connect([Route("", nobody)])
    with pytest.raises(LinkClosed, match="connection refused"):
        one.link.open("memory").receive()
    assert one.link.stats().channels[0].reason == "connection refused"
    one.link.close()


def test_a_target_to_whom_nobody_came_yet_waits():
    with target(grace_s=0.1) as (far, _):
        time.sleep(0.3)
        assert far.link.stats().closed is None


def test_the_grace_period_can_be_lifted_meanwhile():
    cables = []

    def way(endpoint: Endpoint) -> list[Endpoint]:
        cables.append(Cable(endpoint))
        return [cables[0].endpoint]

    with pair(way=way, grace_s=0.5) as ends:
        near, far = ends.streams()
        for one in (ends.source, ends.target):
            one.link.set_grace(None)
        cables[0].cut()
        assert eventually(lambda: ends.source.link.stats().down_since is not None)
        time.sleep(0.8)
        cables[0].restore()
        near.send(b"still here")
        assert far.receive() == b"still here"
        cables[0].remove()


# ---- cut cables


@pytest.mark.parametrize("channels", [1, 2])
def test_nothing_is_lost_or_doubled_when_cables_are_cut_again_and_again(channels):
    cables = []

    def way(endpoint: Endpoint) -> list[Endpoint]:
        cables.extend(Cable(endpoint) for _ in range(channels))
        return [cable.endpoint for cable in cables]

    messages, back = some(60, MIB), some(300, 3000, seed=3)
    with pair(way=way, limit=60_000_000) as ends:
        near, far = ends.streams()
        work = [Doing(everything, far), Doing(everything, near)]
        sending = [Doing(send_all, near, messages), Doing(send_all, far, back)]
        for turn in range(4):
            time.sleep(0.1)
            cables[turn % channels].cut()
            cables[turn % channels].restore()
        assert work[0].result() == messages
        assert work[1].result() == back
        for each in sending:
            each.result()
        assert ends.source.texts(LinkEventKind.CHANNEL_DOWN)
        for cable in cables:
            cable.remove()


def test_all_cables_cut_for_less_than_the_grace_period_it_goes_on():
    cables = []

    def way(endpoint: Endpoint) -> list[Endpoint]:
        cables.extend(Cable(endpoint) for _ in range(2))
        return [cable.endpoint for cable in cables]

    messages = some(30, MIB)
    with pair(way=way, limit=60_000_000) as ends:
        near, far = ends.streams()
        sending = Doing(send_all, near, messages)
        assert far.receive() == messages[0]
        for cable in cables:
            cable.cut()
        assert eventually(lambda: ends.source.link.stats().down_since is not None)
        time.sleep(0.2)
        for cable in cables:
            cable.restore()
        assert everything(far) == messages[1:]
        sending.result()
        assert ends.source.link.stats().down_since is None
        for cable in cables:
            cable.remove()


# ---- who may not come in


def refusal(far: End, words: str) -> bool:
    return eventually(lambda: any(words in text for text in far.texts(LinkEventKind.REFUSED)))


def goes_on(far: End, endpoint: Endpoint) -> None:
    """The right peer is served all the same."""
    near = end(SOURCE, lead=True)
    near.link.connect([Route("", endpoint)])
    stream = near.link.open("memory")
    stream.send(b"hello")
    service, other = far.link.accept()
    assert (service, other.receive()) == ("memory", b"hello")
    near.link.close()


def test_a_peer_with_another_key_is_refused():
    other = make()
    with target() as (far, endpoint):
        rogue = Rogue(endpoint, Tls(other.certificate, other.key, SOURCE.peer))
        with contextlib.suppress(OSError):
            rogue.hello()
        assert rogue.last_words() == ""
        assert refusal(far, "it has another certificate")
        goes_on(far, endpoint)


def test_a_peer_without_a_certificate_is_refused():
    with target() as (far, endpoint):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=SOURCE.peer)
        raw = socket.create_connection((endpoint.address, endpoint.port))
        with contextlib.suppress(OSError), raw, context.wrap_socket(raw) as sock:
            sock.recv(1)
        assert refusal(far, "did not return a certificate")
        goes_on(far, endpoint)


def test_a_target_with_another_key_is_not_spoken_to():
    other = make()
    wrong = end(Tls(other.certificate, other.key, TARGET.peer), lead=False)
    endpoint = wrong.link.listen(["127.0.0.1"])[0]
    near = end(SOURCE, lead=True, grace_s=0.3)
    near.link.connect([Route("", endpoint)])
    with pytest.raises(LinkClosed, match="another certificate"):
        near.link.accept()
    wrong.link.close()
    near.link.close()


@pytest.mark.parametrize(
    "words",
    [b"GET / HTTP/1.0\r\n\r\n", bytes(100), b"\x16\x03\x01\xff\xff"],
    ids=["http", "zeroes", "half"],
)
def test_a_peer_without_tls_is_refused(words):
    with target() as (far, endpoint):
        with socket.create_connection((endpoint.address, endpoint.port)) as raw:
            raw.sendall(words)
            with contextlib.suppress(OSError):  # it may have hung up already
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(1000):
                    pass
        assert refusal(far, "TLS")
        goes_on(far, endpoint)


def test_tls_1_2_is_refused():
    with target() as (far, endpoint):
        context = tls.context(SOURCE, server=False)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        raw = socket.create_connection((endpoint.address, endpoint.port))
        with raw, pytest.raises(ssl.SSLError, match="protocol version"):
            context.wrap_socket(raw)
        assert refusal(far, "unsupported protocol")
        goes_on(far, endpoint)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"link": b"another link 123"}, "a channel for another link"),
        ({"version": 2}, "version 2 of the link, here it is 1"),
        ({"route": 16}, "route 16"),
    ],
)
def test_a_wrong_hello_is_refused_and_told_why(changes, words):
    with target() as (far, endpoint):
        rogue = Rogue(endpoint)
        rogue.hello(**changes)
        assert words in rogue.last_words()
        assert refusal(far, words)
        goes_on(far, endpoint)


def test_a_second_channel_of_the_same_number_is_refused_and_the_first_one_lives():
    with target() as (far, endpoint):
        first, second = Rogue(endpoint), Rogue(endpoint)
        first.hello(number=5)
        assert first.frame()[0].kind == frames.HELLO
        second.hello(number=5, route=1)
        assert "channel 5 has been here before" in second.last_words()
        first.open(1)
        assert far.link.accept()[0] == "memory"


def test_a_peer_that_began_anew_is_refused():
    with target() as (_, endpoint):
        first, second = Rogue(endpoint), Rogue(endpoint)
        first.hello(number=1)
        assert first.frame()[0].kind == frames.HELLO
        second.hello(number=2, instance=b"j" * 16)
        assert "begun anew" in second.last_words()


def test_who_says_nothing_is_let_go(monkeypatch):
    monkeypatch.setattr(connect, "HANDSHAKE_S", 0.2)
    with target() as (far, endpoint):
        silent = socket.create_connection((endpoint.address, endpoint.port))
        Rogue(endpoint)
        assert eventually(lambda: len(far.texts(LinkEventKind.REFUSED)) == 2)
        assert all("no answer in time" in text for text in far.texts(LinkEventKind.REFUSED))
        silent.close()


def test_a_crowd_of_strangers_makes_no_crowd_of_threads():
    before = threading.active_count()
    with target() as (far, endpoint):
        crowd = [socket.create_connection((endpoint.address, endpoint.port)) for _ in range(60)]
        time.sleep(0.2)
        assert threading.active_count() <= before + 16 + 2
        for one in crowd:
            one.close()
        assert eventually(lambda: threading.active_count() <= before + 2)
        goes_on(far, endpoint)


# ---- what a peer with the right key may not do


DATA = frames.DATA


def header(*fields: int, **named: int) -> bytes:
    """Of any fields, right or wrong."""
    values = dict.fromkeys(frames.Header._fields, 0)
    values |= dict(zip(frames.Header._fields, fields, strict=False)) | named
    return frames.HEADER.pack(*values.values())


ATTACKS = {
    "garbage": ([b"\xde\xad\xbe\xef" * 64], "not a frame"),
    "oversized frame": ([header(DATA, 1, 0, 1, 1 << 20, 1)], "frame of 1048576 bytes"),
    "largest length": ([header(DATA, 1, 0, 1, 2**32 - 1, 1)], "frame of 4294967295 bytes"),
    "far ahead": ([header(DATA, 1, 0, 1, 1, 2**40), b"x"], "frame 1099511627776 where"),
    "a bit too far": ([header(DATA, 1, 0, 1, 1, 40_000), b"x"], "frame 40000 where"),
    "ack of the unsent": ([header(frames.ACK, stream=1, consumed=1000)], "acknowledges frame 999"),
    "ack held": ([header(frames.ACK, stream=1, consumed=1, ahead=9)], "acknowledges frame 9"),
    "ack elsewhere": ([header(frames.ACK, stream=77, consumed=9)], "stream 77, not open"),
    "ack of ours": ([header(frames.ACK, stream=2)], "stream 2, not open"),
    "our stream": ([header(DATA, 2, 0, 2, 1, 0), b"x"], "stream 2, which was never opened"),
    "gone": ([header(frames.GONE, stream=9)], "stream 9, which was never opened"),
    "far stream": ([header(DATA, 2, 0, 100_001, 1, 0), b"x"], "stream 100001 where"),
    "second hello": ([Hello(0, 9, LINK_ID, b"i" * 16).pack()], "a second hello"),
    "end in message": (
        [header(DATA, 0, 0, 1, 1, 1), b"x", header(DATA, 4, 0, 1, 0, 2)],
        "the end of a stream within a message",
    ),
    "after the end": (
        [header(DATA, 4, 0, 1, 0, 1), header(DATA, 1, 0, 1, 1, 2), b"x"],
        "frames after the last",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_a_channel_that_breaks_the_protocol_is_closed_and_the_other_one_lives(name):
    parts, words = ATTACKS[name]
    with target() as (far, endpoint):
        good, bad = Rogue(endpoint), Rogue(endpoint)
        good.hello(number=1, route=0)
        good.open(1)
        _, stream = far.link.accept()
        bad.hello(number=2, route=1)
        bad.send(*parts)
        assert words in bad.last_words()
        assert eventually(
            lambda: any(words in text for text in far.texts(LinkEventKind.CHANNEL_DOWN))
        )
        assert far.is_up(1)
        if "the end" not in words and "the last" not in words:  # those spoilt the stream itself
            good.data(1, 1, b"still here", frames.END)
            assert stream.receive() == b"still here"


def test_a_frame_that_ends_half_way_costs_its_channel_only():
    with target() as (far, endpoint):
        good, bad = Rogue(endpoint), Rogue(endpoint)
        good.hello(number=1, route=0)
        good.open(1)
        _, stream = far.link.accept()
        bad.hello(number=2, route=1)
        bad.send(header(DATA, 1, 0, 1, 1000, 1), b"only some")
        bad.close()
        assert eventually(lambda: far.is_up(1))
        good.data(1, 1, b"whole", frames.END)
        assert stream.receive() == b"whole"


def test_what_comes_twice_is_taken_once():
    with target() as (far, endpoint):
        rogue = Rogue(endpoint)
        rogue.hello()
        for _ in range(3):
            rogue.open(1)
        _, stream = far.link.accept()
        for number in (2, 2, 1, 1, 2, 1):
            rogue.data(1, number, b"%d" % number, frames.END)
        rogue.data(1, 3, b"", frames.FINISH)
        rogue.data(1, 3, b"", frames.FINISH)
        assert everything(stream) == [b"1", b"2"]


def test_an_acknowledgement_counts_on_a_frame_that_comes_twice():
    with target() as (far, endpoint):
        rogue = Rogue(endpoint)
        rogue.hello()
        rogue.open(1)
        _, stream = far.link.accept()
        stream.send(b"x")
        while rogue.frame()[0].kind != frames.DATA:
            pass
        rogue.send(header(DATA, frames.OPEN, 0, 1, 6, 0, consumed=2), b"memory")
        assert stream.drain(SOON_S)


def test_a_flood_of_streams_is_refused():
    with target() as (far, endpoint):
        rogue = Rogue(endpoint)
        rogue.hello()
        with contextlib.suppress(OSError):
            for number in range(1, 10_001, 2):
                rogue.open(number)
        assert "too many streams" in rogue.last_words()
        assert len(far.link._traffic.streams) <= 2 * frames.MAX_STREAMS


def test_a_flood_on_all_streams_stays_within_bounds():
    """All that a peer may leave unread on all streams that it may open."""
    with target() as (far, endpoint):
        rogue = Rogue(endpoint)
        rogue.hello()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        payload = bytes(frames.MAX_PAYLOAD)
        with contextlib.suppress(OSError):
            for stream in range(1, 64, 2):
                rogue.open(stream)
            for number in range(1, 200):
                for stream in range(1, 64, 2):
                    rogue.data(stream, number, payload, frames.END)
        assert "more than" in rogue.last_words()
        assert far.link._traffic._kept <= traffic._KEPT
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        assert grown < 2 * traffic._KEPT


def test_a_flood_of_frames_of_streams_that_have_ended_is_answered_within_bounds():
    with target() as (far, endpoint):
        rogue = Rogue(endpoint)
        rogue.hello()
        for number in range(1, 4001, 2):
            rogue.send(header(frames.RESET, stream=number))
        rogue.open(4001)
        assert far.link.accept()[0] == "memory"
        assert len(far.link._traffic._notes._gone) <= 64
        assert len(far.link._traffic.streams) == 1


def test_a_peer_that_always_breaks_the_protocol_ends_the_link():
    with target() as (far, endpoint):
        for number in range(1, 17):
            rogue = Rogue(endpoint)
            rogue.hello(number=number)
            rogue.send(b"\xff" * 64)
            rogue.last_words()
            rogue.close()
        with pytest.raises(LinkClosed, match="breaks the protocol"):
            far.link.accept()


def test_the_same_channel_again_replaces_the_one_of_its_route():
    with target() as (far, endpoint):
        first, second = Rogue(endpoint), Rogue(endpoint)
        first.hello(number=1)
        assert first.frame()[0].kind == frames.HELLO
        second.hello(number=2)
        assert second.frame()[0].kind == frames.HELLO
        assert first.last_words() == ""
        assert far.is_up(1)
        assert far.link.stats().channels[0].number == 2


def test_random_bytes_after_a_valid_start_harm_nothing():
    chance = random.Random(7)
    with target() as (far, endpoint):
        for number in range(1, 15):
            rogue = Rogue(endpoint)
            rogue.hello(number=number)
            data = b"".join(
                header(
                    chance.randrange(1, 9), chance.choice([0, 1, 2, 4]), 0, chance.randrange(4),
                    chance.choice([0, 0, 5, 600]), chance.randrange(3), chance.randrange(3), 0,
                ) + chance.randbytes(chance.choice([0, 0, 5]))
                for _ in range(50)
            )  # fmt: skip
            with contextlib.suppress(OSError):
                rogue.send(data)
                rogue.sock.settimeout(0.05)
                rogue.last_words()
            rogue.close()
        assert eventually(lambda: far.is_up(0)) or far.link.stats().closed


def test_a_listener_that_fails_harms_nothing(caplog):
    def fails(event) -> None:
        raise RuntimeError("oops")

    link = Link(tls=TARGET, grace_s=1.0, limit=None, on_event=fails, lead=False)
    endpoint = link.listen(["127.0.0.1"])[0]
    near = end(SOURCE, lead=True)
    near.link.connect([Route("127.0.0.1", endpoint)])
    near.link.open("memory").send(b"x")
    assert link.accept()[1].receive() == b"x"
    near.link.close()
    link.close()
    assert "listener" in caplog.text
