"""The accept loop: hostile connections end alone, and the host ends in good order."""

import socket

import pytest
import trio

from agentmgr.core.proof import HEALTH_PATH, proof
from agentmgr.testing.agents import bare_client, hosted
from tests.conditions import read_to

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def echo(message):
    return message


async def connect(url):
    host, port = url.removeprefix("ws://").split(":")
    return await trio.open_tcp_stream(host, int(port))


async def exchange(url, data):
    """All the host answers to these bytes, until it closes."""
    async with await connect(url) as stream:
        await stream.send_all(data)
        answer = b""
        with trio.fail_after(60):
            async for chunk in stream:
                answer += chunk
    return answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"garbage\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"426"),
        (b"GET //[ HTTP/1.1\r\nHost: x\r\n\r\n", b"426"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", b"426"),
        (UPGRADE.replace(b"13", b"12"), b"426"),
        (UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0"), b"400"),
        (UPGRADE.replace(b"GET", b"POST"), b"400"),
        (UPGRADE.replace(b"Host: x", b"Host: x\r\nContent-Length: 5"), b"400"),
        (UPGRADE.replace(b"Connection: Upgrade\r\n", b""), b"426"),
        (UPGRADE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b""), b"400"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000, b"431"),
        (UPGRADE.replace(b"Host: x\r\n", b"Host: x\r\nHost : y\r\n"), b"400"),
        (UPGRADE.replace(b"Host: x\r\n", b"Host: x\r\nHost: y\r\n"), b"400"),
        (UPGRADE.replace(b"Host: x\r\n", b"Host: x\nX: y\r\n"), b"400"),
        (UPGRADE.replace(b"Host: x\r\n", b"Host: x\r\nX: y\r\n  z\r\n"), b"400"),
        (UPGRADE.replace(b"Host: x\r\n", b"Host: x\r\n" + b"X: y\r\n" * 100), b"431"),
    ],
)
async def test_what_is_no_upgrade_is_refused_and_nobody_else_notices(data, status):
    async with hosted(echo) as url, bare_client(url) as other:
        await other.open()
        assert (await exchange(url, data)).startswith(b"HTTP/1.1 " + status)
        assert (await other.ask("hi"))["content"] == "hi"


async def test_a_refusal_reaches_a_client_that_has_sent_more_than_was_read():
    async with hosted(echo) as url:
        answer = await exchange(url, UPGRADE.replace(b"13", b"12") + b"x" * 200_000)
    assert answer.partition(b"\r\n\r\n")[2].startswith(b'{"code": "unsupported_version"')


@pytest.mark.parametrize("end", ["close", "reset"])
@pytest.mark.parametrize("sent", [b"", b"GET / HT", UPGRADE, UPGRADE + b"\x81\xff\xff"])
async def test_a_connection_that_ends_anywhere_ends_alone(sent, end):
    async with hosted(echo) as url, bare_client(url) as other:
        await other.open()
        for _ in range(20):
            stream = await connect(url)
            if end == "reset":
                stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            await stream.send_all(sent or b"G")
            await stream.aclose()
        assert (await other.ask("hi"))["content"] == "hi"
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(url.sessions) == 1


FORBIDDEN = {
    "not masked": (b"\x81\x05hello", 1002),
    "reserved bits": (b"\xf1\x80\0\0\0\0", 1002),
    "an opcode nobody knows": (b"\x83\x80\0\0\0\0", 1002),
    "a control opcode nobody knows": (b"\x8b\x80\0\0\0\0", 1002),
    "a text frame that is not UTF-8": (b"\x81\x82\0\0\0\0\xff\xfe", 1007),
    "a fragment that is not UTF-8": (b"\x01\x81\0\0\0\0a\x80\x82\0\0\0\0\xff\xfe", 1007),
    "a ping of 126 bytes": (b"\x89\xfe\0\x7e\0\0\0\0" + b"x" * 126, 1002),
    "a ping in fragments": (b"\x09\x80\0\0\0\0", 1002),
    "a continuation of nothing": (b"\x80\x80\0\0\0\0", 1002),
    "closes with 1005": (b"\x88\x82\0\0\0\0\x03\xed", 1002),
    "closes with half a code": (b"\x88\x81\0\0\0\0\x03", 1002),
    "closes with a reason that is not UTF-8": (b"\x88\x84\0\0\0\0\x03\xe8\xff\xfe", 1007),
}


