"""What a request says, whatever its protocol: the newest message, and what was said before. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from attrs import frozen

from .problem import Problem

MOST_ATTACHMENTS = 32
"""Of one message; the bytes of all are bounded with the body."""
_URL = re.compile(r"https?://[^\s]{1,8000}", re.IGNORECASE)
_DATA_URL = re.compile(
    r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[\w.+-]+)*)(;base64)?,[\x21-\x7e]*", re.IGNORECASE
)


@frozen
class Attachment:
    """As an agent finds it in `message.attachments`."""

    kind: str  #: image or file
    url: str  #: http, https or data
    name: str | None = None

    @property
    def plain(self) -> dict[str, Any]:
        return {"kind": self.kind, "url": self.url} | ({"name": self.name} if self.name else {})


def attachment(kind: str, url: str, param: str, name: str | None = None) -> Attachment:
    """Raises `Problem` for what is no URL that an agent could read."""
    if not (_URL.fullmatch(url) or _DATA_URL.fullmatch(url)):
        raise Problem(400, "invalid_field", f"{param} must be an http, https or data URL.", param=param)
    return Attachment(kind, url, name)


@frozen
class Said:
    """One message of a conversation."""

    role: str  #: user or assistant
    text: str
    attachments: tuple[Attachment, ...] = ()

    @property
    def entry(self) -> dict[str, Any]:
        """As a session's history has it."""
        entry: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.attachments:
            entry["attachments"] = [each.plain for each in self.attachments]
        return entry


@frozen
class Saying:
    message: Said  #: the newest, of the user
    history: tuple[Said, ...] = ()  #: before it
    instructions: str = ""

    @property
    def metadata(self) -> dict[str, Any]:
        """What a `user.message` says besides its text."""
        metadata: dict[str, Any] = {}
        if self.message.attachments:
            metadata["attachments"] = [each.plain for each in self.message.attachments]
        if self.instructions:
            metadata["instructions"] = self.instructions
        return metadata


_OPEN_WEBUI = "x-openwebui-chat-id"
_KEY_HEADERS = ("x-session-id", "x-conversation-id", _OPEN_WEBUI)
_ERRAND = "### Task:"
"""How Open WebUI's errands begin, which carry the key of the chat that they are about."""
_LONGEST_KEY = 200


def session_key(
    headers: Mapping[str, str],
    metadata: Mapping[str, Any],
    cache_key: str | None,
    saying: Saying | None = None,
) -> str | None:
    """What a client calls its conversation; None where it does not, or asks for something beside it: a chat
    program's own errands (titles, tags, follow-up questions) say which task they are, or show it.
    """
    if metadata.get("task") or headers.get("x-task"):
        return None
    if saying is not None and saying.message.text.startswith(_ERRAND) and _OPEN_WEBUI in headers:
        return None
    named = [headers.get(name) for name in _KEY_HEADERS]
    key = next(filter(None, (*named, metadata.get("session_id"), cache_key)), None)
    if not isinstance(key, str):
        return None
    return key if len(key) <= _LONGEST_KEY else sha256(key.encode("utf-8", "replace")).hexdigest()
