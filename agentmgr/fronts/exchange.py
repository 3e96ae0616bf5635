"""One request and its answer, as a front sees them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol
from urllib.parse import parse_qsl, unquote

import h11
import trio
from attrs import frozen

from .. import jsontext
from ..core.hosts import origin_allowed
from ..proxy.access import Identity
from ..proxy.forwarded import Peer
from ..proxy.handshake import ClientGone
from ..proxy.intake import Intake
from ..websocket.head import RequestHead
from ..websocket.refusal import JSON
from ..websocket.sockets import Wire
from .problem import Headers, Problem

KEEPALIVE_S = 15.0
"""A stream that is silent for so long gets a comment: proxies and clients give up silent ones after 30 s."""
EVENT_STREAM = "text/event-stream; charset=utf-8"


@frozen
class Request:
    head: RequestHead
    client_ip: str
    identity: Identity | None  #: as its token proves it; None where none is needed
    body: bytes = b""

    @property
    def query(self) -> Mapping[str, str]:
        """Of each name the last value."""
        return dict(parse_qsl(self.head.target.partition("?")[2], keep_blank_values=True))

    def json(self) -> dict[str, object]:
        """The body. Raises `Problem` where it is no JSON object."""
        try:
            parsed = jsontext.parse(self.body)
        except jsontext.NotJson as error:
            raise Problem(400, "invalid_json", f"The body is {error}.") from None
        if not isinstance(parsed, dict):
            raise Problem(400, "invalid_json", "The body must be a JSON object.")
        return parsed


Handler = Callable[["Exchange"], Awaitable[None]]


@frozen
class Route:
    """`path` may have parts in braces, which match all but a slash: `/v1/models/{model}`."""

    method: str
    path: str
    handle: Handler

    def match(self, path: str) -> dict[str, str] | None:
        """The values of its parts, percent-decoded; None for another path."""
        wanted, given = self.path.split("/"), path.split("/")
        if len(wanted) != len(given):
            return None
        found = {}
        for pattern, text in zip(wanted, given, strict=True):
            if pattern.startswith("{"):
                found[pattern[1:-1]] = unquote(text)
            elif pattern != text:
                return None
        return found


class Front(Protocol):
    """One protocol, as the shell uses it."""

    @property
    def routes(self) -> Sequence[Route]: ...

    def problem(self, problem: Problem) -> bytes:
        """The body, JSON, that says it."""


class Exchange:
    """One request, and its answer: `reply`, or `begin`, `send` …, and `end`.

    All that sends raises `ClientGone`; it is also raised, or rather the handler is cancelled, when the
    client leaves while nothing is sent.
    """

    def __init__(
        self, intake: Intake, wire: Wire, peer: Peer, request: Request, parser: h11.Connection
    ) -> None:
        self.intake = intake
        self.peer = peer
        self.request = request
        self.parts: Mapping[str, str] = {}  #: of its path
        self.secure = wire.secure or peer.secure
        self.streams = False  #: the answer is a stream, once there is something of it, or there was silence
        self.last_sent = trio.current_time()
        self._wire = wire
        self._parser = parser
        self._sending: trio.Event | None = None  # set when what is being sent is

    @property
    def begun(self) -> bool:
        """Whether the answer has, so that no other one can be given."""
        return self._parser.our_state not in (h11.IDLE, h11.SEND_RESPONSE)

    @property
    def was_read(self) -> bool:
        """Whether the request has been, to its end."""
        return self._parser.their_state is h11.DONE

    async def reply(self, status: int, body: bytes, headers: Headers = ()) -> None:
        """A whole answer, JSON unless `headers` say otherwise."""
        if not any(name == "Content-Type" for name, _ in headers):
            headers = (JSON, *headers)
        await self._send(
            self._head(status, (("Content-Length", str(len(body))), *headers))
            + (self._parser.send(h11.Data(data=body)) or b"" if self.request.head.method != "HEAD" else b"")
            + (self._parser.send(h11.EndOfMessage()) or b"")
        )

    async def begin(self, status: int = 200, headers: Headers = ()) -> None:
        """The head of an answer that is sent in pieces, a stream of events."""
        fields = (("Content-Type", EVENT_STREAM), ("Cache-Control", "no-cache"), ("X-Accel-Buffering", "no"))
        await self._send(self._head(status, (*fields, *headers)))

    async def send(self, data: bytes) -> None:
        """A piece, which the client has at once."""
        if data:  # a chunk as h11 makes it, at a tenth of the cost
            await self._send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self._send(self._parser.send(h11.EndOfMessage()) or b"")

    async def keep_alive(self) -> None:
        """Until cancelled: a comment in the stream of events whenever it was silent for `KEEPALIVE_S`."""
        while True:
            await trio.sleep_until(self.last_sent + KEEPALIVE_S)
            if trio.current_time() < self.last_sent + KEEPALIVE_S:
                continue
            if self._parser.our_state is h11.SEND_BODY:
                await self.send(b": keep-alive\n\n")
            elif self.streams and not self.begun:
                await self.begin()
            self.last_sent = trio.current_time()

    def _head(self, status: int, fields: Headers) -> bytes:
        fields = (*fields, *cors(self.intake, self.request.head))
        # In the bytes that they came in: a stranger's origin, or a service's own refusal, need not be ASCII.
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
        return self._parser.send(h11.Response(status_code=status, headers=headers)) or b""

    async def _send(self, data: bytes) -> None:
        """A reader that takes nothing for as long as the relay would wait is cut off, as it is there."""
        while self._sending is not None:  # a lock, without what a `trio.Lock` costs for each event
            await self._sending.wait()
        self._sending = trio.Event()
        try:
            view = memoryview(data)[self._wire.send_now(data) :]
            while view:
                with trio.fail_after(self.intake.limits.stall_timeout_s):
                    view = view[await self._wire.send_some(view) :]
        except (OSError, trio.TooSlowError):
            raise ClientGone("it left, or did not read its answer") from None
        finally:
            self._sending.set()
            self._sending = None
        self.last_sent = trio.current_time()


def cors(intake: Intake, head: RequestHead) -> Headers:
    """Lets a page read the answer, if the gateway allows the origin of the page."""
    origin = head.by_name.get("origin", "")
    if not origin or intake.allowed_origins is None or not origin_allowed(origin, intake.allowed_origins):
        return ()
    return (("Access-Control-Allow-Origin", origin), ("Vary", "Origin"))
