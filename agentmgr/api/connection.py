"""One connection of the API: HTTP/1.1, by Hypercorn's protocol over h11, on a trio stream.

Hypercorn's own driver keeps a connection that its client has closed for the whole keep-alive timeout. It also
takes every upgrade, to WebSocket and to HTTP/2: the API has no use for either, and an upgrade that goes wrong
leaves a connection without any timeout. So the driver is ours, and an `Upgrade` is not taken (RFC 9110, 7.8).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import parse_socket_addr

from ..process.peer import peer_uid

#: Of each request's `scope["state"]`: which user is at the other end, None where the kernel does not say.
PEER_UID = "agentmgr.peer_uid"

_RECEIVE_BYTES = 2**16

Transport = trio.abc.HalfCloseableStream | trio.SSLStream[trio.abc.HalfCloseableStream]


class HttpConnection:
    """Serves one client: `run` returns when the connection is closed, by whichever side."""

    def __init__(
        self,
        sock: trio.socket.SocketType,
        transport: Transport,
        *,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        waits: Callable[[bool], None],
        gone: Callable[[], None],
    ) -> None:
        """`transport` is what goes over `sock`. `waits` gets False when a request's head is complete, True
        when the request is answered and the connection waits for the next one. `gone` is called when the
        client has closed; the application may still be busy with its request.
        """
        self._socket = sock
        self._transport = transport
        self._app = app
        self._config = config
        self._context = context
        self._waits = waits
        self._gone = gone
        self._sending = trio.Lock()

    async def run(self) -> None:
        """Does the TLS handshake, where there is one, and serves requests until the connection ends."""
        tls = isinstance(self._transport, trio.SSLStream)
        if isinstance(self._transport, trio.SSLStream):
            try:
                await self._transport.do_handshake()
            except trio.BrokenResourceError:
                return
        try:
            addresses = self._socket.getpeername(), self._socket.getsockname()
        except OSError:  # the client has gone already
            return
        client, server = (parse_socket_addr(self._socket.family, address) for address in addresses)
        async with TaskGroup() as tasks:
            self._protocol = _Http1(
                self._app,
                self._config,
                self._context,
                tasks,
                ConnectionState({}),
                tls,
                client,
                server,
                self._send,
            )
            self._protocol.asked_over = self._socket
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while data := await self._transport.receive_some(_RECEIVE_BYTES):
                    await self._protocol.handle(RawData(bytes(data)))
            self._gone()
            await self._protocol.handle(Closed())  # the application hears of it, and ends the request

    async def _send(self, event: Event) -> None:
        match event:
            case RawData(data):
                try:
                    # Shielded: after half of a head or chunk, nothing that follows could be understood.
                    async with self._sending:
                        with trio.CancelScope(shield=True):
                            await self._transport.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                    await self._protocol.handle(Closed())
            case Closed():
                await self._close()
                await self._protocol.handle(Closed())
            case Updated(idle):
                self._waits(idle)

    async def _close(self) -> None:
        if not isinstance(self._transport, trio.SSLStream):
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                await self._transport.send_eof()
        await self._transport.aclose()


class _Http1(H11Protocol):
    """Hypercorn's protocol without its upgrades; each request is accompanied by its user's id."""

    asked_over: trio.socket.SocketType

    async def _check_protocol(self, event: h11.Request) -> None:
        """Takes no upgrade to HTTP/2."""

    async def _create_stream(self, request: h11.Request) -> None:
        if PEER_UID not in self.connection_state:  # asked once, and not for those who never ask anything
            self.connection_state[PEER_UID] = peer_uid(self.asked_over)
        if not _can_be_routed(request.target):
            await self._send_error_response(400)
            await self.send(Closed())
            return
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
        await super()._create_stream(
            h11.Request(
                method=request.method,
                target=request.target,
                headers=headers,
                http_version=request.http_version,
            )
        )


def _can_be_routed(target: bytes) -> bool:
    """Whether it has a path that Quart can find: it takes the absolute form apart, and fails for others."""
    path = unquote(target.partition(b"?")[0].decode("ascii"))
    if path.startswith("/"):
        return True
    try:
        urlsplit(path)
    except ValueError:
        return False
    return bool(path)


class Paced(trio.abc.HalfCloseableStream):
    """A stream whose peer must take what it asked for within a deadline.

    Sends are shielded from cancellation, so a deadline has to be inside of them.
    """

    def __init__(self, stream: trio.SocketStream, stall_s: float) -> None:
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
                reset(self._stream)
                raise trio.BrokenResourceError("the client stopped reading")

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def aclose(self) -> None:
        await self._stream.aclose()


def reset(stream: trio.SocketStream) -> None:
    """Closes it, and drops what the client has not taken: it is not worth the kernel's memory."""
    with suppress(OSError):  # closed already
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


def wrapped(stream: trio.SocketStream, stall_s: float, context: Any) -> Transport:
    """What HTTP is spoken over: the stream, with TLS inside where `context` is not None."""
    paced = Paced(stream, stall_s)
    if context is None:
        return paced
    return trio.SSLStream(paced, context, server_side=True, https_compatible=True)
