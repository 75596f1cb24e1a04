import asyncio

from api_rig import an_api, hang_up
from operations_rig import in_loop
from sterna.api.access import MAX_BODY
from sterna.operations.runner import Job

SPEC = {"name": "web", "memory": "64MiB", "nics": [{"name": "eth0", "switch": "lan"}]}


async def gated(job: Job) -> dict:
    job.phase = "memory"
    await asyncio.Event().wait()
    return {}


async def brief(job: Job) -> dict:
    job.phase = "memory"
    job.sample({"transferred": 1})
    async with job.step("copy") as step:
        step.say("copied")
    return {"total_s": 1.0}


@in_loop
async def test_the_root_and_the_hosts_say_who_answers(tmp_path):
    async with an_api(tmp_path) as api:
        status, headers, root = await api.ask("GET", "/v1")
        assert (status, root["api"], root["name"], root["extensions"]) == (200, 1, "alpha", [])
        assert headers["content-type"] == "application/json"
        assert (await api.ask("GET", "/v1/host"))[2]["cpus"] == 2
        assert (await api.ask("GET", "/v1/hosts"))[2][0]["state"] == "this"
        assert (await api.ask("GET", "/v1/hosts/alpha"))[2]["name"] == "alpha"
        status, _, problem = await api.ask("GET", "/v1/hosts/gamma")
        assert (status, problem["code"]) == (404, "host.unknown")


@in_loop
async def test_a_vm_lives_from_create_to_delete(tmp_path):
    async with an_api(tmp_path) as api:
        status, headers, view = await api.ask("POST", "/v1/vms", SPEC)
        assert (status, headers["location"]) == (201, "/v1/vms/web")
        assert view["spec"]["memory"] == 64 << 20
        assert (await api.ask("GET", "/v1/vms"))[2] == [view]
        assert (await api.ask("GET", "/v1/vms/id-web"))[2] == view
        for action, state in (("start", "running"), ("pause", "paused"), ("resume", "running")):
            status, _, view = await api.ask("POST", f"/v1/vms/web:{action}")
            assert (status, view["state"]) == (200, state)
        status, headers, operation = await api.ask("POST", "/v1/vms/web:stop", {"force": True})
        assert status == 202
        assert headers["location"] == f"/v1/operations/{operation['id']}"
        _, _, ended = await api.ask("GET", f"{headers['location']}?wait=10")
        assert (ended["state"], ended["result"]) == ("succeeded", {"timeout_s": 60.0})
        assert (await api.ask("GET", "/v1/vms/web"))[2]["state"] == "off"
        assert (await api.ask("DELETE", "/v1/vms/web?keep_disks=true"))[0] == 204
        assert (await api.ask("GET", "/v1/vms"))[2] == []


@in_loop
async def test_stopping_needs_no_body(tmp_path):
    async with an_api(tmp_path) as api:
        await api.ask("POST", "/v1/vms", SPEC)
        api.vms.stop_gate.set()
        status, headers, _ = await api.ask("POST", "/v1/vms/web:stop")
        assert status == 202
        _, _, ended = await api.ask("GET", f"{headers['location']}?wait=10")
        assert ended["state"] == "succeeded"


@in_loop
async def test_switches_and_pools_are_made_used_and_deleted(tmp_path):
    async with an_api(tmp_path) as api:
        for kind, body in (
            ("switches", {"name": "lan"}),
            ("pools", {"name": "lan", "path": "/srv"}),
        ):
            status, _, view = await api.ask("POST", f"/v1/{kind}", body)
            assert (status, view["users"], view["problem"]) == (201, [], "")
            assert (await api.ask("POST", f"/v1/{kind}", body))[0] == 409
            assert (await api.ask("GET", f"/v1/{kind}"))[2] == [view]
            assert (await api.ask("DELETE", f"/v1/{kind}/other"))[0] == 404
        await api.ask("POST", "/v1/vms", SPEC)
        assert (await api.ask("GET", "/v1/switches"))[2][0]["users"] == ["web"]
        status, _, problem = await api.ask("DELETE", "/v1/switches/lan")
        assert (status, problem["code"]) == (409, "switch.in-use")
        assert (await api.ask("DELETE", "/v1/pools/lan"))[0] == 204


