import threading

import pytest
import trio
from smolagents import CodeAgent, ToolCallingAgent, tool
from smolagents.models import (
    ChatMessage,
    ChatMessageToolCall,
    ChatMessageToolCallFunction,
    MessageRole,
    Model,
    TokenUsage,
)

from agentmgr.agent.adapt import adapt, needs
from agentmgr.errors import AgentLoadError
from agentmgr.models import Runtime
from agentmgr.protocol import TURN_ENDS
from agentmgr.testing.agents import bare_client, hosted

ASYNCIO = {"runtime": Runtime.ASYNCIO}


class ScriptedModel(Model):
    """Calls tools as it was told, in turn; a text is code, for a CodeAgent."""

    def __init__(self, *replies):
        super().__init__(model_id="scripted")
        self.replies, self.heard, self.waits, self.go_on = list(replies), [], False, threading.Event()

    def generate(self, messages, **kwargs):
        self.heard.append([(m.role.value, m.content[0]["text"]) for m in messages])
        if self.waits:
            self.go_on.wait(30)
        reply = self.replies.pop(0)
        calls, text = None, reply
        if isinstance(reply, dict):
            [(name, arguments)] = reply.items()
            function = ChatMessageToolCallFunction(name=name, arguments=arguments)
            calls, text = [ChatMessageToolCall(function=function, id="call_1", type="function")], None
        return ChatMessage(MessageRole.ASSISTANT, text, calls, token_usage=TokenUsage(7, 2))


@tool
def add(x: int, y: int) -> int:
    """Adds.

    Args:
        x: one
        y: another
    """
    return x + y


def said(client, name):
    return [event["content"] for event in client.events if event["event"] == name]


def heard(messages):
    return [text.removeprefix("New task:\n") for role, text in messages if role != "system"]


def final(answer):
    return {"final_answer": {"answer": answer}}


async def test_tools_are_shown_and_the_last_one_is_the_answer():
    model = ScriptedModel({"add": {"x": 1, "y": 2}}, final("three"))

    def create_agent():
        return ToolCallingAgent(tools=[add], model=model, verbosity_level=0)

    async with hosted(create_agent(), make=create_agent, **ASYNCIO) as url, bare_client(url) as client:
        assert (await client.ask("1 + 2?"))["content"] == "three"
    assert said(client, "agent.tool_call") == [{"tool": "add", "args": {"x": 1, "y": 2}}]
    assert [result["result"] for result in said(client, "agent.tool_result")] == [3]
    assert said(client, "agent.usage") == [{"input_tokens": 7, "output_tokens": 2, "model": "scripted"}] * 2


async def test_code_is_shown_as_a_tool():
    model = ScriptedModel("<code>print(1 + 2)</code>", '<code>final_answer("three")</code>')

    def create_agent():
        return CodeAgent(tools=[], model=model, verbosity_level=0)

    async with hosted(create_agent(), make=create_agent, **ASYNCIO) as url, bare_client(url) as client:
        assert (await client.ask("1 + 2?"))["content"] == "three"
    assert said(client, "agent.tool_call")[0] == {"tool": "python_interpreter", "args": "print(1 + 2)"}
    assert "3" in said(client, "agent.tool_result")[0]["result"]


async def test_each_session_remembers_its_own_and_goes_on_in_the_next_host(in_two_hosts):
    model = ScriptedModel(final("one"), final("two"), final("three"))

    def create_agent():
        return ToolCallingAgent(tools=[], model=model, verbosity_level=0)

    answers, _ = await in_two_hosts(create_agent, ["a", "b"], ["c"])
    assert answers == ["one", "two", "three"]
    assert heard(model.heard[0]) == ["a"]
    assert heard(model.heard[1])[0] == "a"
    assert heard(model.heard[1])[-1] == "b"
    assert heard(model.heard[2]) == ["a", "one", "b", "two", "c"]


async def test_a_turn_that_is_cancelled_does_not_run_into_the_next_one():
    model = ScriptedModel(final("one"), final("two"))
    model.waits = True

    def create_agent():
        return ToolCallingAgent(tools=[], model=model, verbosity_level=0)

    async with hosted(create_agent(), make=create_agent, **ASYNCIO) as url, bare_client(url) as client:
        await client.say("user.message", content="a")
        with trio.fail_after(30):
            while not model.heard:  # noqa: ASYNC110
                await trio.sleep(0.01)
        await client.say("user.cancel")
        assert (await client.until(*TURN_ENDS))["event"] == "agent.interrupted"
        model.waits = False
        model.go_on.set()
        assert (await client.ask("b"))["content"] == "two"


async def test_it_gets_the_history_and_the_instructions(ask_as_a_chat_program):
    model = ScriptedModel(final("fine"), final("good"))

    def create_agent():
        return ToolCallingAgent(tools=[], model=model, instructions="You help.", verbosity_level=0)

    async with hosted(create_agent(), make=create_agent, **ASYNCIO) as url:
        await ask_as_a_chat_program(url)
    systems = [messages[0][1] for messages in model.heard]
    assert "You help.\n\nbe brief" in systems[0]
    assert "You help.\n\nbe kind" in systems[1]
    assert heard(model.heard[0]) == ["my name is Ann", "hello Ann", "look"]


def test_one_agent_for_all_sessions_is_refused():
    agent = ToolCallingAgent(tools=[], model=ScriptedModel(), verbosity_level=0)
    assert needs(agent) is Runtime.ASYNCIO
    with pytest.raises(AgentLoadError, match="def create_agent"):
        adapt(agent)
