"""The framework examples, each in a process of its own, against a model server on this machine."""

import json
import os
import re
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import h11
import pytest
import trio

EXAMPLES = Path(__file__).parents[2] / "examples"


@asynccontextmanager
async def example(name):
    """The URL at which it is served."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, _serve_model, 0)
        port = listeners[0].socket.getsockname()[1]
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "agentmgr.agent", str(EXAMPLES / name)],
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "OPENAI_BASE_URL": f"http://localhost:{port}/v1",
                "OPENAI_API_KEY": "x",
                "GOOGLE_GEMINI_BASE_URL": f"http://localhost:{port}",
                "GOOGLE_API_KEY": "x",
            },
        )
        try:
            with trio.fail_after(60):
                said = b""
                while not (url := re.search(rb"ws://\S+", said)):
                    said += await process.stderr.receive_some() or pytest.fail(said.decode())
                yield url.group().decode()
        finally:
            process.kill()
            await process.wait()
        nursery.cancel_scope.cancel()


async def converse(session, text, approve=True):
    """The answer, the questions and the names of the events of one turn."""
    names, questions = [], []
    async for event in await session.send(text):
        names.append(event.event)
        if event.event == "agent.user_confirm":
            questions.append(event.content["tool"])
            await session.respond(event, approve)
    assert event.event == "agent.final_answer", event
    return event.content, questions, names


async def _serve_model(stream):
    """One request for a chat completion, or for what Gemini says."""
    parser = h11.Connection(h11.SERVER)
    body = b""
    while not isinstance(event := parser.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            parser.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Data):
            body += event.data
    request = json.loads(body)
    if "contents" in request:
        await _send(stream, "text/event-stream", _gemini(request))
        return
    deltas = list(_completion(request["messages"], request.get("tools", [])))
    common = {"id": "x", "created": 0, "model": "local"}
    if request.get("stream"):
        kind, answer = "text/event-stream", b""
        for delta in [*deltas, {}]:
            choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
            chunk = {**common, "object": "chat.completion.chunk", "choices": [choice]}
            answer += f"data: {json.dumps(chunk)}\n\n".encode()
        answer += b"data: [DONE]\n\n"
    else:
        calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
        text = "".join(delta["content"] for delta in deltas if "content" in delta)
        message = {"role": "assistant", "content": text or None, **({"tool_calls": calls} if calls else {})}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
        used = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        whole = {**common, "object": "chat.completion", "choices": [choice], "usage": used}
        kind, answer = "application/json", json.dumps(whole).encode()
    await _send(stream, kind, answer)


async def _send(stream, kind, answer):
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode()
    await stream.send_all(head + answer)
    await stream.aclose()


def _gemini(request):
    """The same in Gemini's words."""
    [part, *_] = request["contents"][-1]["parts"]
    answered = part.get("functionResponse", {}).get("response")
    said = part.get("text") or json.dumps(answered)
    tools = [
        {"function": {"name": function["name"]}}
        for tool in request.get("tools", [])
        for function in tool["functionDeclarations"]
    ]
    role = "user" if answered is None else "tool"
    answer = b""
    for delta in _completion([{"role": role, "content": said}], tools):
        if calls := delta.get("tool_calls"):
            call = calls[0]["function"]
            part = {"functionCall": {"name": call["name"], "args": json.loads(call["arguments"])}}
        else:
            part = {"text": delta["content"]}
        candidate = {"content": {"role": "model", "parts": [part]}, "finishReason": "STOP"}
        answer += f"data: {json.dumps({'candidates': [candidate]})}\n\n".encode()
    return answer


def _completion(messages, tools):
    """Calls a tool when the last message names one, else says what it heard, word by word."""
    last = messages[-1]["content"]
    if isinstance(last, list):
        last = last[0]["text"]
    names = [tool["function"]["name"] for tool in tools]
    for name in names:
        # Semantic Kernel has Calculator-multiply for what a person calls multiply.
        if messages[-1]["role"] == "user" and (said := name.rpartition("-")[2]) in last:
            given, _ = json.JSONDecoder().raw_decode(last.partition(said)[2].strip())
            yield _call(name, json.dumps(given))
            return
    words = ["I ", "heard ", str(last)]
    if "final_answer" in names:  # without which an agent of smolagents does not end
        yield _call("final_answer", json.dumps({"answer": "".join(words)}))
        return
    for word in words:
        yield {"role": "assistant", "content": word}


def _call(name, arguments):
    function = {"name": name, "arguments": arguments}
    return {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]}
