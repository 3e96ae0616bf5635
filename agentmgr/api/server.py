"""Serves an ASGI application with Hypercorn's HTTP, in an accept loop of our own.

`hypercorn.trio.serve` shares one nursery among all connections, without a boundary: a WebSocket upgrade with
trailing bytes ends the whole server (hypercorn#225), and a client that does not read delays its end for ever,
because its sends are shielded from cancellation. Here each connection has an error boundary, each send a
deadline, and in the end every socket is closed from below, which no shield keeps off.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio
from attrs import frozen
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendEvent, ConnectionState, Scope

from ..peer import peer_uid

if TYPE_CHECKING:
    from ..proxy.certificate import Certificate

log = logging.getLogger("agentmgr.api")

#: Of each request's `scope["state"]`: which user is at the other end, None where the kernel does not say.
PEER_UID = "agentmgr.peer_uid"


@frozen
class ServerLimits:
    """Durations in seconds."""

    grace: float = 3.0  #: from the wish to stop until every connection is closed
    idle: float = 15.0  #: between requests, and until a request's head is complete
    stall: float = 60.0  #: a client that takes no byte for so long is cut
    tls_handshake: float = 10.0
    connections: int = 500  #: at once; more wait in the kernel's queue


_DEFAULT_LIMITS = ServerLimits()


class _Paced(trio.abc.HalfCloseableStream):
    """A connection whose client must take what it asked for within a deadline.

    Hypercorn shields its sends, so a deadline has to be inside of them.
    """

    def __init__(self, stream: trio.SocketStream, stall_s: float) -> None:
        self.socket = stream.socket  # Hypercorn reads the addresses off it
        self._stream = stream
        self._stall_s = stall_s

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            # Per piece, so that a slow client is not taken for one that has stopped.
            piece, view = view[:65536], view[65536:]
            with trio.move_on_after(self._stall_s) as waiting:
                await self._stream.send_all(piece)
            if waiting.cancelled_caught:
                await _reset(self._stream)
                raise trio.BrokenResourceError("the client stopped reading")

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self._stream.aclose()


async def _reset(stream: trio.SocketStream) -> None:
    """Closes it, and drops what the client has not taken: it is not worth the kernel's memory."""
    with suppress(OSError):  # closed already
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(stream)


def _until_idle(app: ASGIFramework) -> ASGIFramework:
    """The same application, which lets Hypercorn finish what follows its last word.

    As part of sending that, Hypercorn tells Quart of the request's end, and Quart cancels the request's
    tasks, this very sending among them: Hypercorn would not get to watch the idle connection, which then has
    no timeout and keeps the server from ending.
    """

    async def undisturbed(
        scope: Scope, receive: ASGIReceiveCallable, send: Callable[[ASGISendEvent], Awaitable[None]]
    ) -> None:
        http1 = scope["type"] == "http" and scope["http_version"].startswith("1")

        async def send_undisturbed(event: ASGISendEvent) -> None:
            last = event["type"] == "http.response.body" and not event.get("more_body")
            # Bounded by the stall timeout of the stream; in HTTP/2 it would wait for the stream's own window.
            with trio.CancelScope(shield=last and http1):
                await send(event)

        await app(scope, receive, send_undisturbed)

    return undisturbed


class _Connections:
    """The open connections of one server."""

    def __init__(self, app: ASGIFramework, limits: ServerLimits, certificate: Certificate | None) -> None:
        self._app = ASGIWrapper(_until_idle(app))
        self._limits = limits
        self._certificate = certificate
        self._open: set[trio.SocketStream] = set()
        self._fewer = trio.lowlevel.ParkingLot()  # unparked at each connection's end
        self._context = WorkerContext(None)
        self._config = Config()
        self._config.keep_alive_timeout = limits.idle
        self._config.ssl_handshake_timeout = limits.tls_handshake
        self._config.errorlog = logging.getLogger("agentmgr.api.http")
        self._config.include_server_header = False

    async def accept(self, listener: trio.SocketListener) -> trio.SocketStream:
        """The next connection, once there is room for it: until then it costs this process nothing.

        Of several listeners each may have passed the wait: by so many, less one, the limit can be exceeded.
        """
        while len(self._open) >= self._limits.connections:
            await self._fewer.park()
        stream = await listener.accept()
        self._open.add(stream)
        return stream

    async def serve(self, stream: trio.SocketStream) -> None:
        try:
            await self._server(stream).run()
        except* Exception as failed:  # one client's connection, whatever it did, is not another's
            # What comes in one group with it goes on: a cancellation, or the end of the process.
            log.info("a connection ended badly: %r", failed.exceptions)
        finally:
            self._open.discard(stream)
            self._fewer.unpark_all()
            await trio.aclose_forcefully(stream)

    def _server(self, stream: trio.SocketStream) -> TCPServer:
        paced: Any = _Paced(stream, self._limits.stall)
        if self._certificate is not None:
            context = self._certificate.context()
            paced = trio.SSLStream(paced, context, server_side=True, https_compatible=True)
        state = ConnectionState({PEER_UID: peer_uid(stream.socket)})
        return TCPServer(self._app, self._config, self._context, state, paced)

    async def finish(self) -> None:
        """Lets each connection end after its present request; after the grace, cuts what is still open."""
        await self._context.terminated.set()
        with trio.move_on_after(self._limits.grace):
            while self._open:
                await self._fewer.park()
        for stream in tuple(self._open):
            await _reset(stream)


async def serve(
    make_app: Callable[[trio.Nursery, trio.Event], ASGIFramework],
    listeners: Sequence[trio.SocketListener],
    *,
    limits: ServerLimits = _DEFAULT_LIMITS,
    certificate: Certificate | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves until cancelled; then running requests have `limits.grace` seconds to end.

    `make_app` gets the nursery for work that outlives a request, and the event that is set when the server
    should end. The listeners are closed first.
    """
    stopping = trio.Event()
    async with trio.open_nursery() as outside:
        outside.start_soon(_set_when_cancelled, stopping)
        # A cancellation sets `stopping` and goes no further: what is open ends in order.
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as work, trio.open_nursery() as handlers:
                connections = _Connections(make_app(work, stopping), limits, certificate)
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        # It waits out EMFILE and the like by itself.
                        accepting.start_soon(_accept, connections, listener, handlers)
                    task_status.started()
                    await stopping.wait()
                    accepting.cancel_scope.cancel()
                await connections.finish()
                handlers.cancel_scope.cancel()
                work.cancel_scope.cancel()


@frozen
class _WithRoom(trio.abc.Listener[trio.SocketStream]):
    """A listener that accepts when the server has room."""

    connections: _Connections
    listener: trio.SocketListener

    async def accept(self) -> trio.SocketStream:
        return await self.connections.accept(self.listener)

    async def aclose(self) -> None:
        await self.listener.aclose()


async def _accept(connections: _Connections, listener: trio.SocketListener, handlers: trio.Nursery) -> None:
    await trio.serve_listeners(
        connections.serve, [_WithRoom(connections, listener)], handler_nursery=handlers
    )


async def _set_when_cancelled(event: trio.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        event.set()
