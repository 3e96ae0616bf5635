"""Talks to an agent by AG-UI 1.0, as a page would: a run is a POST, its events are server-sent ones, and a
question ends the run, which the next one answers. It needs Python alone.

agentmgr run examples/streaming_agent.py      # in another terminal
python examples/agui_client.py                # or with another address: http://HOST:PORT/agui/NAME
"""

import json
import sys
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:9090/agui/streaming_agent"
messages: list[dict[str, Any]] = []
thread_id = str(uuid.uuid4())  # the conversation; said again another day, it goes on


def events(**more: Any) -> Iterator[dict[str, Any]]:
    """Those of a run."""
    asked = {
        "threadId": thread_id,
        "runId": str(uuid.uuid4()),
        "protocolVersion": "1.0",
        "messages": messages,
    }
    # Where the gateway asks for a token, also: "Authorization": "Bearer …"
    request = Request(ADDRESS, json.dumps(asked | more).encode(), {"Content-Type": "application/json"})
    try:
        with urlopen(request) as lines:
            for line in lines:
                if line.startswith(b"data: "):
                    yield json.loads(line.removeprefix(b"data: "))
    except HTTPError as refused:
        sys.exit(f"{ADDRESS} refused this: {refused.read().decode()}")


def run(**more: Any) -> list[dict[str, Any]]:
    """Shows a run; the questions that it ends with."""
    for event in events(**more):
        match event:
            case {"type": "TEXT_MESSAGE_START", "messageId": message_id}:
                messages.append({"id": message_id, "role": "assistant", "content": ""})
            case {"type": "TEXT_MESSAGE_CONTENT", "delta": delta}:
                messages[-1]["content"] += delta
                print(delta, end="", flush=True)
            case {"type": "TEXT_MESSAGE_END"}:
                print()
            case {"type": "REASONING_MESSAGE_CONTENT", "delta": delta}:
                print(f"({delta})")
            case {"type": "TOOL_CALL_START", "toolCallName": name}:
                print(f"[{name}: ", end="")
            case {"type": "TOOL_CALL_RESULT", "content": result}:
                print(f"{result}]")
            case {"type": "RUN_ERROR", "message": problem}:
                sys.exit(problem)
            case {"type": "RUN_FINISHED", "outcome": {"type": "interrupt", "interrupts": interrupts}}:
                return list(interrupts)
    return []


for text in ("hello", "delete notes.txt"):
    print(f"> {text}")
    messages.append({"id": str(uuid.uuid4()), "role": "user", "content": text})
    questions = run()
    while questions:
        answers = []
        for question in questions:
            print(question["message"], "yes")
            payload = {"confirmed": True}
            answers.append({"interruptId": question["id"], "status": "resolved", "payload": payload})
        questions = run(resume=answers)
