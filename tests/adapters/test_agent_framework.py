import pytest
from agent_framework import (
    Agent,
    BaseChatClient,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    FunctionInvocationLayer,
    ResponseStream,
    tool,
)

from agentmgr.agent.adapt import needs
from agentmgr.models import Runtime
from agentmgr.protocol import TURN_ENDS
from agentmgr.testing.agents import bare_client, hosted

ASYNCIO = {"runtime": Runtime.ASYNCIO}


class ScriptedClient(FunctionInvocationLayer, BaseChatClient):
    """Says its replies in turn, word by word; a mapping is a call of a tool."""

    def __init__(self, *replies):
        super().__init__()
        self.replies, self.heard, self.options = list(replies), [], []

    def _inner_get_response(self, *, messages, stream, options, **kwargs):
        self.heard.append([(message.role, message.text) for message in messages if message.text])
        self.options.append(options)
        reply = self.replies.pop(0)

        async def updates():
            if isinstance(reply, dict):
                [(name, arguments)] = reply.items()
                pieces = [Content.from_function_call("call_1", name, arguments=arguments)]
            else:
                pieces = [Content.from_text(word + " ") for word in reply.split()]
            for piece in pieces:
                yield ChatResponseUpdate(contents=[piece], role="assistant", response_id="r", message_id="m")
            counted = {"input_token_count": 7, "output_token_count": 2}
            yield ChatResponseUpdate(contents=[Content.from_usage(counted)], role="assistant")

        return ResponseStream(updates(), finalizer=ChatResponse.from_updates)


def said(client, name):
    return [event["content"] for event in client.events if event["event"] == name]


@tool(approval_mode="never_require")
def add(x: int, y: int) -> int:
    """Adds."""
    return x + y


async def test_text_is_streamed_and_tools_are_shown():
    client = ScriptedClient({"add": '{"x": 1, "y": 2}'}, "it is three")
    async with hosted(Agent(client, tools=[add]), **ASYNCIO) as url, bare_client(url) as person:
        assert (await person.ask("1 + 2?"))["content"].strip() == "it is three"
    assert said(person, "agent.partial_answer") == ["it ", "is ", "three "]
    assert said(person, "agent.tool_call") == [{"tool": "add", "args": {"x": 1, "y": 2}}]
    assert [str(result["result"]) for result in said(person, "agent.tool_result")] == ["3"]
    assert sum(used["input_tokens"] for used in said(person, "agent.usage")) == 14


async def test_each_session_remembers_its_own():
    client = ScriptedClient("one", "two", "three")
    async with hosted(Agent(client), **ASYNCIO) as url:
        async with bare_client(url) as first, bare_client(url) as second:
            await first.ask("a")
            await first.ask("b")
            await second.ask("c")
    heard = [[text.strip() for _, text in messages] for messages in client.heard]
    assert heard == [["a"], ["a", "one", "b"], ["c"]]


async def test_the_conversation_goes_on_in_the_next_host(in_two_hosts):
    client = ScriptedClient("one", "two")
    await in_two_hosts(lambda: Agent(client), ["a"], ["b"])
    assert [text.strip() for _, text in client.heard[1]] == ["a", "one", "b"]


@pytest.mark.parametrize(("approved", "ran"), [(True, ["a"]), (False, [])])
async def test_a_tool_that_needs_approval_asks_the_person(approved, ran):
    removed = []

    @tool(approval_mode="always_require")
    def remove(path: str) -> str:
        """Removes."""
        removed.append(path)
        return "done"

    client = ScriptedClient({"remove": '{"path": "a"}'}, "all right")
    async with hosted(Agent(client, tools=[remove]), **ASYNCIO) as url, bare_client(url) as person:
        await person.say("user.message", content="clean up")
        question = await person.until("agent.user_confirm")
        assert question["content"]["tool"] == "remove"
        assert question["content"]["args"] == {"path": "a"}
        await person.say("user.response", step_id=question["step_id"], content={"confirmed": approved})
        assert (await person.until(*TURN_ENDS))["content"].strip() == "all right"
    assert removed == ran


async def test_it_gets_all_that_a_chat_program_says(ask_as_a_chat_program):
    client = ScriptedClient("fine", "good")
    async with hosted(Agent(client, instructions="You help."), **ASYNCIO) as url:
        await ask_as_a_chat_program(url)
    assert [text for _, text in client.heard[0]][-3:] == ["my name is Ann", "hello Ann", "look"]
    told = ["\n".join([str(options.get("instructions")), *(text for role, text in heard if role == "system")])
            for options, heard in zip(client.options, client.heard, strict=True)]  # fmt: skip
    assert "be brief" in told[0]
    assert "You help." in told[0]
    assert "be kind" in told[1]


def test_it_is_known_by_its_type():
    assert needs(Agent(ScriptedClient())) is Runtime.ASYNCIO
