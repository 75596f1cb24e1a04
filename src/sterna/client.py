"""A synchronous client of one `sternad`: JSON requests and an event stream, over its Unix socket
or HTTPS.

Every failure is a SternaError: the daemon's own, rebuilt from its problem body; Unreachable when
the request certainly did not reach it; AnswerLost when a change may or may not have been made.
A connection is made for each request, so a restarted daemon is never a reason to fail. Imports no server library: the command line starts with this module.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, urlencode, urlsplit

from sterna.clock import monotonic
from sterna.errors import (
    AnswerLost,
    BadConfig,
    BadHost,
    DaemonUnreachable,
    HostNotTrusted,
    HostUnreachable,
    NotAllowed,
    SternaError,
    from_problem,
)
from sterna.http1 import Answer, BadAnswer, Connection

DEFAULT_SOCKET = Path("/run/sterna/sternad.sock")
DEFAULT_PORT = 7443
CONNECT_S = 10.0  # a host that takes longer to accept is not answering
READ_S = 30.0  # questions are answered from memory
CHANGE_S = 1800.0  # creating a VM may copy an image
QUIET_S = 20.0  # an event stream silent for so long is asked for again: the peer may be gone


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event; `id` is what to resume after. Without a name: a sign of life."""

    id: str
    name: str
    data: Any


class Events:
    """An open event stream: an iterator until the daemon ends it. Close it if you leave early.

    TimeoutError after `quiet_s` without a byte in the stream, or when the monotonic clock says
    `until`; Unreachable if the stream never began or its connection broke.
    """

    def __init__(
        self,
        connection: Connection,
        begin: Callable[[], Answer],
        unreachable: Callable[[Exception], SternaError],
        limits: tuple[float, float | None],
    ) -> None:
        self._connection = connection
        self._begin = begin
        self._unreachable = unreachable
        self._quiet_s, self._until = limits
        self._events = self._all()

    def __iter__(self) -> Events:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def hang_up(self) -> None:
        """Make a waiting `next` end with Unreachable; safe in a signal handler."""
        self._connection.hang_up()

    def close(self) -> None:
        self._events.close()
        self._connection.close()

    def _all(self) -> Generator[Event]:
        began = False
        try:
            answer = self._begin()
            began = True
            yield from self._parsed(answer)
        except TimeoutError as error:
            if began:
                raise
            raise self._unreachable(error) from error
        except (OSError, BadAnswer, ValueError) as error:
            raise self._unreachable(error) from error
        finally:
            self._connection.close()

    def _parsed(self, answer: Answer) -> Generator[Event]:
        """Parse the stream (WHATWG HTML, section 9.2) as far as sternad uses it."""
        name, last = "message", ""
        data: list[str] = []
        self._limit()
        for line in answer.lines():
            text = line.decode(errors="replace")
            if not text:
                if data:
                    yield Event(last, name, json.loads("\n".join(data)))
                name, data = "message", []
            else:
                key, _, value = text.partition(":")
                value = value.removeprefix(" ")
                if not key:
                    yield Event("", "", None)
                elif key == "event":
                    name = value
                elif key == "data":
                    data.append(value)
                elif key == "id":
                    last = value
            self._limit()

    def _limit(self) -> None:
        """Bound the next read. TimeoutError if it is too late already."""
        left = self._quiet_s if self._until is None else self._until - monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.limit(min(left, self._quiet_s))


class Proof(Protocol):
    """What shows for one request who asks. `authorization` is a header; `prove` raises SternaError
    unless the answer's header shows in return that it comes from whom it was for.
    """

    authorization: str

    def prove(self, reply: str) -> None: ...


