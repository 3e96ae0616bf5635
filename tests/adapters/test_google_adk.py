import asyncio

import pytest
from google.adk.agents import Agent
from google.adk.models import BaseLlm, LlmResponse
from google.adk.runners import InMemoryRunner
from google.adk.tools import FunctionTool
from google.genai import types

from agentmgr.agent.adapt import needs
from agentmgr.agent.load import load
from agentmgr.models import Runtime
from agentmgr.protocol import TURN_ENDS
from agentmgr.testing.agents import bare_client, hosted

ASYNCIO = {"runtime": Runtime.ASYNCIO}


class ScriptedModel(BaseLlm):
    """Says its replies in turn, word by word; a mapping is a call of a tool."""

    replies: list
    heard: list
    asked: list
    hang: bool = False

    async def generate_content_async(self, llm_request, stream=False):
        texts = [part.text.strip() for content in llm_request.contents for part in content.parts if part.text]
        self.heard.append(texts)
        self.asked.append(llm_request)
        reply = self.replies.pop(0)
        if isinstance(reply, dict):
            part = types.Part.from_function_call(name=reply["name"], args=reply["args"])
            yield LlmResponse(content=types.Content(role="model", parts=[part]))
            return
        for word in reply.split():
            yield self._said(word + " ", partial=True)
        if self.hang:
            await asyncio.sleep(1000)
        counted = types.GenerateContentResponseUsageMetadata(prompt_token_count=7, candidates_token_count=2)
        yield self._said(reply, usage_metadata=counted, model_version="scripted")

    def _said(self, text, **options):
        return LlmResponse(content=types.Content(role="model", parts=[types.Part(text=text)]), **options)


def scripted(*replies, **options):
    return ScriptedModel(model="scripted", replies=list(replies), heard=[], asked=[], **options)


def said(client, name):
    return [event["content"] for event in client.events if event["event"] == name]


def add(x: int, y: int) -> dict:
    """Adds."""
    return {"sum": x + y}


@pytest.mark.parametrize("wrap", [lambda agent: agent, lambda agent: InMemoryRunner(agent, app_name="x")])
async def test_text_is_streamed_and_tools_are_shown(wrap):
    model = scripted({"name": "add", "args": {"x": 1, "y": 2}}, "it is three")
    agent = wrap(Agent(name="adder", model=model, tools=[add]))
    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        assert (await client.ask("1 + 2?"))["content"] == "it is three"
    assert said(client, "agent.partial_answer") == ["it ", "is ", "three "]
    assert said(client, "agent.tool_call") == [{"tool": "add", "args": {"x": 1, "y": 2}}]
    assert [result["result"] for result in said(client, "agent.tool_result")] == [{"sum": 3}]


async def test_the_conversation_is_remembered_by_session():
    model = scripted("one", "two", "three")
    async with hosted(Agent(name="a", model=model), **ASYNCIO) as url:
        async with bare_client(url) as first, bare_client(url) as second:
            await first.ask("a")
            await first.ask("b")
            await second.ask("c")
    assert model.heard == [["a"], ["a", "one", "b"], ["c"]]


async def test_the_conversation_goes_on_in_the_next_host(in_two_hosts):
    model = scripted("one", "two", "three")
    _, used = await in_two_hosts(lambda: Agent(name="a", model=model), ["a"], ["b", "c"])
    assert model.heard == [["a"], ["a", "one", "b"], ["a", "one", "b", "two", "c"]]
    assert used == [{"input_tokens": 7, "output_tokens": 2, "model": "scripted"}] * 3


@pytest.mark.filterwarnings("ignore")  # the framework calls its own tool confirmation an experiment
@pytest.mark.parametrize(("approved", "ran"), [(True, ["a"]), (False, [])])
async def test_a_tool_that_requires_confirmation_asks_the_person(approved, ran):
    removed = []

    def remove(path: str) -> dict:
        """Removes."""
        removed.append(path)
        return {"done": True}

    model = scripted({"name": "remove", "args": {"path": "a"}}, "all right")
    agent = Agent(name="a", model=model, tools=[FunctionTool(remove, require_confirmation=True)])
    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        await client.say("user.message", content="clean up")
        question = await client.until("agent.user_confirm")
        assert question["content"]["tool"] == "remove"
        assert question["content"]["args"] == {"path": "a"}
        await client.say("user.response", step_id=question["step_id"], content={"confirmed": approved})
        assert (await client.until(*TURN_ENDS))["event"] == "agent.final_answer"
    assert removed == ran


async def test_a_cancel_stops_the_turn_and_the_next_one_runs():
    model = scripted("one two", "three", hang=True)
    async with hosted(Agent(name="a", model=model), **ASYNCIO) as url, bare_client(url) as client:
        await client.say("user.message", content="go")
        await client.until("agent.partial_answer")
        await client.say("user.cancel")
        assert (await client.until(*TURN_ENDS))["event"] == "agent.interrupted"
        model.hang = False
        assert (await client.ask("again"))["content"] == "three"


def test_the_frameworks_own_name_for_the_agent_is_found(tmp_path):
    path = tmp_path / "adk.py"
    path.write_text(
        "from google.adk.agents import Agent\nroot_agent = Agent(name='a', model='gemini-2.5-flash')"
    )
    loaded = load(str(path))
    assert (loaded.make().name, loaded.runtime) == ("a", Runtime.ASYNCIO)


async def test_it_gets_all_that_a_chat_program_says(ask_as_a_chat_program):
    model = scripted("fine", "good")
    async with hosted(Agent(name="a", model=model, instruction="You help."), **ASYNCIO) as url:
        await ask_as_a_chat_program(url)
    first, second = model.asked
    assert "You help." in first.config.system_instruction
    assert first.config.system_instruction.endswith("be brief")
    assert second.config.system_instruction.endswith("be kind")
    assert "be brief" not in second.config.system_instruction
    assert [content.role for content in first.contents] == ["user", "model", "user"]
    assert model.heard == [
        ["my name is Ann", "hello Ann", "look"],
        ["my name is Ann", "hello Ann", "look", "fine", "and now?"],
    ]
    _, picture, notes = (part.inline_data for part in first.contents[-1].parts)
    assert (picture.data, picture.mime_type) == (b"image", "image/png")
    assert (notes.data, notes.mime_type) == (b"notes", "text/plain")


def test_it_is_known_by_its_type():
    assert needs(Agent(name="a", model=scripted())) is Runtime.ASYNCIO
