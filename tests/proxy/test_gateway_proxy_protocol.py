"""A listener behind a proxy that speaks the PROXY protocol: whom it believes, and what it refuses."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from agentmgr.models import ConditionOperator, RoutingCondition, RoutingRule
from agentmgr.proxy import Certificate, GatewayLimits

HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
V1 = b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 443\r\n"
SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V2 = SIGNATURE + bytes.fromhex("2111000c cb007109 c0000201 1267 01bb")
LOCAL = SIGNATURE + bytes.fromhex("20000000")
TRUSTING: dict[str, Any] = {"proxy_protocol": True, "trusted_proxies": ["127.0.0.1"]}


@pytest.fixture
def heads() -> list[str]:
    return []


@pytest.fixture
async def instance(lab, heads: list[str]):
    """Remembers the heads that it gets, and echoes frames with one letter."""

    async def handler(stream: trio.SocketStream) -> None:
        peer = lab.Peer(stream)
        heads.append((await peer.until(b"\r\n\r\n")).decode())
        await stream.send_all(lab.switching())
        data = peer.received
        while True:
            while len(data) >= 7:
                await stream.send_all(lab.frame(1, data[6:7], masked=False))
                data = data[7:]
            if not (more := await stream.receive_some()):
                return
            data += more

    return await lab.raw(handler, "echo")


def sees(head: str, address: str) -> bool:
    return f"X-Forwarded-For: {address}\r\n" in head


@asynccontextmanager
async def neighbour(lab, stage) -> AsyncIterator[None]:
    """A healthy session that is there before and after."""
    peer = await stage.connect(V1 + lab.upgrade())
    await peer.until(b"\r\n\r\n")
    for letter in (b"a", b"b"):
        await peer.stream.send_all(lab.frame(1, letter))
        assert await peer.exactly(3) == b"\x81\x01" + letter
        if letter == b"a":
            yield


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("cut", ["whole", "bytes"])
async def test_the_client_is_who_the_proxy_says(lab, instance, heads, header: bytes, cut: str) -> None:
    rule = RoutingRule(
        "from-there",
        conditions=[RoutingCondition("client_ip", ConditionOperator.EQUALS, "203.0.113.9")],
        target_services=["echo"],
    )
    other = await lab.instance("other")
    async with lab.gateway(other, instance, table={"rules": (rule,)}, **TRUSTING) as stage:
        data = header + lab.upgrade("/", "X-Forwarded-For: 198.51.100.1") + lab.frame(1, b"x")
        chunks = [data] if cut == "whole" else [bytes([byte]) for byte in data]
        peer = await stage.connect(*chunks)
        assert (await peer.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert await peer.exactly(3) == b"\x81\x01x"
        (session,) = stage.gateway.connections()
        assert (session.client_ip, session.client_port) == ("203.0.113.9", 4711)
        assert (session.service_name, session.rule) == ("echo", "from-there")
    assert sees(heads[0], "203.0.113.9"), "and nobody else's word counts"


@pytest.mark.parametrize(
    ("header", "client"),
    [(b"PROXY UNKNOWN\r\n", "127.0.0.1"), (LOCAL, "127.0.0.1"), (V1, "203.0.113.9")],
)
async def test_who_is_not_named_can_name_nobody_else(
    lab, instance, heads, header: bytes, client: str
) -> None:
    async with lab.gateway(instance, **TRUSTING) as stage:
        spoofed = ("X-Forwarded-For: 198.51.100.1", "X-Forwarded-Proto: https")
        peer = await stage.connect(header + lab.upgrade("/", *spoofed))
        await peer.until(b"\r\n\r\n")
        assert stage.gateway.connections()[0].client_ip == client
    assert sees(heads[0], client)
    assert "X-Forwarded-Proto: http\r\n" in heads[0]


async def test_limits_are_for_the_client_not_for_the_proxy(lab, instance) -> None:
    limits = GatewayLimits(close_timeout_s=0.5, connections_per_address=1)
    async with lab.gateway(instance, limits=limits, **TRUSTING) as stage:
        async with neighbour(lab, stage):
            assert (await stage.refusal(V2 + lab.upgrade()))[:2] == (429, "too_many_sessions")
            other = await stage.connect(V1.replace(b"113.9", b"113.8") + lab.upgrade())
            assert (await other.until(b"\r\n")).startswith(b"HTTP/1.1 101 ")


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n", b"PROXY TCP4 1.2.3.4\r\n", b"\x00", SIGNATURE + b"\x31\x11\x00\x00"]
)
async def test_what_does_not_begin_with_a_good_header_is_refused(lab, instance, heads, data: bytes) -> None:
    async with lab.gateway(instance, **TRUSTING) as stage, neighbour(lab, stage):
        assert (await stage.refusal(data))[:2] == (400, "bad_proxy_header")
        assert len(heads) == 1


async def test_the_header_of_somebody_who_is_not_trusted_is_not_even_read(lab, instance, heads) -> None:
    options = {**TRUSTING, "trusted_proxies": ["10.0.0.0/8", "::1"]}
    async with lab.gateway(instance, **options) as stage:
        assert (await stage.refusal(V1 + lab.upgrade()))[:2] == (403, "proxy_not_trusted")
    assert heads == []


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
async def test_a_listener_that_does_not_ask_for_it_refuses_it(lab, header: bytes) -> None:
    async with lab.gateway(await lab.instance(), trusted_proxies=["127.0.0.1"]) as stage:
        async with lab.neighbour(stage):
            assert (await stage.refusal(header + lab.upgrade()))[:2] == (400, "bad_request")
            assert len(stage.witness.opened) == 1


@pytest.mark.parametrize("begin", [b"", b"PROXY", V2[:15], V1])
async def test_it_shares_the_heads_deadline(lab, instance, begin: bytes) -> None:
    limits = GatewayLimits(head_timeout_s=0.1, close_timeout_s=0.5)
    async with lab.gateway(instance, limits=limits, **TRUSTING) as stage, neighbour(lab, stage):
        assert (await stage.refusal(begin))[:2] == (408, "request_timeout")


async def test_proxies_that_only_look_leave_nothing_behind(lab, instance) -> None:
    async with lab.gateway(instance, **TRUSTING) as stage, neighbour(lab, stage):
        before = lab.open_descriptors()
        for number in range(150):
            stream = await trio.open_tcp_stream("127.0.0.1", stage.port)
            await stream.send_all((b"", LOCAL, V2[:9], V1)[number % 4])
            if number % 3 == 0:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await stream.aclose()
        await lab.eventually(lambda: lab.open_descriptors() <= before)


@pytest.fixture
def pem(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate with its key, and what trusts it."""
    authority = trustme.CA()
    file = tmp_path / "server.pem"
    authority.issue_cert("localhost", "127.0.0.1").private_key_and_cert_chain_pem.write_to_path(file)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return file, context


