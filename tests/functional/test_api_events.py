import asyncio
import json
import socket
from contextlib import closing

import pytest

from api_rig import an_api, hang_up
from operations_rig import in_loop
from sterna.api import events as events_module
from sterna.client import Client
from sterna.operations.runner import Job

pytestmark = pytest.mark.functional

SPEC = {"name": "web", "memory": "64MiB"}


class Play:
    """A move that says a line whenever the test lets it."""

    def __init__(self) -> None:
        self.lines: asyncio.Queue[str | None] = asyncio.Queue()

    async def __call__(self, job: Job) -> dict:
        while line := await self.lines.get():
            job.log(line)
            job.sample({"line": line})
        return {"total_s": 1.0}

    def say(self, *lines: str | None) -> None:
        for line in lines:
            self.lines.put_nowait(line)


async def begin(api, work) -> str:
    await api.ask("POST", "/v1/vms", SPEC)
    api.moves.work = work
    return (await api.ask("POST", "/v1/vms/web/moves", {"target": "beta"}))[1]["location"]


def lines(events: list[dict[str, str]]) -> list[str]:
    return [json.loads(event["data"])["text"] for event in events if event["event"] == "log"]


@in_loop
async def test_a_stream_tells_all_in_order_and_ends_with_the_final_state(tmp_path):
    play = Play()
    async with an_api(tmp_path) as api:
        place = await begin(api, play)
        async with await api.open(f"{place}/events") as stream:
            assert stream.status == 200
            assert "text/event-stream" in stream.head
            assert "content-length" not in stream.head
            first = await stream.next()
            assert first["event"] == "state"
            play.say("one", "two", None)
            rest = await stream.all()
        numbers = [int(event["id"]) for event in [first, *rest]]
        assert numbers == sorted(set(numbers))
        assert lines(rest) == ["one", "two"]
        assert {event["event"] for event in rest} == {"state", "log", "progress"}
        last = json.loads(rest[-1]["data"])
        assert (last["state"], last["result"]) == ("succeeded", {"total_s": 1.0})


@in_loop
async def test_a_reader_that_comes_back_hears_the_rest_once(tmp_path):
    play = Play()
    async with an_api(tmp_path) as api:
        place = await begin(api, play)
        play.say("one", "two", "three")
        seen: list[dict[str, str]] = []
        async with await api.open(f"{place}/events") as stream:
            async for event in stream.events():
                seen.append(event)
                if lines(seen)[-1:] == ["two"]:
                    break
        play.say("four", None)
        await api.ask("GET", f"{place}?wait=10")
        async with await api.open(f"{place}/events", last=seen[-1]["id"]) as stream:
            seen += await stream.all()
        assert lines(seen) == ["one", "two", "three", "four"]
        numbers = [int(event["id"]) for event in seen]
        assert numbers == sorted(set(numbers))
        async with await api.open(f"{place}/events", last=seen[-1]["id"]) as stream:
            assert await stream.all() == []
        async with await api.open(f"{place}/events?after={seen[-2]['id']}") as stream:
            assert len(await stream.all()) == 1


@in_loop
async def test_an_id_that_is_none_is_refused(tmp_path):
    async with an_api(tmp_path) as api:
        place = await begin(api, Play())
        for last in ("x", "-1", "1e3", "²", "9" * 30):
            async with await api.open(f"{place}/events", last=last) as stream:
                assert stream.status == 400


@in_loop
async def test_a_reader_that_leaves_is_forgotten(tmp_path):
    async with an_api(tmp_path) as api:
        place = await begin(api, Play())
        (live,) = api.runner._live.values()
        async with await api.open(f"{place}/events") as stream:
            await stream.next()
            assert len(live.subscribers) == 1
        await until(lambda: not len(live.subscribers))


async def until(condition) -> None:
    while not condition():  # noqa: ASYNC110 - the test's deadline bounds it
        await asyncio.sleep(0.005)


