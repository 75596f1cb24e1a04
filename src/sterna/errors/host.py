"""Other hosts, and the way to them."""

from __future__ import annotations

from sterna.errors.family import Denied, NotFound, Refused, Unknown, Unreachable


class HostUnknown(NotFound):
    code = "host.unknown"
    text = "{host} does not know a host called {peer}"
    hint = "Pair it: sterna host invite there, sterna host join here; known hosts: {known}"


class PeerOutdated(Refused):
    """The peer's API is of our version, and has not yet what we ask for."""

    code = "host.outdated"
    text = "{peer} runs an older Sterna that does not know {call}"
    hint = "Bring {peer} to the version of Sterna that this host has"


class HostUnreachable(Unreachable):
    code = "host.unreachable"
    text = "{peer} does not answer at {url}: {reason}"
    hint = "Check that sternad runs there and that the address and port are right"
    delivered: bool = True  # the host may have received the request all the same


class DaemonUnreachable(Unreachable):
    code = "daemon.unreachable"
    text = "no sternad answers at {url}: {reason}"
    hint = "Start it with: systemctl start sternad (or name another with --host)"


class DaemonLost(Unreachable):
    code = "daemon.lost"
    text = (
        "sternad at {url} went away during {doing} and was not back within {seconds:g} s: {reason}"
    )
    hint = "The work goes on, or is settled when sternad is back: sterna op wait {operation}"


class AnswerLost(Unknown):
    """A request was sent, and the connection ended before its answer came."""

    code = "daemon.answer-lost"
    text = "sternad at {url} did not answer {request}: {reason}; it may or may not have been done"
    hint = "Look before you ask again: sterna vm list, sterna op list"


class HostNotTrusted(Denied):
    code = "host.not-trusted"
    text = "the certificate of {url} is not trusted: {reason}"
    hint = (
        "Run this on that host: sterna host certificate; "
        "then give the file that it prints with --certificate"
    )


class NotAllowed(Denied):
    code = "access.denied"
    text = "{what} is not allowed: {reason}"
    hint = "{fix}"
