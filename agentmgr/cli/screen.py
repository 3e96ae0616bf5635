"""What a person sees of an agent's events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TextIO

from ..client.events import AgentEvent, failure_message
from .render import colourful

DIM, PLAIN = "\x1b[2m", "\x1b[0m"


class Screen:
    """Shows events as they come; `quiet` leaves all but the answer out, `raw` shows them as JSON."""

    def __init__(self, out: TextIO, *, raw: bool, quiet: bool) -> None:
        self._out = out
        self._raw = raw
        self._quiet = quiet
        self._colours = colourful(out)
        self._streamed = False

    def show(self, event: AgentEvent) -> None:
        if self._raw:
            self._line(json.dumps(event.fields, ensure_ascii=False))
        elif not self._quiet:
            self._show(event)

    def answer(self, content: Any) -> None:
        if not self._raw:
            self._line(text_of(content))

    def _show(self, event: AgentEvent) -> None:
        name, content = event.event, event.content
        if name == "agent.partial_answer":
            self._out.write(str(content))
            self._out.flush()
            self._streamed = True
        elif name == "agent.final_answer":
            self._line("" if self._streamed else text_of(content))
        elif name == "agent.thinking":
            self.aside(f"… {text_of(content)}")
        elif name == "agent.tool_call" and isinstance(content, Mapping):
            self.aside(f"→ {content.get('tool')} {text_of(content.get('args', ''))}")
        elif name == "agent.tool_result" and isinstance(content, Mapping):
            self.aside(f"← {text_of(content.get('result', ''))}")
        elif name in ("agent.error", "agent.timeout", "agent.interrupted", "system.error"):
            self.aside(failure_message(event))
        elif name == "system.notice" and event.code == "gap":
            self.aside(f"{content.get('message')}")
        elif name == "system.notice" and event.code == "resumed":
            self.aside("(connected again)")
        elif name == "agent.session_end":
            self.aside("(the session has ended)")

    def aside(self, text: str) -> None:
        self._line(f"{DIM}{text}{PLAIN}" if self._colours else text)

    def _line(self, text: str) -> None:
        self._out.write(f"\n{text}\n" if self._streamed and text else f"{text}\n")
        self._out.flush()
        self._streamed = False


def text_of(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
