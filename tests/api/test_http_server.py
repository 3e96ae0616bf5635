"""What no client may do to the server, however it behaves: end it, hold up its end, or starve another."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from agentmgr.api.connection import HttpConnection
from agentmgr.api.server import ServerLimits, serve
from agentmgr.process.control_socket import control_listener
from agentmgr.process.listening import open_listeners

BIG = 32 * 2**20


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    """Answers `/` with a word, `/big` with more than any socket buffers, `/wait` never."""
    if scope["type"] != "http":
        raise RuntimeError("only HTTP here")
    if scope["path"] == "/wait":
        await trio.sleep_forever()
    if scope["path"] == "/crash":
        raise RuntimeError("a bug")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    body = b"x" * BIG if scope["path"] == "/big" else b"well"
    await send({"type": "http.response.body", "body": body, "more_body": False})


@asynccontextmanager
async def running(**limits: Any) -> AsyncIterator[tuple[int, trio.CancelScope]]:
    """A server's port, and what cancels it; leaving waits for its end."""
    listeners = await open_listeners("127.0.0.1", 0)
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(serve, lambda work, stopping: asgi, listeners, limits=ServerLimits(**limits))
        )
        yield port, nursery.cancel_scope
        nursery.cancel_scope.cancel()


async def ask(port: int, path: str = "/") -> bytes:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return b"".join([chunk async for chunk in stream])


async def gone(stream: trio.SocketStream) -> None:
    """Returns when the peer has closed, though nothing was read."""
    poll = select.poll()
    poll.register(stream.socket.fileno(), select.POLLHUP | select.POLLERR)
    await trio.to_thread.run_sync(poll.poll, 60_000, abandon_on_cancel=True)


def upgrade(trailing: bytes = b"") -> bytes:
    return (
        b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" + trailing
    )


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x00\xa5\x01",
        b"GET\r\n\r\n",
        upgrade(b"trailing bytes"),
        upgrade(b"\x81\x85\x00\x00\x00\x00hello" * 100),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200,
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nHTTP2-Settings: ?\r\n\r\n",
        b"GET /crash HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50,
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
    ],
    ids=["tls", "garbage", "ws-text", "ws-frames", "h2", "h2c", "crash", "pipelined", "chunk", "headers"],
)
async def test_no_input_ends_the_server(nonsense: bytes) -> None:
    async with running(grace=0.3) as (port, _):
        for leave in (False, True):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(nonsense)
            if leave:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset
            else:
                with trio.move_on_after(0.3):
                    await stream.receive_some(65536)
            await trio.aclose_forcefully(stream)
        assert b"well" in await ask(port)


async def test_a_client_that_does_not_read_holds_up_the_end_no_longer_than_the_grace() -> None:
    async with running(grace=0.5) as (port, scope):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await stream.receive_some(10)
        begin = trio.current_time()
        scope.cancel()
    assert trio.current_time() - begin < 60
    await trio.aclose_forcefully(stream)


async def test_a_request_in_work_is_cancelled_after_the_grace() -> None:
    with trio.fail_after(60):
        async with running(grace=0.3) as (port, scope):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"well" in await ask(port)
            scope.cancel()
    await trio.aclose_forcefully(stream)


async def test_an_idle_connection_does_not_hold_up_the_end() -> None:
    async with running(grace=600) as (port, scope):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await stream.receive_some(1000)
        begin = trio.current_time()
        scope.cancel()
    assert trio.current_time() - begin < 60
    await trio.aclose_forcefully(stream)


async def test_a_client_that_stops_reading_is_cut() -> None:
    async with running(stall=0.3) as (port, _):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n")
        # Being cut shows as a reset without anything being read.
        with trio.fail_after(60):
            await gone(stream)
        await trio.aclose_forcefully(stream)


async def test_a_head_that_never_ends_is_cut_at_the_deadline() -> None:
    async with running(idle=0.3) as (port, _):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with trio.open_nursery() as nursery:

            async def drip() -> None:
                try:
                    while True:
                        await stream.send_all(b"a")
                        await trio.sleep(0.02)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass

            nursery.start_soon(drip)
            with trio.fail_after(60):
                try:
                    while await stream.receive_some(100):
                        pass
                except trio.BrokenResourceError:
                    pass
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(stream)


