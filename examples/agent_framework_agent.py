"""An agent of Microsoft's Agent Framework, as it is: no code of ours in it. It asks before it sends mail.

pip install agent-framework-core agent-framework-openai
agentmgr serve examples/agent_framework_agent.py --port 8081
agentmgr chat ws://localhost:8081

It talks to the model in MODEL at OPENAI_BASE_URL with OPENAI_API_KEY: to OpenAI, or to a model server on this
machine, most of which speak the same protocol.
"""

import os

from agent_framework import Agent, tool
from agent_framework.openai import OpenAIChatCompletionClient


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


@tool(approval_mode="always_require")  # the person at the other end is asked
def send_mail(to: str, text: str) -> str:
    """Sends a mail."""
    return f"sent to {to}"


def create_agent():
    client = OpenAIChatCompletionClient(
        os.environ.get("MODEL", "gpt-5"), api_key=os.environ.get("OPENAI_API_KEY", "none")
    )
    return Agent(client, tools=[weather, send_mail])
