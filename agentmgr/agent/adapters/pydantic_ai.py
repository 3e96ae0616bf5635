"""Pydantic AI: https://ai.pydantic.dev; `Agent.run` with an event stream handler, and deferred tools."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable
from typing import Any

from ..events import partial_answer, thinking, tool_call, tool_result
from ..message import Message
from ..session import Session
from . import arguments, plain, said_before, say_usage


def fits(subject: Any) -> bool:
    return callable(getattr(subject, "run", None)) and hasattr(subject, "iter")


class Adapter:
    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self._messages: dict[str, Any] = {}  # of each session

    async def on_session_start(self, session: Session) -> None:
        if said := said_before(session):
            self._messages[session.id] = [_message(*each) for each in said]

    async def on_message(self, session: Session, message: Message) -> Any:
        async def show(context: Any, events: AsyncIterable[Any]) -> None:
            async for event in events:
                await _show(session, event)

        said: dict[str, Any] = {"message_history": self._messages.get(session.id)}
        options: dict[str, Any] = {"event_stream_handler": show}
        if message.instructions:
            options["instructions"] = message.instructions
        prompt: Any = _prompt(message)
        while True:
            result = await self._agent.run(prompt, **options, **said)
            self._messages[session.id] = result.all_messages()
            usage = result.usage  # of older versions a method
            counted = usage if hasattr(usage, "input_tokens") else usage()
            model = getattr(getattr(result, "response", None), "model_name", "")
            await say_usage(session, counted.input_tokens, counted.output_tokens, model)
            approvals = getattr(result.output, "approvals", None)
            if not approvals:
                return result.output if isinstance(result.output, str) else plain(result.output)
            prompt = None
            said = {
                "message_history": result.all_messages(),
                "deferred_tool_results": await _decide(session, result.output, approvals),
            }

    async def on_session_end(self, session: Session) -> None:
        self._messages.pop(session.id, None)

    async def export_memory(self, session: Session) -> str | None:
        messages = self._messages.get(session.id)
        return _of_messages().dump_json(messages).decode() if messages else None

    async def import_memory(self, session: Session, text: str) -> None:
        self._messages[session.id] = _of_messages().validate_json(text)


def _of_messages() -> Any:
    return sys.modules["pydantic_ai.messages"].ModelMessagesTypeAdapter


def _message(said: Message, role: str) -> Any:
    kinds = sys.modules["pydantic_ai.messages"]
    if role == "assistant":
        return kinds.ModelResponse(parts=[kinds.TextPart(str(said))])
    return kinds.ModelRequest(parts=[kinds.UserPromptPart(_prompt(said))])


def _prompt(message: Message) -> Any:
    kinds = sys.modules["pydantic_ai.messages"]
    if not message.attachments:
        return str(message)
    prompt: list[Any] = [str(message)] if message else []
    for part in message.attachments:
        if (data := part.data) is not None:
            prompt.append(kinds.BinaryContent(data, media_type=part.media_type))
        else:
            prompt.append((kinds.ImageUrl if part.kind == "image" else kinds.DocumentUrl)(part.url))
    return prompt


async def _show(session: Session, event: Any) -> None:
    kind = getattr(event, "event_kind", "")
    if kind == "part_start":
        await _show_piece(session, event.part.part_kind, getattr(event.part, "content", None))
    elif kind == "part_delta":
        piece = getattr(event.delta, "content_delta", None)
        await _show_piece(session, event.delta.part_delta_kind, piece)
    elif kind == "function_tool_call":
        part = event.part
        await session.emit(tool_call(part.tool_name, arguments(part.args), step_id=part.tool_call_id))
    elif kind == "function_tool_result":
        part = getattr(event, "part", None) or event.result
        success = part.part_kind != "retry-prompt"
        result = tool_result(part.tool_name, plain(part.content), success=success, step_id=part.tool_call_id)
        await session.emit(result)


async def _show_piece(session: Session, kind: str, piece: Any) -> None:
    if isinstance(piece, str) and piece and kind in ("text", "thinking"):
        await session.emit(partial_answer(piece) if kind == "text" else thinking(piece))


async def _decide(session: Session, requests: Any, approvals: list[Any]) -> Any:
    decisions = {
        call.tool_call_id: bool(await session.confirm(call.tool_name, arguments(call.args)))
        for call in approvals
    }
    return sys.modules["pydantic_ai"].DeferredToolResults(approvals=decisions)
