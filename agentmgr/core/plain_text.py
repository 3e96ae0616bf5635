"""The plain text mode: a person at a terminal, one line each way, and what a line means as yes or no.

Also how content that may be any JSON is shown as text: one rule for terminals, histories and fronts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .. import protocol

ASKS = "[yes/no]"
"""How a question ends."""


_TEXT_FIELDS = "text", "message", "content", "question"


def as_text(content: Any) -> str:
    """A string as it is; any other value as JSON."""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def message_text(content: Any) -> str:
    """The text of a message: of an object, its first field of `text`, `message`, `content` and `question`."""
    if isinstance(content, Mapping):
        content = next(
            (content[name] for name in _TEXT_FIELDS if isinstance(content.get(name), str)), content
        )
    return "" if content is None else as_text(content)


def as_plain_text(event: Mapping[str, Any]) -> str | None:
    """The line that stands for an event; None for those that say nothing to a person at a terminal."""
    name, content = event["event"], event["content"]
    if name == protocol.FINAL_ANSWER:
        return as_text(content)
    if name == protocol.USER_CONFIRM:
        return f"{_question(content)} {ASKS}"
    if name in (protocol.AGENT_ERROR, protocol.ERROR):
        return (
            f"[error] {content.get('message', '')}" if isinstance(content, Mapping) else f"[error] {content}"
        )
    if name == protocol.TIMEOUT:
        return "[error] the agent took too long"
    if name == protocol.INTERRUPTED:
        return "[interrupted]"
    if name == protocol.SESSION_END:
        return "[the session has ended]"
    return None


def _question(content: Mapping[str, Any]) -> str:
    tool, args = str(content.get("tool")), content.get("args")
    if message := content.get("message"):
        return str(message)
    # Who has no tool to ask about, writes `confirm("Delete all?")`.
    return tool if args is None and " " in tool else f"May I run {tool}({_brief(args)})?"


def _brief(args: Any) -> str:
    if isinstance(args, Mapping):
        return ", ".join(f"{name}={value!r}" for name, value in args.items())
    return "" if args is None else repr(args)


AGAIN = "please answer yes or no"

_YES = frozenset(
    {"y", "yes", "yeah", "yep", "sure", "ok", "okay", "of course", "certainly", "go ahead", "do it",
     "approve", "approved", "confirm", "confirmed", "agreed", "true", "1",
     "是", "是的", "好", "好的", "可以", "对", "行", "同意", "确认", "はい",
     "ja", "oui", "si", "sí", "sim", "да"}
)  # fmt: skip
_NO = frozenset(
    {"n", "no", "nope", "never", "don't", "do not", "no way", "of course not", "not now",
     "deny", "denied", "reject", "rejected", "refuse", "stop", "cancel", "abort", "false", "0",
     "不", "不是", "不要", "不行", "不可以", "不同意", "否", "取消", "いいえ",
     "nein", "non", "não", "нет"}
)  # fmt: skip
_POLITE = (" please", " thanks", " thank you")


def yes_or_no(text: str) -> bool | None:
    """None where it is neither: what was not understood is no answer, so the question stays open."""
    words = " ".join(text.replace("\u2019", "'").casefold().split()).rstrip(".!?。！？ ")
    for polite in _POLITE:
        words = words.removesuffix(polite).rstrip(",")
    return True if words in _YES else False if words in _NO else None
