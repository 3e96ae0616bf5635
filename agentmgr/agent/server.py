"""Serves one agent on one listener.

`trio_websocket.serve_websocket` would end with its first bad client. Here each connection has a nursery, a
boundary and deadlines of its own, and its request's head is read and judged before a WebSocket is made of it.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from urllib.parse import urlsplit

import h11
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

from ..boundary import Failure, contain, report
from ..core.proof import CONNECTION_HEADER, DRAIN_PATH, HEALTH_PATH, IDENTITY_HEADER
from ..core.refusal import Refusal, RefusalCode
from ..protocol import AGENT_FAILED, NORMAL, EndReason
from . import health
from .adapt import HostedAgent, RawAgent
from .client_link import ClientLink
from .door import Door, Headers, believed, value
from .drain import Drain
from .link_stream import LinkStream
from .message import Client
from .session_registry import SessionRegistry

logger = logging.getLogger("agentmgr.agent")

HANDSHAKE_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 2.0
MAX_HEAD_BYTES = 16 * 1024
MANY_WAITING = 64
"""Beyond so many whose requests have not come, other users of the machine are turned away as they connect:
else they could use up the usual limit of 1024 open files, and no gateway came through."""
_CONNECTION_ID = re.compile(r"con_[0-9a-f]{1,64}")
_KEY = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==")  # 16 bytes in base64


class AgentServer:
    """Takes connections for an agent; `sessions` outlive them."""

    def __init__(
        self,
        agent: HostedAgent,
        sessions: SessionRegistry,
        *,
        token: str = "",
        door: Door | None = None,
        max_message_bytes: int = 2**20,
    ) -> None:
        """`door`: who may connect; by default the holder of `token` and this user's own programs."""
        self._agent = agent
        self._sessions = sessions
        self._token = token
        self._door = door or Door(token)
        self._max_message_bytes = max_message_bytes
        self._accepting = trio.CancelScope()
        self._drain = Drain(sessions, can_tell=not isinstance(agent, RawAgent))
        self._closers: set[Callable[[], None]] = set()  # each ends one connection in good order
        self._going_away = False
        self._waiting = 0  # connections whose request has not come yet

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
        """Takes no more connections and ends the sessions; the close code asks clients to come back."""
        self._going_away = True
        self._accepting.cancel()
        self._sessions.end_all(EndReason.RESTART)
        for close in list(self._closers):
            close()

    async def _serve_connection(self, stream: trio.SocketStream) -> None:
        # The boundary of a connection: a client, however it behaves, ends its own connection at most.
        try:
            _detect_dead_peers(stream.socket)
            outcome = await contain(lambda: self._converse(stream))
            if isinstance(outcome, Failure):
                report("a connection failed", outcome.error, level=logging.DEBUG)
        finally:
            await trio.aclose_forcefully(stream)

    async def _converse(self, stream: trio.SocketStream) -> None:
        if self._waiting >= MANY_WAITING and self._door.keeps_out(stream.socket):
            return
        try:
            with trio.fail_after(HANDSHAKE_TIMEOUT_S), self._counted_as_waiting():
                request, rest = await self._next_upgrade(stream)
                if request is None:
                    return
                target = _target(request)
                is_probe = _is_probe(request)
                _judge(request)
                subject = target if is_probe else value(request, "Sec-WebSocket-Key")
                try:
                    gateway, stranger = self._door.admit(request, stream.socket, subject), False
                except Refusal:
                    if not is_probe:
                        raise
                    gateway, stranger = False, True
        except Refusal as refusal:
            with trio.move_on_after(CLOSE_TIMEOUT_S):
                # `detail` is the reason, for clients of the version before.
                body = json.dumps({**refusal.fields, "detail": refusal.reason})
                await stream.send_all(_response(refusal.status, body))
            return
        headers = believed(request, gateway=gateway)
        async with trio.open_nursery() as nursery:  # trio-websocket's reader lives here
            link_stream, websocket = await self._accept(nursery, stream, _head(request, headers), rest)
            if is_probe:
                await self._serve_probe(websocket, await self._report(target, stranger=stranger))
            else:
                client = _client_of(headers, stream, gateway=gateway)
                await self._serve_client(link_stream, websocket, client, _link_id(client))
            with trio.move_on_after(CLOSE_TIMEOUT_S):
                leaving = self._going_away or self._drain.on
                await websocket.aclose(*(self._drain.farewell if leaving else (NORMAL, None)))
            nursery.cancel_scope.cancel()

    async def _next_upgrade(self, stream: trio.SocketStream) -> tuple[h11.Request | None, bytes]:
        """The first request that is not a plain probe, and what came behind it; None where there is none.

        Plain probes are answered. One that asks for it keeps the connection: a gateway has the agent prove
        itself first, and then sends its client's request to the very process that did. Raises `Refusal`.
        """
        rest = b""
        while True:
            request, rest = await _read_head(stream, rest)
            if _wants_websocket(request):
                return request, rest
            if _path(request) == DRAIN_PATH:
                await stream.send_all(_response(200, await self._answer_manager(request, stream)))
                return None, b""
            if not _is_probe(request) or request.method != b"GET":
                raise Refusal(426, RefusalCode.UPGRADE_REQUIRED, "this is a WebSocket server")
            target, stranger = _target(request), False
            try:
                self._door.admit(request, stream.socket, target)
            except Refusal:
                stranger = True
            stays = value(request, "Connection").lower() == "keep-alive"
            await stream.send_all(_response(200, await self._report(target, stranger=stranger), stays=stays))
            if not stays:
                return None, b""

    async def _accept(
        self, nursery: trio.Nursery, stream: trio.SocketStream, head: bytes, rest: bytes
    ) -> tuple[LinkStream, WebSocketConnection]:
        with trio.fail_after(HANDSHAKE_TIMEOUT_S) as patience:
            # wsproto answers a bad handshake by itself and closes, and raises nothing.
            link_stream = LinkStream(stream, head, rest, on_close=patience.cancel)
            limit = self._max_message_bytes
            request = await wrap_server_stream(
                nursery, link_stream, max_message_size=4 * limit if limit else sys.maxsize
            )
            offered = [name for name in request.proposed_subprotocols if not name.startswith("bearer.")]
            websocket = await request.accept(subprotocol=offered[0] if offered else None)
            link_stream.accepted(lambda: websocket.closed)
        return link_stream, websocket

    async def _serve_client(
        self, link_stream: LinkStream, websocket: WebSocketConnection, client: Client, link_id: str
    ) -> None:
        if isinstance(self._agent, RawAgent):
            await self._serve_raw(self._agent, websocket)
            return
        link = ClientLink(
            link_stream,
            websocket,
            client,
            self._sessions,
            self._drain,
            link_id=link_id,
            max_message_bytes=self._max_message_bytes,
        )
        with self._closed_by(link.close), self._drain.counting(link):
            await link.run()

    async def _serve_raw(self, agent: RawAgent, websocket: WebSocketConnection) -> None:
        with trio.CancelScope() as scope, self._closed_by(scope.cancel):
            outcome = await contain(lambda: agent.serve(websocket))
            if isinstance(outcome, Failure) and not isinstance(outcome.error, ConnectionClosed):
                report("serve() failed", outcome.error)
                with trio.move_on_after(CLOSE_TIMEOUT_S):
                    await websocket.aclose(AGENT_FAILED, "the agent failed")

    async def _serve_probe(self, websocket: WebSocketConnection, report: str) -> None:
        with trio.CancelScope() as scope, self._closed_by(scope.cancel):
            await websocket.send_message(report)
            while True:  # trio-websocket answers pings only while its messages are taken
                await websocket.get_message()

    @contextmanager
    def _counted_as_waiting(self) -> Iterator[None]:
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    @contextmanager
    def _closed_by(self, close: Callable[[], None]) -> Iterator[None]:
        self._closers.add(close)
        try:
            if self._going_away:
                close()
            yield
        finally:
            self._closers.discard(close)

    async def _answer_manager(self, request: h11.Request, stream: trio.SocketStream) -> str:
        """Its drain: begins it, and says how far it is. Raises `Refusal`."""
        target = _target(request)
        if not self._door.admit(request, stream.socket, target):
            raise Refusal(403, RefusalCode.FORBIDDEN, "only the manager of this agent may ask for that")
        try:
            return await self._drain.answer(target, self._token)
        except ValueError as error:
            raise Refusal(400, RefusalCode.BAD_REQUEST, f"no manager asks for that: {error}") from None

    async def _report(self, target: str, *, stranger: bool) -> str:
        return await health.report(
            self._agent, self._sessions, token=self._token, target=target, stranger=stranger
        )


