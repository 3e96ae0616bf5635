import pytest
import trio
from strands import Agent, tool
from strands.models import Model

from agentmgr.agent.adapt import adapt, needs
from agentmgr.errors import AgentLoadError
from agentmgr.models import Runtime
from agentmgr.protocol import TURN_ENDS
from agentmgr.testing.agents import bare_client, hosted

ASYNCIO = {"runtime": Runtime.ASYNCIO}


class ScriptedModel(Model):
    """Says its replies in turn, word by word; a mapping is a call of a tool."""

    def __init__(self, *replies, hang=False):
        self.replies, self.heard, self.hang, self.stopped = list(replies), [], hang, trio.Event()
        self.said = []

    def update_config(self, **config):
        pass

    def get_config(self):
        return {"model_id": "scripted"}

    async def structured_output(self, *args, **kwargs):
        yield {}

    async def stream(self, messages, tool_specs=None, system_prompt=None, **kwargs):
        self.said.append((system_prompt, list(messages)))
        self.heard.append([
            block["text"] for message in messages for block in message["content"] if "text" in block
        ])  # fmt: skip
        reply = self.replies.pop(0)
        yield {"messageStart": {"role": "assistant"}}
        if isinstance(reply, dict):
            use = {"name": reply["name"], "toolUseId": "call_1"}
            yield {"contentBlockStart": {"start": {"toolUse": use}}}
            yield {"contentBlockDelta": {"delta": {"toolUse": {"input": reply["args"]}}}}
        else:
            yield {"contentBlockStart": {"start": {}}}
            for word in reply.split():
                yield {"contentBlockDelta": {"delta": {"text": word + " "}}}
        if self.hang:
            import asyncio

            await asyncio.sleep(1000)
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "tool_use" if isinstance(reply, dict) else "end_turn"}}
        counted = {"inputTokens": 7, "outputTokens": 2, "totalTokens": 9}
        yield {"metadata": {"usage": counted, "metrics": {"latencyMs": 0}}}


def said(client, name):
    return [event["content"] for event in client.events if event["event"] == name]


@tool
def add(x: int, y: int) -> int:
    """Adds."""
    return x + y


async def test_text_is_streamed_and_tools_are_shown():
    model = ScriptedModel({"name": "add", "args": '{"x": 1, "y": 2}'}, "it is three")

    def create_agent():
        return Agent(model=model, tools=[add], callback_handler=None)

    async with hosted(create_agent(), make=create_agent, **ASYNCIO) as url, bare_client(url) as client:
        assert (await client.ask("1 + 2?"))["content"] == "it is three"
    assert said(client, "agent.partial_answer") == ["it ", "is ", "three "]
    assert said(client, "agent.tool_call") == [{"tool": "add", "args": {"x": 1, "y": 2}}]
    assert [result["result"] for result in said(client, "agent.tool_result")] == ["3"]


async def test_each_session_has_a_conversation_of_its_own():
    model = ScriptedModel("one", "two", "three")

    def create_agent():
        return Agent(model=model, callback_handler=None)

    async with hosted(create_agent(), make=create_agent, **ASYNCIO) as url:
        async with bare_client(url) as first, bare_client(url) as second:
            await first.ask("a")
            await first.ask("b")
            await second.ask("c")
    assert [[text.strip() for text in heard] for heard in model.heard] == [["a"], ["a", "one", "b"], ["c"]]


async def test_the_conversation_goes_on_in_the_next_host(in_two_hosts):
    model = ScriptedModel("one", "two")

    def create_agent():
        return Agent(model=model, callback_handler=None)

    _, used = await in_two_hosts(create_agent, ["a"], ["b"])
    assert [[text.strip() for text in heard] for heard in model.heard] == [["a"], ["a", "one", "b"]]
    assert used == [{"input_tokens": 7, "output_tokens": 2, "model": "scripted"}] * 2


def test_one_agent_for_all_sessions_is_refused():
    with pytest.raises(AgentLoadError, match="def create_agent"):
        adapt(Agent(model=ScriptedModel(), callback_handler=None))


@pytest.mark.parametrize(("approved", "ran"), [(True, ["a"]), (False, [])])
async def test_an_interrupt_asks_the_person(approved, ran):
    removed = []

    @tool(context=True)
    def remove(path: str, tool_context) -> str:
        """Removes."""
        if not tool_context.interrupt("remove", reason={"path": path}):
            return "not removed"
        removed.append(path)
        return "done"

    model = ScriptedModel({"name": "remove", "args": '{"path": "a"}'}, "all right")

    def create_agent():
        return Agent(model=model, tools=[remove], callback_handler=None)

    async with hosted(create_agent(), make=create_agent, **ASYNCIO) as url, bare_client(url) as client:
        await client.say("user.message", content="clean up")
        question = await client.until("agent.user_confirm")
        assert question["content"]["tool"] == "remove"
        assert question["content"]["args"] == {"path": "a"}
        await client.say("user.response", step_id=question["step_id"], content={"confirmed": approved})
        assert (await client.until(*TURN_ENDS))["content"] == "all right"
    assert removed == ran


async def test_a_cancel_stops_the_turn_and_the_next_one_runs():
    model = ScriptedModel("one two", "three", hang=True)

    def create_agent():
        return Agent(model=model, callback_handler=None)

    async with hosted(create_agent(), make=create_agent, **ASYNCIO) as url, bare_client(url) as client:
        await client.say("user.message", content="go")
        await client.until("agent.partial_answer")
        await client.say("user.cancel")
        assert (await client.until(*TURN_ENDS))["event"] == "agent.interrupted"
        model.hang = False
        assert (await client.ask("again"))["content"] == "three"


async def test_it_gets_all_that_a_chat_program_says(ask_as_a_chat_program, caplog):
    model = ScriptedModel("fine", "good")

    def create_agent():
        return Agent(model=model, system_prompt="You help.", callback_handler=None)

    async with hosted(create_agent(), make=create_agent, **ASYNCIO) as url:
        await ask_as_a_chat_program(url)
        address = {"kind": "image", "url": "https://example.org/a.png"}
        async with bare_client(url) as client:
            model.replies += ["one", "two"]
            for _ in range(2):
                await client.ask("look", metadata={"attachments": [address]})
    assert [prompt for prompt, _ in model.said[:2]] == ["You help.\nbe brief", "You help.\nbe kind"]
    _, (first, second, third, *_) = model.said[1]
    assert [first["content"], second["content"]] == [[{"text": "my name is Ann"}], [{"text": "hello Ann"}]]
    assert third["content"] == [
        {"text": "look"},
        {"image": {"format": "png", "source": {"bytes": b"image"}}},
        {"document": {"format": "txt", "name": "notes-txt", "source": {"bytes": b"notes"}}},
    ]
    assert caplog.text.count("Strands takes data URLs only") == 1


def test_it_is_known_by_its_type():
    assert needs(Agent(model=ScriptedModel(), callback_handler=None)) is Runtime.ASYNCIO
