"""WebSocket requests of the application's own server, handed to the gateway (`Gateway.relay`).

Each becomes a client over a socket pair, whose other end the gateway serves as it serves any client
(`Intake.let_in`): tokens, quotas, rules, seats, queueing, resuming and statistics have no second code path.
Its messages are taken from the application's server whole, and given to it whole: that server parses them.
"""

from __future__ import annotations

import os
import socket
from base64 import b64encode
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, Protocol
from urllib.parse import quote

import trio
from trio_websocket import ConnectionClosed, Endpoint, WebSocketConnection, WebSocketRequest

from ..protocol import FAILED, GOING_AWAY, NORMAL
from ..websocket.frames import CLOSE, PING, PONG, SENDABLE, TEXT_MESSAGE, FrameViolation, close_frame
from ..websocket.head import BadResponse, Fields, ResponseHead, parse_response, upgrade_request
from ..websocket.messages import MessageReader, masked_frame, masked_pieces
from ..websocket.refusal import Refusal, RefusalCode
from ..websocket.sockets import Wire
from .forwarded import Peer
from .intake import Intake

_CHUNK_BYTES = 64 * 1024
_ANSWER_BYTES = 256 * 1024  # of a refusal: the gateway passes on 64 KiB of a service's own, and its head
_MESSAGE_BYTES = 64 * 2**20
_TEXT, _BINARY_MESSAGE = 0x1, b"\x82"
_LOST = 1006  # of a connection that was lost
_OF_THE_HANDSHAKE = ("connection", "content-length", "expect", "remote-addr", "sec-websocket-", "upgrade")
"""How the names of those headers begin that are between the client and the application's server."""


class Left(Exception):
    """The client has closed its connection, or lost it: without a code."""

    def __init__(self, code: int | None, reason: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Guest(Protocol):
    """A client that another WebSocket server has in hand; `Left` is raised where it has gone."""

    target: str
    headers: Fields
    subprotocols: tuple[str, ...]
    peer: Peer

    async def accept(self, subprotocol: str | None, headers: Fields) -> None: ...
    async def reject(self, status: int, headers: Fields, body: bytes) -> None: ...
    async def receive(self) -> str | bytes: ...
    async def send(self, message: str | bytes) -> None: ...
    async def close(self, code: int, reason: str) -> None: ...


def guest_of(request: Any) -> Guest:
    """Raises `TypeError` for what is neither of the two requests that are known here."""
    if isinstance(request, WebSocketRequest):
        return _OfTrioWebSocket(request)
    if isinstance(getattr(request, "scope", None), dict) and hasattr(request, "accept"):
        return _OfQuart(request)
    raise TypeError(f"relay takes a WebSocketRequest of trio-websocket or Quart's websocket, not {request!r}")


async def relay(intake: Intake, guest: Guest, target: str | None) -> None:
    """Serves it until its connection ends, or until it is refused one."""
    ours, theirs = map(Wire, socket.socketpair())
    with closing(ours):
        theirs.secure = guest.peer.secure
        intake.let_in(theirs, guest.peer)  # which closes that one
        try:
            answer, rest = await _ask(ours, _upgrade(guest, target or guest.target))
        except (OSError, BadResponse) as error:
            refusal = Refusal(502, RefusalCode.BAD_GATEWAY, f"the gateway did not answer: {error}")
            whole = refusal.response
            end = whole.index(b"\r\n\r\n") + 4
            answer, rest = parse_response(whole[:end]), whole[end:]
        headers = tuple(
            field for field in answer.end_to_end if not field[0].lower().startswith(_OF_THE_HANDSHAKE)
        )
        if answer.status != 101:
            await guest.reject(answer.status, headers, rest)
            return
        with suppress(Left):
            await guest.accept(answer.by_name.get("sec-websocket-protocol"), headers)
            await _Conversation(guest, ours, intake.limits.close_timeout_s).run(rest)


def _upgrade(guest: Guest, target: str) -> bytes:
    fields: Fields = (
        *(field for field in guest.headers if not field[0].lower().startswith(_OF_THE_HANDSHAKE)),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", b64encode(os.urandom(16)).decode()),
        *([("Sec-WebSocket-Protocol", ", ".join(guest.subprotocols))] if guest.subprotocols else []),
    )
    return upgrade_request(target, fields)


async def _ask(wire: Wire, asked: bytes) -> tuple[ResponseHead, bytes]:
    """The answer's head, and what came behind it: of a refusal all. Raises `OSError`, `BadResponse`."""
    received = bytearray()
    await wire.send_all(asked)
    while (end := received.find(b"\r\n\r\n")) < 0:
        if not (data := await wire.receive(_CHUNK_BYTES)):
            raise OSError("it closed the connection")
        received += data
    head = parse_response(bytes(received[: end + 4]))
    while head.status != 101 and len(received) < _ANSWER_BYTES:
        if not (data := await wire.receive(_CHUNK_BYTES)):
            break
        received += data
    return head, bytes(received[end + 4 :])


class _Conversation:
    """The two flows of messages, and how either ends the other."""

    def __init__(self, guest: Guest, wire: Wire, close_timeout_s: float) -> None:
        self._guest = guest
        self._wire = wire
        self._close_timeout_s = close_timeout_s
        self._whole_frames = trio.Lock()
        self._amid_a_frame = False
        self._closed = False  # the gateway has been sent a close frame, or nothing more can be
        self._gone = False  # the guest

    async def run(self, received: bytes) -> None:
        """`received`: what has come from the gateway."""
        ping, pings = trio.open_memory_channel[bytes](1)  # a peer waits for its pong before it asks again
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._from_guest, nursery.cancel_scope)
                nursery.start_soon(self._answer, pings)
                await self._from_gateway(received, ping)
                nursery.cancel_scope.cancel()
        finally:
            # Cancelled: the application ends, or its server has seen the client go and does not say how.
            if not (self._closed or self._amid_a_frame):
                with suppress(OSError):
                    self._wire.send_now(close_frame(GOING_AWAY, masked=True))

    async def _from_guest(self, conversation: trio.CancelScope) -> None:
        try:
            while True:
                message = await self._guest.receive()
                if isinstance(message, str):
                    await self._send(masked_pieces(message.encode(), TEXT_MESSAGE))
                else:
                    await self._send(masked_pieces(message, _BINARY_MESSAGE))
        except Left as left:
            self._gone = True
            conversation.deadline = trio.current_time() + self._close_timeout_s
            if left.code is not None:
                await self._close(left.code, left.reason)
            self._closed = True
            self._wire.end_sending()

    async def _answer(self, pings: trio.MemoryReceiveChannel[bytes]) -> None:
        async for payload in pings:
            await self._send([masked_frame(payload, PONG)])

    async def _from_gateway(self, data: bytes, ping: trio.MemorySendChannel[bytes]) -> None:
        reader = MessageReader(max_bytes=_MESSAGE_BYTES)
        try:
            while True:
                for opcode, payload in reader.feed(data):
                    if opcode == CLOSE:
                        code = int.from_bytes(payload[:2], "big") if len(payload) > 1 else NORMAL
                        await self._close(code, "")
                        await self._leave(code, payload[2:].decode("utf-8", "replace"))
                        return
                    if opcode == PING:
                        with suppress(trio.WouldBlock):
                            ping.send_nowait(payload)
                    elif opcode < CLOSE and not self._gone:
                        with suppress(Left):  # `_from_guest` sees it too
                            await self._guest.send(payload.decode() if opcode == _TEXT else payload)
                data = await self._wire.receive(_CHUNK_BYTES)
                if not data:
                    raise OSError("it closed the connection without a word")
        except (OSError, FrameViolation, UnicodeDecodeError):
            await self._leave(FAILED, "the connection to the service was lost")

    async def _leave(self, code: int, reason: str) -> None:
        if not self._gone:
            with trio.move_on_after(self._close_timeout_s), suppress(Left):
                await self._guest.close(code, reason)

    async def _close(self, code: int, reason: str) -> None:
        if not self._closed:
            self._closed = True
            await self._send([close_frame(code if code in SENDABLE else NORMAL, reason, masked=True)])

    async def _send(self, pieces: Iterable[bytes]) -> None:
        """A whole frame."""
        async with self._whole_frames:
            self._amid_a_frame = True
            with suppress(OSError):  # the gateway has closed: `_from_gateway` reads why
                for piece in pieces:
                    await self._wire.send_all(piece)
            self._amid_a_frame = False


