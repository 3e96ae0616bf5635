"""What a request says, whatever its protocol: the newest message, and what was said before. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from attrs import Factory, evolve, field, frozen

from .problem import Problem, invalid, required, typed

MOST_ATTACHMENTS = 32
"""Of one message; the bytes of all are bounded with the body."""
_URL = re.compile(r"https?://[^\s]{1,8000}", re.IGNORECASE)
_DATA_HEAD = re.compile(
    r"data:([\w.+-]{1,100}/[\w.+-]{1,100})?((?:;[\w.+-]{1,100}=[\w.+-]{1,100}){0,10})(;base64)?,",
    re.IGNORECASE | re.ASCII,
)
_PART = 2**20
_END = 40  # characters: where a question says that it is one


@frozen
class Attachment:
    """As an agent finds it in `message.attachments`."""

    kind: str  #: image or file
    url: str  #: http, https or data
    name: str | None = None
    digest: str = field(
        default=Factory(lambda self: _digest(self.url), takes_self=True), eq=False, repr=False
    )

    @property
    def plain(self) -> dict[str, Any]:
        return {"kind": self.kind, "url": self.url} | ({"name": self.name} if self.name else {})


def attachment(kind: str, url: str, param: str, name: str | None = None) -> Attachment:
    """Raises `Problem` for what is no URL that an agent could read."""
    if not (_URL.fullmatch(url) or _is_data_url(url)):
        raise Problem(400, "invalid_field", f"{param} must be an http, https or data URL.", param=param)
    return Attachment(kind, url, name)


def in_data_url(data: str) -> str:
    """`data` as a data URL: OpenAI's clients send files as bare base64 too."""
    return data if ":" in data[:64] else f"data:application/octet-stream;base64,{data}"


Content = tuple[str, tuple[Attachment, ...]]
"""The text of a message, and its attachments."""


def content_of(
    content: object, where: str, read: Callable[[str, dict[str, Any], str], str | Attachment]
) -> Content:
    """Of a message whose content is a string, a list of parts, or missing.

    `read` makes a text or an attachment of a part, by its type, its fields and where it is. Raises `Problem`.
    """
    if content is None or isinstance(content, str):
        return content or "", ()
    texts, attachments = list[str](), list[Attachment]()
    for place, item in enumerate(typed(content, list, where)):
        here = f"{where}[{place}]"
        part = typed(item, dict, here)
        made = read(required(part, "type", str, f"{here}."), part, here)
        if isinstance(made, str):
            texts.append(made)
        else:
            attachments.append(made)
    if len(attachments) > MOST_ATTACHMENTS:
        raise invalid(where, f"must have at most {MOST_ATTACHMENTS} images and files")
    return "\n".join(texts), tuple(attachments)


def _is_data_url(url: str) -> bool:
    # What is behind the head may be megabytes, and a pattern takes ten times as long.
    return (
        _DATA_HEAD.match(url) is not None
        and url.isascii()
        and " " not in url
        and all(url[at : at + _PART].isprintable() for at in range(0, len(url), _PART))
    )


@frozen
class ChatMessage:
    """One message of a conversation."""

    role: str  #: user or assistant
    text: str
    attachments: tuple[Attachment, ...] = ()
    digest: str = field(  #: of its text, but for white space
        default=Factory(lambda self: digest_of(self.text), takes_self=True), eq=False, repr=False
    )

    @property
    def entry(self) -> dict[str, Any]:
        """As a session's history has it."""
        entry: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.attachments:
            entry["attachments"] = [each.plain for each in self.attachments]
        return entry

    @property
    def size(self) -> int:
        """About how many bytes it is."""
        return len(self.text) + sum(len(part.url) for part in self.attachments)

    @property
    def outline(self) -> ChatMessage:
        """What is needed of it once it was said: the digests, and the end of its text."""
        parts = tuple(evolve(part, url="") for part in self.attachments)
        return evolve(self, text=self.text.rstrip()[-_END:], attachments=parts)


def digest_of(text: str) -> str:
    """Equal for texts that differ in white space only."""
    return _digest(" ".join(text.split()))


def _digest(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@frozen
class Prompt:
    message: ChatMessage  #: the newest, of the user
    history: tuple[ChatMessage, ...] = ()  #: before it
    instructions: str = ""
    beside: Mapping[str, Any] = field(factory=dict)  #: what else is in the message's metadata

    @property
    def size(self) -> int:
        """About how many bytes its newest message is."""
        return self.message.size + len(self.instructions)

    @property
    def outline(self) -> Prompt:
        """What is needed of it once it was said."""
        return Prompt(self.message.outline, tuple(each.outline for each in self.history))

    @property
    def metadata(self) -> dict[str, Any]:
        """What a `user.message` says besides its text."""
        metadata = dict(self.beside)
        if self.message.attachments:
            metadata["attachments"] = [each.plain for each in self.message.attachments]
        if self.instructions:
            metadata["instructions"] = self.instructions
        return metadata


_OPEN_WEBUI = "x-openwebui-chat-id"
_KEY_HEADERS = ("x-session-id", "x-conversation-id", _OPEN_WEBUI)
_OWN_TASK = "### Task:"
"""How Open WebUI's own requests for titles and tags begin, which carry the key of the chat they are about."""
_LONGEST_KEY = 200


def session_key(
    headers: Mapping[str, str],
    metadata: Mapping[str, Any],
    cache_key: str | None,
    prompt: Prompt | None = None,
) -> str | None:
    """What a client calls its conversation; None where it does not, or where the request is no part of it: a
    chat program's own (for titles, tags, follow-up questions) names its task, or begins with it.
    """
    if metadata.get("task") or headers.get("x-task"):
        return None
    if prompt is not None and prompt.message.text.startswith(_OWN_TASK) and _OPEN_WEBUI in headers:
        return None
    named = [headers.get(name) for name in _KEY_HEADERS]
    key = next(filter(None, (*named, metadata.get("session_id"), cache_key)), None)
    if not isinstance(key, str):
        return None
    return key if len(key) <= _LONGEST_KEY else sha256(key.encode("utf-8", "replace")).hexdigest()


def is_retry(headers: Mapping[str, str]) -> bool:
    """Whether it is a further try of one request, as OpenAI's packages count them."""
    return headers.get("x-stainless-retry-count", "0") != "0"
