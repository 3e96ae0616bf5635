"""Serves one agent on one listener.

`trio_websocket.serve_websocket` would end with its first bad client. Here each connection has a nursery, a
boundary and deadlines of its own, and its request's head is read and judged before a WebSocket is made of it.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import h11
import trio
from attrs import frozen
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from ..core.proof import HEALTH_PATH
from . import health
from .adapt import HostedAgent, RawAgent
from .boundary import Failure, contain
from .connection import Connection
from .message import Client
from .sessions import Sessions
from .wire import Wire

logger = logging.getLogger("agentmgr.agent")

HANDSHAKE_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0
MAX_HEAD_BYTES = 16 * 1024
IDENTITY_HEADER = "x-agentmgr-identity"
"""Set by the gateway for a client that it has authenticated, and stripped from what clients send."""
_KEY = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==")  # 16 bytes in base64
COME_BACK = 1012
GOING_AWAY = "the agent restarts; come back"


@frozen
class Refusal(Exception):
    """A request that does not become a WebSocket."""

    status: int
    code: str
    reason: str


class AgentServer:
    """Takes connections for an agent; `sessions` outlive them."""

    def __init__(
        self, agent: HostedAgent, sessions: Sessions, *, token: str = "", max_message_bytes: int = 2**20
    ) -> None:
        self._agent = agent
        self._sessions = sessions
        self._token = token
        self._max_message_bytes = max_message_bytes
        self._accepting = trio.CancelScope()
        self._closers: set[Callable[[], None]] = set()  # each ends one connection in good order
        self._going_away = False

    async def serve(
        self,
        listener: trio.abc.Listener[trio.SocketStream],
        *,
        task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Until cancelled, or until `go_away` was called and every client is gone."""
        async with trio.open_nursery() as nursery:
            with self._accepting:
                await trio.serve_listeners(
                    self._serve_connection, [listener], handler_nursery=nursery, task_status=task_status
                )

    def go_away(self) -> None:
        """Takes no more connections and ends the sessions; who is connected is told to come back."""
        self._going_away = True
        self._accepting.cancel()
        self._sessions.end_all("restart")
        for close in list(self._closers):
            close()

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        # The boundary of a connection: a client, however it behaves, ends its own connection at most.
        try:
            _detect_dead_peers(stream.socket)
            outcome = await contain(lambda: self._converse(stream))
            if isinstance(outcome, Failure):
                logger.debug("a connection failed", exc_info=outcome.error)
        finally:
            await trio.aclose_forcefully(stream)

    async def _converse(self, stream: trio.SocketStream) -> None:
        try:
            with trio.fail_after(HANDSHAKE_TIMEOUT_S):
                head, request = await _read_head(stream)
                target = request.target.decode("ascii", "replace")
                is_probe = urlsplit(target).path == HEALTH_PATH
                if not _wants_websocket(request):
                    if is_probe and request.method == b"GET":
                        await stream.send_all(_response(200, await self._report(target)))
                        return
                    raise Refusal(426, "upgrade_required", "this is a WebSocket server")
                _judge(request)
        except Refusal as refusal:
            with trio.move_on_after(CLOSE_TIMEOUT_S):
                body = json.dumps({"code": refusal.code, "detail": refusal.reason})
                await stream.send_all(_response(refusal.status, body))
            return
        async with trio.open_nursery() as nursery:  # trio-websocket's reader lives here
            wire, websocket = await self._accept(nursery, stream, head)
            if is_probe:
                await self._serve_probe(websocket, target)
            else:
                await self._serve_client(wire, websocket, _client_of(request, stream))
            with trio.move_on_after(CLOSE_TIMEOUT_S):
                await websocket.aclose(*((COME_BACK, GOING_AWAY) if self._going_away else (1000, None)))
            nursery.cancel_scope.cancel()

    async def _accept(
        self, nursery: trio.Nursery, stream: trio.SocketStream, head: bytes
    ) -> tuple[Wire, WebSocketConnection]:
        with trio.fail_after(HANDSHAKE_TIMEOUT_S) as patience:
            # wsproto answers a bad handshake by itself and closes; nobody would tell us.
            wire = Wire(stream, head, on_close=patience.cancel)
            limit = self._max_message_bytes
            request = await wrap_server_stream(
                nursery, wire, max_message_size=4 * limit if limit else sys.maxsize
            )
            offered = [name for name in request.proposed_subprotocols if not name.startswith("bearer.")]
            websocket = await request.accept(subprotocol=offered[0] if offered else None)
            wire.on_close = _nothing
        return wire, websocket

    async def _serve_client(self, wire: Wire, websocket: WebSocketConnection, client: Client) -> None:
        if isinstance(self._agent, RawAgent):
            await self._serve_raw(self._agent, websocket)
            return
        connection = Connection(
            wire, websocket, client, self._sessions, max_message_bytes=self._max_message_bytes
        )
        with self._closed_by(connection.close):
            await connection.run()

    async def _serve_raw(self, agent: RawAgent, websocket: WebSocketConnection) -> None:
        with trio.CancelScope() as scope, self._closed_by(scope.cancel):
            outcome = await contain(lambda: agent.serve(websocket))
            if isinstance(outcome, Failure) and not isinstance(outcome.error, ConnectionClosed):
                logger.error("serve() failed", exc_info=outcome.error)
                with trio.move_on_after(CLOSE_TIMEOUT_S):
                    await websocket.aclose(1011, "the agent failed")

    async def _serve_probe(self, websocket: WebSocketConnection, target: str) -> None:
        with trio.CancelScope() as scope, self._closed_by(scope.cancel):
            await websocket.send_message(await self._report(target))
            while True:  # trio-websocket answers pings while somebody takes its messages
                await websocket.get_message()

    @contextmanager
    def _closed_by(self, close: Callable[[], None]) -> Iterator[None]:
        self._closers.add(close)
        try:
            if self._going_away:
                close()
            yield
        finally:
            self._closers.discard(close)

    async def _report(self, target: str) -> str:
        return await health.report(self._agent, self._sessions, token=self._token, target=target)