class _OfTrioWebSocket:
    def __init__(self, request: WebSocketRequest) -> None:
        self._request = request
        self._connection: WebSocketConnection
        asked = request._event  # the one place where it keeps the host
        self.target = request.path
        self.headers: Fields = (
            ("Host", asked.host),
            *((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers),
        )
        self.subprotocols = request.proposed_subprotocols
        remote = request.remote  # a text where it is no TCP connection
        self.peer = (
            Peer(str(remote.address), remote.port, secure=remote.is_ssl)
            if isinstance(remote, Endpoint)
            else Peer("127.0.0.1", 0)
        )

    async def accept(self, subprotocol: str | None, headers: Fields) -> None:
        with _left():
            self._connection = await self._request.accept(
                subprotocol=subprotocol, extra_headers=_encoded(headers)
            )

    async def reject(self, status: int, headers: Fields, body: bytes) -> None:
        with suppress(ConnectionClosed):
            await self._request.reject(status, extra_headers=_encoded(headers), body=body)

    async def receive(self) -> str | bytes:
        with _left():
            return await self._connection.get_message()

    async def send(self, message: str | bytes) -> None:
        with _left():
            await self._connection.send_message(message)

    async def close(self, code: int, reason: str) -> None:
        await self._connection.aclose(code, reason or None)


@contextmanager
def _left() -> Iterator[None]:
    try:
        yield
    except ConnectionClosed as closed:
        code, reason = (closed.reason.code, closed.reason.reason) if closed.reason else (_LOST, None)
        raise Left(None if code == _LOST else code, reason or "") from None


def _encoded(headers: Fields) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


class _OfQuart:
    """Quart cancels its handler when the client leaves, and does not say with which code."""

    def __init__(self, websocket: Any) -> None:
        self._websocket = websocket
        scope = websocket.scope
        path, query = scope.get("raw_path") or quote(scope["path"]).encode(), scope["query_string"]
        self.target = (path + (b"?" + query if query else b"")).decode("latin-1")
        self.headers: Fields = tuple(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        )
        self.subprotocols = tuple(scope.get("subprotocols", ()))
        address, port = scope.get("client") or ("127.0.0.1", 0)
        self.peer = Peer(address, port or 0, secure=scope["scheme"] == "wss")

    async def accept(self, subprotocol: str | None, headers: Fields) -> None:
        await self._websocket.accept(headers=list(headers), subprotocol=subprotocol)

    async def reject(self, status: int, headers: Fields, body: bytes) -> None:
        from quart import Response, abort

        abort(Response(body, status, headers=dict(headers)))

    async def receive(self) -> str | bytes:
        return await self._websocket.receive()  # type: ignore[no-any-return]

    async def send(self, message: str | bytes) -> None:
        await self._websocket.send(message)

    async def close(self, code: int, reason: str) -> None:
        await self._websocket.close(code, reason)
