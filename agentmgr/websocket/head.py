"""The strict judge of an HTTP/1.1 head: what a client may ask, and what a server may answer.

Sans-IO. Where RFC 9112 lets a recipient be lenient, leniency is how requests get smuggled past a proxy:
a bare LF, a folded line, a space before the colon, a second Host, a body on an upgrade are refused, not
repaired. h11 and wsproto, which come after, accept several of these.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha1

from attrs import evolve, frozen

from .refusal import Refusal, RefusalCode

Fields = tuple[tuple[str, str], ...]  #: in order, names as they were sent, text as latin-1

# RFC 9110 section 5.6.2 and 5.5: a token; visible characters, spaces, tabs and obs-text.
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_TOKEN_LIST = re.compile(rf"{_TOKEN}(?:[ \t]*,[ \t]*{_TOKEN})*")
_FIELD = re.compile(rf"({_TOKEN}):([\t\x20-\x7e\x80-\xff]*)\r\n")
_REQUEST_LINE = re.compile(rf"({_TOKEN}) ([\x21-\x7e]+) HTTP/(\d\.\d)\r\n")
_STATUS_LINE = re.compile(r"HTTP/1\.1 ([1-5]\d\d)(?: [\t\x20-\x7e\x80-\xff]*)?\r\n")
_NEVER_IN_A_HEAD = re.compile(rb"(?<!\r)\n|\r(?!\n)(?=.)|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", re.DOTALL)
_HOST = re.compile(r"(?:[A-Za-z0-9\-._~%!$&'()*+,;=]+|\[[0-9A-Fa-f:.]+\])(?::\d{0,5})?")
_KEY = re.compile(r"[A-Za-z0-9+/]{21}[AQgw]==")  # sixteen bytes in base64, RFC 6455 section 4.1
_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

_PINNED = frozenset({"host", "sec-websocket-key", "sec-websocket-version", "sec-websocket-accept"})
_ONCE = _PINNED | {"upgrade", "origin"}
_HOP_BY_HOP = frozenset(
    {"connection", "upgrade", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization",
     "te", "trailer", "transfer-encoding"}
)  # fmt: skip


@frozen
class RequestHead:
    """A request without fault; an upgrade once `check_upgrade` has let it pass."""

    method: str
    target: str
    fields: Fields
    by_name: dict[str, str]  #: names in lower case; repeated fields joined with a comma

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def key(self) -> str:
        return self.by_name["sec-websocket-key"]

    @property
    def subprotocols(self) -> list[str]:
        """Those that the client offers."""
        offered = self.by_name.get("sec-websocket-protocol")
        return [part.strip() for part in offered.split(",")] if offered else []

    @property
    def wants_websocket(self) -> bool:
        return _asks_to_switch(self.by_name)

    @property
    def end_to_end(self) -> Fields:
        """The fields that are meant for whoever is behind us, not for us."""
        return end_to_end(self.fields, self.by_name)

    def replaced(self, name: str, value: str) -> RequestHead:
        """The same head with one field of that name, or with none when the value is empty."""
        lower = name.lower()
        fields = tuple(item for item in self.fields if item[0].lower() != lower)
        by_name = {key: text for key, text in self.by_name.items() if key != lower}
        if value:
            fields, by_name = (*fields, (name, value)), by_name | {lower: value}
        return evolve(self, fields=fields, by_name=by_name)


@frozen
class ResponseHead:
    status: int
    fields: Fields
    by_name: dict[str, str]

    @property
    def end_to_end(self) -> Fields:
        return end_to_end(self.fields, self.by_name)


class BadResponse(Exception):
    """A server answered something that is not what HTTP or RFC 6455 ask for."""


def accept_token(key: str) -> str:
    """The `Sec-WebSocket-Accept` that belongs to a key (RFC 6455 section 4.2.2)."""
    return b64encode(sha1(key.encode() + _ACCEPT_GUID, usedforsecurity=False).digest()).decode()


def is_key(text: str) -> bool:
    """Whether it can be a `Sec-WebSocket-Key`."""
    return _KEY.fullmatch(text) is not None


class HeadReader:
    """Collects bytes until a request's head is complete; refuses as soon as it cannot become a good one."""

    def __init__(self, *, max_bytes: int = 16 * 1024, max_fields: int = 100) -> None:
        self._max_bytes = max_bytes
        self._max_fields = max_fields
        self._data = bytearray()
        self._line_judged = False
        self.rest = b""  #: what came behind the head

    def feed(self, data: bytes) -> RequestHead | None:
        """The head once it is complete. Raises `Refusal`."""
        seen = len(self._data)
        self._data += data
        end = self._data.find(b"\r\n\r\n", max(0, seen - 3))
        size = len(self._data) if end < 0 else end + 4
        if size > self._max_bytes:
            raise _too_large(f"the request head is over {self._max_bytes} bytes")
        if _NEVER_IN_A_HEAD.search(self._data, max(0, seen - 1), size):
            raise _bad("lines must end in CR LF, and control characters must not occur")
        if not self._line_judged and b"\r\n" in self._data:
            _judge_request_line(self._data.decode("latin-1"))  # garbage does not get to wait for its end
            self._line_judged = True
        if end < 0:
            return None
        self.rest = bytes(self._data[size:])
        return parse_request(bytes(self._data[:size]), max_fields=self._max_fields)


