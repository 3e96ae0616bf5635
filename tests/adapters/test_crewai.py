import os

import pytest

os.environ |= {
    "CREWAI_DISABLE_TELEMETRY": "true",
    "OTEL_SDK_DISABLED": "true",
    "CREWAI_TRACING_ENABLED": "false",
}
crewai = pytest.importorskip("crewai")  # tests/adapters/run gives it an environment of its own

from crewai import Agent, BaseLLM, Crew, Task  # noqa: E402
from crewai.flow.flow import Flow, listen, start  # noqa: E402

from agentmgr.agent.adapt import adapt, needs  # noqa: E402
from agentmgr.client.session import open_session  # noqa: E402
from agentmgr.errors import AgentLoadError  # noqa: E402
from agentmgr.models import Runtime  # noqa: E402
from agentmgr.testing.agents import bare_client, hosted  # noqa: E402

from .model_server import converse, example  # noqa: E402

ASYNCIO = {"runtime": Runtime.ASYNCIO}
pytestmark = pytest.mark.filterwarnings("default")  # for the framework's own


class ScriptedLLM(BaseLLM):
    """Says its replies in turn."""

    replies: list
    heard: list

    def call(self, messages, *args, **kwargs):
        self.heard.append(messages if isinstance(messages, str) else messages[-1]["content"])
        return f"Thought: I now can give a great answer\nFinal Answer: {self.replies.pop(0)}"


def crews(llm):
    def create_agent():
        agent = Agent(role="helper", goal="help", backstory="none", llm=llm)
        description = "Before: {history}. Answer: {message}"
        task = Task(description=description, expected_output="a text", agent=agent)
        return Crew(agents=[agent], tasks=[task], verbose=False)

    return create_agent


async def test_a_crew_gets_the_message_and_what_was_said_before(tmp_path, monkeypatch, in_two_hosts):
    monkeypatch.setenv("CREWAI_STORAGE_DIR", str(tmp_path))
    llm = ScriptedLLM(model="scripted", replies=["one", "two", "three"], heard=[])
    answers, _ = await in_two_hosts(crews(llm), ["a", "b"], ["c"])
    assert answers == ["one", "two", "three"]
    assert "Before: . Answer: a" in llm.heard[0]
    assert "Before: user: a\nassistant: one. Answer: b" in llm.heard[1]
    assert "assistant: two. Answer: c" in llm.heard[2]


class Greets(Flow):
    @start()
    def begin(self):
        return f"hello {self.state['message']}"

    @listen(begin)
    def end(self, greeting):
        return {"greeting": greeting, "id": self.state["id"]}


async def test_a_flow_has_the_message_and_the_sessions_id_in_its_state():
    assert needs(Greets()) is Runtime.ASYNCIO
    async with hosted(Greets(), make=Greets, **ASYNCIO) as url, bare_client(url) as client:
        for name in ("Ann", "Bob"):
            answer = (await client.ask(name))["content"]
            assert answer == {"greeting": f"hello {name}", "id": client.session_id}


def test_one_for_all_sessions_is_refused():
    with pytest.raises(AgentLoadError, match="def create_agent"):
        adapt(crews(ScriptedLLM(model="scripted", replies=[], heard=[]))())


async def test_the_example():
    async with example("crewai_agent.py") as url, open_session(url) as session:
        assert (await converse(session, 'multiply {"a": 6, "b": 7}'))[0] == "I heard 42.0"


async def test_the_example_of_llama_index():
    pytest.importorskip("llama_index.llms.openai_like")  # it wants an older openai than the others
    async with example("llama_index_agent.py") as url, open_session(url) as session:
        answer, _, names = await converse(session, 'multiply {"a": 6, "b": 7}')
        assert answer == "I heard 42"
        assert names.count("agent.partial_answer") == 3
        assert names.count("agent.tool_result") == 1
        assert (await converse(session, "thanks"))[0] == "I heard thanks"
