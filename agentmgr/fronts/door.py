"""A door: an ordinary client of this gateway, for which a front speaks.

It is a WebSocket over a socket pair, whose other end the gateway serves as it serves any client. So tokens,
quotas, rules, seats, queueing, affinity, the relay, resuming and statistics have no second code path.
"""

from __future__ import annotations

import json
import os
import socket
from base64 import b64encode
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import Any

import trio

from .. import jsontext
from ..core.gateway_headers import HOST_HEADER
from ..protocol import NORMAL, TOO_BIG, ErrorCode
from ..websocket.frames import CLOSE, PING, PONG, FrameViolation, close_frame
from ..websocket.head import BadResponse, Fields, RequestHead, ResponseHead, parse_response, upgrade_request
from ..websocket.messages import MessageReader, masked_frame, masked_pieces
from ..websocket.refusal import RefusalCode, read_refusal
from ..websocket.sockets import Wire
from .bounds import apart
from .exchange import Exchange
from .feed import Feed
from .models import target_of
from .problem import HAS_RUN, Problem

TEXT = "text"
"""The name of what is no event: a service that speaks plain text has sent its `content`."""
_decode = json.JSONDecoder().raw_decode
_CHUNK_BYTES = 64 * 1024
_ANSWER_BYTES = 256 * 1024  # of a refusal: the gateway passes on 64 KiB of a service's own, and its head
_EVENT_BYTES = 64 * 2**20
_OF_THE_REQUEST = ("accept", "access-control-", "content-", "expect", "if-", "range", "sec-", "x-session-id")
"""How the names of those headers begin that are about the request, and say nothing of its client."""
_OF_A_REFUSAL = ("retry-after", "www-authenticate")


class DoorClosed(Problem):
    """The connection to the agent has ended; `close_code` is that of its close frame, where there was one."""

    def __init__(self, close_code: int | None, reason: str) -> None:
        if close_code == TOO_BIG:
            super().__init__(413, ErrorCode.TOO_LARGE, f"The service does not take so much: {reason}.")
        else:
            reason = reason or "the connection to it ended"
            super().__init__(503, "connection_lost", f"The agent has gone: {reason}.")

    @property
    def amid_a_turn(self) -> Problem:
        """The same, where the turn may have begun: whether to ask again is for a person to say."""
        if self.status == 413:
            return self
        return Problem(HAS_RUN, self.code, self.message, retry=False)


async def open_door(
    exchange: Exchange, model: str, *, session: str | None = None, resumes: bool = True
) -> Door:
    """A connection to an instance of that model, as the exchange's client would get it.

    `session`: the id of a session, or any other word by which the gateway finds the same instance again. The
    door may outlive its exchange; its owner leaves it. `resumes`: another instance may go on with it where
    this one ends. Raises `Problem`.
    """
    intake, request = exchange.intake, exchange.request
    allowed = None if request.identity is None else request.identity.services
    if model in intake.lobby.router.table.http_services and (allowed is None or model in allowed):
        scheme, host = "https" if exchange.secure else "http", request.head.by_name["host"]
        where = f"{scheme}://{host}{target_of(model)}/"
        raise Problem(404, "http_service", f"{model} is an HTTP service: {where}.", param="model")
    mine, its = socket.socketpair()
    feed = Feed(its)
    ours, theirs = Wire(mine), Wire(feed)
    theirs.secure = exchange.secure
    intake.let_in(theirs, exchange.peer, resumes=resumes)  # which closes that one
    # An exchange does not wait until it is closed, and may have been cancelled.
    leave = partial(intake.nursery.start_soon, _leave, ours, intake.limits.close_timeout_s)
    with ExitStack() as until_open:
        until_open.callback(leave)
        answer, received = await _shake_hands(ours, _upgrade(request.head, target_of(model), session))
        until_open.pop_all()
    exchange.may_run = True
    return Door(ours, feed, received, leave, to_host=HOST_HEADER.lower() in answer.by_name)


async def _leave(wire: Wire, timeout_s: float) -> None:
    """Closes as RFC 6455 wants it: the gateway would wait for a client that left before it was answered."""
    with closing(wire), trio.move_on_after(timeout_s), suppress(OSError):
        await wire.send_all(close_frame(NORMAL, masked=True))
        wire.end_sending()
        while await wire.receive(_CHUNK_BYTES):
            pass