async def test_before_tls(lab, instance, heads, pem: tuple[Path, ssl.SSLContext]) -> None:
    async with lab.gateway(instance, certificate=Certificate(pem[0]), **TRUSTING) as stage:
        tcp = await trio.open_tcp_stream("127.0.0.1", stage.port)
        await tcp.send_all(V2)
        stream = trio.SSLStream(tcp, pem[1], server_hostname="localhost", https_compatible=True)
        await stream.send_all(lab.upgrade())
        await lab.Peer(stream).until(b"\r\n\r\n")
        assert stage.gateway.connections()[0].client_ip == "203.0.113.9"
        await stream.aclose()
    assert "X-Forwarded-Proto: https\r\n" in heads[0]


@asynccontextmanager
async def haproxy(folder: Path, port: int, sends: str, crt: str = "") -> AsyncIterator[tuple[int, Path]]:
    """A real HAProxy before that port: its own port, and its log."""
    log = folder / "haproxy.log"
    with socket.create_server(("127.0.0.1", 0)) as listening, log.open("wb") as output:
        (folder / "haproxy.cfg").write_text(
            "global\n  log stdout format raw local0\n"
            "defaults\n  mode tcp\n  log global\n  option log-health-checks\n"
            "  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
            f"frontend f\n  bind fd@{listening.fileno()} {crt}\n  default_backend b\n"
            f"backend b\n  server s 127.0.0.1:{port} {sends}\n"
        )
        command = [str(HAPROXY), "-db", "-f", str(folder / "haproxy.cfg")]
        process = subprocess.Popen(command, pass_fds=[listening.fileno()], stdout=output, stderr=output)
        try:
            yield listening.getsockname()[1], log
        finally:
            process.kill()
            process.wait()


@pytest.mark.skipif(HAPROXY is None, reason="HAProxy is not installed (Debian's package haproxy)")
@pytest.mark.parametrize("sends", ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl"])
async def test_behind_a_real_haproxy(
    lab, instance, heads, sends: str, pem: tuple[Path, ssl.SSLContext], tmp_path: Path
) -> None:
    tls = sends.endswith("ssl")
    async with (
        lab.gateway(instance, **TRUSTING) as stage,
        haproxy(tmp_path, stage.port, sends, f"ssl crt {pem[0]}" if tls else "") as (port, _),
    ):
        tcp = await trio.open_tcp_stream("127.0.0.1", port, local_address="127.0.0.77")
        client_port = tcp.socket.getsockname()[1]
        stream = trio.SSLStream(tcp, pem[1], server_hostname="localhost") if tls else tcp
        peer = lab.Peer(stream)
        await stream.send_all(lab.upgrade() + lab.frame(1, b"x"))
        await peer.until(b"\r\n\r\n")
        assert await peer.exactly(3) == b"\x81\x01x"
        (session,) = stage.gateway.connections()
        assert (session.client_ip, session.client_port) == ("127.0.0.77", client_port)
        tcp.socket.close()
    assert sees(heads[0], "127.0.0.77")
    assert f"X-Forwarded-Proto: {'https' if tls else 'http'}\r\n" in heads[0]


@pytest.mark.skipif(HAPROXY is None, reason="HAProxy is not installed (Debian's package haproxy)")
async def test_the_health_checks_of_a_real_haproxy_are_no_clients(lab, instance, tmp_path: Path) -> None:
    async with (
        lab.gateway(instance, **TRUSTING) as stage,
        haproxy(tmp_path, stage.port, "check inter 50ms send-proxy-v2 check-send-proxy") as (port, log),
    ):
        await lab.eventually(lambda: "Health check for server b/s succeeded" in log.read_text())
        peer = lab.Peer(await trio.open_tcp_stream("127.0.0.1", port))
        async with peer.stream:
            await peer.stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await peer.rest()).startswith(b"HTTP/1.1 426 ")
        assert stage.witness.opened == []
