"""smolagents: https://huggingface.co/docs/smolagents; its agents block, so they run in a thread."""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from ..events import thinking, tool_call, tool_result, usage
from ..message import Message
from . import arguments, leave_out, plain, said_before

_FINAL_ANSWER = "final_answer"  # the tool by which an agent ends; no tool of the author's


def fits(subject: Any) -> bool:
    return callable(getattr(subject, "run", None)) and hasattr(subject, "memory")


class Adapter:
    holds_conversation = True  # in `agent.memory`, which each run goes on with (`reset=False`)

    def __init__(self, agent: Any) -> None:
        self._agent = agent
        self._authors = agent.instructions or ""
        self._said: list[tuple[str, str]] = []  # who, and what
        self._running = threading.Lock()

    def on_session_start(self, session: Any) -> None:
        for said, role in said_before(session):
            self._remember(role, str(said))

    def on_message(self, session: Any, message: Message) -> Any:
        if message.attachments:
            leave_out("attachments", "the adapter of smolagents passes on text")
        with self._running:  # a turn that was cancelled may still wait for its model
            self._agent.instructions = (
                "\n\n".join(filter(None, (self._authors, message.instructions))) or None
            )
            output: Any = None
            for item in self._agent.run(str(message), stream=True, reset=False):
                self._show(session, item)
                if type(item).__name__ == "FinalAnswerStep":
                    output = item.output
            answer = str(output) if isinstance(output, str) else plain(output)
            self._said += [("user", str(message)), ("assistant", str(answer))]
            return answer

    def export_memory(self, session: Any) -> str | None:
        return json.dumps(self._said) if self._said else None

    def import_memory(self, session: Any, text: str) -> None:
        self._said.clear()  # the history, of which this is more
        self._agent.memory.steps.clear()
        for role, said in json.loads(text):
            self._remember(role, said)

    def _remember(self, role: str, text: str) -> None:
        memory = sys.modules["smolagents.memory"]
        self._said.append((role, text))
        if role == "user":
            step = memory.TaskStep(task=text)
        else:
            step = memory.ActionStep(step_number=0, timing=memory.Timing(0, 0), model_output=text)
        self._agent.memory.steps.append(step)

    def _show(self, session: Any, item: Any) -> None:
        kind = type(item).__name__
        if kind == "ChatMessageStreamDelta" and item.content:
            session.emit(thinking(item.content))  # its plan and its code; the answer comes at the end
        elif kind == "PlanningStep":
            session.emit(thinking(item.plan))
        elif kind == "ToolCall" and item.name != _FINAL_ANSWER:
            session.emit(tool_call(item.name, arguments(item.arguments), step_id=item.id))
        elif kind == "ToolOutput" and item.tool_call.name != _FINAL_ANSWER:
            session.emit(tool_result(item.tool_call.name, plain(item.output), step_id=item.id))
        elif kind == "ActionStep":
            if item.code_action and item.tool_calls:  # of a CodeAgent, whose one tool is Python
                [call, *_] = item.tool_calls
                failed = item.error is not None
                result = str(item.error) if failed else item.observations
                session.emit(tool_result(call.name, result, success=not failed, step_id=call.id))
            if counted := item.token_usage:
                model = getattr(self._agent.model, "model_id", None)
                session.emit(usage(counted.input_tokens, counted.output_tokens, model or ""))
