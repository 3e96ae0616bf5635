from typing import Any

from haystack import Pipeline, component
from haystack.components.agents import Agent
from haystack.components.builders import ChatPromptBuilder
from haystack.dataclasses import ChatMessage, StreamingChunk, ToolCall
from haystack.tools import tool

from agentmgr.agent.adapt import needs
from agentmgr.models import Runtime
from agentmgr.testing.agents import bare_client, hosted

ASYNCIO = {"runtime": Runtime.ASYNCIO}


@component
class ScriptedGenerator:
    """Says its replies in turn, word by word; a mapping is a call of a tool."""

    def __init__(self, *replies):
        self.replies, self.heard = list(replies), []

    @component.output_types(replies=list[ChatMessage])
    def run(self, messages: list[ChatMessage], tools: Any = None, streaming_callback: Any = None):
        return {"replies": [self._reply(messages)]}

    @component.output_types(replies=list[ChatMessage])
    async def run_async(self, messages: list[ChatMessage], tools: Any = None, streaming_callback: Any = None):
        reply = self._reply(messages)
        if streaming_callback is not None and reply.text:
            for word in reply.text.split():
                await streaming_callback(StreamingChunk(content=word + " "))
        return {"replies": [reply]}

    def _reply(self, messages):
        self.heard.append([(message.role.value, message.text) for message in messages])
        reply = self.replies.pop(0)
        if isinstance(reply, dict):
            [(name, arguments)] = reply.items()
            return ChatMessage.from_assistant(tool_calls=[ToolCall(name, arguments, id="call_1")])
        return ChatMessage.from_assistant(reply)


@tool
def add(x: int, y: int) -> int:
    """Adds."""
    return x + y


def said(client, name):
    return [event["content"] for event in client.events if event["event"] == name]


async def test_text_is_streamed_and_tools_are_shown():
    agent = Agent(chat_generator=ScriptedGenerator({"add": {"x": 1, "y": 2}}, "it is three"), tools=[add])
    assert needs(agent) is Runtime.ASYNCIO
    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        assert (await client.ask("1 + 2?"))["content"] == "it is three"
    assert said(client, "agent.partial_answer") == ["it ", "is ", "three "]
    assert said(client, "agent.tool_call") == [{"tool": "add", "args": {"x": 1, "y": 2}}]
    assert [result["result"] for result in said(client, "agent.tool_result")] == ["3"]


async def test_each_session_remembers_its_own():
    generator = ScriptedGenerator("one", "two", "three")
    agent = Agent(chat_generator=generator, system_prompt="You help.", tools=[add])
    async with hosted(agent, **ASYNCIO) as url:
        async with bare_client(url) as first, bare_client(url) as second:
            await first.ask("a")
            await first.ask("b")
            await second.ask("c")
    heard = [[text for _, text in messages] for messages in generator.heard]
    assert heard == [["You help.", "a"], ["You help.", "a", "one", "b"], ["You help.", "c"]]


async def test_the_conversation_goes_on_in_the_next_host(in_two_hosts):
    generator = ScriptedGenerator("one", "two")
    await in_two_hosts(lambda: Agent(chat_generator=generator, tools=[add]), ["a"], ["b"])
    assert [text for _, text in generator.heard[1]] == ["a", "one", "b"]


async def test_it_gets_the_history_and_the_instructions(ask_as_a_chat_program):
    generator = ScriptedGenerator("fine", "good")
    async with hosted(Agent(chat_generator=generator, tools=[add]), **ASYNCIO) as url:
        await ask_as_a_chat_program(url)
    assert [text for _, text in generator.heard[0]] == ["be brief", "my name is Ann", "hello Ann", "look"]
    assert generator.heard[1][0] == ("system", "be kind")
    assert ("system", "be brief") not in generator.heard[1]


async def test_a_pipeline_gets_the_message_where_it_wants_a_text():
    generator = ScriptedGenerator("one", "two")
    pipeline = Pipeline()
    template = [ChatMessage.from_user("Answer: {{ question }}")]
    pipeline.add_component("prompt", ChatPromptBuilder(template=template, required_variables=["question"]))
    pipeline.add_component("model", generator)
    pipeline.connect("prompt.prompt", "model.messages")
    assert needs(pipeline) is Runtime.ASYNCIO
    async with hosted(pipeline, **ASYNCIO) as url, bare_client(url) as client:
        assert (await client.ask("why?"))["content"] == "one"
        assert (await client.ask("how?"))["content"] == "two"
    assert [messages[-1][1] for messages in generator.heard] == ["Answer: why?", "Answer: how?"]


async def test_a_pipeline_that_begins_with_messages_gets_the_conversation():
    generator = ScriptedGenerator("one", "two")
    pipeline = Pipeline()
    pipeline.add_component("model", generator)
    async with hosted(pipeline, **ASYNCIO) as url, bare_client(url) as client:
        await client.ask("a")
        await client.ask("b")
    assert [text for _, text in generator.heard[1]] == ["a", "one", "b"]
