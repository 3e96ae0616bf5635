"""A Strands agent, as it is: no code of ours in it. Each session has one, which remembers what was said.

pip install 'strands-agents[openai]'
agentmgr serve examples/strands_agent.py --port 8081
agentmgr chat ws://localhost:8081

It talks to the model in MODEL at OPENAI_BASE_URL with OPENAI_API_KEY: to OpenAI, or to a model server on this
machine, most of which speak the same protocol.
"""

import os

from strands import Agent, tool
from strands.models.openai import OpenAIModel


@tool
def multiply(a: float, b: float) -> float:
    """Multiplies two numbers."""
    return a * b


def create_agent():
    key = {"api_key": os.environ.get("OPENAI_API_KEY", "none")}
    model = OpenAIModel(client_args=key, model_id=os.environ.get("MODEL", "gpt-5"))
    return Agent(model=model, tools=[multiply], callback_handler=None)
