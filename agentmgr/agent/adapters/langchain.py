"""LangChain's runnables and LangGraph's graphs: `astream_events`, interrupts of graphs that keep state."""

from __future__ import annotations

import json
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from typing import Any

from ...boundary import shown
from ..events import partial_answer, thinking, tool_call, tool_result
from ..message import Message
from ..session import Session
from . import leave_out, plain, said_before, say_usage

_INSTRUCTIONS = "agentmgr-instructions"
"""The id of the message that has them: the next one of that id replaces it."""


def fits(subject: Any) -> bool:
    return callable(getattr(subject, "astream_events", None))


class Adapter:
    def __init__(self, runnable: Any) -> None:
        self._runnable = runnable
        saver = getattr(runnable, "checkpointer", None)
        self._keeps_state = bool(saver)
        self._forgets = any(kind.__name__ == "InMemorySaver" for kind in type(saver).__mro__)
        # Of each session, where the graph keeps none; or does not yet.
        self._messages: dict[str, list[Any]] = {}

    async def on_session_start(self, session: Session) -> None:
        self._messages[session.id] = [_message(*said) for said in said_before(session)]

    async def on_message(self, session: Session, message: Message) -> Any:
        config = _thread(session)
        said = await self._input(session, message)
        stopped: dict[str, str] = {}
        while True:
            output = await self._run(session, said, config, stopped)
            resume = await self._decide(session, config) if self._keeps_state else None
            if resume is None:
                break
            said = resume
        if isinstance(output, Mapping) and output.get("messages"):
            self._messages[session.id] = list(output["messages"])
            output = output["messages"][-1]
        text = "".join(piece for kind, piece in _pieces(output) if kind == "text")
        return text or (plain(output) if not hasattr(output, "content") else None)

    async def on_session_end(self, session: Session) -> None:
        self._messages.pop(session.id, None)
        if self._forgets:
            await self._runnable.checkpointer.adelete_thread(session.id)

    async def export_memory(self, session: Session) -> str | None:
        """The messages; of a graph that keeps its state in memory, its last checkpoint."""
        if not self._keeps_state:
            if not (messages := self._messages.get(session.id)):
                return None
            return json.dumps(sys.modules["langchain_core.messages"].messages_to_dict(messages))
        if not self._forgets:
            return None  # its checkpointer keeps it
        saver = self._runnable.checkpointer
        saved = await saver.aget_tuple(_thread(session))
        if saved is None:
            return None
        kind, data = saver.serde.dumps_typed((saved.checkpoint, saved.metadata))
        return json.dumps([kind, b64encode(data).decode()])

    async def import_memory(self, session: Session, text: str) -> None:
        if not self._keeps_state:
            messages = sys.modules["langchain_core.messages"].messages_from_dict(json.loads(text))
            self._messages[session.id] = messages
            return
        saver, config = self._runnable.checkpointer, _thread(session)
        if await saver.aget_tuple(config) is None:
            kind, data = json.loads(text)
            checkpoint, metadata = saver.serde.loads_typed((kind, b64decode(data)))
            await saver.aput(config, checkpoint, metadata, checkpoint["channel_versions"])

    async def _input(self, session: Session, message: Message) -> Any:
        fields = self._runnable.get_input_jsonschema().get("properties") or {}
        if "messages" in fields:
            before = [said for said in await self._before(session) if said.id != _INSTRUCTIONS]
            if message.instructions:
                before.insert(0, _class("SystemMessage")(message.instructions, id=_INSTRUCTIONS))
            return {"messages": [*before, _message(message)]}
        why = "the runnable's input has no `messages`"
        for what in ("instructions", "attachments"):
            if getattr(message, what):
                leave_out(what, why)
        if self._messages.pop(session.id, None):
            leave_out("a conversation's history", why)
        text = str(message)
        if "input" in fields or len(fields) == 1:
            return {"input" if "input" in fields else next(iter(fields)): text}
        return text

    async def _before(self, session: Session) -> list[Any]:
        """The messages that the graph does not know."""
        if not self._keeps_state:
            return self._messages.get(session.id, [])
        before = self._messages.pop(session.id, [])
        known = before and await self._runnable.checkpointer.aget_tuple(_thread(session))
        return [] if known else before

    async def _run(self, session: Session, said: Any, config: Any, stopped: dict[str, str]) -> Any:
        output: Any = None
        events = self._runnable.astream_events(said, config, version="v2")
        async with aclosing(events):  # cancelled between two events, it would run on until collected
            async for event in events:
                await _show(session, event, stopped)
                if event["event"].endswith("_end") and not event.get("parent_ids"):
                    output = event["data"].get("output")
        return output

    async def _decide(self, session: Session, config: Any) -> Any:
        """What to resume with, when the graph has stopped at an `interrupt`; None when it has not."""
        state = await self._runnable.aget_state(config)
        waiting = [interrupt for task in state.tasks for interrupt in task.interrupts]
        if not waiting:
            return None
        answers = {waits.id: await _answer(session, waits.value) for waits in waiting}
        return sys.modules["langgraph.types"].Command(resume=answers)


