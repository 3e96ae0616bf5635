import asyncio
import threading

import pytest
import trio
from agno.agent import Agent
from agno.db.in_memory import InMemoryDb
from agno.metrics import MessageMetrics
from agno.models.base import Model
from agno.models.response import ModelResponse
from agno.tools import tool

from agentmgr.agent.adapt import needs
from agentmgr.models import Runtime
from agentmgr.protocol import TURN_ENDS
from agentmgr.testing.agents import bare_client, hosted

ASYNCIO = {"runtime": Runtime.ASYNCIO}


class ScriptedModel(Model):
    """Says its replies in turn, word by word; a mapping is a call of a tool."""

    def __init__(self, *replies, hang=None):
        super().__init__(id="scripted")
        self.replies, self.heard, self.hang = list(replies), [], hang
        self.said = []

    async def ainvoke_stream(self, messages, *args, **kwargs):
        self.said.append(list(messages))
        self.heard.append([str(message.content) for message in messages if message.role != "system"])
        reply = self.replies.pop(0)
        if isinstance(reply, dict):
            yield ModelResponse(role="assistant", tool_calls=[{
                "id": "call_1", "type": "function",
                "function": {"name": reply["name"], "arguments": reply["args"]},
            }])  # fmt: skip
            return
        try:
            for word in reply.split():
                yield ModelResponse(role="assistant", content=word + " ")
            counted = MessageMetrics(input_tokens=7, output_tokens=2, total_tokens=9)
            yield ModelResponse(role="assistant", response_usage=counted)
            if self.hang is not None:
                await asyncio.sleep(1000)
        finally:
            if self.hang is not None:
                self.hang.set()

    async def ainvoke(self, *args, **kwargs):
        raise NotImplementedError

    def invoke(self, *args, **kwargs):
        raise NotImplementedError

    def invoke_stream(self, *args, **kwargs):
        raise NotImplementedError

    def _parse_provider_response(self, response, **kwargs):
        return response

    def _parse_provider_response_delta(self, response):
        return response


def said(client, name):
    return [event["content"] for event in client.events if event["event"] == name]


def add(x: int, y: int) -> int:
    """Adds."""
    return x + y


async def test_text_is_streamed_and_tools_are_shown():
    model = ScriptedModel({"name": "add", "args": '{"x": 1, "y": 2}'}, "it is three")
    agent = Agent(model=model, tools=[add], telemetry=False)
    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        assert (await client.ask("1 + 2?"))["content"] == "it is three "
    assert said(client, "agent.partial_answer") == ["it ", "is ", "three "]
    assert said(client, "agent.tool_call") == [{"tool": "add", "args": {"x": 1, "y": 2}}]
    assert [result["result"] for result in said(client, "agent.tool_result")] == ["3"]


@pytest.mark.parametrize("db", [False, True])
async def test_the_conversation_is_remembered_by_session(db):
    options = {"db": InMemoryDb(), "add_history_to_context": True} if db else {}
    model = ScriptedModel("one", "two", "three")
    async with hosted(Agent(model=model, telemetry=False, **options), **ASYNCIO) as url:
        async with bare_client(url) as first, bare_client(url) as second:
            await first.ask("a")
            await first.ask("b")
            await second.ask("c")
    assert [[text.strip() for text in heard] for heard in model.heard] == [["a"], ["a", "one", "b"], ["c"]]


@pytest.mark.parametrize("db", [False, True])
async def test_the_conversation_goes_on_in_the_next_host(in_two_hosts, db):
    model = ScriptedModel("one", "two", "three")

    def create_agent():
        options = {"db": InMemoryDb(), "add_history_to_context": True} if db else {}
        return Agent(model=model, telemetry=False, **options)

    _, used = await in_two_hosts(create_agent, ["a"], ["b", "c"])
    assert [[text.strip() for text in heard] for heard in model.heard] == [
        ["a"], ["a", "one", "b"], ["a", "one", "b", "two", "c"],
    ]  # fmt: skip
    assert used == [{"input_tokens": 7, "output_tokens": 2, "model": "scripted"}] * 3


@pytest.mark.parametrize("db", [False, True])
@pytest.mark.parametrize(("approved", "ran"), [(True, ["a"]), (False, [])])
async def test_a_tool_that_requires_confirmation_asks_the_person(approved, ran, db):
    removed = []

    @tool(requires_confirmation=True)
    def remove(path: str) -> str:
        """Removes."""
        removed.append(path)
        return "done"

    model = ScriptedModel({"name": "remove", "args": '{"path": "a"}'}, "all right")
    agent = Agent(model=model, tools=[remove], telemetry=False, db=InMemoryDb() if db else None)
    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        await client.say("user.message", content="clean up")
        question = await client.until("agent.user_confirm")
        assert question["content"]["tool"] == "remove"
        assert question["content"]["args"] == {"path": "a"}
        await client.say("user.response", step_id=question["step_id"], content={"confirmed": approved})
        assert (await client.until(*TURN_ENDS))["content"] == "all right "
    assert removed == ran


async def test_a_cancel_stops_the_model():
    stopped = threading.Event()
    agent = Agent(model=ScriptedModel("one two", hang=stopped), telemetry=False)
    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        await client.say("user.message", content="go")
        await client.until("agent.partial_answer")
        await client.say("user.cancel")
        assert (await client.until(*TURN_ENDS))["event"] == "agent.interrupted"
        assert await trio.to_thread.run_sync(stopped.wait, 5)


@pytest.mark.parametrize("db", [False, True])
async def test_it_gets_all_that_a_chat_program_says(ask_as_a_chat_program, db):
    options = {"db": InMemoryDb(), "add_history_to_context": True} if db else {}
    model = ScriptedModel("fine", "good")
    agent = Agent(model=model, telemetry=False, instructions="You help.", **options)
    async with hosted(agent, **ASYNCIO) as url:
        await ask_as_a_chat_program(url)
    assert [text.strip() for text in model.heard[1]] == [
        "my name is Ann", "hello Ann", "look", "fine", "and now?",
    ]  # fmt: skip
    first, second = ([m for m in said if m.role == "system"] for said in model.said)
    assert [message.content for message in first] == ["You help.", "be brief"]
    assert [message.content for message in second] == ["You help.", "be kind"]
    [picture], [notes] = model.said[0][-1].images, model.said[0][-1].files
    assert (picture.content, picture.mime_type) == (b"image", "image/png")
    assert (notes.content, notes.mime_type, notes.filename) == (b"notes", "text/plain", "notes.txt")


def test_it_is_known_by_its_type():
    assert needs(Agent(model=ScriptedModel())) is Runtime.ASYNCIO
