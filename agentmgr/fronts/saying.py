"""What a request says, whatever its protocol: the newest message, and what was said before. Pure."""

from __future__ import annotations

import re
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
