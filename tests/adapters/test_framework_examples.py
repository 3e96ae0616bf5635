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

from agentmgr.client.session import open_session

EXAMPLES = Path(__file__).parents[2] / "examples"


def completion(messages, tools):
    """Calls a tool when the last message names one, else says what it heard, word by word."""
    last = messages[-1]["content"]
    if isinstance(last, list):
        last = last[0]["text"]
    for tool in tools:
        name = tool["function"]["name"]
        if messages[-1]["role"] == "user" and name in last:
            arguments = last.partition(name)[2].strip()
            yield {"tool_calls": [{"index": 0, "id": "call_1", "type": "function",
                                   "function": {"name": name, "arguments": arguments}}]}  # fmt: skip
            return
    for word in ["I ", "heard ", str(last)]:
        yield {"role": "assistant", "content": word}


async def serve_model(stream):
    """One request for a streamed chat completion."""
    parser = h11.Connection(h11.SERVER)
    body = b""
    while not isinstance(event := parser.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            parser.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Data):
            body += event.data
    request = json.loads(body)
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    common = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "local"}
    for delta in [*completion(request["messages"], request.get("tools", [])), {}]:
        choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
        answer += f"data: {json.dumps({**common, 'choices': [choice]})}\n\n".encode()
    await stream.send_all(answer + b"data: [DONE]\n\n")
    await stream.aclose()


@asynccontextmanager
async def running(name):
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve_model, 0)
        port = listeners[0].socket.getsockname()[1]
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "agentmgr.agent", str(EXAMPLES / name)],
            stderr=subprocess.PIPE,
            env={**os.environ, "OPENAI_BASE_URL": f"http://localhost:{port}/v1", "OPENAI_API_KEY": "x"},
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


async def test_pydantic_ai():
    async with running("pydantic_ai_agent.py") as url, open_session(url) as session:
        answer, questions, names = await converse(session, "hello")
        assert "a taxi is on its way" in answer
        assert questions == ["order_taxi"]
        assert "agent.partial_answer" in names
        assert names.count("agent.tool_result") == 2


async def test_langgraph():
    async with running("langgraph_agent.py") as url, open_session(url) as session:
        answer, questions, names = await converse(session, "a table for two")
        assert answer == "Of course, I have booked it for you."
        assert questions == ["interrupt"]
        assert "agent.partial_answer" in names
        assert (await converse(session, "and a taxi", approve=False))[0] == "All right, nothing is booked."


async def test_openai_agents():
    async with running("openai_agents_agent.py") as url, open_session(url) as session:
        answer, _, names = await converse(session, 'weather {"city": "Ulm"}')
        assert answer == "I heard sunny in Ulm"
        assert names.count("agent.partial_answer") == 3
        mail = 'send_mail {"to": "me", "text": "hi"}'
        assert (await converse(session, mail))[:2] == ("I heard sent to me", ["send_mail"])


async def test_agno():
    async with running("agno_agent.py") as url, open_session(url) as session:
        answer, _, names = await converse(session, 'multiply {"a": 6, "b": 7}')
        assert answer == "I heard 42.0"
        assert "agent.tool_call" in names
        assert (await converse(session, "thanks"))[0] == "I heard thanks"


async def test_haystack():
    async with running("haystack_agent.py") as url, open_session(url) as session:
        answer, _, names = await converse(session, 'multiply {"a": 6, "b": 7}')
        assert answer == "I heard 42"
        assert "agent.tool_call" in names
        assert (await converse(session, "thanks"))[0] == "I heard thanks"
