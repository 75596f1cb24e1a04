"""Messages of bytes, and the queues between the threads of a pump."""

import os
import threading

import pytest
import zstandard

from sterna.carrier.pumps import PACKED, PLAIN, READ_BYTES, Squeeze, opened
from sterna.carrier.stages import Cut, Queue, Waits
from sterna.errors import BadBlock

TEXT = b"the same words again and again, " * 4096
DATA = {
    "a byte": b"x",
    "a request": os.urandom(28),
    "text": TEXT,
    "zeroes": bytes(READ_BYTES),
    "random": os.urandom(READ_BYTES),
    "text, then random": TEXT + os.urandom(len(TEXT)),
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_data_comes_out_of_its_message_as_it_went_in(data):
    message = Squeeze().message(memoryview(data))
    assert bytes(opened(message, zstandard.ZstdDecompressor())) == data
    assert len(message) <= len(data) + 1


def test_only_what_becomes_smaller_is_compressed():
    kinds = {name: Squeeze().message(memoryview(data))[:1] for name, data in DATA.items()}
    packed = {name for name, kind in kinds.items() if kind == PACKED}
    assert packed == {"text", "zeroes", "text, then random"}
    assert set(kinds.values()) == {PLAIN, PACKED}


def cut(frame):
    return PACKED + frame


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\7data",
        PACKED,
        cut(zstandard.compress(TEXT)[:-1]),
        cut(zstandard.compress(TEXT) + b"more"),
        cut(zstandard.compress(bytes(READ_BYTES + 1))),
        cut(zstandard.ZstdCompressor(write_content_size=False).compress(TEXT)),
        cut(os.urandom(100)),
    ],
    ids=["empty", "unknown", "nothing", "cut", "too long", "too large", "no size", "random"],
)
def test_a_message_that_is_none_is_refused(message):
    with pytest.raises(BadBlock):
        opened(message, zstandard.ZstdDecompressor())


def test_a_queue_keeps_the_order_and_never_more_than_it_has_room_for():
    queue: Queue[int] = Queue(2)
    most = 0

    def fill() -> None:
        for number in range(100):
            queue.put(number)
        queue.finish()

    thread = threading.Thread(target=fill)
    thread.start()
    found = []
    while (item := queue.get()) is not None:
        most = max(most, len(queue))
        found.append(item)
    thread.join()
    assert found == list(range(100))
    assert most <= 2


@pytest.mark.parametrize("side", ["put", "get"])
def test_a_queue_that_is_cut_ends_the_wait_of_either_side(side):
    queue: Queue[int] = Queue(1)
    if side == "put":
        queue.put(0)
    told = threading.Event()

    def wait() -> None:
        try:
            while True:
                queue.put(0) if side == "put" else queue.get()
        except Cut:
            told.set()

    thread = threading.Thread(target=wait)
    thread.start()
    queue.cut()
    thread.join(10)
    assert told.is_set()
    with pytest.raises(Cut):
        queue.get()


def test_a_wait_counts_while_it_lasts():
    waits = Waits()
    assert waits.seconds == 0
    with waits:
        first = waits.seconds
        while waits.seconds == first:
            pass
    done = waits.seconds
    assert done > 0
    assert waits.seconds == done
