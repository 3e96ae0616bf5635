"""HTTP services behind the gateway: what goes through unchanged, and bad peers on either side."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import evolve

from agentmgr.core.routing import Backend, BackendState, RoutingTable
from agentmgr.fronts import Fronts
from agentmgr.proxy import Gateway, GatewayLimits
from tests.conditions import read_to
from tests.fronts.conftest import Stage, Tokens, dechunked, request
from tests.ports import own_port
from tests.proxy.conftest import Witness

Serve = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def service(
    serve: Serve, limits: GatewayLimits | None = None, facts: Any = None, port: int = 0, **options: Any
) -> AsyncIterator[Stage]:
    """A gateway before a service `web` of one instance: `serve`, or what there is at `port`."""
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = port or listener.socket.getsockname()[1]

        async def answer(stream: trio.SocketStream) -> None:
            try:
                async with stream:
                    await serve(stream)
            except trio.BrokenResourceError:
                pass

        nursery.start_soon(trio.serve_listeners, answer, [listener])
        backend = Backend.at("127.0.0.1", port, service="web", **(facts or {}))
        other = Backend.at("127.0.0.1", 1, service="agent")
        table = RoutingTable(
            (backend, other), service_names=frozenset({"web", "agent"}), http_services=frozenset({"web"})
        )
        fronts = Fronts("openai,http")
        limits = limits or GatewayLimits(close_timeout_s=0.5, queue_timeout_s=1)
        gateway = Gateway(table, limits=limits, fronts=fronts, **options)
        (door,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with door:
            nursery.start_soon(gateway.serve, [door])
            yield Stage(gateway, door.socket.getsockname()[1], fronts)
            nursery.cancel_scope.cancel()


def prompt(answer: bytes, heard: list[bytes] | None = None) -> Serve:
    async def serve(stream: trio.SocketStream) -> None:
        head = await read_to(stream, b"\r\n\r\n")
        if heard is not None:
            heard.append(head)
        await stream.send_all(answer)

    return serve


async def silent(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


OK = b"HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nX-Its: own\r\n\r\nhi"
CLOSE = {"Connection": "close"}


async def refused(stage: Stage, path: str = "/services/web/", **headers: str) -> tuple[int, str]:
    status, _, body = await stage.ask("GET", path, headers=headers)
    return status, body["code"]


async def test_a_request_goes_through_as_it_is():
    heard: list[bytes] = []
    async with service(prompt(OK, heard)) as stage:
        fields = {"X-Mine": "a", "Keep-Alive": "1", "Connection": "close, X-Hop", "X-Hop": "b", "TE": "gzip"}
        fields |= {"X-Forwarded-For": "9.9.9.9", "X-Agentmgr-Identity": "root", "Cookie": "a=b"}
        said = await stage.raw(request("GET", "/services/web/a%2Fb/../c?d=e&ticket=f", headers=fields))
        assert said.startswith(b"HTTP/1.1 200 Fine\r\n")
        assert said.endswith(b"\r\n\r\nhi")
        assert b"X-Its: own\r\n" in said
        line, *lines = heard[0].decode().strip().split("\r\n")
        got = dict(field.split(": ", 1) for field in lines)
        assert line == "GET /a%2Fb/../c?d=e&ticket=f HTTP/1.1"
        assert (got["Host"], got["X-Mine"], got["Cookie"]) == ("localhost", "a", "a=b")
        assert (got["X-Forwarded-For"], got["X-Forwarded-Proto"]) == ("127.0.0.1", "http")
        assert got["X-Agentmgr-Connection"].startswith("con_")
        assert not {"X-Hop", "TE", "Keep-Alive", "X-Agentmgr-Identity"} & got.keys()
        assert got["Connection"] == "close"
        await stage.at_base()


async def test_only_services_that_speak_http_get_requests_and_the_others_say_426():
    async with service(prompt(OK)) as stage:
        assert await refused(stage, "/services/agent/") == (426, "upgrade_required")
        assert await refused(stage, "/") == (426, "upgrade_required")
        _, _, body = await stage.ask("GET", "/x", headers=CLOSE)
        assert body["reason"].endswith("HTTP requests to /v1/, /services/NAME/")
        assert await refused(stage, "/services/none/x") == (404, "service_not_found")
        assert (await stage.raw(request("GET", "/services/web", headers=CLOSE))).endswith(b"hi")


async def test_a_websocket_to_it_goes_on_as_ever():
    heard: list[bytes] = []
    async with service(prompt(b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", heard)) as stage:
        upgrade = {"Upgrade": "websocket", "Connection": "upgrade", "Sec-WebSocket-Version": "13"}
        key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
        said = await stage.raw(request("GET", "/services/web/", headers=upgrade | key))
        assert said.startswith(b"HTTP/1.1 404 ")
        assert b"Upgrade: websocket\r\n" in heard[0]


async def test_early_answers_without_end_to_a_websocket_are_not_waited_for():
    async def serve(stream: trio.SocketStream) -> None:
        while True:
            await stream.send_all(1000 * b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n")

    async with service(serve) as stage:
        upgrade = {"Upgrade": "websocket", "Connection": "upgrade", "Sec-WebSocket-Version": "13"}
        key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
        with trio.fail_after(stage.gateway._limits.dial_timeout_s / 2):
            said = await stage.raw(request("GET", "/services/web/", headers=upgrade | key))
        assert b"it sent no final answer" in said


async def test_it_is_no_model_and_gets_no_client_that_does_not_name_it():
    async with service(prompt(OK)) as stage:
        _, _, listed = await stage.ask("GET", "/v1/models", headers=CLOSE)
        assert [model["id"] for model in listed["data"]] == ["auto", "agent"]
        status, _, answer = await stage.say(model="web")
        assert (status, answer["error"]["code"]) == (404, "http_service")
        assert answer["error"]["message"] == "web is an HTTP service: http://localhost/services/web/."
        table = stage.gateway.lobby.router.table
        stage.gateway.update(evolve(table, backends=table.backends[:1]))
        status, _, answer = await stage.say(model="auto")
        assert (status, answer["error"]["code"]) == (503, "no_service_available")
        assert "connect to /services/NAME" in answer["error"]["message"]


async def test_an_upgrade_to_something_else_is_not_taken_and_the_request_answered():
    h2c = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}
    heard: list[bytes] = []
    async with service(prompt(OK, heard)) as stage:
        path = "/services/web/"
        asked = request("GET", path, None, h2c) + request("POST", path, b"hello", h2c)
        said = await stage.raw(asked + request("GET", path, None, CLOSE))
        assert said.count(b"HTTP/1.1 200 Fine\r\n") == 3
        assert b"h2c" not in b"".join(heard)
        status, _, _ = await stage.say(model="none", headers=h2c | {"Connection": "close, Upgrade"})
        assert status == 404
        await stage.at_base()


async def test_requests_follow_each_other_on_one_connection_and_a_head_has_no_body():
    async with service(prompt(OK)) as stage:
        path = "/services/web/"
        both = request("GET", path) + request("HEAD", path)
        said = await stage.raw(both + request("GET", path, None, CLOSE))
        assert said.count(b"HTTP/1.1 200 Fine\r\n") == 3
        assert said.count(b"\r\n\r\nhi") == 2


async def test_events_arrive_one_by_one_and_the_end_of_an_old_servers_answer_is_an_end():
    go = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        await read_to(stream, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await go.wait()
        await stream.send_all(b"data: 2\n\n")

    async with service(serve) as stage, await stage.send(request("GET", "/services/web/")) as stream:
        first = await read_to(stream, b"data: 1\n\n\r\n")
        assert b"Transfer-Encoding: chunked\r\n" in first
        (connection,) = stage.gateway.connections()
        assert (connection.service_name, connection.path) == ("web", "/services/web/")
        go.set()
        assert await read_to(stream, b"0\r\n\r\n") == b"9\r\ndata: 2\n\n\r\n0\r\n\r\n"


async def test_bodies_are_passed_on_in_pieces_in_either_framing():
    async def serve(stream: trio.SocketStream) -> None:
        said = await read_to(stream, b"\r\n\r\n")
        if b"Content-Length: 4" in said:
            said += await stream.receive_some(4)
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n" + said[-4:])
            return
        assert b"\r\nTransfer-Encoding: chunked\r\n" in said
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        async for data in stream:  # echoed as it comes, so that each waits for the other
            await stream.send_all(data)
            if data.endswith(b"0\r\n\r\n"):
                return

    async with service(serve) as stage:
        said = await stage.raw(request("PUT", "/services/web/x", b"abcd", CLOSE))
        assert said.endswith(b"\r\n\r\nabcd")
        head = request("POST", "/services/web/x", None, {"Transfer-Encoding": "chunked"})
        async with await stage.send(head + b"3\r\nabc\r\n") as stream:
            assert (await read_to(stream, b"abc\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            await stream.send_all(b"2\r\nde\r\n0\r\n\r\n")
            assert dechunked(await read_to(stream, b"0\r\n\r\n")) == b"de"
        await stage.at_base()


async def test_informational_answers_and_the_wait_for_leave_are_the_services_own():
    async def serve(stream: trio.SocketStream) -> None:
        await read_to(stream, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        assert await stream.receive_some(4) == b"abcd"
        await stream.send_all(OK)

    async with service(serve) as stage:
        whole = request("POST", "/services/web/", b"abcd", {"Expect": "100-continue", **CLOSE})
        async with await stage.send(whole[:-4]) as stream:
            said = await read_to(stream, b"HTTP/1.1 100 \r\n\r\n")
            assert said.startswith(b"HTTP/1.1 103 ")
            assert b"Link: </a>\r\n" in said
            await stream.send_all(whole[-4:])
            assert (await read_to(stream, b"hi")).startswith(b"HTTP/1.1 200 ")


async def test_a_service_that_answers_before_it_has_read_all_is_heard():
    full = b"HTTP/1.1 413 Too much\r\nContent-Length: 0\r\n\r\n"
    async with service(prompt(full)) as stage:
        whole = request("POST", "/services/web/", b"x", {"Content-Length": "1000000"})
        assert (await stage.raw(whole)).startswith(b"HTTP/1.1 413 Too much\r\n")
        await stage.at_base()


async def test_what_is_no_answer_is_a_502_and_an_answer_that_breaks_off_is_seen_to():
    for answer in (
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + 20_000 * b"a",
        b"HTTP/1.1 200 OK\r\nContent-Le",
    ):
        async with service(prompt(answer)) as stage:
            assert await refused(stage) == (502, "bad_gateway"), answer[:30]
            await stage.at_base()
    for answer in (
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n",
    ):
        async with service(prompt(answer)) as stage:
            said = await stage.raw(request("GET", "/services/web/"))
            assert b"hi" in said
            assert not said.endswith(b"0\r\n\r\n")


async def test_what_its_answer_says_twice_or_of_a_body_that_it_has_not():
    both = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    )
    async with service(prompt(both)) as stage:
        assert await refused(stage) == (502, "bad_gateway")
    empty = b"HTTP/1.1 103 Early\r\nContent-Length: 3\r\n\r\nHTTP/1.1 204 None\r\nContent-Length: 5\r\n\r\n"
    async with service(prompt(empty)) as stage:
        said = await stage.raw(request("GET", "/services/web/", headers=CLOSE))
        assert said == b"HTTP/1.1 103 \r\n\r\nHTTP/1.1 204 None\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("flood", ["requests", "early answers", "pieces"])
async def test_a_flood_from_either_side_holds_up_nothing_else(flood: str):
    count, turns = 1000, 0
    asked = request("GET", "/services/web/", headers=CLOSE)
    answer = OK
    if flood == "requests":
        asked = count * request("GET", "/v1/none") + request("GET", "/v1/none", headers=CLOSE)
    elif flood == "early answers":
        answer = count * b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK
    else:
        pieces = count * b"1\r\nx\r\n"
        answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n"

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with service(prompt(answer)) as stage, trio.open_nursery() as nursery:
        nursery.start_soon(other)
        assert (await stage.raw(asked)).endswith((b"hi", b"0\r\n\r\n", b"}}"))
        nursery.cancel_scope.cancel()
    assert turns >= count


async def test_what_cannot_be_reached_or_does_not_answer_says_which():
    async with service(prompt(OK), port=own_port()) as stage:
        assert await refused(stage) == (502, "bad_gateway")
    async with service(silent, facts={"idle_timeout": 0.05}) as stage:
        assert await refused(stage) == (504, "backend_timeout")
        await stage.at_base()
    async with service(prompt(OK), facts={"state": BackendState.DOWN}) as stage:
        assert await refused(stage) == (503, "no_service_available")


async def test_bad_requests_never_reach_the_service():
    heard: list[bytes] = []
    async with service(prompt(OK, heard)) as stage:
        both = {"Content-Length": "1", "Transfer-Encoding": "chunked"}
        for method, headers, status in (
            ("POST", both, 400),
            ("POST", {"Content-Length": "1, 2"}, 400),
            ("POST", {"Transfer-Encoding": "gzip, chunked"}, 501),
            ("GET", {"Connection": "close, host"}, 400),
            ("TRACE", {}, 405),
        ):
            said = await stage.raw(request(method, "/services/web/", None, CLOSE | headers) + b"x")
            assert said.split()[1] == str(status).encode() or (status == 501 and b" 400 " in said), headers
        assert heard == []
        await stage.at_base()


async def test_the_body_of_a_chunked_request_is_limited_too():
    async with service(silent, facts={"max_message_bytes": 10}) as stage:
        head = request("POST", "/services/web/", None, {"Transfer-Encoding": "chunked"})
        said = await stage.raw(head + b"b\r\n" + 11 * b"a" + b"\r\n")
        assert said.startswith(b"HTTP/1.1 413 ")
        said = await stage.raw(request("POST", "/services/web/", 11 * b"a"))
        assert said.startswith(b"HTTP/1.1 413 ")
        await stage.at_base()


async def test_the_service_hears_that_its_client_has_left():
    heard, gone = trio.Event(), trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        await read_to(stream, b"\r\n\r\n")
        heard.set()
        assert await stream.receive_some() == b""
        gone.set()

    async with service(serve) as stage:
        async with await stage.send(request("GET", "/services/web/")):
            await heard.wait()
        with trio.fail_after(60):
            await gone.wait()
        await stage.at_base()


async def test_a_reader_that_takes_nothing_is_cut_and_its_service_waits_meanwhile():
    sent = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal sent
        await read_to(stream, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            await stream.send_all(bytes(2**16))
            sent += 2**16

    limits = GatewayLimits(close_timeout_s=0.1, stall_timeout_s=0.3)
    async with service(serve, limits) as stage, await stage.send(request("GET", "/services/web/")):
        with trio.fail_after(60):
            while not stage.gateway.connections():  # noqa: ASYNC110
                await trio.sleep(0.005)  # not announced
        await stage.at_base()
        assert sent < 64 * 2**20


async def test_who_may_ask_is_as_for_websockets_and_a_token_is_not_passed_on():
    heard: list[bytes] = []
    async with service(prompt(OK, heard), authenticator=Tokens()) as stage:
        assert await refused(stage) == (401, "unauthorized")
        assert await refused(stage, Authorization="Bearer bad") == (401, "unauthorized")
        assert await refused(stage, Authorization="Bearer two") == (403, "forbidden")
        good = {"Authorization": "Bearer good", **CLOSE}
        assert (await stage.raw(request("GET", "/services/web/", None, good))).endswith(b"hi")
        assert b"uthorization" not in heard[0]
        assert b"X-Agentmgr-Identity: ann\r\n" in heard[0]
    async with service(prompt(OK)) as stage:
        assert await refused(stage, Origin="https://evil.example") == (403, "origin_not_allowed")
        rebound = {"Host": "evil.example", "User-Agent": "Mozilla/5.0"}
        assert await refused(stage, **rebound) == (403, "origin_not_allowed")


async def test_the_gateway_says_which_pages_may_read_where_it_was_told():
    own = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nAccess-Control-Allow-Origin: *\r\n\r\n"
    ask = {"Origin": "https://app.example", "Access-Control-Request-Method": "PUT", **CLOSE}
    heard: list[bytes] = []
    async with service(prompt(own, heard), allowed_origins=["https://app.example"]) as stage:
        said = await stage.raw(request("OPTIONS", "/services/web/", None, ask))
        assert b"Access-Control-Allow-Methods: GET, POST, PUT, PATCH, DELETE\r\n" in said
        assert heard == []
        said = await stage.raw(request("GET", "/services/web/", None, ask))
        assert said.count(b"Access-Control-Allow-Origin") == 1
        assert b"Access-Control-Allow-Origin: https://app.example\r\n" in said
    local = ask | {"Origin": "http://localhost:3000"}
    async with service(prompt(own, heard)) as stage:
        assert b"Access-Control-Allow-Origin: *\r\n" in await stage.raw(
            request("OPTIONS", "/services/web/", None, local)
        )
        assert heard[-1].startswith(b"OPTIONS / ")


async def test_a_request_takes_a_seat_and_ends_by_a_drain_or_a_word():
    async with service(silent, facts={"max_sessions": 1}) as stage:
        async with await stage.send(request("GET", "/services/web/")) as stream:
            with trio.fail_after(60):
                while not stage.gateway.connections():  # noqa: ASYNC110
                    await trio.sleep(0.005)  # not announced
            assert await refused(stage) == (503, "at_capacity")
            (connection,) = stage.gateway.connections()
            assert connection.idle_s == 0  # its service works on it
            await stage.gateway.drain(connection.instance_id, timeout_s=0.1, idle_s=0.0)
            said = (await read_to(stream, b"}")).decode()
            assert said.startswith("HTTP/1.1 503 ")
            assert json.loads(said.partition("\r\n\r\n")[2])["code"] == "no_service_available"
        await stage.at_base()


@pytest.mark.parametrize("bad", [b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", b"garbage\r\n\r\n"])
async def test_a_failure_of_the_service_is_counted_as_one(bad):
    witness = Witness()
    async with service(prompt(bad), observer=witness) as stage:
        await stage.raw(request("GET", "/services/web/", None, CLOSE))
        await stage.at_base()
    async with service(prompt(OK), observer=witness) as stage:
        await stage.raw(request("GET", "/services/web/", None, CLOSE))
        await stage.at_base()
    assert [(end.failed, end.ended_by) for end in witness.closed] == [(True, "backend"), (False, "backend")]
    assert all(end.is_request for end in witness.closed)
