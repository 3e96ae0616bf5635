"""The framework examples, as a person talks with them; those of CrewAI and LlamaIndex are tested apart."""

from agentmgr.client.session import open_session

from .model_server import converse, example


async def test_pydantic_ai():
    async with example("pydantic_ai_agent.py") as url, open_session(url) as session:
        answer, questions, names = await converse(session, "hello")
        assert "a taxi is on its way" in answer
        assert questions == ["order_taxi"]
        assert "agent.partial_answer" in names
        assert names.count("agent.tool_result") == 2


async def test_langgraph():
    async with example("langgraph_agent.py") as url, open_session(url) as session:
        answer, questions, names = await converse(session, "a table for two")
        assert answer == "Of course, I have booked it for you."
        assert questions == ["interrupt"]
        assert "agent.partial_answer" in names
        assert (await converse(session, "and a taxi", approve=False))[0] == "All right, nothing is booked."


async def test_openai_agents():
    async with example("openai_agents_agent.py") as url, open_session(url) as session:
        answer, _, names = await converse(session, 'weather {"city": "Ulm"}')
        assert answer == "I heard sunny in Ulm"
        assert names.count("agent.partial_answer") == 3
        mail = 'send_mail {"to": "me", "text": "hi"}'
        assert (await converse(session, mail))[:2] == ("I heard sent to me", ["send_mail"])


async def test_agno():
    async with example("agno_agent.py") as url, open_session(url) as session:
        answer, _, names = await converse(session, 'multiply {"a": 6, "b": 7}')
        assert answer == "I heard 42.0"
        assert "agent.tool_call" in names
        assert (await converse(session, "thanks"))[0] == "I heard thanks"


async def test_haystack():
    async with example("haystack_agent.py") as url, open_session(url) as session:
        answer, _, names = await converse(session, 'multiply {"a": 6, "b": 7}')
        assert answer == "I heard 42"
        assert "agent.tool_call" in names
        assert (await converse(session, "thanks"))[0] == "I heard thanks"


async def test_smolagents():
    async with example("smolagents_agent.py") as url, open_session(url) as session:
        answer, _, names = await converse(session, 'multiply {"a": 6, "b": 7}')
        assert "42" in answer
        assert names.count("agent.tool_result") == 1
        assert "thanks" in (await converse(session, "thanks"))[0]


async def test_semantic_kernel():
    async with example("semantic_kernel_agent.py") as url, open_session(url) as session:
        answer, _, names = await converse(session, 'multiply {"a": 6, "b": 7}')
        assert answer == "I heard 42.0"
        assert names.count("agent.tool_result") == 1
        assert names.count("agent.partial_answer") == 3
        assert (await converse(session, "thanks"))[0] == "I heard thanks"


async def test_agent_framework():
    async with example("agent_framework_agent.py") as url, open_session(url) as session:
        answer, _, names = await converse(session, 'weather {"city": "Ulm"}')
        assert answer == "I heard sunny in Ulm"
        assert names.count("agent.partial_answer") == 3
        mail = 'send_mail {"to": "me", "text": "hi"}'
        assert (await converse(session, mail))[:2] == ("I heard sent to me", ["send_mail"])


async def test_strands():
    async with example("strands_agent.py") as url, open_session(url) as session:
        answer, _, names = await converse(session, 'multiply {"a": 6, "b": 7}')
        assert answer == "I heard 42.0"
        assert names.count("agent.tool_result") == 1
        assert (await converse(session, "thanks"))[0] == "I heard thanks"


async def test_google_adk():
    async with example("google_adk_agent.py") as url, open_session(url) as session:
        answer, _, names = await converse(session, 'weather {"city": "Ulm"}')
        assert answer == 'I heard {"weather": "sunny in Ulm"}'
        assert names.count("agent.partial_answer") == 3
        mail = 'send_mail {"to": "me", "text": "hi"}'
        answer, questions, _ = await converse(session, mail)
        assert (answer, questions) == ('I heard {"sent": "me"}', ["send_mail"])
        assert (await converse(session, "thanks"))[0] == "I heard thanks"
