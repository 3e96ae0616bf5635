"""What strangers send to the real API ends in an answer and at most in one line of the log a minute."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio

from agentmgr.api.faults import INTERVAL_S, Faults
from agentmgr.manager import AgentManager
from agentmgr.settings import Settings
from tests.conditions import read_to

HOST = b"Host: localhost\r\n"


@pytest.fixture
def settings() -> Settings:
    return Settings(api_rate_limit=0)


def get(target: bytes, *headers: bytes) -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\n" + b"".join(h + b"\r\n" for h in (*headers, b"")) + b""


def upgrade(path: bytes, *headers: bytes) -> bytes:
    return get(
        path, b"Host: localhost", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", *headers,
    )  # fmt: skip


STRANGE = {
    "an upgrade": (upgrade(b"/nowhere"), 404),
    "an upgrade with trailing bytes": (upgrade(b"/nowhere") + b"trailing bytes", 404),
    "an upgrade with frames": (upgrade(b"/nowhere") + b"\x81\x85\0\0\0\0hello" * 9, 404),
    "an upgrade of no path": (upgrade(b"?x"), 400),
    "an upgrade for odd words": (upgrade(b"/nowhere", b"Sec-WebSocket-Protocol: \xff"), 404),
    "HTTP/2 by upgrade": (get(b"/nowhere", b"Host: localhost", b"Upgrade: h2c", b"Connection: Upgrade"), 404),
    "no path": (get(b"?x", b"Host: localhost"), 400),
    "a broken absolute form": (get(b"http://[::1/x", b"Host: localhost"), 400),
    "bytes that are no UTF-8": (get(b"/%ff%fe?%ff=%ff", b"Host: localhost"), 404),
    "a surrogate": (get(b"/api/v1/services/%ed%a0%80", b"Host: localhost"), 404),
    "a host that cannot be": (get(b"/nowhere", b"Host: " + b"a" * 70), 400),
    "half an address": (get(b"/nowhere", b"Host: ["), 403),
    "a bad chunk": (get(b"/nowhere", b"Host: localhost", b"Transfer-Encoding: chunked") + b"zz\r\n", 400),
    "a huge head": (b"GET /nowhere HTTP/1.1\r\n" + b"a: b\r\n" * 3000, 431),
    "TLS": (b"\x16\x03\x01\x00\xa5\x01" + bytes(160) + b"\r\n\r\n", 400),
    "HEAD of a stream": (b"HEAD /api/v1/events HTTP/1.1\r\n" + HOST + b"\r\n", 200),
}


@pytest.mark.parametrize("leaves", [False, True], ids=["reads", "leaves"])
@pytest.mark.parametrize("name", STRANGE)
async def test_strange_bytes_get_an_answer_and_no_traceback(
    manager: AgentManager, url: str, name: str, leaves: bool, caplog: pytest.LogCaptureFixture
) -> None:
    sent, status = STRANGE[name]
    caplog.set_level(logging.INFO)
    port = int(url.rpartition(":")[2])
    for _ in range(5):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(sent)
            if not leaves:
                assert (await read_to(stream, b"\r\n")).split()[1] == b"%d" % status
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n")
        assert b"200" in await read_to(stream, b"\r\n")
    seen = [record for record in caplog.records if record.name.startswith("agentmgr.api")]
    assert not [record for record in seen if record.exc_info]
    assert len(seen) <= 1


async def test_errors_of_the_libraries_are_one_line_a_minute_and_ours_keep_their_traceback(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    faults = Faults()

    def stumble(module: str) -> None:
        code = compile("def fail():\n    raise ValueError('odd')", "x.py", "exec")
        namespace: dict[str, Any] = {"__name__": module}
        exec(code, namespace)
        try:
            namespace["fail"]()
        except ValueError as error:
            faults.report(ExceptionGroup("", [error]))

    for _ in range(1000):
        stumble("h11._readers")
    (line,) = caplog.records
    assert "h11._readers:2" in line.getMessage()
    assert "ValueError('odd')" in line.getMessage()
    assert not line.exc_info
    stumble("agentmgr.api.resources.events")
    assert caplog.records[-1].exc_info, "a flood of theirs does not hide an error of ours"
    await trio.sleep(INTERVAL_S)
    stumble("h11._readers")
    assert "999 more" in caplog.records[-1].getMessage()
    stumble("h11._readers")
    faults.flush()
    assert caplog.records[-1].getMessage().startswith("1 more")
