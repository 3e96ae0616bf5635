import pytest
import trio
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.workflow import Context, StartEvent, StopEvent, Workflow, step
from workflows.events import HumanResponseEvent, InputRequiredEvent

from agentmgr.agent.adapt import needs
from agentmgr.models import Runtime
from agentmgr.protocol import TURN_ENDS
from agentmgr.testing.agents import bare_client, hosted

ASYNCIO = {"runtime": Runtime.ASYNCIO}
pytestmark = pytest.mark.filterwarnings("default")  # for the framework's own


class Script:
    """Says its replies in turn; a mapping is a call of a tool."""

    def __init__(self, *replies):
        self.replies, self.heard = list(replies), []

    def __call__(self, messages, **kwargs):
        self.heard.append([(message.role.value, message.content) for message in messages])
        reply = self.replies.pop(0)
        if isinstance(reply, dict):
            [(name, arguments)] = reply.items()
            call = ToolCallBlock(tool_call_id="call_1", tool_name=name, tool_kwargs=arguments)
            return ChatMessage(role="assistant", blocks=[call])
        return ChatMessage(role="assistant", content=reply)

    @property
    def model(self):
        return MockFunctionCallingLLM(response_generator=self, is_chat_model=True)


def add(x: int, y: int) -> int:
    """Adds."""
    return x + y


def said(client, name):
    return [event["content"] for event in client.events if event["event"] == name]


async def test_text_and_tools_are_shown():
    script = Script({"add": {"x": 1, "y": 2}}, "it is three")
    agent = FunctionAgent(tools=[add], llm=script.model)
    async with hosted(agent, **ASYNCIO) as url, bare_client(url) as client:
        assert (await client.ask("1 + 2?"))["content"] == "it is three"
    assert "".join(said(client, "agent.partial_answer")).strip() == "it is three"
    assert said(client, "agent.tool_call") == [{"tool": "add", "args": {"x": 1, "y": 2}}]
    assert [result["result"] for result in said(client, "agent.tool_result")] == ["3"]


async def test_each_session_remembers_its_own():
    script = Script("one", "two", "three")
    agent = AgentWorkflow(agents=[FunctionAgent(name="a", tools=[add], llm=script.model)], root_agent="a")
    async with hosted(agent, **ASYNCIO) as url:
        async with bare_client(url) as first, bare_client(url) as second:
            await first.ask("a")
            await first.ask("b")
            await second.ask("c")
    heard = [[text for _, text in messages] for messages in script.heard]
    assert heard == [["a"], ["a", "one", "b"], ["c"]]


async def test_the_conversation_goes_on_in_the_next_host(in_two_hosts):
    script = Script("one", "two")
    answers, _ = await in_two_hosts(lambda: FunctionAgent(tools=[add], llm=script.model), ["a"], ["b"])
    assert answers == ["one", "two"]
    assert [text for _, text in script.heard[1]] == ["a", "one", "b"]


async def test_it_gets_the_history_that_a_session_begins_with(ask_as_a_chat_program):
    script = Script("fine", "good")
    async with hosted(FunctionAgent(tools=[add], llm=script.model), **ASYNCIO) as url:
        await ask_as_a_chat_program(url)
    assert [text for _, text in script.heard[0]] == ["my name is Ann", "hello Ann", "look"]


class Asks(Workflow):
    @step
    async def begin(self, ctx: Context, event: StartEvent) -> InputRequiredEvent:
        await ctx.store.set("said", event.message)
        return InputRequiredEvent(prefix=f"Really {event.message}?")

    @step
    async def end(self, ctx: Context, event: HumanResponseEvent) -> StopEvent:
        return StopEvent(result={"said": await ctx.store.get("said"), "answer": event.response})


async def test_a_workflow_of_ones_own_gets_the_message_and_may_ask():
    workflow = Asks()
    assert needs(workflow) is Runtime.ASYNCIO
    async with hosted(workflow, **ASYNCIO) as url, bare_client(url) as client:
        for confirmed, answer in ((True, "yes"), (False, "no")):
            await client.say("user.message", content="go")
            question = await client.until("agent.user_confirm")
            assert question["content"]["message"] == "Really go?"
            content = {"confirmed": confirmed}
            await client.say("user.response", step_id=question["step_id"], content=content)
            assert (await client.until(*TURN_ENDS))["content"] == {"said": "go", "answer": answer}


class Hangs(Workflow):
    stopped = trio.Event()

    @step
    async def begin(self, event: StartEvent) -> StopEvent:
        import asyncio

        if event.message == "go":
            await asyncio.sleep(1000)
        return StopEvent(result=event.message)


async def test_a_cancel_stops_the_turn_and_the_next_one_runs():
    async with hosted(Hangs(timeout=None), **ASYNCIO) as url, bare_client(url) as client:
        await client.say("user.message", content="go")
        await trio.sleep(0.2)
        await client.say("user.cancel")
        assert (await client.until(*TURN_ENDS))["event"] == "agent.interrupted"
        assert (await client.ask("again"))["content"] == "again"
