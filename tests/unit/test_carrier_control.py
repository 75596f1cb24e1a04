"""What daemon and relay say to each other: nothing is lost, and nothing wrong is believed."""

import json

import pytest

from sterna.carrier import control
from sterna.carrier.control import (
    BadMessage,
    Bottleneck,
    Connect,
    Event,
    Failed,
    Grace,
    Level,
    Limit,
    MemoryStats,
    Ready,
    Role,
    ServiceStats,
    Start,
    Stats,
    Stop,
    Up,
)
from sterna.carrier.facts import ChannelState, ChannelStats, Endpoint, LinkStats, Route

ROUTE = Route("10.0.0.1", Endpoint("fe80::1", 4711))
CHANNEL = ChannelStats(
    number=3,
    route=0,
    local="a",
    remote="b",
    state=ChannelState.STALLED,
    bytes_out=5,
    bytes_in=6,
    rate=7,
    rtt_ms=0.25,
    reason="",
)
LINK = LinkStats(
    wire_out=1,
    wire_in=2,
    payload_out=3,
    payload_in=4,
    retransmitted=5,
    channels=(CHANNEL,),
    limit=None,
    limited=True,
    down_since=12.5,
    in_flight=9,
    closed=None,
)
MESSAGES = [
    Start(
        role=Role.SOURCE,
        certificate="C",
        key="K",
        peer_certificate="P",
        addresses=("10.0.0.1", "::1"),
        routes=(ROUTE,),
        services={"memory": "/run/a b", "nbd": "/ö"},
        cache_bytes=1 << 40,
        limit=7,
        grace_s=None,
        workers=0,
    ),
    Start(role=Role.TARGET, certificate="C", key="K", services={}),
    Connect(routes=(ROUTE, ROUTE), certificate="P", cache_bytes=0),
    Limit(None),
    Limit(25_000_000),
    Grace(None),
    Grace(2.5),
    Stop(),
    Ready((Endpoint("10.0.0.1", 1), Endpoint("::1", 2))),
    Up(),
    Event("a channel\nis down", Level.WARNING),
    Failed("because"),
    Stats(time_s=1.5),
    Stats(
        time_s=1.5,
        bottleneck=Bottleneck.LIMIT,
        link=LINK,
        services={"memory": ServiceStats(streams=1, bytes_in=2)},
        memory=MemoryStats(stream_bytes=9, pages={"zero": 5}, encoded={"zero": 1}),
        cpu_s=0.5,
        peak_rss=10,
    ),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)
def test_every_message_comes_back_as_it_was(message):
    line = control.encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert control.decode(line) == message


def test_a_whole_number_of_seconds_is_a_number_of_seconds():
    assert control.decode(b'{"message": "grace", "seconds": 30}') == Grace(30.0)


def test_the_key_is_in_no_text_of_a_start():
    assert "SECRET" not in repr(Start(role=Role.TARGET, certificate="", key="SECRET", services={}))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not an object"),
        (b"{}", "of no known kind"),
        (b'{"message": ["up"]}', "of no known kind"),
        (b'{"message": "down"}', "of no known kind"),
        (b'{"message": "up", "more": 1}', "up: unknown or missing: more"),
        (b'{"message": "limit"}', "limit: unknown or missing: bytes_s"),
        (b'{"message": "limit", "bytes_s": "5"}', "limit.bytes_s: not int"),
        (b'{"message": "limit", "bytes_s": true}', "limit.bytes_s: not int"),
        (b'{"message": "limit", "bytes_s": 1.5}', "limit.bytes_s: not int"),
        (b'{"message": "failed", "reason": null}', "failed.reason: not str"),
        (
            b'{"message": "event", "text": "", "level": "x"}',
            "event.level: not one of info, warning",
        ),
        (b'{"message": "event", "text": "", "level": []}', "event.level: not one of info, warning"),
        (b'{"message": "ready", "endpoints": {}}', "ready.endpoints: not a list"),
        (b'{"message": "ready", "endpoints": [7]}', "ready.endpoints: not an object"),
        (b'{"message": "stats", "time_s": 1, "services": []}', "stats.services: not an object"),
    ],
)
def test_a_wrong_line_is_refused_with_its_reason(line, reason):
    with pytest.raises(BadMessage) as refused:
        control.decode(line)
    assert str(refused.value) == reason


def test_every_field_left_out_or_of_another_type_is_refused_or_has_a_default():
    for message in MESSAGES:
        body = json.loads(control.encode(message))
        for key in body.keys() - {"message"}:
            for wrong in ({**body, key: object.__name__}, {**body, key: {"x": [1]}}):
                try:
                    control.decode(json.dumps(wrong).encode())
                except BadMessage:
                    continue
                assert isinstance(body[key], str)
