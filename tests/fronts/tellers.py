"""One conversation with an agent behind a gateway, through each protocol, as a client that answers questions.

Each gives what was heard, part by part. `cut`: how much of each part's stream a client gets before its
connection is gone (0 to 1), where its protocol has a way to come back.
"""

from __future__ import annotations

import json
from typing import Any

import acp
import trio

from agentmgr.agent import partial_answer, thinking, tool_call, tool_result
from agentmgr.agent.events import usage
from agentmgr.protocol import TURN_ENDS, USER_CONFIRM
from agentmgr.testing.agents import PATIENCE_S, bare_client
from tests.acp.conftest import Editor, edit
from tests.fronts import story
from tests.fronts.conftest import Stage, request, split
from tests.fronts.story import Line

Parts = list[list[Line]]


class Teller:
    """An agent that does what the message says: steps and an end, in JSON."""

    async def on_message(self, session: Any, message: Any) -> Any:
        steps, end = json.loads(message)
        streamed = ""
        for number, (kind, *rest) in enumerate(steps):
            match kind, rest:
                case "say", [text]:
                    await session.emit(partial_answer(text))
                    streamed += text
                case "think", [text]:
                    await session.emit(thinking(text))
                case "use", [tool, args, result, success]:
                    await session.emit(tool_call(tool, args, step_id=f"tool_{number}"))
                    await session.emit(tool_result(tool, result, success=success, step_id=f"tool_{number}"))
                case "count", [read, written]:
                    await session.emit(usage(read, written, "m"))
                case "ask", [tool, asked, yes]:
                    assert bool(await session.confirm(tool, {"n": number}, message=asked)) == yes
        if end == "failed":
            raise ValueError("as asked")
        return streamed + "!" if end == "final" else None


def answers_of(script: Any) -> list[bool]:
    return [rest[-1] for kind, *rest in script[0] if kind == "ask"]


async def over_websocket(stage: Stage, script: Any, cut: float | None = None) -> Parts:
    """Told in our own words, by which the others are measured."""
    url, answers = f"ws://127.0.0.1:{stage.port}/services/echo", iter(answers_of(script))
    events: list[dict[str, Any]] = []
    session_id, said = None, {"event": "user.message", "content": json.dumps(script)}
    while not events or events[-1]["event"] not in TURN_ENDS:
        async with bare_client(url) as client:
            if session_id is not None:
                last = events[-1]["seq"] if events else 0
                await client.say("user.reconnect", session_id=session_id, last_seq=last)
            if said is not None:
                await client.say(said.pop("event"), **said)
                said = None
            while True:
                event = await client.receive()
                session_id = event.get("session_id") or session_id
                if "seq" not in event or event["event"] == "agent.session_created":
                    continue
                events.append(event)
                if event["event"] == USER_CONFIRM:
                    content = {"confirmed": next(answers)}
                    await client.say(
                        "user.response", session_id=session_id, step_id=event["step_id"], content=content
                    )
                if event["event"] in TURN_ENDS or (cut is not None and len(events) % 2):
                    break
    return story.parts_of(events)


async def over_chat(stage: Stage, script: Any, cut: float | None = None) -> Parts:
    assert cut is None, "there is no way back to a stream of Chat Completions"
    messages, parts = [{"role": "user", "content": json.dumps(script)}], []
    for answer in [*answers_of(script), None]:
        body = {"model": "echo", "messages": messages, "stream": True, "show_tools": True}
        body["stream_options"] = {"include_usage": True}
        data = await _stream(stage, "POST", "/v1/chat/completions", body, {"X-Session-Id": "story"})
        parts.append(story.heard_in_chat(story.frames(data)))
        text = "".join(line[1] for line in parts[-1] if line[0] == "text")
        said = "yes" if answer else "no"
        messages = [*messages, {"role": "assistant", "content": text}, {"role": "user", "content": said}]
    return parts


async def over_responses(stage: Stage, script: Any, cut: float | None = None) -> Parts:
    said: dict[str, Any] = {"input": json.dumps(script)}
    parts = []
    for answer in [*answers_of(script), None]:
        body = {"model": "echo", "stream": True, "background": cut is not None, **said}
        data = await _stream(stage, "POST", "/v1/responses", body, cut=cut)
        events = [json.loads(frame["data"]) for frame in story.frames(data)]
        response_id = events[0]["response"]["id"]
        if cut is not None:
            after = events[-1]["sequence_number"]
            path = f"/v1/responses/{response_id}?stream=true&starting_after={after}"
            rest = await _stream(stage, "GET", path)
            events += [json.loads(frame["data"]) for frame in story.frames(rest)]
        parts.append(story.heard_in_responses(events))
        said = _next(events[-1]["response"], answer)
    return parts


