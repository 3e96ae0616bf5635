"""An Agno agent, as it is: no code of ours in it. It remembers the conversation in its own database.

pip install agno openai
agentmgr serve examples/agno_agent.py --port 8081
agentmgr chat ws://localhost:8081

It talks to the model in MODEL at OPENAI_BASE_URL with OPENAI_API_KEY: to OpenAI, or to a model server on this
machine, most of which speak the same protocol.
"""

import os

from agno.agent import Agent
from agno.db.in_memory import InMemoryDb
from agno.models.openai.like import OpenAILike


def multiply(a: float, b: float) -> float:
    """Multiplies two numbers."""
    return a * b


def create_agent():
    model = OpenAILike(
        id=os.environ.get("MODEL", "gpt-5"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
        base_url=os.environ.get("OPENAI_BASE_URL"),
    )
    return Agent(model=model, tools=[multiply], db=InMemoryDb(), add_history_to_context=True, telemetry=False)