@in_loop
async def test_a_move_is_an_operation_that_can_be_watched_and_listed(tmp_path):
    async with an_api(tmp_path) as api:
        await api.ask("POST", "/v1/vms", SPEC)
        api.moves.work = brief
        wishes = {"target": "beta", "bandwidth": "100MB", "max_downtime_ms": 50}
        status, headers, begun = await api.ask("POST", "/v1/vms/web/moves", wishes)
        assert (status, begun["kind"], begun["peer"]) == (202, "move", "beta")
        assert api.moves.wishes.bandwidth == 100_000_000
        place = headers["location"]
        _, _, ended = await api.ask("GET", f"{place}?wait=10")
        assert (ended["state"], ended["result"]) == ("succeeded", {"total_s": 1.0})
        assert [step["text"] for step in ended["steps"]] == ["copied"]
        _, _, lines = await api.ask("GET", f"{place}/log")
        assert [(line["number"], line["text"]) for line in lines] == [(1, "copy: copied")]
        assert (await api.ask("GET", f"{place}/log?after=1"))[2] == []
        assert (await api.ask("GET", f"{place}/samples"))[2] == [{"transferred": 1}]
        assert (await api.ask("GET", "/v1/operations?vm=web&kind=move&limit=1"))[2] == [ended]
        assert (await api.ask("GET", "/v1/operations?state=failed"))[2] == []


@in_loop
async def test_a_wait_returns_after_its_time_or_as_soon_as_it_is_final(tmp_path):
    async with an_api(tmp_path) as api:
        await api.ask("POST", "/v1/vms", SPEC)
        api.moves.work = gated
        _, headers, _ = await api.ask("POST", "/v1/vms/web/moves", {"target": "beta"})
        place = headers["location"]
        assert (await api.ask("GET", f"{place}?wait=0.05"))[2]["state"] in ("queued", "running")
        waiting = asyncio.ensure_future(api.ask("GET", f"{place}?wait=100"))
        status, headers, cancelling = await api.ask("POST", f"{place}:cancel")
        assert (status, cancelling["state"], headers["location"]) == (202, "cancelling", place)
        assert (await waiting)[2]["state"] == "cancelled"
        status, _, problem = await api.ask("POST", f"{place}:cancel")
        assert (status, problem["code"]) == (409, "operation.ended")


BAD = [
    ("GET", "/v1/vms/nobody", None, 404, "vm.not-found", "nobody"),
    ("GET", "/nothing", None, 404, "request.no-such-path", "/nothing"),
    ("GET", "/v1/vms/", None, 404, "request.no-such-path", "/v1/vms/"),
    ("PATCH", "/v1/vms", None, 405, "request.bad-method", "PATCH"),
    ("POST", "/v1/vms", None, 400, "request.invalid", "it needs a body"),
    ("POST", "/v1/vms", b"{", 400, "request.invalid", "not JSON"),
    ("POST", "/v1/vms", b"\xff", 400, "request.invalid", "the request"),
    ("POST", "/v1/vms", [], 400, "request.invalid", "the request"),
    ("POST", "/v1/vms", {}, 400, "request.invalid", "field 'name' is missing"),
    ("POST", "/v1/vms", SPEC | {"ram": 1}, 400, "request.invalid", "unknown field 'ram'"),
    ("POST", "/v1/vms", SPEC | {"vcpus": 0}, 400, "request.invalid", "vcpus is 0"),
    ("POST", "/v1/vms", SPEC | {"memory": "-1GiB"}, 400, "request.bad-size", "-1GiB"),
    ("POST", "/v1/vms", SPEC | {"memory": "10 X"}, 400, "request.bad-size", "10 X"),
    ("POST", "/v1/vms", SPEC | {"name": "NO"}, 400, "request.invalid", "'NO' is not a name"),
    ("POST", "/v1/vms", SPEC | {"nics": [{"name": "e"}]}, 400, "request.invalid", "nics.0"),
    ("POST", "/v1/vms/nobody:start", None, 404, "vm.not-found", "nobody"),
    ("POST", "/v1/vms/x:stop", {"timeout_s": -1}, 400, "request.invalid", "timeout_s is -1"),
    ("POST", "/v1/vms/x:stop", {"forse": True}, 400, "request.invalid", "unknown field"),
    ("POST", "/v1/vms/x/moves", {}, 400, "request.invalid", "'target' is missing"),
    ("POST", "/v1/vms/x/moves", {"target": "b"}, 404, "vm.not-found", "x"),
    ("GET", "/v1/operations/none", None, 404, "operation.not-found", "none"),
    ("GET", "/v1/operations/none/log", None, 404, "operation.not-found", "none"),
    ("GET", "/v1/operations/none/samples", None, 404, "operation.not-found", "none"),
    ("GET", "/v1/operations/none/events", None, 404, "operation.not-found", "none"),
    ("POST", "/v1/operations/none:cancel", None, 404, "operation.not-found", "none"),
    ("GET", "/v1/operations?limit=0", None, 400, "request.invalid", "limit"),
    ("GET", "/v1/operations?state=odd", None, 400, "request.invalid", "state"),
    ("GET", "/v1/operations/none?wait=nan", None, 400, "request.invalid", "wait"),
    ("GET", "/v1/operations/none?wait=1e9", None, 400, "request.invalid", "wait"),
    ("POST", "/v1/pools", {"name": "p", "path": "srv"}, 400, "request.invalid", "absolute"),
]