class Client:
    """Talks to the daemon at `url`: `unix:///path` or `https://host[:port]`.

    `certificate` pins: the host must show exactly one of that file's, or of those in `pem`. Without
    them the system's authorities decide. `proof` makes one for a connection whose host shows that
    certificate (DER). `identity`: paths of the certificate and key by which the
    host knows us. `headers` go with every request. `connect_s` bounds the time to reach the daemon.
    """

    def __init__(  # noqa: PLR0913 - all that a way to a host can need
        self,
        url: str,
        *,
        certificate: Path | None = None,
        pem: str = "",
        identity: tuple[Path, Path] | None = None,
        headers: Mapping[str, str] | None = None,
        proof: Callable[[bytes], Proof] | None = None,
        connect_s: float = CONNECT_S,
    ) -> None:
        self.url = url
        self._proof = proof
        self._certificate = certificate
        self._pem = pem
        self._identity = identity
        self._headers = dict(headers or {})
        self._connect_s = connect_s
        parts = urlsplit(url)
        self.is_local = parts.scheme == "unix"
        self._path = parts.path
        try:
            self._host, self._port = parts.hostname or "", parts.port or DEFAULT_PORT
        except ValueError as error:
            raise BadHost(host=url, reason=str(error)) from error
        usable = self._path if self.is_local else (parts.scheme == "https" and self._host)
        if not usable:
            raise BadHost(host=url, reason="only https:// and unix:// lead to one")

    def get(self, path: str, query: Mapping[str, Any] | None = None, wait_s: float = READ_S) -> Any:
        """The JSON at `path`."""
        return self._ask("GET", path + _query(query), None, wait_s)

    def post(self, path: str, body: Any = None, wait_s: float = CHANGE_S) -> Any:
        """Send `body` (JSON types) and return the answer's JSON; None if it has none."""
        return self._ask("POST", path, body, wait_s)

    def patch(self, path: str, body: Any) -> Any:
        """Send changes (JSON types) and return the answer's JSON."""
        return self._ask("PATCH", path, body, CHANGE_S)

    def put(self, path: str, body: Any) -> Any:
        """Set something (JSON types) and return the answer's JSON."""
        return self._ask("PUT", path, body, CHANGE_S)

    def text(self, path: str, wait_s: float = READ_S) -> Generator[bytes]:
        """What is at `path` as it is, as it comes."""
        connection = self._connect(wait_s)
        try:
            yield from self._send(connection, "GET", path, None, {}).pieces()
        except (OSError, BadAnswer) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def delete(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        return self._ask("DELETE", path + _query(query), None, CHANGE_S)

    def events(
        self, path: str, after: str = "", quiet_s: float = QUIET_S, until: float | None = None
    ) -> Events:
        """Server-sent events of `path` after the event `after`; see Events for the limits."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        connection = self._connect(quiet_s)

        def begin() -> Answer:
            return self._send(connection, "GET", path, None, headers)

        return Events(connection, begin, self._unreachable, (quiet_s, until))

    def _ask(self, method: str, path: str, body: Any, wait_s: float) -> Any:
        connection = self._connect(wait_s)
        try:
            text = self._send(connection, method, path, body, {}).read()
        except (OSError, BadAnswer) as error:
            if method == "GET":
                raise self._unreachable(error) from error
            raise AnswerLost(
                url=self.url, request=f"{method} {path}", reason=_reason(error)
            ) from error
        finally:
            connection.close()
        return self._decode(text) if text else None

    def _connect(self, wait_s: float) -> Connection:
        """A connection whose reads wait `wait_s`; nothing has been sent yet."""
        sock: socket.socket | None = None
        try:
            if self.is_local:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                sock.settimeout(self._connect_s)
                sock.connect(self._path)
            else:
                sock = socket.create_connection((self._host, self._port), self._connect_s)
                sock = self._secured(sock)
            sock.settimeout(wait_s)
        except BaseException as error:
            if sock is not None:
                sock.close()
            if isinstance(error, OSError):
                raise self._unreachable(error) from error
            raise
        return Connection(sock)

    def _send(
        self, connection: Connection, method: str, path: str, body: Any, headers: dict[str, str]
    ) -> Answer:
        """The answer, its body not yet read. Raises the daemon's error if it answers with one."""
        host = "localhost" if self.is_local else urlsplit(self.url).netloc.rpartition("@")[2]
        headers = {
            "Host": host,
            "Accept": "application/json",
            "Connection": "close",
            **self._headers,
            **headers,
        }
        proof = self._proof(connection.certificate) if self._proof is not None else None
        if proof is not None:  # the second one is what no page of another site can send
            headers |= {"Authorization": proof.authorization, "X-CSRF-Token": "none"}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        answer = connection.ask(method, path, headers, data)
        if answer.status >= 400:
            raise self._problem(answer.status, answer.read())
        if proof is not None:
            proof.prove(answer.headers.get("www-authenticate", ""))
        return answer

    def _decode(self, text: bytes) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise self._foreign("its answer is not JSON") from error

    def _problem(self, status: int, text: bytes) -> SternaError:
        try:
            body = json.loads(text)
        except ValueError:
            body = None
        if not isinstance(body, dict) or "code" not in body:
            return self._foreign(f"it answered HTTP {status} without saying why")
        return from_problem(body)

    def _foreign(self, reason: str) -> SternaError:
        return DaemonUnreachable(url=self.url, reason=f"{reason}; is it sternad?")

    def _unreachable(self, error: Exception) -> SternaError:
        if not self.is_local:
            return self._remote_unreachable(error)
        if isinstance(error, PermissionError):
            return NotAllowed(
                what=f"using {self._path}",
                reason="the socket of sternad is for root and for one group",
                fix="Run the command with sudo; or let an administrator add you to the group sterna",
            )
        return DaemonUnreachable(url=self.url, reason=_reason(error))

    def _remote_unreachable(self, error: Exception) -> SternaError:
        import ssl  # noqa: PLC0415 - loaded already, by the connection

        if isinstance(error, ssl.SSLCertVerificationError):
            reason = error.verify_message or "it cannot be verified"
            return HostNotTrusted(url=self.url, reason=reason.lower())
        return HostUnreachable(peer=self._host, url=self.url, reason=_reason(error))

    def _secured(self, sock: socket.socket) -> socket.socket:
        """TLS over `sock`, to the right host: nothing is sent to any other."""
        import ssl  # noqa: PLC0415 - start-up time of those who do not need it

        pins = self._pins()
        if pins is None:
            context = ssl.create_default_context()
        else:  # the pin below is stricter than any name or authority
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if self._identity is not None:
            try:
                context.load_cert_chain(*self._identity)
            except (OSError, ssl.SSLError) as error:
                reason = f"cannot be shown to other hosts: {_reason(error)}"
                raise BadConfig(path=self._identity[0], reason=reason) from error
        secured = context.wrap_socket(sock, server_hostname=self._host)
        if pins is not None and secured.getpeercert(binary_form=True) not in pins:
            secured.close()
            where = self._certificate or "what is known of it here"
            raise HostNotTrusted(url=self.url, reason=f"it is not the one in {where}")
        return secured

    def _pins(self) -> list[bytes] | None:
        """The certificates that the host may show; None: the system's authorities decide."""
        if self._certificate is None:
            return _certificates(self._pem) if self._pem else None
        try:
            found = _certificates(self._certificate.read_text())
        except (OSError, ValueError) as error:
            reason = f"not a readable certificate: {error}"
            raise BadConfig(path=self._certificate, reason=reason) from error
        if not found:
            raise BadConfig(path=self._certificate, reason="holds no certificate in PEM form")
        return found


def segment(name: str) -> str:
    """`name` as one segment of a path."""
    return quote(name, safe="")


def _query(values: Mapping[str, Any] | None) -> str:
    given = {
        key: str(value).lower() if isinstance(value, bool) else value
        for key, value in (values or {}).items()
        if value is not None
    }
    return f"?{urlencode(given, doseq=True)}" if given else ""


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text[:1].lower() + text[1:]) or type(error).__name__


def _certificates(text: str) -> list[bytes]:
    """Those in `text` as DER. Raises ValueError."""
    import ssl  # noqa: PLC0415 - needed for HTTPS only

    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    return [
        ssl.PEM_cert_to_DER_cert(begin + part.split(end)[0] + end) for part in text.split(begin)[1:]
    ]
