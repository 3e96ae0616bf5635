"""While it lives: limits of time, size and number, and bounded memory."""

from __future__ import annotations

import logging
import socket
import tracemalloc

import pytest
import trio

from agentmgr.proxy import GatewayLimits


async def test_idle_counts_data_frames_not_pings(lab) -> None:
    async with lab.gateway(await lab.instance(idle_timeout=0.3)) as stage:
        peer = await stage.open()

        async def ping() -> None:
            while True:
                await peer.stream.send_all(lab.frame(9, b"!"))
                assert await peer.exactly(3) == lab.frame(10, b"!", masked=False)
                await trio.sleep(0.05)

        began = trio.current_time()
        await peer.stream.send_all(lab.frame(1, b"hi"))
        await peer.exactly(4)
        with pytest.raises(AssertionError), trio.fail_after(60):
            await ping()
        assert trio.current_time() - began > 0.29
        await peer.stream.aclose()
        (end,) = await stage.witness.ends()
        assert (end.ended_by, end.code, end.reason) == ("gateway", 1001, "no message for 0.3 s")


async def test_data_frames_keep_a_session_alive(lab) -> None:
    async with lab.gateway(await lab.instance(idle_timeout=1)) as stage:
        peer = await stage.open()
        for _ in range(5):
            await trio.sleep(0.25)
            await peer.stream.send_all(lab.frame(1, b"hi"))
            assert await peer.exactly(4) == lab.frame(1, b"hi", masked=False)


async def test_a_message_over_the_limit_is_1009_for_both(lab) -> None:
    got = []

    async def listen(stream: trio.SocketStream) -> None:
        peer = lab.Peer(stream)
        await peer.until(b"\r\n\r\n")
        await stream.send_all(lab.switching())
        got.append(await peer.rest())

    healthy = await lab.instance("echo")
    async with lab.gateway(healthy, await lab.raw(listen, max_message_bytes=100)) as stage:
        async with lab.neighbour(stage, "/services/echo"):
            peer = await stage.open("/services/raw")
            await peer.stream.send_all(lab.frame(1, b"fits") + b"\x82\xff" + (2**62).to_bytes(8, "big"))
            assert await peer.close_code() == 1009
            await peer.stream.aclose()
            (end,) = await stage.witness.ends()
            assert (end.ended_by, end.code) == ("gateway", 1009)
    assert got[0].startswith(lab.frame(1, b"fits"))
    assert got[0][10] == 0x88
    assert (
        int.from_bytes(bytes(a ^ b for a, b in zip(got[0][16:18], got[0][12:14], strict=True)), "big") == 1009
    )


