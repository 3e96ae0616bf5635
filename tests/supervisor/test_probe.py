"""A probe never raises, whatever answers: its result says why it failed."""

import json
import re
import socket
import struct
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio_websocket import serve_websocket
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Ping, Request

from agentmgr.core.proof import HEALTH_PATH, proof
from agentmgr.supervisor.addresses import Ports
from agentmgr.supervisor.probe import Probe


@asynccontextmanager
async def server(handler):
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def reset(stream):
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def reset_at_once(stream):
    reset(stream)


async def reset_after_the_request(stream):
    await stream.receive_some()
    reset(stream)


async def close_after_the_request(stream):
    await stream.receive_some()


def answering(data):
    async def answer(stream):
        await stream.receive_some()
        await stream.send_all(data)
        await trio.sleep_forever()

    return answer


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (reset_at_once, "broke the connection|connection reset by peer"),
        (reset_after_the_request, "broke the connection|connection reset by peer"),
        (close_after_the_request, "closed the connection"),
        (answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"), "status 404"),
        (answering(b"\0" * 200_000), "does not speak WebSocket|sent too much"),
        (answering(b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"), "does not speak"),
        (
            answering(b"HTTP/1.1 101 x\r\nSec-WebSocket-Accept: c29tZW9uZSBlbHNlJ3M=\r\n\r\n"),
            "does not speak",
        ),
    ],
)
@pytest.mark.parametrize("token", [None, "token"])
async def test_what_fails_has_its_reason(handler, reason, token):
    async with server(handler) as port:
        result = await Probe("127.0.0.1", port, token)(5)
        assert not result.ok
        assert re.search(reason, result.reason), result.reason


@pytest.mark.parametrize("token", [None, "token"])
@pytest.mark.parametrize("data", [b"", b"SSH-2.0-OpenSSH_9.2\r\n"])
async def test_one_that_says_nothing_of_use_is_not_waited_for(data, token):
    async with server(answering(data)) as port:
        result = await Probe("127.0.0.1", port, token)(0.2)
        assert (result.ok, result.reason) == (False, "no answer within 0.2 s")


async def test_nobody_listens():
    port = Ports().lend("127.0.0.1", None)
    assert (await Probe("127.0.0.1", port, None)(60)).reason == "connection refused"


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([None, "token"]))
def test_any_answer_at_all(data, token):
    async def main():
        async with server(answering(data)) as port:
            result = await Probe("127.0.0.1", port, token)(0.02)
            assert not result.ok
            assert result.reason

    trio.run(main)


async def test_a_real_server_that_sends_more_than_it_is_asked_for(nursery):
    async def handler(request):
        ws = await request.accept()
        await ws.send_message("welcome" * 1000)
        await ws.send_message(b"and some bytes")
        while True:
            await ws.send_message(await ws.get_message())

    listeners = await nursery.start(serve_websocket, handler, "127.0.0.1", 0, None)
    result = await Probe("127.0.0.1", listeners.port, None)(5)
    assert result.ok
    assert 0 < result.latency_s < 5


async def test_how_it_takes_the_farewell_is_no_part_of_its_health():
    async def handler(stream):
        connection = WSConnection(ConnectionType.SERVER)
        while True:
            connection.receive_data(await stream.receive_some())
            for event in connection.events():
                if isinstance(event, Request):
                    await stream.send_all(connection.send(AcceptConnection()))
                if isinstance(event, Ping):
                    await stream.send_all(connection.send(event.response()))
                if isinstance(event, CloseConnection):
                    await trio.sleep_forever()

    async with server(handler) as port:
        begin = trio.current_time()
        result = await Probe("127.0.0.1", port, None)(60)
        assert result.ok
        assert trio.current_time() - begin - result.latency_s > 0.9  # for a second it is waited for


@pytest.mark.parametrize("status", ["healthy", "degraded", "unhealthy", "of a kind unknown"])
async def test_what_a_hosted_agent_says_of_itself(nursery, status):
    async def handler(request):
        assert request.path.startswith(HEALTH_PATH)
        ws = await request.accept()
        challenge = request.path.partition("challenge=")[2]
        answer = {"proof": proof("token", challenge), "status": status, "detail": "busy", "sessions": 1}
        await ws.send_message(json.dumps(answer))
        await trio.sleep_forever()

    listeners = await nursery.start(serve_websocket, handler, "127.0.0.1", 0, None)
    result = await Probe("127.0.0.1", listeners.port, "token")(5)
    assert result.ok == (status != "unhealthy")
    assert result.degraded == (status == "degraded")
    if status in ("degraded", "unhealthy"):
        assert result.reason == "busy"
    impostor = await Probe("127.0.0.1", listeners.port, "another token")(5)
    assert "another process" in impostor.reason
