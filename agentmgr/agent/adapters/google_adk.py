"""Google's ADK: https://google.github.io/adk-docs; `Runner.run_async`, and tools that need confirmation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import aclosing
from importlib import import_module
from typing import Any

from ..events import partial_answer, thinking, tool_call, tool_result
from ..message import Message
from ..session import Session
from . import plain, said_before, say_usage

_CONFIRMATION = "adk_request_confirmation"  # a call of this "tool" asks the person
_USER = "user"  # of a client whose identity is not known


def fits(subject: Any) -> bool:
    return callable(getattr(subject, "run_async", None))  # an agent, or a runner with services of its own


class Adapter:
    def __init__(self, agent: Any) -> None:
        self._types = import_module("google.genai.types")
        runners = import_module("google.adk.runners")
        config = import_module("google.adk.agents.run_config")
        self._streaming = config.RunConfig(streaming_mode=config.StreamingMode.SSE)
        is_runner = isinstance(agent, runners.Runner)
        self._runner = agent if is_runner else runners.InMemoryRunner(agent, app_name=agent.name)
        self._forgets = type(self._runner.session_service).__name__ == "InMemorySessionService"
        self._instructions: dict[str, str] = {}  # of each session's message
        self._runner.plugin_manager.register_plugin(_plugin(self._instructions))

    async def on_message(self, session: Session, message: Message) -> Any:
        key = self._key(session)
        if await self._runner.session_service.get_session(**key) is None:
            await self._begin(session, key)
        self._instructions[session.id] = message.instructions
        parts = list(self._parts(message))
        while True:
            answer, asked = await self._run(session, key["user_id"], parts)
            if not asked:
                return answer
            parts = [await self._decide(session, call) for call in asked]

    async def on_session_end(self, session: Session) -> None:
        self._instructions.pop(session.id, None)
        if self._forgets:
            await self._runner.session_service.delete_session(**self._key(session))

    async def export_memory(self, session: Session) -> str | None:
        if not self._forgets:
            return None  # its session service keeps it
        kept = await self._runner.session_service.get_session(**self._key(session))
        return str(kept.model_dump_json()) if kept else None

    async def import_memory(self, session: Session, text: str) -> None:
        sessions, key = self._runner.session_service, self._key(session)
        if await sessions.get_session(**key) is None:
            kept = import_module("google.adk.sessions").Session.model_validate_json(text)
            again = await sessions.create_session(**key, state=kept.state)
            for event in kept.events:
                await sessions.append_event(again, event)

    async def _begin(self, session: Session, key: dict[str, str]) -> None:
        sessions = self._runner.session_service
        made = await sessions.create_session(**key)
        event = import_module("google.adk.events").Event
        for said, role in said_before(session):
            author, theirs = ("user", "user") if role == "user" else (self._runner.agent.name, "model")
            content = self._types.Content(role=theirs, parts=list(self._parts(said)))
            await sessions.append_event(made, event(author=author, content=content))

    def _parts(self, said: Message) -> Iterator[Any]:
        if said or not said.attachments:
            yield self._types.Part(text=str(said))
        for part in said.attachments:
            if (data := part.data) is not None:
                yield self._types.Part.from_bytes(data=data, mime_type=part.media_type)
            else:
                yield self._types.Part.from_uri(file_uri=part.url, mime_type=part.media_type)

    def _key(self, session: Session) -> dict[str, str]:
        user = session.client.identity or _USER
        return {"app_name": self._runner.app_name, "user_id": user, "session_id": session.id}

    async def _run(self, session: Session, user: str, parts: list[Any]) -> tuple[str | None, list[Any]]:
        """The final text, and what the person is asked before the run can go on."""
        said = self._types.Content(role="user", parts=parts)
        answer: str | None = None
        asked: list[Any] = []
        events = self._runner.run_async(
            user_id=user, session_id=session.id, new_message=said, run_config=self._streaming
        )
        async with aclosing(events):  # cancelled between two events, it would run on until collected
            async for event in events:
                if event.error_code:
                    raise RuntimeError(f"{event.error_code}: {event.error_message}")
                await _show(session, event)
                if (counted := event.usage_metadata) is not None and not event.partial:
                    said_tokens = (counted.candidates_token_count or 0) + (counted.thoughts_token_count or 0)
                    await say_usage(session, counted.prompt_token_count, said_tokens, event.model_version)
                asked += [call for call in event.get_function_calls() if call.name == _CONFIRMATION]
                if event.is_final_response() and not event.partial:
                    answer = "".join(_text(event)) or answer
        return answer, asked

    async def _decide(self, session: Session, call: Any) -> Any:
        of = call.args.get("originalFunctionCall") or {}
        hint = (call.args.get("toolConfirmation") or {}).get("hint") or ""
        decision = await session.confirm(of.get("name", "tool"), plain(of.get("args")), message=hint)
        response = {"confirmed": decision.approved, "payload": decision.content.get("value")}
        answer = self._types.FunctionResponse(id=call.id, name=_CONFIRMATION, response=response)
        return self._types.Part(function_response=answer)


def _plugin(instructions: Mapping[str, str]) -> Any:
    """Adds those of the client to those of the agents; a run takes none."""

    async def before_model_callback(self: Any, *, callback_context: Any, llm_request: Any) -> None:
        if said := instructions.get(callback_context.session.id):
            llm_request.append_instructions([said])

    base = import_module("google.adk.plugins.base_plugin").BasePlugin
    kind = type("ClientsInstructions", (base,), {"before_model_callback": before_model_callback})
    return kind(name="agentmgr_instructions")


async def _show(session: Session, event: Any) -> None:
    for part in (event.content and event.content.parts) or ():
        call, done = part.function_call, part.function_response
        if part.text and event.partial:  # the whole text comes once more at the end
            await session.emit(thinking(part.text) if part.thought else partial_answer(part.text))
        elif call is not None and call.name != _CONFIRMATION and not event.partial:
            await session.emit(tool_call(call.name, plain(call.args), step_id=call.id))
        elif done is not None and done.name != _CONFIRMATION:
            success = "error" not in (done.response or {})
            await session.emit(tool_result(done.name, plain(done.response), success=success, step_id=done.id))


def _text(event: Any) -> list[str]:
    parts = (event.content and event.content.parts) or ()
    return [part.text for part in parts if part.text and not part.thought]
