"""How do I test my own agent? In the test's own process, without a model, a port or a wait.

pip install pytest pytest-trio
pytest -o trio_mode=true test_your_own_agent.py           # in a directory of yours
"""

from agentmgr.client import open_session
from agentmgr.testing import hosted, memory_network


async def agent(message, session):
    if message == "forget me" and await session.confirm("forget", message="Really?"):
        yield "Who "
        yield "are you?"
    else:
        yield f"I remember: {message}"


async def test_it_remembers():
    async with hosted(agent) as url, open_session(url) as session:
        assert await session.ask("hello") == "I remember: hello"


async def test_it_asks_before_it_forgets():
    async with hosted(agent) as url, open_session(url) as session:
        assert await session.ask("forget me", confirm=lambda question: True) == "Who are you?"
        assert await session.ask("forget me", confirm=lambda question: False) == "I remember: forget me"


async def test_a_client_misses_nothing_when_the_network_breaks(autojump_clock):
    async with memory_network() as network:
        place = network.listen("agent", 8001)
        async with hosted(agent, listener=place), open_session(place.url, dial=network.dial) as session:
            place.cut_after(300)  # bytes from now on: in the middle of an answer
            place.refuse_next(3)
            for number in range(20):
                assert await session.ask(f"line {number}") == f"I remember: line {number}"