async def test_the_end_of_the_process_is_not_taken_for_a_failed_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def interrupted(_: HttpConnection) -> None:
        raise BaseExceptionGroup("both at once", [KeyboardInterrupt(), OSError("a connection's own")])

    monkeypatch.setattr(HttpConnection, "run", interrupted)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with running() as (port, _), await trio.open_tcp_stream("127.0.0.1", port):
            with trio.fail_after(60):
                await trio.sleep_forever()
    assert caught.value.subgroup(KeyboardInterrupt) is not None
    assert caught.value.subgroup(OSError) is None


async def test_connections_over_the_limit_wait_their_turn() -> None:
    async with running(connections=1, idle=0.3) as (port, _):
        first = await trio.open_tcp_stream("127.0.0.1", port)
        await first.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await first.receive_some(1000)
        with trio.fail_after(60):
            assert b"well" in await ask(port)  # once the first one was idle for too long
        await trio.aclose_forcefully(first)


async def test_connections_over_the_limit_hold_no_descriptor() -> None:
    async with running(connections=2, grace=0.1) as (port, _):
        streams = []
        for _ in range(2):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert await stream.receive_some(1000)
            streams.append(stream)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            streams.append(await trio.open_tcp_stream("127.0.0.1", port))
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(os.listdir("/proc/self/fd")) == before + 5  # the clients' own ends
        for stream in streams:
            await trio.aclose_forcefully(stream)


async def test_who_has_closed_is_forgotten_at_once() -> None:
    async with running(idle=600, grace=0.1) as (port, _):
        assert b"well" in await ask(port)
        before = len(os.listdir("/proc/self/fd"))
        for sent in (b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            for _ in range(20):
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(sent)
                    if sent.endswith(b"\r\n\r\n"):
                        assert await stream.receive_some(1000)
            with trio.fail_after(60):
                while len(os.listdir("/proc/self/fd")) > before:
                    await trio.testing.wait_all_tasks_blocked(0.01)


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"])
async def test_who_asks_nothing_takes_no_place_from_those_who_ask(sent: bytes) -> None:
    async with running(connections=5, idle=600, grace=0.1) as (port, _), trio.open_nursery() as nursery:
        silent = []
        for _ in range(20):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(sent)
            silent.append(stream)
        with trio.fail_after(60):
            for _ in range(3):
                nursery.start_soon(ask, port)
                assert b"well" in await ask(port)
        for stream in silent:
            await trio.aclose_forcefully(stream)


async def test_of_a_burst_every_request_is_answered() -> None:
    async with running(connections=3, idle=600, grace=0.1) as (port, _), trio.open_nursery() as nursery:
        answered = []

        async def one() -> None:
            answered.append(b"well" in await ask(port))

        for _ in range(50):
            nursery.start_soon(one)
    assert answered == [True] * 50


async def test_requests_in_work_keep_their_places() -> None:
    async with running(connections=2, idle=600, grace=0.1) as (port, _):
        working = []
        for _ in range(2):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n")
            working.append(stream)
        await trio.testing.wait_all_tasks_blocked(0.1)
        with trio.move_on_after(0.5) as patience:
            await ask(port)
        assert patience.cancelled_caught, "it waits for one of them to end"
        for stream in working:
            with trio.move_on_after(0.1) as open_still:
                await stream.receive_some(1)
            assert open_still.cancelled_caught
        await working.pop().aclose()
        with trio.fail_after(60):
            assert b"well" in await ask(port)
        await trio.aclose_forcefully(working.pop())


@pytest.mark.parametrize(
    "sent",
    [
        upgrade(),
        upgrade(b"trailing bytes"),
        upgrade().replace(b"Version: 13", b"Version: 8"),
        upgrade().replace(b"HTTP/1.1", b"HTTP/1.0"),
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nHTTP2-Settings: A\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET ?x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n",
    ],
)
async def test_whatever_was_asked_an_open_connection_has_a_timeout(sent: bytes) -> None:
    async with running(idle=0.3) as (port, _):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(sent)
            answer = b""
            with trio.fail_after(60):
                while piece := await stream.receive_some(65536):
                    answer += piece
        assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))
        assert b"101" not in answer.split(b"\r\n")[0], "no upgrade is taken"


async def test_the_unix_socket_is_the_users_own_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with control_listener(path):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


async def test_a_dead_managers_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with control_listener(path):
        await (await trio.open_unix_socket(path)).aclose()


async def test_the_next_managers_socket_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with control_listener(path):
        path.rename(tmp_path / "moved")
        with socket.socket(socket.AF_UNIX) as successors:
            successors.bind(str(path))
    assert path.exists()
