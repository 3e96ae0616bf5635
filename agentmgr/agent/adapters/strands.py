"""Strands Agents: https://strandsagents.com; `Agent.stream_async`, and interrupts that wait for a person."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import aclosing
from typing import Any

from ..events import partial_answer, thinking, tool_call, tool_result
from ..message import Attachment, Message
from ..session import Session
from . import leave_out, plain, said_before, say_usage

_IMAGES = {f"image/{kind}": kind for kind in ("png", "jpeg", "gif", "webp")}
_OFFICE = "application/vnd.openxmlformats-officedocument"
_DOCUMENTS = {
    "application/pdf": "pdf",
    "application/msword": "doc",
    f"{_OFFICE}.wordprocessingml.document": "docx",
    "application/vnd.ms-excel": "xls",
    f"{_OFFICE}.spreadsheetml.sheet": "xlsx",
    "text/csv": "csv",
    "text/html": "html",
    "text/markdown": "md",
    "text/plain": "txt",
}


def fits(subject: Any) -> bool:
    return callable(getattr(subject, "stream_async", None))


class Adapter:
    holds_conversation = True  # in `Agent.messages`; it refuses a second turn while one runs

    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self._tools: dict[str, str] = {}  # names of the tools that were called, by the id of the call
        self._instructions = ""
        self._authors = agent.system_prompt_content  # the system prompt, as blocks

    async def on_session_start(self, session: Session) -> None:
        for said, role in said_before(session):
            self._agent.messages.append({"role": role, "content": _blocks(said)})

    async def on_message(self, session: Session, message: Message) -> Any:
        if message.instructions != self._instructions:
            self._instructions = message.instructions
            more = [{"text": message.instructions}] if message.instructions else []
            self._agent.system_prompt = [*(self._authors or ()), *more] or None
        said: Any = _blocks(message) if message.attachments else str(message)
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


def _blocks(said: Message) -> list[Any]:
    blocks: list[Any] = [{"text": str(said)}] if said else []
    return [*blocks, *filter(None, map(_block, said.attachments))] or [{"text": " "}]


def _block(part: Attachment) -> dict[str, Any] | None:
    kind, formats = ("image", _IMAGES) if part.kind == "image" else ("document", _DOCUMENTS)
    form = formats.get(part.media_type)
    if (data := part.data) is None:
        leave_out("an attachment by its address", "Strands takes data URLs only")
    elif form is None:
        leave_out(f"an attachment of the type {part.media_type}", "Strands takes none of that")
    else:
        block: dict[str, Any] = {"format": form, "source": {"bytes": data}}
        if kind == "document":  # as Bedrock wants its name
            block["name"] = re.sub(r"[^\w\s()\[\]-]", "-", part.name or "file", flags=re.ASCII)
        return {kind: block}
    return None


async def _answer(session: Session, interrupt: Any) -> Any:
    message = interrupt.reason if isinstance(interrupt.reason, str) else ""
    decision = await session.confirm(interrupt.name, plain(interrupt.reason), message=message)
    response = decision.content.get("value", decision.approved)
    return {"interruptResponse": {"interruptId": interrupt.id, "response": response}}