async def _read_head(stream: trio.SocketStream, received: bytes) -> tuple[h11.Request, bytes]:
    """A request's head, and what came behind it; `received` are its first bytes. Raises `Refusal`."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    while True:
        data, received = received or await stream.receive_some(4096), b""
        if not data:
            raise Refusal(400, RefusalCode.BAD_REQUEST, "the request ended before it was complete")
        try:
            parser.receive_data(data)
            event = parser.next_event()
        except h11.RemoteProtocolError as error:
            raise Refusal(error.error_status_hint, RefusalCode.BAD_REQUEST, str(error)) from None
        if isinstance(event, h11.Request):
            return event, parser.trailing_data[0]


def _head(request: h11.Request, headers: Headers) -> bytes:
    """The same request with these headers."""
    lines = [b"GET " + request.target + b" HTTP/1.1", *(b": ".join(header) for header in headers)]
    return b"\r\n".join([*lines, b"", b""])


def _target(request: h11.Request) -> str:
    return request.target.decode("ascii", "replace")


def _path(request: h11.Request) -> str:
    try:
        return urlsplit(_target(request)).path
    except ValueError:  # as of `//[`
        return ""


def _is_probe(request: h11.Request) -> bool:
    return _path(request) == HEALTH_PATH


def _wants_websocket(request: h11.Request) -> bool:
    return any(name == b"upgrade" and value.lower() == b"websocket" for name, value in request.headers)


def _judge(request: h11.Request) -> None:
    """What RFC 6455, section 4.2.1, asks of a client and wsproto does not check. Raises `Refusal`."""
    headers = [(name, value.strip()) for name, value in request.headers]
    if request.method != b"GET" or request.http_version != b"1.1":
        raise Refusal(400, RefusalCode.BAD_REQUEST, "a WebSocket begins with GET and HTTP/1.1")
    if any(name in (b"content-length", b"transfer-encoding") for name, _ in headers):
        raise Refusal(400, RefusalCode.BAD_REQUEST, "an upgrade has no body")
    if [value for name, value in headers if name == b"sec-websocket-version"] != [b"13"]:
        reason = "only version 13 of the WebSocket protocol is spoken here"
        raise Refusal(426, RefusalCode.UPGRADE_REQUIRED, reason)
    keys = [value for name, value in headers if name == b"sec-websocket-key"]
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise Refusal(400, RefusalCode.BAD_REQUEST, "Sec-WebSocket-Key is missing or malformed")


def _response(status: int, body: str, *, stays: bool = False) -> bytes:
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body.encode())}\r\n"
        f"Connection: {'keep-alive' if stays else 'close'}\r\n"
        + ("Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" if status == 426 else "")
    )
    return f"{head}\r\n{body}".encode()


def _client_of(headers: Headers, stream: trio.SocketStream, *, gateway: bool) -> Client:
    by_name = {name.decode("ascii").lower(): text.decode("latin-1") for name, text in headers}
    peer = stream.socket.getpeername()
    address = peer[0] if isinstance(peer, tuple) else None
    if gateway and (forwarded := by_name.get("x-forwarded-for")):
        address = forwarded.rpartition(",")[2].strip()
    return Client(address, by_name.get(IDENTITY_HEADER.lower()), by_name)


def _link_id(client: Client) -> str:
    """The gateway's id of the connection, so that a client knows the one that `agentmgr disconnect` takes."""
    connection_id = client.headers.get(CONNECTION_HEADER.lower(), "")
    return connection_id if _CONNECTION_ID.fullmatch(connection_id) else f"lnk_{secrets.token_hex(8)}"


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
