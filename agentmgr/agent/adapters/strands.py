"""Strands Agents: https://strandsagents.com; `Agent.stream_async`, and interrupts that wait for a person."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from ..events import partial_answer, thinking, tool_call, tool_result
from ..message import Message
from ..session import Session
from . import plain, say_usage


def fits(subject: Any) -> bool:
    return callable(getattr(subject, "stream_async", None))


class Adapter:
    holds_conversation = True  # in `Agent.messages`; it refuses a second turn while one runs

    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self._tools: dict[str, str] = {}  # names of the tools that were called, by the id of the call

    async def on_message(self, session: Session, message: Message) -> Any:
        said: Any = str(message)
        while True:
            result = await self._run(session, said)
            if result.stop_reason != "interrupt":
                break
            said = [await _answer(session, interrupt) for interrupt in result.interrupts]
        structured = getattr(result, "structured_output", None)
        return str(result).strip() if structured is None else plain(structured)

    async def export_memory(self, session: Session) -> str | None:
        return json.dumps({"messages": plain(self._agent.messages), "state": plain(self._agent.state.get())})

    async def import_memory(self, session: Session, text: str) -> None:
        kept = json.loads(text)
        self._agent.messages[:] = kept["messages"]
        for name, value in kept["state"].items():
            self._agent.state.set(name, value)

    async def _run(self, session: Session, said: Any) -> Any:
        result: Any = None
        events = self._agent.stream_async(said)
        async with aclosing(events):  # cancelled between two events, it would run on until collected
            async for event in events:
                if "result" in event:
                    result = event["result"]
                elif isinstance(text := event.get("data"), str):
                    await session.emit(partial_answer(text))
                elif isinstance(text := event.get("reasoningText"), str):
                    await session.emit(thinking(text))
                elif counted := event.get("event", {}).get("metadata", {}).get("usage"):
                    model = self._agent.model.get_config().get("model_id")
                    await say_usage(session, counted.get("inputTokens"), counted.get("outputTokens"), model)
                elif isinstance(said_by_one := event.get("message"), Mapping):
                    for block in said_by_one["content"]:
                        await self._show(session, block)
        return result

    async def _show(self, session: Session, block: Mapping[str, Any]) -> None:
        if call := block.get("toolUse"):
            self._tools[call["toolUseId"]] = call["name"]
            await session.emit(tool_call(call["name"], plain(call["input"]), step_id=call["toolUseId"]))
        elif done := block.get("toolResult"):
            name = self._tools.pop(done["toolUseId"], "tool")
            texts = [part["text"] if "text" in part else plain(part) for part in done["content"]]
            result = texts[0] if len(texts) == 1 else texts
            success = done["status"] == "success"
            await session.emit(tool_result(name, result, success=success, step_id=done["toolUseId"]))


async def _answer(session: Session, interrupt: Any) -> Any:
    message = interrupt.reason if isinstance(interrupt.reason, str) else ""
    decision = await session.confirm(interrupt.name, plain(interrupt.reason), message=message)
    response = decision.content.get("value", decision.approved)
    return {"interruptResponse": {"interruptId": interrupt.id, "response": response}}
