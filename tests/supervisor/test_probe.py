"""A probe never raises, whatever answers: its result says why it failed."""

import json
import re
import socket
import struct
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio_websocket import serve_websocket
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Ping, Request

from agentmgr.core.proof import HEALTH_PATH, proof
from agentmgr.models import CheckMethod
from agentmgr.supervisor.addresses import Ports
from agentmgr.supervisor.probe import USER_AGENT, Probe


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
        with suppress(trio.BrokenResourceError):
            await stream.send_all(data)
            while await stream.receive_some():  # to its end: a probe waits a second for that
                pass

    return answer


def text(status, *headers):
    lines = [f"HTTP/1.1 {status} x", *headers, "Content-Length: 0"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def upgrading(*after):
    """Takes the handshake as it should be; `after`: events to send then."""

    async def answer(stream):
        connection = WSConnection(ConnectionType.SERVER)
        while True:
            data = await stream.receive_some()
            if not data:
                return
            connection.receive_data(data)
            for event in connection.events():
                if isinstance(event, Request):
                    await stream.send_all(connection.send(AcceptConnection()))
                    for more in after:
                        await stream.send_all(connection.send(more))

    return answer


AUTO, STRICT = CheckMethod.parse("auto"), CheckMethod.parse("websocket")
AT_WS, HEALTHZ, TCP = (CheckMethod.parse(text) for text in ("websocket:/ws", "http:/healthz", "tcp"))
HOSTED = "the agent host"
ALL = (HOSTED, AUTO, STRICT, HEALTHZ)


def probe_of(port, how):
    return Probe("127.0.0.1", port, "token") if how is HOSTED else Probe("127.0.0.1", port, None, how)


# What is seen, who is asked how, and what is said of it.
SEEN = [
    (reset_at_once, ALL, "broke the connection|connection reset by peer"),
    (reset_after_the_request, ALL, "broke the connection|connection reset by peer"),
    (close_after_the_request, ALL, "closed the connection without a whole answer"),
    (answering(b""), ALL, "accepted and said nothing for 0.3 s"),
    (answering(b"SSH-2.0-OpenSSH_9.2\r\n"), ALL, "accepted and sent no whole HTTP answer for 0.3 s"),
    (answering(b"+PONG\r\n\r\n\r\n"), ALL, "does not speak HTTP: "),
    (answering(b"\0" * 200_000), ALL, "does not speak HTTP: |sent too much"),
    (answering(text(403)), (STRICT,), "answered 403 to the WebSocket handshake at /"),
    (answering(text(200)), (STRICT,), "answered 200 to the WebSocket handshake at /"),
    (answering(text(404)), (AT_WS,), "answered 404 to the WebSocket handshake at /ws"),
    (answering(text(503)), (AUTO, STRICT), "answered 503 to the WebSocket handshake at /"),
    (answering(text(503)), (HEALTHZ,), "answered 503 to GET /healthz"),
    (answering(text(404)), (HEALTHZ,), "answered 404 to GET /healthz"),
    (answering(text(404)), (HOSTED,), "answered 404 to the health check"),
    (
        answering(text(101, "Upgrade: websocket", "Connection: Upgrade")),
        (HOSTED, AUTO, STRICT),
        "does not speak WebSocket: ",
    ),
    (
        answering(text(101, "Sec-WebSocket-Accept: c29tZW9uZSBlbHNlJ3M=")),
        (HOSTED, AUTO, STRICT),
        "does not speak WebSocket: ",
    ),
    (upgrading(), (AUTO, STRICT), "no ping answered for 0.3 s"),
    (upgrading(), (HOSTED,), "accepted the health check and gave no answer for 0.3 s"),
    (upgrading(CloseConnection(code=1008)), (HOSTED,), "closed the WebSocket at once"),
    (upgrading(CloseConnection(code=1011)), (AUTO, STRICT), "closed the WebSocket with 1011"),
]


@pytest.fixture
def quick_clock():
    """Time passes while both ends are silent, and not while this machine is busy."""
    return trio.testing.MockClock(autojump_threshold=0.02)


@pytest.mark.parametrize(
    ("handler", "how", "reason"), [(handler, how, reason) for handler, hows, reason in SEEN for how in hows]
)
async def test_a_failed_probe_says_what_it_saw(handler, how, reason, quick_clock):
    async with server(handler) as port:
        result = await probe_of(port, how)(0.3)
        assert not result.ok
        assert re.match(reason, result.reason), result.reason


@pytest.mark.parametrize("how", [*ALL, TCP])
async def test_a_refused_connection_is_named_with_its_address(how):
    port = Ports().lend("127.0.0.1", None)
    result = await probe_of(port, how)(60)
    assert (result.ok, result.reason) == (False, f"connection refused at 127.0.0.1:{port}")


@pytest.mark.parametrize("status", [200, 204, 301, 400, 401, 403, 404, 405, 426, 429])
async def test_by_default_an_answer_below_500_is_good_and_only_what_was_asked_for_counts_else(status):
    async with server(answering(text(status))) as port:
        result = await probe_of(port, AUTO)(5)
        assert (result.ok, result.status) == (True, status)
        strict = await probe_of(port, STRICT)(5)
        assert (strict.ok, strict.status) == (False, status)
        assert "--ready http:PATH" in strict.advice
        assert (await probe_of(port, HEALTHZ)(5)).ok == (status < 400)


async def test_one_that_closes_in_good_order_for_want_of_a_token_is_alive():
    async with server(upgrading(CloseConnection(code=1008, reason="a token is needed"))) as port:
        assert (await probe_of(port, AUTO)(5)).ok
        assert (await probe_of(port, STRICT)(5)).ok


@pytest.mark.parametrize("how", [AUTO, HEALTHZ, TCP, HOSTED])
async def test_a_probe_is_one_marked_connection_that_ends_properly(how):
    heads, ends = [], []

    async def handler(stream):
        head = await stream.receive_some()
        heads.append(head)
        if head:
            page = b"HTTP/1.1 200 x\r\nContent-Length: 30000\r\n\r\n" + b"x" * 30_000
            await stream.send_all(page)  # more than is read before the verdict
        try:
            ends.append(await stream.receive_some())
        except trio.BrokenResourceError as error:
            ends.append(error)

    async with server(handler) as port:
        await probe_of(port, how)(5)
        with trio.fail_after(60):
            while not ends:  # noqa: ASYNC110
                await trio.sleep(0.01)
    assert ends == [b""]  # a FIN, no reset
    assert len(heads) == 1
    assert how is TCP or USER_AGENT.encode() in heads[0]
    assert re.fullmatch(r"agentmgr-probe/\d+\.\d+\.\S+", USER_AGENT)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(ALL))
