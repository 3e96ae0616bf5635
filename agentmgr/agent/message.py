"""What a client says, who it is, and what it answers to a question: the values that an author is handed."""

from __future__ import annotations

from base64 import b64decode
from binascii import Error
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from attrs import Factory, frozen

from ..core.plain_text import message_text


@frozen
class Client:
    """Who is at the other end."""

    address: str | None = None
    identity: str | None = None  #: as the gateway authenticated it; None: anonymous
    headers: Mapping[str, str] = Factory(dict)
    named_session: str | None = None  #: the id in its handshake, by which a gateway has led it here


@frozen
class Attachment:
    """An image or file that came with a message, by its URL."""

    kind: str  #: image or file
    url: str  #: whatever the client says: http, https or data
    name: str | None = None

    @property
    def media_type(self) -> str:
        """As a data URL says, or else as the name ends."""
        head, comma, _ = self.url.partition(",")
        if comma and head[:5].lower() == "data:":
            return head[5:].partition(";")[0].lower() or "text/plain"  # RFC 2397
        from mimetypes import guess_type  # which most agents never need

        guessed, _ = guess_type(self.name or urlsplit(self.url).path)
        return guessed or "application/octet-stream"

    @property
    def data(self) -> bytes | None:
        """The bytes inside a data URL; None for any other, which is for the agent to fetch, or not to."""
        head, comma, data = self.url.partition(",")
        if not (comma and head[:5].lower() == "data:"):
            return None
        plain = unquote_to_bytes(data)
        if not head.lower().endswith(";base64"):
            return plain
        try:
            return b64decode(plain + b"=" * (-len(plain) % 4))
        except Error:
            return None


class Message(str):
    """A client's message: the text itself, with all of it in `content` and `metadata`.

    Clients of other protocols say what is beside the text in `metadata` (`agentmgr.fronts`).
    """

    content: Any
    metadata: Mapping[str, Any]
    attempt: int  #: 2 and more: the instance died in the one before, and the service says `on_crash=retry`

    def __new__(cls, content: Any, metadata: Mapping[str, Any] | None = None) -> Message:
        message = super().__new__(cls, message_text(content))
        message.content = content
        message.metadata = metadata or {}
        message.attempt = 1
        return message

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """Images and files."""
        listed = self.metadata.get("attachments")
        found = []
        for each in listed if isinstance(listed, list) else ():
            match each:
                case {"kind": str(kind), "url": str(url)}:
                    name = each.get("name")
                    found.append(Attachment(kind, url, name if isinstance(name, str) else None))
        return tuple(found)

    @property
    def instructions(self) -> str:
        """How the client wants to be answered (a system prompt); "" where it says nothing of that."""
        said = self.metadata.get("instructions")
        return said if isinstance(said, str) else ""


@frozen
class Decision:
    """What a person answered to `Session.confirm`; true when it was yes."""

    approved: bool
    content: Mapping[str, Any] = Factory(dict)  #: all of the client's answer

    def __bool__(self) -> bool:
        return self.approved
