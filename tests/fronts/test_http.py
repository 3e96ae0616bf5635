"""The shell of all fronts: what a request must be, who may ask, and what becomes of bad clients."""

import json
import subprocess
import sys
import time
from contextlib import AsyncExitStack

import pytest
import trio

from agentmgr.core.routing import Backend, Router, RoutingTable
from agentmgr.fronts import PREFIXES, Fronts, exchange, openai_chat
from agentmgr.proxy import GatewayLimits
from agentmgr.settings import FRONTS
from agentmgr.websocket.head import parse_request
from tests.conditions import read_to
from tests.fronts.conftest import Tokens, request
from tests.proxy.conftest import Witness

HELLO = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"


def test_every_front_that_can_be_set_is_there():
    assert tuple(PREFIXES) == FRONTS


def test_only_requests_without_an_upgrade_and_with_its_prefix_are_for_a_front():
    def taken(names, head):
        return Fronts(names).take(parse_request(head.encode()), Router(RoutingTable()))

    upgrade = "Upgrade: websocket\r\nConnection: upgrade\r\n\r\n"
    assert taken("openai", "GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
    assert not taken("none", "GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
    assert not taken("openai", "GET /v1 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert not taken("openai", f"GET /v1/models HTTP/1.1\r\nHost: a\r\n{upgrade}")


def test_a_gateway_imports_nothing_of_a_front_until_it_is_asked():
    code = """
import sys
import agentmgr.worker.worker
print(*sorted(name for name in sys.modules if name.startswith("agentmgr.fronts")))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["agentmgr.fronts"]


async def test_what_is_no_request_for_a_front_is_refused_as_ever(stage_of):
    async with stage_of() as stage:
        status, headers, body = await stage.ask("GET", "/")
        assert (status, body["code"], headers["upgrade"]) == (426, "upgrade_required", "websocket")


async def test_unknown_paths_and_methods_say_so_in_the_fronts_shape(stage_of):
    async with stage_of() as stage:
        status, _, body = await stage.ask("GET", "/v1/nothing")
        assert (status, body["error"]["code"]) == (404, "unknown_url")
        status, headers, body = await stage.ask("GET", CHAT)
        assert (status, headers["allow"], body["error"]["code"]) == (405, "POST", "method_not_allowed")
        await stage.at_base()


async def test_a_body_must_be_a_json_object_of_its_type_and_size(stage_of):
    async with stage_of(facts={"max_message_bytes": 1000}) as stage:
        for body, headers, expected in (
            (b"{", {}, (400, "invalid_json")),
            (b"[]", {}, (400, "invalid_json")),
            (b'{"a": NaN}', {}, (400, "invalid_json")),
            (b"[" * 900, {}, (400, "invalid_json")),
            (b"\xff", {}, (400, "invalid_json")),
            (b"{}", {"Content-Type": "text/plain"}, (415, "unsupported_media_type")),
            (b"{}", {"Content-Type": "application/x-www-form-urlencoded"}, (415, "unsupported_media_type")),
            (b"{}", {"Content-Encoding": "gzip"}, (415, "unsupported_media_type")),
            (b"{}", {"Content-Length": "x"}, (400, "bad_request")),
            (b"{}", {"Transfer-Encoding": "chunked"}, (400, "bad_request")),
            (b" " * 1001, {}, (413, "too_large")),
        ):
            status, answer, said = await stage.ask("POST", CHAT, body, headers)
            assert (status, said["error"]["code"]) == expected, body[:20]
            assert answer["content-type"] == "application/json"
        chunks = b"".join(b"%x\r\n%b\r\n" % (100, b" " * 100) for _ in range(11))
        head = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
        said = await stage.raw(request("POST", CHAT, None, head) + chunks)
        assert said.startswith(b"HTTP/1.1 413 ")
        await stage.at_base()


async def test_requests_follow_each_other_on_one_connection(stage_of):
    async with stage_of() as stage:
        both = request("GET", "/v1/models") + request("POST", CHAT, HELLO)  # also without waiting
        said = await stage.raw(both, request("GET", "/v1/models", None, {"Connection": "close"}))
        assert said.count(b"HTTP/1.1 200 ") == 3
        assert b"you said hi" in said
        said = await stage.raw(request("GET", "/v1/models"), request("GET", "/"))
        assert b"HTTP/1.1 426 " in said


async def test_who_waits_for_leave_to_send_a_body_gets_it(stage_of):
    async with stage_of() as stage:
        whole = request("POST", CHAT, HELLO, {"Expect": "100-continue", "Connection": "close"})
        end = whole.index(b"\r\n\r\n") + 4
        async with await stage.send(whole[:end]) as stream:
            assert (await read_to(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            await stream.send_all(whole[end:])
            assert b"you said hi" in b"".join([chunk async for chunk in stream])


async def test_a_body_that_never_comes_is_not_waited_for_long(stage_of):
    limits = GatewayLimits(stall_timeout_s=0.1, close_timeout_s=0.1)
    async with stage_of(limits=limits) as stage:
        said = await stage.raw(request("POST", CHAT, HELLO)[:-5])
        assert said.startswith(b"HTTP/1.1 408 ")


async def test_pages_of_other_origins_may_not_ask(stage_of):
    async with stage_of() as stage:
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Host": "evil.example", "User-Agent": "Mozilla/5.0"},  # by DNS rebinding, without an Origin
        ):
            status, answer, body = await stage.ask("GET", "/v1/models", None, headers)
            assert (status, body["error"]["code"]) == (403, "origin_not_allowed")
            assert "access-control-allow-origin" not in answer
        status, answer, _ = await stage.ask("GET", "/v1/models", None, {"Origin": "http://localhost:3000"})
        assert (status, answer.get("access-control-allow-origin")) == (200, None)


async def test_pages_of_an_allowed_origin_may_read_the_answer(stage_of):
    async with stage_of(allowed_origins=["https://app.example"]) as stage:
        page = {"Origin": "https://app.example"}
        status, answer, _ = await stage.say(headers=page)
        assert (status, answer["access-control-allow-origin"]) == (200, "https://app.example")
        asked = page | {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, x-stainless-lang",
        }
        status, answer, _ = await stage.ask("OPTIONS", CHAT, None, asked)
        assert (status, answer["access-control-allow-headers"]) == (200, "authorization, x-stainless-lang")
        status, answer, _ = await stage.ask("OPTIONS", CHAT, None, {"Origin": "https://evil.example"})
        assert (status, answer.get("access-control-allow-origin")) == (403, None)


async def test_a_token_is_needed_where_the_gateway_needs_one(stage_of):
    async with stage_of(_echo, _echo, authenticator=Tokens()) as stage:
        status, headers, body = await stage.ask("GET", "/v1/models?ticket=x")
        assert (status, body["error"]["type"], headers["www-authenticate"]) == (
            401,
            "authentication_error",
            'Bearer realm="agentmgr"',
        )
        status, _, body = await stage.ask("GET", "/v1/models", None, {"Authorization": "Bearer two"})
        assert [model["id"] for model in body["data"]] == ["auto", "echo2"]
        assert (await stage.say(headers={"Authorization": "Bearer bad"}))[0] == 401
        assert (await stage.say(headers={"Authorization": "Bearer good"}))[0] == 200
        status, _, body = await stage.say(headers={"Authorization": "Bearer two"})
        assert (status, body["error"]["code"]) == (403, "forbidden")
        await stage.at_base()


async def _echo(message, session):
    yield f"{session.client.identity} said {message}"


async def test_the_limits_of_an_address_hold_here_too(stage_of):
    limits = GatewayLimits(handshakes_per_address_s=0.001)
    async with stage_of(limits=limits) as stage:
        answers = [(await stage.ask("GET", "/v1/models"))[0] for _ in range(20)]
        assert answers[-1] == 429


async def test_a_service_that_is_full_says_when_to_come_back(stage_of):
    async def slow(message, session):
        await trio.sleep_forever()
        yield ""

    limits = GatewayLimits(queue_timeout_s=0.05, close_timeout_s=0.5)
    async with stage_of(slow, facts={"max_sessions": 1}, limits=limits) as stage:
        async with await stage.send(request("POST", CHAT, HELLO)):
            while not stage.gateway.connections():  # noqa: ASYNC110
                await trio.sleep(0.005)
            status, headers, body = await stage.say()
            assert (status, body["error"]["code"], "retry-after" in headers) == (503, "at_capacity", True)
        await stage.at_base()  # the client has gone, and so has its seat


async def test_a_silent_stream_is_kept_alive(stage_of, monkeypatch):
    monkeypatch.setattr(exchange, "KEEPALIVE_S", 0.05)
    go_on = trio.Event()

    async def slow(message, session):
        yield "a"
        await go_on.wait()
        yield "b"

    async with stage_of(slow) as stage:
        async with await stage.send(request("POST", CHAT, HELLO | {"stream": True})) as stream:
            seen = b""
            with trio.fail_after(60):
                while seen.count(b": keep-alive\n\n") < 2:
                    seen += await stream.receive_some()
                go_on.set()
                while b"[DONE]" not in seen:
                    seen += await stream.receive_some()
        assert seen.startswith(b"HTTP/1.1 200 ")


async def test_a_stream_begins_with_silence_where_nothing_comes(stage_of, monkeypatch):
    monkeypatch.setattr(exchange, "KEEPALIVE_S", 0.05)

    async def silent(message, session):
        await trio.sleep_forever()
        yield ""

    async with stage_of(silent) as stage:
        async with await stage.send(request("POST", CHAT, HELLO | {"stream": True})) as stream:
            seen = b""
            with trio.fail_after(60):
                while b": keep-alive" not in seen:
                    seen += await stream.receive_some()
        await stage.at_base()


async def test_waiting_for_a_whole_answer_costs_nothing(stage_of, monkeypatch):
    monkeypatch.setattr(exchange, "KEEPALIVE_S", 0.01)

    async def slow(message, session):
        await trio.sleep(0.3)
        yield "well"

    async with stage_of(slow) as stage:
        began = time.process_time()
        assert (await stage.say())[0] == 200
        assert time.process_time() - began < 0.15


async def test_a_refusal_is_counted_once(stage_of):
    witness = Witness()
    async with stage_of(observer=witness) as stage:
        await stage.say(model="nothing")
        await stage.ask("GET", "/v1/models", None, {"Origin": "https://evil.example"})
        assert witness.refused == ["service_not_found", "origin_not_allowed"]


async def test_a_reader_that_stalls_is_cut_and_others_do_not_notice(stage_of):
    async def flood(message, session):
        if message == "flood":
            while True:
                yield "x" * 10_000
        yield "well"

    limits = GatewayLimits(stall_timeout_s=0.5, close_timeout_s=0.5)
    async with stage_of(flood, limits=limits) as stage:
        flooded = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "flood"}]}
        async with await stage.send(request("POST", CHAT, flooded)):
            assert (await stage.say("hi"))[0] == 200
            await stage.at_base()


def test_a_route_knows_its_parts():
    async def handle(_):
        raise AssertionError

    route = exchange.Route("GET", "/v1/models/{model}", handle)
    assert route.match("/v1/models/a%2Fb") == {"model": "a/b"}
    assert route.match("/v1/models") is None
    assert route.match("/v1/other/a") is None


async def test_a_thousand_services_are_listed_in_one_answer(stage_of):
    async with stage_of() as stage:
        names = frozenset(f"service-{number}" for number in range(1000))
        stage.gateway.update(RoutingTable(service_names=names))
        _, _, body = await stage.ask("GET", "/v1/models")
        assert len(body["data"]) == 1001
        assert len(json.dumps(body)) < 200_000


async def test_an_address_has_so_many_unfinished_requests_as_it_may_have_connections(stage_of):
    limits = GatewayLimits(connections_per_address=2, close_timeout_s=0.5)
    unfinished = request("POST", CHAT, HELLO)[:-1]
    async with stage_of(limits=limits) as stage:
        async with await stage.send(unfinished), await stage.send(unfinished) as other:
            with trio.fail_after(60):
                while (refused := await stage.say())[0] == 200:  # the gateway has not read both yet
                    pass
            assert (refused[0], refused[2]["error"]["code"]) == (429, "too_many_sessions")
            await other.send_all(b"}")
            assert (await read_to(other, b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        with trio.fail_after(30):
            while (await stage.say())[0] != 200:
                pass
        await stage.at_base()


async def test_a_connection_that_waits_for_its_next_request_is_one_of_its_address(stage_of):
    limits = GatewayLimits(connections_per_address=1, close_timeout_s=0.5)
    async with stage_of(limits=limits) as stage:
        async with await stage.send(request("GET", "/v1/models")) as idle:
            assert (await read_to(idle, b"]}")).startswith(b"HTTP/1.1 200 ")
            status, _, body = await stage.ask("GET", "/v1/models")
            assert (status, body["error"]["code"]) == (429, "too_many_sessions")
            await idle.send_all(request("GET", "/v1/models"))
            assert (await read_to(idle, b"]}")).startswith(b"HTTP/1.1 200 ")
        with trio.fail_after(30):
            while (await stage.ask("GET", "/v1/models"))[0] != 200:
                pass


async def test_what_an_answer_repeats_of_its_request_need_not_be_ascii(stage_of, caplog):
    async with stage_of(allowed_origins=["*"]) as stage:
        for byte in (*range(0x20, 0x7F), *range(0x80, 0x100)):
            said = b"x%bx" % bytes([byte])
            asked = b"Origin: http://%b\r\nAccess-Control-Request-Headers: %b\r\n\r\n" % (said, said)
            answer = await stage.raw(
                b"OPTIONS /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + asked
            )
            assert answer.startswith(b"HTTP/1.1 200 "), said
            assert b"\r\nAccess-Control-Allow-Headers: %b\r\n" % said in answer
            assert b"\r\nAccess-Control-Allow-Origin: http://%b\r\n" % said in answer
        await stage.at_base()
    assert "internal error" not in caplog.text


async def _chunks_until(stream, mark):
    seen = b""
    with trio.fail_after(60):
        while mark not in seen:
            seen += await stream.receive_some()
    return seen


async def _says_a_and_waits(message, session):
    yield "a"
    await trio.sleep_forever()


async def test_a_gateway_that_ends_says_so_in_streams_and_in_answers(stage_of):
    messages = []

    async def agent(message, session):
        messages.append(message)
        yield "a"
        await trio.sleep_forever()

    async with AsyncExitStack() as streams:
        async with stage_of(agent) as stage:
            stream = await streams.enter_async_context(
                await stage.send(request("POST", CHAT, HELLO | {"stream": True}))
            )
            await _chunks_until(stream, b'"content":"a"')
            whole = await streams.enter_async_context(await stage.send(request("POST", CHAT, HELLO)))
            idle = await streams.enter_async_context(await stage.send(request("GET", "/v1/models")))
            await idle.receive_some()
            while len(messages) < 2:  # noqa: ASYNC110
                await trio.sleep(0.005)
        end = b"".join([data async for data in stream])
        assert b'"code": "gateway_stopping"' in end
        assert end.endswith(b"\n\n\r\n0\r\n\r\n")
        answer = b"".join([data async for data in whole])
        assert answer.startswith(b"HTTP/1.1 424 ")
        assert b"X-Should-Retry: false" in answer
        assert b'"code": "gateway_stopping"' in answer
        assert await idle.receive_some() == b""


async def test_an_instance_that_ends_amid_a_stream_is_an_error_in_it(stage_of):
    async with stage_of(_says_a_and_waits) as stage:
        async with await stage.send(request("POST", CHAT, HELLO | {"stream": True})) as stream:
            await _chunks_until(stream, b'"content":"a"')
            (connection,) = stage.gateway.connections()
            stage.gateway.cut(connection.instance_id)
            end = await _chunks_until(stream, b"\r\n0\r\n\r\n")
            assert b'"code": "connection_lost"' in end
            await stream.send_all(request("GET", "/v1/models"))  # the connection is as good as before
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")


async def test_a_fault_of_our_own_is_said_in_the_fronts_shape(stage_of, monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("oh")

    monkeypatch.setattr(openai_chat.ChatRequest, "of", fails)
    async with stage_of() as stage:
        status, _, body = await stage.say()
        assert (status, body["error"]["code"]) == (500, "internal_error")
        assert "was not answered" in caplog.text
        assert (await stage.ask("GET", "/v1/models"))[0] == 200


@pytest.mark.parametrize(
    ("facts", "host"),
    [
        ({"max_message_bytes": 1000}, {}),  # the gateway knows of it, and another service takes more
        ({}, {"max_message_bytes": 1000}),  # the host alone does
        ({}, {"max_message_bytes": 400}),  # … and what is over four times as much ends a connection
    ],
)
async def test_what_is_more_than_the_service_takes_is_a_413(stage_of, facts, host):
    async with stage_of(facts=facts, host=host) as stage:
        roomy = Backend.at("127.0.0.1", 1, service="roomy")
        (backend,) = stage.gateway.lobby.router.table.backends
        stage.gateway.update(RoutingTable((backend, roomy), service_names=frozenset({"echo", "roomy"})))
        for key in ({}, {"X-Session-Id": "k"}):
            status, _, body = await stage.say("x" * 2000, headers=key)
            assert (status, body["error"]["code"]) == (413, "too_large")
        assert (await stage.say("x"))[0] == 200
        await stage.at_base()


async def test_large_requests_have_one_memory_together_and_small_ones_need_none(stage_of):
    limits = GatewayLimits(requests_bytes=150_000, early_bytes=10_000, close_timeout_s=0.5)
    large = request("POST", CHAT, {"model": "echo", "messages": [{"role": "user", "content": "x" * 100_000}]})
    async with stage_of(limits=limits) as stage:
        async with await stage.send(large[:-1]) as first:
            while stage.held < 80_000:  # noqa: ASYNC110
                await trio.sleep(0.005)
            answer = await stage.raw(large)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b'"code": "gateway_full"' in answer
            assert b"\r\nRetry-After: 2\r\n" in answer
            assert (await stage.say())[0] == 200
            await first.send_all(large[-1:])
            assert (await first.receive_some()).startswith(b"HTTP/1.1 200 ")
        assert (await stage.ask("POST", CHAT, b"x" * 100_000))[0] == 400
        async with await stage.send(large[:-1]):  # left in the middle
            pass
        await stage.at_base()
        assert (await stage.raw(request("POST", CHAT, b" " * 170_000))).startswith(b"HTTP/1.1 413 ")


async def test_a_request_that_the_agent_has_takes_no_memory_any_more(stage_of):
    async with stage_of(_says_a_and_waits) as stage:
        asked = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "x" * 500_000}]}
        async with await stage.send(request("POST", CHAT, asked)) as stream:
            await _chunks_until(stream, b'"content":"a"')
            assert stage.held == 0
        await stage.at_base()


async def test_what_readers_leave_unread_takes_memory_too(stage_of):
    async def large(message, session):
        yield "x" * (100 if message == "small" else 6_000_000)

    limits = GatewayLimits(requests_bytes=10_000_000, close_timeout_s=0.5)
    async with stage_of(large, limits=limits) as stage, AsyncExitStack() as readers:
        for _ in range(4):  # of which one has room; the others are cut off
            await readers.enter_async_context(await stage.send(request("POST", CHAT, HELLO)))
        with trio.fail_after(30):
            while stage.held == 0 or len(stage.gateway.connections()) > 0:  # noqa: ASYNC110
                await trio.sleep(0.005)
        assert stage.held < 10_000_000
        assert (await stage.say("small"))[0] == 200


async def test_a_body_of_very_many_values_is_refused_unread(stage_of):
    async with stage_of(facts={"max_message_bytes": 10**6}) as stage:
        many = b'{"model": "echo", "a": [' + b"[]," * 60_000 + b"0]}"
        status, _, body = await stage.ask("POST", CHAT, many)
        assert (status, body["error"]["code"]) == (400, "invalid_json")
        assert "more than 100000 values" in body["error"]["message"]
        assert (await stage.say("[,{" * 100_000))[0] == 200  # in a text they are none


async def test_a_large_body_stops_no_stream_of_others(stage_of, monkeypatch):
    """Its parts are done in a thread; a loop that they held would let nothing of the stream pass."""
    threads = []
    run = trio.to_thread.run_sync

    async def counted(work, *args, **options):
        threads.append(work)
        return await run(work, *args, **options)

    monkeypatch.setattr(trio.to_thread, "run_sync", counted)
    async with stage_of(facts={"max_message_bytes": 0}, host={"max_message_bytes": 0}) as stage:
        url = "data:image/png;base64," + "A" * 3_000_000
        image = {"type": "image_url", "image_url": {"url": url}}
        messages = [{"role": "user", "content": [{"type": "text", "text": "see"}, image]}]
        assert (await stage.say(messages=messages))[0] == 200
        assert len(threads) == 2  # read, and said
        assert (await stage.say())[0] == 200
        assert len(threads) == 2
