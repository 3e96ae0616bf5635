"""Frames that break RFC 6455: a few end at the gateway, all others get the backend's verdict."""

from __future__ import annotations

import pytest
import trio

from agentmgr.proxy.listener import ConnectionLimit


def masked(first: int, payload: bytes = b"", length: int | None = None) -> bytes:
    return bytes([first, 0x80 | (len(payload) if length is None else length)]) + bytes(4) + payload


BAD = {
    "reserved opcode": masked(0x83, b"?"),
    "reserved control opcode": masked(0x8B),
    "reserved bit": masked(0xC1, b"?"),
    "invalid UTF-8": masked(0x81, b"\xff\xfe"),
    "ping over 125 bytes": b"\x89\xfe\x00\x7e" + bytes(4) + bytes(126),
    "fragmented ping": masked(0x09, b"?"),
    "continuation of nothing": masked(0x80, b"?"),
    "text inside a fragmented text": masked(0x01, b"a") + masked(0x81, b"b"),
    "close with one byte": masked(0x88, b"\x03"),
    "close with a code that must not be sent": masked(0x88, b"\x03\xed"),
    "close with invalid UTF-8": masked(0x88, b"\x03\xe8\xff"),
    "length in more bytes than needed": b"\x81\xfe\x00\x01" + bytes(4) + b"a",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
async def test_they_reach_the_backend_and_its_verdict_returns_intact(lab, data: bytes) -> None:
    judged = []
    verdict = lab.frame(8, b"\x03\xea" + b"I will not have that", masked=False)

    async def judge(stream: trio.SocketStream) -> None:
        peer = lab.Peer(stream)
        await peer.until(b"\r\n\r\n")
        await stream.send_all(lab.switching())
        judged.append(await peer.exactly(len(data)))
        await stream.send_all(verdict)

    healthy, strict = await lab.instance("echo"), await lab.raw(judge, "strict")
    async with lab.gateway(healthy, strict) as stage, lab.neighbour(stage, "/services/echo"):
        peer = await stage.open("/services/strict")
        await peer.stream.send_all(data)
        assert await peer.rest() == verdict
    assert judged == [data]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x02hi", 1002),
        (b"\x89\x00", 1002),
        (b"\x82\xff\xff" + bytes(7) + bytes(4), 1002),
        (b"\x82\xff" + (2**62).to_bytes(8, "big") + bytes(4), 1009),
    ],
    ids=["unmasked", "unmasked ping", "length with its highest bit", "2^62 bytes"],
)
async def test_what_the_gateway_itself_cannot_let_through(lab, data: bytes, code: int) -> None:
    healthy, other = await lab.instance("echo"), await lab.instance("other", max_message_bytes=1000)
    async with lab.gateway(healthy, other) as stage, lab.neighbour(stage, "/services/echo"):
        peer = await stage.open("/services/other")
        await peer.stream.send_all(masked(0x81, b"good") + data)
        answer = await peer.rest()  # the echo of what was good may come before the end, or too late
        assert answer.removeprefix(lab.frame(1, b"good", masked=False))[2:4] == code.to_bytes(2, "big")
        (end,) = await stage.witness.ends()
        assert (end.ended_by, end.code, end.messages_from_client) == ("gateway", code, 1)


async def test_one_byte_at_a_time_all_arrives_and_is_counted(lab) -> None:
    healthy, other = await lab.instance("echo"), await lab.instance("other")
    async with lab.gateway(healthy, other) as stage, lab.neighbour(stage, "/services/echo"):
        peer = await stage.open("/services/other")
        for byte in masked(0x81, b"slowly") + masked(0x89, b"!") + masked(0x82, b"\0" * 100):
            await peer.stream.send_all(bytes([byte]))
            await trio.lowlevel.checkpoint()
        assert await peer.exactly(8 + 3 + 102)
        (slow,) = [c for c in stage.gateway.connections() if c.service_name == "other"]
        assert (slow.messages_from_client, slow.messages_to_client) == (2, 2)


@pytest.mark.parametrize(("limit", "most"), [(0, 448), (10, 10), (5000, 448)])
def test_some_descriptors_are_always_left_for_the_rest_of_the_process(
    monkeypatch: pytest.MonkeyPatch, limit: int, most: int
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda kind: (1024, 4096))
    refused: list[str] = []
    places = ConnectionLimit(limit, refused=refused.append)
    taken = 0
    while places.take():
        taken += 1
    assert taken == most
    assert taken * 2 <= 1024 - 128
    assert refused == ["too_many_connections"]
    places.give_back()
    assert places.take()
    assert not places.take()
