"""A Haystack agent, as it is: no code of ours in it. Pipelines are served in the same way.

pip install haystack-ai
agentmgr serve examples/haystack_agent.py --port 8081
agentmgr chat ws://localhost:8081

It talks to the model in MODEL at OPENAI_BASE_URL with OPENAI_API_KEY: to OpenAI, or to a model server on this
machine, most of which speak the same protocol.
"""

import os

from haystack.components.agents import Agent
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.tools import tool
from haystack.utils import Secret


@tool
def multiply(a: float, b: float) -> float:
    """Multiplies two numbers."""
    return a * b


def create_agent():
    model = OpenAIChatGenerator(
        model=os.environ.get("MODEL", "gpt-5"),
        api_key=Secret.from_token(os.environ.get("OPENAI_API_KEY", "none")),
        api_base_url=os.environ.get("OPENAI_BASE_URL"),
    )
    return Agent(chat_generator=model, tools=[multiply])