@pytest.mark.parametrize(("frames", "code"), FORBIDDEN.values(), ids=FORBIDDEN.keys())
@pytest.mark.parametrize("more", [b"", b"\x81\x81\0\0\0\0x" * 20_000], ids=["", "and much behind it"])
async def test_who_breaks_the_protocol_is_told_by_a_close_frame(frames, code, more):
    async with hosted(echo) as url, await connect(url) as stream:
        await stream.send_all(UPGRADE)
        assert (await read_to(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        await stream.send_all(frames + more)
        received = b""
        with trio.fail_after(60):
            async for chunk in stream:
                received += chunk
        assert received[0] == 0x88
        assert received[1] == len(received) - 2  # nothing else, and nothing behind it
        assert int.from_bytes(received[2:4], "big") == code


async def test_a_message_that_comes_along_with_the_handshake_is_answered():
    async with hosted(echo) as url, await connect(url) as stream:
        await stream.send_all(UPGRADE + b"\x81\x82\0\0\0\0hi")
        received = b""
        with trio.fail_after(60):
            while b"\x81\x02hi" not in received:
                received += await stream.receive_some()


async def test_a_close_frame_is_sent_once():
    async with hosted(echo) as url:
        answer = await exchange(url, UPGRADE + b"\x88\x82\0\0\0\0\x03\xea")  # the client's own 1002
    assert answer.partition(b"\r\n\r\n")[2] == b"\x88\x02\x03\xea"


@pytest.mark.parametrize(
    "frames",
    [
        b"\x81\x05hello",  # not masked
        b"\xf1\x80\0\0\0\0",  # reserved bits
        b"\x83\x80\0\0\0\0",  # an opcode nobody knows
        b"\x81\x82\0\0\0\0\xff\xfe",  # a text frame that is not UTF-8
        b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0",  # claims 2^63 - 1 bytes
        b"\x88\x82\0\0\0\0\x03\xed",  # closes with 1005
    ],
)
async def test_frames_the_protocol_forbids_end_their_connection_alone(frames):
    async with hosted(echo) as url, bare_client(url) as other:
        await other.open()
        async with await connect(url) as stream:
            await stream.send_all(UPGRADE + frames)
            await read_to(stream, b"\r\n\r\n")
            with trio.move_on_after(0.2):
                await stream.receive_some()
        assert (await other.ask("hi"))["content"] == "hi"


async def test_a_message_far_over_the_limit_is_not_even_held():
    async with hosted(echo, max_message_bytes=1000) as url, bare_client(url) as client:
        await client.open()
        await client.websocket.send_message("{" + "x" * 100_000)
        with pytest.raises(trio.EndOfChannel):
            await client.receive()
        assert client.websocket.closed.code == 1009


async def test_the_first_subprotocol_is_taken_and_a_token_is_none():
    offer = b"Sec-WebSocket-Protocol: bearer.secret, chat, other\r\n\r\n"
    async with hosted(echo) as url, await connect(url) as stream:
        await stream.send_all(UPGRADE[:-2] + offer)
        answer = await read_to(stream, b"\r\n\r\n")
        assert b"101" in answer
        assert b"sec-websocket-protocol: chat\r\n" in answer.lower()


async def test_a_probe_by_get_and_by_websocket_gets_the_proof():
    async with hosted(echo, token="secret") as url, bare_client(url) as client:
        await client.open()
        answer = await exchange(url, f"GET {HEALTH_PATH}?challenge=abc HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 200")
        assert f'"proof": "{proof("secret", "abc")}"'.encode() in answer
        async with bare_client(f"{url}{HEALTH_PATH}?challenge=abc") as prober:
            report = await prober.websocket.get_message()
            assert f'"proof": "{proof("secret", "abc")}"' in report
            assert '"sessions": 1' in report
            with trio.fail_after(60):
                await prober.websocket.ping(b"still there?")


class Mute(BaseException):
    def __str__(self):
        raise Mute


class Checked:
    def __init__(self, said):
        self.said = said

    def on_message(self, session, message):
        return message

    async def check_health(self):
        if isinstance(self.said, BaseException):
            raise self.said
        if self.said == "late":
            await trio.sleep_forever()
        return self.said


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (None, "healthy"),
        (True, "healthy"),
        (False, "unhealthy"),
        ("degraded", "degraded"),
        ("the model is slow", "degraded"),
        ({"status": "unhealthy", "detail": "no key"}, "unhealthy"),
        (ValueError("no key"), "unhealthy"),
        (Mute(), "unhealthy"),
        (KeyboardInterrupt(), "unhealthy"),
        ({"status": "degraded", "detail": object()}, "degraded"),
        ({"status": "degraded", "detail": Mute()}, "degraded"),
    ],
    ids=range(11),
)
async def test_an_agent_has_an_opinion_of_its_own_health(said, status):
    async with hosted(Checked(said)) as url:
        answer = await exchange(url, f"GET {HEALTH_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert f'"status": "{status}"'.encode() in answer


async def test_an_opinion_that_is_late_is_unhealthy(monkeypatch):
    monkeypatch.setattr("agentmgr.agent.adapt.HEALTH_TIMEOUT_S", 0.05)
    async with hosted(Checked("late")) as url:
        answer = await exchange(url, f"GET {HEALTH_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b"did not answer within" in answer


async def test_a_host_that_goes_away_tells_everyone_to_come_back():
    async def busy(message):
        await trio.sleep_forever()

    async with hosted(busy) as url, bare_client(url) as client, bare_client(url) as idle:
        await client.open()
        await client.say("user.message", content="hi")
        await client.say("ping")
        await client.until("pong")
        url.server.go_away()
        assert (await client.until("agent.session_end"))["content"]["reason"] == "restart"
        for connection in (client, idle):
            with pytest.raises(trio.EndOfChannel):
                await connection.receive()
            assert connection.websocket.closed.code == 1012
        with pytest.raises(OSError, match="all attempts to connect"):
            await connect(url)