async def test_a_message_of_any_size_streams_in_constant_memory(lab) -> None:
    """64 MiB in one frame, both ways, with no limit set."""
    size = 64 * 2**20
    received = 0

    async def mirror(stream: trio.SocketStream) -> None:
        peer = lab.Peer(stream)
        await peer.until(b"\r\n\r\n")
        await stream.send_all(lab.switching() + b"\x82\x7f" + size.to_bytes(8, "big"))
        left = size + 14
        while left:
            data = await stream.receive_some()
            left -= len(data)
            await stream.send_all(data if left else data[:-14])
        await peer.rest()

    async with lab.gateway(await lab.raw(mirror)) as stage:
        peer = await stage.open()

        async def send() -> None:
            await peer.stream.send_all(b"\x82\xff" + size.to_bytes(8, "big") + bytes(4))
            for _ in range(size // 2**20):
                await peer.stream.send_all(bytes(2**20))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await peer.exactly(10)
            tracemalloc.start()
            while received < size - 14:
                received += len(peer.received or await peer.stream.receive_some())
                peer.received = b""
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert most < 8 * 2**20
        (connection,) = stage.gateway.connections()
        assert connection.messages_from_client == 1


@pytest.mark.parametrize("slow", ["client", "backend"])
async def test_one_who_does_not_read_pauses_the_sender_and_is_cut(lab, slow: str) -> None:
    sent = 0
    over = trio.Event()

    async def flood(stream: trio.SocketStream) -> None:
        nonlocal sent
        chunk = lab.frame(2, bytes(60_000), masked=slow == "backend")
        try:
            while True:
                await stream.send_all(chunk)
                sent += len(chunk)
        except trio.BrokenResourceError:
            over.set()

    async def backend(stream: trio.SocketStream) -> None:
        await lab.Peer(stream).until(b"\r\n\r\n")
        await stream.send_all(lab.switching())
        await (flood(stream) if slow == "client" else over.wait())

    healthy = await lab.instance("echo")
    limits = GatewayLimits(stall_timeout_s=0.4, close_timeout_s=0.3)
    async with lab.gateway(healthy, await lab.raw(backend), limits=limits) as stage:
        async with lab.neighbour(stage, "/services/echo"):
            peer = await stage.open("/services/raw")
            if slow == "backend":
                stage.nursery.start_soon(flood, peer.stream)
            (end,) = await stage.witness.ends()
            assert (end.ended_by, end.code, end.reason) == ("gateway", 1013, f"the {slow} does not read")
            await over.wait()
            # What the kernel's buffers take, and some more that is discarded at the end.
            assert end.bytes_from_client + end.bytes_to_client < 20 * 2**20
            assert sent < 50 * 2**20


async def test_a_slow_reader_is_not_cut(lab) -> None:
    size = 12_000_000

    async def pour(stream: trio.SocketStream) -> None:
        peer = lab.Peer(stream)
        await peer.until(b"\r\n\r\n")
        await stream.send_all(lab.switching() + b"\x82\x7f" + size.to_bytes(8, "big") + bytes(size))
        await peer.rest()

    async with lab.gateway(await lab.raw(pour), limits=GatewayLimits(stall_timeout_s=1)) as stage:
        peer = await stage.open()
        for _ in range(30):
            await peer.exactly((size + 10) // 30)
            await trio.sleep(0.04)
        assert stage.witness.closed == []


async def test_sessions_of_one_address_are_limited(lab) -> None:
    async with lab.gateway(await lab.instance(), limits=GatewayLimits(connections_per_address=2)) as stage:
        first, _ = await stage.open(), await stage.open()
        status, code, headers = await stage.refusal(lab.upgrade())
        assert (status, code, headers["retry-after"]) == (429, "too_many_sessions", "1")
        await first.stream.aclose()
        await stage.witness.ends()
        await lab.eventually(lambda: not stage.gateway._quotas._open.get("127.0.0.1", 0) >= 2)
        await stage.open()


async def test_handshakes_of_one_address_are_limited(lab) -> None:
    limits = GatewayLimits(handshakes_per_address_s=0.001)
    async with lab.gateway(await lab.instance(), limits=limits, trusted_proxies=["127.0.0.1"]) as stage:
        flooder, other = "X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 192.0.2.2"
        await stage.open("/", flooder)
        assert (await stage.refusal(lab.upgrade("/", flooder)))[:2] == (429, "too_many_handshakes")
        await stage.open("/", other)


OPTIONS = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_NODELAY): 1,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 30,
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 15,
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 3,
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 90_000,
}


async def test_both_legs_notice_a_pulled_cable(lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 90 s: the kernel is asked to, and nothing on loopback can show more."""
    monkeypatch.setattr("agentmgr.websocket.sockets._numeric_loopback", lambda address: False)
    async with lab.gateway(await lab.instance()) as stage:
        await stage.open()
        (session,) = stage.gateway.live_connections
        for flow in session.tunnel.flows:
            assert {option: flow.source.sock.getsockopt(*option) for option in OPTIONS} == OPTIONS


async def test_live_numbers(lab) -> None:
    async with lab.gateway(await lab.instance()) as stage:
        peer = await stage.open("/services/echo/chat?token=secret")
        await peer.stream.send_all(lab.frame(1, b"hello") + lab.frame(9, b""))
        await peer.exactly(7 + 2)
        await trio.sleep(0.05)
        (connection,) = stage.gateway.connections()
        assert connection.path == "/services/echo/chat"
        assert connection.bytes_from_client == 11 + 6
        assert connection.bytes_to_client == 7 + 2
        assert (connection.messages_from_client, connection.messages_to_client) == (1, 1)
        assert 0.04 < connection.idle_s < 60
        assert connection.client_port == peer.stream.socket.getsockname()[1]


async def test_one_line_is_logged_for_each_end_and_secrets_are_not(
    lab, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "agentmgr.gateway")
    async with lab.gateway(await lab.instance()) as stage:
        peer = await stage.open("/?ticket=secret")
        await peer.stream.send_all(lab.frame(8, b"\x03\xe8line\r\nforged"))
        await peer.rest()
        await peer.stream.aclose()
        await stage.witness.ends()
    (record,) = [r for r in caplog.records if "ended by" in r.message]
    assert "secret" not in caplog.text
    assert "\n" not in record.message
    assert "code 1000" in record.message
