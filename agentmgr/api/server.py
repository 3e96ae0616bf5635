"""Serves an ASGI application with Hypercorn's HTTP, in an accept loop of our own.

`hypercorn.trio.serve` shares one nursery among all connections, without a boundary: a WebSocket upgrade with
trailing bytes ends the whole server (hypercorn#225), and a client that does not read delays its end for ever,
because its sends are shielded from cancellation. Here each connection has an error boundary, each send a
deadline, and in the end every socket is closed from below, which no shield keeps off. A connection that its
client has closed is gone at once, and one that asks nothing makes room for those who do.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import trio
from attrs import frozen
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendEvent, Scope
from werkzeug.exceptions import HTTPException

from ..errors import leaves
from .connection import HttpConnection, reset, wrapped
from .faults import Faults

if TYPE_CHECKING:
    from ..proxy.certificate import Certificate


@frozen
class ServerLimits:
    """Durations in seconds."""

    grace: float = 3.0  #: from the wish to stop until every connection is closed
    idle: float = 15.0  #: between requests, and until a request's head is complete, TLS handshake included
    spared: float = 0.5  #: who asks nothing for so long makes room for others, when there is none
    stall: float = 60.0  #: a client that takes no byte for so long is cut
    connections: int = 500  #: at once; more take the place of those that ask nothing, or wait in the kernel


_DEFAULT_LIMITS = ServerLimits()


def _until_idle(app: ASGIFramework) -> ASGIFramework:
    """The same application, which lets Hypercorn finish what follows its last word.

    As part of sending that, Hypercorn tells Quart of the request's end, and Quart cancels the request's
    tasks, this very sending among them: it would not be known that the connection waits for its next request.
    """

    async def undisturbed(
        scope: Scope, receive: ASGIReceiveCallable, send: Callable[[ASGISendEvent], Awaitable[None]]
    ) -> None:
        async def send_undisturbed(event: ASGISendEvent) -> None:
            last = event["type"] == "http.response.body" and not event.get("more_body")
            with trio.CancelScope(shield=last):  # bounded by the stall timeout of the stream
                await send(event)

        await app(scope, receive, send_undisturbed)

    return undisturbed


def _bounded(app: ASGIFramework, faults: Faults) -> ASGIFramework:
    """The same application, whose errors go to the log by way of `faults` and not by way of Hypercorn."""

    async def reporting(
        scope: Scope, receive: ASGIReceiveCallable, send: Callable[[ASGISendEvent], Awaitable[None]]
    ) -> None:
        begun = False

        async def noting(event: ASGISendEvent) -> None:
            nonlocal begun
            begun = True
            await send(event)

        try:
            await app(scope, receive, noting)
        except* Exception as failed:
            faults.report(failed)
            refusal = next((e for e in leaves(failed) if isinstance(e, HTTPException)), None)
            if (
                refusal is not None and not begun
            ):  # such as a `Host` that cannot be one; else Hypercorn says 500
                status = refusal.code or 400
                await send({"type": "http.response.start", "status": status, "headers": []})
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    return reporting


class _Connections:
    """The open connections of one server."""

    def __init__(self, app: ASGIFramework, limits: ServerLimits, certificate: Certificate | None) -> None:
        self._faults = Faults()
        self._app = ASGIWrapper(_until_idle(_bounded(app, self._faults)))
        self._limits = limits
        self._certificate = certificate
        self._open: set[trio.SocketStream] = set()
        self._waiting: dict[trio.SocketStream, float] = {}  # for a request, since when; the longest first
        self._changed = trio.lowlevel.ParkingLot()  # unparked when one ends, or waits for a request
        self._context = WorkerContext(None)
        self._config = Config()
        self._config.errorlog = logging.getLogger("agentmgr.api.http")
        self._config.include_server_header = False

    async def accept(self, listener: trio.SocketListener) -> trio.SocketStream:
        """The next connection, once there is room for it: until then it costs this process nothing.

        Of several listeners each may have found the last place: by so many, less one, the limit can be
        exceeded.
        """
        await trio.lowlevel.wait_readable(listener.socket)
        await self._make_room()
        stream = await listener.accept()
        self._open.add(stream)
        self._waiting[stream] = trio.current_time()
        return stream

    async def _make_room(self) -> None:
        """At the cost of who has waited longest: half a request, or none, keeps no one out who asks."""
        while len(self._open) >= self._limits.connections:
            oldest = next(iter(self._waiting), None)
            spared_until = math.inf if oldest is None else self._waiting[oldest] + self._limits.spared
            if oldest is not None and trio.current_time() >= spared_until:
                self._drop(oldest)
            else:
                with trio.move_on_at(spared_until):
                    await self._changed.park()

    async def serve(self, stream: trio.SocketStream) -> None:
        certificate = self._certificate
        connection = HttpConnection(
            stream.socket,
            wrapped(stream, self._limits.stall, None if certificate is None else certificate.context()),
            app=self._app,
            config=self._config,
            context=self._context,
            waits=partial(self._waits, stream),
            gone=partial(self._drop, stream),
        )
        try:
            await connection.run()
        except* Exception as failed:  # one client's connection, whatever it did, is not another's
            # What comes in one group with it goes on: a cancellation, or the end of the process.
            self._faults.report(failed)
        finally:
            self._drop(stream)

    def _waits(self, stream: trio.SocketStream, waits: bool) -> None:
        self._waiting.pop(stream, None)
        if waits and self._context.terminated.is_set():
            self._drop(stream)
        elif waits and stream in self._open:
            self._waiting[stream] = trio.current_time()
            self._changed.unpark_all()

    def _drop(self, stream: trio.SocketStream) -> None:
        """Closes it; its task sees that."""
        self._waiting.pop(stream, None)
        self._open.discard(stream)
        self._changed.unpark_all()
        stream.socket.close()

    async def drop_idle(self) -> None:
        """Closes connections that have waited for a request for too long; until cancelled."""
        while True:
            first = next(iter(self._waiting.values()), trio.current_time())
            await trio.sleep_until(first + self._limits.idle)
            overdue = trio.current_time() - self._limits.idle
            for stream in [stream for stream, since in self._waiting.items() if since <= overdue]:
                self._drop(stream)

    async def finish(self) -> None:
        """Lets each connection end after its present request; after the grace, cuts what is still open."""
        await self._context.terminated.set()
        for stream in tuple(self._waiting):
            self._drop(stream)
        with trio.move_on_after(self._limits.grace):
            while self._open:
                await self._changed.park()
        for stream in tuple(self._open):
            reset(stream)
        self._faults.flush()


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
                    accepting.start_soon(connections.drop_idle)
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
