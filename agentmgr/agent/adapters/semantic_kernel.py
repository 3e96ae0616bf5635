"""Semantic Kernel: https://learn.microsoft.com/semantic-kernel; `ChatCompletionAgent.invoke_stream`."""

from __future__ import annotations

import sys
from typing import Any

from ..events import partial_answer, tool_call, tool_result
from ..message import Message
from ..session import Session
from . import arguments, leave_out, plain, said_before


def fits(subject: Any) -> bool:
    return callable(getattr(subject, "invoke_stream", None)) and hasattr(subject, "kernel")


class Adapter:
    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self._histories: dict[str, Any] = {}  # of each session

    async def on_session_end(self, session: Session) -> None:
        self._histories.pop(session.id, None)

    async def on_message(self, session: Session, message: Message) -> Any:
        if message.attachments:
            leave_out("attachments", "the adapter of Semantic Kernel passes on text")
        if (history := self._histories.get(session.id)) is None:
            history = self._histories[session.id] = _contents().ChatHistory()
            for said, role in said_before(session):
                (history.add_user_message if role == "user" else history.add_assistant_message)(str(said))
        agents = sys.modules["semantic_kernel.agents"]
        thread = agents.ChatHistoryAgentThread(chat_history=history, thread_id=session.id)

        async def show(said: Any) -> None:
            for item in said.items:
                await _show(session, item)

        aside = []
        if message.instructions:
            aside.append(_contents().ChatMessageContent(role="system", content=message.instructions))
        history.messages[:0] = aside
        answer = []
        try:
            parts = self._agent.invoke_stream(
                messages=str(message), thread=thread, on_intermediate_message=show
            )
            async for part in parts:
                if text := str(part.message.content or ""):
                    answer.append(text)
                    await session.emit(partial_answer(text))
        finally:
            del history.messages[: len(aside)]  # the next message may have others
        return "".join(answer)

    async def export_memory(self, session: Session) -> str | None:
        history = self._histories.get(session.id)
        return None if history is None else str(history.serialize())

    async def import_memory(self, session: Session, text: str) -> None:
        self._histories[session.id] = _contents().ChatHistory.restore_chat_history(text)


def _contents() -> Any:
    return sys.modules["semantic_kernel.contents"]


async def _show(session: Session, item: Any) -> None:
    kind = type(item).__name__
    if kind == "FunctionCallContent":
        await session.emit(tool_call(item.name, arguments(item.arguments or {}), step_id=item.id))
    elif kind == "FunctionResultContent":
        await session.emit(tool_result(item.name, plain(item.result), step_id=item.id))
