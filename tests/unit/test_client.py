"""The client: over a Unix socket and over TLS, and what it says when the other end misbehaves."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from standin import Operation, Standin
from sterna.client import Client, Event
from sterna.clock import monotonic
from sterna.errors import (
    AnswerLost,
    BadConfig,
    BadHost,
    DaemonUnreachable,
    HostNotTrusted,
    HostUnreachable,
    RemoteError,
    Unreachable,
    VMNotFound,
)
from sterna.security import identity


@pytest.fixture(scope="module")
def identities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("identities")
    return [identity.ensure(folder / name, name, "127.0.0.1") for name in ("hv-a", "hv-b")]


@pytest.fixture
def remote(tmp_path, identities) -> Iterator[Standin]:
    own = identities[0]
    daemon = Standin(tmp_path / "x", certificate=(own.certificate, own.key))
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture
def answering(tmp_path) -> Iterator:
    """A function that makes a socket which answers its first connection with given bytes."""
    path = tmp_path / "odd.sock"
    threads, listeners = [], []

    def make(answer: bytes) -> Client:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        listeners.append(listener)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        threads.append(threading.Thread(target=serve, daemon=True))
        threads[-1].start()
        return Client(f"unix://{path}")

    yield make
    for thread in threads:
        thread.join(5)
    for listener in listeners:
        listener.close()


def test_errors_of_the_daemon_keep_their_class_and_words(sternad):
    with pytest.raises(VMNotFound) as caught:
        Client(sternad.url).get("/v1/vms/web")
    assert caught.value.message == "hv-a has no VM called web"


def test_an_error_of_a_newer_daemon_keeps_its_words_and_exit_code(sternad):
    body = {"code": "move.new", "title": "it rains", "hint": "wait", "exit_code": 3, "facts": {}}
    sternad.answer = lambda handler: handler.send(422, body) or True
    with pytest.raises(RemoteError) as caught:
        Client(sternad.url).get("/v1/vms")
    assert (caught.value.message, caught.value.advice) == ("it rains", "wait")
    assert caught.value.problem()["exit_code"] == 3


def test_a_missing_socket_and_one_that_nobody_serves_are_unreachable(tmp_path):
    with pytest.raises(DaemonUnreachable, match="no such file"):
        Client(f"unix://{tmp_path}/none").get("/v1")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / "dead"))
    dead.close()
    with pytest.raises(DaemonUnreachable, match="connection refused"):
        Client(f"unix://{tmp_path}/dead").get("/v1")


def test_a_path_too_long_for_a_socket_is_a_sentence(tmp_path):
    with pytest.raises(DaemonUnreachable, match="too long"):
        Client(f"unix:///{'x' * 200}").get("/v1")


@pytest.mark.parametrize(
    "url", ["http://h", "h:1", "https://", "https://h:port", "unix://", "ftp://h"]
)
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(BadHost):
        Client(url)


def test_a_stranger_at_the_socket_is_told_from_sternad(sternad):
    client = Client(sternad.url)
    sternad.answer = lambda handler: handler.send_raw(200, b"<html>") or True
    with pytest.raises(DaemonUnreachable, match=r"not JSON; is it sternad\?"):
        client.get("/v1")
    sternad.answer = lambda handler: handler.send_raw(502, b"<html>") or True
    with pytest.raises(DaemonUnreachable, match="HTTP 502 without saying why"):
        client.get("/v1")


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n[", b"hello\r\n"]
)
def test_a_question_without_a_whole_answer_may_be_asked_again(answering, answer):
    with pytest.raises(Unreachable):
        answering(answer).get("/v1/vms")


def test_a_change_without_an_answer_is_unknown_and_not_a_failure(answering):
    with pytest.raises(AnswerLost, match="POST /v1/vms/web:start") as caught:
        answering(b"").post("/v1/vms/web:start")
    assert caught.value.exit_code == 9


def test_a_pinned_host_is_reached_over_tls(remote, identities):
    remote.add_vm("web")
    client = Client(remote.url, certificate=identities[0].certificate)
    assert [vm["name"] for vm in client.get("/v1/vms")] == ["web"]


def test_a_known_host_is_reached_by_what_is_known_of_it(remote, identities):
    both = f"{identities[1].pem}\n{identities[0].pem}"  # of now, and announced
    assert Client(remote.url, pem=both).get("/v1/vms") == []
    with pytest.raises(HostNotTrusted, match="what is known of it here"):
        Client(remote.url, pem=identities[1].pem).get("/v1/vms")


def test_a_key_that_cannot_be_shown_is_named(remote, identities, tmp_path):
    odd = (identities[0].certificate, identities[1].key)
    with pytest.raises(BadConfig, match="cannot be shown to other hosts"):
        Client(remote.url, pem=identities[0].pem, identity=odd).get("/v1/vms")


def test_another_hosts_certificate_is_noticed_before_anything_is_sent(remote, identities):
    client = Client(remote.url, certificate=identities[1].certificate)
    with pytest.raises(HostNotTrusted, match="it is not the one in") as caught:
        client.get("/v1/vms")
    assert remote.requests == []
    assert caught.value.exit_code == 5


def test_without_a_pin_an_unknown_authority_is_not_trusted(remote):
    with pytest.raises(HostNotTrusted, match="self-signed"):
        Client(remote.url).get("/v1/vms")
    assert remote.requests == []


def test_a_file_without_a_certificate_is_named(remote, tmp_path):
    (tmp_path / "c.pem").write_text("nothing")
    with pytest.raises(BadConfig, match="no certificate"):
        Client(remote.url, certificate=tmp_path / "c.pem").get("/v1")
    with pytest.raises(BadConfig, match="No such file"):
        Client(remote.url, certificate=tmp_path / "none.pem").get("/v1")


def test_a_host_that_is_not_there_is_unreachable():
    with pytest.raises(HostUnreachable, match=r"127.0.0.1 does not answer"):
        Client("https://127.0.0.1:1").get("/v1")


def test_events_are_resumed_after_the_last_one_seen(sternad):
    sternad.play = lambda operation: (
        [operation.log(str(n)) for n in range(5)] and operation.end("succeeded")
    )
    sternad.add_vm("web")
    client = Client(sternad.url)
    operation = client.post("/v1/vms/web:stop", {})
    path = f"/v1/operations/{operation['id']}/events"
    everything = list(client.events(path))
    assert everything[-1].data["state"] == "succeeded"
    assert list(client.events(path, after=everything[2].id)) == everything[3:]


def test_a_limit_holds_however_lively_the_stream_is(sternad):
    def play(operation: Operation) -> None:
        operation.sign_of_life()
        operation.wait(lambda: operation.facts["phase"] == "tidy")

    sternad.play = play
    sternad.add_vm("web")
    client = Client(sternad.url)
    operation = client.post("/v1/vms/web:stop", {})
    path = f"/v1/operations/{operation['id']}/events"
    with closing(client.events(path, until=monotonic() + 0.2)) as events:
        assert next(events).name == "state"
        assert next(events) == Event("", "", None)
        with pytest.raises(TimeoutError):
            next(events)
    sternad.operations[operation["id"]].phase("tidy")


def test_a_silent_stream_is_a_timeout_and_a_broken_one_is_unreachable(sternad):
    sternad.play = lambda operation: operation.wait(lambda: operation.watched == 2)
    sternad.add_vm("web")
    client = Client(sternad.url)
    path = f"/v1/operations/{client.post('/v1/vms/web:stop', {})['id']}/events"
    with closing(client.events(path, quiet_s=0.05)) as silent:
        assert next(silent).name == "state"
        with pytest.raises(TimeoutError):
            next(silent)
    with closing(client.events(path)) as broken:
        assert next(broken).name == "state"
        sternad.stop()
        with pytest.raises(DaemonUnreachable, match="the connection ended"):
            next(broken)
    with pytest.raises(DaemonUnreachable):
        client.events(path)


def test_a_waiting_reader_can_be_woken_as_if_the_daemon_had_gone(sternad):
    sternad.play = lambda operation: operation.wait(lambda: operation.facts["phase"] == "tidy")
    sternad.add_vm("web")
    client = Client(sternad.url)
    operation = client.post("/v1/vms/web:stop", {})
    with closing(client.events(f"/v1/operations/{operation['id']}/events")) as events:
        assert next(events).name == "state"
        threading.Timer(0.02, events.hang_up).start()
        with pytest.raises(DaemonUnreachable):
            next(events)
    sternad.operations[operation["id"]].phase("tidy")
