import asyncio
import threading

import pytest
import trio
from pydantic import BaseModel
from pydantic_ai import Agent, DeferredToolRequests
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo, DeltaThinkingPart, DeltaToolCall, FunctionModel
from pydantic_ai.models.test import TestModel

from agentmgr.agent.adapt import needs
from agentmgr.models import Runtime
from agentmgr.protocol import TURN_ENDS
from agentmgr.testing.agents import bare_client, hosted

ASYNCIO = {"runtime": Runtime.ASYNCIO}


def said(client, name):
    return [event["content"] for event in client.events if event["event"] == name]


async def words(messages: list[ModelMessage], info: AgentInfo):
    yield {0: DeltaThinkingPart(content="let me see")}
    for word in ("one ", "two ", "three"):
        yield word


async def test_text_is_streamed_and_thinking_is_shown():
    async with hosted(Agent(FunctionModel(stream_function=words)), **ASYNCIO) as url:
        async with bare_client(url) as client:
            assert (await client.ask("count"))["content"] == "one two three"
    assert "".join(said(client, "agent.partial_answer")) == "one two three"
    assert said(client, "agent.thinking") == ["let me see"]


async def test_tools_are_shown_and_failures_too():
    agent = Agent(TestModel())

    @agent.tool_plain
    def add(x: int, y: int) -> int:
        return x + y

    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        assert (await client.ask("hi"))["content"] == '{"add":0}'
    assert said(client, "agent.tool_call") == [{"tool": "add", "args": {"x": 0, "y": 0}}]
    assert said(client, "agent.tool_result") == [{"tool": "add", "result": 0, "success": True}]
    steps = [event["step_id"] for event in client.events if event["event"].startswith("agent.tool")]
    assert steps[0] == steps[1]


async def test_the_conversation_is_remembered_by_session():
    async def count(messages: list[ModelMessage], info: AgentInfo):
        yield f"{len(messages)} messages"

    async with hosted(Agent(FunctionModel(stream_function=count)), **ASYNCIO) as url:
        async with bare_client(url) as one, bare_client(url) as two:
            assert (await one.ask("a"))["content"] == "1 messages"
            assert (await one.ask("b"))["content"] == "3 messages"
            assert (await two.ask("c"))["content"] == "1 messages"


async def test_the_conversation_goes_on_in_the_next_host(in_two_hosts):
    heard = []

    def create_agent():
        async def answer(messages: list[ModelMessage], info: AgentInfo):
            heard.append([part.part_kind for message in messages for part in message.parts])
            if len(messages) == 1:
                yield {0: DeltaToolCall("add", '{"x": 1, "y": 2}', tool_call_id="call_1")}
            else:
                yield f"{len(messages)} messages"

        agent = Agent(FunctionModel(stream_function=answer, model_name="scripted"))

        @agent.tool_plain
        def add(x: int, y: int) -> int:
            return x + y

        return agent

    answers, used = await in_two_hosts(create_agent, ["1 + 2?"], ["and now?"])
    assert answers == ["3 messages", "5 messages"]
    assert heard[2] == ["user-prompt", "tool-call", "tool-return", "text", "user-prompt"]
    assert [counted["model"] for counted in used] == ["scripted"] * 2
    assert all(counted["input_tokens"] and counted["output_tokens"] for counted in used)


async def test_it_gets_all_that_a_chat_program_says(ask_as_a_chat_program):
    heard = []

    async def answer(messages: list[ModelMessage], info: AgentInfo):
        heard.append((info.instructions, [part.content for message in messages for part in message.parts]))
        yield "fine"

    agent = Agent(FunctionModel(stream_function=answer), instructions="You help.")
    async with hosted(agent, **ASYNCIO) as url:
        await ask_as_a_chat_program(url)
    (first, said), (second, more) = heard
    assert (first, second) == ("You help.\n\nbe brief", "You help.\n\nbe kind")
    assert said[:2] == ["my name is Ann", "hello Ann"]
    text, picture, notes = said[2]
    assert (text, picture.data, picture.media_type) == ("look", b"image", "image/png")
    assert (notes.data, notes.media_type) == (b"notes", "text/plain")
    assert more == [*said, "fine", "and now?"]


async def test_structured_output_is_an_object():
    class City(BaseModel):
        name: str
        size: int

    agent = Agent(TestModel(custom_output_args={"name": "Ulm", "size": 3}), output_type=City)
    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        assert (await client.ask("where?"))["content"] == {"name": "Ulm", "size": 3}


@pytest.mark.parametrize(("approved", "ran"), [(True, ["a"]), (False, [])])
async def test_a_tool_that_needs_approval_asks_the_person(approved, ran):
    removed = []
    agent = Agent(TestModel(), output_type=[str, DeferredToolRequests])

    @agent.tool_plain(requires_approval=True)
    def remove(path: str) -> str:
        removed.append(path)
        return "done"

    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        await client.say("user.message", content="clean up")
        question = await client.until("agent.user_confirm")
        assert question["content"]["tool"] == "remove"
        assert question["content"]["args"] == {"path": "a"}
        await client.say("user.response", step_id=question["step_id"], content={"confirmed": approved})
        assert (await client.until(*TURN_ENDS))["event"] == "agent.final_answer"
    assert removed == ran


async def test_a_cancel_stops_the_model():
    stopped = threading.Event()

    async def endless(messages: list[ModelMessage], info: AgentInfo):
        try:
            yield "first "
            yield "second "
            await asyncio.sleep(1000)
        finally:
            stopped.set()

    async with hosted(Agent(FunctionModel(stream_function=endless)), **ASYNCIO) as url:
        async with bare_client(url) as client:
            await client.say("user.message", content="go")
            await client.until("agent.partial_answer")
            await client.say("user.cancel")
            assert (await client.until(*TURN_ENDS))["event"] == "agent.interrupted"
            assert await trio.to_thread.run_sync(stopped.wait, 5)


def test_it_is_known_by_its_type():
    assert needs(Agent(TestModel())) is Runtime.ASYNCIO
