"""LlamaIndex: https://developers.llamaindex.ai; its agents, and workflows of the author's own.

A workflow's StartEvent has `message` and `session_id`; an `InputRequiredEvent` asks a person.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from ..events import partial_answer, thinking, tool_call, tool_result
from ..message import Message
from ..session import Session
from . import leave_out, plain, said_before


def fits(subject: Any) -> bool:
    return any(kind.__module__ == "workflows.workflow" for kind in type(subject).__mro__)


class Adapter:
    def __init__(self, workflow: Any) -> None:
        self._workflow = workflow
        self._talks = any(hasattr(workflow, name) for name in ("agents", "llm"))  # an agent, or several
        self._contexts: dict[str, Any] = {}  # of each session: memory and state

    async def on_session_end(self, session: Session) -> None:
        self._contexts.pop(session.id, None)

    async def on_message(self, session: Session, message: Message) -> Any:
        for what in ("instructions", "attachments"):
            if getattr(message, what):
                leave_out(what, "the adapter of LlamaIndex passes on text")
        said: dict[str, Any] = {"message": str(message), "session_id": session.id}
        if self._talks:
            said = {"user_msg": str(message)}
        if (context := self._contexts.get(session.id)) is None:
            context = self._contexts[session.id] = sys.modules["workflows"].Context(self._workflow)
            if self._talks and (before := said_before(session)):
                chat_message = sys.modules["llama_index.core.llms"].ChatMessage
                said["chat_history"] = [chat_message(role=role, content=str(text)) for text, role in before]
        handler = self._workflow.run(ctx=context, **said)
        try:
            async for event in handler.stream_events():
                await _show(session, event, handler)
            return _answer(await handler)
        finally:
            if not handler.is_done():
                await handler.cancel_run()

    async def export_memory(self, session: Session) -> str | None:
        context = self._contexts.get(session.id)
        return None if context is None else json.dumps(context.to_dict())

    async def import_memory(self, session: Session, text: str) -> None:
        context = sys.modules["workflows"].Context
        self._contexts[session.id] = context.from_dict(self._workflow, json.loads(text))


async def _show(session: Session, event: Any, handler: Any) -> None:
    kinds = {kind.__name__ for kind in type(event).__mro__}
    if "AgentStream" in kinds:
        if event.thinking_delta:
            await session.emit(thinking(event.thinking_delta))
        if event.delta:
            await session.emit(partial_answer(event.delta))
    elif "ToolCallResult" in kinds:
        output = event.tool_output
        shown = tool_result(
            event.tool_name, str(output.content), success=not output.is_error, step_id=event.tool_id
        )
        await session.emit(shown)
    elif "ToolCall" in kinds:
        await session.emit(tool_call(event.tool_name, plain(event.tool_kwargs), step_id=event.tool_id))
    elif "InputRequiredEvent" in kinds:
        prefix = event.get("prefix", "")
        decision = await session.confirm(type(event).__name__, message=str(prefix))
        value = decision.content.get("value", "yes" if decision.approved else "no")
        human = sys.modules["workflows.events"].HumanResponseEvent
        handler.ctx.send_event(human(response=value))


def _answer(result: Any) -> Any:
    if (response := getattr(result, "response", None)) is None:
        return result if isinstance(result, str) else plain(result)
    structured = getattr(result, "structured_response", None)
    return str(response.content or "") if structured is None else plain(structured)