def test_any_answer_at_all(data, how):
    async def main():
        async with server(answering(data)) as port:
            result = await probe_of(port, how)(0.02)
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


@pytest.mark.parametrize(
    ("journal", "degraded", "said"),
    [
        (None, False, None),
        ({"degraded": None, "not_durable": [], "set_aside": []}, False, None),
        ({"degraded": "the disk is full"}, True, None),
        (
            {"not_durable": ["state['a']", "state['b']"], "set_aside": ["svc.db.corrupt-1Z"]},
            False,
            "not durable: state['a'] and 1 more; its log has them\n"
            "sessions that cannot be read: svc.db.corrupt-1Z",
        ),
        ("of another kind", False, None),
    ],
)
async def test_what_a_host_says_of_the_journal_of_its_sessions(nursery, journal, degraded, said):
    async def handler(request):
        ws = await request.accept()
        challenge = request.path.partition("challenge=")[2]
        answer = {"proof": proof("token", challenge), "status": "healthy", "journal": journal}
        await ws.send_message(json.dumps(answer))
        await trio.sleep_forever()

    listeners = await nursery.start(serve_websocket, handler, "127.0.0.1", 0, None)
    result = await Probe("127.0.0.1", listeners.port, "token")(5)
    assert (result.journal_degraded, result.said) == (degraded, said)


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
