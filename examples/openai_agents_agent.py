"""An agent of the OpenAI Agents SDK, as it is: no code of ours in it. It asks before it sends mail.

pip install openai-agents
agentmgr serve examples/openai_agents_agent.py --port 8081
agentmgr chat ws://localhost:8081

It talks to the model in MODEL at OPENAI_BASE_URL with OPENAI_API_KEY: to OpenAI, or to a model server on this
machine, most of which speak the same protocol.
"""

import os

from agents import Agent, OpenAIChatCompletionsModel, function_tool, set_tracing_disabled
from openai import AsyncOpenAI


@function_tool
def weather(city: str) -> str:
    return f"sunny in {city}"


@function_tool(needs_approval=True)
def send_mail(to: str, text: str) -> str:
    return f"sent to {to}"


def create_agent():
    set_tracing_disabled(True)
    client = AsyncOpenAI(api_key=os.environ.get("OPENAI_API_KEY", "none"))
    model = OpenAIChatCompletionsModel(os.environ.get("MODEL", "gpt-5"), client)
    return Agent(name="assistant", instructions="Be brief.", model=model, tools=[weather, send_mail])