def parse_request(head: bytes, *, max_fields: int = 100) -> RequestHead:
    """Judges a complete head, blank line included. Raises `Refusal`."""
    text = head.decode("latin-1")
    method, target, position = _judge_request_line(text)
    fields, by_name = _parse_fields(text, position, max_fields)
    if "host" not in by_name:
        raise _bad("Host is missing")
    if not _HOST.fullmatch(by_name["host"]):
        raise _bad("Host is not a host")
    return RequestHead(method, target, fields, by_name)


def check_upgrade(request: RequestHead, http_paths: str = "") -> None:
    """Is it an opening handshake as RFC 6455, section 4.2.1, describes it? Raises `Refusal`.

    `http_paths`: where other requests may go, for people.
    """
    by_name = request.by_name
    if not request.wants_websocket:
        raise Refusal(
            426,
            RefusalCode.UPGRADE_REQUIRED,
            "this address speaks WebSocket: connect with a WebSocket client"
            + (f", or send HTTP requests to {http_paths}" if http_paths else ""),
            (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13")),
        )
    if request.method != "GET":
        raise _bad(f"an upgrade is a GET, not {request.method[:20]}")
    for name in ("content-length", "transfer-encoding"):
        if name in by_name:
            raise _bad(f"an upgrade has no body, so no {name}")
    if "expect" in by_name:
        raise _bad("an upgrade has no body to wait for, so no Expect")
    if pinned := _tokens(by_name["connection"]) & _PINNED:
        raise _bad(f"Connection must not name {', '.join(sorted(pinned))}")
    version = by_name.get("sec-websocket-version")
    if version != "13":
        raise Refusal(
            426,
            RefusalCode.UNSUPPORTED_VERSION,
            "only version 13 of the WebSocket protocol is spoken here (RFC 6455)",
            (("Sec-WebSocket-Version", "13"),),
        )
    offered = by_name.get("sec-websocket-protocol")
    if offered is not None and not _TOKEN_LIST.fullmatch(offered):
        raise _bad("Sec-WebSocket-Protocol must be a list of tokens")
    if not is_key(by_name.get("sec-websocket-key", "")):
        raise _bad("Sec-WebSocket-Key must be 16 bytes in base64")


def upgrade_request(target: str, fields: Fields) -> bytes:
    """The head that asks for a WebSocket, with these end-to-end fields."""
    lines = [f"GET {target} HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in fields]
    lines.append("\r\n")
    return "".join(lines).encode("latin-1")


def parse_response(head: bytes, *, max_fields: int = 100) -> ResponseHead:
    """Judges the complete head of an answer. Raises `BadResponse`."""
    text = head.decode("latin-1")
    line = _STATUS_LINE.match(text)
    if line is None or _NEVER_IN_A_HEAD.search(head):
        raise BadResponse("its answer is not HTTP/1.1")
    try:
        fields, by_name = _parse_fields(text, line.end(), max_fields)
    except Refusal as fault:
        raise BadResponse(f"its answer has a bad head: {fault.reason}") from None
    return ResponseHead(int(line[1]), fields, by_name)


def check_switch(head: ResponseHead, request: RequestHead) -> None:
    """Is this 101 the answer to that request? Raises `BadResponse` (RFC 6455 section 4.1)."""
    by_name = head.by_name
    if not _asks_to_switch(by_name):
        raise BadResponse("its 101 lacks 'Upgrade: websocket' or 'Connection: Upgrade'")
    if by_name.get("sec-websocket-accept") != accept_token(request.key):
        raise BadResponse("its 101 has a wrong Sec-WebSocket-Accept")
    chosen = by_name.get("sec-websocket-protocol")
    if chosen is not None and chosen not in request.subprotocols:
        raise BadResponse(f"its 101 chose a subprotocol that was not offered: {chosen!r}")
    if "sec-websocket-extensions" in by_name and "sec-websocket-extensions" not in request.by_name:
        raise BadResponse("its 101 chose an extension, and none was offered")


def _judge_request_line(text: str) -> tuple[str, str, int]:
    line = _REQUEST_LINE.match(text)
    if line is None:
        raise _bad("the request line is not 'GET /path HTTP/1.1'")
    method, target, version = line.groups()
    if version != "1.1":
        raise _bad("only HTTP/1.1 can be upgraded")
    if not target.startswith("/") or "#" in target:
        raise _bad("the target must be a path, with or without a query")
    return method, target, line.end()


def _parse_fields(text: str, position: int, max_fields: int) -> tuple[Fields, dict[str, str]]:
    fields: list[tuple[str, str]] = []
    by_name: dict[str, str] = {}
    match = _FIELD.match
    end = len(text) - 2
    while position < end:
        line = match(text, position)
        if line is None:
            raise _bad("a header line is malformed")
        position = line.end()
        name, value = line.groups()
        value = value.strip(" \t")
        lower = name.lower()
        if lower in by_name:
            if lower in _ONCE:
                raise _bad(f"{name} may be given once")
            separator = "; " if lower == "cookie" else ", "  # RFC 9113 section 8.2.3, RFC 9110 section 5.3
            by_name[lower] += separator + value
        else:
            by_name[lower] = value
        fields.append((name, value))
        if len(fields) > max_fields:
            raise _too_large(f"there are over {max_fields} headers")
    return tuple(fields), by_name


def _asks_to_switch(by_name: dict[str, str]) -> bool:
    """RFC 6455 asks for the same two fields in the request and in the 101."""
    upgrade, connection = by_name.get("upgrade", ""), by_name.get("connection", "")
    return "websocket" in _tokens(upgrade) and "upgrade" in _tokens(connection)


def _tokens(value: str) -> frozenset[str]:
    return frozenset(part.strip().lower() for part in value.split(","))


def end_to_end(fields: Fields, by_name: Mapping[str, str]) -> Fields:
    """Those that are meant for whoever is behind the recipient. `by_name` has `connection`, where it came."""
    dropped = _HOP_BY_HOP | _tokens(by_name.get("connection", ""))
    return tuple(item for item in fields if item[0].lower() not in dropped)


def _bad(reason: str) -> Refusal:
    return Refusal(400, RefusalCode.BAD_REQUEST, reason)


def _too_large(reason: str) -> Refusal:
    return Refusal(431, RefusalCode.HEAD_TOO_LARGE, reason)
