"""Hosts that shall trust each other, and do not yet."""

from __future__ import annotations

from sterna.errors.family import Conflict, Denied, Failed, Invalid


class BadToken(Invalid):
    code = "trust.bad-token"
    text = "this is no token of `sterna host invite`: {reason}"
    hint = "Copy the whole line that it printed"


class TokenRefused(Denied):
    """Said to a caller that proved nothing: unknown and wrong are the same to it."""

    code = "trust.token-refused"
    text = "{host} does not take this token: {reason}"
    hint = "Make a new one on {host}: sterna host invite"


class WrongHost(Denied):
    code = "trust.wrong-host"
    text = "{url} does not answer as the host that made the token: {reason}"
    hint = "Nothing was sent to it. Look who has that address, or make a new token on {host}"


class PeerExists(Conflict):
    code = "trust.peer-exists"
    text = "{host} cannot trust this host as {peer}: {reason}"
    hint = "{fix}"


class NotListening(Conflict):
    code = "trust.not-listening"
    text = "{host} has no address at which other hosts reach it"
    hint = "Say [listen] address in sternad's configuration and restart it, or give --address"


class NotReached(Failed):
    code = "trust.not-reached"
    text = "{host} cannot reach {peer} at {url}: {reason}; they do not trust each other"
    hint = "Let it be reached there, or give --address to `sterna host join`"


class NotAnnounced(Failed):
    code = "trust.not-announced"
    text = "the certificate stays as it is, for {peers} could not be told of the new one: {reason}"
    hint = "Run it again when they answer; or give --force: they must be paired anew then"


class NotMutual(Denied):
    code = "trust.not-mutual"
    text = "{peer} at {url} does not trust this host"
    hint = "Pair them again: sterna host invite here, and sterna host join on {peer}"
