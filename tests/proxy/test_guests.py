"""`Gateway.relay`: clients of another server, with the real ones. All is as at the gateway's own door."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import hypercorn.trio
import pytest
import trio
from hypercorn.config import Config
from quart import websocket
from quart_trio import QuartTrio
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

from agentmgr import Gateway
from agentmgr.proxy import GatewayLimits
from tests.proxy.conftest import connected
from tests.proxy.test_gateway_access import Door

Serve = Callable[..., AbstractAsyncContextManager[str]]


@asynccontextmanager
async def by_trio_websocket(gateway: Gateway, target: str | None = None) -> AsyncIterator[str]:
    async with trio.open_nursery() as nursery:
        relay = partial(gateway.relay, target=target)
        server = await nursery.start(partial(serve_websocket, relay, "127.0.0.1", 0, None))
        yield f"ws://127.0.0.1:{server.port}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def by_quart(gateway: Gateway, target: str | None = None) -> AsyncIterator[str]:
    app = QuartTrio(__name__)

    @app.websocket("/", defaults={"path": ""})
    @app.websocket("/<path:path>")
    async def serve(path: str) -> None:
        await gateway.relay(websocket, target=target)

    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.graceful_timeout = 0
    async with trio.open_nursery() as nursery:
        [url] = await nursery.start(
            partial(hypercorn.trio.serve, app, config, shutdown_trigger=trio.sleep_forever)
        )
        yield url.replace("http", "ws")
        nursery.cancel_scope.cancel()


@pytest.fixture(params=[by_trio_websocket, by_quart])
def serve(request: pytest.FixtureRequest) -> Serve:
    return request.param


async def test_messages_go_both_ways_whole_and_in_order(lab, serve: Serve) -> None:
    async with lab.gateway(await lab.instance()) as stage, serve(stage.gateway) as url:
        async with connected(url) as client:
            for message in ("hello", b"\x00\xff", "ü" * 300_000, b"x" * 70_000, "end"):
                await client.send_message(message)
                assert await client.get_message() == message
            [live] = stage.gateway.connections()
            assert live.service_name == "echo"
        [end] = await stage.witness.ends()
        assert end.connection_id == live.connection_id
        assert stage.gateway.active_connections(live.instance_id) == 0


async def test_a_full_conversation_in_both_directions_at_once_does_not_stand_still(lab, serve: Serve) -> None:
    async with lab.gateway(await lab.instance()) as stage, serve(stage.gateway) as url:
        async with connected(url, message_queue_size=1) as client, trio.open_nursery() as nursery:

            async def send() -> None:
                for number in range(300):
                    await client.send_message(f"{number} ".ljust(20_000, "."))

            nursery.start_soon(send)
            for number in range(300):
                assert (await client.get_message()).startswith(f"{number} ")


async def test_the_request_is_the_clients_own(lab, serve: Serve) -> None:
    asked: list[WebSocketRequest] = []

    async def handler(request: WebSocketRequest) -> None:
        asked.append(request)
        connection = await request.accept(subprotocol="two", extra_headers=[(b"x-served-by", b"me")])
        await connection.send_message("hi")

    headers = [(b"X-Custom", b"yes"), (b"X-Forwarded-For", b"6.6.6.6"), (b"X-Agentmgr-Identity", b"root")]
    async with lab.gateway(await lab.instance(handler=handler)) as stage, serve(stage.gateway) as url:
        options = {"subprotocols": ["one", "two"], "extra_headers": headers}
        async with connected(f"{url}/services/echo/deep%20er?a=b%20c", **options) as client:
            assert await client.get_message() == "hi"
            assert client.subprotocol == "two"
            assert (b"x-served-by", b"me") in client.handshake_headers
    [request] = asked
    told = dict(request.headers)
    assert request.path == "/deep%20er?a=b%20c"
    assert told[b"x-custom"] == b"yes"
    assert told[b"x-forwarded-for"] == b"127.0.0.1"
    assert b"x-agentmgr-identity" not in told
    assert told[b"x-forwarded-host"] == url.removeprefix("ws://").encode()


async def test_the_application_says_where_it_goes(lab, serve: Serve) -> None:
    backends = [await lab.instance("one"), await lab.instance("two")]
    async with lab.gateway(*backends) as stage, serve(stage.gateway, "/services/two") as url:
        async with connected(f"{url}/anything"):
            [live] = stage.gateway.connections()
            assert live.service_name == "two"


async def test_a_refusal_is_that_of_the_gateway(lab, serve: Serve) -> None:
    async def refused(path: str, *lines: str) -> tuple[int, str, str]:
        async with await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2])) as stream:
            await stream.send_all(lab.upgrade(path, *lines))
            answer = (await lab.Peer(stream).until(b"}\n")).decode()
        return int(answer.split()[1]), json.loads(answer[answer.index("{") :])["code"], answer.lower()

    limits = GatewayLimits(queue_timeout_s=0.1)
    backend = await lab.instance(max_sessions=1)
    async with lab.gateway(backend, limits=limits, authenticator=Door()) as stage:
        async with serve(stage.gateway) as url:
            status, code, answer = await refused("/")
            assert (status, code) == (401, "unauthorized")
            assert "www-authenticate: bearer" in answer
            good = "Authorization: Bearer good"
            assert (await refused("/services/none", good))[:2] == (404, "service_not_found")
            evil = "Origin: https://evil.example"
            assert (await refused("/", good, evil))[:2] == (403, "origin_not_allowed")
            async with connected(url, extra_headers=[(b"Authorization", b"Bearer good")]):
                status, code, answer = await refused("/", good)
                assert (status, code) == (503, "at_capacity")
                assert "retry-after: " in answer
    assert stage.witness.refused == ["unauthorized", "service_not_found", "origin_not_allowed", "at_capacity"]


async def test_the_service_ends_it(lab, serve: Serve) -> None:
    async def handler(request: WebSocketRequest) -> None:
        connection = await request.accept()
        await connection.send_message("last")
        await connection.aclose(4001, "bye")

    async with lab.gateway(await lab.instance(handler=handler)) as stage, serve(stage.gateway) as url:
        async with connected(url) as client:
            assert await client.get_message() == "last"
            with pytest.raises(ConnectionClosed) as closed:
                await client.get_message()
            assert (closed.value.reason.code, closed.value.reason.reason) == (4001, "bye")
        [end] = await stage.witness.ends()
        assert (end.ended_by, end.code) == ("backend", 4001)


async def test_the_client_ends_it(lab, serve: Serve) -> None:
    codes = []

    async def handler(request: WebSocketRequest) -> None:
        connection = await request.accept()
        try:
            await connection.get_message()
        except ConnectionClosed as closed:
            codes.append(closed.reason.code)

    async with lab.gateway(await lab.instance(handler=handler)) as stage, serve(stage.gateway) as url:
        async with connected(url) as client:
            await client.aclose(4002)
        [end] = await stage.witness.ends()
        await lab.eventually(lambda: codes)
        # Quart cancels its handler, and does not say with which code the client has closed.
        assert codes == [4002 if serve is by_trio_websocket else 1001]
        assert (end.ended_by, end.code) == ("client", codes[0])


async def test_a_client_that_is_cut_off_leaves_its_seat(lab, serve: Serve) -> None:
    async with lab.gateway(await lab.instance(max_sessions=1)) as stage, serve(stage.gateway) as url:
        async with connected(url) as client:
            await trio.aclose_forcefully(client._stream)
        await stage.witness.ends()
        async with connected(url) as client:
            await client.send_message("there is room")
            assert await client.get_message() == "there is room"


async def test_the_gateway_ends_it(lab, serve: Serve) -> None:
    async with lab.gateway(await lab.instance()) as stage, serve(stage.gateway) as url:
        async with connected(url) as client:
            [live] = stage.gateway.connections()
            stage.gateway.disconnect(live.connection_id, code=1008, reason="not you")
            with pytest.raises(ConnectionClosed) as closed:
                await client.get_message()
            assert (closed.value.reason.code, closed.value.reason.reason) == (1008, "not you")
        async with connected(url) as client:
            await stage.shut_down()
            with pytest.raises(ConnectionClosed) as closed:
                await client.get_message()
            assert closed.value.reason.code == 1001


async def test_a_ping_of_the_service_is_answered(lab, serve: Serve) -> None:
    async def handler(request: WebSocketRequest) -> None:
        connection = await request.accept()
        with trio.fail_after(30):
            await connection.ping(b"there?")
        await connection.send_message("answered")

    async with lab.gateway(await lab.instance(handler=handler)) as stage, serve(stage.gateway) as url:
        async with connected(url) as client:
            assert await client.get_message() == "answered"


async def test_what_cannot_be_relayed_is_said() -> None:
    gateway = Gateway()
    with pytest.raises(RuntimeError, match=r"nursery\.start\(gateway\.serve, \[\]\)"):
        await gateway.relay(object())
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.serve, [])
        with pytest.raises(TypeError, match="WebSocketRequest of trio-websocket or Quart's websocket"):
            await gateway.relay(object())
        nursery.cancel_scope.cancel()
