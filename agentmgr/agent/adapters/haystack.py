"""Haystack: https://docs.haystack.deepset.ai; its Agent, and pipelines.

Of a pipeline's open inputs, those for text get the message, and `messages` the whole conversation.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ..events import partial_answer, thinking, tool_call, tool_result
from ..message import Message
from ..session import Session
from . import leave_out, plain, said_before

_TEXTS = ("query", "text", "question", "prompt", "message", "user_input")


def fits(subject: Any) -> bool:
    return callable(getattr(subject, "run_async", None)) or hasattr(subject, "get_component")


class Adapter:
    def __init__(self, theirs: Any) -> None:
        self._theirs = theirs
        self._messages: dict[str, list[Any]] = {}  # of each session, without the author's system prompt

    async def on_session_end(self, session: Session) -> None:
        self._messages.pop(session.id, None)

    async def on_message(self, session: Session, message: Message) -> Any:
        if message.attachments:
            leave_out("attachments", "the adapter of Haystack passes on text")
        kind = sys.modules["haystack.dataclasses"].ChatMessage
        if session.id not in self._messages:
            self._messages[session.id] = [_of(kind, role, str(said)) for said, role in said_before(session)]
        aside = [kind.from_system(message.instructions)] if message.instructions else []
        said = [*aside, *self._messages[session.id], kind.from_user(str(message))]
        if hasattr(self._theirs, "get_component"):
            result = await self._theirs.run_async(_inputs(self._theirs, str(message), said))
            answer = _answer(result)
            said.append(kind.from_assistant(answer if isinstance(answer, str) else json.dumps(answer)))
        else:

            async def show(chunk: Any) -> None:
                await _show(session, chunk)

            result = await self._theirs.run_async(messages=said, streaming_callback=show)
            said, answer = result["messages"], result["last_message"].text
        self._messages[session.id] = [each for each in said if each.role.value != "system"]
        return answer

    async def export_memory(self, session: Session) -> str | None:
        said = self._messages.get(session.id)
        return json.dumps([plain(each.to_dict()) for each in said]) if said else None

    async def import_memory(self, session: Session, text: str) -> None:
        kind = sys.modules["haystack.dataclasses"].ChatMessage
        self._messages[session.id] = [kind.from_dict(each) for each in json.loads(text)]


def _of(kind: Any, role: str, text: str) -> Any:
    return kind.from_user(text) if role == "user" else kind.from_assistant(text)


def _inputs(pipeline: Any, text: str, said: list[Any]) -> dict[str, dict[str, Any]]:
    given: dict[str, dict[str, Any]] = {}
    for component, sockets in pipeline.inputs().items():
        for name in sockets:
            if name in _TEXTS:
                given.setdefault(component, {})[name] = text
            elif name == "messages":
                given.setdefault(component, {})[name] = said
    return given


def _answer(result: Any) -> Any:
    """The one thing that a pipeline gives, where it is a text or a reply; else all of it."""
    outputs = [value for component in result.values() for value in component.values()]
    replies = [value for name in ("replies", "last_message", "answers") for value in _all(result, name)]
    found = replies[0] if replies else outputs[0] if len(outputs) == 1 else plain(result)
    if isinstance(found, list) and found:
        found = found[0]
    for name in ("text", "data"):
        if isinstance(text := getattr(found, name, None), str):
            return text
    return found if isinstance(found, str) else plain(found)


def _all(result: Any, name: str) -> list[Any]:
    return [component[name] for component in result.values() if name in component]


async def _show(session: Session, chunk: Any) -> None:
    if chunk.reasoning is not None and chunk.reasoning.reasoning_text:
        await session.emit(thinking(chunk.reasoning.reasoning_text))
    if chunk.content:
        await session.emit(partial_answer(chunk.content))
    if (done := chunk.tool_call_result) is not None:
        call = done.origin
        await session.emit(tool_call(call.tool_name, plain(call.arguments), step_id=call.id))
        result = done.result if isinstance(done.result, str) else plain(done.result)
        await session.emit(tool_result(call.tool_name, result, success=not done.error, step_id=call.id))
