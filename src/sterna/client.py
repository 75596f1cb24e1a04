"""A synchronous client of one `sternad`: JSON requests and an event stream, over its Unix socket
or HTTPS.

Every failure is a SternaError: the daemon's own, rebuilt from its problem body; Unreachable when
the request certainly did not reach it; AnswerLost when a change may or may not have been made.
A connection is made for each request, so a restarted daemon is never a reason to fail. The token
travels over TLS only. Imports no server library: the command line starts with this module.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from sterna.clock import monotonic
from sterna.errors import (
    AnswerLost,
    BadConfig,
    DaemonUnreachable,
    HostNotTrusted,
    HostUnreachable,
    NotAllowed,
    SternaError,
    from_problem,
)

if TYPE_CHECKING:
    import ssl

DEFAULT_SOCKET = Path("/run/sterna/sternad.sock")
DEFAULT_PORT = 7443
CONNECT_S = 10.0  # a host that takes longer to accept is not answering
READ_S = 30.0  # questions are answered from memory
CHANGE_S = 1800.0  # creating a VM may copy an image
QUIET_S = 20.0  # an event stream silent for so long is asked for again: the peer may be gone
MAX_ERROR = 1 << 20  # bytes of an error body that are read


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event; `id` is what to resume after. Without a name: a sign of life."""

    id: str
    name: str
    data: Any


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """Talks to the daemon at `url`: `unix:///path` or `https://host[:port]`.

    `certificate` pins: the host must show exactly one of that file's. Without it the system's
    authorities decide. `connect_s` bounds the time to reach the daemon.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        certificate: Path | None = None,
        connect_s: float = CONNECT_S,
    ) -> None:
        self.url = url
        self._token = token
        self._certificate = certificate
        self._connect_s = connect_s
        parts = urlsplit(url)
        self.is_local = parts.scheme == "unix"
        self._path = parts.path
        try:
            self._host, self._port = parts.hostname or "", parts.port or DEFAULT_PORT
        except ValueError as error:
            raise BadConfig(path=url, reason=f"not a URL of a host: {error}") from error
        usable = self._path if self.is_local else (parts.scheme == "https" and self._host)
        if not usable:
            raise BadConfig(path=url, reason="a host is given as unix:///PATH or https://HOST:PORT")

    def get(self, path: str, query: Mapping[str, Any] | None = None, wait_s: float = READ_S) -> Any:
        """The JSON at `path`."""
        return self._ask("GET", path + _query(query), None, wait_s)

    def post(self, path: str, body: Any = None) -> Any:
        """Send `body` (JSON types) and return the answer's JSON; None if it has none."""
        return self._ask("POST", path, body, CHANGE_S)

    def delete(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        return self._ask("DELETE", path + _query(query), None, CHANGE_S)

    def events(
        self, path: str, after: str = "", quiet_s: float = QUIET_S, until: float | None = None
    ) -> Generator[Event]:
        """Server-sent events of `path` after the event `after`, until the daemon ends the stream.

        TimeoutError after `quiet_s` without a byte in the stream, or when the monotonic clock
        says `until`; Unreachable if there is no stream or its connection breaks. Close the
        generator to hang up.
        """
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        connection = self._connect(quiet_s)
        response = None
        try:
            response = self._send(connection, "GET", path, None, headers)
            yield from _events(response, lambda: _patience(connection, quiet_s, until))
        except TimeoutError as error:
            if response is not None:
                raise
            raise self._unreachable(error) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        except ValueError as error:
            raise self._foreign("its events are not JSON") from error
        finally:
            connection.close()

    def _ask(self, method: str, path: str, body: Any, wait_s: float) -> Any:
        connection = self._connect(wait_s)
        try:
            response = self._send(connection, method, path, body, {})
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            if method == "GET":
                raise self._unreachable(error) from error
            raise AnswerLost(
                url=self.url, request=f"{method} {path}", reason=_reason(error)
            ) from error
        finally:
            connection.close()
        return self._decode(text) if text else None

    def _connect(self, wait_s: float) -> http.client.HTTPConnection:
        """An open connection whose reads wait `wait_s`; nothing has been sent yet."""
        if self.is_local:
            connection: http.client.HTTPConnection = _UnixConnection(self._path, self._connect_s)
        else:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._connect_s, context=self._tls()
            )
        try:
            connection.connect()
            self._check_pin(connection)
            connection.sock.settimeout(wait_s)
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError):
                raise self._unreachable(error) from error
            raise
        return connection

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Any,
        headers: dict[str, str],
    ) -> http.client.HTTPResponse:
        """The response, its body not yet read. Raises the daemon's error if it answers with one."""
        headers = {"Accept": "application/json", **headers}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        if self._token and not self.is_local:
            headers["Authorization"] = f"Bearer {self._token}"
        connection.request(method, path, body=data, headers=headers)
        response = connection.getresponse()
        if response.status >= 400:
            raise self._problem(response.status, response.read(MAX_ERROR))
        return response

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
        import ssl  # noqa: PLC0415 - already loaded by http.client, named here only

        if isinstance(error, ssl.SSLCertVerificationError):
            reason = error.verify_message or "it cannot be verified"
            return HostNotTrusted(url=self.url, reason=reason.lower())
        if self.is_local and isinstance(error, PermissionError):
            return NotAllowed(
                what=f"using {self._path}",
                reason="the socket of sternad is for root only",
                fix="Run the command with sudo, or use --host https://HOST with a token",
            )
        if self.is_local:
            return DaemonUnreachable(url=self.url, reason=_reason(error))
        return HostUnreachable(peer=self._host, url=self.url, reason=_reason(error))

    def _tls(self) -> ssl.SSLContext:
        import ssl  # noqa: PLC0415 - needed for HTTPS only

        if self._certificate is None:
            context = ssl.create_default_context()
        else:  # _check_pin is stricter than any name or authority
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context

    def _check_pin(self, connection: http.client.HTTPConnection) -> None:
        """Before anything is sent: the host's certificate is one of the pinned ones."""
        if self._certificate is None or self.is_local:
            return
        import ssl  # noqa: PLC0415 - needed for HTTPS only

        assert isinstance(connection.sock, ssl.SSLSocket)
        if connection.sock.getpeercert(binary_form=True) not in _pins(self._certificate):
            raise HostNotTrusted(url=self.url, reason=f"it is not the one in {self._certificate}")


