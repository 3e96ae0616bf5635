"""Whose fault a session's end was: a service's failures count against it, and nothing else does."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
import trio

from agentmgr.core.outliers import OutlierPolicy
from agentmgr.core.routing import Backend, RoutingTable
from agentmgr.proxy import Gateway, GatewayLimits
from agentmgr.testing.agents import hosted

from .conftest import Lab, Peer, Stage, frame

LIMITS = GatewayLimits(stall_timeout_s=0.2, close_timeout_s=0.3)
MUCH = frame(2, b"x" * 60_000)
RESET = b"\x01\0\0\0\0\0\0\0"  # SO_LINGER of no seconds

Deed = Callable[[Stage, Peer], Awaitable[None]]


def sends(data: bytes) -> Deed:
    async def deed(stage: Stage, peer: Peer) -> None:
        await peer.stream.send_all(data)

    return deed


def leaves(data: bytes = b"", *, by_reset: bool = False) -> Deed:
    async def deed(stage: Stage, peer: Peer) -> None:
        await peer.stream.send_all(data or frame(1, b"x"))
        if by_reset:
            await trio.sleep(0.05)
            peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        await peer.stream.aclose()

    return deed


async def floods_and_does_not_read(stage: Stage, peer: Peer) -> None:
    with trio.move_on_after(5), suppress(trio.BrokenResourceError):
        while not stage.witness.closed:
            await peer.stream.send_all(MUCH)


async def is_disconnected(stage: Stage, peer: Peer) -> None:
    [connection] = stage.gateway.connections()
    stage.gateway.disconnect(connection.connection_id, code=1011, reason="by an operator")


async def does_nothing(stage: Stage, peer: Peer) -> None:
    await trio.lowlevel.checkpoint()


async def sees_the_gateway_end(stage: Stage, peer: Peer) -> None:
    await stage.shut_down()


CLIENTS: dict[str, tuple[Deed, dict[str, Any]]] = {
    "the client closes": (sends(frame(8, b"\x03\xe8")), {}),
    "the client closes without a code": (sends(frame(8)), {}),
    "the client vanishes": (leaves(), {}),
    "the client vanishes within a frame": (leaves(frame(1, b"x" * 50)[:20]), {}),
    "the client is reset": (leaves(by_reset=True), {}),
    "the client does not mask": (sends(frame(1, b"x", masked=False)), {}),
    "the client sends too much": (sends(frame(1, b"x" * 100)), {"max_message_bytes": 50}),
    "the client does not read": (floods_and_does_not_read, {}),
    "an operator ends it": (is_disconnected, {}),
    "nothing is said for too long": (does_nothing, {"idle_timeout": 0.1}),
    "the gateway ends": (sees_the_gateway_end, {}),
}


@pytest.mark.parametrize(("deed", "facts"), CLIENTS.values(), ids=CLIENTS.keys())
async def test_it_is_not_the_services(lab: Lab, deed: Deed, facts: dict[str, Any]) -> None:
    async def answers(stream: trio.SocketStream) -> None:
        peer = lab.Peer(stream)
        await peer.until(b"\r\n\r\n")
        await stream.send_all(lab.switching())
        async for data in stream:
            await stream.send_all(frame(2, data[:50_000], masked=False))

    backend = await lab.raw(answers, **facts)
    async with lab.gateway(backend, limits=LIMITS) as stage:
        await deed(stage, await stage.open())
        [end] = await stage.witness.ends()
        assert not end.failed, end


def waits_to_send(stage: Stage) -> bool:
    """Whether the instance has not read all that its client has sent."""
    return any(connection.tunnel.from_client.pending for connection in stage.gateway.live_connections)


async def test_an_instance_that_waits_for_its_client_to_read_is_not_at_fault(lab: Lab) -> None:
    async def answers_late(stream: trio.SocketStream) -> None:
        await lab.Peer(stream).until(b"\r\n\r\n")
        await stream.send_all(lab.switching())
        await lab.eventually(lambda: waits_to_send(stage))
        while True:
            await stream.send_all(frame(2, b"x" * 60_000, masked=False))

    async with lab.gateway(await lab.raw(answers_late), limits=LIMITS) as stage:
        await floods_and_does_not_read(stage, await stage.open())
        [end] = await stage.witness.ends()
        assert (end.code, end.reason, end.failed) == (1013, "the client does not read", False)


async def test_time_in_which_this_process_did_not_run_does_not_count(lab: Lab) -> None:
    """As after SIGSTOP, or on a machine that is too busy."""
    received = trio.Event()

    async def reads_on(stream: trio.SocketStream) -> None:
        await lab.Peer(stream).until(b"\r\n\r\n")
        await stream.send_all(lab.switching())
        await lab.eventually(lambda: waits_to_send(stage))
        time.sleep(3 * LIMITS.stall_timeout_s)  # noqa: ASYNC251  (it stops the whole process)
        async for _ in stream:
            received.set()

    async with lab.gateway(await lab.raw(reads_on), limits=LIMITS) as stage:
        peer = await stage.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(floods_and_does_not_read, stage, peer)
            await received.wait()
            await lab.eventually(lambda: not waits_to_send(stage))
            assert stage.witness.closed == []
            nursery.cancel_scope.cancel()


def closing(code: int | None) -> bytes:
    return frame(8, b"" if code is None else code.to_bytes(2, "big"), masked=False)


BACKENDS: dict[str, tuple[bytes | None, bool]] = {
    "it closes": (closing(1000), False),
    "it closes without a code": (closing(None), False),
    "it goes away": (closing(1001), False),
    "it restarts": (closing(1012), False),
    "it refuses by policy": (closing(1008), False),
    "it gives a code of its own": (closing(4001), False),
    "it says that the client broke the protocol": (closing(1002), False),
    "it says that the client's text is not UTF-8": (closing(1007), False),
    "it says that the client's message is too large": (closing(1009), False),
    "it fails": (closing(1011), True),
    "it ends without a word": (b"", True),
    "it ends within a frame": (b"\x81\x05he", True),
    "its frame is impossible": (b"\x82\x7f" + b"\xff" * 8, True),
    "it does not read": (None, True),
}


@pytest.mark.parametrize(("answer", "failed"), BACKENDS.values(), ids=BACKENDS.keys())
async def test_what_the_instance_did(lab: Lab, answer: bytes | None, failed: bool) -> None:
    async def does(stream: trio.SocketStream) -> None:
        peer = lab.Peer(stream)
        await peer.until(b"\r\n\r\n")
        await stream.send_all(lab.switching())
        await peer.exactly(1)
        if answer is None:
            await trio.sleep_forever()
        await stream.send_all(answer)

    backend = await lab.raw(does)
    async with lab.gateway(backend, limits=LIMITS) as stage:
        peer = await stage.open()
        await peer.stream.send_all(frame(1, b"hi"))
        if answer is None:
            await floods_and_does_not_read(stage, peer)
        [end] = await stage.witness.ends()
        assert end.failed is failed, end


async def test_a_hosted_agents_verdict_reaches_the_client(lab: Lab) -> None:
    async def echo(message: str) -> str:
        return message

    async with hosted(echo) as url:
        backend = Backend.at("127.0.0.1", int(url.rpartition(":")[2]))
        for data, code in ((frame(1, b"\xff\xfe"), 1007), (frame(3, b"x"), 1002)):
            async with lab.gateway(backend) as stage:
                peer = await stage.open()
                await peer.stream.send_all(data)
                assert await peer.close_code() == code
                [end] = await stage.witness.ends()
                assert (end.ended_by, end.code, end.failed) == ("backend", code, False)


async def test_a_shortage_of_the_gateway_itself_ejects_no_instance(nursery: trio.Nursery) -> None:
    async def dial(host: str, port: int) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        raise OSError(errno.EMFILE, "Too many open files")

    gateway = Gateway(
        RoutingTable((Backend.at("127.0.0.1", 1),)), dial=dial, outliers=OutlierPolicy(failures=1)
    )
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        await nursery.start(gateway.serve, [listener])
        peer = Peer(await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1]))
        async with peer.stream:
            await peer.stream.send_all(Lab.upgrade())
            assert b"502" in await peer.until(b"\r\n")
        assert not gateway.lobby._outliers.ejected(trio.current_time())
        nursery.cancel_scope.cancel()
