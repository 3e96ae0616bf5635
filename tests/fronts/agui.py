"""AG-UI as a client reads it: `ag-ui-validate` judges each stream, `ag-ui-protocol` each event."""

from __future__ import annotations

import json
from typing import Any

from ag_ui.core import Event
from ag_ui_validate import create_validator
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tests.fronts.conftest import Stage, request, split

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
"""Any value that JSON can say."""
_EVENT = TypeAdapter(Event)


def read(data: bytes) -> list[dict[str, Any]]:
    """The events of a whole stream, in order; each has an `id` if it came with one."""
    events = check(data)
    assert not data or data.endswith(b"\n\n"), data[-80:]
    return events


def check(data: bytes, *, cut: bool = False) -> list[dict[str, Any]]:
    """`cut`: the end of the stream is not there."""
    validator, events = create_validator(), []
    for frame in data.decode().split("\n\n"):
        fields = [line.partition(": ") for line in frame.split("\n") if line and not line.startswith(":")]
        if not fields:
            continue
        assert {name for name, _, _ in fields} <= {"id", "data"}
        values = {name: value for name, _, value in fields}
        event = json.loads(values["data"])
        _EVENT.validate_python(event)
        validator.feed(event)
        events.append(event | ({"id": int(values["id"])} if "id" in values else {}))
    if not cut:
        validator.finalize()
    report = validator.report()
    wrong = [found for found in report.diagnostics if found.rule != "AGUI902"]  # no timestamps
    assert not wrong, "\n".join(str(found) for found in wrong)
    assert not report.internal_errors
    return events


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def text(events: list[dict[str, Any]]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "TEXT_MESSAGE_CONTENT")


class Page:
    """A client with one thread: it keeps the messages, as a real one does."""

    def __init__(self, stage: Stage, thread: str = "t1", service: str = "echo", **headers: str) -> None:
        self.stage, self.thread, self.service, self.headers = stage, thread, service, headers
        self.messages: list[dict[str, Any]] = []
        self.runs = 0
        self.interrupts: list[dict[str, Any]] = []

    def body(self, text: str | None = None, **more: Any) -> dict[str, Any]:
        if text is not None:
            self.messages.append({"id": f"user-{len(self.messages)}", "role": "user", "content": text})
        self.runs += 1
        body = {
            "threadId": self.thread,
            "runId": f"{self.thread}-run-{self.runs}",
            "protocolVersion": "1.0",
            "messages": self.messages,
            "tools": [],
            "context": [],
            "forwardedProps": {},
            "state": {},
        }
        return body | more

    async def run(
        self, text: str | None = None, *, headers: dict[str, str] | None = None, **more: Any
    ) -> Any:
        """The events of a run, or status and body of a refusal."""
        return await self.post(self.body(text, **more), headers)

    async def post(self, body: dict[str, Any], headers: dict[str, str] | None = None) -> Any:
        events = await post(self.stage, self.service, body, {**self.headers, **(headers or {})})
        if isinstance(events, list):
            self.take(events)
        return events

    async def resume(self, payload: Any = None, *, status: str = "resolved", **more: Any) -> Any:
        entries = [{"interruptId": i["id"], "status": status, "payload": payload} for i in self.interrupts]
        return await self.run(resume=entries, **more)

    def take(self, events: list[dict[str, Any]]) -> None:
        """As the client of npm applies them."""
        self.interrupts = []
        for event in events:
            known = {message["id"]: message for message in self.messages}
            match event["type"]:
                case "TEXT_MESSAGE_START" if event["messageId"] not in known:
                    message = {"id": event["messageId"], "role": "assistant", "content": ""}
                    self.messages.append(message)
                case "TEXT_MESSAGE_CONTENT":
                    known[event["messageId"]]["content"] += event["delta"]
                case "TOOL_CALL_START":
                    calls = [call["id"] for m in self.messages for call in m.get("toolCalls", ())]
                    if event["toolCallId"] not in calls:
                        function = {"name": event["toolCallName"], "arguments": ""}
                        call = {"id": event["toolCallId"], "type": "function", "function": function}
                        message = {"id": event["toolCallId"], "role": "assistant", "toolCalls": [call]}
                        self.messages.append(message)
                case "TOOL_CALL_RESULT":
                    fields = {"id": event["messageId"], "role": "tool", "content": event["content"]}
                    self.messages.append(fields | {"toolCallId": event["toolCallId"]})
                case "MESSAGES_SNAPSHOT":
                    self.messages = [dict(message) for message in event["messages"]]
                case "RUN_FINISHED" if event.get("outcome", {}).get("type") == "interrupt":
                    self.interrupts = event["outcome"]["interrupts"]


async def post(
    stage: Stage, service: str, body: Any, headers: dict[str, str] | None = None
) -> list[dict[str, Any]] | tuple[int, Any]:
    """The events of the answer; status and body of one that is no stream."""
    sent = request("POST", f"/agui/{service}", body, {"Connection": "close", **(headers or {})})
    head, data = split(await stage.raw(sent))
    if b"text/event-stream" in head:
        assert head.startswith(b"HTTP/1.1 200 ")
        return read(data)
    return int(head.split()[1]), json.loads(data)
