"""Agno: https://docs.agno.com; `Agent.arun` with its events, and tools that require confirmation."""

from __future__ import annotations

import json
from contextlib import aclosing
from importlib import import_module
from typing import Any

from ..events import partial_answer, thinking, tool_call, tool_result
from ..message import Message
from ..session import Session
from . import plain, said_before, say_usage


def fits(subject: Any) -> bool:
    return callable(getattr(subject, "arun", None))


class Adapter:
    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self._forgets = type(agent.db).__name__ == "InMemoryDb"
        self._new: set[str] = set()  # sessions whose history its database does not know

    async def on_session_start(self, session: Session) -> None:
        if session.history and not session.restored:
            self._new.add(session.id)

    async def on_message(self, session: Session, message: Message) -> Any:
        options = {"stream": True, "stream_events": True, "yield_run_output": True, "session_id": session.id}
        run = self._agent.arun(self._input(session, message), user_id=session.client.identity, **options)
        while True:
            output: Any = None
            async with aclosing(run):  # cancelled between two events, it would run on until collected
                async for event in run:
                    if hasattr(event, "event"):
                        await _show(session, event)
                    else:
                        output = event
            waiting = [r for r in output.requirements or () if not r.is_resolved()]
            if not waiting:
                break
            for requirement in waiting:
                await _decide(session, requirement)
            run = self._agent.acontinue_run(run_response=output, **options)
        if (counted := output.metrics) is not None:
            await say_usage(session, counted.input_tokens, counted.output_tokens, output.model)
        return output.content if isinstance(output.content, str) else plain(output.content)

    async def on_session_end(self, session: Session) -> None:
        self._new.discard(session.id)
        if self._forgets:
            self._agent.db.delete_session(session.id)

    async def export_memory(self, session: Session) -> str | None:
        if not self._forgets:
            return None  # its database keeps it, or without one the session's history
        kept = self._agent.db.get_session(session.id, deserialize=False)
        return json.dumps(plain(kept)) if kept else None

    async def import_memory(self, session: Session, text: str) -> None:
        kept = import_module("agno.session.agent").AgentSession.from_dict(json.loads(text))
        self._agent.db.upsert_session(kept)

    def _input(self, session: Session, message: Message) -> Any:
        # With a database it remembers by itself, as much as its author wants.
        knows = self._agent.db is not None and session.id not in self._new
        self._new.discard(session.id)
        if knows and not (message.instructions or message.attachments):
            return str(message)
        aside = [_message(Message(message.instructions), "system")] if message.instructions else []
        before = [] if knows else [_message(*said) for said in said_before(session)]
        return [*aside, *before, _message(message, "user")]


def _message(said: Message, role: str) -> Any:
    media = import_module("agno.media")
    images, files = [], []
    for part in said.attachments:
        data = part.data
        source: dict[str, Any] = {"url": part.url} if data is None else {"content": data}
        if part.kind == "image":
            images.append(media.Image(mime_type=part.media_type, **source))
        else:
            known = part.media_type in media.File.valid_mime_types()
            kind = {"mime_type": part.media_type} if known else {}
            files.append(media.File(filename=part.name, **kind, **source))
    message = import_module("agno.models.message").Message
    return message(role=role, content=str(said), images=images or None, files=files or None)


async def _show(session: Session, event: Any) -> None:
    if event.event == "RunContent":
        if event.reasoning_content:
            await session.emit(thinking(event.reasoning_content))
        if isinstance(event.content, str) and event.content:
            await session.emit(partial_answer(event.content))
    elif event.event == "RunError":
        raise RuntimeError(str(event.content))
    elif event.event == "ToolCallStarted":
        tool = event.tool
        await session.emit(tool_call(tool.tool_name, plain(tool.tool_args), step_id=tool.tool_call_id))
    elif event.event == "ToolCallCompleted":
        tool = event.tool
        failed = bool(tool.tool_call_error)
        result = tool_result(
            tool.tool_name, plain(tool.result), success=not failed, step_id=tool.tool_call_id
        )
        await session.emit(result)


async def _decide(session: Session, requirement: Any) -> None:
    tool = requirement.tool_execution
    if not requirement.needs_confirmation:
        raise RuntimeError(
            f"{tool.tool_name} waits for more than a yes or no, which a conversation cannot give"
        )
    if await session.confirm(tool.tool_name, plain(tool.tool_args)):
        requirement.confirm()
    else:
        requirement.reject()
