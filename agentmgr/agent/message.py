"""What a client says, who it is, and what it answers to a question: the values that an author is handed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from attrs import Factory, frozen


@frozen
class Client:
    """Who is at the other end."""

    address: str | None = None
    identity: str | None = None  #: as the gateway authenticated it; None: anonymous
    headers: Mapping[str, str] = Factory(dict)


class Message(str):
    """A client's message: the text itself, with all of it in `content` and `metadata`."""

    content: Any
    metadata: Mapping[str, Any]
    attempt: int  #: 2 and more: the instance died in the one before, and the service says `on_crash=retry`

    def __new__(cls, content: Any, metadata: Mapping[str, Any] | None = None) -> Message:
        message = super().__new__(cls, _text_in(content))
        message.content = content
        message.metadata = metadata or {}
        message.attempt = 1
        return message


def _text_in(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        for name in ("text", "message", "content", "question"):
            if isinstance(content.get(name), str):
                return str(content[name])
    return "" if content is None else json.dumps(content, ensure_ascii=False)


@frozen
class Decision:
    """What a person answered to `Session.confirm`; true when it was yes."""

    approved: bool
    content: Mapping[str, Any] = Factory(dict)  #: all of the client's answer

    def __bool__(self) -> bool:
        return self.approved