async def _read_head(stream: trio.SocketStream) -> tuple[bytes, h11.Request]:
    """All bytes so far, which begin with a request's head, and that request. Raises `Refusal`."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    received = b""
    while True:
        data = await stream.receive_some(4096)
        if not data:
            raise Refusal(400, "bad_request", "the request ended before it was complete")
        received += data
        try:
            parser.receive_data(data)
            event = parser.next_event()
        except h11.RemoteProtocolError as error:
            raise Refusal(error.error_status_hint, "bad_request", str(error)) from None
        if isinstance(event, h11.Request):
            return received, event


def _wants_websocket(request: h11.Request) -> bool:
    return any(name == b"upgrade" and value.lower() == b"websocket" for name, value in request.headers)


def _judge(request: h11.Request) -> None:
    """What RFC 6455, section 4.2.1, asks of a client and wsproto does not check. Raises `Refusal`."""
    headers = [(name, value.strip()) for name, value in request.headers]
    if request.method != b"GET" or request.http_version != b"1.1":
        raise Refusal(400, "bad_request", "a WebSocket begins with GET and HTTP/1.1")
    if any(name in (b"content-length", b"transfer-encoding") for name, _ in headers):
        raise Refusal(400, "bad_request", "an upgrade has no body")
    if [value for name, value in headers if name == b"sec-websocket-version"] != [b"13"]:
        raise Refusal(426, "upgrade_required", "only version 13 of the WebSocket protocol is spoken here")
    keys = [value for name, value in headers if name == b"sec-websocket-key"]
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise Refusal(400, "bad_request", "Sec-WebSocket-Key is missing or malformed")


def _response(status: int, body: str) -> bytes:
    reason = {200: "OK", 400: "Bad Request", 426: "Upgrade Required", 431: "Request Header Fields Too Large"}
    head = (
        f"HTTP/1.1 {status} {reason.get(status, 'Error')}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body.encode())}\r\nConnection: close\r\n"
        + ("Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" if status == 426 else "")
    )
    return f"{head}\r\n{body}".encode()


def _client_of(request: h11.Request, stream: trio.SocketStream) -> Client:
    headers = {name.decode("ascii"): value.decode("latin-1") for name, value in request.headers}
    peer = stream.socket.getpeername()
    address = peer[0] if isinstance(peer, tuple) else None
    forwarded = headers.get("x-forwarded-for")
    if forwarded and address in ("127.0.0.1", "::1"):  # the gateway; it strips what clients claim
        address = forwarded.rpartition(",")[2].strip()
    return Client(address, headers.get(IDENTITY_HEADER), headers)


def _detect_dead_peers(sock: trio.socket.SocketType) -> None:
    """Notices a pulled cable within about a minute, also when there is nothing to send."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)


def _nothing() -> None:
    """The handshake is done: a close is no news."""
