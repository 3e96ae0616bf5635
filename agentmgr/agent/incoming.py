"""What comes over the wire from a client, judged: a `ClientEvent`, or `BadInput` with a code for programs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from .. import jsontext
from ..protocol import MESSAGE, PING, ErrorCode
from .limits import MAX_ID_CHARS, weigh

_WEIGHED = 2**20
_MARKS = {",": 96, ":": 128, "[": 64, "{": 192}
"""Bytes for each of them: enough for the value behind it, its name, and its place in the list or object."""


class BadInput(Exception):
    """A frame that cannot be taken. The connection goes on; the client gets `code` and the message.

    `details` are more fields for programs, beside those two.
    """

    def __init__(self, code: ErrorCode, message: str, **details: str) -> None:
        super().__init__(message)
        self.code = code
        self.details = details


@frozen
class ClientEvent:
    event: str
    session_id: str | None
    step_id: str | None
    content: Any
    metadata: Mapping[str, Any]
    fields: Mapping[str, Any]  #: the whole object
    size: int = 0  #: what it takes in memory, in bytes

    def find(self, name: str) -> Any:
        """A value at the top, or inside `content`, where the earlier system's clients put it."""
        value = self.fields.get(name)
        if value is None and isinstance(self.content, Mapping):
            value = self.content.get(name)
        return value


def text_of(frame: str | bytes, max_bytes: int) -> str:
    """The text of a frame. Raises `BadInput`: `not_utf8`, `too_large` (0: no limit)."""
    size = len(frame) if isinstance(frame, bytes) or frame.isascii() else len(frame.encode())
    if max_bytes and size > max_bytes:
        raise BadInput(ErrorCode.TOO_LARGE, f"a message of {size} bytes is over the limit of {max_bytes}")
    if isinstance(frame, str):
        return frame
    try:
        return frame.decode()
    except UnicodeDecodeError:
        raise BadInput(ErrorCode.NOT_UTF8, "a message must be text in UTF-8") from None


def looks_like_an_event(text: str) -> bool:
    """Whether a client whose first frame this is speaks events; else it speaks plain text."""
    return text.lstrip()[:1] == "{"


def parse(text: str) -> ClientEvent:
    """Raises `BadInput`: `invalid_json`, `too_deep`, `invalid_event`, `invalid_field`."""
    try:
        fields = jsontext.parse(text)
    except jsontext.TooDeep as error:
        raise BadInput(ErrorCode.TOO_DEEP, str(error)) from None
    except jsontext.NotJson as error:
        raise BadInput(ErrorCode.INVALID_JSON, str(error)) from None
    if not isinstance(fields, dict):
        raise BadInput(ErrorCode.INVALID_EVENT, "an event is a JSON object")

    name = fields.get("event")
    if name is None and fields.get("type") == "ping":
        name = PING
    if not isinstance(name, str):
        raise BadInput(ErrorCode.INVALID_EVENT, f'an event needs a name, as in {{"event": "{MESSAGE}"}}')
    for field in ("session_id", "step_id"):
        if not isinstance(fields.get(field), str | None):
            raise BadInput(ErrorCode.INVALID_FIELD, f"{field} must be a string")
        if len(fields.get(field) or "") > MAX_ID_CHARS:
            raise BadInput(ErrorCode.INVALID_FIELD, f"{field} must have at most {MAX_ID_CHARS} characters")
    metadata = fields.get("metadata")
    if not isinstance(metadata, dict | None):
        raise BadInput(ErrorCode.INVALID_FIELD, "metadata must be an object")
    content = fields.get("content")
    return ClientEvent(
        name,
        fields.get("session_id"),
        fields.get("step_id"),
        content,
        metadata or {},
        fields,
        _size(fields, text),
    )


def _size(fields: Any, text: str) -> int:
    size = weigh(fields, _WEIGHED)
    if size > _WEIGHED:  # to weigh a million values would take as long as to parse them
        size = sys.getsizeof(text) + sum(cost * text.count(mark) for mark, cost in _MARKS.items())
    return size


def sequence_number(event: ClientEvent, name: str) -> int:
    """The `seq` or `last_seq` of an event; 0 where it names none. Raises `BadInput`: `invalid_field`."""
    value = event.find(name)
    if value is None:
        last_event_id = event.find("last_event_id")
        if last_event_id is None:
            return 0
        tail = str(last_event_id).rpartition("-")[2]
        value = int(tail) if tail.isascii() and tail.isdigit() and len(tail) < 19 else None
    if type(value) is not int or value < 0:
        raise BadInput(ErrorCode.INVALID_FIELD, f"{name} must be a whole number, 0 or more")
    return value


def creation(event: ClientEvent) -> tuple[str | None, list[dict[str, Any]], bool]:
    """The name and the history of a `user.create_session`, and whether it is transient.

    Raises `BadInput`: `invalid_field`.
    """
    name, history, transient = session_name(event), event.find("history"), event.find("transient")
    entries = [] if history is None else history
    if not isinstance(entries, list) or not all(map(_is_entry, entries)):
        said = 'history must be a list of {"role": "user" or "assistant", "content": …}'
        raise BadInput(ErrorCode.INVALID_FIELD, said)
    if not isinstance(transient, bool | None):
        raise BadInput(ErrorCode.INVALID_FIELD, "transient must be true or false")
    return name, entries, bool(transient)


def session_name(event: ClientEvent) -> str | None:
    """Raises `BadInput`: `invalid_field`."""
    name = event.find("name")
    if name is not None and not (isinstance(name, str) and 0 < len(name) <= MAX_ID_CHARS):
        raise BadInput(ErrorCode.INVALID_FIELD, f"name must be a string of 1 to {MAX_ID_CHARS} characters")
    return name


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("role") in ("user", "assistant") and "content" in entry
