"""What a person sees of an agent's events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import protocol
from ..client.events import AgentEvent, failure_message
from ..core.plain_text import as_text
from ..protocol import NoticeCode
from .out import painted, say, say_json


class Screen:
    """Shows events as they come; `quiet` leaves all but the answer out, `raw` shows them as JSON."""

    def __init__(self, *, raw: bool, quiet: bool) -> None:
        self._raw = raw
        self._quiet = quiet
        self._streamed = False
        self._half = ""

    def show(self, event: AgentEvent) -> None:
        if self._raw:
            say_json(event.fields, indent=None, flush=True)
        elif not self._quiet:
            self._show(event)

    def answer(self, content: Any) -> None:
        if not self._raw:
            self._line(as_text(content))

    def _show(self, event: AgentEvent) -> None:
        name, content = event.event, event.content
        if name == protocol.PARTIAL_ANSWER:
            say(self._whole(str(content)), lines=True, end="", flush=True)
            self._streamed = True
        elif name == protocol.FINAL_ANSWER:
            self._line("" if self._streamed else as_text(content))
        elif name == protocol.THINKING:
            self.aside(f"… {as_text(content)}")
        elif name == protocol.TOOL_CALL and isinstance(content, Mapping):
            self.aside(f"→ {content.get('tool')} {as_text(content.get('args', ''))}")
        elif name == protocol.TOOL_RESULT and isinstance(content, Mapping):
            self.aside(f"← {as_text(content.get('result', ''))}")
        elif name in protocol.TURN_ENDS or name == protocol.ERROR:
            self.aside(failure_message(event))
        elif name == protocol.NOTICE and event.code == NoticeCode.GAP:
            self.aside(f"{content.get('message')}")
        elif name == protocol.NOTICE and event.code == NoticeCode.RESUMED:
            self.aside("(connected again)")
        elif name == protocol.SESSION_END:
            self.aside("(the session has ended)")

    def _whole(self, text: str) -> str:
        """Without the half of a character at its end, which waits for its other half in the next piece."""
        text = (self._half + text).encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return text.removesuffix(self._half)

    def aside(self, text: str) -> None:
        self._line(painted(text, "dim", lines=True))

    def _line(self, text: str) -> None:
        if self._half:
            say(self._half, end="")
            self._half = ""
        if self._streamed and text:
            say()
        say(text, lines=True, flush=True)
        self._streamed = False


def question_text(content: Any) -> str:
    """What `agent.user_confirm` asks: its sentence, else the tool and its arguments."""
    if not isinstance(content, Mapping):
        return as_text(content)
    args = content.get("args")
    return str(content.get("message") or f"{content.get('tool')} {as_text(args) if args else ''}".strip())