async def over_responses_socket(stage: Stage, script: Any) -> Parts:
    said: dict[str, Any] = {"input": json.dumps(script)}
    parts = []
    async with bare_client(f"ws://127.0.0.1:{stage.port}/v1/responses") as client:
        for answer in [*answers_of(script), None]:
            create = {"type": "response.create", "model": "echo", **said}
            await client.websocket.send_message(json.dumps(create))
            events: list[dict[str, Any]] = []
            while not events or events[-1].get("response", {}).get("usage") is None:
                with trio.fail_after(PATIENCE_S):
                    events.append(json.loads(await client.websocket.get_message()))
            parts.append(story.heard_in_responses(events))
            said = _next(events[-1]["response"], answer)
    return parts


def _next(response: dict[str, Any], answer: bool | None) -> dict[str, Any]:
    """Answers its question; nothing where it asks none."""
    asked = [item for item in response["output"] if item["type"] == "mcp_approval_request"]
    if not asked:
        return {}
    approval = {"type": "mcp_approval_response", "approval_request_id": asked[-1]["id"], "approve": answer}
    return {"input": [approval], "previous_response_id": response["id"]}


async def over_agui(stage: Stage, script: Any, cut: float | None = None) -> Parts:
    body: dict[str, Any] = {
        "threadId": "story", "protocolVersion": "1.0",
        "tools": [], "context": [], "forwardedProps": {}, "state": {},
        "messages": [{"id": "u1", "role": "user", "content": json.dumps(script)}],
    }  # fmt: skip
    parts = []
    for number, answer in enumerate([*answers_of(script), None]):
        body["runId"] = f"run-{number}"
        came = story.frames(await _stream(stage, "POST", "/agui/echo", body, cut=cut))
        if cut is not None:
            last = [frame["id"] for frame in came if "id" in frame]
            headers = {"Last-Event-ID": last[-1]} if last else {}
            came += story.frames(await _stream(stage, "POST", "/agui/echo", body, headers))
        parts.append(story.heard_in_agui(came))
        end = json.loads(came[-1]["data"])
        interrupts = end.get("outcome", {}).get("interrupts", [])
        payload = {"confirmed": answer}
        body["resume"] = [
            {"interruptId": each["id"], "status": "resolved", "payload": payload} for each in interrupts
        ]
    return parts


async def over_acp(stage: Stage, script: Any) -> tuple[list[Line], list[Line], tuple[str, int, int]]:
    """A real editor's turn: what it was shown, what it is shown when it loads the session, and the result."""
    words = ("echo", "--gateway", f"ws://127.0.0.1:{stage.port}")
    answers = iter(answers_of(script))
    session_id = ""

    async def choose() -> str:
        return "allow" if next(answers) else "reject"

    async def says(editor: Editor) -> Any:
        nonlocal session_id
        editor.answer, session_id = choose, await editor.new()
        prompt = [acp.text_block(json.dumps(script))]
        return await editor.agent.prompt(session_id=session_id, prompt=prompt), shown(editor)

    async def loads(editor: Editor) -> list[Line]:
        await editor.agent.load_session(session_id=session_id, cwd="/", mcp_servers=[])
        return shown(editor)

    def shown(editor: Editor) -> list[Line]:
        return story.heard_in_acp(
            each.model_dump(mode="json", by_alias=True, exclude_unset=True) for each in editor.updates
        )

    result, first = await edit(says, *words)
    again = await edit(loads, *words)
    return first, again, (result.stop_reason, result.usage.input_tokens, result.usage.output_tokens)


async def _stream(
    stage: Stage,
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    *,
    cut: float | None = None,
) -> bytes:
    """The body of the answer, or as much of it as a client gets that is cut off: the first event at least."""
    answer = await stage.raw(request(method, path, body, {"Connection": "close", **(headers or {})}))
    head, data = split(answer)
    if head.startswith(b"HTTP/1.1 424 "):  # a turn that failed before it said anything
        return b"data: " + data + b"\n\n"
    assert head.startswith(b"HTTP/1.1 200 "), answer
    first = data.index(b"\n\n") + 2
    return data if cut is None else data[: first + int(cut * (len(data) - first))]
