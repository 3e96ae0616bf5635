"""CrewAI: https://docs.crewai.com; crews and flows.

A crew's `{message}`, `{session_id}` and `{history}` are filled in; a flow finds the first two in its state,
whose `id` is the session's, so that its `@persist` finds it again.
"""

from __future__ import annotations

from typing import Any

from ..message import Message
from ..session import Session
from . import leave_out, plain, said_before, say_usage


def fits(subject: Any) -> bool:
    return callable(getattr(subject, "kickoff_async", None))


class Adapter:
    holds_conversation = True  # in its tasks and state

    def __init__(self, theirs: Any) -> None:
        self._theirs = theirs
        self._is_crew = hasattr(theirs, "tasks")
        self._said: list[str] = []

    async def on_session_start(self, session: Session) -> None:
        self._said = [f"{role}: {said}" for said, role in said_before(session)]

    async def on_message(self, session: Session, message: Message) -> Any:
        for what in ("instructions", "attachments"):
            if getattr(message, what):
                leave_out(what, "the adapter of CrewAI passes on text")
        inputs = {"message": str(message), "session_id": session.id}
        if self._is_crew:
            inputs["history"] = "\n".join(self._said)
        else:
            inputs["id"] = session.id
        result = await self._theirs.kickoff_async(inputs=inputs)
        if counted := getattr(result, "token_usage", None):
            await say_usage(session, counted.prompt_tokens, counted.completion_tokens, None)
        answer = _answer(result)
        self._said += [f"user: {message}", f"assistant: {answer}"]
        return answer

    async def export_memory(self, session: Session) -> str | None:
        return "\n".join(self._said) or None

    async def import_memory(self, session: Session, text: str) -> None:
        self._said = [text]


def _answer(result: Any) -> Any:
    for name in ("pydantic", "json_dict"):
        if (structured := getattr(result, name, None)) is not None:
            return plain(structured)
    raw = getattr(result, "raw", result)
    return raw if isinstance(raw, str) else plain(raw)
