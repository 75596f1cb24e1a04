"""Frames, order, windows and the limit: without sockets."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.carrier import frames
from sterna.carrier.bucket import Bucket
from sterna.carrier.frames import BadFrame, Hello
from sterna.carrier.inbox import Inbox, Piece
from sterna.carrier.outbox import Outbox

MIB = 1 << 20
KINDS = sorted(frames.NAMES)


@given(
    stream=st.integers(1, 2**32 - 1),
    number=st.integers(1, 2**64 - 1),
    consumed=st.integers(0, 2**64 - 1),
    ahead=st.integers(0, 1000),
    length=st.integers(1, frames.MAX_PAYLOAD),
    flags=st.sampled_from([0, frames.END, frames.ASK, frames.END | frames.ASK]),
)
def test_a_header_is_read_as_it_was_written(**fields):
    header = frames.parse(frames.pack(frames.DATA, **fields))
    assert {name: getattr(header, name) for name in fields} == fields


@given(st.binary(min_size=frames.SIZE, max_size=frames.SIZE))
def test_any_bytes_are_a_frame_within_limits_or_refused(data):
    check(data)


@given(
    kind=st.integers(0, 12),
    flags=st.integers(0, 17),
    zero=st.sampled_from([0, 0, 0, 1]),
    stream=st.integers(0, 3),
    length=st.sampled_from([0, 1, 64, 65, 512, 513, frames.HELLO_SIZE, frames.MAX_PAYLOAD, 2**32 - 1])
    | st.integers(0, 2**32 - 1),
    number=st.sampled_from([0, 1, 2**64 - 1]),
    consumed=st.sampled_from([0, 1, 2**64 - 1]),
    ahead=st.sampled_from([0, 1, 2**32 - 1]),
)  # fmt: skip
def test_fields_at_their_edges_are_within_limits_or_refused(**fields):
    check(frames.HEADER.pack(*fields.values()))


def check(data: bytes) -> None:
    try:
        header = frames.parse(data)
    except BadFrame:
        return
    assert header.length <= frames.MAX_PAYLOAD
    assert header.kind in KINDS
    assert frames.HEADER.pack(*header) == data


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ((0, 0, 0, 0, 0, 0, 0, 0), "not a frame"),
        ((frames.DATA, 0, 1, 1, 1, 1, 0, 0), "not a frame"),
        ((frames.DATA, 0, 0, 0, 1, 1, 0, 0), "for stream 0"),
        ((frames.DATA, 0, 0, 1, frames.MAX_PAYLOAD + 1, 1, 0, 0), "of 131041 bytes"),
        ((frames.DATA, 0, 0, 1, 0, 1, 0, 0), "flags 0 and 0 bytes"),
        ((frames.DATA, frames.FINISH, 0, 1, 1, 1, 0, 0), "flags 4 and 1 bytes"),
        ((frames.DATA, frames.FINISH | frames.END, 0, 1, 0, 1, 0, 0), "flags 5"),
        ((frames.DATA, frames.OPEN, 0, 1, 6, 1, 0, 0), "number 1"),
        ((frames.DATA, 0, 0, 1, 6, 0, 0, 0), "number 0"),
        ((frames.DATA, frames.OPEN, 0, 1, 65, 0, 0, 0), "name of 65 bytes"),
        ((frames.HELLO, 0, 0, 0, 3, 0, 0, 0), "hello of 3"),
        ((frames.PING, 0, 0, 0, 1, 0, 0, 0), "ping frame of 1"),
        ((frames.PING, 0, 0, 7, 0, 0, 0, 0), "for stream 7"),
        ((frames.PING, 0, 0, 0, 0, 0, 1, 0), "acknowledges"),
        ((frames.RESET, 0, 0, 1, 513, 0, 0, 0), "of 513 bytes"),
        ((frames.ACK, 0, 0, 1, 0, 9, 0, 0), "number 9"),
        ((frames.ACK, 0, 0, 1, 0, 0, 0, 2**31), "more than fit"),
    ],
)
def test_each_wrong_field_is_named(fields, words):
    with pytest.raises(BadFrame, match=words):
        frames.parse(frames.HEADER.pack(*fields))


def test_a_hello_is_read_as_it_was_written():
    hello = Hello(3, 9, b"l" * 16, b"i" * 16)
    data = hello.pack()
    assert frames.parse(data[: frames.SIZE]).kind == frames.HELLO
    assert Hello.parse(data[frames.SIZE :]) == hello


def test_a_reason_is_cut_and_shown_on_one_line():
    data = frames.with_text(frames.BYE, "é" * 500)
    assert frames.parse(data[: frames.SIZE]).length == frames.MAX_REASON
    assert frames.text(data[frames.SIZE :]) == "é" * 256
    assert frames.text(b"a\nb\x1b[31m\xff") == "a b [31m\ufffd"


# ---- order


@given(
    sizes=st.lists(st.integers(0, 300), max_size=12),
    most=st.integers(1, 100),
    seed=st.integers(0, 2**32),
)
def test_messages_come_out_once_and_in_order_however_frames_arrive(sizes, most, seed):
    chance = random.Random(seed)
    messages = [chance.randbytes(size) for size in sizes]
    outbox, inbox = Outbox(1, "memory"), Inbox(0)
    for message in messages:
        outbox.push(message)
    outbox.finishing = True
    sent = []
    while outbox.is_pending:
        sent.append(outbox.cut(most))
    order = sent + chance.choices(sent, k=len(sent))  # some twice, in any order
    chance.shuffle(order)
    found = []
    for frame in order:
        if inbox.admit(frame.number, len(frame.data)):
            inbox.insert(frame.number, Piece(frame.flags, frame.data, len(frame.data)))
        if chance.random() < 0.5:
            found += taken(inbox)
            assert outbox.acknowledge(*inbox.acknowledge()) in {True, False}
    found += taken(inbox)
    assert found[0] == b"memory"
    assert found[1:] == messages
    assert inbox.finished
    assert inbox.cost == 0
    outbox.acknowledge(*inbox.acknowledge())
    assert outbox.is_done
    assert outbox.outstanding == 0


def taken(inbox: Inbox) -> list[bytes]:
    found = []
    while not inbox.finished:
        inbox.release()
        parts = inbox.collect()
        if parts is None:
            break
        found.append(b"".join(bytes(part.data) for part in parts))
    return found


def test_a_message_counts_as_consumed_when_the_next_one_is_asked_for():
    inbox = Inbox(1)
    for number in (1, 2):
        inbox.insert(number, Piece(frames.END | frames.ASK, b"x", 1))
    assert inbox.collect()
    assert inbox.acknowledge() == (1, 2)
    inbox.release()
    assert inbox.ack_due
    assert inbox.acknowledge() == (2, 1)


def test_what_was_consumed_unasked_is_acknowledged_after_a_moment():
    """Else a sender whose window has shrunk since would wait for ever."""
    inbox = Inbox(1)
    inbox.insert(1, Piece(frames.END, b"x", 1))
    inbox.collect()
    inbox.remind()
    assert not inbox.ack_due
    inbox.release()
    assert not inbox.ack_due
    inbox.remind()
    assert inbox.ack_due
    assert inbox.acknowledge() == (2, 0)
    inbox.remind()
    assert not inbox.ack_due


def test_frames_that_no_honest_peer_sends_are_refused():
    inbox = Inbox(1)
    with pytest.raises(BadFrame, match="frame 1000000 where 1 is awaited"):
        inbox.admit(1_000_000, 1)
    inbox.insert(1, Piece(0, b"x", 1))
    with pytest.raises(BadFrame, match="within a message"):
        inbox.insert(2, Piece(frames.FINISH, b"", 0))
    inbox = Inbox(1)
    inbox.insert(1, Piece(frames.FINISH, b"", 0))
    with pytest.raises(BadFrame, match="after the last"):
        inbox.insert(2, Piece(frames.END, b"x", 1))
    inbox = Inbox(1)
    inbox.is_awaited = True
    whole = bytes(frames.MAX_PAYLOAD)
    with pytest.raises(BadFrame, match="message of more"):
        for number in range(1, 100):
            inbox.insert(number, Piece(0, whole, len(whole)))


def test_a_peer_cannot_fill_more_than_the_largest_window():
    inbox, whole, number = Inbox(1), bytes(frames.MAX_PAYLOAD), 2
    with pytest.raises(BadFrame, match="largest window"):
        while inbox.admit(number, len(whole)):
            inbox.insert(number, Piece(frames.END, whole, len(whole)))
            number += 1
    assert inbox.cost <= frames.MAX_WINDOW + 2 * frames.cost(frames.MAX_PAYLOAD)
    inbox, number = Inbox(1), 2
    with pytest.raises(BadFrame, match=r"awaited|largest window"):
        while inbox.admit(number, 0):  # each takes memory without a byte of payload
            inbox.insert(number, Piece(frames.END, b"", 0))
            number += 1
    assert number < 40_000


# ---- the window


def test_a_stream_waits_for_its_reader():
    outbox = Outbox(2, None)
    outbox.window = frames.MIN_WINDOW
    outbox.push(bytes(1 << 20))
    while outbox.may_cut(frames.POOL):
        outbox.cut(frames.MAX_PAYLOAD)
    assert outbox.outstanding <= frames.MIN_WINDOW + frames.cost(frames.MAX_PAYLOAD)
    outbox.acknowledge(2, 0)
    assert outbox.may_cut(frames.POOL)


def test_the_window_follows_the_rate_of_the_reader():
    outbox = Outbox(2, None)
    number, sent = 1, 0
    for seconds, rate in ((2.0, 100e6), (4.0, 5e6)):
        for _ in range(int(seconds / 0.1)):
            outbox.push(bytes(int(rate * 0.1)))
            while outbox.is_pending and sent < rate * 0.1:
                sent += len(outbox.cut(100_000).data)
                number += 1
            sent = 0
            outbox.blocked = True
            outbox.acknowledge(number - 2, 2)
            outbox.adapt(0.1, 0.02, 0.0)
        assert outbox.window == pytest.approx(max(rate * 0.07, frames.MIN_WINDOW), rel=0.1)


@pytest.mark.parametrize(
    ("ahead", "queue_s", "grows"), [(0, 0.0, True), (4, 0.0, False), (0, 0.1, False)]
)
def test_a_window_that_only_late_threads_fill_grows(ahead, queue_s, grows):
    outbox = Outbox(2, None)
    outbox.rate, before = 10e6, outbox.window
    number = 1
    for _ in range(20):
        outbox.push(bytes(MIB))
        while outbox.is_pending:
            outbox.cut(100_000)
            number += 1
        outbox.acknowledge(number - ahead, ahead)
        outbox.blocked = True
        outbox.adapt(0.1, 0.0, queue_s)
    assert (outbox.window > 4 * before) == grows


def test_an_acknowledgement_of_what_was_never_sent_is_refused():
    outbox = Outbox(1, "memory")
    outbox.cut(100)
    for consumed, ahead in ((2, 0), (0, 2), (2**64 - 1, 1)):
        with pytest.raises(BadFrame, match="acknowledges frame"):
            outbox.acknowledge(consumed, ahead)
    assert outbox.acknowledge(1, 0)
    assert not outbox.acknowledge(0, 0)  # an old one


# ---- the limit


@pytest.mark.parametrize("rate", [100_000, 25_000_000])
def test_a_limit_is_kept_smoothly_and_used_up(rate):
    bucket, now, sent = Bucket(rate), 0.0, []
    size = min(128 << 10, rate // 100)
    while now < 2.0:
        wait = bucket.delay(now)
        if wait:
            now += wait + 0.001  # threads wake a little late
        else:
            bucket.charge(size)
            sent.append((now, size))
    assert sum(size for _, size in sent) == pytest.approx(2.0 * rate, rel=0.05)
    for begin, _ in sent:
        burst = sum(size for at, size in sent if begin <= at < begin + 0.05)
        assert burst <= 0.1 * rate + size


def test_a_limit_changes_at_any_time():
    bucket = Bucket(None)
    bucket.charge(1e9)
    assert bucket.delay(1.0) == 0
    bucket.set_rate(1000, 1.0)
    bucket.charge(500)
    assert bucket.delay(1.0) == pytest.approx(0.5, abs=0.1)
    bucket.set_rate(1_000_000, 1.0)
    assert bucket.delay(1.0) < 0.01
    bucket.set_rate(None, 1.0)
    assert bucket.delay(1.0) == 0