def segment(name: str) -> str:
    """`name` as one segment of a path."""
    return quote(name, safe="")


def _query(values: Mapping[str, Any] | None) -> str:
    given = {
        key: str(value).lower() if isinstance(value, bool) else value
        for key, value in (values or {}).items()
        if value is not None
    }
    return f"?{urlencode(given)}" if given else ""


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text[:1].lower() + text[1:]) or type(error).__name__


def _pins(file: Path) -> list[bytes]:
    """The certificates in `file` as DER. Raises BadConfig if there is none."""
    import ssl  # noqa: PLC0415 - needed for HTTPS only

    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    try:
        text = file.read_text()
        found = [
            ssl.PEM_cert_to_DER_cert(begin + part.split(end)[0] + end)
            for part in text.split(begin)[1:]
        ]
    except (OSError, ValueError) as error:
        raise BadConfig(path=file, reason=f"not a readable certificate: {error}") from error
    if not found:
        raise BadConfig(path=file, reason="holds no certificate in PEM form")
    return found


def _patience(connection: http.client.HTTPConnection, quiet_s: float, until: float | None) -> None:
    """Bound the next read. TimeoutError if it is too late already."""
    left = quiet_s if until is None else min(quiet_s, until - monotonic())
    if left <= 0:
        raise TimeoutError
    if connection.sock is not None:
        connection.sock.settimeout(left)


def _events(
    response: http.client.HTTPResponse, before_read: Callable[[], None]
) -> Generator[Event]:
    """Parse an event stream (WHATWG HTML, section 9.2) as far as sternad uses it."""
    name, last = "message", ""
    data: list[str] = []
    while True:
        before_read()
        line = response.readline()
        if not line:
            return
        text = line.decode(errors="replace").rstrip("\r\n")
        if not text:
            if data:
                yield Event(last, name, json.loads("\n".join(data)))
            name, data = "message", []
            continue
        key, _, value = text.partition(":")
        if not key:
            yield Event("", "", None)
        value = value.removeprefix(" ")
        if key == "event":
            name = value
        elif key == "data":
            data.append(value)
        elif key == "id":
            last = value
