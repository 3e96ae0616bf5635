"""A gateway on a real loopback socket, and instances behind it that do as they are told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
import trio
from attrs import define, field
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

from agentmgr.core.routing import Backend, RoutingTable
from agentmgr.models import Connection, SessionEnd
from agentmgr.proxy import Gateway, GatewayLimits

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
    closed: list[SessionEnd] = field(factory=list)
    _news: trio.Event = field(factory=trio.Event)

    def session_opened(self, connection: Connection) -> None:
        self.opened.append(connection)

    def session_closed(self, end: SessionEnd) -> None:
        self.closed.append(end)
        self._news.set()
        self._news = trio.Event()

    async def ends(self, count: int = 1) -> list[SessionEnd]:
        """The first `count` ends, once there are so many."""
        with trio.fail_after(5):
            while len(self.closed) < count:
                await self._news.wait()
        return self.closed[:count]


@define
class Stage:
    """A gateway that serves, the table it has, and what it saw."""

    gateway: Gateway
    port: int
    witness: Witness
    nursery: trio.Nursery

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)


class Lab:
    """What a test needs to put a gateway between clients and instances. Ports are the system's choice."""

    echo = staticmethod(echo)

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
        self, *backends: Backend, limits: GatewayLimits | None = None, table: Any = None, **options: Any
    ) -> AsyncIterator[Stage]:
        """A gateway to those instances, until the block ends. `table`: more fields of the routing table."""
        witness = Witness()
        gateway = Gateway(
            RoutingTable(backends=backends, **(table or {})),
            observer=witness,
            limits=limits or GatewayLimits(close_timeout_s=2),
            **options,
        )
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listeners[0], trio.open_nursery() as nursery:
            await nursery.start(gateway.serve, listeners)
            yield Stage(gateway, listeners[0].socket.getsockname()[1], witness, nursery)
            nursery.cancel_scope.cancel()


@pytest.fixture
def lab(nursery: trio.Nursery) -> Lab:
    return Lab(nursery)