def _upgrade(head: RequestHead, target: str, session: str | None) -> bytes:
    fields: Fields = (
        *((name, value) for name, value in head.end_to_end if not name.lower().startswith(_OF_THE_REQUEST)),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", b64encode(os.urandom(16)).decode()),
        *([("X-Session-Id", session)] if session is not None else []),
    )
    return upgrade_request(target, fields)


async def _shake_hands(wire: Wire, asked: bytes) -> tuple[ResponseHead, bytes]:
    """The 101, and what came behind it. Raises `Problem`."""
    received = bytearray()
    try:
        await wire.send_all(asked)
        while (end := received.find(b"\r\n\r\n")) < 0:
            if not (data := await wire.receive(_CHUNK_BYTES)):
                raise OSError("it closed the connection")
            received += data
        answer = parse_response(bytes(received[: end + 4]))
        if answer.status == 101:
            return answer, bytes(received[end + 4 :])
        while len(received) < _ANSWER_BYTES and (data := await wire.receive(_CHUNK_BYTES)):
            received += data
    except (OSError, BadResponse) as error:
        raise Problem(502, RefusalCode.BAD_GATEWAY, f"the gateway could not connect: {error}") from None
    code, reason = read_refusal(bytes(received[end + 4 :]))
    passed_on = tuple(item for item in answer.fields if item[0].lower() in _OF_A_REFUSAL)
    reason = reason or f"the service refused the connection with HTTP status {answer.status}"
    status = answer.status if answer.status >= 400 else 502
    raise Problem(status, code or RefusalCode.BACKEND_REFUSED, reason, headers=passed_on)


class Door:
    """Events to the agent, and from it."""

    def __init__(
        self, wire: Wire, feed: Feed, received: bytes, leave: Callable[[], None], *, to_host: bool
    ) -> None:
        self.to_host = to_host  #: it leads to a host of ours, which keeps sessions
        self._wire = wire
        self._feed = feed
        self._leave = leave
        self._reader = MessageReader(max_bytes=_EVENT_BYTES)
        self._received = received
        self._frames: deque[tuple[int, bytes]] = deque()

    def leave(self) -> None:
        """Closes it."""
        self._feed.end()
        self._leave()

    async def send(self, *events: dict[str, Any], size: int = 0) -> None:
        """`size`: about how many bytes they have, where these may be many. Raises `DoorClosed`."""
        said = await apart(size, lambda: [jsontext.in_utf8(jsontext.encode(event)) for event in events])
        for text in said:
            await self._say(text)

    async def receive(self) -> list[dict[str, Any]]:
        """The events that have come since, at least one. Raises `DoorClosed`."""
        events: list[dict[str, Any]] = []
        while True:
            while self._frames:
                opcode, payload = self._frames[0]
                if opcode == CLOSE:
                    if events:
                        return events
                    code = int.from_bytes(payload[:2], "big") if len(payload) > 1 else None
                    raise DoorClosed(code, payload[2:].decode("utf-8", "replace"))
                self._frames.popleft()
                if opcode == PING:
                    await self._send(masked_frame(payload, PONG))
                elif opcode < CLOSE:
                    events.append(_event(payload))
            if events:
                return events
            await self._read()

    async def say(self, text: str) -> None:
        """In plain text. Raises `DoorClosed`."""
        await self._say(jsontext.in_utf8(text))

    async def _say(self, text: bytes) -> None:
        for piece in masked_pieces(text):
            await self._send(piece)

    async def _read(self) -> None:
        try:
            data, self._received = (
                self._received or await self._feed.receive(self._wire.sock, _CHUNK_BYTES),
                b"",
            )
            if not data:
                raise DoorClosed(None, "")
            self._frames.extend(self._reader.feed(data))
        except OSError as error:
            raise DoorClosed(None, str(error)) from None
        except FrameViolation as fault:
            raise DoorClosed(None, fault.reason) from None  # the service's fault, whatever its code

    async def _send(self, data: bytes) -> None:
        try:
            await self._wire.send_all(data)
        except OSError:
            while True:  # the gateway has said before why it takes no more
                await self.receive()


def _event(payload: bytes) -> dict[str, Any]:
    try:
        text = payload.decode()
        event, end = _decode(text)  # `json.loads`, without what it does for texts of other kinds
        if end != len(text):
            event = json.loads(text)
    except (ValueError, RecursionError):
        event = None
    # Who sends back what a client says has echoed it.
    if isinstance(event, dict) and isinstance(name := event.get("event"), str) and name[:5] != "user.":
        return event
    return {"event": TEXT, "content": payload.decode("utf-8", "replace")}