def _class(name: str) -> Any:
    return getattr(sys.modules["langchain_core.messages"], name)


def _message(said: Message, role: str = "user") -> Any:
    if role == "assistant":
        return _class("AIMessage")(str(said))
    return _class("HumanMessage")(list(_blocks(said)) if said.attachments else str(said))


def _blocks(said: Message) -> Iterator[dict[str, Any]]:
    """As LangChain has them since version 1."""
    if said:
        yield {"type": "text", "text": str(said)}
    for part in said.attachments:
        data = part.data
        block = {"url": part.url} if data is None else {"base64": b64encode(data).decode()}
        named = {"filename": part.name or "file"} if part.kind == "file" else {}
        yield {"type": part.kind, "mime_type": part.media_type, **block, **named}


def _thread(session: Session) -> dict[str, Any]:
    return {"configurable": {"thread_id": session.id, "checkpoint_ns": ""}}


async def _show(session: Session, event: Any, stopped: dict[str, str]) -> None:
    kind, data = event["event"], event["data"]
    if kind == "on_chat_model_stream":
        for what, piece in _pieces(data.get("chunk")):
            await session.emit(partial_answer(piece) if what == "text" else thinking(piece))
    elif kind == "on_chat_model_end":
        output = data.get("output")
        counted = getattr(output, "usage_metadata", None) or {}
        model = getattr(output, "response_metadata", {}).get("model_name") or event["metadata"].get(
            "ls_model_name"
        )
        await say_usage(session, counted.get("input_tokens"), counted.get("output_tokens"), model)
    elif kind in ("on_tool_start", "on_tool_end", "on_tool_error"):
        await _show_tool(session, event, stopped)


async def _show_tool(session: Session, event: Any, stopped: dict[str, str]) -> None:
    """`stopped`: the step ids of the calls that an interrupt has stopped. When the person has answered,
    LangGraph makes them anew; a client sees one call and its result."""
    kind, name, data, step_id = event["event"], event["name"], event["data"], event["run_id"]
    call = f"{name} {data.get('input')!r}"
    if kind == "on_tool_start":
        if call not in stopped:
            await session.emit(tool_call(name, plain(data.get("input")), step_id=step_id))
    elif kind == "on_tool_error" and _is_interrupt(data.get("error")):
        stopped.setdefault(call, step_id)
    elif kind == "on_tool_error":
        step_id, result = stopped.pop(call, step_id), shown(data.get("error"))
        await session.emit(tool_result(name, result, success=False, step_id=step_id))
    else:
        step_id, output = stopped.pop(call, step_id), data.get("output")
        result = plain(getattr(output, "content", output))
        await session.emit(tool_result(name, result, step_id=step_id))


def _is_interrupt(error: Any) -> bool:
    errors = sys.modules.get("langgraph.errors")
    return errors is not None and isinstance(error, errors.GraphInterrupt)


async def _answer(session: Session, asked: Any) -> Any:
    actions = asked.get("action_requests") if isinstance(asked, Mapping) else None
    if actions:  # of LangChain's human-in-the-loop middleware
        decisions = [await session.confirm(action["name"], plain(action.get("args"))) for action in actions]
        return {"decisions": [{"type": "approve" if yes else "reject"} for yes in decisions]}
    message = asked if isinstance(asked, str) else ""
    decision = await session.confirm("interrupt", plain(asked), message=message)
    return decision.content.get("value", decision.approved)


def _pieces(output: Any) -> Iterator[tuple[str, str]]:
    """The text and the reasoning in a message or a piece of one; content is a string or a list of blocks."""
    content = getattr(output, "content", output)
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    for block in content if isinstance(content, list) else ():
        if isinstance(block, str):
            yield "text", block
        elif isinstance(block, Mapping):
            for kind in ("text", "reasoning", "thinking"):
                if isinstance(piece := block.get(kind), str) and piece:
                    yield "text" if kind == "text" else "thinking", piece
