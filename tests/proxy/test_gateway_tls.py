"""wss: the same sessions, over TLS."""

from __future__ import annotations

import ssl
from functools import partial
from pathlib import Path

import pytest
import trio
from trio_websocket import open_websocket

from agentmgr.proxy import Certificate, GatewayLimits

trustme = pytest.importorskip("trustme")


@pytest.fixture
def authority():
    return trustme.CA()


@pytest.fixture
def files(authority, tmp_path: Path) -> tuple[Path, Path]:
    return write(authority, tmp_path)


def write(authority, folder: Path) -> tuple[Path, Path]:
    """A new certificate for localhost, and its key."""
    issued = authority.issue_cert("localhost", "127.0.0.1")
    chain, key = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return chain, key


def trusting(authority) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_a_session_over_tls(lab, authority, files: tuple[Path, Path]) -> None:
    async with lab.gateway(await lab.instance(), certificate=Certificate(*files)) as stage:
        async with open_websocket("localhost", stage.port, "/", use_ssl=trusting(authority)) as websocket:
            for size in (1, 100, 16_384, 500_000):
                await websocket.send_message("x" * size)
                assert await websocket.get_message() == "x" * size
        (end,) = await stage.witness.ends()
        assert (end.ended_by, end.code) == ("client", 1000)


async def test_many_small_messages_in_one_record_all_arrive(lab, authority, files: tuple[Path, Path]) -> None:
    """What OpenSSL has decrypted makes no socket readable: here that is most of what follows the head."""
    limits = GatewayLimits(head_bytes=1024, close_timeout_s=0.5)
    async with lab.gateway(await lab.instance(), certificate=Certificate(*files), limits=limits) as stage:
        stream = await trio.open_ssl_over_tcp_stream("localhost", stage.port, ssl_context=trusting(authority))
        await stream.send_all(lab.upgrade() + lab.frame(1, b"a") * 2000)
        peer = lab.Peer(stream)
        await peer.until(b"\r\n\r\n")
        assert await peer.exactly(3 * 2000) == lab.frame(1, b"a", masked=False) * 2000
        await stream.send_all(lab.frame(1, b"b") * 3000)
        assert await peer.exactly(3 * 3000) == lab.frame(1, b"b", masked=False) * 3000
        await trio.aclose_forcefully(stream)


async def test_backpressure_over_tls(lab, authority, files: tuple[Path, Path]) -> None:
    size = 8_000_000
    async with lab.gateway(await lab.instance(), certificate=Certificate(*files)) as stage:
        async with open_websocket(
            "localhost", stage.port, "/", use_ssl=trusting(authority), max_message_size=size
        ) as websocket:
            for _ in range(8):
                await websocket.send_message(b"x" * 1_000_000)
                await trio.sleep(0.01)
                assert len(await websocket.get_message()) == 1_000_000


async def test_the_gateways_closes_reach_a_client_over_tls(lab, authority, files: tuple[Path, Path]) -> None:
    async with lab.gateway(await lab.instance(), certificate=Certificate(*files)) as stage:
        stream = await trio.open_ssl_over_tcp_stream("localhost", stage.port, ssl_context=trusting(authority))
        async with stream:
            await stream.send_all(lab.upgrade())
            peer = lab.Peer(stream)
            await peer.until(b"\r\n\r\n")
            stage.gateway.disconnect(stage.gateway.connections()[0].connection_id, code=4003)
            assert await peer.exactly(4) == lab.frame(8, b"\x0f\xa3", masked=False)
            await stream.send_all(lab.frame(8, b"\x0f\xa3"))
            assert await peer.rest() == b""  # and no error: TLS was closed as it should be


async def test_the_instance_is_told_that_it_was_https(lab, authority, files: tuple[Path, Path]) -> None:
    heads = []

    async def handler(request) -> None:
        heads.extend(request.headers)
        await request.accept()

    async with lab.gateway(await lab.instance(handler=handler), certificate=Certificate(*files)) as stage:
        async with open_websocket("localhost", stage.port, "/", use_ssl=trusting(authority)):
            pass
    assert (b"x-forwarded-proto", b"https") in heads


@pytest.mark.parametrize("begin", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"])
async def test_a_stalled_or_false_tls_handshake_ends(
    lab, files: tuple[Path, Path], authority, begin: bytes
) -> None:
    limits = GatewayLimits(head_timeout_s=0.5, close_timeout_s=0.5)
    async with lab.gateway(await lab.instance(), certificate=Certificate(*files), limits=limits) as stage:
        peer = await stage.connect(begin)
        with trio.fail_after(60):
            await peer.rest()
        async with open_websocket("localhost", stage.port, "/", use_ssl=trusting(authority)):
            pass


async def test_a_changed_certificate_is_used_without_a_restart(
    lab, authority, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentmgr.proxy.certificate._CHECK_S", 0.0)

    async def serial() -> str:
        connect = partial(trio.open_ssl_over_tcp_stream, "localhost", stage.port)
        stream = await connect(ssl_context=trusting(authority))
        await stream.do_handshake()
        number = stream.getpeercert()["serialNumber"]
        await trio.aclose_forcefully(stream)
        return number

    async with lab.gateway(await lab.instance(), certificate=Certificate(*files)) as stage:
        first = await serial()
        assert await serial() == first
        write(authority, files[0].parent)
        second = await serial()
        assert second != first
        files[0].write_text("half written")
        assert await serial() == second


def test_files_that_are_unfit_are_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("nothing")
    with pytest.raises(OSError, match=r"PEM|SSL"):
        Certificate(tmp_path / "a.pem")
    with pytest.raises(FileNotFoundError):
        Certificate(tmp_path / "missing.pem")
