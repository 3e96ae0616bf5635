"""JSON-RPC 2.0 by lines: bytes in, calls and answers out, and back. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from attrs import define, field, frozen

from .. import jsontext

MAX_LINE_BYTES = 32 * 2**20
"""Of one message. An editor sends images inside it; what is longer is dropped as it comes."""

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
# Of ACP.
AUTH_REQUIRED = -32000
RESOURCE_NOT_FOUND = -32002

Id = str | int | None
T = TypeVar("T")


class RpcError(Exception):
    """An answer that says why a request failed."""

    def __init__(self, code: int, message: str, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.data = code, message, data

    @property
    def plain(self) -> dict[str, Any]:
        plain: dict[str, Any] = {"code": self.code, "message": self.message}
        return plain if self.data is None else {**plain, "data": self.data}


@frozen
class Request:
    id: Id
    method: str
    params: Mapping[str, Any]


@frozen
class Notification:
    method: str
    params: Mapping[str, Any]


@frozen
class Answer:
    """To a request of ours."""

    id: Id
    result: Any = None
    error: Mapping[str, Any] | None = None


@frozen
class Refused:
    """A line that is none of these; its sender gets the error."""

    id: Id
    error: RpcError


Message = Request | Notification | Answer | Refused


@define
class Lines:
    """Cuts what comes into lines, and reads them."""

    max_bytes: int = MAX_LINE_BYTES
    _pieces: list[bytes] = field(factory=list, init=False)
    _size: int = field(default=0, init=False)

    def feed(self, data: bytes) -> Iterator[Message]:
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._add(piece)
            size, line = self._size, b"".join(self._pieces)
            self._pieces, self._size = [], 0
            if size > self.max_bytes:
                why = f"a message may have {self.max_bytes} bytes at most, and this one has {size}"
                yield Refused(None, RpcError(INVALID_REQUEST, why))
            elif line.strip():
                yield read(line)
        self._add(rest)

    def _add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self.max_bytes:
            self._pieces = []
        elif piece:
            self._pieces.append(piece)


def read(line: bytes) -> Message:
    try:
        fields = jsontext.parse(line)
    except jsontext.NotJson as error:
        return Refused(None, RpcError(PARSE_ERROR, str(error)))
    if not isinstance(fields, dict):
        return Refused(None, RpcError(INVALID_REQUEST, "a message must be an object"))
    has_id, id = "id" in fields, fields.get("id")
    if not (id is None or isinstance(id, str) or type(id) is int):
        return Refused(None, RpcError(INVALID_REQUEST, "id must be a string or a whole number"))
    if "method" not in fields and has_id and ("result" in fields or "error" in fields):
        failed = fields.get("error")
        return Answer(id, fields.get("result"), failed if isinstance(failed, dict | None) else {})
    method, params = fields.get("method"), fields.get("params")
    if not isinstance(method, str):
        return Refused(id, RpcError(INVALID_REQUEST, "a message needs the name of a method"))
    if not isinstance(params, dict | None):
        return Refused(id, RpcError(INVALID_PARAMS, "params must be an object"))
    return Request(id, method, params or {}) if has_id else Notification(method, params or {})


def write(fields: Mapping[str, Any]) -> bytes:
    """One line. What agents say may be more than JSON: readers are strict, and would end the connection."""
    fields = {"jsonrpc": "2.0", **fields}
    try:
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(json.loads(json.dumps(fields), parse_constant=str), ensure_ascii=False)
    return text.encode(errors="replace") + b"\n"


def required(fields: Mapping[str, Any], name: str, kind: type[T], where: str = "") -> T:
    """Raises `RpcError` for a field that is missing or of another type."""
    value = fields.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words: dict[type, str] = {str: "a string", int: "a whole number", list: "a list", dict: "an object"}
        raise invalid(f"{where}{name} must be {words[kind]}")
    return value


def invalid(message: str) -> RpcError:
    return RpcError(INVALID_PARAMS, message)
