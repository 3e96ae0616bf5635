"""Whether what a client says was said before is what a session knows. Pure.

A client that asks with its whole history may have changed it: edited a message, dropped an answer, or taken
up an older branch. A session that knows something else is then not the one to go on with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

from ..core.plain_text import ASKS, message_text
from .prompt import ChatMessage, digest_of

_Line = tuple[str, str | None]  # role, and text but for white space; None: any text


def digest(said: Iterable[ChatMessage]) -> str:
    """Equal for conversations in which the same was said, but for white space."""
    lines = [(each.role, each.digest, [part.digest for part in each.attachments]) for each in said]
    return sha256(json.dumps(lines).encode()).hexdigest()


def same(
    ours: Sequence[Mapping[str, Any]], theirs: Sequence[ChatMessage], *, older_dropped: bool = False
) -> bool:
    """`ours`: as `agent.state_exported` shows it; `older_dropped`: it shows the newest entries only.

    Of an answer that was stopped, a client has as much as it got; also where it stopped reading alone, and
    the turn went on.
    """
    known = [_line(entry) for entry in ours]
    known = [line for line in known if line[1] != "" or line[0] == "user"]
    said = _folded(theirs)
    if older_dropped:
        said = said[max(0, len(said) - len(known)) :]
    return len(known) == len(said) and all(
        role == their_role and (our_text is None or text in (None, our_text) or _begins(role, our_text, text))
        for (role, our_text), (their_role, text) in zip(known, said, strict=True)
    )


def said(ours: Iterable[Mapping[str, Any]]) -> Iterator[ChatMessage]:
    """What a session knows, as messages."""
    for entry in ours:
        yield ChatMessage(str(entry.get("role")), message_text(entry.get("content")))


def asks(said: Sequence[ChatMessage]) -> bool:
    """Whether the client's last message from the agent is a question."""
    return bool(said) and said[-1].role == "assistant" and said[-1].text.rstrip().endswith(ASKS)


def stopped(turn: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a client has that has read a part of the answer that a turn is giving."""
    message = {"role": "user", "content": turn["content"]}
    return [message, {"role": "assistant", "content": "", "incomplete": True}]


def ends_with(ours: Sequence[Mapping[str, Any]], message: ChatMessage) -> bool:
    """Whether the last turn that the session knows is of this message."""
    if len(ours) < 2 or (ours[-2].get("role"), ours[-1].get("role")) != ("user", "assistant"):
        return False
    return digest_of(message_text(ours[-2].get("content"))) == message.digest


def _line(entry: Mapping[str, Any]) -> _Line:
    text = None if entry.get("incomplete") else _plain(message_text(entry.get("content")))
    return str(entry.get("role")), text


def _begins(role: str, whole: str, part: str) -> bool:
    return role == "assistant" and whole.startswith(part)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _folded(theirs: Iterable[ChatMessage]) -> list[_Line]:
    """A question of the agent and its answer are messages to the client, and part of one turn to us."""
    lines: list[_Line] = []
    answers = False  # the next message answers a question
    goes_on = False  # the next answer goes on with the one before the question
    for said in theirs:
        if said.role == "user":
            if answers:
                answers, goes_on = False, True
                continue
            lines.append(("user", _plain(said.text)))
            goes_on = False
            continue
        if not said.text:
            continue
        answers = said.text.rstrip().endswith(ASKS)
        if goes_on:
            lines[-1] = ("assistant", None)
        else:
            lines.append(("assistant", None if answers else _plain(said.text)))
        goes_on = False
    return lines
