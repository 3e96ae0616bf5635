"""Microsoft Agent Framework: https://learn.microsoft.com/agent-framework; `Agent.run`, and tool approvals."""

from __future__ import annotations

import json
import sys
from typing import Any

from ..events import partial_answer, thinking, tool_call, tool_result
from ..message import Message
from ..session import Session
from . import arguments, plain, said_before, say_usage


def fits(subject: Any) -> bool:
    return callable(getattr(subject, "run", None)) and callable(getattr(subject, "create_session", None))


class Adapter:
    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self._sessions: dict[str, Any] = {}  # theirs, under the id of ours

    async def on_session_end(self, session: Session) -> None:
        self._sessions.pop(session.id, None)

    async def on_message(self, session: Session, message: Message) -> Any:
        said: list[Any] = []
        if (theirs := self._sessions.get(session.id)) is None:
            theirs = self._sessions[session.id] = self._agent.create_session(session_id=session.id)
            said = [_message(before, role) for before, role in said_before(session)]
        said.append(_message(message))
        options = {"instructions": message.instructions} if message.instructions else None
        while True:
            run = self._agent.run(said, stream=True, session=theirs, options=options)
            calls = _Calls()
            async for update in run:
                for content in update.contents:
                    await _show(session, content, calls)
            result = await run.get_final_response()
            if counted := result.usage_details:
                read, written = counted.get("input_token_count"), counted.get("output_token_count")
                await say_usage(session, read, written, None)
            if not (asked := result.user_input_requests):
                return result.text if result.value is None else plain(result.value)
            said = [await _approval(session, request) for request in asked]

    async def export_memory(self, session: Session) -> str | None:
        theirs = self._sessions.get(session.id)
        return None if theirs is None else json.dumps(theirs.to_dict(), default=str)

    async def import_memory(self, session: Session, text: str) -> None:
        kind = sys.modules["agent_framework"].AgentSession
        self._sessions[session.id] = kind.from_dict(json.loads(text))


class _Calls:
    """Calls of tools, which come in pieces: shown when they are whole, before their results."""

    def __init__(self) -> None:
        self.pieces: dict[str, list[Any]] = {}
        self.last = ""

    def add(self, content: Any) -> None:
        self.last = content.call_id or self.last
        self.pieces.setdefault(self.last, []).append(content)

    def take(self, call_id: str) -> tuple[str, Any]:
        pieces = self.pieces.pop(call_id, [])
        name = next((piece.name for piece in pieces if piece.name), "tool")
        given = [piece.arguments for piece in pieces if piece.arguments]
        return name, arguments("".join(given) if all(isinstance(g, str) for g in given) else given[0])


def _message(said: Message, role: str = "user") -> Any:
    framework = sys.modules["agent_framework"]
    contents: list[Any] = [framework.Content.from_text(str(said))] if said else []
    for part in said.attachments if role == "user" else ():
        contents.append(framework.Content.from_uri(part.url, media_type=part.media_type))
    return framework.Message(role, contents)


async def _show(session: Session, content: Any, calls: _Calls) -> None:
    if content.type == "text" and content.text:
        await session.emit(partial_answer(content.text))
    elif content.type == "text_reasoning" and content.text:
        await session.emit(thinking(content.text))
    elif content.type == "function_call":
        calls.add(content)
    elif content.type == "function_result":
        name, given = calls.take(content.call_id)
        await session.emit(tool_call(name, given, step_id=content.call_id))
        failed = content.exception is not None
        result = str(content.exception) if failed else plain(content.result)
        await session.emit(tool_result(name, result, success=not failed, step_id=content.call_id))


async def _approval(session: Session, request: Any) -> Any:
    call = request.function_call
    decision = await session.confirm(call.name, arguments(call.arguments or {}))
    answer = request.to_function_approval_response(decision.approved)
    return sys.modules["agent_framework"].Message("user", [answer])
