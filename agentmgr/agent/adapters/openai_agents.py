"""OpenAI Agents SDK (openai.github.io/openai-agents-python): `Runner.run_streamed`, and tool approvals."""

from __future__ import annotations

import json
import sys
from typing import Any

from ..events import partial_answer, thinking, tool_call, tool_result
from ..message import Message
from ..session import Session
from . import arguments, plain, said_before, say_usage


def fits(subject: Any) -> bool:
    # Others may have a package called `agents` too.
    return hasattr(sys.modules.get("agents"), "Runner") and hasattr(subject, "handoffs")


class Adapter:
    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self._items: dict[str, list[Any]] = {}  # of each session

    async def on_session_start(self, session: Session) -> None:
        if said := said_before(session):
            self._items[session.id] = [_item(*each) for each in said]

    async def on_message(self, session: Session, message: Message) -> Any:
        aside = [{"role": "system", "content": message.instructions}] if message.instructions else []
        said: Any = [*aside, *self._items.get(session.id, []), _item(message)]
        while True:
            result = sys.modules["agents"].Runner.run_streamed(self._agent, said)
            try:
                async for event in result.stream_events():
                    await _show(session, event)
            finally:
                result.cancel()  # its run is a task of its own; when all is done, this does nothing
            waiting = list(getattr(result, "interruptions", None) or ())
            if not waiting:
                self._items[session.id] = result.to_input_list()[
                    len(aside) :
                ]  # the next message may have others
                counted = result.context_wrapper.usage  # of the whole run, from before a person was asked too
                model = getattr(self._agent.model, "model", self._agent.model)
                await say_usage(session, counted.input_tokens, counted.output_tokens, model)
                output = result.final_output
                return output if isinstance(output, str) else plain(output)
            said = result.to_state()
            for call in waiting:
                decision = await session.confirm(_name(call.raw_item), _arguments(call.raw_item))
                (said.approve if decision else said.reject)(call)

    async def on_session_end(self, session: Session) -> None:
        self._items.pop(session.id, None)

    async def export_memory(self, session: Session) -> str | None:
        items = self._items.get(session.id)
        return json.dumps(plain(items)) if items else None

    async def import_memory(self, session: Session, text: str) -> None:
        self._items[session.id] = json.loads(text)


def _item(said: Message, role: str = "user") -> dict[str, Any]:
    if role == "assistant" or not said.attachments:
        return {"role": role, "content": str(said)}
    content: list[dict[str, Any]] = [{"type": "input_text", "text": str(said)}] if said else []
    for part in said.attachments:
        if part.kind == "image":
            content.append({"type": "input_image", "image_url": part.url, "detail": "auto"})
        elif part.data is None:
            content.append({"type": "input_file", "file_url": part.url})
        else:
            content.append({"type": "input_file", "file_data": part.url, "filename": part.name or "file"})
    return {"role": "user", "content": content}


async def _show(session: Session, event: Any) -> None:
    if event.type == "raw_response_event":
        kind, delta = event.data.type, str(getattr(event.data, "delta", ""))
        if kind == "response.output_text.delta":
            await session.emit(partial_answer(delta))
        elif kind in ("response.reasoning_summary_text.delta", "response.reasoning_text.delta"):
            await session.emit(thinking(delta))
    elif event.type == "run_item_stream_event" and event.name == "tool_called":
        call = event.item.raw_item
        await session.emit(tool_call(_name(call), _arguments(call), step_id=_get(call, "call_id")))
    elif event.type == "run_item_stream_event" and event.name == "tool_output":
        call = event.item.raw_item
        await session.emit(tool_result(_name(call), plain(event.item.output), step_id=_get(call, "call_id")))


def _get(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, dict) else getattr(item, name, None)


def _name(item: Any) -> str:
    return str(_get(item, "name") or _get(item, "type") or "tool")


def _arguments(item: Any) -> Any:
    return arguments(_get(item, "arguments") or {})