@in_loop
async def test_a_reader_that_takes_nothing_is_disconnected_and_can_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(events_module, "SLOW_S", 0.2)
    play = Play()
    async with an_api(tmp_path) as api:
        place = await begin(api, play)
        with closing(socket.socket(socket.AF_UNIX)) as stuck:
            stuck.setblocking(False)
            await asyncio.get_running_loop().sock_connect(stuck, str(api.socket))
            stuck.send(f"GET {place}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            (live,) = api.runner._live.values()
            await until(lambda: len(live.subscribers))
            words = "x" * 5000
            play.say(*(f"{number} {words}" for number in range(200)))
            await until(lambda: live.line == 200)
            await until(lambda: not len(live.subscribers))
            received = b""
            while chunk := await asyncio.get_running_loop().sock_recv(stuck, 1 << 20):
                received += chunk
        assert received.count(b"event: log") < 200
        play.say(None)
        last = received.rsplit(b"\nid: ", 2)[-2].split(b"\n")[0].decode()
        async with await api.open(f"{place}/events", last=last) as stream:
            assert len(lines(await stream.all())) >= 100


@in_loop
async def test_a_quiet_stream_shows_that_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(events_module, "ALIVE_S", 0.02)
    async with an_api(tmp_path) as api:
        place = await begin(api, Play())
        async with await api.open(f"{place}/events") as stream:
            while not (await stream.chunk()).startswith(":"):
                pass


@in_loop
async def test_the_stream_of_the_host_tells_changes_and_can_be_resumed(tmp_path):
    play = Play()
    async with an_api(tmp_path) as api:
        async with await api.open("/v1/events") as stream:
            reset = await stream.next()
            assert reset["event"] == "reset"
            place = await begin(api, play)
            api.runner.hub.publish("vm", {"name": "web", "state": "running"})
            seen = [await stream.next()]
            while seen[-1]["event"] != "vm":
                seen.append(await stream.next())
            assert {event["event"] for event in seen[:-1]} == {"operation"}
            assert json.loads(seen[-1]["data"]) == {"name": "web", "state": "running"}
        play.say(None)
        await api.ask("GET", f"{place}?wait=10")
        async with await api.open("/v1/events", last=seen[0]["id"]) as stream:
            assert [await stream.next() for _ in seen[1:]] == seen[1:]
            assert (await stream.next())["event"] == "operation"
        for strange in ("", "otherlife-3", f"{api.runner.hub.epoch}-999999", "x"):
            async with await api.open("/v1/events", last=strange) as stream:
                assert (await stream.next())["event"] == "reset"
        await until(lambda: not len(api.runner.hub.subscribers))


@in_loop
async def test_a_gap_that_cannot_be_filled_is_told_as_a_reset(tmp_path):
    async with an_api(tmp_path) as api:
        hub = api.runner.hub
        for number in range(1500):
            hub.publish("vm", {"n": number})
        async with await api.open("/v1/events", last=f"{hub.epoch}-100") as stream:
            assert (await stream.next())["event"] == "reset"
        async with await api.open("/v1/events", last=f"{hub.epoch}-600") as stream:
            assert json.loads((await stream.next())["data"]) == {"n": 600}


@in_loop
async def test_leaving_ends_streams_and_waits_at_once(tmp_path):
    loop = asyncio.get_running_loop()
    async with an_api(tmp_path) as api:
        place = await begin(api, Play())
        one, two = await api.open(f"{place}/events"), await api.open("/v1/events")
        await one.next()
        await two.next()
        waiting = asyncio.ensure_future(api.ask("GET", f"{place}?wait=200"))
        (live,) = api.runner._live.values()
        await until(lambda: live.ended._waiters)
        began = loop.time()
    assert loop.time() - began < 3
    assert (await waiting)[2]["state"] == "running"
    for stream in (one, two):
        await stream.all()
        await hang_up(stream.writer)


@in_loop
async def test_our_own_client_reads_our_own_streams(tmp_path):
    play = Play()
    async with an_api(tmp_path) as api:
        place = await begin(api, play)
        play.say("one", None)
        client = Client(f"unix://{api.socket}")
        events = await asyncio.to_thread(lambda: list(client.events(f"{place}/events")))
        named = [event for event in events if event.name]
        assert named[-1].data["state"] == "succeeded"
        assert "one" in [event.data["text"] for event in named if event.name == "log"]
