"""A gateway on a real loopback socket, and instances behind it that do as they are told."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
from attrs import define, field
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    WebSocketRequest,
    open_websocket_url,
    serve_websocket,
)

from agentmgr.core.routing import Backend, RoutingTable
from agentmgr.models import Connection, ConnectionEnd
from agentmgr.proxy import Certificate, Gateway, GatewayLimits

Handler = Callable[[WebSocketRequest], Awaitable[None]]


async def echo(request: WebSocketRequest) -> None:
    """Sends back what it gets."""
    websocket = await request.accept()
    try:
        while True:
            await websocket.send_message(await websocket.get_message())
    except ConnectionClosed:
        pass


@define
class Witness:
    """A session observer that remembers."""

    opened: list[Connection] = field(factory=list)
    resumed: list[Connection] = field(factory=list)
    closed: list[ConnectionEnd] = field(factory=list)
    refused: list[str] = field(factory=list)
    _news: trio.Event = field(factory=trio.Event)

    def connection_opened(self, connection: Connection) -> None:
        self.opened.append(connection)

    def connection_resumed(self, connection: Connection) -> None:
        self.resumed.append(connection)

    def connection_closed(self, end: ConnectionEnd) -> None:
        self.closed.append(end)
        self._news.set()
        self._news = trio.Event()

    def client_refused(self, code: str) -> None:
        self.refused.append(code)

    async def ends(self, count: int = 1) -> list[ConnectionEnd]:
        """The first `count` ends, once there are so many."""
        with trio.fail_after(60):
            while len(self.closed) < count:
                await self._news.wait()
        return self.closed[:count]


KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # what belongs to it, RFC 6455 section 1.3


def upgrade(path: str = "/", *lines: str, host: str = "gateway.test") -> bytes:
    """The head of a good upgrade, with more lines."""
    first = (f"GET {path} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade")
    rest = (f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13", *lines, "", "")
    return "\r\n".join((*first, *rest)).encode("latin-1")


def switching(*lines: str) -> bytes:
    """A good answer to it, with more lines."""
    first = ("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade")
    return "\r\n".join((*first, f"Sec-WebSocket-Accept: {ACCEPT}", *lines, "", "")).encode("latin-1")


def frame(opcode: int, payload: bytes = b"", *, masked: bool = True, fin: bool = True) -> bytes:
    """A short frame of any kind, right or wrong; the mask is zero, so the payload can be read."""
    length = len(payload)
    size = bytes([length]) if length < 126 else b"\x7e" + length.to_bytes(2, "big")
    size = bytes([size[0] | (0x80 if masked else 0)]) + size[1:]
    return bytes([opcode | (0x80 if fin else 0)]) + size + (bytes(4) if masked else b"") + payload


@define
class Peer:
    """One end of a connection, as bytes."""

    stream: trio.SocketStream
    received: bytes = b""

    async def until(self, mark: bytes) -> bytes:
        """Everything up to and with the mark; what follows it stays for later."""
        with trio.fail_after(60):
            while mark not in self.received:
                data = await self.stream.receive_some()
                assert data, f"the stream ended, with {self.received!r}"
                self.received += data
        found, mark, self.received = self.received.partition(mark)
        return found + mark

    async def exactly(self, count: int) -> bytes:
        with trio.fail_after(60):
            while len(self.received) < count:
                data = await self.stream.receive_some()
                assert data, f"the stream ended, with {self.received!r}"
                self.received += data
        found, self.received = self.received[:count], self.received[count:]
        return found

    async def rest(self) -> bytes:
        """Everything up to the end of the stream, however that comes."""
        with trio.fail_after(60), suppress(trio.BrokenResourceError):
            while data := await self.stream.receive_some():
                self.received += data
        found, self.received = self.received, b""
        return found

    async def close_code(self) -> int | None:
        """The code of the (unmasked) close frame that comes next, then the end of the stream."""
        rest = await self.rest()
        if not rest:
            return None
        assert rest[0] == 0x88, rest
        assert len(rest) == 2 + rest[1], rest
        return int.from_bytes(rest[2:4], "big")


@define
class Stage:
    """A gateway that serves, and what it saw."""

    gateway: Gateway
    port: int
    witness: Witness
    nursery: trio.Nursery
    peers: list[Peer] = field(factory=list)  #: closed when the gateway ends
    _serving: trio.CancelScope = field(factory=trio.CancelScope)
    _over: trio.Event = field(factory=trio.Event)

    async def serve(
        self,
        listeners: list[trio.SocketListener],
        certificate: Certificate | None,
        proxy_protocol: bool,
        task_status: trio.TaskStatus[None],
    ) -> None:
        with self._serving:
            await self.gateway.serve(
                listeners, certificate=certificate, proxy_protocol=proxy_protocol, task_status=task_status
            )
        self._over.set()

    async def shut_down(self) -> None:
        """Ends the gateway, as its owner would, and returns when it has ended."""
        self._serving.cancel()
        with trio.fail_after(60):
            await self._over.wait()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def connect(self, *data: bytes) -> Peer:
        peer = Peer(await trio.open_tcp_stream("127.0.0.1", self.port))
        self.peers.append(peer)
        for chunk in data:
            await peer.stream.send_all(chunk)
        return peer

    async def open(self, path: str = "/", *lines: str) -> Peer:
        """A client whose upgrade has been answered with 101."""
        peer = await self.connect(upgrade(path, *lines))
        answer = await peer.until(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        return peer

    async def refusal(self, *data: bytes) -> tuple[int, str, dict[str, str]]:
        """Status, stable code and headers of the answer to a request that is refused."""
        peer = await self.connect(*data)
        async with peer.stream:
            head, _, body = (await peer.rest()).partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        code = json.loads(body)["code"] if headers.get("content-type") == "application/json" else ""
        return int(status.split()[1]), code, headers


async def _after_the_greeting(get_message: Callable[[], Awaitable[str | bytes]]) -> str | bytes:
    message = await get_message()
    greets = isinstance(message, str) and '"event":"system.connected"' in message
    return await get_message() if greets else message


@asynccontextmanager
async def connected(url: str, greeting: bool = False, **options: Any) -> AsyncIterator[WebSocketConnection]:
    """trio-websocket leaves the socket of a connection open that its peer has reset.

    An agent greets a client that says nothing for a second, as on a busy machine; that is left out without
    `greeting`.
    """
    websocket = None
    try:
        async with open_websocket_url(url, **options) as websocket:
            if not greeting:
                websocket.get_message = partial(_after_the_greeting, websocket.get_message)
            try:
                yield websocket
            finally:
                await websocket.aclose()
    finally:
        if websocket is not None:
            await trio.aclose_forcefully(websocket._stream)


async def eventually(condition: Callable[[], object]) -> None:
    """Returns once it holds. For facts that nobody announces, such as the number of open descriptors."""
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.005)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Lab:
    """What a test needs to put a gateway between clients and instances. Ports are the system's choice."""

    echo = staticmethod(echo)
    upgrade = staticmethod(upgrade)
    switching = staticmethod(switching)
    frame = staticmethod(frame)
    eventually = staticmethod(eventually)
    open_descriptors = staticmethod(open_descriptors)
    Peer = Peer

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery

    async def instance(self, name: str = "echo", handler: Handler = echo, **more: Any) -> Backend:
        """A trio-websocket server."""
        server = await self.nursery.start(
            partial(serve_websocket, handler, "127.0.0.1", 0, None, handler_nursery=self.nursery)
        )
        return self.backend(server.port, name, **more)

    async def raw(
        self, handler: Callable[[trio.SocketStream], Awaitable[None]], name: str = "raw", **more: Any
    ) -> Backend:
        """A server of bytes, for backends that misbehave. It closes when the handler returns."""

        async def guarded(stream: trio.SocketStream) -> None:
            async with stream:
                with suppress(trio.BrokenResourceError):
                    await handler(stream)

        listeners = await self.nursery.start(partial(trio.serve_tcp, guarded, 0, host="127.0.0.1"))
        return self.backend(listeners[0].socket.getsockname()[1], name, **more)

    def backend(self, port: int, name: str = "echo", **more: Any) -> Backend:
        more.setdefault("instance_id", f"ins_{name}_{port}")
        return Backend(service_id=f"svc_{name}", service_name=name, host="127.0.0.1", port=port, **more)

    @asynccontextmanager
    async def gateway(
        self,
        *backends: Backend,
        limits: GatewayLimits | None = None,
        table: Any = None,
        certificate: Certificate | None = None,
        proxy_protocol: bool = False,
        **options: Any,
    ) -> AsyncIterator[Stage]:
        """A gateway to those instances, until the block ends. `table`: more fields of the routing table."""
        witness = Witness()
        gateway = Gateway(
            RoutingTable(backends=backends, **(table or {})),
            observer=witness,
            limits=limits or GatewayLimits(close_timeout_s=0.5),
            **options,
        )
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listeners[0], trio.open_nursery() as nursery:
            stage = Stage(gateway, listeners[0].socket.getsockname()[1], witness, nursery)
            await nursery.start(
                partial(stage.serve, listeners, certificate=certificate, proxy_protocol=proxy_protocol)
            )
            try:
                yield stage
            finally:
                nursery.cancel_scope.cancel()
                for peer in stage.peers:
                    peer.stream.socket.close()

    @asynccontextmanager
    async def neighbour(self, stage: Stage, path: str = "/") -> AsyncIterator[None]:
        """A healthy session that talks all the while, and must not notice what goes on in the block."""
        echoes = 0
        over = trio.Event()

        async def talk(task_status: trio.TaskStatus[None]) -> None:
            nonlocal echoes
            async with connected(stage.url + path) as websocket:
                while not over.is_set():
                    with trio.fail_after(60):
                        await websocket.send_message(f"still here {echoes}")
                        assert await websocket.get_message() == f"still here {echoes}"
                    echoes += 1
                    if echoes == 1:
                        task_status.started()
                    await trio.sleep(0.002)

        async with trio.open_nursery() as nursery:
            await nursery.start(talk)
            yield
            before = echoes
            await eventually(lambda: echoes >= before + 3)
            over.set()


@pytest.fixture
def lab(nursery: trio.Nursery) -> Lab:
    return Lab(nursery)
