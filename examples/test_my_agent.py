"""How do I test my own agent? In the test's own process, over a real connection, in milliseconds.

pip install pytest pytest-trio
pytest -o trio_mode=true examples/test_my_agent.py
"""

from agentmgr.client import open_session
from agentmgr.testing import hosted


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
