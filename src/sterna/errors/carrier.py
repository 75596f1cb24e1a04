"""What carries a move between two hosts."""

from __future__ import annotations

from sterna.errors.family import Corrupt, Failed


class LinkClosed(Failed):
    """No stream of this link will carry anything more."""

    code = "carrier.link-closed"
    text = "the link to the other host is closed: {reason}"


class StreamReset(Failed):
    """One end broke a stream off; the link and its other streams go on."""

    code = "carrier.stream-reset"
    text = "the stream {service} was broken off: {reason}"


class BadBlock(Corrupt):
    """What arrived is no block of pages: the peer is broken or hostile."""

    code = "carrier.bad-block"
    text = "what arrived over the link is not a block of memory pages: {reason}"
    hint = "Run the same version of sternad on both hosts"


class CarrierFailed(Failed):
    """The relay of a move could not be started, or did not go on."""

    code = "carrier.failed"
    text = "what carries the move to the other host failed: {reason}"