@in_loop
async def test_bad_requests_are_answered_with_one_sentence(tmp_path):
    async with an_api(tmp_path) as api:
        for method, path, body, status, code, words in BAD:
            got, headers, problem = await api.ask(method, path, body)
            case = f"{method} {path} {body!r}: {got} {problem}"
            assert (got, problem["code"], problem["status"]) == (status, code, status), case
            assert headers["content-type"] == "application/problem+json", case
            assert words in problem["title"], case
            assert "\n" not in problem["title"], case
        assert api.vms.specs == {}


@in_loop
async def test_a_refused_move_says_why_and_how_to_mend_it(tmp_path):
    async with an_api(tmp_path) as api:
        await api.ask("POST", "/v1/vms", SPEC)
        got, _, problem = await api.ask("POST", "/v1/vms/web/moves", {"target": "nowhere"})
        assert (got, problem["exit_code"], problem["hint"]) == (422, 3, "add it")
        assert (await api.ask("GET", "/v1/operations"))[2] == []


@in_loop
async def test_an_unexpected_error_is_a_problem_that_gives_nothing_away(tmp_path, caplog):
    async with an_api(tmp_path) as api:
        await api.ask("POST", "/v1/vms", SPEC | {"name": "cursed"})
        status, headers, problem = await api.ask("POST", "/v1/vms/cursed:start")
        assert (status, problem["code"]) == (500, "internal")
        assert headers["content-type"] == "application/problem+json"
        assert "secret" not in str(problem)
        assert "a secret detail" in caplog.text
        assert (await api.ask("GET", "/v1"))[0] == 200


@in_loop
async def test_a_body_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    async with an_api(tmp_path) as api:
        length = {"Content-Length": str(MAX_BODY + 1)}
        status, _, problem = await api.ask("POST", "/v1/vms", b"{}", length)
        assert (status, problem["code"]) == (413, "request.too-large")
        reader, writer = await asyncio.open_unix_connection(api.socket)
        writer.write(b"POST /v1/vms HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n%s\r\n" % (1 << 20, b"x" * (1 << 20))
        for _ in range(6):
            writer.write(chunk)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert b" 413 " in answer
        await hang_up(writer)


@in_loop
async def test_headers_that_do_not_end_are_refused(tmp_path):
    async with an_api(tmp_path) as api:
        reader, writer = await asyncio.open_unix_connection(api.socket)
        writer.write(b"GET /v1 HTTP/1.1\r\nHost: x\r\nX: " + b"x" * (1 << 16))
        assert b" 400 " in await reader.readuntil(b"\r\n")
        await hang_up(writer)
