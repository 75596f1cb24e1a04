"""The small HTTP client: whole answers, and a clear no to everything else."""

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.http1 import BadAnswer, Connection


def answer_of(raw: bytes, *pieces: bytes):
    """What the client makes of an answer that arrives as `raw` and then `pieces`."""
    here, there = socket.socketpair()
    with there:
        connection = Connection(here)

        def serve() -> None:
            for piece in (raw, *pieces):
                there.sendall(piece)
            there.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            answer = connection.ask("GET", "/", {"Host": "x"})
            return answer.status, answer.headers, answer.read()
        finally:
            thread.join()
            connection.close()


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd", b"abc"),
        (b"HTTP/1.1 200\r\ncontent-length:3\r\n\r\nabc", b"abc"),
        (b"HTTP/1.0 200 OK\n\nuntil the end", b"until the end"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\n\r\n", b"abc"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", b"x"),
    ],
)
def test_a_body_is_read_to_its_end_and_not_further(raw, body):
    status, _, got = answer_of(raw)
    assert (status, got) == (204 if b"204" in raw else 200, body)


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 101 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * (1 << 17) + b"\r\n\r\n",
        b"HTTP/1.1 200 O",
    ],
)
def test_what_is_not_http_is_said_so(raw):
    with pytest.raises(BadAnswer):
        answer_of(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n",
    ],
)
def test_an_answer_that_ends_early_is_never_a_short_body(raw):
    with pytest.raises(ConnectionError):
        answer_of(raw)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.integers(1, 40))
def test_a_body_is_the_same_however_it_is_cut_in_pieces(chunks, cut):
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    pieces = [raw[at : at + cut] for at in range(0, len(raw), cut)]
    assert answer_of(*pieces)[2] == b"".join(chunks)


def test_a_header_cannot_smuggle_another_request():
    here, there = socket.socketpair()
    with there:
        connection = Connection(here)
        with pytest.raises(BadAnswer):
            connection.ask("GET", "/\r\nX: y", {})
        with pytest.raises(BadAnswer):
            connection.ask("GET", "/", {"Authorization": "Bearer a\r\nX: y"})
        connection.close()
        assert there.recv(1) == b""
