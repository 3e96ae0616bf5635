"""One request and its answer, as a front sees them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from typing import Protocol
from urllib.parse import parse_qsl, unquote

import h11
import trio
from attrs import evolve, frozen

from .. import jsontext
from ..core.hosts import origin_allowed
from ..proxy.access import Identity
from ..proxy.forwarded import Peer
from ..proxy.handshake import ClientGone
from ..proxy.intake import Intake
from ..websocket.head import RequestHead
from ..websocket.refusal import JSON
from ..websocket.sockets import Wire
from .bounds import Made, Memory, apart
from .problem import Headers, Problem

KEEPALIVE_S = 15.0
"""A stream that is silent for so long gets a comment: proxies and clients give up silent ones after 30 s."""
EVENT_STREAM = "text/event-stream; charset=utf-8"


MOST_VALUES = 100_000
"""Strings, numbers, objects and arrays in a body: 30 ms of parsing, and 10 MB."""
_SLOWEST = 32 * 1024  # bytes a second, of a body that takes longer than a stalled reader is given
_FRAMED = {"content-length", "transfer-encoding"}  # a request with neither has no body
_STREAM_HEADERS = (
    ("Content-Type", EVENT_STREAM),
    ("Cache-Control", "no-cache"),
    ("X-Accel-Buffering", "no"),  # nginx
)


@frozen
class Request:
    head: RequestHead
    client_ip: str
    identity: Identity | None = None  #: as its token proves it; None where none is needed
    body: bytes = b""

    @property
    def query(self) -> Mapping[str, str]:
        """Of each name the last value."""
        return dict(parse_qsl(self.head.target.partition("?")[2], keep_blank_values=True))

    def json(self) -> dict[str, object]:
        """The body. Raises `Problem` where it is no JSON object."""
        if jsontext.more_values_than(MOST_VALUES, self.body):
            raise Problem(400, "invalid_json", f"The body has more than {MOST_VALUES} values.")
        try:
            parsed = jsontext.parse(self.body)
        except jsontext.NotJson as error:
            raise Problem(400, "invalid_json", f"The body is {error}.") from None
        if not isinstance(parsed, dict):
            raise Problem(400, "invalid_json", "The body must be a JSON object.")
        return parsed


Handler = Callable[["Exchange"], Awaitable[None]]
"""Raises `Problem`, `Refusal`, `ClientGone`."""


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


@frozen
class _Stream:
    cut_off: Callable[[Problem], bytes]
    headers: Headers


class Exchange:
    """One request, and its answer: `reply` with all of it, or `stream`, `send` …, and `end`.

    All that sends raises `ClientGone`. The handler is cancelled when the client leaves, and when the gateway
    ends. What it raises is said to the client, as long as its answer has not ended.
    """

    def __init__(self, intake: Intake, wire: Wire, peer: Peer, head: RequestHead, memory: Memory) -> None:
        self.intake = intake
        self.peer = peer
        self.request = Request(head, intake.client_ip(head, peer))
        self.body = memory.held()  #: closed when the agent has it, or when the exchange is over
        self.may_run = False  #: there is a door to the agent: to ask again may have it done twice
        self.parts: Mapping[str, str] = {}  #: of its path
        self.secure = wire.secure or peer.secure
        self._last_sent = trio.current_time()
        self._stream: _Stream | None = None
        self._memory = memory
        self.wire = wire  #: to the client
        # One for each request: what is behind its end is in `trailing_data`.
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=intake.limits.head_bytes)
        self._sending: trio.Event | None = None  # set when what is being sent is
        self._unsent: memoryview | None = None  # the rest of what a cancelled task was sending

    @property
    def begun(self) -> bool:
        """Whether the answer has, so that no other one can be given."""
        return self._parser.our_state not in (h11.IDLE, h11.SEND_RESPONSE)

    @property
    def was_read(self) -> bool:
        """Whether the request has been, to its end."""
        return self._parser.their_state in (h11.DONE, h11.MUST_CLOSE)

    def open(self) -> None:
        """Finds out where the body ends. Raises `Problem`."""
        head = self.request.head
        if head.by_name.keys() >= _FRAMED:
            raise _bad_request("Content-Length and Transfer-Encoding exclude each other")
        # An upgrade is not taken (RFC 9110, section 7.8), and h11 would wait for the word that it is.
        fields = "".join(f"{name}: {value}\r\n" for name, value in head.fields if name.lower() != "upgrade")
        self._parser.receive_data(f"{head.method} {head.target} HTTP/1.1\r\n{fields}\r\n".encode("latin-1"))
        try:
            self._parser.next_event()
            if not _FRAMED & head.by_name.keys():
                self._parser.next_event()  # its end: there is nothing to read, whatever is answered
        except h11.RemoteProtocolError as error:
            raise _bad_request(error) from None

    def may_be_followed(self) -> bool:
        """Whether another request can be read from the wire: not behind a body that was not read."""
        self.wire.ahead = self._parser.trailing_data[0] + self.wire.ahead
        return self._parser.our_state is h11.DONE and self._parser.their_state is h11.DONE

    async def wait_gone(self) -> None:
        """Returns when the client has left. What it asks next meanwhile waits."""
        await self.wire.wait_gone(self.intake.limits.early_bytes)

    async def receive(self, most: int) -> bytes:
        """The body, of at most so many bytes. Raises `Problem`, `ClientGone`."""
        if self.was_read:
            return b""
        head, body = self.request.head, bytearray()
        too_large = Problem(413, "too_large", f"The body is over {most} bytes.")
        length = head.by_name.get("content-length", "0")
        if length.isdecimal() and int(length[:19]) > most:
            raise too_large
        try:
            with trio.fail_after(self.intake.limits.stall_timeout_s) as patience:
                while data := await self.more():
                    body += data
                    if len(body) > most:
                        raise too_large
                    self.body.set(len(body))
                    patience.deadline += len(data) / _SLOWEST
        except trio.TooSlowError:
            raise too_slow() from None
        return bytes(body)

    async def more(self, *, give_leave: bool = True) -> bytes:
        """The next piece of the body; nothing at its end. Raises `Problem`, `ClientGone`.

        `give_leave`: a client that waits for a 100 before it sends its body gets it.
        """
        wire, parser = self.wire, self._parser
        try:
            while not self.was_read:
                event = parser.next_event()
                if isinstance(event, h11.Data):
                    await trio.lowlevel.checkpoint()  # it may send faster than we read
                    return bytes(event.data)
                if event is not h11.NEED_DATA:
                    break
                if give_leave and parser.they_are_waiting_for_100_continue:
                    await self.inform(100)
                data, wire.ahead = wire.ahead or await wire.receive(64 * 1024), b""
                if not data:
                    raise ClientGone("it left before its request was complete")
                parser.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise _bad_request(error) from None
        except OSError as error:
            raise ClientGone(str(error)) from None
        return b""

    async def inform(self, status: int, headers: Headers = ()) -> None:
        """An answer of 1xx, before the one that counts."""
        await self._send(
            self._parser.send(h11.InformationalResponse(status_code=status, headers=_latin_1(headers))) or b""
        )

    async def read(self, of: Callable[[dict[str, object]], Made]) -> Made:
        """What the request asks for, which `of` makes of its body once. Raises `Problem`."""
        request = self.request
        self.request = evolve(request, body=b"")
        return await apart(len(request.body), lambda: of(request.json()))

    async def reply(self, status: int, body: bytes, headers: Headers = ()) -> None:
        """A whole answer, JSON unless `headers` say otherwise."""
        if not any(name == "Content-Type" for name, _ in headers):
            headers = (JSON, *headers)
        await self._send(
            self._head(status, (("Content-Length", str(len(body))), *headers))
            + (self._parser.send(h11.Data(data=body)) or b"" if self.request.head.method != "HEAD" else b"")
            + (self._parser.send(h11.EndOfMessage()) or b"")
        )

    async def head(self, status: int, headers: Headers, reason: bytes) -> None:
        """The head of an answer whose pieces are passed on one by one (`pass_on`); `end` ends it."""
        await self._send(self._head(status, headers, reason))

    async def pass_on(self, data: bytes) -> None:
        """A piece of it, as its head frames them."""
        await self._send(self._parser.send(h11.Data(data=data)) or b"")

    def stream(self, cut_off: Callable[[Problem], bytes], headers: Headers = ()) -> None:
        """The answer is going to be a stream of events, which begins with the first `send`, or after silence.

        `cut_off` gives the last bytes of a stream that a problem ends. A problem before it has begun is an
        answer of its own, with a status.
        """
        self._stream = _Stream(cut_off, headers)

    async def begin(self) -> None:
        """Sends the head of the stream."""
        assert self._stream is not None
        await self._send(self._head(200, (*_STREAM_HEADERS, *self._stream.headers)))

    async def send(self, data: bytes) -> None:
        """A piece of the stream, which the client has at once."""
        if data:  # a chunk as h11 makes it, at a tenth of the cost
            if not self.begun:
                await self.begin()
            await self._send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        """The end of the stream."""
        if not self.begun:
            await self.begin()
        await self._send(self._parser.send(h11.EndOfMessage()) or b"")

    async def cut_off(self, problem: Problem) -> None:
        """The end of a stream that has begun."""
        if self._stream is None:
            raise ClientGone("its answer was cut off")
        if self._parser.our_state is h11.SEND_BODY:
            await self.send(self._stream.cut_off(problem))
            await self.end()

    async def keep_alive(self) -> None:
        """Until cancelled: a comment in the stream whenever it was silent for `KEEPALIVE_S`."""
        while True:
            await trio.sleep_until(self._last_sent + KEEPALIVE_S)
            if trio.current_time() < self._last_sent + KEEPALIVE_S:
                continue
            if self._parser.our_state is h11.SEND_BODY:
                await self.send(b": keep-alive\n\n")
            elif self._stream is not None and not self.begun:
                await self.begin()
            self._last_sent = trio.current_time()

    def _head(self, status: int, fields: Headers, reason: bytes = b"") -> bytes:
        headers = _latin_1((*fields, *cors(self.intake, self.request.head)))
        return self._parser.send(h11.Response(status_code=status, headers=headers, reason=reason)) or b""

    async def _send(self, data: bytes) -> None:
        """Writes all of it. Raises `ClientGone`, also if the client reads nothing for `stall_timeout_s`."""
        if self._sending is None and self._unsent is None:
            try:
                sent = self.wire.send_now(data)  # nearly always all of it
            except OSError:
                raise ClientGone("it left") from None
            self._last_sent = trio.current_time()
            if sent == len(data):
                return
            self._unsent, data = memoryview(data)[sent:], b""
        while self._sending is not None:  # a lock, without what a `trio.Lock` costs for each event
            await self._sending.wait()
        self._sending = trio.Event()
        if self._unsent is not None:  # a stream that is cut off goes on behind it
            data = self._unsent.tobytes() + data
        view = memoryview(data)
        try:
            view = view[self.wire.send_now(data) :]
            if view:
                with closing(self._memory.held()) as unread:
                    unread.set(len(view))
                    while view:
                        with trio.fail_after(self.intake.limits.stall_timeout_s):
                            view = view[await self.wire.send_some(view) :]
        except (OSError, trio.TooSlowError, Problem):
            raise ClientGone("it left, or did not read its answer") from None
        finally:
            self._unsent = view or None
            self._sending.set()
            self._sending = None
        self._last_sent = trio.current_time()


def cors(intake: Intake, head: RequestHead) -> Headers:
    """Lets a page read the answer, if the gateway allows the origin of the page."""
    origin = head.by_name.get("origin", "")
    if not origin or intake.allowed_origins is None or not origin_allowed(origin, intake.allowed_origins):
        return ()
    return (("Access-Control-Allow-Origin", origin), ("Vary", "Origin"))


def too_slow() -> Problem:
    return Problem(408, "request_timeout", "The body took too long.")


def _latin_1(fields: Headers) -> list[tuple[bytes, bytes]]:
    """In the bytes that they came in: a stranger's origin, or a service's own answer, need not be ASCII."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]


def _bad_request(why: object) -> Problem:
    return Problem(400, "bad_request", f"This is not HTTP/1.1: {why}.")
