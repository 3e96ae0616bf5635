"""The plain text mode: a person at a terminal, one line each way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .. import protocol


def as_plain_text(event: Mapping[str, Any]) -> str | None:
    """The line that stands for an event; None for those that say nothing to a person at a terminal."""
    name, content = event["event"], event["content"]
    if name == protocol.FINAL_ANSWER:
        return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    if name == protocol.USER_CONFIRM:
        what = content.get("message") or f"May I run {content.get('tool')}({_brief(content.get('args'))})?"
        return f"{what} [yes/no]"
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


def _brief(args: Any) -> str:
    if isinstance(args, Mapping):
        return ", ".join(f"{name}={value!r}" for name, value in args.items())
    return "" if args is None else repr(args)
